"""
How much two captions tell of the same sounds: an F-score over their phrases.

"A dog barks loudly while rain falls" has two phrases, "A dog barks loudly" and "rain falls". Precision is the mean over
the phrases of a caption of each one's greatest similarity with a phrase of the reference, recall the reverse, and their
harmonic mean is the score: the greedy matching of BERTScore (arXiv 1904.09675, section 3), with phrases in the place of
tokens. Similarity is the cosine of a CLAP text encoder, to the power of `SHARPNESS`. Of two captions that share one
sound of two, cosines of the whole sentences say less: that depends on how much each sound weighs in the embedding.

Phrases are found by English words that join them. What only says how sounds stand to each other is left out, so order
and simultaneity do not count.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

# Between phrases: punctuation and words that join clauses or nouns.
JOINT = re.compile(r"(?:\s*(?:[,;.]|\b(?:and|then|while|as|when|followed by|before|after|during|with)\b)\s*)+", re.I)
# Says that or when something is heard, not what.
FRAME = re.compile(
    r"\b(?:at the same time|(?:all )?at once|at the end|simultaneously|together|first|finally|afterwards|after that|"
    r"in the background|(?:can be|is|are) heard|there (?:is|are)|we hear|the sounds? of|nothing else|on its own)\b",
    re.I,
)
# A fragment that tells of its neighbour: "at a high pitch", "quickly", "again".
ADVERBIAL = re.compile(r"(?:at|in|on|from|near|by|for)(?: [\w'-]+){1,3}|\w+ly|again", re.I)
# A cosine of 0.5 is far from saying the same. Of powers 1, 2 and 3, the third agrees best with synthetic listeners.
SHARPNESS = 3


def split_phrases(caption: str) -> list[str]:
    """The parts of a caption that each tell of a sound; the caption itself if it has no parts."""
    found: list[str] = []
    for fragment in JOINT.split(FRAME.sub(" ", caption)):
        phrase = " ".join(fragment.split())
        if found and phrase and (ADVERBIAL.fullmatch(phrase) or ADVERBIAL.fullmatch(found[-1])):
            found[-1] += f" {phrase}"
        elif phrase:
            found.append(phrase)
    return found or [caption]


class PhraseOverlap:
    """
    F-scores of captions against captions.

    Args:
        captions (sequence of `str`): All of them.
        phrases (sequence of `str`): At least all of theirs, as [`phrases_of`] gives them.
        embeddings (`np.ndarray` of shape `(num_phrases, embedding_size)`): Of the phrases, of unit length.
    """

    def __init__(self, captions: Sequence[str], phrases: Sequence[str], embeddings: np.ndarray):
        places = {phrase: place for place, phrase in enumerate(phrases)}
        self.embeddings = embeddings
        self.parts = [[places[phrase] for phrase in split_phrases(caption)] for caption in captions]

    def score(self, caption: int, references: Iterable[int]) -> float:
        """The F-score, in [0, 1], of a caption, by its number, with that of the references that it is nearest to."""
        return max(self._f_score(self.parts[caption], self.parts[reference]) for reference in references)

    def _f_score(self, caption: list[int], reference: list[int]) -> float:
        cosines = self.embeddings[caption] @ self.embeddings[reference].T  # (P, D) @ (D, R) -> (P, R)
        similarities = cosines.clip(0, 1) ** SHARPNESS
        precision, recall = similarities.max(axis=1).mean(), similarities.max(axis=0).mean()
        return float(2 * precision * recall / max(precision + recall, 1e-9))


def phrases_of(captions: Iterable[str]) -> list[str]:
    """The distinct phrases of captions, in the order in which they first come."""
    return list(dict.fromkeys(phrase for caption in captions for phrase in split_phrases(caption)))
