"""Where models come from: published checkpoints and pretrained parts, their fingerprints and licences."""

from .. import room

__getattr__, __dir__, __all__ = room(
    __name__,
    {
        "building": ["build_model", "init_model"],
        "dual": ["build_dual", "init_dual"],
        "conversion": ["ConversionError", "convert_beats", "load_beats"],
        "conversion_tmu": ["convert_tmu"],
        "fingerprints": ["model_fingerprint"],
        "log_mel": ["measure_log_mel"],
        "provenance": ["licence_of"],
    },
)
