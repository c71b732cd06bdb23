"""The feature extractor of BEATs: waveforms -> normalised Kaldi log-mel spectrograms."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from numbers import Number
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import logging
from transformers.utils.generic import maybe_autocast

from .waveforms_xacle import load_waveform, usable_torchaudio

logger = logging.get_logger(__name__)

# Raise it when the numbers of the front end change: scores and stored features from before and after then differ.
FRONT_END_VERSION: int = 1
# Kaldi's defaults (torchaudio.compliance.kaldi.fbank), on which BEATs was trained.
PREEMPHASIS = 0.97
LOWEST_MEL_HZ = 20.0
WAVEFORM_SCALE = 2.0**15


def kaldi_log_mel(
    waveforms: torch.Tensor, sampling_rate: int, num_mel_bins: int, frame_length_ms: float, frame_shift_ms: float
) -> torch.Tensor:
    """
    Returns Kaldi log-mel filter bank energies of a batch, as `torchaudio.compliance.kaldi.fbank` does by default but
    for dither: snipped edges, DC offset removed, pre-emphasis 0.97, Povey window, power spectrum.

    Args:
        waveforms (`torch.Tensor` of shape `(batch_size, samples)`): In Kaldi's 16-bit range, on any device.
        sampling_rate (`int`): In Hz.
        num_mel_bins (`int`): From 20 Hz to half the sampling rate.
        frame_length_ms (`float`), frame_shift_ms (`float`): In milliseconds.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_frames, num_mel_bins)`.
    """
    window_size = int(sampling_rate * frame_length_ms / 1000)
    window_shift = int(sampling_rate * frame_shift_ms / 1000)
    window, filters = _window_and_filters(sampling_rate, num_mel_bins, window_size)
    frames = waveforms.unfold(-1, window_size, window_shift)  # (B, N) -> (B, T, W)
    frames = frames - frames.mean(dim=-1, keepdim=True)
    previous = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    frames = (frames - PREEMPHASIS * previous) * window.to(frames)
    power = torch.fft.rfft(frames, n=2 * (filters.shape[0] - 1)).abs().square()  # (B, T, W) -> (B, T, W'/2 + 1)
    energies = power @ filters.to(frames)  # -> (B, T, F)
    return energies.clamp(min=torch.finfo(torch.float32).eps).log()


def mel_filters(num_mel_bins: int, fft_size: int, sampling_rate: int) -> torch.Tensor:
    """
    Returns Kaldi's triangular filters `(num_mel_bins, fft_size / 2)` (`feat/mel-computations.cc`), evenly spread over
    the mel scale from 20 Hz to half the sampling rate; bit for bit as `torchaudio.compliance.kaldi.get_mel_banks`.
    """

    def mel(hertz: Any, log: Callable) -> Any:
        return 1127.0 * log(1.0 + hertz / 700.0)

    lowest, highest = mel(LOWEST_MEL_HZ, math.log), mel(sampling_rate / 2, math.log)
    corners = lowest + torch.arange(num_mel_bins + 2)[:, None] * ((highest - lowest) / (num_mel_bins + 1))
    left, centre, right = corners[:-2], corners[1:-1], corners[2:]  # 3 x (F, 1)
    mels = mel(torch.arange(fft_size // 2) * (sampling_rate / fft_size), torch.log)  # (W'/2,)
    rising, falling = (mels - left) / (centre - left), (right - mels) / (right - centre)  # 2 x (F, W'/2)
    return torch.minimum(rising, falling).clamp(min=0)


@lru_cache(maxsize=8)
def _window_and_filters(sampling_rate: int, num_mel_bins: int, window_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a Povey window `(window_size,)` and mel filters `(fft_size / 2 + 1, num_mel_bins)`, 0 for the top bin."""
    fft_size = 1 << (window_size - 1).bit_length()
    window = torch.hann_window(window_size, periodic=False).pow(0.85)
    if engine := usable_torchaudio():
        options = (LOWEST_MEL_HZ, 0.0, 100.0, -500.0, 1.0)  # up to half the rate, no vocal tract normalisation
        filters, _ = engine.compliance.kaldi.get_mel_banks(num_mel_bins, fft_size, sampling_rate, *options)
    else:
        filters = mel_filters(num_mel_bins, fft_size, sampling_rate)
    return window, torch.nn.functional.pad(filters, (0, 1)).T.contiguous()


def is_batch(inputs: Any) -> bool:
    """Returns True for a list (or NumPy column) of clips or captions, not for one; a list of numbers is one clip."""
    if isinstance(inputs, np.ndarray):
        return inputs.dtype.kind in "OUS"
    return isinstance(inputs, (list, tuple)) and not (inputs and isinstance(inputs[0], Number))


def log_losses(notes: Iterable[list[str]]) -> None:
    """Warn of every clip or caption of which a part was cut; the other notes report no loss."""
    for index, clip_notes in enumerate(notes):
        for note in clip_notes:
            if "cut:" in note:
                logger.warning(f"Input {index}: {note}")


class WindowFeatureExtractor(SequenceFeatureExtractor):
    """
    What the feature extractors share: it loads clips, each cut to one window, and says what was done to them. A child
    class has `max_seconds` and makes the features (`encode`); `axes` are those of time and mel bins in a clip's
    features, or `None` if these are no spectrogram.
    """

    model_input_names = ["input_features"]
    axes: tuple[int, int] | None = None
    max_seconds: float

    def __call__(
        self,
        audio: Any,
        sampling_rate: int | None = None,
        return_tensors: str = "pt",
        device: str | torch.device | None = None,
        return_notes: bool = False,
    ) -> BatchFeature:
        """
        Returns the features of one audio or a list of them.

        Args:
            audio: What [`load_waveform`] takes, or a list of such audios.
            sampling_rate (`int`, *optional*): Rate in Hz of bare samples.
            return_tensors (`str`): `"pt"` or `"np"`.
            device (`str` or `torch.device`, *optional*): Where the spectrogram is computed; by default on the CPU.
            return_notes (`bool`): Return `notes`, a list of strings for each audio, instead of logging what was cut.

        Returns:
            `BatchFeature` with what [`encode`] returns; of [`XacleFeatureExtractor`] `input_features`, float32 of shape
            `(batch_size, num_frames, feature_size)`: 10 s give 998 frames.
        """
        clips = audio if is_batch(audio) else [audio]
        if not clips:
            raise ValueError("No audio was given: the list is empty.")
        waveforms, notes = zip(*(self.load(clip, sampling_rate) for clip in clips), strict=True)  # B x (N,)
        batch = BatchFeature(self.encode(waveforms, device), tensor_type=return_tensors)
        if return_notes:
            batch["notes"] = list(notes)
        else:
            log_losses(notes)
        return batch

    def load(self, audio: Any, sampling_rate: int | None = None) -> tuple[torch.Tensor, list[str]]:
        """Load an audio, cut to `max_seconds`: float32 `(samples,)`, and the notes, also on the padding it needs."""
        waveform, notes = load_waveform(audio, sampling_rate, self.sampling_rate, self.max_seconds)
        return waveform, notes + self.padding_note(len(waveform))

    def padding_note(self, num_samples: int, what: str = "") -> list[str]:
        """Returns the note on padding so many samples to `max_seconds`; none if no padding is needed."""
        if num_samples >= round(self.max_seconds * self.sampling_rate):
            return []
        return [f"padded: {what}{num_samples / self.sampling_rate:.6g} s to {self.max_seconds:g} s"]

    def encode(
        self, waveforms: Sequence[torch.Tensor], device: str | torch.device | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Returns a model's inputs, `input_features` with a first axis of `batch_size`, and perhaps a mask, of mono
        waveforms, each of shape `(samples,)`, at `sampling_rate`.
        """
        raise NotImplementedError


class SpectrogramFeatureExtractor(WindowFeatureExtractor):
    """
    What our own front ends share: clips of exactly one window, whose padding counts as sound, become spectrograms. A
    child class computes these (`spectrogram`).
    """

    axes = (0, 1)

    def encode(
        self, waveforms: Sequence[torch.Tensor], device: str | torch.device | None = None
    ) -> dict[str, torch.Tensor]:
        """Returns `input_features`, float32 of shape `(batch_size, num_frames, feature_size)`, of mono waveforms."""
        return {"input_features": self.log_mel(torch.stack([self.fit(clip) for clip in waveforms]).to(device or "cpu"))}

    def fit(self, waveform: torch.Tensor) -> torch.Tensor:
        """Returns the waveform, of shape `(samples,)`, padded at its end or cut to exactly `max_seconds`."""
        length = round(self.max_seconds * self.sampling_rate)
        return torch.nn.functional.pad(waveform[:length], (0, max(0, length - len(waveform))), value=self.padding_value)

    def log_mel(self, waveforms: torch.Tensor) -> torch.Tensor:
        """
        Returns normalised log-mel spectrograms `(batch_size, num_frames, feature_size)` of mono waveforms of shape
        `(batch_size, samples)`, in [-1, 1], at `sampling_rate`, on any device.
        """
        # On a CPU, clip by clip: what one step of a clip passes on to the next stays in the cache.
        parts = waveforms.split(1) if waveforms.device.type == "cpu" and len(waveforms) else [waveforms]
        with maybe_autocast(waveforms.device.type, enabled=False):  # a logarithm would enlarge its rounding
            return torch.cat([self.spectrogram(part) for part in parts])

    def spectrogram(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Normalised log-mel spectrograms in one step: `(batch_size, samples)` -> `(batch_size, num_frames, F)`."""
        raise NotImplementedError


class XacleFeatureExtractor(SpectrogramFeatureExtractor):
    r"""
    Turns audio into normalised log-mel spectrograms, the front end of BEATs (microsoft/unilm `beats/BEATs.py`).

    Args:
        feature_size (`int`): Mel bins.
        sampling_rate (`int`): Rate in Hz to which audio is resampled.
        padding_value (`float`): Sample value of the padding, which counts as sound.
        max_seconds (`float`): Length in seconds to which audio is padded or cut.
        frame_length_ms (`float`): Window of one frame, in milliseconds.
        frame_shift_ms (`float`): Distance between frames, in milliseconds.
        mel_mean (`float`): Mean of the log-mel energies of the training data.
        mel_std (`float`): Their standard deviation; features are `(log_mel - mel_mean) / (2 * mel_std)`.
    """

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        max_seconds: float = 10.0,
        frame_length_ms: float = 25.0,
        frame_shift_ms: float = 10.0,
        mel_mean: float = 15.41663,
        mel_std: float = 6.55582,
        **kwargs: Any,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.max_seconds = max_seconds
        self.frame_length_ms = frame_length_ms
        self.frame_shift_ms = frame_shift_ms
        self.mel_mean = mel_mean
        self.mel_std = mel_std

    def spectrogram(self, waveforms: torch.Tensor) -> torch.Tensor:
        """BEATs's normalised log-mel energies: `(batch_size, samples)` -> `(batch_size, num_frames, feature_size)`."""
        frames = (self.sampling_rate, self.feature_size, self.frame_length_ms, self.frame_shift_ms)
        return (kaldi_log_mel(waveforms * WAVEFORM_SCALE, *frames) - self.mel_mean) / (2 * self.mel_std)
