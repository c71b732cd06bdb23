"""Tables of scores: what `evaluate`, `compare`, `calibrate` and `ensemble` read."""

import os
import random
from pathlib import Path
from typing import Any

from ..cases import Case
from ..materials import JSON_TEXTS, NUMBERS, SUFFIXES, damaged, table_bytes, text
from .tables import ENCODINGS

PREDICTION, OTHER, REFERENCE = "scores", "other", "listeners"
FEW = ["--resamples", "20"]


class Tables:
    """
    Two tables of predictions and one of references that fit, until a trick changes one of them.

    Args:
        rng (`random.Random`): Draws the scores, which rise together, and which table is the `hostile` one.
        number (`int`): Of rows.
    """

    def __init__(self, rng: random.Random, number: int = 6):
        self.rng, self.suffix = rng, rng.choice(SUFFIXES)
        self.columns = {
            PREDICTION: ["id", "text", "model_id", "pred_score"],
            OTHER: ["id", "text", "model_id", "pred_score"],
            REFERENCE: ["id", "text", "ratings", "average_score"],
        }
        more = {PREDICTION: "tta", OTHER: "tta", REFERENCE: "[3, 5]"}
        self.rows = {
            name: [[f"clip {row}", "a dog", extra, row % 9 + rng.random()] for row in range(number)]
            for name, extra in more.items()
        }
        self.hostile = rng.choice([PREDICTION, REFERENCE])

    def file(self, name: str) -> str:
        """The file of a table: the hostile one has a drawn format, the others are CSV."""
        return name + (self.suffix if name == self.hostile else ".csv")

    def content(self, name: str) -> bytes:
        """The table as bytes, without what its format cannot hold."""
        return table_bytes(self.columns[name], self.rows[name], Path(self.file(name)).suffix)

    def write(self, folder: Path) -> None:
        """Write all three."""
        for name in self.rows:
            (folder / self.file(name)).write_bytes(self.content(name))

    def case(self, *options: str, names: tuple[str, ...] = ()) -> Case:
        """One of the commands that read them."""
        prediction, other, reference = map(self.file, (PREDICTION, OTHER, REFERENCE))
        output = f"out{self.rng.choice(SUFFIXES)}"
        json_flag = self.rng.choice([[], ["--json"]])
        command, *more = self.rng.choice(
            [
                ["evaluate", prediction, reference, *FEW, *self.rng.choice([[], ["--official"]])],
                ["compare", prediction, other, "--reference", reference, *FEW],
                [
                    "calibrate",
                    prediction,
                    reference,
                    "--method",
                    self.rng.choice(["affine", "isotonic"]),
                    "-o",
                    "out.json",
                ],
                ["calibrate", prediction, reference, "--apply", prediction, "-o", output],
                ["ensemble", prediction, other, "--method", self.rng.choice(["mean", "zscore", "rank"]), "-o", output],
                self._fitted(prediction, other, reference, output),
            ]
        )
        return Case([command, *more, *json_flag, *options], (self.file(self.hostile), *names), ("out", "weights.json"))

    def _fitted(self, prediction: str, other: str, reference: str, output: str) -> list[str]:
        """An ensemble that is fitted, and judged."""
        method = self.rng.choice(["nnls", "svr"])
        more = self.rng.choice([[], ["--leave-one-out", *FEW], ["--save-weights", "weights.json"]])
        return [
            "ensemble",
            prediction,
            other,
            "--reference",
            reference,
            "--method",
            method,
            "--folds",
            "2",
            "-o",
            output,
            *more,
        ]


def odd_scores(rng: random.Random, folder: Path) -> Case:
    """Scores that are no numbers, or that no sum can hold."""
    tables = Tables(rng, rng.choice([2, 3, 6, 30]))
    rows = tables.rows[tables.hostile]
    drawn: list[Any] = [rng.choice(NUMBERS), rng.choice([1e308, -1e308, 1e200, 5e-324, 0.1])]
    drawn += [None, True, 10**400, [], {"a": 1}, float("nan"), float("inf")] if tables.suffix == ".jsonl" else []
    drawn += [float("nan"), float("inf"), -float("inf")] if tables.suffix == ".parquet" else []
    for row in rng.sample(rows, rng.choice([1, 1, 2, len(rows)])):
        row[-1] = rng.choice(drawn)
    tables.write(folder)
    return tables.case()


def huge_scores(rng: random.Random, folder: Path) -> Case:
    """Finite scores whose squares, sums or differences are not."""
    tables = Tables(rng, rng.choice([2, 6]))
    size = rng.choice([1e308, 1.7e308, 1e200, 1e155, 1e-200, 5e-324, 2.0**1023])
    for name in rng.choice([[PREDICTION], [REFERENCE], [PREDICTION, OTHER], list(tables.rows)]):
        for row in tables.rows[name]:
            row[-1] = rng.choice([size, -size, size * rng.random(), 0.0])
    tables.write(folder)
    return tables.case(names=tuple(map(tables.file, tables.rows)))


def few_or_same(rng: random.Random, folder: Path) -> Case:
    """No, one or two rows, or scores that are all the same."""
    tables = Tables(rng, rng.choice([0, 1, 2, 3, 6]))
    for name in rng.choice([[PREDICTION], [REFERENCE], [PREDICTION, OTHER], list(tables.rows)]):
        for row in tables.rows[name]:
            row[-1] = rng.choice([5.0, 5.0, 0.1 + 0.2])
    tables.write(folder)
    return tables.case(names=tuple(map(tables.file, tables.rows)))


def odd_keys(rng: random.Random, folder: Path) -> Case:
    """Rows that are missing, too many, there twice, or whose keys are hard to print."""
    tables = Tables(rng)
    rows = tables.rows[tables.hostile]
    kind = rng.choice(["twice", "missing", "more", "name", "all names"])
    if kind == "missing":
        rows.pop()
    elif kind in ("twice", "more"):
        rows.append([rows[0][0] if kind == "twice" else text(rng), *rows[0][1:]])
    else:
        for row in rows if kind == "all names" else rows[:1]:
            row[0] = text(rng)
    tables.write(folder)
    return tables.case(names=tuple(map(tables.file, tables.rows)))


def odd_columns(rng: random.Random, folder: Path) -> Case:
    """Columns that are missing or named otherwise, and options that name such."""
    tables = Tables(rng)
    columns = tables.columns[tables.hostile]
    columns[rng.randrange(4)] = rng.choice(["", "score", "pred_score", "audio", "status", "signature", "id", text(rng)])
    tables.write(folder)
    option = rng.choice(["--key", "--prediction-column", "--reference-column", "--group"])
    value = rng.choice([*columns, "gone", "", "ratings", "text"]).replace("\0", "")
    command = tables.case(names=(option, f"column {value}", "cannot group by"))
    if (option == "--group") == (command.command[0] == "evaluate") and rng.random() < 0.6:
        command.command += [option, value]
    command.names += tuple(map(tables.file, tables.rows))
    return command


def odd_ratings(rng: random.Random, folder: Path) -> Case:
    """Listeners' ratings that are no lists, lists of no numbers, empty or alone; or a table of them."""
    tables = Tables(rng)
    tables.hostile = REFERENCE
    for row in tables.rows[REFERENCE]:
        row[2] = rng.choice([*JSON_TEXTS[:-3], "[1, 2]", "[5]", "[]", "3 5"])
    tables.write(folder)
    case = tables.case(names=("ratings",))
    if rng.random() < 0.3:
        rows = [[f"clip {row // 2}", rng.choice([*NUMBERS, 3.0])] for row in range(12)]
        (folder / "ratings.csv").write_bytes(table_bytes(["id", "score"], rows, ".csv"))
        prediction, reference = tables.file(PREDICTION), tables.file(REFERENCE)
        case.command = ["evaluate", prediction, reference, "--ratings", "ratings.csv", *FEW]
    return case


def odd_statuses(rng: random.Random, folder: Path) -> Case:
    """Rows with an error, and no score, as `xacle score` writes them."""
    tables = Tables(rng)
    tables.hostile = PREDICTION
    tables.columns[PREDICTION][1] = "status"
    for row in rng.sample(tables.rows[PREDICTION], rng.choice([1, 5, 6])):
        row[1], row[3] = rng.choice(["error: gone", "error", "ERROR", "ok"]), rng.choice(["", "nan", "x", None])
    tables.write(folder)
    return tables.case()


def odd_bytes(rng: random.Random, folder: Path) -> Case:
    """A table of scores, damaged or in another encoding."""
    tables = Tables(rng)
    tables.write(folder)
    path = folder / tables.file(tables.hostile)
    content = path.read_bytes()
    if tables.suffix == ".parquet" or rng.random() < 0.7:
        path.write_bytes(damaged(rng, content))
    else:
        path.write_bytes(content.decode().encode(rng.choice(ENCODINGS)))
    return tables.case(names=tuple(map(tables.file, tables.rows)))


def odd_sidecar(rng: random.Random, folder: Path) -> Case:
    """A file beside the predictions that should tell what made them, and does not."""
    tables = Tables(rng)
    tables.hostile = PREDICTION
    tables.write(folder)
    sidecar = f"{tables.file(PREDICTION)}.json"
    value = rng.choice(JSON_TEXTS)
    (folder / sidecar).write_text(
        rng.choice([value, f'{{"signature": {value}, "model": {value}}}', f'{{"model": {value}}}'])
    )
    prediction, reference = tables.file(PREDICTION), tables.file(REFERENCE)
    return Case(["evaluate", prediction, reference, *FEW, *rng.choice([[], ["--json"]])], (sidecar,))


def special_table(rng: random.Random, folder: Path) -> Case:
    """A folder, a pipe, a device or nothing in the place of a table."""
    tables = Tables(rng)
    tables.write(folder)
    path, kind = folder / tables.file(tables.hostile), rng.choice(["folder", "pipe", "loop", "/dev/zero", "gone"])
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "gone":
        os.symlink(path.name if kind == "loop" else kind, path)
    return tables.case()


TRICKS = (
    *(odd_scores, huge_scores, few_or_same, odd_keys, odd_columns, odd_ratings, odd_statuses, odd_bytes),
    *(odd_sidecar, special_table),
)
