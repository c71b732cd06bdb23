"""
Prepare captioned sounds for stages 1 and 2: AudioCaps, VGGSound with AudioSetCaps captions, and tables of your own.

    python dataset_scripts/prepare_aac.py -o data/aac \
        --audiocaps train.csv --audiocaps val.csv --audiocaps-clips AudioCaps/ \
        --vggsound VGGSound_AudioSetCaps_caption.csv --vggsound-clips VGGSound/ \
        --table my_sounds/

AudioCaps' tables have `audiocap_id,youtube_id,start_time,caption`, AudioSetCaps' `id,caption`. Their clips are searched
in the folder and all below it, under these names, as .wav, .flac, .mp3, .ogg, .opus, .aif, .aiff, .au or .w64:

    <audiocap_id>                      AudioCaps only
    <youtube_id>_<start>               in seconds: 30, 30.000 or 000030
    <youtube_id>_<start>_<end>
    <youtube_id>

In names and in AudioSetCaps' ids, a Y may precede the 11 characters of a YouTube id; in the latter, a start, or start
and length, may follow. A table of your own is a CSV or JSON lines file with an audio and a text column, or a folder
with `metadata.csv` or `metadata.jsonl`, in itself or in its subfolders train, validation and test. Every table goes to
the split that a word in its name means (train, val, dev, test, eval, ...), or that is given before it, as in
`test=sounds.csv`; otherwise to train.

Pairs without a clip, with several, with a broken one or with an empty caption are listed and left out, and so are exact
duplicates. Captions lose control characters and needless whitespace.
"""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from modeling_xacle.cli.endings import plain_endings
from modeling_xacle.data.columns import AUDIO_COLUMNS, TEXT_COLUMNS, clean_caption, find_column
from modeling_xacle.data.pairs import make_dataset, save_dataset, unusable_audio
from modeling_xacle.data.tables import read_table

YOUTUBE_NAME = re.compile(r"Y?(?P<video>[A-Za-z0-9_-]{11})(?:_(?P<start>\d+(?:\.\d+)?))?(?:_\d+(?:\.\d+)?)?")
AUDIO_ENDINGS = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".au", ".w64"}

AUDIOCAPS_COLUMNS = ("audiocap_id", "youtube_id", "start_time", "caption")
AUDIOSETCAPS_COLUMNS = ("id", "caption")
METADATA = ("metadata.csv", "metadata.jsonl")

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev", "development"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SHOWN = 10
TERMS = (
    "The terms of use of each corpus stay in force. Clips of AudioCaps and VGGSound come from YouTube videos, whose "
    "makers own them: a dataset with its sounds in it is not yours to pass on. Captions of AudioSetCaps were written "
    "by language models."
)


@dataclass(frozen=True)
class Candidate:
    """A row of a table, with the clips that it may mean."""

    id: str
    split: str
    source: str
    text: str
    clips: tuple[Path, ...]


def split_and_path(argument: str) -> tuple[str, Path]:
    """Returns a table's split and path, from `path` or `split=path`."""
    split, _, path = argument.partition("=")
    if path and split in SPLIT_WORDS:
        return split, Path(path)
    words = set(re.split(r"[^a-z]+", Path(argument).stem.lower()))
    found = [split for split, names in SPLIT_WORDS.items() if words.intersection(names)]
    if len(found) > 1:
        raise ValueError(f"{argument}: is it for {' or '.join(found)}? Say so: {found[0]}={argument}.")
    return (found or ["train"])[0], Path(argument)


def parse_youtube(name: str) -> tuple[str, float | None] | None:
    """Returns the video and the start in seconds (if given) in a clip's name or id; `None` if it is no YouTube clip."""
    match = YOUTUBE_NAME.fullmatch(name)
    if match is None:
        return None
    return match["video"], None if match["start"] is None else float(match["start"])


class Clips:
    """The sounds in a folder and all below it, indexed by their names."""

    def __init__(self, folder: Path):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder of clips.")
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.sounds = [path for path in files if path.suffix.lower() in AUDIO_ENDINGS]
        if not self.sounds:
            found = ", ".join(f"{count} *{ending}" for ending, count in Counter(p.suffix for p in files).most_common(3))
            endings = ", ".join(sorted(AUDIO_ENDINGS))
            raise ValueError(f"{folder}: {found or 'no files'}, but none of {endings}; convert them to FLAC.")
        self.used: set[Path] = set()
        # By the name without its ending; by (video, start), where start is `None` if not given; by ("any", video).
        self.places: dict[Any, list[Path]] = defaultdict(list)
        for path in self.sounds:
            self.places[path.stem].append(path)
            if (parsed := parse_youtube(path.stem)) is not None:
                self.places[parsed].append(path)
                self.places["any", parsed[0]].append(path)

    def find(self, keys: Iterable[Any]) -> tuple[Path, ...]:
        """Returns the clips of the first key that has any."""
        found = next((tuple(self.places[key]) for key in keys if key in self.places), ())
        self.used.update(found)
        return found

    def unused(self) -> dict[str, Any]:
        """Says how many sounds no row has asked for, and lists some of them."""
        paths = [str(path) for path in self.sounds if path not in self.used]
        return {"count": len(paths), "examples": paths[:SHOWN]}


def check_columns(columns: list[str], needed: Iterable[str], table: Path) -> None:
    """Raise a `ValueError` if a column is missing."""
    for column in needed:
        find_column(columns, [column], table)


def read_audiocaps(tables: list[str], clips: Clips) -> Iterator[Candidate]:
    """Yields the rows of AudioCaps."""
    for split, table in map(split_and_path, tables):
        columns, rows = read_table(table)
        check_columns(columns, AUDIOCAPS_COLUMNS, table)
        for _, row in rows:
            keys = [row["audiocap_id"]]
            if (parsed := parse_youtube(f"{row['youtube_id']}_{row['start_time']}")) is not None:
                keys += [parsed, (parsed[0], None)]
            id = f"audiocaps/{row['audiocap_id']}"
            yield Candidate(id, split, "audiocaps", row["caption"], clips.find(keys))


def read_vggsound(tables: list[str], clips: Clips) -> Iterator[Candidate]:
    """Yields the rows of AudioSetCaps; an id without a start means the only clip of its video."""
    for split, table in map(split_and_path, tables):
        columns, rows = read_table(table)
        check_columns(columns, AUDIOSETCAPS_COLUMNS, table)
        for _, row in rows:
            keys = []
            if (parsed := parse_youtube(row["id"])) is not None:
                video, start = parsed
                keys = [parsed, (video, None)] if start is not None else [parsed, ("any", video)]
            yield Candidate(f"vggsound/{row['id']}", split, "vggsound", row["caption"], clips.find(keys))


def find_tables(argument: str) -> list[tuple[str, Path, str]]:
    """Returns split, path and name of a table, or of the tables in a folder."""
    split, path = split_and_path(argument)
    if not path.is_dir():
        return [(split, path, path.stem)]
    source = path.absolute().name
    tables = [(split, path / file, source) for file in METADATA]
    tables += [(name, path / name / file, f"{source}/{name}") for name in SPLIT_WORDS for file in METADATA]
    tables = [found for found in tables if found[1].is_file()]
    if not tables:
        raise FileNotFoundError(f"{path}: no {' or '.join(METADATA)} in it or its subfolders {', '.join(SPLIT_WORDS)}.")
    return tables


def read_tables(arguments: list[str], folder: Path | None) -> Iterator[Candidate]:
    """Yields the rows of any table with an audio and a text column."""
    for split, table, name in (found for argument in arguments for found in find_tables(argument)):
        columns, rows = read_table(table)
        audio, text = find_column(columns, AUDIO_COLUMNS, table), find_column(columns, TEXT_COLUMNS, table)
        for line, row in rows:
            if not isinstance(row[audio], str) or not isinstance(row[text], str):
                raise ValueError(f"{table}, line {line}: {audio} and {text} must be strings.")
            path = Path(row[audio])
            if not (path.is_absolute() and path.is_file()):
                path = (folder or table.parent) / row[audio].lstrip("/")
            clips = (path,) if path.is_file() else ()
            yield Candidate(f"{name}/{row[audio]}", split, name.split("/")[0], row[text], clips)


def select(candidates: list[Candidate]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[str]]]:
    """Returns rows of the schema for each split, and the ids that were left out, with reasons."""
    refused = unusable_audio(clip for candidate in candidates for clip in candidate.clips)
    splits, left_out = {split: [] for split in SPLIT_WORDS}, defaultdict(list)
    seen, ids = set(), Counter()
    for candidate in candidates:
        text, clips = clean_caption(candidate.text), candidate.clips
        pair = (candidate.split, clips, text)
        if not text:
            left_out["empty caption"].append(candidate.id)
        elif not clips:
            left_out["no clip"].append(candidate.id)
        elif len(clips) > 1:
            left_out["several clips"].append(f"{candidate.id}: {', '.join(map(str, clips))}")
        elif str(clips[0]) in refused:
            left_out["broken clip"].append(f"{candidate.id}: {clips[0]}: {refused[str(clips[0])]}")
        elif pair in seen:
            left_out["duplicate"].append(f"{candidate.id}: {text}")
        else:
            seen.add(pair)
            ids[candidate.id] += 1
            id = candidate.id if ids[candidate.id] == 1 else f"{candidate.id}#{ids[candidate.id]}"
            row = {"id": id, "audio": str(clips[0].absolute()), "text": text, "source": candidate.source}
            splits[candidate.split].append(row)
    return {split: rows for split, rows in splits.items() if rows}, dict(left_out)


def make_report(
    candidates: list[Candidate],
    splits: dict[str, list[dict[str, Any]]],
    left_out: dict[str, list[str]],
    clips: dict[str, Clips],
) -> dict[str, Any]:
    """Reports counts of rows read, kept and left out, what else looks odd, and everything that was left out."""
    places = defaultdict(set)
    for split, rows in splits.items():
        for row in rows:
            places[row["audio"]].add(split)
    return {
        "read": dict(Counter(candidate.source for candidate in candidates)),
        "kept": {split: dict(Counter(row["source"] for row in rows)) for split, rows in splits.items()},
        "left_out_counts": {reason: len(ids) for reason, ids in left_out.items()},
        "clips_without_a_caption": {source: some.unused() for source, some in clips.items()},
        "clips_in_several_splits": sorted(path for path, names in places.items() if len(names) > 1),
        "left_out": left_out,
    }


def check_sources(report: dict[str, Any]) -> None:
    """Refuse a corpus of which nothing is left: its clips are elsewhere, or have other kinds of names."""
    for source, count in report["read"].items():
        if not any(source in sources for sources in report["kept"].values()):
            lines = (line for lines in report["left_out"].values() for line in lines if line.startswith(f"{source}/"))
            unused = report["clips_without_a_caption"].get(source, {"examples": []})["examples"]
            raise ValueError(
                f"{source}: nothing is left of {count} captions, such as {next(lines)}; check the folder of the clips "
                f"and their names{f', such as {unused[0]}' if unused else ''}."
            )


def show_offenders(report: dict[str, Any]) -> None:
    """Shows the first of each kind on stderr; the report has all of them."""
    lines = []
    for reason, offenders in report["left_out"].items():
        lines += [f"{len(offenders)} left out, {reason}:", *(f"  {offender}" for offender in offenders[:SHOWN])]
        lines += [f"  ... and {len(offenders) - SHOWN} more"] if len(offenders) > SHOWN else []
    for source, unused in report["clips_without_a_caption"].items():
        if unused["count"]:
            lines.append(f"{unused['count']} clips of {source} have no caption, such as {unused['examples'][0]}")
    if report["clips_in_several_splits"]:
        lines.append(f"{len(report['clips_in_several_splits'])} clips are in several splits")
    for line in lines:
        typer.echo(line, err=True)


def make_card(report: dict[str, Any]) -> str:
    """Returns the text of the dataset's README.md."""
    kept = [f"| {s} | {source} | {n} |" for s, sources in report["kept"].items() for source, n in sources.items()]
    left = [f"- {reason}: {count}" for reason, count in report["left_out_counts"].items()] or ["nothing"]
    head = ["# Captioned sounds", "", "| split | corpus | pairs |", "|---|---|---|", *kept, "", "Left out:", "", *left]
    return "\n".join([*head, "", "report.json lists them.", "", TERMS, ""])


def index_corpora(corpora: dict[str, tuple[list[str] | None, Path | None]]) -> dict[str, Clips]:
    """Indexes the clips of each corpus that has tables."""
    for name, (tables, folder) in corpora.items():
        if bool(tables) != (folder is not None):
            raise typer.BadParameter(f"--{name} and --{name}-clips need each other")
    return {name: Clips(folder) for name, (_, folder) in corpora.items() if folder is not None}


def main(
    audiocaps: Annotated[
        list[str] | None, typer.Option(help="AudioCaps CSV file; repeat it for train.csv, val.csv and test.csv.")
    ] = None,
    audiocaps_clips: Annotated[
        Path | None, typer.Option(help="Folder of its clips, named by audiocap_id or like VGGSound's.")
    ] = None,
    vggsound: Annotated[list[str] | None, typer.Option(help="AudioSetCaps CSV file; may be repeated.")] = None,
    vggsound_clips: Annotated[
        Path | None,
        typer.Option(help="Folder of VGGSound's clips, named [Y]<youtube_id>[_<start>[_<end>]], in seconds."),
    ] = None,
    table: Annotated[
        list[str] | None, typer.Option(help="CSV or JSON lines file, or folder with metadata.csv; may be repeated.")
    ] = None,
    table_clips: Annotated[Path | None, typer.Option(help="Folder of its clips. Default: the table's own.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the dataset.")] = Path("data/aac"),
    embed_audio: Annotated[
        bool, typer.Option("--embed-audio", help="Put the sounds into the dataset, not only their paths.")
    ] = False,
) -> None:
    """Make a dataset of captioned sounds. A table may be given as SPLIT=PATH; else its name tells the split."""
    if not (audiocaps or vggsound or table):
        raise typer.BadParameter("nothing to read: give --audiocaps, --vggsound or --table")
    clips = index_corpora({"audiocaps": (audiocaps, audiocaps_clips), "vggsound": (vggsound, vggsound_clips)})
    candidates = list(read_tables(table or [], table_clips))
    candidates += read_audiocaps(audiocaps, clips["audiocaps"]) if audiocaps else []
    candidates += read_vggsound(vggsound, clips["vggsound"]) if vggsound else []
    splits, left_out = select(candidates)
    report = make_report(candidates, splits, left_out, clips)
    show_offenders(report)
    check_sources(report)
    save_dataset(
        {split: make_dataset(rows) for split, rows in splits.items()},
        output,
        embed_audio=embed_audio,
        card=make_card(report),
        attachments={"report.json": json.dumps(report, indent=2, ensure_ascii=False)},
        licence="other",
    )
    if "validation" not in splits:
        typer.echo(
            "no validation split, which run_stage.py needs: give such a table too (--audiocaps val.csv, "
            "--table validation=PATH), or train with --validation_split NAME.",
            err=True,
        )
    for split, sources in report["kept"].items():
        typer.echo(f"{split}: " + ", ".join(f"{count} pairs of {source}" for source, count in sources.items()))
    typer.echo(output)


if __name__ == "__main__":
    with plain_endings():
        typer.run(main)
