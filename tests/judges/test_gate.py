"""The gate of an ensemble: it chooses by what it hears, the same in every run and beside any neighbour."""

import numpy as np
import pytest
import torch

from modeling_xacle.evaluation.metrics import spearman
from modeling_xacle.judges.gate import apply_gate, fit_gate, gate_loss, start_gate
from modeling_xacle.training.losses import clipped_contrastive_loss

NUM_PAIRS = 2000


@pytest.fixture(scope="module")
def world():
    """Pairs of two kinds of sound, each with a member that judges it well, while the other member guesses."""
    generator = np.random.default_rng(0)
    targets = generator.uniform(0, 10, NUM_PAIRS)
    kinds = generator.integers(2, size=NUM_PAIRS)
    guesses = generator.uniform(0, 10, (2, NUM_PAIRS))
    scores = np.where(np.arange(2)[:, None] == kinds, targets, guesses)
    features = np.stack([kinds + 0.1 * generator.normal(size=NUM_PAIRS), generator.normal(size=NUM_PAIRS)], axis=1)
    return scores / np.array([[1], [10]]), features, targets, kinds  # the second is on another scale


@pytest.fixture(scope="module")
def gate(world):
    return fit_gate(*world[:3], clipped_contrastive_loss, gate_size=16)


def as_rows(world):
    """Scores, features and targets as tensors, with a row for each pair."""
    return [torch.tensor(values).float() for values in (world[0].T, world[1], world[2])]


def test_the_gate_listens_to_the_member_that_knows_the_kind_of_sound(world, gate):
    scores, features, targets, kinds = world
    shares = gate.shares(*as_rows(world)[:2]).numpy()
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)
    assert shares[np.arange(NUM_PAIRS), kinds].mean() > 0.75
    equal = (scores * gate.scales[:, None].numpy() + gate.offsets[:, None].numpy()).mean(axis=0)
    combined = apply_gate(gate, scores, features)
    assert np.corrcoef(combined, targets)[0, 1] > np.corrcoef(equal, targets)[0, 1] + 0.05


def test_a_gate_begins_with_equal_shares_and_members_on_the_listeners_scale(world):
    scores, features, targets = as_rows(world)
    gate = start_gate(scores, features, targets, 16)
    torch.testing.assert_close(gate.shares(scores, features), torch.full((NUM_PAIRS, 2), 0.5))
    slope, offset = np.polyfit(gate(scores, features).detach().numpy(), world[2], 1)
    assert (slope, offset) == pytest.approx((1, 0), abs=1e-3)
    slopes = [np.polyfit(member, world[2], 1)[0] for member in world[0]]
    assert (gate.scales[1] / gate.scales[0]).item() == pytest.approx(slopes[1] / slopes[0], rel=1e-4)
    assert start_gate(-scores, features, targets, 16).scales.max() == 0


def test_the_same_seed_gives_the_same_gate_and_leaves_other_draws_alone(world, gate):
    state = torch.get_rng_state()
    again = fit_gate(*world[:3], clipped_contrastive_loss, gate_size=16)
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in gate.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    other = fit_gate(*world[:3], clipped_contrastive_loss, gate_size=16, seed=1)
    assert not torch.equal(other.layers[0].weight, gate.layers[0].weight)


def test_neighbours_change_no_score(world, gate):
    scores, features, _, _ = world
    together = apply_gate(gate, scores, features)
    alone = [apply_gate(gate, scores[:, row : row + 1], features[row : row + 1])[0] for row in range(20)]
    np.testing.assert_allclose(together[:20], alone, atol=1e-5)


def test_the_loss_is_the_winners_and_equal_shares_cost_nothing(world, gate):
    scores, features, targets = as_rows(world)
    for one in (start_gate(scores, features, targets, 16), gate):
        found = gate_loss(one, scores, features, targets, clipped_contrastive_loss)
        shares = one.shares(scores, features)
        lack = np.log(2) + (shares * shares.log()).sum(dim=1).mean()
        expected = clipped_contrastive_loss(one(scores, features) / 5 - 1, targets / 5 - 1) + 0.2 * lack
        torch.testing.assert_close(found, expected)
    assert lack > 0.01


def test_noise_is_not_learnt_by_heart():
    generator = np.random.default_rng(0)
    truth, features = generator.normal(size=NUM_PAIRS), generator.normal(size=(NUM_PAIRS, 256))
    scores = truth + generator.normal(size=(3, NUM_PAIRS))
    targets = np.clip(5 + truth, 0, 10)
    seen, unseen = slice(0, NUM_PAIRS // 2), slice(NUM_PAIRS // 2, None)
    gate = fit_gate(scores[:, seen], features[seen], targets[seen], clipped_contrastive_loss)
    found = spearman(apply_gate(gate, scores[:, unseen], features[unseen]), targets[unseen])
    assert found > spearman(scores[:, unseen].mean(axis=0), targets[unseen]) - 0.01


def test_members_without_features_are_weighed_by_their_scores(world):
    nothing = np.empty((NUM_PAIRS, 0))
    gate = fit_gate(world[0], nothing, world[2], clipped_contrastive_loss, gate_size=8)
    assert np.isfinite(apply_gate(gate, world[0], nothing)).all()
