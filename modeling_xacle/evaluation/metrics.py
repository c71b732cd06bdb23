"""The challenge's metrics of how well predictions agree with listeners."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import kendalltau, rankdata

# Products of the variances of larger values could leave the range of a float.
LARGEST_VALUE = 1e50


def checked_columns(**columns: ArrayLike) -> list[np.ndarray]:
    """Returns the columns in float64, each of shape `(num_used,)`, without the rows that have NaN in any column."""
    arrays = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
    for name, array in arrays.items():
        if array.ndim != 1:
            raise ValueError(f"{name} must have the shape (num_pairs,), got {array.shape}.")
        too_large = np.flatnonzero(np.abs(array) > LARGEST_VALUE)
        if len(too_large):
            raise ValueError(
                f"{name} must be finite and within {LARGEST_VALUE}, got {array[too_large[0]]} at {too_large[0]}."
            )
    if len({len(array) for array in arrays.values()}) > 1:
        lengths = ", ".join(f"{len(array)} {name}" for name, array in arrays.items())
        raise ValueError(f"Each pair must have a value in every column, got {lengths}.")
    table = np.stack(list(arrays.values()))
    used = table[:, ~np.isnan(table).any(axis=0)]
    if used.shape[1] < 2:
        raise ValueError(f"At least 2 pairs without NaN are needed, got {used.shape[1]} of {table.shape[1]} pairs.")
    return list(used)


def is_constant(values: np.ndarray) -> np.ndarray:
    """Returns True where all values along the last axis are the same: (..., N) -> (...)"""
    return (values == values[..., :1]).all(axis=-1)


def pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the correlation along the last axis, 0.0 where either side is constant: (..., N), (..., N) -> (...)"""
    # The mean of equal numbers may be rounded, so their variance may not be zero.
    constant = is_constant(x) | is_constant(y)
    x = x - x.mean(axis=-1, keepdims=True)
    y = y - y.mean(axis=-1, keepdims=True)
    norms = np.sqrt(np.vecdot(x, x) * np.vecdot(y, y))
    correlations = np.divide(np.vecdot(x, y), norms, out=np.zeros_like(norms), where=~constant & (norms > 0))
    return np.clip(correlations, -1.0, 1.0)


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the Pearson correlation of average ranks, 0.0 where either side is constant: (N,), (N,)"""
    return float(pearson(rankdata(x), rankdata(y)))


def kendall(x: np.ndarray, y: np.ndarray) -> float:
    """Returns Kendall's tau-b, 0.0 where either side is constant: (N,), (N,)"""
    return 0.0 if is_constant(x) or is_constant(y) else float(kendalltau(x, y).statistic)


class Metric(NamedTuple):
    """
    A metric of predictions against references.

    Fields:
        of (callable): Computes the metric of two columns `(N,)` without NaN.
        greater_is_better (`bool`): True if the greater of two values is the better.
        hub_name (`str`): The Hub's name of it.
        is_official (`bool`): True if the challenge's script gives it.
    """

    of: Callable[[np.ndarray, np.ndarray], float]
    greater_is_better: bool
    hub_name: str
    is_official: bool = False


METRICS = {
    "SRCC": Metric(spearman, True, "spearmanr", is_official=True),
    "LCC": Metric(lambda x, y: float(pearson(x, y)), True, "pearsonr", is_official=True),
    "KTAU": Metric(kendall, True, "kendalltau", is_official=True),
    "MSE": Metric(lambda x, y: float(np.mean((x - y) ** 2)), False, "mse", is_official=True),
}
# The metrics that tables and pictures of groups show where there is room for two.
SHOWN_METRICS = ("SRCC", "MSE")


def official_metrics(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """Returns the same as `alignment_metrics`, for columns that were checked."""
    return {**{name: metric.of(predictions, references) for name, metric in METRICS.items()}, "N": len(predictions)}


def alignment_metrics(predictions: ArrayLike, references: ArrayLike) -> dict[str, float]:
    """
    Returns the metrics of the XACLE challenge, equal to `evaluate.py` of its 2026 baseline, in n log n time.

    Args:
        predictions (array-like of shape `(num_pairs,)`): Predicted scores, in the unit of the references for MSE to
            mean something (0-10 in the challenge). They are not clipped.
        references (array-like of shape `(num_pairs,)`): Mean ratings of the same pairs, in the same order.

    Returns:
        `dict[str, float]`: `SRCC`, the Pearson correlation of average ranks, `LCC`, the Pearson correlation, and
        `KTAU`, Kendall's tau-b, in [-1, 1], and 0.0 where either side is constant; `MSE`, at least 0; `N` (an `int`),
        the number of pairs used: those with NaN on either side are dropped.

    Raises:
        ValueError: A side is not one-dimensional, the lengths differ, a value is infinite or beyond 1e50, or fewer
            than 2 pairs are without NaN.

    Example:
        >>> alignment_metrics([2.0, 4.0, 3.0, 9.0], [1.0, 3.0, 5.0, 9.0])["SRCC"]
        0.8
    """
    return official_metrics(*checked_columns(predictions=predictions, references=references))
