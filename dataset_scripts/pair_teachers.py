"""
Teachers of a corpus. A contrastive model embeds each clip and each caption once, and every pair is a product; any other
model that can score is asked about each pair. Both keep what they computed in shards, for several processes and for
later runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoConfig

from modeling_xacle.checkpoints.fingerprints import digest_of
from modeling_xacle.checkpoints.loading import load_part
from modeling_xacle.judges.contrastive import ContrastiveTeacher, score_pairs
from modeling_xacle.judges.embeddings import ClipFeatures, EmbeddingShards, PairIndex, embed_captions, embed_clips
from modeling_xacle.judges.families import FAMILIES
from modeling_xacle.judges.language_model import LOADERS
from modeling_xacle.pipeline_xacle import AudioTextAlignmentPipeline
from modeling_xacle.scoring import TableOptions, load_scorer
from modeling_xacle.scoring.groups import NOT_FINITE
from modeling_xacle.scoring.scorer import scorer_settings


@dataclass
class Work:
    """
    How the work on a corpus is done.

    Args:
        index (`PairIndex`): All clips and captions.
        folder (`Path`): Where shards are kept, each teacher's in a folder of its own.
        state (`PartialState`): The processes that share the work.
        shard_size (`int`): Clips, captions or pairs in a file.
        batch_size (`int`): Of them in a pass of the teacher.
        num_workers (`int`): Processes that load audio, for each of the launched.
        dtype (`str`): Type that a language model, or a xacle model, computes in.
        questions (sequence of `str`, *optional*): What a language model is asked.
    """

    index: PairIndex
    folder: Path
    state: PartialState
    shard_size: int
    batch_size: int
    num_workers: int
    dtype: str = "float32"
    questions: Sequence[str] | None = None

    def missing(self, shards: EmbeddingShards) -> list[tuple[Path, range]]:
        """Returns this process's share of the files that have to be made, and the items of each."""
        return shards.missing(self.state.process_index, self.state.num_processes)


@dataclass
class Embedded:
    """
    A contrastive teacher's embeddings of a corpus.

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

    def broken(self) -> dict[int, str]:
        """Returns why clips have no embedding, by clip."""
        return self.clips.read()[1]

    def scores(self, pairs: torch.Tensor, device: torch.device) -> np.ndarray:
        """Returns the cosines of pairs of clip and caption: `(num_pairs, 2)` -> `(num_pairs,)`, in [-1, 1]."""
        audio, text = (shards.read()[0].to(device) for shards in (self.clips, self.captions))
        return score_pairs(audio, text, pairs).double().cpu().numpy()


@dataclass
class Asked:
    """
    A teacher's scores of the distinct pairs of a corpus.

    Args:
        teacher (`str`), processor (`str`): Folders or Hub ids.
        fingerprint (`str`): Digest of the model, its processor and its questions.
        pairs (`np.ndarray` of shape `(num_distinct, 2)`): Clip and caption.
        shards (`EmbeddingShards`): The score of each, on 0-10, as a vector of length 1.
    """

    teacher: str
    processor: str
    fingerprint: str
    pairs: np.ndarray
    shards: EmbeddingShards

    def broken(self) -> dict[int, str]:
        """Returns why clips have pairs without a score, by clip."""
        return {int(self.pairs[pair, 0]): reason for pair, reason in self.shards.read()[1].items()}

    def scores(self, pairs: torch.Tensor, device: torch.device) -> np.ndarray:
        """Returns the scores of pairs of clip and caption: `(num_pairs, 2)` -> `(num_pairs,)`, in [-1, 1]."""
        base = int(self.pairs[:, 1].max()) + 1
        known, wanted = (clips * base + captions for clips, captions in (self.pairs.T, pairs.numpy().T))
        return self.shards.read()[0][np.searchsorted(known, wanted), 0].numpy() / 5 - 1  # known are sorted


def check_kinds(teachers: Sequence[str], hard: int, questions: Sequence[str] | None) -> set[str]:
    """
    Returns the contrastive ones of some teachers.

    Raises:
        ValueError: Captions near in their text space are wanted and there is none, or no teacher can be asked.
    """
    kinds = {teacher: load_part(AutoConfig, teacher).model_type for teacher in teachers}
    embedding = {teacher for teacher, kind in kinds.items() if kind in FAMILIES}
    if hard and not embedding:
        raise ValueError("--hard needs a contrastive teacher (CLAP, PE-AV), whose text space tells what is near.")
    if questions and not LOADERS.keys() & set(kinds.values()):
        raise ValueError("--question is for audio language models, and no teacher is one.")
    return embedding


def embed_corpus(teacher: str, processor: str, work: Work) -> Embedded:
    """Let a teacher embed this process's share of the corpus; other processes' files may still be missing."""
    model = ContrastiveTeacher.from_pretrained(teacher, processor or None, work.state.device)
    index, place = work.index, work.folder / model.fingerprint[:16]
    clips = EmbeddingShards(place, "clips", index.clip_keys, work.shard_size)
    captions = EmbeddingShards(place, "captions", index.captions, work.shard_size)
    shown = work.state.is_main_process
    embed_clips(model, index.audio, work.missing(clips), work.batch_size, work.num_workers, shown)
    embed_captions(model, index.captions, work.missing(captions), work.batch_size, shown)
    return Embedded(teacher, processor, model.fingerprint, clips, captions)


def ask_corpus(teacher: str, processor: str, work: Work, pairs: np.ndarray) -> Asked:
    """
    Let a teacher score this process's share of pairs of clip and caption, of shape `(num_pairs, 2)`; other processes'
    files may still be missing.
    """
    is_asked = load_part(AutoConfig, teacher).model_type in LOADERS  # a xacle model is on 0-10 by itself
    options = {"map_score": True, "questions": work.questions} if is_asked else {}
    align = load_scorer(teacher, work.state.device, work.dtype, processor=processor or None, **options)
    fingerprint = digest_of(scorer_settings(align, TableOptions()))
    distinct = np.unique(pairs, axis=0)  # by clips: each is loaded once in a shard
    keys = [f"{work.index.clip_keys[clip]} {work.index.captions[caption]}" for clip, caption in distinct.tolist()]
    shards = EmbeddingShards(work.folder / fingerprint[:16], "pairs", keys, work.shard_size)
    missing = work.missing(shards)
    total = sum(len(items) for _, items in missing)
    shown = None if work.state.is_main_process else True
    with tqdm(total=total, desc="scoring pairs", unit="pair", disable=shown) as bar:
        for path, items in missing:
            scores, broken = ask_pairs(align, work, distinct[items.start : items.stop], bar)
            reasons = {items[pair]: reason for pair, reason in broken.items()}
            EmbeddingShards.write(path, scores.unsqueeze(1), reasons)
    return Asked(teacher, processor, fingerprint, distinct, shards)


def captioned_clip(index: PairIndex, groups: list[np.ndarray], group: int) -> dict[str, Any]:
    """Returns the clip that pairs of shape `(num_pairs, 2)` share, with their captions, as a pipeline's input."""
    audio = index.audio(int(groups[group][0, 0]))
    return {"audio": audio, "text": [index.captions[caption] for caption in groups[group][:, 1]]}


def ask_pairs(
    align: AudioTextAlignmentPipeline, work: Work, pairs: np.ndarray, bar: tqdm
) -> tuple[torch.Tensor, dict[int, str]]:
    """
    Scores pairs of clip and caption, of shape `(num_pairs, 2)`, sorted by clip.

    Returns:
        The scores, of shape `(num_pairs,)`, on 0-10; and why pairs have none (theirs are zero), by their places.
    """
    starts = np.flatnonzero(np.diff(pairs[:, 0], prepend=-1))
    groups = np.split(pairs, starts[1:])

    dataset = ClipFeatures(
        align.without_model().preprocess, partial(captioned_clip, work.index, groups), range(len(groups))
    )
    scores, broken = torch.zeros(len(pairs), dtype=torch.float64), {}
    places = iter(np.split(np.arange(len(pairs)), starts[1:]))
    for batch in DataLoader(dataset, work.batch_size, num_workers=work.num_workers, collate_fn=list):
        found = iter(align.forward([item for item in batch if not isinstance(item, str)], pass_size=work.batch_size))
        for item in batch:
            group = next(places).tolist()
            if isinstance(item, str):
                broken.update(dict.fromkeys(group, item))
            else:
                results = align.postprocess({**item, "scores": next(found)})
                scores[group] = torch.tensor([result["score"] for result in results], dtype=torch.float64)
            bar.update(len(group))
    unusable = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    return scores, broken | dict.fromkeys(unusable, NOT_FINITE)
