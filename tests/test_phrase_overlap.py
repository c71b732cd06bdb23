"""Captions against captions, by the phrases they share."""

import numpy as np
import phrase_overlap as overlap
import pytest

SOUNDS = ("a dog barks", "rain falls", "a man speaks", "a bell tolls")


@pytest.fixture
def sounds():
    """Captions, and their overlaps where the sounds they name are all unlike each other."""
    captions = [
        "A dog barks while rain falls.",
        "Rain falls and a dog barks",
        "a dog barks",
        "a man speaks, then a bell tolls",
        "a dog barks, and a man speaks",
    ]
    phrases = overlap.phrases_of(caption.lower() for caption in captions)
    assert sorted(phrases) == sorted(SOUNDS)
    return overlap.PhraseOverlap([caption.lower() for caption in captions], phrases, np.eye(len(phrases)))


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A dog barks", ["A dog barks"]),
        ("Rain", ["Rain"]),
        ("A man speaks while a dog barks and birds chirp.", ["A man speaks", "a dog barks", "birds chirp"]),
        ("After thunder rolling, crickets sing", ["thunder rolling", "crickets sing"]),
        ("A bell tolls twice at a low pitch and quickly", ["A bell tolls twice at a low pitch quickly"]),
        ("In the distance, a dog barks", ["In the distance a dog barks"]),
        ("First rain falls, and after that we hear an owl", ["rain falls", "an owl"]),
        ("Speech with music in the background", ["Speech", "music"]),
        ("The sound of a band can be heard", ["a band"]),
        ("Someone withdraws asphalt, android", ["Someone withdraws asphalt", "android"]),
        ("and then", ["and then"]),
    ],
)
def test_phrases_tell_of_one_sound_each(caption, phrases):
    assert overlap.split_phrases(caption) == phrases


@pytest.mark.parametrize(
    ("caption", "references", "score"),
    [
        (0, [0], 1),
        (0, [1], 1),  # in another order
        (2, [0], 2 / 3),  # all that is said is true, half of what is heard is said
        (0, [2], 2 / 3),
        (4, [0], 1 / 2),
        (3, [0], 0),
        (2, [3, 0], 2 / 3),  # the nearest of several references
    ],
)
def test_the_score_is_the_f_score_of_shared_sounds(sounds, caption, references, score):
    assert sounds.score(caption, references) == pytest.approx(score)


def test_similar_phrases_count_in_part():
    embeddings = np.array([[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0]])
    phrases = ["a dog barks", "a hound bays", "silence"]
    scores = overlap.PhraseOverlap(phrases, phrases, embeddings)
    assert scores.score(1, [0]) == pytest.approx(0.8**overlap.SHARPNESS)
    assert scores.score(2, [0]) == 0  # opposite is no worse than unlike
