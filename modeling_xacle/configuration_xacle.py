"""Configurations: every number that a checkpoint depends on."""

from pathlib import Path
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.dynamic_module_utils import custom_object_save

from .configuration_byola import ByolaConfig
from .configuration_m2d import M2dConfig

# What each stage trains on: values of `XacleConfig.training_stage`.
STAGES = {1: "captioning", 2: "CLAP pseudo-labels", 3: "listeners' scores"}


class BeatsConfig(PreTrainedConfig):
    r"""
    Configuration of a [`BeatsModel`]. The defaults are BEATs iter3+ AS2M (arXiv 2212.09058, section 3; microsoft/unilm
    `beats`).

    Args:
        num_mel_bins (`int`): Mel bins of the input.
        patch_size (`int`): Side of the square spectrogram patches, in frames and in mel bins.
        patch_embedding_size (`int`): Width of the patch embedding, before the projection to `hidden_size`.
        patch_embedding_bias (`bool`): Whether the patch embedding has a bias.
        hidden_size (`int`): Width of the encoder.
        num_hidden_layers (`int`): Encoder layers.
        num_attention_heads (`int`): Attention heads of each layer.
        intermediate_size (`int`): Width of the feed-forward layers.
        hidden_act (`str`): Activation of the feed-forward layers.
        hidden_dropout (`float`): Dropout after attention and feed-forward, in training. The published system does not
            train the encoder.
        attention_dropout (`float`): Dropout of the attention weights, in training.
        layer_norm_eps (`float`): Epsilon of every LayerNorm.
        deep_norm (`bool`): Whether residuals are scaled by `(2 * num_hidden_layers) ** 0.25` (DeepNet, arXiv
            2203.00555).
        conv_position_kernel_size (`int`): Kernel of the convolutional position embedding, in tokens.
        conv_position_groups (`int`): Groups of the convolutional position embedding.
        relative_position_num_buckets (`int`): Buckets of the relative position bias, both directions together.
        relative_position_max_distance (`int`): Distance, in tokens, from which all positions share the last bucket.
        initializer_range (`float`): Standard deviation of weights that are not initialised by DeepNorm or the position
            embedding.
    """

    model_type = "xacle_beats"

    num_mel_bins: int = 128
    patch_size: int = 16
    patch_embedding_size: int = 512
    patch_embedding_bias: bool = False
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout: float = 0.0
    attention_dropout: float = 0.0
    layer_norm_eps: float = 1e-5
    deep_norm: bool = True
    conv_position_kernel_size: int = 128
    conv_position_groups: int = 16
    relative_position_num_buckets: int = 320
    relative_position_max_distance: int = 800
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} is not a multiple of num_attention_heads={self.num_attention_heads}."
            )
        if self.num_mel_bins % self.patch_size:
            raise ValueError(f"num_mel_bins={self.num_mel_bins} is not a multiple of patch_size={self.patch_size}.")


# Audio encoders of this package by model type: a stranger's AutoConfig does not know them.
OWN_AUDIO_CONFIGS = {config.model_type: config for config in (BeatsConfig, ByolaConfig, M2dConfig)}


def make_audio_config(settings: dict[str, Any]) -> PreTrainedConfig:
    """Returns the config of an audio encoder of any family from its settings; without a `model_type` it is BEATs."""
    settings = dict(settings)
    kind = settings.pop("model_type", BeatsConfig.model_type)
    return OWN_AUDIO_CONFIGS[kind](**settings) if kind in OWN_AUDIO_CONFIGS else AutoConfig.for_model(kind, **settings)


PIPELINE = {"impl": "pipeline_xacle.AudioTextAlignmentPipeline", "pt": ["AutoModel"], "type": "multimodal"}


class ScoringConfig(PreTrainedConfig):
    r"""
    What the configurations of all models that score pairs share: an audio tower, a text model, and the scale.

    Args:
        audio_config (`PreTrainedConfig` or `dict`): The audio encoder: BEATs ([`BeatsConfig`]), or one of a family that
            `modeling_towers.py` lists.
        text_config (`PreTrainedConfig` or `dict`): The text model.
        score_min (`float`): Lower end of the listeners' scale, where the label is -1.
        score_max (`float`): Upper end of the listeners' scale, where the label is 1.
        calibration_scale (`float`): Slope of the affine calibration from logits to labels.
        calibration_offset (`float`): Offset of the affine calibration from logits to labels.
        apply_calibration (`bool`): Whether scores go through the calibration. Rank correlations do not depend on it.
        training_stage (`int`): Last training stage completed: 0 none (the score head is random), 1 captioning, 2 CLAP
            pseudo-labels, 3 listeners' scores.
    """

    auto_map_classes: ClassVar[dict[str, str]] = {}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["hidden_states", "attentions"]

    audio_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    score_min: float = 0.0
    score_max: float = 10.0
    calibration_scale: float = 1.0
    calibration_offset: float = 0.0
    apply_calibration: bool = True
    training_stage: int = 0

    def __post_init__(self, **kwargs: Any):
        # Within this package the task registry knows the pipeline; only a folder loaded as remote code must name it.
        # Otherwise the entry would make `pipeline` ask for `trust_remote_code` although no remote code is needed.
        if not __name__.startswith("transformers_modules."):
            kwargs.pop("custom_pipelines", None)
        if isinstance(self.audio_config, dict):
            self.audio_config = make_audio_config(self.audio_config)
        super().__post_init__(**kwargs)
        if self.score_min >= self.score_max:
            raise ValueError(f"score_min={self.score_min} must be below score_max={self.score_max}.")
        if not self.calibration_scale > 0:
            raise ValueError(
                f"calibration_scale={self.calibration_scale} must be positive, or it would reverse the ranking."
            )

    def logits_to_scores(self, logits: Any) -> Any:
        """
        Convert to scores on the listeners' scale: calibrated labels, mapped linearly from [-1, 1] to [`score_min`,
        `score_max`] and not clamped.

        Args:
            logits (`torch.Tensor`, `np.ndarray` or `float`, of any shape): Outputs of the score head.
        """
        labels = logits
        if self.apply_calibration:
            labels = self.calibration_scale * logits + self.calibration_offset
        return (labels + 1) * ((self.score_max - self.score_min) / 2) + self.score_min

    def scores_to_labels(self, scores: Any) -> Any:
        """
        Convert to training labels in [-1, 1]: the listeners' scale, mapped linearly, without the calibration.

        Args:
            scores (`torch.Tensor`, `np.ndarray` or `float`, of any shape): Scores in [`score_min`, `score_max`].
        """
        return (scores - self.score_min) / ((self.score_max - self.score_min) / 2) - 1

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, and the files in which a stranger's Auto classes and `pipeline` find the code."""
        pipelines = {"audio-text-alignment": PIPELINE}
        return {**super().to_dict(), "auto_map": self.auto_map_classes, "custom_pipelines": pipelines}

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Save config.json and, beside it, the code that it names but no model of this kind brings along."""
        super().save_pretrained(save_directory, **kwargs)
        for carried in self._carried():
            custom_object_save(carried, save_directory)

    @staticmethod
    def _carried() -> list[type]:
        """Returns the classes whose files Transformers copies."""
        from .pipeline_xacle import AudioTextAlignmentPipeline

        return [AudioTextAlignmentPipeline]


class XacleConfig(ScoringConfig):
    r"""
    Configuration of a [`XacleModel`]. The defaults are the published system (arXiv 2602.00604, section 2) on
    Qwen2.5-0.5B.

    Args:
        audio_config (`PreTrainedConfig` or `dict`): The audio tower.
        text_config (`PreTrainedConfig` or `dict`): The language model; any causal decoder the Auto classes know.
        num_audio_tokens (`int`): Tokens an audio clip takes in the sequence; the encoder's output is average-pooled to
            this number.
        projector_intermediate_size (`int`): Width of the SwiGLU projector.
        projector_dropout (`float`): Dropout inside the projector, in training.
        score_head_hidden_size (`int`): Width of the score head's two hidden layers.
        score_head_output_size (`int`): Width of the vector from which the score is read.
        score_head_dropout (`float`): Dropout after each hidden layer of the score head, in training.
        caption_likelihood (`bool`): Whether the score also uses how likely the language model, trained by captioning
            (stage 1), finds the caption after the sound. Not in the published system; the processor must have
            `audio_first`.
        audio_start_token_id (`int`): Id of `[AUDIO_START]`.
        audio_end_token_id (`int`): Id of `[AUDIO_END]`.
        score_token_id (`int`): Id of `[SCORE]`, whose hidden state gives the score.
        audio_token_id (`int`): Id of `[AUDIO]`, the placeholder for one audio token; its embedding is never used.
        tie_word_embeddings (`bool`): Whether the LM head of stage 1 shares the weights of the embeddings.
        kwargs: The fields of [`ScoringConfig`], which tell the scale.
    """

    model_type = "xacle"
    sub_configs_defaults: ClassVar[dict] = {
        "audio_config": BeatsConfig,
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="qwen2"),
    }
    auto_map_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_xacle.XacleConfig",
        "AutoModel": "modeling_xacle.XacleModel",
        "AutoModelForMultimodalLM": "modeling_captioning.XacleForConditionalGeneration",
    }

    num_audio_tokens: int = 100
    projector_intermediate_size: int = 3584
    projector_dropout: float = 0.1
    score_head_hidden_size: int = 512
    score_head_output_size: int = 128
    score_head_dropout: float = 0.1
    caption_likelihood: bool = False
    audio_start_token_id: int = 151665
    audio_end_token_id: int = 151666
    score_token_id: int = 151667
    audio_token_id: int = 151668
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        if self.num_audio_tokens < 1:
            raise ValueError(f"num_audio_tokens={self.num_audio_tokens} must be at least 1.")

    @property
    def end_token_id(self) -> int:
        """The id of the token that ends a caption: the language model's (first) end-of-sequence token."""
        end = self.text_config.eos_token_id
        return end[0] if isinstance(end, list) else end

    @staticmethod
    def _carried() -> list[type]:
        from .modeling_captioning import XacleForConditionalGeneration

        return [XacleForConditionalGeneration, *ScoringConfig._carried()]


__all__ = ["BeatsConfig", "ScoringConfig", "XacleConfig", "make_audio_config"]
