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

import hashlib
import sys
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

from modeling_xacle.clap import PairIndex
from modeling_xacle.data import check_replaceable, dataset_licence, load_pairs, make_dataset, save_dataset
from modeling_xacle.feature_extraction_xacle import load_waveform
from modeling_xacle.provenance import dataset_name

SAMPLING_RATE, MAX_SECONDS = 16000, 10.0
JOINTS = (" while ", " and ", " as ")
# Far more than a corpus with any two clips that fit needs.
MOST_DRAWS = 1000


@dataclass(frozen=True)
class Mix:
    """Two clips, by their numbers in the corpus, to be heard at once, and the captions of their sum."""

    clips: tuple[int, int]
    captions: tuple[str, ...]


def captions_of_clips(index: PairIndex) -> list[list[str]]:
    """All captions of each clip."""
    captions: list[list[str]] = [[] for _ in index.clip_keys]
    for clip, caption in np.concatenate(list(index.rows.values())).tolist():
        captions[clip].append(index.captions[caption])
    return captions


def join_captions(first: str, second: str, joint: str) -> str:
    """One sentence of two: without the full stop of the first, and without the capital of the second."""
    return first.rstrip(" .") + joint + second[:1].lower() + second[1:]


def draw_mix(captions: list[list[str]], max_words: int, generator: np.random.Generator) -> Mix:
    """
    Two clips, of the captions of all, whose joined captions are all short enough.

    Raises:
        ValueError: There seem to be none.
    """
    for _ in range(MOST_DRAWS):
        first, second = generator.choice(len(captions), 2, replace=False).tolist()
        joints = generator.choice(JOINTS, size=min(len(captions[first]), len(captions[second])))
        joined = tuple(map(join_captions, captions[first], captions[second], joints.tolist()))
        if max(len(caption.split()) for caption in joined) <= max_words:
            return Mix((first, second), joined)
    raise ValueError(f"No two clips have captions of {max_words} words together; raise --max-words.")


def write_sum(sounds: list[Any], file: Path) -> None:
    """
    Write the sum of sounds that [`load_waveform`] takes, in [-1, 1]; shorter ones end in silence. A file of this name
    has this content already, and is never seen half written.
    """
    if file.exists():
        return
    waveforms = [load_waveform(sound, None, SAMPLING_RATE, MAX_SECONDS)[0] for sound in sounds]
    mix = torch.nn.utils.rnn.pad_sequence(waveforms).sum(dim=1)  # (samples, 2) -> (samples,)
    mix = mix / max(1.0, float(mix.abs().max()))
    unfinished = file.with_suffix(".unfinished")
    soundfile.write(unfinished, mix.numpy(), SAMPLING_RATE, format="FLAC", subtype="PCM_16")
    unfinished.replace(file)


def write_mixes(mixes: list[Mix], index: PairIndex, folder: Path, num_workers: int) -> list[dict[str, Any]]:
    """
    Write the sounds of all mixes below a folder, named by what they are made of, so that no run changes the sounds of
    another; a row of the schema for each of their captions.
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = ["\n".join(index.clip_keys[clip] for clip in mix.clips) for mix in mixes]
    files = [folder.absolute() / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.flac" for key in keys]
    sounds = {file: [index.audio(clip) for clip in mix.clips] for file, mix in zip(files, mixes, strict=True)}
    with ThreadPoolExecutor(num_workers) as pool:
        written = pool.map(write_sum, sounds.values(), sounds)
        list(tqdm(written, desc="mixes", unit="clip", total=len(sounds), disable=None))
    return [
        {"id": f"mix-{number:07d}-{place}", "audio": str(file), "text": caption, "source": "mix"}
        for number, (mix, file) in enumerate(zip(mixes, files, strict=True))
        for place, caption in enumerate(mix.captions)
    ]


def make_card(dataset: str, count: int, max_words: int, seed: int) -> str:
    """Text of the dataset's README.md."""
    return (
        f"# Clips and their mixes: {dataset_name(dataset)}\n\n"
        f"All rows of `{dataset}`, and in the split `train` {count} sums of "
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
    index = PairIndex(DatasetDict({name: rows for name, rows in splits.items() if name == "train"}))
    if len(index.clip_keys) < 2:
        raise ValueError(f"{dataset}: needs a split train of two clips or more; it has {', '.join(splits)}.")
    captions, generator = captions_of_clips(index), np.random.default_rng(seed)
    drawn = [draw_mix(captions, max_words, generator) for _ in range(mixes)]
    added = make_dataset(write_mixes(drawn, index, output.with_name(f"{output.name}_sounds"), num_workers))
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
