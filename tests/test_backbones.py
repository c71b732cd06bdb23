"""Other language models than Qwen2, by their configs alone: built, saved, loaded, scored."""

import pytest
import torch
from conftest import PARITY, SAMPLING_RATE
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from modeling_xacle.conversion import init_model

SIZES = {
    "vocab_size": 380,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": None,
    "bos_token_id": 366,
    "eos_token_id": 365,
}
GROUPED = {"num_key_value_heads": 2}
CONFIGS = {
    "qwen2_like_1.5b": Qwen2Config(**SIZES, **GROUPED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, **GROUPED, head_dim=16),
    "llama": LlamaConfig(**SIZES, **GROUPED),
    "smollm2": LlamaConfig(**SIZES, **GROUPED, tie_word_embeddings=True),
    "smollm3": SmolLM3Config(**SIZES, **GROUPED),
    "mistral_sliding_window": MistralConfig(**SIZES, **GROUPED, sliding_window=64),
    "gemma2": Gemma2Config(**SIZES, **GROUPED, head_dim=8),
    "gpt_neox": GPTNeoXConfig(**SIZES),
}


@pytest.fixture(params=CONFIGS, ids=str)
def llm_folder(request, tmp_path):
    """A tiny random causal language model with the parity tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path / "llm"
    AutoModelForCausalLM.from_config(CONFIGS[request.param]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(PARITY / "llm").save_pretrained(folder)
    return folder


@torch.no_grad()
def test_any_causal_decoder(llm_folder, tmp_path, noise):
    init_model(PARITY / "beats.pt", str(llm_folder), tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    plain = AutoModel.from_pretrained(llm_folder)
    assert type(model.language_model) is type(plain)
    assert len(model.get_input_embeddings().weight) == 372
    torch.testing.assert_close(model.get_input_embeddings().weight[:368], plain.get_input_embeddings().weight[:368])

    captions, clips = ["beep", "A dog barking in the park"], noise[:2]
    together = model(**processor(text=captions, audio=clips, sampling_rate=SAMPLING_RATE)).scores
    alone = [
        model(**processor(text=text, audio=clip, sampling_rate=SAMPLING_RATE)).scores
        for text, clip in zip(captions, clips, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
    assert together[0] != together[1]

    captioner = AutoModelForMultimodalLM.from_pretrained(tmp_path / "model").eval()
    assert captioner.lm_head.weight is captioner.get_input_embeddings().weight
    prompt = processor.prepare_captioning(clips, sampling_rate=SAMPLING_RATE)
    cached, plain = (captioner.generate(**prompt, max_new_tokens=4, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)


def test_a_tokenizer_that_begins_with_bos(tmp_path):
    """Llama's tokenizer puts BOS before a caption; the special tokens still follow it."""
    tokenizer = AutoTokenizer.from_pretrained(PARITY / "llm")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))]
    )
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    init_model(PARITY / "beats.pt", str(tmp_path / "llm"), tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    ids, _ = processor.tokenize_caption("a dog")
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(ids[0]) == 1
    assert processor.tokenizer.decode(ids[1:-103]) == "a dog"
