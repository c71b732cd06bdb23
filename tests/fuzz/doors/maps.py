"""Files of JSON that commands read again: calibration maps, weights of ensembles, and what a scoring run left."""

import json
import random
from pathlib import Path

from ..cases import Case
from ..materials import GOOD_SOUND, SUFFIXES, broken_json, table_bytes, write_good_sound

AFFINE = {"method": "affine", "scale": 1.5, "offset": -0.5, "inputs": [], "outputs": []}
ISOTONIC = {"method": "isotonic", "scale": 1.0, "offset": 0.0, "inputs": [1.0, 5.0, 9.0], "outputs": [2.0, 4.0, 4.0]}
FITTED_ON = {"pairs": 6, "clips_sha256": "0" * 64}
NNLS = {
    "method": "nnls",
    "members": ["scores", "other"],
    "fitted_on": FITTED_ON,
    "parameters": {"weights": [0.5, 0.25], "offset": 1.0},
}
SVR = {
    **NNLS,
    "method": "svr",
    "parameters": {
        "means": [5.0, 5.0],
        "scales": [2.0, 3.0],
        "vectors": [[0.1, 0.2], [1.0, -1.0]],
        "coefficients": [0.5, -0.5],
        "intercept": 5.0,
    },
}
COLUMNS = ("id", "score")


def write_scores(rng: random.Random, folder: Path, *names: str) -> None:
    """Tables of scores that fit."""
    for name in names:
        rows = [[f"clip {row}", rng.uniform(0, 10)] for row in range(6)]
        (folder / name).write_bytes(table_bytes(COLUMNS, rows, ".csv"))


def calibration_map(rng: random.Random, folder: Path) -> Case:
    """A calibration map of which something is wrong, applied to a table."""
    write_scores(rng, folder, "scores.csv")
    (folder / "map.json").write_bytes(broken_json(rng, rng.choice([AFFINE, ISOTONIC])))
    output = f"out{rng.choice(SUFFIXES)}"
    flags = rng.choice([[], ["--json"]])
    return Case(
        ["calibrate", "--load", "map.json", "--apply", "scores.csv", "-o", output, *flags], ("map.json",), ("out",)
    )


def stored_map(rng: random.Random, folder: Path) -> Case:
    """Such a map, written again."""
    (folder / "map.json").write_bytes(broken_json(rng, rng.choice([AFFINE, ISOTONIC])))
    return Case(
        ["calibrate", "--load", "map.json", "-o", "out.json", *rng.choice([[], ["--json"]])], ("map.json",), ("out",)
    )


def ensemble_weights(rng: random.Random, folder: Path) -> Case:
    """Weights of which something is wrong, applied to two tables."""
    write_scores(rng, folder, "scores.csv", "other.csv", "listeners.csv")
    (folder / "weights.json").write_bytes(broken_json(rng, rng.choice([NNLS, SVR])))
    command = ["ensemble", "scores.csv", "other.csv", "--weights", "weights.json", "-o", f"out{rng.choice(SUFFIXES)}"]
    more = rng.choice([[], ["--json"], ["--reference", "listeners.csv"]])
    return Case([*command, *more], ("weights.json",), ("out",))


def earlier_run(rng: random.Random, folder: Path) -> Case:
    """A sidecar, or settings and results of a run that was killed, which this command did not write."""
    write_good_sound(folder)
    (folder / "pairs.csv").write_text(f"audio,text\n{GOOD_SOUND},a dog\n{GOOD_SOUND},rain\n")
    settings = {
        "scorer": {"weights": "sha256 0", "dtype": "float32"},
        "table": {"rows": 2},
        "columns": ["audio", "text"],
    }
    record = {"block": 0, "row": 0, "score": 5.0, "status": "ok", "notes": ""}
    work = folder / "out.csv.work"
    kind = rng.choice(["sidecar", "settings", "results", "results"])
    if kind == "sidecar":
        (folder / "out.csv").write_text("audio,text,score\n")
        finished = {**settings, "output_sha256": "0", "rows": {"ok": 2, "error": 0}}
        (folder / "out.csv.json").write_bytes(broken_json(rng, finished))
    else:
        work.mkdir()
        (work / "settings.json").write_bytes(broken_json(rng, settings) if kind == "settings" else b"{}")
    if kind == "results":
        name = rng.choice(["earlier.jsonl", "process-00000.jsonl"])
        (work / name).write_bytes(broken_json(rng, record).replace(b"\n", b" ") + rng.choice([b"\n", b""]))
        (work / "settings.json").unlink()
    restart = rng.choice([[], ["--restart"]])
    return Case(["score", "pairs.csv", "-o", "out.csv", *restart], ("out.csv",), ("out.csv",))


def nested_too_deep(rng: random.Random, folder: Path) -> Case:
    """A map or weights that nest deeper than a parser goes, or with integers of more digits than Python reads."""
    write_scores(rng, folder, "scores.csv", "other.csv")
    depth = rng.choice([900, 1000, 5000, 200_000])
    deep = rng.choice(["[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "9" * 4301, "-" + "9" * 10_000])
    content = rng.choice([deep, json.dumps({**AFFINE, "scale": "@@"}).replace('"@@"', deep)])
    (folder / "file.json").write_text(content)
    if rng.random() < 0.5:
        return Case(["calibrate", "--load", "file.json", "-o", "out.json"], ("file.json",), ("out",))
    return Case(
        ["ensemble", "scores.csv", "other.csv", "--weights", "file.json", "-o", "out.csv"], ("file.json",), ("out",)
    )


TRICKS = (calibration_map, stored_map, ensemble_weights, earlier_run, nested_too_deep)
