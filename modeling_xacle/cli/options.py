"""What several commands share: options, their checks, and the printing of JSON."""

from enum import Enum
from typing import Annotated, Any

import typer

from .. import data

TABLE = "CSV, TSV, JSON lines or Parquet file"
LARGEST_SEED = 2**32 - 1  # that NumPy and PyTorch both take
MOST_RESAMPLES = 1_000_000
LARGEST_BATCH = 4096

Dtype = Enum("Dtype", {name: name for name in ("float32", "bfloat16", "float16")}, type=str)

Model = Annotated[
    str,
    typer.Option(
        show_default="the bundled one",
        help="Folder or Hub id of a xacle model, or, untrained for this, of a CLAP, PE-AV or audio language model.",
    ),
]
Revision = Annotated[str | None, typer.Option(help="Revision of a Hub id.")]
Processor = Annotated[str | None, typer.Option(help="Processor of a model, other than xacle, that comes without one.")]
MapScore = Annotated[
    bool,
    typer.Option("--map-score", help="Map to 0-10: a cosine by (c + 1) * 5, a language model's share of yes by 10."),
]
Question = Annotated[
    list[str] | None,
    typer.Option(
        help="What a language model is asked: describes (default), hears, correct, matches, or a text with {caption}; "
        "may be repeated for the mean."
    ),
]
Device = Annotated[str, typer.Option(help="auto (an accelerator if there is one), cpu, cuda, cuda:1, mps.")]
Precision = Annotated[Dtype, typer.Option(help="Precision to compute in.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Seed = Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed.")]
Resamples = Annotated[
    int,
    typer.Option(min=1, max=MOST_RESAMPLES, help="Resamples of the bootstrap, and swaps of the permutation test."),
]
Key = Annotated[
    list[str] | None,
    typer.Option(help="Column that tells rows apart; may be repeated. Default: id, or else the sound (and caption)."),
]
PredictionColumn = Annotated[
    str | None, typer.Option(help="Column of the predictions. Default: pred_score, prediction_score or score.")
]
ReferenceColumn = Annotated[
    str | None, typer.Option(help="Column of the listeners' means. Default: average_score, ... or score.")
]


def check_device(device: str | None) -> None:
    """Refuse a device that this machine does not have, before anything is loaded."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    try:
        chosen = torch.empty(0, device=None if device == "auto" else device).device
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"--device {device}: {str(error).splitlines()[0]}") from error
    if chosen.type not in ("cpu", accelerator and accelerator.type):
        raise typer.BadParameter(f"--device {device}: nothing is computed there")


def columns_of(key: list[str] | None, prediction: str | None, reference: str | None) -> dict[str, Any]:
    """Returns the options that name columns, as the readers of score tables take them."""
    chosen = {"prediction_columns": prediction and [prediction], "reference_columns": reference and [reference]}
    return {"key_columns": key or None, **{name: value for name, value in chosen.items() if value}}


def print_json(result: Any, indent: int | None = 2) -> None:
    """Print a result as strict JSON."""
    typer.echo(data.json_text(result, indent))
