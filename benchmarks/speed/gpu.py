"""
Run everything that needs a GPU with one command, in under 25 minutes: the tests that need one, speed in fp32 and bf16,
how far bf16 moves scores, and small runs of the three stages and of a sharded stage.

    python benchmarks/speed/gpu.py OUT
    python benchmarks/speed/gpu.py OUT --list
    python benchmarks/speed/gpu.py OUT --step scores
    python benchmarks/speed/gpu.py OUT --device cpu --smoke

Each step is a process of its own and takes less than nine minutes; its result is kept in OUT, and not made again unless
the code, PyTorch or the device change. When all results are there, they are written to results/speed as one file for
this GPU, with its page and picture, and the table of all processors is updated. No network is needed.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from gpu_steps import STEPS, Settings
from machines import ROOT, code_digest, describe, file_stem
from run import CODE as MEASURING_CODE
from run import DTYPES, RESULTS, Device
from speed_report import update_document, write_pages

from modeling_xacle.data.files import write_json

CODE = (*MEASURING_CODE, "benchmarks/speed/gpu_steps.py", "dataset_scripts/synthetic/*.py", "run_stage.py")
CODE += ("accelerate_configs/fsdp2.yaml", "tests/speed/test_gpu.py", "tests/conftest.py")
LIMIT_SECONDS = 9 * 60
NO_GPU = "No GPU that PyTorch can use; `--device cpu --smoke` tries the steps on the CPU."
Step = StrEnum("Step", [*STEPS])


def conditions(settings: Settings) -> dict[str, Any]:
    """Returns what a step's result depends on."""
    return {"machine": describe(torch.device(settings.device)), "small": settings.small, "code": code_digest(CODE)}


def finished(file: Path, settings: Settings) -> bool:
    """Returns True if a step's result is there, from the same code on the same device."""
    return file.exists() and json.loads(file.read_text())["conditions"] == conditions(settings)


def run_step(name: str, file: Path, settings: Settings) -> None:
    """Run a step in this process and keep its result."""
    start = time.perf_counter()
    result = STEPS[name](settings)
    seconds = time.perf_counter() - start
    write_json(file, {"conditions": conditions(settings), "seconds": seconds, "result": result})


def run_apart(name: str, output: Path, settings: Settings) -> bool:
    """Run a step in its own process, which may take nine minutes; returns True if it succeeded."""
    command = [sys.executable, __file__, str(output), "--step", name, "--device", settings.device]
    command += ["--smoke"] * settings.small
    environment = {"PYTHONPATH": str(ROOT), **os.environ}
    if name != "fsdp" and settings.device == "cuda":
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        return process.wait(LIMIT_SECONDS) == 0
    except subprocess.TimeoutExpired:
        typer.echo(f"{name}: it took longer than {LIMIT_SECONDS // 60} minutes and was stopped.", err=True)
        return False
    finally:
        with contextlib.suppress(ProcessLookupError):  # its children would hold the GPU during the next step
            os.killpg(process.pid, signal.SIGKILL)


def gather(output: Path, results: Path, settings: Settings) -> None:
    """Write the results of all steps as the results of one processor."""
    found = {name: json.loads((output / f"{name}.json").read_text())["result"] for name in STEPS}
    machine = describe(torch.device(settings.device))
    columns = {dtype: found.pop(f"speed-{dtype}") for dtype in DTYPES}
    file = results / f"{file_stem(machine)}.json"
    write_json(file, {"machine": machine, **columns, "checks": found})
    write_pages(results)
    if results == RESULTS:
        update_document(results)
    typer.echo(f"All steps are finished: {file}")


def main(
    output: Annotated[Path, typer.Argument(help="Folder where the result of each step is kept.")],
    step: Annotated[list[Step] | None, typer.Option(help="Only this step, in this process.")] = None,
    show: Annotated[bool, typer.Option("--list", help="List the steps, and whether they are finished.")] = False,
    device: Annotated[Device, typer.Option(help="cpu tries the steps out.")] = Device.cuda,
    smoke: Annotated[bool, typer.Option(help="Small models and a few pairs, on either device.")] = False,
    results: Annotated[Path | None, typer.Option(help="Folder of the results. Default: results/speed.")] = None,
) -> None:
    """Run everything that wants a GPU."""
    if device == Device.cuda and not (show or torch.cuda.is_available()):
        sys.exit(NO_GPU)
    if device == Device.cpu and not smoke:
        raise typer.BadParameter("--device cpu is for trying the steps out: add --smoke.")
    settings = Settings(device.value, smoke)
    files = {name: output / f"{name}.json" for name in STEPS}
    if show:
        for name, file in files.items():
            there = device == Device.cpu or torch.cuda.is_available()
            typer.echo(f"{name}: {'finished' if there and finished(file, settings) else 'to do'}")
        return
    output.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in [chosen.value for chosen in step or Step]:
        if finished(files[name], settings):
            typer.echo(f"{name}: finished earlier")
        elif step:
            run_step(name, files[name], settings)
        elif not run_apart(name, output, settings):
            failed.append(name)
    if failed:
        sys.exit(f"Failed: {', '.join(failed)}. The same command tries them again and keeps the others.")
    if all(finished(file, settings) for file in files.values()):
        gather(output, results or (output / "results" if smoke else RESULTS), settings)


if __name__ == "__main__":
    typer.run(main)
