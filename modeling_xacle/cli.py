"""The `xacle` command: a thin table of contents over the package. Results go to stdout, all else to stderr."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from transformers import pipeline
from transformers.utils import logging

from . import DEFAULT_MODEL, conversion, ensembling, ranking, submission
from .cli_evaluate import calibrate, compare, evaluate
from .cli_score import check_device, score

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


app.command("score")(score)
app.command("evaluate")(evaluate)
app.command("compare")(compare)
app.command("calibrate")(calibrate)


@app.command("ensemble")
def ensemble(
    tables: Annotated[list[Path], typer.Argument(help="Tables of scores of the same pairs, one a system.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV file to write: the first table with `score`.")],
    reference: Annotated[
        Path | None, typer.Option(help="Table with the listeners' mean ratings: also judge, and fit nnls and svr.")
    ] = None,
    method: Annotated[
        ensembling.Method | None,
        typer.Option(
            help="Mean of scores, of standardised scores or of ranks; or fitted, out of fold, by non-negative least "
            "squares or support vector regression. Default: mean."
        ),
    ] = None,
    leave_one_out: Annotated[
        bool, typer.Option("--leave-one-out", help="Also show the ensemble without each system.")
    ] = False,
    save_weights: Annotated[Path | None, typer.Option(help="JSON file for the weights fitted on all pairs.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Apply weights that --save-weights wrote.")] = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts that the clips are split into for fitting.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of the split and of the bootstrap.")] = 0,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of --leave-one-out.")] = 2000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Combine the scores of several systems, without fitting anything on what it is judged by."""
    if weights is not None and (method or save_weights or leave_one_out):
        raise typer.BadParameter("--weights goes without --method, --save-weights and --leave-one-out")
    if weights is not None:
        report = ensembling.apply_to_tables(tables, output, weights, reference)
    else:
        report = ensembling.ensemble_tables(
            tables, output, reference, method or "mean", folds, seed, leave_one_out, resamples, save_weights
        )
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    for line in ensembling.report_lines(report):
        typer.echo(line)
    typer.echo(f"{report['pairs']} pairs of {len(tables)} systems combined by {report['method']}: {output}")


@app.command("submit")
def submit(
    scores: Annotated[list[Path], typer.Argument(help="Tables of scores of the test clips, one a system.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="ZIP file to write.")],
    reference: Annotated[
        Path | None, typer.Option(help="Table with the file names that must be there. Default: any 3,000.")
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="Name of the system; one for each table.")] = None,
    description: Annotated[
        list[Path] | None,
        typer.Option(help="YAML file with the fields below (name, authors, ...); one for all systems or for each."),
    ] = None,
    author: Annotated[list[str] | None, typer.Option(help="An author; may be repeated.")] = None,
    contact: Annotated[str | None, typer.Option(help="E-mail address.")] = None,
    external_data: Annotated[
        list[str] | None, typer.Option(help="Data used beside the training split; may be repeated. Default: none.")
    ] = None,
    pretrained: Annotated[list[str] | None, typer.Option(help="A model that was used; may be repeated.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Check scores of the challenge's test set and pack them with a description of each system."""
    options = {"authors": author, "contact": contact, "external_data": external_data, "models": pretrained}
    described = submission.describe_systems(options, name or [], description or [], len(scores))
    files, warnings = submission.submit_tables(scores, described, output, reference)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        typer.echo(json.dumps({"output": str(output), "files": files, "warnings": warnings}, ensure_ascii=False))
    else:
        typer.echo(f"{', '.join(files)}: {output}")


@app.command("rank")
def rank(
    audio: Annotated[list[Path], typer.Argument(help="One or more sounds.")],
    text: Annotated[list[str], typer.Option(help="The caption; for one sound it may be repeated.")],
    top: Annotated[int | None, typer.Option(min=1, help="Show so many of the best. Default: all.")] = None,
    model: Annotated[str, typer.Option(help="Model, folder or Hub id.")] = DEFAULT_MODEL,
    device: Device = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sounds at a time.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON with the notes.")] = False,
) -> None:
    """Order sounds by how well they match a caption, or captions by how well they match a sound."""
    if len(audio) > 1 and len(text) > 1:
        raise typer.BadParameter("give one caption or one sound; for many of both there is `xacle matrix`")
    check_device(device)
    align = pipeline("audio-text-alignment", model=model, device=device)
    ranked = ranking.rank_pairs(align, list(map(str, audio)), text, batch_size)[:top]
    if as_json:
        typer.echo(json.dumps(ranked, indent=2, ensure_ascii=False))
        return
    for result in ranked:
        typer.echo(f"{result['rank']}\t{result['score']:.2f}\t{result['text' if len(text) > 1 else 'audio']}")
        for note in result.get("notes", []):
            typer.echo(f"{result['audio']}: {note}", err=True)


@app.command("matrix")
def matrix(
    texts: Annotated[Path, typer.Option(help="Captions: one a line, or a table with a column `text`.")],
    audio: Annotated[list[Path] | None, typer.Argument(help="Sounds.")] = None,
    audio_dir: Annotated[Path | None, typer.Option(help="Folder of sounds, instead of naming them.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV file to write; the table is printed without it.")
    ] = None,
    heat_map: Annotated[Path | None, typer.Option(help="Picture to draw, .png, .pdf or .svg.")] = None,
    model: Annotated[str, typer.Option(help="Model, folder or Hub id.")] = DEFAULT_MODEL,
    device: Device = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sounds at a time.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score every sound with every caption: a row a sound, a column a caption. Each sound is encoded once."""
    if bool(audio) == (audio_dir is not None):
        raise typer.BadParameter("give either sounds or --audio-dir")
    if heat_map is not None:
        ranking.check_picture(heat_map)
    check_device(device)
    paths = list(map(str, audio or ranking.list_audio(audio_dir)))
    captions = ranking.read_texts(texts)
    align = pipeline("audio-text-alignment", model=model, device=device)
    scores = ranking.score_matrix(align, paths, captions, batch_size)
    table = ranking.matrix_csv(scores, paths, captions)
    if output is not None:
        submission.write_whole(output, table.encode())
    if heat_map is not None:
        ranking.draw_heat_map(scores, [Path(path).name for path in paths], captions, heat_map)
    if as_json:
        typer.echo(json.dumps({"audio": paths, "text": captions, "scores": scores.tolist()}, ensure_ascii=False))
    elif output is not None:
        typer.echo(f"{len(paths)} sounds with {len(captions)} captions scored: {output}")
    else:
        typer.echo(table, nl=False)


def main() -> None:
    """Run the command; a user's mistake ends in one line and exit code 1, without a traceback."""
    logging.disable_progress_bar()
    try:
        app()
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":  # `accelerate launch --module modeling_xacle.cli score PAIRS -o OUT`
    main()
