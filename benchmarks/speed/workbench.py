"""The object of measurement: a model with random weights and its inputs, run as this project or the reference does."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import reference
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoTokenizer, Qwen2Config

from modeling_xacle import DEFAULT_MODEL
from modeling_xacle.configuration_xacle import BeatsConfig, XacleConfig
from modeling_xacle.feature_extraction_xacle import XacleFeatureExtractor
from modeling_xacle.modeling_captioning import XacleForConditionalGeneration
from modeling_xacle.modeling_xacle import XacleModel
from modeling_xacle.processing_xacle import SPECIAL_TOKENS, XacleProcessor
from modeling_xacle.speed import FastAudioTextAlignmentPipeline, fast_forms
from modeling_xacle.training.freezing import choose_trained
from modeling_xacle.training.recipes import StageArguments

# Caption lengths in tokens, used in turn: most captions of AudioCaps are this long.
LENGTHS = range(12, 20)
ORDINARY_TOKENS = 300  # ids below are words in any vocabulary
TRAINED = {1: ["projector", "language_model"], 2: ["projector", "score_head"], 3: ["projector", "score_head"]}
LORA_RANK = 16

SMALL_AUDIO = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "patch_embedding_size": 32,
}
SMALL_TEXT = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SMALL_HEAD = {"projector_intermediate_size": 32, "score_head_hidden_size": 16, "score_head_output_size": 8}
PUBLISHED_TEXT = {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "intermediate_size": 4864}


def make_processor(num_audio_tokens: int) -> XacleProcessor:
    """Makes the published front end with the bundled model's tokenizer, whose cost is not measured."""
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    return XacleProcessor(XacleFeatureExtractor(), tokenizer, num_audio_tokens)


def make_config(processor: XacleProcessor, small: bool = False) -> XacleConfig:
    """Makes a config of the published size, or of one that runs in seconds, with the processor's special tokens."""
    sizes = SMALL_TEXT if small else PUBLISHED_TEXT
    text = Qwen2Config(vocab_size=1000 if small else 151669, num_key_value_heads=2, eos_token_id=0, **sizes)
    names = ("audio_start_token_id", "audio_end_token_id", "score_token_id", "audio_token_id")
    return XacleConfig(
        audio_config=BeatsConfig(**(SMALL_AUDIO if small else {})),
        text_config=text,
        num_audio_tokens=processor.num_audio_tokens,
        **dict(zip(names, processor.tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS), strict=True)),
        **(SMALL_HEAD if small else {}),
    )


def forms_of_layers(fast: bool, model: nn.Module) -> AbstractContextManager:
    """Within this context, a model's layers compute as in this package's commands, or as in the published system."""
    return fast_forms(model) if fast else nullcontext()


class Workbench:
    """
    A model on a device, with sounds and captions.

    Args:
        device (`torch.device`): Where everything is computed.
        dtype (`torch.dtype`): Our type: fp32, or bf16 (weights when scoring, autocast when training); the reference
            uses fp32.
        small (`bool`): Use a model and sounds that run in seconds.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32, small: bool = False):
        torch.manual_seed(0)
        self.device, self.dtype, self.small = device, dtype, small
        self.processor = make_processor(20 if small else 100)
        self.config = make_config(self.processor, small)
        self.captioner = XacleForConditionalGeneration(self.config).to(device).eval()
        self.model: XacleModel = self.captioner.model
        self.extractor = self.processor.feature_extractor
        if small:
            self.extractor.max_seconds = 1.0
        self.aligner = cache(self._make_aligner)

    def _make_aligner(self, dtype: torch.dtype) -> FastAudioTextAlignmentPipeline:
        """Makes a pipeline with the model in a dtype, loaded as `pipeline(dtype=...)` does."""
        model = self.model
        if dtype != torch.float32:
            with tempfile.TemporaryDirectory() as folder:
                self.model.save_pretrained(folder)
                model = XacleModel.from_pretrained(folder, dtype=dtype).eval()
        return FastAudioTextAlignmentPipeline(model, processor=self.processor, device=self.device)

    @property
    def num_frames(self) -> int:
        """Frames in a clip's spectrogram."""
        return self.extractor.log_mel(self.waveforms(1)).shape[1]

    def waveforms(self, clips: int) -> torch.Tensor:
        """Returns noise `(batch_size, samples)`."""
        samples = round(self.extractor.max_seconds * self.extractor.sampling_rate)
        return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(1)).to(self.device)

    def lengths(self, pairs: int) -> list[int]:
        """Returns the lengths of `pairs` captions, in tokens."""
        return [LENGTHS[index % len(LENGTHS)] for index in range(pairs)]

    def captions(self, pairs: int) -> list[list[int]]:
        """Returns random captions, as token ids."""
        generator = torch.Generator().manual_seed(2)
        return [
            torch.randint(ORDINARY_TOKENS, (length,), generator=generator).tolist() for length in self.lengths(pairs)
        ]

    def pad(self, captions: list[list[int]]) -> dict[str, torch.Tensor]:
        """Makes sequences `(batch_size, sequence_length)` of captions, padded at the end."""
        return self.processor.pad([[*ids, *self.processor.audio_and_score_ids] for ids in captions], self.device)

    @torch.no_grad()
    def encode(self, input_features: torch.Tensor) -> torch.Tensor:
        """Computes our audio features of spectrograms `(batch_size, num_frames, num_mel_bins)`."""
        return self.aligner(self.dtype).model.get_audio_features(input_features)

    @torch.no_grad()
    def logits(self, captions: list[list[int]], features: torch.Tensor) -> torch.Tensor:
        """Computes our logits `(batch_size,)` of captions, each with a clip's features."""
        return self.aligner(self.dtype).model(**self.pad(captions), audio_features=features).logits

    @torch.no_grad()
    def reference_logits(self, captions: list[list[int]], features: torch.Tensor) -> torch.Tensor:
        """Computes the reference's logits `(batch_size,)` of captions, each with a clip's features."""
        return reference.score(self.model, captions, features)

    def reference_encode(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Computes the reference's audio features of waveforms `(batch_size, samples)`."""
        return reference.audio_features(self.model, reference.log_mel(self.extractor, waveforms))

    @torch.no_grad()
    def scores(
        self,
        waveforms: torch.Tensor,
        captions: list[list[int]],
        pass_size: int = 8,
        dtype: torch.dtype | None = None,
    ) -> torch.Tensor:
        """
        Scores captions with the pipeline, `(num_pairs,)`; each waveform of `(num_clips, samples)` has equally many. A
        given dtype replaces the workbench's.
        """
        share = len(captions) // len(waveforms)
        sequences = [[*ids, *self.processor.audio_and_score_ids] for ids in captions]
        items = [
            {"waveform": clip, "spans": [(0, len(clip))], "sequences": sequences[row * share : (row + 1) * share]}
            for row, clip in enumerate(waveforms)
        ]
        parts = self.aligner(dtype or self.dtype).forward(items, pass_size=pass_size)
        return torch.cat([part.flatten() for part in parts])

    @torch.no_grad()
    def reference_scores(self, waveforms: torch.Tensor, captions: list[list[int]], pass_size: int = 8) -> torch.Tensor:
        """Computes the reference's scores `(num_pairs,)`: the clip is encoded again for each caption."""
        clips = waveforms.repeat_interleave(len(captions) // len(waveforms), dim=0)
        logits = [
            self.reference_logits(captions[start : start + pass_size], self.reference_encode(part))
            for start, part in zip(range(0, len(captions), pass_size), clips.split(pass_size), strict=True)
        ]
        return self.config.logits_to_scores(torch.cat(logits))

    @contextmanager
    def stage(self, stage: int, lora_rank: int = 0) -> Iterator[nn.Module]:
        """Yields the model with the parts that a stage trains, then restores it."""
        whole = self.captioner if stage == 1 else self.model
        trained = [part for part in TRAINED[stage] if not (lora_rank and part == "language_model")]
        model = choose_trained(whole, StageArguments(stage=stage, train=trained, lora_rank=lora_rank)).train()
        try:
            yield model
        finally:
            if isinstance(model, PeftModel):
                model.unload()
            self.captioner.requires_grad_(True).eval()

    def loading(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Returns calls that load the model from a folder and from the published system's files."""
        folder = tempfile.TemporaryDirectory()
        self.model.save_pretrained(folder.name)
        reference.save_parts(self.model, Path(folder.name))

        def ours(folder: tempfile.TemporaryDirectory = folder) -> XacleModel:
            """Loads from the folder, which lives as long as this call does."""
            return XacleModel.from_pretrained(folder.name, dtype=torch.float32).to(self.device)

        return ours, lambda: reference.load(self.model, Path(folder.name))
