"""The model as a Transformers citizen, and its promises on scores."""

import copy
import math

import pytest
import torch
from conftest import SAMPLING_RATE
from torch import nn
from transformers import AutoModel

from modeling_xacle import BeatsConfig, BeatsForAudioClassification, BeatsModel, XacleConfig, XacleModel
from modeling_xacle.modeling_beats import relative_position_buckets

CAPTIONS = [
    "beep",
    "A dog barking in the park",
    "Rain falls while a man speaks, then thunder rumbles in the distance",
    "a bell",
    "Birds chirp and water flows; a bell rings 3 times!",
    "wind",
    " ".join(["very"] * 199 + ["loud"]),
]


@pytest.fixture(scope="module")
def pairs():
    """Seven captions, one of 200 words, with seven clips."""
    generator = torch.Generator().manual_seed(1)
    clips = [0.1 * torch.randn(SAMPLING_RATE * seconds, generator=generator) for seconds in range(2, 9)]
    return list(zip(CAPTIONS, clips, strict=True))


@torch.no_grad()
def score(model, processor, pairs):
    texts, clips = zip(*pairs, strict=True)
    return model(**processor(text=list(texts), audio=list(clips), sampling_rate=SAMPLING_RATE)).scores


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_score_does_not_depend_on_neighbours(attention, model_folder, processor, pairs):
    model = AutoModel.from_pretrained(model_folder, attn_implementation=attention).eval()
    alone = torch.cat([score(model, processor, [pair]) for pair in pairs])
    assert alone.std() > 0.01  # the pairs do differ, so that an invariant constant would not pass
    torch.testing.assert_close(score(model, processor, pairs), alone, atol=1e-4, rtol=0)
    in_twos = torch.cat([score(model, processor, pairs[start : start + 2]) for start in range(0, len(pairs), 2)])
    torch.testing.assert_close(in_twos, alone, atol=1e-4, rtol=0)
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(2))
    shuffled = score(model, processor, [pairs[index] for index in order])
    torch.testing.assert_close(shuffled, alone[order], atol=1e-4, rtol=0)


def test_eager_and_sdpa_agree_part_by_part(model_folder, processor, pairs):
    choices = ["eager", "sdpa", {"audio_config": "sdpa", "text_config": "eager"}]
    models = [AutoModel.from_pretrained(model_folder, attn_implementation=choice).eval() for choice in choices]
    assert models[2].audio_tower.config._attn_implementation == "sdpa"
    assert models[2].language_model.config._attn_implementation == "eager"
    eager, sdpa, mixed = (score(model, processor, pairs) for model in models)
    torch.testing.assert_close(eager, sdpa, atol=1e-4, rtol=0)
    torch.testing.assert_close(eager, mixed, atol=1e-4, rtol=0)
    models[0].set_attn_implementation("sdpa")
    torch.testing.assert_close(score(models[0], processor, pairs), sdpa)


@torch.no_grad()
def test_audio_features_are_a_door(model, processor, pairs):
    clip = pairs[0][1]
    features = model.get_audio_features(
        processor.feature_extractor(clip, sampling_rate=SAMPLING_RATE)["input_features"]
    )
    sequences = processor(text=CAPTIONS)
    scores = model(**sequences, audio_features=features.expand(len(CAPTIONS), -1, -1)).scores
    torch.testing.assert_close(scores, score(model, processor, [(text, clip) for text in CAPTIONS]), atol=1e-4, rtol=0)


def test_save_and_load_keep_every_weight(model, processor, pairs, tmp_path):
    model.save_pretrained(tmp_path)
    again, info = XacleModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for (name, before), (_, after) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(before, after), name
    assert torch.equal(score(model, processor, pairs), score(again.eval(), processor, pairs))


def test_nothing_is_left_on_the_meta_device_or_outside_the_checkpoint(model_folder):
    model = XacleModel.from_pretrained(model_folder)
    assert list(model.buffers()) == list(model.language_model.buffers())  # those that the library itself rebuilds
    assert all(not tensor.is_meta and tensor.isfinite().all() for tensor in [*model.parameters(), *model.buffers()])


def test_missing_parts_are_initialised(model, tmp_path):
    """A checkpoint without a head loads, and the head is initialised rather than left as it was in memory."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("score_head")}
    model.save_pretrained(tmp_path, state_dict=state)
    torch.manual_seed(0)  # the last layer is so small that now and then all of its weights are
    again, info = XacleModel.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[0] for name in info["missing_keys"]} == {"score_head"}
    for module in again.score_head.layers:
        if isinstance(module, torch.nn.Linear):
            bound = math.sqrt(6 / (module.in_features + module.out_features))
            assert 0.8 * bound < module.weight.abs().max() <= bound
            assert not module.bias.any()


def test_beats_initialisation_follows_deepnorm():
    config = BeatsConfig(hidden_size=192, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256)
    model = BeatsModel(config)
    layer = model.layers[1]
    gain = (8 * 3) ** -0.25
    xavier = math.sqrt(2 / (192 + 192))
    for linear, expected in (
        (layer.self_attn.q_proj, xavier),
        (layer.self_attn.v_proj, gain * xavier),
        (layer.fc1, gain * math.sqrt(2 / (192 + 256))),
    ):
        assert linear.weight.std().item() == pytest.approx(expected, rel=0.05)
        assert not linear.bias.any()
    assert torch.equal(layer.self_attn.gate_scale, torch.ones(4, 1, 1))
    conv = model.conv_position.conv
    assert conv.weight.std().item() == pytest.approx(math.sqrt(4 / (128 * 192)), rel=0.05)


def test_half_precision_keeps_the_head_in_fp32(model_folder, processor, pairs):
    model = AutoModel.from_pretrained(model_folder, dtype=torch.bfloat16).eval()
    assert (
        model.language_model.dtype == model.audio_tower.dtype == model.projector.up_proj.weight.dtype == torch.bfloat16
    )
    assert {parameter.dtype for parameter in model.score_head.parameters()} == {torch.float32}
    scores = score(model, processor, pairs)
    assert scores.dtype == torch.float32
    full = score(AutoModel.from_pretrained(model_folder).eval(), processor, pairs)
    torch.testing.assert_close(scores, full, atol=0.2, rtol=0)


def test_saved_half_precision_loads_as_saved(model_folder, tmp_path):
    AutoModel.from_pretrained(model_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path)
    assert model.language_model.dtype == model.audio_tower.dtype == torch.bfloat16
    assert model.score_head.layers[0].weight.dtype == torch.float32


def test_autocast_keeps_the_head_in_fp32(model, processor, pairs):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = score(model, processor, pairs)
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float())


def test_gradient_checkpointing_changes_no_gradient(model, processor, pairs):
    texts, clips = zip(*pairs[:2], strict=True)
    inputs = processor(text=list(texts), audio=list(clips), sampling_rate=SAMPLING_RATE)
    labels = torch.tensor([0.5, -0.5])
    checkpointed = copy.deepcopy(model)
    checkpointed.activation_checkpointing_enable()
    for candidate in (model, checkpointed):
        candidate.train()
        torch.manual_seed(0)
        candidate(**inputs, labels=labels).loss.backward()
    assert checkpointed.audio_tower.layers[0].gradient_checkpointing
    for (name, plain), (_, other) in zip(model.named_parameters(), checkpointed.named_parameters(), strict=True):
        assert (plain.grad is None) == (other.grad is None), name
        if plain.grad is not None:
            torch.testing.assert_close(plain.grad, other.grad, msg=lambda text, n=name: f"{n}: {text}")


def test_loss_is_the_mean_over_pairs_and_not_told_how_many(model, processor, pairs):
    """Trainer multiplies the loss of a model that takes its item count; ours says that it does not."""
    texts, clips = zip(*pairs[:3], strict=True)
    inputs = processor(text=list(texts), audio=list(clips), sampling_rate=SAMPLING_RATE)
    labels = torch.tensor([0.5, -0.5, 0.0])
    output = model(**inputs, labels=labels)
    torch.testing.assert_close(output.loss, (output.logits - labels).square().mean())
    assert model.accepts_loss_kwargs is False
    for wrong in (labels.unsqueeze(1), labels[:2], labels[0]):
        with pytest.raises(ValueError, match="expected one target a pair"):
            model(**inputs, labels=wrong)


def test_scores_are_not_clamped(model, processor, pairs):
    torch.nn.init.constant_(model.score_head.layers[-1].bias, 3.0)
    assert score(model, processor, pairs).min() > 10


def test_the_configuration_can_ask_for_hidden_states(model_folder, processor, pairs):
    model = AutoModel.from_pretrained(model_folder, output_hidden_states=True).eval()
    inputs = processor(text=pairs[0][0], audio=pairs[0][1], sampling_rate=SAMPLING_RATE)
    assert len(model(**inputs).hidden_states) == 3
    assert model(**inputs, output_hidden_states=False).hidden_states is None


def test_every_part_learns_from_labels(model, processor, pairs):
    inputs = processor(text=pairs[1][0], audio=pairs[1][1], sampling_rate=SAMPLING_RATE)
    output = model(**inputs, labels=torch.tensor([0.25]))
    torch.testing.assert_close(output.loss, (output.logits - 0.25).square().mean())
    output.loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == set()


def test_hidden_states_and_attentions_on_request(model, processor, pairs):
    inputs = processor(text=pairs[0][0], audio=pairs[0][1], sampling_rate=SAMPLING_RATE)
    assert model(**inputs).hidden_states is None
    model.set_attn_implementation("eager")
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    length = inputs["input_ids"].shape[1]
    layers = model.config.text_config.num_hidden_layers
    assert [tuple(states.shape) for states in output.hidden_states] == [(1, length, 64)] * (layers + 1)
    assert [tuple(weights.shape) for weights in output.attentions] == [(1, 4, length, length)] * layers
    encoded = model.audio_tower(inputs["input_features"], output_hidden_states=True, output_attentions=True)
    assert len(encoded.hidden_states) == model.config.audio_config.num_hidden_layers + 1
    torch.testing.assert_close(encoded.attentions[0].sum(-1), torch.ones(1, 4, 496))


def test_tuple_output(model, processor, pairs):
    inputs = processor(text=pairs[0][0], audio=pairs[0][1], sampling_rate=SAMPLING_RATE)
    logits, scores = model(**inputs, return_dict=False)
    torch.testing.assert_close(scores, model.config.logits_to_scores(logits))


def test_calibration_moves_scores_and_not_logits(model, processor, pairs):
    inputs = processor(text=pairs[0][0], audio=pairs[0][1], sampling_rate=SAMPLING_RATE)
    plain = model(**inputs)
    model.config.calibration_scale, model.config.calibration_offset = 2.0, -0.5
    calibrated = model(**inputs)
    assert torch.equal(plain.logits, calibrated.logits)
    torch.testing.assert_close(calibrated.scores, (2 * plain.logits - 0.5 + 1) * 5)
    model.config.apply_calibration = False
    torch.testing.assert_close(model(**inputs).scores, plain.scores)


def test_score_scale_converts_both_ways():
    config = XacleConfig()
    assert config.logits_to_scores(-1.0) == 0
    assert config.logits_to_scores(1.0) == 10
    assert config.scores_to_labels(7.5) == 0.5
    other = XacleConfig(score_min=1.0, score_max=5.0)
    assert other.scores_to_labels(other.logits_to_scores(0.3)) == pytest.approx(0.3)


def test_embeddings_can_be_resized(model, processor, pairs, tmp_path):
    before = score(model, processor, pairs[:2])
    model.resize_token_embeddings(model.config.text_config.vocab_size + 5)
    model.save_pretrained(tmp_path)
    again = XacleModel.from_pretrained(tmp_path).eval()
    assert again.config.text_config.vocab_size == len(again.get_input_embeddings().weight)
    torch.testing.assert_close(score(again, processor, pairs[:2]), before)


def test_encoder_dropout_is_off_by_default_and_on_when_asked_for_in_training():
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    features = torch.randn(1, 64, 128)
    for dropout in ({}, {"hidden_dropout": 0.5}, {"attention_dropout": 0.5}):
        model = BeatsModel(BeatsConfig(**sizes, **dropout))
        encoded = [model.train(mode)(features).last_hidden_state for mode in (False, False, True)]
        assert torch.equal(encoded[0], encoded[1])
        assert torch.equal(encoded[0], encoded[2]) == (not dropout)


def test_without_deepnorm_residuals_are_not_scaled():
    sizes = {"hidden_size": 48, "num_hidden_layers": 8, "num_attention_heads": 4, "intermediate_size": 64}
    scales = [BeatsModel(BeatsConfig(**sizes, deep_norm=deep)).layers[0].residual_scale for deep in (True, False)]
    assert scales == [2.0, 1.0]
    torch.manual_seed(0)
    layer = BeatsModel(BeatsConfig(**sizes, deep_norm=False)).layers[0].eval()
    states, bias = torch.randn(1, 4, 48), torch.zeros(1, 4, 4, 4)
    attended = layer.self_attn_layer_norm(states + layer.self_attn(states, bias)[0])
    expected = layer.final_layer_norm(attended + layer.fc2(torch.nn.functional.gelu(layer.fc1(attended))))
    torch.testing.assert_close(layer(states, bias), expected)


def test_classifier_loss_is_binary_cross_entropy():
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = BeatsForAudioClassification(BeatsConfig(**sizes, num_labels=5))
    labels = torch.tensor([[0, 1, 0, 0, 1], [1, 0, 0, 0, 0]])
    output = model(torch.randn(2, 64, 128), labels=labels, output_hidden_states=True)
    present = labels.bool()
    by_hand = -torch.where(present, output.probabilities, 1 - output.probabilities).log().mean()
    torch.testing.assert_close(output.loss, by_hand)
    assert len(output.hidden_states) == 2


def test_position_buckets_by_hand():
    """Eight buckets: distances 0 and 1 have their own, then [2, 4) and beyond, the same again ahead."""
    buckets = relative_position_buckets(6, num_buckets=8, max_distance=8)
    assert buckets[0].tolist() == [0, 5, 6, 6, 7, 7]
    assert buckets[5].tolist() == [3, 3, 2, 2, 1, 0]


def test_position_buckets_are_kept_and_serve_training(model):
    relative_position_buckets.cache_clear()
    features = torch.zeros(1, 64, 128)
    with torch.inference_mode():
        model.audio_tower(features)
    model.audio_tower(features).last_hidden_state.sum().backward()
    assert relative_position_buckets.cache_info().misses == 1
    assert model.audio_tower.relative_position_bias.weight.grad is not None


@torch.no_grad()
def test_causal_attention_without_a_mask(model, processor, noise, monkeypatch):
    """A mask would keep PyTorch from its faster causal kernel."""
    attend, masks = nn.functional.scaled_dot_product_attention, []

    def watched(*args, attn_mask=None, is_causal=False, **kwargs):
        masks.append((attn_mask is None, is_causal))
        return attend(*args, attn_mask=attn_mask, is_causal=is_causal, **kwargs)

    inputs = processor(text=["A dog barks", "Rain falls on a tin roof"], audio=noise[:2], sampling_rate=16000)
    features = model.get_audio_features(inputs.pop("input_features"))
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", watched)
    model(**inputs, audio_features=features)
    assert masks == [(True, True)] * model.config.text_config.num_hidden_layers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda inputs: inputs.pop("input_features"), "either `input_features` or `audio_features`"),
        (lambda inputs: inputs.update(audio_features=torch.zeros(1, 100, 48)), "either `input_features` or"),
        (
            lambda inputs: inputs.update(
                attention_mask=inputs["attention_mask"].flip(1) * torch.tensor([0] + [1] * 104)
            ),
            "after padding",
        ),
        (
            lambda inputs: inputs["input_ids"].index_fill_(1, torch.tensor([50]), 7),
            "99\\] \\[AUDIO\\] tokens do not fit 1 clips with 100",
        ),
        (lambda inputs: inputs["input_ids"].index_fill_(1, torch.tensor([0]), 370), "exactly one \\[SCORE\\]"),
        (lambda inputs: inputs["input_ids"].index_fill_(1, torch.tensor([-1]), 7), "exactly one \\[SCORE\\]"),
        (lambda inputs: inputs.update(attention_mask=torch.ones(1, 4)), "attention_mask has shape \\(1, 4\\)"),
        (lambda inputs: inputs.update(input_features=torch.zeros(2, 998, 128)), "do not fit 2 clips"),
        (
            lambda inputs: inputs.update(input_features=torch.zeros(1, 998, 64)),
            "expects \\(batch_size, num_frames, 128\\)",
        ),
        (lambda inputs: inputs.update(input_features=torch.zeros(1, 15, 128)), "at least one clip and 16 frames"),
    ],
)
def test_inputs_that_do_not_fit(change, message, model, processor, tone):
    inputs = processor(text="hm", audio=tone, sampling_rate=SAMPLING_RATE)
    change(inputs)
    with pytest.raises(ValueError, match=message):
        model(**inputs)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"audio_config": {"hidden_size": 50}}, "multiple of num_attention_heads"),
        ({"audio_config": {"num_mel_bins": 100}}, "multiple of patch_size"),
        ({"score_min": 10.0}, "must be below score_max"),
        ({"calibration_scale": 0.0}, "would reverse the ranking"),
    ],
)
def test_configurations_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        XacleConfig(**fields)


def test_no_clip_is_no_batch(model):
    with pytest.raises(ValueError, match="at least one clip"):
        model.get_audio_features(torch.zeros(0, 998, 128))


def test_a_whole_model_can_be_traced(model, processor, pairs):
    texts, clips = zip(*pairs[:2], strict=True)
    inputs = dict(processor(text=list(texts), audio=list(clips), sampling_rate=SAMPLING_RATE))
    with torch.no_grad():
        traced = torch.jit.trace(model, example_kwarg_inputs=inputs, strict=False, check_trace=False)
        torch.testing.assert_close(traced(**inputs)["scores"], model(**inputs).scores)
