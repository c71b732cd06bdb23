"""Configuration of the audio encoder of the challenge's 2026 baseline."""

from typing import Any

from transformers import PreTrainedConfig


class ByolaConfig(PreTrainedConfig):
    r"""
    Configuration of a [`ByolaModel`]. The defaults are the BYOL-A v2 encoder (arXiv 2204.07402) of the 2026 baseline.

    Args:
        num_mel_bins (`int`): Mel bins of the input.
        num_channels (`int`): Channels of every convolution.
        num_blocks (`int`): Convolutions, each of which halves frames and mel bins.
        projection_size (`int`): Width of the two linear layers on each frame.
        dropout (`float`): Dropout between them, in training.
    """

    model_type = "xacle_byola"

    num_mel_bins: int = 64
    num_channels: int = 64
    num_blocks: int = 2
    projection_size: int = 2048
    dropout: float = 0.3

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        if self.num_mel_bins % self.time_stride:
            raise ValueError(
                f"num_mel_bins={self.num_mel_bins} is not a multiple of {self.time_stride}, by which "
                f"num_blocks={self.num_blocks} divide it."
            )

    @property
    def time_stride(self) -> int:
        """How many frames become one."""
        return 2**self.num_blocks

    @property
    def local_size(self) -> int:
        """Width of a frame behind the convolutions, which see its neighbourhood only."""
        return self.num_channels * (self.num_mel_bins // self.time_stride)

    @property
    def hidden_size(self) -> int:
        """Width of the encoder's output: what the convolutions and the linear layers make of a frame."""
        return self.local_size + self.projection_size


__all__ = ["ByolaConfig"]
