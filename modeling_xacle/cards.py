"""What a training run leaves for people: curves, and the model card."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.figure import Figure
from transformers import Trainer

from . import __version__
from .recipes import STAGES, StageArguments
from .training import alignment_model, run_settings, write_json

CURVES_FILE = "training_curves.png"
LOG_FILE = "training_log.json"
SOURCES_SHOWN = 8
METRIC_NAMES = {"srcc": "SRCC", "lcc": "LCC", "ktau": "KTAU", "mse": "MSE", "loss": "loss", "perplexity": "perplexity"}

LICENCES = {
    "BEATs (microsoft/unilm)": "MIT",
    "Qwen2.5-0.5B-Instruct": "Apache-2.0",
    "TMU weights (Atotti/xacle-tmu-2026)": "CC-BY-NC-4.0, which binds what is trained from them",
    "XACLE data": "on request from its owners; not to be passed on",
}


def draw_training_curves(log_history: list[dict[str, float]], file: str | Path) -> None:
    """
    Draw the loss of training, and the validation metrics, against epochs.

    Args:
        log_history (`list` of `dict`): Of `TrainerState`: entries with `epoch` and `loss` or `eval_...`.
        file (`str` or `Path`): PNG to write.
    """
    names = [name for name in METRIC_NAMES if any(f"eval_{name}" in entry for entry in log_history)]
    shown = [name for name in names if name in ("srcc", "mse", "loss", "perplexity")]
    figure = Figure(figsize=(4.2 * (1 + len(shown)), 3.2), layout="constrained")
    axes = figure.subplots(1, 1 + len(shown), squeeze=False)[0]
    _draw(axes[0], log_history, "loss", "training loss")
    for axis, name in zip(axes[1:], shown, strict=True):
        _draw(axis, log_history, f"eval_{name}", f"validation {METRIC_NAMES[name]}", marker="o")
    unfinished = Path(file).with_name(f".{Path(file).name}.unfinished")
    figure.savefig(unfinished, dpi=110, format="png")
    unfinished.replace(file)


def _draw(axis: Any, log_history: list[dict[str, float]], key: str, title: str, marker: str | None = None) -> None:
    points = [(entry["epoch"], entry[key]) for entry in log_history if key in entry]
    axis.plot(*zip(*points, strict=True), marker=marker, markersize=3) if points else None
    axis.set(title=title, xlabel="epoch")
    axis.grid(alpha=0.3)


def markdown_table(rows: list[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def count_sources(trainer: Trainer) -> str:
    """Which corpora or generators the training rows come from, and how many of each."""
    rows = trainer.train_dataset.rows
    if "source" not in rows.column_names:
        return "unnamed sources"
    counts = Counter(rows["source"][:]).most_common()
    listed = ", ".join(f"{source} ({count})" for source, count in counts[:SOURCES_SHOWN])
    return listed + (f" and {len(counts) - SOURCES_SHOWN} more" if len(counts) > SOURCES_SHOWN else "")


def card_metadata(name: str, stage: StageArguments, metrics: Mapping[str, float]) -> ModelCardData:
    """Metadata by which the Hub knows the model, with its validation metrics as a model index."""
    results = [
        EvalResult(
            task_type="audio-text-alignment",
            dataset_type=Path(stage.data).name,
            dataset_name=stage.data,
            dataset_split=stage.validation_split,
            metric_type=name,
            metric_name=label,
            metric_value=round(metrics[f"eval_{name}"], 4),
        )
        for name, label in METRIC_NAMES.items()
        if f"eval_{name}" in metrics
    ]
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag="audio-text-alignment" if stage.stage > 1 else "audio-text-to-text",
        tags=["xacle", "audio", "audio-text-alignment"],
        eval_results=results,
    )


USE = {
    True: """import modeling_xacle  # or pipeline(..., trust_remote_code=True) where it is not installed
from transformers import pipeline

align = pipeline("audio-text-alignment", model="{folder}")
align({{"audio": "dog.wav", "text": "A dog barks twice"}})""",
    False: """import modeling_xacle
from transformers import AutoModelForMultimodalLM, AutoProcessor

model, processor = (kind.from_pretrained("{folder}") for kind in (AutoModelForMultimodalLM, AutoProcessor))
processor.batch_decode(model.generate(**processor.prepare_captioning(["dog.wav"])), skip_special_tokens=True)""",
}


WHAT = {
    True: "Predicts how well a sound matches a caption, from 0 (not at all) to 10 (exactly).",
    False: "Writes captions for sounds; it is where the training of a scorer goes on.",
}


def card_text(trainer: Trainer, stage: StageArguments, metrics: Mapping[str, float]) -> str:
    """The model card's body, from what the run did and measured."""
    folder, scores = Path(trainer.args.output_dir), stage.stage > 1
    model = alignment_model(trainer.model)
    config = model.config
    settings = {name: value for name, value in run_settings(stage, trainer.args).items() if value not in ("", None)}
    found = [
        {"metric": label, "value": f"{metrics[f'eval_{name}']:.4f}"}
        for name, label in METRIC_NAMES.items()
        if f"eval_{name}" in metrics
    ]
    return f"""# {folder.name}

{WHAT[scores]}
Stage {stage.stage} ({STAGES[stage.stage]}) of modeling-xacle {__version__} (arXiv 2602.00604): BEATs encoder, SwiGLU
projector, {config.text_config.model_type} decoder; {sum(weight.numel() for weight in model.parameters()):,} parameters.

```python
{USE[scores].format(folder=folder)}
```

## Data

`{stage.data}`: {len(trainer.train_dataset)} rows of `{stage.train_split}`, from {count_sources(trainer)};
{len(trainer.eval_dataset)} rows of `{stage.validation_split}`. Training started from `{stage.model}`.

## Validation

{markdown_table(found)}

On the split that chose the checkpoint and the calibration: expect a little less on new data. Calibration of the head's
output, in label units: scale {config.calibration_scale:.4g}, offset {config.calibration_offset:.4g}.

![Training curves]({CURVES_FILE})

## Recipe

{markdown_table([{"setting": name, "value": f"`{value}`"} for name, value in settings.items()])}

## Licences

What this model may be used for depends on what it was made from:

{markdown_table([{"part": part, "licence": licence} for part, licence in LICENCES.items()])}

## Limits

Scores are predictions of the mean of a few listeners, whose own noise is large: compare systems by means over hundreds
of pairs, with intervals. What is outside the training data is unreliable. Rank correlations on synthetic data say
nothing about real sounds.
"""


def write_report(trainer: Trainer, stage: StageArguments, metrics: Mapping[str, float]) -> None:
    """
    Write the curves, the log and the model card to the output folder.

    Args:
        trainer (`Trainer`): After training.
        stage (`StageArguments`): What it did.
        metrics (`Mapping`): Of the validation split, with the prefix `eval_`.
    """
    if not trainer.is_world_process_zero():
        return
    folder = Path(trainer.args.output_dir)
    draw_training_curves(trainer.state.log_history, folder / CURVES_FILE)
    write_json(folder / LOG_FILE, {"metrics": dict(metrics), "log": trainer.state.log_history})
    metadata = card_metadata(folder.name, stage, metrics)
    ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n{card_text(trainer, stage, metrics)}").save(folder / "README.md")
