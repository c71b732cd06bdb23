"""The same model as a writer of captions: stage 1 (arXiv 2602.00604, section 2)."""

from inspect import signature
from typing import Any

import torch
from torch import nn
from transformers import Cache, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg
from transformers.utils.generic import can_return_tuple

from .configuration_xacle import XacleConfig
from .modeling_xacle import XacleModel, XaclePreTrainedModel

# Refused because pieces of a prompt would hold parts of a sound, and because half of the layers cannot guess tokens.
REFUSED_IN_GENERATION = ("prefill_chunk_size", "assistant_early_exit")


class XacleForConditionalGeneration(XaclePreTrainedModel, GenerationMixin):
    """
    Writes captions for sounds: stage 1 (arXiv 2602.00604, section 2). It holds the whole [`XacleModel`] and uses its LM
    head, so that either class loads the other's folder.

    ```python
    >>> prompt = processor.prepare_captioning(["dog.wav"])
    >>> processor.batch_decode(model.generate(**prompt, max_new_tokens=30), skip_special_tokens=True)
    ```
    """

    def __init__(self, config: XacleConfig):
        super().__init__(config)
        self.model = XacleModel(config)
        self._counts_positions = "position_ids" in signature(self.model.language_model.forward).parameters
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the embeddings of the language model."""
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the embeddings of the language model."""
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """Returns the LM head."""
        return self.model.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the LM head."""
        self.model.lm_head = value

    @can_return_tuple
    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        audio_features: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cache: Cache | None = None,
        use_cache: bool = False,
        logits_to_keep: int | torch.Tensor = 0,
        input_features_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """
        Predict the next tokens. [`~XacleProcessor.prepare_captioning`] makes the inputs.

        Args:
            input_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): `[AUDIO_START]`, the
                `[AUDIO]` tokens, `[AUDIO_END]`, then the caption so far; with `cache`, its last tokens.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): 1 for tokens, 0 for
                padding at either end; or the mask that `generate` makes of it.
            position_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): Token positions; by
                default counted without the padding.
            input_features (`torch.Tensor` of shape `(batch_size, ...)`, *optional*): The sound, as for
                `get_audio_features`; so is `input_features_mask`, of shape `(batch_size, num_frames)`.
            audio_features (`torch.Tensor` of shape `(batch_size, num_audio_tokens, audio_hidden_size)`, *optional*):
                Output of `get_audio_features`, instead of `input_features`.
            inputs_embeds (`torch.Tensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*): Output of
                [`~XacleModel.embed`], instead of `input_ids` and sound.
            labels (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*): The input ids where a token
                counts in the loss (the mean cross entropy), -100 elsewhere.
            cache (`Cache`, *optional*), use_cache (`bool`): The cache of earlier tokens; return one of all tokens.
            logits_to_keep (`int` or `torch.Tensor` of shape `(num_kept,)`): Compute logits only for this many last
                positions, or for these positions; 0 means all, which `labels` need.

        Raises:
            ValueError: Not exactly one of tokens and embeddings; embeddings and a sound; audio tokens are missing.
        """
        sound = (input_features, input_features_mask, audio_features)
        inputs_embeds = self._embed(input_ids, *sound, inputs_embeds, cache)
        if isinstance(attention_mask, torch.Tensor) and attention_mask.dim() == 2:
            attention_mask, position_ids = self._without_padding(inputs_embeds, attention_mask, position_ids, cache)
        if position_ids is not None and self._counts_positions:
            kwargs["position_ids"] = position_ids
        outputs = self.model.language_model(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, cache=cache, use_cache=use_cache, **kwargs
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.token_logits(outputs.last_hidden_state[:, kept])  # (B, S, H) -> (B, S, V)
        return CausalLMOutputWithPast(
            loss=None if labels is None else self._loss(logits, labels.to(logits.device)),
            logits=logits,
            cache=outputs.cache,
            hidden_states=outputs.hidden_states,
            attentions=getattr(outputs, "attentions", None),
        )

    @staticmethod
    def _loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Returns the mean cross entropy of logits `(B, S, V)` against the next positions' labels `(B, S)`."""
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten())

    @staticmethod
    def _without_padding(
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """
        Returns a mask `(batch_size, all_tokens)` and positions `(batch_size, sequence_length)` with which padding
        changes nothing. Padding at the end needs no mask: causal attention hides it, with a faster kernel. After
        padding at the beginning, positions are counted from the first token.
        """
        if cache is None and attention_mask.shape != inputs_embeds.shape[:2]:
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but the sequences have "
                f"{tuple(inputs_embeds.shape[:2])}."
            )
        if cache is None and not (attention_mask.int().diff(dim=1) > 0).any():
            return None, position_ids
        counted = (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -inputs_embeds.shape[1] :]
        return attention_mask, counted if position_ids is None else position_ids

    def _embed(
        self,
        input_ids: torch.Tensor | None,
        input_features: torch.Tensor | None,
        input_features_mask: torch.Tensor | None,
        audio_features: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        """Embeds tokens, and the sound if there is one, as `(batch_size, sequence_length, hidden_size)`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either `input_ids` or `inputs_embeds`.")
        if inputs_embeds is not None and (input_features is not None or audio_features is not None):
            raise ValueError("`inputs_embeds` hold the sound already: leave out `input_features` and `audio_features`.")
        if inputs_embeds is not None:
            return inputs_embeds
        if input_features is not None:
            audio_features = self.model.get_audio_features(input_features, input_features_mask)
        if audio_features is None:
            if cache is None:  # later steps have the sound in the cache
                self._check_sound(input_ids)
            return self.get_input_embeddings()(input_ids)
        self.model.check_audio_tokens(input_ids, *audio_features.shape[:2])
        return self.model.embed(input_ids, audio_features)

    def _check_sound(self, input_ids: torch.Tensor) -> None:
        """Refuse ids `(batch_size, sequence_length)` with `[AUDIO]` tokens, as there is no sound for them."""
        if (input_ids == self.config.audio_token_id).any():
            raise ValueError("The sequence has [AUDIO] tokens but no sound: give `input_features` or `audio_features`.")

    def prepare_inputs_for_generation(
        self, *args: Any, inputs_embeds: torch.Tensor | None = None, is_first_iteration: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Returns the inputs of one step of `generate`: the audio goes in with the prompt, then stays in the cache."""
        # `generate` accepts `inputs_embeds` only if this signature names it.
        inputs = super().prepare_inputs_for_generation(
            *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and inputs.get("cache") is not None:
            inputs.pop("audio_features", None)
        return inputs

    def generate(
        self,
        *args: Any,
        input_features: torch.Tensor | None = None,
        input_features_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Write captions: greedy, beam search or sampling, with arguments and results of `GenerationMixin.generate`. Each
        clip is encoded once, whatever the number of beams.

        Args:
            input_features (`torch.Tensor` of shape `(batch_size, ...)`, *optional*): The sound, as for
                `get_audio_features`; so is `input_features_mask`. Or give `audio_features`.

        Returns:
            `torch.Tensor` of shape `(batch_size * num_return_sequences, longest)`: The prompts and the new tokens;
            `processor.batch_decode(..., skip_special_tokens=True)` gives the captions alone. With
            `return_dict_in_generate=True`, a `ModelOutput` with these `sequences`.

        Raises:
            ValueError: `prefill_chunk_size` or `assistant_early_exit` is given; they cannot work here.
        """
        for name in REFUSED_IN_GENERATION:
            if kwargs.get(name) is not None:
                raise ValueError(f"`{name}` does not work with a sound in the prompt: leave it out.")
        if input_features is not None:
            with torch.no_grad():
                kwargs["audio_features"] = self.model.get_audio_features(input_features, input_features_mask)
        prompts = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        if prompts is not None and kwargs.get("audio_features") is None and kwargs.get("cache") is None:
            self._check_sound(prompts)
        return super().generate(*args, **kwargs)


__all__ = ["XacleForConditionalGeneration"]
