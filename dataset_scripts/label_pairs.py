"""
Make pseudo-labels for stage 2: captioned clips, with their own captions and with those of other clips, each pair with
the score that a teacher gives it, or several teachers together.

    python dataset_scripts/label_pairs.py data/aac --teacher runs/teacher -o data/clap_pseudo
    accelerate launch dataset_scripts/label_pairs.py data/aac \
        --teacher sarulab-speech/human-clap-wsce-mae --processor laion/clap-htsat-fused \
        --teacher Qwen/Qwen2-Audio-7B-Instruct --processor "" --average rank --dtype bfloat16 -o data/clap_pseudo

A teacher is any model that `xacle score` takes. A contrastive one (CLAP, PE-AV) embeds each clip and each distinct
caption once, and pairs are products of embeddings. Any other, such as an audio language model that is asked yes or no,
scores each distinct pair. Embeddings and scores are kept in shards that several processes share and that later runs
reuse. Negatives are drawn within a split, for each caption of a clip: they are captions of other clips, drawn at random
or (--hard of them) from those near in the contrastive teachers' text space, but never one with the same words as a
caption of the clip. They keep the score that the teachers give them. The draw depends on --seed (and with --hard on the
teacher); the number of processes, the batch size and the machine change scores only by rounding, some 1e-7.

A label is in [-1, 1]: a cosine as it is, a share of yes as 2 * share - 1, a score of a xacle model as score / 5 - 1.
Several teachers are on scales of their own, so they are brought to one before they are averaged (--average):

- zscore: each one's scores are brought to mean 0 and deviation 1 over all pairs; the average is scaled back by the mean
  of their deviations and shifted by the mean of their means, so that equal teachers give their own scores. If this
  leaves [-1, 1], all deviations from the mean are shrunk by the factor that makes the farthest one fit, so the pairs
  keep the order of the average.
- rank: each one's scores become their ranks among all pairs, ties sharing theirs, from -1 for the lowest to 1. For
  teachers that crowd at the ends of their scale, as language models do.

For several teachers, repeat --teacher, and --processor as often if it is needed ("" is the teacher's own).
"""

import io
import json
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import typer
from accelerate import PartialState
from datasets import Dataset, DatasetDict, Features, concatenate_datasets
from matplotlib.figure import Figure
from negatives import Negatives, choose_negatives
from pair_teachers import Asked, Embedded, Work, ask_corpus, check_kinds, embed_corpus

from modeling_xacle.checkpoints.provenance import dataset_name
from modeling_xacle.cli.endings import plain_endings
from modeling_xacle.cli.options import Dtype, Question
from modeling_xacle.data.columns import FEATURES
from modeling_xacle.data.files import check_outputs, check_replaceable
from modeling_xacle.data.pairs import check_rows, dataset_licence, load_pairs, save_dataset
from modeling_xacle.data.tables import markdown_table
from modeling_xacle.evaluation.ensemble import combine
from modeling_xacle.judges.contrastive import separation_auc
from modeling_xacle.judges.embeddings import PairIndex

Average = Literal["zscore", "rank"]
# After an interruption, one process may wait for another that has more left to do.
LONGEST_WAIT = timedelta(days=2)
QUANTILES = {"min": 0, "5 %": 5, "25 %": 25, "median": 50, "75 %": 75, "95 %": 95, "max": 100}


def combine_teachers(scores: np.ndarray, average: Average = "zscore") -> np.ndarray:
    """
    Combine several teachers' scores into one label, by the rules in this script's docstring.

    Args:
        scores (`np.ndarray` of shape `(num_teachers, num_pairs)`): In [-1, 1].
        average (`str`): `"zscore"` or `"rank"`.

    Returns:
        `np.ndarray` of shape `(num_pairs,)`, in [-1, 1]; a single teacher's scores are unchanged.

    Raises:
        ValueError: A teacher gives every pair the same score.
    """
    if len(scores) == 1:
        return scores[0]
    if (scores == scores[:, :1]).all(axis=1).any():
        raise ValueError("A teacher gives every pair the same score and cannot be averaged with others; leave it out.")
    if average == "rank":
        return combine(scores, "rank") / 5 - 1
    center = scores.mean()
    offsets = combine(scores, "zscore") - center
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
        scores (`np.ndarray` of shape `(num_teachers, num_rows, 1 + count)`): Each teacher's scores.
        labels (`np.ndarray` of shape `(num_rows, 1 + count)`): The teachers' joint scores.
    """

    rows: np.ndarray
    captions: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def kinds(self, scores: np.ndarray) -> dict[str, np.ndarray]:
        """Splits scores of shape `(num_rows, 1 + count)` into those of positives and of negatives, each flat."""
        return {"positives": scores[:, 0], "negatives": scores[:, 1:].flatten()}

    def auc(self, scores: np.ndarray) -> float:
        """Measures how well scores of shape `(num_rows, 1 + count)` tell positives from negatives."""
        return round(separation_auc(*self.kinds(scores).values()), 4)


@dataclass
class Drawn:
    """
    Pairs that wait for their scores.

    Args:
        rows (dict of `np.ndarray` of shape `(num_rows,)`): Which rows of each split they come from.
        clips (dict of `np.ndarray` of shape `(num_rows,)`): The clip of each.
        captions (dict of `np.ndarray` of shape `(num_rows, 1 + count)`): A row's own caption, then its negatives.
    """

    rows: dict[str, np.ndarray]
    clips: dict[str, np.ndarray]
    captions: dict[str, np.ndarray]

    def pairs(self) -> np.ndarray:
        """Returns clip and caption of all pairs, of shape `(num_pairs, 2)`, split by split and row by row."""
        clips = [np.repeat(self.clips[split], array.shape[1]) for split, array in self.captions.items()]
        return np.column_stack([np.concatenate(clips), np.concatenate([*self.captions.values()], axis=None)])

    def without(self, unusable: set[int]) -> "Drawn":
        """
        Returns the pairs whose clip is usable; a split that has none is left out.

        Raises:
            ValueError: There are none.
        """
        kept = {split: ~np.isin(clips, list(unusable)) for split, clips in self.clips.items()}
        kept = {split: rows for split, rows in kept.items() if rows.any()}
        if not kept:
            raise ValueError("No row is left: not one clip can be read.")
        parts = (self.rows, self.clips, self.captions)
        return Drawn(*({split: part[split][rows] for split, rows in kept.items()} for part in parts))


def draw_pairs(
    index: PairIndex, embedded: list[Embedded], unusable: set[int], how: Negatives, device: torch.device
) -> Drawn:
    """
    Draw negatives, the same in every process.

    Args:
        index (`PairIndex`): All clips and captions.
        embedded (list of `Embedded`): The contrastive teachers; they tell which captions are near.
        unusable (set of `int`): Clips without an embedding; their rows are left out.
        how (`Negatives`): How negatives are drawn.
        device (`torch.device`): Where near captions are looked for.

    Returns:
        The pairs of each split that still has any.
    """
    rows = {split: np.arange(len(pairs)) for split, pairs in index.rows.items()}
    clips, captions = ({split: pairs[:, side] for split, pairs in index.rows.items()} for side in (0, 1))
    own = Drawn(rows, clips, {split: array[:, None] for split, array in captions.items()}).without(unusable)
    # Side by side, the product of two captions is the sum of their cosines from all teachers.
    texts = [corpus.captions.read()[0].to(device) for corpus in embedded] if how.hard else [torch.empty(0, 0)]
    pairs = {split: np.column_stack([own.clips[split], array]) for split, array in own.captions.items()}
    negatives = choose_negatives(index, pairs, torch.cat(texts, dim=1), how)
    own.captions = {split: np.column_stack([array, negatives[split]]) for split, array in own.captions.items()}
    return own


def label_corpus(
    drawn: Drawn, teachers: list[Embedded | Asked], device: torch.device, average: Average
) -> dict[str, Labelled]:
    """
    Score every pair.

    Args:
        drawn (`Drawn`): The pairs, of usable clips only.
        teachers (list): Who scores them.
        device (`torch.device`): Where products are computed.
        average (`str`): As for [`combine_teachers`].

    Returns:
        The pairs of each split.
    """
    pairs = torch.from_numpy(drawn.pairs())
    scores = np.stack([teacher.scores(pairs, device) for teacher in teachers])
    joint_labels = combine_teachers(scores, average)
    ends = np.cumsum([array.size for array in drawn.captions.values()])[:-1]
    parts = zip(np.split(scores, ends, axis=1), np.split(joint_labels, ends), strict=True)
    return {
        split: Labelled(drawn.rows[split], array, part.reshape(len(part), *array.shape), labels.reshape(array.shape))
        for (split, array), (part, labels) in zip(drawn.captions.items(), parts, strict=True)
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


def make_report(corpora: list[Embedded | Asked], labelled: dict[str, Labelled], left_out: list[str]) -> dict[str, Any]:
    """Reports how labels are distributed, how well they and the teachers separate negatives, and what is left out."""
    teachers = []
    for number, corpus in enumerate(corpora):
        scores = np.concatenate([part.scores[number].flatten() for part in labelled.values()])
        teachers.append(
            {
                "teacher": corpus.teacher,
                "processor": corpus.processor,
                "fingerprint": corpus.fingerprint,
                "mean": round(float(scores.mean()), 4),
                "deviation": round(float(scores.std()), 4),
                "AUC": {split: part.auc(part.scores[number]) for split, part in labelled.items()},
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
        f"The clips and captions of `{dataset}`. `label`, in [-1, 1], is what the teachers below give a pair; no "
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
    index: PairIndex, corpora: list[Embedded | Asked], name: str, allow_missing: bool
) -> tuple[set[int], list[str]]:
    """
    Find the clips that have no embedding or no score, and make a line for each of their rows.

    Raises:
        ValueError: There are such clips, which is not allowed.
    """
    reasons = {clip: reason for corpus in corpora for clip, reason in corpus.broken().items()}
    lines = [
        f"{split}: {index.splits[split][row]['id']}: {reasons[clip]}"
        for split, rows in index.rows.items()
        for row, clip in enumerate(rows[:, 0].tolist())
        if clip in reasons
    ]
    if lines and not allow_missing:
        raise ValueError(
            f"{name}: {len(lines)} rows have a clip without a score; repair or remove them, or leave them out with "
            "--allow-missing:\n" + "\n".join(f"  {line}" for line in lines)
        )
    return set(reasons), lines


def score_corpus(
    names: list[tuple[str, str]], work: Work, how: Negatives, dataset: str, allow_missing: bool
) -> tuple[Drawn, list[Embedded | Asked], list[str]]:
    """
    Let all teachers do this process's share, then wait for the others.

    Args:
        names (list of `tuple[str, str]`): Each teacher and its processor.
        work (`Work`): What there is to do.
        how (`Negatives`): How negatives are drawn.
        dataset (`str`), allow_missing (`bool`): As for [`find_unusable`].

    Returns:
        The pairs whose clips all teachers could score, the teachers in order, and a line for each row left out.

    Raises:
        ValueError: As for [`find_unusable`]; or an option fits no teacher.
    """
    embedding = check_kinds([teacher for teacher, _ in names], how.hard, work.questions)
    done: dict[tuple[str, str], Embedded | Asked] = {}
    done |= {name: embed_corpus(*name, work) for name in names if name[0] in embedding}
    work.state.wait_for_everyone()
    embedded = list(done.values())
    unusable, _ = find_unusable(work.index, embedded, dataset, allow_missing)
    drawn = draw_pairs(work.index, embedded, unusable, how, work.state.device)
    pairs = drawn.pairs()
    done |= {name: ask_corpus(*name, work, pairs) for name in names if name not in done}
    work.state.wait_for_everyone()
    unusable, left_out = find_unusable(work.index, list(done.values()), dataset, allow_missing)
    return drawn.without(unusable), [done[name] for name in names], left_out


def match_processors(teachers: list[str], processors: list[str]) -> list[tuple[str, str]]:
    """Pairs each teacher with the processor named for it, if one is."""
    if processors and len(processors) != len(teachers):
        raise ValueError(
            f'{len(teachers)} teachers and {len(processors)} processors: name one for each, "" for its own, or none.'
        )
    return list(zip(teachers, processors or [""] * len(teachers), strict=True))


def main(
    dataset: Annotated[str, typer.Argument(help="Folder or Hub id of captioned clips, as prepare_aac.py writes them.")],
    teacher: Annotated[list[str], typer.Option(help="Model that can score, folder or Hub id; may be repeated.")],
    processor: Annotated[
        list[str] | None, typer.Option(help="Its processor, folder or Hub id. Default: the teacher's own.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the dataset.")] = Path("data/clap_pseudo"),
    negatives: Annotated[int, typer.Option(min=0, help="Captions of other clips for each caption of a clip.")] = 3,
    average: Annotated[Average, typer.Option(help="How several teachers are brought to one scale.")] = "zscore",
    question: Question = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision of teachers that are asked.")] = Dtype.float32,
    hard: Annotated[int, typer.Option(min=0, help="How many of these are near in the teacher's text space.")] = 0,
    hard_pool: Annotated[int, typer.Option(min=1, help="With --hard: draw from so many of the nearest.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the negatives.")] = 0,
    embeddings: Annotated[
        Path | None,
        typer.Option(help="Folder of embeddings and scores to continue and keep. Default: OUTPUT_embeddings."),
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Clips, captions or pairs in a file of these.")] = 1024,
    batch_size: Annotated[int, typer.Option(min=1, help="Clips, captions or pairs in a pass of the teacher.")] = 16,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that load audio, for each of the launched.")] = 0,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out rows whose clip is gone or broken.")
    ] = False,
    embed_audio: Annotated[
        bool,
        typer.Option("--embed-audio", help="Put the sounds into the dataset, for each pair, not only their paths."),
    ] = False,
) -> None:
    """Score captioned clips, with their own captions and with those of others, by teachers."""
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
    work = Work(index, folder, state, shard_size, batch_size, num_workers, dtype.value, question)
    drawn, teachers, left_out = score_corpus(names, work, how, dataset, allow_missing)
    if not state.is_main_process:
        return
    labelled = label_corpus(drawn, teachers, state.device, average)
    report = make_report(teachers, labelled, left_out)
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
