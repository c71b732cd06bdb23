"""Configuration of the audio encoder of the challenge's 2027 baseline."""

from typing import Any

from transformers import PreTrainedConfig


class M2dConfig(PreTrainedConfig):
    r"""
    Configuration of an [`M2dModel`]. The defaults are the audio encoder of M2D-CLAP 2025 (arXiv 2503.22104) in the 2027
    baseline: ViT-B on 10 s.

    Args:
        num_mel_bins (`int`): Mel bins of the input.
        max_frames (`int`): Frames for which there are positions; the input may have fewer.
        patch_size (`int`): Side of the square spectrogram patches, in frames and in mel bins.
        hidden_size (`int`): Width of the encoder.
        num_hidden_layers (`int`): Layers over the patches.
        num_attention_heads (`int`): Attention heads of each of these layers.
        intermediate_size (`int`): Width of the feed-forward layers.
        hidden_act (`str`): Activation of the feed-forward layers, `gelu` or `relu`.
        hidden_dropout (`float`): Dropout of attention weights, attention and feed-forward, in training.
        layer_norm_eps (`float`): Epsilon of every LayerNorm.
        num_semantic_layers (`int`): Layers, of one attention head each, over the semantic token and the patches; the
            baseline's description leaves open whether one or two.
        initializer_range (`float`): Standard deviation of initial weights.
    """

    model_type = "xacle_m2d"

    num_mel_bins: int = 80
    max_frames: int = 1001
    patch_size: int = 16
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.0
    layer_norm_eps: float = 1e-6
    num_semantic_layers: int = 1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}."
            )
        if self.num_mel_bins % self.patch_size:
            raise ValueError(f"num_mel_bins={self.num_mel_bins} is not a multiple of patch_size={self.patch_size}.")
        if self.num_semantic_layers < 1:
            raise ValueError(f"num_semantic_layers={self.num_semantic_layers} must be at least 1.")

    @property
    def max_patches(self) -> int:
        """The patches of the longest input."""
        return (self.max_frames // self.patch_size) * (self.num_mel_bins // self.patch_size)


__all__ = ["M2dConfig"]
