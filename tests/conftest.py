"""Fixtures of the whole suite: the parity checkpoint, converted once, and what is loaded from it."""

import os
import tempfile

# Before torch is imported. The parity features were computed with AVX2 kernels; Kaldi's log-mel has bins near its
# floor where the rounding of other instruction sets shows (AVX-512: up to 6e-3 in 0.2 % of the bins, 5e-6 in scores).
os.environ.setdefault("ATEN_CPU_CAPABILITY", "avx2")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models are tiny: two threads wait for each other
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="xacle-tests-")  # the user's own cache stays as it is

import json
import runpy
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import multiprocessing
from transformers import AutoModel, AutoProcessor, pipeline

from modeling_xacle.checkpoints.conversion_tmu import convert_tmu
from modeling_xacle.cli.main import main

pytest_plugins = ["scored_tables", "stage_runs"]  # their fixtures

ROOT = Path(__file__).parents[1]
PARITY = ROOT / "tests/fixtures/parity"
EXPECTED = json.loads((PARITY / "expected.json").read_text())
SAMPLING_RATE = 16000


def run_script(script, *arguments):
    """Run a script in this process, which has the imports: its exit code, stdout and stderr."""
    with (
        redirect_stdout(StringIO()) as stdout,
        redirect_stderr(StringIO()) as stderr,
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(SystemExit) as end,
    ):
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")
    message = end.value.code if isinstance(end.value.code, str) else ""
    return 1 if message else end.value.code, stdout.getvalue(), stderr.getvalue() + message


def run_processes(function, *arguments, count=2, seconds=60):
    """Run a function of a rank and further arguments in several real processes, to their end."""
    context = multiprocessing.spawn(function, arguments, nprocs=count, join=False)
    try:
        ended = any(context.join(timeout=seconds) for _ in range(count))  # each returns when another process has ended
        assert ended, "the processes did not end"
    finally:
        for process in context.processes:
            process.kill()


def pytest_unconfigure():
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    """The parity checkpoint as a complete folder."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert_tmu(PARITY, folder, llm=str(PARITY / "llm"), beats=PARITY / "beats.pt")
    return folder


@pytest.fixture(scope="session")
def processor(model_folder):
    return AutoProcessor.from_pretrained(model_folder)


@pytest.fixture
def model(model_folder):
    """A fresh model in eval mode."""
    return AutoModel.from_pretrained(model_folder).eval()


@pytest.fixture(scope="session")
def align(model_folder):
    return pipeline("audio-text-alignment", model=str(model_folder), device="cpu")


@pytest.fixture
def noise():
    """Ten different clips of 1 to 10 s, float32 at 16 kHz."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(1, 10, 10).mul(SAMPLING_RATE).int().tolist()
    return [(0.1 * torch.randn(length, generator=generator)).numpy() for length in lengths]


@pytest.fixture
def tone():
    """Two seconds of a 440 Hz tone, float32 at 16 kHz."""
    return 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * SAMPLING_RATE) / SAMPLING_RATE).astype(np.float32)


@pytest.fixture
def xacle(monkeypatch, capsys):
    """Run the command; gives its stdout, or its stderr where it is expected to fail."""

    def run(*arguments, expect=0):
        monkeypatch.setattr(sys, "argv", ["xacle", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code
        captured = capsys.readouterr()
        assert code == expect, captured.err
        return captured.out if expect == 0 else captured.err

    return run
