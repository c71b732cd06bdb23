"""Model folders that are broken, incomplete or of another kind: one sentence says what they are, and no code runs."""

import json
import shutil

import pytest
import torch
from conftest import PARITY
from safetensors.torch import load_file, save_file

from modeling_xacle import DEFAULT_MODEL

WEIGHTS = "model.safetensors"


@pytest.fixture
def clip():
    return PARITY / "wav" / "b_16k_3s.wav"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(DEFAULT_MODEL, tmp_path / "model")


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


BROKEN = {
    "empty": (lambda f: (f / WEIGHTS).write_bytes(b""), "model.safetensors: is empty: download it again"),
    "cut short": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:999]), "is cut short or broken"),
    "a web page": (lambda f: (f / WEIGHTS).write_text("<!DOCTYPE html>"), "is a web page: download the file itself"),
    "a pointer": (lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "model: cannot be loaded"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json, so it is not a model's folder"),
    "half a config": (lambda f: (f / "config.json").write_text('{"model_type": "xac'), "model: cannot be loaded"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "model: Model and processor differ"),
    "another kind": (lambda f: change(f / "config.json", model_type="bert"), "a model of type bert"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_named_in_one_sentence(kind, folder, xacle, clip):
    breaks, said = BROKEN[kind]
    breaks(folder)
    for command in (["score", "--audio", clip, "--text", "a"], ["rank", clip, "--text", "a"]):
        message = xacle(*command, "--model", folder, expect=1)
        assert said in message.splitlines()[-1]
        assert "model" in message and "Traceback" not in message


def test_missing_weights_are_not_replaced_by_random_ones(folder, xacle, clip):
    weights = load_file(folder / WEIGHTS)
    name = next(name for name in weights if name.startswith("score_head"))
    save_file({key: value for key, value in weights.items() if key != name}, folder / WEIGHTS, {"format": "pt"})
    message = xacle("score", "--audio", clip, "--text", "a", "--model", folder, expect=1)
    assert f"1 weights are missing or of another shape and would be random ({name})" in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/stag3/x/y", "there is no such folder."),
        ("xacle-tmy", "there is no such folder, and no model of this name could be had from the Hub."),
    ],
)
def test_a_mistyped_path_is_named(name, said, xacle, clip):
    message = xacle("score", "--audio", clip, "--text", "a", "--model", name, expect=1)
    assert message.splitlines()[-1] == f"error: {name}: {said}"


def test_a_broken_model_of_the_hub_is_not_called_missing(folder, tmp_path, monkeypatch, xacle, clip):
    commit = "0" * 40
    cached = tmp_path / "hub" / "models--org--model"
    shutil.copytree(folder, cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("transformers.utils.hub.TRANSFORMERS_CACHE", str(tmp_path / "hub"), raising=False)
    command = ["score", "--audio", clip, "--text", "a", "--model", "org/model"]
    xacle(*command)
    (cached / "snapshots" / commit / WEIGHTS).write_bytes(b"half")
    assert "org/model: cannot be loaded" in xacle(*command, expect=1)
    assert "no model of this name and revision v9" in xacle(*command, "--revision", "v9", expect=1)


def test_code_that_comes_with_a_model_never_runs_and_nobody_is_asked(folder, xacle, clip, tmp_path):
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    change(folder / "config.json", model_type="planted", auto_map=auto_map)
    message = xacle("score", "--audio", clip, "--text", "a", "--model", folder, expect=1)
    assert "comes with code of its own, which is not run here" in message
    change(folder / "config.json", model_type="xacle", auto_map=auto_map)  # our own class is taken
    float(xacle("score", "--audio", clip, "--text", "a", "--model", folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_never_printed(value, folder, xacle, clip, tmp_path):
    weights = load_file(folder / WEIGHTS)
    name = max(name for name in weights if name.startswith("score_head") and name.endswith("weight"))
    save_file({**weights, name: torch.full_like(weights[name], value)}, folder / WEIGHTS, {"format": "pt"})
    (tmp_path / "texts.txt").write_text("a\nb\n")
    for command in (
        ["score", "--audio", clip, "--text", "a"],
        ["score", "--audio", clip, "--text", "a", "--json"],
        ["rank", clip, "--text", "a"],
        ["matrix", clip, "--texts", tmp_path / "texts.txt"],
    ):
        assert "the score is not a finite number" in xacle(*command, "--model", folder, expect=1)
