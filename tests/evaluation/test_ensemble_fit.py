"""Judging the fit of an ensemble: nothing is fitted on what it is judged by, neither clip nor generator."""

import numpy as np
import pytest

from modeling_xacle.evaluation.ensemble_fit import (
    WEIGHTED_SUMS,
    RatedScores,
    fit_text,
    fit_zscore,
    generator_folds,
    held_out,
    judge_fit,
    sum_fit,
)
from modeling_xacle.evaluation.metrics import METRICS, alignment_metrics

NUM_PAIRS = 60


def make_rated(generators=None, foreign=()):
    """Two members that hear different halves of the truth, one of them as a cosine; two pairs a clip."""
    generator = np.random.default_rng(0)
    halves = generator.normal(size=(2, NUM_PAIRS))
    targets = np.clip(5 + halves.sum(axis=0), 0, 10)
    scores = np.stack([5 + halves[0], 0.1 * halves[1]])
    features = generator.normal(size=(NUM_PAIRS, 3))
    clips = [str(number // 2) for number in range(NUM_PAIRS)]
    return RatedScores(["tall", "small"], scores, features, targets, clips, generators, foreign)


def recording_fit(rated, seen):
    """A fit that notes which pairs it was shown, and scores each pair with its own number."""

    def fit(scores, features, targets):
        assert scores.shape[1] == len(features) == len(targets)
        seen.append({int(np.flatnonzero(rated.targets == target)[0]) for target in targets})
        number = float(len(seen))
        return lambda scores, features: np.full(len(features), number)

    return fit


@pytest.mark.parametrize("of_pairs", ["clips", "generators"])
def test_no_pair_is_scored_by_a_rule_that_knows_its_clip_or_generator(of_pairs, monkeypatch):
    rated, seen = make_rated([f"model {number % 3}" for number in range(NUM_PAIRS)]), []
    predictions = []
    monkeypatch.setattr(
        "modeling_xacle.evaluation.ensemble_fit.paired_bootstrap",
        lambda combined, *args, **kwargs: predictions.append(combined) or {},
    )
    judge_fit(rated, recording_fit(rated, seen))
    groups = getattr(rated, of_pairs)
    assert len(seen) == 5 + 3
    for row, number in enumerate(predictions[of_pairs == "generators"]):
        assert groups[row] not in {groups[known] for known in seen[int(number) - 1]}


def test_fitted_weights_beat_the_best_member_where_members_know_different_things():
    report = judge_fit(make_rated(foreign=["small"]), sum_fit("nnls"), num_resamples=200)
    assert (report["pairs"], report["clips"], report["folds"]) == (NUM_PAIRS, 30, 5)
    assert report["metrics"]["ensemble"]["SRCC"] > 0.99
    gain = report["gain"]["SRCC"]
    difference = report["metrics"]["ensemble"]["SRCC"] - report["metrics"][report["best"]]["SRCC"]
    assert gain["interval"][0] > 0 and gain["difference"] == pytest.approx(difference)


def test_noise_is_no_gain():
    noise = np.random.default_rng(1).normal(size=(2, NUM_PAIRS))
    report = judge_fit(make_rated()._replace(scores=noise), sum_fit("nnls"), num_resamples=200)
    assert report["metrics"]["ensemble"]["SRCC"] < 0.3 and report["gain"]["SRCC"]["interval"][0] < 0


def test_errors_of_a_member_on_another_scale_are_not_told():
    rated = make_rated(foreign=["small"])
    rated = rated._replace(scores=np.stack([np.arange(NUM_PAIRS) % 7, rated.scores[1]]))
    report = judge_fit(rated, sum_fit("nnls"), num_resamples=50)
    assert report["best"] == "small"
    assert list(report["gain"]) == [name for name in METRICS if name != "MSE"]
    assert np.isnan(report["metrics"]["small"]["MSE"]) and np.isfinite(report["metrics"]["tall"]["MSE"])
    line = next(line for line in fit_text(report).splitlines() if line.startswith("small"))
    assert line.endswith("-") and "nan" not in fit_text(report)


def test_each_generator_is_reported():
    generators = [f"model {number % 2}" for number in range(NUM_PAIRS - 1)] + ["alone"]
    rated = make_rated(generators)
    unseen = judge_fit(rated, sum_fit("nnls"), num_resamples=50)["unseen_generators"]
    counts = {name: found["pairs"] for name, found in unseen["generators"].items()}
    assert counts == {"model 0": 30, "model 1": 29, "alone": 1}
    assert "ensemble" not in unseen["generators"]["alone"]
    predictions = held_out(rated, generator_folds(generators), sum_fit("nnls"))
    own = np.array(generators) == "model 1"
    assert unseen["generators"]["model 1"]["ensemble"] == alignment_metrics(predictions[own], rated.targets[own])
    with pytest.raises(ValueError, match="All pairs are of one generator"):
        generator_folds(["one"] * 4)


def test_standardised_members_have_the_same_say_on_the_listeners_scale():
    rated = make_rated()
    rule = fit_zscore(rated.scores, rated.targets)
    combined = rule.predict(rated.scores)
    assert combined.mean() == pytest.approx(rated.targets.mean())
    assert combined.std() == pytest.approx(rated.targets.std())
    say = rule.weights * rated.scores.std(axis=1)
    assert say[0] == pytest.approx(say[1])


@pytest.mark.parametrize("method", WEIGHTED_SUMS)
def test_a_constant_member_changes_no_rank(method):
    rated = make_rated()
    scores = np.stack([rated.scores[0], np.full(NUM_PAIRS, 0.1)])
    combined = WEIGHTED_SUMS[method](scores, rated.targets).predict(scores)
    assert np.isfinite(combined).all()
    assert (np.argsort(combined) == np.argsort(scores[0])).all()
