"""Compares systems: which is better, and is it chance? Tests on the same pairs, and where the systems differ."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import kendalltau
from tqdm import tqdm

from ..data.columns import PREDICTION_COLUMNS, REFERENCE_COLUMNS
from .metrics import METRICS, alignment_metrics
from .resampling import paired_bootstrap, paired_permutation_test
from .score_tables import Key, check_sides, join_tables, read_score_table, text_table


class Systems(NamedTuple):
    """
    Scores of S systems for the same N pairs.

    Fields:
        names (`list[str]` of length S): Their names.
        predictions (`np.ndarray` of shape `(S, N)`): Their scores, none of them NaN.
        references (`np.ndarray` of shape `(N,)`): Mean ratings, none of them NaN.
        keys (`list[tuple[str, ...]]` of length N): What tells the pairs apart.
        num_dropped (`int`): Pairs that were left out because a system or the reference has no score.
    """

    names: list[str]
    predictions: np.ndarray
    references: np.ndarray
    keys: list[Key]
    num_dropped: int


def read_systems(
    predictions: Sequence[str | Path],
    reference: str | Path,
    key_columns: Sequence[str] | None = None,
    prediction_columns: Sequence[str] = PREDICTION_COLUMNS,
    reference_columns: Sequence[str] = REFERENCE_COLUMNS,
) -> Systems:
    """
    Read and join the tables of at least two systems, and their reference.

    Raises:
        FileNotFoundError: A table is not there.
        ValueError: A table cannot be read; the tables do not have the same rows; or fewer than 2 pairs are left.
    """
    tables = [read_score_table(path, prediction_columns, key_columns) for path in predictions]
    truth = read_score_table(reference, reference_columns, key_columns)
    scores = join_tables([*tables, truth])
    for table, predictions_of in zip(tables, scores, strict=False):
        check_sides(table, truth, np.stack([predictions_of, scores[-1]]), prediction_columns)
    used = np.flatnonzero(~np.isnan(scores).any(axis=0))
    if len(used) < 2:
        names = ", ".join(map(str, [*predictions, reference]))
        raise ValueError(f"{names}: at least 2 pairs with a score in every table are needed, got {len(used)}.")
    keys = [truth.keys[index] for index in used]
    return Systems(
        system_names(predictions), scores[:-1, used], scores[-1, used], keys, num_dropped=scores.shape[1] - len(used)
    )


def system_names(paths: Sequence[str | Path]) -> list[str]:
    """
    Returns the names of files without their suffixes; whole paths if those would be the same, and with a number where a
    file is repeated.
    """
    paths = list(map(str, paths))
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(set(paths)):
        names = paths
    counts = [names[:place].count(name) for place, name in enumerate(names)]
    return [f"{name} ({count + 1})" if count else name for name, count in zip(names, counts, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """
    Adjusts the p-values of several tests so that the chance of any false alarm stays at the level (Holm 1979, Scand. J.
    Statistics 6): the smallest times the number of tests, the next times one less, and so on, none below its
    predecessor, at most 1.

    Args:
        p_values (`Sequence[float]`): In any order, which is kept.
    """
    p_values = np.asarray(p_values, dtype=np.float64)
    order = p_values.argsort(kind="stable")
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    return np.minimum(adjusted, 1.0).tolist()


def compare_two(
    predictions_a: np.ndarray, predictions_b: np.ndarray, references: np.ndarray, num_resamples: int, seed: int
) -> dict[str, Any]:
    """
    Compares system a with system b.

    Args:
        predictions_a (`np.ndarray` of shape `(N,)`), predictions_b (`np.ndarray` of shape `(N,)`): Their scores.
        references (`np.ndarray` of shape `(N,)`): Mean ratings.
        num_resamples (`int`): Resamples of the bootstrap, and swaps of the permutation test.
        seed (`int`): Seed of both.

    Returns:
        `dict`: `metrics`, for each the `difference` a - b, its 95 % `interval`, `p_bootstrap` and `p_permutation`;
        `wins`, `ties` and `losses`, how often the absolute error of a is the smaller, the same, the larger; and
        `kendall`, tau-b between the systems (0.0 where one is constant).
    """
    bootstrap = paired_bootstrap(predictions_a, predictions_b, references, num_resamples, seed=seed)
    permutation = paired_permutation_test(predictions_a, predictions_b, references, num_resamples, seed=seed)
    gains = np.abs(predictions_b - references) - np.abs(predictions_a - references)
    tau = kendalltau(predictions_a, predictions_b).statistic
    return {
        "metrics": {
            name: {
                "difference": found["difference"],
                "interval": found["interval"],
                "p_bootstrap": found["p_value"],
                "p_permutation": permutation[name],
            }
            for name, found in bootstrap.items()
        },
        "wins": int((gains > 0).sum()),
        "ties": int((gains == 0).sum()),
        "losses": int((gains < 0).sum()),
        "kendall": 0.0 if np.isnan(tau) else float(tau),
    }


def _largest_differences(systems: Systems, first: int, second: int, count: int) -> list[dict[str, Any]]:
    """Returns the pairs on which two systems differ most, the largest difference first."""
    a, b = systems.predictions[first], systems.predictions[second]
    return [
        {
            "pair": " | ".join(systems.keys[place]),
            "a": float(a[place]),
            "b": float(b[place]),
            "reference": float(systems.references[place]),
        }
        for place in np.argsort(-np.abs(a - b), kind="stable")[:count].tolist()
    ]


def compare_systems(
    systems: Systems, num_resamples: int = 10_000, seed: int = 0, num_differences: int = 10
) -> dict[str, Any]:
    """
    Compares every system with every other, ready for JSON.

    Args:
        systems (`Systems`): At least two.
        num_resamples (`int`), seed (`int`): As for `compare_two`.
        num_differences (`int`): How many pairs to list on which two systems differ most.

    Returns:
        `dict`: `systems`, the metrics of each; `comparisons`, for each two, `a`, `b`, what `compare_two` gives, and
        `largest_differences`; with more than two systems, each metric also has `p_holm`, the p-value of its permutation
        test adjusted for the number of comparisons; `num_dropped`.
    """
    comparisons = [
        {
            "a": systems.names[i],
            "b": systems.names[j],
            **compare_two(systems.predictions[i], systems.predictions[j], systems.references, num_resamples, seed),
            "largest_differences": _largest_differences(systems, i, j, num_differences),
        }
        for i, j in tqdm(list(combinations(range(len(systems.names)), 2)), desc="comparisons", disable=None)
    ]
    if len(comparisons) > 1:
        for name in METRICS:
            adjusted = holm([one["metrics"][name]["p_permutation"] for one in comparisons])
            for one, p_value in zip(comparisons, adjusted, strict=True):
                one["metrics"][name]["p_holm"] = p_value
    measured = zip(systems.names, systems.predictions, strict=True)
    return {
        "systems": {name: alignment_metrics(predictions, systems.references) for name, predictions in measured},
        "comparisons": comparisons,
        "num_dropped": systems.num_dropped,
        "num_resamples": num_resamples,
        "seed": seed,
    }


def p_value_matrix(comparison: Mapping[str, Any], metric: str) -> list[list[float | None]]:
    """Returns Holm's p-values of a metric, (S, S) and symmetric, `None` on the diagonal, in the order of `systems`."""
    names = list(comparison["systems"])
    matrix: list[list[float | None]] = [[None] * len(names) for _ in names]
    for one in comparison["comparisons"]:
        i, j = names.index(one["a"]), names.index(one["b"])
        matrix[i][j] = matrix[j][i] = one["metrics"][metric]["p_holm"]
    return matrix


def _comparison_text(one: Mapping[str, Any]) -> str:
    """Returns the comparison of two systems as tables."""
    rows = [
        [
            name,
            f"{found['difference']:+.4f}",
            f"{found['interval'][0]:+.4f} to {found['interval'][1]:+.4f}",
            f"{found['p_bootstrap']:.4f}",
            f"{found['p_permutation']:.4f}",
        ]
        for name, found in one["metrics"].items()
    ]
    header = ["metric", "difference", "95 % interval", "p (bootstrap)", "p (permutation)"]
    counts = f"{one['wins']} nearer to the listeners, {one['ties']} as near, {one['losses']} farther"
    parts = [
        f"{one['a']} less {one['b']}\n{text_table(header, rows)}",
        f"{one['a']}: {counts}; Kendall's tau between the two: {one['kendall']:.4f}",
    ]
    if differing := one["largest_differences"]:
        cells = [[row["pair"], *(f"{value:.2f}" for value in list(row.values())[1:])] for row in differing]
        parts.append("They differ most on\n" + text_table(["pair", one["a"], one["b"], "reference"], cells))
    return "\n\n".join(parts)


def comparison_text(comparison: Mapping[str, Any]) -> str:
    """Returns the comparison as tables for a terminal."""
    names = list(comparison["systems"])
    rows = [
        [name, *(f"{of[metric]:.4f}" for metric in METRICS), str(of["N"])] for name, of in comparison["systems"].items()
    ]
    parts = [text_table(["system", *METRICS, "N"], rows), *map(_comparison_text, comparison["comparisons"])]
    if len(names) > 2:
        for metric in METRICS:
            matrix = p_value_matrix(comparison, metric)
            cells = [["-" if p is None else f"{p:.4f}" for p in line] for line in matrix]
            header = [f"{metric}: p (Holm)", *names]
            parts.append(text_table(header, [[name, *line] for name, line in zip(names, cells, strict=True)]))
    return "\n\n".join(parts)
