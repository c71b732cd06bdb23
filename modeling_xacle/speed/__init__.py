"""
Speed at home: this package's pipeline, commands and training run faster on a CPU. Nothing here travels with a
checkpoint, and `XACLE_FAST=0` in the environment switches all of it off.
"""

from .forms import fast_forms
from .pipeline import FastAudioTextAlignmentPipeline

__all__ = ["FastAudioTextAlignmentPipeline", "fast_forms"]
