"""
Make a small model from nothing, to be the bundled one: a synthetic corpus, a CLAP teacher and its pseudo-labels, a
pretrained encoder and language model, and the three stages, with the same scripts as for real data.

    python benchmarks/ablation/tiny.py runs/tiny

writes the model to runs/tiny/stage3; install.py puts it into the package. Each step prints its command; finished steps
are skipped, and an interrupted one goes on where it can. runs/tiny/steps records how each step was made and how long
it took; results that were made differently are refused.
"""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from steps import Step, do_steps, record_file, settings_of

from modeling_xacle.checkpoints.building import init_model
from modeling_xacle.cli.endings import plain_endings

ROOT = Path(__file__).parents[2]
# Captioned clips, and as many rated pairs as the challenge has; development replaces its test split.
WORLD = {"clips": 24_000, "rated-train": 7500, "rated-validation": 3000, "rated-development": 3000, "rated-test": 0}
# For the parts from `train_parts.py`: one audio token for two of the encoder's 62 time steps of 160 ms.
CONFIG = {
    "caption_likelihood": True,
    "num_audio_tokens": 31,
    "score_head_hidden_size": 128,
    "score_head_output_size": 64,
}
# A model of 2 M parameters that starts from little needs higher rates and larger batches than the published one.
COMMON = {"cache_audio_features": True, "dataloader_num_workers": 2, "report_to": "none", "save_total_limit": 2}
ALL = "projector score_head language_model"
STAGES: dict[str, dict[str, object]] = {
    "stage1": {"stage": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 16, "num_train_epochs": 3},
    "stage2": {
        "stage": 2,
        "train": ALL,
        "loss": "listnet_mse",
        "temperature": 0.5,
        "caption_weight": 2.0,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 64,
        "max_steps": 5000,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 2500,
        "save_steps": 2500,
    },
    "stage3": {
        "stage": 3,
        "train": ALL,
        "loss": "listnet_mse",
        "temperature": 0.5,
        "learning_rate": 1e-4,
        "per_device_train_batch_size": 32,
        "num_train_epochs": 2,
        "mask_mel_bins": 0,
        "mask_frames": 0,
        "augmented_views": 0,
    },
}
STARTS = {"stage1": "stage0", "stage2": "stage1", "stage3": "stage2"}
CORPUS = "data/synthetic"
DATA = {1: f"{CORPUS}/aac", 2: "data/clap_pseudo", 3: f"{CORPUS}/xacle"}
# By default, glibc gives the memory of large tensors back to the system and asks for it again at every step; and each
# process that prepares sounds should leave the other cores to the others.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "PYTHONPATH": str(ROOT),
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**28),
    "OPENBLAS_NUM_THREADS": "1",
}


def flags(settings: dict[str, object]) -> list[str]:
    """Returns settings as command line arguments."""
    return [part for name, value in settings.items() for part in (f"--{name}", *str(value).split())]


def stage_command(name: str, output: str, model: str, **settings: object) -> list[str]:
    """Returns a stage's command, to run in the work folder, with the bundled model's settings except those given."""
    merged = {**COMMON, **STAGES[name], **settings}
    folders = {"model": model, "data": DATA[merged["stage"]], "output_dir": output, "cache_dir": "cache"}
    return [sys.executable, str(ROOT / "run_stage.py"), *flags({**folders, **merged})]


def script_command(name: str, *arguments: object) -> list[str]:
    """Returns the command of a script in `dataset_scripts/`, to run in the work folder."""
    return [sys.executable, str(ROOT / "dataset_scripts" / name), *map(str, arguments)]


def label_command(output: str, *negatives: object) -> list[str]:
    """Returns the command that makes pseudo-labels for captioned clips, with options for the negatives."""
    teacher = ["--teacher", "teacher", "--embeddings", "data/embeddings", "--num-workers", os.cpu_count() or 1]
    return script_command("label_pairs.py", DATA[1], "-o", output, *teacher, *negatives)


def is_faster_in_bf16(size: int = 1024, repetitions: int = 5) -> bool:
    """Returns True if this machine multiplies matrices faster in bfloat16 than in float32, as GPUs and some CPUs do."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(size, size, dtype=dtype, device=device)
        times = []
        for _ in range(repetitions):
            start = time.perf_counter()
            (matrix @ matrix).sum().item()  # waits for the device
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    return seconds[1] < seconds[0]


def steps() -> Iterator[tuple[str, list[str]]]:
    """Yields each step's result in the work folder and its command, in order."""
    common = ["--num-workers", os.cpu_count() or 1, *(["--bf16"] if is_faster_in_bf16() else [])]
    teacher = ["-o", "teacher", "--epochs", 2, "--batch-size", 64]
    parts = ["-o", "parts", "--beats-epochs", 5, "--beats-batch-size", 32, "--llm-epochs", 1]
    yield CORPUS, script_command("synthetic/synthesize.py", "-o", CORPUS, *flags(WORLD))
    yield "teacher", script_command("synthetic/train_teacher.py", DATA[1], *teacher, *common)
    yield DATA[2], label_command(DATA[2], "--negatives", 2, "--hard", 1, "--hard-pool", 1000)
    yield "parts", script_command("synthetic/train_parts.py", DATA[1], *parts, *common)
    for name, start in STARTS.items():
        yield f"{name}/README.md", stage_command(name, name, start)


def run(command: list[str], work: Path) -> None:
    """Print one of this project's commands and run it in the work folder; its output goes to stderr."""
    typer.echo(f"+ {shlex.join(command)}", err=True)
    environment = {**os.environ, **ENVIRONMENT}
    if subprocess.run(command, env=environment, cwd=work, stdout=sys.stderr, check=False).returncode:
        raise typer.Exit(1)


def make_start(work: Path) -> None:
    """Build the untrained model from the parts."""
    with contextlib.chdir(work):  # cards name the parts by these paths
        init_model("parts/beats", "parts/llm", "stage0", **CONFIG)


def command_step(result: str, command: list[str], work: Path) -> Step:
    """Returns the step that runs one of this project's commands in the work folder."""
    return Step(result, settings_of(command), partial(run, command, work))


def plan(work: Path) -> list[Step]:
    """Returns all steps, in order."""
    commands = [command_step(*step, work) for step in steps()]
    start = Step("stage0/processor_config.json", ["init_model", "parts", json.dumps(CONFIG)], partial(make_start, work))
    return [*commands[: -len(STARTS)], start, *commands[-len(STARTS) :]]


def minutes(work: Path, steps: list[Step]) -> float:
    """Returns how long the steps took, according to their records."""
    records = [json.loads(record_file(work, step.folder).read_text()) for step in steps]
    return sum(record.get("seconds", 0.0) for record in records) / 60


def main(
    work: Annotated[Path, typer.Argument(help="Folder for everything that is made.")] = Path("runs/tiny"),
) -> None:
    """Make the bundled model from nothing."""
    work = work.absolute()
    steps = plan(work)
    do_steps(work, steps)
    typer.echo(f"made in {minutes(work, steps):.0f} minutes, the sum of its steps (of resumed ones, the last part)")
    typer.echo(work / "stage3")


if __name__ == "__main__":
    with plain_endings():
        typer.run(main)
