"""
Prepare listener-rated pairs for stage 3, from the XACLE challenge's folders or the open RELATE ratings.

    python dataset_scripts/prepare_xacle.py XACLE_dataset -o data/xacle
    python dataset_scripts/prepare_xacle.py RELATE --relate -o data/relate

For XACLE, give the unpacked folder, or one that holds the folders of several archives: `meta_data/<split>.csv`,
`<split>_average.csv` and `<split>_with_score.csv` beside `wav/<split>/`, for the splits train, validation and test.
Both spellings of the columns are known; `model_id` of the 2027 set becomes `source`. For RELATE, give the folder with
`scores/REL.csv`; `RELATE_wave/` is in it or beside it.

`id` is the clip's name in these tables. `score` is the published average, or the mean of the ratings if none is
published; `label` is score / 5 - 1. Texts stay as they were written.
"""

import json
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from modeling_xacle.cli.endings import plain_endings
from modeling_xacle.configuration_xacle import XacleConfig
from modeling_xacle.data.columns import (
    AUDIO_COLUMNS,
    AVERAGE_COLUMNS,
    LISTENER_COLUMNS,
    RATING_COLUMNS,
    SCORE_RANGE,
    SOURCE_COLUMNS,
    TEXT_COLUMNS,
    clean_caption,
    find_column,
)
from modeling_xacle.data.pairs import make_dataset, save_dataset, unusable_audio
from modeling_xacle.data.tables import read_table

SPLITS = ("train", "validation", "test")
TABLES = ("{split}.csv", "{split}_average.csv", "{split}_with_score.csv")

# The names in the files, then those in their READMEs.

RELATE_TABLES = ("REL.csv", "scores/REL.csv", "RELATE/scores/REL.csv")
RELATE_COLUMNS = ("wavname", "text", "score", "listener_id", "audio type", "in RELATE dataset")
# The first release has no such column, but "anchor" as the audio type.
ANCHOR_COLUMN = "anchor label"
EXCLUDED = "excluded"

TERMS = {
    "xacle": "Sounds, captions and ratings are those of the XACLE challenge, whose owners send them on request; they "
    "are not to be passed on.",
    "relate": "The ratings and sounds are RELATE's; its terms of use stay in force. Those ratings that its authors "
    "screened out, and anchors, are left out.",
}

# Averages of three ratings are published with two digits.
AVERAGE_TOLERANCE = 0.0051
SHOWN = 20


@dataclass
class Pair:
    """One clip with its caption, and all that the tables say about it."""

    name: str
    text: str
    places: list[Path]
    source: str = ""
    average: float | None = None
    ratings: list[float] = field(default_factory=list)
    listeners: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Path of the clip, or the first place where it should be."""
        return next((place for place in self.places if place.is_file()), self.places[0])

    @property
    def score(self) -> float | None:
        """The published average, else the mean of the ratings, else None."""
        return statistics.fmean(self.ratings) if self.average is None and self.ratings else self.average


@dataclass
class Split:
    """The pairs of a split by their keys, and what was found on the way."""

    pairs: dict[Any, Pair] = field(default_factory=dict)
    # Each problem in words, with the key of the pair that it makes unfit for the dataset, if any.
    problems: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def fit_pairs(self) -> dict[Any, Pair]:
        """The pairs without problems."""
        unfit = set(self.problems.values())
        return {key: pair for key, pair in self.pairs.items() if key not in unfit}

    def refuse(self, key: Any, reason: str) -> None:
        """Note what makes a pair unfit for the dataset."""
        self.problems[f"{self.pairs[key].name}: {reason}"] = key

    def add(self, key: Any, pair: Pair) -> Pair:
        """Adds a pair, or finds the known one with its key; all tables must describe it alike."""
        known = self.pairs.setdefault(key, pair)
        if known is pair and not pair.name:
            self.refuse(key, "a clip without a name")
        if known is pair and not clean_caption(pair.text):
            self.refuse(key, "the text is empty")
        if clean_caption(known.text) != clean_caption(pair.text):
            self.refuse(key, f"two texts, {known.text!r} and {pair.text!r}")
        if known.source and pair.source and known.source != pair.source:
            self.refuse(key, f"two sources, {known.source} and {pair.source}")
        known.source = known.source or pair.source
        return known

    def number(self, key: Any, text: str, what: str) -> float:
        """Reads a score; one that is no number, or off the scale, makes its pair unfit."""
        try:
            score = float(text)
        except ValueError:
            score = float("nan")
        if not SCORE_RANGE[0] <= score <= SCORE_RANGE[1]:
            self.refuse(key, f"the {what} {text!r} is not a number from 0 to 10")
        return score

    def add_rating(self, key: Any, score: str, listener: str) -> None:
        """Adds one listener's rating of a pair."""
        self.pairs[key].ratings.append(self.number(key, score, "rating"))
        self.pairs[key].listeners.append(listener)


def find_tables(root: Path) -> dict[str, list[Path]]:
    """Finds the tables of each split, in `root` or up to two folders below it."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder.")
    found: dict[str, list[Path]] = {}
    for folder in sorted(path / "meta_data" for path in (root, *root.glob("*"), *root.glob("*/*"))):
        for split in SPLITS:
            names = (folder / name.format(split=split) for name in TABLES)
            tables = [path for path in names if path.is_file()]
            if tables and split in found:
                raise ValueError(f"{root}: has the split {split} twice, {found[split][0]} and {tables[0]}; give one.")
            if tables:
                found[split] = tables
    if not found:
        raise FileNotFoundError(
            f"{root}: no meta_data/ with train.csv, validation.csv, test.csv or their averages in it or two folders "
            "below; give the folder that was unpacked from the challenge's archive."
        )
    return found


def read_xacle(root: Path) -> dict[str, Split]:
    """Reads the splits under `root`, and joins the tables of each by the clips' names."""
    splits = {}
    for name, tables in find_tables(root).items():
        splits[name] = Split()
        for table in tables:
            add_table(splits[name], name, table)
    return splits


def add_table(split: Split, split_name: str, table: Path) -> None:
    """Add a table of ratings, which has a column of listeners, or one of pairs, which may have one of averages."""
    columns, rows = read_table(table)
    name, text = find_column(columns, AUDIO_COLUMNS, table), find_column(columns, TEXT_COLUMNS, table)
    source = find_column(columns, SOURCE_COLUMNS, table, required=False)
    listener = find_column(columns, LISTENER_COLUMNS, table, required=False)
    # A table of averages may simply call them scores.
    candidates = RATING_COLUMNS if listener else AVERAGE_COLUMNS + RATING_COLUMNS
    score = find_column(columns, candidates, table, required=listener is not None)
    folder = table.parent.parent
    seen: dict[str, dict[str, str]] = {}
    for _, row in rows:
        key = row[name].strip().lstrip("/")
        places = [folder / "wav" / split_name / key, folder / "wav" / key, folder / key]
        pair = split.add(key, Pair(key, row[text], places, row[source] if source else ""))
        if listener:
            split.add_rating(key, row[score], row[listener])
        elif key not in seen:
            seen[key] = row
            pair.average = split.number(key, row[score], "average") if score else pair.average
        elif seen[key] == row:
            split.problems[f"{key}: listed twice in {table.name}; one is enough"] = None
        else:
            split.refuse(key, f"listed twice in {table.name}, with differences")


def read_relate(root: Path) -> dict[str, Split]:
    """Reads RELATE's own splits, without anchors and without the listeners that its authors screened out."""
    table = next((path for path in (root / name for name in RELATE_TABLES) if path.is_file()), None)
    if table is None:
        raise FileNotFoundError(f"{root}: no {' or '.join(RELATE_TABLES)} in this folder.")
    columns, rows = read_table(table)
    for column in RELATE_COLUMNS:
        find_column(columns, [column], table)
    splits, left_out = {name: Split() for name in SPLITS}, Counter()
    for line, row in rows:
        split_name = row["in RELATE dataset"].strip().lower()
        if row.get(ANCHOR_COLUMN, "").lower() == "true" or row["audio type"] == "anchor":
            left_out["ratings of anchors"] += 1
        elif split_name == EXCLUDED:
            left_out["ratings by screened listeners"] += 1
        elif split_name not in splits:
            raise ValueError(f"{table}, line {line}: unknown split {row['in RELATE dataset']!r}.")
        else:
            add_relate_rating(splits[split_name], row, root.absolute())
    splits = {name: split for name, split in splits.items() if split.pairs}
    if not splits:
        raise ValueError(f"{table}: no rating is left without anchors and screened listeners.")
    next(iter(splits.values())).remarks.extend(
        f"{count} {what} left out of {table.name}" for what, count in left_out.items()
    )
    return splits


def add_relate_rating(split: Split, row: dict[str, str], root: Path) -> None:
    """Adds one row of REL.csv. A pair is a clip and a text; the second text of a clip is numbered."""
    name = row["wavname"].strip().lstrip("/")
    key = (name, row["text"])
    if key not in split.pairs:
        in_archive = name.removeprefix("wav/")
        places = [folder / in_archive for folder in (root / "RELATE_wave", root.parent / "RELATE_wave", root)]
        earlier = sum(other == name for other, _ in split.pairs)
        split.add(key, Pair(f"{name}#{earlier + 1}" if earlier else name, row["text"], places, row["audio type"]))
    split.add_rating(key, row["score"], row["listener_id"])


def check_scores(split: Split) -> None:
    """Refuse pairs without a score if others have one; note averages and ratings that do not fit together."""
    scored = any(pair.score is not None for pair in split.pairs.values())
    published = any(pair.average is not None for pair in split.pairs.values())
    rated = any(pair.ratings for pair in split.pairs.values())
    for key, pair in split.fit_pairs.items():
        if scored and pair.score is None:
            split.refuse(key, "no score, although others have one")
        elif rated and not pair.ratings:
            split.remarks.append(f"{pair.name}: no ratings, only an average")
        elif published and pair.average is None:
            split.remarks.append(f"{pair.name}: no published average; the mean of its ratings is taken")
        elif rated and published and abs(statistics.fmean(pair.ratings) - pair.average) > AVERAGE_TOLERANCE:
            split.remarks.append(
                f"{pair.name}: the published average {pair.average:g} is kept, but its {len(pair.ratings)} ratings "
                f"average {statistics.fmean(pair.ratings):.4g}"
            )
        repeated = [listener for listener, count in Counter(pair.listeners).items() if count > 1]
        split.remarks.extend(f"{pair.name}: several ratings by listener {listener}, all kept" for listener in repeated)


def check_clips(splits: dict[str, Split]) -> None:
    """Open each clip once; note those that are in several splits."""
    refused = unusable_audio(pair.path for split in splits.values() for pair in split.pairs.values())
    seen: dict[Path, str] = {}
    for name, split in splits.items():
        for key, pair in split.pairs.items():
            if str(pair.path) in refused:
                split.refuse(key, f"{pair.path}: {refused[str(pair.path)]}")
            if seen.setdefault(pair.path, name) != name:
                split.remarks.append(f"{pair.name}: the clip is also in {seen[pair.path]}")


def make_rows(split: Split, corpus: str) -> list[dict[str, Any]]:
    """Returns rows of the schema for the pairs without problems."""
    to_label = XacleConfig().scores_to_labels
    return [
        {
            "id": pair.name,
            "audio": str(pair.path.absolute()),
            "text": pair.text,
            "label": None if pair.score is None else to_label(pair.score),
            "score": pair.score,
            "ratings": pair.ratings or None,
            "listener_ids": pair.listeners or None,
            "source": pair.source or corpus,
        }
        for pair in split.fit_pairs.values()
    ]


def count_rows(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what a split holds, in numbers."""
    scores = [row["score"] for row in rows if row["score"] is not None]
    return {
        "pairs": len(rows),
        "ratings": sum(len(row["ratings"] or []) for row in rows),
        "listeners": len({listener for row in rows for listener in row["listener_ids"] or []}),
        "mean score": round(statistics.fmean(scores), 4) if scores else None,
        "sources": dict(sorted(Counter(row["source"] for row in rows).items())),
    }


def make_card(corpus: str, counts: dict[str, dict[str, Any]]) -> str:
    """Returns the text of the dataset's README.md."""
    columns = ["pairs", "ratings", "listeners", "mean score"]
    lines = [
        f"# {corpus.upper()}",
        "",
        "Sound-caption pairs rated by listeners from 0 to 10.",
        "",
        f"| split | {' | '.join(columns)} |",
        "|---|---|---|---|---|",
        *(f"| {name} | {' | '.join(str(numbers[column]) for column in columns)} |" for name, numbers in counts.items()),
        "",
        TERMS[corpus],
        "",
        "Problems and remarks are in report.json.",
    ]
    return "\n".join([*lines, ""])


def show(what: str, lines: list[str]) -> None:
    """Shows the first lines on stderr; the report has all of them."""
    if lines:
        more = [f"  ... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
        typer.echo("\n".join([f"{len(lines)} {what}:", *(f"  {line}" for line in lines[:SHOWN]), *more]), err=True)


def main(
    root: Annotated[Path, typer.Argument(help="Folder of the challenge's data; with --relate, of RELATE's.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the dataset.")] = Path("data/xacle"),
    relate: Annotated[bool, typer.Option("--relate", help="Read RELATE's ratings.")] = False,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out pairs with problems instead of stopping.")
    ] = False,
    embed_audio: Annotated[
        bool, typer.Option("--embed-audio", help="Put the sounds into the dataset, not only their paths.")
    ] = False,
) -> None:
    """Make a dataset of listener-rated pairs from XACLE's or RELATE's files."""
    splits = read_relate(root) if relate else read_xacle(root)
    for split in splits.values():
        check_scores(split)
    check_clips(splits)
    report = {
        what: [f"{name}: {line}" for name, split in splits.items() for line in getattr(split, what)]
        for what in ("remarks", "problems")
    }
    for what, lines in report.items():
        show(what, lines)
    if report["problems"] and not allow_missing:
        raise ValueError(f"{root}: problems in {len(report['problems'])} places; repair them, or give --allow-missing.")
    corpus = "relate" if relate else "xacle"
    rows = {name: make_rows(split, corpus) for name, split in splits.items()}
    counts = {name: count_rows(some) for name, some in rows.items()}
    if not all(rows.values()):
        raise ValueError(f"{root}: no pair is left in {', '.join(name for name, some in rows.items() if not some)}.")
    save_dataset(
        {name: make_dataset(some) for name, some in rows.items()},
        output,
        embed_audio=embed_audio,
        card=make_card(corpus, counts),
        attachments={"report.json": json.dumps({"splits": counts, **report}, indent=2, ensure_ascii=False)},
        licence="other",
    )
    for name, numbers in counts.items():
        typer.echo(f"{name}: " + ", ".join(f"{what} {number}" for what, number in numbers.items() if what != "sources"))
    typer.echo(output)


if __name__ == "__main__":
    with plain_endings():
        typer.run(main)
