"""Linear layers with oneDNN: the same products and gradients, used where they pay and nowhere else."""

import copy

import pytest
import torch
from torch import nn

from modeling_xacle import modeling_linear
from modeling_xacle.modeling_linear import OneDnnLinear, linear, use_onednn


@pytest.fixture
def products(monkeypatch):
    """Shapes that oneDNN was given."""
    shapes, product = [], modeling_linear.onednn_product
    monkeypatch.setattr(modeling_linear, "SMALLEST_PRODUCT", 1)
    monkeypatch.setattr(
        modeling_linear, "onednn_product", lambda x, *rest: shapes.append(tuple(x.shape)) or product(x, *rest)
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
    use_onednn(fast)
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
    monkeypatch.setattr(modeling_linear, "SMALLEST_PRODUCT", 10**9)
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
def test_the_whole_model_gives_the_same_scores(model, processor, noise, monkeypatch):
    inputs = processor(text=["A dog barks", "Rain falls on a tin roof"], audio=noise[:2], sampling_rate=16000)
    plain = model(**inputs).scores
    assert {type(module) for module in model.modules() if isinstance(module, nn.Linear)} == {OneDnnLinear}
    monkeypatch.setattr(modeling_linear, "SMALLEST_PRODUCT", 1)
    torch.testing.assert_close(model(**inputs).scores, plain, atol=1e-4, rtol=0)
