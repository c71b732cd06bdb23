"""
Combines the scores of several systems for the same pairs, and measures what each system adds. Nothing is fitted on what
it is judged by: fitted ensembles score each clip with weights fitted without it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

import numpy as np
from scipy.optimize import nnls
from scipy.stats import rankdata
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GroupKFold
from sklearn.svm import SVR

from ..data.columns import SCORE_RANGE
from .methods import EnsembleMethod
from .metrics import alignment_metrics
from .resampling import paired_bootstrap

FITTED_METHODS = ("nnls", "svr")
SMALLEST_SPREAD = 1e-100  # division by a smaller deviation gives no number


class WeightedSum(NamedTuple):
    """
    A fitted weighted sum of systems.

    Fields:
        weights (`np.ndarray` of shape `(num_systems,)`): At least 0.
        offset (`float`): Added to the sum.
    """

    weights: np.ndarray
    offset: float

    def predict(self, scores: np.ndarray) -> np.ndarray:
        """Returns combined scores: (num_systems, N) -> (N,)"""
        return self.weights @ scores + self.offset


class SupportVectorRegression(NamedTuple):
    """
    A fitted kernel regression. Systems are standardised; the kernel is `exp(-distance^2 / num_systems)`.

    Fields:
        means, scales (`np.ndarray` of shape `(num_systems,)`): Mean and standard deviation of each system.
        vectors (`np.ndarray` of shape `(num_vectors, num_systems)`): Standardised scores of the pairs that count.
        coefficients (`np.ndarray` of shape `(num_vectors,)`): In [-1, 1].
        intercept (`float`): Added to the sum.
    """

    means: np.ndarray
    scales: np.ndarray
    vectors: np.ndarray
    coefficients: np.ndarray
    intercept: float

    def predict(self, scores: np.ndarray) -> np.ndarray:
        """Returns combined scores: (num_systems, N) -> (N,)"""
        if not len(self.vectors):  # all targets were the same
            return np.full(scores.shape[1], self.intercept)
        standardised = (scores.T - self.means) / self.scales  # (S, N) -> (N, S)
        kernel = rbf_kernel(standardised, self.vectors, gamma=1 / len(scores))  # (N, V)
        return kernel @ self.coefficients + self.intercept


def spread_of(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns each system's mean and standard deviation, 1.0 where it is constant: (S, N) -> (S,), (S,)"""
    scales = scores.std(axis=1)
    # The mean of equal numbers may be rounded, so their deviation may not be zero.
    is_constant = (scores == scores[:, :1]).all(axis=1) | (scales < SMALLEST_SPREAD)
    return scores.mean(axis=1), np.where(is_constant, 1.0, scales)


def fit_nnls(scores: np.ndarray, targets: np.ndarray) -> WeightedSum:
    """
    Fits non-negative least squares with a free offset: systems may be on any scale; none can count against the score.

    Args:
        scores (`np.ndarray` of shape `(num_systems, N)`): Finite.
        targets (`np.ndarray` of shape `(N,)`): Mean ratings, 0-10.
    """
    means, scales = spread_of(scores)
    centred = (scores.T - means) / scales  # (S, N) -> (N, S)
    weights = nnls(centred, targets - targets.mean())[0] / scales
    return WeightedSum(weights, float(targets.mean() - weights @ means))


def fit_svr(scores: np.ndarray, targets: np.ndarray) -> SupportVectorRegression:
    """
    Fits epsilon support vector regression with radial basis functions, by scikit-learn at its default cost and epsilon:
    the runner-up's system is named after it. Time grows with the square of the number of pairs, or faster.

    Args:
        scores (`np.ndarray` of shape `(num_systems, N)`): Finite.
        targets (`np.ndarray` of shape `(N,)`): Mean ratings, 0-10.
    """
    means, scales = spread_of(scores)
    fitted = SVR(gamma=1 / len(scores)).fit((scores.T - means) / scales, targets)
    return SupportVectorRegression(
        means, scales, fitted.support_vectors_, fitted.dual_coef_[0], float(fitted.intercept_[0])
    )


FITS = {"nnls": (fit_nnls, WeightedSum), "svr": (fit_svr, SupportVectorRegression)}


def combine(scores: np.ndarray, method: EnsembleMethod) -> np.ndarray:
    """
    Combines systems by a method that needs no fitting.

    Args:
        scores (`np.ndarray` of shape `(num_systems, N)`): Finite.
        method (`str`): `mean`; `zscore`, the mean of standardised scores, put back on the systems' mean scale; or
            `rank`, the mean of average ranks, from 0 for the lowest to 10 for the highest of all pairs.

    Returns:
        `np.ndarray` of shape `(N,)`.

    Raises:
        ValueError: The method is none of these.
    """
    if method == "mean":
        return scores.mean(axis=0)
    if method == "zscore":
        means, scales = spread_of(scores)
        standardised = (scores - means[:, None]) / scales[:, None]
        return standardised.mean(axis=0) * scales.mean() + means.mean()
    if method == "rank":
        ranks = rankdata(scores, axis=1).mean(axis=0)  # (S, N) -> (N,), from 1 to N
        low, high = SCORE_RANGE
        return low + (high - low) * (ranks - 1) / max(scores.shape[1] - 1, 1)
    raise ValueError(f"There is no ensemble {method!r}; choose one of {', '.join(get_args(EnsembleMethod))}.")


def grouped_folds(groups: Sequence[Any], num_folds: int, seed: int = 0) -> np.ndarray:
    """
    Returns the fold of each row: all rows of a group in one fold, and about as many groups in each.

    Args:
        groups (`Sequence` of length N): The group of each row, such as its clip; none is on both sides of a fold.
        num_folds (`int`): At least 2.
        seed (`int`): Seed of the assignment.

    Returns:
        `np.ndarray` of shape `(N,)`: Integers in [0, num_folds).

    Raises:
        ValueError: There are fewer groups than folds, or fewer than 2 folds.
    """
    number = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    if not 2 <= num_folds <= len(number):
        raise ValueError(
            f"{num_folds} folds of {len(number)} clips cannot be made; at least 2, and no more than clips."
        )
    of_rows = np.array([number[group] for group in groups])
    folds = np.empty_like(of_rows)
    for fold, (_, held_out) in enumerate(
        GroupKFold(num_folds, shuffle=True, random_state=seed).split(of_rows, groups=of_rows)
    ):
        folds[held_out] = fold
    return folds


def out_of_fold(scores: np.ndarray, targets: np.ndarray, folds: np.ndarray, method: EnsembleMethod) -> np.ndarray:
    """
    Combines the scores of each row by weights that were fitted on the other folds.

    Args:
        scores (`np.ndarray` of shape `(num_systems, N)`): Finite.
        targets (`np.ndarray` of shape `(N,)`): Mean ratings, 0-10.
        folds (`np.ndarray` of shape `(N,)`): As `grouped_folds` returns them.
        method (`str`): One of `FITTED_METHODS`.

    Returns:
        `np.ndarray` of shape `(N,)`.
    """
    fit, _ = FITS[method]
    predictions = np.empty(len(targets))
    for fold in np.unique(folds):
        held_out = folds == fold
        predictions[held_out] = fit(scores[:, ~held_out], targets[~held_out]).predict(scores[:, held_out])
    return predictions


class Judged(NamedTuple):
    """
    The ratings and folds that an ensemble is fitted on and judged by.

    Fields:
        targets (`np.ndarray` of shape `(N,)`): Mean ratings, 0-10.
        folds (`np.ndarray` of shape `(N,)`): As `grouped_folds` returns them.
    """

    targets: np.ndarray
    folds: np.ndarray


def ensemble(scores: np.ndarray, method: EnsembleMethod, judged: Judged | None = None) -> np.ndarray:
    """
    Combines scores by any method, out of fold where something is fitted.

    Args:
        scores (`np.ndarray` of shape `(num_systems, N)`): Finite.
        method (`str`): One of `EnsembleMethod`.
        judged (`Judged`, *optional*): Needed by `nnls` and `svr` only.

    Returns:
        `np.ndarray` of shape `(N,)`.

    Raises:
        ValueError: The method needs ratings and there are none, or is not known.
    """
    if method not in FITTED_METHODS:
        return combine(scores, method)
    if judged is None:
        raise ValueError(f"{method} is fitted to ratings: give a reference, or weights that were stored.")
    return out_of_fold(scores, judged.targets, judged.folds, method)


def leave_one_out(
    scores: np.ndarray, method: EnsembleMethod, judged: Judged, num_resamples: int = 2000, seed: int = 0
) -> list[dict[str, Any]]:
    """
    Measures what each system adds, by the ensemble made without it.

    Args:
        scores (`np.ndarray` of shape `(num_systems, N)`): At least 2 systems.
        method (`str`): One of `EnsembleMethod`.
        judged (`Judged`): The ratings.
        num_resamples (`int`), seed (`int`): As for `paired_bootstrap`.

    Returns:
        For each system, `metrics` of the ensemble without it, and `differences`, the whole ensemble less that, with
        interval and p-value: above 0, the system helps by SRCC, LCC and KTAU, and hurts by MSE.

    Raises:
        ValueError: There is only one system.
    """
    if len(scores) < 2:
        raise ValueError("Leaving one out takes at least 2 systems.")
    whole = ensemble(scores, method, judged)
    results = []
    for member in range(len(scores)):
        rest = ensemble(np.delete(scores, member, axis=0), method, judged)
        differences = paired_bootstrap(whole, rest, judged.targets, num_resamples, seed=seed)
        results.append({"metrics": alignment_metrics(rest, judged.targets), "differences": differences})
    return results
