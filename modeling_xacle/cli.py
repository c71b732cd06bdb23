"""The `xacle` command: a thin table of contents over the package. Results go to stdout, all else to stderr."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import pipeline
from transformers.utils import logging

from . import DEFAULT_MODEL, conversion
from .pipeline_xacle import AudioTextAlignmentPipeline
from .scoring import score_table

app = typer.Typer(
    help="How well does a sound match a caption?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
convert = typer.Typer(help="Convert published checkpoints to folders that from_pretrained loads.", no_args_is_help=True)
app.add_typer(convert, name="convert")

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write; must not exist or be empty.")]
Beats = Annotated[
    str | None,
    typer.Option(help="BEATs .pt file or a converted one, for its settings. Default: the published BEATs iter3+ AS2M."),
]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ... Default: an accelerator if there is one.")
]


def check_device(device: str | None) -> None:
    """Refuse a device that this machine does not have, before anything is loaded."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"--device {device}: {str(error).splitlines()[0]}") from error


@convert.command("tmu")
def convert_tmu(
    source: Annotated[
        str, typer.Argument(help="Folder or Hub id with model.pt and config.json, or a .pt or .ckpt file.")
    ],
    output: Output,
    llm: Annotated[
        str | None, typer.Option(help="Language model, folder or Hub id. Default: what config.json names.")
    ] = None,
    beats: Beats = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a Hub id.")] = None,
) -> None:
    """Convert a checkpoint of the TMU system (Atotti/xacle-tmu-2026)."""
    conversion.convert_tmu(source, output, llm=llm, beats=beats, revision=revision)
    typer.echo(output)


@convert.command("beats")
def convert_beats(
    source: Annotated[Path, typer.Argument(help="BEATs .pt file, self-supervised or fine-tuned.")], output: Output
) -> None:
    """Convert a BEATs file (microsoft/unilm)."""
    conversion.convert_beats(source, output)
    typer.echo(output)


@app.command("init")
def init(
    beats: Annotated[str, typer.Option(help="BEATs .pt file, or folder or Hub id of a converted one.")],
    llm: Annotated[str, typer.Option(help="Causal language model, folder or Hub id.")],
    output: Output,
    seed: Annotated[int, typer.Option(help="Seed of the random projector and score head.")] = 0,
) -> None:
    """Build an untrained model from pretrained parts: the start of stage 1."""
    conversion.init_model(beats, llm, output, seed=seed)
    typer.echo(output)


@app.command()
def score(
    pairs: Annotated[
        Path | None, typer.Argument(help="CSV or JSON lines file with an audio and a text column.")
    ] = None,
    audio: Annotated[Path | None, typer.Option(help="One sound, instead of a table.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Its caption; may be repeated.")] = None,
    audio_dir: Annotated[
        Path | None, typer.Option(help="Folder of the table's sounds. Default: the table's own.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="CSV file to write for a table.")] = None,
    model: Annotated[str, typer.Option(help="Model, folder or Hub id.")] = DEFAULT_MODEL,
    device: Device = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs at a time.")] = 8,
    window_seconds: Annotated[
        float | None, typer.Option(help="Score all of a long sound, in windows of this length.")
    ] = None,
    hop_seconds: Annotated[float | None, typer.Option(help="Distance between windows. Default: the window.")] = None,
    windows: Annotated[
        bool, typer.Option("--windows", help="With --json, also give the score of each window.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with the notes.")] = False,
) -> None:
    """Score one pair (--audio, --text) or the pairs of a CSV file."""
    one_pair, one_table = audio is not None and bool(text), pairs is not None and output is not None
    if one_pair == one_table or (one_pair and pairs) or (one_table and (audio or text)):
        raise typer.BadParameter("give either --audio and --text, or a CSV file and --output")
    if windows and not (one_pair and as_json):
        raise typer.BadParameter("--windows goes with --audio, --text and --json")
    check_device(device)
    align = pipeline("audio-text-alignment", model=model, device=device)
    spans = {"window_seconds": window_seconds, "hop_seconds": hop_seconds}
    if one_table:
        done = score_table(align, pairs, output, audio_dir, batch_size=batch_size, **spans)
        typer.echo(json.dumps({"rows": done, "output": str(output)}) if as_json else f"{done} pairs scored: {output}")
    else:
        print_pairs(align, audio, text, as_json, return_windows=windows, **spans)


def print_pairs(
    align: AudioTextAlignmentPipeline, audio: Path, texts: list[str], as_json: bool, **call_arguments: Any
) -> None:
    """Print one sound's score for one caption, or a line for each of several."""
    results = align({"audio": str(audio), "text": texts}, **call_arguments)
    if as_json:
        typer.echo(json.dumps(results if len(texts) > 1 else results[0], indent=2, ensure_ascii=False))
        return
    for result in results:
        typer.echo(f"{result['score']:.2f}" if len(texts) == 1 else f"{result['score']:.2f}\t{result['text']}")
        for note in result.get("notes", []):
            typer.echo(note, err=True)


def main() -> None:
    """Run the command; a user's mistake ends in one line and exit code 1, without a traceback."""
    logging.disable_progress_bar()
    try:
        app()
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
