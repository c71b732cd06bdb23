"""The `xacle` command: a thin table of contents over the package. Results go to stdout, all else to stderr."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from transformers.utils import logging

from ..checkpoints import conversion, conversion_tmu
from ..checkpoints.building import init_model
from .combine import ensemble, submit
from .diagnostics import doctor, info
from .evaluate import calibrate, compare, evaluate
from .rank import matrix, rank
from .score import score

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
    audio_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of a clip, where no config.json tells. Default: 100, as published."),
    ] = None,
    training_stage: Annotated[
        int | None,
        typer.Option(min=0, max=3, help="Last stage trained, where no config.json tells. Default: 3, as published."),
    ] = None,
) -> None:
    """Convert a checkpoint of the TMU system (Atotti/xacle-tmu-2026). The config.json beside a file is read."""
    conversion_tmu.convert_tmu(source, output, llm, beats, revision, audio_tokens, training_stage)
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
    caption_likelihood: Annotated[
        bool,
        typer.Option(
            "--caption-likelihood",
            help="Put captions behind the sound, and let the score read how likely stage 1's captioning finds them.",
        ),
    ] = False,
) -> None:
    """Build an untrained model from pretrained parts: the start of stage 1."""
    init_model(beats, llm, output, seed=seed, caption_likelihood=caption_likelihood)
    typer.echo(output)


app.command("score")(score)
app.command("evaluate")(evaluate)
app.command("compare")(compare)
app.command("calibrate")(calibrate)
app.command("ensemble")(ensemble)
app.command("submit")(submit)
app.command("rank")(rank)
app.command("matrix")(matrix)
app.command("info")(info)
app.command("doctor")(doctor)


def main() -> None:
    """Run the command; a user's mistake ends in one line and exit code 1, without a traceback."""
    logging.disable_progress_bar()
    try:
        app()
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
