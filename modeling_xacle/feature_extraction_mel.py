"""The feature extractors of the baselines' audio towers: waveforms -> log-mel spectrograms."""

from functools import lru_cache
from typing import Any

import torch

from .feature_extraction_xacle import SpectrogramFeatureExtractor

# Added to a mel bin's energy before its logarithm.
LOG_EPSILON = torch.finfo(torch.float32).eps


class LogMelFeatureExtractor(SpectrogramFeatureExtractor):
    r"""
    Turns audio into log-mel spectrograms `(log(mel energies + eps) - mel_mean) / mel_std`, from power spectra of frames
    that are centred on multiples of `hop_size`, mirrored at both ends, under a Hann window.

    The mel scale and the norm of its filters are librosa's by default, `slaney` both, because both baselines compute
    with nnAudio, whose defaults they are; torchaudio's would be `htk` and `None`.

    Args:
        feature_size (`int`): Mel bins.
        lowest_hz (`float`), highest_hz (`float`): Range of the mel bins, in Hz.
        window_size (`int`): Samples of a frame and of its Fourier transform.
        hop_size (`int`): Samples between frames.
        mel_scale (`str`): `slaney`, `htk` or `kaldi`, as `transformers.audio_utils.mel_filter_bank` has them.
        mel_norm (`str`, *optional*): `slaney` for filters of equal area, `None` for filters of equal height.
        mel_mean (`float`): Mean of all log-mel energies of the training data, which [`measure_log_mel`] computes.
        mel_std (`float`): Their standard deviation.
        sampling_rate (`int`): Rate in Hz to which audio is resampled.
        padding_value (`float`): Sample value of the padding, which counts as sound.
        max_seconds (`float`): Length in seconds to which audio is padded or cut.

    Raises:
        ValueError: The window of `max_seconds` is too short for one frame.
    """

    def __init__(
        self,
        feature_size: int,
        lowest_hz: float,
        highest_hz: float,
        window_size: int,
        hop_size: int = 160,
        mel_scale: str = "slaney",
        mel_norm: str | None = "slaney",
        mel_mean: float = 0.0,
        mel_std: float = 1.0,
        sampling_rate: int = 16000,
        padding_value: float = 0.0,
        max_seconds: float = 10.0,
        **kwargs: Any,
    ):
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        if max_seconds * sampling_rate < window_size:
            shortest = window_size / sampling_rate
            raise ValueError(f"max_seconds={max_seconds:g}: {type(self).__name__} takes windows from {shortest:g} s.")
        self.lowest_hz, self.highest_hz = lowest_hz, highest_hz
        self.window_size, self.hop_size = window_size, hop_size
        self.mel_scale, self.mel_norm = mel_scale, mel_norm
        self.mel_mean, self.mel_std = mel_mean, mel_std
        self.max_seconds = max_seconds

    def spectrogram(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Normalised log-mel energies: `(batch_size, samples)` -> `(batch_size, samples // hop_size + 1, F)`."""
        return (self.log_energies(waveforms) - self.mel_mean) / self.mel_std

    def log_energies(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Log-mel energies, not normalised: `(batch_size, samples)` -> `(batch_size, samples // hop_size + 1, F)`."""
        window = torch.hann_window(self.window_size, device=waveforms.device)
        spectra = torch.stft(
            waveforms, self.window_size, self.hop_size, window=window, pad_mode="reflect", return_complex=True
        )  # (B, N) -> (B, W/2 + 1, T)
        energies = spectra.abs().square().transpose(1, 2) @ self.filters().to(waveforms)  # -> (B, T, F)
        return (energies + LOG_EPSILON).log()

    def filters(self) -> torch.Tensor:
        """Returns the mel filters, float32 of shape `(window_size / 2 + 1, feature_size)`."""
        span = (self.lowest_hz, self.highest_hz, self.sampling_rate)
        return _mel_filters(self.window_size // 2 + 1, self.feature_size, *span, self.mel_norm, self.mel_scale)


@lru_cache(maxsize=8)
def _mel_filters(*settings: Any) -> torch.Tensor:
    # Imported only here: it fails beside a torchaudio that does not fit the installed torch.
    from transformers.audio_utils import mel_filter_bank

    return torch.from_numpy(mel_filter_bank(*settings)).float()


class ByolaFeatureExtractor(LogMelFeatureExtractor):
    r"""
    The front end of BYOL-A v2 in the challenge's 2026 baseline: 10 s give 1001 frames of 64 mel bins. The settings are
    those of [`LogMelFeatureExtractor`] with other defaults. `mel_mean` and `mel_std` are of the training split; the
    published baseline takes those of the split that it judges.
    """

    def __init__(
        self,
        feature_size: int = 64,
        lowest_hz: float = 60.0,
        highest_hz: float = 7800.0,
        window_size: int = 1024,
        **kwargs: Any,
    ):
        super().__init__(feature_size, lowest_hz, highest_hz, window_size, **kwargs)


class M2dFeatureExtractor(LogMelFeatureExtractor):
    r"""
    The front end of M2D-CLAP 2025 in the challenge's 2027 baseline: 10 s give 1001 frames of 80 mel bins. The settings
    are those of [`LogMelFeatureExtractor`] with other defaults. `mel_mean` and `mel_std` belong to the encoder's
    weights: set those that it was trained with.
    """

    def __init__(
        self,
        feature_size: int = 80,
        lowest_hz: float = 50.0,
        highest_hz: float = 8000.0,
        window_size: int = 400,
        **kwargs: Any,
    ):
        super().__init__(feature_size, lowest_hz, highest_hz, window_size, **kwargs)


__all__ = ["ByolaFeatureExtractor", "LogMelFeatureExtractor", "M2dFeatureExtractor"]
