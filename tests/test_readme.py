"""Every command and every example of the README is run, with the fixtures in the place of what has to be downloaded."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from conftest import EXPECTED, PARITY
from test_clap import save_teacher
from transformers import pipeline

import run_stage
from modeling_xacle.cli.main import app, main
from modeling_xacle.data.pairs import load_pairs, make_dataset, save_dataset

ROOT = PARITY.parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STAND_INS = {
    "Atotti/xacle-tmu-2026": str(PARITY),
    "Qwen/Qwen2.5-0.5B-Instruct": str(PARITY / "llm"),
    "BEATs_iter3_plus_AS2M.pt": str(PARITY / "beats.pt"),
    "laion/clap-htsat-unfused": "clap",
}


def blocks(language):
    """Fenced blocks of a language, with stand-ins for downloads."""
    found = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    for name, stand_in in STAND_INS.items():
        found = [block.replace(name, stand_in) for block in found]
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch, model_folder):
    """A working folder with the files the examples name."""
    shutil.copytree(model_folder, tmp_path / "xacle-tmu")
    shutil.copytree(PARITY / "wav", tmp_path / "clips")
    shutil.copy(PARITY / "wav" / "b_16k_3s.wav", tmp_path / "dog.wav")
    pairs = {pair["wav"]: pair["text"] for pair in EXPECTED["pairs"]}  # one a clip
    lines = ["wav_file_name,text", *(f'{name},"{text}"' for name, text in pairs.items())]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    (tmp_path / "captions.txt").write_text("A dog barks\nRain\n")
    for table, column, shift in (("validation_average.csv", "average_score", 0.0), ("other.csv", "score", 0.4)):
        scores = [f"{name},{number + shift * (-1) ** number}" for number, name in enumerate(pairs)]
        (tmp_path / table).write_text("\n".join([f"wav_file_name,{column}", *scores]))
    ratings = [f"{name},{number + extra},{extra}" for number, name in enumerate(pairs) for extra in range(2)]
    (tmp_path / "validation.csv").write_text("\n".join(["wav_file_name,score,listener_id", *ratings]))
    save_teacher(tmp_path / "clap")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_examples_run_one_after_another(folder):
    namespace = {}
    for block in blocks("python"):
        exec(block, namespace)
    assert namespace["output"].scores.shape == (2,)


def test_commands(folder, monkeypatch, capsys):
    commands = [
        shlex.split(line) for block in blocks("bash") for line in block.splitlines() if line.startswith("xacle ")
    ]
    assert {command[1] for command in commands} == {command.name for command in app.registered_commands} | {"convert"}
    for command in commands:
        if command[-2:] == ["-o", "xacle-tmu"]:
            shutil.rmtree(folder / "xacle-tmu")
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        assert exit.value.code == 0, captured.err
        assert captured.out.strip(), command
    assert {"scores.csv", "beats", "runs"} <= {path.name for path in folder.iterdir()}


def make_corpora(folder):
    """The smallest trees that the dataset commands name."""
    (folder / "XACLE_dataset" / "meta_data").mkdir(parents=True)
    (folder / "XACLE_dataset" / "meta_data" / "train_average.csv").write_text(
        "wav_file_name,text,average_score\nb_16k_3s.wav,A dog barks,7.25\n"
    )
    shutil.copytree(PARITY / "wav", folder / "XACLE_dataset" / "wav" / "train")
    (folder / "AudioCaps").mkdir()
    for id, table in ((7, "train.csv"), (8, "val.csv")):
        (folder / table).write_text(f"audiocap_id,youtube_id,start_time,caption\n{id},abcdefghijk,30,A dog barks\n")
        shutil.copy(PARITY / "wav" / "b_16k_3s.wav", folder / "AudioCaps" / f"{id}.wav")


# What makes a command of the README small enough for a test.
SMALLER = {
    "synthesize.py": "--clips 120 --workers 1 "
    + " ".join(f"--rated-{split} 2" for split in ("train", "validation", "development", "test")),
    "train_teacher.py": "--epochs 1",
}


def test_dataset_commands(folder, monkeypatch, capsys):
    make_corpora(folder)
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("python dataset_scripts/")]
    monkeypatch.syspath_prepend(str(ROOT / "dataset_scripts/synthetic"))
    for _, script, *arguments in commands:
        monkeypatch.setattr(sys, "argv", [script, *arguments, *SMALLER.get(Path(script).name, "").split()])
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as exit:
            assert not exit.code, capsys.readouterr().err
    for name, columns in {
        "xacle": {"score", "label"},
        "aac": {"text"},
        "clap_pseudo": {"label", "is_negative"},
    }.items():
        splits = load_pairs(folder / "data" / name)
        assert columns <= set(splits["train"].column_names), name


def test_training_commands(folder, monkeypatch, capsys):
    """The three stages in a row on a few pairs, each as the README starts it but for the launcher."""
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("accelerate launch")]
    assert len(lines) == 4
    rows = [
        {
            "id": str(number),
            "audio": str(folder / "clips" / pair["wav"]),
            "text": f"Sound {number}",
            "label": number / 8,
        }
        for number, pair in enumerate(EXPECTED["pairs"][:8])
    ]
    for name in ("aac", "clap_pseudo", "xacle"):
        save_dataset({split: make_dataset(rows) for split in ("train", "validation")}, folder / "data" / name)
    shutil.copytree(folder / "xacle-tmu", folder / "runs" / "stage0")
    smaller = ["--num_train_epochs", "1", "--per_device_train_batch_size", "4", "--use_cpu", "true"]
    for line in lines[:3]:
        run_stage.main([*shlex.split(line.split("run_stage.py")[1]), *smaller])
    assert (folder / "runs" / "stage3" / "runs").is_dir()  # TensorBoard's
    align = pipeline("audio-text-alignment", model=str(folder / "runs" / "stage3"), device="cpu")
    assert align.model.config.training_stage == 3


def test_setup_commands_are_the_two_that_ci_runs():
    commands = re.findall(r"^pip install .*", README, re.MULTILINE)
    assert len(commands) == 2
    assert "xacle score --audio tests/fixtures" in commands[0]
    assert "pytest" in commands[1]


def test_file_tree_names_every_file():
    tree = README.split("## What is where")[1]
    folders = ("modeling_xacle", "dataset_scripts", "benchmarks")
    for path in [path for folder in folders for path in ROOT.glob(f"{folder}/*.py")]:
        assert path.name in tree or path.name == "__init__.py", path.name
