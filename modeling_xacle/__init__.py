"""How well does a sound match a caption? Importing this package tells the Auto classes and `pipeline` about "xacle"."""

import os
import warnings
from pathlib import Path

from .installation import torchaudio_problem

if problem := torchaudio_problem():
    warnings.warn(problem, RuntimeWarning, stacklevel=2)

# isort: split
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForMultimodalLM,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .configuration_xacle import BeatsConfig, XacleConfig
from .feature_extraction_xacle import XacleFeatureExtractor, load_waveform
from .modeling_beats import BeatsForAudioClassification, BeatsModel
from .modeling_captioning import XacleForConditionalGeneration
from .modeling_xacle import XacleModel
from .pipeline_xacle import AudioTextAlignmentPipeline
from .processing_xacle import XacleProcessor
from .speed import FastAudioTextAlignmentPipeline

__version__ = "0.1.0"

DEFAULT_MODEL = os.environ.get("XACLE_MODEL", str(Path(__file__).parent / "checkpoints" / "xacle-tiny"))


def _register() -> None:
    """Local names for the Auto classes and the task, and the code that saved folders carry."""
    for config_class in (BeatsConfig, XacleConfig):
        AutoConfig.register(config_class.model_type, config_class)
        config_class.register_for_auto_class()
        AutoFeatureExtractor.register(config_class, XacleFeatureExtractor)
    AutoModel.register(BeatsConfig, BeatsModel)
    AutoModelForAudioClassification.register(BeatsConfig, BeatsForAudioClassification)
    AutoModel.register(XacleConfig, XacleModel)
    AutoModelForMultimodalLM.register(XacleConfig, XacleForConditionalGeneration)
    AutoProcessor.register(XacleConfig, XacleProcessor)
    BeatsModel.register_for_auto_class("AutoModel")
    BeatsForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
    XacleModel.register_for_auto_class("AutoModel")
    XacleForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")
    XacleFeatureExtractor.register_for_auto_class()
    XacleProcessor.register_for_auto_class()
    PIPELINE_REGISTRY.register_pipeline(
        "audio-text-alignment",
        FastAudioTextAlignmentPipeline,
        pt_model=AutoModel,
        default={"model": (DEFAULT_MODEL, "main")},
        type="multimodal",
    )


_register()

__all__ = [
    "AudioTextAlignmentPipeline",
    "BeatsConfig",
    "BeatsForAudioClassification",
    "BeatsModel",
    "XacleConfig",
    "XacleFeatureExtractor",
    "XacleForConditionalGeneration",
    "XacleModel",
    "XacleProcessor",
    "load_waveform",
]
