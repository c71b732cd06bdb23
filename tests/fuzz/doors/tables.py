"""Tables of pairs, in every format: what `xacle score` reads, and `xacle matrix` takes captions from."""

import datetime
import decimal
import gzip
import json
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from modeling_xacle.data import read_table

from ..cases import Case
from ..materials import (
    GOOD_SOUND,
    JSON_TEXTS,
    NOT_THE_FILE,
    NUMBERS,
    SUFFIXES,
    damaged,
    parquet_bytes,
    table_bytes,
    text,
    write_good_sound,
)

COLUMNS = ("audio", "text", "key")
LINE = f"{GOOD_SOUND},a dog"
LINES = (
    *(f"{LINE},1,2", GOOD_SOUND, f'{GOOD_SOUND},"a dog', f'{GOOD_SOUND},"a "dog"', f'{GOOD_SOUND},a "dog', '"', ""),
    *(f'{GOOD_SOUND},"two\nlines"', f'{GOOD_SOUND},"a\rb"', ",", " , ", f"{LINE}\r\r", "#comment", f"\ufeff{LINE}"),
    *(f'{GOOD_SOUND},"{"x" * 131_073}"', f"{GOOD_SOUND},{'y' * 200_000}", f'"{GOOD_SOUND}"x,a'),
)
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "cp1252", "shift_jis", "utf-7")


def good_rows(number: int = 4) -> list[list[Any]]:
    """Rows that can be scored."""
    return [[GOOD_SOUND, f"a dog, barks {row} times", str(row)] for row in range(number)]


def read_it(rng: random.Random, folder: Path, content: bytes, suffix: str) -> Case:
    """The case of a table with this content, by one of the commands that read one."""
    write_good_sound(folder)
    name = f"pairs{suffix}"
    if suffix == ".csv" and rng.random() < 0.1:
        return Case(["score", "-", "-o", "out.csv"], ("standard input",), ("out",), stdin=content)
    (folder / name).write_bytes(content)
    return read_file(rng, name)


def read_file(rng: random.Random, name: str) -> Case:
    """One of the commands that read a table of pairs."""
    if rng.random() < 0.2:
        return Case(["matrix", GOOD_SOUND, "--texts", name], (name,))
    output = f"out{rng.choice(SUFFIXES)}"
    flags = rng.choice(
        [[], [], ["--strict"], ["--signature", "--prefix", "x_"], ["--windows", "--window-seconds", "2"]]
    )
    check = partial(same_rows, name=name, output=output)
    return Case(["score", name, "-o", output, *flags], (name, output), ("out",), check=check)


def same_rows(folder: Path, stdout: str, name: str, output: str) -> Iterator[str]:
    """The output can be read again, and has the rows of the input."""
    try:
        read, written = (len(list(read_table(folder / file)[1])) for file in (name, output))
    except (ValueError, OSError, RecursionError) as error:
        yield f"what was written cannot be read: {str(error)[-200:]}"
        return
    if read != written:
        yield f"{written} rows of {read} were written"


def odd_bytes(rng: random.Random, folder: Path) -> Case:
    """A sound table, damaged."""
    suffix = rng.choice(SUFFIXES)
    return read_it(rng, folder, damaged(rng, table_bytes(COLUMNS, good_rows(), suffix)), suffix)


def odd_encoding(rng: random.Random, folder: Path) -> Case:
    """Text in another encoding, or with NUL or stray bytes in it."""
    suffix = rng.choice(SUFFIXES[:3])
    rows = [[GOOD_SOUND, "der Hund bellt über 犬", "1"]]
    content = table_bytes(COLUMNS, rows, suffix).decode()
    stray = rng.choice([b"\x00", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xef\xbb\xbf"])
    place = rng.randrange(len(content))
    with_stray = content[:place].encode() + stray + content[place:].encode()
    encoded = content.encode(rng.choice(ENCODINGS), "replace")
    return read_it(rng, folder, rng.choice([encoded, with_stray]), suffix)


def odd_lines(rng: random.Random, folder: Path) -> Case:
    """Ends of lines, quotes, and numbers of fields that do not fit."""
    rows = [",".join(map(str, row[::2])) for row in good_rows()]
    extra = rng.choice(LINES)
    rows.insert(rng.randint(0, len(rows)), extra)
    end = rng.choice(["\n", "\r\n", "\r", "\n\n", "\u2028"])
    content = end.join([rng.choice(["audio,text", '"audio","text"', "audio, text ", "audio;text"]), *rows])
    return read_it(rng, folder, content.encode() + rng.choice([b"", b"\n", b"\x1a"]), ".csv")


def odd_header(rng: random.Random, folder: Path) -> Case:
    """Columns that are missing, there twice, nameless, or named as what is added."""
    suffix = rng.choice(SUFFIXES)
    name = rng.choice(["", " ", "audio", "text", "score", "status", "notes", "AUDIO", "key\n", "x" * 5000, text(rng)])
    columns = rng.choice([("audio", "text", name), (name, "text", "key"), ("audio", name, "key"), (name, name, name)])
    content = table_bytes([column.replace("\ud83d", "") for column in columns], good_rows(), suffix)
    return read_it(rng, folder, rng.choice([content] * 5 + [content.split(b"\n")[0], b"\n", b"", b"\n\n\n"]), suffix)


def odd_cells(rng: random.Random, folder: Path) -> Case:
    """Sounds and captions that are none, or hard to write."""
    suffix = rng.choice(SUFFIXES)
    rows = good_rows()
    names = ["", " ", "gone.wav", "../x.wav", "/etc/hostname", ".", "..", "a\0b", "x" * 300, "x" * 5000, "~", "\ud83d"]
    values = [None, 0, 5, True, 1.5, [], {}, [1], {"a": 1}, {"bytes": None, "path": None}, {"path": GOOD_SOUND}]
    loose = [*values, {"bytes": "x", "path": "y"}, {"bytes": [1], "path": 7}] if suffix == ".jsonl" else []
    for _ in range(rng.randint(1, 3)):
        row, column = rng.choice(rows), rng.randrange(3)
        drawn = rng.choice([text(rng), rng.choice(NUMBERS), rng.choice([*names, *loose])])
        drawn = drawn.replace("\ud83d", "") if isinstance(drawn, str) and suffix != ".jsonl" else drawn
        row[column] = drawn
    return read_it(rng, folder, table_bytes(COLUMNS, rows, suffix), suffix)


def odd_json(rng: random.Random, folder: Path) -> Case:
    """JSON lines with values of every kind, other keys, or none."""
    line = json.dumps({"audio": GOOD_SOUND, "text": "a dog", "key": 1})
    value = rng.choice(JSON_TEXTS)
    odd = [
        f'{{"audio": "{GOOD_SOUND}", "text": "a dog", "key": {value}}}',
        f'{{"audio": "{GOOD_SOUND}", "text": {value}}}',
    ]
    odd += [f'{{"audio": {value}, "text": "a dog", "key": 1}}', value, "{}", "{", line[:-1], line * 2, f"{line},", "[]"]
    odd += [
        f'{{"audio": "{GOOD_SOUND}", "text": "a", "text": "b", "key": {value}}}',
        f'{{"key": 1, {line[1:]}',
        '{"": 1}',
    ]
    lines = [line, line]
    lines.insert(rng.randint(0, 2), rng.choice(odd))
    return read_it(rng, folder, "\n".join(lines).encode("utf-8", "surrogatepass"), ".jsonl")


def odd_parquet(rng: random.Random, folder: Path) -> Case:
    """Parquet with columns of types that no pair has."""
    day = datetime.datetime(1, 1, 1)
    values = [
        *(pa.array([1, 2]), pa.array([None, None]), pa.array([[1], []]), pa.array([{"a": 1}, {"a": None}])),
        *(pa.array([b"\xff", b""]), pa.array([decimal.Decimal("1.5"), None]), pa.array([day, None])),
        *(pa.array([datetime.date(1, 1, 1), None]), pa.array([datetime.timedelta(days=10**6), None])),
        *(pa.array([2**63 - 1, -1]), pa.array([2**64 - 1, 0], pa.uint64())),
        pa.array([2**63 - 1, 0], pa.timestamp("ns")),
        *(pa.array([float("nan"), float("inf")]), pa.array([True, None]), pa.array(["a", "b"]).dictionary_encode()),
        *(pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())), pa.array(["x" * 200_000, "y"])),
        *(pa.array([{"bytes": b"RIFF", "path": None}, {"bytes": None, "path": GOOD_SOUND}]), invalid_utf8()),
        *(pa.array([datetime.time(1), None]), pa.array([b"1234567890123456"] * 2, pa.binary(16))),
        pa.array(["", "a\0b"]),
    ]
    columns = {"audio": pa.array([GOOD_SOUND] * 2), "text": pa.array(["a dog", "rain"]), "key": pa.array([1, 2])}
    columns[rng.choice(list(columns))] = rng.choice(values)
    if rng.random() < 0.1:
        columns = {name: values.slice(0, 0) for name, values in columns.items()}
    return read_it(rng, folder, parquet_bytes(columns), ".parquet")


def invalid_utf8() -> pa.Array:
    """Texts of which one is not UTF-8."""
    return pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"a\xff"))


def no_table(rng: random.Random, folder: Path) -> Case:
    """Something else under a table's name, or a table under another's."""
    suffix = rng.choice([*SUFFIXES, ".txt", ".xlsx", "", ".CSV", ".Parquet"])
    other = table_bytes(COLUMNS, good_rows(), rng.choice(SUFFIXES))
    content = rng.choice(
        [*NOT_THE_FILE, other, gzip.compress(other, mtime=0), b"PAR1" * 3, b"PAR1\xff\xff\xff\x7fPAR1"]
    )
    return read_it(rng, folder, content, suffix)


def special_table(rng: random.Random, folder: Path) -> Case:
    """A folder, a pipe, a device or a broken link in the place of a table."""
    write_good_sound(folder)
    name, kind = (
        f"pairs{rng.choice(SUFFIXES)}",
        rng.choice(["folder", "pipe", "loop", "/dev/zero", "/dev/null", "gone"]),
    )
    if kind == "folder":
        (folder / name).mkdir()
        (folder / name / "inside.csv").write_bytes(table_bytes(COLUMNS, good_rows(), ".csv"))
    elif kind == "pipe":
        os.mkfifo(folder / name)
    elif kind != "gone":
        os.symlink(name if kind == "loop" else kind, folder / name)
    return read_file(rng, name)


TRICKS = (odd_bytes, odd_encoding, odd_lines, odd_header, odd_cells, odd_json, odd_parquet, no_table, special_table)
