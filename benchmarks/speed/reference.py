"""
The reference design: a model's own weights, run as the published system runs them (arXiv 2602.00604 and its released
code; BEATs, arXiv 2212.09058), for comparison.

Spectrograms are computed one by one. Attention is written out; the buckets of its relative position bias are computed
in each pass, and the bias is copied for every clip and gated again in every layer. The convolution computes its weight
from direction and norm in each pass. Captions are padded between text and audio, a mask hides the padding, and an
end-of-sequence token follows `[SCORE]`. The clip is encoded again for each caption, in training at every step.
"""

import copy
import math
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModel

from modeling_xacle.feature_extraction_xacle import WAVEFORM_SCALE, XacleFeatureExtractor
from modeling_xacle.modeling_beats import BeatsAttention, BeatsLayer, BeatsModel
from modeling_xacle.modeling_captioning import XacleForConditionalGeneration
from modeling_xacle.modeling_xacle import XacleModel, XacleProjector, XacleScoreHead
from modeling_xacle.processing_xacle import IGNORED

# Logits are divided by this before their maximum is subtracted, and multiplied by it afterwards.
LOGIT_SHRINKAGE = 32.0


def log_mel(extractor: XacleFeatureExtractor, waveforms: torch.Tensor) -> torch.Tensor:
    """
    Computes normalised spectrograms `(batch_size, num_frames, num_mel_bins)` of waveforms `(batch_size, samples)` with
    torchaudio, as published.
    """
    try:
        from torchaudio.compliance import kaldi
    except ImportError as error:
        raise ImportError("The reference's spectrograms need torchaudio: `pip install -e '.[torchaudio]'`.") from error
    clips = [
        kaldi.fbank(
            waveform[None] * WAVEFORM_SCALE,
            num_mel_bins=extractor.feature_size,
            sample_frequency=extractor.sampling_rate,
            frame_length=extractor.frame_length_ms,
            frame_shift=extractor.frame_shift_ms,
        )
        for waveform in waveforms
    ]
    return (torch.stack(clips) - extractor.mel_mean) / (2 * extractor.mel_std)


def position_bias(tower: BeatsModel, clips: int, tokens: int) -> torch.Tensor:
    """Returns the bias with a copy for each clip: `(batch_size, num_heads, num_tokens, num_tokens)`."""
    config, weight = tower.config, tower.relative_position_bias.weight
    places = torch.arange(tokens, device=weight.device)
    distance = places[None, :] - places[:, None]
    half = config.relative_position_num_buckets // 2
    near, length = half // 2, distance.abs()
    steps = (length.clamp(min=1).float() / near).log() / math.log(config.relative_position_max_distance / near)
    far = (near + (steps * (half - near)).long()).clamp(max=half - 1)
    buckets = torch.where(length < near, length, far) + half * (distance > 0)
    return tower.relative_position_bias(buckets).permute(2, 0, 1).repeat(clips, 1, 1, 1)


def attend(attention: BeatsAttention, hidden_states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Computes attention step by step; input and output are `(batch_size, num_tokens, hidden_size)`."""
    clips, tokens, size = hidden_states.shape
    heads, head = attention.num_heads, attention.head_dim

    query, key, value = (
        project(hidden_states).view(clips, tokens, heads, head).transpose(1, 2).reshape(clips * heads, tokens, head)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )  # (B, N, D) -> 3 x (B * H, N, D / H)
    logits = torch.bmm(query * head**-0.5 / LOGIT_SHRINKAGE, key.transpose(1, 2))
    logits = (logits - logits.max(dim=-1, keepdim=True).values) * LOGIT_SHRINKAGE
    gates = torch.sigmoid(attention.gate_proj(query).view(clips, heads, tokens, 2, 4).sum(dim=-1))
    update, reset = gates.chunk(2, dim=-1)
    gated = (update * (reset * attention.gate_scale - 1) + 2) * bias  # (B, H, N, N)
    weights = functional.softmax(logits + gated.view(clips * heads, tokens, tokens), dim=-1)
    attended = torch.bmm(weights, value).view(clips, heads, tokens, head).transpose(1, 2)
    return attention.out_proj(attended.reshape(clips, tokens, size))


def encoder_layer(layer: BeatsLayer, hidden_states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Runs a layer; input and output are `(batch_size, num_tokens, hidden_size)`."""
    attended = attend(layer.self_attn, hidden_states, bias)
    hidden_states = layer.self_attn_layer_norm(hidden_states * layer.residual_scale + attended)
    expanded = layer.fc2(layer.activation(layer.fc1(hidden_states)))
    return layer.final_layer_norm(hidden_states * layer.residual_scale + expanded)


def convolve(tower: BeatsModel, hidden_states: torch.Tensor) -> torch.Tensor:
    """Computes the position embedding `(batch_size, num_tokens, hidden_size)`; the weight is direction times norm."""
    convolution = tower.conv_position.conv
    direction = convolution.weight
    norm = direction.norm(dim=(0, 1), keepdim=True)
    weight = norm * direction / direction.norm(dim=(0, 1), keepdim=True)
    positions = functional.conv1d(
        hidden_states.transpose(1, 2), weight, convolution.bias, 1, convolution.padding, 1, convolution.groups
    )
    return functional.gelu(positions[:, :, : hidden_states.shape[1]]).transpose(1, 2)


@torch.no_grad()
def audio_features(model: XacleModel, input_features: torch.Tensor) -> torch.Tensor:
    """Encodes spectrograms `(batch_size, T, F)` as features `(batch_size, num_audio_tokens, audio_hidden_size)`."""
    tower = model.audio_tower
    tokens = tower.patch_embedding(input_features[:, None]).flatten(2).transpose(1, 2)
    hidden_states = tower.patch_projection(tower.patch_layer_norm(tokens))
    hidden_states = tower.layer_norm(hidden_states + convolve(tower, hidden_states))
    bias = position_bias(tower, *hidden_states.shape[:2])
    for layer in tower.layers:
        hidden_states = encoder_layer(layer, hidden_states, bias)
    return functional.adaptive_avg_pool1d(hidden_states.transpose(1, 2), model.config.num_audio_tokens).transpose(1, 2)


def score(model: XacleModel, captions: list[list[int]], features: torch.Tensor) -> torch.Tensor:
    """
    Computes logits `(batch_size,)` of captions (token ids), each with a clip's features, `(batch_size,
    num_audio_tokens, audio_hidden_size)`.
    """
    config, device = model.config, features.device
    longest = max(map(len, captions))
    lengths = torch.tensor([len(ids) for ids in captions], device=device)
    end = config.end_token_id or 0
    text = torch.tensor([ids + [end] * (longest - len(ids)) for ids in captions], device=device)
    mask = torch.ones(len(captions), longest + config.num_audio_tokens + 4, dtype=torch.long, device=device)
    mask[:, :longest] = torch.arange(longest, device=device) < lengths[:, None]
    embed = model.get_input_embeddings()
    ids = (config.audio_start_token_id, config.audio_end_token_id, config.score_token_id, end)
    start, audio_end, score_token, last = (embed(torch.full((len(captions), 1), token, device=device)) for token in ids)
    embeddings = [embed(text), start, model.projector(features), audio_end, score_token, last]  # each (B, ., H)
    states = model.language_model(
        inputs_embeds=torch.cat(embeddings, dim=1), attention_mask=mask, use_cache=False
    ).last_hidden_state
    return model.score_head(states[:, -2])


def caption_loss(
    model: XacleForConditionalGeneration, input_ids: torch.Tensor, labels: torch.Tensor, features: torch.Tensor
) -> torch.Tensor:
    """
    Computes the cross entropy of captions `(batch_size, sequence_length)` after the sound, as stage 1 needs it. This is
    our own plain form, because stage 1 of the published code was not released.
    """
    inputs_embeds = model.model.embed(input_ids, features)
    states = model.model.language_model(
        inputs_embeds=inputs_embeds, attention_mask=torch.ones_like(input_ids), use_cache=False
    ).last_hidden_state
    logits = model.model.lm_head(states)[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED)


PUBLISHED_VOCABULARY = 151_936  # rows in the language model's own embedding, before unused tokens are cut


def save_parts(model: XacleModel, folder: Path) -> None:
    """Write the files that the published code loads: the encoder's, the language model's folder, the whole model's."""
    torch.save(model.audio_tower.state_dict(), folder / "beats.pt")
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("lm_head.")}
    torch.save(state, folder / "model.pt")
    language_model = copy.deepcopy(model.language_model)
    language_model.resize_token_embeddings(max(PUBLISHED_VOCABULARY, model.config.text_config.vocab_size))
    language_model.save_pretrained(folder / "llm")


def load(model: XacleModel, folder: Path) -> XacleModel:
    """
    Loads a model as the published code does: builds each part by itself, the encoder and the language model from their
    pretrained files, projector and head with random weights, then replaces all weights by those of one file.

    Args:
        model (`XacleModel`): A model with the same config.
        folder (`Path`): Folder that [`save_parts`] wrote.
    """
    config = model.config
    with torch.device("meta"):
        loaded = XacleModel(config)
    loaded.audio_tower = BeatsModel(config.audio_config)
    loaded.audio_tower.load_state_dict(torch.load(folder / "beats.pt", weights_only=True))
    loaded.language_model = AutoModel.from_pretrained(folder / "llm", dtype=torch.float32)
    loaded.language_model.resize_token_embeddings(config.text_config.vocab_size)
    loaded.projector, loaded.score_head = XacleProjector(config), XacleScoreHead(config)
    loaded.lm_head = None  # the published system has none
    loaded.load_state_dict(torch.load(folder / "model.pt", map_location=model.device, weights_only=True))
    return loaded.to(model.device).eval()
