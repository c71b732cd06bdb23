"""Every command and example of README and guides is run, with fixtures in the place of what has to be downloaded."""

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from conftest import EXPECTED, PARITY, ROOT
from language_models import save_language_model
from teachers import save_pe_teacher, save_teacher, save_text_encoder
from transformers import pipeline

import modeling_xacle
import run_stage
from modeling_xacle import checkpoints, data, evaluation, judges, scoring, training
from modeling_xacle.cli.main import app, main
from modeling_xacle.data.pairs import load_pairs, make_dataset, save_dataset

README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("score", "judge", "models")}
GUIDES |= {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("datasets", "train")}
STAND_INS = {
    "Atotti/xacle-tmu-2026": str(PARITY),
    "Qwen/Qwen2.5-0.5B-Instruct": str(PARITY / "llm"),
    "BEATs_iter3_plus_AS2M.pt": str(PARITY / "beats.pt"),
    "laion/clap-htsat-unfused": "clap",
    "facebook/pe-av-large": "pe-av",
    "Qwen/Qwen2-Audio-7B-Instruct": "qwen2-audio",
    "FacebookAI/roberta-base": "roberta",
    "FacebookAI/roberta-large": "roberta",
}


def blocks(language, text):
    """Fenced blocks of a language in a text, with stand-ins for downloads."""
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
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
    rated = [f'{name},"{text}",{number % 11}' for number, (name, text) in enumerate(pairs.items())]
    (tmp_path / "rated.csv").write_text("\n".join(["wav_file_name,text,average_score", *rated]))
    (tmp_path / "captions.txt").write_text("A dog barks\nRain\n")
    for table, column, shift in (("validation_average.csv", "average_score", 0.0), ("other.csv", "score", 0.4)):
        scores = [f"{name},{number + shift * (-1) ** number}" for number, name in enumerate(pairs)]
        (tmp_path / table).write_text("\n".join([f"wav_file_name,{column}", *scores]))
    ratings = [f"{name},{number + extra},{extra}" for number, name in enumerate(pairs) for extra in range(2)]
    (tmp_path / "validation.csv").write_text("\n".join(["wav_file_name,score,listener_id", *ratings]))
    save_teacher(tmp_path / "clap")
    save_pe_teacher(tmp_path / "pe-av")
    save_language_model(tmp_path / "qwen2-audio")
    save_text_encoder(tmp_path / "roberta")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_examples_run_one_after_another(folder):
    namespace = {}
    for block in blocks("python", GUIDES["score"]):
        exec(block, namespace)
    assert namespace["output"].scores.shape == (2,)


def test_the_first_example_runs_as_printed(monkeypatch):
    monkeypatch.chdir(ROOT)
    [block] = blocks("python", README)
    namespace = {}
    exec(block, namespace)
    told = re.search(r"# \{'score': ([\d.]+)\.\.\.\}", block)[1]
    [example] = re.findall(r"^align\((.*?)\)  # \{'score'", block, re.MULTILINE)
    assert str(eval(f"align({example})", namespace)["score"]).startswith(told)


def test_the_first_command_prints_what_the_readme_shows(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    line = next(line for line in README.splitlines() if line.startswith("pip install . && "))
    monkeypatch.setattr(sys, "argv", shlex.split(line.split(" && ")[1]))
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().out == blocks("text", README)[0]


def commands_of(*texts):
    """The `xacle` commands of texts, in order."""
    lines = [line for text in texts for block in blocks("bash", text) for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("xacle ")]


def test_the_guides_show_every_command():
    shown = {command[1] for command in commands_of(*GUIDES.values())}
    assert shown == {command.name for command in app.registered_commands} | {"convert"}


@pytest.mark.parametrize(
    "text", [GUIDES["score"], GUIDES["judge"], GUIDES["models"], README], ids=lambda text: text[:9]
)
def test_commands(text, folder, monkeypatch, capsys):
    rows = [{"id": "0", "audio": str(folder / "dog.wav"), "text": "A dog barks", "label": 0.5}]
    save_dataset({"train": make_dataset(rows)}, folder / "data" / "xacle")
    for command in commands_of(text):
        if command[-2:] == ["-o", "xacle-tmu"]:
            shutil.rmtree(folder / "xacle-tmu")
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as exit:
            main()
        captured = capsys.readouterr()
        assert exit.value.code == 0, captured.err
        assert captured.out.strip(), command


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
    lines = "".join(blocks("bash", GUIDES["datasets"])).replace("\\\n", " ").splitlines()
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
    lines = [line for block in blocks("bash", GUIDES["train"]) for line in block.splitlines() if "run_stage.py" in line]
    assert len(lines) == 4
    assert [line for block in blocks("bash", README) for line in block.splitlines() if "run_stage" in line] == lines[:3]
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
    assert "xacle score --audio docs/sounds/dog.flac" in commands[0]
    assert "pytest" in commands[1]


DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/results/README.md")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    scripts = re.findall(r"\b(?:python|launch) ((?:dataset_scripts|benchmarks)/[\w/]+\.py)", text)
    assert all((document.parent / link).exists() for link in links), links
    assert all((ROOT / script).is_file() for script in scripts), scripts


def test_the_readme_is_short():
    assert len(README.splitlines()) < 170


def test_the_reference_lists_every_public_name():
    """`docs/api.md` is made of what the rooms show."""
    reference = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: modeling_xacle\.(?:\w+\.)+(\w+)$", reference, re.MULTILINE))
    rooms = [modeling_xacle, checkpoints, data, evaluation, judges, scoring, training]
    assert listed == {name for room in rooms for name in room.__all__ if not name.isupper()} | {"fast_forms"}


def test_contributing_names_files_that_exist():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:\w+/)*\w+\.(?:py|jinja|html\.jinja))`", text):
        assert any((folder / path).exists() for folder in (ROOT, ROOT / "modeling_xacle")), path
    for room in modeling_xacle_rooms():
        assert f"  {room}/" in text


def modeling_xacle_rooms():
    """Names of the folders of code."""
    return [path.parent.name for path in (ROOT / "modeling_xacle").glob("*/__init__.py")]


def test_every_promise_names_tests_that_exist():
    named = re.findall(r"`([\w/]+\.py)::(test_\w+)`", (ROOT / "docs" / "promises.md").read_text())
    assert len(named) > 15
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"
