"""
The vocabulary of the synthetic corpus: how captions name kinds of sound, how often, in what manner and in what order.

All splits use `WORDING` (words.yaml), except those of unseen words, which use `OTHER_WORDING` (other_words.yaml): other
words for every kind, count and attribute, and other sentences.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Words:
    """
    How captions name a kind of event.

    Args:
        actors (`tuple`): Subject, verb and participle; the subject is plural if the verb is ("birds", "chirp").
        masses (`tuple` of `str`): Names of the sound that take no article.
        units (`tuple`): Singular and plural of one occurrence, for kinds that have occurrences.
    """

    actors: tuple[tuple[str, str, str], ...]
    masses: tuple[str, ...]
    units: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Wording:
    """
    The words of a split's captions.

    Args:
        words (`dict`): By kind.
        adverbs (`dict`), adjectives (`dict`): By name and level of an attribute.
        times (`dict`): By count: "twice".
        several_times (`tuple` of `str`): For a count that is not given.
        numbers (`dict`): By count: "two".
        several_numbers (`tuple` of `str`): For a count that is not given.
        templates (`dict`): By relation, then by the number of events. They take clauses ("a dog barks") as {0c}, and
            participles ("a dog barking") or nouns ("two loud barks") as {0n}.
    """

    words: dict[str, Words]
    adverbs: dict[tuple[str, int], tuple[str, ...]]
    adjectives: dict[tuple[str, int], tuple[str, ...]]
    times: dict[int, tuple[str, ...]]
    several_times: tuple[str, ...]
    numbers: dict[int, str]
    several_numbers: tuple[str, ...]
    templates: dict[str, dict[int, tuple[str, ...]]]


def as_tuples(value: Any) -> Any:
    """Turns nested lists into nested tuples."""
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


def by_level(attributes: dict[str, dict[int, list[str]]]) -> dict[tuple[str, int], tuple[str, ...]]:
    """Returns the words of each level of each attribute."""
    return {(name, level): tuple(words) for name, levels in attributes.items() for level, words in levels.items()}


def read_wording(file: str) -> Wording:
    """Reads the words in a YAML file beside this one."""
    read = yaml.safe_load(Path(__file__).with_name(file).read_text(encoding="utf-8"))
    return Wording(
        words={
            kind: Words(**{name: as_tuples(entry) for name, entry in own.items()})
            for kind, own in read["words"].items()
        },
        adverbs=by_level(read["adverbs"]),
        adjectives=by_level(read["adjectives"]),
        times={count: tuple(words) for count, words in read["times"].items()},
        several_times=tuple(read["several_times"]),
        numbers=read["numbers"],
        several_numbers=tuple(read["several_numbers"]),
        templates={
            relation: {events: tuple(forms) for events, forms in sizes.items()}
            for relation, sizes in read["templates"].items()
        },
    )


WORDING, OTHER_WORDING = read_wording("words.yaml"), read_wording("other_words.yaml")
