"""
Make a corpus in code, without a download: ten-second clips of sound events with captions, and rated pairs of a clip and
a caption in the shape of the XACLE challenge.

    python dataset_scripts/synthetic/synthesize.py -o data/synthetic --seed 0

writes `wav/` (FLAC, 16 kHz, mono, 16 bit), the captioned clips as `aac/` (train, validation) and the rated pairs as
`xacle/` (train, validation, development, test). Scenes of several events in development and in test hold two kinds of
event that never meet in training: make choices on development, then test once. Each dataset holds
`annotations.jsonl`: the scene of every clip and, for a rated pair, how its caption was made and its true alignment.

--rated-unseen adds splits with scenes like those of test, made by another generator: with other synthesis and a vocoder
(unseen_sounds), with other words (unseen_words), with a kind of event in each scene that training never has
(unseen_kinds), and with all three (unseen).

captions.py explains the alignment rule and the simulated listeners, events.py splits and scenes, sounds.py and
unseen.py the sounds, words.py the words.

Everything here is synthetic. It compares methods; it does not stand for human ratings.

Each clip depends only on the seed and its own number, so that the same command gives the same bytes with any number of
workers (and the same versions of numpy, scipy and libsndfile). The folder appears when it is complete; a killed run
goes on where it stopped.
"""

import hashlib
import json
import os
import shutil
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Annotated, Any

import captions
import events
import numpy as np
import scipy
import soundfile
import typer
from tqdm import tqdm

# The package is imported where it is needed: every worker imports this file too, and needs neither datasets nor torch.

CAPTIONS_PER_CLIP = 3
VALIDATION_SHARE = 0.05
SETTINGS_FILE = "synthesis.json"
OWN_ENTRIES = {"wav", "aac", "xacle", "README.md", SETTINGS_FILE}
SOURCES = ("synthesize.py", "captions.py", "events.py", "sounds.py", "unseen.py", "words.py")

RULE_CONSTANTS = ("SIMILAR_CREDIT", "OPPOSITE_AGREEMENT", "NEEDLESS_AGREEMENT", "WRONG_RELATION", "WRONG_ORDER_COST")


@dataclass(frozen=True)
class Clip:
    """The place of one clip in the corpus; with the seed, all that its content depends on."""

    dataset: str
    split: str
    index: int

    @property
    def id(self) -> str:
        """The clip's unique key in the corpus."""
        return f"synthetic-{self.dataset}-{self.split}-{self.index:06d}"

    @property
    def path(self) -> str:
        """The path of the sound below the corpus's folder."""
        return f"wav/{self.dataset}/{self.split}/{self.index:06d}.flac"

    def rng(self, seed: int, purpose: str) -> np.random.Generator:
        """Returns a random source for each purpose: one more draw for the sound must not change the caption."""
        return np.random.default_rng([seed, zlib.crc32(f"{self.dataset}/{self.split}/{purpose}".encode()), self.index])


def plan_clips(clips: int, rated: dict[str, int]) -> list[Clip]:
    """Lists all clips of a corpus with this many captioned clips, and this many rated ones for each split."""
    validation = min(clips, max(1, round(VALIDATION_SHARE * clips)))
    sizes = [("aac", "train", clips - validation), ("aac", "validation", validation)]
    sizes += [("xacle", split, size) for split, size in rated.items()]
    return [Clip(dataset, split, index) for dataset, split, size in sizes for index in range(size)]


def annotate(clip: Clip, seed: int) -> tuple[events.Scene, dict[str, Any]]:
    """Returns the scene of a clip, and its annotation as plain values."""
    split = events.split_named(clip.split)
    scene = events.sample_scene(clip.rng(seed, "scene"), split)
    annotation = {"id": clip.id, "audio": clip.path, "scene": events.scene_record(scene)}
    words = clip.rng(seed, "caption")
    if clip.dataset == "aac":
        return scene, {**annotation, "captions": several_captions(scene, words)}
    pairing, claim = captions.sample_claim(scene, split, words)
    alignment = captions.true_alignment(scene, claim)
    listener_ids, ratings = captions.rate(alignment, listener_pool(seed, clip.split), clip.rng(seed, "rating"))
    caption = captions.describe(claim, words, split.wording)
    told = {"caption": caption, "claim": events.scene_record(claim), "pairing": pairing}
    heard = {"alignment": round(alignment, 6), "ratings": ratings, "listener_ids": listener_ids}
    return scene, {**annotation, **told, **heard}


@lru_cache(maxsize=8)
def listener_pool(seed: int, split: str) -> list[captions.Listener]:
    """Returns the listeners of one split of the rated dataset."""
    return captions.sample_listeners(split, np.random.default_rng([seed, zlib.crc32(f"listeners/{split}".encode())]))


def several_captions(scene: events.Scene, rng: np.random.Generator) -> list[str]:
    """Returns `CAPTIONS_PER_CLIP` different true captions of a scene."""
    found: list[str] = []
    while len(found) < CAPTIONS_PER_CLIP:
        text = captions.describe(captions.faithful_claim(scene, rng), rng)
        if text.rstrip(".") not in [other.rstrip(".") for other in found]:
            found.append(text)
    return found


def render(clip: Clip, scene: events.Scene, seed: int) -> np.ndarray:
    """Returns the samples of a clip, int16 of shape `(samples,)`."""
    return events.render_clip(scene, clip.rng(seed, "sound"), events.split_named(clip.split).rendering)


def make_clip(clip: Clip, seed: int, folder: Path) -> dict[str, Any]:
    """Write a clip's sound below a folder, unless a killed run left it there; returns its annotation."""
    scene, annotation = annotate(clip, seed)
    path = folder / clip.path
    if not path.exists():
        unfinished = path.with_suffix(".unfinished")
        soundfile.write(unfinished, render(clip, scene, seed), events.SAMPLING_RATE, format="FLAC", subtype="PCM_16")
        unfinished.replace(path)
    return annotation


def make_clips(clips: list[Clip], seed: int, folder: Path, workers: int) -> Iterator[dict[str, Any]]:
    """Yields the annotations of all clips, in order, as their sounds are written."""
    for parent in {(folder / clip.path).parent for clip in clips}:
        parent.mkdir(parents=True, exist_ok=True)
    make = partial(make_clip, seed=seed, folder=folder)
    if workers == 1:
        yield from map(make, clips)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=end_with_parent) as pool:
        yield from pool.map(make, clips, chunksize=8)


def end_with_parent() -> None:
    """Make a worker end when the main process is killed; otherwise it would wait for work for ever."""
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def dataset_rows(annotations: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
    """Returns rows of the schema with sounds in a folder: one per caption of a captioned clip, one per rated pair."""
    rows = []
    for annotation in annotations:
        row = {"audio": str(folder / annotation["audio"]), "source": "synthetic"}
        if "captions" in annotation:
            texts = enumerate(annotation["captions"])
            rows += [{**row, "id": f"{annotation['id']}-{number}", "text": text} for number, text in texts]
            continue
        score = float(np.mean(annotation["ratings"]))
        rated = {key: annotation[key] for key in ("ratings", "listener_ids")}
        label = score / 5 - 1
        rows.append(
            {**row, "id": annotation["id"], "text": annotation["caption"], "label": label, "score": score, **rated}
        )
    return rows


def rating_statistics(annotations: list[dict[str, Any]]) -> dict[str, float]:
    """
    Returns for rated pairs: mean within-pair variance; SRCC of two against two listeners, mean of the three splits;
    SRCC of true alignment and mean rating, the best that any predictor can reach; mean and deviation of scores.
    """
    ratings = np.array([annotation["ratings"] for annotation in annotations], dtype=float)  # (pairs, 4)
    truths = [annotation["alignment"] for annotation in annotations]
    scores = ratings.mean(axis=1)
    halves = [([0, 1], [2, 3]), ([0, 2], [1, 3]), ([0, 3], [1, 2])]
    split_half = [scipy.stats.spearmanr(ratings[:, a].mean(1), ratings[:, b].mean(1)).statistic for a, b in halves]
    return {
        "pairs": len(ratings),
        "within-pair variance": round(float(ratings.var(axis=1, ddof=1).mean()), 3),
        "split-half SRCC": round(float(np.mean(split_half)), 3),
        "SRCC of the truth": round(float(scipy.stats.spearmanr(truths, scores).statistic), 3),
        "mean score": round(float(scores.mean()), 3),
        "deviation of scores": round(float(scores.std()), 3),
    }


def card(name: str, **values: Any) -> str:
    """Fills in the README.md of the corpus or of one of its datasets."""
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), keep_trailing_newline=True)
    return templates.get_template(f"{name}.md.jinja").render(values)


def aac_card(seed: int, splits: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the README.md of the captioned clips."""
    from modeling_xacle.data.tables import markdown_table

    sizes = [
        {"split": name, "clips": len(part), "rows": CAPTIONS_PER_CLIP * len(part)} for name, part in splits.items()
    ]
    told = {"kinds": events.KIND_NAMES, "largest_count": events.LARGEST_COUNT, "captions_per_clip": CAPTIONS_PER_CLIP}
    return card("aac", seed=seed, sizes=markdown_table(sizes), **told)


def xacle_card(seed: int, splits: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the README.md of the rated pairs."""
    from modeling_xacle.data.tables import markdown_table

    everything = [annotation for part in splits.values() for annotation in part]
    statistics = [{"split": name, **rating_statistics(part)} for name, part in (*splits.items(), ("all", everything))]
    kinds = Counter(name for annotation in everything for name in annotation["pairing"].split(" + "))
    return card(
        "xacle",
        seed=seed,
        rule=captions,
        statistics=markdown_table(statistics),
        pairings=markdown_table([{"caption": name, "pairs": count} for name, count in kinds.most_common()]),
        rule_text=captions.__doc__.split("-" * 18)[1].strip(),
        constants=markdown_table([{name: getattr(captions, name) for name in RULE_CONSTANTS}]),
    )


def write_datasets(
    clips: list[Clip], annotations: list[dict[str, Any]], seed: int, folder: Path, output: Path, embed_audio: bool
) -> None:
    """Write `aac/` and `xacle/` to a folder that will be moved to `output`, where the paths of sounds point."""
    from modeling_xacle.data.pairs import make_dataset, save_dataset

    sounds = folder if embed_audio else output  # what is embedded is read now
    for dataset, make_card in (("aac", aac_card), ("xacle", xacle_card)):
        splits: dict[str, list[dict[str, Any]]] = {}
        for clip, annotation in zip(clips, annotations, strict=True):
            if clip.dataset == dataset:
                splits.setdefault(clip.split, []).append(annotation)
        if not splits:
            continue
        lines = (json.dumps(annotation) + "\n" for part in splits.values() for annotation in part)
        save_dataset(
            {split: make_dataset(dataset_rows(part, sounds)) for split, part in splits.items()},
            folder / dataset,
            embed_audio=embed_audio,
            card=make_card(seed, splits),
            attachments={"annotations.jsonl": "".join(lines)},
            licence="mit",
        )


def fingerprint(output: Path, seed: int, clips: int, rated: dict[str, int], embed_audio: bool) -> dict[str, Any]:
    """Returns everything that the corpus's bytes depend on."""
    code = b"".join((Path(__file__).parent / name).read_bytes() for name in SOURCES)
    versions = {module.__name__: module.__version__ for module in (np, scipy, soundfile)}
    sizes = {"clips": clips, **{f"rated {split}": size for split, size in rated.items()}}
    return {
        "output": str(output),
        "seed": seed,
        "embedded": embed_audio,
        **sizes,
        "code": hashlib.sha256(code).hexdigest(),
        **versions,
    }


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Returns the fingerprint of the corpus in a folder; None if it is no corpus."""
    file = folder / SETTINGS_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def check_output(output: Path) -> None:
    """
    Refuse to replace what is no corpus, or a corpus to which somebody added files.

    Raises:
        ValueError: The output is one of these.
    """
    from modeling_xacle.data.files import is_free

    if is_free(output):
        return
    if not output.is_dir() or read_settings(output) is None:
        raise ValueError(f"{output}: exists and is not a synthetic corpus; choose another output.")
    added = sorted(entry.name for entry in output.iterdir() if entry.name not in OWN_ENTRIES)
    if added:
        raise ValueError(f"{output}: holds what would be lost, move it first: {', '.join(added)}.")


def synthesize(
    output: Path, seed: int, clips: int, rated: dict[str, int], workers: int, embed_audio: bool = False
) -> bool:
    """
    Make a corpus; it replaces an earlier one when it is complete.

    Args:
        output (`Path`): Its folder, absolute.
        seed (`int`): Seed of everything.
        clips (`int`): Captioned clips.
        rated (`dict`): Rated pairs of each split.
        workers (`int`): Processes.
        embed_audio (`bool`): Also put the sounds into the tables, once for each of their rows.

    Returns:
        False if this very corpus was there already.

    Raises:
        ValueError: The output holds something else.
    """
    from modeling_xacle.data.files import held, replace_folder, write_json, write_whole

    check_output(output)
    with held(output):
        settings, planned = fingerprint(output, seed, clips, rated, embed_audio), plan_clips(clips, rated)
        if read_settings(output) == settings and all((output / clip.path).is_file() for clip in planned):
            return False
        folder = output.with_name(f".{output.name}.partial")
        if folder.exists() and read_settings(folder) != settings:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SETTINGS_FILE, settings)
        made = make_clips(planned, seed, folder, workers)
        annotations = list(tqdm(made, desc="clips", unit="clip", total=len(planned), disable=None))
        write_datasets(planned, annotations, seed, folder, output, embed_audio)
        write_whole(folder / "README.md", card("corpus", settings_file=SETTINGS_FILE))
        replace_folder(folder, output)
    return True


def summary(output: Path) -> str:
    """Says what a corpus holds, and how its simulated listeners rate."""
    found = {file.parent.name: file.read_text(encoding="utf-8") for file in output.glob("*/annotations.jsonl")}
    made = {dataset: list(map(json.loads, lines.splitlines())) for dataset, lines in sorted(found.items())}
    lines = []
    if captioned := made.get("aac"):
        lines.append(f"aac: clips {len(captioned)}, captions {CAPTIONS_PER_CLIP * len(captioned)}")
    if rated := made.get("xacle"):
        lines.append("xacle: " + ", ".join(f"{name} {value}" for name, value in rating_statistics(rated).items()))
    return "\n".join(lines)


def draw_spectrograms(file: Path, seed: int) -> None:
    """
    Write an image of one clip for each kind of event, alone, up to three times: 10 s by 20 Hz to 8 kHz (mel scale).
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ValueError("--spectrograms needs matplotlib: pip install matplotlib") from error
    from modeling_xacle import XacleFeatureExtractor

    extractor = XacleFeatureExtractor()
    rows = -(-len(events.KINDS) // 6)
    figure, axes = pyplot.subplots(rows, 6, figsize=(15, 1.9 * rows), squeeze=False, layout="constrained")
    for axis, kind in zip(axes.flat, events.KINDS.values(), strict=False):
        scene = events.Scene((events.Event(kind.name, 1 if kind.is_continuous else min(3, kind.max_count)),), "alone")
        samples = events.render_clip(scene, Clip("spectrograms", kind.name, 0).rng(seed, "sound"))
        features = extractor(samples, events.SAMPLING_RATE)["input_features"][0]  # (998, 128)
        image = features[:996].reshape(166, 6, 64, 2).amax((1, 3)).T.numpy()  # (64, 166), few colours: a small file
        style = {"cmap": pyplot.get_cmap("magma", 16), "vmin": -1.1, "vmax": 0.7, "interpolation": "nearest"}
        axis.imshow(image, origin="lower", aspect="auto", **style)
        axis.set_title(kind.name, fontsize=11, pad=3)
        axis.set(xticks=[], yticks=[])
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{file.name}.unfinished")
    figure.savefig(unfinished, dpi=72, format="png")
    pyplot.close(figure)
    unfinished.replace(file)


Rated = Annotated[int, typer.Option(min=0, help="Rated pairs of this split, each with a clip of its own; 0: none.")]


def main(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder of the corpus, e.g. data/synthetic.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes another corpus of the same kind.")] = 0,
    clips: Annotated[int, typer.Option(min=0, help="Captioned clips; 0: none.")] = 6000,
    rated_train: Rated = 800,
    rated_validation: Rated = 400,
    rated_development: Rated = 400,
    rated_test: Rated = 800,
    rated_unseen: Annotated[
        int, typer.Option(min=0, help="Rated pairs of each of the splits by another generator; 0: none.")
    ] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes. The result does not depend on it.")] = os.cpu_count()
    or 1,
    embed_audio: Annotated[
        bool, typer.Option("--embed-audio", help="Put the sounds into the datasets too, not only their paths.")
    ] = False,
    spectrograms: Annotated[
        Path | None,
        typer.Option(help="Also (or, without --output, only) write this PNG: one clip of each kind of event."),
    ] = None,
) -> None:
    """
    Make a synthetic corpus: captioned clips (OUTPUT/aac) and pairs rated by simulated listeners (OUTPUT/xacle). It
    compares methods; it does not stand for human ratings.
    """
    if output is None and spectrograms is None:
        raise typer.BadParameter("give --output, --spectrograms or both")
    if output is not None:
        output = output.absolute()
        sizes = {
            "train": rated_train,
            "validation": rated_validation,
            "development": rated_development,
            "test": rated_test,
            **dict.fromkeys(events.UNSEEN_SPLITS, rated_unseen),
        }
        rated = {split: size for split, size in sizes.items() if size}
        if 1 in (clips, *rated.values()) or not (clips or rated):
            raise typer.BadParameter("ask for two clips or pairs at least, or for none (0), and not for none of all")
        made = synthesize(output, seed, clips, rated, workers, embed_audio)
        typer.echo(f"{output}: {'made' if made else 'already there, made with these settings'}\n{summary(output)}")
    if spectrograms is not None:
        draw_spectrograms(spectrograms.absolute(), seed)
        typer.echo(spectrograms)


if __name__ == "__main__":
    from modeling_xacle.cli.endings import plain_endings

    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(main)
    with plain_endings():
        app()
