"""Submissions: tables of scores and descriptions of systems, packed into a ZIP."""

import random
import zipfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from ..cases import Case
from ..materials import NOT_THE_FILE, NUMBERS, damaged, table_bytes, text

NAMES = [f"clip{number}.wav" for number in range(5)]
DESCRIPTION = {
    "name": "ours",
    "authors": ["A. Author"],
    "contact": "a@example.org",
    "external_data": [],
    "models": ["BEATs"],
}
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
YAML_TEXTS = (
    *("name: [", "- 1", "5", "", "\x00", "name: ours\nname: theirs", "!!python/object/apply:os.system ['touch x']"),
    *("name: &a [*a]", f"{LAUGHS}authors: *a11\n", f"{LAUGHS}authors: [*a11]\nname: x\n", "{" * 5000),
    *("[" * 5000, "? {a: b} : c"),
    *("<<: 5", "<<: *gone", "1: 2", "null: 1", "name: 2024-01-01", "name: .nan", "name: 0x10"),
    *("authors: {a: b}", "a: b: c"),
)


def pack(rng: random.Random, folder: Path, *names: str) -> Case:
    """The case of submitting `scores.csv`, by the reference and the description if they are there."""
    more = ["--reference", "test.csv"]
    if (folder / "system.yaml").exists():
        more += ["--description", "system.yaml"]
    else:
        more += ["--name", "ours", "--author", "A", "--contact", "a@example.org", "--pretrained", "BEATs"]
    json_flag = rng.choice([[], ["--json"]])
    return Case(["submit", "scores.csv", *more, "-o", "out.zip", *json_flag], names, ("out.zip",), check=is_sound_zip)


def write_tables(folder: Path, rows: list[list], names: list[str] | None = None) -> None:
    """Scores, and the list of the clips that must have one."""
    (folder / "scores.csv").write_bytes(table_bytes(["wav_file_name", "pred_score"], rows, ".csv"))
    (folder / "test.csv").write_bytes(table_bytes(["wav_file_name"], [[name] for name in names or NAMES], ".csv"))


def good_rows() -> list[list]:
    """A score for each clip."""
    return [[name, float(number)] for number, name in enumerate(NAMES)]


def is_sound_zip(folder: Path, stdout: str) -> Iterator[str]:
    """Names without folders, descriptions that are what the rules ask, finite scores."""
    with zipfile.ZipFile(folder / "out.zip") as archive:
        if broken := archive.testzip():
            yield f"{broken} is broken"
        for name in archive.namelist():
            if "/" in name or "\\" in name or name.startswith("."):
                yield f"the ZIP holds {name!r}"
            if name.endswith(".yaml") and set(yaml.safe_load(archive.read(name))) != set(DESCRIPTION):
                yield f"{name} has other fields"


def odd_scores(rng: random.Random, folder: Path) -> Case:
    """Scores that are none, and names that no file has."""
    rows = good_rows()
    for row in rng.sample(rows, rng.choice([1, 5])):
        row[rng.choice([0, 1, 1])] = rng.choice([rng.choice(NUMBERS), text(rng)])
    write_tables(folder, rows)
    return pack(rng, folder, "scores.csv")


def odd_reference(rng: random.Random, folder: Path) -> Case:
    """A list of clips with hostile, missing or double names; or scores for the very same hostile names."""
    names = [*NAMES[:3], rng.choice([text(rng), "../x.wav", "/clip0.wav", "clip0.wav", ""]), text(rng)]
    rows = [[name, 5.0] for name in names] if rng.random() < 0.5 else good_rows()
    write_tables(folder, rows, names)
    return pack(rng, folder, "scores.csv", "test.csv")


def odd_description(rng: random.Random, folder: Path) -> Case:
    """A description that is no YAML, bursts when it is written out, or has other fields."""
    write_tables(folder, good_rows())
    fields = dict(DESCRIPTION)
    name = rng.choice(list(fields))
    fields[name] = rng.choice(
        [None, 5, "", " ", [], [[]], {}, [1], True, text(rng), [text(rng)], "../x", "CON", "a" * 65]
    )
    content = rng.choice([yaml.safe_dump(fields, allow_unicode=True).encode(), rng.choice(YAML_TEXTS).encode()])
    content = rng.choice(
        [content] * 6 + [damaged(rng, content), rng.choice(NOT_THE_FILE), content.decode().encode("utf-16")]
    )
    (folder / "system.yaml").write_bytes(content)
    return pack(rng, folder, "system.yaml")


def odd_options(rng: random.Random, folder: Path) -> Case:
    """The same, given as options."""
    write_tables(folder, good_rows())
    case = pack(rng, folder, "option", "scores.csv")
    option = rng.choice(["--name", "--author", "--contact", "--pretrained", "--external-data", "-o"])
    value = text(rng).replace("\0", "")[:20_000] + rng.choice(["", "\udcff", ".zip"])
    if option == "-o":
        value = rng.choice(["out", "out.tar", "scores.csv", "test.csv", ".zip", "out/", "scores.csv/out.zip", ""])
    if option in case.command:
        case.command[case.command.index(option) + 1] = value
    else:
        case.command += [option, value]
    case.names += (value.rstrip("/"), option)
    case.check = None
    return case


TRICKS = (odd_scores, odd_reference, odd_description, odd_options)
