"""Options: numbers that are none, too large or below zero, for every command; and outputs that would cost an input."""

import functools
import os
import random
from pathlib import Path
from typing import Any, get_args, get_type_hints

from typer.models import OptionInfo

from modeling_xacle.cli.main import COMMANDS, convert_beats

from ..cases import Case
from ..materials import argument, table_bytes, write_good_sound
from .maps import AFFINE, NNLS
from .models import PARITY
from .submissions import good_rows, write_tables

NUMBERS = (
    *("-1", "0", "1", "nan", "inf", "-inf", "1e308", "-1e308", "1e-308", "0.1", "2147483648", "9223372036854775808"),
    *("18446744073709551616", "1" + "0" * 100, "9" * 5000, "", " ", "٣", "1_000", "0x10", "1e3", "-0", "+2"),
    *("1.0", "auto"),
)
WORDS = (
    *("", " ", ".", "..", "/", "~", "-", "--", "gone", "cpu", "cuda", "cuda:99", "cpu:7", "mps", "meta", "xla"),
    "a/b/c/d",
    *("float64", "mean", "nnls", "id", "audio", "score", "text", "good.wav", "pairs.csv", "scores.csv"),
    *("map.json", "http://x"),
)
OUTPUTS = (
    *("pairs.csv", "scores.csv", "listeners.csv", "map.json", "weights.json", "good.wav", "captions.txt", "test.csv"),
    *("link.csv", "loop.csv", "pipe.csv", "folder.csv", "folder", "full", "", ".", "good.wav/out.csv"),
    "new/new/out.csv",
    *("out", "out.", "out.csv", "out.json", "out.jsonl", "out.tsv", "out.parquet", "out.zip", "out.png"),
    *("out.xlsx", "out.CSV"),
    *("x" * 300 + ".csv", "ü😀.csv", "a\nb.csv", "\udcff.csv", "folder/../pairs.csv", "./pairs.csv", "hard.csv"),
)
# A valid call of every command; `{}` stands for the output.
CALLS = {
    "score": "score --audio good.wav --text dog",
    "score table": "score pairs.csv -o {}",
    "evaluate": "evaluate scores.csv listeners.csv --resamples 20",
    "evaluate report": "evaluate scores.csv listeners.csv --resamples 20 -o {}",
    "compare": "compare scores.csv other.csv --reference listeners.csv --resamples 20",
    "calibrate": "calibrate scores.csv listeners.csv -o {}",
    "calibrate apply": "calibrate --load map.json --apply scores.csv -o {}",
    "calibrate diagram": "calibrate scores.csv listeners.csv -o map.json --diagram {}",
    "calibrate load": "calibrate --load map.json -o {}",
    "ensemble": "ensemble scores.csv other.csv --reference listeners.csv --method nnls --folds 2 -o {}",
    "left out": "ensemble scores.csv other.csv --reference listeners.csv -o out.csv --resamples 20 --leave-one-out",
    "ensemble weights": "ensemble scores.csv other.csv --weights weights.json -o {}",
    "weights": "ensemble scores.csv other.csv --reference listeners.csv --method nnls -o out.csv --save-weights {}",
    "submit": "submit submission.csv --reference test.csv --name ours --author A --contact c --pretrained B -o {}",
    "rank": "rank good.wav --text dog --text rain",
    "matrix": "matrix good.wav --texts captions.txt -o {}",
    "matrix picture": "matrix good.wav --texts captions.txt --heat-map {}",
    "info": "info",
    "doctor": "doctor",
    "convert beats": "convert beats beats.pt -o {}",
    "init": "init --beats beats.pt --llm llm -o {}",
}
OUTPUT_OPTIONS = ("output", "heat_map", "diagram", "save_weights")
GOOD_OUTPUTS = {
    **{"convert beats": "out", "init": "out", "evaluate report": "out"},
    **{"submit": "out.zip", "calibrate diagram": "out.png", "matrix picture": "out.png", "weights": "out.json"},
}


def write_world(rng: random.Random, folder: Path) -> None:
    """Good files for every call, and some that no output may replace."""
    write_good_sound(folder)
    (folder / "pairs.csv").write_text("audio,text\ngood.wav,a dog\n")
    (folder / "captions.txt").write_text("a dog\nrain\n")
    for name, column in {"scores": "score", "other": "score", "listeners": "average_score"}.items():
        rows = [[row, row + rng.random()] for row in range(6)]
        (folder / f"{name}.csv").write_bytes(table_bytes(["id", column], rows, ".csv"))
    write_tables(folder, good_rows())
    (folder / "scores.csv").rename(folder / "submission.csv")
    rows = [[row, row + rng.random()] for row in range(6)]
    (folder / "scores.csv").write_bytes(table_bytes(["id", "score"], rows, ".csv"))
    (folder / "map.json").write_text(str(AFFINE).replace("'", '"'))
    (folder / "weights.json").write_text(str(NNLS).replace("'", '"'))
    (folder / "folder").mkdir()
    (folder / "folder/precious.txt").write_text("precious")
    (folder / "folder.csv").mkdir()
    os.mkfifo(folder / "pipe.csv")
    links = {"link.csv": "pairs.csv", "loop.csv": "loop.csv", "full": "/dev/full", "llm": PARITY / "llm"}
    for name, target in {**links, "beats.pt": PARITY / "beats.pt"}.items():
        os.symlink(target, folder / name)
    os.link(folder / "pairs.csv", folder / "hard.csv")


@functools.cache
def options_of(command: str, numbers: bool) -> list[str]:
    """The options of a command that take a number, or those that take something else but no output."""
    functions = {function.__name__: function for function in COMMANDS} | {"convert": convert_beats}
    hints = get_type_hints(functions[command], include_extras=True)
    return [
        f"--{name.replace('_', '-')}"
        for name, hint in hints.items()
        if is_option(hint) and is_number(name, hint) == numbers and name not in OUTPUT_OPTIONS
    ]


def is_option(hint: Any) -> bool:
    """Whether a parameter is an option with a value."""
    is_named = any(isinstance(more, OptionInfo) for more in getattr(hint, "__metadata__", ()))
    return is_named and get_args(hint)[0] is not bool


def is_number(name: str, hint: Any) -> bool:
    """Whether an option takes a number, or a number among else."""
    kinds = {get_args(hint)[0], *get_args(get_args(hint)[0])}
    return bool(kinds & {int, float}) or name == "batch_size"


def call(name: str, output: str | None = None) -> list[str]:
    """The valid call, with this output or a good one."""
    output = GOOD_OUTPUTS.get(name, "out.csv") if output is None else output
    return [output if part == "{}" else part for part in CALLS[name].split()]


def odd_numbers(rng: random.Random, folder: Path) -> Case:
    """One number of a call is hostile."""
    return odd_option(rng, folder, True)


def odd_words(rng: random.Random, folder: Path) -> Case:
    """One text or path of a call is hostile."""
    return odd_option(rng, folder, False)


def odd_option(rng: random.Random, folder: Path, numbers: bool) -> Case:
    """A call with one more option, or another value of one that it has."""
    write_world(rng, folder)
    name = rng.choice([name for name in CALLS if options_of(CALLS[name].split()[0], numbers)])
    command = call(name)
    option = rng.choice(options_of(command[0], numbers))
    value = rng.choice(NUMBERS) if numbers else rng.choice([*WORDS, argument(rng)[:5000]])
    names = (
        option,
        option.strip("-"),
        option.strip("-").replace("-", "_"),
        value,
        repr(value),
        os.path.normpath(value),
    )
    return Case([*command, option, value], names, ("out", "map.json"))


def odd_output(rng: random.Random, folder: Path) -> Case:
    """An output that is an input, a special file, or no place to write."""
    write_world(rng, folder)
    name, output = rng.choice([name for name, line in CALLS.items() if "{}" in line]), rng.choice(OUTPUTS)
    names = (output, output.split("/")[0], os.path.basename(output), os.path.normpath(output), "output", "-o")
    return Case(call(name, output), names, ("out", "new", *replaceable(folder, name, output)))


def replaceable(folder: Path, name: str, output: str) -> list[str]:
    """The output, unless it is something that must stay: an input of this very call, a pipe, a device or a folder."""
    inputs = {os.path.realpath(folder / part) for part in CALLS[name].split()}
    place = os.path.realpath(folder / output)
    is_special = os.path.exists(place) and not (
        os.path.isfile(place) or (os.path.isdir(place) and not os.listdir(place))
    )
    return (
        []
        if place in inputs or is_special or not output
        else [output, os.path.normpath(output), os.path.relpath(place, folder)]
    )


TRICKS = (odd_numbers, odd_words, odd_output)
