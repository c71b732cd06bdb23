"""The configuration of judges with two towers."""

from typing import Any, ClassVar

from transformers import AutoConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_xacle import BeatsConfig, ScoringConfig

JOINS = ("cosine", "mlp", "cross_attention", "bilstm")
# Joins of one vector for the whole sound; the others take its tokens.
SUMMARY_JOINS = ("cosine", "mlp")
PROJECTIONS = ("none", "linear", "mlp", "norm_linear")
TEXT_SUMMARIES = ("first", "pooler", "mean")


class XacleDualEncoderConfig(ScoringConfig):
    r"""
    Configuration of a [`XacleDualEncoder`].

    Args:
        audio_config (`PreTrainedConfig` or `dict`): The audio tower.
        text_config (`PreTrainedConfig` or `dict`): The text tower; any encoder the Auto classes know, or CLAP's.
        join (`str`): How sound and caption meet: `cosine` of their vectors; `mlp` on both vectors, each of unit length;
            `cross_attention` of their tokens, in both directions; or `bilstm` over the sound's tokens, to each of which
            the caption's vector is appended.
        projection (`str`): What towers' vectors or tokens go through first: `none`; `linear`; `mlp`, two layers with a
            ReLU, as in CLAP; or `norm_linear`, as in PE-AV.
        projection_size (`int`): Width after the projection.
        text_summary (`str`): The caption's vector: the `first` token, the model's own `pooler`, or the `mean`.
        num_audio_tokens (`int`): Tokens of a sound for the joins that take tokens.
        join_sizes (`list` of `int`): Widths of the hidden layers before the logit.
        lstm_size (`int`): Width of the BiLSTM in each direction.
        num_attention_heads (`int`), num_attention_layers (`int`): Of the cross-attention in each direction.
        dropout (`float`): In training, after the first hidden layer and in attention.
        preset (`str`, *optional*): Name of the published system that this is.
        kwargs: The fields of [`ScoringConfig`], which tell the scale.
    """

    model_type = "xacle_dual_encoder"
    sub_configs_defaults: ClassVar[dict] = {
        "audio_config": BeatsConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="roberta"),
    }
    auto_map_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_dual.XacleDualEncoderConfig",
        "AutoModel": "modeling_dual.XacleDualEncoder",
    }

    join: str = "mlp"
    projection: str = "none"
    projection_size: int = 512
    text_summary: str = "first"
    num_audio_tokens: int = 100
    join_sizes: list[int] | None = None
    lstm_size: int = 512
    num_attention_heads: int = 8
    num_attention_layers: int = 2
    dropout: float = 0.3
    preset: str | None = None

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        choices = {"join": JOINS, "projection": PROJECTIONS, "text_summary": TEXT_SUMMARIES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(known)}.")
        self.join_sizes = [1024, 256] if self.join_sizes is None else self.join_sizes
        if self.join == "cosine" and self.audio_size != self.text_size:
            raise ValueError(
                f"A cosine needs vectors of one size, not {self.audio_size} of the sound and {self.text_size} of the "
                "caption: choose another projection than none."
            )

    @property
    def takes_summary(self) -> bool:
        """Whether the join takes one vector of the whole sound."""
        return self.join in SUMMARY_JOINS

    @property
    def audio_size(self) -> int:
        """The width of the sound's vectors, behind the projection."""
        return self.audio_config.hidden_size if self.projection == "none" else self.projection_size

    @property
    def text_size(self) -> int:
        """The width of the caption's vectors, behind the projection."""
        return self.text_config.hidden_size if self.projection == "none" else self.projection_size


__all__ = ["XacleDualEncoderConfig"]
