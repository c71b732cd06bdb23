"""The pipeline as this package registers it: the one that travels, run with the faster forms of its layers."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..pipeline_xacle import AudioTextAlignmentPipeline
from .forms import fast_forms


class FastAudioTextAlignmentPipeline(AudioTextAlignmentPipeline):
    """
    An [`AudioTextAlignmentPipeline`] whose passes run inside [`fast_forms`]. What it saves is its parent's. A model
    that brings a `pipeline_class` of its own, such as an ensemble, gets that one.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> AudioTextAlignmentPipeline:
        model = kwargs.get("model", args[0] if args else None)
        other = getattr(model, "pipeline_class", None)
        return super().__new__(cls) if other is None else other(*args, **kwargs)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """Surrounds all passes through the model with what its parent does, and [`fast_forms`]."""
        with fast_forms(self.model), super().ready():
            yield
