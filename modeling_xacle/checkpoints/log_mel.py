"""Mean and standard deviation of a training split's log-mel energies, to which a front end normalises."""

from collections.abc import Iterable
from typing import Any

from ..feature_extraction_mel import LogMelFeatureExtractor


def measure_log_mel(extractor: LogMelFeatureExtractor, audios: Iterable[Any]) -> tuple[float, float]:
    """
    Returns the mean and the standard deviation of all log-mel energies of a training split, one number each for all mel
    bins: values of the extractor's `mel_mean` and `mel_std`. Clips are padded or cut as the model hears them.

    Args:
        extractor (`LogMelFeatureExtractor`): The front end.
        audios (iterable): The split's clips, each as [`load_waveform`] takes it: the column `audio` of a dataset.

    Raises:
        ValueError: There is no clip, a clip cannot be read, or all energies are equal.
    """
    count, total, total_squares = 0, 0.0, 0.0
    for audio in audios:
        waveform, _ = extractor.load(audio)
        energies = extractor.log_energies(extractor.fit(waveform)[None]).double()  # (1, T, F)
        count += energies.numel()
        total += energies.sum().item()
        total_squares += energies.square().sum().item()
    if not count:
        raise ValueError("There is no clip to measure log-mel energies of: the training split is empty.")
    mean = total / count
    std = max(0.0, total_squares / count - mean**2) ** 0.5
    if not std > 1e-6:  # what rounding leaves of silence
        raise ValueError("All log-mel energies are equal, as of silence: the training split has no sound.")
    return mean, std
