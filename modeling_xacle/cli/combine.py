"""The commands that combine or pack tables of scores: `xacle ensemble` and `xacle submit`."""

from pathlib import Path
from typing import Annotated

import typer

from .. import data, evaluation
from ..evaluation.methods import EnsembleMethod
from .options import TABLE, AsJson, Key, PredictionColumn, ReferenceColumn, Resamples, Seed, columns_of, print_json


def ensemble(
    tables: Annotated[list[Path], typer.Argument(help="Tables of scores of the same pairs, one a system.")],
    output: Annotated[Path, typer.Option("--output", "-o", help=f"{TABLE} to write: the first table with `score`.")],
    reference: Annotated[
        Path | None, typer.Option(help="Table of the listeners' mean scores: also judge, and fit nnls and svr.")
    ] = None,
    method: Annotated[
        EnsembleMethod | None,
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
    resamples: Resamples = 2000,
    seed: Seed = 0,
    key: Key = None,
    prediction_column: PredictionColumn = None,
    reference_column: ReferenceColumn = None,
    as_json: AsJson = False,
) -> None:
    """Combine the scores of several systems, never fitting on the pairs that the result is judged by."""
    if weights is not None and (method or save_weights or leave_one_out):
        raise typer.BadParameter("--weights goes without --method, --save-weights and --leave-one-out")
    data.check_table_suffix(output)
    data.check_outputs([output, save_weights], [*tables, reference, weights])
    columns = columns_of(key, prediction_column, reference_column)
    members = evaluation.read_members(tables, reference, **columns)
    method = method or "mean"
    if weights is not None:
        combined, report = evaluation.apply_weights(weights, members)
    else:
        combined, report = evaluation.combine_members(members, method, folds, seed, leave_one_out, resamples)
    if save_weights is not None:
        evaluation.save_weights(save_weights, method, members)
    own = columns.get("prediction_columns", ())
    evaluation.write_ensemble(output, members, report["method"], combined, own)
    if as_json:
        print_json({**report, "output": str(output)})
    else:
        typer.echo(evaluation.ensemble_text(report), nl=False)
        typer.echo(f"{report['pairs']} pairs of {len(tables)} systems combined by {report['method']}: {output}")


def submit(
    scores: Annotated[list[Path], typer.Argument(help="Tables of scores of the test clips, one a system.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="ZIP file to write.")],
    reference: Annotated[
        Path | None, typer.Option(help="Table of the required file names. Default: any 3,000 files.")
    ] = None,
    name: Annotated[list[str] | None, typer.Option(help="Name of the system; one for each table.")] = None,
    description: Annotated[
        list[Path] | None,
        typer.Option(
            help="YAML file with the fields name, authors, contact, external_data, models; one for all systems or for "
            "each. What it has is not given as an option."
        ),
    ] = None,
    author: Annotated[list[str] | None, typer.Option(help="An author; may be repeated.")] = None,
    contact: Annotated[str | None, typer.Option(help="E-mail address.")] = None,
    external_data: Annotated[
        list[str] | None, typer.Option(help="Data used beside the training split; may be repeated. Default: none.")
    ] = None,
    pretrained: Annotated[list[str] | None, typer.Option(help="A model that was used; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check scores of the challenge's test set and pack them with a description of each system."""
    data.check_outputs([output], [*scores, reference, *(description or [])])
    options = {"authors": author, "contact": contact, "external_data": external_data, "models": pretrained}
    described = evaluation.describe_systems(options, name or [], description or [], len(scores))
    files, warnings = evaluation.submit_tables(scores, described, output, reference)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json({"output": str(output), "files": files, "warnings": warnings}, indent=None)
    else:
        typer.echo(f"{', '.join(files)}: {output}")
