"""What all judges other than our own model share behind the alignment pipeline's interface."""

from collections.abc import Mapping
from typing import Any

import torch

from ..pipeline_xacle import AudioTextAlignmentPipeline, window_spans
from ..waveforms_xacle import load_waveform

# A last window shorter than this share of a whole one weighs too little in the mean to be worth a pass of the encoder:
# clips of "10 seconds" are often a few milliseconds longer.
SMALLEST_WINDOW = 0.01


def sound_windows(num_samples: int, longest: int) -> list[tuple[int, int]]:
    """
    Returns start and end samples of the windows that a judge hears a sound in: back to back, of `longest` samples but
    for the last one. A last one of less than a hundredth of that is left out, unless it is the only one.
    """
    spans = window_spans(num_samples, longest, longest)
    return spans[:1] + [(start, end) for start, end in spans[1:] if end - start >= SMALLEST_WINDOW * longest]


class JudgePipeline(AudioTextAlignmentPipeline):
    """
    Scores sounds against captions with a model that was not trained to, and is called like its parent.

    The whole sound counts, in fixed windows that the model can take. So `window_seconds` and `hop_seconds` have no
    meaning here.

    Subclasses set these attributes before they call this constructor:
        own_scale (`str`): Name of the scale that the model scores on.
        map_score (`bool`): Whether scores are mapped to 0-10.
        compute_dtype (`torch.dtype`): Type that the model computes in.
        window_samples (`int`): Length of a window at the model's rate.
    """

    own_scale: str
    map_score: bool
    compute_dtype: torch.dtype
    window_samples: int

    @property
    def settings(self) -> dict[str, Any]:
        """Returns what a score depends on besides weights, configuration and processor, ready for JSON."""
        dtype = str(self.compute_dtype).removeprefix("torch.")
        return {"dtype": dtype, "scale": "0-10" if self.map_score else self.own_scale}

    def _check_parts(self) -> None:
        """Does nothing: the parts were checked before."""

    def tokenize(self, caption: str) -> tuple[str, list[str]]:
        """
        Returns the caption itself, and notes.

        Raises:
            TypeError: The caption is not a string.
            ValueError: It is empty.
        """
        if not isinstance(caption, str):
            raise TypeError(f"A caption must be a string, not {type(caption).__name__}: {caption!r}.")
        if not caption.strip():
            raise ValueError(f"The caption is empty ({caption!r}): a score needs words to compare with the sound.")
        return caption, []

    def preprocess(
        self,
        inputs: Mapping,
        sampling_rate: int | None = None,
        window_seconds: float | None = None,
        hop_seconds: float | None = None,
        tokenized: list[tuple[Any, list[str]]] | None = None,
    ) -> dict[str, Any]:
        """
        Load one input.

        Returns:
            What the parent returns.

        Raises:
            ValueError: As the parent, and also if windows are asked for.
        """
        if window_seconds is not None or hop_seconds is not None:
            raise ValueError("This model hears all of a sound in its own windows; leave out the window options.")
        return super().preprocess(inputs, sampling_rate, tokenized=tokenized)

    def with_spectrograms(self, item: dict[str, Any]) -> dict[str, Any]:
        """Returns the input itself, which already has all that can be computed in advance."""
        return item

    def _load(
        self, audio: Any, sampling_rate: int | None, window_seconds: float | None, hop_seconds: float | None
    ) -> tuple[torch.Tensor, list[tuple[int, int]], list[str]]:
        """Loads a waveform `(samples,)` at the model's rate; returns it with its windows, and notes."""
        rate = self.processor.feature_extractor.sampling_rate
        waveform, notes = load_waveform(audio, sampling_rate, rate)
        spans = sound_windows(len(waveform), self.window_samples)
        seconds, heard, longest = (count / rate for count in (len(waveform), spans[-1][1], self.window_samples))
        if heard < seconds:
            notes.append(f"cut: {seconds:.6g} s to {heard:g} s")
        if len(spans) > 1:
            notes.append(f"windowed: {seconds:.6g} s in windows of {longest:g} s")
        return waveform, spans, notes
