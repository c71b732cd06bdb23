"""The commands of the bundled model, of the ablation and of the test worlds, and their tables."""

import functools
import importlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import typer
from conftest import ROOT
from safetensors.torch import load_file
from transformers import pipeline

from modeling_xacle import DEFAULT_MODEL
from modeling_xacle.data.tables import read_table
from modeling_xacle.evaluation.metrics import alignment_metrics
from modeling_xacle.evaluation.resampling import resample_indices
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
                assert runs[-1].stage == stage
                assert {run.stage: run.rate for run in runs} == {run.stage: own[run.stage] for run in runs} | {
                    stage: rate
                }
    lengths = {run.settings["max_steps"] for tried in (ours, released) for (*_, run) in tried["stage2"].values()}
    assert lengths == {5000 // 4, 20_000 // 4}  # of runs by which no rate is favoured


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
        assert tmp_path / row.runs[-1].folder in scored  # with its own rate, the row's own model


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
