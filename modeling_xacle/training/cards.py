"""What a training run writes for people: the curves and the model card."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.figure import Figure
from transformers import Trainer, TrainingArguments

from .. import __version__
from ..checkpoints.provenance import CARD, UNKNOWN, dataset_name, made_from, parts_in_words, read_card
from ..configuration_xacle import STAGES, ScoringConfig
from ..data.files import whole_file, write_json
from ..data.pairs import dataset_licence
from ..data.tables import markdown_table
from ..evaluation.metrics import METRICS, SHOWN_METRICS
from ..evaluation.resampling import bootstrap_intervals
from .freezing import alignment_model
from .recipes import StageArguments
from .resuming import run_settings

TEMPLATE = Path(__file__).parent / "templates/card.md.jinja"
CURVES_FILE = "training_curves.png"
LOG_FILE = "training_log.json"
SOURCES_SHOWN = 8
# For each name in a log, the name that is shown and the Hub's name.
METRIC_NAMES = {name.lower(): name for name in METRICS} | {"loss": "loss", "perplexity": "perplexity"}
METRIC_TYPES = {name.lower(): metric.hub_name for name, metric in METRICS.items()}
METRIC_TYPES |= {"loss": "loss", "perplexity": "perplexity"}
CONFIDENCE, RESAMPLES = 0.95, 1000
MOST_RESAMPLED_PAIRS = 10_000  # they take a minute
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def draw_training_curves(log_history: list[dict[str, float]], file: str | Path, best_step: int | None = None) -> None:
    """
    Draw the training loss and the validation metrics against epochs.

    Args:
        log_history (`list` of `dict`): From `TrainerState`: entries with `epoch`, `step` and `loss` or `eval_...`.
        file (`str` or `Path`): PNG to write.
        best_step (`int`, *optional*): Step of the best checkpoint, which is marked.
    """
    names = [name for name in METRIC_NAMES if any(f"eval_{name}" in entry for entry in log_history)]
    shown = [name for name in names if METRIC_NAMES[name] not in METRICS or METRIC_NAMES[name] in SHOWN_METRICS]
    figure = Figure(figsize=(4.2 * (1 + len(shown)), 3.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    _draw(axes[0], log_history, "loss", "training loss")
    for axis, name in zip(axes[1:], shown, strict=True):
        _draw(axis, log_history, f"eval_{name}", f"validation {METRIC_NAMES[name]}", marker="o")
        _draw_best(axis, log_history, f"eval_{name}", best_step)
    with whole_file(file) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png")


def _draw(axis: Any, log_history: list[dict[str, float]], key: str, title: str, marker: str | None = None) -> None:
    points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry]
    axis.plot(*zip(*points, strict=True), marker=marker, markersize=3) if points else None
    axis.set(title=title, xlabel="epoch")
    axis.grid(alpha=0.3)


def _draw_best(axis: Any, log_history: list[dict[str, float]], key: str, best_step: int | None) -> None:
    for entry in log_history:
        if key in entry and entry["step"] == best_step:
            label = f"best checkpoint ({best_step})"
            axis.plot(entry["epoch"], entry[key], "*", color="tab:red", markersize=11, label=label)
            axis.legend(fontsize="small")


def count_sources(trainer: Trainer) -> str:
    """Says which corpora or generators the training rows come from, and how many rows each has."""
    rows = trainer.train_dataset.rows
    if "source" not in rows.column_names:
        return "unnamed sources"
    counts = Counter(rows["source"][:]).most_common()
    listed = ", ".join(f"{source} ({count})" for source, count in counts[:SOURCES_SHOWN])
    return listed + (f" and {len(counts) - SOURCES_SHOWN} more" if len(counts) > SOURCES_SHOWN else "")


def validation_intervals(pairs: tuple[np.ndarray, np.ndarray] | None) -> dict[str, tuple[float, float]]:
    """
    Returns bootstrap intervals of the metrics of scores and references `(num_pairs,)`, under the names of
    `METRIC_NAMES`; none for captioning, nor for so many pairs that they would take long and say little.
    """
    if pairs is None or len(pairs[0]) > MOST_RESAMPLED_PAIRS:
        return {}
    found = bootstrap_intervals(*pairs, num_resamples=RESAMPLES, confidence=CONFIDENCE)
    return {name.lower(): interval for name, interval in found.items()}


def describe_metrics(
    metrics: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> list[tuple[str, float, list[float] | None]]:
    """Returns name, value and interval of each measured metric, in the card's order."""
    return [
        (
            name,
            round(metrics[f"eval_{name}"], 4),
            [round(end, 4) for end in intervals[name]] if name in intervals else None,
        )
        for name in METRIC_NAMES
        if f"eval_{name}" in metrics
    ]


def without_folder(source: str) -> str:
    """Returns a name that can be published: the last part of an absolute path, any other source as it is."""
    return Path(source).name if Path(source).is_absolute() else source


def hub_ids(*names: str) -> list[str] | None:
    """Returns the names that are Hub ids, not folders; `None` if there are none."""
    return [name for name in names if HUB_ID.fullmatch(name) and not Path(name).exists()] or None


def card_metadata(
    name: str,
    stage: StageArguments,
    config: ScoringConfig,
    metrics: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
) -> ModelCardData:
    """
    Returns the model's metadata for the Hub, with its validation metrics as a model index.

    Args:
        name (`str`): The model's name.
        stage (`StageArguments`): The run's options.
        config (`ScoringConfig`): The model's config.
        metrics (`Mapping`): Measured on the validation split; their names have the prefix `eval_`.
        intervals (`Mapping`): As `validation_intervals` returns them.
    """
    measured = {"confidence": CONFIDENCE, "resamples": RESAMPLES}
    dataset = dataset_name(stage.data)
    task = "audio-text-alignment" if stage.stage > 1 else "audio-text-to-text"
    results = [
        EvalResult(
            task_type=task,
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=stage.validation_split,
            metric_type=METRIC_TYPES[metric],
            metric_name=METRIC_NAMES[metric],
            metric_value=value,
            metric_args={"interval": interval, **measured} if interval else None,
        )
        for metric, value, interval in describe_metrics(metrics, intervals)
    ]
    start = read_card(stage.model)
    language_model = config.text_config._name_or_path
    return ModelCardData(
        model_name=name,
        language="en",
        license=start.license if start else None,
        library_name="transformers",
        pipeline_tag=task,
        base_model=hub_ids(stage.model) or hub_ids(language_model),
        datasets=hub_ids(stage.data),
        metrics=[result.metric_type for result in results],
        tags=["xacle", "audio", "audio-text-alignment", "arxiv:2602.00604"],
        eval_results=results,
    )


def licence_table(config: ScoringConfig, stage: StageArguments) -> str:
    """Lists the parts that a model was made from, data included, with their licences as far as they are known."""
    start = read_card(stage.model)
    rows = [
        *made_from(config),
        {
            "part": "starting model",
            "source": without_folder(stage.model),
            "licence": (start and start.license) or UNKNOWN,
        },
        {
            "part": "training data",
            "source": without_folder(stage.data),
            "licence": dataset_licence(stage.data) or UNKNOWN,
        },
    ]
    return markdown_table(rows)


def validation_table(metrics: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]) -> str:
    """Returns the validation metrics as a table for people."""
    rows = []
    for name, value, interval in describe_metrics(metrics, intervals):
        rows.append({"metric": METRIC_NAMES[name], "value": f"{value:.4f}"})
        if intervals:
            rows[-1]["95 % interval"] = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""
    return markdown_table(rows)


# The `TrainingArguments` that the card always shows; others are shown where they are not Transformers' defaults.
TOLD = ("learning_rate", "weight_decay", "max_grad_norm", "num_train_epochs", "lr_scheduler_type", "optim", "seed")


def recipe_settings(stage: StageArguments, args: TrainingArguments) -> dict[str, Any]:
    """Returns the settings that the card shows: all that the weights depend on and that are not defaults."""
    usual = {field.name: field.default for field in fields(TrainingArguments) if field.name not in TOLD}
    settings = {
        name: value
        for name, value in run_settings(stage, args).items()
        if value not in ("", None) and value != usual.get(name, MISSING)
    }
    size = settings.pop("list_size")
    if stage.stage > 1:
        settings["pairs of a list"] = size
    return settings | {name: without_folder(settings[name]) for name in ("model", "data")}


def model_card(
    trainer: Trainer, stage: StageArguments, metrics: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> ModelCard:
    """Builds the model card from what the run did and measured."""
    args, model = trainer.args, alignment_model(trainer.model)
    config, name = model.config, Path(args.output_dir).name
    settings = recipe_settings(stage, args)
    return ModelCard.from_template(
        card_metadata(name, stage, config, metrics, intervals),
        template_path=str(TEMPLATE),
        name=name,
        scores=stage.stage > 1,
        stage=stage,
        stage_name=STAGES[stage.stage],
        version=__version__,
        parts=parts_in_words(config),
        parameters=sum(weight.numel() for weight in model.parameters()),
        model=(args.push_to_hub and args.hub_model_id) or without_folder(args.output_dir),
        dataset=dataset_name(stage.data),
        data=without_folder(stage.data),
        train_rows=len(trainer.train_dataset),
        sources=count_sources(trainer),
        validation_rows=len(trainer.eval_dataset),
        start=without_folder(stage.model),
        config=config,
        metrics=validation_table(metrics, intervals),
        curves=CURVES_FILE,
        licences=licence_table(config, stage),
        recipe=markdown_table([{"setting": name, "value": f"`{value}`"} for name, value in settings.items()]),
    )


def summary(
    trainer: Trainer, stage: StageArguments, metrics: Mapping[str, float], intervals: Mapping[str, tuple[float, float]]
) -> str:
    """Returns what a finished stage prints: metrics, calibration, where the result is, and what comes next."""
    state, output = trainer.state, trainer.args.output_dir
    config = alignment_model(trainer.model).config
    kept = f"step {state.best_global_step}, the best" if trainer.args.load_best_model_at_end else "the last step"
    found = [
        f"{METRIC_NAMES[name]} {value:.4g}" + (f" [{interval[0]:.4g}, {interval[1]:.4g}]" if interval else "")
        for name, value, interval in describe_metrics(metrics, intervals)
    ]
    lines = [
        f"stage {stage.stage} ({STAGES[stage.stage]}): {state.global_step} steps, weights of {kept}",
        f"{stage.validation_split}: {', '.join(found)}" + (" (95 % intervals)" if intervals else ""),
    ]
    if stage.calibrate:
        lines.append(f"calibration: scale {config.calibration_scale:.4g}, offset {config.calibration_offset:.4g}")
    following = [f"python run_stage.py --stage {stage.stage + 1}"]
    following += [f"--model {output}"] if output != f"runs/stage{stage.stage}" else []
    scoring = f"xacle score PAIRS.csv --model {output} -o scores.csv"
    lines += [f"result: {output} (card: {CARD}, curves: {CURVES_FILE}, log: {LOG_FILE})"]
    return "\n".join([*lines, f"next: {' '.join(following) if stage.stage < max(STAGES) else scoring}"])


def write_report(
    trainer: Trainer,
    stage: StageArguments,
    metrics: Mapping[str, float],
    pairs: tuple[np.ndarray, np.ndarray] | None = None,
) -> str:
    """
    Write the curves, the log and the model card to the output folder.

    Args:
        trainer (`Trainer`): After training.
        stage (`StageArguments`): The run's options.
        metrics (`Mapping`): Measured on the validation split; their names have the prefix `eval_`.
        pairs (`tuple` of two `np.ndarray` of shape `(num_pairs,)`, *optional*): The split's scores and references, for
            the intervals.

    Returns:
        The summary for the terminal; "" on all processes but the first.
    """
    if not trainer.is_world_process_zero():
        return ""
    folder, state = Path(trainer.args.output_dir), trainer.state
    draw_training_curves(state.log_history, folder / CURVES_FILE, state.best_global_step)
    intervals = validation_intervals(pairs)
    log = {"metrics": dict(metrics), "intervals": intervals, "log": state.log_history}
    write_json(folder / LOG_FILE, log)
    model_card(trainer, stage, metrics, intervals).save(folder / CARD)
    return summary(trainer, stage, metrics, intervals)
