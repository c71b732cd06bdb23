"""How well does a sound match a caption? Importing this package tells the Auto classes and `pipeline` about "xacle"."""

import os
import sys
import sysconfig
from pathlib import Path

import lazy_loader

__version__ = "0.1.0"

DEFAULT_MODEL = os.environ.get("XACLE_MODEL", str(Path(__file__).parent / "checkpoints" / "xacle-tiny"))

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "configuration_xacle": ["BeatsConfig", "XacleConfig"],
        "feature_extraction_xacle": ["XacleFeatureExtractor", "load_waveform"],
        "modeling_beats": ["BeatsForAudioClassification", "BeatsModel"],
        "modeling_captioning": ["XacleForConditionalGeneration"],
        "modeling_xacle": ["XacleModel"],
        "pipeline_xacle": ["AudioTextAlignmentPipeline"],
        "processing_xacle": ["XacleProcessor"],
    },
)


def _is_command() -> bool:
    """Whether this process is the installed `xacle`."""
    program = Path(sys.argv[0]).resolve()
    return program.stem == "xacle" and program.parent == Path(sysconfig.get_path("scripts")).resolve()


if not _is_command():  # `xacle --help` does not wait for PyTorch; a command registers when it runs
    from . import registration  # noqa: F401
