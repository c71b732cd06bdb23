"""What Transformers is told of this package: model types, the code that saved folders carry, and the task."""

import warnings

from .installation import torchaudio_problem

if problem := torchaudio_problem():
    warnings.warn(problem, RuntimeWarning, stacklevel=3)

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

from . import DEFAULT_MODEL
from .configuration_byola import ByolaConfig
from .configuration_dual import XacleDualEncoderConfig
from .configuration_m2d import M2dConfig
from .configuration_xacle import BeatsConfig, XacleConfig
from .feature_extraction_mel import ByolaFeatureExtractor, M2dFeatureExtractor
from .feature_extraction_towers import XacleTowerFeatureExtractor
from .feature_extraction_xacle import XacleFeatureExtractor
from .judges.ensemble import XacleEnsemble, XacleEnsembleConfig, XacleEnsembleProcessor
from .modeling_beats import BeatsForAudioClassification, BeatsModel
from .modeling_byola import ByolaModel
from .modeling_captioning import XacleForConditionalGeneration
from .modeling_dual import XacleDualEncoder
from .modeling_m2d import M2dModel
from .modeling_xacle import XacleModel
from .processing_dual import XacleDualProcessor
from .processing_xacle import XacleProcessor
from .speed import FastAudioTextAlignmentPipeline

for config_class in (BeatsConfig, ByolaConfig, M2dConfig, XacleConfig, XacleDualEncoderConfig):
    AutoConfig.register(config_class.model_type, config_class)
    config_class.register_for_auto_class()
# A folder's own settings name the class; these are the ones that it may name.
AutoFeatureExtractor.register(BeatsConfig, XacleFeatureExtractor)
AutoFeatureExtractor.register(ByolaConfig, ByolaFeatureExtractor)
AutoFeatureExtractor.register(M2dConfig, M2dFeatureExtractor)
AutoFeatureExtractor.register(XacleConfig, XacleTowerFeatureExtractor)
AutoModel.register(BeatsConfig, BeatsModel)
AutoModel.register(ByolaConfig, ByolaModel)
AutoModel.register(M2dConfig, M2dModel)
AutoModelForAudioClassification.register(BeatsConfig, BeatsForAudioClassification)
AutoModel.register(XacleConfig, XacleModel)
AutoModelForMultimodalLM.register(XacleConfig, XacleForConditionalGeneration)
AutoProcessor.register(XacleConfig, XacleProcessor)
AutoModel.register(XacleDualEncoderConfig, XacleDualEncoder)
AutoProcessor.register(XacleDualEncoderConfig, XacleDualProcessor)
# Ensembles stay at home: their folders name members, and bring no code for strangers.
AutoConfig.register(XacleEnsembleConfig.model_type, XacleEnsembleConfig)
AutoModel.register(XacleEnsembleConfig, XacleEnsemble)
AutoProcessor.register(XacleEnsembleConfig, XacleEnsembleProcessor)
for model_class in (BeatsModel, ByolaModel, M2dModel, XacleDualEncoder, XacleModel):
    model_class.register_for_auto_class("AutoModel")
BeatsForAudioClassification.register_for_auto_class("AutoModelForAudioClassification")
XacleForConditionalGeneration.register_for_auto_class("AutoModelForMultimodalLM")
for extractor_class in (
    ByolaFeatureExtractor,
    M2dFeatureExtractor,
    XacleFeatureExtractor,
    XacleTowerFeatureExtractor,
):
    extractor_class.register_for_auto_class()
XacleProcessor.register_for_auto_class()
XacleDualProcessor.register_for_auto_class()
PIPELINE_REGISTRY.register_pipeline(
    "audio-text-alignment",
    FastAudioTextAlignmentPipeline,
    pt_model=AutoModel,
    default={"model": (DEFAULT_MODEL, "main")},
    type="multimodal",
)
