"""
Judges how an ensemble of models is fitted: each pair is scored by a rule that was fitted without its clip or, if asked
for, without its generator.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .ensemble import WeightedSum, fit_nnls, grouped_folds, spread_of
from .ensemble_tables import ENSEMBLE
from .metrics import METRICS, alignment_metrics
from .resampling import paired_bootstrap
from .score_tables import text_table


class RatedScores(NamedTuple):
    """
    What members and listeners say of N pairs.

    Fields:
        names (`list[str]` of length num_members): The members.
        scores (`np.ndarray` of shape `(num_members, N)`): Finite, each member's on its own scale.
        features (`np.ndarray` of shape `(N, feature_size)`): Of the clips, for rules that hear.
        targets (`np.ndarray` of shape `(N,)`): Mean ratings, 0-10.
        clips (`Sequence` of length N): What tells clips apart.
        generators (`Sequence[str]` of length N, *optional*): What made each clip.
        foreign (`Sequence[str]`): Members on another scale than the targets', whose squared errors mean nothing.
    """

    names: list[str]
    scores: np.ndarray
    features: np.ndarray
    targets: np.ndarray
    clips: Sequence[str]
    generators: Sequence[str] | None = None
    foreign: Sequence[str] = ()


# A rule makes combined scores (N,) of scores (num_members, N) and features (N, feature_size); a fit makes a rule of
# these and of targets (N,).
Rule = Callable[[np.ndarray, np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], Rule]


def fit_mean(scores: np.ndarray, targets: np.ndarray) -> WeightedSum:
    """Returns the plain mean of scores `(num_members, N)`; nothing is fitted to the targets `(N,)`."""
    return WeightedSum(np.full(len(scores), 1 / len(scores)), 0.0)


def fit_zscore(scores: np.ndarray, targets: np.ndarray) -> WeightedSum:
    """
    Returns the mean of standardised scores `(num_members, N)`, put on the mean and deviation of the targets `(N,)`: all
    members have the same say, whatever their scales.
    """
    means, scales = spread_of(scores)
    standardised = ((scores - means[:, None]) / scales[:, None]).mean(axis=0)
    _, [spread] = spread_of(standardised[None])
    weights = targets.std() / spread / (len(scores) * scales)
    return WeightedSum(weights, float(targets.mean() - weights @ means))


WEIGHTED_SUMS = {"mean": fit_mean, "zscore": fit_zscore, "nnls": fit_nnls}


def sum_fit(method: str) -> Fit:
    """Returns one of `WEIGHTED_SUMS`, which do not hear the clips, as a fit of rules that might."""

    def fit(scores: np.ndarray, features: np.ndarray, targets: np.ndarray) -> Rule:
        fitted = WEIGHTED_SUMS[method](scores, targets)
        return lambda scores, features: fitted.predict(scores)

    return fit


def held_out(rated: RatedScores, folds: np.ndarray, fit: Fit) -> np.ndarray:
    """Combines the scores of each pair by a rule fitted on the other folds `(N,)`: `(N,)`."""
    predictions = np.empty(len(rated.targets))
    for fold in np.unique(folds):
        out = folds == fold
        rule = fit(rated.scores[:, ~out], rated.features[~out], rated.targets[~out])
        predictions[out] = rule(rated.scores[:, out], rated.features[out])
    return predictions


def judge_fit(
    rated: RatedScores, fit: Fit, num_folds: int = 5, num_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """
    Measures an ensemble on pairs that its rule was not fitted on.

    Args:
        rated (`RatedScores`): The pairs. With `generators`, each generator's are also scored by a rule fitted on the
            others'.
        fit (callable): Fits a rule.
        num_folds (`int`), seed (`int`): As for `grouped_folds`, by clip.
        num_resamples (`int`): Resamples of the bootstrap.

    Returns:
        Ready for JSON: `pairs`, `clips`, `folds`; `best`, the member with the highest SRCC, chosen on these very pairs,
        which favours it; `metrics` of each member and of the `ensemble` out of fold; `gain` of the ensemble over the
        best member, with interval and p-value. Of members on another scale, MSE is NaN and no gain. With generators,
        `unseen_generators`, with `metrics` of the ensemble on all pairs, `gain`, and `generators`: pairs and metrics of
        ensemble and best member on each.

    Raises:
        ValueError: There are fewer clips than folds, or fewer than 2 generators.
    """
    combined = held_out(rated, grouped_folds(rated.clips, num_folds, seed), fit)
    metrics = {
        name: alignment_metrics(scores, rated.targets) | ({"MSE": math.nan} if name in rated.foreign else {})
        for name, scores in zip(rated.names, rated.scores, strict=True)
    }
    best = max(metrics, key=lambda name: metrics[name]["SRCC"])
    scores_of_best = rated.scores[rated.names.index(best)]

    def gain(predictions: np.ndarray) -> dict[str, Any]:
        """Returns the paired differences of combined scores `(N,)` and the best member's."""
        found = paired_bootstrap(predictions, scores_of_best, rated.targets, num_resamples, seed=seed)
        return {name: value for name, value in found.items() if name != "MSE" or best not in rated.foreign}

    report = {
        "pairs": len(combined),
        "clips": len(set(rated.clips)),
        "folds": num_folds,
        "best": best,
        "metrics": {**metrics, ENSEMBLE: alignment_metrics(combined, rated.targets)},
        "gain": gain(combined),
    }
    if rated.generators is not None:
        unseen = held_out(rated, generator_folds(rated.generators), fit)
        report["unseen_generators"] = {
            "metrics": alignment_metrics(unseen, rated.targets),
            "gain": gain(unseen),
            "generators": _by_generator(rated, unseen, scores_of_best),
        }
    return report


def generator_folds(generators: Sequence[str]) -> np.ndarray:
    """Returns a fold `(N,)` for each generator, as integers; raises `ValueError` if there are fewer than two."""
    names, folds = np.unique(np.array(list(map(str, generators))), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"All pairs are of one generator ({names[0]}): leave out --unseen-generators.")
    return folds


def _by_generator(rated: RatedScores, unseen: np.ndarray, best: np.ndarray) -> dict[str, dict[str, Any]]:
    """Returns each generator's pairs, and metrics where it has two; scores of ensemble and best member are `(N,)`."""
    generators, found = np.array(list(map(str, rated.generators))), {}
    for name in dict.fromkeys(generators.tolist()):
        own = generators == name
        found[name] = {"pairs": int(own.sum())}
        if own.sum() > 1:
            columns = {ENSEMBLE: unseen, "best": best}
            found[name] |= {who: alignment_metrics(scores[own], rated.targets[own]) for who, scores in columns.items()}
    return found


def fit_text(report: Mapping[str, Any]) -> str:
    """Returns the result of `judge_fit` as tables for the terminal and for a card."""
    rows = dict(report["metrics"])
    if "unseen_generators" in report:
        rows["ensemble, unseen generators"] = report["unseen_generators"]["metrics"]
    cells = [
        [name, *(f"{values[metric]:.3f}".replace("nan", "-") for metric in METRICS)] for name, values in rows.items()
    ]
    gains = {"out of fold": report["gain"]}
    if "unseen_generators" in report:
        gains["unseen generators"] = report["unseen_generators"]["gain"]
    told = []
    for name, gain in gains.items():
        for metric, values in gain.items():
            low, high = values["interval"]
            interval = f"{low:+.3f} to {high:+.3f}"
            told.append([name, metric, f"{values['difference']:+.3f}", interval, f"{values['p_value']:.3f}"])
    header = [f"gain over {report['best']}", "", "", "95 % interval", "p"]
    return f"{text_table(['system', *METRICS], cells)}\n\n{text_table(header, told)}\n"
