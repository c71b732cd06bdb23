"""
Measure what each stage, loss and order contributes on synthetic worlds: the recipe as released and as in the paper
(arXiv 2602.00604, from the same stage 1, with the best checkpoint and calibration), ours, and the listeners' ceiling.

    python benchmarks/ablation/ablation.py runs/tiny
    python benchmarks/ablation/ablation.py runs/tiny --test-seed 1f2e3d4c

makes what tiny.py makes, trains the other rows from the same parts and data, and measures all of them: without a seed
on the split `development`, on which everything was chosen (--choices also tries other learning rates); with a seed on
the test world of that seed, for recipes that were frozen before it was drawn. `run_stage.py` trains each row; finished
rows are skipped, and rows that were made differently are refused. Tables, scores and a picture go to
benchmarks/results/ablation/. The ratings come from a program: the figures compare methods and say nothing about human
listeners.
"""

import json
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rows
import tiny
import typer
import worlds
from ablation_report import TEACHER, system_columns, write_report
from datasets import Dataset
from rows import ROWS
from steps import Step, do_steps
from transformers import AutoConfig, AutoModel, AutoProcessor, set_seed
from worlds import model_scores, true_alignments

from modeling_xacle.cli.endings import plain_endings
from modeling_xacle.data.pairs import load_pairs
from modeling_xacle.evaluation.metrics import alignment_metrics
from modeling_xacle.judges.contrastive import ContrastiveTeacher

RESULTS = Path(__file__).parents[1] / "results/ablation"


def without_likelihood(source: Path, output: Path) -> None:
    """
    Save the bundled model's weights as a model of the published form: captions before the sound, no likelihood. The
    first layer of its score head, untrained before stage 2, gets new random weights because it is narrower.
    """
    processor = AutoProcessor.from_pretrained(source)
    processor.audio_first = False
    config = AutoConfig.from_pretrained(source)
    config.caption_likelihood = False
    set_seed(0)
    AutoModel.from_pretrained(source, config=config, ignore_mismatched_sizes=True).save_pretrained(output)
    processor.save_pretrained(output)


def published_form(source: str, work: Path) -> Step:
    """Returns the step that gives a model the published form."""
    output = str(Path(source).with_name("published") / Path(source).name)
    make = partial(without_likelihood, work / source, work / output)
    return Step(f"{output}/processor_config.json", ["without_likelihood", source], make)


def run_step(run: rows.Run, work: Path) -> Step:
    """Returns the step of a training run."""
    command = tiny.stage_command(run.stage, run.folder, run.start, **run.settings)
    return tiny.command_step(f"{run.folder}/README.md", command, work)


def plan(work: Path, with_choices: bool = False) -> list[Step]:
    """Returns the steps of the bundled model and of the other rows, for every seed."""
    steps = {step.folder: step for step in tiny.plan(work)}
    labels = tiny.label_command(rows.PUBLISHED_LABELS, "--negatives", 3)
    published = [published_form(name, work) for name in ("stage0", "stage1")]
    for step in (*published, tiny.command_step(rows.PUBLISHED_LABELS, labels, work)):
        steps[step.folder] = step
    for row in ROWS:
        for seed in row.seeds:
            for run in row.runs:
                seeded = run.with_seed(seed)
                steps.setdefault(seeded.folder, run_step(seeded, work))
        if with_choices:
            for run in (run for tried in rows.choices(row).values() for runs in tried.values() for run in runs):
                steps.setdefault(run.folder, run_step(run, work))
    return list(steps.values())


def teacher_cosines(folder: Path, pairs: Dataset) -> list[float]:
    """Returns the CLAP teacher's cosines `(num_pairs,)`."""
    teacher = ContrastiveTeacher.from_pretrained(folder)
    audio = teacher.embed_audio([row["audio"] for row in pairs])  # (P, D)
    text = teacher.embed_text(pairs["text"][:])
    return (audio * text).sum(dim=1).tolist()


def score_split(work: Path, world: Path, split: str) -> list[dict[str, Any]]:
    """Returns a line for each pair of a split: its key, mean rating, true alignment, and every model's score."""
    pairs = load_pairs(world, split)
    ids = pairs["id"][:]
    columns = {"split": [split] * len(ids), "id": ids, "average_score": pairs["score"][:]}
    columns |= {"alignment": true_alignments(world, ids).tolist(), TEACHER: teacher_cosines(work / "teacher", pairs)}
    for row in ROWS:
        for name, folder in zip(system_columns()[row.name], row.folders(), strict=True):
            columns[name] = model_scores(work / folder, pairs, work / "cache").round(4).tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def write_choices(output: Path, work: Path) -> None:
    """Write every row's SRCC on development data at each learning rate that was tried for a stage."""
    pairs = load_pairs(work / tiny.DATA[3], "development")
    references = np.array(pairs["score"][:])

    @cache  # each stage's choices include the row's own model
    def srcc(folder: str) -> float:
        """Returns the SRCC of the model in a folder."""
        return alignment_metrics(model_scores(work / folder, pairs, work / "cache"), references)["SRCC"]

    found = {
        row.name: {
            stage: {f"{rate:g}": srcc(runs[-1].folder) for rate, runs in tried.items()}
            for stage, tried in rows.choices(row).items()
        }
        for row in ROWS
        if row.rates
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / "choices.json").write_text(json.dumps(found, indent=2) + "\n")


def main(
    work: Annotated[Path, typer.Argument(help="Folder for everything that is made.")] = Path("runs/tiny"),
    test_seed: Annotated[
        str | None, typer.Option(help="Draw the test world of this seed (hexadecimal digits), and measure on it.")
    ] = None,
    choices: Annotated[bool, typer.Option("--choices", help="Try the tuned rows' other learning rates too.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = RESULTS,
) -> None:
    """Train and measure every row of the table."""
    work, seed = work.absolute(), None if test_seed is None else worlds.read_seed(test_seed)
    do_steps(work, plan(work, choices))
    if choices:
        write_choices(output, work)
    if seed is None:
        name, world, splits = "development", work / tiny.DATA[3], ["development"]
    else:
        name, world, splits = f"test world {seed:08x}", worlds.draw(work, seed), worlds.SPLITS
    lines = [line for split in splits for line in score_split(work, world, split)]
    typer.echo(write_report(output, name, lines))


if __name__ == "__main__":
    with plain_endings():
        typer.run(main)
