"""Runs the members of an ensemble with shared work: each sound is read once, each front end and tower runs once."""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch

from ..checkpoints.fingerprints import digest_of, weights_fingerprint, without_bookkeeping
from ..modeling_towers import audio_family, pool_tokens
from ..pipeline_xacle import (
    SMALLEST_PASS,
    AudioTextAlignmentPipeline,
    mean_of_windows,
    scores_by_item,
    windows_of,
)
from ..waveforms_xacle import DecodedAudio
from .ensemble import XacleEnsemble
from .judge_pipeline import JudgePipeline

Scorer = AudioTextAlignmentPipeline


def front_end_key(scorer: Scorer) -> str:
    """Returns a digest of all that decides what a scorer makes of a sound before its model hears it."""
    settings = without_bookkeeping(scorer.processor.feature_extractor.to_dict())
    is_judge = isinstance(scorer, JudgePipeline)
    return digest_of([type(scorer).__name__, scorer.window_samples, settings] if is_judge else settings)


def tower_key(scorer: Scorer) -> str:
    """Returns a digest of all that decides what a xacle model's audio tower makes of its features."""
    model = scorer.model
    own_summary = model.takes_summary and audio_family(model.config.audio_config).summarize is not None
    config = without_bookkeeping(model.config.audio_config.to_dict())
    return digest_of([own_summary, config, weights_fingerprint(model.audio_tower)])


def alike(numbers: Iterable[int], keys: Iterable[str]) -> list[list[int]]:
    """Groups numbers that have the same key, in the order of their first."""
    groups: dict[str, list[int]] = {}
    for number, key in zip(numbers, keys, strict=True):
        groups.setdefault(key, []).append(number)
    return list(groups.values())


class EnsemblePipeline(AudioTextAlignmentPipeline):
    """
    Scores sounds against captions with all members of an ensemble and combines their scores; called like its parent.

    A sound is read once, and resampled once for each rate. Members with equal feature extractors share the features;
    those among them whose audio towers have equal weights share one tower, which runs once. Each member reads the
    caption by itself. Its scores are those that it gives alone.

    Where windows are asked for, each member's score is its mean over windows, so `return_windows` returns one window.

    Args:
        model (`XacleEnsemble`): The members and the rule.
        kwargs: Arguments of `transformers.Pipeline`, such as `device`.

    Attributes:
        members (`list`): The members' scorers.
        collects (`bool`): Return the members' scores and the gate's features instead of combining them, for a fit.
    """

    def __init__(self, model: XacleEnsemble, **kwargs: Any):
        self.members, self.collects = model.scorers, False
        if not self.members:
            raise ValueError(f"{model.name_or_path}: an ensemble without members.")
        self.front_ends = alike(range(len(self.members)), map(front_end_key, self.members))
        self.towers = [self._share_towers(group) for group in self.front_ends]
        super().__init__(model=model, **{**kwargs, "processor": self.members[0].processor})

    def _check_parts(self) -> None:
        """Does nothing: the members were checked when they were loaded."""

    def _share_towers(self, group: list[int]) -> list[list[int]]:
        """Groups members with equal feature extractors by their towers; equal towers become one in memory."""
        members = [self.members[number] for number in group]
        if len(group) == 1 or isinstance(members[0], JudgePipeline):
            return [[number] for number in group]
        towers = alike(group, map(tower_key, members))
        for first, *others in towers:
            for number in others:
                self.members[number].model.audio_tower = self.members[first].model.audio_tower
        return towers

    @property
    def hears(self) -> bool:
        """Whether the rule, or a fit, takes audio features."""
        return self.collects or self.model.config.method == "gate"

    def tokenize(self, caption: str) -> tuple[list[Any], list[str]]:
        """Returns what each member needs of a caption, and their notes; errors as the members'."""
        sequences, notes = zip(*(member.tokenize(caption) for member in self.members), strict=True)
        return list(sequences), list(dict.fromkeys(note for of_member in notes for note in of_member))

    def preprocess(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """
        Load and tokenize one input.

        Returns:
            What the parent returns, with `heard`, what members with each kind of front end load of the sound, instead
            of `waveform`; `sequences` has a list for each caption, of what each member needs of it.
        """
        item = super().preprocess(*args, **kwargs)
        return {**item, "heard": item.pop("waveform")}

    def _load(
        self, audio: Any, sampling_rate: int | None, window_seconds: float | None, hop_seconds: float | None
    ) -> tuple[list[dict[str, Any]], list[tuple[int, int]], list[str]]:
        """Returns what each front end loads of a sound, its first and last sample for the first member, and notes."""
        leads = [self.members[group[0]] for group in self.front_ends]
        windowed = window_seconds is not None or hop_seconds is not None
        hears_all = windowed or any(isinstance(lead, JudgePipeline) for lead in leads)
        longest = None if hears_all else max(lead.processor.feature_extractor.max_seconds for lead in leads)
        pair = {"audio": DecodedAudio(audio, sampling_rate, longest), "text": [""]}
        call = {"window_seconds": window_seconds, "hop_seconds": hop_seconds, "tokenized": [(None, [])]}
        heard = [lead.preprocess(pair, **call) for lead in leads]
        notes = list(dict.fromkeys(note for item in heard for note in item["notes"][0]))
        return heard, [(0, heard[0]["spans"][-1][1])], notes

    def with_spectrograms(self, item: dict[str, Any]) -> dict[str, Any]:
        """Returns an input with the features of each front end instead of its waveform."""
        leads = (self.members[group[0]] for group in self.front_ends)
        heard = [lead.with_spectrograms(heard) for lead, heard in zip(leads, item["heard"], strict=True)]
        return {**item, "heard": heard}

    def without_model(self) -> "EnsemblePipeline":
        """Returns what the parent returns; members have no weights either."""
        light = super().without_model()
        light.members = [member.without_model() for member in self.members]
        return light

    def _forward(self, items: list[dict[str, Any]], pass_size: int = SMALLEST_PASS) -> list[Any]:
        """
        Score a batch of inputs with all members, and combine the scores.

        Returns:
            A `torch.Tensor` of shape `(1, num_captions)` for each input. Where the ensemble collects, scores
            `(num_captions, num_members)` and features `(feature_size,)` of each.
        """
        found = self._listen(items, pass_size)
        if self.collects:
            return found
        rule = self.model.rule
        return [rule(scores, features.expand(len(scores), -1)).unsqueeze(0) for scores, features in found]

    def _listen(self, items: list[dict[str, Any]], pass_size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Returns the members' scores `(num_captions, num_members)` and features `(feature_size,)` of each input."""
        scores: dict[int, list[torch.Tensor]] = {}
        vectors: list[list[torch.Tensor]] = [[torch.empty(0, device=self.device)] for _ in items]
        for number, group in enumerate(self.front_ends):
            own = {member: [self._item_of(item, number, member) for item in items] for member in group}
            spans = [item["heard"][number]["spans"] for item in items]
            found, features = self._listen_alike(number, own, pass_size)
            for member, of_items in found.items():
                scores[member] = [mean_of_windows(*pair) for pair in zip(of_items, spans, strict=True)]  # I x (C,)
            for of_tower in features:
                for vector, values, of_item in zip(vectors, of_tower, spans, strict=True):
                    vector.append(mean_of_windows(values, of_item))  # (W, D) -> (D,)
        columns = zip(*(scores[member] for member in range(len(self.members))), strict=True)
        return [
            (torch.stack([column.to(self.device) for column in of_item], dim=1), torch.cat(vector))
            for of_item, vector in zip(columns, vectors, strict=True)
        ]

    @staticmethod
    def _item_of(item: dict[str, Any], front_end: int, member: int) -> dict[str, Any]:
        """Returns an input as one member takes it."""
        sequences = [of_caption[member] for of_caption in item["sequences"]]
        return {**item["heard"][front_end], "captions": item["captions"], "sequences": sequences}

    def _listen_alike(
        self, number: int, own: dict[int, list[dict[str, Any]]], pass_size: int
    ) -> tuple[dict[int, list[torch.Tensor]], list[list[torch.Tensor]]]:
        """
        Scores inputs with the members that share a front end, by its number: `own` has each member's inputs.

        Returns:
            Each member's scores, `(num_windows, num_captions)` for each input; and each tower's features, the mean of
            its states, `(num_windows, hidden_size)` for each input. Judges have none, and where nothing hears them,
            none are made.
        """
        members = {member: self.members[member] for member in own}
        lead = next(iter(own))
        if isinstance(members[lead], JudgePipeline):
            for member in members.values():
                member.device = self.device
            return {number: member._forward(own[number], pass_size) for number, member in members.items()}, []
        windows = {member: windows_of(items) for member, items in own.items()}
        scores: dict[int, list[torch.Tensor]] = {member: [] for member in own}
        vectors: list[list[torch.Tensor]] = [[] for _ in self.towers[number] if self.hears]
        with ExitStack() as stack:
            for member in members.values():
                stack.enter_context(member.ready())
            for start in range(0, len(windows[lead]), pass_size):
                chosen = slice(start, start + pass_size)
                features = members[lead].features(windows[lead][chosen])
                mask = features.get("input_features_mask")
                for place, tower in enumerate(self.towers[number]):
                    states = members[tower[0]].model.read_audio(**features)  # -> (W, S, D)
                    if self.hears:
                        vectors[place].append(pool_tokens(states, 1, mask).squeeze(1).float())
                    for member in tower:
                        audio_features = members[member].model.pool_audio(states, mask)  # -> (W, N, D)
                        part = members[member].score_windows(windows[member][chosen], audio_features, pass_size)
                        scores[member].append(part)
        lengths = [len(item["spans"]) for item in own[lead]]
        by_item = {member: scores_by_item(torch.cat(parts), own[member]) for member, parts in scores.items()}
        return by_item, [list(torch.cat(vector).split(lengths)) for vector in vectors]

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Save the configuration and the rule; members stay where they are."""
        self.model.save_pretrained(save_directory, **kwargs)
