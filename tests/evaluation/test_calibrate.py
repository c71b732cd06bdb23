"""Maps onto the listeners' scale: the fits, the file, tables, a model's config, and the command."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from conftest import PARITY
from scipy.stats import spearmanr
from transformers import AutoConfig, AutoModel, pipeline

from modeling_xacle.evaluation.calibrate import (
    ScoreCalibration,
    calibrate_model,
    calibrate_table,
    calibration_report,
    fit_score_calibration,
    load_calibration,
    out_of_fold,
    save_calibration,
)
from modeling_xacle.evaluation.figures import draw_reliability, figure_bytes
from modeling_xacle.training import run

CLIP = str(PARITY / "wav" / "b_16k_3s.wav")


@pytest.fixture(scope="module")
def pairs():
    """3,000 predictions, squeezed and bent, and means in quarters."""
    generator = np.random.default_rng(0)
    quality = generator.normal(5, 2, 3000)
    references = np.round(4 * (quality + generator.normal(0, 1, 3000))).clip(0, 40) / 4
    return np.round(np.tanh((quality + generator.normal(0, 1, 3000) - 5) / 4), 3), references


def pool_adjacent_violators(x, y):
    """The rising fit by pooling blocks one at a time: values at the sorted distinct x."""
    blocks = []
    for value in sorted(set(x.tolist())):
        of = y[x == value]
        blocks.append([of.sum(), len(of), 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [first + second for first, second in zip(blocks[-1], last, strict=True)]
    return np.concatenate([[total / count] * distinct for total, count, distinct in blocks])


def test_affine_is_least_squares_and_keeps_every_rank(pairs):
    x, y = pairs
    calibration = fit_score_calibration(x, y)
    np.testing.assert_allclose((calibration.scale, calibration.offset), np.polyfit(x, y, 1))
    report = calibration_report(calibration, x, y)
    assert report["after"]["SRCC"] == pytest.approx(report["before"]["SRCC"], abs=1e-12)
    assert report["after"]["MSE"] < report["before"]["MSE"]
    assert report["after"]["MSE"] < report["out_of_fold"]["MSE"] < 1.01 * report["after"]["MSE"]


def test_isotonic_is_pooling_of_adjacent_violators(pairs):
    x, y = pairs
    calibration = fit_score_calibration(x, y, "isotonic")
    distinct = np.unique(x)
    np.testing.assert_allclose(calibration(distinct), pool_adjacent_violators(x, y), atol=1e-9)
    report = calibration_report(calibration, x, y)
    affine = calibration_report(fit_score_calibration(x, y), x, y)
    assert report["after"]["MSE"] < affine["after"]["MSE"]
    assert y.min() <= calibration(x).min() <= calibration(x).max() <= y.max()


def test_isotonic_never_reverses_and_ties_move_srcc_little(pairs):
    x, y = pairs
    calibration = fit_score_calibration(x, y, "isotonic")
    grid = calibration(np.linspace(-3, 3, 5000))
    assert (np.diff(grid) >= 0).all()
    assert len(calibration.inputs) < len(np.unique(x))
    assert spearmanr(calibration(x), y).statistic == pytest.approx(spearmanr(x, y).statistic, abs=0.02)


def test_shapes_and_nan():
    for calibration in (ScoreCalibration("affine", 2, 1), ScoreCalibration("isotonic", inputs=(0, 1), outputs=(2, 3))):
        scores = calibration([[0.0, math.nan], [0.5, 1.0]])
        assert scores.shape == (2, 2)
        assert math.isnan(scores[0, 1])
    assert calibration([-5, 9]).tolist() == [2, 3]


def test_pairs_with_nan_are_left_out():
    found = fit_score_calibration([0, 1, math.nan, 3], [1, 3, 5, math.nan])
    assert (found.scale, found.offset) == pytest.approx((2, 1))


@pytest.mark.parametrize("method", ["affine", "isotonic"])
@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([1, 2, 3], [3, 2, 1], "nothing to calibrate"),
        ([1, 1, 1], [1, 2, 3], "nothing to calibrate"),
        ([1, 2, 3], [2, 2, 2], "nothing to calibrate"),
        ([1, math.nan], [1, 2], "At least 2 pairs"),
        ([], [], "At least 2 pairs"),
    ],
)
def test_what_cannot_be_calibrated(method, x, y, words):
    with pytest.raises(ValueError, match=words):
        fit_score_calibration(x, y, method)


def test_too_few_pairs_for_folds():
    x, y = np.array([1.0, 2.0]), np.array([1.0, 3.0])
    assert out_of_fold(x, y, "affine") is None
    assert calibration_report(fit_score_calibration(x, y), x, y)["out_of_fold"] is None


def test_out_of_fold_never_sees_the_pair(pairs):
    x, y = (column[:40] for column in pairs)
    before = out_of_fold(x, y, "affine")
    y = y.copy()
    y[7] += 100
    after = out_of_fold(x, y, "affine")
    folds = np.random.default_rng(0).permutation(40) % 5
    np.testing.assert_array_equal(before == after, folds == folds[7])


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "cubic"},
        {"method": "affine", "scale": 0.0},
        {"method": "affine", "offset": math.inf},
        {"method": "isotonic"},
        {"method": "isotonic", "inputs": (0, 1), "outputs": (1,)},
        {"method": "isotonic", "inputs": (0, 1), "outputs": (2, 1)},
    ],
)
def test_maps_that_are_none(fields):
    with pytest.raises(ValueError):
        ScoreCalibration(**fields)
    with pytest.raises(ValueError, match="method must be"):
        fit_score_calibration([1, 2], [1, 2], "cubic")


@pytest.mark.parametrize("method", ["affine", "isotonic"])
def test_file_round_trip(method, pairs, tmp_path):
    calibration = fit_score_calibration(*pairs, method)
    save_calibration(calibration, tmp_path / "map.json")
    assert load_calibration(tmp_path / "map.json") == calibration
    assert [path.name for path in tmp_path.iterdir()] == ["map.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"method": "affine", "slope": 1}', '{"method": "isotonic"}'])
def test_files_that_are_no_map(content, tmp_path):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(ValueError, match=r"map.json: not (a calibration|JSON)"):
        load_calibration(tmp_path / "map.json")


def test_table_keeps_all_but_the_scores(tmp_path):
    rows = [
        {"audio": "a.wav", "text": "x, y", "score": 1.0, "status": "ok", "ratings": [1, 2]},
        {"audio": "a.wav", "text": "x, y", "score": None, "status": "error: gone", "ratings": None},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert calibrate_table(ScoreCalibration("affine", 2, 1), tmp_path / "t.jsonl", tmp_path / "o.csv") == 2
    with open(tmp_path / "o.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert first == {"audio": "a.wav", "text": "x, y", "score": "3.0", "status": "ok", "ratings": "[1, 2]"}
    assert (second["score"], second["status"]) == ("", "error: gone")
    with pytest.raises(ValueError, match="would be written over the input"):
        calibrate_table(ScoreCalibration("affine"), tmp_path / "t.jsonl", tmp_path / "t.jsonl")


@pytest.mark.parametrize("applied", [True, False])
def test_a_models_scores_become_the_calibrated_ones(applied, model_folder, tmp_path):
    start = tmp_path / "start"
    calibrate_model(ScoreCalibration("affine", 1.3, -0.4), model_folder, start)
    fields = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps({**fields, "apply_calibration": applied}))
    calibration = ScoreCalibration("affine", 0.7, 2.5)
    calibrate_model(calibration, start, tmp_path / "end")
    before, after = (
        pipeline("audio-text-alignment", model=str(folder), device="cpu")({"audio": CLIP, "text": "beep"})["score"]
        for folder in (start, tmp_path / "end")
    )
    assert after == pytest.approx(float(calibration(before)), abs=1e-4)
    assert sorted(path.name for path in start.iterdir()) == sorted(path.name for path in (tmp_path / "end").iterdir())
    weights = [AutoModel.from_pretrained(folder).state_dict() for folder in (model_folder, tmp_path / "end")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert AutoConfig.from_pretrained(tmp_path / "end").apply_calibration


def test_what_a_stage_fits_is_applied_even_if_its_start_said_otherwise(model, caplog):
    model.config.apply_calibration = False
    labels = np.array([-0.5, 0.0, 0.5])
    run.calibrate(model.config, 2 * labels + 1, labels)
    assert model.config.apply_calibration
    np.testing.assert_allclose(model.config.logits_to_scores(2 * labels + 1), [2.5, 5, 7.5])
    assert "the fitted calibration is applied" in caplog.text


def test_models_that_cannot_be_calibrated(model_folder, tmp_path):
    affine = ScoreCalibration("affine", 1, 0)
    with pytest.raises(ValueError, match="affine map only"):
        calibrate_model(ScoreCalibration("isotonic", inputs=(0,), outputs=(1,)), model_folder, tmp_path / "o")
    with pytest.raises(FileNotFoundError, match="no model folder"):
        calibrate_model(affine, tmp_path / "gone", tmp_path / "o")
    with pytest.raises(ValueError, match="a model of type qwen2, not xacle"):
        calibrate_model(affine, PARITY / "llm", tmp_path / "o")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "mine").touch()
    with pytest.raises(ValueError, match="exists; choose another output"):
        calibrate_model(affine, model_folder, tmp_path / "o")


def test_reliability_diagram(pairs):
    x, y = pairs
    for rows in (slice(None), slice(2), slice(7)):
        picture = draw_reliability(ScoreCalibration("affine", 3, 5), x[rows], y[rows])
        assert figure_bytes(picture).startswith(b"\x89PNG")


def write(path, column, values):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["wav_file_name", column], *((f"{n}.wav", value) for n, value in enumerate(values))]
        )
    return path


@pytest.fixture
def tables(pairs, tmp_path):
    x, y = (column[:200] for column in pairs)
    return write(tmp_path / "p.csv", "pred_score", x), write(tmp_path / "r.csv", "average_score", y)


def test_help(xacle):
    text = xacle("calibrate", "--help")
    assert all(word in text for word in ("--method", "--apply", "--model", "--load", "--diagram", "--json", "--output"))


def test_command_fits_stores_loads_and_applies(tables, pairs, tmp_path, xacle):
    x, y = (column[:200] for column in pairs)
    output = xacle("calibrate", *tables, "-o", tmp_path / "map.json", "--diagram", tmp_path / "map.png")
    assert output.splitlines()[0].split() == ["scores", "SRCC", "LCC", "KTAU", "MSE", "N"]
    assert output.splitlines()[-1].startswith("affine map ")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    xacle("calibrate", "--load", tmp_path / "map.json", "--apply", tables[0], "-o", tmp_path / "loaded.csv")
    xacle("calibrate", *tables, "--apply", tables[0], "-o", tmp_path / "fitted.csv")
    assert (tmp_path / "loaded.csv").read_bytes() == (tmp_path / "fitted.csv").read_bytes()
    with open(tmp_path / "fitted.csv", newline="") as file:
        found = [float(row["pred_score"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(found, fit_score_calibration(x, y)(x))


def test_command_with_isotonic_and_json(tables, tmp_path, xacle):
    result = json.loads(xacle("calibrate", *tables, "-o", tmp_path / "map.json", "--method", "isotonic", "--json"))
    assert result["map"]["method"] == "isotonic"
    assert set(result["metrics"]) == {"before", "after", "out_of_fold"}
    text = xacle("calibrate", *tables, "-o", tmp_path / "map.json", "--method", "isotonic")
    assert "isotonic map of" in text


def test_command_stores_the_map_in_a_model(tables, model_folder, tmp_path, xacle):
    xacle("calibrate", *tables, "--model", model_folder, "-o", tmp_path / "calibrated")
    calibration = fit_score_calibration(
        *([float(line.split(",")[1]) for line in path.read_text().splitlines()[1:]] for path in tables)
    )
    config = AutoConfig.from_pretrained(tmp_path / "calibrated")
    assert config.logits_to_scores(0.1) == pytest.approx(
        float(calibration(AutoConfig.from_pretrained(model_folder).logits_to_scores(0.1)))
    )


def test_refusals_of_the_command(tables, tmp_path, xacle):
    out = ("-o", tmp_path / "out")
    assert "either a table" in xacle("calibrate", *out, expect=2)
    assert "either a table" in xacle("calibrate", tables[0], *out, expect=2)
    assert "either a table" in xacle("calibrate", *tables, "--load", "map.json", *out, expect=2)
    assert "one of --apply" in xacle("calibrate", *tables, "--apply", tables[0], "--model", "m", *out, expect=2)
    assert "--diagram" in xacle("calibrate", *tables, "--diagram", "map.gif", *out, expect=2)
    assert "no such file" in xacle("calibrate", "--load", tmp_path / "gone.json", *out, expect=1).lower()
    flat = write(tmp_path / "flat.csv", "pred_score", [5] * 200)
    assert "nothing to calibrate" in xacle("calibrate", flat, tables[1], *out, expect=1)
    short = write(tmp_path / "short.csv", "pred_score", range(150))
    assert "50 missing" in xacle("calibrate", short, tables[1], *out, expect=1)
    assert not (tmp_path / "out").exists()
