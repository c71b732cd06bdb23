"""How well does a sound match a caption? Importing this package tells the Auto classes and `pipeline` about "xacle"."""

import os
import sys
import sysconfig
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import lazy_loader

__version__ = "0.1.0"

DEFAULT_MODEL = os.environ.get("XACLE_MODEL", str(Path(__file__).parent / "checkpoints" / "xacle-tiny"))


def room(name: str, public: dict[str, list[str]]) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """
    `__getattr__`, `__dir__` and `__all__` of a folder of code that shows names of its files and loads them when they
    are asked for; before the first, Transformers is told of this package.

    Args:
        name (`str`): Of the folder's module.
        public (`dict`): By file, the names.
    """
    load, listed, names = lazy_loader.attach(name, submod_attrs=public)

    def registered(attribute: str) -> Any:
        """A public name, or `AttributeError`."""
        if attribute in names:
            import_module(f"{__name__}.registration")
        return load(attribute)

    return registered, listed, names


__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "configuration_byola": ["ByolaConfig"],
        "configuration_m2d": ["M2dConfig"],
        "configuration_dual": ["XacleDualEncoderConfig"],
        "configuration_xacle": ["BeatsConfig", "XacleConfig"],
        "feature_extraction_mel": ["ByolaFeatureExtractor", "LogMelFeatureExtractor", "M2dFeatureExtractor"],
        "feature_extraction_towers": ["XacleTowerFeatureExtractor"],
        "feature_extraction_xacle": ["XacleFeatureExtractor"],
        "modeling_beats": ["BeatsForAudioClassification", "BeatsModel"],
        "modeling_byola": ["ByolaModel"],
        "modeling_captioning": ["XacleForConditionalGeneration"],
        "modeling_dual": ["XacleDualEncoder"],
        "modeling_m2d": ["M2dModel"],
        "modeling_xacle": ["XacleModel"],
        "processing_dual": ["XacleDualProcessor"],
        "pipeline_xacle": ["AudioTextAlignmentPipeline"],
        "processing_xacle": ["XacleProcessor"],
        "waveforms_xacle": ["load_waveform"],
    },
)


def _is_command() -> bool:
    """Whether this process is the installed `xacle`."""
    program = Path(sys.argv[0]).resolve()
    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    folders = {Path(sysconfig.get_path("scripts", scheme)).resolve() for scheme in schemes}
    return program.stem == "xacle" and program.parent in folders


if not _is_command():  # `xacle --help` does not wait for PyTorch; the rooms register when something of them is used
    from . import registration  # noqa: F401
