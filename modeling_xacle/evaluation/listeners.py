"""The listeners' ceiling: how well one half of the listeners predicts the other."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np

from .metrics import spearman


def _rating_table(ratings: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ratings with NaN after the last of a pair, (P, K), and how many each pair has, (P,)."""
    num_ratings = np.array([len(pair) for pair in ratings])
    if len(num_ratings) < 2:
        raise ValueError(f"The ratings of at least 2 pairs are needed, got {len(num_ratings)}.")
    if num_ratings.min() < 2:
        raise ValueError(
            f"Each pair must have at least 2 ratings, pair {num_ratings.argmin()} has {num_ratings.min()}."
        )
    table = np.array(list(zip_longest(*ratings, fillvalue=np.nan)), dtype=np.float64).T  # (K, P) -> (P, K)
    if np.isfinite(table).sum() != num_ratings.sum():
        raise ValueError("A rating is NaN or infinite; leave out what was not rated.")
    return table, num_ratings


def _split_half_srcc(table: np.ndarray, num_ratings: np.ndarray, generator: np.random.Generator) -> float:
    """Returns the SRCC of the means of two random halves of each pair's ratings (P, K), less one of an odd number."""
    keys = np.where(np.isnan(table), 2.0, generator.random(table.shape))
    shuffled = np.take_along_axis(table, keys.argsort(axis=1), axis=1)  # NaN stays after the last rating
    places, sizes = np.arange(table.shape[1]), (num_ratings // 2)[:, None]  # (K,), (P, 1)
    first = shuffled.sum(axis=1, where=places < sizes) / sizes[:, 0]  # (P, K) -> (P,)
    second = shuffled.sum(axis=1, where=(places >= sizes) & (places < 2 * sizes)) / sizes[:, 0]
    return spearman(first, second)


def listeners_ceiling(ratings: Sequence[Sequence[float]], num_splits: int = 100, seed: int = 0) -> dict[str, float]:
    """
    Measures how well listeners agree, and the SRCC that a perfect predictor would reach against their means.

    The listeners of each pair are split at random into halves of k // 2. From the SRCC of the halves' means, r, the
    reliability of the mean of all k listeners follows by Spearman and Brown (1910): 2 r / (1 + r) where k is even. A
    predictor of each pair's expected rating then reaches the square root of it (Spearman's correction for attenuation,
    1904).

    The ceiling is an estimate. It assumes that the deviation of a rating from the expected rating of its pair is
    independent of the other ratings and alike in size for all pairs (a listener's mildness or strictness counts as
    such noise), and it uses rank correlations where the two formulas have linear ones, which moves it by less than .01
    for ratings near a normal distribution. Where pairs have different numbers of listeners, their average noise counts.

    Args:
        ratings (`Sequence[Sequence[float]]` of length `num_pairs`): The ratings of each pair, at least 2, in any unit
            and order. A table of shape `(num_pairs, num_listeners)` will do. Pairs may have different numbers.
        num_splits (`int`): Random splits over which the SRCC of the halves is averaged, at least 1.
        seed (`int`): Seed of the splits.

    Returns:
        `dict[str, float]`: `within_pair_variance`, the variance of ratings about the mean of their pair (unbiased, in
        squared units of the ratings); `split_half_srcc`, the mean SRCC of the halves, in [-1, 1]; `reliability` of the
        mean of all listeners, in [0, 1], 0 where the halves do not agree; and `ceiling_srcc`, its square root.

    Raises:
        ValueError: There are fewer than 2 pairs, a pair has fewer than 2 ratings, a rating is not finite, or
            `num_splits` is below 1.
    """
    if num_splits < 1:
        raise ValueError(f"num_splits must be at least 1, got {num_splits}.")
    table, num_ratings = _rating_table(ratings)
    generator = np.random.default_rng(seed)
    split_half = float(np.mean([_split_half_srcc(table, num_ratings, generator) for _ in range(num_splits)]))
    agreement = max(split_half, 0.0)
    # How many times the noise of all listeners' means is in that of the halves' means: 2 for an even number.
    lengthening = np.mean(1 / (num_ratings // 2)) / np.mean(1 / num_ratings)
    reliability = lengthening * agreement / (1 + (lengthening - 1) * agreement)
    deviations = table - np.nanmean(table, axis=1, keepdims=True)
    return {
        "within_pair_variance": float(np.nansum(deviations**2) / (num_ratings - 1).sum()),
        "split_half_srcc": split_half,
        "reliability": float(reliability),
        "ceiling_srcc": float(np.sqrt(reliability)),
    }
