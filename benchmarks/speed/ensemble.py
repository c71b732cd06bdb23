"""
Measure what an ensemble costs beside its members, each run by itself, on the CPU: from sound files to scores, and the
passes of the models alone, with features made before.

    python benchmarks/speed/ensemble.py
    python benchmarks/speed/ensemble.py --model runs/stage3 --model laion/clap-htsat-unfused

By default, the members are five variants of the bundled model, once with one frozen tower for all and once with five
that differ. The bundled model is small, so that what is not a pass of a model counts most there.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import torch
import typer

from modeling_xacle import DEFAULT_MODEL, XacleModel
from modeling_xacle.pipeline_xacle import AudioTextAlignmentPipeline
from modeling_xacle.scoring import join_members, load_scorer, make_sum

NUM_MEMBERS = 5


def make_sounds(folder: Path, count: int, rate: int, seconds: float = 10.0) -> list[Path]:
    """Writes noise at a rate in Hz to files: their paths."""
    generator, paths = np.random.default_rng(0), []
    for number in range(count):
        paths.append(folder / f"{number}.wav")
        soundfile.write(paths[-1], 0.1 * generator.normal(size=round(seconds * rate)), rate)
    return paths


def make_variants(folder: Path, one_tower: bool) -> list[Path]:
    """Saves variants of the bundled model, whose score heads, or also towers, differ: their folders."""
    paths = [folder / f"variant-{number}" for number in range(NUM_MEMBERS)]
    for number, path in enumerate(paths):
        shutil.copytree(DEFAULT_MODEL, path)
        model = XacleModel.from_pretrained(path)
        with torch.no_grad():
            for part in (model.score_head, *([] if one_tower else [model.audio_tower])):
                next(part.parameters()).mul_(1 + 0.01 * number)
        model.save_pretrained(path)
    return paths


def seconds_of(align: AudioTextAlignmentPipeline, pairs: list[dict[str, Any]], batch_size: int) -> tuple[float, float]:
    """Returns the time that a scorer takes for pairs, from files to scores, and that of its passes alone."""
    start = time.perf_counter()
    align(pairs, batch_size=batch_size)
    whole = time.perf_counter() - start
    items = [align.with_spectrograms(align.preprocess(pair)) for pair in pairs]
    start = time.perf_counter()
    for at in range(0, len(items), batch_size):
        align.forward(items[at : at + batch_size], pass_size=batch_size)
    return whole, time.perf_counter() - start


def measure(models: list[Path], sounds: list[Path], batch_size: int, repetitions: int) -> dict[str, Any]:
    """
    Returns, of the way from files to scores and of the passes alone, the median times of the members and of the
    ensemble in seconds, and the median over repetitions of the ensemble's time divided by the sum of the members'. Each
    repetition measures all, one after another; the first does not count.
    """
    pairs = [{"audio": str(path), "text": f"a sound like number {path.stem}"} for path in sounds]
    together = join_members(models)
    together.model.rule = make_sum(together, np.full(len(models), 1 / len(models)), 0.0)
    scorers = [*(load_scorer(model, "cpu") for model in models), together]
    times = np.array([[seconds_of(align, pairs, batch_size) for align in scorers] for _ in range(repetitions + 1)])[1:]
    found: dict[str, Any] = {"pairs": len(pairs), "front_ends": together.front_ends, "towers": together.towers}
    for name, rows in zip(("whole", "passes"), np.moveaxis(times, 2, 0), strict=True):  # 2 x (R, S)
        *members, ensemble = np.median(rows, axis=0).tolist()
        shares = rows[:, -1] / rows[:, :-1].sum(axis=1)
        found[name] = {"members": members, "ensemble": ensemble, "share_of_sum": float(np.median(shares))}
    return found


def cases(folder: Path, models: list[Path]) -> Iterator[tuple[str, list[Path]]]:
    """Yields names and members of what is measured."""
    if models:
        yield "given", models
        return
    for name, one_tower in (("one tower", True), ("five towers", False)):
        (folder / name).mkdir()
        yield name, make_variants(folder / name, one_tower)


def main(
    model: Annotated[list[str] | None, typer.Option(help="Folder or Hub id of a member; at least two.")] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Sounds of 10 s, each with a caption.")] = 16,
    rate: Annotated[int, typer.Option(min=8000, help="Rate of the sounds in Hz.")] = 16000,
    batch_size: Annotated[int, typer.Option(min=1, help="Pairs at a time.")] = 8,
    repetitions: Annotated[int, typer.Option(min=1, help="Measurements, after one that does not count.")] = 3,
) -> None:
    """Measure an ensemble beside its members."""
    with tempfile.TemporaryDirectory() as name:
        sounds = make_sounds(Path(name), pairs, rate)
        for case, models in cases(Path(name), [Path(path) if Path(path).is_dir() else path for path in model or []]):
            typer.echo(json.dumps({"case": case, **measure(models, sounds, batch_size, repetitions)}))


if __name__ == "__main__":
    typer.run(main)
