"""Loads any model as one kind of scorer."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline

from .. import DEFAULT_MODEL
from ..checkpoints.fingerprints import digest_of, processor_settings, without_bookkeeping
from ..checkpoints.loading import CONFIG_FILE, find_file, load_model, load_part
from ..checkpoints.provenance import commit_of
from ..data.files import file_digest
from ..pipeline_xacle import MODEL_TYPES, AudioTextAlignmentPipeline
from .contrastive import ContrastiveTeacher
from .contrastive_pipeline import ContrastivePipeline
from .ensemble import ENSEMBLE, XacleEnsembleConfig
from .families import FAMILIES
from .language_model import DEFAULT_QUESTIONS, LOADERS, LanguageModelPipeline

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHT_SUFFIXES = (".safetensors", ".bin")


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
            language model (Qwen2-Audio, Audio Flamingo 3 and what else `AutoModelForMultimodalLM` loads); or folder of
            an ensemble of these.
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
    elif kind in (*MODEL_TYPES, ENSEMBLE):
        if map_score or processor:
            raise ValueError(f"{model}: --map-score and --processor are for other models than xacle's.")
        align = _load_own(model, device, compute_dtype, revision)
    else:
        kinds = ", ".join([*MODEL_TYPES, *FAMILIES])
        raise ValueError(f"{model}: a model of type {kind}; {kinds} and audio language models can score.")
    # `Pipeline` leaves the model where it is if processes share the work.
    align.model.to(device)
    align.device, align.commit = device, commit
    if kind not in FAMILIES:
        _try(align, model)
    return align


def _load_own(
    model: str | Path, device: torch.device, dtype: torch.dtype, revision: str | None
) -> AudioTextAlignmentPipeline:
    """Returns the pipeline of a xacle model or an ensemble; arguments and errors as for [`load_scorer`]."""
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


def member_fingerprint(scorer: AudioTextAlignmentPipeline, model: str | Path, revision: str | None = None) -> str:
    """
    Returns the SHA-256 of a member's files of weights, configuration and processor, whatever type it computes in.

    Args:
        scorer (`AudioTextAlignmentPipeline`): The member, loaded.
        model (`str` or `Path`): The folder or Hub id that it was loaded from.
        revision (`str`, *optional*): Revision of the Hub id.
    """
    folder = Path(find_file(model, CONFIG_FILE, revision)).parent
    weights = {path.name: file_digest(path) for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES}
    config = without_bookkeeping(scorer.model.config.to_dict())
    return digest_of([weights, config, processor_settings(scorer.processor)])


def check_member(model: str | Path, revision: str | None = None) -> None:
    """Raises `ValueError` if a model, given as for [`load_scorer`], is an ensemble, which cannot be in another."""
    if load_part(AutoConfig, model, revision).model_type == ENSEMBLE:
        raise ValueError(f"{model}: is an ensemble itself; name its members instead.")


def load_members(
    folder: str | Path, config: XacleEnsembleConfig, dtype: str = "float32"
) -> list[AudioTextAlignmentPipeline]:
    """
    Loads the members that an ensemble names, as scorers on the CPU.

    Args:
        folder (`str` or `Path`): The ensemble's folder.
        config (`XacleEnsembleConfig`): Its configuration.
        dtype (`str`): `"float32"`, `"bfloat16"` or `"float16"`.

    Raises:
        ValueError: A member is missing, cannot be loaded, or is not what it was; the message names both.
    """
    scorers = []
    for member in config.members:
        inside = Path(folder) / member["model"]
        model, revision = (inside if inside.is_dir() else member["model"]), member.get("revision")
        try:
            check_member(model, revision)
            scorer = load_scorer(model, "cpu", dtype, revision)
        except ValueError as error:
            raise ValueError(f"{folder}: a member cannot be loaded. {error}") from error
        if member_fingerprint(scorer, model, revision) != member["fingerprint"]:
            raise ValueError(
                f"{folder}: the member {member['model']} has changed since the ensemble was made; put it back, or fit "
                "the ensemble anew."
            )
        member["model"] = str(model)  # wherever the configuration is saved next
        scorers.append(scorer)
    return scorers
