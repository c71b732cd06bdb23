"""
The commands of the bundled model, of the ablation and of the speed benchmark: their tables, and that the reference
design, the fast paths and the counted operations are what they are said to be.
"""

import functools
import importlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from conftest import EXPECTED, PARITY, ROOT, run_script
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import pipeline

from modeling_xacle import DEFAULT_MODEL, modeling_xacle
from modeling_xacle.data.tables import read_table
from modeling_xacle.evaluation.metrics import alignment_metrics
from modeling_xacle.evaluation.resampling import resample_indices
from modeling_xacle.speed import forms
from modeling_xacle.training.recipes import parse_arguments


@pytest.fixture(scope="module")
def scripts():
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("benchmarks/speed", "benchmarks/ablation", "dataset_scripts/synthetic"):
            patch.syspath_prepend(str(ROOT / folder))
        names = ("tiny", "rows", "ablation", "ablation_report", "worlds", "steps", "synthesize")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


def parsed(scripts, run):
    return parse_arguments(scripts.tiny.stage_command(run.stage, run.folder, run.start, **run.settings)[2:])


def test_every_step_is_a_command_that_its_script_takes(scripts):
    results = []
    for result, (_, script, *arguments) in scripts.tiny.steps():
        assert Path(script).is_file()
        results.append(result)
        if script.endswith("run_stage.py"):
            stage, args = parse_arguments(arguments)
            assert f"{args.output_dir}/README.md" == result
            assert stage.model in {"stage0", *(made.split("/")[0] for made in results)}
    assert results[-1] == "stage3/README.md"


def test_every_run_starts_where_an_earlier_step_ends(scripts, tmp_path):
    made = set()
    for step in scripts.ablation.plan(tmp_path, with_choices=True):
        if "--model" in step.settings:
            assert step.settings[step.settings.index("--model") + 1] in made, step.folder
        made.add(step.folder)
    for row in scripts.rows.ROWS:
        assert set(row.folders()) <= made
        for run in row.runs:
            parsed(scripts, run)


@pytest.fixture
def workshop(scripts, tmp_path):
    """Does three steps, each made from the one before, with some settings; gives the names of those that it made."""
    steps = scripts.steps

    def work(*settings):
        made = []

        def make(name):
            made.append(name)
            (tmp_path / name).mkdir(parents=True)

        names = ["data/one", "two", "three"]
        commands = [["", "one.py", *settings], ["", "two.py", "data/one/part"], ["", "three.py", "--from", "two"]]
        plan = [
            steps.Step(name, steps.settings_of(command), functools.partial(make, name))
            for name, command in zip(names, commands, strict=True)
        ]
        steps.do_steps(tmp_path, plan)
        return made

    return work


def test_a_step_is_done_once(workshop, tmp_path):
    assert workshop("--epochs", "2", "--num-workers", "4") == ["data/one", "two", "three"]
    assert workshop("--epochs", "2", "--num-workers", "8", "--bf16") == []
    (tmp_path / "three").rmdir()
    assert workshop("--epochs", "2") == ["three"]


def test_what_was_made_otherwise_is_refused_with_all_that_was_made_from_it(workshop, tmp_path):
    workshop("--epochs", "2")
    one, two, three = (re.escape(str(tmp_path / name)) for name in ("data/one", "two", "three"))
    message = (
        rf"delete them.*\n  {one} \(with 2, now 3\)\n  {two} \(from another data/one\)\n  {three} \(from another two\)"
    )
    with pytest.raises(ValueError, match=message):
        workshop("--epochs", "3")
    for name in ("data/one", "two", "three"):
        (tmp_path / name).rmdir()
    assert workshop("--epochs", "3") == ["data/one", "two", "three"]


def test_what_another_version_or_nobody_known_made_is_refused(workshop, tmp_path, monkeypatch):
    workshop()
    with monkeypatch.context() as patch:
        patch.setattr("steps.__version__", "99")
        with pytest.raises(ValueError, match=r"by version .*, now 99"):
            workshop()
    (tmp_path / "steps/two.json").unlink()
    with pytest.raises(ValueError, match=r"two \(nothing tells how\)"):
        workshop()


def test_every_step_knows_its_inputs(scripts, tmp_path):
    steps = scripts.ablation.plan(tmp_path, with_choices=True)
    folders = [step.folder for step in steps]
    assert len(set(folders)) == len(folders)
    records = scripts.steps.make_records(steps)
    expected = {
        "data/synthetic": set(),
        "data/clap_pseudo": {"data/synthetic", "teacher"},
        "stage0": {"parts"},
        "stage2": {"stage1", "data/clap_pseudo"},
        "published/stage1": {"stage1"},
        "seed43/published/stage2": {"published/stage1", "data/clap_published"},
        "seed43/published/stage3": {"seed43/published/stage2", "data/synthetic"},
        "before/stage2": {"published/stage1", "data/clap_pseudo"},
        "variants/mse": {"stage2", "data/synthetic"},
    }
    assert {name: set(records[name]["inputs"]) for name in expected} == expected


def test_learning_rates_are_tried_alike_for_the_rows_that_are_compared(scripts):
    rows = {row.name: row for row in scripts.rows.ROWS}
    compared = [rows[name] for name in (scripts.rows.OURS, scripts.rows.RELEASED)]
    ours, released = map(scripts.rows.choices, compared)
    assert {stage: set(tried) for stage, tried in ours.items()} == {stage: set(t) for stage, t in released.items()}
    for row, choices in zip(compared, (ours, released), strict=True):
        own = {run.stage: run.rate for run in row.runs}
        for stage, tried in choices.items():
            assert own[stage] in tried
            for rate, runs in tried.items():
                assert {run.stage: run.rate for run in runs} == {**own, stage: rate}
                if stage == "stage2":
                    assert runs[2].start == runs[1].folder


def test_choices_tell_what_each_rate_reaches(scripts, tmp_path, monkeypatch):
    references = np.arange(40.0)
    scored = []

    def score(folder, *_):
        scored.append(folder)
        return references + np.random.default_rng(len(scored)).normal(scale=20, size=40)

    monkeypatch.setattr(scripts.ablation, "load_pairs", lambda *_: {"score": references})
    monkeypatch.setattr(scripts.ablation, "model_scores", score)
    scripts.ablation.write_choices(tmp_path, tmp_path)
    found = json.loads((tmp_path / "choices.json").read_text())
    assert set(found) == {row.name for row in scripts.rows.ROWS if row.rates}
    assert len(set(scored)) == len(scored)  # none twice
    for row in (row for row in scripts.rows.ROWS if row.rates):
        assert {stage: tuple(map(float, tried)) for stage, tried in found[row.name].items()} == row.rates
        own = {found[row.name][run.stage][f"{run.rate:g}"] for run in row.runs if run.stage in row.rates}
        assert len(own) == 1  # the row's own model, whichever stage's rates it stands among


def test_the_released_recipe_is_the_released_one(scripts):
    rows = {row.name: row for row in scripts.rows.ROWS}
    _, *released = rows[scripts.rows.RELEASED].runs
    for run in released:
        stage, args = parsed(scripts, run)
        assert (stage.loss, stage.temperature, stage.one_sided, stage.list_scope) == ("listnet", 1.0, True, "local")
        assert (stage.train, stage.augments, args.per_device_train_batch_size) == (
            ["projector", "score_head"], False, 16,
        )  # fmt: skip
        assert stage.caption_weight == 0
    _, _, paper = rows[scripts.rows.PAPER].runs
    assert parsed(scripts, paper)[0].augments


def test_seeds_change_the_seed_alone(scripts):
    rows = {row.name: row for row in scripts.rows.ROWS}
    assert len(rows) == len(scripts.rows.ROWS)
    for name in (scripts.rows.OURS, scripts.rows.RELEASED):
        assert rows[name].seeds == scripts.rows.SEEDS
        first, *others = rows[name].runs
        for seed in scripts.rows.SEEDS[1:]:
            assert first.with_seed(seed) == first  # stage 1
            for run in others:
                assert run.with_seed(seed).settings == {**run.settings, "seed": seed}
                assert run.with_seed(seed).folder == f"seed{seed}/{run.folder}"


def test_rows_differ_from_ours_in_what_they_are_named_for(scripts):
    """Of the last run of each row, the settings that are not the bundled model's."""
    rows = {row.name: row.runs[-1] for row in scripts.rows.ROWS}
    ours = scripts.tiny.STAGES["stage3"]

    def differences(name):
        return {key: value for key, value in rows[name].settings.items() if ours.get(key) != value}

    assert differences(scripts.rows.OURS) == {}
    assert differences("ours with MSE in stage 3") == {"loss": "mse"}
    assert differences("ours with ListNet, temperature 1, in stage 3") == {"loss": "listnet", "temperature": 1.0}
    assert differences("ours with clipped MSE + contrastive in stage 3") == {"loss": "clipped_contrastive"}
    assert set(differences("ours: stage 3 only")) <= {"learning_rate", "num_train_epochs"}
    paper, released = differences(scripts.rows.PAPER), differences(scripts.rows.RELEASED)
    assert {**released, **scripts.rows.SPEC_AUGMENT} == paper
    for name, run in rows.items():
        form = run.folder.startswith(scripts.rows.PUBLISHED_FORM)
        assert form == ("released" in name or "paper" in name or "before the sound" in name), name


def test_the_table_compares_with_the_released_recipe(scripts):
    generator = np.random.default_rng(0)
    truth = generator.random(300)
    references = truth + 0.1 * generator.normal(size=300)
    scores = {
        scripts.rows.RELEASED: truth + generator.normal(size=(3, 300)),
        scripts.rows.OURS: truth + 0.1 * generator.normal(size=(3, 300)),
        scripts.ablation_report.CEILING: truth[None],
    }
    table = scripts.ablation_report.measure(scores, references)
    released, ours, best = table
    assert released["over the released recipe, interval"] == [0, 0] and best["of the ceiling, interval"] == [1, 1]
    srcc = [alignment_metrics(one, references)["SRCC"] for one in scores[scripts.rows.OURS]]
    assert ours["SRCC of each seed"] == srcc and ours["SRCC"] == pytest.approx(np.mean(srcc))
    assert ours["over the released recipe"] == pytest.approx(ours["SRCC"] - released["SRCC"])
    assert ours["of the ceiling"] == pytest.approx(ours["SRCC"] / best["SRCC"])
    low, high = ours["SRCC interval"]
    assert low < ours["SRCC"] < high and ours["over the released recipe, interval"][0] > 0
    assert scripts.ablation_report.draw_forest(table, "noise").startswith(b"\x89PNG")


def test_stored_scores_give_the_page_again(scripts, tmp_path):
    """What is written is a function of the table of scores alone, whose splits are told apart."""
    report, generator = scripts.ablation_report, np.random.default_rng(0)
    names = [name for names in report.system_columns().values() for name in names]
    lines = []
    for split in ("test", "unseen"):
        for number, truth in enumerate(generator.uniform(0, 10, 60)):
            noisy = {name: round(truth + generator.normal(scale=1 + 9 * (split == "unseen")), 4) for name in names}
            line = {"split": split, "id": f"{split}{number}", "average_score": truth + generator.normal()}
            lines.append({**line, **noisy, "alignment": truth})
    page = report.write_report(tmp_path, "a world", lines)
    stored = [line for _, line in read_table(tmp_path / "a-world.csv")[1]]
    assert report.report("a world", stored)[0] == page == (tmp_path / "a-world.md").read_text()
    assert (tmp_path / "a-world.png").read_bytes().startswith(b"\x89PNG")
    assert all(page.count(f"| {row.name} |") == 3 for row in scripts.rows.ROWS)  # table, other generator, settings
    tables = {split: report.measure(*report.split_scores(stored, split)) for split in ("test", "unseen")}
    assert all(a["SRCC"] > b["SRCC"] for a, b in zip(*tables.values(), strict=True) if a["system"] != report.CEILING)
    assert report.summary(tables["test"]).splitlines()[2].startswith(f"| {report.TEACHER} | 1 |")


def test_seeds_that_disagree_widen_the_interval(scripts):
    generator = np.random.default_rng(0)
    truth = generator.random(500)
    noise = generator.normal(size=500)
    alike = {"a": np.stack([truth + 0.3 * noise] * 3)}
    apart = {"a": np.stack([truth + scale * noise for scale in (0.1, 0.3, 0.9)])}
    widths = [
        np.ptp(scripts.worlds.interval(scripts.ablation_report.resample_rows(s, truth)["a"])) for s in (alike, apart)
    ]
    assert widths[1] > 2 * widths[0]


def test_resampled_correlations_are_those_of_the_samples(scripts):
    generator = np.random.default_rng(0)
    scores, references = generator.normal(size=(2, 40)), generator.integers(0, 5, 40).astype(float)
    found = scripts.worlds.resampled_srcc(scores, references, seed=3)
    samples = np.concatenate(list(resample_indices(40, scripts.worlds.RESAMPLES, 3)))
    for place in (0, 7, scripts.worlds.RESAMPLES - 1):
        expected = [alignment_metrics(one[samples[place]], references[samples[place]])["SRCC"] for one in scores]
        assert found[place].tolist() == pytest.approx(expected)


RESULTS = ROOT / "benchmarks/results"


WORLDS = sorted(RESULTS.glob("worlds/*.csv"))
assert WORLDS


@pytest.fixture(params=WORLDS, ids=lambda file: file.stem)
def bundled(request):
    """What the bundled model gave to each pair of a test world, and that world's seed."""
    return [row for _, row in read_table(request.param)[1]], int(request.param.stem, 16)


def test_the_documents_tell_what_the_bundled_model_reaches(scripts, bundled):
    rows, seed = bundled
    table = scripts.worlds.world_table(rows)
    for document in (ROOT / "README.md", ROOT / "docs/evidence.md", Path(DEFAULT_MODEL, "README.md")):
        text = document.read_text()
        assert table in text and f"`{seed:08x}`" in text, document


def test_the_bundled_model_gives_the_scores_of_the_test_world(scripts, bundled):
    """The first pairs of every split, made anew from the seed."""
    rows, seed = bundled
    stored = {row["id"]: row for row in rows}
    align = pipeline("audio-text-alignment", device="cpu")
    for split in scripts.worlds.SPLITS:
        for index in range(3):
            clip = scripts.synthesize.Clip("xacle", split, index)
            scene, told = scripts.synthesize.annotate(clip, seed)
            sound = scripts.synthesize.render(clip, scene, seed)
            score = align({"audio": sound, "text": told["caption"]}, sampling_rate=16000)["score"]
            assert score == pytest.approx(float(stored[clip.id]["score"]), abs=0.01), clip.id
            assert told["alignment"] == pytest.approx(float(stored[clip.id]["alignment"]))
            assert np.mean(told["ratings"]) == float(stored[clip.id]["average_score"])


def test_a_fresh_world_is_drawn_and_measured(scripts, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(scripts.worlds, "TEST_PAIRS", 4)
    monkeypatch.setattr(scripts.worlds, "UNSEEN_PAIRS", 3)
    scripts.worlds.main(tmp_path / "work", "ff", DEFAULT_MODEL, tmp_path / "scores.csv")
    rows = [row for _, row in read_table(tmp_path / "scores.csv")[1]]
    assert ("test", *scripts.synthesize.events.UNSEEN_SPLITS) == scripts.worlds.SPLITS
    assert [row["split"] for row in rows].count("test") == 4 and len(rows) == 4 + 3 * 4
    assert capfd.readouterr().out.strip() == scripts.worlds.world_table(rows)
    assert (tmp_path / "work/worlds/000000ff/xacle/annotations.jsonl").is_file()


def test_seeds_are_read_as_hexadecimal_digits(scripts):
    assert scripts.worlds.read_seed("10000000") == scripts.worlds.read_seed("0x10000000") == 2**28
    with pytest.raises(typer.BadParameter, match="hexadecimal"):
        scripts.worlds.read_seed("seed")


def test_the_bundled_model_tells_synthetic_sounds_apart():
    """Of new scenes, the caption of its own against that of another."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "dataset_scripts/synthetic"))
        captions, events = map(importlib.import_module, ("captions", "events"))
    generator = np.random.default_rng(12345)
    scenes = [events.sample_scene(generator, events.split_named("train")) for _ in range(16)]
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
    assert sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".py") < 25e6
    assert {tensor.dtype.itemsize for tensor in load_file(folder / "model.safetensors").values()} == {4}
    assert "synthetic" in (folder / "README.md").read_text().lower()


# ---------------------------------------------------------------------------------------------------------------------
# Speed


@pytest.fixture(scope="module")
def speed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks/speed"))
        names = ("run", "reference", "operations", "workbench", "measuring", "training_steps")
        names += ("cases", "limits", "machines", "speed_report", "gpu_steps")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


RESULT_FILES = sorted((ROOT / "benchmarks/results/speed").glob("*-torch-*.json"))


@pytest.fixture(params=RESULT_FILES, ids=lambda file: file.stem)
def measured(request):
    """Each processor's stored results."""
    return json.loads(request.param.read_text())


def rows_by_case(results):
    return {row["case"]: row for section in results["fp32"]["sections"].values() for row in section["rows"]}


def test_the_document_tells_the_speed_of_every_processor(speed):
    report = speed.speed_report
    assert report.result_files(RESULT_FILES[0].parent) == RESULT_FILES
    table = report.summary(RESULT_FILES[0].parent)
    assert len(table.splitlines()) == 2 + len(RESULT_FILES) + 1  # and the one that was measured elsewhere
    assert list(report.tables_of(report.DOCUMENT.read_text())) == [table]


def test_the_page_of_a_processor_tells_its_figures(measured, speed):
    file = ROOT / "benchmarks/results/speed" / speed.machines.file_stem(measured["machine"])
    assert file.with_name(f"{file.name}.json") in RESULT_FILES
    assert file.with_name(f"{file.name}.md").read_text() == speed.speed_report.machine_page(measured)


def test_what_the_speed_must_be(measured):
    rows = rows_by_case(measured)
    pair = rows["whole pair, 8 pairs"]
    assert pair["ratio"] >= 1.35 and pair["of the limit"] >= 0.8
    assert rows["4 captions a clip, 8 captions"]["ratio"] >= 2
    assert rows["stage 2, step of 8, cached"]["ratio"] >= 2.3


def test_no_case_is_faster_than_its_limit(measured):
    for name, row in rows_by_case(measured).items():
        assert row.get("of the limit", 0) <= 1.03, name


def test_stage_1_is_compared_with_our_own_plain_form(measured):
    """The published code's was never released."""
    rows = rows_by_case(measured)
    assert rows["stage 1, step of 8, cached"]["beside"] == "our own plain form"
    assert rows["stage 2, step of 8, cached"]["beside"] == "published design"


@pytest.fixture(scope="module")
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
    monkeypatch.setattr(forms, "SMALLEST_PRODUCT", 1)
    fast = bench.scores(waveforms, captions)
    bench.model.set_attn_implementation("eager")
    monkeypatch.setattr(modeling_xacle, "CPU_CACHE_BYTES", 1)
    monkeypatch.setenv("XACLE_FAST", "0")
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


def test_a_step_that_runs_the_encoder_runs_it_as_training_does(speed, bench):
    """The model is called with spectrograms, and decides itself whether the encoder needs gradients."""
    seen = []
    with bench.stage(2) as model:
        steps = speed.training_steps.TrainingSteps(bench, model, 2, 2)
        watch = lambda module, given, named: seen.append((torch.is_grad_enabled(), *named))  # noqa: E731
        hook = model.register_forward_pre_hook(watch, with_kwargs=True)
        steps.forms()["ours"]()
        hook.remove()
    assert seen == [(True, "input_ids", "attention_mask", "input_features")]


def test_a_step_trains(speed, bench):
    """Forward, gradients and optimiser: what a stage trains moves, and its gradients are gone."""
    for stage, trained in ((1, "language_model"), (2, "score_head")):
        before = {name: weight.clone() for name, weight in bench.model.named_parameters()}
        with bench.stage(stage) as model:
            speed.training_steps.TrainingSteps(bench, model, stage, 2).forms()["ours"]()
        moved = {name.split(".")[0] for name, weight in bench.model.named_parameters() if weight.ne(before[name]).any()}
        assert moved == {"projector", trained}
        assert all(weight.grad is None for weight in bench.model.parameters())


def test_the_limit_takes_the_best_way_and_no_new_memory(speed, bench, monkeypatch):
    limits, outputs = speed.limits, []
    place = limits.Place(torch.device("cpu"), torch.float32)
    products = speed.operations.encoder_products(bench.config, 8, 998)
    rates = limits.rates(products, place)
    assert rates["best"] >= max(rates.values())
    monkeypatch.setattr(limits.Place, "libraries", lambda self: {"default": spy})
    limits.timings.cache_clear()

    def spy(inputs, weight, output):
        outputs.append(output.data_ptr())
        limits.default_product(inputs, weight, output)

    run, _ = limits.products_alone(products, place)
    run()
    used = set(outputs)
    outputs.clear()
    run()
    assert outputs and set(outputs) <= used
    limits.timings.cache_clear()


def test_the_published_way_of_loading_gives_the_same_model(bench):
    ours, plain = (load().state_dict() for load in bench.loading())
    assert ours.keys() - plain.keys() == {"lm_head.weight"}  # tied to the embeddings; the published system has none
    for name, tensor in plain.items():
        assert torch.equal(tensor, ours[name]), name


def test_bf16_is_left_out_where_there_are_no_instructions_for_it(speed, bench, monkeypatch):
    machine = {"name": "A", "instructions": "avx512_bf16", "threads": 1, "torch": "2.11"}
    monkeypatch.setattr(speed.cases, "describe", lambda device: machine)
    (case,) = speed.cases.bf16(bench)
    (row,) = speed.run.measure_case(case, bench, 1)
    assert row["beside"] == "ours in fp32" and 0 < row["score difference"] < 1
    results = {"machine": machine, "fp32": {"sections": {"bf16": {"rows": [row]}}}}
    assert "scores move by" in speed.speed_report.bf16_line(results)
    machine["instructions"] = "avx512f"
    assert list(speed.cases.bf16(bench)) == []
    results["fp32"]["sections"]["bf16"]["rows"] = []
    assert speed.speed_report.bf16_line(results) == "no instructions for it"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, speed, published_spectrograms):
    """Everything, in small."""
    folder = tmp_path_factory.mktemp("speed")
    code, shown, message = run_script(ROOT / "benchmarks/speed/run.py", "--smoke", "-o", folder)
    assert code == 0, message
    (file,) = folder.glob("*.json")
    return file, shown


def test_the_command_measures_everything(speed, smoke):
    file, shown = smoke
    results = json.loads(file.read_text())
    assert file.stem == speed.machines.file_stem(results["machine"])
    assert set(results["fp32"]["sections"]) == set(speed.run.SECTIONS)
    assert "scale" in results
    for section in results["fp32"]["sections"].values():
        for row in section["rows"]:
            assert row["ours"]["seconds"] > 0 and row["ours"]["peak_memory"] > 0
    assert file.with_suffix(".md").read_text() in shown
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def run_front_end(folder, *more):
    arguments = ["--smoke", "-o", folder, "--only", "front_end", *more]
    code, _, message = run_script(ROOT / "benchmarks/speed/run.py", *arguments)
    assert code == 0, message
    return message


def test_a_run_goes_on_and_leaves_other_sections_and_other_processors(speed, smoke, tmp_path, monkeypatch):
    file = Path(shutil.copy(smoke[0], tmp_path))
    before = json.loads(file.read_text())
    assert "front end" not in run_front_end(tmp_path)  # nothing is measured again
    assert json.loads(file.read_text())["fp32"]["sections"] == before["fp32"]["sections"]
    before["fp32"]["sections"]["front_end"]["done"].pop()
    file.write_text(json.dumps(before))
    assert run_front_end(tmp_path).count("front end") == 1
    assert run_front_end(tmp_path, "--again").count("front end") == 3
    assert list(json.loads(file.read_text())["fp32"]["sections"]) == list(before["fp32"]["sections"])
    untouched = file.read_text()
    other = {**before["machine"], "name": "Another processor"}
    monkeypatch.setattr(speed.machines, "describe", lambda device: other)
    run_front_end(tmp_path)
    assert file.read_text() == untouched
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_trial_run_does_not_overwrite_what_was_measured(speed):
    code, _, message = run_script(ROOT / "benchmarks/speed/run.py", "--smoke")
    assert code and "--output" in message


# ---------------------------------------------------------------------------------------------------------------------
# GPUs


def run_gpu(folder, *more):
    code, shown, message = run_script(ROOT / "benchmarks/speed/gpu.py", folder, *more)
    return code, shown + message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_how_to_try_it(speed, tmp_path):
    code, shown = run_gpu(tmp_path)
    assert code and len(shown.strip().splitlines()) == 1
    assert "--device cpu --smoke" in shown


def test_all_steps_for_a_gpu_run_in_small_and_are_kept(speed, published_spectrograms, tmp_path):
    small = ["--device", "cpu", "--smoke"]
    for name in speed.gpu_steps.STEPS:
        code, shown = run_gpu(tmp_path, "--step", name, *small)
        assert code == 0, shown
    file = tmp_path / "results" / f"{speed.machines.file_stem(speed.machines.describe(torch.device('cpu')))}.json"
    results = json.loads(file.read_text())
    assert {"fp32", "bf16", "machine"} < set(results)
    assert "passed" in results["checks"]["tests"]["outcome"]
    assert "sharded" in file.with_suffix(".md").read_text()
    code, shown = run_gpu(tmp_path, *small)
    assert code == 0 and shown.count("finished earlier") == len(speed.gpu_steps.STEPS)
    kept = json.loads((tmp_path / "scores.json").read_text())
    kept["conditions"]["code"] = "other"
    (tmp_path / "scores.json").write_text(json.dumps(kept))
    _, shown = run_gpu(tmp_path, "--list", *small)
    assert shown.count("finished") == len(speed.gpu_steps.STEPS) - 1 and "scores: to do" in shown


def test_rivals_run_in_turn(speed):
    calls = []
    found = speed.measuring.compare(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, torch.device("cpu"), 3
    )
    assert calls == ["a", "b"] * 4
    assert found["a"]["runs"] == 3 and found["a"]["fastest"] <= found["a"]["seconds"]
