"""Tiny contrastive teachers with random weights, and clips and captions for them."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    PeAudioConfig,
    PeAudioFeatureExtractor,
    PeAudioModel,
    PeAudioProcessor,
    PreTrainedTokenizerFast,
    RobertaModel,
)

from modeling_xacle.judges.contrastive import ContrastiveTeacher

SAMPLING_RATE = 16000
WORDS = ["a", "the", "dog", "barks", "rain", "falls", "bell", "rings", "loud", "quiet", "twice", "and"]
CAPTIONS = ["a dog barks", "rain falls", "the bell rings twice and the dog barks", "a loud bell"]


def make_tokenizer():
    """A dozen words, and special tokens around each text, as in RoBERTa."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}))
    tokenizer.model.unk_token = "<unk>"
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def make_processor(fusion=False):
    """Windows of one second at 16 kHz, 32 mel bins."""
    extractor = ClapFeatureExtractor(
        feature_size=32,
        sampling_rate=SAMPLING_RATE,
        hop_length=160,
        fft_window_size=512,
        max_length_s=1,
        frequency_max=8000,
        truncation="fusion" if fusion else "rand_trunc",
    )
    return ClapProcessor(extractor, make_tokenizer())


def make_model(fusion=False, seed=0):
    torch.manual_seed(seed)
    audio_config = {
        "num_mel_bins": 32,
        "spec_size": 64,
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "num_hidden_layers": 2,
        "enable_fusion": fusion,
        "initializer_factor": 3.0,
    }
    text_config = {
        "vocab_size": len(WORDS) + 4,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 24,
        "initializer_factor": 3.0,
    }
    return ClapModel(ClapConfig(audio_config=audio_config, text_config=text_config, projection_dim=8)).eval()


def make_pe_processor():
    """Frames of 20 ms at 16 kHz."""
    extractor = PeAudioFeatureExtractor(sampling_rate=SAMPLING_RATE, hop_length=320)
    return PeAudioProcessor(extractor, make_tokenizer())


def make_pe_model(seed=0):
    """A PE-AV model for sound and text, with weights large enough to tell clips apart."""
    torch.manual_seed(seed)
    special = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text_config = {**sizes, **special, "model_type": "modernbert", "vocab_size": len(WORDS) + 4}
    codec = {"downsampling_ratios": [8, 40], "upsampling_ratios": [40, 8], "encoder_hidden_size": 4, "hidden_size": 16}
    codec |= {"decoder_hidden_size": 16, "n_codebooks": 1, "codebook_size": 8, "codebook_dim": 8}
    audio_config = {**sizes, "head_dim": 8, "dac_config": codec}
    text_config["max_position_embeddings"] = 22
    model = PeAudioModel(PeAudioConfig(text_config=text_config, audio_config=audio_config)).eval()
    for name, weights in model.named_parameters():
        if weights.ndim > 1 and "alpha" not in name:
            torch.nn.init.normal_(weights, std=weights[0].numel() ** -0.5)
    return model


def save_text_encoder(folder, kind=RobertaModel, **settings):
    """A tiny text encoder with random weights and its tokenizer, as a folder."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = kind.config_class(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **size, **settings)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_pe_teacher(folder, seed=0):
    """A tiny PE-AV teacher with random weights, as a folder."""
    make_pe_model(seed).save_pretrained(folder)
    make_pe_processor().save_pretrained(folder)
    return folder


def save_teacher(folder, seed=0):
    """A tiny teacher with random weights, as a folder."""
    make_model(seed=seed).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def make_teacher(fusion=False, seed=0):
    return ContrastiveTeacher(make_model(fusion, seed), make_processor(fusion))


def make_clip(seconds, seed=0):
    """A tone that rises through noise, so that no window is like another."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    tone = np.sin(2 * np.pi * (200 + 150 * generator.uniform(1, 8) * time) * time)
    return (0.3 * tone + 0.05 * generator.normal(size=len(time))).astype(np.float32)
