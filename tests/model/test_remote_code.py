"""A saved folder brings its code: it works where this package is not installed, once that code is trusted."""

import json
import os
import subprocess
import sys

import pytest
from conftest import EXPECTED, PARITY
from transformers import AutoConfig

CLIP = str(PARITY / "wav" / "b_16k_3s.wav")
SCORE = next(
    pair["score_0_10"] for pair in EXPECTED["pairs"] if (pair["wav"], pair["text"]) == ("b_16k_3s.wav", "beep")
)

# `None` makes any import of the package fail, however it is installed here.
STRANGER = """
import json, sys
sys.modules["modeling_xacle"] = None
from transformers import AutoModel, AutoProcessor, pipeline
folder, clip, again = sys.argv[1:]
"""


@pytest.fixture
def stranger(tmp_path):
    """Run code as somebody without this package would, with a cache of their own."""
    home = tmp_path / "home"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}

    def run(code, *arguments):
        command = [sys.executable, "-c", STRANGER + code, *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path, input=""
        )

    return run


def test_a_stranger_gets_the_same_score(stranger, align, model_folder, tmp_path):
    code = """
align = pipeline("audio-text-alignment", model=folder, trust_remote_code=True, device="cpu")
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
align.save_pretrained(again)
resaved = pipeline("audio-text-alignment", model=again, trust_remote_code=True, device="cpu")
model.save_pretrained(again + "2")
processor.save_pretrained(again + "2")
by_parts = pipeline("audio-text-alignment", model=again + "2", trust_remote_code=True, device="cpu")
pair = {"audio": clip, "text": "beep"}
modules = [type(part).__module__.split(".")[0] for part in (align, model, processor)]
print(json.dumps([align(pair)["score"], resaved(pair)["score"], by_parts(pair)["score"], modules]))
"""
    done = stranger(code, model_folder, CLIP, tmp_path / "again")
    assert done.returncode == 0, done.stderr
    score, resaved, by_parts, modules = json.loads(done.stdout.splitlines()[-1])
    assert modules == ["transformers_modules"] * 3
    assert score == resaved == by_parts == pytest.approx(align({"audio": CLIP, "text": "beep"})["score"], abs=1e-6)
    assert score == pytest.approx(SCORE, abs=1e-4)


def test_remote_code_has_to_be_trusted(stranger, model_folder):
    done = stranger("AutoModel.from_pretrained(folder, trust_remote_code=False)", model_folder, CLIP, "unused")
    assert done.returncode != 0
    assert "trust_remote_code=True" in done.stderr


def test_at_home_no_trust_is_needed(model_folder):
    config = AutoConfig.from_pretrained(model_folder)
    assert type(config).__module__ == "modeling_xacle.configuration_xacle"
    assert not getattr(config, "custom_pipelines", {})
    assert "audio-text-alignment" in json.loads((model_folder / "config.json").read_text())["custom_pipelines"]
