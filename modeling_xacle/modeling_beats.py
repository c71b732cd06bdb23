"""BEATs audio encoder: log-mel spectrogram -> patch tokens (arXiv 2212.09058; microsoft/unilm `beats`)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_xacle import BeatsConfig

# Larger tensors do not stay in the cache, and glibc asks the system for their memory again each time.
CPU_CACHE_BYTES = 2**25


@dataclass
class BeatsClassifierOutput(ModelOutput):
    r"""
    Output of [`BeatsForAudioClassification`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): Binary cross entropy over all classes, if `labels` were
            given.
        logits (`torch.Tensor` of shape `(batch_size, num_labels)`): Clip-level class logits.
        probabilities (`torch.Tensor` of shape `(batch_size, num_labels)`): Their sigmoid; the classes are not
            exclusive.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    probabilities: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # training uses the cached tensors too
def relative_position_buckets(
    num_tokens: int, num_buckets: int, max_distance: int, device: torch.device | None = None
) -> torch.Tensor:
    """
    Computes the bucket of each (query, key) distance, as in T5 (arXiv 1910.10683, section 2.1): one bucket for each
    small distance, then logarithmically wider ones up to `max_distance`; the first half of the buckets looks back, the
    second half ahead.

    Returns:
        `torch.Tensor` of shape `(num_tokens, num_tokens)`, int64, in [0, `num_buckets`).
    """
    positions = torch.arange(num_tokens, device=device)
    offsets = positions[None, :] - positions[:, None]  # (T, T), key - query
    num_buckets = num_buckets // 2
    num_exact = num_buckets // 2
    distances = offsets.abs()
    growth = torch.log(distances.clamp(min=1).float() / num_exact) / math.log(max_distance / num_exact)
    wide = (num_exact + (growth * (num_buckets - num_exact)).long()).clamp(max=num_buckets - 1)
    return (offsets > 0).long() * num_buckets + torch.where(distances < num_exact, distances, wide)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Computes attention step by step and returns its weights: the plain counterpart of Transformers' `sdpa` interface.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch_size, num_heads, num_tokens, head_dim)`): Projected inputs.
        attention_mask (`torch.Tensor`, *optional*): Additive mask that broadcasts to the weights.
        position_bias (`torch.Tensor` of shape `(batch_size, num_heads, num_tokens, num_tokens)`, *optional*): Added to
            the logits.

    Returns:
        The output, of shape `(batch_size, num_tokens, num_heads, head_dim)`, and the weights,
        of shape `(batch_size, num_heads, num_tokens, num_tokens)`.
    """
    logits = query @ key.transpose(-1, -2) * scaling
    for bias in (position_bias, attention_mask):
        if bias is not None:
            logits = logits + bias
    weights = nn.functional.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def check_spectrograms(input_features: torch.Tensor, num_mel_bins: int, min_frames: int, extractor: str) -> None:
    """
    Check that these are spectrograms `(batch_size, num_frames, num_mel_bins)` that an encoder can read.

    Args:
        input_features (`torch.Tensor`): An encoder's input.
        num_mel_bins (`int`), min_frames (`int`): What the encoder expects.
        extractor (`str`): Class of the feature extractor that makes it.

    Raises:
        ValueError: They are not.
    """
    shape = tuple(input_features.shape)
    is_enough = len(shape) == 3 and shape[0] > 0 and shape[1] >= min_frames
    if not is_enough or shape[2] != num_mel_bins:
        raise ValueError(
            f"input_features has shape {shape}, but the audio tower expects (batch_size, num_frames, {num_mel_bins}) "
            f"with at least one clip and {min_frames} frames. Make them with {extractor}."
        )


class BeatsConvPositionEmbedding(nn.Module):
    """Position embedding computed from the tokens by a wide grouped convolution (wav2vec 2.0, arXiv 2006.11477)."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        kernel_size = config.conv_position_kernel_size
        self.conv = nn.Conv1d(
            config.hidden_size,
            config.hidden_size,
            kernel_size,
            padding=kernel_size // 2,
            groups=config.conv_position_groups,
        )
        self.activation = nn.GELU()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Computes positions for tokens, both of shape `(batch_size, num_tokens, hidden_size)`."""
        num_tokens = hidden_states.shape[1]
        positions = self.conv(hidden_states.transpose(1, 2))  # (B, N, D) -> (B, D, N [+ 1, if the kernel is even])
        return self.activation(positions[:, :, :num_tokens]).transpose(1, 2)


def deep_norm_linear(config: BeatsConfig, in_features: int, out_features: int, is_branch: bool = True) -> nn.Linear:
    """
    Makes a linear layer that starts as DeepNorm asks (arXiv 2203.00555, table 2): Xavier normal, smaller by
    `(8 * num_hidden_layers) ** 0.25` in the residual branch's values, output and feed-forward, not in queries and keys.
    """
    linear = nn.Linear(in_features, out_features)
    linear.xavier_gain = (8 * config.num_hidden_layers) ** -0.25 if config.deep_norm and is_branch else 1.0
    return linear


class BeatsAttention(nn.Module):
    """
    Self-attention with a relative position bias that the query gates (arXiv 2212.09058, section 3.1, after WavLM).
    """

    is_causal = False

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        size = config.hidden_size
        self.q_proj = deep_norm_linear(config, size, size, is_branch=False)
        self.k_proj = deep_norm_linear(config, size, size, is_branch=False)
        self.v_proj = deep_norm_linear(config, size, size)
        self.out_proj = deep_norm_linear(config, size, size)
        self.gate_proj = nn.Linear(self.head_dim, 8)
        self.gate_scale = nn.Parameter(torch.ones(self.num_heads, 1, 1))

    def forward(
        self, hidden_states: torch.Tensor, position_bias: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Attend.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`): Input.
            position_bias (`torch.Tensor` of shape `(1, num_heads, num_tokens, num_tokens)`): Ungated bias, the same in
                all layers.

        Returns:
            The output, of the input's shape, and the attention weights if the implementation is `eager`.
        """
        heads = (*hidden_states.shape[:2], self.num_heads, self.head_dim)
        query, key, value = (
            project(hidden_states).view(heads) for project in (self.q_proj, self.k_proj, self.v_proj)
        )  # (B, N, D) -> 3 x (B, N, H, D/H)
        output, weights = self.attend(query, key, value, self._gate(query), position_bias)
        return self.out_proj(output.flatten(2)), weights

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        gate: torch.Tensor,
        position_bias: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Maps `3 x (B, N, H, D/H)` to `(B, N, H, D/H)` and, if the implementation has them, weights `(B, H, N, N)`."""
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        query, key, value, gate = (part.transpose(1, 2) for part in (query, key, value, gate))  # -> (B, H, N, D/H)
        return attend(
            self,
            query,
            key,
            value,
            None,
            scaling=self.head_dim**-0.5,
            dropout=self.config.attention_dropout if self.training else 0.0,
            position_bias=(position_bias * gate).to(query.dtype),
        )

    def _gate(self, query: torch.Tensor) -> torch.Tensor:
        """
        Computes the gate of the bias, in (0, 2 + gate_scale), from the projected, unscaled query: `(B, N, H, D/H)` ->
        `(B, N, H, 1)`.
        """
        update, reset = torch.sigmoid(self.gate_proj(query).unflatten(-1, (2, 4)).sum(-1)).chunk(2, dim=-1)
        return update * (reset * self.gate_scale.transpose(0, 1) - 1) + 2


class BeatsLayer(GradientCheckpointingLayer):
    """Encoder layer: attention and feed-forward, each followed by a (DeepNorm-scaled) residual and a LayerNorm."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.residual_scale = (2 * config.num_hidden_layers) ** 0.25 if config.deep_norm else 1.0
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = deep_norm_linear(config, config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = deep_norm_linear(config, config.intermediate_size, config.hidden_size)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, position_bias: torch.Tensor) -> torch.Tensor:
        """Returns hidden states of the input's shape, `(batch_size, num_tokens, hidden_size)`."""
        attended, _ = self.self_attn(hidden_states, position_bias)
        attended = torch.add(self.dropout(attended), hidden_states, alpha=self.residual_scale)
        hidden_states = self.self_attn_layer_norm(attended)
        expanded = self.fc2(self.activation(self.fc1(hidden_states)))
        return self.final_layer_norm(torch.add(self.dropout(expanded), hidden_states, alpha=self.residual_scale))


class BeatsPreTrainedModel(PreTrainedModel):
    """Initialisation, attention implementations (`eager`, `sdpa`) and recorded outputs of the BEATs models."""

    config: BeatsConfig
    base_model_prefix = "model"
    main_input_name = "input_features"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["BeatsLayer"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_record_outputs = {"hidden_states": BeatsLayer, "attentions": BeatsAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """DeepNorm's initialisation for the layers, wav2vec 2.0's for the position convolution."""
        super()._init_weights(module)
        # Set on leaves only: in code outside the library, Transformers skips modules without parameters of their own.
        if hasattr(module, "xavier_gain"):
            init.xavier_normal_(module.weight, gain=module.xavier_gain)
        elif isinstance(module, nn.Conv1d):
            init.normal_(module.weight, std=(4 / (module.kernel_size[0] * module.in_channels)) ** 0.5)
        elif isinstance(module, BeatsAttention):
            init.ones_(module.gate_scale)


class BeatsModel(BeatsPreTrainedModel):
    """
    BEATs encoder. Its input has a fixed number of frames, silence included; there is no padding mask, because the
    published system treats padding as sound.
    """

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(
            1,
            config.patch_embedding_size,
            config.patch_size,
            stride=config.patch_size,
            bias=config.patch_embedding_bias,
        )
        self.patch_layer_norm = nn.LayerNorm(config.patch_embedding_size, eps=config.layer_norm_eps)
        self.patch_projection = nn.Linear(config.patch_embedding_size, config.hidden_size)
        self.conv_position = BeatsConvPositionEmbedding(config)
        self.relative_position_bias = nn.Embedding(config.relative_position_num_buckets, config.num_attention_heads)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList([BeatsLayer(config) for _ in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(self, input_features: torch.Tensor, **kwargs: Any) -> BaseModelOutput:
        """
        Encode.

        Args:
            input_features (`torch.Tensor` of shape `(batch_size, num_frames, num_mel_bins)`): Normalised log-mel
                spectrogram.

        Returns:
            `BaseModelOutput` with `last_hidden_state` of shape `(batch_size, num_tokens, hidden_size)`. Tokens run
            over time first: `num_mel_bins // patch_size` neighbours share one time step. 10 s (998 frames) give 62 * 8
            = 496 tokens.
        """
        self.check_input(input_features)
        patches = self.patch_embedding(input_features.to(self.dtype).unsqueeze(1))  # (B, T, F) -> (B, E, T/16, F/16)
        tokens = patches.flatten(2).transpose(1, 2)  # -> (B, N, E)
        hidden_states = self.patch_projection(self.patch_layer_norm(tokens))  # -> (B, N, D)
        positions = self.conv_position(hidden_states).to(hidden_states.device)
        hidden_states = self.layer_norm(hidden_states + positions)
        hidden_states = self.dropout(hidden_states)
        position_bias = self._position_bias(hidden_states.shape[1], hidden_states.device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_bias)
        return BaseModelOutput(last_hidden_state=hidden_states)

    def check_input(self, input_features: torch.Tensor) -> None:
        """
        Check that these are spectrograms `(batch_size, num_frames, num_mel_bins)` that can be encoded.

        Raises:
            ValueError: They are not.
        """
        check_spectrograms(input_features, self.config.num_mel_bins, self.config.patch_size, "XacleFeatureExtractor")

    def clips_at_once(self, input_features: torch.Tensor) -> int:
        """Returns the clips in one pass: on a CPU, so many that a layer's largest tensor stays in the cache."""
        num_clips, num_frames = input_features.shape[:2]
        if input_features.device.type != "cpu":
            return max(1, num_clips)
        config = self.config
        num_tokens = (num_frames // config.patch_size) * (config.num_mel_bins // config.patch_size)
        widest = max(config.num_attention_heads * num_tokens, config.intermediate_size)
        return max(1, CPU_CACHE_BYTES // (4 * max(1, num_tokens * widest)))

    def _position_bias(self, num_tokens: int, device: torch.device) -> torch.Tensor:
        """
        Returns each head's bias for each distance, `(1, H, N, N)`, contiguous in memory. The buckets are not a buffer,
        because buffers and meta loading do not mix.
        """
        config = self.config
        numbers = config.relative_position_num_buckets, config.relative_position_max_distance
        buckets = relative_position_buckets(num_tokens, *numbers, device)
        return self.relative_position_bias(buckets).permute(2, 0, 1).unsqueeze(0).contiguous()  # -> (1, H, N, N)


class BeatsForAudioClassification(BeatsPreTrainedModel):
    """
    A fine-tuned BEATs: class probabilities of a clip from the mean of its tokens' logits (microsoft/unilm
    `beats/BEATs.py`).
    """

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        config.problem_type = "multi_label_classification"  # otherwise Transformers' pipelines would apply a softmax
        self.model = BeatsModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self, input_features: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> BeatsClassifierOutput:
        """
        Classify.

        Args:
            input_features (`torch.Tensor` of shape `(batch_size, num_frames, num_mel_bins)`): Normalised log-mel
                spectrogram.
            labels (`torch.Tensor` of shape `(batch_size, num_labels)`, *optional*): 1 where the class is present, else
                0.
        """
        outputs = self.model(input_features, **kwargs)
        logits = self.classifier(outputs.last_hidden_state).mean(dim=1)  # (B, N, D) -> (B, N, C) -> (B, C)
        loss = None
        if labels is not None:
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return BeatsClassifierOutput(
            loss=loss,
            logits=logits,
            probabilities=logits.sigmoid(),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["BeatsClassifierOutput", "BeatsForAudioClassification", "BeatsModel", "BeatsPreTrainedModel"]
