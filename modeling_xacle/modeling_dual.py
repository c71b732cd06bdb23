"""Judges with two towers: an audio encoder and a text encoder, joined by a cosine, an MLP, attention or a BiLSTM."""

from itertools import pairwise
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.utils.generic import can_return_tuple, maybe_autocast

from .configuration_dual import XacleDualEncoderConfig
from .modeling_towers import build_tower
from .modeling_xacle import XacleOutput, XaclePreTrainedModel

NORM_EPS = 1e-6  # PE-AV's

# ---------------------------------------------------------------------------------------------------------------------
# Parts


def build_text_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """Returns a text encoder with random weights."""
    if config.model_type == "clap_text_model":  # which `AutoModel` does not build
        from transformers import ClapTextModel

        return ClapTextModel(config)
    return AutoModel.from_config(config, dtype=torch.get_default_dtype())


def make_projection(config: XacleDualEncoderConfig, size: int) -> nn.Module:
    """Returns the layers `(..., size)` -> `(..., projection_size)` that a tower's states go through."""
    width = config.projection_size
    if config.projection == "mlp":
        return nn.Sequential(nn.Linear(size, width), ACT2FN["relu"], nn.Linear(width, width))
    if config.projection == "norm_linear":
        return nn.Sequential(nn.LayerNorm(size, eps=NORM_EPS), nn.Linear(size, width, bias=False))
    return nn.Linear(size, width) if config.projection == "linear" else nn.Identity()


class DualProjector(nn.Module):
    """What both towers' states go through before they are joined."""

    def __init__(self, config: XacleDualEncoderConfig):
        super().__init__()
        self.audio = make_projection(config, config.audio_config.hidden_size)
        self.text = make_projection(config, config.text_config.hidden_size)

    def forward(self, audio: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`(batch_size, ..., hidden_size)` of either tower -> `(batch_size, ..., projection_size)`."""
        return self.audio(audio), self.text(text)


def make_layers(config: XacleDualEncoderConfig, size: int) -> nn.Sequential:
    """
    Returns hidden layers with ReLUs, dropout after the first one as in both official baselines, and the logit:
    `(batch_size, size)` -> `(batch_size, 1)`.
    """
    sizes, layers = [size, *config.join_sizes], []
    for before, width in pairwise(sizes):
        layers += [nn.Linear(before, width), nn.ReLU(), *([] if layers else [nn.Dropout(config.dropout)])]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 1))


def masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns the mean `(batch_size, size)` of states `(batch_size, N, size)` shown by a mask `(batch_size, N)`."""
    weights = (mask / mask.sum(dim=1, keepdim=True)).to(states.dtype)
    return (weights[..., None] * states).sum(dim=1)


# ---------------------------------------------------------------------------------------------------------------------
# Joins: (sound, caption, caption's mask) -> logits `(batch_size,)`. The sound is `(batch_size, num_audio_tokens,
# audio_size)`, the caption `(batch_size, sequence_length, text_size)`; where one vector is taken, with a single token.


class CosineJoin(nn.Module):
    """The cosine of the two vectors, which has no weights: labels in [-1, 1] as a contrastive model gives them."""

    def __init__(self, config: XacleDualEncoderConfig):
        super().__init__()

    def forward(self, audio: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns cosines `(batch_size,)`."""
        return nn.functional.cosine_similarity(audio[:, 0], text[:, 0], dim=-1)


class MlpJoin(nn.Module):
    """An MLP on both vectors, each of unit length, as in the official baseline of 2027."""

    def __init__(self, config: XacleDualEncoderConfig):
        super().__init__()
        self.layers = make_layers(config, config.audio_size + config.text_size)

    def forward(self, audio: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns logits `(batch_size,)`."""
        vectors = [nn.functional.normalize(states[:, 0], dim=-1) for states in (audio, text)]
        return self.layers(torch.cat(vectors, dim=-1)).squeeze(-1)


class BiLstmJoin(nn.Module):
    """
    A bidirectional LSTM over the sound's tokens, each with the caption's vector appended; an MLP reads the mean of its
    first and last output, as in the official baseline of 2026.
    """

    def __init__(self, config: XacleDualEncoderConfig):
        super().__init__()
        size = config.audio_size + config.text_size
        self.lstm = nn.LSTM(size, config.lstm_size, batch_first=True, bidirectional=True)
        self.layers = make_layers(config, 2 * config.lstm_size)

    def forward(self, audio: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns logits `(batch_size,)`."""
        steps = torch.cat([audio, text[:, :1].expand(-1, audio.shape[1], -1)], dim=-1)  # (B, N, A + T)
        outputs, _ = self.lstm(steps)  # -> (B, N, 2 * lstm_size)
        return self.layers((outputs[:, 0] + outputs[:, -1]) / 2).squeeze(-1)


class CrossAttentionLayer(nn.Module):
    """One side listens to the other: attention and a feed-forward layer, each with a residual and a norm before it."""

    def __init__(self, size: int, config: XacleDualEncoderConfig):
        super().__init__()
        self.norm, self.other_norm, self.mlp_norm = (nn.LayerNorm(size) for _ in range(3))
        self.attention = nn.MultiheadAttention(size, config.num_attention_heads, config.dropout, batch_first=True)
        self.mlp = nn.Sequential(
            nn.Linear(size, 2 * size), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(2 * size, size)
        )

    def forward(self, states: torch.Tensor, other: torch.Tensor, hidden: torch.Tensor | None) -> torch.Tensor:
        """`(batch_size, N, size)` and `(batch_size, M, size)`, of which some are hidden, -> `(batch_size, N, size)`."""
        other = self.other_norm(other)
        heard, _ = self.attention(self.norm(states), other, other, key_padding_mask=hidden, need_weights=False)
        states = states + heard
        return states + self.mlp(self.mlp_norm(states))


class CrossAttentionJoin(nn.Module):
    """Sound and caption attend to each other's tokens, layer by layer; an MLP reads the mean of each side."""

    def __init__(self, config: XacleDualEncoderConfig):
        super().__init__()
        if config.projection == "none":
            raise ValueError("Cross-attention needs tokens of one size: choose another projection than none.")
        layers = range(config.num_attention_layers)
        self.audio_layers, self.text_layers = (
            nn.ModuleList(CrossAttentionLayer(config.projection_size, config) for _ in layers) for _ in range(2)
        )
        self.layers = make_layers(config, 2 * config.projection_size)

    def forward(self, audio: torch.Tensor, text: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Returns logits `(batch_size,)`."""
        hidden = ~mask.bool()
        for audio_layer, text_layer in zip(self.audio_layers, self.text_layers, strict=True):
            audio, text = audio_layer(audio, text, hidden), text_layer(text, audio, None)
        return self.layers(torch.cat([audio.mean(dim=1), masked_mean(text, mask)], dim=-1)).squeeze(-1)


JOINS = {"cosine": CosineJoin, "mlp": MlpJoin, "bilstm": BiLstmJoin, "cross_attention": CrossAttentionJoin}

# ---------------------------------------------------------------------------------------------------------------------
# The model


class XacleDualEncoder(XaclePreTrainedModel):
    """
    Scores how well a sound matches a caption with two towers. Its parts have the names of [`XacleModel`]'s, so that
    stages train them alike: `audio_tower`, `language_model` (the text tower), `projector` (of both) and `score_head`
    (the join).
    """

    config: XacleDualEncoderConfig
    _no_split_modules = ["BeatsLayer"]

    def __init__(self, config: XacleDualEncoderConfig):
        super().__init__(config)
        self.audio_tower = build_tower(config.audio_config)
        self.language_model = build_text_tower(config.text_config)
        if config.text_summary != "pooler" and getattr(self.language_model, "pooler", None) is not None:
            self.language_model.pooler = None  # its weights would never be used
        self.projector = DualProjector(config)
        self.score_head = JOINS[config.join](config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialises what [`XacleModel`] does not have as PyTorch does: LSTMs and attention."""
        super()._init_weights(module)
        if isinstance(module, nn.LSTM):
            for weight in module.parameters():
                init.uniform_(weight, -(module.hidden_size**-0.5), module.hidden_size**-0.5)
        elif isinstance(module, nn.MultiheadAttention):
            init.xavier_uniform_(module.in_proj_weight)
            init.zeros_(module.in_proj_bias)

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embeddings of the text tower."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of the text tower."""
        self.language_model.set_input_embeddings(value)

    def get_audio_features(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Encode clips, up to the projector: everything that depends on the audio tower alone.

        Args:
            input_features (`torch.Tensor` of shape `(batch_size, ...)`), input_features_mask (`torch.Tensor` of shape
                `(batch_size, num_frames)`, *optional*): As for [`~XacleModel.get_audio_features`].

        Returns:
            `torch.Tensor` of shape `(batch_size, num_audio_tokens, audio_hidden_size)`; one token, the tower's own
            summary of the clip, where the join takes that.
        """
        return self.pool_audio(self.read_audio(input_features, input_features_mask), input_features_mask)

    def get_text_features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """
        Encode captions, up to the projector: `(batch_size, sequence_length)` -> `(batch_size, 1, text_hidden_size)`, or
        `(batch_size, sequence_length, text_hidden_size)` where the join takes tokens of the caption.
        """
        outputs = self.language_model(input_ids=input_ids, attention_mask=attention_mask)
        if self.config.join == "cross_attention":
            return outputs.last_hidden_state
        if self.config.text_summary == "pooler":
            return outputs.pooler_output[:, None]
        states = outputs.last_hidden_state
        return states[:, :1] if self.config.text_summary == "first" else masked_mean(states, attention_mask)[:, None]

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: None = None,
        input_features_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> XacleOutput:
        """
        Score pairs. [`XacleDualProcessor`] makes the inputs.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`): The caption's tokens, then padding.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 1 for tokens, 0 for
                padding.
            input_features (`torch.Tensor` of shape `(batch_size, ...)`, *optional*): What the feature extractor makes
                of the clips; so is `input_features_mask`, of shape `(batch_size, num_frames)`.
            audio_features (`torch.Tensor` of shape `(batch_size, num_audio_tokens, audio_hidden_size)`, *optional*):
                Output of `get_audio_features`, instead of `input_features`.
            labels (`torch.Tensor` of shape `(batch_size,)`, *optional*): Targets in [-1, 1]. The loss is the mean
                squared error of the logits.
            inputs_embeds (`None`): Exists because PEFT passes it.
            kwargs: What PEFT passes besides, all `None`.

        Raises:
            ValueError: Not exactly one of `input_features` and `audio_features` is given, or sizes do not fit.
        """
        if (input_features is None) == (audio_features is None):
            raise ValueError("Give either `input_features` or `audio_features`.")
        if audio_features is None:
            audio_features = self.get_audio_features(input_features, input_features_mask)
        if len(audio_features) != len(input_ids):
            raise ValueError(f"{len(audio_features)} clips and {len(input_ids)} captions do not make pairs.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        text_features = self.get_text_features(input_ids, attention_mask)
        audio, text = self.projector(audio_features.to(text_features.dtype), text_features)
        with maybe_autocast(audio.device.type, enabled=False):  # in bf16, scores tie
            inputs = (audio.float(), text.float(), attention_mask)
            if all(weight.dtype == torch.float32 for weight in self.score_head.parameters()):
                logits = self.score_head(*inputs)
            else:  # after `.half()` and the like
                weights = {name: weight.float() for name, weight in self.score_head.named_parameters()}
                logits = torch.func.functional_call(self.score_head, weights, inputs)
        loss = None if labels is None else nn.functional.mse_loss(logits, labels.to(logits.dtype))
        return XacleOutput(loss=loss, logits=logits, scores=self.config.logits_to_scores(logits))


__all__ = ["XacleDualEncoder"]
