"""Captions: given as arguments, a line each, and in tables."""

import csv
import io
import json
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..cases import Case
from ..materials import GOOD_SOUND, SUFFIXES, argument, damaged, text, write_good_sound
from .tables import same_rows

LONGEST_ARGUMENT = 100_000  # bytes, of 128 KiB that Linux takes


def by_argument(rng: random.Random, folder: Path) -> Case:
    """One caption, or some."""
    write_good_sound(folder)
    captions = [argument(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    texts = [part for caption in captions for part in ("--text", caption[: LONGEST_ARGUMENT // 4])]
    json_flag = rng.choice([[], ["--json"]])
    command = rng.choice([["score", "--audio", GOOD_SOUND], ["rank", GOOD_SOUND]])
    return Case([*command, *texts, *json_flag], ("--text", "text", "caption"))


def by_line(rng: random.Random, folder: Path) -> Case:
    """A file with a caption on each line, in UTF-8 or not, as a matrix on stdout or with a picture."""
    write_good_sound(folder)
    end = rng.choice(["\n", "\r\n", "\r", "\x85", "\0"])
    content = end.join(text(rng)[:20_000] for _ in range(rng.randint(1, 4))).encode("utf-8", "surrogatepass")
    (folder / "captions.txt").write_bytes(damaged(rng, content) if rng.random() < 0.2 else content)
    way = rng.choice(
        [[], ["--json"], ["-o", f"out{rng.choice(SUFFIXES)}"], ["--heat-map", f"out.{rng.choice(['svg', 'pdf'])}"]]
    )
    return Case(["matrix", GOOD_SOUND, "--texts", "captions.txt", *way], ("captions.txt", "caption"), ("out",))


def by_table(rng: random.Random, folder: Path) -> Case:
    """A table of captions with quotes where they are needed; each comes out as it went in."""
    write_good_sound(folder)
    captions = [text(rng) for _ in range(rng.randint(1, 4))]
    file = io.StringIO(newline="")
    csv.writer(file, quoting=csv.QUOTE_ALL).writerows(
        [("audio", "text"), *((GOOD_SOUND, caption) for caption in captions)]
    )
    (folder / "pairs.csv").write_bytes(file.getvalue().encode("utf-8", "surrogatepass"))
    output = f"out{rng.choice(SUFFIXES)}"
    check = partial(same_rows, name="pairs.csv", output=output)
    return Case(["score", "pairs.csv", "-o", output], ("pairs.csv",), ("out",), check=check)


def by_json(rng: random.Random, folder: Path) -> Case:
    """JSON lines, which can hold half of a character."""
    write_good_sound(folder)
    captions = [text(rng) + rng.choice(["", "\ud83d", "\udfff\ud83d"]) for _ in range(rng.randint(1, 3))]
    lines = [json.dumps({"audio": GOOD_SOUND, "text": caption}) for caption in captions]
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    output = f"out{rng.choice(SUFFIXES)}"
    check = partial(same_captions, captions=captions, output=output)
    return Case(["score", "pairs.jsonl", "-o", output], ("pairs.jsonl", output), ("out",), check=check)


def same_captions(folder: Path, stdout: str, captions: list[str], output: str) -> Iterator[str]:
    """The output has the rows of the input, and in JSON the very captions."""
    yield from same_rows(folder, stdout, "pairs.jsonl", output)
    whole = not any("\ud800" <= character <= "\udfff" for caption in captions for character in caption)
    if output.endswith(".jsonl") and whole:
        written = [
            json.loads(line)["text"] for line in (folder / output).read_text(encoding="utf-8").split("\n") if line
        ]
        if written != captions:
            yield "a caption came out otherwise than it went in"


TRICKS = (by_argument, by_line, by_table, by_json)
