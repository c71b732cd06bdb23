"""The families of contrastive models that judge pairs: what differs between them, one entry each in `FAMILIES`."""

from typing import Any

import torch
from transformers import (
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PeAudioFeatureExtractor,
    PeAudioModel,
    PeAudioProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from ..waveforms_xacle import load_waveform
from .judge_pipeline import sound_windows

PE_WINDOW_SECONDS = 30


class Family:
    """
    What a family of contrastive models has to say of itself. Its members need not be alike in anything else.

    Attributes:
        model_class (`type`), processor_class (`type`): Classes of Transformers.
        example (`str`): A checkpoint whose processor may be borrowed.
    """

    model_class: type[PreTrainedModel]
    processor_class: type[ProcessorMixin]
    example: str

    def config(self, found: PreTrainedConfig) -> PreTrainedConfig:
        """Returns the configuration for `model_class`, given the one found beside the weights."""
        return found

    def check(self, model: PreTrainedModel, extractor: Any) -> None:
        """Raises `ValueError` if the feature extractor is another model's."""

    def window_samples(self, extractor: Any) -> int:
        """Returns the length in samples of the longest window that is embedded at once."""
        raise NotImplementedError

    def padded_samples(self, extractor: Any, num_samples: int) -> int:
        """Returns the length in samples that a window of `num_samples` has after padding."""
        raise NotImplementedError

    def features(self, extractor: Any, windows: list[Any]) -> torch.Tensor:
        """Returns the features `(num_windows, ...)` of windows of equal length, each of shape `(num_samples,)`."""
        raise NotImplementedError

    def embed_windows(self, model: PreTrainedModel, features: torch.Tensor) -> torch.Tensor:
        """Embeds windows: `(num_windows, ...)` -> `(num_windows, embedding_size)`, of any length."""
        raise NotImplementedError

    def embed_text(self, model: PreTrainedModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Embeds captions: `input_ids` and `attention_mask` `(B, T)` -> `(B, embedding_size)`, of any length."""
        raise NotImplementedError

    def embedding_size(self, config: PreTrainedConfig) -> int:
        """Returns the length of an embedding."""
        raise NotImplementedError

    def max_text_tokens(self, config: PreTrainedConfig) -> int:
        """Returns the most tokens that the text encoder takes."""
        return config.text_config.max_position_embeddings

    def clip_features(
        self, extractor: Any, audio: Any, sampling_rate: int | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """
        Computes the features of a whole clip, in windows of at most `window_samples`, back to back.

        Args:
            extractor: The feature extractor of the model that will see the features.
            audio: Whatever [`load_waveform`] takes; it is resampled to the extractor's rate.
            sampling_rate (`int`, *optional*): Rate in Hz of bare samples.

        Returns:
            The features of all full windows and, if there is one, of the shorter last one, each of shape
            `(num_windows, ...)`; and `weights` of shape `(num_windows,)`: each window's share of the clip's length.

        Raises:
            FileNotFoundError, ValueError, TypeError: As [`load_waveform`].
        """
        waveform, _ = load_waveform(audio, sampling_rate, extractor.sampling_rate)
        spans = sound_windows(len(waveform), self.window_samples(extractor))
        lengths = [end - start for start, end in spans]
        features = [
            self.features(extractor, [waveform[start:end].numpy() for start, end in spans if end - start == length])
            for length in dict.fromkeys(lengths)
        ]
        weights = torch.tensor(lengths, dtype=torch.float32)
        return features, weights / weights.sum()


class ClapFamily(Family):
    """
    CLAP: log-mel windows of one length. Its extractor repeats and pads a window that is not full, as in training; by
    itself it would crop a longer clip at random.
    """

    model_class, processor_class = ClapModel, ClapProcessor
    example = "laion/clap-htsat-unfused"

    def check(self, model: ClapModel, extractor: ClapFeatureExtractor) -> None:
        """A fused model takes four spectrograms of a clip, others one, with other filters."""
        fusion = model.config.audio_config.enable_fusion
        if fusion != (extractor.truncation == "fusion"):
            raise ValueError(
                f"The model has {'' if fusion else 'no '}feature fusion, but its processor says "
                f'truncation="{extractor.truncation}": name the processor of a '
                f"{'fused' if fusion else 'unfused'} checkpoint, such as "
                f"laion/clap-htsat-{'fused' if fusion else 'unfused'}."
            )

    def window_samples(self, extractor: ClapFeatureExtractor) -> int:
        """Returns the length of the model's window."""
        return extractor.nb_max_samples

    def padded_samples(self, extractor: ClapFeatureExtractor, num_samples: int) -> int:
        """Returns the same length for every window."""
        return extractor.nb_max_samples

    def features(self, extractor: ClapFeatureExtractor, windows: list[Any]) -> torch.Tensor:
        """Returns log-mel spectrograms in dB, `(num_windows, num_channels, num_frames, num_mel_bins)`."""
        return extractor(windows, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_features"]

    def embed_windows(self, model: ClapModel, features: torch.Tensor) -> torch.Tensor:
        """No window counts as "longer": for models with fusion, the library's extractor marks a random clip so."""
        is_longer = torch.zeros(len(features), 1, dtype=torch.bool, device=features.device)
        return model.get_audio_features(features, is_longer=is_longer).pooler_output

    def embed_text(self, model: ClapModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns the text tower's projected output."""
        return model.get_text_features(**tokens).pooler_output

    def embedding_size(self, config: PreTrainedConfig) -> int:
        """Returns the size of the projection."""
        return config.projection_dim

    def max_text_tokens(self, config: PreTrainedConfig) -> int:
        """Positions count from the padding id, as in RoBERTa."""
        return config.text_config.max_position_embeddings - config.text_config.pad_token_id - 1


class PeAudioFamily(Family):
    """
    PE-AV's sound and text towers (arXiv 2512.19687), which take sounds of any length.

    A sound of up to 30 s is heard whole; a longer one in windows, because attention grows with the square of the length
    and the waveform encoder holds 64 channels at the full rate (12 MB a second). Windows of different lengths are never
    padded to each other: the encoder's convolutions have biases, so that padding would leak into the last frames.

    The model's own logit is a scaled product of embeddings of any length; the cosine leaves their lengths out, so the
    two may order pairs differently.
    """

    model_class, processor_class = PeAudioModel, PeAudioProcessor
    example = "facebook/pe-av-large"

    def config(self, found: PreTrainedConfig) -> PreTrainedConfig:
        """Returns the part for sound and text of a checkpoint that knows pictures too."""
        return found if found.model_type == "pe_audio" else found.audio_config

    def check(self, model: PeAudioModel, extractor: PeAudioFeatureExtractor) -> None:
        """One frame of the encoder must be what the extractor pads to."""
        hop = model.config.audio_config.dac_config.hop_length
        if getattr(extractor, "hop_length", None) != hop:
            raise ValueError(
                f"The model has frames of {hop} samples, but its processor pads to frames of "
                f"{getattr(extractor, 'hop_length', 'no size')}: name the model's own, such as that of {self.example}."
            )

    def window_samples(self, extractor: PeAudioFeatureExtractor) -> int:
        """Returns 30 s of samples, in whole frames."""
        return PE_WINDOW_SECONDS * extractor.sampling_rate // extractor.hop_length * extractor.hop_length

    def padded_samples(self, extractor: PeAudioFeatureExtractor, num_samples: int) -> int:
        """Returns the length in whole frames, which the extractor fills by reflection."""
        return -(-num_samples // extractor.hop_length) * extractor.hop_length

    def features(self, extractor: PeAudioFeatureExtractor, windows: list[Any]) -> torch.Tensor:
        """Returns samples, `(num_windows, 1, num_samples)`."""
        return extractor(windows, sampling_rate=extractor.sampling_rate, return_tensors="pt")["input_values"]

    def embed_windows(self, model: PeAudioModel, features: torch.Tensor) -> torch.Tensor:
        """Returns the projected class token."""
        return model.get_audio_embeds(features)

    def embed_text(self, model: PeAudioModel, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
        """Returns what the model's forward does; its `get_text_audio_embeds` fails in Transformers 5.24."""
        return model.text_audio_head(model.text_model(**tokens).last_hidden_state[:, 0])

    def embedding_size(self, config: PreTrainedConfig) -> int:
        """Returns the size of the text encoder's states, which both heads project to."""
        return config.text_config.hidden_size


FAMILIES: dict[str, Family] = {"clap": ClapFamily(), "pe_audio": PeAudioFamily(), "pe_audio_video": PeAudioFamily()}
