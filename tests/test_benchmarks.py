"""The commands of the bundled model and of the ablation, and the table that is made of scores."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import pipeline

from modeling_xacle import DEFAULT_MODEL
from modeling_xacle.recipes import parse_arguments

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("tiny"), importlib.import_module("ablation")


def test_every_step_is_a_command_that_its_script_takes(scripts):
    tiny, _ = scripts
    results = []
    for result, (_, script, *arguments) in tiny.steps():
        assert Path(script).is_file()
        results.append(result)
        if script.endswith("run_stage.py"):
            stage, args = parse_arguments(arguments)
            assert f"{args.output_dir}/README.md" == result
            assert stage.model in {"stage0", *(made.split("/")[0] for made in results)}
    assert results[-1] == "stage3/README.md"


def test_every_row_starts_where_another_ends(scripts):
    tiny, ablation = scripts
    ends = {"stage0", *tiny.STAGES, "published/stage0", "published/stage1"}
    for name, runs in ablation.ROWS.items():
        for run in runs:
            assert run.start in ends, name
            parse_arguments(tiny.stage_command(run.stage, run.folder, run.start, **run.settings)[2:])
            ends.add(run.folder)
    assert {ablation.OURS, ablation.RELEASED, *ablation.ENSEMBLE} <= set(ablation.ROWS)


def test_the_released_recipe_is_the_released_one(scripts):
    tiny, ablation = scripts
    (run,) = ablation.ROWS[ablation.RELEASED]
    stage, args = parse_arguments(tiny.stage_command(run.stage, run.folder, run.start, **run.settings)[2:])
    assert (stage.loss, stage.temperature, stage.one_sided, stage.list_scope) == ("listnet", 1.0, True, "local")
    assert (stage.train, stage.augments, args.per_device_train_batch_size) == (["projector", "score_head"], False, 16)


def test_the_table_compares_with_the_released_recipe(scripts):
    _, ablation = scripts
    generator = np.random.default_rng(0)
    truth = generator.random(300)
    references = truth + 0.1 * generator.normal(size=300)
    scores = {
        ablation.RELEASED: truth + generator.normal(size=300),
        ablation.OURS: truth + 0.1 * generator.normal(size=300),
        "truth": truth,
    }
    table = ablation.measure(scores, references, ceiling=0.9)
    released, ours, best = table
    assert released["over the released recipe"] == 0 and released["p"] == 1
    assert ours["SRCC"] - released["SRCC"] == pytest.approx(ours["over the released recipe"])
    assert ours["p"] < 0.01
    assert best["of the ceiling"] == pytest.approx(best["SRCC"] / 0.9)
    assert ablation.as_markdown(table, 300).count("\n|") == 5


def test_the_bundled_model_tells_synthetic_sounds_apart():
    """Of new scenes, the caption of its own against that of another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "dataset_scripts"))
        captions, events = map(importlib.import_module, ("synthesis_captions", "synthesis_events"))
    generator = np.random.default_rng(12345)
    scenes = [events.sample_scene(generator, False) for _ in range(16)]
    sounds = [events.render_clip(scene, generator) for scene in scenes]
    told = [captions.describe(captions.faithful_claim(scene, generator), generator) for scene in scenes]
    align = pipeline("audio-text-alignment", device="cpu")
    rate = events.SAMPLING_RATE
    pairs = [{"audio": sound, "text": [told[i], told[i - 1]]} for i, sound in enumerate(sounds)]
    right, wrong = zip(*([r["score"] for r in align(pair, sampling_rate=rate)] for pair in pairs), strict=True)
    wins = sum(a > b for a, b in zip(right, wrong, strict=True))
    assert wins >= 14
    assert np.mean(right) - np.mean(wrong) > 2


def test_the_bundled_model_is_small():
    folder = Path(DEFAULT_MODEL)
    assert sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".py") < 12e6
    assert {tensor.dtype.itemsize for tensor in load_file(folder / "model.safetensors").values()} == {4}
    assert "synthetic" in (folder / "README.md").read_text().lower()
