"""Other language models than Qwen2, by their configs alone: built, trained, saved, loaded, scored, or refused."""

import numpy as np
import pytest
import soundfile
import torch
from conftest import PARITY, SAMPLING_RATE
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    AutoTokenizer,
    BertConfig,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

import run_stage
from modeling_xacle.checkpoints.building import init_model
from modeling_xacle.checkpoints.conversion import ConversionError
from modeling_xacle.data.pairs import make_dataset, save_dataset

VOCABULARY = {"vocab_size": 380, "pad_token_id": None, "bos_token_id": 366, "eos_token_id": 365}
SIZES = {
    **VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GROUPED = {"num_key_value_heads": 2}
OPT = {**VOCABULARY, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "qwen2_like_1.5b": Qwen2Config(**SIZES, **GROUPED, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, **GROUPED, head_dim=16),
    "llama_untied": LlamaConfig(**SIZES, **GROUPED, tie_word_embeddings=False),
    "smollm2": LlamaConfig(**SIZES, **GROUPED, tie_word_embeddings=True),
    "smollm3": SmolLM3Config(**SIZES, **GROUPED),
    "mistral_sliding_window": MistralConfig(**SIZES, **GROUPED, sliding_window=64),
    "gemma2": Gemma2Config(**SIZES, **GROUPED, head_dim=8, final_logit_softcapping=0.5),
    "gemma3": Gemma3TextConfig(**SIZES, **GROUPED, head_dim=8, sliding_window=64),
    "gpt_neox": GPTNeoXConfig(**SIZES, tie_word_embeddings=False),
    "gpt2": GPT2Config(**VOCABULARY, n_embd=32, n_layer=2, n_head=4),
    "opt": OPTConfig(**OPT, word_embed_proj_dim=32),
    "bloom": BloomConfig(**VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "mamba": MambaConfig(**VOCABULARY, hidden_size=32, state_size=4, num_hidden_layers=2, use_mambapy=False),
}
REFUSED = {
    "seen from both sides": (BertConfig(**SIZES), "output layer|see those after"),
    "a head with a bias": (PhiConfig(**SIZES), "one linear layer without a bias"),
    "scaled logits": (GraniteConfig(**SIZES, **GROUPED, logits_scaling=8.0), "scaled or changed"),
    "embeddings of another width": (OPTConfig(**OPT, word_embed_proj_dim=16), "another width"),
    "few positions": (GPT2Config(**VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128), "128 positions"),
}


def save_llm(config, folder):
    """A tiny random causal language model with the parity tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(PARITY / "llm").save_pretrained(folder)
    return folder


@pytest.fixture(params=CONFIGS, ids=str)
def llm_folder(request, tmp_path):
    return save_llm(CONFIGS[request.param], tmp_path / "llm")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Four pairs to train on and two to validate."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = []
    for number in range(6):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.1 * np.sin(np.arange(8000) * 0.02 * (1 + number)), SAMPLING_RATE)
        rows.append({"id": str(number), "audio": str(path), "text": f"Sound {number}", "label": number / 5 - 0.5})
    save_dataset({"train": make_dataset(rows[:4]), "validation": make_dataset(rows[4:])}, folder / "dataset")
    return folder / "dataset"


def train(stage, pairs, model, output):
    """Two steps of a stage."""
    settings = {"stage": stage, "data": pairs, "model": model, "output_dir": output, "max_steps": 2}
    settings |= {"per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True, "learning_rate": 1e-3}
    if stage == 3:
        settings |= {"patience": 0, "load_best_model_at_end": False}
    run_stage.main([str(part) for name, value in settings.items() for part in (f"--{name}", value)])


@torch.no_grad()
def test_any_causal_decoder(llm_folder, tmp_path, noise):
    init_model(PARITY / "beats.pt", str(llm_folder), tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    causal = AutoModelForCausalLM.from_pretrained(llm_folder).eval()
    assert type(model.language_model) is type(causal.base_model)
    assert len(model.get_input_embeddings().weight) == 372
    is_tied = causal.get_output_embeddings().weight is causal.get_input_embeddings().weight
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == is_tied

    ids = torch.arange(20, 40)[None]
    embedded = model.get_input_embeddings()(ids)
    states = model.language_model(inputs_embeds=embedded, use_cache=False).last_hidden_state
    expected = causal(input_ids=ids, use_cache=False).logits[..., :368]
    torch.testing.assert_close(model.token_logits(states)[..., :368], expected)

    captions, clips = ["beep", "A dog barking in the park"], noise[:2]
    together = model(**processor(text=captions, audio=clips, sampling_rate=SAMPLING_RATE)).scores
    alone = [
        model(**processor(text=text, audio=clip, sampling_rate=SAMPLING_RATE)).scores
        for text, clip in zip(captions, clips, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=0)
    assert together[0] != together[1]

    captioner = AutoModelForMultimodalLM.from_pretrained(tmp_path / "model").eval()
    prompt = processor.prepare_captioning(clips, sampling_rate=SAMPLING_RATE)
    cached, plain = (captioner.generate(**prompt, max_new_tokens=4, use_cache=use) for use in (True, False))
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama_untied", "gemma3", "gpt_neox", "mamba"])
def test_what_init_accepts_all_stages_train(family, pairs, tmp_path):
    """Stage 2 runs what stage 3 does, from the captioner's folder."""
    llm = save_llm(CONFIGS[family], tmp_path / "llm")
    init_model(PARITY / "beats.pt", str(llm), tmp_path / "stage0", caption_likelihood=True)
    for before, stage in ((0, 1), (1, 3)):
        train(stage, pairs, tmp_path / f"stage{before}", tmp_path / f"stage{stage}")
    start = AutoModelForMultimodalLM.from_pretrained(tmp_path / "stage0")
    captioner = AutoModelForMultimodalLM.from_pretrained(tmp_path / "stage1")
    scorer, info = AutoModel.from_pretrained(tmp_path / "stage3", output_loading_info=True)
    assert not any(info.values())
    heads = [model.get_output_embeddings().weight for model in (start, captioner, scorer)]
    assert not torch.equal(heads[0], heads[1])  # stage 1 trains it
    assert torch.equal(heads[1], heads[2])  # the others keep it


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_trained_is_refused_with_the_reason(what, tmp_path):
    config, reason = REFUSED[what]
    with pytest.raises(ConversionError, match=reason):
        init_model(PARITY / "beats.pt", str(save_llm(config, tmp_path / "llm")), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_one_token_ends_captions_in_training_and_in_their_likelihood(tmp_path):
    """A config may name several, of which the tokenizer's is not the first."""
    folder = save_llm(LlamaConfig(**{**SIZES, "eos_token_id": [364, 365]}, **GROUPED), tmp_path / "llm")
    model = init_model(PARITY / "beats.pt", str(folder), tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert model.config.end_token_id == processor.tokenizer.eos_token_id == 365
    captioner = AutoModelForMultimodalLM.from_pretrained(tmp_path / "model")
    assert captioner.generation_config.eos_token_id == 365
    assert processor.caption_sequences(["a dog"])["input_ids"][0, -1] == 365


def test_a_tokenizer_that_begins_with_bos(tmp_path):
    """Llama's tokenizer puts BOS before a caption; the special tokens still follow it."""
    tokenizer = AutoTokenizer.from_pretrained(PARITY / "llm")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.convert_tokens_to_ids("<|im_start|>"))]
    )
    AutoModelForCausalLM.from_config(CONFIGS["llama_untied"]).save_pretrained(tmp_path / "llm")
    tokenizer.save_pretrained(tmp_path / "llm")
    init_model(PARITY / "beats.pt", str(tmp_path / "llm"), tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    ids, _ = processor.tokenize_caption("a dog")
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert ids.count(ids[0]) == 1
    assert processor.tokenizer.decode(ids[1:-103]) == "a dog"
