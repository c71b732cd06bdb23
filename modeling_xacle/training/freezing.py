"""Chooses what a stage trains: whole parts of the model, LoRA adapters, or some rows of the embedding."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ..modeling_dual import XacleDualEncoder
from ..modeling_towers import audio_family
from ..modeling_xacle import XacleModel
from .recipes import StageArguments

SCORING_MODELS = (XacleModel, XacleDualEncoder)


def alignment_model(model: nn.Module) -> XacleModel | XacleDualEncoder:
    """Returns the model that scores inside a stage's model, whatever is wrapped around it."""
    return next(module for module in model.modules() if isinstance(module, SCORING_MODELS))


def choose_trained(model: PreTrainedModel, stage: StageArguments) -> nn.Module:
    """
    Freeze all parts of a model except those that the stage trains; `special_tokens` are the embeddings of
    `[AUDIO_START]`, `[AUDIO_END]` and `[SCORE]`.

    Returns:
        The model, or with LoRA adapters a `PeftModel` around it.
    """
    inner = alignment_model(model)
    modules = [part for part in stage.train if part != "special_tokens"]
    config = inner.config
    special_ids = []
    if "special_tokens" in stage.train and not hasattr(config, "score_token_id"):
        raise ValueError("--train special_tokens: a judge with two towers has none; leave them out.")
    if "special_tokens" in stage.train and "language_model" not in stage.train:
        special_ids = [config.audio_start_token_id, config.audio_end_token_id, config.score_token_id]
    model.requires_grad_(False)
    if not stage.train and not stage.lora_rank:
        raise ValueError("There is nothing to train: name parts with --train, or give --lora_rank.")
    if stage.lora_rank:
        model = _with_adapters(model, modules, stage.lora_rank, special_ids)
    else:
        for part in modules:
            getattr(inner, part).requires_grad_(True)
        if "language_model" in modules and (stage.stage == 1 or stage.caption_weight):
            inner.lm_head.requires_grad_(True)  # where it is not tied to the embeddings
        if special_ids:
            train_rows(inner.get_input_embeddings().weight, special_ids)
    family = audio_family(config.audio_config)
    unreached = family.untrained + (() if getattr(config, "takes_summary", False) else family.for_summary)
    for name, weight in inner.audio_tower.named_parameters():
        if name.startswith(unreached):
            weight.requires_grad_(False)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ValueError(f"--train {' '.join(stage.train)}: these parts of the model have no weights; name others.")
    return model


def _with_adapters(model: PreTrainedModel, modules: list[str], rank: int, special_ids: list[int]) -> PeftModel:
    """Wraps the model with adapters of the given rank on all linear layers of its language model."""
    inner = alignment_model(model)
    names = {module: name for name, module in model.named_modules()}
    linear = [names[layer] for layer in inner.language_model.modules() if isinstance(layer, nn.Linear)]
    embeddings = names[inner.get_input_embeddings()]
    adapters = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=linear,
        modules_to_save=[names[getattr(inner, part)] for part in modules],
        trainable_token_indices={embeddings: special_ids} if special_ids else None,
    )
    return get_peft_model(model, adapters)


def train_rows(weight: nn.Parameter, rows: list[int]) -> None:
    """Train only some rows of an embedding `(vocab_size, hidden_size)`: the gradient of all others is zero."""
    mask = torch.zeros(len(weight), 1)
    mask[rows] = 1
    weight.requires_grad_(True)
    weight.register_hook(lambda gradient: gradient * mask.to(gradient))
