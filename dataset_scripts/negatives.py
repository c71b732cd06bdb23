"""Draws captions of other clips for each row of a dataset: at random, or near in a teacher's text space."""

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product

import numpy as np
import torch

from modeling_xacle.judges.embeddings import PairIndex

# Similarities held at a time in the search for near captions: 256 MB.
SIMILARITIES_PER_CHUNK = 2**26
WORD = re.compile(r"\w+")

# Takes a row's caption and the captions that are ruled out; gives candidates for its negatives, best first.
Candidates = Callable[[np.random.Generator, int, set[int]], np.ndarray]


@dataclass
class Negatives:
    """
    How captions of other clips are drawn.

    Args:
        count (`int`): Captions per row.
        hard (`int`): How many of these are drawn from the nearest captions; the others are drawn from all.
        hard_pool (`int`): How many nearest captions to draw from.
        seed (`int`): The same seed gives the same captions.
    """

    count: int = 3
    hard: int = 0
    hard_pool: int = 20
    seed: int = 0


def same_text_as(captions: list[str]) -> np.ndarray:
    """Returns for each caption the first with the same words, whatever case and punctuation: `(num_captions,)`."""
    first: dict[str, int] = {}
    return np.array([first.setdefault(" ".join(WORD.findall(text.casefold())), i) for i, text in enumerate(captions)])


def captions_of_clips(index: PairIndex, texts: np.ndarray) -> dict[int, set[int]]:
    """Returns for each clip its captions in any split, as their entries in `texts`, of shape `(num_captions,)`."""
    own: dict[int, set[int]] = defaultdict(set)
    for rows in index.rows.values():
        for clip, caption in rows.tolist():
            own[clip].add(int(texts[caption]))
    return own


def nearest_captions(embeddings: torch.Tensor, queries: np.ndarray, pool: np.ndarray, count: int) -> np.ndarray:
    """
    Find the pool's captions nearest to each query, nearest first, of shape `(num_queries, count)`.

    Args:
        embeddings (`torch.Tensor` of shape `(num_captions, embedding_size)`): All captions', of unit length.
        queries (`np.ndarray` of shape `(num_queries,)`), pool (`np.ndarray` of shape `(pool_size,)`): Captions.
        count (`int`): At most the size of the pool.
    """
    candidates = embeddings[pool].T.contiguous()  # (D, pool)
    chunk = max(1, SIMILARITIES_PER_CHUNK // len(pool))
    nearest = [
        (embeddings[queries[start : start + chunk]] @ candidates).topk(count).indices.cpu().numpy()
        for start in range(0, len(queries), chunk)
    ]
    return pool[np.concatenate(nearest)]


def random_candidates(
    pool: np.ndarray, count: int, generator: np.random.Generator, caption: int, ruled_out: set[int]
) -> np.ndarray:
    """Returns captions of the pool, of shape `(pool_size,)`, in random order: enough that `count` remain."""
    return generator.choice(pool, size=min(count + len(ruled_out), len(pool)), replace=False)


def hard_candidates(
    nearest: dict[int, np.ndarray],
    hard_pool: int,
    generator: np.random.Generator,
    caption: int,
    ruled_out: set[int],
) -> np.ndarray:
    """
    Returns, in random order, the first `hard_pool` captions that are not ruled out among those nearest to a caption,
    of shape `(num_nearest,)`.
    """
    allowed = [near for near in nearest[caption].tolist() if near not in ruled_out][:hard_pool]
    # Sorted, so that the draw depends on which captions are near, not on ties among them.
    return generator.permutation(sorted(allowed))


def draw_negatives(
    rows: np.ndarray, own: dict[int, set[int]], sources: list[tuple[Candidates, int]], seed: int
) -> np.ndarray:
    """
    Draw captions of other clips for each row of a split; no clip gets a caption twice.

    Args:
        rows (`np.ndarray` of shape `(num_rows, 2)`): Clip and caption.
        own (dict of sets): Captions of each clip.
        sources (list of `tuple[callable, int]`): Where captions are drawn from, and how many for each row.
        seed (`int`): The draw for a clip depends only on this and on the clip.

    Returns:
        `np.ndarray` of shape `(num_rows, num_negatives)`.

    Raises:
        ValueError: There are not enough captions of other clips.
    """
    negatives: list[list[int]] = [[] for _ in rows]
    rows_of_clips: dict[int, list[int]] = defaultdict(list)
    for row, clip in enumerate(rows[:, 0].tolist()):
        rows_of_clips[clip].append(row)
    for clip, clip_rows in rows_of_clips.items():
        generator = np.random.default_rng([seed, clip])
        ruled_out = set(own[clip])
        for row, (candidates, count) in product(clip_rows, sources):
            drawn = [c for c in candidates(generator, int(rows[row, 1]), ruled_out).tolist() if c not in ruled_out]
            if len(drawn) < count:
                raise ValueError(
                    f"A clip with {len(clip_rows)} captions needs {count * len(clip_rows)} different captions of other "
                    "clips, and its split has fewer; lower --negatives."
                )
            negatives[row] += drawn[:count]
            ruled_out.update(drawn[:count])
    return np.array(negatives, dtype=np.int64).reshape(len(rows), sum(count for _, count in sources))


def choose_negatives(
    index: PairIndex, rows: dict[str, np.ndarray], text_embeddings: torch.Tensor, how: Negatives
) -> dict[str, np.ndarray]:
    """
    Draw negatives for the rows of each split from the captions of that split.

    Args:
        index (`PairIndex`): All clips and captions.
        rows (dict of `np.ndarray` of shape `(num_rows, 2)`): Clip and caption of the rows that are kept.
        text_embeddings (`torch.Tensor` of shape `(num_captions, embedding_size)`): Tell which captions are near.
        how (`Negatives`): How they are drawn.

    Returns:
        For each split, captions of shape `(num_rows, how.count)`.
    """
    texts = same_text_as(index.captions)
    own = captions_of_clips(index, texts)
    negatives = {}
    for split, pairs in rows.items():
        pool = np.unique(texts[pairs[:, 1]])
        sources: list[tuple[Candidates, int]] = []
        if how.hard:
            queries = np.unique(pairs[:, 1])
            most_rows = np.unique(pairs[:, 0], return_counts=True)[1].max()
            # Enough must remain when a clip's own captions and its other negatives are ruled out.
            needed = how.hard_pool + max(map(len, own.values())) + how.count * most_rows
            nearest = nearest_captions(text_embeddings, queries, pool, int(min(needed, len(pool))))
            nearest_of = dict(zip(queries.tolist(), nearest, strict=True))
            sources.append((partial(hard_candidates, nearest_of, how.hard_pool), how.hard))
        if how.count > how.hard:
            num_random = how.count - how.hard
            sources.append((partial(random_candidates, pool, num_random), num_random))
        negatives[split] = draw_negatives(pairs, own, sources, how.seed)
    return negatives
