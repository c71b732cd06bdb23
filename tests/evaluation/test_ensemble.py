"""Ensembles: their properties, that nothing is judged by what it was fitted on, and what each system brings."""

import csv
import json

import numpy as np
import pytest
from scipy.optimize import lsq_linear

from modeling_xacle.data.files import file_digest
from modeling_xacle.evaluation.ensemble import (
    FITTED_METHODS,
    Judged,
    combine,
    ensemble,
    fit_nnls,
    fit_svr,
    grouped_folds,
    leave_one_out,
    out_of_fold,
)
from modeling_xacle.evaluation.ensemble_tables import (
    apply_weights,
    combine_members,
    read_members,
    save_weights,
    write_ensemble,
)
from modeling_xacle.evaluation.metrics import alignment_metrics
from modeling_xacle.evaluation.score_tables import read_score_table

METHODS = ("mean", "zscore", "rank", *FITTED_METHODS)


def simulate(num_pairs=300, noises=(1.5, 1.5, 3.0), seed=0):
    """Scores (S, N) of systems with these noises, and ratings (N,) in quarters."""
    generator = np.random.default_rng(seed)
    quality = generator.normal(5, 2, num_pairs)
    ratings = np.round(4 * (quality + generator.normal(0, 1, num_pairs))).clip(0, 40) / 4
    return np.stack([quality + generator.normal(0, noise, num_pairs) for noise in noises]), ratings


def judge(ratings, num_folds=5):
    return Judged(ratings, grouped_folds(range(len(ratings)), num_folds))


def squared_error(predictions, ratings):
    return alignment_metrics(predictions, ratings)["MSE"]


def correlation(predictions, ratings):
    return alignment_metrics(predictions, ratings)["SRCC"]


def test_an_ensemble_of_one_is_itself():
    scores, ratings = simulate(noises=(1.5,))
    for method in ("mean", "zscore"):
        np.testing.assert_allclose(combine(scores, method), scores[0], atol=1e-12)
    ranked = combine(scores, "rank")
    assert correlation(ranked, scores[0]) == 1.0
    assert (ranked.min(), ranked.max()) == (0.0, 10.0)
    fitted = fit_nnls(scores, ratings)
    assert correlation(fitted.predict(scores), scores[0]) == 1.0
    line = np.polyfit(scores[0], ratings, 1)
    np.testing.assert_allclose([*fitted.weights, fitted.offset], line, rtol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_no_order_of_rows_or_systems_matters(method):
    scores, ratings = simulate(200)
    judged, rows = judge(ratings), np.random.default_rng(1).permutation(200)
    expected = ensemble(scores, method, judged)
    turned = ensemble(scores[::-1][:, rows], method, Judged(ratings[rows], judged.folds[rows]))
    np.testing.assert_allclose(turned, expected[rows], atol=0.02 if method == "svr" else 1e-9)


def test_rank_mean_does_not_change_under_monotone_maps_of_a_system():
    scores, _ = simulate()
    mapped = np.stack([np.exp(scores[0]), scores[1] ** 3 - 100, 5 * scores[2]])
    np.testing.assert_array_equal(combine(mapped, "rank"), combine(scores, "rank"))


def test_zscore_mean_and_nnls_do_not_change_under_affine_maps_of_a_system():
    scores, ratings = simulate()
    mapped = scores * [[3.0], [0.01], [1.0]] + [[7.0], [-2.0], [0.0]]
    assert correlation(combine(mapped, "zscore"), combine(scores, "zscore")) == pytest.approx(1, abs=1e-12)
    judged = judge(ratings)
    np.testing.assert_allclose(ensemble(mapped, "nnls", judged), ensemble(scores, "nnls", judged), atol=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_system_harms_no_method(method):
    scores, ratings = simulate(150, noises=(1.0,))
    combined = ensemble(np.stack([scores[0], np.full(150, 0.1)]), method, judge(ratings))
    assert np.isfinite(combined).all()
    without = ensemble(scores, method, judge(ratings))
    assert correlation(combined, ratings) == pytest.approx(correlation(without, ratings), abs=0.02)


def test_nnls_solves_its_problem():
    scores, ratings = simulate(noises=(1.0, 2.0, 3.0))
    scores[2] = 10 - scores[2]  # would want a negative weight
    fitted = fit_nnls(scores, ratings)
    design = np.column_stack([*scores, np.ones(scores.shape[1])])
    expected = lsq_linear(design, ratings, bounds=([0, 0, 0, -np.inf], np.inf), tol=1e-14).x
    np.testing.assert_allclose([*fitted.weights, fitted.offset], expected, atol=1e-5)
    assert fitted.weights[2] == 0


def test_svr_follows_a_curve_that_a_line_cannot():
    (scores, ratings), (others, truth) = simulate(400, (0.3,)), simulate(400, (0.3,), seed=1)
    ratings, truth = np.abs(ratings - 5), np.abs(truth - 5)
    assert correlation(fit_svr(scores, ratings).predict(others), truth) > 0.5
    assert abs(correlation(fit_nnls(scores, ratings).predict(others), truth)) < 0.3


def test_folds_never_share_a_clip():
    clips = [f"{number % 37}.wav" for number in range(200)]
    folds = grouped_folds(clips, 5, seed=3)
    assert set(folds) == set(range(5))
    assert all(len({fold for fold, other in zip(folds, clips, strict=True) if other == clip}) == 1 for clip in clips)
    sizes = [len({clip for clip, fold in zip(clips, folds, strict=True) if fold == wanted}) for wanted in range(5)]
    assert max(sizes) - min(sizes) <= 1
    np.testing.assert_array_equal(folds, grouped_folds(clips, 5, seed=3))
    assert (folds != grouped_folds(clips, 5, seed=4)).any()
    for wrong in (1, 38):
        with pytest.raises(ValueError, match=f"{wrong} folds of 37 clips"):
            grouped_folds(clips, wrong)


@pytest.mark.parametrize("seed", range(5))
def test_nnls_is_no_better_out_of_fold_than_in_sample(seed):
    scores, ratings = simulate(60, noises=(2.0, 2.0, 4.0, 50.0), seed=seed)
    within = squared_error(fit_nnls(scores, ratings).predict(scores), ratings)
    assert squared_error(out_of_fold(scores, ratings, judge(ratings).folds, "nnls"), ratings) >= within


@pytest.mark.parametrize(("method", "fit"), [("nnls", fit_nnls), ("svr", fit_svr)])
def test_noise_is_learned_by_heart_in_sample_and_not_out_of_fold(method, fit):
    scores, ratings = np.random.default_rng(0).normal(5, 2, (20, 100)), simulate(100, seed=9)[1]
    assert correlation(fit(scores, ratings).predict(scores), ratings) > 0.3
    assert correlation(ensemble(scores, method, judge(ratings)), ratings) < 0.2


@pytest.mark.parametrize("method", FITTED_METHODS)
def test_a_fold_does_not_see_its_own_ratings(method):
    scores, ratings = simulate(100)
    judged = judge(ratings)
    mine = judged.folds == 2
    changed = np.where(mine, 10 - ratings, ratings)
    before, after = (out_of_fold(scores, targets, judged.folds, method) for targets in (ratings, changed))
    np.testing.assert_array_equal(before[mine], after[mine])
    assert (before[~mine] != after[~mine]).all()


def test_fitting_needs_ratings_and_methods_have_names():
    scores, _ = simulate(10)
    with pytest.raises(ValueError, match="nnls is fitted to ratings"):
        ensemble(scores, "nnls")
    with pytest.raises(ValueError, match="no ensemble 'median'; choose one of mean, zscore, rank, nnls, svr"):
        ensemble(scores, "median")


def test_leaving_out_a_noise_member_helps_the_mean_and_leaves_nnls():
    scores, ratings = simulate(400, noises=(1.0, 1.0, 8.0))
    judged = judge(ratings)
    good, _, noise = leave_one_out(scores, "mean", judged, num_resamples=300)
    assert noise["differences"]["SRCC"]["interval"][1] < 0 < noise["differences"]["MSE"]["interval"][0]
    assert good["differences"]["SRCC"]["interval"][0] > 0
    whole = correlation(combine(scores, "mean"), ratings)
    assert noise["differences"]["SRCC"]["difference"] == pytest.approx(whole - noise["metrics"]["SRCC"])
    *_, fitted = leave_one_out(scores, "nnls", judged, num_resamples=300)
    assert abs(fitted["differences"]["SRCC"]["difference"]) < 0.01
    with pytest.raises(ValueError, match="at least 2 systems"):
        leave_one_out(scores[:1], "mean", judged)


def write_table(path, columns, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


@pytest.fixture
def tables(tmp_path):
    """Two systems and a reference, each with its rows in another order, two captions a clip."""
    scores, ratings = simulate(80, noises=(1.0, 2.0))
    keys = [(f"{row // 2}.wav", f"caption {row % 2}, in words") for row in range(80)]
    for name, column, values in [("a", "pred_score", scores[0]), ("b", "score", scores[1]), ("ref", "score", ratings)]:
        rows = [(*key, value, "ok") for key, value in zip(keys, values.tolist(), strict=True)]
        order = np.random.default_rng(len(name)).permutation(80) if name != "a" else range(80)
        columns = ("wav_file_name", "text", "average_score" if name == "ref" else column, "status")
        write_table(tmp_path / f"{name}.csv", columns, [rows[row] for row in order])
    return tmp_path


def ensemble_tables(paths, output, reference=None, method="mean", store=None):
    """Read, combine, store and write, as the command does: the report."""
    members = read_members(paths, reference)
    combined, report = combine_members(members, method)
    if store is not None:
        save_weights(store, method, members)
    write_ensemble(output, members, report["method"], combined)
    return report


def test_tables_are_joined_by_key_and_keep_the_first_ones_rows(tables):
    report = ensemble_tables([tables / "a.csv", tables / "b.csv"], tables / "out.csv", tables / "ref.csv")
    first, second, result = (read_score_table(tables / f"{name}.csv") for name in ("a", "b", "out"))
    assert list(result.rows[0]) == ["wav_file_name", "text", "score", "signature"]
    assert result.keys == first.keys
    place = {key: score for key, score in zip(second.keys, second.scores, strict=True)}
    expected = [(score + place[key]) / 2 for key, score in zip(first.keys, first.scores, strict=True)]
    np.testing.assert_array_equal(result.scores, expected)
    assert (report["members"], report["pairs"]) == (["a", "b"], 80)
    assert list(report["metrics"]) == ["a", "b", "ensemble"]
    json.dumps(report, allow_nan=False)


def test_a_combined_score_has_the_signature_of_all_and_says_nothing_that_is_the_first_ones(tables):
    columns = ("wav_file_name", "text", "pred_score", "pred_status", "pred_notes", "pred_signature", "generator")
    rows = [(*row[:2], 5.0, "cut", "cut to 10 s", "model 1", "g") for row in read_score_table(tables / "a.csv").keys]
    write_table(tables / "a.csv", columns, rows)
    sidecar = {"model": "m", "signature": "model 2", "output_sha256": file_digest(tables / "b.csv")}
    (tables / "b.csv.json").write_text(json.dumps(sidecar))
    ensemble_tables([tables / "a.csv", tables / "b.csv"], tables / "out.csv")
    result = read_score_table(tables / "out.csv")
    assert list(result.rows[0]) == ["wav_file_name", "text", "generator", "score", "signature"]
    assert result.scorer["signature"] == "mean of a (model 1), b (model 2)"
    with open(tables / "b.csv", "a") as file:
        file.write("81.wav,words,3.0,ok\n")
    assert read_score_table(tables / "b.csv").scorer is None  # the sidecar was of another table


def test_a_written_ensemble_is_judged_as_it_was_reported(tables):
    report = ensemble_tables([tables / "a.csv", tables / "b.csv"], tables / "o.csv", tables / "ref.csv", "nnls")
    again = ensemble_tables([tables / "o.csv"], tables / "p.csv", tables / "ref.csv")
    assert again["metrics"]["o"] == report["metrics"]["ensemble"]
    assert len(report["weights"]) == 2


def test_clips_and_not_pairs_are_split(tables, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "modeling_xacle.evaluation.ensemble_tables.grouped_folds",
        lambda clips, *rest: seen.append(clips) or grouped_folds(clips, *rest),
    )
    ensemble_tables([tables / "a.csv"], tables / "out.csv", tables / "ref.csv", "nnls")
    assert seen == [[f"{row // 2}.wav" for row in range(80)]]


def test_tables_that_name_no_sound_are_split_by_key(tmp_path):
    for name in ("a", "ref"):
        write_table(tmp_path / f"{name}.csv", ["id", "score"], [(row, row % 7 + (name == "a")) for row in range(20)])
    report = ensemble_tables([tmp_path / "a.csv"], tmp_path / "out.csv", tmp_path / "ref.csv", "nnls")
    assert report["metrics"]["ensemble"]["MSE"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("rows", "messages"),
    [
        (lambda rows: rows[1:], ["do not have the same rows", ": 0.wav"]),
        (lambda rows: [*rows, ("x.wav", 1)], ["do not have the same rows", ": x.wav"]),
        (lambda rows: [*rows, rows[0]], ["1 duplicate: 0.wav"]),
        (lambda rows: [("0.wav", "nan"), *rows[1:]], ["1 pairs have no score, an ensemble needs all: 0.wav."]),
    ],
)
def test_tables_that_differ_are_refused_with_their_keys(rows, messages, tmp_path):
    whole = [(f"{row}.wav", row) for row in range(12)]
    for name, content in [("a", whole), ("b", rows(whole)), ("c", whole[:0:-1] + whole[:1])]:
        write_table(tmp_path / f"{name}.csv", ["wav_file_name", "score"], content)
    for order in ("abc", "bac", "cba"):
        with pytest.raises(ValueError) as error:
            ensemble_tables([tmp_path / f"{name}.csv" for name in order], tmp_path / "out.csv")
        assert all(message in str(error.value) for message in [*messages, "b.csv"])
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize("method", FITTED_METHODS)
def test_stored_weights_give_what_was_fitted_and_are_not_judged_by_it(method, tables):
    paths, weights = [tables / "a.csv", tables / "b.csv"], tables / f"{method}.json"
    ensemble_tables(paths, tables / "out.csv", tables / "ref.csv", method, store=weights)
    combined, report = apply_weights(weights, read_members(paths))
    assert report["method"] == method
    assert "metrics" not in report
    scores = np.stack([read_score_table(path).scores for path in paths])
    scores[1] = read_table_in_order(paths[1], read_score_table(paths[0]).keys)
    ratings = read_table_in_order(tables / "ref.csv", read_score_table(paths[0]).keys, ["average_score"])
    expected = {"nnls": fit_nnls, "svr": fit_svr}[method](scores, ratings).predict(scores)
    np.testing.assert_allclose(combined, expected, atol=1e-9)
    with pytest.raises(ValueError, match="fitted on these very clips"):
        apply_weights(weights, read_members(paths, tables / "ref.csv"))
    with pytest.raises(ValueError, match=r"weights of 2 systems \(a, b\), got 1"):
        apply_weights(weights, read_members(paths[:1]))


def read_table_in_order(path, keys, *columns):
    table = read_score_table(path, *columns)
    scores = dict(zip(table.keys, table.scores, strict=True))
    return np.array([scores[key] for key in keys])


def test_stored_weights_are_judged_by_other_clips(tables, tmp_path):
    ensemble_tables([tables / "a.csv"], tables / "out.csv", tables / "ref.csv", "nnls", store=tables / "w.json")
    for name, column in [("a", "pred_score"), ("ref", "average_score")]:
        rows = [(f"new{row}.wav", row + len(name)) for row in range(9)]
        write_table(tmp_path / f"new_{name}.csv", ["wav_file_name", column], rows)
    new = read_members([tmp_path / "new_a.csv"], tmp_path / "new_ref.csv")
    assert apply_weights(tables / "w.json", new)[1]["metrics"]["ensemble"]["SRCC"] == 1.0


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"method": "mean", "parameters": {}}', "3"])
def test_files_that_are_no_weights(content, tables):
    (tables / "w.json").write_text(content)
    with pytest.raises(ValueError, match=r"not weights that|not JSON"):
        apply_weights(tables / "w.json", read_members([tables / "a.csv"]))


def test_systems_of_one_file_name_are_told_apart(tables):
    (tables / "other").mkdir()
    (tables / "other" / "a.csv").write_bytes((tables / "a.csv").read_bytes())
    paths = [tables / "a.csv", tables / "other" / "a.csv"]
    assert ensemble_tables(paths, tables / "out.csv")["members"] == [str(path) for path in paths]
    (tables / "ensemble.csv").write_bytes((tables / "a.csv").read_bytes())
    report = ensemble_tables([tables / "ensemble.csv"], tables / "out.csv", tables / "ref.csv")
    assert list(report["metrics"]) == [str(tables / "ensemble.csv"), "ensemble"]


def test_command(tables, xacle):
    a, b, ref, out = (tables / f"{name}.csv" for name in ("a", "b", "ref", "out"))
    assert xacle("ensemble", a, b, "-o", out) == f"80 pairs of 2 systems combined by mean: {out}\n"
    arguments = ["ensemble", a, b, "-o", out, "--reference", ref, "--method", "nnls", "--leave-one-out"]
    arguments += ["--resamples", 100, "--save-weights", tables / "w.json"]
    lines = xacle(*arguments).splitlines()
    assert lines[0].split() == ["system", "SRCC", "LCC", "KTAU", "MSE", "weight"]
    assert [line.split()[0] for line in lines[1:4]] == ["a", "b", "ensemble"]
    assert lines[5].split()[:4] == ["without", "SRCC", "it", "adds"]
    report = json.loads(xacle(*arguments, "--json"))
    assert set(report["leave_one_out"]) == {"a", "b"}
    assert set(report["leave_one_out"]["a"]["differences"]) == {"SRCC", "LCC", "KTAU", "MSE"}
    assert "combined by nnls" in xacle("ensemble", a, b, "-o", out, "--weights", tables / "w.json")


def test_columns_of_the_command(tmp_path, xacle):
    for name in ("a", "b"):
        rows = [(row, f"{row}.wav", row, 7) for row in range(6)]
        write_table(tmp_path / f"{name}.csv", ["clip", "path", "mos", "score"], rows)
    arguments = ["--key", "clip", "--prediction-column", "mos", "--reference-column", "mos", "--json"]
    paths = [tmp_path / "a.csv", "-o", tmp_path / "out.csv", "--reference", tmp_path / "b.csv"]
    assert json.loads(xacle("ensemble", *paths, *arguments))["metrics"]["ensemble"]["MSE"] == 0
    assert list(read_score_table(tmp_path / "out.csv").rows[0]) == ["clip", "path", "score", "signature"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--output"),
        (["-o", "out.csv", "--method", "median"], 2, "--method"),
        (["-o", "out.csv", "--method", "nnls"], 1, "nnls is fitted to ratings"),
        (["-o", "out.csv", "--leave-one-out"], 1, "needs a reference"),
        (["-o", "out.csv", "--save-weights", "w.json"], 1, "mean has no weights to store"),
        (["-o", "out.csv", "--reference", "ref.csv", "--save-weights", "w.json"], 1, "mean has no weights to store"),
        (["-o", "out.csv", "--weights", "w.json", "--method", "nnls"], 2, "goes without --method"),
        (["-o", "out.csv", "--weights", "w.json"], 1, "w.json"),
        (["-o", "out.csv", "--reference", "gone.csv"], 1, "gone.csv: no such table"),
        (
            ["-o", "out.csv", "--reference", "ref.csv", "--method", "nnls", "--folds", "41"],
            1,
            "41 folds of 40 clips",
        ),
        (["-o", "a.csv"], 1, "would be written over the input"),
        (["-o", "ref.csv", "--reference", "ref.csv"], 1, "would be written over the input"),
    ],
)
def test_mistakes_of_the_command(arguments, code, message, tables, xacle, monkeypatch):
    monkeypatch.chdir(tables)
    before = (tables / "a.csv").read_bytes()
    assert message in " ".join(xacle("ensemble", "a.csv", "b.csv", *arguments, expect=code).split())
    assert (tables / "a.csv").read_bytes() == before
    assert not (tables / "out.csv").exists()


def test_help(xacle):
    text = xacle("ensemble", "--help")
    assert all(word in text for word in ["--reference", "--method", "--leave-one-out", "--weights", "--json"])
