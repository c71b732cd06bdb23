"""
Make pseudo-labels for stage 2: captioned clips, with their own captions and with those of other clips, each pair with
the cosine that a CLAP teacher gives it.

    python dataset_scripts/label_with_clap.py data/aac --teacher runs/teacher -o data/clap_pseudo
    accelerate launch dataset_scripts/label_with_clap.py data/aac \
        --teacher sarulab-speech/human-clap-wsce-mae --processor laion/clap-htsat-fused -o data/clap_pseudo

Each clip and each distinct caption is embedded once, in shards that several processes share and that later runs reuse;
pairs are then scored by products of embeddings. Negatives are drawn within a split, for each caption of a clip: they
are captions of other clips, drawn at random or (--hard of them) from those near in the teacher's text space, but never
one with the same words as a caption of the clip. They keep the score that the teacher gives them. The draw depends on
--seed (and with --hard on the teacher); the number of processes, the batch size and the machine change scores only by
rounding, some 1e-7.

A label is the teacher's cosine, in [-1, 1]. With several teachers, each one's cosines are brought to mean 0 and
deviation 1 over all pairs and averaged; the average is scaled back by the mean of their deviations and shifted by the
mean of their means, so that equal teachers give their own cosines. If this leaves [-1, 1], all deviations from the mean
are shrunk by the factor that makes the farthest one fit, so the pairs keep the order of the average.

For several teachers, repeat --teacher, and --processor as often if it is needed ("" is the teacher's own).
"""

import io
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from accelerate import PartialState
from datasets import Dataset, DatasetDict, Features, concatenate_datasets
from matplotlib.figure import Figure
from negatives import Negatives, choose_negatives

from modeling_xacle.checkpoints.provenance import dataset_name
from modeling_xacle.cli.endings import plain_endings
from modeling_xacle.data.columns import FEATURES
from modeling_xacle.data.files import check_outputs, check_replaceable
from modeling_xacle.data.pairs import check_rows, dataset_licence, load_pairs, save_dataset
from modeling_xacle.data.tables import markdown_table
from modeling_xacle.judges.contrastive import ContrastiveTeacher, score_pairs, separation_auc
from modeling_xacle.judges.embeddings import EmbeddingShards, PairIndex, embed_captions, embed_clips

# After an interruption, one process may wait for another that has more left to do.
LONGEST_WAIT = timedelta(days=2)
QUANTILES = {"min": 0, "5 %": 5, "25 %": 25, "median": 50, "75 %": 75, "95 %": 95, "max": 100}


def combine_teachers(cosines: np.ndarray) -> np.ndarray:
    """
    Combine several teachers' cosines into one label, by the rule in this script's docstring.

    Args:
        cosines (`np.ndarray` of shape `(num_teachers, num_pairs)`): In [-1, 1].

    Returns:
        `np.ndarray` of shape `(num_pairs,)`, in [-1, 1]; a single teacher's cosines are unchanged.
    """
    if len(cosines) == 1:
        return cosines[0]
    means, deviations = cosines.mean(axis=1, keepdims=True), cosines.std(axis=1, keepdims=True)
    if not deviations.all():
        raise ValueError("A teacher gives every pair the same score and cannot be averaged with others; leave it out.")
    average = ((cosines - means) / deviations).mean(axis=0)
    center, offsets = means.mean(), deviations.mean() * average
    farthest = np.max(np.abs(offsets) / (1 - np.sign(offsets) * center))
    return center + offsets / max(1.0, farthest)


def describe(scores: np.ndarray) -> dict[str, float]:
    """Returns number, mean, deviation and quantiles of scores of shape `(num_pairs,)`."""
    if not len(scores):
        return {"pairs": 0}
    quantiles = np.percentile(scores, list(QUANTILES.values()))
    figures = {"mean": scores.mean(), "deviation": scores.std(), **dict(zip(QUANTILES, quantiles, strict=True))}
    return {"pairs": len(scores), **{name: round(float(value), 4) for name, value in figures.items()}}


@dataclass
class Labelled:
    """
    The pairs of a split: the first column of each array is a row's own caption, the others are its negatives.

    Args:
        rows (`np.ndarray` of shape `(num_rows,)`): Which rows of the split they come from.
        captions (`np.ndarray` of shape `(num_rows, 1 + count)`): Index of each pair's caption.
        cosines (`np.ndarray` of shape `(num_teachers, num_rows, 1 + count)`): Each teacher's scores.
        labels (`np.ndarray` of shape `(num_rows, 1 + count)`): The teachers' joint scores.
    """

    rows: np.ndarray
    captions: np.ndarray
    cosines: np.ndarray
    labels: np.ndarray

    def kinds(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Splits scores of shape `(num_rows, 1 + count)` into those of positives and of negatives, each flat."""
        return {"positives": scores[:, 0], "negatives": scores[:, 1:].flatten()}

    def auc(self, scores: np.ndarray) -> float:
        """Measures how well scores of shape `(num_rows, 1 + count)` tell positives from negatives."""
        return round(separation_auc(*self.kinds(scores).values()), 4)


@dataclass
class Embedded:
    """
    One teacher's embeddings of a corpus.

    Args:
        teacher (`str`), processor (`str`): Folders or Hub ids.
        fingerprint (`str`): Digest of the model and its processor.
        clips (`EmbeddingShards`), captions (`EmbeddingShards`): Embeddings in the order of the index.
    """

    teacher: str
    processor: str
    fingerprint: str
    clips: EmbeddingShards
    captions: EmbeddingShards


def embed_corpus(
    teacher: str,
    processor: str,
    index: PairIndex,
    folder: Path,
    state: PartialState,
    shard_size: int,
    batch_size: int,
    num_workers: int,
) -> Embedded:
    """Let a teacher embed this process's share of the corpus; other processes' files may still be missing."""
    model = ContrastiveTeacher.from_pretrained(teacher, processor, state.device)
    place = folder / model.fingerprint[:16]
    clips = EmbeddingShards(place, "clips", index.clip_keys, shard_size)
    captions = EmbeddingShards(place, "captions", index.captions, shard_size)
    share = {"process_index": state.process_index, "num_processes": state.num_processes}
    embed_clips(model, index.audio, clips.missing(**share), batch_size, num_workers, state.is_main_process)
    embed_captions(model, index.captions, captions.missing(**share), batch_size, state.is_main_process)
    return Embedded(teacher, processor, model.fingerprint, clips, captions)


def label_pairs(
    index: PairIndex,
    corpora: list[Embedded],
    unusable: set[int],
    how: Negatives,
    device: torch.device,
) -> dict[str, Labelled]:
    """
    Draw negatives and score every pair.

    Args:
        index (`PairIndex`): All clips and captions.
        corpora (list of `Embedded`): One for each teacher.
        unusable (set of `int`): Clips without an embedding; their rows are left out.
        how (`Negatives`): How negatives are drawn.
        device (`torch.device`): Where products are computed.

    Returns:
        The pairs of each split that still has any.
    """
    kept = {split: np.flatnonzero(~np.isin(rows[:, 0], list(unusable))) for split, rows in index.rows.items()}
    kept = {split: numbers for split, numbers in kept.items() if len(numbers)}
    if not kept:
        raise ValueError("No row is left: not one clip can be read.")
    pairs = {split: index.rows[split][numbers] for split, numbers in kept.items()}
    audio = [corpus.clips.read()[0].to(device) for corpus in corpora]
    text = [corpus.captions.read()[0].to(device) for corpus in corpora]
    # Side by side, the product of two captions is the sum of their cosines from all teachers.
    negatives = choose_negatives(index, pairs, torch.cat(text, dim=1), how)
    captions = {split: np.column_stack([pairs[split][:, 1], negatives[split]]) for split in pairs}
    clips = {split: np.repeat(pairs[split][:, 0], how.count + 1) for split in pairs}
    joint = torch.from_numpy(np.column_stack([np.concatenate([*x.values()], axis=None) for x in (clips, captions)]))
    cosines = np.stack([score_pairs(a, t, joint).double().cpu().numpy() for a, t in zip(audio, text, strict=True)])
    joint_labels = combine_teachers(cosines)
    ends = np.cumsum([captions[split].size for split in pairs])[:-1]
    parts = zip(np.split(cosines, ends, axis=1), np.split(joint_labels, ends), strict=True)
    return {
        split: Labelled(kept[split], array, part.reshape(len(part), *array.shape), labels.reshape(array.shape))
        for (split, array), (part, labels) in zip(captions.items(), parts, strict=True)
    }


def make_splits(index: PairIndex, labelled: dict[str, Labelled], default_source: str) -> DatasetDict:
    """Makes the dataset: each row is followed by its negatives, with its sound, its source and its id plus a number."""
    splits = DatasetDict()
    for split, part in labelled.items():
        original = index.splits[split]
        ids = original["id"][:]
        sources = original["source"][:] if "source" in original.column_names else [default_source] * len(original)
        count = part.captions.shape[1]
        pairs = original.select_columns(["audio"]).select(np.repeat(part.rows, count))
        columns = {
            "id": [ids[row] if n == 0 else f"{ids[row]}-negative{n}" for row in part.rows for n in range(count)],
            "text": [index.captions[caption] for caption in part.captions.flat],
            "label": part.labels.astype(np.float32).flatten(),
            "source": [sources[row] or default_source for row in part.rows for _ in range(count)],
            "is_negative": np.tile(np.arange(count) > 0, len(part.rows)),
        }
        labels = Dataset.from_dict(columns, features=Features({name: FEATURES[name] for name in columns}))
        splits[split] = concatenate_datasets([pairs, labels], axis=1)
    return splits


def make_report(corpora: list[Embedded], labelled: dict[str, Labelled], left_out: list[str]) -> dict[str, Any]:
    """Reports how labels are distributed, how well they and the teachers separate negatives, and what is left out."""
    teachers = []
    for number, corpus in enumerate(corpora):
        cosines = np.concatenate([part.cosines[number].flatten() for part in labelled.values()])
        teachers.append(
            {
                "teacher": corpus.teacher,
                "processor": corpus.processor,
                "fingerprint": corpus.fingerprint,
                "mean": round(float(cosines.mean()), 4),
                "deviation": round(float(cosines.std()), 4),
                "AUC": {split: part.auc(part.cosines[number]) for split, part in labelled.items()},
            }
        )
    labels = [
        {"split": split, "kind": kind, **describe(scores)}
        for split, part in labelled.items()
        for kind, scores in part.kinds(part.labels).items()
    ]
    separation = {split: part.auc(part.labels) for split, part in labelled.items()}
    return {"teachers": teachers, "labels": labels, "AUC": separation, "left_out": left_out}


def draw_histograms(labelled: dict[str, Labelled]) -> bytes:
    """Draws, as a PNG image, how the labels of positives and of negatives are distributed in each split."""
    figure = Figure(figsize=(7, 2.8 * len(labelled)), layout="constrained")
    axes = figure.subplots(len(labelled), squeeze=False).flat
    for axis, (split, part) in zip(axes, labelled.items(), strict=True):
        bins = np.linspace(part.labels.min(), part.labels.max() + 1e-6, 61)
        for kind, scores in part.kinds(part.labels).items():
            if len(scores):
                axis.hist(scores, bins, density=True, alpha=0.6, label=f"{kind} ({len(scores)})")
        axis.set(title=split, xlabel="label", ylabel="density")
        axis.legend()
    image = io.BytesIO()
    figure.savefig(image, dpi=100, format="png")
    return image.getvalue()


def summarize(report: dict[str, Any]) -> str:
    """Returns tables of the labels and of the teachers, in Markdown."""
    teachers = [{**row, "AUC": ", ".join(f"{s} {auc}" for s, auc in row["AUC"].items())} for row in report["teachers"]]
    separation = ", ".join(f"{split} {auc}" for split, auc in report["AUC"].items())
    return "\n".join(
        [
            markdown_table(report["labels"]),
            "",
            f"AUC of positives against negatives: {separation}; rows left out: {len(report['left_out'])}",
            "",
            markdown_table([{name: row[name] for name in ("teacher", "mean", "deviation", "AUC")} for row in teachers]),
        ]
    )


def make_card(dataset: str, how: Negatives, summary: str) -> str:
    """Returns the text of the dataset's README.md."""
    near = f"{how.hard} of them of the {how.hard_pool} nearest in the teacher's text space, "
    return (
        f"# Pseudo-labelled pairs: {dataset_name(dataset)}\n\n"
        f"The clips and captions of `{dataset}`. `label` is the cosine that a CLAP teacher gives a pair; no "
        f"listener was asked. For each caption of a clip, {how.count} captions of other clips of the split, drawn at "
        f"random ({near if how.hard else ''}seed {how.seed}), are added with labels found in the same way and "
        f"`is_negative`.\n\n{summary}\n\n![Distribution of the labels](labels.png)\n\n"
        "report.json has the same figures and lists what was left out. The terms of use of the captions and sounds "
        "stay in force.\n"
    )


def check_input(splits: DatasetDict, name: str, allow_missing: bool) -> None:
    """Refuse a dataset without rows, with repeated ids, empty captions or, unless allowed, missing clips."""
    if not any(map(len, splits.values())):
        raise ValueError(f"{name}: has no rows.")
    problems = [
        f"{split}: {problem}"
        for split, dataset in splits.items()
        for problem in check_rows(dataset, check_files=not allow_missing)
    ]
    if problems:
        remedy = "" if allow_missing else " (--allow-missing leaves out rows whose clip is gone)"
        raise ValueError(f"{name}: {len(problems)} problems{remedy}:\n" + "\n".join(f"  {line}" for line in problems))


def find_unusable(
    index: PairIndex, corpora: list[Embedded], name: str, allow_missing: bool
) -> tuple[set[int], list[str]]:
    """
    Find the clips that have no embedding, and make a line for each of their rows.

    Raises:
        ValueError: There are such clips, which is not allowed.
    """
    reasons = {clip: reason for corpus in corpora for clip, reason in corpus.clips.read()[1].items()}
    lines = [
        f"{split}: {index.splits[split][row]['id']}: {reasons[clip]}"
        for split, rows in index.rows.items()
        for row, clip in enumerate(rows[:, 0].tolist())
        if clip in reasons
    ]
    if lines and not allow_missing:
        raise ValueError(
            f"{name}: {len(lines)} rows have a broken clip; repair or remove them, or leave them out with "
            "--allow-missing:\n" + "\n".join(f"  {line}" for line in lines)
        )
    return set(reasons), lines


def match_processors(teachers: list[str], processors: list[str]) -> list[tuple[str, str]]:
    """Pairs each teacher with the processor named for it, or with itself."""
    if processors and len(processors) != len(teachers):
        raise ValueError(
            f'{len(teachers)} teachers and {len(processors)} processors: name one for each, "" for its own, or none.'
        )
    return [(teacher, name or teacher) for teacher, name in zip(teachers, processors or teachers, strict=True)]


def main(
    dataset: Annotated[str, typer.Argument(help="Folder or Hub id of captioned clips, as prepare_aac.py writes them.")],
    teacher: Annotated[list[str], typer.Option(help="CLAP model, folder or Hub id; may be repeated.")],
    processor: Annotated[
        list[str] | None, typer.Option(help="Its processor, folder or Hub id. Default: the teacher's own.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the dataset.")] = Path("data/clap_pseudo"),
    negatives: Annotated[int, typer.Option(min=0, help="Captions of other clips for each caption of a clip.")] = 3,
    hard: Annotated[int, typer.Option(min=0, help="How many of these are near in the teacher's text space.")] = 0,
    hard_pool: Annotated[int, typer.Option(min=1, help="With --hard: draw from so many of the nearest.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the negatives.")] = 0,
    embeddings: Annotated[
        Path | None, typer.Option(help="Folder of embeddings to continue and keep. Default: OUTPUT_embeddings.")
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Clips or captions in a file of embeddings.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips or captions in a pass of the teacher.")] = 16,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that load audio, for each of the launched.")] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out rows whose clip is gone or broken.")
    ] = False,
    embed_audio: Annotated[
        bool,
        typer.Option("--embed-audio", help="Put the sounds into the dataset, for each pair, not only their paths."),
    ] = False,
) -> None:
    """Score captioned clips, with their own captions and with those of others, by CLAP teachers."""
    names = match_processors(teacher, processor or [])
    if not hard <= min(negatives, hard_pool):
        raise ValueError(f"--hard {hard} is more than --negatives {negatives} or --hard-pool {hard_pool}.")
    check_outputs([output], [dataset, *teacher])
    check_replaceable(output)
    how = Negatives(negatives, hard, hard_pool, seed)
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=LONGEST_WAIT)
    splits = load_pairs(dataset)
    check_input(splits, dataset, allow_missing)
    index = PairIndex(splits)
    if state.is_main_process:
        typer.echo(
            f"{len(index.clip_keys)} clips, {len(index.captions)} captions, {state.num_processes} processes", err=True
        )
    folder = embeddings or output.with_name(f"{output.name}_embeddings")
    sizes = (shard_size, batch_size, num_workers)
    corpora = [embed_corpus(*name, index, folder, state, *sizes) for name in names]
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    unusable, left_out = find_unusable(index, corpora, dataset, allow_missing)
    labelled = label_pairs(index, corpora, unusable, how, state.device)
    report = make_report(corpora, labelled, left_out)
    card = make_card(dataset, how, summarize(report))
    attachments = {
        "report.json": json.dumps(report, indent=2, ensure_ascii=False),
        "labels.png": draw_histograms(labelled),
    }
    pairs = make_splits(index, labelled, Path(dataset).name)
    save_dataset(pairs, output, embed_audio, card, attachments, dataset_licence(dataset))
    typer.echo(f"{summarize(report)}\n\n{output}")


if __name__ == "__main__":
    with plain_endings():
        typer.run(main)
