"""Any audio as a waveform: reads it in blocks, refuses what is broken, resamples it and mixes it down."""

import io
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache, partial
from numbers import Number
from types import ModuleType
from typing import Any

import numpy as np
import soundfile
import torch

# Samples this far beyond full scale are integers that somebody cast to float.
LARGEST_PEAK = 10.0
# What streaming writers (ffmpeg, SoX) put into a WAV header when they cannot know the length.
UNKNOWN_LENGTH = 0x7FFFF000
UNKNOWN_FRAMES = 2**63 - 1  # libsndfile's value for a FLAC stream that declares no length
LARGEST_OGG_PAGE = 65307  # bytes
# A resampled value is a sum of samples, weighted by a sinc function up to its sixth zero on either side, whose cutoff
# lies a little below half the lower rate.
SINC_ZEROS, SINC_ROLLOFF = 6, 0.99
LARGEST_KERNEL = 2**22  # weights; the kernels of rates without a large common divisor would take gigabytes
BLOCK_SIZE = 2**18  # samples read, or weights computed, at a time
LOWEST_RATE, HIGHEST_RATE = 1_000, 1_000_000  # Hz, from hydrophones to bat detectors
# Read beyond the cut, so that the resampling filter sees the same samples as with the whole file.
CUT_MARGIN_SECONDS = 1.0
FULL_SCALE = {"int16": (0, 2.0**15), "int32": (0, 2.0**31), "uint8": (128, 2.0**7), "int8": (0, 2.0**7)}
DTYPE_REMEDY = "give floating point in [-1, 1], or int16."


@lru_cache(maxsize=1)
def usable_torchaudio() -> ModuleType | None:
    """Returns torchaudio, or `None` if it does not import, as its last release beside most versions of torch."""
    try:
        import torchaudio.compliance.kaldi
        import torchaudio.functional
    except (ImportError, OSError, RuntimeError):  # not installed; another torch's library; another CUDA
        return None
    return torchaudio


def audio_engine() -> str:
    """
    Names what resamples and makes mel filters: `torchaudio 2.11.0`, say, or `built-in`, which computes the same numbers
    where torchaudio is missing or does not import beside the torch that is installed.
    """
    engine = usable_torchaudio()
    return f"torchaudio {engine.__version__.split('+')[0]}" if engine else "built-in"


def resample(samples: torch.Tensor, rate: int, target_rate: int) -> torch.Tensor:
    """
    Resamples `(channels, samples)`, float32, from one rate in Hz to another by band-limited interpolation (J. O. Smith,
    "Digital Audio Resampling Home Page"): `(channels, resampled)`. The built-in engine equals torchaudio bit for bit;
    where the kernel would exceed `LARGEST_KERNEL`, it replaces torchaudio and equals it to the rounding of float32.
    """
    common = math.gcd(rate, target_rate)
    rate, target_rate = rate // common, target_rate // common
    is_small = rate * target_rate <= LARGEST_KERNEL
    if is_small and (engine := usable_torchaudio()):
        return engine.functional.resample(samples, rate, target_rate)
    reach = math.ceil(SINC_ZEROS * rate / (SINC_ROLLOFF * min(rate, target_rate)))
    padded = torch.nn.functional.pad(samples, (reach, reach + rate))
    # The length is rounded to float32 first, as in torchaudio: long clips may end a sample earlier.
    length = math.ceil(np.float32(target_rate * samples.shape[-1] / rate))
    if not is_small:
        return _resample_in_blocks(padded, length, reach, rate, target_rate)
    kernel = _sinc_kernel(reach, rate, target_rate).to(samples.device)
    periods = torch.nn.functional.conv1d(padded.unsqueeze(1), kernel, stride=rate)  # -> (C, target_rate, periods)
    return periods.mT.flatten(1)[:, :length]


@lru_cache(maxsize=8)
def _sinc_kernel(reach: int, rate: int, target_rate: int) -> torch.Tensor:
    """Returns the weights `(target_rate, 1, taps)` of the samples around each resampled value of one period."""
    samples, resampled = torch.arange(-reach, reach + rate), torch.arange(target_rate)[:, None, None]
    return _sinc_weights(samples, resampled, rate, target_rate)


def _resample_in_blocks(padded: torch.Tensor, length: int, reach: int, rate: int, target_rate: int) -> torch.Tensor:
    """Resamples `(channels, padded)` to `(channels, length)`; each value takes the weights within its `reach` only."""
    taps = torch.arange(-reach, reach + 1, device=padded.device)
    windows = padded.unfold(-1, len(taps), 1)  # (C, N) -> (C, N - taps + 1, taps)
    block_size = max(1, BLOCK_SIZE // (len(padded) * len(taps)))
    blocks = []
    for start in range(0, length, block_size):
        places = torch.arange(start, min(start + block_size, length), device=padded.device)
        phases = places[:, None] % target_rate
        weights = _sinc_weights(phases * rate // target_rate + taps, phases, rate, target_rate)  # (block_size, taps)
        blocks.append((windows[:, places * rate // target_rate] * weights).sum(dim=-1))
    return torch.cat(blocks, dim=-1)


def _sinc_weights(samples: torch.Tensor, resampled: torch.Tensor, rate: int, target_rate: int) -> torch.Tensor:
    """
    Returns the weights of samples in resampled values, a sinc function under a Hann window. Both are given by places,
    which broadcast, in a period of `rate` samples and `target_rate` resampled values (rates in lowest terms).
    """
    cutoff = SINC_ROLLOFF * min(rate, target_rate)
    distance = samples.float() / rate - resampled.float() / target_rate  # in periods
    zeros = (distance * cutoff).clamp(-SINC_ZEROS, SINC_ZEROS)  # in zeros of the sinc function
    angle = zeros * math.pi
    window = torch.cos(angle / (2 * SINC_ZEROS)).square()
    sinc = torch.where(angle == 0, 1.0, angle.sin() / angle)
    return sinc * (window * (cutoff / rate))


def load_waveform(
    audio: Any, sampling_rate: int | None = None, target_sampling_rate: int = 16000, max_seconds: float | None = None
) -> tuple[torch.Tensor, list[str]]:
    """
    Load any audio as a mono waveform at the target rate: resampled ([`resample`]), then averaged over channels.

    Args:
        audio: A path; the bytes of a file, or an open binary file; samples as `np.ndarray`, `torch.Tensor` or list, of
            shape `(samples,)` or `(channels, samples)`, floating point in [-1, 1] or 8 to 32-bit integers; a dict with
            `array` and `sampling_rate`, or with `bytes` and `path` as `datasets.Audio(decode=False)` gives; a
            torchcodec `AudioDecoder`; a [`DecodedAudio`]. Files may have any format libsndfile reads.
        sampling_rate (`int`, *optional*): Rate in Hz of bare samples; files know their own.
        target_sampling_rate (`int`): Rate in Hz of the result.
        max_seconds (`float`, *optional*): Keep only this much of the beginning.

    Returns:
        The waveform, float32 `(samples,)`, and notes on what was done: `resampled: ...`, `mixed down: ...`, `cut: ...`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Empty, truncated or unreadable audio; NaN, infinite or unscaled samples; no rate, or an absurd one.
        OSError: Audio that does not fit into memory, or that another decoder failed on.
        TypeError: Not a kind of audio listed above.
    """
    decoded = audio if isinstance(audio, DecodedAudio) else DecodedAudio(audio, sampling_rate, max_seconds)
    if (math.inf if max_seconds is None else max_seconds) > decoded.max_seconds < decoded.total_seconds:
        raise ValueError(f"{decoded.name}: only the first {decoded.max_seconds:g} s of it were read.")
    waveform, notes = decoded.at(target_sampling_rate)
    if max_seconds is not None and decoded.total_seconds > max_seconds:
        length = f"{decoded.total_seconds:.6g} s" if decoded.total_seconds < math.inf else "unknown length"
        notes.append(f"cut: {length} to {max_seconds:g} s")
        waveform = waveform[: round(max_seconds * target_sampling_rate)]
    return waveform, notes


class DecodedAudio:
    """
    Audio that is read once for several models, and resampled once for each rate. [`load_waveform`] takes it as it takes
    any other audio.

    Args:
        audio, sampling_rate (`int`, *optional*): As for [`load_waveform`].
        max_seconds (`float`, *optional*): The most of the beginning that will be asked for.

    Attributes:
        name (`str`): Its path or kind, for messages.
        max_seconds (`float`): The most that was read.
        total_seconds (`float`): Length of the whole, also if less of it was read.

    Raises:
        FileNotFoundError, ValueError, OSError, TypeError: As [`load_waveform`].
    """

    def __init__(self, audio: Any, sampling_rate: int | None = None, max_seconds: float | None = None):
        self.name, self._waveforms = _name_of(audio), {}
        self.max_seconds = math.inf if max_seconds is None else max_seconds
        with _told_as_os_errors(self.name):
            self._samples, self._rate, self.total_seconds = _read(self.name, audio, sampling_rate, max_seconds)
            _check_samples(self.name, self._samples)

    def at(self, rate: int) -> tuple[torch.Tensor, list[str]]:
        """Returns the mono waveform `(samples,)` at a rate in Hz, float32, and notes on what was done to get it."""
        samples, notes = self._samples, []
        # The published order. Rounding near the log-mel floor makes the reverse differ by up to 0.07 in some features.
        if rate != self._rate:
            notes.append(f"resampled: {self._rate} Hz to {rate} Hz")
        if samples.shape[0] > 1:
            notes.append(f"mixed down: {samples.shape[0]} channels to 1")
        if rate not in self._waveforms:
            with _told_as_os_errors(self.name):
                resampled = samples if rate == self._rate else resample(samples, self._rate, rate)  # (C, N) -> (C, M)
                self._waveforms[rate] = resampled.mean(dim=0)  # (C, M) -> (M,)
        return self._waveforms[rate], notes


@contextmanager
def _told_as_os_errors(name: str) -> Iterator[None]:
    """Raises `OSError`, which names the audio, for what a decoder or a lack of memory raises."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        reason = str(error) or "it does not fit into memory"
        raise OSError(f"{name}: could not be loaded ({reason}). Convert it to a shorter WAV or FLAC file.") from error


def _name_of(audio: Any) -> str:
    """Returns the name of an audio for messages: its path, or its kind."""
    if isinstance(audio, Mapping):
        audio = audio.get("path") or audio.get("bytes")
    if isinstance(audio, (str, os.PathLike)):
        return str(audio)
    if isinstance(audio, (bytes, bytearray)):
        return "<bytes>"
    return str(getattr(audio, "name", "<file>")) if hasattr(audio, "read") else "<array>"


def _read(name: str, audio: Any, rate: int | None, max_seconds: float | None) -> tuple[torch.Tensor, int, float]:
    """Returns samples `(channels, samples)`, float32, their rate in Hz, and the length in seconds before any cut."""
    if isinstance(audio, Mapping):
        if audio.get("array") is not None:
            own_rate = audio.get("sampling_rate")
            return _read(name, audio["array"], rate if own_rate is None else own_rate, max_seconds)
        content = audio.get("bytes") if audio.get("bytes") is not None else audio.get("path")
        if content is None:
            needed = "`array` and `sampling_rate`, or `bytes` or `path`"
            raise ValueError(f"A dict of audio needs {needed}; got the keys {sorted(audio)}.")
        return _read(name, content, None, max_seconds)
    if isinstance(audio, (str, os.PathLike)):
        return _read_file(name, os.fspath(audio), max_seconds)
    if isinstance(audio, (bytes, bytearray)):
        return _read_file(name, bytes(audio), max_seconds)
    if hasattr(audio, "read"):
        content = audio.read()
        if not isinstance(content, bytes):
            raise TypeError(f"{name}: was opened as text; open it in binary mode.")
        return _read_file(name, content, max_seconds)
    if hasattr(audio, "get_all_samples"):
        decoded = audio.get_all_samples()
        return _read(name, decoded.data, decoded.sample_rate, max_seconds)
    if isinstance(audio, (np.ndarray, torch.Tensor, list, tuple)):
        return _read_array(name, audio, rate)
    raise TypeError(f"Audio of type {type(audio).__name__} is not supported: give a path, bytes, an array or a dict.")


class _ForwardFile(soundfile.SoundFile):
    """
    A file read from front to end. Otherwise each `read` ends with a seek to where it is, which changes the next samples
    of an MP3 and fails at the end of a FLAC stream that declares no length, or a wrong one.
    """

    def seekable(self) -> bool:
        return False

    def read_up_to(self, wanted: float) -> np.ndarray:
        """Reads up to so many samples, `(samples, channels)`, float32, into memory that grows as they are found."""
        read = partial(self.read, dtype="float32", always_2d=True)
        blocks = [read(0)]
        while wanted > 0 and len(block := read(min(wanted, BLOCK_SIZE // self.channels))):
            blocks.append(block)
            wanted -= len(block)
        return np.concatenate(blocks)


def _read_file(name: str, content: str | bytes, max_seconds: float | None) -> tuple[torch.Tensor, int, float]:
    """Decode a file, or its bytes, as far as `max_seconds` needs."""
    if isinstance(content, str) and os.path.isdir(content):
        raise ValueError(f"{name}: is a folder, not an audio file.")
    if isinstance(content, str) and not os.path.exists(content):
        raise FileNotFoundError(f"{name}: no such audio file.")
    if (os.path.getsize(content) if isinstance(content, str) else len(content)) == 0:
        raise ValueError(f"{name}: the file is empty (0 bytes).")
    try:
        with _ForwardFile(io.BytesIO(content) if isinstance(content, bytes) else os.fsencode(content)) as file:
            rate, total = file.samplerate, file.frames if file.frames < UNKNOWN_FRAMES else math.inf
            _check_rate(name, rate)
            wanted = total if max_seconds is None else min(total, int((max_seconds + CUT_MARGIN_SECONDS) * rate))
            samples = file.read_up_to(wanted)
            damage = _promised_bytes(file.extra_info)
            if file.format == "OGG" and not _ogg_has_ended(content):
                damage = "its last page is missing"
    except soundfile.LibsndfileError as error:
        reason = f"not audio that libsndfile can read, or broken ({error.error_string.rstrip('.')})"
        raise ValueError(f"{name}: {reason}. Convert it to WAV or FLAC first.") from error
    if len(samples) < wanted:
        if total < math.inf:
            damage = damage or f"{wanted} samples promised, {len(samples)} found"
        total = len(samples)
    if damage:
        raise ValueError(f"{name}: the file is truncated: {damage}. Fetch or export it again.")
    return torch.from_numpy(samples.T), rate, total / rate


def _promised_bytes(extra_info: str) -> str:
    """Returns what libsndfile's log, but no error, says of a data chunk longer than the file, or an empty string."""
    pattern = r"(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)"
    for claimed, found in re.findall(pattern, extra_info):
        if int(found) < int(claimed) < UNKNOWN_LENGTH:
            return f"{claimed} bytes promised, {found} found"
    return ""


def _ogg_has_ended(content: str | bytes) -> bool:
    """Returns True if the last page of an Ogg file is whole and says that it is the last (RFC 3533, section 6)."""
    if isinstance(content, str):
        with open(content, "rb") as file:
            file.seek(max(0, os.path.getsize(content) - LARGEST_OGG_PAGE))
            content = file.read()
    page = content[content.rfind(b"OggS") :]
    if len(page) < 27:
        return False
    header_size = 27 + page[26]  # one byte for the length of each segment
    return bool(page[5] & 4) and len(page) >= header_size + sum(page[27:header_size])


def _read_array(name: str, array: Any, sampling_rate: int | None) -> tuple[torch.Tensor, int, float]:
    """Check and scale samples that came without a file."""
    if sampling_rate is None:
        raise ValueError(
            f"{name}: the sampling rate is missing: give it as `sampling_rate`, or in a dict beside `array`."
        )
    _check_rate(name, sampling_rate)
    samples = array.detach().cpu() if isinstance(array, torch.Tensor) else torch.from_numpy(_as_numbers(name, array))
    if samples.dim() == 1:
        samples = samples.unsqueeze(0)
    if samples.dim() != 2 or samples.shape[0] > max(samples.shape[1], 1):
        shape = tuple(samples.shape)
        raise ValueError(f"{name}: shape {shape} is neither (samples,) nor (channels, samples); transpose it?")
    if not samples.is_floating_point():
        dtype = str(samples.dtype).removeprefix("torch.")
        if dtype not in FULL_SCALE:
            raise ValueError(f"{name}: the scale of {dtype} samples is unknown; {DTYPE_REMEDY}")
        zero, full_scale = FULL_SCALE[dtype]
        samples = (samples.double() - zero) / full_scale
    return samples.float(), int(sampling_rate), samples.shape[1] / sampling_rate


def _as_numbers(name: str, array: Any) -> np.ndarray:
    try:
        numbers = np.require(array, requirements=["C", "W"])
    except ValueError as error:
        raise ValueError(f"{name}: the samples do not form an array ({error}).") from error
    if numbers.dtype.kind not in "iuf" or numbers.dtype.name in ("uint16", "uint32", "uint64"):
        raise ValueError(f"{name}: samples of type {numbers.dtype} are not audio; {DTYPE_REMEDY}")
    native = numbers.dtype.newbyteorder("=") if numbers.itemsize <= 8 else np.float64
    return numbers.astype(native, copy=False)


def _check_rate(name: str, rate: Any) -> None:
    is_whole = isinstance(rate, Number) and not isinstance(rate, bool) and rate % 1 == 0
    if not is_whole or not LOWEST_RATE <= rate <= HIGHEST_RATE:
        wanted = f"a whole number of Hz from {LOWEST_RATE} to {HIGHEST_RATE}"
        raise ValueError(f"{name}: the sampling rate must be {wanted}, not {rate!r}; correct it or resample the sound.")


def _check_samples(name: str, samples: torch.Tensor) -> None:
    """Refuse samples, of shape `(channels, samples)`, whose score would have no meaning."""
    if samples.numel() == 0:
        raise ValueError(f"{name}: the audio has no samples (zero length).")
    invalid = ~torch.isfinite(samples)
    if invalid.any():
        first = int(invalid.any(dim=0).nonzero()[0])
        found = f"{int(invalid.sum())} samples are NaN or infinite, the first at index {first}"
        raise ValueError(f"{name}: {found}; repair the audio first.")
    peak = samples.abs().max().item()
    if peak > LARGEST_PEAK:
        raise ValueError(f"{name}: samples reach {peak:g}, but full scale is 1; divide 16-bit values by 32768.")
