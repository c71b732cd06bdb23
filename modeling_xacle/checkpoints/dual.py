"""Builds judges with two towers (`xacle init --preset`) from pretrained parts, or from a contrastive model as it is."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    ClapTextModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..configuration_byola import ByolaConfig
from ..configuration_dual import XacleDualEncoderConfig
from ..data.pairs import load_pairs
from ..feature_extraction_mel import ByolaFeatureExtractor
from ..modeling_byola import ByolaModel
from ..modeling_dual import XacleDualEncoder
from ..processing_dual import XacleDualProcessor
from .conversion import ConversionError, load_exactly, provenance, save_folder
from .fingerprints import audio_key
from .loading import load_model, load_part
from .log_mel import measure_log_mel
from .presets import PRESETS
from .towers import load_holder, load_tower

# Contrastive models: the text tower's attribute, the projection, the caption's vector, and where the projections are.
WHOLE = {
    "clap": ("text_model", "mlp", "pooler", {"audio": "audio_projection", "text": "text_projection"}),
    "pe_audio": ("text_model", "norm_linear", "first", {"audio": "audio_head", "text": "text_audio_head"}),
}
WHOLE["pe_audio_video"] = WHOLE["pe_audio"]
LAYERS = {"mlp": {"linear1": "0", "linear2": "2"}, "norm_linear": {"layer_norm": "0", "proj": "1"}}
# Tokens that a tokenizer without a limit of its own gives a caption at most.
LONGEST_CAPTION = 256


def build_dual(
    preset: str,
    tower: str | Path | None,
    text: str | Path | None = None,
    seed: int = 0,
    data: str | Path | None = None,
    **config_fields: Any,
) -> tuple[XacleDualEncoder, XacleDualProcessor]:
    """
    Build a judge with two towers. What no part brings along is random.

    Args:
        preset (`str`): One of `PRESETS`.
        tower (`str` or `Path`, *optional*): The audio tower, as [`load_tower`] takes it; or a contrastive model (CLAP,
            PE-AV). Without it, the encoder of `baseline-2026`, which is trained from nothing, is random.
        text (`str` or `Path`, *optional*): Folder or Hub id of a text encoder; by default, the contrastive model's.
        seed (`int`): Seed of the random parts.
        data (`str` or `Path`, *optional*): Dataset whose training split gives the mean and the standard deviation by
            which that encoder's spectrograms are normalised.
        config_fields: Fields of [`XacleDualEncoderConfig`] that differ from the preset's.

    Returns:
        The model, and the processor that it needs.

    Raises:
        ConversionError: There is no such preset, or parts do not fit it; says why.
    """
    if preset not in PRESETS:
        raise ConversionError(f"There is no preset {preset}; there are {', '.join(PRESETS)}.")
    kind = "" if tower is None or Path(tower).is_file() else load_part(AutoConfig, tower).model_type
    if PRESETS[preset].fields["join"] == "cosine" and (text is not None or kind not in WHOLE):
        raise ConversionError(
            f"The preset {preset} takes a contrastive model as it is ({', '.join(WHOLE)}): give it as --tower, without "
            "--text."
        )
    if text is None and kind not in WHOLE:
        raise ConversionError(f"{tower or preset}: has no text tower; name one with --text.")
    if data is not None and tower is not None:
        raise ConversionError(f"--data {data}: is for a tower that is made anew; leave it out, or leave out --tower.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        audio, extractor = fresh_tower(preset, data) if tower is None else load_tower(tower)
        if text is None:
            encoder, tokenizer, parts = load_whole(tower, kind)
        else:
            encoder, tokenizer, parts = *load_text_tower(text), {}
        check_types(preset, tower, audio, text or str(tower), encoder)
        fields = {**PRESETS[preset].fields, **whole_fields(kind, parts), **config_fields, "preset": preset}
        torch.manual_seed(seed)
        config = XacleDualEncoderConfig(audio_config=audio.config, text_config=encoder.config, **fields)
        model = XacleDualEncoder(config)
    load_exactly(model.audio_tower, audio.state_dict(), str(tower))
    state = encoder.state_dict()
    if config.text_summary != "pooler":
        state = {name: value for name, value in state.items() if not name.startswith("pooler.")}
    load_exactly(model.language_model, state, str(text or tower))
    for name, layers in parts.items():
        load_exactly(getattr(model.projector, name), layers, str(tower))
    return model, XacleDualProcessor(extractor, tokenizer, longest_caption(encoder, tokenizer))


def fresh_tower(preset: str, data: str | Path | None) -> tuple[ByolaModel, ByolaFeatureExtractor]:
    """
    Returns an untrained BYOL-A v2, whose front end normalises by a dataset's training split.

    Raises:
        ConversionError: The preset has another tower, or no dataset is given.
    """
    if PRESETS[preset].tower != ByolaConfig.model_type:
        raise ConversionError(f"The preset {preset} needs a pretrained audio tower: name one with --tower.")
    if data is None:
        raise ConversionError(
            f"The preset {preset} normalises spectrograms by the training split's mean and deviation: name the dataset "
            "with --data."
        )
    extractor = ByolaFeatureExtractor()
    extractor.mel_mean, extractor.mel_std = measure_log_mel(extractor, distinct_sounds(load_pairs(data, "train")))
    return ByolaModel(ByolaConfig()), extractor


def distinct_sounds(rows: Dataset) -> Iterator[dict[str, Any]]:
    """Yields each sound of a split once."""
    seen = set()
    for row in rows.select_columns("audio"):
        key = audio_key(row["audio"])
        if key not in seen:
            seen.add(key)
            yield row["audio"]


def whole_fields(kind: str, parts: dict[str, dict[str, torch.Tensor]]) -> dict[str, Any]:
    """Returns the fields that the form of a contrastive model decides; none without its projections' weights."""
    if not parts:
        return {}
    _, projection, summary, _ = WHOLE[kind]
    size = len(list(parts["audio"].values())[-1])  # of the last layer's weight or bias
    return {"projection": projection, "projection_size": size, "text_summary": summary}


def load_whole(
    source: str | Path, kind: str
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, dict[str, torch.Tensor]]]:
    """Loads text tower, tokenizer, and the projections' weights, by our names, of a contrastive model."""
    model = load_holder(source, kind)
    attribute, projection, _, places = WHOLE[kind]
    parts = {}
    for name, place in places.items():
        state = getattr(model, place).state_dict()
        parts[name] = {_renamed(key, LAYERS[projection]): value for key, value in state.items()}
    encoder = getattr(model, attribute)
    encoder.config._name_or_path = provenance(str(source))
    return encoder, load_part(AutoTokenizer, source), parts


def _renamed(key: str, names: dict[str, str]) -> str:
    layer, _, parameter = key.partition(".")
    return f"{names[layer]}.{parameter}"


def load_text_tower(source: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Load a text encoder in fp32 with its tokenizer.

    Raises:
        ConversionError: It is no text encoder, or comes without a tokenizer.
    """
    config = load_part(AutoConfig, source)
    kind = type(config)
    is_decoder = kind in MODEL_FOR_CAUSAL_LM_MAPPING and kind not in MODEL_FOR_MASKED_LM_MAPPING
    if config.is_encoder_decoder or is_decoder or not hasattr(config, "vocab_size"):
        raise ConversionError(f"{source}: a model of type {config.model_type}, which is no text encoder (as BERT is).")
    model_class = ClapTextModel if config.model_type == "clap_text_model" else AutoModel
    encoder = load_model(model_class, source, dtype=torch.float32)
    try:
        tokenizer = load_part(AutoTokenizer, source)
    except ValueError as error:
        raise ConversionError(f"{source}: has no tokenizer, which a text tower needs; save it there.") from error
    encoder.config._name_or_path = provenance(str(source))
    return encoder, tokenizer


def check_types(
    preset: str, tower: str | Path | None, audio: PreTrainedModel, text: str | Path, encoder: PreTrainedModel
) -> None:
    """
    Check that the towers are of the kinds that a preset was published with.

    Raises:
        ConversionError: They are not.
    """
    wanted = PRESETS[preset]
    for source, found, kind in ((tower, audio, wanted.tower), (text, encoder, wanted.text)):
        if kind not in (None, found.config.model_type):
            raise ConversionError(f"{source}: the preset {preset} has a {kind} tower, not {found.config.model_type}.")


def longest_caption(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns how many tokens of a caption a text tower takes; in RoBERTa's kind, positions count from the padding."""
    config = encoder.config
    places = getattr(config, "max_position_embeddings", LONGEST_CAPTION)
    if any(name in config.model_type for name in ("roberta", "clap")):
        places -= config.pad_token_id + 1
    return min(places, tokenizer.model_max_length, LONGEST_CAPTION)


def init_dual(
    preset: str,
    tower: str | Path | None,
    output: str | Path,
    text: str | Path | None = None,
    seed: int = 0,
    data: str | Path | None = None,
    **config_fields: Any,
) -> XacleDualEncoder:
    """Build a judge with [`build_dual`] and save its folder."""
    model, processor = build_dual(preset, tower, text, seed, data, **config_fields)
    save_folder(output, model, processor)
    return model
