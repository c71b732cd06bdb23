"""
Faster forms of layers on CPUs, behind one door, [`fast_forms`]: fp32 products by oneDNN, whatever product library
PyTorch prefers there; without gradients, results in memory that is there already.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.autograd.forward_ad import unpack_dual
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP
from transformers.utils import logging

from ..modeling_beats import BeatsAttention
from ..modeling_xacle import InputPrecisionLinear

logger = logging.get_logger(__name__)

SWITCH = "XACLE_FAST"
# Multiplications from which a product with oneDNN pays: below, finding its kernel takes longer than the product.
SMALLEST_PRODUCT = 2**25
PLAIN_TENSORS = (torch.Tensor, nn.Parameter)

# ---------------------------------------------------------------------------------------------------------------------
# Products


def onednn_product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """
    `nn.functional.linear` of fp32 on the CPU, without a gradient: `(batch_size, ..., in_features)` -> `(batch_size,
    ..., out_features)`. The operator is `torch.compile`'s own, and the one way to oneDNN's fp32 product.
    """
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


def grouped_product(inputs: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """
    Products of groups of columns, each with its own weight, by oneDNN; without a gradient. To oneDNN this is a
    convolution of an image of height one, whose channels lie last.

    Args:
        inputs (`torch.Tensor` of shape `(rows, num_groups * in_features)`): fp32, on the CPU.
        weight (`torch.Tensor` of shape `(num_groups, out_features, in_features)`): As of `nn.Linear`, of each group.

    Returns:
        `torch.Tensor` of shape `(rows, num_groups * out_features)`.
    """
    num_groups = len(weight)
    image = inputs.view(1, 1, *inputs.shape).permute(0, 3, 1, 2)  # (R, G * I) -> (1, G * I, 1, R)
    kernel = weight.flatten(0, 1)[..., None, None]  # (G, O, I) -> (G * O, I, 1, 1)
    output = torch.mkldnn_convolution(image, kernel, None, (0, 0), (1, 1), (1, 1), num_groups)
    return output.permute(0, 2, 3, 1).flatten(0, 2)  # (1, G * O, 1, R) -> (R, G * O)


@cache
@torch.inference_mode()
@torch.autocast("cpu", enabled=False)
def works() -> bool:
    """
    Returns True if this PyTorch's private operators still give the products they gave when this was written: small
    ones are computed once and compared with plain ones.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    inputs, weight, bias = (torch.arange(n, dtype=torch.float32, device="cpu") for n in (24, 20, 5))
    inputs, weight = inputs.view(2, 3, 4), weight.view(4, 5).t()  # strided, as in gradients
    groups, parts = inputs.transpose(0, 1), weight[:4].expand(2, 4, 4)  # (R, G, I), (G, O, I)
    grouped = torch.einsum("rgi,goi->rgo", groups, parts).flatten(1)
    try:
        torch._C._are_functorch_transforms_active()
        torch.testing.assert_close(onednn_product(inputs, weight, bias), nn.functional.linear(inputs, weight, bias))
        torch.testing.assert_close(onednn_product(inputs, weight), nn.functional.linear(inputs, weight))
        torch.testing.assert_close(grouped_product(groups.flatten(1), parts), grouped)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
        logger.warning(f"PyTorch {torch.__version__} lacks oneDNN's product; CPUs compute at its own speed. ({error})")
        return False
    return True


def is_plain(*tensors: torch.Tensor | None) -> bool:
    """Returns True if all are ordinary tensors, computed with now: no subclass, transform, trace or compiler."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    return all(tensor is None or type(tensor) in PLAIN_TENSORS for tensor in tensors)


def is_for_onednn(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """
    Returns True if the product of `(batch_size, ..., in_features)` and `(out_features, in_features)` is for oneDNN: a
    plain, large one of fp32 on the CPU, without forward-mode gradients.
    """
    return (
        is_plain(inputs, weight, bias)
        and inputs.ndim >= 2 == weight.ndim
        and inputs.numel() * weight.shape[0] >= SMALLEST_PRODUCT
        and inputs.shape[-1] == weight.shape[1]
        and inputs.is_cpu
        and weight.is_cpu
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.layout == weight.layout == torch.strided
        and torch.backends.mkldnn.enabled
        and not torch.is_autocast_enabled("cpu")
        and all(tensor is None or unpack_dual(tensor).tangent is None for tensor in (inputs, weight, bias))
    )


class OneDnnLinear(torch.autograd.Function):
    """A product by oneDNN, and its gradients by [`linear`], which has gradients itself."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`(batch_size, ..., in_features)` -> `(batch_size, ..., out_features)`."""
        ctx.save_for_backward(inputs, weight)
        return onednn_product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the inputs `(batch_size, ..., in_features)`, the weight and the bias, where they are needed."""
        inputs, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # (..., O) -> (R, O)
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            linear(gradient, weight.t()) if needs_inputs else None,
            linear(rows.t(), inputs.flatten(0, -2).t()) if needs_weight else None,  # -> (O, I)
            rows.sum(dim=0) if needs_bias else None,
        )


def product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """`(batch_size, ..., in_features)` -> `(batch_size, ..., out_features)` by oneDNN, gradients included."""
    return (OneDnnLinear.apply if torch.is_grad_enabled() else onednn_product)(inputs, weight, bias)


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """
    `nn.functional.linear`, by oneDNN where that computes the same faster: large fp32 products on the CPU.

    PyTorch hands fp32 products to MKL. On CPUs not by Intel, MKL uses no AVX-512, and oneDNN is up to three times as
    fast, at the same precision.

    Args:
        inputs (`torch.Tensor` of shape `(batch_size, ..., in_features)`): Any dtype, on any device.
        weight (`torch.Tensor` of shape `(out_features, in_features)`), bias (`torch.Tensor` of shape
            `(out_features,)`, *optional*): As of `nn.Linear`.

    Returns:
        `torch.Tensor` of shape `(batch_size, ..., out_features)`.
    """
    if is_for_onednn(inputs, weight, bias):
        return product(inputs, weight, bias)
    return nn.functional.linear(inputs, weight, bias)


# ---------------------------------------------------------------------------------------------------------------------
# Layers


def linear_forward(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """`(batch_size, ..., in_features)` -> `(batch_size, ..., out_features)`, by oneDNN where that is faster."""
    weight, bias = layer.weight, layer.bias
    if is_for_onednn(inputs, weight, bias):
        return product(inputs, weight, bias)
    return type(layer).forward(layer, inputs)


def convolve(layer: nn.Conv1d, inputs: torch.Tensor) -> torch.Tensor:
    """`(batch_size, channels, length)` as an image of height one, whose channels lie last: on a CPU twice as fast."""
    if (
        not is_plain(inputs, layer.weight, layer.bias)
        or layer.padding_mode != "zeros"
        or isinstance(layer.padding, str)
    ):
        return nn.Conv1d.forward(layer, inputs)
    image, weight = inputs.unsqueeze(2), layer.weight.unsqueeze(2)  # (B, C, N) -> (B, C, 1, N)
    stride, padding, dilation = (1, *layer.stride), (0, *layer.padding), (1, *layer.dilation)
    return nn.functional.conv2d(image, weight, layer.bias, stride, padding, dilation, layer.groups).squeeze(2)


def feed_forward(layer: Qwen2MLP, hidden_states: torch.Tensor) -> torch.Tensor:
    """
    `Qwen2MLP.forward`, `(batch_size, sequence_length, hidden_size)` as the input's, that without gradients overwrites
    what it no longer needs. Fresh memory of this size has to be asked of the system each time, which on a CPU takes as
    long as a third of the products.
    """
    is_watched = any(part._forward_hooks for part in (layer.gate_proj, layer.up_proj, layer.act_fn))
    if is_watched or torch.is_grad_enabled() or layer.config.hidden_act != "silu" or not is_plain(hidden_states):
        return Qwen2MLP.forward(layer, hidden_states)
    gates = nn.functional.silu(layer.gate_proj(hidden_states), inplace=True)
    return layer.down_proj(gates.mul_(layer.up_proj(hidden_states)))


def attend(
    layer: BeatsAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gate: torch.Tensor,
    position_bias: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    `BeatsAttention.attend`, by oneDNN where that may stand for `sdpa`, and pays: without gradients and dropout, and if
    the product of a clip's queries and keys is large.
    """
    drops = layer.training and layer.config.attention_dropout > 0
    is_fused = layer.config._attn_implementation == "sdpa" and not torch.is_grad_enabled() and not drops
    is_usual = is_fused and is_plain(query, key, value, gate, position_bias)
    if not is_usual or not is_for_onednn(query[0].flatten(1), key[0].flatten(1)):
        return BeatsAttention.attend(layer, query, key, value, gate, position_bias)
    return onednn_attention(query, key, value, gate, position_bias, layer.head_dim**-0.5), None


def onednn_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    gate: torch.Tensor,
    position_bias: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """
    Attention with products by oneDNN, for CPUs: in fp32, without a gradient, clip by clip.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch_size, num_tokens, num_heads, head_dim)`): Projected inputs.
        gate (`torch.Tensor` of shape `(batch_size, num_tokens, num_heads, 1)`): Of the bias, for each query.
        position_bias (`torch.Tensor` of shape `(1, num_heads, num_tokens, num_tokens)`): Ungated.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_tokens, num_heads, head_dim)`.
    """
    output = torch.empty_like(query)
    bias = position_bias[0].transpose(0, 1)  # (1, H, N, N) -> (N, H, N)
    for clip in range(len(query)):
        logits = grouped_product((query[clip] * scaling).flatten(1), key[clip].transpose(0, 1))
        weights = logits.view_as(bias).addcmul_(gate[clip], bias)
        torch.softmax(weights, dim=-1, out=weights)
        output[clip] = grouped_product(weights.flatten(1), value[clip].permute(1, 2, 0)).view_as(query[clip])
    return output


# ---------------------------------------------------------------------------------------------------------------------
# The door

# Of each kind of layer, which method has a faster form. Attention has one for its inner part alone, which takes the
# position bias ungated: a gated copy, 12 MB a clip and layer, is what Transformers' attention interface would be given.
FAST_FORMS: dict[type[nn.Module], tuple[str, Callable]] = {
    nn.Linear: ("forward", linear_forward),
    InputPrecisionLinear: ("forward", linear_forward),
    nn.Conv1d: ("forward", convolve),
    Qwen2MLP: ("forward", feed_forward),
    BeatsAttention: ("attend", attend),
}


class FastMethod:
    """A faster form, bound to its layer. A copy or a pickle of the layer gets the plain method in its place."""

    def __init__(self, layer: nn.Module, name: str, form: Callable):
        self.layer, self.name, self.form = layer, name, form

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.form(self.layer, *args, **kwargs)

    def __reduce__(self) -> tuple:
        return getattr, (self.layer, self.name)


def is_wanted(model: nn.Module) -> bool:
    """Returns True if faster forms are not switched off, work here, and the model's (first) weights are on the CPU."""
    return (
        os.environ.get(SWITCH) != "0"
        and torch.backends.mkldnn.enabled
        and next((weight.device.type == "cpu" for weight in model.parameters()), False)
        and works()
    )


@contextmanager
def fast_forms(model: nn.Module) -> Iterator[None]:
    """
    The door: while it is open, layers of a model on a CPU compute with their faster forms; before and afterwards they
    are plain. Layers whose method was replaced already (by offloading, or by a door that is open) are left alone.
    `XACLE_FAST=0` keeps it shut.

    ```python
    >>> with fast_forms(model), torch.inference_mode():
    ...     scores = model(**inputs).scores
    ```

    Args:
        model (`nn.Module`): Any; layers of kinds that have no faster form stay as they are.
    """
    opened = []
    try:
        if is_wanted(model):
            for layer in model.modules():
                name, form = FAST_FORMS.get(type(layer), ("", None))
                if form is not None and name not in vars(layer):
                    method = vars(layer)[name] = FastMethod(layer, name, form)
                    opened.append(method)
        yield
    finally:
        for method in opened:
            if vars(method.layer).get(method.name) is method:
                del vars(method.layer)[method.name]
