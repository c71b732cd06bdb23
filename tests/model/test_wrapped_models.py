"""Models as their users wrap them: in half precision, offloaded, with PEFT's adapters, frozen."""

import pytest
import torch
from accelerate import dispatch_model
from conftest import PARITY, SAMPLING_RATE
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor

from modeling_xacle.checkpoints.building import init_model

CAPTIONS = ["A dog barks", "Rain falls on a tin roof"]


@pytest.fixture(scope="module", params=["published", "caption_likelihood"])
def folder(request, model_folder, tmp_path_factory):
    """The parity model, and one that reads the caption's likelihood."""
    if request.param == "published":
        return model_folder
    output = tmp_path_factory.mktemp("wrapped") / "model"
    init_model(PARITY / "beats.pt", str(PARITY / "llm"), output, caption_likelihood=True)
    return output


@pytest.fixture
def inputs(folder, noise):
    processor = AutoProcessor.from_pretrained(folder)
    return processor(text=CAPTIONS, audio=noise[:2], sampling_rate=SAMPLING_RATE)


@pytest.fixture
def scores(folder, inputs):
    """Those of the plain model."""
    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(**inputs).scores


def low_precision_models(folder):
    """Bfloat16 by the ways of users, with a head whose weights follow or do not."""
    config = AutoConfig.from_pretrained(folder)
    yield AutoModel.from_pretrained(folder).to(torch.bfloat16)
    yield AutoModel.from_pretrained(folder).half()
    yield AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    yield AutoModel.from_config(config, dtype=torch.bfloat16)


@torch.no_grad()
def test_the_head_computes_in_fp32_whatever_its_weights_are(folder, inputs):
    outputs = []
    for model in low_precision_models(folder):
        for layer in model.score_head.modules():
            layer.register_forward_hook(lambda layer, args, output: outputs.append(output.dtype))
        logits = model.eval()(**inputs).logits
        assert logits.dtype == torch.float32
        assert not torch.equal(logits, logits.bfloat16().float())
    assert set(outputs) == {torch.float32}


@torch.no_grad()
def test_likelihoods_are_computed_in_fp32_from_weights_of_half_precision(folder, inputs):
    model = AutoModel.from_pretrained(folder, dtype=torch.bfloat16).eval()
    found = []
    model.lm_head.register_forward_hook(lambda layer, args, output: found.append((args[0], output)))
    model(**inputs)
    for states, logits in found:
        torch.testing.assert_close(logits, states @ model.lm_head.weight.float().T)
    assert bool(found) == model.config.caption_likelihood


DEVICE_MAPS = {
    "encoder on disk": {"audio_tower": "disk"},
    "language model on disk": {"language_model": "disk", "lm_head": "disk"},
    "all on disk": {"audio_tower": "disk", "projector": "disk", "language_model": "disk", "lm_head": "disk"},
}


@torch.no_grad()
@pytest.mark.parametrize("where", DEVICE_MAPS)
def test_offloaded_parts_give_the_same_scores(where, folder, inputs, scores, tmp_path):
    model = AutoModel.from_pretrained(folder).eval()
    device_map = {name: "cpu" for name, _ in model.named_children()} | DEVICE_MAPS[where]
    dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert any(parameter.is_meta for parameter in model.parameters())
    torch.testing.assert_close(model(**inputs).scores, scores, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_model_loaded_in_parts_gives_the_same_scores(folder, inputs, scores, tmp_path):
    model = AutoModel.from_pretrained(folder)
    device_map = {name: "cpu" for name, _ in model.named_children()} | {"audio_tower": "disk", "projector": "disk"}
    model = AutoModel.from_pretrained(folder, device_map=device_map, offload_folder=tmp_path).eval()
    assert any(parameter.is_meta for parameter in model.audio_tower.parameters())
    torch.testing.assert_close(model(**inputs).scores, scores, atol=1e-5, rtol=0)


SCORING_TASKS = (TaskType.SEQ_CLS, TaskType.TOKEN_CLS, TaskType.FEATURE_EXTRACTION)  # the others are of other models


@pytest.mark.parametrize("task_type", [None, *SCORING_TASKS])
def test_adapters_of_every_task_type_score_and_train(task_type, folder, inputs, scores):
    """A fresh adapter changes nothing."""
    model = AutoModel.from_pretrained(folder).eval()
    adapters = LoraConfig(task_type=task_type, target_modules=r".*language_model.*\.(q|v)_proj")
    wrapped = get_peft_model(model, adapters).eval()
    output = wrapped(**inputs, labels=torch.tensor([0.5, -0.5]))
    torch.testing.assert_close(output.scores, scores)
    output.loss.backward()
    assert any("lora" in name and weight.grad is not None for name, weight in wrapped.named_parameters())


def test_adapters_for_captioning(folder, noise):
    processor = AutoProcessor.from_pretrained(folder)
    captioner = AutoModelForMultimodalLM.from_pretrained(folder).eval()
    prompt = processor.prepare_captioning(noise[:2], sampling_rate=SAMPLING_RATE)
    expected = captioner.generate(**prompt, max_new_tokens=4)
    target = r".*language_model.*\.(q|v)_proj"
    wrapped = get_peft_model(captioner, LoraConfig(task_type=TaskType.CAUSAL_LM, target_modules=target)).eval()
    assert torch.equal(wrapped.generate(**prompt, max_new_tokens=4), expected)
    wrapped(**processor.prepare_captioning(noise[:2], CAPTIONS, sampling_rate=SAMPLING_RATE)).loss.backward()


def test_embeddings_cannot_be_scored(folder):
    with pytest.raises(ValueError, match="`inputs_embeds` cannot be scored"):
        AutoModel.from_pretrained(folder)(input_ids=None, inputs_embeds=torch.zeros(1, 3, 4))


def test_a_frozen_encoder_leaves_no_graph_and_a_trained_one_does(folder, inputs):
    model = AutoModel.from_pretrained(folder)
    spectrogram = inputs["input_features"]
    assert model.get_audio_features(spectrogram).requires_grad
    model.audio_tower.requires_grad_(False)
    assert not model.get_audio_features(spectrogram).requires_grad
    assert model.get_audio_features(spectrogram.clone().requires_grad_(True)).requires_grad
    model.audio_tower.layers[0].fc1.bias.requires_grad_(True)
    assert model.get_audio_features(spectrogram).requires_grad
    with torch.no_grad():
        assert not model.get_audio_features(spectrogram).requires_grad


def test_a_processor_of_the_other_order_is_refused(folder, noise):
    """The score of another sequence looks like one, and is none."""
    processor = AutoProcessor.from_pretrained(folder)
    processor.audio_first = not processor.audio_first
    model = AutoModel.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"was trained on captions (behind|before) the sound"):
        model(**processor(text=CAPTIONS, audio=noise[:2], sampling_rate=SAMPLING_RATE))
