"""
What each stage, loss and order brings, on synthetic worlds: the recipe as released and as in the paper (arXiv
2602.00604, from the same stage 1, with the best checkpoint and calibration), ours, and the listeners' ceiling.

    python benchmarks/ablation.py runs/tiny
    python benchmarks/ablation.py runs/tiny --test-seed 1f2e3d4c

makes what benchmarks/tiny.py makes, trains the other rows from the same parts and data, and measures them: without a
seed on the split `development`, by which everything was chosen (--choices tries other learning rates too);
with a seed on the test world of that seed, for what was frozen before it was drawn. Each row is trained by
`run_stage.py`; a row that is done is not done again, and one that was made otherwise is refused. Tables, scores and a
picture go to benchmarks/results/ablation/. The ratings are a program's: the figures compare methods and say nothing
about human listeners.
"""

import csv
import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rows
import tiny
import typer
import worlds
from datasets import Dataset
from rows import RELEASED, ROWS, Row
from steps import Step, do_steps
from transformers import AutoConfig, AutoModel, AutoProcessor, set_seed
from worlds import interval, model_scores, resampled_srcc, true_alignments, with_interval

from modeling_xacle.cards import markdown_table
from modeling_xacle.clap import ClapTeacher
from modeling_xacle.data import load_pairs
from modeling_xacle.figures import BLUE, GREY, ORANGE, figure_bytes, styled_figure
from modeling_xacle.metrics import alignment_metrics, listeners_ceiling

RESULTS = Path(__file__).parent / "results/ablation"
TEACHER, CEILING = "CLAP teacher alone", "listeners' ceiling: the true alignment"
BOOTSTRAP_SEED = 0
SEEDS_TOLD = (
    "Seeds are of stages 2 and 3: the order of the data and dropout. Parts, teacher, labels and stage 1 are made once. "
    "Intervals are over pairs and, of rows with several seeds, over these too."
)


def without_likelihood(source: Path, output: Path) -> None:
    """
    A model of the bundled one's weights in the published form: captions before the sound, no likelihood. The first
    layer of its score head, untrained before stage 2, is drawn anew, for it is narrower.
    """
    processor = AutoProcessor.from_pretrained(source)
    processor.audio_first = False
    config = AutoConfig.from_pretrained(source)
    config.caption_likelihood = False
    set_seed(0)
    AutoModel.from_pretrained(source, config=config, ignore_mismatched_sizes=True).save_pretrained(output)
    processor.save_pretrained(output)


def published_form(source: str, work: Path) -> Step:
    """The step that gives a model the published form."""
    output = str(Path(source).with_name("published") / Path(source).name)
    make = partial(without_likelihood, work / source, work / output)
    return Step(f"{output}/processor_config.json", ["without_likelihood", source], make)


def run_step(run: rows.Run, work: Path) -> Step:
    """The step of a training run."""
    command = tiny.stage_command(run.stage, run.folder, run.start, **run.settings)
    return tiny.command_step(f"{run.folder}/README.md", command, work)


def plan(work: Path, with_choices: bool = False) -> list[Step]:
    """The steps of the bundled model, and those of the other rows, for every seed."""
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
            for run in rows.choices(row).values():
                steps.setdefault(run.folder, run_step(run, work))
    return list(steps.values())


def teacher_cosines(folder: Path, pairs: Dataset) -> np.ndarray:
    """Cosines `(num_pairs,)` of the CLAP teacher, as they are."""
    teacher = ClapTeacher.from_pretrained(folder)
    audio = teacher.embed_audio([row["audio"] for row in pairs])  # (P, D)
    text = teacher.embed_text(pairs["text"][:])
    return (audio * text).sum(dim=1).double().cpu().numpy()


def collect_scores(work: Path, pairs: Dataset, truth: np.ndarray) -> dict[str, np.ndarray]:
    """Scores `(num_seeds, num_pairs)` of every row of the table."""
    scores = {TEACHER: teacher_cosines(work / "teacher", pairs)[None]}
    for row in ROWS:
        scores[row.name] = np.stack([model_scores(work / folder, pairs, work / "cache") for folder in row.folders()])
    return {**scores, CEILING: truth[None]}


def resample_rows(scores: dict[str, np.ndarray], references: np.ndarray) -> dict[str, np.ndarray]:
    """
    SRCC `(num_resamples,)` of every row on samples of the pairs, alike for all; of a row with several seeds, the mean
    over a sample of them, whose deviation from their mean is widened: that of n values is too narrow by the root of
    (n - 1) / n.
    """
    samples = resampled_srcc(np.concatenate(list(scores.values())), references, BOOTSTRAP_SEED)
    generator = np.random.default_rng([BOOTSTRAP_SEED, 1])
    found, start = {}, 0
    for name, values in scores.items():
        own = samples[:, start : start + len(values)]  # (R, seeds)
        drawn = generator.integers(len(values), size=own.shape)
        mean, wide = own.mean(axis=1), np.sqrt(len(values) / max(1, len(values) - 1))
        found[name] = mean + wide * (np.take_along_axis(own, drawn, axis=1).mean(axis=1) - mean)
        start += len(values)
    return found


def measure(scores: dict[str, np.ndarray], references: np.ndarray) -> list[dict[str, Any]]:
    """
    The rows of the table.

    Args:
        scores (`dict` of `np.ndarray` of shape `(num_seeds, num_pairs)`): Of every row.
        references (`np.ndarray` of shape `(num_pairs,)`): Mean ratings.
    """
    metrics = {name: [alignment_metrics(one, references) for one in values] for name, values in scores.items()}
    means = {
        name: {key: float(np.mean([one[key] for one in found])) for key in found[0]} for name, found in metrics.items()
    }
    samples = resample_rows(scores, references)
    table = []
    for name, mean in means.items():
        over = samples[name] - samples[RELEASED]
        table.append(
            {
                "system": name,
                "seeds": len(scores[name]),
                **{key: mean[key] for key in ("SRCC", "LCC", "KTAU", "MSE")},
                "SRCC of each seed": [one["SRCC"] for one in metrics[name]],
                "SRCC interval": interval(samples[name]),
                "of the ceiling": mean["SRCC"] / means[CEILING]["SRCC"],
                "of the ceiling, interval": interval(samples[name] / samples[CEILING]),
                "over the released recipe": mean["SRCC"] - means[RELEASED]["SRCC"],
                "over the released recipe, interval": interval(over),
            }
        )
    return table


def table_row(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table for people."""
    over = with_interval(row["over the released recipe"], row["over the released recipe, interval"])
    return {
        "system": row["system"],
        "seeds": str(row["seeds"]),
        "of the ceiling [95 %]": with_interval(row["of the ceiling"], row["of the ceiling, interval"]),
        "SRCC [95 %]": with_interval(row["SRCC"], row["SRCC interval"]),
        "over the released recipe [95 %]": "" if row["system"] == RELEASED else over,
        "LCC": f"{row['LCC']:.3f}",
        "KTAU": f"{row['KTAU']:.3f}",
        "MSE": f"{row['MSE']:.2f}",
    }


SUMMARY_COLUMNS = ("system", "seeds", "of the ceiling [95 %]", "over the released recipe [95 %]", "MSE")


def summary(results: dict[str, Any]) -> str:
    """The table that README.md and docs/evidence.md show."""
    lines = map(table_row, results["systems"])
    return markdown_table([{column: line[column] for column in SUMMARY_COLUMNS} for line in lines])


def settings_row(row: Row) -> dict[str, str]:
    """How a row was made: the start and all settings of each of its runs; with other seeds, only these differ."""
    runs = []
    for run in row.runs:
        settings = {"data": tiny.DATA[tiny.STAGES[run.stage]["stage"]], **tiny.STAGES[run.stage], **run.settings}
        runs.append(f"`{run.folder}` from `{run.start}`: {' '.join(tiny.flags(settings))}")
    form = "caption, sound" if row.runs[-1].folder.startswith(rows.PUBLISHED_FORM) else "sound, caption; likelihood"
    return {"system": row.name, "sequence": form, "runs": "; ".join(runs)}


def draw_forest(table: list[dict[str, Any]], title: str) -> bytes:
    """A PNG picture: each row's SRCC with its interval, and the ceiling as a line."""
    systems, ceiling = table[:-1], table[-1]["SRCC"]
    with styled_figure(7.0, 0.9 + 0.24 * len(systems)) as (figure, axes):
        for place, row in enumerate(reversed(systems)):
            low, high = row["SRCC interval"]
            colour = {RELEASED: ORANGE, rows.OURS: BLUE}.get(row["system"], GREY)
            axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
            axes.plot(row["SRCC"], place, "o", color=colour, markersize=4)
        axes.axvline(ceiling, color="black", linestyle="--", linewidth=0.8)
        axes.text(ceiling, len(systems) - 0.4, "ceiling", ha="center", va="bottom", fontsize=8)
        axes.set_yticks(range(len(systems)), [row["system"] for row in reversed(systems)])
        axes.set_xlabel(f"SRCC with the mean of four simulated listeners ({title}), 95 % interval")
        axes.grid(axis="x")
        return figure_bytes(figure)


def write_scores(file: Path, pairs: Dataset, scores: dict[str, np.ndarray]) -> None:
    """Every model's score for every pair, beside the listeners' mean."""
    columns = {
        name if len(values) == 1 else f"{name} ({seed})": one
        for name, values in scores.items()
        for seed, one in zip(rows.SEEDS, values, strict=False)
    }
    with open(file, "w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(["id", "average_score", *columns])
        for index, (id, reference) in enumerate(zip(pairs["id"][:], pairs["score"][:], strict=True)):
            writer.writerow([id, reference, *(f"{values[index]:.4f}" for values in columns.values())])


def as_markdown(name: str, results: dict[str, Any]) -> str:
    """The page of a world's results."""
    table = markdown_table([table_row(row) for row in results["systems"]])
    made = markdown_table([settings_row(row) for row in ROWS])
    title = f"# Ablation: {name}, {results['pairs']} synthetic pairs"
    page = f"{title}\n\n![Forest plot]({results['file']}.png)\n\n{table}\n\n{SEEDS_TOLD}\n"
    if shares := results.get("of the ceiling by split"):
        page += f"\n## Another generator\n\nShare of each split's own ceiling.\n\n{markdown_table(shares)}\n"
    return f"{page}\n## Settings\n\n{made}\n"


def shares_by_split(work: Path, world: Path) -> list[dict[str, str]]:
    """What another generator does to every row: its share of the ceiling, in each split of a test world."""
    found: dict[str, dict[str, str]] = {}
    for split in worlds.SPLITS:
        pairs = load_pairs(world, split)
        truth = true_alignments(world, pairs["id"][:])
        for row in measure(collect_scores(work, pairs, truth), np.array(pairs["score"][:])):
            share = with_interval(row["of the ceiling"], row["of the ceiling, interval"])
            found.setdefault(row["system"], {"system": row["system"]})[split] = share
    return list(found.values())[:-1]


def write_results(output: Path, name: str, work: Path, world: Path, split: str) -> None:
    """Measure all rows on a split of a world, and write tables, scores and the picture."""
    pairs = load_pairs(world, split)
    scores = collect_scores(work, pairs, true_alignments(world, pairs["id"][:]))
    file = name.replace(" ", "-")
    results = {
        "file": file,
        "pairs": len(pairs),
        "listeners": listeners_ceiling(pairs["ratings"][:]),
        "systems": measure(scores, np.array(pairs["score"][:])),
    }
    if split == "test":
        results["of the ceiling by split"] = shares_by_split(work, world)
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{file}.json").write_text(json.dumps(results, indent=2) + "\n")
    (output / f"{file}.md").write_text(as_markdown(name, results))
    (output / f"{file}.png").write_bytes(draw_forest(results["systems"], name))
    write_scores(output / f"{file}.csv", pairs, scores)
    typer.echo(as_markdown(name, results))


def write_choices(output: Path, work: Path) -> None:
    """Measure on development data what every row reaches at each learning rate."""
    pairs = load_pairs(work / tiny.DATA[3], "development")
    references = np.array(pairs["score"][:])
    found = {}
    for row in filter(lambda row: row.rates, ROWS):
        models = {rate: work / run.folder for rate, run in rows.choices(row).items()}
        scores = {rate: model_scores(folder, pairs, work / "cache") for rate, folder in models.items()}
        found[row.name] = {f"{rate:g}": alignment_metrics(one, references)["SRCC"] for rate, one in scores.items()}
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
        write_results(output, "development", work, work / tiny.DATA[3], "development")
    else:
        write_results(output, f"test world {seed:08x}", work, worlds.draw(work, seed), "test")


if __name__ == "__main__":
    try:
        typer.run(main)
    except ValueError as error:
        sys.exit(f"error: {error}")
