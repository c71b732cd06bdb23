"""
The scenes of the synthetic corpus: kinds of event, scenes of one to three of them, and their rendering as waveforms.

Every random choice comes from the `numpy.random.Generator` that a function is given, so that the same generator gives
the same scene and the same samples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import sounds
import unseen
from scipy import signal
from sounds import SAMPLING_RATE, harmonics, scatter, swell, time_axis
from words import OTHER_WORDING, WORDING, Wording

CLIP_SECONDS = 10.0
CLIP_SAMPLES = round(CLIP_SECONDS * SAMPLING_RATE)

Relation = Literal["alone", "together", "sequence"]
ATTRIBUTES = ("loudness", "pitch", "speed")

# By which factor occurrences follow faster at a speed of -1, 0 or 1; rendering sets how fast each one is.
SPEED_OF_SPACING = {-1: 0.54, 0: 1.0, 1: 1.875}
# Peaks above this many times the loudest window's level are softened, so that no crackle uses up the headroom.
LARGEST_CREST = 5.0
LOUDNESS_WINDOW = SAMPLING_RATE // 20

ATTRIBUTE_CHANCE = 0.3
LARGEST_COUNT = 5
# Seconds of silence between an event's occurrences, and between the events of a sequence, which make them countable.
OCCURRENCE_GAP = 0.15
SEQUENCE_GAP = 0.6
MARGIN_SECONDS = 0.2
# Length of one of several stretches of an otherwise continuous sound, and time between their beginnings.
STRETCH_SECONDS, STRETCH_INTERVAL = 1.5, 2.2


# ---------------------------------------------------------------------------------------------------------------------
# The kinds of event


@dataclass(frozen=True)
class EventKind:
    """
    What the corpus knows about one kind of sound.

    Args:
        name (`str`): Its key.
        family (`str`): The alignment rule takes kinds of one family as similar.
        render (callable): Returns a waveform of shape `(samples,)` for a generator, seconds, pitch and speed factors.
        seconds (`float`, *optional*): Length of one occurrence; none for a continuous sound.
        interval (`float`): Seconds from one occurrence's beginning to the next one's, at normal speed.
        max_count (`int`): Most occurrences in a clip.
        has_pitch (`bool`), has_speed (`bool`): Whether these attributes can be heard.
    """

    name: str
    family: str
    render: Callable[[np.random.Generator, float, float, float], np.ndarray]
    seconds: float | None = None
    interval: float = STRETCH_INTERVAL
    max_count: int = 1
    has_pitch: bool = False
    has_speed: bool = False

    @property
    def is_continuous(self) -> bool:
        """True if one occurrence may fill the clip."""
        return self.seconds is None

    def has(self, attribute: str) -> bool:
        """Returns True if an attribute of `ATTRIBUTES` can be heard in this kind."""
        return {"loudness": True, "pitch": self.has_pitch, "speed": self.has_speed}[attribute]

    def spacing(self, speed: int) -> float:
        """Returns seconds from one occurrence to the next at a speed of -1, 0 or 1, enough to keep them apart."""
        factor = SPEED_OF_SPACING[speed] if self.has_speed else 1.0
        return max(self.interval / factor, (self.seconds or STRETCH_SECONDS) + OCCURRENCE_GAP)

    def span(self, count: int, speed: int) -> float:
        """Returns the seconds that `count` occurrences take, with room for jitter."""
        return (count - 1) * 1.06 * self.spacing(speed) + (self.seconds or STRETCH_SECONDS)


KINDS = {
    kind.name: kind
    for kind in (
        EventKind("rain", "water", sounds.rain),
        EventKind("thunder", "weather", sounds.thunder, 2.0, 2.6, 3),
        EventKind("wind", "weather", sounds.wind, has_pitch=True),
        EventKind("stream", "water", sounds.stream),
        EventKind("drops", "water", sounds.drops, 0.18, 0.8, 5, has_pitch=True, has_speed=True),
        EventKind("waves", "water", sounds.waves, has_speed=True),
        EventKind("fire", "weather", sounds.fire),
        EventKind("siren", "signal", sounds.siren, has_pitch=True, has_speed=True),
        EventKind("telephone", "signal", sounds.telephone, 0.9, 1.5, 4, has_pitch=True),
        EventKind("bell", "signal", sounds.bell, 1.5, 1.8, 4, has_pitch=True),
        EventKind("alarm", "signal", sounds.alarm, has_pitch=True, has_speed=True),
        EventKind("horn", "signal", sounds.horn, 0.45, 0.9, 5, has_pitch=True, has_speed=True),
        EventKind("whistle", "signal", sounds.whistle, 0.5, 1.0, 5, has_pitch=True, has_speed=True),
        EventKind("clock", "tool", sounds.clock, has_speed=True),
        EventKind("engine", "machine", sounds.engine, has_pitch=True),
        EventKind("helicopter", "machine", sounds.helicopter, has_speed=True),
        EventKind("drill", "tool", sounds.drill, max_count=3, has_pitch=True),
        EventKind("train", "machine", sounds.train, has_speed=True),
        EventKind("vacuum", "machine", sounds.vacuum, has_pitch=True),
        EventKind("saw", "tool", sounds.saw, has_speed=True),
        EventKind("bark", "animal", sounds.bark, 0.3, 0.75, 5, has_pitch=True, has_speed=True),
        EventKind("meow", "animal", sounds.meow, 0.8, 1.3, 4, has_pitch=True),
        EventKind("birds", "wildlife", sounds.birds, has_pitch=True),
        EventKind("crickets", "wildlife", sounds.crickets, has_speed=True),
        EventKind("frog", "wildlife", sounds.frog, 0.4, 0.85, 5, has_pitch=True, has_speed=True),
        EventKind("owl", "wildlife", sounds.owl, 0.5, 1.0, 5, has_pitch=True, has_speed=True),
        EventKind("cow", "animal", sounds.cow, 1.2, 1.7, 3, has_pitch=True),
        EventKind("babble", "human", sounds.babble, has_pitch=True, has_speed=True),
        EventKind("applause", "human", sounds.applause, max_count=3),
        EventKind("laughter", "human", sounds.laughter, 1.2, 1.7, 3, has_pitch=True),
        EventKind("footsteps", "human", sounds.footsteps, has_speed=True),
        EventKind("knocking", "impact", sounds.knocking, 0.15, 0.5, 5, has_speed=True),
        EventKind("hammer", "tool", sounds.hammer, 0.35, 0.75, 5, has_pitch=True, has_speed=True),
        EventKind("glass", "impact", sounds.glass, 1.1, 1.7, 3),
        EventKind("gunshot", "impact", sounds.gunshot, 0.5, 0.9, 5, has_speed=True),
        EventKind("snoring", "human", sounds.snoring, 1.2, 1.8, 3, has_pitch=True),
    )
}
KIND_NAMES = tuple(KINDS)
UNSEEN_KINDS = {
    kind.name: kind
    for kind in (
        EventKind("rooster", "animal", unseen.rooster, 1.5, 2.0, 3, has_pitch=True),
        EventKind("duck", "animal", unseen.duck, 0.3, 0.7, 5, has_pitch=True, has_speed=True),
        EventKind("sheep", "animal", unseen.sheep, 0.9, 1.4, 4, has_pitch=True),
        EventKind("mosquito", "wildlife", unseen.mosquito, has_pitch=True),
        EventKind("kettle", "signal", unseen.kettle, has_pitch=True),
        EventKind("doorbell", "signal", unseen.doorbell, 1.2, 1.8, 3, has_pitch=True),
        EventKind("chainsaw", "tool", unseen.chainsaw, has_pitch=True),
        EventKind("typewriter", "tool", unseen.typewriter, has_speed=True),
        EventKind("jet", "machine", unseen.jet, has_pitch=True),
        EventKind("drum", "impact", unseen.drum, 0.35, 0.75, 5, has_pitch=True, has_speed=True),
        EventKind("coin", "impact", unseen.coin, 0.8, 1.3, 4),
        EventKind("cough", "human", unseen.cough, 0.4, 0.9, 5, has_pitch=True, has_speed=True),
    )
}
KINDS |= UNSEEN_KINDS


# ---------------------------------------------------------------------------------------------------------------------
# Splits


@dataclass(frozen=True)
class Rendering:
    """
    How scenes become sounds; pairs are the ends of ranges that are drawn from uniformly.

    Args:
        pitch (`dict`), speed (`dict`): Factors of an attribute of -1, 0 or 1. Neighbouring ranges are far apart, so
            that a low pitch is never a normal one.
        loudness_db (`dict`): Level of the loudest 50 ms of an event, in dB below full scale.
        reverberation (pair of `float`): Seconds in which the room's tail falls by 60 dB.
        direct_to_tail_db (pair of `float`): Level of the sound above its tail.
        noise_db (pair of `float`): Level of the noise floor.
        resynthesised (`bool`): Whether the events go through a vocoder.
    """

    pitch: dict[int, tuple[float, float]]
    speed: dict[int, tuple[float, float]]
    loudness_db: dict[int, tuple[float, float]]
    reverberation: tuple[float, float] = (0.08, 0.5)
    direct_to_tail_db: tuple[float, float] = (5, 18)
    noise_db: tuple[float, float] = (-72, -56)
    resynthesised: bool = False


RENDERING = Rendering(
    pitch={-1: (0.52, 0.62), 0: (0.93, 1.07), 1: (1.55, 1.8)},
    speed={-1: (0.5, 0.58), 0: (0.93, 1.07), 1: (1.75, 2.0)},
    loudness_db={-1: (-39.0, -36.0), 0: (-27.0, -24.0), 1: (-17.0, -14.0)},
)
OTHER_RENDERING = Rendering(
    pitch={-1: (0.6, 0.7), 0: (0.82, 0.92), 1: (1.35, 1.55)},
    speed={-1: (0.58, 0.66), 0: (1.08, 1.2), 1: (1.6, 1.75)},
    loudness_db={-1: (-41.0, -38.0), 0: (-31.0, -28.0), 1: (-21.0, -18.0)},
    reverberation=(0.5, 1.2),
    direct_to_tail_db=(1, 8),
    noise_db=(-56, -46),
    resynthesised=True,
)


# Pairs of kinds are held out by the sum of their numbers modulo six: those with this remainder occur only in splits of
# this key. Each key gets a sixth of all pairs, some of every kind.
HELD_OUT = {"test": 0, "development": 3}


def held_out_key(first: str, second: str) -> str | None:
    """Returns the key in `HELD_OUT` of a pair of kinds; None if any split may hold it."""
    if first == second or not {first, second} <= set(KIND_NAMES):
        return None
    remainder = (KIND_NAMES.index(first) + KIND_NAMES.index(second)) % 6
    return next((key for key, own in HELD_OUT.items() if remainder == own), None)


def held_out_keys(kinds: tuple[str, ...]) -> set[str]:
    """Returns the keys of all pairs of these kinds that have one."""
    return {key for pair in combinations(kinds, 2) if (key := held_out_key(*pair))}


@dataclass(frozen=True)
class Split:
    """
    What scenes of a split are made of.

    Args:
        kinds (`tuple` of `str`): Names of the kinds that are heard or claimed.
        one_of (`frozenset` of `str`): Kinds of which every scene has one, if there are any.
        held_out (`str`, *optional*): The key in `HELD_OUT` of the pairs of which every scene of several events has one,
            unless `one_of` names kinds; no scene has a pair of another key.
        rendering (`Rendering`): How it sounds.
        wording (`Wording`): The words of its captions.
    """

    kinds: tuple[str, ...] = KIND_NAMES
    one_of: frozenset[str] = frozenset()
    held_out: str | None = None
    rendering: Rendering = RENDERING
    wording: Wording = WORDING

    def allows(self, kinds: tuple[str, ...]) -> bool:
        """Returns True if a caption of this split may name these kinds together."""
        return held_out_keys(kinds) <= {self.held_out}

    def takes(self, kinds: tuple[str, ...]) -> bool:
        """Returns True if these kinds make a scene of this split."""
        if self.one_of:
            return self.allows(kinds) and not self.one_of.isdisjoint(kinds)
        return len(kinds) == 1 or held_out_keys(kinds) == {self.held_out} - {None}


UNSEEN_SOUNDS = {"rendering": OTHER_RENDERING}
UNSEEN_WORDS = {"wording": OTHER_WORDING}
WITH_UNSEEN_KINDS = {"kinds": tuple(KINDS), "one_of": frozenset(UNSEEN_KINDS)}
# Splits that are not named here are like training.
SPLITS = {
    "development": Split(held_out="development"),
    "test": Split(held_out="test"),
    # What another generator makes of such scenes: other sounds, other words, other kinds, all three.
    "unseen_sounds": Split(held_out="test", **UNSEEN_SOUNDS),
    "unseen_words": Split(held_out="test", **UNSEEN_WORDS),
    "unseen_kinds": Split(held_out="test", **WITH_UNSEEN_KINDS),
    "unseen": Split(held_out="test", **UNSEEN_SOUNDS, **UNSEEN_WORDS, **WITH_UNSEEN_KINDS),
}
UNSEEN_SPLITS = ("unseen_sounds", "unseen_words", "unseen_kinds", "unseen")


def split_named(name: str) -> Split:
    """Returns what scenes of a split are made of."""
    return SPLITS.get(name, Split())


# ---------------------------------------------------------------------------------------------------------------------
# Scenes


@dataclass(frozen=True)
class Event:
    """
    One kind of sound in a clip, or as a caption claims it.

    Args:
        kind (`str`): Name of its kind.
        count (`int`, *optional*): Occurrences; in a caption none if it does not say, and 0 for "several".
        loudness (`int`), pitch (`int`), speed (`int`): -1 for soft, low and slow; 0 for normal, or not said in a
            caption; 1 for loud, high and fast.
    """

    kind: str
    count: int | None = 1
    loudness: int = 0
    pitch: int = 0
    speed: int = 0


@dataclass(frozen=True)
class Scene:
    """
    Events and their relation: one `alone`, several `together`, or several in `sequence`, in their order.
    """

    events: tuple[Event, ...]
    relation: Relation

    @property
    def kinds(self) -> tuple[str, ...]:
        """The names of the events' kinds, in order."""
        return tuple(event.kind for event in self.events)


def slot_seconds(relation: Relation, size: int) -> float:
    """Returns the seconds that each event of a scene may take."""
    usable = CLIP_SECONDS - 2 * MARGIN_SECONDS
    return (usable - SEQUENCE_GAP * (size - 1)) / size if relation == "sequence" else usable


def sample_event(rng: np.random.Generator, kind_name: str, relation: Relation, size: int) -> Event:
    """
    Draws an event of a kind for a scene of `size` events, with a count that fits and attributes that can be heard.
    """
    kind = KINDS[kind_name]
    levels = {name: int(rng.choice([-1, 1])) if rng.random() < ATTRIBUTE_CHANCE else 0 for name in ATTRIBUTES}
    if relation == "together":
        levels["loudness"] = 0  # one of them would drown the other
    levels = {name: level if kind.has(name) else 0 for name, level in levels.items()}
    if all(levels.values()):
        levels["loudness"] = 0  # three attributes make no natural caption
    slot = slot_seconds(relation, size)
    fitting = [n for n in range(1, kind.max_count + 1) if n == 1 or kind.span(n, levels["speed"]) <= slot]
    if levels["speed"] and not kind.is_continuous:
        fitting = fitting[1:]  # a single knock is neither slow nor fast
        if not fitting:
            fitting, levels["speed"] = [1], 0
    if kind.is_continuous and rng.random() < 0.6:
        fitting = [1]
    return Event(kind_name, int(rng.choice(fitting)), **levels)


def sample_scene(
    rng: np.random.Generator, split: Split, required: str | None = None, avoid: tuple[str, ...] = ()
) -> Scene:
    """
    Draws a scene.

    Args:
        rng (`np.random.Generator`): Source of all choices.
        split (`Split`): What its scenes are made of.
        required (`str`, *optional*): A kind that must occur with at least one other.
        avoid (`tuple` of `str`): Kinds that must not occur.
    """
    size = int(rng.choice([2, 3] if required else [1, 2, 3], p=[0.8, 0.2] if required else [0.35, 0.5, 0.15]))
    candidates = [name for name in split.kinds if name not in avoid and name != required]
    while True:
        others = rng.choice(candidates, size - (required is not None), replace=False).tolist()
        kinds = tuple(rng.permutation([required, *others] if required else others).tolist())
        if split.takes(kinds):
            break
    relation: Relation = "alone" if size == 1 else ("together", "sequence")[rng.integers(2)]
    return Scene(tuple(sample_event(rng, kind, relation, size) for kind in kinds), relation)


def schedule(scene: Scene, rng: np.random.Generator) -> list[list[tuple[float, float]]]:
    """
    Draws when each event's occurrences begin and how long they last, both in seconds.

    Events of a sequence are at least `SEQUENCE_GAP` apart; events sounding together are all under way, or all take
    place, around the middle of the clip.
    """
    trains = [_occurrences(event, scene, rng) for event in scene.events]
    lengths = [train[-1][0] + train[-1][1] for train in trains]
    if scene.relation == "sequence":
        free = CLIP_SECONDS - 2 * MARGIN_SECONDS - sum(lengths) - SEQUENCE_GAP * (len(lengths) - 1)
        pauses = rng.dirichlet(np.ones(len(lengths) + 1)) * max(free, 0.0)
        starts = MARGIN_SECONDS + np.cumsum(pauses[:-1]) + np.cumsum([0.0, *lengths[:-1]])
        starts = starts + SEQUENCE_GAP * np.arange(len(lengths))
    else:
        starts = [_start(length, scene.relation, rng) for length in lengths]
    return [[(float(start + t), s) for t, s in train] for start, train in zip(starts, trains, strict=True)]


def _occurrences(event: Event, scene: Scene, rng: np.random.Generator) -> list[tuple[float, float]]:
    """Returns beginnings and lengths in seconds of one event's occurrences, the first at 0."""
    kind = KINDS[event.kind]
    if kind.is_continuous and event.count == 1:
        slot = slot_seconds(scene.relation, len(scene.events))
        share = {"alone": (0.6, 1.0), "together": (0.7, 1.0), "sequence": (0.75, 1.0)}[scene.relation]
        return [(0.0, float(rng.uniform(*share) * slot))]
    seconds = kind.seconds or STRETCH_SECONDS
    spacings = kind.spacing(event.speed) * rng.uniform(0.97, 1.06, event.count - 1)
    spacings = np.maximum(spacings, seconds + OCCURRENCE_GAP)
    return [(float(start), seconds) for start in np.cumsum([0.0, *spacings])]


def _start(length: float, relation: Relation, rng: np.random.Generator) -> float:
    """Draws a beginning in seconds for an event of this length that does not follow another."""
    earliest, latest = MARGIN_SECONDS, CLIP_SECONDS - MARGIN_SECONDS - length
    if relation == "together":
        middle = CLIP_SECONDS / 2
        earliest, latest = max(earliest, middle - length), min(latest, middle)
    return float(rng.uniform(earliest, max(earliest, latest)))


# ---------------------------------------------------------------------------------------------------------------------
# Rendering


def render_clip(scene: Scene, rng: np.random.Generator, rendering: Rendering = RENDERING) -> np.ndarray:
    """
    Renders a scene in a random room, over a random noise floor, at a random level.

    Returns:
        int16 samples of shape `(CLIP_SAMPLES,)`, below full scale.
    """
    waveform = np.zeros(CLIP_SAMPLES)
    for event, occurrences in zip(scene.events, schedule(scene, rng), strict=True):
        waveform += _render_event(event, occurrences, rng, rendering)
    if rendering.resynthesised:
        waveform = unseen.resynthesise(waveform, rng)
    waveform = _add_room(waveform, rng, rendering)
    waveform = signal.lfilter([1.0, rng.uniform(-0.3, 0.3)], [1.0], waveform)  # the tilt of a recording device
    waveform += _noise_floor(rng, rendering)
    waveform *= 10 ** (rng.uniform(-2.5, 2.5) / 20)
    waveform *= min(1.0, 0.98 / np.abs(waveform).max())
    return np.round(waveform * 32767).astype(np.int16)


def _render_event(
    event: Event, occurrences: list[tuple[float, float]], rng: np.random.Generator, rendering: Rendering
) -> np.ndarray:
    """Renders one event's track, of shape `(CLIP_SAMPLES,)`, at its level."""
    kind = KINDS[event.kind]
    pitch = rng.uniform(*rendering.pitch[event.pitch])
    speed = rng.uniform(*rendering.speed[event.speed])
    pieces = []
    for start, seconds in occurrences:
        piece = kind.render(rng, seconds, pitch, speed)
        attack, release = (0.15, 0.15) if kind.is_continuous else (0.001, 0.004)
        pieces.append((start, piece * swell(seconds, attack, release)))
    track = scatter(CLIP_SAMPLES, pieces)
    track = LARGEST_CREST * np.tanh(track / _loudest_rms(track) / LARGEST_CREST)
    return track * 10 ** (rng.uniform(*rendering.loudness_db[event.loudness]) / 20)


def _loudest_rms(track: np.ndarray) -> float:
    """Returns the root mean square of the loudest window of a track of shape `(samples,)`."""
    windows = track[: len(track) // LOUDNESS_WINDOW * LOUDNESS_WINDOW].reshape(-1, LOUDNESS_WINDOW)  # (N,) -> (W, L)
    return float(np.sqrt((windows**2).mean(axis=1).max()))


def _add_room(waveform: np.ndarray, rng: np.random.Generator, rendering: Rendering) -> np.ndarray:
    """Adds a random exponential reverberation tail to a waveform of shape `(samples,)`."""
    reverberation, direct_to_tail_db = rng.uniform(*rendering.reverberation), rng.uniform(*rendering.direct_to_tail_db)
    time = time_axis(reverberation)
    tail = rng.standard_normal(len(time)) * 10 ** (-3 * time / reverberation) * (time > rng.uniform(0.004, 0.015))
    tail = signal.lfilter([0.5], [1.0, -0.5], tail)  # walls swallow the high end
    tail *= 10 ** (-direct_to_tail_db / 20) / np.sqrt((tail**2).sum())
    return waveform + signal.fftconvolve(waveform, tail)[: len(waveform)]


def _noise_floor(rng: np.random.Generator, rendering: Rendering) -> np.ndarray:
    """Returns noise `(CLIP_SAMPLES,)` between white and brown, sometimes with mains hum, at a random low level."""
    spectrum = np.fft.rfft(rng.standard_normal(CLIP_SAMPLES))
    frequencies = np.fft.rfftfreq(CLIP_SAMPLES, 1 / SAMPLING_RATE)
    noise = np.fft.irfft(spectrum * np.maximum(frequencies, 30.0) ** -rng.uniform(0.0, 1.0), CLIP_SAMPLES)
    noise /= np.sqrt((noise**2).mean())
    if rng.random() < 0.15:
        noise += rng.uniform(0.5, 1.5) * harmonics(np.full(CLIP_SAMPLES, float(rng.choice([50.0, 60.0]))), 4, 1.0)
    return noise * 10 ** (rng.uniform(*rendering.noise_db) / 20)


def scene_record(scene: Scene) -> dict[str, Any]:
    """Returns the scene as plain values, for an annotation."""
    events = [
        {"kind": e.kind, "count": e.count, **{name: getattr(e, name) for name in ATTRIBUTES}} for e in scene.events
    ]
    return {"relation": scene.relation, "events": events}
