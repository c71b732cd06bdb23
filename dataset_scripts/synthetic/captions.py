"""
The words of the synthetic corpus: captions of scenes, captions that are wrong in known ways, the alignment rule that
rates both, and simulated listeners.

The alignment rule
------------------
A caption claims events, with a count and attributes where it says so, and a relation between them. Its true alignment
with a scene is a number from 0 to 10:

    alignment = 10 * F * R

F is the harmonic mean of precision and recall: the credits of the best one-to-one assignment of claimed events to
heard ones, added up and divided by the number of claimed (precision) or of heard events (recall). A claimed event earns

- 0 for an event of another family, `SIMILAR_CREDIT` for another kind of the same family (`EventKind.family`);
- for the right kind, 1 if all that is said of it is true, else 0.5 + 0.5 * (product of the agreements of its count and
  attributes). Counts n and m agree by min(n, m) / max(n, m); "several" is true of three and more. An attribute agrees
  by `OPPOSITE_AGREEMENT` if the opposite is said, by `NEEDLESS_AGREEMENT` if something is said of a normal one. What
  is left unsaid costs nothing.

R tells how well the relation of the kinds that both share agrees: 1 for the same relation and order, or when less than
two are shared; `WRONG_RELATION` for a sequence told as simultaneous or the reverse; between sequences,
1 - `WRONG_ORDER_COST` * (share of pairs in the wrong order).

So a faithful caption has 10, one that shares no family with the scene has 0, one that shares an event lies between, and
every single alteration of a faithful caption lowers its alignment.

This is a yardstick made by hand to compare methods. It is no model of human judgement.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Any

import numpy as np
from events import (
    ATTRIBUTES,
    KINDS,
    LARGEST_COUNT,
    Event,
    Scene,
    Split,
    sample_scene,
)
from scipy.stats import norm
from words import WORDING, Wording

SEVERAL = 0  # the count of a caption that says "several"

SIMILAR_CREDIT = 0.25
OPPOSITE_AGREEMENT = 0.2
NEEDLESS_AGREEMENT = 0.6
WRONG_RELATION = 0.7
WRONG_ORDER_COST = 0.4

LARGEST_SCENE = 3

# ---------------------------------------------------------------------------------------------------------------------
# Captions


def describe(claim: Scene, rng: np.random.Generator, wording: Wording = WORDING) -> str:
    """Returns a caption that says what the claim says, in random words."""
    size = len(claim.events)
    templates = wording.templates[claim.relation][size]
    template = templates[rng.integers(len(templates))]
    order = rng.permutation(size) if claim.relation == "together" else range(size)
    phrases = {}
    for place, index in enumerate(order):
        event = claim.events[index]
        phrases[f"{place}c"] = _clause(event, rng, wording)
        phrases[f"{place}n"] = _noun_phrase(event, rng, wording)
    for key, phrase in phrases.items():
        template = template.replace("{" + key + "}", phrase)
    text = template[0].upper() + template[1:]
    return text + "." if rng.random() < 0.7 else text


def _pick(rng: np.random.Generator, options: tuple[Any, ...]) -> Any:
    return options[rng.integers(len(options))]


def _clause(event: Event, rng: np.random.Generator, wording: Wording) -> str:
    """Returns a sentence with subject and verb: "a dog barks twice loudly"."""
    subject, verb, participle = _pick(rng, wording.words[event.kind].actors)
    if event.count is None and rng.random() < 0.5:
        verb = f"{'is' if verb.split()[0].endswith('s') else 'are'} {participle}"
    return " ".join([subject, verb, *_adverbs(event, rng, wording)])


def _noun_phrase(event: Event, rng: np.random.Generator, wording: Wording) -> str:
    """Returns a noun phrase: "a dog barking twice", "two loud barks of a dog", "loud barking"."""
    words = wording.words[event.kind]
    counted = event.count is not None
    if rng.random() < 0.5 or (counted and not words.units):
        subject, _, participle = _pick(rng, words.actors)
        return " ".join([subject, participle, *_adverbs(event, rng, wording)])
    adjectives = [_pick(rng, wording.adjectives[key]) for key in _stated(event)]
    if not counted:
        return " ".join([*adjectives, _pick(rng, words.masses)])
    singular, plural = _pick(rng, words.units)
    number = _pick(rng, wording.several_numbers) if event.count == SEVERAL else wording.numbers[event.count]
    return " ".join([number, *adjectives, singular if event.count == 1 else plural])


def _stated(event: Event) -> list[tuple[str, int]]:
    """Returns names and levels of the attributes that a caption mentions."""
    return [(name, getattr(event, name)) for name in ATTRIBUTES if getattr(event, name)]


def _adverbs(event: Event, rng: np.random.Generator, wording: Wording) -> list[str]:
    """Returns words for how often and in what manner, to put after a verb."""
    often = []
    if event.count is not None:
        often = [_pick(rng, wording.several_times if event.count == SEVERAL else wording.times[event.count])]
    manner = [_pick(rng, wording.adverbs[key]) for key in _stated(event)]
    return [*often, *([" and ".join(manner)] if manner else [])]


# ---------------------------------------------------------------------------------------------------------------------
# The alignment rule


def true_alignment(scene: Scene, claim: Scene) -> float:
    """
    Computes the alignment, 0 to 10, of a scene and what a caption claims, by the rule above.

    Args:
        scene (`Scene`): What is heard.
        claim (`Scene`): What the caption says; see `Event` for what it leaves unsaid.
    """
    claimed, heard = claim.events, scene.events
    if len(claimed) <= len(heard):
        assignments = [zip(claimed, chosen, strict=True) for chosen in permutations(heard, len(claimed))]
    else:
        assignments = [zip(chosen, heard, strict=True) for chosen in permutations(claimed, len(heard))]
    credits = [sum(event_credit(*pair) for pair in assignment) for assignment in assignments]
    # precision c/n and recall c/m have the harmonic mean 2c / (n + m)
    f_score = 2 * max(credits) / (len(claimed) + len(heard))
    return 10 * f_score * relation_agreement(scene, claim)


def event_credit(claimed: Event, heard: Event) -> float:
    """Returns the credit, 0 to 1, that a claimed event earns for a heard one."""
    if claimed.kind != heard.kind:
        return SIMILAR_CREDIT if KINDS[claimed.kind].family == KINDS[heard.kind].family else 0.0
    agreement = _count_agreement(claimed.count, heard.count)
    for name, level in _stated(claimed):
        actual = getattr(heard, name)
        agreement *= {level: 1.0, -level: OPPOSITE_AGREEMENT, 0: NEEDLESS_AGREEMENT}[actual]
    return 0.5 + 0.5 * agreement


def _count_agreement(claimed: int | None, heard: int) -> float:
    if claimed is None:
        return 1.0
    if claimed == SEVERAL:
        claimed = max(heard, 3)
    return min(claimed, heard) / max(claimed, heard)


def relation_agreement(scene: Scene, claim: Scene) -> float:
    """Returns how well, 0 to 1, claim and scene agree on the relation of the kinds that they share."""
    shared = [kind for kind in claim.kinds if kind in scene.kinds]
    if len(shared) < 2:
        return 1.0
    if scene.relation != claim.relation:
        return WRONG_RELATION
    if scene.relation == "together":
        return 1.0
    pairs = list(combinations(shared, 2))
    reversed_pairs = sum(scene.kinds.index(first) > scene.kinds.index(second) for first, second in pairs)
    return 1 - WRONG_ORDER_COST * reversed_pairs / len(pairs)


# ---------------------------------------------------------------------------------------------------------------------
# Captions that are right, and captions that are wrong in known ways


def faithful_claim(scene: Scene, rng: np.random.Generator, completeness: float = 0.85) -> Scene:
    """Returns what a true caption says: all events and their relation, and each count and attribute with a chance."""
    return replace(scene, events=tuple(_tell(event, rng, completeness) for event in scene.events))


def _tell(event: Event, rng: np.random.Generator, completeness: float) -> Event:
    levels = {name: level if rng.random() < completeness else 0 for name, level in _stated(event)}
    count: int | None = event.count
    if count == 1:
        told = not KINDS[event.kind].is_continuous and rng.random() < 0.5
        count = 1 if told else None
    elif rng.random() > completeness:
        count = SEVERAL if count >= 3 and rng.random() < 0.6 else None
    return replace(event, count=count, **levels)


def _plain_event(kind: str, rng: np.random.Generator) -> Event:
    """Returns a claimed event about which little is said."""
    count = 1 if rng.random() < 0.3 and not KINDS[kind].is_continuous else None
    return Event(kind, count)


def _other_kind(
    scene: Scene, claim: Scene, keep: tuple[str, ...], split: Split, rng: np.random.Generator
) -> str | None:
    """
    Picks a kind that is neither heard nor claimed and may occur with those kept, often a similar one; None if none may.
    """
    unused = [kind for kind in split.kinds if kind not in scene.kinds and kind not in claim.kinds]
    allowed = [kind for kind in unused if split.allows((*keep, kind))]
    similar = [kind for kind in allowed if KINDS[kind].family in {KINDS[heard].family for heard in scene.kinds}]
    options = similar if similar and rng.random() < 0.3 else allowed
    return _pick(rng, tuple(options)) if options else None


def swap_event(scene: Scene, claim: Scene, split: Split, rng: np.random.Generator) -> Scene | None:
    """Claims another kind for one event."""
    place = int(rng.integers(len(claim.events)))
    others = claim.events[:place], claim.events[place + 1 :]
    kind = _other_kind(scene, claim, tuple(event.kind for event in (*others[0], *others[1])), split, rng)
    return replace(claim, events=(*others[0], _plain_event(kind, rng), *others[1])) if kind else None


def drop_event(scene: Scene, claim: Scene, split: Split, rng: np.random.Generator) -> Scene | None:
    """Leaves out one of several events."""
    if len(claim.events) < 2:
        return None
    place = int(rng.integers(len(claim.events)))
    events = claim.events[:place] + claim.events[place + 1 :]
    return Scene(events, claim.relation if len(events) > 1 else "alone")


def add_event(scene: Scene, claim: Scene, split: Split, rng: np.random.Generator) -> Scene | None:
    """Adds an event that is not there."""
    kind = _other_kind(scene, claim, claim.kinds, split, rng)
    if kind is None or len(claim.events) == LARGEST_SCENE:
        return None
    place = int(rng.integers(len(claim.events) + 1))
    events = (*claim.events[:place], _plain_event(kind, rng), *claim.events[place:])
    relation = ("together", "sequence")[rng.integers(2)] if claim.relation == "alone" else claim.relation
    return Scene(events, relation)


def change_count(scene: Scene, claim: Scene, split: Split, rng: np.random.Generator) -> Scene | None:
    """Claims a wrong number of occurrences."""
    heard = {event.kind: event.count for event in scene.events}
    countable = [i for i, event in enumerate(claim.events) if KINDS[event.kind].max_count > 1 and event.kind in heard]
    if not countable:
        return None
    place = int(rng.choice(countable))
    event = claim.events[place]
    wrong = [count for count in range(1, LARGEST_COUNT + 1) if count != heard[event.kind]]
    weights = np.array([abs(count - heard[event.kind]) for count in wrong], dtype=float)
    count = int(rng.choice(wrong, p=weights / weights.sum()))
    told = replace(event, count=count, speed=event.speed if count > 1 else 0)  # one knock is neither slow nor fast
    return replace(claim, events=(*claim.events[:place], told, *claim.events[place + 1 :]))


def change_order(scene: Scene, claim: Scene, split: Split, rng: np.random.Generator) -> Scene | None:
    """Puts the events of a sequence in another order."""
    if claim.relation != "sequence":
        return None
    orders = [order for order in permutations(claim.events) if order != claim.events]
    return replace(claim, events=orders[rng.integers(len(orders))])


def change_relation(scene: Scene, claim: Scene, split: Split, rng: np.random.Generator) -> Scene | None:
    """Claims a sequence as simultaneous, or the reverse."""
    other = {"together": "sequence", "sequence": "together"}.get(claim.relation)
    return replace(claim, relation=other) if other else None


def change_attribute(scene: Scene, claim: Scene, split: Split, rng: np.random.Generator) -> Scene | None:
    """Claims the opposite of an event's loudness, pitch or speed."""
    heard = {event.kind: event for event in scene.events}
    options = [(i, *a) for i, event in enumerate(claim.events) for a in _stated(heard.get(event.kind, event))]
    if not options:
        return None
    place, name, level = options[rng.integers(len(options))]
    event = replace(claim.events[place], **{name: -level})
    return replace(claim, events=(*claim.events[:place], event, *claim.events[place + 1 :]))


Alteration = Callable[[Scene, Scene, Split, np.random.Generator], Scene | None]
# Each has a weight: alterations that not every scene allows come up as often as the others where they are possible.
ALTERATIONS: dict[str, tuple[Alteration, float]] = {
    "event swapped": (swap_event, 1.0),
    "event dropped": (drop_event, 1.0),
    "event added": (add_event, 1.0),
    "wrong count": (change_count, 2.5),
    "wrong order": (change_order, 2.5),
    "wrong relation": (change_relation, 1.0),
    "wrong attribute": (change_attribute, 2.5),
}
SECOND_ALTERATION_CHANCE = 0.3

PAIRINGS = {"matched": 0.28, "altered": 0.42, "partly matching": 0.14, "mismatched": 0.16}


def alter(scene: Scene, claim: Scene, split: Split, rng: np.random.Generator) -> tuple[Scene, list[str]]:
    """
    Makes a claim wrong in one way, sometimes in two; returns it with the names of the alterations.

    Args:
        scene (`Scene`): What is heard.
        claim (`Scene`): A faithful claim.
        split (`Split`): What its captions may name.
        rng (`np.random.Generator`): Source of all choices.
    """
    wanted = 2 if rng.random() < SECOND_ALTERATION_CHANCE else 1
    done: list[str] = []
    weights = np.array([weight for _, weight in ALTERATIONS.values()])
    for name in rng.choice(list(ALTERATIONS), len(weights), replace=False, p=weights / weights.sum()).tolist():
        altered = ALTERATIONS[name][0](scene, claim, split, rng)
        # A second alteration must not mend the first.
        if altered is not None and true_alignment(scene, altered) < true_alignment(scene, claim):
            claim, done = altered, [*done, name]
        if len(done) == wanted:
            break
    return claim, done


def sample_claim(scene: Scene, split: Split, rng: np.random.Generator) -> tuple[str, Scene]:
    """
    Draws what a rated pair's caption claims; also says how it was made: a key of `PAIRINGS`, or the alterations' names.
    """
    pairing = str(rng.choice(list(PAIRINGS), p=list(PAIRINGS.values())))
    if pairing == "matched":
        return pairing, faithful_claim(scene, rng)
    if pairing == "altered":
        claim, names = alter(scene, faithful_claim(scene, rng), split, rng)
        return " + ".join(names), claim
    if pairing == "partly matching":
        shared = _pick(rng, scene.kinds)
        others = tuple(kind for kind in scene.kinds if kind != shared)
        return pairing, faithful_claim(sample_scene(rng, split, required=shared, avoid=others), rng)
    families = {KINDS[kind].family for kind in scene.kinds}
    avoid = tuple(name for name in split.kinds if KINDS[name].family in families)
    return pairing, faithful_claim(sample_scene(rng, split, avoid=avoid), rng)


# ---------------------------------------------------------------------------------------------------------------------
# Simulated listeners

LISTENERS_PER_PAIR = 4
LISTENERS_PER_SPLIT = 250
# Calibrated together, on 20,000 pairs, to the figures of the open RELATE ratings: a mean within-pair variance of 6.2
# and a split-half SRCC of .56 to .59. Mean rating of an alignment of 0 and of 10:
LOWEST_OPINION, HIGHEST_OPINION = 1.25, 8.2
BIAS_SD = 1.1
NOISE_SD = 2.68
NOISE_SPREAD = 0.25  # listeners differ in care: log-normal spread of their noise


@dataclass(frozen=True)
class Listener:
    """A simulated listener: the bias added to every opinion, and the standard deviation of the noise, in points."""

    id: str
    bias: float
    noise: float


def sample_listeners(split: str, rng: np.random.Generator) -> list[Listener]:
    """
    Draws a split's pool of listeners; no listener rates in two splits. Biases and noises are quantiles of their
    distributions in random order, so that all pools are equally biased and noisy.
    """
    quantiles = norm.ppf((np.arange(LISTENERS_PER_SPLIT) + 0.5) / LISTENERS_PER_SPLIT)
    biases = BIAS_SD * rng.permutation(quantiles)
    noises = NOISE_SD * np.exp(NOISE_SPREAD * rng.permutation(quantiles))
    return [
        Listener(f"synthetic-{split}-{number:03d}", float(bias), float(noise))
        for number, (bias, noise) in enumerate(zip(biases, noises, strict=True))
    ]


def rate(alignment: float, listeners: list[Listener], rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """Returns ids and integer ratings, 0 to 10, of `LISTENERS_PER_PAIR` listeners for a pair with this alignment."""
    chosen = [listeners[i] for i in rng.choice(len(listeners), LISTENERS_PER_PAIR, replace=False)]
    opinion = LOWEST_OPINION + (HIGHEST_OPINION - LOWEST_OPINION) * alignment / 10
    raw = [opinion + listener.bias + listener.noise * rng.standard_normal() for listener in chosen]
    return [listener.id for listener in chosen], [int(np.clip(round(value), 0, 10)) for value in raw]
