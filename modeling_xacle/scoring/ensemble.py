"""Makes ensembles of models: joins members, scores the pairs of a table with all of them, saves the folder."""

import hashlib
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..checkpoints.provenance import commit_of
from ..data.columns import REFERENCE_COLUMNS, SCORE_RANGE, SOURCE_COLUMNS, find_column
from ..data.files import check_outputs, is_free, saving, whole_folder
from ..data.sources import Clip, PairSource
from ..judges.ensemble import WeightedSum, XacleEnsemble, XacleEnsembleConfig
from ..judges.ensemble_pipeline import EnsemblePipeline
from ..judges.gate import apply_gate, fit_gate
from ..judges.judge_pipeline import JudgePipeline
from ..judges.loading import check_member, load_scorer, member_fingerprint
from .groups import ClipLoader, PassSize, groups_of
from .options import TableOptions

OWN_SCALE = "0-10"
COPIES = "members"  # folder of copied members in the ensemble's
METHODS = {
    "mean": "the mean of their scores",
    "zscore": "the mean of their standardised scores",
    "nnls": "non-negative least squares",
    "gate": "a gate that weighs them for each pair",
}
CARD = """---
tags:
- audio-text-alignment
- audio
---

# Ensemble for audio-text alignment

Scores how well a sound matches a caption: the scores of several models, combined by
{method}. It is loaded where modeling-xacle is installed, and its members where they are.
Each keeps its own licence.

| member | model | revision | scale | weight |
|---|---|---|---|---|
{members}

Fitted on {fitted_on}.
Each figure of the ensemble below is of scores by a rule that was fitted without the clip, or without the generator; the
rule that is stored was fitted on all pairs. The best member was chosen on the same pairs.

```text
{figures}```
"""


class MemberScores(NamedTuple):
    """
    What the members of an ensemble say of N pairs.

    Fields:
        scores (`np.ndarray` of shape `(num_members, N)`): Each on its own scale.
        features (`np.ndarray` of shape `(N, feature_size)`): Of each clip, the mean of each distinct tower's states.
        clips (`list[str]` of length N): The digest of each pair's sound.
    """

    scores: np.ndarray
    features: np.ndarray
    clips: list[str]


def join_members(models: Sequence[str | Path], device: str | torch.device = "cpu") -> EnsemblePipeline:
    """
    Loads models as the members of an ensemble that has no rule yet.

    Args:
        models (sequence): At least 2 folders or Hub ids of models that [`load_scorer`] takes.
        device (`str` or `torch.device`): As for [`load_scorer`].

    Raises:
        ValueError: There are fewer than two, one is named twice or is an ensemble itself, or one cannot be loaded.
    """
    names = [str(Path(model).resolve()) if Path(model).is_dir() else str(model) for model in models]
    if len(set(names)) < max(2, len(names)):
        raise ValueError(f"{', '.join(map(str, models))}: an ensemble takes at least 2 models, each named once.")
    short = [Path(name).name for name in names]
    are_plain = len(set(short)) == len(short) and "ensemble" not in short  # reports name the ensemble so
    members, scorers = [], []
    for name, called in zip(names, short if are_plain else names, strict=True):
        check_member(name)
        scorer, revision = load_scorer(name, "cpu"), commit_of(name)
        scale = scorer.settings["scale"] if isinstance(scorer, JudgePipeline) else OWN_SCALE
        fingerprint = member_fingerprint(scorer, name, revision)
        members.append(
            {"name": called, "model": name, "revision": revision, "scale": scale, "fingerprint": fingerprint}
        )
        scorers.append(scorer)
    model = XacleEnsemble(XacleEnsembleConfig(members=members))
    model.attach(scorers)
    if device == "auto":
        device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return EnsemblePipeline(model=model, task="audio-text-alignment", device=torch.device(device))


def check_scales(config: XacleEnsembleConfig) -> None:
    """Refuses members on different scales, whose plain mean has no meaning."""
    scales = {member["name"]: member["scale"] for member in config.members}
    if len(set(scales.values())) > 1:
        told = ", ".join(f"{name} scores by {scale}" for name, scale in scales.items())
        raise ValueError(f"The mean of different scales has no meaning ({told}); take zscore, nnls or gate.")


def _groups(pairs: PairSource, digests: dict[int, str]) -> Iterator[list[tuple[int, Clip]]]:
    """Yields clips to be scored together, and notes the digests of sounds that the table holds itself."""
    for number, block in enumerate(pairs.blocks()):
        for group in groups_of(pairs.clips(block)):
            for clip in group:
                if isinstance(clip.audio, Mapping):
                    digest = hashlib.sha256(clip.audio["bytes"]).hexdigest()
                    digests.update(dict.fromkeys((row.number for row in clip.rows), digest))
            yield [(number, clip) for clip in group]


def score_members(align: EnsemblePipeline, pairs: PairSource, options: TableOptions | None = None) -> MemberScores:
    """
    Scores the pairs of a table with every member of an ensemble, with shared work.

    Args:
        align (`EnsemblePipeline`): As [`join_members`] returns it.
        pairs (`PairSource`): The table.
        options (`TableOptions`, *optional*): Its `batch_size` and `workers` count.

    Raises:
        ValueError: A row cannot be scored, or a score is not a number; a fit leaves no row out.
    """
    options = options or TableOptions()
    pass_size, digests = PassSize(align.device, options.batch_size), {}
    rows: dict[int, tuple[torch.Tensor, torch.Tensor, str]] = {}
    align.collects = True
    bar = tqdm(total=pairs.num_rows, desc="scoring with all members", unit="pair", disable=None)
    with bar:
        loader = DataLoader(
            ClipLoader(align, options.call_arguments),
            batch_sampler=_groups(pairs, digests),
            num_workers=options.workers,
            collate_fn=list,
        )
        for loaded in loader:
            _check_rows(pairs, loaded)
            found = pass_size.forward(align, [item for _, _, item, _ in loaded])
            for (_, clip, _, _), (scores, features) in zip(loaded, found, strict=True):
                for row, of_row in zip(clip.rows, scores, strict=True):
                    if not of_row.isfinite().all():
                        raise ValueError(f"{pairs.name}, line {row.line}: a member's score is not a finite number.")
                    digest = clip.state["sha256"] if clip.state else digests[row.number]
                    rows[row.number] = (of_row, features, digest)
                bar.update(len(clip.rows))
    align.collects = False
    scores, features, clips = zip(*(rows[number] for number in range(pairs.num_rows)), strict=True)
    return MemberScores(torch.stack(scores, dim=1).double().numpy(), torch.stack(features).numpy(), list(clips))


def _check_rows(pairs: PairSource, loaded: list[tuple[int, Clip, Any, list[str | None]]]) -> None:
    """Refuses clips of which a row cannot be scored; arguments as [`ClipLoader`] returns them."""
    failed = [pair for _, clip, _, reasons in loaded for pair in zip(clip.rows, reasons, strict=True) if pair[1]]
    if failed:
        row, reason = min(failed, key=lambda pair: pair[0].line)
        raise ValueError(f"{pairs.name}, line {row.line}: {reason} A fit leaves no row out.")


def read_ratings(pairs: PairSource, column: str | None = None) -> np.ndarray:
    """
    Returns the mean ratings `(N,)` of a table's pairs, by default from the first of `REFERENCE_COLUMNS` that is there.

    Raises:
        ValueError: There is no such column, or a value is no number from 0 to 10.
    """
    column = find_column(pairs.columns, [column] if column else REFERENCE_COLUMNS, pairs.name)
    low, high = SCORE_RANGE
    ratings = []
    for line, row in pairs.rows():
        try:
            rating = float(row[column])
        except (TypeError, ValueError):
            rating = math.nan
        if not low <= rating <= high:
            raise ValueError(f"{pairs.name}, line {line}: {column} is {row[column]!r}, not a rating from 0 to 10.")
        ratings.append(rating)
    return np.array(ratings)


def read_generators(pairs: PairSource) -> list[str]:
    """
    Returns what made each clip of a table, from its column `source` or `model_id`.

    Raises:
        ValueError: There is no such column, or a pair has none.
    """
    column = find_column(pairs.columns, SOURCE_COLUMNS, pairs.name)
    generators = [(line, str(row[column] or "").strip()) for line, row in pairs.rows()]
    missing = next((line for line, generator in generators if not generator), None)
    if missing is not None:
        raise ValueError(f"{pairs.name}, line {missing}: {column} is empty, so the clip's generator is not known.")
    return [generator for _, generator in generators]


def make_sum(align: EnsemblePipeline, weights: np.ndarray, offset: float) -> WeightedSum:
    """Returns a weighted sum as a rule for an ensemble's members: `weights` are of shape `(num_members,)`."""
    rule = WeightedSum(align.model.config)
    rule.load_state_dict({"weights": torch.tensor(weights).float(), "offset": torch.tensor(offset).float()})
    return rule


def check_new(output: str | Path, models: Sequence[str | Path]) -> None:
    """Refuses a folder that exists, or lies in a member's or the other way round."""
    if not is_free(Path(output)):
        raise ValueError(f"{output}: exists already; choose another output.")
    check_outputs([output], [model for model in models if Path(model).is_dir()])


def ensemble_card(align: EnsemblePipeline, method: str, rule: torch.nn.Module, fitted_on: str, figures: str) -> str:
    """
    Returns the text of an ensemble's README.md.

    Args:
        align (`EnsemblePipeline`): The members.
        method (`str`): How the rule came about.
        rule (`torch.nn.Module`): A [`WeightedSum`], whose weights are told, or a [`Gate`].
        fitted_on (`str`): The name of the table, and how many pairs and clips it has.
        figures (`str`): What was measured out of fold.
    """
    weights = [""] * len(align.members)
    if isinstance(rule, WeightedSum):
        weights = [f"{weight:.4g}" for weight in rule.weights.tolist()]
    lines = [
        f"| {member['name']} | {member['model']} | {member['revision'] or ''} | {member['scale']} | {weight} |"
        for member, weight in zip(align.model.config.members, weights, strict=True)
    ]
    return CARD.format(method=METHODS[method], members="\n".join(lines), fitted_on=fitted_on, figures=figures)


def save_ensemble(
    output: str | Path, align: EnsemblePipeline, method: str, rule: torch.nn.Module, card: str, copies: bool = False
) -> None:
    """
    Save an ensemble as a folder that `pipeline`, [`load_scorer`] and `xacle score --model` load where this package is
    installed.

    Args:
        output (`str` or `Path`): A folder that does not exist, or is empty.
        align (`EnsemblePipeline`): The members.
        method (`str`): How the rule came about.
        rule (`torch.nn.Module`): A [`WeightedSum`] or [`Gate`] for these members.
        card (`str`): Markdown text of README.md.
        copies (`bool`): Copy the folders of members into this one; those on the Hub are pinned by their commits.

    Raises:
        ValueError: The output exists, or is a member.
    """
    output, members = Path(output).absolute(), [dict(member) for member in align.model.config.members]
    check_new(output, [member["model"] for member in members])
    with whole_folder(output) as partial, saving(partial):
        for number, member in enumerate(members):
            if copies and Path(member["model"]).is_dir():
                inside = f"{COPIES}/{number}"
                shutil.copytree(member["model"], partial / inside)
                member["model"] = inside
        sizes = {"feature_size": 0}
        if hasattr(rule, "layers"):  # a gate
            size = rule.layers[0]
            sizes = {"feature_size": size.in_features - len(members), "gate_size": size.out_features}
        model = XacleEnsemble(XacleEnsembleConfig(members=members, method=method, **sizes))
        model.rule.load_state_dict(rule.state_dict())
        model.save_pretrained(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")


__all__ = [
    "OWN_SCALE",
    "MemberScores",
    "apply_gate",
    "check_new",
    "check_scales",
    "ensemble_card",
    "fit_gate",
    "join_members",
    "make_sum",
    "read_generators",
    "read_ratings",
    "save_ensemble",
    "score_members",
]
