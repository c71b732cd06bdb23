"""Builds an untrained alignment model from pretrained parts (`xacle init`), from which stage 1 starts."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..configuration_xacle import XacleConfig
from ..modeling_xacle import XacleModel
from ..processing_xacle import XacleProcessor
from .conversion import (
    ConversionError,
    add_special_tokens,
    causal_config,
    load_exactly,
    make_processor,
    provenance,
    save_folder,
)
from .loading import load_model, load_part
from .towers import load_tower

LONGEST_CAPTION = 256  # in tokens; the processor cuts longer ones
TRIED_TOKENS = 16


def build_model(tower: str | Path, llm: str, seed: int = 0, **config_fields: Any) -> tuple[XacleModel, XacleProcessor]:
    """
    Build an untrained alignment model from pretrained parts. Projector and score head are random.

    Args:
        tower (`str` or `Path`): The audio tower, as [`load_tower`] takes it.
        llm (`str`): Folder or Hub id of a causal language model.
        seed (`int`): Seed of the random parts.
        config_fields: Fields of [`XacleConfig`] that differ from their defaults.

    Returns:
        The model, and the processor that it needs.

    Raises:
        ConversionError: It is no audio tower, or a language model that some stage could not train; says why.
    """
    unknown = sorted(set(config_fields) - {field.name for field in fields(XacleConfig)})
    if unknown:
        raise TypeError(f"XacleConfig has no field {', '.join(unknown)}.")
    with torch.random.fork_rng(devices=[]):
        encoder, extractor = load_tower(tower)
        torch.manual_seed(seed)
        causal, tokenizer, token_ids = load_language_model(llm)
        text_config, decoder, head = causal.config, causal.base_model, causal.get_output_embeddings()
        text_config._name_or_path = provenance(llm)
        text_config.eos_token_id = tokenizer.eos_token_id  # ends a caption in training, likelihood and generation
        config_fields.setdefault("projector_intermediate_size", 4 * text_config.hidden_size)  # the published ratio
        is_tied = head.weight is decoder.get_input_embeddings().weight
        config = XacleConfig(
            audio_config=encoder.config,
            text_config=text_config,
            tie_word_embeddings=is_tied,
            **token_ids,
            **config_fields,
        )
        check_room(config, llm)
        model = XacleModel(config)
    load_exactly(model.audio_tower, encoder.state_dict(), str(tower))
    load_exactly(model.language_model, decoder.state_dict(), llm)
    if not is_tied:
        load_exactly(model.lm_head, head.state_dict(), llm)
    return model, make_processor(extractor, tokenizer, config)


def load_language_model(llm: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, int]]:
    """
    Load a causal language model in fp32 and add the special tokens; returns it with its tokenizer and the fields of
    [`XacleConfig`] that hold the tokens' ids. New rows of the embedding, if any, are random.

    Raises:
        ConversionError: The model is of another kind, or the alignment model cannot use it; says why.
    """
    causal_config(llm)
    tokenizer = load_part(AutoTokenizer, llm)
    if tokenizer.eos_token_id is None:
        raise ConversionError(
            f"{llm}: its tokenizer has no token that ends a text, which captions need: set its eos_token."
        )
    token_ids = add_special_tokens(tokenizer)
    causal = load_model(AutoModelForCausalLM, llm, dtype=torch.float32).eval()
    causal.resize_token_embeddings(token_ids["audio_token_id"] + 1)
    check_language_model(causal, llm)
    return causal, tokenizer, token_ids


@torch.no_grad()
def check_language_model(causal: PreTrainedModel, llm: str) -> None:
    """
    Try a causal language model on some tokens in the way that [`XacleModel`] uses it: embeddings go into its decoder,
    and a linear layer turns the decoder's states into logits.

    Raises:
        ConversionError: Used like this, it does not compute what it should.
    """
    decoder, head = causal.base_model, causal.get_output_embeddings()
    wanted = type(AutoModel.from_config(causal.config)) if isinstance(head, nn.Linear) else None
    if wanted is not type(decoder) or head.bias is not None:
        raise _refusal(llm, causal, "its output layer is not one linear layer without a bias on its decoder's states")
    embedding = decoder.get_input_embeddings()
    if embedding.weight.shape[1] != causal.config.hidden_size:
        raise _refusal(llm, causal, "its embeddings have another width than its hidden states")
    ids = torch.arange(TRIED_TOKENS)[None] % len(embedding.weight)
    states = decoder(inputs_embeds=embedding(ids), use_cache=False).last_hidden_state  # (1, S, H)
    logits = head(states)  # -> (1, S, V)
    limit = getattr(causal.config, "final_logit_softcapping", None)
    logits = logits if limit is None else limit * torch.tanh(logits / limit)
    if not _agree(logits, causal(input_ids=ids, use_cache=False).logits):
        raise _refusal(llm, causal, "its logits are not its output layer's, but scaled or changed otherwise")
    beginning = decoder(inputs_embeds=embedding(ids[:, : TRIED_TOKENS // 2]), use_cache=False).last_hidden_state
    if not _agree(beginning, states[:, : TRIED_TOKENS // 2]):
        raise _refusal(llm, causal, "its tokens see those after them")


def _agree(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Returns True if two tensors of the same shape are equal up to rounding."""
    return bool((found - expected).abs().max() <= 1e-3 * expected.abs().max())


def _refusal(llm: str, causal: PreTrainedModel, reason: str) -> ConversionError:
    return ConversionError(
        f"{llm}: this {causal.config.model_type} model cannot be the language model: {reason}. Take another with --llm."
    )


def check_room(config: XacleConfig, llm: str) -> None:
    """
    Check that the sound and the longest caption fit into the language model.

    Raises:
        ConversionError: They do not.
    """
    places = getattr(config.text_config, "max_position_embeddings", None)
    needed = LONGEST_CAPTION + config.num_audio_tokens + 4  # [AUDIO_START], [AUDIO_END], [SCORE] or end, BOS
    if places is not None and places < needed:
        raise ConversionError(
            f"{llm}: has {places} positions, but {config.num_audio_tokens} audio tokens and the longest caption need "
            f"{needed}: take another with --llm, or fewer audio tokens."
        )


def init_model(tower: str | Path, llm: str, output: str | Path, seed: int = 0, **config_fields: Any) -> XacleModel:
    """Build an untrained model with [`build_model`] and save its folder."""
    model, processor = build_model(tower, llm, seed, **config_fields)
    save_folder(output, model, processor)
    return model
