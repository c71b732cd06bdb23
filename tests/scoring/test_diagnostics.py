"""`xacle info` tells what a model is; `xacle doctor` finds out whether an installation works."""

import configparser
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import PARITY, ROOT
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from modeling_xacle import installation
from modeling_xacle.scoring import diagnostics
from modeling_xacle.waveforms_xacle import audio_engine

SETUP = ROOT / "setup.cfg"


@pytest.fixture(scope="module")
def described(model_folder, tmp_path_factory):
    """A model with a card that tells a metric with its interval."""
    folder = tmp_path_factory.mktemp("described") / "model"
    shutil.copytree(model_folder, folder)
    srcc = EvalResult(
        task_type="audio-text-alignment",
        dataset_type="xacle",
        dataset_name="XACLE",
        dataset_split="validation",
        metric_type="spearmanr",
        metric_name="SRCC",
        metric_value=0.67,
        metric_args={"interval": [0.64, 0.7], "confidence": 0.95},
    )
    data = ModelCardData(model_name="model", license="mit", base_model="a/b", eval_results=[srcc])
    ModelCard(f"---\n{data.to_yaml()}\n---\n").save(folder / "README.md")
    return folder


@pytest.mark.parametrize(
    ("command", "words"), [("info", ["--revision", "--json"]), ("doctor", ["--json", "bug report"])]
)
def test_help(command, words, xacle):
    text = xacle(command, "--help")
    assert all(word in text for word in words)
    assert "--write" not in text


def test_info_as_json(described, model, xacle):
    info = json.loads(xacle("info", described, "--json"))
    assert info["parameters"]["total"] == sum(weight.numel() for weight in model.parameters())
    assert set(info["parameters"]) == {"audio_tower", "projector", "language_model", "score_head", "total"}
    assert (info["dtype"], info["training_stage"], info["revision"]) == ("float32", "3: listeners' scores", None)
    assert info["input"] == {"sampling_rate": 16000, "seconds": 10, "audio_tokens": 100, "text_tokens": 256}
    assert info["parts"][1] == {"part": "language model", "source": "llm", "licence": "unknown"}
    assert info["card"] == {"license": "mit", "base_model": "a/b", "datasets": None}
    metric = {"metric": "SRCC", "value": 0.67, "interval": [0.64, 0.7], "dataset": "XACLE", "split": "validation"}
    assert info["metrics"] == [metric]


def test_info_as_text(described, xacle):
    lines = xacle("info", described).splitlines()
    assert lines[0] == f"model: {described}"
    assert "SRCC: 0.67 (95 %: 0.64 to 0.7) on XACLE, validation" in lines
    assert "calibration: scale 1, offset 0" in lines
    assert "license: mit" in lines


def test_the_signature_is_that_of_the_scores(model_folder, tmp_path, xacle):
    table, output = tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl"
    table.write_text(json.dumps({"audio": str(PARITY / "wav" / "b_16k_3s.wav"), "text": "beep"}))
    xacle("score", table, "-o", output, "--model", model_folder, "--signature", "--device", "cpu")
    signature = json.loads(output.read_text())["signature"]
    assert diagnostics.model_info(str(model_folder))["signature"] == signature


def test_the_signature_knows_the_weights(described, model, tmp_path):
    model.score_head.layers[-1].bias.data += 1e-3
    shutil.copytree(described, tmp_path / "other")
    model.save_pretrained(tmp_path / "other")
    one, other = (diagnostics.model_info(str(folder))["signature"] for folder in (described, tmp_path / "other"))
    assert one != other


def test_info_without_a_card_and_of_other_models(described, tmp_path, xacle):
    shutil.copytree(described, tmp_path / "bare")
    (tmp_path / "bare" / "README.md").unlink()
    assert "card: none" in xacle("info", tmp_path / "bare").splitlines()
    assert "a model of type qwen2, not xacle" in xacle("info", PARITY / "llm", expect=1)
    assert xacle("info", tmp_path / "none", expect=1).startswith("error: ")


def test_the_bundled_model_gives_the_committed_scores(xacle):
    """If this fails after the bundled model was replaced: `xacle doctor --write`."""
    block = xacle("doctor").splitlines()
    assert (block[0], block[-2], block[-1]) == ("```text", "all is well", "```")
    assert "self-check in float32 on cpu: passed" in block
    report = json.loads(xacle("doctor", "--json"))
    assert report["healthy"]
    assert len(set(report["self_check"][0]["scores"])) == 3


def test_other_weights_are_found_out(model_folder, model, tmp_path):
    shutil.copytree(model_folder, tmp_path / "model")
    diagnostics.write_expected(tmp_path / "model")
    assert diagnostics.self_check(tmp_path / "model")[0]["problem"] == ""
    model.score_head.layers[-1].bias.data += 1e-3
    model.save_pretrained(tmp_path / "model")
    assert "a score is off by 0.005, more than 0.001" in diagnostics.self_check(tmp_path / "model")[0]["problem"]
    (tmp_path / "model" / "model.safetensors").write_bytes(b"no weights")
    assert "Error" in diagnostics.self_check(tmp_path / "model")[0]["problem"]


def test_a_failed_self_check_ends_with_exit_code_1(xacle, monkeypatch, capsys):
    monkeypatch.setitem(diagnostics.TOLERANCES, "float32", -1.0)
    xacle("doctor", expect=1)
    report = diagnostics.diagnose()
    assert not report["healthy"]
    assert any("FAILED, a score is off by" in line for line in diagnostics.report_lines(report))


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(diagnostics, "requires", lambda name: ["numpy >= 2", "no-such-package", "other; extra == 'x'"])
    report = diagnostics.diagnose()
    assert report["packages"] == {"numpy": np.__version__, "no-such-package": "missing"}
    assert not report["healthy"]


@pytest.fixture
def broken_torchaudio(tmp_path, monkeypatch):
    """An installed torchaudio whose import raises what it is told to."""

    def make(code):
        metadata = tmp_path / "torchaudio-9.9.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text("Metadata-Version: 2.1\nName: torchaudio\nVersion: 9.9\n")
        (tmp_path / "torchaudio").mkdir()
        (tmp_path / "torchaudio" / "__init__.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(sys.modules, "torchaudio", None)  # to have it back at the end
        del sys.modules["torchaudio"]
        return tmp_path

    return make


def test_the_audio_engine_is_told(xacle):
    assert f"audio engine {audio_engine()}" in xacle("doctor").splitlines()


def test_beside_a_torchaudio_that_does_not_import_the_package_works_and_tells_the_remedy(broken_torchaudio):
    """In a process of its own, where nothing was imported before."""
    path = os.pathsep.join([str(broken_torchaudio("raise RuntimeError('another CUDA')")), str(SETUP.parent)])
    code = """
from modeling_xacle import installation, waveforms_xacle
print(waveforms_xacle.audio_engine(), installation.torchaudio_problem(), sep="|")
"""
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    engine, problem = done.stdout.strip().split("|")
    assert engine == "built-in"
    assert problem.startswith("torchaudio 9.9 is installed but does not import beside torch")
    assert "`pip uninstall torchaudio`" in problem and '"another CUDA"' in problem
    assert problem in done.stderr


def test_beside_a_torchaudio_that_does_not_import_the_command_tells_the_remedy(broken_torchaudio):
    path = os.pathsep.join([str(broken_torchaudio("raise OSError('another library')")), str(SETUP.parent)])
    code = """
import sys, sysconfig
sys.argv = [sysconfig.get_path("scripts") + "/xacle", "doctor"]
from modeling_xacle.cli import main
main()
"""
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 1
    assert "FAILED, torchaudio 9.9 is installed but does not import" in done.stdout
    assert "self-check in float32 on cpu: passed" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_torchaudio_that_does_not_import_is_a_finding(xacle, monkeypatch):
    monkeypatch.setattr(diagnostics, "torchaudio_problem", lambda: "torchaudio does not import")
    monkeypatch.setattr(diagnostics, "self_check", list)
    assert "FAILED, torchaudio does not import" in list(diagnostics.report_lines(diagnostics.diagnose()))
    xacle("doctor", expect=1)


@pytest.mark.parametrize("error", ["ImportError", "OSError", "RuntimeError"])
def test_whatever_a_torchaudio_of_another_torch_raises_is_told(error, broken_torchaudio):
    broken_torchaudio(f"raise {error}('reason')")
    assert '"reason"' in installation.torchaudio_problem.__wrapped__()


def test_other_errors_of_torchaudio_are_not_hidden(broken_torchaudio):
    broken_torchaudio("raise KeyError('a mistake')")
    with pytest.raises(KeyError, match="a mistake"):
        installation.torchaudio_problem.__wrapped__()


def test_all_required_packages_are_named():
    setup = configparser.ConfigParser()
    setup.read(SETUP)
    lines = setup["options"]["install_requires"].split("\n")
    needed = {line.split()[0] for line in lines if line and not line.startswith("#")}
    assert set(diagnostics.required_packages()) == needed


def test_the_clips_of_the_self_check_are_the_same_everywhere():
    values = diagnostics.noise(100_000)
    assert values.min() >= -1 and values.max() < 1
    assert abs(values.mean()) < 0.01 and values.std() == pytest.approx(3**-0.5, rel=0.01)
    np.testing.assert_array_equal(values[:3] * 2**31, [-(2.0**31), -585918430.0, 1425673260.0])
    shapes = [clip["audio"].shape for clip in diagnostics.self_check_inputs()]
    assert shapes == [(48_000,), (160_000,), (2, 529_200)]


def test_architecture_and_stage_in_words(model):
    told = diagnostics.describe_architecture(model.config)
    assert told == "BEATs 3 x 48 -> SwiGLU projector 160 -> qwen2 2 x 64 -> score head 40"
    assert diagnostics.describe_stage(1) == "1: captioning"
    assert diagnostics.describe_stage(0) == "0: none, the score head is random"
