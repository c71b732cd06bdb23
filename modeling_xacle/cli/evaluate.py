"""The commands that judge scores: `xacle evaluate`, `xacle compare` and `xacle calibrate`."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from .. import data, evaluation
from ..evaluation.methods import CalibrationMethod
from .options import TABLE, AsJson, Key, PredictionColumn, ReferenceColumn, Resamples, Seed, columns_of, print_json

Reference = Annotated[Path, typer.Argument(help="Table of the listeners' mean scores, one row a pair.")]


def warn_of_dropped(pairs: "evaluation.EvaluationPairs") -> None:
    """Warn on stderr of rows that are left out or counted more than once."""
    for note in evaluation.dropped_notes(pairs):
        typer.echo(f"warning: {note}", err=True)


def evaluate(
    prediction: Annotated[Path, typer.Argument(help="Table of predicted scores: CSV, TSV, JSON lines or Parquet.")],
    reference: Reference,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the report; an earlier report is replaced.")
    ] = None,
    official: Annotated[
        bool,
        typer.Option(
            "--official", help="Join as the challenge's script does: rows missing from either table are dropped."
        ),
    ] = False,
    ratings: Annotated[
        Path | None, typer.Option(help="Table with a row for each listener's rating. Default: a column `ratings`.")
    ] = None,
    group: Annotated[
        list[str] | None, typer.Option(help="Column to group by; may be repeated. Default: source, model_id.")
    ] = None,
    audio_dir: Annotated[Path | None, typer.Option(help="Folder of the sounds, for the report's players.")] = None,
    worst: Annotated[int, typer.Option(min=0, help="Pairs with the largest errors in the report.")] = 20,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
    key: Key = None,
    prediction_column: PredictionColumn = None,
    reference_column: ReferenceColumn = None,
    as_json: AsJson = False,
) -> None:
    """The official metrics with 95 % intervals, by groups, and a report with pictures."""
    columns = columns_of(key, prediction_column, reference_column)
    data.check_outputs([output], [prediction, reference, ratings])
    if output is not None:
        evaluation.check_report_folder(output)
    pairs = evaluation.read_pairs(prediction, reference, official, **columns)
    warn_of_dropped(pairs)
    listeners = evaluation.read_ratings(pairs, ratings, key or None)
    result = evaluation.evaluate_pairs(pairs, group, listeners, resamples, seed=seed)
    if output is not None:
        evaluation.write_report(pairs, result, output, audio_dir, worst)
        typer.echo(f"report: {output / evaluation.REPORT_FILE}", err=True)
    print_json(result) if as_json else typer.echo(evaluation.evaluation_text(result))


def compare(
    predictions: Annotated[list[Path], typer.Argument(help="Tables of predicted scores of the same pairs, 2 or more.")],
    reference: Annotated[Path, typer.Option(help="Table of the listeners' mean scores, one row a pair.")],
    differences: Annotated[int, typer.Option(min=0, help="Pairs on which two systems differ most to list.")] = 10,
    resamples: Resamples = 10_000,
    seed: Seed = 0,
    key: Key = None,
    prediction_column: PredictionColumn = None,
    reference_column: ReferenceColumn = None,
    as_json: AsJson = False,
) -> None:
    """Is one system better than another, or is it chance? Paired bootstrap and permutation test for each metric."""
    if len(predictions) < 2:
        raise typer.BadParameter("give two tables of predictions or more")
    columns = columns_of(key, prediction_column, reference_column)
    systems = evaluation.read_systems(predictions, reference, **columns)
    if systems.num_dropped:
        typer.echo(f"warning: {systems.num_dropped} pairs have no score in some table and were dropped", err=True)
    result = evaluation.compare_systems(systems, resamples, seed, differences)
    print_json(result) if as_json else typer.echo(evaluation.comparison_text(result))


def calibrate(
    output: Annotated[
        Path, typer.Option("--output", "-o", help=f"JSON file; with --apply {TABLE}, with --model folder.")
    ],
    prediction: Annotated[Path | None, typer.Argument(help="Table of predicted scores to fit the map to.")] = None,
    reference: Annotated[Path | None, typer.Argument(help="Table of the listeners' mean scores.")] = None,
    load: Annotated[Path | None, typer.Option(help="Take this map instead of fitting one.")] = None,
    method: Annotated[
        CalibrationMethod,
        typer.Option(help="affine keeps every rank; isotonic follows any rising curve, but makes ties."),
    ] = "affine",
    apply: Annotated[Path | None, typer.Option(help="Table to write again with calibrated scores.")] = None,
    model: Annotated[
        Path | None, typer.Option(help="Folder of the model that gave the predictions, to copy with an affine map.")
    ] = None,
    diagram: Annotated[Path | None, typer.Option(help="Reliability diagram to draw, .png or .pdf.")] = None,
    key: Key = None,
    prediction_column: PredictionColumn = None,
    reference_column: ReferenceColumn = None,
    as_json: AsJson = False,
) -> None:
    """Fit a map of scores onto the listeners' scale on a validation table, and store it or apply it."""
    check_calibrate_options(prediction, reference, load, apply, model, diagram)
    data.check_outputs([output, diagram], [prediction, reference, load, apply, model])
    if apply is not None:
        data.check_table_suffix(output)
    columns, report = columns_of(key, prediction_column, reference_column), None
    if load is not None:
        found = evaluation.load_calibration(load)
    else:
        pairs = evaluation.read_pairs(prediction, reference, **columns)
        warn_of_dropped(pairs)
        try:
            found = evaluation.fit_score_calibration(pairs.predictions, pairs.references, method)
            report = evaluation.calibration_report(found, pairs.predictions, pairs.references)
        except ValueError as error:
            raise ValueError(f"{prediction} and {reference}: {error}") from error
    if apply is not None:
        evaluation.calibrate_table(found, apply, output, columns.get("prediction_columns", data.PREDICTION_COLUMNS))
    elif model is not None:
        evaluation.calibrate_model(found, model, output)
    else:
        evaluation.save_calibration(found, output)
    if diagram is not None:
        picture = evaluation.draw_reliability(found, pairs.predictions, pairs.references)
        data.write_whole(diagram, evaluation.figure_bytes(picture, diagram.suffix[1:]))
    if as_json:
        print_json({"map": asdict(found), "metrics": report, "output": str(output)})
    else:
        typer.echo("\n\n".join([*([evaluation.calibration_text(report)] if report else []), f"{found}: {output}"]))


def check_calibrate_options(
    prediction: Path | None,
    reference: Path | None,
    load: Path | None,
    apply: Path | None,
    model: Path | None,
    diagram: Path | None,
) -> None:
    """Refuse combinations of options that mean nothing."""
    if (prediction is None) != (reference is None) or (prediction is None) == (load is None):
        raise typer.BadParameter("give either a table of predictions and its reference, or --load")
    if apply is not None and model is not None:
        raise typer.BadParameter("give one of --apply and --model")
    if diagram is not None and (load is not None or diagram.suffix not in (".png", ".pdf")):
        raise typer.BadParameter("--diagram names a .png or .pdf file, and goes without --load")
