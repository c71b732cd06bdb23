"""Intervals and paired tests of the metrics, by bootstrap and permutation."""

from collections.abc import Callable, Iterator
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata, t

from .metrics import METRICS, checked_columns, is_constant, official_metrics, pearson

# Numbers in one working array: 8 MiB of float64.
CHUNK_ELEMENTS = 2**20
# Differences are rounded to these decimals: rounding errors alone would let an affine map of a system move its LCC.
DIFFERENCE_DECIMALS = 12


def mean_interval(values: np.ndarray) -> tuple[float, float] | None:
    """Returns the 95 % t interval of the mean of values `(N,)`; `None` for fewer than two."""
    if len(values) < 2:
        return None
    margin = float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - margin, float(values.mean()) + margin


def resample_indices(num_pairs: int, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """
    Yields the bootstrap's resamples, in chunks of bounded size: the same seed gives the same ones in the same order.

    Args:
        num_pairs (`int`): How many pairs there are to draw from, those with NaN not counted.
        num_resamples (`int`): How many resamples, over all chunks.
        seed (`int`): Seed of the random generator.

    Yields:
        `np.ndarray` of shape `(chunk_size, num_pairs)`: Row numbers in [0, num_pairs), drawn with replacement.
    """
    generator = np.random.default_rng(seed)
    chunk_size = max(1, CHUNK_ELEMENTS // num_pairs)
    for start in range(0, num_resamples, chunk_size):
        yield generator.integers(num_pairs, size=(min(chunk_size, num_resamples - start), num_pairs))


class _Column(NamedTuple):
    """
    A column in R resamples of its N rows.

    Fields:
        values (`np.ndarray` of shape `(R, N)`): Its numbers.
        ranks (`np.ndarray` of shape `(R, N)`): Their average ranks in the resample, from 1 to N.
        num_untied (`np.ndarray` of shape `(R,)`): How many of the N (N - 1) / 2 pairs of rows differ.
    """

    values: np.ndarray
    ranks: np.ndarray
    num_untied: np.ndarray


def _multiplicities(groups: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Counts each group in each resample: groups of the rows (N,), row numbers (R, N) -> (R, G)"""
    num_resamples, num_groups = len(indices), groups.max() + 1
    cells = groups[indices] + num_groups * np.arange(num_resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=num_resamples * num_groups).reshape(num_resamples, num_groups)


def _resample(values: np.ndarray, groups: np.ndarray, indices: np.ndarray) -> _Column:
    """Resamples a column (N,), given the place of each value among the distinct ones, by row numbers (R, N)."""
    counts = _multiplicities(groups, indices)  # (R, N) -> (R, G)
    # No resample is sorted: c equal values after m smaller ones have the ranks m + 1 to m + c.
    group_ranks = counts.cumsum(axis=1) - (counts - 1) / 2
    ranks = np.take_along_axis(group_ranks, groups[indices], axis=1)  # (R, G) -> (R, N)
    num_rows = len(values)
    num_untied = (num_rows * (num_rows - 1) - (counts * (counts - 1)).sum(axis=1)) / 2
    return _Column(values[indices], ranks, num_untied)


def _concordance(x_groups: np.ndarray, y_groups: np.ndarray, multiplicities: np.ndarray) -> np.ndarray:
    """
    Counts concordant less discordant pairs of each resample: groups of two columns (N,), multiplicities (R, N) -> (R,)

    With S[i, j] = sign(x_i - x_j) sign(y_i - y_j) and the multiplicities w, it is w' S w / 2, one matrix product for
    all resamples. S is made block by block of its columns, above the diagonal. All numbers are halves of integers,
    exact in float32 while below 2^23: up to some 500,000 pairs.
    """
    x, y, weights = (array.astype(np.float32) for array in (x_groups, y_groups, multiplicities))
    concordance = np.zeros(len(weights))
    width = max(1, CHUNK_ELEMENTS // len(x))
    for start in range(0, len(x), width):
        stop = min(start + width, len(x))
        signs = np.sign(x[:stop, None] - x[start:stop]) * np.sign(y[:stop, None] - y[start:stop])
        signs[start:] /= 2  # the block on the diagonal has its pairs in both orders
        concordance += ((weights[:, :stop] @ signs) * weights[:, start:stop]).sum(axis=1, dtype=np.float64)
    return concordance


def _tau_b(concordance: np.ndarray, x: _Column, y: _Column) -> np.ndarray:
    """Returns Kendall's tau-b, 0.0 where either side is constant: (R,)"""
    norms = np.sqrt(x.num_untied * y.num_untied)
    return np.clip(np.divide(concordance, norms, out=np.zeros_like(norms), where=norms > 0), -1.0, 1.0)


def _resampled_metrics(columns: list[np.ndarray], num_resamples: int, seed: int) -> np.ndarray:
    """Returns `METRICS` of S systems against the last of the columns (S + 1, N), in each resample: (M, S, R)"""
    groups = [np.unique(column, return_inverse=True)[1] for column in columns]
    chunks = []
    for indices in resample_indices(len(columns[0]), num_resamples, seed):
        rows = _multiplicities(np.arange(len(columns[0])), indices)
        *systems, y = [_resample(column, group, indices) for column, group in zip(columns, groups, strict=True)]
        concordances = [_concordance(group, groups[-1], rows) for group in groups[:-1]]
        fast = {
            "SRCC": [pearson(x.ranks, y.ranks) for x in systems],
            "LCC": [pearson(x.values, y.values) for x in systems],
            "KTAU": [_tau_b(c, x, y) for c, x in zip(concordances, systems, strict=True)],
            "MSE": [((x.values - y.values) ** 2).mean(axis=1) for x in systems],
        }
        chunks.append(
            [
                fast[name] if name in fast else [_one_by_one(metric.of, x.values, y.values) for x in systems]
                for name, metric in METRICS.items()
            ]
        )
    return np.concatenate(chunks, axis=-1)


def _one_by_one(of: Callable[[np.ndarray, np.ndarray], float], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns a metric of each row: (R, N), (R, N) -> (R,)"""
    return np.array([of(*columns) for columns in zip(x, y, strict=True)])


def _check_bootstrap(num_resamples: int, confidence: float) -> None:
    if num_resamples < 1:
        raise ValueError(f"num_resamples must be at least 1, got {num_resamples}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, such as 0.95, got {confidence}.")


def _interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """Returns the ends of the middle share of the samples (R,)."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _p_value(differences: np.ndarray) -> float:
    """Returns the two-sided p-value of the resampled differences (R,)."""
    share = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(np.clip(2 * share, 1 / len(differences), 1.0))


class PairedDifference(TypedDict):
    """
    A metric of system a less that of system b.

    Fields:
        difference (`float`): On all pairs. Above 0, a is better by SRCC, LCC and KTAU, and worse by MSE.
        interval (`tuple[float, float]`): Percentile bootstrap interval of the difference.
        p_value (`float`): Two-sided, in [1 / num_resamples, 1].
    """

    difference: float
    interval: tuple[float, float]
    p_value: float


def bootstrap_intervals(
    predictions: ArrayLike,
    references: ArrayLike,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """
    Returns percentile bootstrap intervals of metrics (Efron and Tibshirani, An Introduction to the Bootstrap, ch. 13).

    Pairs are drawn with replacement; a metric of a resample is what `alignment_metrics` gives for it. The intervals
    show the uncertainty from the choice of pairs, not that from the choice of listeners. KTAU takes time
    with the square of `num_pairs`, the others in proportion to it; memory stays at some 100 MB.

    Args:
        predictions (array-like of shape `(num_pairs,)`): As for `alignment_metrics`.
        references (array-like of shape `(num_pairs,)`): As for `alignment_metrics`.
        num_resamples (`int`): How many resamples, at least 1.
        confidence (`float`): Share of the resamples within an interval, between 0 and 1.
        seed (`int`): As for `resample_indices`.

    Returns:
        `dict[str, tuple[float, float]]`: Lower and upper end for `SRCC`, `LCC`, `KTAU` and `MSE`.

    Raises:
        ValueError: As for `alignment_metrics`; or `num_resamples` or `confidence` is out of range.
    """
    _check_bootstrap(num_resamples, confidence)
    columns = checked_columns(predictions=predictions, references=references)
    samples = _resampled_metrics(columns, num_resamples, seed)[:, 0]  # (M, 1, R) -> (M, R)
    return {name: _interval(samples[row], confidence) for row, name in enumerate(METRICS)}


def paired_bootstrap(
    predictions_a: ArrayLike,
    predictions_b: ArrayLike,
    references: ArrayLike,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """
    Tests whether system a is better than b. Both are measured on the same resamples, so what makes one easy cancels.

    Args:
        predictions_a (array-like of shape `(num_pairs,)`): Scores of system a, as for `alignment_metrics`.
        predictions_b (array-like of shape `(num_pairs,)`): Scores of system b for the same pairs. A pair with NaN in
            either system or in the references is dropped for both.
        references (array-like of shape `(num_pairs,)`): As for `alignment_metrics`.
        num_resamples (`int`): How many resamples, at least 1.
        confidence (`float`): Share of the resamples within an interval, between 0 and 1.
        seed (`int`): As for `resample_indices`.

    Returns:
        `dict[str, PairedDifference]`: For `SRCC`, `LCC`, `KTAU` and `MSE`, the difference a - b, its interval, and
        its p-value: twice the smaller of the shares of resampled differences that are <= 0 and >= 0.

    Raises:
        ValueError: As for `bootstrap_intervals`.
    """
    _check_bootstrap(num_resamples, confidence)
    a, b, y = checked_columns(predictions_a=predictions_a, predictions_b=predictions_b, references=references)
    metrics_a, metrics_b = official_metrics(a, y), official_metrics(b, y)
    samples = _resampled_metrics([a, b, y], num_resamples, seed)
    differences = np.round(samples[:, 0] - samples[:, 1], DIFFERENCE_DECIMALS)  # (M, 2, R) -> (M, R)
    return {
        name: PairedDifference(
            difference=round(metrics_a[name] - metrics_b[name], DIFFERENCE_DECIMALS),
            interval=_interval(differences[row], confidence),
            p_value=_p_value(differences[row]),
        )
        for row, name in enumerate(METRICS)
    }


def _swap_signs(num_pairs: int, num_permutations: int, seed: int) -> Iterator[np.ndarray]:
    """Yields, in chunks of bounded size, +1 where a pair keeps its two scores and -1 where they are swapped: (R, N)"""
    generator = np.random.default_rng(seed)
    chunk_size = max(1, CHUNK_ELEMENTS // num_pairs)
    for start in range(0, num_permutations, chunk_size):
        shape = (min(chunk_size, num_permutations - start), num_pairs)
        yield generator.integers(2, size=shape, dtype=np.int8) * 2.0 - 1.0


def _swapped_sums(signs: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the sums of two columns (N,), after swapping, for both: signs (R, N) -> (2, R)"""
    moved = signs @ ((a - b) / 2)
    return (a + b).sum() / 2 + np.stack([moved, -moved])


def _swapped_pearson(signs: np.ndarray, a: np.ndarray, b: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns correlations with y (N,) of two standardised columns (N,), after swapping: signs (R, N) -> (2, R)"""
    y = _standardised(y)
    means, squares, products = (_swapped_sums(signs, u, v) / len(y) for u, v in ((a, b), (a**2, b**2), (a * y, b * y)))
    deviations = np.sqrt(np.clip(squares - means**2, 0.0, None))
    return np.divide(products, deviations, out=np.zeros_like(products), where=deviations > 1e-7)


def _standardised(values: np.ndarray) -> np.ndarray:
    """Returns values with mean 0 and variance 1; zeros if all values are the same: (N,) -> (N,)"""
    deviation = values.std()  # 0 also where the squares of differences are too small to be told from 0
    if is_constant(values) or deviation == 0:
        return np.zeros_like(values)
    return (values - values.mean()) / deviation


class _SwappedConcordance:
    """
    Concordant less discordant pairs of two columns against y, after swapping.

    With signs t, the swapped column holds in place i the value of a where t_i = 1 and that of b where t_i = -1. Its
    sign matrix is a polynomial in t_i and t_j, so the concordance is c + t' l + t' Q t, of which the other system's
    (signs -t) differs in the linear term alone. Q is symmetric; 8 Q holds integers of at most 4, exact in float32.
    """

    def __init__(self, a: np.ndarray, b: np.ndarray, y: np.ndarray):
        num_pairs = len(y)
        self.constant, self.linear = 0.0, np.zeros(num_pairs)
        self.quadratic = np.empty((num_pairs, num_pairs), dtype=np.float32)
        width = max(1, CHUNK_ELEMENTS // num_pairs)
        for start in range(0, num_pairs, width):
            block = slice(start, start + width)
            of_y = np.sign(y[block, None] - y)
            aa, ab, ba, bb = (of_y * np.sign(u[block, None] - v) for u in (a, b) for v in (a, b))
            self.constant += (aa + ab + ba + bb).sum() / 8
            self.linear[block] = (aa + ab - ba - bb).sum(axis=1) / 4
            self.quadratic[block] = aa - ab - ba + bb

    def __call__(self, signs: np.ndarray) -> np.ndarray:
        """Returns the concordance of both columns: signs (R, N) -> (2, R)"""
        even = self.constant + ((signs.astype(np.float32) @ self.quadratic) * signs).sum(axis=1) / 8
        odd = signs @ self.linear
        return np.stack([even + odd, even - odd])


def _swapped_untied(signs: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Counts the pairs of rows that differ in each of two columns (N,), after swapping: signs (R, N) -> (2, R)"""
    groups = np.unique(np.concatenate([a, b]), return_inverse=True)[1]
    num_rows, rows = len(a), np.arange(len(a))
    untied = []
    for kept in (signs > 0, signs < 0):
        counts = _multiplicities(groups, np.where(kept, rows, rows + num_rows))  # (R, N) -> (R, G)
        untied.append((num_rows * (num_rows - 1) - (counts * (counts - 1)).sum(axis=1)) / 2)
    return np.stack(untied)


def paired_permutation_test(
    predictions_a: ArrayLike,
    predictions_b: ArrayLike,
    references: ArrayLike,
    num_permutations: int = 10_000,
    seed: int = 0,
) -> dict[str, float]:
    """
    Tests whether the difference of two systems could come from chance alone. If neither is better, the two scores of a
    pair may be swapped; a difference is significant if few such swaps give one as large.

    Systems on different scales could not be swapped as they are. So, as Deutsch et al. (2021, TACL 9, "A Statistical
    Analysis of Summarization Evaluation Metrics using Resampling Methods") do, standardised scores are swapped for LCC,
    and ranks for SRCC and KTAU; for SRCC, the swapped ranks are correlated without ranking them anew. MSE takes the
    scores themselves. KTAU takes memory and time with the square of `num_pairs`.

    Args:
        predictions_a (array-like of shape `(num_pairs,)`): Scores of system a, as for `paired_bootstrap`.
        predictions_b (array-like of shape `(num_pairs,)`): Scores of system b for the same pairs.
        references (array-like of shape `(num_pairs,)`): As for `alignment_metrics`.
        num_permutations (`int`): How many random swaps, at least 1.
        seed (`int`): Seed of the swaps.

    Returns:
        `dict[str, float]`: For `SRCC`, `LCC`, `KTAU` and `MSE`, the two-sided p-value: the share of swaps, the one that
        was observed included, with a difference at least as large, in [1 / (num_permutations + 1), 1].

    Raises:
        ValueError: As for `alignment_metrics`; or `num_permutations` is below 1.
    """
    if num_permutations < 1:
        raise ValueError(f"num_permutations must be at least 1, got {num_permutations}.")
    a, b, y = checked_columns(predictions_a=predictions_a, predictions_b=predictions_b, references=references)
    differences = _swapped_differences(a, b, y)
    observed = differences(np.ones((1, len(y))))  # (M, 1)
    # What is as large as the observed difference must count as such, whatever its rounding.
    least = np.abs(observed) - 10.0**-DIFFERENCE_DECIMALS
    counts = sum(
        (np.abs(differences(signs)) >= least).sum(axis=1) for signs in _swap_signs(len(y), num_permutations, seed)
    )
    return {name: float((1 + count) / (1 + num_permutations)) for name, count in zip(METRICS, counts, strict=True)}


def _swapped_differences(a: np.ndarray, b: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Returns, for columns (N,), a function from signs (R, N) to differences of `METRICS` after swapping, (M, R)."""
    rank_a, rank_b, rank_y = rankdata(a), rankdata(b), rankdata(y)
    errors_a, errors_b = (a - y) ** 2, (b - y) ** 2
    concordance = _SwappedConcordance(rank_a, rank_b, rank_y)
    counts = np.unique(y, return_counts=True)[1]
    untied_y = (len(y) * (len(y) - 1) - (counts * (counts - 1)).sum()) / 2

    def differences(signs: np.ndarray) -> np.ndarray:
        """Signs (R, N) -> (M, R)"""
        norms = np.sqrt(_swapped_untied(signs, rank_a, rank_b) * untied_y)
        fast = {
            "SRCC": _swapped_pearson(signs, _standardised(rank_a), _standardised(rank_b), rank_y),
            "LCC": _swapped_pearson(signs, _standardised(a), _standardised(b), y),
            "KTAU": np.divide(concordance(signs), norms, out=np.zeros_like(norms), where=norms > 0),
            "MSE": _swapped_sums(signs, errors_a, errors_b) / len(y),
        }
        kept, references = signs > 0, np.broadcast_to(y, signs.shape)
        of_both = [
            fast[name]
            if name in fast
            else [_one_by_one(metric.of, np.where(kept, *pair), references) for pair in ((a, b), (b, a))]
            for name, metric in METRICS.items()
        ]
        return np.array([first - second for first, second in of_both])  # (M, 2, R) -> (M, R)

    return differences
