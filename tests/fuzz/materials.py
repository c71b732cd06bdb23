"""What hostile files are made of: sound files, texts, numbers, tables and JSON, and ways to damage them."""

import csv
import io
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

SAMPLING_RATE = 16000
GOOD_SOUND = "good.wav"
SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
EXTREMES = (0, 1, 2, 3, 7, 255, 256, 300, 1024, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)

# None of them holds "nan" or "inf" as a word of its own, so that a printed one is a number that is none.
TEXTS = (
    "a dog barks",
    "[SCORE]",
    "[AUDIO_START] [AUDIO] [AUDIO_END] [SCORE] <|im_end|> <|endoftext|>",
    "\u202eright to left\u202c عربى עברית",
    "👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 🇩🇪",
    "\u200b\u200c\u200d\ufeff",
    "\u0000\u0001\u0007\u001b[31mred\u001b[0m\u007f\u0085",
    "e\u0301\u0327" * 50,
    "Z" + "\u0334\u0335\u0336" * 300,
    "",
    "   \t ",
    "two\nlines",
    "a\rcarriage return",
    "\u2028line separator\u2029",
    '=HYPERLINK("http://x";1)',
    "@SUM(1+1)*cmd|' /C calc'!A0",
    "-2+3",
    "<script>alert(7)</script>",
    '"><img src=x onerror=alert(7)>',
    "</td></table><b onclick='x()'>&amp;&#60;",
    "{{ 7 * 7 }} {% raw %} ${x} %s %(x)d {0} {x!r}",
    "$\\frac{1}{0}$ $x_{$ \\undefined",
    "../../../etc/passwd",
    "'; DROP TABLE pairs; --",
    "quote \" and ' and `",
    "comma, semicolon; tab\tpipe|",
    "ﷺ" * 40,
    "dog " * 25_000,
    "x" * 100_000,
    "\uff46\uff55\uff4c\uff4c \uff57\uff49\uff44\uff54\uff48 \u2460\u2461",
    "\U0010ffff\ufffe\ufdd0",
)
NUMBERS = (
    *("nan", "NaN", "inf", "-inf", "Infinity", "1e308", "-1e308", "1e999", "1e-400", "5e-324", "-0", "0", ""),
    *(" ", "1,5"),
    *("0x10", "1_0", "\uff15", "١٢", "true", "None", "null", "1e", "+", "--1", "1 2", "9" * 5000),
    *("0." + "3" * 5000, "1e5"),
    *("3.0", "-7", "10.000001", "99999999999999999999", "abc", "5%", "=1+1", "2024-01-01"),
)
# As it stands in a JSON file: not all of it is JSON.
JSON_TEXTS = (
    *("NaN", "Infinity", "-Infinity", "1e308", "-1e308", "1e999", "5e-324", "0", "-1", "-0.0", "1.5", "null", "true"),
    *('""', '"x"', '"nan"', '"1"', '"\\ud83d"', '"\\u0000"', "[]", "{}", "[[]]", "[1, 2]", "[[1, 2], [3]]", '{"a": 1}'),
    *("9" * 5000, "1" + "0" * 400, "18446744073709551616", "[null]", '["a", "b"]', "[NaN]", "[1e308, -1e308]"),
    *("[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000, '"' + "x" * 200_000 + '"'),
)
# What stands in for a file that was to be fetched.
NOT_THE_FILE = (
    b"",
    b"<!doctype html><html><head><title>404 Not Found</title></head></html>\n",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9540120\n",
    b"\x00" * 4096,
    b"PK\x03\x04" + bytes(60),
    b"\x1f\x8b\x08\x00" + bytes(60),
    b"\xff\xfe{\x00}\x00",
    b"Access to model is restricted.",
)


@cache
def encoded(format: str, subtype: str, rate: int = SAMPLING_RATE, channels: int = 1, frames: int = 4800) -> bytes:
    """A sound file of noise."""
    samples = 0.1 * np.random.default_rng(frames).normal(size=(frames, channels))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples.clip(-1, 1), rate, format=format, subtype=subtype)
    return buffer.getvalue()


def write_good_sound(folder: Path, name: str = GOOD_SOUND) -> str:
    """A sound that can be scored."""
    (folder / name).write_bytes(encoded("WAV", "PCM_16"))
    return name


def text(rng: random.Random) -> str:
    """A hostile caption, name or key."""
    drawn = rng.choice(TEXTS)
    return drawn + rng.choice(TEXTS) if rng.random() < 0.2 else drawn


def argument(rng: random.Random) -> str:
    """A hostile text that a shell can give: without NUL, perhaps not UTF-8, and no longer than an argument may be."""
    drawn = text(rng).replace("\0", "")
    return drawn + "\udcff" if rng.random() < 0.1 else drawn


def damaged(rng: random.Random, content: bytes, header: int | None = None) -> bytes:
    """The content with some of it changed, missing, doubled or in another place; or only its first bytes changed."""
    end = max(1, min(len(content), header or len(content)))
    place, other = sorted((rng.randrange(end), rng.randrange(end)))
    kind = rng.choice(["flip", "poke"] if header else ["flip", "poke", "cut", "gap", "double", "append", "swap"])
    if kind == "flip":
        return _flipped(rng, content, end)
    if kind == "poke":
        return _poked(rng, content, end)
    return {
        "cut": content[:place],
        "gap": content[:place] + content[other:],
        "double": content[:other] + content[place:],
        "append": content + rng.randbytes(rng.choice([1, 100, 5000])),
        "swap": content[other:] + content[:other],
    }[kind]


def _flipped(rng: random.Random, content: bytes, end: int) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice([1, 2, 8, 64]) if content else 0):
        changed[rng.randrange(end)] = rng.randrange(256)
    return bytes(changed)


def _poked(rng: random.Random, content: bytes, end: int) -> bytes:
    """With an extreme number at some place."""
    width = rng.choice([1, 2, 4, 8])
    number = (rng.choice(EXTREMES) % 2 ** (8 * width)).to_bytes(width, rng.choice(["little", "big"]))
    place = rng.randrange(end)
    return content[:place] + number + content[place + width :]


def table_bytes(columns: Sequence[str], rows: Sequence[Sequence[Any]], suffix: str) -> bytes:
    """A table in a format, whatever its cells are."""
    if suffix == ".parquet":
        return parquet_bytes({name: _column([row[place] for row in rows]) for place, name in enumerate(columns)})
    file = io.StringIO(newline="")
    if suffix == ".jsonl":
        file.writelines(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
    else:
        delimiter = "\t" if suffix == ".tsv" else ","
        csv.writer(file, delimiter=delimiter, lineterminator="\n").writerows([columns, *rows])
    return file.getvalue().encode("utf-8", "surrogatepass")


def _column(values: list[Any]) -> pa.Array:
    """An Arrow array of the values, or of their texts where they are of several kinds."""
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError):
        texts = [str(value).encode("utf-8", "replace").decode() for value in values]
        return pa.array(texts)


def parquet_bytes(columns: dict[str, pa.Array]) -> bytes:
    """A Parquet file."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    return buffer.getvalue()


def broken_json(rng: random.Random, content: Any) -> bytes:
    """A JSON document of which one value is hostile, missing, renamed or too much; or one with damaged bytes."""
    kind = rng.random()
    if kind < 0.1:
        return rng.choice(NOT_THE_FILE)
    if kind < 0.2:
        return damaged(rng, json.dumps(content, indent=2).encode())
    if kind < 0.3:
        return rng.choice(JSON_TEXTS).encode()
    copied = json.loads(json.dumps(content))
    _break_a_value(rng, copied)
    return json.dumps(copied).replace('"@@"', rng.choice(JSON_TEXTS)).encode(rng.choice(["utf-8"] * 9 + ["utf-16"]))


def _break_a_value(rng: random.Random, content: Any) -> None:
    """Change one value, anywhere in lists and objects, in place; a hostile one is told by a mark."""
    owner, key = rng.choice(list(_places(content)))
    kind = rng.choice(["put", "put", "put", "drop", "add"])
    if kind == "put" or (kind == "add" and isinstance(owner, list)):
        owner[key] = "@@"
    elif kind == "drop":
        del owner[key]
    else:
        owner[f"{key}_more"] = "@@"


def _places(content: Any) -> Any:
    """Every container within the content, with each of its keys."""
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        yield content, key
        if isinstance(content[key], (dict, list)):
            yield from _places(content[key])
