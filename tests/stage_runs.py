"""Short runs of the stages: a dataset that serves them all, and their commands."""

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import ROOT

from modeling_xacle import XacleModel
from modeling_xacle.data.pairs import make_dataset, save_dataset

WORDS = ("rain", "wind", "a dog", "a bell", "an owl", "waves")
TRAIN, VALIDATION = 24, 10
SUBPROCESS_SECONDS = 240


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A dataset with labels that serves every stage: 24 rows to train on, 10 to validate."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(TRAIN + VALIDATION):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.3 * np.sin(np.arange(16000) * 0.01 * (1 + number)) * generator.random(16000), 16000)
        label = float(generator.uniform(-1, 1))
        text = f"The sound of {WORDS[number % len(WORDS)]} {number}"
        row = {"id": str(number), "audio": str(path), "text": text, "label": label, "score": 5 * (label + 1)}
        rows.append({**row, "is_negative": number % 3 == 0})
    splits = {"train": make_dataset(rows[:TRAIN]), "validation": make_dataset(rows[TRAIN:])}
    save_dataset(splits, folder / "dataset")
    return folder / "dataset"


@pytest.fixture(scope="module")
def steady_folder(model_folder, tmp_path_factory):
    """The model without dropout, whose draws differ between runs of different shape."""
    folder = tmp_path_factory.mktemp("steady") / "model"
    model = XacleModel.from_pretrained(model_folder)
    model.config.projector_dropout = model.config.score_head_dropout = 0.0
    model.save_pretrained(folder)
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model_folder / name).read_bytes())
    return folder


def command(stage, pairs, model, output, *more):
    """Arguments of a short run."""
    settings = {"stage": stage, "data": pairs, "model": model, "output_dir": output, "num_train_epochs": 2}
    settings |= {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "report_to": "none", "use_cpu": True}
    return [*(str(part) for name, value in settings.items() for part in (f"--{name}", value)), *map(str, more)]


def every(steps):
    """Evaluate and save after so many steps."""
    return ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", steps, "--save_steps", steps]


def launch(arguments, launcher=(sys.executable,)):
    """Start a run in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*launcher, str(ROOT / "run_stage.py"), *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def launch_two(arguments):
    """Start a run in two processes, as the configuration of accelerate for CPUs has it."""
    config = ROOT / "accelerate_configs/cpu_2_processes.yaml"
    settings = ["--config_file", str(config), "--main_process_port", "0"]
    return launch(arguments, [sys.executable, "-m", "accelerate.commands.launch", *settings])


def finish(process):
    """Wait for a run, which must succeed."""
    _, stderr = process.communicate(timeout=SUBPROCESS_SECONDS)
    assert process.returncode == 0, stderr[-3000:]
