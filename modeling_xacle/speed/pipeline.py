"""The pipeline as this package registers it: the one that travels, run with the faster forms of its layers."""

from typing import Any

import torch

from ..pipeline_xacle import AudioTextAlignmentPipeline
from .forms import fast_forms


class FastAudioTextAlignmentPipeline(AudioTextAlignmentPipeline):
    """An [`AudioTextAlignmentPipeline`] whose passes run inside [`fast_forms`]. What it saves is its parent's."""

    def _forward(self, items: list[dict[str, Any]], **kwargs: Any) -> list[torch.Tensor]:
        """For each input scores of shape `(num_windows, num_captions)`, as its parent's."""
        with fast_forms(self.model):
            return super()._forward(items, **kwargs)
