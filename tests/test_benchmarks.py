"""
The commands of the bundled model, of the ablation and of the speed benchmark: their tables, and that the reference
design, the fast paths and the counted operations are what they are said to be.
"""

import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import EXPECTED, PARITY, run_script
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import pipeline

from modeling_xacle import DEFAULT_MODEL, modeling_fast, modeling_xacle
from modeling_xacle.data import read_table
from modeling_xacle.metrics import alignment_metrics
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


@pytest.fixture(scope="module")
def results():
    return json.loads((ROOT / "benchmarks/results/ablation.json").read_text())["systems"]


def test_the_results_are_those_of_the_stored_scores(results):
    _, rows = read_table(ROOT / "benchmarks/results/ablation_scores.csv")
    rows = [row for _, row in rows]
    references = np.array([float(row["average_score"]) for row in rows])
    assert len(rows) == 2000
    for result in results:
        found = alignment_metrics(np.array([float(row[result["system"]]) for row in rows]), references)
        for metric in ("SRCC", "LCC", "KTAU", "MSE"):
            assert found[metric] == pytest.approx(result[metric], abs=1e-4), result["system"]


def test_the_readme_tells_these_results(results):
    table = (ROOT / "README.md").read_text().split("| system | SRCC [95 %] |")[1].split("\n\n")[0].splitlines()[2:]
    assert len(table) == len(results)
    for line, result in zip(table, results, strict=True):
        told = [float(number) for number in re.findall(r"-?\d*\.?\d+", line.split("|", 2)[2])]
        figures = [result["SRCC"], *result["SRCC interval"], result["of the ceiling"], result["MSE"]]
        assert told[:4] == pytest.approx(figures[:4], abs=6e-4), line
        assert told[4] == pytest.approx(figures[4], abs=6e-3), line


def test_what_the_results_must_show(scripts, results):
    _, ablation = scripts
    table = {result["system"]: result for result in results}
    ours = table[ablation.OURS]
    assert ours["of the ceiling"] >= 0.9
    assert ours["over the released recipe"] > 0 and ours["p"] < 0.01
    for form in ("published sequence", "caption likelihood"):  # pseudo-labels pay
        without, with_labels = table[f"{form}, stage 3 only"], table[f"{form}, stages 2 + 3"]
        assert with_labels["SRCC interval"][0] > without["SRCC interval"][1]


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


# ---------------------------------------------------------------------------------------------------------------------
# Speed


@pytest.fixture(scope="module")
def speed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        names = ("run", "reference", "operations", "workbench", "measuring", "training_steps")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


SPEED_ROWS = {
    "whole pair, batch 1": "whole pair, 1 pairs",
    "whole pair, batch 8": "whole pair, 8 pairs",
    "whole pair, batch 32": "whole pair, 32 pairs",
    "of it the encoder, batch 8": "encoder, 8 clips",
    "of it projector and language model, batch 8": "projector + language model, 8 pairs",
    "a caption, four a clip": "4 captions a clip, 8 captions",
    "a caption, sixteen a clip": "16 captions a clip, 16 captions",
    "pair of a stage 1 step of 8, features stored": "stage 1, step of 8, cached",
    "pair of a stage 2 step of 8, features stored": "stage 2, step of 8, cached",
    "the same, encoder run": "stage 2, step of 8",
    "loading": "loading",
}


@pytest.fixture(scope="module")
def measured():
    """The rows of the stored run of `benchmarks/run.py`, by case."""
    sections = json.loads((ROOT / "benchmarks/results/speed.json").read_text())["cpu fp32"]["sections"]
    return {row["case"]: row for section in sections.values() for row in section["rows"]}


def test_the_documents_tell_the_measured_speed(measured):
    page = (ROOT / "benchmarks/README.md").read_text()
    table = page.split("| | ours | of the limit | reference | ratio |")[1].split("\n\n")[0].splitlines()[2:]
    told = {line.split("|")[1].strip(): [cell.strip(" s%") for cell in line.split("|")[2:6]] for line in table}
    assert told.keys() == SPEED_ROWS.keys()
    for name, cells in told.items():
        row = measured[SPEED_ROWS[name]]
        seconds = [row[form]["seconds"] / row["items"] for form in ("ours", "reference")]
        figures = [seconds[0], 100 * row.get("of the limit", 0), seconds[1], row["times the reference"]]
        for cell, figure in zip(cells, figures, strict=True):
            places = len(cell.partition(".")[2])
            assert float(cell or 0) == pytest.approx(figure, abs=0.51 * 10**-places), name
    ratio = measured["whole pair, 8 pairs"]["times the reference"]
    assert f"{ratio:.1f} times as fast as the published design" in (ROOT / "README.md").read_text()


def test_what_the_speed_must_be(measured):
    pair, captions = measured["whole pair, 8 pairs"], measured["4 captions a clip, 8 captions"]
    assert pair["times the reference"] >= 1.35 and pair["of the limit"] >= 0.8
    assert captions["times the reference"] >= 2
    assert measured["stage 2, step of 8, cached"]["times the reference"] >= 2.3


@pytest.fixture
def published_spectrograms():
    """Skips what computes the reference's spectrograms where torchaudio is missing."""
    pytest.importorskip("torchaudio", reason="the reference's spectrograms need the extra [torchaudio]")


@pytest.fixture(scope="module")
def bench(speed):
    return speed.workbench.Workbench(torch.device("cpu"), small=True)


def test_the_reference_gives_the_published_scores_alone_and_beside_others(speed, model, processor):
    """The longer captions of a batch move the audio of the others: the published scores show it, and so must these."""
    pairs = EXPECTED["pairs"]
    spectrograms = torch.cat(
        [processor.feature_extractor(PARITY / "wav" / pair["wav"])["input_features"] for pair in pairs]
    )
    features = speed.reference.audio_features(model, spectrograms)
    captions = [processor.tokenize_caption(pair["text"])[0][: -len(processor.audio_and_score_ids)] for pair in pairs]
    alone = [
        speed.reference.score(model, [caption], clip[None]).item()
        for caption, clip in zip(captions, features, strict=True)
    ]
    torch.testing.assert_close(alone, [pair["raw"] for pair in pairs], atol=1e-5, rtol=0)


@pytest.mark.usefixtures("published_spectrograms")
def test_the_reference_computes_the_same_spectrogram(speed, bench):
    waveforms = bench.waveforms(3)
    ours, plain = bench.extractor.log_mel(waveforms), speed.reference.log_mel(bench.extractor, waveforms)
    torch.testing.assert_close(ours, plain, atol=2e-3, rtol=0)


@pytest.mark.usefixtures("published_spectrograms")
def test_ours_alone_and_in_a_batch_equals_the_reference_one_by_one(bench):
    waveforms, captions = bench.waveforms(5), bench.captions(5)
    alone = torch.cat([bench.reference_scores(waveforms[i : i + 1], captions[i : i + 1]) for i in range(5)])
    ours = torch.cat([bench.scores(waveforms[i : i + 1], captions[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(ours, alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(bench.scores(waveforms, captions, pass_size=5), alone, atol=1e-4, rtol=0)


def test_fast_and_plain_paths_agree(speed, bench, monkeypatch):
    waveforms, captions = bench.waveforms(4), bench.captions(8)
    monkeypatch.setattr(modeling_fast, "SMALLEST_PRODUCT", 1)
    fast = bench.scores(waveforms, captions)
    bench.model.set_attn_implementation("eager")
    monkeypatch.setattr(modeling_xacle, "CPU_CACHE_BYTES", 1)
    with speed.reference.plain_products():
        plain = bench.scores(waveforms, captions)
    bench.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=0)


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_operations_of_a_pass_are_those_that_run(speed, bench):
    config, operations = bench.config, speed.operations
    bench.model.set_attn_implementation("eager")  # the counter does not know the CPU's fused kernel
    lengths, captions, spectrograms = [12] * 3, [[1] * 12] * 3, bench.extractor.log_mel(bench.waveforms(3))
    features = bench.encode(spectrograms)
    encoder = operations.encoder_products(config, 3, bench.num_frames)
    assert counted(lambda: bench.encode(spectrograms)) == operations.total(encoder)
    front_end = operations.front_end_products(config, 3, bench.num_frames)
    assert counted(lambda: bench.extractor.log_mel(bench.waveforms(3))) == operations.total(front_end)
    text = operations.score_products(config, lengths)
    assert counted(lambda: bench.logits(captions, features)) == operations.total(text)
    bench.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_operations_of_a_step_are_those_that_run(stage, rank, speed, bench, monkeypatch):
    monkeypatch.setattr(bench, "lengths", lambda pairs: [12] * pairs)
    bench.captioner.set_attn_implementation("eager")
    with bench.stage(stage, rank) as model:
        steps = speed.training_steps.TrainingSteps(bench, model, stage, 2).forms()
        steps["ours, cached"]()
        for form, cached in (("ours, cached", True), ("ours", False)):
            products = speed.operations.step_products(bench.config, stage, [12, 12], cached, rank, bench.num_frames)
            assert counted(steps[form]) == speed.operations.total(products), form
    bench.captioner.set_attn_implementation("sdpa")


def test_the_published_size(speed):
    config = speed.workbench.make_config(speed.workbench.make_processor(100))
    with torch.device("meta"):
        model = modeling_xacle.XacleModel(config)
    assert sum(weight.numel() for weight in model.parameters()) == 594_996_849
    operations = speed.operations.total(speed.operations.pair_products(config, [15]))
    assert operations == pytest.approx(186e9, rel=0.01)


@pytest.mark.usefixtures("published_spectrograms")
def test_the_command_measures_everything(speed, tmp_path):
    code, shown, message = run_script(ROOT / "benchmarks/run.py", "--smoke", "-o", tmp_path)
    assert code == 0, message
    results = json.loads((tmp_path / "speed.json").read_text())
    assert set(results["cpu fp32"]["sections"]) == set(speed.run.SECTIONS)
    assert "scale" in results
    for section in results["cpu fp32"]["sections"].values():
        for row in section["rows"]:
            assert row["ours"]["seconds"] > 0 and row["ours"]["peak_memory"] > 0
    table = (tmp_path / "speed.md").read_text()
    assert table in shown
    assert ("## cuda fp32\n\nNot measured." in table) == (not torch.cuda.is_available())
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.usefixtures("published_spectrograms")
def test_a_section_by_itself_leaves_the_others(speed, tmp_path):
    for section in ("encoder", "front_end"):
        run_script(ROOT / "benchmarks/run.py", "--smoke", "-o", tmp_path, "--only", section)
    results = json.loads((tmp_path / "speed.json").read_text())
    assert list(results["cpu fp32"]["sections"]) == ["front_end", "encoder"]


def test_rivals_run_in_turn(speed):
    calls = []
    found = speed.measuring.compare(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, torch.device("cpu"), 3
    )
    assert calls == ["a", "b"] * 4
    assert found["a"]["runs"] == 3 and found["a"]["fastest"] <= found["a"]["seconds"]
