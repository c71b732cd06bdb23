"""Faster forms of layers: the same results and gradients, used where they pay and nowhere else."""

import copy

import pytest
import torch
from torch import nn
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from modeling_xacle import BeatsConfig, BeatsModel, modeling_beats, modeling_fast
from modeling_xacle.modeling_fast import InPlaceQwen2MLP, OneDnnLinear, grouped_product, linear, use_fast_forms


@pytest.fixture
def products(monkeypatch):
    """Shapes that oneDNN was given."""
    shapes, product = [], modeling_fast.onednn_product
    monkeypatch.setattr(modeling_fast, "SMALLEST_PRODUCT", 1)
    monkeypatch.setattr(
        modeling_fast, "onednn_product", lambda x, *rest: shapes.append(tuple(x.shape)) or product(x, *rest)
    )
    return shapes


@pytest.mark.parametrize("shape", [(5, 48), (3, 7, 48), (2, 3, 4, 48)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_same_product_and_gradients(shape, bias, trained, products):
    torch.manual_seed(0)
    plain = nn.Linear(48, 32, bias=bias)
    plain.requires_grad_(trained[1])
    fast = copy.deepcopy(plain)
    use_fast_forms(fast)
    assert type(fast) is OneDnnLinear
    results = []
    inputs = torch.randn(shape)
    for layer in (plain, fast):
        x = inputs.clone().requires_grad_(trained[0])
        output = layer(x)
        output.square().sum().backward()
        results.append([output, x.grad, layer.weight.grad, layer.bias.grad if bias else None])
    assert len(products) == 1 + sum(trained)
    for expected, found in zip(*results, strict=True):
        assert (expected is None) == (found is None)
        if expected is not None:
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_half_precision_small_products_and_autocast_go_the_usual_way(products, monkeypatch):
    x, weight = torch.randn(4, 16), torch.randn(8, 16)
    assert linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    monkeypatch.setattr(modeling_fast, "SMALLEST_PRODUCT", 10**9)
    torch.testing.assert_close(linear(x, weight), x @ weight.T)
    assert not products


def test_the_compiler_chooses_its_own_product(products):
    inputs, weight, bias = torch.randn(5, 48), torch.randn(32, 48), torch.randn(32)
    calls = []

    def record(graph, example_inputs):
        calls.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    result = torch.compile(linear, backend=record, fullgraph=True)(inputs, weight, bias)
    assert not products and len(calls) == 1 and "linear" in calls[0]
    torch.testing.assert_close(result, nn.functional.linear(inputs, weight, bias))


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (5, 3, 16, 7), (62, 12, 64, 62)])
def test_each_group_has_its_own_product(shape):
    rows, groups, inner, columns = shape
    inputs, weight = torch.randn(rows, groups, inner), torch.randn(groups, columns, inner)
    expected = torch.einsum("rgi,goi->rgo", inputs, weight).flatten(1)
    torch.testing.assert_close(grouped_product(inputs.flatten(1), weight), expected, atol=1e-4, rtol=1e-5)
    strided = weight.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(grouped_product(inputs.flatten(1), strided), expected, atol=1e-4, rtol=1e-5)


@pytest.fixture
def attended(monkeypatch):
    """Shapes of the queries that oneDNN's attention was given."""
    shapes, attend = [], modeling_beats.onednn_attention
    monkeypatch.setattr(modeling_fast, "SMALLEST_PRODUCT", 1)
    monkeypatch.setattr(
        modeling_beats,
        "onednn_attention",
        lambda query, *rest, **options: shapes.append(tuple(query.shape)) or attend(query, *rest, **options),
    )
    return shapes


def make_tower(**changes):
    """A small encoder whose bias and gates are far from zero, and three spectrograms of 1.6 s."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    tower = BeatsModel(BeatsConfig(**sizes, patch_embedding_size=32, **changes)).eval()
    nn.init.normal_(tower.relative_position_bias.weight)
    for layer in tower.layers:
        nn.init.normal_(layer.self_attn.gate_scale)
        nn.init.normal_(layer.self_attn.gate_proj.bias)
    return tower, torch.randn(3, 160, 128)


def test_onednn_attention_is_the_plain_one(attended):
    tower, spectrograms = make_tower()
    tower.set_attn_implementation("eager")
    expected = tower(spectrograms).last_hidden_state
    tower.set_attn_implementation("sdpa")
    assert not attended
    with torch.no_grad():
        together = tower(spectrograms).last_hidden_state
    assert attended == [(3, 80, 4, 12)] * 2  # layers
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        alone = torch.cat([tower(spectrogram[None]).last_hidden_state for spectrogram in spectrograms])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_gradients_dropout_and_small_clips_go_the_usual_way(attended, monkeypatch):
    tower, spectrograms = make_tower(attention_dropout=0.5)
    tower(spectrograms).last_hidden_state.sum().backward()
    assert tower.relative_position_bias.weight.grad.abs().sum() > 0
    with torch.no_grad():
        tower.train()(spectrograms)
        assert not attended
        tower.eval()(spectrograms)
        assert len(attended) == 2
        monkeypatch.setattr(modeling_fast, "SMALLEST_PRODUCT", 80 * 48 * 80 + 1)
        tower(spectrograms)
        assert len(attended) == 2


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_the_feed_forward_layer_in_place_is_the_plain_one(activation):
    torch.manual_seed(0)
    plain = Qwen2MLP(Qwen2Config(hidden_size=48, intermediate_size=96, hidden_act=activation))
    fast = copy.deepcopy(plain)
    use_fast_forms(fast)
    assert type(fast) is InPlaceQwen2MLP and fast.state_dict().keys() == plain.state_dict().keys()
    inputs = torch.randn(2, 7, 48)
    before = inputs.clone()
    with torch.no_grad():
        torch.testing.assert_close(fast(inputs), plain(inputs))
    torch.testing.assert_close(inputs, before, atol=0, rtol=0)
    for layer in (plain, fast):
        layer(inputs).square().sum().backward()
    for expected, found in zip(plain.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


@torch.no_grad()
def test_the_whole_model_gives_the_same_scores(model, processor, noise, monkeypatch):
    inputs = processor(text=["A dog barks", "Rain falls on a tin roof"], audio=noise[:2], sampling_rate=16000)
    plain = model(**inputs).scores
    assert {type(module) for module in model.modules() if isinstance(module, nn.Linear)} == {OneDnnLinear}
    monkeypatch.setattr(modeling_fast, "SMALLEST_PRODUCT", 1)
    torch.testing.assert_close(model(**inputs).scores, plain, atol=1e-4, rtol=0)
