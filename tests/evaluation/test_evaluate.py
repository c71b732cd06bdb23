"""`xacle evaluate`: the official numbers and file, groups, ratings, pictures, the page, and every refusal."""

import base64
import csv
import io
import json
import math
import re

import numpy as np
import pytest
import scipy.stats
import soundfile
from matplotlib.image import imread

from modeling_xacle.evaluation.evaluate import (
    EvaluationPairs,
    evaluate_pairs,
    group_rows,
    read_pairs,
    read_ratings,
    score_bands,
    worst_pairs,
)
from modeling_xacle.evaluation.figures import draw_bands, draw_residuals, draw_scatter, figure_bytes
from modeling_xacle.evaluation.listeners import listeners_ceiling
from modeling_xacle.evaluation.metrics import METRICS
from modeling_xacle.evaluation.report import write_report
from modeling_xacle.evaluation.resampling import bootstrap_intervals

QUICK = ("--resamples", 50)
SOURCES = ("AudioLDM", "Tango", "natural")


def official(predictions, references):
    """The formulas of the challenge's script, in plain Python."""
    pairs = [(a, b) for a, b in zip(predictions, references, strict=True) if a == a and b == b]
    x, y = zip(*pairs, strict=True)

    def pearson(u, v):
        mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
        suu, svv = sum((a - mean_u) ** 2 for a in u), sum((b - mean_v) ** 2 for b in v)
        suv = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True))
        return suv / math.sqrt(suu * svv) if suu and svv else 0.0

    def ranks(values):
        order = sorted(values)
        first = {value: place for place, value in reversed(list(enumerate(order, 1)))}
        last = {value: place for place, value in enumerate(order, 1)}
        return [(first[value] + last[value]) / 2 for value in values]

    signs = [np.sign(np.subtract.outer(np.array(column), np.array(column))) for column in (x, y)]
    norm = math.sqrt(np.abs(signs[0]).sum() * np.abs(signs[1]).sum())
    return {
        "SRCC": pearson(ranks(x), ranks(y)),
        "LCC": pearson(x, y),
        "KTAU": (signs[0] * signs[1]).sum() / norm if norm else 0.0,
        "MSE": sum((a - b) ** 2 for a, b in pairs) / len(pairs),
        "N": len(pairs),
    }


def write(path, columns, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    """A challenge's validation: 3,000 pairs with captions, sources, four ratings each, and shuffled predictions."""
    folder, generator = tmp_path_factory.mktemp("tables"), np.random.default_rng(0)
    count = 3000
    quality = generator.normal(5.2, 2.1, count)
    ratings = np.round(np.clip(quality[:, None] + generator.normal(0, 2.4, (count, 4)), 0, 10))
    predictions = 5 + 0.6 * (quality - 5) + generator.normal(0, 1, count)
    names = [f"{7500 + row:05d}.wav" for row in range(count)]
    sources = generator.choice(SOURCES, count).tolist()
    means = ratings.mean(axis=1)
    rows = list(zip(names, [f"<i>A dog</i> & {row}" for row in range(count)], means, sources, strict=True))
    write(folder / "reference.csv", ["wav_file_name", "text", "average_score", "source"], rows)
    long = [(row[0], row[1], rating) for row, of in zip(rows, ratings, strict=True) for rating in of]
    write(folder / "ratings.csv", ["wav_file_name", "text", "score"], long)
    order = generator.permutation(count)
    write(folder / "scores.csv", ["wav_file_name", "pred_score"], [(f"/{names[i]}", predictions[i]) for i in order])
    return {"folder": folder, "predictions": predictions, "references": means, "ratings": ratings, "sources": sources}


@pytest.fixture
def small(tmp_path):
    """Twelve pairs, of which a test may take some away."""
    names = [f"{row:02d}.wav" for row in range(12)]
    generator = np.random.default_rng(1)
    references = generator.integers(0, 41, 12) / 4
    predictions = references + generator.normal(0, 2, 12)

    def make(scores=predictions, means=references, score_names=names, mean_names=names):
        return (
            write(tmp_path / "p.csv", ["wav_file_name", "pred_score"], zip(score_names, scores, strict=True)),
            write(tmp_path / "r.csv", ["wav_file_name", "average_score"], zip(mean_names, means, strict=True)),
        )

    return make


@pytest.fixture(scope="module")
def report(tables, tmp_path_factory):
    """The whole report of the validation tables, with the sounds of some of the pairs."""
    pairs = read_pairs(tables["folder"] / "scores.csv", tables["folder"] / "reference.csv")
    ratings = read_ratings(pairs, tables["folder"] / "ratings.csv")
    result = evaluate_pairs(pairs, None, ratings, num_resamples=100)
    folder = tmp_path_factory.mktemp("report") / "new" / "report"
    sounds = tmp_path_factory.mktemp("sounds")
    first, second, third = (pairs.keys[place][0] for place in worst_pairs(pairs, 3))
    soundfile.write(sounds / first, 0.1 * np.sin(np.arange(24000) / 5), 8000)
    soundfile.write(sounds / second, 0.1 * np.ones((480000, 2)), 24000)
    (sounds / third).write_bytes(b"no sound")
    write_report(pairs, result, folder, audio_dir=sounds)
    return folder


def test_help(xacle):
    text = xacle("evaluate", "--help")
    assert all(word in text for word in ("--output", "--official", "--ratings", "--audio-dir", "--json", "--group"))


def test_3000_rows_equal_the_official_formulas_and_file(tables, tmp_path, xacle):
    folder = tables["folder"]
    result = json.loads(xacle("evaluate", folder / "scores.csv", folder / "reference.csv", *QUICK, "--json"))
    expected = official(tables["predictions"].tolist(), tables["references"].tolist())
    assert result["metrics"] == pytest.approx(expected, rel=1e-12)
    intervals = bootstrap_intervals(tables["predictions"], tables["references"], num_resamples=50)
    assert {name: tuple(ends) for name, ends in result["intervals"].items()} == intervals
    assert sum(band["N"] for band in result["bands"]) == 3000


def test_files_of_the_report(report, tables):
    names = {"report.html", "metrics.json", "evaluation_result.csv", "groups.csv"}
    pictures = {
        f"{name}.{kind}" for name in ("scatter", "residuals", "bands", "groups_source") for kind in ("png", "pdf")
    }
    assert {path.name for path in report.iterdir()} == names | pictures
    lines = (report / "evaluation_result.csv").read_bytes().decode().split("\r\n")
    assert lines[0] == "metric,value"
    assert [line.split(",")[0] for line in lines[1:-1]] == ["SRCC", "LCC", "KTAU", "MSE", "N"]
    expected = official(tables["predictions"].tolist(), tables["references"].tolist())
    assert [float(line.split(",")[1]) for line in lines[1:-1]] == pytest.approx(list(expected.values()), rel=1e-12)
    assert lines[5:] == ["N,3000", ""]
    for name in pictures:
        assert (report / name).read_bytes().startswith(b"\x89PNG" if name.endswith("png") else b"%PDF")


def test_groups_and_what_is_left_without_them(report, tables):
    result = json.loads((report / "metrics.json").read_text())
    sources = np.array(tables["sources"])
    for source in SOURCES:
        inside, outside = sources == source, sources != source
        for rows, part in ((inside, "groups"), (outside, "leave_one_out")):
            found = result[part]["source"][source]
            expected = official(tables["predictions"][rows].tolist(), tables["references"][rows].tolist())
            assert found["metrics"] == pytest.approx(expected, rel=1e-12)
        intervals = result["groups"]["source"][source]["intervals"]
        assert all(intervals[name][0] <= intervals[name][1] for name in METRICS)
    with open(report / "groups.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == sorted(SOURCES)
    without = result["leave_one_out"]["source"]["Tango"]["metrics"]["KTAU"]
    assert float(rows[1]["KTAU_without"]) == without


def test_listeners_ceiling_from_single_ratings(report, tables):
    result = json.loads((report / "metrics.json").read_text())
    expected = listeners_ceiling(tables["ratings"])
    assert {name: result["listeners"][name] for name in expected} == expected
    assert result["listeners"]["share_of_ceiling"] == result["metrics"]["SRCC"] / expected["ceiling_srcc"]


def test_the_page_needs_nothing_else_and_shows_text_as_text(report):
    page = (report / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert page.count("data:image/png;base64,") == 4
    assert "<i>A dog" not in page
    assert page.count("&lt;i&gt;A dog&lt;/i&gt; &amp;") == 20
    assert page.count("no sound") == 17


def test_sounds_are_embedded_as_the_model_hears_them(report):
    page = (report / "report.html").read_text()
    sounds = [base64.b64decode(text) for text in re.findall(r"data:audio/flac;base64,([^\"]+)", page)]
    lengths = [soundfile.info(io.BytesIO(sound)) for sound in sounds]
    assert [(info.samplerate, info.channels, info.duration) for info in lengths] == [(16000, 1, 3.0), (16000, 1, 10.0)]


def test_sounds_beyond_the_pages_limit_are_left_out(small, tmp_path, monkeypatch, xacle):
    monkeypatch.setattr("modeling_xacle.evaluation.report.MAX_AUDIO_BYTES", 100_000)
    for row in range(12):
        soundfile.write(tmp_path / f"{row:02d}.wav", np.random.default_rng(row).normal(size=16000) / 10, 16000)
    xacle("evaluate", *small(), *QUICK, "-o", tmp_path / "report", "--worst", 5)
    page = (tmp_path / "report" / "report.html").read_text()
    assert 0 < page.count("<audio") < 5
    assert page.count("<audio") + page.count("the page is full") == 5


def test_a_report_is_replaced_whole_and_the_same(small, tmp_path, xacle):
    folder = tmp_path / "report"
    xacle("evaluate", *small(), *QUICK, "-o", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    xacle("evaluate", *small(), *QUICK, "-o", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"report", "p.csv", "r.csv"}


def test_other_files_are_not_replaced(small, tmp_path, xacle):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "mine.png").write_bytes(b"")
    message = xacle("evaluate", *small(), "-o", tmp_path / "report", expect=1)
    assert "holds files that would be lost, choose another output: mine.png" in message
    (tmp_path / "file").write_bytes(b"")
    assert "is a file" in xacle("evaluate", *small(), "-o", tmp_path / "file", expect=1)


def test_terminal_table(tables, xacle):
    folder = tables["folder"]
    lines = xacle(
        "evaluate", folder / "scores.csv", folder / "reference.csv", *QUICK, "--ratings", folder / "ratings.csv"
    ).splitlines()
    assert lines[0] == "pred_score of scores.csv against average_score of reference.csv, joined by wav_file_name"
    assert lines[2].split() == ["metric", "value", "95", "%", "interval"]
    assert [line.split()[0] for line in lines[3:8]] == ["SRCC", "LCC", "KTAU", "MSE", "N"]
    assert lines[9].startswith("Listeners' ceiling")
    assert [line.split()[0] for line in lines[11:15]] == ["source", *SOURCES]


NAMES = [f"{row:02d}.wav" for row in range(12)]


@pytest.mark.parametrize(
    ("score_names", "words"),
    [
        (["new.wav", *NAMES[1:]], ["1 missing (in", ": 00.wav", "1 extra (not in", ": new.wav"]),
        ([NAMES[1], *NAMES[1:]], ["1 duplicate: 01.wav", "1 missing"]),
    ],
)
def test_rows_that_do_not_match_are_an_error(score_names, words, small, xacle):
    message = xacle("evaluate", *small(score_names=score_names), expect=1)
    assert message.startswith("error: The tables do not have the same rows.")
    assert all(word in message for word in words)


def test_official_join_says_what_it_dropped(small, tmp_path, capsys, xacle):
    tables = small(score_names=["new.wav", NAMES[2], *NAMES[2:]])
    result = json.loads(xacle("evaluate", *tables, "--official", *QUICK, "--json"))
    assert result["dropped"] == {"missing": 2, "extra": 1, "multiplied": 1, "without_score": 0}
    assert result["metrics"]["N"] == 11
    page = xacle("evaluate", *tables, "--official", *QUICK, "-o", tmp_path / "report") and (
        tmp_path / "report" / "report.html"
    )
    assert "2 rows of" in page.read_text()


def test_pairs_without_a_score_are_dropped_and_counted(small, xacle):
    scores = [math.nan, *range(1, 12)]
    result = json.loads(xacle("evaluate", *small(scores=scores), *QUICK, "--json"))
    assert result["dropped"]["without_score"] == 1
    assert result["metrics"]["N"] == 11


def test_a_constant_system(small, tmp_path, xacle):
    result = json.loads(xacle("evaluate", *small(scores=[5.0] * 12), *QUICK, "--json", "-o", tmp_path / "report"))
    assert [result["metrics"][name] for name in ("SRCC", "LCC", "KTAU")] == [0, 0, 0]
    assert result["calibration_line"] is None


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_pairs(count, small, xacle):
    scores = [1.0] * count + [math.nan] * (12 - count)
    assert f"at least 2 pairs with both scores are needed, got {count}" in xacle(
        "evaluate", *small(scores=scores), expect=1
    )


def test_two_pairs_are_enough(small, tmp_path, xacle):
    tables = small([1.0, 2.0], [3.0, 5.0], NAMES[:2], NAMES[:2])
    result = json.loads(xacle("evaluate", *tables, *QUICK, "--json", "-o", tmp_path / "report"))
    assert result["metrics"] == {"SRCC": 1.0, "LCC": 1.0, "KTAU": 1.0, "MSE": 6.5, "N": 2}
    assert (tmp_path / "report" / "report.html").is_file()


def test_groups_by_request(small, tmp_path, xacle):
    prediction, _ = small()
    rows = [(name, row, "long" if row % 2 else "one" if row else None) for row, name in enumerate(NAMES)]
    reference = write(tmp_path / "g.csv", ["wav_file_name", "average_score", "kind"], rows)
    assert json.loads(xacle("evaluate", prediction, reference, *QUICK, "--json"))["groups"] == {}
    result = json.loads(
        xacle("evaluate", prediction, reference, *QUICK, "--json", "--group", "kind", "-o", tmp_path / "report")
    )
    assert {name: group["N"] for name, group in result["groups"]["kind"].items()} == {"": 1, "long": 6, "one": 5}
    assert result["groups"]["kind"][""]["metrics"] is None
    text = xacle("evaluate", prediction, reference, *QUICK, "--group", "kind")
    assert "-" in text.splitlines()[10]
    assert "no such column" in xacle("evaluate", prediction, reference, "--group", "colour", expect=1)


def test_too_many_groups():
    rows = [{"source": str(row)} for row in range(150)]
    values = np.arange(150.0)
    pairs = EvaluationPairs("p", "r", values, values, ("id",), [(str(row),) for row in range(150)], rows, {}, {})
    assert group_rows(pairs) == {}
    with pytest.raises(ValueError, match="cannot group by source, it has 150 values"):
        group_rows(pairs, ["source"])


def test_ratings_in_a_column(small, tmp_path, xacle):
    prediction, _ = small()
    rows = [(name, row, json.dumps([row, row + 1, 2])) for row, name in enumerate(NAMES)]
    reference = write(tmp_path / "l.csv", ["wav_file_name", "average_score", "ratings"], rows)
    result = json.loads(xacle("evaluate", prediction, reference, *QUICK, "--json"))
    expected = listeners_ceiling([[row, row + 1, 2] for row in range(12)])
    assert result["listeners"]["ceiling_srcc"] == expected["ceiling_srcc"]
    broken = write(
        tmp_path / "b.csv", ["wav_file_name", "average_score", "ratings"], [*rows[1:], ("00.wav", 1, "many")]
    )
    assert "'many' are not a list of numbers" in xacle("evaluate", prediction, broken, expect=1)


def test_ratings_that_lack_a_pair(small, tmp_path, xacle):
    ratings = write(tmp_path / "l.csv", ["wav_file_name", "score"], [(name, 1) for name in NAMES[:-1]])
    assert "no ratings of 1 pairs: 11.wav" in xacle("evaluate", *small(), "--ratings", ratings, expect=1)


def test_columns_by_name(tmp_path, xacle):
    rows = [(row, row % 5, row % 7) for row in range(20)]
    table = write(tmp_path / "t.csv", ["name", "ours", "theirs"], rows)
    names = ("--key", "name", "--prediction-column", "ours", "--reference-column", "theirs")
    result = json.loads(xacle("evaluate", table, table, *names, *QUICK, "--json"))
    expected = official([row[1] for row in rows], [row[2] for row in rows])
    assert result["metrics"] == pytest.approx(expected, rel=1e-12)


def test_bands_count_everything_once():
    references = np.array([0.0, 0.99, 1.0, 9.0, 10.0, 11.0, -1.0])
    bands = score_bands(references + 1, references)
    assert [(band["low"], band["high"], band["N"]) for band in bands] == [(0, 1, 3), (1, 2, 1), (9, 10, 3)]
    assert all(band["bias"] == band["MAE"] == band["RMSE"] == pytest.approx(1) for band in bands)
    [band] = score_bands(np.array([1.0, 4.0]), np.array([2.5, 2.5]))
    assert [band[name] for name in ("bias", "MAE", "RMSE")] == pytest.approx([0, 1.5, 1.5])
    expected = scipy.stats.ttest_1samp([-1.5, 1.5], 0).confidence_interval()
    assert band["bias_interval"] == pytest.approx(tuple(expected))
    assert score_bands(np.array([1.0]), np.array([2.5]))[0]["bias_interval"] is None


def test_columns_of_the_predictions_go_with_their_own_pairs(small, tmp_path):
    _, reference = small()
    rows = [(name, row, f"caption of {name}", row % 3) for row, name in enumerate(NAMES)]
    prediction = write(tmp_path / "t.csv", ["audio", "score", "caption", "model_id"], rows[::-1])
    for is_official in (False, True):
        pairs = read_pairs(prediction, reference, official=is_official)
        assert [row["caption"] for row in pairs.rows] == [f"caption of {key[0]}" for key in pairs.keys]
        assert [row["average_score"] for row in pairs.rows] == [str(value) for value in pairs.references]
        assert {name: len(rows) for name, rows in group_rows(pairs)["model_id"].items()} == {"0": 4, "1": 4, "2": 4}


def test_worst_pairs_come_first(small):
    pairs = read_pairs(*small())
    errors = np.abs(pairs.predictions - pairs.references)
    assert worst_pairs(pairs, 3) == sorted(range(12), key=lambda row: -errors[row])[:3]
    assert len(worst_pairs(pairs, 20)) == 12


def test_pictures_are_drawn_the_same_and_hold_ink():
    generator = np.random.default_rng(0)
    x, y = generator.uniform(-2, 12, size=(2, 60))
    evaluation = {"metrics": official(x.tolist(), y.tolist()), "calibration_line": {"scale": 0.1, "offset": 4.0}}
    assert len(draw_scatter(x, y, evaluation).axes[0].collections[0].get_offsets()) == 60
    for draw in (
        lambda: draw_scatter(x, y, evaluation),
        lambda: draw_scatter(x / 100, y, evaluation),
        lambda: draw_residuals(x, y),
        lambda: draw_bands(score_bands(x, y)),
    ):
        png = figure_bytes(draw())
        assert png == figure_bytes(draw())
        assert imread(io.BytesIO(png))[..., :3].std() > 0.05
    assert figure_bytes(draw(), "pdf") == figure_bytes(draw(), "pdf")


def test_names_with_markup_are_text_on_the_page(small, tmp_path, xacle):
    prediction, _ = small()
    rows = [(name, row, f"<script>{row % 2}") for row, name in enumerate(NAMES)]
    reference = write(tmp_path / "g.csv", ["wav_file_name", "average_score", "source"], rows)
    xacle("evaluate", prediction, reference, *QUICK, "-o", tmp_path / "report")
    page = (tmp_path / "report" / "report.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;1" in page
