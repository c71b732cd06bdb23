"""Tiny CLAP teachers with random weights, and clips and captions for them."""

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor, PreTrainedTokenizerFast

from modeling_xacle.judges.clap import ClapTeacher

SAMPLING_RATE = 16000
WORDS = ["a", "the", "dog", "barks", "rain", "falls", "bell", "rings", "loud", "quiet", "twice", "and"]
CAPTIONS = ["a dog barks", "rain falls", "the bell rings twice and the dog barks", "a loud bell"]


def make_processor(fusion=False):
    """Windows of one second at 16 kHz, 32 mel bins; a tokenizer of a dozen words."""
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<s>", "<pad>", "</s>", "<unk>", *WORDS])}))
    tokenizer.model.unk_token = "<unk>"
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    extractor = ClapFeatureExtractor(
        feature_size=32,
        sampling_rate=SAMPLING_RATE,
        hop_length=160,
        fft_window_size=512,
        max_length_s=1,
        frequency_max=8000,
        truncation="fusion" if fusion else "rand_trunc",
    )
    return ClapProcessor(extractor, PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names))


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


def save_teacher(folder, seed=0):
    """A tiny teacher with random weights, as a folder."""
    make_model(seed=seed).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


def make_teacher(fusion=False, seed=0):
    return ClapTeacher(make_model(fusion, seed), make_processor(fusion))


def make_clip(seconds, seed=0):
    """A tone that rises through noise, so that no window is like another."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    tone = np.sin(2 * np.pi * (200 + 150 * generator.uniform(1, 8) * time) * time)
    return (0.3 * tone + 0.05 * generator.normal(size=len(time))).astype(np.float32)
