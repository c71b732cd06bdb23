"""The audio encoders that an alignment model can hear with: our own and those of Transformers, behind one contract."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .modeling_beats import BeatsModel
from .modeling_byola import ByolaModel
from .modeling_m2d import M2dModel

# ---------------------------------------------------------------------------------------------------------------------
# Readers: (encoder, features, mask) -> (batch_size, num_tokens, hidden_size). The mask, of shape (batch_size,
# num_frames), is True for sound and False for padding, or `None` if all is sound.

Reader = Callable[[nn.Module, torch.Tensor, torch.Tensor | None], torch.Tensor]


def read_unmasked(encoder: nn.Module, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Reads the last hidden states of an encoder that hears padding as silence."""
    return encoder(features).last_hidden_state


def read_beats(encoder: BeatsModel, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Reads BEATs's states, some clips at a time; it hears padding as silence, as published."""
    encoder.check_input(features)
    parts = features.split(encoder.clips_at_once(features))
    return torch.cat([encoder(clips).last_hidden_state for clips in parts])


def read_masked(name: str) -> Reader:
    """Returns a reader of last hidden states for encoders that take the mask under this name."""
    return lambda encoder, features, mask: encoder(features, **{name: mask}).last_hidden_state


def summarize_unmasked(encoder: nn.Module, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Reads the pooled output `(batch_size, hidden_size)` of an encoder that hears padding as silence."""
    return encoder(features).pooler_output


def summarize_masked(name: str) -> Reader:
    """Returns a reader of pooled outputs `(batch_size, hidden_size)`, for encoders that take the mask by this name."""
    return lambda encoder, features, mask: encoder(features, **{name: mask}).pooler_output


def read_ast(encoder: nn.Module, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Reads AST's patches, time step by time step, without the two tokens in front, which are of the whole clip."""
    config = encoder.config
    num_rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
    patches = encoder(features).last_hidden_state[:, 2:]  # (B, rows * steps, D)
    return patches.unflatten(1, (num_rows, -1)).transpose(1, 2).flatten(1, 2)


def read_clap(encoder: nn.Module, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Reads HTSAT's patches, time step by time step; a model with feature fusion hears each clip as a short one."""
    is_longer = torch.zeros(len(features), 1, dtype=torch.bool, device=features.device)
    grid = encoder(features, is_longer=is_longer).last_hidden_state  # (B, D, rows, steps)
    return grid.flatten(2).unflatten(2, grid.shape[2:]).permute(0, 3, 2, 1).flatten(1, 2)


def read_qwen2_audio(encoder: nn.Module, features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Reads Qwen2-Audio's states; its attention takes an additive mask of the frames behind its convolutions."""
    if mask is not None:
        blocked = torch.zeros_like(mask[:, ::2], dtype=features.dtype)
        blocked = blocked.masked_fill(~mask[:, ::2], torch.finfo(features.dtype).min)  # (B, T)
        mask = blocked[:, None, None].expand(-1, 1, blocked.shape[1], -1)
    return encoder(features, mask).last_hidden_state


# ---------------------------------------------------------------------------------------------------------------------
# Builders, for encoders that `AutoModel` does not build from their configs; imported only then, because that takes long


def build_clap(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds the encoder of CLAP."""
    from transformers import ClapAudioModel

    return ClapAudioModel(config)


def build_whisper(config: PreTrainedConfig) -> PreTrainedModel:
    """Builds the encoder of Whisper, without its decoder."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return WhisperEncoder(config)


# ---------------------------------------------------------------------------------------------------------------------
# Families


@dataclass(frozen=True)
class AudioFamily:
    """
    A family of audio encoders. To add one: an entry in `FAMILIES`.

    Args:
        extractor (`str`): Class of its feature extractor; `FRONT_ENDS` (feature_extraction_towers.py) tells how one
            of Transformers is called.
        read (`Reader`): Computes the states in the order of time.
        summarize (`Reader`, *optional*): Computes the tower's own vector `(batch_size, hidden_size)` of a clip; by
            default, that is the mean of its states.
        build (callable): Makes an encoder with random weights from its config.
        untrained (`tuple` of `str`): How names of weights begin that no gradient reaches, even in training.
        for_summary (`tuple` of `str`): How names of weights begin on which only `summarize` depends.
        keeps_statistics (`bool`): Whether batch norms keep the statistics that they were trained with: those of a few
            pairs are worse, and differ between processes.
        inside (`tuple` of `str`, *optional*): A model type that has such an encoder in it, and the encoder's attribute
            in what `AutoModel` makes of that type.
    """

    extractor: str
    read: Reader = read_unmasked
    summarize: Reader | None = None
    build: Callable[[PreTrainedConfig], PreTrainedModel] = AutoModel.from_config
    untrained: tuple[str, ...] = ()
    for_summary: tuple[str, ...] = ()
    keeps_statistics: bool = True
    inside: tuple[str, str] | None = None


# Of models with feature fusion, for clips that are longer than a window; here, none is.
CLAP_FUSION = tuple(f"audio_encoder.patch_embed.{part}." for part in ("fusion_model", "mel_conv2d"))
WHISPER, WAV2VEC2 = "WhisperFeatureExtractor", "Wav2Vec2FeatureExtractor"
FAMILIES = {
    "xacle_beats": AudioFamily("XacleFeatureExtractor", read_beats, build=BeatsModel),
    "xacle_byola": AudioFamily("ByolaFeatureExtractor", build=ByolaModel, keeps_statistics=False),
    "xacle_m2d": AudioFamily(
        "M2dFeatureExtractor", summarize=summarize_unmasked, build=M2dModel, for_summary=("semantic_",)
    ),
    "audio-spectrogram-transformer": AudioFamily("ASTFeatureExtractor", read_ast),
    "clap_audio_model": AudioFamily(
        "ClapFeatureExtractor", read_clap, build=build_clap, untrained=CLAP_FUSION, inside=("clap", "audio_model")
    ),
    "pe_audio_encoder": AudioFamily(
        "PeAudioFeatureExtractor",
        read_masked("padding_mask"),
        summarize_masked("padding_mask"),
        untrained=("embedder.dac_encoder.", "embedder.bottleneck."),
        inside=("pe_audio", "audio_encoder"),
    ),
    "whisper": AudioFamily(WHISPER, build=build_whisper, inside=("whisper", "encoder")),
    "qwen2_audio_encoder": AudioFamily(WHISPER, read_qwen2_audio, inside=("qwen2_audio", "audio_tower")),
    "audioflamingo3_encoder": AudioFamily(
        WHISPER, read_masked("input_features_mask"), inside=("audioflamingo3", "audio_tower")
    ),
    "wav2vec2-bert": AudioFamily("SeamlessM4TFeatureExtractor", read_masked("attention_mask")),
    "wav2vec2": AudioFamily(WAV2VEC2, read_masked("attention_mask")),
    "wavlm": AudioFamily(WAV2VEC2, read_masked("attention_mask")),
    "hubert": AudioFamily(WAV2VEC2, read_masked("attention_mask")),
}


def audio_family(config: PreTrainedConfig) -> AudioFamily:
    """
    Returns the family of an audio encoder.

    Raises:
        ValueError: There is none for this model type.
    """
    if config.model_type not in FAMILIES:
        raise ValueError(f"There is no audio tower of type {config.model_type}; there are {', '.join(FAMILIES)}.")
    return FAMILIES[config.model_type]


def build_tower(config: PreTrainedConfig) -> PreTrainedModel:
    """Returns an audio encoder with random weights."""
    return audio_family(config).build(config)


def read_tower(
    tower: PreTrainedModel, features: torch.Tensor, mask: torch.Tensor | None = None, summary: bool = False
) -> torch.Tensor:
    """
    Encode clips.

    Args:
        tower (`PreTrainedModel`): An audio encoder of a family.
        features (`torch.Tensor` of shape `(batch_size, ...)`): What the family's feature extractor makes of clips.
        mask (`torch.Tensor` of shape `(batch_size, num_frames)`, *optional*): False for padding.
        summary (`bool`): Read the tower's own vector of the clip, if it makes one, as the only token.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`, in the order of time.
    """
    family, features = audio_family(tower.config), features.to(tower.dtype)
    if summary and family.summarize is not None:
        return family.summarize(tower, features, mask)[:, None]  # (B, D) -> (B, 1, D)
    return family.read(tower, features, mask)


def pool_tokens(states: torch.Tensor, num_tokens: int, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    Average-pools the part of each clip that is sound to a number of tokens.

    Args:
        states (`torch.Tensor` of shape `(batch_size, states, hidden_size)`): In the order of time.
        num_tokens (`int`): Tokens to make of them, more or fewer than there are states.
        mask (`torch.Tensor` of shape `(batch_size, num_frames)`, *optional*): False for the padding at the end.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_tokens, hidden_size)`.
    """
    if mask is None:
        return nn.functional.adaptive_avg_pool1d(states.transpose(1, 2), num_tokens).transpose(1, 2)
    lengths = (mask.sum(dim=1) * states.shape[1] / mask.shape[1]).ceil().long().clamp(min=1)[:, None]  # (B, 1)
    places = torch.arange(num_tokens, device=states.device)
    first, last = places * lengths // num_tokens, -(-(places + 1) * lengths // num_tokens)  # 2 x (B, N)
    states_at = torch.arange(states.shape[1], device=states.device)
    weights = ((first[..., None] <= states_at) & (states_at < last[..., None])).to(states.dtype)  # (B, N, S)
    return (weights / weights.sum(dim=-1, keepdim=True)) @ states


__all__ = ["AudioFamily", "audio_family", "build_tower", "pool_tokens", "read_tower"]
