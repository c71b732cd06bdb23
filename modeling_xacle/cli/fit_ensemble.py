"""`xacle fit-ensemble`: a rule that combines models, fitted to ratings and saved as one model."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import data, evaluation, scoring, training
from ..evaluation.methods import ModelEnsembleMethod
from .options import AsJson, Device, Resamples, Seed, check_device, print_json
from .score import AudioColumn, AudioDir, BatchSize, Split, TextColumn, Workers, as_number


def fit_ensemble(
    pairs: Annotated[str, typer.Argument(help="Table or dataset with the listeners' mean scores, as for xacle score.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write, which loads as a model.")],
    model: Annotated[list[str], typer.Option(help="Folder or Hub id of a member; give at least two.")],
    method: Annotated[
        ModelEnsembleMethod,
        typer.Option(
            help="Mean of scores, or of standardised scores; non-negative least squares; or a gate, a small network "
            "that weighs the members for each pair."
        ),
    ] = "nnls",
    reference_column: Annotated[
        str | None, typer.Option(help="Column of the listeners' means. Default: average_score, ... or score.")
    ] = None,
    audio_column: AudioColumn = None,
    text_column: TextColumn = None,
    audio_dir: AudioDir = None,
    split: Split = None,
    folds: Annotated[int, typer.Option(min=2, help="Parts that the clips are split into for judging the fit.")] = 5,
    unseen_generators: Annotated[
        bool,
        typer.Option("--unseen-generators", help="Also judge each generator (source, model_id) by a fit without it."),
    ] = False,
    copy_members: Annotated[
        bool, typer.Option("--copy-members", help="Copy the members' folders into the ensemble's.")
    ] = False,
    resamples: Resamples = 2000,
    seed: Seed = 0,
    device: Device = "auto",
    batch_size: BatchSize = "auto",
    workers: Workers = 0,
    as_json: AsJson = False,
) -> None:
    """Fit an ensemble of models to ratings, judge it out of fold, and save it as a folder that scores."""
    check_device(device)
    scoring.check_new(output, model)
    source = data.PairSource(pairs, audio_column, text_column, audio_dir, split)
    targets = scoring.read_ratings(source, reference_column)
    generators = scoring.read_generators(source) if unseen_generators else None
    if generators is not None:
        evaluation.generator_folds(generators)  # a single one is told before hours of scoring
    align = scoring.join_members(model, device)
    if method == "mean":
        scoring.check_scales(align.model.config)
    found = scoring.score_members(align, source, scoring.TableOptions(as_number(batch_size), workers))
    names = [member["name"] for member in align.model.config.members]
    foreign = [member["name"] for member in align.model.config.members if member["scale"] != scoring.OWN_SCALE]
    rated = evaluation.RatedScores(names, found.scores, found.features, targets, found.clips, generators, foreign)
    report, rule = fit(align, rated, method, folds, resamples, seed)
    fitted_on = f"{source.name} ({report['pairs']} pairs of {report['clips']} clips)"
    figures = evaluation.fit_text(report)
    card = scoring.ensemble_card(align, method, rule, fitted_on, figures)
    scoring.save_ensemble(output, align, method, rule, card, copy_members)
    if as_json:
        print_json({"method": method, **report, "output": str(output)})
    else:
        typer.echo(f"{figures}\n{len(names)} models combined by {method}, fitted on {fitted_on}: {output}")


def fit(
    align: Any, rated: "evaluation.RatedScores", method: str, folds: int, resamples: int, seed: int
) -> tuple[dict[str, Any], Any]:
    """Returns what was measured out of fold, and the rule fitted on all pairs."""
    if method == "gate":
        loss = training.get_loss("clipped_contrastive")
        of_pairs = lambda *rows: partial(scoring.apply_gate, scoring.fit_gate(*rows, loss, seed=seed))  # noqa: E731
        report = evaluation.judge_fit(rated, of_pairs, folds, resamples, seed)
        return report, scoring.fit_gate(rated.scores, rated.features, rated.targets, loss, seed=seed)
    report = evaluation.judge_fit(rated, evaluation.sum_fit(method), folds, resamples, seed)
    fitted = evaluation.WEIGHTED_SUMS[method](rated.scores, rated.targets)
    report["weights"] = dict(zip(rated.names, fitted.weights.tolist(), strict=True))
    return report, scoring.make_sum(align, *fitted)
