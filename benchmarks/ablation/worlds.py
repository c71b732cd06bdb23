"""
Measure a model on a fresh test world: synthetic pairs from a seed on which nothing was trained or chosen.

    python benchmarks/ablation/worlds.py runs/worlds --seed 1f2e3d4c

draws the world (3,000 rated pairs in the split `test`, and 1,000 in each split from another generator), scores it with
the bundled model or --model, and says which share of the listeners' ceiling the scores reach: their SRCC with the mean
ratings, divided by the true alignment's. Intervals are 95 % bootstrap intervals over pairs.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tiny
import torch
import typer
from datasets import Dataset
from scipy.stats import rankdata
from transformers import AutoModel, AutoProcessor

from modeling_xacle import DEFAULT_MODEL
from modeling_xacle.cli.endings import plain_endings
from modeling_xacle.data.pairs import load_pairs
from modeling_xacle.data.tables import check_table_suffix, markdown_table, write_table
from modeling_xacle.evaluation.metrics import alignment_metrics
from modeling_xacle.evaluation.resampling import resample_indices
from modeling_xacle.training.collators import PairCollator
from modeling_xacle.training.feature_cache import AudioFeatureCache

SPLITS = ("test", "unseen_sounds", "unseen_words", "unseen_kinds", "unseen")  # of dataset_scripts/synthetic/events.py
SIZES = {"clips": 0, "rated-train": 0, "rated-validation": 0, "rated-development": 0}
TEST_PAIRS, UNSEEN_PAIRS = 3000, 1000
BATCH_SIZE = 64
RESAMPLES = 2000


def read_seed(text: str) -> int:
    """Reads a seed in hexadecimal digits, as in a commit's hash."""
    try:
        return int(text, 16)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: give hexadecimal digits, such as the first eight of a commit") from error


def draw(work: Path, seed: int) -> Path:
    """Returns the folder of a seed's rated pairs, below the work folder; draws the world unless it is there."""
    folder = work / "worlds" / f"{seed:08x}"
    sizes = {**SIZES, "rated-test": TEST_PAIRS, "rated-unseen": UNSEEN_PAIRS}
    work.mkdir(parents=True, exist_ok=True)
    tiny.run(tiny.script_command("synthetic/synthesize.py", "-o", folder, "--seed", seed, *tiny.flags(sizes)), work)
    return folder / "xacle"


def true_alignments(pairs: Path, ids: list[str]) -> np.ndarray:
    """Returns the rule's alignments `(num_pairs,)`, to which listeners add their bias and noise."""
    lines = (pairs / "annotations.jsonl").read_text(encoding="utf-8").splitlines()
    alignments = {entry["id"]: entry["alignment"] for entry in map(json.loads, lines)}
    return np.array([alignments[id] for id in ids])


def model_scores(folder: str | Path, rows: Dataset, cache_dir: Path) -> np.ndarray:
    """Returns a trained model's scores `(num_pairs,)`, on 0-10."""
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


def standard_ranks(values: np.ndarray) -> np.ndarray:
    """Returns ranks along the last axis as unit vectors of mean 0, (..., N): their products are rank correlations."""
    ranks = rankdata(values, axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    return ranks / np.maximum(np.linalg.norm(ranks, axis=-1, keepdims=True), 1e-9)  # constants give 0


def resampled_srcc(scores: np.ndarray, references: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns SRCC `(RESAMPLES, num_systems)` of scores `(num_systems, num_pairs)` on the same samples of the pairs."""

    def samples() -> Iterator[np.ndarray]:
        """Yields the correlations `(num_systems,)` on each sample."""
        for indices in resample_indices(len(references), RESAMPLES, seed):  # (resamples, N) at a time
            for sample in indices:
                yield standard_ranks(scores[:, sample]) @ standard_ranks(references[sample])

    return np.stack(list(samples()))


def interval(samples: np.ndarray) -> list[float]:
    """Returns the interval of the middle 95 % of samples `(num_samples,)`."""
    return np.quantile(samples, (0.025, 0.975)).tolist()


def measure(scores: np.ndarray, truth: np.ndarray, references: np.ndarray) -> dict[str, Any]:
    """Computes the metrics and the share of the ceiling, with intervals; all arguments are of shape `(num_pairs,)`."""
    found, ceiling = alignment_metrics(scores, references), alignment_metrics(truth, references)["SRCC"]
    samples = resampled_srcc(np.stack([scores, truth]), references)
    return {
        **found,
        "SRCC interval": interval(samples[:, 0]),
        "ceiling": ceiling,
        "of the ceiling": found["SRCC"] / ceiling,
        "of the ceiling, interval": interval(samples[:, 0] / samples[:, 1]),
    }


def with_interval(value: float, ends: list[float]) -> str:
    """Formats a figure for people: "0.773 [0.754, 0.790]"."""
    return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def score_world(model: str | Path, world: Path, cache_dir: Path) -> list[dict[str, Any]]:
    """Returns a row for each pair of a world: its split, key, mean rating, true alignment and the model's score."""
    found = []
    for split in SPLITS:
        pairs = load_pairs(world, split)
        ids, ratings = pairs["id"][:], pairs["score"][:]
        columns = zip(ids, ratings, true_alignments(world, ids), model_scores(model, pairs, cache_dir), strict=True)
        found += [
            {"split": split, "id": id, "average_score": rating, "alignment": alignment, "score": round(score, 4)}
            for id, rating, alignment, score in columns
        ]
    return found


def world_table(rows: list[dict[str, Any]]) -> str:
    """Returns a table for people of what the scores of [`score_world`] reach on each split."""
    table = []
    for split in SPLITS:
        own = [row for row in rows if row["split"] == split]
        scores, truth, references = (
            np.array([float(row[name]) for row in own]) for name in ("score", "alignment", "average_score")
        )
        figures = measure(scores, truth, references)
        table.append(
            {
                "split": split,
                "pairs": str(figures["N"]),
                "of the ceiling [95 %]": with_interval(figures["of the ceiling"], figures["of the ceiling, interval"]),
                "SRCC [95 %]": with_interval(figures["SRCC"], figures["SRCC interval"]),
                "ceiling": f"{figures['ceiling']:.3f}",
                "MSE": f"{figures['MSE']:.2f}",
            }
        )
    return markdown_table(table)


def main(
    work: Annotated[Path, typer.Argument(help="Folder for everything that is made.")],
    seed: Annotated[str, typer.Option(help="Of the world, in hexadecimal digits.")],
    model: Annotated[str, typer.Option(help="Folder or Hub id of the model.")] = DEFAULT_MODEL,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write every pair's score to this table (CSV, ...).")
    ] = None,
) -> None:
    """Draw a test world and measure a model on it."""
    if output is not None:
        check_table_suffix(output)
    work = work.absolute()
    rows = score_world(model, draw(work, read_seed(seed)), work / "cache")
    if output is not None:
        write_table(output, rows)
    typer.echo(world_table(rows))


if __name__ == "__main__":
    with plain_endings():
        typer.run(main)
