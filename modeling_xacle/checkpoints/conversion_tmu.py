"""Converts checkpoints of the published system (arXiv 2602.00604) to folders that `from_pretrained` loads."""

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from ..configuration_xacle import BeatsConfig, XacleConfig
from ..feature_extraction_xacle import XacleFeatureExtractor
from ..modeling_xacle import XacleModel
from .conversion import (
    ConversionError,
    StateDict,
    add_special_tokens,
    causal_config,
    check_state_dict,
    convert_beats_keys,
    load_beats,
    load_exactly,
    load_pickle_safely,
    make_processor,
    pop_classifier,
    provenance,
    rename_keys,
    save_folder,
)
from .loading import load_part
from .provenance import write_tmu_card

logger = logging.get_logger(__name__)

# Microsoft's files: the self-supervised one, and the fine-tuned one, which has a class predictor.
PUBLISHED_BEATS, PUBLISHED_BEATS_FINETUNED = "BEATs_iter3_plus_AS2M.pt", "BEATs_iter3_plus_AS2M_finetuned.pt"
PUBLISHED_STAGE = 3

# Older names in Lightning checkpoints -> names in the published `model.pt`.
LIGHTNING_RULES = [
    (r"^model\.model\.llm_wrapper\.audio_adapter\.audio_encoder\.", "llm_wrapper.audio_encoder."),
    (r"^model\.model\.llm_wrapper\.audio_adapter\.", "llm_wrapper.audio_projection."),
    (r"^model\.model\.llm_wrapper\.llm\.", "llm_wrapper.llm."),
    (r"^model\.model\.projection\.", "score_head."),
    (r"^model\.projection\.", "final_linear.linear."),
]
TMU_RULES = [
    (r"^llm_wrapper\.audio_encoder\.model\.", "audio_tower."),
    (r"^llm_wrapper\.audio_projection\.mlp\.norm\.", "projector.norm."),
    (r"^llm_wrapper\.audio_projection\.mlp\.fc1\.", "projector.up_proj."),
    (r"^llm_wrapper\.audio_projection\.mlp\.fc2\.", "projector.down_proj."),
    (r"^llm_wrapper\.audio_projection\.(residual_\w+)\.", r"projector.\1."),
    (r"^llm_wrapper\.llm\.", "language_model."),
    (r"^score_head\.mlp\.", "score_head.layers."),
    (r"^final_linear\.linear\.", "score_head.layers.7."),
]


def read_tmu(source: str | Path, revision: str | None = None) -> tuple[StateDict, dict[str, Any]]:
    """
    Read a checkpoint of the published system in any of its containers: a folder or Hub id with `model.pt` and
    `config.json`, or a file with a bare state dict, `{"model_state_dict": ...}` or Lightning's `{"state_dict": ...}`.

    Returns:
        The weights under the names of the published `model.pt`, and the settings from [`read_tmu_settings`].
    """
    path = Path(source)
    settings_file = path.with_name("config.json")
    if not path.is_file():
        files = {name: path / name for name in ("model.pt", "config.json")}
        if not path.exists():
            files = {name: Path(hf_hub_download(str(source), name, revision=revision)) for name in files}
        missing = [str(file) for file in files.values() if not file.is_file()]
        if missing:
            raise ConversionError(
                f"{source}: a published checkpoint folder has model.pt and config.json; missing: {', '.join(missing)}."
            )
        path, settings_file = files.values()
    content = load_pickle_safely(path)
    name = next((name for name in ("model_state_dict", "state_dict") if name in content), None)
    state = check_state_dict(content[name] if name else content, path)
    return rename_keys(state, LIGHTNING_RULES), read_tmu_settings(settings_file)


def read_tmu_settings(file: Path) -> dict[str, Any]:
    """
    Read the `config.json` beside a published checkpoint; returns no settings if there is none. If it names a folder
    beside it as the language model, the result has that folder's path.

    Raises:
        ConversionError: The file is broken, or a setting has an impossible value.
    """
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConversionError(f"{file}: not a JSON object ({error}).") from error
    if not isinstance(settings, dict):
        raise ConversionError(f"{file}: not a JSON object, but a {type(settings).__name__}.")
    for name, (least, largest) in {"num_audio_tokens": (1, 496), "training_stage": (0, 3)}.items():
        value = settings.get(name)
        if value is not None and not (type(value) is int and least <= value <= largest):
            raise ConversionError(f"{file}: {name} is {value!r}, but must be a whole number from {least} to {largest}.")
    llm = settings.get("llm_model_name")
    if llm is not None and not isinstance(llm, str):
        raise ConversionError(f"{file}: llm_model_name is {llm!r}, but must be a name.")
    if llm and (file.parent / llm).is_dir():
        settings["llm_model_name"] = str(file.parent / llm)
    return settings


def choose_settings(settings: dict[str, Any], audio_tokens: int | None, training_stage: int | None) -> dict[str, int]:
    """
    Choose the fields of [`XacleConfig`] that weights do not show: from an option or config.json, or else the published
    value, with a warning.

    Raises:
        ConversionError: An option and config.json say different things.
    """
    options = {
        "num_audio_tokens": ("--audio-tokens", audio_tokens, XacleConfig.num_audio_tokens),
        "training_stage": ("--training-stage", training_stage, PUBLISHED_STAGE),
    }
    chosen = {}
    for name, (option, given, published) in options.items():
        values = {value for value in (given, settings.get(name)) if value is not None}
        if len(values) > 1:
            raise ConversionError(
                f"{option} {given}, but config.json says {name} {settings[name]}: leave {option} out."
            )
        if not values:
            logger.warning(
                f"Nothing tells {name}: {published} is assumed, as published; if it is wrong, give {option}."
            )
        chosen[name] = values.pop() if values else published
    return chosen


def convert_tmu(
    source: str | Path,
    output: str | Path,
    llm: str | None = None,
    beats: str | Path | None = None,
    revision: str | None = None,
    audio_tokens: int | None = None,
    training_stage: int | None = None,
) -> XacleModel:
    """
    Convert a checkpoint of the published system to one complete folder. The class predictor of a fine-tuned encoder is
    left out: scores do not depend on it.

    Args:
        source (`str`): The checkpoint, as [`read_tmu`] takes it.
        output (`str`): Folder to write.
        llm (`str`, *optional*): Folder or Hub id of the language model, for its config and tokenizer; by default the
            one that the source's config.json names.
        beats (`str`, *optional*): The encoder, as [`load_beats`] takes it, for its settings; by default those of the
            published BEATs iter3+ AS2M.
        revision (`str`, *optional*): Revision of a Hub id in `source`.
        audio_tokens (`int`, *optional*): Tokens an audio clip takes, if config.json does not say; by default 100.
        training_stage (`int`, *optional*): Last stage completed, if config.json does not say; by default 3.

    Raises:
        ConversionError: Tensors are missing, unexpected or of another shape; the tokenizer does not fit the embedding;
            or an argument contradicts config.json.
    """
    state, settings = read_tmu(source, revision)
    llm = llm or settings.get("llm_model_name")
    if not llm:
        raise ConversionError(
            f"{source} does not name its language model: give it with --llm (published: Qwen/Qwen2.5-0.5B-Instruct)."
        )
    chosen = choose_settings(settings, audio_tokens, training_stage)
    state = rename_keys(state, TMU_RULES)
    is_finetuned = convert_tower(state, source)
    tokenizer = load_part(AutoTokenizer, llm)
    token_ids = add_special_tokens(tokenizer)
    append_audio_row(state, token_ids, llm)
    parts = {
        "audio_config": tmu_audio_config(beats, is_finetuned),
        "text_config": tmu_text_config(llm, tokenizer.eos_token_id, token_ids["audio_token_id"] + 1),
    }
    model = XacleModel(XacleConfig(**parts, **chosen, **tmu_head_sizes(state), **token_ids))
    load_exactly(model, state, str(source))
    extractor = XacleFeatureExtractor(feature_size=model.config.audio_config.num_mel_bins)
    save_folder(output, model, make_processor(extractor, tokenizer, model.config))
    write_tmu_card(Path(output), source)
    return model


def convert_tower(state: StateDict, source: str | Path) -> bool:
    """
    Rename the encoder's weights, in place, to those of [`BeatsModel`], and remove a class predictor.

    Returns:
        True if there was one.
    """
    tower = {key.removeprefix("audio_tower."): state.pop(key) for key in list(state) if key.startswith("audio_tower.")}
    tower = convert_beats_keys(tower)
    classifier = pop_classifier(tower)
    if classifier:
        logger.warning(f"{source}: its encoder was fine-tuned; the class predictor is left out.")
    state.update({f"audio_tower.{key}": tensor for key, tensor in tower.items()})
    return bool(classifier)


def tmu_audio_config(beats: str | Path | None, is_finetuned: bool) -> BeatsConfig:
    """Returns settings and source of the given encoder, or else of the published system's."""
    config = load_beats(beats).config if beats else BeatsConfig()
    published = PUBLISHED_BEATS_FINETUNED if is_finetuned else PUBLISHED_BEATS
    config._name_or_path = provenance(str(beats or published))
    return config


def tmu_text_config(llm: str, end_token_id: int | None, vocab_size: int) -> PreTrainedConfig:
    """Returns settings and source of the language model, with the added tokens and the tokenizer's end token."""
    config = causal_config(llm)
    config.update({"vocab_size": vocab_size, "eos_token_id": end_token_id, "dtype": torch.float32})
    config._name_or_path = provenance(llm)
    return config


def append_audio_row(state: StateDict, token_ids: dict[str, int], llm: str) -> None:
    """
    Add a row for `[AUDIO]` to the published checkpoint's embedding, in place: the mean of the others. It is never used.
    """
    key = "language_model.embed_tokens.weight"
    rows = state[key].shape[0] if key in state and state[key].dim() == 2 else None
    if rows is None or rows != token_ids["audio_token_id"]:
        raise ConversionError(
            f"{key} has {rows} rows, but the tokenizer of {llm} makes {token_ids['audio_token_id']} with the "
            "three published tokens: is --llm the language model of this checkpoint?"
        )
    state[key] = torch.cat([state[key], state[key].mean(dim=0, keepdim=True)])


def tmu_head_sizes(state: StateDict) -> dict[str, int]:
    """
    Returns the widths of projector and score head, as fields of [`XacleConfig`]; loading reports missing tensors.
    """
    rows = {key: len(state[key]) for key in state if state[key].dim() == 2}
    sizes = {
        "projector_intermediate_size": rows.get("projector.up_proj.weight", 0) // 2,
        "score_head_hidden_size": rows.get("score_head.layers.0.weight"),
        "score_head_output_size": rows.get("score_head.layers.6.weight"),
    }
    return {name: size for name, size in sizes.items() if size}
