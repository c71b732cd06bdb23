"""All doors. To add one: a file with its tricks, and an entry here."""

from collections.abc import Iterator

from ..cases import Door
from . import captions, maps, models, options, reports, scores, sounds, submissions, tables

SUITE = 2000  # cases

DOORS = {
    "sounds": Door(sounds.TRICKS, 460),
    "tables": Door(tables.TRICKS, 370),
    "captions": Door(captions.TRICKS, 140),
    "scores": Door(scores.TRICKS, 370),
    "maps": Door(maps.TRICKS, 180),
    "models": Door(models.TRICKS, 140),
    "submissions": Door(submissions.TRICKS, 140),
    "reports": Door(reports.TRICKS, 20),
    "options": Door(options.TRICKS, 180),
}


def shared_cases(name: str, total: int, first: int = 0) -> Iterator[tuple[str, int]]:
    """A door's share of so many cases in all: its name with each seed from the first."""
    whole = sum(door.share for door in DOORS.values())
    for number in range(max(1, total * DOORS[name].share // whole)):
        yield name, first + number
