"""BYOL-A v2 audio encoder: log-mel spectrogram -> frames (arXiv 2204.07402), built from its description alone."""

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_byola import ByolaConfig
from .modeling_beats import check_spectrograms


def byola_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Makes a block `(B, in_channels, T, F)` -> `(B, out_channels, T / 2, F / 2)`."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


class ByolaModel(PreTrainedModel):
    """
    BYOL-A v2 encoder. Padding counts as silence. In training, batch norm takes the statistics of the clips of one
    process, so that results depend on batch size and number of processes; in evaluation no clip changes another.
    """

    config: ByolaConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    _supports_sdpa = True  # there is no attention: any implementation will do

    def __init__(self, config: ByolaConfig):
        super().__init__(config)
        channels = [1, *[config.num_channels] * config.num_blocks]
        self.blocks = nn.Sequential(*map(byola_block, channels[:-1], channels[1:]))
        self.projection = nn.Sequential(
            nn.Linear(config.local_size, config.projection_size),
            nn.ReLU(),
            nn.Dropout(config.dropout),
            nn.Linear(config.projection_size, config.projection_size),
            nn.ReLU(),
        )
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """He's initialisation, as every layer leads to a ReLU (arXiv 1502.01852, section 2.2); biases are zero."""
        super()._init_weights(module)
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            init.kaiming_normal_(module.weight, nonlinearity="relu")

    @can_return_tuple
    def forward(self, input_features: torch.Tensor) -> BaseModelOutput:
        """
        Encode.

        Args:
            input_features (`torch.Tensor` of shape `(batch_size, num_frames, num_mel_bins)`): Normalised log-mel
                spectrogram of [`ByolaFeatureExtractor`].

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(batch_size, num_frames // 4, hidden_size)`: what the
            convolutions make of a frame's neighbourhood, then what the linear layers make of that. 10 s (1001 frames)
            give 250 x 3072.

        Raises:
            ValueError: The input has another shape.
        """
        config = self.config
        check_spectrograms(input_features, config.num_mel_bins, config.time_stride, "ByolaFeatureExtractor")
        maps = self.blocks(input_features.to(self.dtype).unsqueeze(1))  # (B, T, F) -> (B, C, T/4, F/4)
        local = maps.transpose(1, 2).flatten(2)  # -> (B, T/4, C * F/4)
        return BaseModelOutput(last_hidden_state=torch.cat([local, self.projection(local)], dim=-1))  # (B, T/4, D)


__all__ = ["ByolaModel"]
