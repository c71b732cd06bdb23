"""What a case and a door are, and how a case is made from the door's name and a seed alone."""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple


@dataclass
class Case:
    """
    One hostile call of the command.

    Fields:
        command (`list[str]`): Arguments of `xacle`, given in the case's folder.
        names (`tuple[str, ...]`): What a message may say to name the offender; one of them is enough.
        writes (`tuple[str, ...]`): Files and folders that the command may make or replace; all others stay as they are.
        stdin (`bytes`): What comes in on standard input.
        check (callable, *optional*): Gives, of the folder and of stdout, further problems of a call that succeeded.
    """

    command: list[str]
    names: tuple[str, ...]
    writes: tuple[str, ...] = ()
    stdin: bytes = b""
    check: Callable[[Path, str], Iterator[str]] | None = None


Trick = Callable[[random.Random, Path], Case]


class Door(NamedTuple):
    """
    A way in.

    Fields:
        tricks (`tuple` of callables): Each writes hostile files into an empty folder and gives the case.
        share (`int`): How many of 2,000 cases come through this door.
    """

    tricks: tuple[Trick, ...]
    share: int


def trick_of(name: str, door: Door, seed: int) -> Trick:
    """The trick that a seed stands for. A new trick takes its share of all seeds; the others keep their tricks."""
    return max(door.tricks, key=lambda trick: hashlib.sha256(f"{name} {seed} {trick.__name__}".encode()).digest())


def make_case(name: str, door: Door, seed: int, folder: Path) -> tuple[str, Case]:
    """The trick and the case of a seed, with its files in the folder."""
    trick = trick_of(name, door, seed)
    return trick.__name__, trick(random.Random(f"{name} {trick.__name__} {seed}"), folder)
