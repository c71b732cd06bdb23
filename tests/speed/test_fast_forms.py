"""Faster forms of layers: the same results and gradients inside the door, plain layers everywhere else."""

import copy
import io
import json
import pickle
import time
import warnings

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from transformers import AutoConfig, AutoModel, Qwen2Config, pipeline
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from modeling_xacle import DEFAULT_MODEL, BeatsConfig, BeatsModel
from modeling_xacle.modeling_beats import BeatsAttention
from modeling_xacle.pipeline_xacle import AudioTextAlignmentPipeline
from modeling_xacle.speed import FastAudioTextAlignmentPipeline, fast_forms, forms
from modeling_xacle.speed.forms import grouped_product, linear


@pytest.fixture
def products(monkeypatch):
    """Shapes that oneDNN was given; products of any size count as large."""
    assert forms.works()  # which makes products itself, once
    shapes, product = [], forms.onednn_product
    monkeypatch.setattr(forms, "SMALLEST_PRODUCT", 1)
    monkeypatch.setattr(forms, "onednn_product", lambda x, *rest: shapes.append(tuple(x.shape)) or product(x, *rest))
    return shapes


@pytest.fixture
def attended(monkeypatch):
    """Shapes of the queries that oneDNN's attention was given; clips of any size count as large."""
    shapes, attend = [], forms.onednn_attention
    monkeypatch.setattr(forms, "SMALLEST_PRODUCT", 1)
    monkeypatch.setattr(
        forms, "onednn_attention", lambda query, *rest: shapes.append(tuple(query.shape)) or attend(query, *rest)
    )
    return shapes


def make_layer(bias=True):
    torch.manual_seed(0)
    return nn.Linear(48, 32, bias=bias)


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


def replaced(model):
    """Names of the layers that have a method of their own."""
    return [name for name, layer in model.named_modules() if {"forward", "attend"} & vars(layer).keys()]


# The door


def test_layers_are_plain_outside_the_door_and_of_their_class_inside(model):
    classes = [type(layer) for layer in model.modules()]
    assert {nn.Linear, Qwen2MLP, BeatsAttention} <= set(classes)
    assert not any(kind.__module__.startswith("modeling_xacle.speed") for kind in classes)
    assert not replaced(model)
    with fast_forms(model):
        assert len(replaced(model)) == sum(kind in forms.FAST_FORMS for kind in classes)
        assert [type(layer) for layer in model.modules()] == classes
    assert not replaced(model)


def test_the_door_closes_after_an_error(model):
    with pytest.raises(ZeroDivisionError), fast_forms(model):
        1 / 0  # noqa: B018
    assert not replaced(model)


def test_an_inner_door_leaves_the_outer_one_open(model):
    with fast_forms(model):
        names = replaced(model)
        with fast_forms(model.audio_tower):
            assert replaced(model) == names
        assert replaced(model) == names
    assert not replaced(model)


def test_a_layer_whose_forward_was_replaced_is_left_alone(products):
    layer, inputs = make_layer(), torch.randn(5, 48)
    layer.forward = own = lambda x: x
    with fast_forms(layer):
        assert layer(inputs) is inputs
    assert layer.forward is own and not products


def test_the_environment_keeps_the_door_shut(model, monkeypatch):
    monkeypatch.setenv("XACLE_FAST", "0")
    with fast_forms(model):
        assert not replaced(model)


def test_a_model_elsewhere_than_on_a_cpu_stays_plain():
    layer = nn.Linear(48, 32, device="meta")
    with fast_forms(layer):
        assert not replaced(layer)


def test_an_operator_that_changed_is_found_out_once_and_not_used(monkeypatch, caplog):
    layer, inputs = make_layer(), torch.randn(5, 48)
    plain, tried = layer(inputs), []

    def changed(*arguments):
        tried.append(arguments)
        raise RuntimeError("mkldnn::_linear_pointwise() is missing value for argument 'other'.")

    forms.works.cache_clear()
    monkeypatch.setattr(forms, "SMALLEST_PRODUCT", 1)
    monkeypatch.setattr(forms, "onednn_product", changed)
    try:
        for _ in range(2):
            with fast_forms(layer):
                assert not replaced(layer)
                assert torch.equal(layer(inputs), plain)
    finally:
        forms.works.cache_clear()
    assert len(tried) == 1
    monkeypatch.setattr(forms, "onednn_product", lambda x, *_: x.new_zeros(*x.shape[:-1], 5))
    try:
        assert not forms.works()
    finally:
        forms.works.cache_clear()


def test_the_operators_work_here_whatever_the_defaults():
    forms.works.cache_clear()
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            assert forms.works()
    finally:
        torch.set_default_dtype(default)


def test_opening_the_door_takes_less_than_a_millisecond():
    model = AutoModel.from_config(AutoConfig.from_pretrained(DEFAULT_MODEL))
    times = []
    for _ in range(50):
        started = time.process_time()
        with fast_forms(model):
            pass
        times.append(time.process_time() - started)
    assert min(times) < 1e-3


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_copy_made_inside_the_door_is_plain(copied, products):
    model, inputs = nn.Sequential(make_layer(), nn.ReLU()), torch.randn(5, 48)
    with fast_forms(model):
        inside = copied(model)
    outside = copied(model)
    assert not replaced(outside)
    for twin in (inside, outside):
        twin[0].bias.zero_()
        torch.testing.assert_close(twin(inputs), (inputs @ model[0].weight.T).relu())
    assert model[0].bias.abs().sum() > 0 and not products


def test_the_pipeline_opens_the_door_for_its_passes_alone(align, noise, products):
    assert type(align) is FastAudioTextAlignmentPipeline
    pair = {"audio": noise[0], "text": "A dog barks", "sampling_rate": 16000}
    fast = align(pair)["score"]
    assert products and not replaced(align.model)
    products.clear()
    plain = AudioTextAlignmentPipeline(model=align.model, processor=align.processor, device="cpu")(pair)["score"]
    assert not products
    assert fast == pytest.approx(plain, abs=1e-4)


def test_a_saved_pipeline_names_the_plain_one(align, tmp_path):
    align.save_pretrained(tmp_path)
    tasks = json.loads((tmp_path / "config.json").read_text())["custom_pipelines"]
    assert tasks["audio-text-alignment"]["impl"] == "pipeline_xacle.AudioTextAlignmentPipeline"
    assert "fast" not in "".join(path.name for path in tmp_path.iterdir())
    assert type(pipeline("audio-text-alignment", model=str(tmp_path))) is FastAudioTextAlignmentPipeline


# Products


@pytest.mark.parametrize("shape", [(5, 48), (3, 7, 48), (2, 3, 4, 48)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_same_product_and_gradients(shape, bias, trained, products):
    layer = make_layer(bias).requires_grad_(trained[1])
    inputs = torch.randn(shape)

    def results():
        layer.zero_grad()
        x = inputs.clone().requires_grad_(trained[0])
        output = layer(x)
        output.sum().backward(retain_graph=True)  # whose gradient is one number, expanded
        output.square().sum().backward()
        return [output, x.grad, layer.weight.grad, layer.bias.grad if bias else None]

    plain = results()
    with fast_forms(layer):
        fast = results()
    assert len(products) == 1 + 2 * sum(trained)
    for expected, found in zip(plain, fast, strict=True):
        assert (expected is None) == (found is None)
        if expected is not None:
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_gradients_have_gradients(products):
    layer = make_layer()
    inputs = torch.randn(5, 48, requires_grad=True)

    def gradients():
        penalty = torch.autograd.grad(layer(inputs).pow(3).sum(), inputs, create_graph=True)[0].square().sum()
        return torch.autograd.grad(penalty, [inputs, layer.weight, layer.bias])

    plain = gradients()
    with fast_forms(layer):
        fast = gradients()
    assert products
    torch.testing.assert_close(fast, plain, atol=1e-3, rtol=1e-4)


def test_half_precision_small_products_and_autocast_go_the_usual_way(products, monkeypatch):
    x, weight = torch.randn(4, 16), torch.randn(8, 16)
    assert linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert linear(x[0], weight).shape == (8,)
    monkeypatch.setattr(forms, "SMALLEST_PRODUCT", 10**9)
    torch.testing.assert_close(linear(x, weight), x @ weight.T)
    assert not products


def test_onednn_switched_off_is_not_used(products):
    layer, inputs = make_layer(), torch.randn(5, 48)
    plain = layer(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about TF32
        with fast_forms(layer), torch.backends.mkldnn.flags(enabled=False):
            assert torch.equal(layer(inputs), plain)
        with torch.backends.mkldnn.flags(enabled=False), fast_forms(layer):
            assert not replaced(layer)
    assert not products


class Tagged(torch.Tensor):
    """A tensor subclass that tells what was done with it, as quantised and distributed ones do."""

    seen = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen.append(getattr(func, "__name__", ""))
        return super().__torch_function__(func, types, args, kwargs or {})


@torch.no_grad()
@pytest.mark.parametrize("which", ["inputs", "weight"])
def test_tensor_subclasses_see_the_usual_product(which, products):
    layer, inputs = make_layer(), torch.randn(5, 48)
    plain = layer(inputs)
    if which == "weight":
        layer.weight = nn.Parameter(layer.weight.as_subclass(Tagged), requires_grad=False)
    else:
        inputs = inputs.as_subclass(Tagged)
    Tagged.seen.clear()
    with fast_forms(layer):
        found = layer(inputs)
    assert "linear" in Tagged.seen and not products
    assert type(found) is Tagged and torch.equal(found.as_subclass(torch.Tensor), plain)


def test_function_transforms_work_inside_the_door(products):
    layer, inputs = make_layer(), torch.randn(6, 3, 48)
    weights = dict(layer.named_parameters())

    def loss(weights, x):
        return torch.func.functional_call(layer, weights, (x,)).square().sum()

    def results():
        with torch.no_grad():
            mapped = torch.func.vmap(layer)(inputs)
        return [
            mapped,
            torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, inputs),
            torch.func.hessian(loss, argnums=1)(weights, inputs[0, :1]),
            torch.func.jvp(layer, (inputs,), (inputs.cos(),)),
        ]

    plain = results()
    with fast_forms(layer):
        torch.testing.assert_close(results(), plain)
    assert not products


@pytest.mark.parametrize("grad", [True, False])
def test_forward_mode_gradients_work_inside_the_door(grad, products):
    layer, inputs = make_layer(), torch.randn(5, 48)
    with fast_forms(layer), torch.set_grad_enabled(grad), forward_ad.dual_level():
        output = layer(forward_ad.make_dual(inputs, inputs.cos()))
        tangent = forward_ad.unpack_dual(output).tangent
    torch.testing.assert_close(tangent, inputs.cos() @ layer.weight.T)


@pytest.mark.parametrize("grad", [True, False])
def test_a_traced_and_an_exported_layer_hold_the_usual_operators(grad, products, attended):
    tower, _ = make_tower()
    with torch.set_grad_enabled(grad), fast_forms(tower):
        features, bias = torch.randn(2, 80, 48), tower._position_bias(80, torch.device("cpu"))
        layer = tower.layers[0]
        fast = layer(features, bias)
        products.clear()
        attended.clear()
        traced = torch.jit.trace(layer, (features, bias), check_trace=False)  # the check is a plain pass
        exported = torch.export.export(layer, (features, bias))
    assert not products and not attended
    targets = {str(node.target) for node in exported.graph.nodes}
    assert any("aten.linear" in target for target in targets) and not any("mkldnn" in target for target in targets)
    assert "mkldnn" not in str(traced.inlined_graph)
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    for again in (traced, torch.jit.load(buffer), exported.module()):
        torch.testing.assert_close(again(features, bias), fast, atol=1e-5, rtol=1e-5)


def test_the_compiler_chooses_its_own_product(products):
    model, inputs = nn.Sequential(make_layer(), nn.ReLU()), torch.randn(5, 48)
    calls = []

    def record(graph, example_inputs):
        calls.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    with fast_forms(model):
        result = torch.compile(model, backend=record, fullgraph=True)(inputs)
    assert not products and sum("linear" in call for call in calls) == 1 and not any("mkldnn" in call for call in calls)
    torch.testing.assert_close(result, model(inputs))


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (5, 3, 16, 7), (62, 12, 64, 62)])
def test_each_group_has_its_own_product(shape):
    rows, groups, inner, columns = shape
    inputs, weight = torch.randn(rows, groups, inner), torch.randn(groups, columns, inner)
    expected = torch.einsum("rgi,goi->rgo", inputs, weight).flatten(1)
    torch.testing.assert_close(grouped_product(inputs.flatten(1), weight), expected, atol=1e-4, rtol=1e-5)
    strided = weight.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(grouped_product(inputs.flatten(1), strided), expected, atol=1e-4, rtol=1e-5)


# Layers and models


def test_onednn_attention_is_the_plain_one(attended):
    tower, spectrograms = make_tower()
    tower.set_attn_implementation("eager")
    with fast_forms(tower):
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
    with fast_forms(tower):
        tower(spectrograms).last_hidden_state.sum().backward()
        assert tower.relative_position_bias.weight.grad.abs().sum() > 0
        with torch.no_grad():
            tower.train()(spectrograms)
            assert not attended
            tower.eval()(spectrograms)
            assert len(attended) == 2
            monkeypatch.setattr(forms, "SMALLEST_PRODUCT", 80 * 48 * 80 + 1)
            tower(spectrograms)
            assert len(attended) == 2


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_the_feed_forward_layer_in_place_is_the_plain_one(activation):
    torch.manual_seed(0)
    layer = Qwen2MLP(Qwen2Config(hidden_size=48, intermediate_size=96, hidden_act=activation))
    inputs = torch.randn(2, 7, 48)
    before = inputs.clone()

    def results():
        layer.zero_grad()
        with torch.no_grad():
            output = layer(inputs)
        layer(inputs).square().sum().backward()
        return [output, *(parameter.grad for parameter in layer.parameters())]

    plain = results()
    with fast_forms(layer):
        torch.testing.assert_close(results(), plain)
    torch.testing.assert_close(inputs, before, atol=0, rtol=0)


@torch.no_grad()
def test_the_whole_model_gives_the_same_scores(model, processor, noise, products):
    inputs = processor(text=["A dog barks", "Rain falls on a tin roof"], audio=noise[:2], sampling_rate=16000)
    plain = model(**inputs).scores
    assert not products
    with fast_forms(model):
        torch.testing.assert_close(model(**inputs).scores, plain, atol=1e-4, rtol=0)
    assert products


@torch.no_grad()
@pytest.mark.parametrize("inside", [True, False])
def test_dynamic_quantisation_takes_all_linear_layers(model, processor, noise, products, inside):
    inputs = processor(text=["A dog barks", "Rain falls on a tin roof"], audio=noise[:2], sampling_rate=16000)
    plain = model(**inputs).scores
    count = sum(type(layer) is nn.Linear for layer in model.modules())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao's call for torchao
        if inside:
            with fast_forms(model):
                quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        else:
            quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    kinds = [type(layer) for layer in quantised.modules()]
    assert kinds.count(torch.ao.nn.quantized.dynamic.Linear) == count > 20 and nn.Linear not in kinds
    torch.testing.assert_close(quantised(**inputs).scores, plain, atol=0.3, rtol=0)
    assert not products


def test_a_hook_sees_what_the_plain_layer_computes():
    """In place, the gate's output would be overwritten after the hook saw it."""
    torch.manual_seed(0)
    layer = Qwen2MLP(Qwen2Config(hidden_size=48, intermediate_size=96))
    seen = []
    layer.gate_proj.register_forward_hook(lambda module, given, output: seen.append(output))
    inputs = torch.randn(2, 7, 48)
    with torch.no_grad(), fast_forms(layer):
        layer(inputs)
        torch.testing.assert_close(seen[0], layer.gate_proj(inputs))


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("options", [{"padding": 4, "groups": 4}, {"stride": 2, "dilation": 2, "bias": False}])
def test_a_convolution_as_one_of_an_image_is_the_plain_one(options, grad):
    torch.manual_seed(0)
    layer, inputs = nn.Conv1d(16, 16, 8, **options), torch.randn(3, 16, 40, requires_grad=grad)
    expected = layer(inputs)
    with fast_forms(layer):
        found = layer(inputs)
    torch.testing.assert_close(found, expected)
    if grad:
        gradients = [torch.autograd.grad(result.square().sum(), layer.weight) for result in (found, expected)]
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)
