"""Loads any model as one kind of scorer, and identifies it by its settings."""

import hashlib
import json
import os
from collections.abc import Sequence
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
from ..judges.contrastive import ContrastiveTeacher
from ..judges.contrastive_pipeline import ContrastivePipeline
from ..judges.families import FAMILIES
from ..judges.judge_pipeline import JudgePipeline
from ..judges.language_model import DEFAULT_QUESTIONS, LOADERS, LanguageModelPipeline
from ..pipeline_xacle import MODEL_TYPES, AudioTextAlignmentPipeline
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
    map_score: bool = False,
    questions: Sequence[str] | None = None,
) -> AudioTextAlignmentPipeline:
    """
    Loads a scorer, called like the pipeline, from any supported model.

    Args:
        model (`str` or `Path`): Folder or Hub id of a xacle model, of a contrastive model (CLAP, PE-AV), or of an audio
            language model (Qwen2-Audio, Audio Flamingo 3 and what else `AutoModelForMultimodalLM` loads).
        device (`str` or `torch.device`): By default an accelerator (cuda, mps) if there is one, else the CPU.
        dtype (`str`): `"float32"`, `"bfloat16"` or `"float16"`.
        revision (`str`, *optional*): Revision of a Hub id.
        processor (`str` or `Path`, *optional*): Processor of a model, other than xacle, that comes without one.
        map_score (`bool`): Map to 0-10 a contrastive model's cosine, by (cosine + 1) * 5, or a language model's share
            of yes, by 10 * share.
        questions (sequence of `str`, *optional*): What a language model is asked: names of
            [`judges.language_model.QUESTIONS`], or questions with `{caption}` in them. Several are averaged.

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
    asked = kind in LOADERS
    if questions and not asked:
        raise ValueError(f"{model}: --question is for audio language models.")
    if kind in FAMILIES:
        teacher = ContrastiveTeacher.from_pretrained(model, processor, device, revision)
        align = ContrastivePipeline(teacher, map_score, compute_dtype, device=device)
    elif asked:
        options = {"questions": questions or DEFAULT_QUESTIONS, "map_score": map_score, "device": device}
        align = LanguageModelPipeline.from_pretrained(model, processor, revision, compute_dtype, **options)
    elif kind in MODEL_TYPES:
        if map_score or processor:
            raise ValueError(f"{model}: --map-score and --processor are for other models than xacle's.")
        align = _load_xacle(model, device, compute_dtype, revision)
    else:
        kinds = ", ".join([*MODEL_TYPES, *FAMILIES])
        raise ValueError(f"{model}: a model of type {kind}; {kinds} and audio language models can score.")
    # `Pipeline` leaves the model where it is if processes share the work.
    align.model.to(device)
    align.device, align.commit = device, commit
    if kind not in FAMILIES:
        _try(align, model)
    return align


def _load_xacle(
    model: str | Path, device: torch.device, dtype: torch.dtype, revision: str | None
) -> AudioTextAlignmentPipeline:
    """Returns the pipeline of a xacle model; arguments and errors as for [`load_scorer`]."""
    loaded = load_model(AutoModel, model, revision, dtype=dtype)
    processor = load_part(AutoProcessor, model, revision)
    try:
        return pipeline("audio-text-alignment", model=loaded, processor=processor, device=device)
    except ValueError as error:  # the processor belongs to another model
        raise ValueError(f"{model}: {error}") from error


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
