"""Feature extraction for audio towers of Transformers: their own extractors, behind this package's loading."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from transformers import FeatureExtractionMixin

from .feature_extraction_xacle import WindowFeatureExtractor

# The challenge's clips are as long; the window of front ends that have none of their own.
USUAL_SECONDS = 10.0
# Shorter sounds get silence at their end, because some front ends need a few frames.
SHORTEST_SECONDS = 0.1


@dataclass(frozen=True)
class FrontEnd:
    """
    How a feature extractor of Transformers is called so that all clips become equally long.

    Args:
        arguments (callable): From the extractor and the window's length in seconds, arguments of its call.
        seconds (callable, *optional*): From the extractor, the longest window in seconds that its models take; `None`
            if they take any.
        mask (`str`, *optional*): Under which name it tells sound from padding, if it does.
        axes (`tuple` of `int`, *optional*): Which axes of a clip's features are time and mel bins; `None` if the
            features are no spectrogram.
    """

    arguments: Callable[[Any, float], dict[str, Any]] = lambda extractor, seconds: {}
    seconds: Callable[[Any], float] | None = None
    mask: str | None = None
    axes: tuple[int, int] | None = None


def padded(extractor: Any, seconds: float) -> dict[str, Any]:
    """Returns arguments that pad waveforms to the window."""
    return {"padding": "max_length", "max_length": round(seconds * extractor.sampling_rate)}


FRONT_ENDS = {
    "ASTFeatureExtractor": FrontEnd(seconds=lambda extractor: extractor.max_length / 100, axes=(0, 1)),
    "ClapFeatureExtractor": FrontEnd(seconds=lambda extractor: extractor.max_length_s, axes=(1, 2)),
    "PeAudioFeatureExtractor": FrontEnd(padded, mask="padding_mask"),
    "SeamlessM4TFeatureExtractor": FrontEnd(
        lambda extractor, seconds: {"padding": "max_length", "max_length": round(100 * seconds)},  # frames
        mask="attention_mask",
        axes=(0, 1),
    ),
    "Wav2Vec2FeatureExtractor": FrontEnd(
        lambda extractor, seconds: {**padded(extractor, seconds), "return_attention_mask": True},
        mask="attention_mask",
    ),
    "WhisperFeatureExtractor": FrontEnd(
        lambda extractor, seconds: {"return_attention_mask": True},
        seconds=lambda extractor: extractor.chunk_length,
        mask="attention_mask",
        axes=(1, 0),
    ),
}


def make_front_end(settings: dict[str, Any] | FeatureExtractionMixin) -> FeatureExtractionMixin:
    """
    Returns a feature extractor of Transformers, from its settings if it is not one already.

    Raises:
        ValueError: Its class is not in `FRONT_ENDS`.
    """
    name = settings.get("feature_extractor_type") if isinstance(settings, dict) else type(settings).__name__
    if name not in FRONT_ENDS:
        raise ValueError(f"There is no front end {name}; there are {', '.join(FRONT_ENDS)}.")
    return getattr(transformers, name).from_dict(settings) if isinstance(settings, dict) else settings


class XacleTowerFeatureExtractor(WindowFeatureExtractor):
    r"""
    Turns audio into what an audio tower hears, by that tower's own feature extractor.

    Args:
        front_end (`FeatureExtractionMixin` or `dict`): That extractor, or its settings.
        max_seconds (`float`, *optional*): Length in seconds to which audio is padded or cut; at most, and by default,
            what the tower takes, or 10 s where it takes any length.

    Raises:
        ValueError: There is no such front end, or its window is shorter than `max_seconds`.
    """

    def __init__(
        self, front_end: FeatureExtractionMixin | dict[str, Any], max_seconds: float | None = None, **kwargs: Any
    ):
        self.front_end = make_front_end(front_end)
        longest = self.kind.seconds and self.kind.seconds(self.front_end)
        if max_seconds is not None and not SHORTEST_SECONDS <= max_seconds <= (longest or float("inf")):
            limit = f"from {SHORTEST_SECONDS:g} s" + (f" to {longest:g} s" if longest else "")
            raise ValueError(f"max_seconds={max_seconds:g}: {type(self.front_end).__name__} takes windows {limit}.")
        kwargs |= {"sampling_rate": self.front_end.sampling_rate, "feature_size": self.front_end.feature_size}
        super().__init__(**{"padding_value": 0.0, **kwargs})
        self.max_seconds = max_seconds or longest or USUAL_SECONDS
        self.model_input_names = ["input_features", *(["input_features_mask"] if self.kind.mask else [])]

    @property
    def kind(self) -> FrontEnd:
        """How the tower's extractor is called."""
        return FRONT_ENDS[type(self.front_end).__name__]

    @property
    def axes(self) -> tuple[int, int] | None:
        """Which axes of a clip's features are time and mel bins; `None` if they are no spectrogram."""
        return self.kind.axes

    def encode(
        self, waveforms: Sequence[torch.Tensor], device: str | torch.device | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Returns `input_features`, as the tower's extractor makes them of mono waveforms `(samples,)` at `sampling_rate`,
        and, if it tells sound from padding, `input_features_mask` of shape `(batch_size, num_frames)`, True for sound.
        """
        shortest, longest = (round(seconds * self.sampling_rate) for seconds in (SHORTEST_SECONDS, self.max_seconds))
        clips = [np.pad(clip[:longest].cpu().numpy(), (0, max(0, shortest - len(clip)))) for clip in waveforms]
        arguments = self.kind.arguments(self.front_end, self.max_seconds)
        found = self.front_end(clips, sampling_rate=self.sampling_rate, return_tensors="pt", **arguments)
        encoded = {"input_features": found[self.front_end.model_input_names[0]].to(device or "cpu")}
        if self.kind.mask is not None:
            encoded["input_features_mask"] = found[self.kind.mask].bool().to(device or "cpu")
        return encoded

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings, those of the tower's own extractor among them."""
        return {**super().to_dict(), "front_end": self.front_end.to_dict()}


__all__ = ["XacleTowerFeatureExtractor"]
