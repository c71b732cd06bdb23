"""Loads any model as one kind of scorer, and identifies it by its settings."""

import hashlib
import json
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

from .. import DEFAULT_MODEL, __version__
from ..checkpoints.fingerprints import (
    digest_of,
    front_end_code,
    processor_settings,
    weights_fingerprint,
    without_bookkeeping,
)
from ..checkpoints.loading import load_model, load_part
from ..checkpoints.provenance import commit_of
from ..judges.clap import ClapTeacher
from ..judges.clap_pipeline import ZeroShotAlignmentPipeline
from ..pipeline_xacle import AudioTextAlignmentPipeline
from .options import TableOptions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
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


def load_scorer(
    model: str | Path = DEFAULT_MODEL,
    device: str | torch.device = "auto",
    dtype: str = "float32",
    revision: str | None = None,
    processor: str | Path | None = None,
    map_cosine: bool = False,
) -> AudioTextAlignmentPipeline:
    """
    Loads a scorer, called like the pipeline, from any supported model.

    Args:
        model (`str` or `Path`): Folder or Hub id of a xacle model, or of any `transformers.ClapModel`.
        device (`str` or `torch.device`): By default an accelerator (cuda, mps) if there is one, else the CPU.
        dtype (`str`): `"float32"`, `"bfloat16"` or `"float16"`.
        revision (`str`, *optional*): Revision of a Hub id.
        processor (`str` or `Path`, *optional*): Processor of a CLAP model that comes without one.
        map_cosine (`bool`): Map a CLAP model's cosine to 0-10.

    Returns:
        A pipeline that also knows the `commit` of a model on the Hub.

    Raises:
        ValueError: There is no such model; it is of another kind, incomplete or broken; or it does not take an option.
    """
    if device == "auto":
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    device, compute_dtype = torch.device(device), DTYPES[dtype]
    kind = load_part(AutoConfig, model, revision).model_type
    commit = commit_of(model, revision)
    if kind == "clap":
        teacher = ClapTeacher.from_pretrained(model, processor, device, revision)
        align = ZeroShotAlignmentPipeline(teacher, map_cosine, compute_dtype, device=device)
        align.commit = commit
        return align
    if kind != "xacle":
        raise ValueError(f"{model}: a model of type {kind}; xacle and clap models can score.")
    if map_cosine or processor:
        raise ValueError(f"{model}: --map-cosine and --processor are for CLAP models.")
    loaded = load_model(AutoModel, model, revision, dtype=compute_dtype)
    processor = load_part(AutoProcessor, model, revision)
    try:
        align = pipeline("audio-text-alignment", model=loaded, processor=processor, device=device)
    except ValueError as error:  # the processor belongs to another model
        raise ValueError(f"{model}: {error}") from error
    # `pipeline` leaves the model where it is if processes share the work.
    align.model.to(device)
    align.device, align.commit = device, commit
    _try(align, model)
    return align


def _try(align: AudioTextAlignmentPipeline, model: str | Path) -> None:
    """Score a second of silence: a configuration that does not fit its weights shows now, and names the model."""
    rate = align.processor.feature_extractor.sampling_rate
    try:
        align({"audio": torch.zeros(rate), "text": "silence", "sampling_rate": rate})
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of any kind, from deep within
        raise ValueError(
            f"{model}: cannot score; its settings do not fit its weights ({type(error).__name__})."
        ) from error


def scorer_settings(align: AudioTextAlignmentPipeline, options: TableOptions) -> dict[str, Any]:
    """Returns all that a score depends on, besides the clip and the caption, ready for JSON."""
    settings = processor_settings(align.processor)
    zero_shot = isinstance(align, ZeroShotAlignmentPipeline)
    return {
        "weights": f"sha256 {weights_fingerprint(align.model)}",
        "config": f"sha256 {digest_of(without_bookkeeping(align.model.config.to_dict()))}",
        "version": __version__,
        "dtype": str(align.compute_dtype if zero_shot else align.model.dtype).removeprefix("torch."),
        "scale": "cosine" if zero_shot and not align.map_cosine else "0-10",
        **options.call_arguments,
        "max_text_tokens": align.max_text_tokens if zero_shot else settings.pop("max_text_tokens"),
        "front_end": settings.pop("feature_extractor"),
        "processor": settings,
        **front_end_code(),
    }


def scorer_signature(settings: dict[str, Any]) -> str:
    """Condenses the result of [`scorer_settings`] into one short line."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return f"modeling-xacle {__version__} {digest}"
