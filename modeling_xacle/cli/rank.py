"""The commands for many sounds or captions at once: `xacle rank` and `xacle matrix`."""

from pathlib import Path
from typing import Annotated

import typer

from .. import DEFAULT_MODEL, data, scoring
from .options import (
    LARGEST_BATCH,
    TABLE,
    AsJson,
    Device,
    Dtype,
    MapScore,
    Model,
    Precision,
    Processor,
    Question,
    Revision,
    check_device,
    print_json,
)

BatchSize = Annotated[int, typer.Option(min=1, max=LARGEST_BATCH, help="Sounds loaded at a time.")]


def rank(
    audio: Annotated[list[Path], typer.Argument(help="One or more sounds.")],
    text: Annotated[list[str], typer.Option(help="The caption; for one sound it may be repeated.")],
    top: Annotated[int | None, typer.Option(min=1, help="Show only the best so many. Default: all.")] = None,
    model: Model = DEFAULT_MODEL,
    revision: Revision = None,
    processor: Processor = None,
    map_score: MapScore = False,
    question: Question = None,
    device: Device = "auto",
    dtype: Precision = Dtype.float32,
    batch_size: BatchSize = 8,
    as_json: AsJson = False,
) -> None:
    """Order sounds by how well they match a caption, or captions by how well they match a sound."""
    if len(audio) > 1 and len(text) > 1:
        raise typer.BadParameter("give one caption or one sound; for many of both there is `xacle matrix`")
    check_device(device)
    align = scoring.load_scorer(model, device, dtype.value, revision, processor, map_score, question)
    ranked = scoring.rank_pairs(align, list(map(str, audio)), text, batch_size)[:top]
    if as_json:
        print_json(ranked)
        return
    for result in ranked:
        typer.echo(f"{result['rank']}\t{result['score']:.2f}\t{result['text' if len(text) > 1 else 'audio']}")
        for note in result.get("notes", []):
            typer.echo(f"{result['audio']}: {note}", err=True)


def matrix(
    texts: Annotated[Path, typer.Option(help="Captions: one per line, or a table with a column `text` or `caption`.")],
    audio: Annotated[list[Path] | None, typer.Argument(help="Sounds.")] = None,
    audio_dir: Annotated[Path | None, typer.Option(help="Folder of sounds, instead of naming them.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help=f"{TABLE} to write; without it the table is printed as CSV.")
    ] = None,
    heat_map: Annotated[Path | None, typer.Option(help="Picture to draw, .png, .pdf or .svg.")] = None,
    model: Model = DEFAULT_MODEL,
    revision: Revision = None,
    processor: Processor = None,
    map_score: MapScore = False,
    question: Question = None,
    device: Device = "auto",
    dtype: Precision = Dtype.float32,
    batch_size: BatchSize = 8,
    as_json: AsJson = False,
) -> None:
    """Score every sound with every caption: one row per sound, one column per caption. Each sound is encoded once."""
    if bool(audio) == (audio_dir is not None):
        raise typer.BadParameter("give either sounds or --audio-dir")
    if heat_map is not None:
        scoring.check_picture(heat_map)
    data.check_outputs([output, heat_map], [texts, *(audio or [])])
    check_device(device)
    paths = list(map(str, audio or scoring.list_audio(audio_dir)))
    captions = scoring.read_texts(texts)
    if output is not None or not as_json:
        scoring.check_matrix(output, captions)
    align = scoring.load_scorer(model, device, dtype.value, revision, processor, map_score, question)
    scores = scoring.score_matrix(align, paths, captions, batch_size)
    rows = scoring.matrix_rows(scores, paths, captions)
    if output is not None:
        data.write_table(output, rows)
    if heat_map is not None:
        scoring.draw_heat_map(scores, [Path(path).name for path in paths], captions, heat_map)
    if as_json:
        print_json({"audio": paths, "text": captions, "scores": scores.tolist()}, indent=None)
    elif output is not None:
        typer.echo(f"{len(paths)} sounds with {len(captions)} captions scored: {output}")
    else:
        typer.echo(data.csv_text(rows), nl=False)
