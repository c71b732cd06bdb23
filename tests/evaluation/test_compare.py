"""`xacle compare`: the permutation test against every permutation, Holm's correction, and the command."""

import csv
import json
import math
from itertools import product

import numpy as np
import pytest
from scipy.stats import kendalltau, rankdata

from modeling_xacle.evaluation.compare import (
    compare_systems,
    compare_two,
    holm,
    p_value_matrix,
    read_systems,
    system_names,
)
from modeling_xacle.evaluation.metrics import METRICS
from modeling_xacle.evaluation.resampling import paired_bootstrap, paired_permutation_test

QUICK = ("--resamples", 200)


def simulate(count, *noises, seed=0):
    """References in quarters, and systems of these noises, on scales of their own."""
    generator = np.random.default_rng(seed)
    references = generator.integers(0, 41, count) / 4
    systems = [(1 + place) * (references + generator.normal(0, noise, count)) for place, noise in enumerate(noises)]
    return references, systems


def standardised(values):
    return (values - values.mean()) / values.std() if np.ptp(values) else np.zeros(len(values))


def pearson(x, y):
    return float(np.corrcoef(x, y)[0, 1]) if np.ptp(x) > 1e-9 and np.ptp(y) > 1e-9 else 0.0


def tau(x, y):
    return 0.0 if np.ptp(x) == 0 or np.ptp(y) == 0 else kendalltau(x, y).statistic


def exact_p_values(a, b, y):
    """Shares of all swaps with a difference at least as large, one swap at a time."""
    ranks = [rankdata(column) for column in (a, b, y)]
    statistics = {
        "SRCC": (standardised(ranks[0]), standardised(ranks[1]), lambda x: pearson(x, ranks[2])),
        "LCC": (standardised(a), standardised(b), lambda x: pearson(x, y)),
        "KTAU": (ranks[0], ranks[1], lambda x: tau(x, y)),
        "MSE": (a, b, lambda x: float(np.mean((x - y) ** 2))),
    }
    result = {}
    for name, (u, v, measure) in statistics.items():
        swaps = [np.array(kept) for kept in product([True, False], repeat=len(y))]
        found = np.array([measure(np.where(kept, u, v)) - measure(np.where(kept, v, u)) for kept in swaps])
        result[name] = float((np.abs(found) >= abs(found[0]) - 1e-9).mean())
    return result


@pytest.mark.parametrize("seed", range(4))
def test_permutation_test_approaches_all_permutations(seed):
    generator = np.random.default_rng(seed)
    y = generator.integers(0, 6, 8) / 2
    a, b = y + generator.normal(0, 0.6, 8), 3 * np.round(y + generator.normal(0, 2, 8))
    found = paired_permutation_test(a, b, y, num_permutations=20_000, seed=seed)
    assert found == pytest.approx(exact_p_values(a, b, y), abs=0.015)


def test_permutation_test_holds_its_level():
    generator = np.random.default_rng(0)
    p_values = {name: [] for name in METRICS}
    for _ in range(200):
        y = generator.integers(0, 20, 60) / 4
        a, b = y + generator.normal(0, 2, (2, 60))
        for name, p_value in paired_permutation_test(a, 2 * b + 1, y, num_permutations=99).items():
            p_values[name].append(p_value)
    for name in ("SRCC", "LCC", "KTAU"):
        assert 0.01 <= np.mean(np.array(p_values[name]) <= 0.05) <= 0.1
    assert max(p_values["MSE"]) == 0.01  # on the raw scale the second system is far off


def test_permutation_test_properties():
    y, (a, b) = simulate(300, 1.0, 4.0)
    found = paired_permutation_test(a, b, y, 999)
    assert found == paired_permutation_test(a, b, y, 999)
    assert all(found[name] == 0.001 for name in METRICS)
    assert paired_permutation_test(a, a, y, 99) == dict.fromkeys(METRICS, 1.0)
    swapped = paired_permutation_test(b, a, y, 999)
    assert swapped == found
    scaled = paired_permutation_test(7 * a + 3, b, y, 999)
    assert all(scaled[name] == found[name] for name in ("SRCC", "LCC", "KTAU"))


def test_permutation_test_of_awkward_columns():
    y, (a, b) = simulate(50, 1.0, 2.0)
    constant = paired_permutation_test(np.full(50, 5.0), a, y, 99)
    assert constant["SRCC"] == 0.01
    assert paired_permutation_test(a, b, np.full(50, 5.0), 99)["KTAU"] == 1.0
    assert paired_permutation_test([1.0, 2.0], [2.0, 1.0], [1.0, 2.0], 99)["MSE"] > 0.3
    holes = a.copy()
    holes[3] = math.nan
    expected = paired_permutation_test(np.delete(a, 3), np.delete(b, 3), np.delete(y, 3), 99)
    assert paired_permutation_test(holes, b, y, 99) == expected
    with pytest.raises(ValueError, match="num_permutations must be at least 1"):
        paired_permutation_test(a, b, y, 0)
    with pytest.raises(ValueError, match="At least 2 pairs"):
        paired_permutation_test([1.0], [1.0], [1.0])


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]


def test_two_systems_of_3000_pairs_against_loops():
    y, (a, b) = simulate(3000, 2.0, 2.0)
    b = b / 2
    b[:100] = a[:100]
    found = compare_two(a, b, y, num_resamples=20, seed=3)
    bootstrap = paired_bootstrap(a, b, y, num_resamples=20, seed=3)
    for name in METRICS:
        assert found["metrics"][name]["difference"] == bootstrap[name]["difference"]
        assert found["metrics"][name]["interval"] == bootstrap[name]["interval"]
        assert found["metrics"][name]["p_bootstrap"] == bootstrap[name]["p_value"]
    nearer = [abs(p - r) - abs(q - r) for p, q, r in zip(a, b, y, strict=True)]
    assert found["wins"] == sum(value < 0 for value in nearer)
    assert found["losses"] == sum(value > 0 for value in nearer)
    assert found["ties"] == 100
    signs = [np.sign(np.subtract.outer(column, column)) for column in (a, b)]
    assert found["kendall"] == pytest.approx((signs[0] * signs[1]).sum() / np.abs(signs[0] * signs[1]).sum())


def write(path, names, values, column="pred_score"):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["wav_file_name", column], *zip(names, values, strict=True)])
    return path


@pytest.fixture
def tables(tmp_path):
    """Three systems, one of them shuffled, and their reference."""
    y, systems = simulate(60, 1.0, 3.0, 3.2)
    names = [f"{row:03d}.wav" for row in range(60)]
    paths = [write(tmp_path / f"{name}.csv", names, system) for name, system in zip("abc", systems, strict=True)]
    write(paths[1], names[::-1], systems[1][::-1])
    return paths, write(tmp_path / "r.csv", names, y, "average_score")


def test_help(xacle):
    text = xacle("compare", "--help")
    assert all(word in text for word in ("--reference", "--resamples", "--seed", "--differences", "--json"))


def test_three_systems_as_json(tables, xacle):
    paths, reference = tables
    result = json.loads(xacle("compare", *paths, "--reference", reference, *QUICK, "--json", "--differences", 4))
    assert [(one["a"], one["b"]) for one in result["comparisons"]] == [("a", "b"), ("a", "c"), ("b", "c")]
    systems = read_systems(paths, reference)
    assert result == json.loads(json.dumps(compare_systems(systems, 200, 0, 4)))
    for name in METRICS:
        raw = [one["metrics"][name]["p_permutation"] for one in result["comparisons"]]
        assert [one["metrics"][name]["p_holm"] for one in result["comparisons"]] == holm(raw)
        matrix = p_value_matrix(result, name)
        assert matrix[0][1] == matrix[1][0] == holm(raw)[0]
        assert [matrix[place][place] for place in range(3)] == [None] * 3
    first = result["comparisons"][0]
    gaps = np.abs(systems.predictions[0] - systems.predictions[1])
    assert [row["pair"] for row in first["largest_differences"]] == [
        systems.keys[place][0] for place in np.argsort(-gaps, kind="stable")[:4]
    ]


def test_two_systems_as_text(tables, xacle):
    paths, reference = tables
    text = xacle("compare", *paths[:2], "--reference", reference, *QUICK)
    lines = text.splitlines()
    assert lines[0].split() == ["system", "SRCC", "LCC", "KTAU", "MSE", "N"]
    assert lines[4] == "a less b"
    assert "Kendall's tau between the two" in text
    assert "They differ most on" in text
    assert "Holm" not in text
    assert "SRCC: p (Holm)" in xacle("compare", *paths, "--reference", reference, *QUICK, "--differences", 0)


def test_a_system_that_is_compared_with_itself(tables, xacle):
    paths, reference = tables
    result = json.loads(xacle("compare", paths[0], paths[0], "--reference", reference, *QUICK, "--json"))
    [one] = result["comparisons"]
    assert list(result["systems"]) == ["a", "a (2)"]
    assert (one["wins"], one["ties"], one["losses"], one["kendall"]) == (0, 60, 0, pytest.approx(1))
    assert all(found["p_permutation"] == 1 for found in one["metrics"].values())


def test_names():
    assert system_names(["x/a.csv", "y/b.csv"]) == ["a", "b"]
    assert system_names(["x/a.csv", "y/a.csv"]) == ["x/a.csv", "y/a.csv"]
    assert system_names(["a.csv", "a.csv", "b.csv"]) == ["a", "a (2)", "b"]


def test_refusals(tables, tmp_path, xacle):
    paths, reference = tables
    names = [f"{row:03d}.wav" for row in range(60)]
    assert "two tables of predictions or more" in xacle("compare", paths[0], "--reference", reference, expect=2)
    short = write(tmp_path / "short.csv", names[1:], range(59))
    message = xacle("compare", paths[0], short, "--reference", reference, expect=1)
    assert "short.csv: 1 missing (in" in message
    doubled = write(tmp_path / "doubled.csv", [*names, names[0]], range(61))
    assert "1 duplicate: 000.wav" in xacle("compare", paths[0], doubled, "--reference", reference, expect=1)
    other = write(tmp_path / "other.csv", ["new.wav", *names[1:]], range(60))
    assert "1 extra (not in" in xacle("compare", paths[0], other, "--reference", reference, expect=1)
    empty = write(tmp_path / "empty.csv", names, [math.nan] * 60)
    assert "at least 2 pairs" in xacle("compare", paths[0], empty, "--reference", reference, expect=1)
    assert "no such table" in xacle("compare", paths[0], "gone.csv", "--reference", reference, expect=1)


def test_constant_and_nan_scores(tables, tmp_path, xacle):
    paths, reference = tables
    names = [f"{row:03d}.wav" for row in range(60)]
    constant = write(tmp_path / "constant.csv", names, [math.nan] + [5] * 59)
    result = json.loads(xacle("compare", paths[0], constant, "--reference", reference, *QUICK, "--json"))
    assert result["num_dropped"] == 1
    systems = read_systems([paths[0], constant], reference)
    assert systems.keys == [(name,) for name in names[1:]]
    assert result["systems"]["constant"]["SRCC"] == 0
    assert result["comparisons"][0]["kendall"] == 0
