"""How negatives are drawn: the nearest captions that are allowed, or any, evenly."""

from functools import partial

import negatives
import numpy as np
import torch


def test_hard_negatives_are_the_nearest_that_are_allowed():
    embeddings = torch.nn.functional.normalize(torch.randn(30, 4, generator=torch.Generator().manual_seed(0)))
    pool = np.arange(0, 30, 2)
    nearest = negatives.nearest_captions(embeddings, np.arange(30), pool, 6)
    for caption, near in enumerate(nearest):
        by_hand = sorted(pool.tolist(), key=lambda other: -float(embeddings[caption] @ embeddings[other]))[:6]
        assert near.tolist() == by_hand
    generator = np.random.default_rng(0)
    ruled_out = set(nearest[3][:2].tolist())
    drawn = negatives.hard_candidates(dict(enumerate(nearest)), 3, generator, 3, ruled_out)
    assert set(drawn.tolist()) == set(nearest[3][2:5].tolist())


def test_random_negatives_are_spread_evenly_over_the_captions():
    rows = np.column_stack([np.arange(200), np.arange(200) % 20])
    own = {clip: {clip % 20} for clip in range(200)}
    candidates = partial(negatives.random_candidates, np.arange(20), 5)
    drawn = negatives.draw_negatives(rows, own, [(candidates, 5)], seed=0)
    counts = np.bincount(drawn.ravel(), minlength=20)
    assert counts.min() > 25 and counts.max() < 80  # 50 on average
    shuffled = np.random.default_rng(0).permutation(200)
    again = negatives.draw_negatives(rows[shuffled], own, [(candidates, 5)], seed=0)
    assert (again == drawn[shuffled]).all()
