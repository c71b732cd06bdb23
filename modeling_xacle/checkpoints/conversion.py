"""Converts BEATs files to folders that `from_pretrained` loads, with checks for all conversions: no tensor is lost."""

import pickle
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.activations import ACT2FN
from transformers.utils import logging

from ..configuration_xacle import BeatsConfig, XacleConfig
from ..data.files import is_free, saving
from ..feature_extraction_xacle import WindowFeatureExtractor, XacleFeatureExtractor
from ..modeling_beats import BeatsForAudioClassification, BeatsModel
from ..processing_xacle import (
    AUDIO_END_TOKEN,
    AUDIO_START_TOKEN,
    AUDIO_TOKEN,
    SCORE_TOKEN,
    SPECIAL_TOKENS,
    XacleProcessor,
)
from .loading import load_model, load_part

logger = logging.get_logger(__name__)

StateDict = dict[str, torch.Tensor]

BEATS_RULES = [
    (r"^layer_norm\.", "patch_layer_norm."),
    (r"^post_extract_proj\.", "patch_projection."),
    (r"^encoder\.pos_conv\.0\.parametrizations\.weight\.original0$", "encoder.pos_conv.0.weight_g"),
    (r"^encoder\.pos_conv\.0\.parametrizations\.weight\.original1$", "encoder.pos_conv.0.weight_v"),
    (r"^encoder\.pos_conv\.0\.", "conv_position.conv."),
    (r"^encoder\.layer_norm\.", "layer_norm."),
    (r"^encoder\.layers\.", "layers."),
    (r"\.grep_linear\.", ".gate_proj."),
    (r"\.grep_a$", ".gate_scale"),
    (r"^predictor\.", "classifier."),
]
# Key of a BEATs `cfg` -> field of BeatsConfig.
BEATS_CFG_FIELDS = {
    "input_patch_size": "patch_size",
    "embed_dim": "patch_embedding_size",
    "conv_bias": "patch_embedding_bias",
    "encoder_layers": "num_hidden_layers",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_attention_heads": "num_attention_heads",
    "activation_fn": "hidden_act",
    "deep_norm": "deep_norm",
    "conv_pos": "conv_position_kernel_size",
    "conv_pos_groups": "conv_position_groups",
    "num_buckets": "relative_position_num_buckets",
    "max_distance": "relative_position_max_distance",
}
# Settings that BeatsModel assumes; every published BEATs file has them.
BEATS_CFG_REQUIRED = {"layer_norm_first": False, "relative_position_embedding": True, "gru_rel_pos": True}


class ConversionError(ValueError):
    """A checkpoint that does not fit; the message lists the offending keys."""


@dataclass
class BeatsCheckpoint:
    """
    The content of a BEATs file, with the names of [`BeatsModel`].

    Args:
        config (`BeatsConfig`): The file's `cfg`.
        encoder (`dict[str, torch.Tensor]`): Weights of [`BeatsModel`].
        classifier (`dict[str, torch.Tensor]`): `weight` of shape `(num_labels, hidden_size)` and `bias`, or nothing.
    """

    config: BeatsConfig
    encoder: StateDict
    classifier: StateDict = field(default_factory=dict)


def load_pickle_safely(path: str | Path) -> dict[str, Any]:
    """
    Load a `.pt` or `.ckpt` file with `weights_only=True`: tensors and plain containers only, no code is executed.

    Raises:
        ConversionError: The file is missing, broken, or holds other objects.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConversionError(f"{path}: no such file.") from error
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path}: refused, nothing was executed. It is broken, or pickles objects other than tensors and plain "
            "containers. Ask for a file with the state dict alone."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise ConversionError(f"{path}: cannot be read as a PyTorch checkpoint ({error}).") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: holds a {type(content).__name__}, not a dict.")
    return content


def check_state_dict(state: Any, source: str | Path) -> StateDict:
    """
    Check that this is a state dict, names with dense, finite floating point tensors, and return it.

    Raises:
        ConversionError: It is not; lists the entries that are something else.
    """
    if not isinstance(state, dict) or not state:
        found = "an empty one" if state == {} else f"a {type(state).__name__}"
        raise ConversionError(f"{source}: holds no state dict, but {found}.")
    strays = [str(key) for key, value in state.items() if not (isinstance(key, str) and _is_weight(value))]
    if strays:
        raise ConversionError(f"{source}: not finite floating point tensors: {', '.join(strays)}.")
    return state


def _is_weight(value: Any) -> bool:
    is_dense = isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta
    return is_dense and value.is_floating_point() and bool(value.isfinite().all())


def rename_keys(state: StateDict, rules: list[tuple[str, str]]) -> StateDict:
    """
    Rename the tensors of a state dict: every rule is applied to every key, in order.

    Raises:
        ConversionError: Two keys get the same new name, so that one tensor would be lost.
    """
    renamed: StateDict = {}
    origins: dict[str, str] = {}
    for old, tensor in state.items():
        key = old
        for pattern, replacement in rules:
            key = re.sub(pattern, replacement, key)
        if key in renamed:
            raise ConversionError(f"{origins[key]} and {old} are the same weight ({key}); one of them is too many.")
        renamed[key], origins[key] = tensor, old
    return renamed


def load_exactly(model: nn.Module, state: StateDict, source: str) -> None:
    """
    Load weights, of which none may be missing, left over or of another shape; tied ones are set by their partners.

    Raises:
        ConversionError: Some keys do not fit; lists all of them.
    """
    tied = getattr(model, "all_tied_weights_keys", {}).keys()
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items() if key not in tied}
    found = {key: tuple(tensor.shape) for key, tensor in state.items()}
    problems = [f"missing: {key} {expected[key]}" for key in expected.keys() - found.keys()]
    problems += [f"unexpected: {key} {found[key]}" for key in found.keys() - expected.keys()]
    problems += [
        f"shape: {key} is {found[key]}, expected {expected[key]}"
        for key in expected.keys() & found.keys()
        if expected[key] != found[key]
    ]
    if problems:
        listing = "\n  ".join(sorted(problems))
        raise ConversionError(f"{source} does not fit the {type(model).__name__} of its configuration:\n  {listing}")
    model.load_state_dict(state, strict=False)  # not strict, as tied ones are missing


def beats_config_from_cfg(cfg: dict[str, Any]) -> BeatsConfig:
    """
    Returns the configuration of a BEATs file.

    Raises:
        ConversionError: [`BeatsModel`] cannot build a model of this kind.
    """
    if not isinstance(cfg, dict):
        raise ConversionError(f"BEATs cfg is a {type(cfg).__name__}, not a dict.")
    activation = cfg.get("activation_fn", BeatsConfig.hidden_act)
    if activation not in ACT2FN:
        raise ConversionError(f"BEATs cfg has activation_fn={activation!r}; supported are {', '.join(ACT2FN)}.")
    for key, required in BEATS_CFG_REQUIRED.items():
        if cfg.get(key, required) != required:
            raise ConversionError(
                f"BEATs cfg has {key}={cfg[key]!r}; only {required!r} is supported, as in every published BEATs file."
            )
    settings = {name: cfg[key] for key, name in BEATS_CFG_FIELDS.items() if key in cfg}
    wrong = [name for name, value in settings.items() if type(value) is not type(getattr(BeatsConfig, name))]
    if wrong:
        raise ConversionError(f"BEATs cfg has values of another type for {', '.join(wrong)}: {cfg}.")
    return BeatsConfig(**settings)


def fold_weight_norm(state: StateDict, prefix: str) -> None:
    """
    Replace, in place, `weight_g` of shape `(1, 1, K)` and `weight_v` of shape `(D, D / groups, K)` by the `weight` they
    stand for. Anything of another form stays, and loading reports it as unexpected.
    """
    magnitude, direction = state.get(f"{prefix}weight_g"), state.get(f"{prefix}weight_v")
    if magnitude is None or direction is None or direction.dim() != 3 or f"{prefix}weight" in state:
        return
    if magnitude.shape == (1, 1, direction.shape[2]):
        norm = direction.norm(dim=(0, 1), keepdim=True)
        state[f"{prefix}weight"] = state.pop(f"{prefix}weight_v") * (state.pop(f"{prefix}weight_g") / norm)


def convert_beats_keys(state: StateDict) -> StateDict:
    """
    Give BEATs weights the names of [`BeatsModel`], with weight norm folded and the position bias kept once.

    Raises:
        ConversionError: Layers differ in the position bias, which they share.
    """
    state = rename_keys(state, BEATS_RULES)
    fold_weight_norm(state, "conv_position.conv.")
    biases = {key: state.pop(key) for key in list(state) if key.endswith(".self_attn.relative_attention_bias.weight")}
    for key, bias in biases.items():
        if not torch.equal(bias, state.setdefault("relative_position_bias.weight", bias)):
            raise ConversionError(f"BEATs layers share one position bias, but {key} differs from the first.")
    for key in state:
        if key.endswith(".gate_scale"):
            state[key] = state[key].squeeze(0)  # (1, H, 1, 1) -> (H, 1, 1)
    return state


def pop_classifier(state: StateDict) -> StateDict:
    """Take the class predictor's `weight` and `bias`, if any, out of the output of [`convert_beats_keys`]."""
    return {key.removeprefix("classifier."): state.pop(key) for key in list(state) if key.startswith("classifier.")}


def read_beats(path: str | Path) -> BeatsCheckpoint:
    """
    Read a BEATs `.pt` file, self-supervised or fine-tuned.

    Raises:
        ConversionError: It is not a BEATs file.
    """
    content = load_pickle_safely(path)
    if not {"cfg", "model"} <= content.keys():
        raise ConversionError(
            f"{path}: a BEATs file has the keys `cfg` and `model`, this one has {sorted(map(str, content))}."
        )
    state = convert_beats_keys(check_state_dict(content["model"], path))
    classifier = pop_classifier(state)
    config = beats_config_from_cfg(content["cfg"])
    if classifier:
        labels = content.get("label_dict") or {}
        num_labels = max(tensor.shape[0] for tensor in classifier.values() if tensor.dim())
        config.id2label = {index: str(labels.get(index, f"LABEL_{index}")) for index in range(num_labels)}
        config.label2id = {label: index for index, label in config.id2label.items()}
    return BeatsCheckpoint(config, state, classifier)


def load_beats(source: str | Path) -> BeatsCheckpoint:
    """
    Load a BEATs encoder from a `.pt` file, or from the folder or Hub id of a converted one.

    Raises:
        ConversionError: It is not BEATs.
    """
    if Path(source).is_file() or Path(source).suffix == ".pt":
        return read_beats(source)
    model_type = load_part(AutoConfig, source).model_type
    if model_type != BeatsConfig.model_type:
        raise ConversionError(
            f"{source} holds a {model_type} model; --beats takes a BEATs .pt file or a converted one."
        )
    model = load_model(BeatsModel, source, dtype=torch.float32)
    return BeatsCheckpoint(model.config, model.state_dict())


def convert_beats(path: str | Path, output: str | Path) -> BeatsModel | BeatsForAudioClassification:
    """
    Convert a BEATs `.pt` file to a folder with the model (a classifier where the file was fine-tuned) and the feature
    extractor.

    Raises:
        ConversionError: The file does not fit, or the folder is not empty.
    """
    checkpoint = read_beats(path)
    if checkpoint.classifier:
        model = BeatsForAudioClassification(checkpoint.config)
        load_exactly(model.classifier, checkpoint.classifier, f"{path} (predictor)")
        load_exactly(model.model, checkpoint.encoder, str(path))
    else:
        model = BeatsModel(checkpoint.config)
        load_exactly(model, checkpoint.encoder, str(path))
    save_folder(output, model, XacleFeatureExtractor(feature_size=checkpoint.config.num_mel_bins))
    return model


def provenance(name: str) -> str:
    """Returns what config.json says about a part's origin: a Hub id, or only the last name of a local path."""
    return Path(name).name if Path(name).exists() else name


def causal_config(llm: str) -> PreTrainedConfig:
    """
    Load the configuration of a causal language model, from a folder or Hub id.

    Raises:
        ConversionError: It is a model of another kind.
    """
    config = load_part(AutoConfig, llm)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ConversionError(f"{llm} holds a {config.model_type} model; --llm takes a causal language model.")
    if config.get_text_config() is not config:
        raise ConversionError(
            f"{llm} holds a {config.model_type} model of several parts; --llm takes a language model alone."
        )
    return config


def add_special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """
    Add the audio and score tokens at the end of the vocabulary.

    Returns:
        The fields of [`XacleConfig`] that hold their ids.
    """
    tokenizer.add_special_tokens({"extra_special_tokens": SPECIAL_TOKENS}, replace_extra_special_tokens=False)
    names = {
        "audio_start_token_id": AUDIO_START_TOKEN,
        "audio_end_token_id": AUDIO_END_TOKEN,
        "score_token_id": SCORE_TOKEN,
        "audio_token_id": AUDIO_TOKEN,
    }
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def make_processor(
    extractor: WindowFeatureExtractor, tokenizer: PreTrainedTokenizerBase, config: XacleConfig
) -> XacleProcessor:
    """Returns the processor that a model of this configuration needs."""
    options = {"num_audio_tokens": config.num_audio_tokens, "audio_first": config.caption_likelihood}
    return XacleProcessor(extractor, tokenizer, **options)


def save_folder(output: str | Path, model: PreTrainedModel, processor: Any) -> None:
    """Save a model and its processor in one new folder."""
    output = Path(output)
    if not is_free(output):
        raise ConversionError(f"{output} already exists and is not an empty folder: remove it or choose another.")
    with saving(output):
        model.save_pretrained(output)
        processor.save_pretrained(output)
