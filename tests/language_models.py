"""Tiny audio language models with random weights, as folders, and the tokenizer that they share."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

SPECIAL = ["<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
WORDS = ["yes", "no", "Yes", "No", "NO", "a", "the", "dog", "barks", "rain", "falls", "bell", "rings", "loud", "twice"]
WORDS += [
    "and",
    "Does",
    "this",
    "caption",
    "describe",
    "sound",
    "Answer",
    "or",
    "user",
    "assistant",
    "system",
    "?",
    '"',
]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}<|AUDIO|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)
LONGEST = 3  # seconds that the Audio Flamingo takes


def make_tokenizer(words=WORDS):
    """Words at spaces and signs; the special tokens of Qwen's conversations."""
    tokens = {token: number for number, token in enumerate([*SPECIAL, *words])}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=SPECIAL[2:], **names)


def make_processor(family="qwen2_audio", words=WORDS):
    """Windows of one second at 16 kHz."""
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    if family == "qwen2_audio":
        return Qwen2AudioProcessor(extractor, make_tokenizer(words))
    options = {"chat_template": TEMPLATE, "audio_token": "<|AUDIO|>", "max_audio_len": LONGEST}
    return AudioFlamingo3Processor(extractor, make_tokenizer(words), **options)


def make_model(family="qwen2_audio", seed=0):
    """A model whose weights are large enough to tell sounds and captions apart."""
    torch.manual_seed(seed)
    text = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    text |= {"model_type": "qwen2", "num_hidden_layers": 2, "vocab_size": len(SPECIAL + WORDS)}
    audio = {"num_mel_bins": 16, "max_source_positions": 50}
    token = SPECIAL.index("<|AUDIO|>")
    if family == "qwen2_audio":
        audio |= {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
        config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_id=token)
        model = Qwen2AudioForConditionalGeneration(config)
    else:
        audio |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = AudioFlamingo3Config(audio_config=audio, text_config=text, audio_token_id=token)
        model = AudioFlamingo3ForConditionalGeneration(config)
    for weights in model.parameters():
        if weights.ndim > 1:
            torch.nn.init.normal_(weights, std=1.5 * weights[0].numel() ** -0.5)
    return model.eval()


def save_language_model(folder, family="qwen2_audio", seed=0):
    """A tiny model with its processor, as a folder."""
    make_model(family, seed).save_pretrained(folder)
    make_processor(family).save_pretrained(folder)
    return folder
