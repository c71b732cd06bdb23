"""Metrics against their formulas, the bootstrap against one resample at a time, the ceiling against a simulation."""

import doctest
import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_xacle.evaluation import metrics, resampling
from modeling_xacle.evaluation.listeners import listeners_ceiling
from modeling_xacle.evaluation.metrics import METRICS, alignment_metrics
from modeling_xacle.evaluation.resampling import (
    bootstrap_intervals,
    paired_bootstrap,
    paired_permutation_test,
    resample_indices,
)

NAN = math.nan
TOLERANCE = {"rel": 1e-11, "abs": 1e-13}


def loop_pearson(x, y):
    if len(set(x)) == 1 or len(set(y)) == 1:
        return 0.0
    mean_x, mean_y = math.fsum(x) / len(x), math.fsum(y) / len(y)
    covariance = math.fsum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    variance_x = math.fsum((a - mean_x) ** 2 for a in x)
    variance_y = math.fsum((b - mean_y) ** 2 for b in y)
    return covariance / math.sqrt(variance_x * variance_y)


def loop_ranks(values):
    """One more than the number of smaller values, and half a rank more for each other equal value."""
    return [1 + sum(b < a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]


def loop_tau_b(x, y):
    concordance = untied_x = untied_y = 0
    for i in range(len(x)):
        for j in range(i):
            sign_x = (x[i] > x[j]) - (x[i] < x[j])
            sign_y = (y[i] > y[j]) - (y[i] < y[j])
            concordance += sign_x * sign_y
            untied_x += sign_x != 0
            untied_y += sign_y != 0
    return concordance / math.sqrt(untied_x * untied_y) if untied_x and untied_y else 0.0


def loop_metrics(predictions, references):
    """The official metrics by their formulas, in plain Python."""
    pairs = [(a, b) for a, b in zip(predictions, references, strict=True) if a == a and b == b]
    x, y = [a for a, _ in pairs], [b for _, b in pairs]
    return {
        "SRCC": loop_pearson(loop_ranks(x), loop_ranks(y)),
        "LCC": loop_pearson(x, y),
        "KTAU": loop_tau_b(x, y),
        "MSE": math.fsum((a - b) ** 2 for a, b in pairs) / len(pairs),
        "N": len(pairs),
    }


def simulate(num_pairs, seed=0, noise=1.0):
    """Predictions, and references in quarters, so with many ties, on the scale of the challenge: two lists."""
    generator = np.random.default_rng(seed)
    quality = generator.normal(5, 2, num_pairs)
    references = np.round(4 * (quality + generator.normal(0, 1, num_pairs))).clip(0, 40) / 4
    return (quality + generator.normal(0, noise, num_pairs)).tolist(), references.tolist()


def simulate_ties(num_pairs, seed, num_values, nan_share=0.0):
    """Two lists of few distinct values that are not exact in binary, with NaN in places."""
    generator = np.random.default_rng(seed)
    columns = generator.integers(num_values, size=(2, num_pairs)) / 10
    columns[generator.random(columns.shape) < nan_share] = NAN
    return columns.tolist()


CASES = {
    "two pairs": ([1.0, 2.0], [5.0, 3.0]),
    "two equal pairs": ([0.1, 0.1], [0.3, 0.3]),
    "ties": ([1.0, 2.0, 2.0, 3.0], [1.0, 1.0, 4.0, 4.0]),
    "constant predictions": ([0.1] * 7, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]),
    "constant references": ([3.0, 1.0, 2.0], [0.7] * 3),
    "both constant": ([0.1] * 7, [0.7] * 7),
    "NaN": ([1.0, NAN, 3.0, 2.0, NAN], [2.0, 1.0, NAN, 5.0, NAN]),
    "NaN leaves a constant": ([1.0, 1.0, 2.0], [1.0, 2.0, NAN]),
    "zero and minus zero": ([0.0, -0.0, 1.0], [1.0, 2.0, 3.0]),
    "outside the scale": ([-50.0, 700.0, 3.0], [0.0, 10.0, 5.0]),
    "large": ([1e50, -1e50, 2.0], [-1e50, 1e50, 1e50]),
    "nearly constant": ([1e8, 1e8 + 1e-7, 1e8], [1.0, 2.0, 3.0]),
}
CASES |= {f"random ties {seed}": simulate_ties(2 + seed, seed, 1 + seed % 6) for seed in range(30)}
CASES |= {f"random NaN {seed}": simulate_ties(20 + seed, seed, 9, nan_share=0.2) for seed in range(10)}


@pytest.mark.parametrize(("predictions", "references"), CASES.values(), ids=CASES)
def test_metrics_equal_the_formulas(predictions, references):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = alignment_metrics(predictions, references)
    assert result == pytest.approx(loop_metrics(predictions, references), **TOLERANCE)
    assert list(result) == [*METRICS, "N"]
    assert all(type(value) in (float, int) for value in result.values())
    json.dumps(result, allow_nan=False)


# Mean ratings move in quarter steps, so ties are common; predictions are any numbers, often equal; either may be NaN.
quarters = st.integers(0, 40).map(lambda steps: steps / 4)
scores = st.one_of(quarters, st.floats(-5, 15, allow_subnormal=False).map(lambda score: round(score, 6)), st.just(NAN))
constants = st.tuples(quarters, st.integers(2, 9)).map(lambda drawn: [(drawn[0], drawn[0] / 2)] * drawn[1])
tables = st.one_of(st.lists(st.tuples(scores, st.one_of(quarters, st.just(NAN))), min_size=0, max_size=25), constants)


@settings(max_examples=300, deadline=None)
@given(tables)
def test_metrics_of_any_table_equal_the_formulas(table):
    predictions, references = ([row[side] for row in table] for side in (0, 1))
    if sum(a == a and b == b for a, b in table) < 2:
        with pytest.raises(ValueError, match="At least 2 pairs"):
            alignment_metrics(predictions, references)
        return
    expected = loop_metrics(predictions, references)
    assert alignment_metrics(predictions, references) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    shuffled = [table[place] for place in np.random.default_rng(len(table)).permutation(len(table))]
    again = alignment_metrics(*([row[side] for row in shuffled] for side in (0, 1)))
    assert again == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_metrics_of_many_pairs_equal_the_formulas():
    predictions, references = simulate(3000)
    predictions[17] = references[4] = NAN
    assert alignment_metrics(predictions, references) == pytest.approx(
        loop_metrics(predictions, references), **TOLERANCE
    )


def test_zero_variance_gives_zero_although_the_mean_is_rounded():
    assert np.mean([0.1] * 3) != 0.1
    for predictions, references in [([0.1] * 3, [0.1] * 3), ([0.1] * 3, [1.0, 2.0, 3.3]), ([1.0, 2.0, 3.3], [0.1] * 3)]:
        result = alignment_metrics(predictions, references)
        assert (result["SRCC"], result["LCC"], result["KTAU"]) == (0.0, 0.0, 0.0)


def test_perfect_agreement_is_exactly_one():
    predictions, _ = simulate(1000)
    assert alignment_metrics(predictions, predictions) == {"SRCC": 1.0, "LCC": 1.0, "KTAU": 1.0, "MSE": 0.0, "N": 1000}


def test_many_pairs_take_n_log_n():
    predictions, references = simulate(200_000)
    assert alignment_metrics(predictions, references)["N"] == 200_000  # n^2 would take minutes


def test_metrics_take_any_array_of_numbers():
    predictions, references = np.arange(4, dtype=np.float32), (3, 1, None, 2)
    assert alignment_metrics(predictions, references) == alignment_metrics([0.0, 1.0, 3.0], [3.0, 1.0, 2.0])


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(metrics).failed == 0


BAD_COLUMNS = [
    ([], [], "At least 2 pairs without NaN are needed, got 0 of 0"),
    ([1.0], [1.0], "got 1 of 1 pairs"),
    ([1.0, NAN, 2.0], [1.0, 2.0, NAN], "got 1 of 3 pairs"),
    ([1.0, 2.0], [1.0, 2.0, 3.0], "2 predictions, 3 references"),
    ([[1.0], [2.0]], [1.0, 2.0], r"predictions must have the shape \(num_pairs,\), got \(2, 1\)"),
    (1.0, [1.0, 2.0], r"predictions must have the shape \(num_pairs,\), got \(\)"),
    ([1.0, 2.0], [1.0, math.inf], "references must be finite .* got inf at 1"),
    ([-math.inf, 2.0], [NAN, 1.0], "predictions must be finite .* got -inf at 0"),
    ([1.0, -2e50], [1.0, 2.0], r"predictions must be finite and within 1e\+50"),
]


@pytest.mark.parametrize(("predictions", "references", "message"), BAD_COLUMNS)
def test_bad_columns_are_refused(predictions, references, message):
    for function in (alignment_metrics, bootstrap_intervals):
        with pytest.raises(ValueError, match=message):
            function(predictions, references)


@pytest.mark.parametrize("arguments", [{"num_resamples": 0}, {"confidence": 0.0}, {"confidence": 95}])
def test_bad_bootstrap_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        bootstrap_intervals([1.0, 2.0], [1.0, 2.0], **arguments)
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} must be"):
        paired_bootstrap([1.0, 2.0], [1.0, 2.0], [1.0, 2.0], **arguments)


def test_resamples_depend_on_the_seed_and_not_on_the_chunks(monkeypatch):
    whole = np.concatenate(list(resample_indices(7, 100, seed=3)))
    assert whole.shape == (100, 7)
    assert set(whole.ravel()) == set(range(7))
    assert not np.array_equal(whole, np.concatenate(list(resample_indices(7, 100, seed=4))))
    monkeypatch.setattr(resampling, "CHUNK_ELEMENTS", 40)
    chunks = list(resample_indices(7, 100, seed=3))
    assert len(chunks) == 20
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def naive_samples(predictions, references, num_resamples, seed):
    """Each metric in each resample, one after the other: (num_resamples, 4)"""
    predictions, references = np.array(predictions), np.array(references)
    rows = np.concatenate(list(resample_indices(len(predictions), num_resamples, seed)))
    results = [alignment_metrics(predictions[row], references[row]) for row in rows]
    return np.array([[result[name] for name in METRICS] for result in results])


BOOTSTRAP_CASES = {
    "300 pairs": simulate(300),
    "ties": simulate_ties(40, 5, 4),
    "many constant resamples": ([0.1, 0.1, 0.3], [0.7, 0.2, 0.2]),
    "two pairs": ([0.1, 0.2], [0.3, 0.1]),
    "constant": ([0.1] * 9, simulate(9)[1]),
    "an outlier": ([1e6, 0.1, 0.2, 0.4, 0.3], [5.0, 1.0, 2.0, 4.0, 3.0]),
}


@pytest.mark.parametrize("chunk_elements", [50, 2**20])
@pytest.mark.parametrize(("predictions", "references"), BOOTSTRAP_CASES.values(), ids=BOOTSTRAP_CASES)
def test_intervals_equal_those_of_one_resample_at_a_time(predictions, references, chunk_elements, monkeypatch):
    samples = naive_samples(predictions, references, num_resamples=200, seed=7)
    monkeypatch.setattr(resampling, "CHUNK_ELEMENTS", chunk_elements)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        intervals = bootstrap_intervals(predictions, references, num_resamples=200, confidence=0.9, seed=7)
    expected = {name: tuple(np.quantile(samples[:, i], [0.05, 0.95])) for i, name in enumerate(METRICS)}
    assert list(intervals) == list(METRICS)
    for name in METRICS:
        assert intervals[name] == pytest.approx(expected[name], **TOLERANCE)
        assert all(type(end) is float for end in intervals[name])


def test_intervals_of_many_pairs_equal_those_of_one_resample_at_a_time():
    predictions, references = simulate(3000)
    samples = naive_samples(predictions, references, num_resamples=40, seed=0)
    intervals = bootstrap_intervals(predictions, references, num_resamples=40)
    for i, name in enumerate(METRICS):
        assert intervals[name] == pytest.approx(tuple(np.quantile(samples[:, i], [0.025, 0.975])), **TOLERANCE)


def test_intervals_are_about_two_standard_errors_each_way():
    predictions, references = simulate(1000, seed=1)
    low, high = bootstrap_intervals(predictions, references, num_resamples=1000)["LCC"]
    value = alignment_metrics(predictions, references)["LCC"]
    assert low < value < high
    assert high - low == pytest.approx(2 * 1.96 * (1 - value**2) / math.sqrt(1000), rel=0.15)


def test_a_metric_is_added_in_one_place(monkeypatch):
    """Another name for MSE is measured, resampled and permuted as MSE is."""
    monkeypatch.setitem(METRICS, "OTHER", METRICS["MSE"])
    (a, references), (b, _) = simulate(60, noise=0.5), simulate(60, noise=2.0)
    for result in (
        alignment_metrics(a, references),
        bootstrap_intervals(a, references, 50),
        {name: entry["interval"] for name, entry in paired_bootstrap(a, b, references, 50).items()},
        paired_permutation_test(a, b, references, 50),
    ):
        np.testing.assert_allclose(result["OTHER"], result["MSE"])


def test_pairs_with_nan_are_dropped_before_resampling():
    predictions, references = simulate(50)
    with_nan = bootstrap_intervals([NAN, *predictions, 1.0], [5.0, *references, NAN], num_resamples=100)
    assert with_nan == bootstrap_intervals(predictions, references, num_resamples=100)


@pytest.mark.parametrize("noise", [0.5, 3.0])
def test_paired_differences_equal_those_of_one_resample_at_a_time(noise):
    a, references = simulate(120)
    b = (np.array(a) + np.random.default_rng(9).normal(0, noise, 120)).tolist()
    difference = naive_samples(a, references, 300, seed=2) - naive_samples(b, references, 300, seed=2)
    result = paired_bootstrap(a, b, references, num_resamples=300, seed=2)
    values_a, values_b = alignment_metrics(a, references), alignment_metrics(b, references)
    for i, name in enumerate(METRICS):
        at_most, at_least = np.mean(difference[:, i] <= 0), np.mean(difference[:, i] >= 0)
        expected = tuple(np.quantile(difference[:, i], [0.025, 0.975]))
        assert result[name]["difference"] == pytest.approx(values_a[name] - values_b[name], abs=1e-11)
        assert result[name]["interval"] == pytest.approx(expected, abs=1e-11)
        assert result[name]["p_value"] == pytest.approx(max(2 * min(at_most, at_least), 1 / 300))
    assert (result["SRCC"]["p_value"] > 0.1) == (noise < 1)
    json.dumps(result, allow_nan=False)


def test_a_better_system_is_told_from_a_worse_one():
    (a, references), (b, _) = simulate(400, noise=0.5), simulate(400, noise=3.0)
    forth = paired_bootstrap(a, b, references, num_resamples=500)
    back = paired_bootstrap(b, a, references, num_resamples=500)
    for name in METRICS:
        low, high = forth[name]["interval"]
        assert forth[name]["p_value"] == back[name]["p_value"] == 1 / 500
        assert back[name]["difference"] == -forth[name]["difference"]
        assert back[name]["interval"] == pytest.approx((-high, -low))
        assert (high < 0) if name == "MSE" else (low > 0)


def test_a_system_does_not_differ_from_itself_nor_from_its_calibration():
    predictions, references = simulate(100)
    calibrated = [value / 3 + 1000 for value in predictions]
    same = paired_bootstrap(predictions, predictions, references, num_resamples=100)
    moved = paired_bootstrap(predictions, calibrated, references, num_resamples=100)
    assert all(entry == {"difference": 0.0, "interval": (0.0, 0.0), "p_value": 1.0} for entry in same.values())
    assert [moved[name] == same[name] for name in METRICS] == [True, True, True, False]


def test_a_pair_missing_in_one_system_is_dropped_for_both():
    (a, references), (b, _) = simulate(60, noise=1.0), simulate(60, noise=2.0)
    with_nan = paired_bootstrap([NAN, *a, 1.0], [1.0, *b, NAN], [3.0, *references, 3.0], num_resamples=100)
    assert with_nan == paired_bootstrap(a, b, references, num_resamples=100)


@pytest.mark.parametrize("num_listeners", [2, 3, 4, 8])
def test_ceiling_is_what_a_perfect_predictor_reaches(num_listeners):
    generator = np.random.default_rng(num_listeners)
    expected = generator.normal(5, 2, 4000)
    ratings = expected[:, None] + generator.normal(0, 2.5, (4000, num_listeners))
    result = listeners_ceiling(ratings.tolist(), num_splits=10)
    reached = alignment_metrics(expected, ratings.mean(axis=1))["SRCC"]
    assert result["ceiling_srcc"] == pytest.approx(reached, abs=0.02)
    assert result["reliability"] == pytest.approx(4 / (4 + 2.5**2 / num_listeners), abs=0.03)
    assert result["within_pair_variance"] == pytest.approx(2.5**2, rel=0.05)
    assert all(type(value) is float for value in result.values())


def test_ceiling_of_whole_ratings_by_different_numbers_of_listeners():
    generator = np.random.default_rng(0)
    expected = generator.normal(5, 1.7, 4000)
    ratings = [np.clip(np.round(generator.normal(mean, 2, generator.integers(2, 8))), 0, 10) for mean in expected]
    reached = alignment_metrics(expected, [np.mean(pair) for pair in ratings])["SRCC"]
    assert listeners_ceiling(ratings, num_splits=10)["ceiling_srcc"] == pytest.approx(reached, abs=0.02)


def test_ceiling_by_hand():
    assert listeners_ceiling([[1, 1], [5, 5], [9, 9]]) == {
        "within_pair_variance": 0.0,
        "split_half_srcc": 1.0,
        "reliability": 1.0,
        "ceiling_srcc": 1.0,
    }
    unequal = listeners_ceiling([[1, 3], [4, 4, 7]])
    assert unequal["within_pair_variance"] == pytest.approx((1 + 1 + 1 + 1 + 4) / (1 + 2))
    noise = listeners_ceiling([[0, 10], [0, 10], [0, 10]] * 5, num_splits=1000)
    assert noise["split_half_srcc"] < 0
    assert (noise["reliability"], noise["ceiling_srcc"]) == (0.0, 0.0)


def test_four_listeners_follow_spearman_and_brown():
    ratings = np.random.default_rng(1).normal(np.arange(50)[:, None] / 10, 2, (50, 4))
    result = listeners_ceiling(ratings, seed=5)
    r = result["split_half_srcc"]
    assert result["reliability"] == pytest.approx(2 * r / (1 + r))
    assert result["ceiling_srcc"] == pytest.approx(math.sqrt(2 * r / (1 + r)))
    assert result == listeners_ceiling(ratings, seed=5)
    assert result != listeners_ceiling(ratings, seed=6)


BAD_RATINGS = [
    ([[1, 2]], "ratings of at least 2 pairs are needed, got 1"),
    ([[1, 2], [3]], "at least 2 ratings, pair 1 has 1"),
    ([[1, 2], [3, NAN]], "A rating is NaN or infinite"),
]


@pytest.mark.parametrize(("ratings", "message"), BAD_RATINGS)
def test_bad_ratings_are_refused(ratings, message):
    with pytest.raises(ValueError, match=message):
        listeners_ceiling(ratings)


def test_no_splits_are_refused():
    with pytest.raises(ValueError, match="num_splits must be at least 1"):
        listeners_ceiling([[1, 2], [3, 4]], num_splits=0)


def test_evaluate_module_gives_the_same_metrics():
    evaluate = pytest.importorskip("evaluate")
    folder = str(Path(resampling.__file__).parent / "xacle_metric")
    predictions, references = simulate(200)
    predictions[3] = NAN
    expected = alignment_metrics(predictions, references)
    assert evaluate.load(folder).compute(predictions=predictions, references=references) == expected
    metric = evaluate.load(folder)
    for start in range(0, 200, 64):
        rows = slice(start, start + 64)
        metric.add_batch(predictions=predictions[rows], references=references[rows])
    assert metric.compute() == expected
