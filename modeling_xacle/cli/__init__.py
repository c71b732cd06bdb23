"""The `xacle` command: a thin table of contents over the package. Results go to stdout, all else to stderr."""

from .main import main

__all__ = ["main"]
