"""Identifies a scorer by its settings, and joins the processes that share its work."""

import hashlib
import json
import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState

from .. import __version__
from ..checkpoints.fingerprints import (
    digest_of,
    front_end_code,
    processor_settings,
    weights_fingerprint,
    without_bookkeeping,
)
from ..judges.ensemble_pipeline import EnsemblePipeline
from ..judges.judge_pipeline import JudgePipeline
from ..judges.loading import load_scorer
from ..pipeline_xacle import AudioTextAlignmentPipeline
from .options import TableOptions

LONGEST_WAIT = timedelta(days=7)  # of a process that has scored its share for the others


def join_processes(device: str = "auto") -> PartialState:
    """
    Returns the processes that share the work, one if no launcher started more, and the device of this one.

    Raises:
        ValueError: Processes were started that would each work alone.
    """
    on_cpu = device == "cpu" or (device == "auto" and not torch.accelerator.is_available())
    state = PartialState(cpu=on_cpu, timeout=LONGEST_WAIT)
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != state.num_processes:
        raise ValueError(
            f"{launched} processes were started, but each would work alone; launch with a file of accelerate_configs/."
        )
    return state


def scorer_settings(align: AudioTextAlignmentPipeline, options: TableOptions) -> dict[str, Any]:
    """Returns all that a score depends on, besides the clip and the caption, ready for JSON."""
    if isinstance(align, EnsemblePipeline):
        members = [scorer_settings(member, options) for member in align.members]
        rule = f"sha256 {weights_fingerprint(align.model.rule)}"
        return {"method": align.model.config.method, "rule": rule, "scale": "0-10", "members": members}
    settings = processor_settings(align.processor)
    if isinstance(align, JudgePipeline):
        own = align.settings
    else:
        dtype = str(align.model.dtype).removeprefix("torch.")
        own = {"dtype": dtype, "scale": "0-10", "max_text_tokens": settings.pop("max_text_tokens")}
    return {
        "weights": f"sha256 {weights_fingerprint(align.model)}",
        "config": f"sha256 {digest_of(without_bookkeeping(align.model.config.to_dict()))}",
        "version": __version__,
        **own,
        **options.call_arguments,
        "front_end": settings.pop("feature_extractor"),
        "processor": settings,
        **front_end_code(),
    }


def scorer_signature(settings: dict[str, Any]) -> str:
    """Condenses the result of [`scorer_settings`] into one short line."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return f"modeling-xacle {__version__} {digest}"


__all__ = ["join_processes", "load_scorer", "scorer_settings", "scorer_signature"]
