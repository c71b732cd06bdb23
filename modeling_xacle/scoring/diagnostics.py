"""Describes a model (`xacle info`) and checks this installation (`xacle doctor`)."""

import json
import os
import platform
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from huggingface_hub import ModelCardData
from packaging.requirements import Requirement
from transformers import AutoConfig, PreTrainedConfig, pipeline
from transformers.utils import logging

from .. import __version__
from ..checkpoints.loading import load_part
from ..checkpoints.provenance import commit_of, made_from, read_card
from ..configuration_xacle import STAGES, BeatsConfig, ScoringConfig, XacleConfig
from ..installation import torchaudio_problem
from ..modeling_xacle import XaclePreTrainedModel
from ..waveforms_xacle import audio_engine
from .options import TableOptions
from .scorer import load_scorer, scorer_settings, scorer_signature

logger = logging.get_logger(__name__)

BUNDLED_MODEL = Path(__file__).parents[1] / "checkpoints" / "xacle-tiny"
EXPECTED_FILE = "doctor.json"
# On the 0-10 scale. Processors differ by some 1e-5, in bfloat16 by more; after a mistake, scores are off by points.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.25}
GIGABYTE = 2**30

# ---------------------------------------------------------------------------------------------------------------------
# xacle info


def model_info(name: str, revision: str | None = None) -> dict[str, Any]:
    """
    Returns what a model's folder says about it.

    Args:
        name (`str`): Folder or Hub id.
        revision (`str`, *optional*): Revision of a Hub id.

    Returns:
        Ready for JSON: `model`, `revision` (the commit on the Hub), `architecture`, `parameters` of each part, `dtype`
        of the weights, `training_stage`, `calibration`, `input` (what a clip and a caption become), `parts` (source and
        licence of what it was built from), `card` (licence, base model and data, as the card says), `metrics` of the
        card's model index, and the `signature` that `xacle score --signature` gives scores by default.

    Raises:
        OSError: There is no such model, or it has no processor.
        ValueError: The model is of another kind, or its card is broken.
    """
    config = load_part(AutoConfig, name, revision)
    if not isinstance(config, ScoringConfig):
        raise ValueError(f"{name}: a model of type {config.model_type}, not {XacleConfig.model_type}.")
    align = load_scorer(name, "cpu", revision=revision)
    card, extractor = read_card(name, revision), align.processor.feature_extractor
    return {
        "model": name,
        "revision": commit_of(name, revision),
        "architecture": describe_architecture(config),
        "parameters": count_parameters(align.model),
        "dtype": str(config.dtype).removeprefix("torch."),
        "training_stage": describe_stage(config.training_stage),
        "calibration": {
            "scale": config.calibration_scale,
            "offset": config.calibration_offset,
            "applied": config.apply_calibration,
        },
        "input": {
            "sampling_rate": extractor.sampling_rate,
            "seconds": extractor.max_seconds,
            "audio_tokens": 1 if getattr(config, "takes_summary", False) else config.num_audio_tokens,
            "text_tokens": align.processor.max_text_tokens,
        },
        "parts": made_from(config),
        "card": describe_card(card),
        "metrics": card_metrics(card),
        "signature": scorer_signature(scorer_settings(align, TableOptions())),
    }


def describe_architecture(config: ScoringConfig) -> str:
    """Returns the kind and size of each part, in one line."""
    audio, text = map(_describe_tower, (config.audio_config, config.text_config))
    if not isinstance(config, XacleConfig):
        return f"{audio} and {text} -> projection {config.projection} -> {config.join}"
    return (
        f"{audio} -> SwiGLU projector {config.projector_intermediate_size} -> {text} -> "
        f"score head {config.score_head_hidden_size}"
    )


def _describe_tower(config: PreTrainedConfig) -> str:
    layers = getattr(config, "num_hidden_layers", None)
    size = f"{layers} x {config.hidden_size}" if layers else str(config.hidden_size)
    return f"{'BEATs' if config.model_type == BeatsConfig.model_type else config.model_type} {size}"


def count_parameters(model: XaclePreTrainedModel) -> dict[str, int]:
    """Returns the number of weights of each part and in total; tied weights count where they come first."""
    parts: Counter[str] = Counter()
    for name, weight in model.named_parameters():
        parts[name.split(".")[0]] += weight.numel()
    return {**parts, "total": parts.total()}


def describe_stage(stage: int) -> str:
    """Returns the last training stage in words."""
    return f"{stage}: {STAGES[stage]}" if stage in STAGES else f"{stage}: none, the score head is random"


def describe_card(card: ModelCardData | None) -> dict[str, Any] | None:
    """Returns a card's licence, base model and data; `None` without a card."""
    return card and {name: getattr(card, name) for name in ("license", "base_model", "datasets")}


def card_metrics(card: ModelCardData | None) -> list[dict[str, Any]]:
    """Returns `metric`, `value`, `interval` (95 %, or `None`), `dataset` and `split` of each of a card's metrics."""
    return [
        {
            "metric": result.metric_name or result.metric_type,
            "value": result.metric_value,
            "interval": (result.metric_args or {}).get("interval"),
            "dataset": result.dataset_name,
            "split": result.dataset_split,
        }
        for result in (card and card.eval_results) or []
    ]


def info_lines(info: Mapping[str, Any]) -> Iterator[str]:
    """Yields the result of `model_info` as lines for people."""
    for name in ("model", "revision", "architecture", "dtype", "training_stage"):
        if info[name] is not None:
            yield f"{name.replace('_', ' ')}: {info[name]}"
    counts = [f"{name} {count:,}" for name, count in info["parameters"].items()]
    yield f"parameters: {', '.join(counts)}"
    calibration = info["calibration"]
    applied = "" if calibration["applied"] else ", not applied"
    yield f"calibration: scale {calibration['scale']:.4g}, offset {calibration['offset']:.4g}{applied}"
    yield "input: {seconds:g} s at {sampling_rate} Hz, {audio_tokens} audio tokens, {text_tokens} text tokens".format(
        **info["input"]
    )
    for part in info["parts"]:
        yield f"{part['part']}: from {part['source']}, licence {part['licence']}"
    yield from card_lines(info)
    yield f"signature: {info['signature']}"


def card_lines(info: Mapping[str, Any]) -> Iterator[str]:
    """Yields what the card says as lines for people."""
    if info["card"] is None:
        yield "card: none"
        return
    for name, value in info["card"].items():
        listed = ", ".join(value) if isinstance(value, list) else value
        yield f"{name.replace('_', ' ')}: {listed or 'not told by the card'}"
    for metric in info["metrics"]:
        interval = " (95 %: {:.4g} to {:.4g})".format(*metric["interval"]) if metric["interval"] else ""
        yield f"{metric['metric']}: {metric['value']}{interval} on {metric['dataset']}, {metric['split']}"


# ---------------------------------------------------------------------------------------------------------------------
# xacle doctor


def noise(num_samples: int) -> np.ndarray:
    """Returns hashed indices `(num_samples,)` in [-1, 1): they look random and are the same everywhere."""
    values = np.arange(num_samples, dtype=np.uint32) * np.uint32(2654435761)
    values = (values ^ (values >> np.uint32(15))) * np.uint32(2246822519)
    return (values ^ (values >> np.uint32(13))) / 2.0**31 - 1


def sine(frequency: float, num_samples: int, sampling_rate: int) -> np.ndarray:
    """Returns a tone of shape `(num_samples,)` in [-1, 1]."""
    return np.sin(2 * np.pi * frequency * np.arange(num_samples) / sampling_rate)


def self_check_inputs() -> list[dict[str, Any]]:
    """Returns three made clips with a caption each: one is padded, one fits, one is resampled, mixed down and cut."""
    short = 0.4 * sine(440, 48_000, 16_000) + 0.02 * noise(48_000)
    whole = 0.3 * noise(160_000)
    left = 0.3 * sine(1_000, 529_200, 44_100) + 0.05 * noise(529_200)
    return [
        {"audio": short.astype(np.float32), "text": "A steady tone", "sampling_rate": 16_000},
        {"audio": whole.astype(np.float32), "text": "Rain falls on a roof", "sampling_rate": 16_000},
        {
            "audio": np.stack([left, 0.5 * left[::-1]]).astype(np.float32),
            "text": "A dog barks twice",
            "sampling_rate": 44_100,
        },
    ]


def self_check_scores(folder: Path, dtype: str, device: str) -> list[float]:
    """Returns the scores of [`self_check_inputs`] by a model that is loaded in a dtype on a device."""
    align = pipeline("audio-text-alignment", model=str(folder), dtype=dtype, device=device)
    return [round(align(pair)["score"], 6) for pair in self_check_inputs()]


def write_expected(folder: Path = BUNDLED_MODEL) -> Path:
    """
    Write the scores that the self-check expects, in each dtype, beside a model. Call it whenever the bundled model is
    replaced. The scores are computed on the CPU.

    Returns:
        The file.
    """
    scores = {dtype: self_check_scores(folder, dtype, "cpu") for dtype in TOLERANCES}
    file = folder / EXPECTED_FILE
    file.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    return file


def self_check(folder: Path = BUNDLED_MODEL) -> list[dict[str, Any]]:
    """
    Compare the scores of three clips with those expected: in float32 on the CPU, and in bfloat16 where a GPU supports
    it.

    Returns:
        One dict per dtype: `dtype`, `device`, `scores`, `expected`, and `problem` ("" if they agree).
    """
    expected = json.loads((folder / EXPECTED_FILE).read_text(encoding="utf-8"))
    places = {"float32": "cpu"}
    if torch.cuda.is_available() and torch.cuda.is_bf16_supported():
        places["bfloat16"] = "cuda"
    return [check_dtype(folder, dtype, device, expected[dtype]) for dtype, device in places.items()]


def check_dtype(folder: Path, dtype: str, device: str, expected: list[float]) -> dict[str, Any]:
    """Returns the result for one dtype; an error becomes its `problem` and does not end the check."""
    scores: list[float] = []
    try:
        scores = self_check_scores(folder, dtype, device)
        worst = float(np.abs(np.subtract(scores, expected)).max())
        problem = "" if worst <= TOLERANCES[dtype] else f"a score is off by {worst:.3g}, more than {TOLERANCES[dtype]}"
    except Exception as error:
        logger.warning("The self-check failed.", exc_info=True)
        problem = f"{type(error).__name__}: {error}"
    return {"dtype": dtype, "device": device, "scores": scores, "expected": expected, "problem": problem}


def required_packages() -> list[str]:
    """Returns the names of the packages that this one needs, without extras, from its installed metadata."""
    requirements = map(Requirement, requires("modeling-xacle") or ())
    return [needed.name for needed in requirements if needed.marker is None or needed.marker.evaluate({"extra": ""})]


def package_versions() -> dict[str, str]:
    """Returns the version of each needed package, or `missing`; where this one runs uninstalled, it is missing."""
    found = {}
    try:
        names = required_packages()
    except PackageNotFoundError:
        names = ["modeling-xacle"]
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def devices() -> list[str]:
    """Describes the devices that models can run on."""
    found = [
        f"cpu: {os.cpu_count()} cores, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append(f"cuda:{index}: {properties.name}, {properties.total_memory / GIGABYTE:.0f} GiB")
    return found + (["mps"] if torch.backends.mps.is_available() else [])


def diagnose() -> dict[str, Any]:
    """Returns versions, devices and the self-check, ready for JSON; `healthy` says whether all is well."""
    packages, checks, torchaudio = package_versions(), self_check(), torchaudio_problem()
    problems = [torchaudio, *(check["problem"] for check in checks)]
    return {
        "healthy": "missing" not in packages.values() and not any(problems),
        "modeling-xacle": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "libsndfile": soundfile.__libsndfile_version__,
        "audio_engine": audio_engine(),
        "torchaudio_problem": torchaudio,
        "cuda": torch.version.cuda,
        "devices": devices(),
        "self_check": checks,
    }


def report_lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields the result of `diagnose` as a block to paste into a bug report."""
    yield "```text"
    for name in ("modeling-xacle", "python", "platform", "libsndfile", "audio_engine", "cuda"):
        yield f"{name.replace('_', ' ')} {report[name]}"
    yield ", ".join(f"{name} {number}" for name, number in report["packages"].items())
    if report["torchaudio_problem"]:
        yield f"FAILED, {report['torchaudio_problem']}"
    yield from report["devices"]
    for check in report["self_check"]:
        verdict = f"FAILED, {check['problem']}" if check["problem"] else "passed"
        yield f"self-check in {check['dtype']} on {check['device']}: {verdict}"
        yield f"  scores {check['scores']}, expected {check['expected']}"
    yield "all is well" if report["healthy"] else "something is wrong"
    yield "```"
