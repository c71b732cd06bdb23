"""The alignment model: audio tower -> projector -> causal language model -> score (arXiv 2602.00604, section 2)."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, maybe_autocast

from .configuration_xacle import XacleConfig
from .modeling_towers import audio_family, build_tower, pool_tokens, read_tower


@dataclass
class XacleOutput(ModelOutput):
    r"""
    Output of [`XacleModel`].

    Args:
        loss (`torch.Tensor` of shape `()`, *optional*): Mean squared error of the logits, if `labels` were given.
        logits (`torch.Tensor` of shape `(batch_size,)`): Score head output in label units: -1 not at all, 1 exactly;
            unbounded.
        scores (`torch.Tensor` of shape `(batch_size,)`): Calibrated score on the listeners' scale (0-10), not clamped.
        caption_log_likelihood (`torch.Tensor` of shape `(batch_size,)`, *optional*): Mean log-probability of the
            caption's tokens and its end, if the config has `caption_likelihood`.
        hidden_states (`tuple` of `torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
            The language model's embeddings, then each layer's output, if `output_hidden_states=True`.
        attentions (`tuple` of `torch.Tensor` of shape `(batch_size, num_heads, sequence_length, sequence_length)`,
            *optional*): The language model's, if `output_attentions=True` and its attention is `eager`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    caption_log_likelihood: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def choose(argument: bool | None, default: bool) -> bool:
    """Returns the call's choice, or the config's if the call makes none."""
    return default if argument is None else argument


class XacleProjector(nn.Module):
    """Maps audio features to language model embeddings: a learned gate blends a SwiGLU layer with a linear path."""

    def __init__(self, config: XacleConfig):
        super().__init__()
        audio_size, text_size = config.audio_config.hidden_size, config.text_config.hidden_size
        self.norm = nn.LayerNorm(audio_size, eps=getattr(config.audio_config, "layer_norm_eps", PROJECTOR_NORM_EPS))
        self.up_proj = nn.Linear(audio_size, 2 * config.projector_intermediate_size)
        self.dropout = nn.Dropout(config.projector_dropout)
        self.down_proj = nn.Linear(config.projector_intermediate_size, text_size)
        self.residual_proj = nn.Linear(audio_size, text_size)
        self.residual_gate = nn.Linear(audio_size, text_size)

    def forward(self, audio_features: torch.Tensor) -> torch.Tensor:
        """`(batch_size, num_audio_tokens, audio_hidden_size)` -> `(batch_size, num_audio_tokens, text_hidden_size)`."""
        value, gate = self.up_proj(self.norm(audio_features)).chunk(2, dim=-1)  # (B, N, D) -> 2 x (B, N, P)
        transformed = self.down_proj(self.dropout(value * nn.functional.silu(gate)))  # -> (B, N, H)
        residual_gate = self.residual_gate(audio_features).sigmoid()
        return residual_gate * self.residual_proj(audio_features) + (1 - residual_gate) * transformed


class InputPrecisionLinear(nn.Linear):
    """An `nn.Linear` that computes in the precision of its input, whatever the precision of its weights."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`(batch_size, ..., in_features)` -> `(batch_size, ..., out_features)`."""
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        return nn.functional.linear(inputs, self.weight.to(inputs.dtype), bias)


# Of the projector's norm, where the tower's config names none.
PROJECTOR_NORM_EPS = 1e-5
# What the score head reads of a caption's likelihood: the mean log-probability of its tokens and its end; the lowest
# four, which tell one wrong word from a wrong half; that of the end, which is high if the caption omits nothing heard;
# the mean distance to the likeliest token; and the caption's length.
NUM_LEAST = 4
NUM_LIKELIHOOD_FEATURES = NUM_LEAST + 4
LENGTH_UNIT = 16  # tokens
# Initial weight of the mean, which varies by about one among captions, while labels vary by about one half.
INITIAL_LIKELIHOOD_WEIGHT = 0.5


class XacleScoreHead(nn.Module):
    """
    Maps the hidden state at `[SCORE]` to a logit. It computes in fp32, whatever the type of its weights and the rest:
    in bf16, scores tie and rank correlations break. With `config.caption_likelihood` it also reads the caption's
    likelihood, and adds its weighted mean.
    """

    def __init__(self, config: XacleConfig):
        super().__init__()
        hidden_size, output_size = config.score_head_hidden_size, config.score_head_output_size
        num_likelihood_features = NUM_LIKELIHOOD_FEATURES if config.caption_likelihood else 0
        self.layers = nn.Sequential(
            InputPrecisionLinear(config.text_config.hidden_size + num_likelihood_features, hidden_size),
            nn.ReLU(),
            nn.Dropout(config.score_head_dropout),
            InputPrecisionLinear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Dropout(config.score_head_dropout),
            InputPrecisionLinear(hidden_size, output_size),
            InputPrecisionLinear(output_size, 1),
        )
        if config.caption_likelihood:
            self.likelihood = InputPrecisionLinear(1, 1, bias=False)
            self.likelihood.initial_weight = INITIAL_LIKELIHOOD_WEIGHT

    def forward(self, hidden_states: torch.Tensor, likelihood: torch.Tensor | None = None) -> torch.Tensor:
        """
        Returns logits `(batch_size,)` from hidden states `(batch_size, hidden_size)` and, if the config asks for it,
        likelihoods `(batch_size, 8)`, the mean first.
        """
        with maybe_autocast(hidden_states.device.type, enabled=False):
            inputs = hidden_states.float()
            if likelihood is None:
                return self.layers(inputs).squeeze(-1)  # (B, H) -> (B,)
            likelihood = likelihood.float()
            logits = self.layers(torch.cat([inputs, likelihood], dim=1))  # (B, H + 8) -> (B, 1)
            return (logits + self.likelihood(likelihood[:, :1])).squeeze(-1)


class XaclePreTrainedModel(PreTrainedModel):
    """Initialisation and capabilities shared by the alignment models."""

    config: XacleConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # else Trainer multiplies a mean loss by accumulation steps and processes
    _no_split_modules = ["BeatsLayer", "XacleProjector", "XacleScoreHead"]
    _supports_sdpa = True
    _supports_attention_backend = True
    _keep_in_fp32_modules_strict = ["score_head"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        Initialises as the published code does: the projector like PyTorch's linear layers, with weights and biases
        uniform in +-1/sqrt(fan-in), the score head with Xavier's uniform weights and zero biases; encoder and language
        model have their own rules.
        """
        super()._init_weights(module)
        if hasattr(module, "initial_weight"):
            init.constant_(module.weight, module.initial_weight)
        elif isinstance(module, InputPrecisionLinear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.Linear):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = module.in_features**-0.5
                init.uniform_(module.bias, -bound, bound)

    def train(self, mode: bool = True) -> "XaclePreTrainedModel":
        """
        Put trained parts into training mode, and parts whose weights are frozen into evaluation mode (no dropout).
        The language model does not count as trained if only its embeddings are. Batch norms of a pretrained tower keep
        their statistics.
        """
        super().train(mode)
        embeddings = {id(parameter) for parameter in self.get_input_embeddings().parameters()}
        for part in self.children():
            if not any(weight.requires_grad for weight in part.parameters() if id(weight) not in embeddings):
                part.eval()
        tower = getattr(self, "audio_tower", None)
        if tower is not None and audio_family(tower.config).keeps_statistics:
            for module in tower.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    @property
    def takes_summary(self) -> bool:
        """Whether the model takes one vector of the whole sound instead of tokens."""
        return getattr(self.config, "takes_summary", False)

    def read_audio(self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Run the audio tower, the costly first step of `get_audio_features`, which models with equal towers can share.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_states, audio_hidden_size)`; with a gradient only where the input
            or a weight of the tower needs one.
        """
        tensors = [input_features, *self.audio_tower.parameters()]
        needs_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
        with torch.set_grad_enabled(needs_gradient):
            return read_tower(self.audio_tower, input_features, input_features_mask, self.takes_summary)

    def pool_audio(self, states: torch.Tensor, input_features_mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Pool what `read_audio` returned: `(batch_size, num_states, audio_hidden_size)` -> `(batch_size,
        num_audio_tokens, audio_hidden_size)`.
        """
        num_tokens = 1 if self.takes_summary else self.config.num_audio_tokens
        return pool_tokens(states, num_tokens, input_features_mask)


def likelihood_features(
    log_probabilities: torch.Tensor, distances: torch.Tensor, predicted: torch.Tensor, last: torch.Tensor
) -> torch.Tensor:
    """
    Returns what the score head reads of each caption's tokens, `(batch_size, 8)`, the mean first.

    Args:
        log_probabilities (`torch.Tensor` of shape `(num_tokens,)`): For the tokens of all captions, ends included.
        distances (`torch.Tensor` of shape `(num_tokens,)`): From the log-probabilities of the likeliest tokens; <= 0.
        predicted (`torch.Tensor` of shape `(batch_size, sequence_length)`): Where these tokens are.
        last (`torch.Tensor` of shape `(batch_size, 1)`): Where the ends are.
    """
    counts = predicted.sum(dim=1, keepdim=True)
    table, distance_table = (
        values.new_zeros(predicted.shape).masked_scatter(predicted, values) for values in (log_probabilities, distances)
    )  # (T,) -> (B, S)
    mean = table.sum(dim=1, keepdim=True) / counts
    # A caption with fewer tokens fills the remaining places with its mean.
    least = torch.where(predicted, table, mean).sort(dim=1).values[:, :NUM_LEAST]
    mean_distance = distance_table.sum(dim=1, keepdim=True) / counts
    return torch.cat([mean, least, table.gather(1, last), mean_distance, counts / LENGTH_UNIT], dim=1)


class XacleModel(XaclePreTrainedModel):
    """
    Scores how well a sound matches a caption.

    `forward` takes the sound's features (`input_features`), or what [`~XacleModel.get_audio_features`] makes of it
    (`audio_features`), which serves feature caches and many captions for one clip.
    """

    def __init__(self, config: XacleConfig):
        super().__init__(config)
        self.audio_tower = build_tower(config.audio_config)
        self.projector = XacleProjector(config)
        # Use the dtype of everything built here, not the one in the language model's own config.
        self.language_model = AutoModel.from_config(config.text_config, dtype=torch.get_default_dtype())
        # Not every scorer uses it, but a head that is not tied to the embeddings would be lost between the stages.
        size = config.text_config.hidden_size
        self.lm_head = InputPrecisionLinear(size, config.text_config.vocab_size, bias=False)
        names = {module: name for name, module in self.named_modules()}  # decoders name the embedding differently
        self._tied_weights_keys = {"lm_head.weight": f"{names[self.get_input_embeddings()]}.weight"}
        self._keys_to_ignore_on_save = list(self._tied_weights_keys) if config.tie_word_embeddings else None
        self.score_head = XacleScoreHead(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embeddings of the language model."""
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of the language model."""
        self.language_model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Returns the LM head."""
        return self.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the LM head."""
        self.lm_head = value

    def token_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Computes the next tokens' logits, `(..., hidden_size)` -> `(..., vocab_size)`, in the states' precision."""
        logits = self.lm_head(hidden_states)
        limit = getattr(self.config.text_config, "final_logit_softcapping", None)  # Gemma's
        return logits if limit is None else limit * torch.tanh(logits / limit)

    def get_audio_features(
        self, input_features: torch.Tensor, input_features_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Encode clips, up to the projector: everything that depends on the (frozen) encoder alone.

        Args:
            input_features (`torch.Tensor` of shape `(batch_size, ...)`): What the tower's feature extractor makes of
                clips; for BEATs `(batch_size, num_frames, num_mel_bins)`, normalised log-mel spectrograms.
            input_features_mask (`torch.Tensor` of shape `(batch_size, num_frames)`, *optional*): True for sound and
                False for the padding behind it, if the extractor tells them apart. BEATs hears padding as silence.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_audio_tokens, audio_hidden_size)`; with a gradient only where the
            input or a weight of the encoder needs one.
        """
        return self.pool_audio(self.read_audio(input_features, input_features_mask), input_features_mask)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_features: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        inputs_embeds: None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        input_features_mask: torch.Tensor | None = None,
    ) -> XacleOutput:
        """
        Score pairs. [`XacleProcessor`] makes the inputs.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`): Caption, `[AUDIO_START]`, `[AUDIO]`
                times `num_audio_tokens`, `[AUDIO_END]`, one `[SCORE]`, padding.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 1 for tokens, 0 for
                padding. Padding must be at the end, where causal attention hides it from the score, so nothing is
                masked.
            input_features (`torch.Tensor` of shape `(batch_size, ...)`, *optional*): What the feature extractor makes
                of the clips; so is `input_features_mask`, of shape `(batch_size, num_frames)`.
            audio_features (`torch.Tensor` of shape `(batch_size, num_audio_tokens, audio_hidden_size)`, *optional*):
                Output of `get_audio_features`, instead of `input_features`.
            labels (`torch.Tensor` of shape `(batch_size,)`, *optional*): Targets in [-1, 1]
                (`config.scores_to_labels`). The loss is the mean squared error of the logits.
            inputs_embeds (`None`): Refused, as ids tell where the sound and `[SCORE]` are; it exists because PEFT
                passes it.
            output_hidden_states (`bool`, *optional*), output_attentions (`bool`, *optional*): Return those of the
                language model.

        Raises:
            ValueError: Not exactly one of `input_features` and `audio_features` is given; there is padding before the
                end; or a sequence lacks its audio tokens or its `[SCORE]`.
        """
        # Check before the encoder starts: on a GPU, a check waits for all work that was started.
        self._check_inputs(input_ids, attention_mask, input_features, audio_features, labels, inputs_embeds)
        if audio_features is None:
            audio_features = self.get_audio_features(input_features, input_features_mask)
        outputs = self.language_model(
            inputs_embeds=self.embed(input_ids, audio_features),
            use_cache=False,
            **self._asked(output_hidden_states=output_hidden_states, output_attentions=output_attentions),
        )
        score_states = self._score_states(input_ids, outputs.last_hidden_state)  # (B, S, H) -> (B, H)
        likelihood = None
        if self.config.caption_likelihood:
            likelihood = self._caption_likelihood(input_ids, outputs.last_hidden_state)
        logits = self.score_head(score_states, likelihood)
        return XacleOutput(
            loss=None if labels is None else nn.functional.mse_loss(logits, labels.to(logits.dtype)),
            logits=logits,
            scores=self.config.logits_to_scores(logits),
            caption_log_likelihood=None if likelihood is None else likelihood[:, 0],
            hidden_states=outputs.hidden_states,
            attentions=getattr(outputs, "attentions", None),  # state-space models have none
        )

    def _asked(self, **flags: bool | None) -> dict[str, bool]:
        """Returns the outputs that the call, or else the config, asks for; not all decoders know all of them."""
        return {name: True for name, flag in flags.items() if choose(flag, getattr(self.config, name))}

    def _check_inputs(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        input_features: torch.Tensor | None,
        audio_features: torch.Tensor | None,
        labels: torch.Tensor | None,
        inputs_embeds: None,
    ) -> None:
        if inputs_embeds is not None:
            raise ValueError("`inputs_embeds` cannot be scored: give `input_ids`, which tell where the sound belongs.")
        if (input_features is None) == (audio_features is None):
            raise ValueError("Give either `input_features` or `audio_features`.")
        if labels is not None and labels.shape != input_ids.shape[:1]:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, expected one target a pair: ({len(input_ids)},)."
            )
        is_score, is_audio_end = self._is_score(input_ids), input_ids == self.config.audio_end_token_id
        if (is_score.sum(dim=1) != 1).any():
            raise ValueError(
                "Each sequence needs exactly one [SCORE] token: use the processor that was saved with this model."
            )
        is_behind = ~(is_score[:, 1:] & is_audio_end[:, :-1]).any(dim=1)  # (B,), the caption is behind the sound
        if (~is_behind if self.config.caption_likelihood else is_behind).any():
            raise ValueError(
                f"This model was trained on captions {'behind' if self.config.caption_likelihood else 'before'} the "
                "sound: use the processor that was saved with it."
            )
        if audio_features is None:
            self.check_audio_tokens(input_ids, len(input_features), self.config.num_audio_tokens)
        else:
            self.check_audio_tokens(input_ids, *audio_features.shape[:2])
        if attention_mask is not None:
            self.check_padding(input_ids, attention_mask)

    @staticmethod
    def check_padding(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """
        Check that a mask `(batch_size, sequence_length)` fits the sequences and hides only their ends.

        Raises:
            ValueError: It does not.
        """
        if attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but input_ids {tuple(input_ids.shape)}."
            )
        if (attention_mask.int().diff(dim=1) > 0).any():
            raise ValueError(
                "attention_mask has tokens after padding; XacleProcessor pads at the end, as the model needs it."
            )

    def check_audio_tokens(self, input_ids: torch.Tensor, num_clips: int, num_audio_tokens: int) -> None:
        """
        Check that sequences `(batch_size, sequence_length)` have room for this many clips of this many tokens.

        Raises:
            ValueError: They do not.
        """
        counts = (input_ids == self.config.audio_token_id).sum(dim=1)
        if len(input_ids) != num_clips or (counts != num_audio_tokens).any():
            raise ValueError(
                f"{len(input_ids)} sequences with {sorted(set(counts.tolist()))} [AUDIO] tokens do not fit "
                f"{num_clips} clips with {num_audio_tokens}: use the processor saved with this model."
            )

    def embed(self, input_ids: torch.Tensor, audio_features: torch.Tensor) -> torch.Tensor:
        """Embeds the sequence, `(B, S, H)`, with the projected audio in the places of `[AUDIO]`."""
        mask = input_ids == self.config.audio_token_id
        embeddings = self.get_input_embeddings()(input_ids)
        projected = self.projector(audio_features.to(self.projector.norm.weight.dtype))
        return embeddings.masked_scatter(mask.unsqueeze(-1).to(embeddings.device), projected.to(embeddings))

    def _score_states(self, input_ids: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns the hidden states `(B, H)` at `[SCORE]`, without waiting for a GPU."""
        places = self._is_score(input_ids).int().argmax(dim=1).to(hidden_states.device)
        return hidden_states[torch.arange(len(places), device=places.device), places]

    def _is_score(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns a mask `(B, S)` of the `[SCORE]` tokens."""
        return input_ids == self.config.score_token_id

    def _caption_likelihood(self, input_ids: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns features of how likely each caption is after the sound, `(B, 8)`, as learned in stage 1."""
        config, input_ids = self.config, input_ids.to(hidden_states.device)
        is_score = self._is_score(input_ids)
        is_audio_end = input_ids == config.audio_end_token_id
        first, last = (mask.int().argmax(dim=1, keepdim=True) for mask in (is_audio_end, is_score))
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        predicted = (places > first) & (places <= last)  # (B, S): the caption, and [SCORE] in the place of its end
        targets = input_ids.masked_fill(is_score, config.end_token_id)[predicted]
        states = hidden_states[:, :-1][predicted[:, 1:]].float()  # (B, S, H) -> (T, H)
        with maybe_autocast(states.device.type, enabled=False):
            logits = self.token_logits(states).to(states.device)  # -> (T, V)
        log_probabilities = -nn.functional.cross_entropy(logits, targets, reduction="none")  # -> (T,)
        distances = logits.gather(1, targets[:, None]).squeeze(1) - logits.max(dim=1).values
        return likelihood_features(log_probabilities, distances, predicted, last)


__all__ = [
    "XacleModel",
    "XacleOutput",
    "XaclePreTrainedModel",
    "XacleProjector",
    "XacleScoreHead",
]
