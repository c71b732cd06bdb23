"""Contrastive models behind the alignment pipeline's interface: the score is the cosine of clip and caption."""

from collections.abc import Mapping
from typing import Any

import torch

from ..pipeline_xacle import SMALLEST_PASS, evaluation_mode
from .contrastive import ContrastiveTeacher
from .judge_pipeline import JudgePipeline


class ContrastivePipeline(JudgePipeline):
    """
    Scores sounds against captions with a contrastive model, and is called like its parent.

    The embeddings of a sound's windows are averaged ([`ContrastiveTeacher`]), so `return_windows` returns one window.

    Args:
        teacher (`ContrastiveTeacher`): The model with its processor.
        map_score (`bool`): Return (cosine + 1) * 5, on 0-10, instead of the cosine in [-1, 1]; no rank changes.
        compute_dtype (`torch.dtype`): Type for the encoders' autocast; embeddings and cosines are float32.
        kwargs: Arguments of `transformers.Pipeline`, such as `device`.
    """

    own_scale = "cosine"

    def __init__(
        self,
        teacher: ContrastiveTeacher,
        map_score: bool = False,
        compute_dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ):
        self.teacher, self.map_score, self.compute_dtype = teacher, map_score, compute_dtype
        self.family, self.max_text_tokens = teacher.family, teacher.max_text_tokens
        self.window_samples = self.family.window_samples(teacher.feature_extractor)
        processor = self.family.processor_class(teacher.feature_extractor, teacher.tokenizer)
        super().__init__(model=teacher.model, processor=processor, task="audio-text-alignment", **kwargs)

    @property
    def settings(self) -> dict[str, Any]:
        """Returns what the parent returns, and the most tokens of a caption."""
        return {**super().settings, "max_text_tokens": self.max_text_tokens}

    def tokenize(self, caption: str) -> tuple[str, list[str]]:
        """Returns the caption itself, as the text encoder's tokenizer will get it, and a note if it will be cut."""
        super().tokenize(caption)
        count = len(self.processor.tokenizer(caption, verbose=False)["input_ids"])
        cut = count > self.max_text_tokens
        return caption, [f"caption cut: {count} tokens to {self.max_text_tokens}"] if cut else []

    def without_model(self) -> "ContrastivePipeline":
        """Returns what the parent returns, without the teacher."""
        light = super().without_model()
        light.teacher = None
        return light

    def preprocess(self, inputs: Mapping, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """
        Load one input.

        Returns:
            What the parent returns, with `features` and `weights` of [`Family.clip_features`] instead of `waveform`.
        """
        item = super().preprocess(inputs, *args, **kwargs)
        extractor = self.processor.feature_extractor
        waveform = item.pop("waveform")
        item["features"], item["weights"] = self.family.clip_features(extractor, waveform, extractor.sampling_rate)
        return item

    def _load(self, *args: Any) -> tuple[torch.Tensor, list[tuple[int, int]], list[str]]:
        """Loads a waveform `(samples,)` at the model's rate; returns it with its first and last sample, and notes."""
        waveform, spans, notes = super()._load(*args)
        extractor = self.processor.feature_extractor
        heard = spans[-1][1]
        padded = self.family.padded_samples(extractor, heard)
        if heard < padded and len(spans) == 1:
            seconds, filled = (count / extractor.sampling_rate for count in (heard, padded))
            notes.append(f"padded: {seconds:.6g} s to {filled:.6g} s")
        return waveform, [(0, heard)], notes

    def _forward(self, items: list[dict[str, Any]], pass_size: int = SMALLEST_PASS) -> list[torch.Tensor]:
        """
        Embed the clips and the distinct captions of a batch, no more than `pass_size` windows or captions at a time.

        Returns:
            A `torch.Tensor` of shape `(1, num_captions)` for each input.
        """
        captions = list(dict.fromkeys(caption for item in items for caption in item["captions"]))
        places = {caption: place for place, caption in enumerate(captions)}
        autocast = torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype != torch.float32)
        with evaluation_mode(self.model), autocast:
            clips = [(item["features"], item["weights"].cpu()) for item in items]
            audio_embeddings = self.teacher.embed_features(clips, pass_size)  # -> (C, D)
            text_embeddings = self.teacher.embed_text(captions, pass_size)  # -> (T, D)
        scores = []
        for item, embedding in zip(items, audio_embeddings, strict=True):
            texts = text_embeddings[[places[caption] for caption in item["captions"]]]
            cosines = (texts * embedding).sum(-1).clamp(-1, 1)  # (T', D), (D,) -> (T',)
            scores.append(((cosines + 1) * 5 if self.map_score else cosines).unsqueeze(0))
        return scores
