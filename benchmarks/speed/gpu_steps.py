"""The steps of gpu.py: each takes its settings and returns its part of the results, or raises an error."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from cases import SECTIONS
from measuring import REPETITIONS
from run import DTYPES, measure
from transformers import pipeline
from workbench import Workbench

import run_stage
from modeling_xacle import DEFAULT_MODEL
from modeling_xacle.data.pairs import make_dataset, save_dataset
from modeling_xacle.scoring.diagnostics import TOLERANCES

ROOT = Path(__file__).parents[2]
# What a small run measures.
SMALL_SECTIONS = ("pair", "bf16", "training")
SMALL_TESTS = "spectrograms or one_clip"
# Largest difference between fp32 scores of the CPU and the device, on 0-10, that counts as rounding.
DEVICES_APART = 0.01
LABEL = 0.8  # for a clip's own caption; -0.8 for another's


@dataclass(frozen=True)
class Settings:
    """
    Where the steps run, and how much they do.

    Args:
        device (`str`): `cuda`, or `cpu` to try them out.
        small (`bool`): Small models and a few pairs.
    """

    device: str
    small: bool

    def count(self, number: int) -> int:
        """Returns the number, or a few in a small run."""
        return max(2, number // 32) if self.small else number


def use_fp32() -> None:
    """Turn TF32 off, so that fp32 means fp32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def run_tests(settings: Settings) -> dict[str, Any]:
    """Run the tests marked `gpu`."""
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    chosen = ["-k", SMALL_TESTS] if settings.small else []
    plain = ["-o", "addopts=--strict-markers", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *plain, *map(str, files), *chosen]
    shown = run_command(command, XACLE_TEST_DEVICE=settings.device)
    return {"outcome": shown.strip().splitlines()[-1]}


def run_command(command: list[str], **environment: str) -> str:
    """
    Run a command and return what it printed.

    Raises:
        RuntimeError: It failed.
    """
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:5])} ... failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def speed(settings: Settings, dtype: str) -> dict[str, Any]:
    """Measure the column of a dtype as run.py does."""
    use_fp32()
    results: dict[str, Any] = {}
    sections = [*SMALL_SECTIONS] if settings.small else [*SECTIONS]
    for case in measure(
        settings.device, dtype, sections, results, settings.small, 1 if settings.small else REPETITIONS
    ):
        sys.stderr.write(f"{dtype}: {case}\n")
    return results[dtype]


def scenes(count: int) -> tuple[list[np.ndarray], list[str]]:
    """Make synthetic sounds, int16 `(samples,)` at 16 kHz, each with a true caption."""
    sys.path.append(str(ROOT / "dataset_scripts/synthetic"))
    try:
        import captions
        import events
    finally:
        sys.path.remove(str(ROOT / "dataset_scripts/synthetic"))
    generator = np.random.default_rng(0)
    made = [events.sample_scene(generator, events.split_named("train")) for _ in range(count)]
    sounds = [events.render_clip(scene, generator) for scene in made]
    return sounds, [captions.describe(captions.faithful_claim(scene, generator), generator) for scene in made]


def differences(found: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Returns how far scores `(num_pairs,)` are from expected ones."""
    apart = (found.float().cpu() - expected.float().cpu()).abs()
    return {"largest": apart.max().item(), "mean": apart.mean().item(), "pairs": len(apart)}


def scores(settings: Settings) -> dict[str, Any]:
    """Measure how far scores move from the CPU to the device, and from fp32 to bf16."""
    use_fp32()
    sounds, texts = scenes(settings.count(128))
    pairs = [{"audio": sound, "text": text, "sampling_rate": 16000} for sound, text in zip(sounds, texts, strict=True)]

    def bundled(device: str, dtype: torch.dtype) -> torch.Tensor:
        """Returns scores of the bundled model."""
        align = pipeline("audio-text-alignment", device=device, dtype=dtype)
        return torch.tensor([result["score"] for result in align([dict(pair) for pair in pairs], batch_size=16)])

    fp32 = bundled(settings.device, torch.float32)
    bench = Workbench(torch.device(settings.device), small=settings.small)
    num_pairs = settings.count(64)
    inputs = bench.waveforms(num_pairs), bench.captions(num_pairs)
    found = {
        "device beside CPU, bundled model, fp32": differences(fp32, bundled("cpu", torch.float32)),
        "bf16 beside fp32, bundled model": differences(bundled(settings.device, torch.bfloat16), fp32),
        "bf16 beside fp32, published size, random weights": differences(
            bench.scores(*inputs, dtype=torch.bfloat16), bench.scores(*inputs)
        ),
    }
    if found["device beside CPU, bundled model, fp32"]["largest"] > DEVICES_APART:
        raise RuntimeError(f"Scores of the device are not those of the CPU: {found}")
    return found


@contextmanager
def dataset(settings: Settings) -> Iterator[Path]:
    """Gives a folder with pairs for every stage, in `pairs`: two thirds to train on, one third to validate."""
    sounds, texts = scenes(settings.count(192))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (sound, text) in enumerate(zip(sounds, texts, strict=True)):
            path = folder / f"{number}.wav"
            soundfile.write(path, sound, 16000)
            for suffix, caption, label in (("own", text, LABEL), ("other", texts[number - 1], -LABEL)):
                row = {"id": f"{number}-{suffix}", "audio": str(path), "text": caption, "label": label}
                rows.append({**row, "is_negative": suffix == "other"})
        limit = 2 * len(rows) // 3
        splits = {"train": make_dataset(rows[:limit]), "validation": make_dataset(rows[limit:])}
        save_dataset(splits, folder / "pairs")
        yield folder


def stage_arguments(settings: Settings, stage: int, model: Path | str, folder: Path, output: str) -> list[str]:
    """Returns the arguments of a short run of a stage in the recipe's precision, bf16 on a GPU."""
    steps = settings.count(64)
    options = {
        "stage": stage,
        "model": model,
        "data": folder / "pairs",
        "output_dir": folder / output,
        "max_steps": steps,
        "save_steps": steps,
        "save_strategy": "steps",
        "eval_strategy": "no",
        "load_best_model_at_end": False,
        "patience": 0,
        "logging_steps": 1,
        "per_device_train_batch_size": settings.count(128) if settings.small else 16,
        "report_to": "none",
    }
    if settings.device == "cpu":
        options["use_cpu"] = True
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


def losses(folder: Path) -> dict[str, float]:
    """Returns the first and last loss of a run."""
    (state,) = folder.glob("checkpoint-*/trainer_state.json")
    found = [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]
    return {"first loss": found[0], "last loss": found[-1], "steps": len(found)}


def stages(settings: Settings) -> dict[str, Any]:
    """Run the three stages in a row with run_stage.py, from the bundled model; returns their losses."""
    found = {}
    with dataset(settings) as folder:
        start: Path | str = DEFAULT_MODEL
        for stage in (1, 2, 3):
            run_stage.main(stage_arguments(settings, stage, start, folder, f"stage{stage}"))
            start = folder / f"stage{stage}"
            found[f"stage {stage}"] = losses(start)
    return found


def score_rows(model: Path, folder: Path, device: str) -> torch.Tensor:
    """Returns a model's scores `(num_pairs,)` for some clips of a dataset."""
    align = pipeline("audio-text-alignment", model=str(model), device=device)
    clips = [file for file in sorted(folder.glob("*.wav"))[:16]]
    return torch.tensor([align({"audio": str(clip), "text": "A dog barks while it rains"})["score"] for clip in clips])


def fsdp(settings: Settings) -> dict[str, Any]:
    """
    Run stage 3 sharded over all GPUs (accelerate_configs/fsdp2.yaml), or in one process on a CPU, and unsharded;
    returns the losses of both, and how far their scores differ.
    """
    gpus = torch.cuda.device_count() if settings.device == "cuda" else 1
    config = {**yaml.safe_load((ROOT / "accelerate_configs" / "fsdp2.yaml").read_text()), "num_processes": gpus}
    if settings.device == "cpu":
        config |= {"use_cpu": True, "mixed_precision": "no"}
    with dataset(settings) as folder:
        (folder / "fsdp2.yaml").write_text(yaml.safe_dump(config))
        sharded = stage_arguments(settings, 3, DEFAULT_MODEL, folder, "sharded")
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(folder / "fsdp2.yaml")]
        launch += ["--main_process_port", "0", "run_stage.py"]
        batch = sharded.index("--per_device_train_batch_size") + 1
        sharded[batch] = str(max(1, int(sharded[batch]) // gpus))
        run_command([sys.executable, *launch, *sharded])
        plain = stage_arguments(settings, 3, DEFAULT_MODEL, folder, "plain")
        if gpus == 1:
            run_stage.main(plain)
        else:
            run_command([sys.executable, "run_stage.py", *plain], CUDA_VISIBLE_DEVICES="0")
        apart = [score_rows(folder / name, folder, settings.device) for name in ("sharded", "plain")]
        found = {"processes": gpus, "scores": differences(*apart)}
        found |= {name: losses(folder / name) for name in ("sharded", "plain")}
    if found["scores"]["largest"] > TOLERANCES["bfloat16"]:
        raise RuntimeError(f"The sharded run ends in other scores than the plain one: {found}")
    return found


STEPS: dict[str, Callable[[Settings], dict[str, Any]]] = {
    "tests": run_tests,
    **{f"speed-{dtype}": (lambda settings, dtype=dtype: speed(settings, dtype)) for dtype in DTYPES},
    "scores": scores,
    "stages": stages,
    "fsdp": fsdp,
}
