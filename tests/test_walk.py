"""The commands of docs/walk.md, one after another, with smaller numbers."""

import json
import re
import runpy
import shlex
import sys

import pytest
from conftest import ROOT

import run_stage
from modeling_xacle.cli.main import main
from modeling_xacle.data.pairs import load_pairs
from modeling_xacle.data.tables import read_table

WALK = (ROOT / "docs" / "walk.md").read_text(encoding="utf-8")

# The last of an option that is given twice counts.
FEW_STEPS = "--num_train_epochs 1 --per_device_train_batch_size 8 --use_cpu true --report_to none"
SMALLER = {
    "synthesize.py": "--clips 60 --rated-train 16 --rated-validation 8 --rated-test 8 --workers 1",
    "train_teacher.py": "--epochs 1",
    "train_parts.py": "--beats-epochs 1 --llm-epochs 1 --min-clips 2 --beats-batch-size 8 --vocab-size 300",
    "run_stage.py": FEW_STEPS,
    "evaluate": "--resamples 50",
}


def commands():
    """The lines of the document's shell blocks as arguments."""
    blocks = re.findall(r"```bash\n(.*?)```", WALK, re.DOTALL)
    return [shlex.split(line) for line in "".join(blocks).replace("\\\n", " ").splitlines()]


def run(arguments, monkeypatch):
    """Run a command in this process, which has the imports."""
    name = arguments[1].rsplit("/", 1)[-1]
    monkeypatch.setattr(sys, "argv", [*arguments, *SMALLER.get(name, "").split()][arguments[0] == "python" :])
    try:
        if arguments[0] == "xacle":
            main()
        elif name == "run_stage.py":
            run_stage.main()
        else:
            runpy.run_path(str(ROOT / arguments[1]), run_name="__main__")
    except SystemExit as end:
        assert not end.code, (arguments, end.code)


def test_the_walk_ends_in_a_judged_model(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(ROOT / "dataset_scripts/synthetic"))
    monkeypatch.chdir(tmp_path)
    for arguments in commands():
        run(arguments, monkeypatch)
        assert capsys.readouterr().out.strip(), arguments
    scored = {name: len(load_pairs("data/synthetic/xacle", name)) for name in ("train", "validation", "test")}
    assert len(list(read_table(tmp_path / "scores.csv")[1])) == scored["test"]
    assert (tmp_path / "runs" / "stage3" / "model.safetensors").is_file()
    for stage in (1, 2, 3):
        log = json.loads((tmp_path / "runs" / f"stage{stage}" / "training_log.json").read_text())
        assert log["metrics"]


def test_the_walk_passes_every_stage():
    lines = [" ".join(arguments) for arguments in commands()]
    assert [line.split()[3] for line in lines if "run_stage.py" in line] == ["1", "2", "3"]
    assert lines[-1].startswith("xacle evaluate ")


@pytest.mark.parametrize("script", ["synthesize.py", "train_teacher.py", "label_pairs.py", "train_parts.py"])
def test_the_walk_names_its_scripts(script):
    assert any(
        arguments[1].startswith("dataset_scripts/") and arguments[1].endswith(f"/{script}") for arguments in commands()
    )
