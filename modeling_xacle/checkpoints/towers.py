"""Loads audio towers: a BEATs file, a folder of an encoder of ours or of Transformers, or a model that holds one."""

from pathlib import Path

import torch
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    ClapAudioModel,
    PeAudioModel,
    PreTrainedModel,
)
from transformers.utils import logging

from ..configuration_xacle import BeatsConfig
from ..feature_extraction_towers import XacleTowerFeatureExtractor
from ..feature_extraction_xacle import WindowFeatureExtractor, XacleFeatureExtractor
from ..modeling_beats import BeatsModel
from ..modeling_towers import FAMILIES
from ..processing_xacle import check_front_end
from .conversion import ConversionError, load_beats, load_exactly, provenance
from .loading import load_model, load_part

logger = logging.get_logger(__name__)


def load_tower(source: str | Path) -> tuple[PreTrainedModel, WindowFeatureExtractor]:
    """
    Load an audio tower in fp32, with the feature extractor that it was trained with.

    Args:
        source (`str` or `Path`): A BEATs `.pt` file; or folder or Hub id of a converted one, of an encoder of a family
            in `FAMILIES`, or of a larger model that holds one, such as `laion/clap-htsat-unfused`.

    Raises:
        ConversionError: It is none of these.
        ValueError: It cannot be loaded, or its feature extractor is of another kind.
    """
    is_beats = Path(source).is_file() or Path(source).suffix == ".pt"
    kind = BeatsConfig.model_type if is_beats else load_part(AutoConfig, source).model_type
    if kind == BeatsConfig.model_type:
        tower, extractor = _load_beats(source)
    else:
        tower = _load_encoder(source, kind)
        extractor = _load_extractor(source, tower)
    tower.config._name_or_path = provenance(str(source))
    return tower, extractor


def _load_beats(source: str | Path) -> tuple[BeatsModel, XacleFeatureExtractor]:
    checkpoint = load_beats(source)
    if checkpoint.classifier:
        logger.warning(f"{source} was fine-tuned; its class predictor is left out.")
    tower = BeatsModel(checkpoint.config)
    load_exactly(tower, checkpoint.encoder, str(source))
    return tower, XacleFeatureExtractor(feature_size=checkpoint.config.num_mel_bins)


def _load_encoder(source: str | Path, kind: str) -> PreTrainedModel:
    """Loads an encoder, or the encoder in a model of this type."""
    inside = {family.inside[0]: family.inside[1] for family in FAMILIES.values() if family.inside}
    inside["pe_audio_video"] = inside["pe_audio"]
    if kind not in (*FAMILIES, *inside):
        raise ConversionError(
            f"{source} holds a {kind} model; an audio tower is one of {', '.join(sorted({*FAMILIES, *inside}))}."
        )
    return getattr(load_holder(source, kind), inside[kind]) if kind in inside else load_holder(source, kind)


def load_holder(source: str | Path, kind: str) -> PreTrainedModel:
    """Loads a model of a type in fp32; of PE-AV's models for sounds and pictures, the part for sounds and text."""
    if kind == "pe_audio_video":
        config = load_part(AutoConfig, source).audio_config
        return load_model(PeAudioModel, source, config=config, dtype=torch.float32)
    is_automatic = type(load_part(AutoConfig, source)) in MODEL_MAPPING
    return load_model(AutoModel if is_automatic else ClapAudioModel, source, dtype=torch.float32)


def _load_extractor(source: str | Path, tower: PreTrainedModel) -> WindowFeatureExtractor:
    """Loads the feature extractor of a tower."""
    front_end = load_part(AutoFeatureExtractor, source)
    try:
        is_own = isinstance(front_end, WindowFeatureExtractor)
        extractor = front_end if is_own else XacleTowerFeatureExtractor(front_end)
        check_front_end(tower.config, extractor)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return extractor
