"""
More captioned clips: two clips of a corpus heard at once, under the captions of both.

    python dataset_scripts/mix_clips.py data/aac -o data/aac_mixed --mixes 10000
    python dataset_scripts/label_with_clap.py data/aac_mixed --teacher runs/teacher -o data/clap_pseudo

Sounds that were never recorded together meet in the mixes, so a model cannot learn which sounds go with which. The
dataset holds all rows of the corpus and, in its split `train`, the mixes: the waveforms of two train clips are added as
they are (and lowered together if their sum would clip), and each caption of the one is joined with one of the other by
a word such as "while". Clips are drawn at random; two whose joined captions are longer than --max-words are drawn anew,
since a sum of crowded scenes is no scene that anybody would describe. The sounds of the mixes go to OUTPUT_sounds, as
16 kHz mono FLAC.
"""

import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import torch
import typer
from datasets import DatasetDict, concatenate_datasets
from tqdm import tqdm

from modeling_xacle.data import check_replaceable, dataset_licence, load_pairs, make_dataset, save_dataset
from modeling_xacle.feature_extraction_xacle import load_waveform

SAMPLING_RATE, MAX_SECONDS = 16000, 10.0
JOINTS = (" while ", " and ", " as ")
# Far more than a corpus with any two clips that fit needs.
MOST_DRAWS = 1000


@dataclass(frozen=True)
class Clip:
    """A clip of the corpus: its sound, as `datasets.Audio(decode=False)` gives it, and its captions."""

    audio: dict[str, Any]
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Mix:
    """Two clips to be heard at once, and the captions of their sum."""

    parts: tuple[Clip, Clip]
    captions: tuple[str, ...]


def collect_clips(rows: Any) -> list[Clip]:
    """The clips of a split, each once, with all of their captions."""
    captions: dict[Any, list[str]] = defaultdict(list)
    sounds = {}
    for row in rows:
        key = row["audio"]["bytes"] or row["audio"]["path"]
        sounds[key] = row["audio"]
        captions[key].append(row["text"])
    return [Clip(sounds[key], tuple(texts)) for key, texts in captions.items()]


def join_captions(first: str, second: str, joint: str) -> str:
    """One sentence of two: without the full stop of the first, and without the capital of the second."""
    return first.rstrip(" .") + joint + second[:1].lower() + second[1:]


def draw_mix(clips: list[Clip], max_words: int, generator: np.random.Generator) -> Mix:
    """
    Two clips whose joined captions are all short enough.

    Raises:
        ValueError: There seem to be none.
    """
    for _ in range(MOST_DRAWS):
        first, second = (clips[number] for number in generator.choice(len(clips), 2, replace=False))
        joints = generator.choice(JOINTS, size=min(len(first.captions), len(second.captions)))
        joined = tuple(map(join_captions, first.captions, second.captions, joints.tolist()))
        if max(len(caption.split()) for caption in joined) <= max_words:
            return Mix((first, second), joined)
    raise ValueError(f"No two clips have captions of {max_words} words together; raise --max-words.")


def add_waveforms(parts: tuple[Clip, Clip]) -> torch.Tensor:
    """The sum of two sounds, of shape `(samples,)`, in [-1, 1]; the shorter one ends in silence."""
    waveforms = [load_waveform(part.audio, None, SAMPLING_RATE, MAX_SECONDS)[0] for part in parts]
    mix = torch.nn.utils.rnn.pad_sequence(waveforms).sum(dim=1)  # (samples, 2) -> (samples,)
    return mix / max(1.0, float(mix.abs().max()))


def write_mix(mix: Mix, file: Path) -> None:
    """Write the sound of a mix."""
    soundfile.write(file, add_waveforms(mix.parts).numpy(), SAMPLING_RATE, format="FLAC", subtype="PCM_16")


def write_mixes(mixes: list[Mix], folder: Path, num_workers: int) -> list[dict[str, Any]]:
    """Write the sounds of all mixes below a folder; a row of the schema for each of their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder.absolute() / f"{number:07d}.flac" for number in range(len(mixes))]
    with ThreadPoolExecutor(num_workers) as pool:
        list(tqdm(pool.map(write_mix, mixes, files), desc="mixes", unit="clip", total=len(mixes), disable=None))
    return [
        {"id": f"mix-{file.stem}-{number}", "audio": str(file), "text": caption, "source": "mix"}
        for mix, file in zip(mixes, files, strict=True)
        for number, caption in enumerate(mix.captions)
    ]


def make_card(dataset: str, count: int, max_words: int, seed: int) -> str:
    """Text of the dataset's README.md."""
    return (
        f"# Captioned clips, and mixes of them\n\nAll rows of `{dataset}`, and in the split `train` {count} sums of "
        f"two of its clips each, under joined captions of at most {max_words} words (seed {seed}); their `source` is "
        "`mix`. The terms of use of the captions and sounds stay in force.\n"
    )


def main(
    dataset: Annotated[str, typer.Argument(help="Folder or Hub id of captioned clips, as prepare_aac.py writes them.")],
    mixes: Annotated[int, typer.Option(min=1, help="How many clips to add.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the dataset.")] = Path("data/aac_mixed"),
    max_words: Annotated[int, typer.Option(min=2, help="Words of the longest joined caption.")] = 18,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same mixes.")] = 0,
    num_workers: Annotated[int, typer.Option(min=1, help="Threads. The result does not depend on it.")] = 4,
) -> None:
    """Add sums of two clips to the train split of captioned clips."""
    check_replaceable(output)
    splits = load_pairs(dataset)
    if "train" not in splits or len(clips := collect_clips(splits["train"])) < 2:
        raise ValueError(f"{dataset}: needs a split train of two clips or more; it has {', '.join(splits)}.")
    generator = np.random.default_rng(seed)
    drawn = [draw_mix(clips, max_words, generator) for _ in range(mixes)]
    added = make_dataset(write_mixes(drawn, output.with_name(f"{output.name}_sounds"), num_workers))
    save_dataset(
        DatasetDict({**splits, "train": concatenate_datasets([splits["train"], added])}),
        output,
        card=make_card(dataset, mixes, max_words, seed),
        licence=dataset_licence(dataset),
    )
    typer.echo(f"{mixes} mixes, {len(added)} captions added to {len(splits['train'])}\n{output}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
