"""
What each stage and each loss brings, on the synthetic test set: the rows of the paper's table (arXiv 2602.00604), the
recipe of its released code, and the simulated listeners' ceiling, with 95 % bootstrap intervals.

    python benchmarks/ablation.py runs/tiny

makes what benchmarks/tiny.py makes, trains the other rows from the same parts, data and seed, and writes
benchmarks/results/ablation.{json,md} and ablation_scores.csv. Each row is trained by `run_stage.py`; a row that is done
is not done again, and one that was made otherwise is refused. The ratings are a program's: the table compares methods
and says nothing about human listeners.
"""

import csv
import json
import sys
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tiny
import torch
import typer
from datasets import Dataset
from steps import Step, do_steps
from transformers import AutoConfig, AutoModel, AutoProcessor, set_seed

from modeling_xacle.batches import PairCollator
from modeling_xacle.cards import markdown_table
from modeling_xacle.clap import ClapTeacher
from modeling_xacle.data import load_pairs
from modeling_xacle.feature_cache import AudioFeatureCache
from modeling_xacle.metrics import alignment_metrics, bootstrap_intervals, listeners_ceiling, paired_bootstrap

RESULTS = Path(__file__).parent / "results"
BATCH_SIZE = 64
OURS = "caption likelihood, stages 1 + 2 + 3"
RELEASED = "published sequence, stages 1 + 2, stage 3 as released"

# As in the released code: one-sided ListNet over the 16 pairs of one process, a frozen language model, and SpecAugment
# that never runs. Learning rate and epochs are ours, at which it does best: the released ones are for another size.
AS_RELEASED = {
    "train": "projector score_head",
    "learning_rate": 4e-5,
    "loss": "listnet",
    "temperature": 1.0,
    "one_sided": True,
    "list_scope": "local",
    "per_device_train_batch_size": 16,
    "mask_mel_bins": 0,
    "mask_frames": 0,
    "augmented_views": 0,
}


@dataclass(frozen=True)
class Run:
    """
    A training run of one row.

    Args:
        folder (`str`): Its output, below the work folder.
        stage (`str`): Of `tiny.STAGES`.
        start (`str`): Where it starts, below the work folder.
        settings (`dict`): What differs from the bundled model's.
    """

    folder: str
    stage: str
    start: str
    settings: dict[str, Any] = field(default_factory=dict)


def variant(name: str, **settings: Any) -> list[Run]:
    """Stage 3 of the bundled model, but for some settings."""
    return [Run(f"variants/{name}", "stage3", "stage2", settings)]


# Rows without stage 1 learn no captioning in stage 2 either; in the published sequence the sound comes too late for it.
NO_CAPTIONING = {"caption_weight": 0.0}
# Pseudo-labels of other kinds than the bundled model's: their folder, their clips and the share of the overlap.
LABELS = {
    "data/clap_published": (tiny.DATA[1], 0.0),
    "data/clap_unmixed": (tiny.DATA[1], tiny.OVERLAP_WEIGHT),
    "data/clap_cosines": (tiny.MIXED, 0.0),
}
PUBLISHED_LABELS = {"data": "data/clap_published"}
# Where stage 2 is left out, a score head by itself would read noise.
ALL_PARTS = {"train": tiny.ALL, "learning_rate": 4e-5}
SPEC_AUGMENT = {"mask_mel_bins": 4, "mask_frames": 30, "augmented_views": 4}
ROWS: dict[str, list[Run]] = {
    "published sequence, stage 3 only": [Run("published/only3", "stage3", "published/stage0", ALL_PARTS)],
    "published sequence, stages 2 + 3": [
        Run("published/from0_stage2", "stage2", "published/stage0", NO_CAPTIONING | PUBLISHED_LABELS),
        Run("published/from0_stage3", "stage3", "published/from0_stage2"),
    ],
    "published sequence, stages 1 + 2 + 3": [
        Run("published/stage2", "stage2", "published/stage1", NO_CAPTIONING | PUBLISHED_LABELS),
        Run("published/stage3", "stage3", "published/stage2"),
    ],
    RELEASED: [Run("published/released3", "stage3", "published/stage2", AS_RELEASED)],
    "caption likelihood, stage 3 only": [Run("only3", "stage3", "stage0", ALL_PARTS)],
    "caption likelihood, stages 2 + 3": [
        Run("from0_stage2", "stage2", "stage0", NO_CAPTIONING),
        Run("from0_stage3", "stage3", "from0_stage2"),
    ],
    "caption likelihood, stages 1 + 3": [Run("from1_stage3", "stage3", "stage1", ALL_PARTS)],
    OURS: [Run("stage3", "stage3", "stage2")],
    "ours without mixes in stage 2": [
        Run("unmixed/stage2", "stage2", "stage1", {"data": "data/clap_unmixed"}),
        Run("unmixed/stage3", "stage3", "unmixed/stage2"),
    ],
    "ours with the teacher's cosines as pseudo-labels": [
        Run("cosines/stage2", "stage2", "stage1", {"data": "data/clap_cosines"}),
        Run("cosines/stage3", "stage3", "cosines/stage2"),
    ],
    "ours, stage 3 as released": variant("released", **AS_RELEASED),
    "ours with SpecAugment": variant("spec_augment", **SPEC_AUGMENT),
    "ours with projector and language model trained in stage 3": variant("all_parts", **ALL_PARTS),
    "ours with ListNet": variant("listnet", loss="listnet"),
    "ours with ListNet, temperature 1": variant("listnet1", loss="listnet", temperature=1.0),
    "ours with one-sided ListNet": variant("one_sided", loss="listnet", one_sided=True),
    "ours with MSE": variant("mse", loss="mse"),
    "ours with clipped MSE + contrastive": variant("clipped", loss="clipped_contrastive"),
}
ENSEMBLE = ("caption likelihood, stages 2 + 3", OURS)


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


def model_scores(folder: Path, rows: Dataset, cache_dir: Path) -> np.ndarray:
    """Scores `(num_pairs,)` of a trained model, on 0-10."""
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    cache = AudioFeatureCache(cache_dir, model, processor)
    cache.fill([rows], model)
    collate = PairCollator(processor, cache=cache)
    scores = []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = collate(rows.select(range(start, min(start + BATCH_SIZE, len(rows)))).to_list())
        batch.pop("labels")
        with torch.no_grad():
            scores.append(model(**batch).scores)
    return torch.cat(scores).double().numpy()


def teacher_cosines(folder: Path, rows: Dataset) -> np.ndarray:
    """Cosines `(num_pairs,)` of the CLAP teacher, as they are."""
    teacher = ClapTeacher.from_pretrained(folder)
    audio = teacher.embed_audio([row["audio"] for row in rows])  # (P, D)
    text = teacher.embed_text(rows["text"][:])
    return (audio * text).sum(dim=1).double().cpu().numpy()


def true_alignments(corpus: Path, ids: list[str]) -> np.ndarray:
    """The rule's alignments `(num_pairs,)`, which listeners hear through their bias and noise."""
    lines = (corpus / "xacle/annotations.jsonl").read_text(encoding="utf-8").splitlines()
    alignments = {entry["id"]: entry["alignment"] for entry in map(json.loads, lines)}
    return np.array([alignments[id] for id in ids])


def plan(work: Path) -> list[Step]:
    """The steps of the bundled model, and those of the other rows."""
    steps = tiny.plan(work)
    for name in ("stage0", "stage1"):
        output = f"published/{name}"
        make = partial(without_likelihood, work / name, work / output)
        steps.append(Step(f"{output}/processor_config.json", ["without_likelihood", name], make))
    for output, (dataset, overlap_weight) in LABELS.items():
        steps.append(tiny.command_step(output, tiny.label_command(dataset, output, overlap_weight), work))
    planned = {step.folder for step in steps}
    for run in chain.from_iterable(ROWS.values()):
        if run.folder not in planned:
            command = tiny.stage_command(run.stage, run.folder, run.start, **run.settings)
            steps.append(tiny.command_step(f"{run.folder}/README.md", command, work))
    return steps


def collect_scores(work: Path, rows: Dataset) -> dict[str, np.ndarray]:
    """Scores `(num_pairs,)` of every row of the table."""
    scores = {"CLAP teacher alone": teacher_cosines(work / "teacher", rows)}
    for name, runs in ROWS.items():
        scores[name] = model_scores(work / runs[-1].folder, rows, work / "cache")
    scores["caption likelihood, mean of 2 + 3 and 1 + 2 + 3"] = np.mean([scores[name] for name in ENSEMBLE], axis=0)
    return scores


def measure(scores: dict[str, np.ndarray], references: np.ndarray, ceiling: float) -> list[dict[str, Any]]:
    """The rows of the table, of scores and references `(num_pairs,)`, compared with the released recipe."""
    table = []
    for name, values in scores.items():
        found, intervals = alignment_metrics(values, references), bootstrap_intervals(values, references)
        against = paired_bootstrap(values, scores[RELEASED], references)["SRCC"]
        table.append(
            {
                "system": name,
                **{metric: found[metric] for metric in ("SRCC", "LCC", "KTAU", "MSE")},
                "SRCC interval": intervals["SRCC"],
                "of the ceiling": found["SRCC"] / ceiling,
                "over the released recipe": against["difference"],
                "p": against["p_value"],
            }
        )
    return table


def as_markdown(table: list[dict[str, Any]], num_pairs: int) -> str:
    """The table for people."""
    rows = []
    for row in table:
        low, high = row["SRCC interval"]
        other = row["system"] != RELEASED
        rows.append(
            {
                "system": row["system"],
                "SRCC [95 %]": f"{row['SRCC']:.3f} [{low:.3f}, {high:.3f}]",
                "of the ceiling": f"{row['of the ceiling']:.3f}",
                "LCC": f"{row['LCC']:.3f}",
                "KTAU": f"{row['KTAU']:.3f}",
                "MSE": f"{row['MSE']:.2f}",
                "over the released recipe (p)": f"{row['over the released recipe']:+.3f} ({row['p']:.4f})"
                if other
                else "",
            }
        )
    title = f"# Ablation on {num_pairs} synthetic test pairs\n\nMade by `python benchmarks/ablation.py`.\n\n"
    return title + markdown_table(rows) + "\n"


def write_scores(file: Path, ids: list[str], references: np.ndarray, scores: dict[str, np.ndarray]) -> None:
    """Every system's score for every pair, beside the listeners' mean."""
    with open(file, "w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened, lineterminator="\n")
        writer.writerow(["id", "average_score", *scores])
        for index, id in enumerate(ids):
            writer.writerow([id, references[index], *(f"{values[index]:.5f}" for values in scores.values())])


def main(
    work: Annotated[Path, typer.Argument(help="Folder for everything that is made.")] = Path("runs/tiny"),
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the results.")] = RESULTS,
) -> None:
    """Train and measure every row of the table."""
    work = work.absolute()
    do_steps(work, plan(work))
    rows = load_pairs(work / "data/synthetic/xacle", "test")
    ids, references = rows["id"][:], np.array(rows["score"][:])
    truth = true_alignments(work / "data/synthetic", ids)
    ceiling = alignment_metrics(truth, references)["SRCC"]
    scores = collect_scores(work, rows)
    scores["listeners' ceiling: the true alignment"] = truth
    table = measure(scores, references, ceiling)
    output.mkdir(parents=True, exist_ok=True)
    listeners = listeners_ceiling(rows["ratings"][:])
    (output / "ablation.json").write_text(json.dumps({"listeners": listeners, "systems": table}, indent=2) + "\n")
    (output / "ablation.md").write_text(as_markdown(table, len(rows)))
    write_scores(output / "ablation_scores.csv", ids, references, scores)
    typer.echo(as_markdown(table, len(rows)))


if __name__ == "__main__":
    try:
        typer.run(main)
    except ValueError as error:
        sys.exit(f"error: {error}")
