"""What has to be known of an installation before Transformers is imported."""

import sys
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec


@lru_cache(maxsize=1)
def torchaudio_problem() -> str:
    """
    Describes an installed torchaudio that does not import beside this torch, with the remedy; empty if there is none.

    Transformers' audio files import torchaudio wherever it is installed, and fail with it. To let this package work
    nevertheless (if Transformers was not imported so far), and tell the remedy, torchaudio then counts as not installed
    in this process.
    """
    if find_spec("torchaudio") is None:
        return ""
    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        sys.modules["torchaudio"] = None
        return (
            f"torchaudio {version('torchaudio')} is installed but does not import beside torch {version('torch')}, and "
            "Transformers cannot read audio beside it: run `pip uninstall torchaudio`, or install the extra "
            f'`modeling-xacle[torchaudio]` for a torch that it fits. The reason: "{error}"'
        )
    return ""
