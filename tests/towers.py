"""Tiny audio towers of every family but BEATs, with random weights and the feature extractors of the real ones."""

import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTModel,
    AudioFlamingo3Encoder,
    AudioFlamingo3EncoderConfig,
    ClapAudioConfig,
    ClapAudioModel,
    ClapFeatureExtractor,
    HubertConfig,
    HubertModel,
    PeAudioEncoder,
    PeAudioEncoderConfig,
    PeAudioFeatureExtractor,
    Qwen2AudioEncoder,
    Qwen2AudioEncoderConfig,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperModel,
)

from modeling_xacle import (
    ByolaConfig,
    ByolaFeatureExtractor,
    ByolaModel,
    M2dConfig,
    M2dFeatureExtractor,
    M2dModel,
)

SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WHISPER_SIZE = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
DECODER = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "vocab_size": 60}
DECODER |= {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
DAC = {"encoder_hidden_size": 4, "codebook_dim": 8, "hidden_size": 64, "downsampling_ratios": [2, 8, 10, 12]}
WAVES = SIZE | {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2}
CLAP = {"patch_embeds_hidden_size": 8, "depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 16}

# By model type: how the model is built, its config, and its feature extractor.
TOWERS = {
    "xacle_byola": (ByolaModel, ByolaConfig(num_channels=2, projection_size=8), ByolaFeatureExtractor(mel_mean=-5.0)),
    "xacle_m2d": (M2dModel, M2dConfig(**SIZE), M2dFeatureExtractor(mel_mean=-7.0, mel_std=4.0)),
    "audio-spectrogram-transformer": (ASTModel, ASTConfig(**SIZE, max_length=1024), ASTFeatureExtractor()),
    "clap_audio_model": (
        ClapAudioModel,
        ClapAudioConfig(**CLAP, num_hidden_layers=2),
        ClapFeatureExtractor(truncation="rand_trunc"),
    ),
    "pe_audio_encoder": (
        PeAudioEncoder,
        PeAudioEncoderConfig(**SIZE, dac_config=DAC, head_dim=8),
        PeAudioFeatureExtractor(),
    ),
    "whisper": (WhisperModel, WhisperConfig(**WHISPER_SIZE, **DECODER), WhisperFeatureExtractor()),
    "qwen2_audio_encoder": (
        Qwen2AudioEncoder,
        Qwen2AudioEncoderConfig(**WHISPER_SIZE),
        WhisperFeatureExtractor(feature_size=128),
    ),
    "audioflamingo3_encoder": (
        AudioFlamingo3Encoder,
        AudioFlamingo3EncoderConfig(**SIZE),
        WhisperFeatureExtractor(feature_size=128),
    ),
    "wav2vec2-bert": (Wav2Vec2BertModel, Wav2Vec2BertConfig(**SIZE), SeamlessM4TFeatureExtractor()),
    "wav2vec2": (Wav2Vec2Model, Wav2Vec2Config(**WAVES), Wav2Vec2FeatureExtractor()),
    "wavlm": (WavLMModel, WavLMConfig(**WAVES), Wav2Vec2FeatureExtractor()),
    "hubert": (HubertModel, HubertConfig(**WAVES), Wav2Vec2FeatureExtractor()),
}


def save_tower(kind, folder):
    """Save a tiny tower of a family, or a model that has one in it, as the library does: the folder."""
    build, config, extractor = TOWERS[kind]
    torch.manual_seed(0)
    build(config).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return folder
