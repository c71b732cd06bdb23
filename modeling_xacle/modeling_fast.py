"""
Faster forms of layers: on CPUs, fp32 products by oneDNN, whatever product library PyTorch prefers there; without
gradients, results in memory that is there already.
"""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

# Multiplications from which a product with oneDNN pays: below, finding its kernel takes longer than the product.
SMALLEST_PRODUCT = 2**25
# The one way to oneDNN's fp32 product (torch 2.11). It is `torch.compile`'s own, which fails on calls by others.
HAS_PRODUCT = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """
    `nn.functional.linear` of fp32 on the CPU, without a gradient: `(batch_size, ..., in_features)` -> `(batch_size,
    ..., out_features)`.
    """
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class OneDnnLinearFunction(torch.autograd.Function):
    """The product of [`OneDnnLinear`] and its gradients, all by oneDNN."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """`(batch_size, ..., in_features)` -> `(batch_size, ..., out_features)`."""
        ctx.save_for_backward(inputs, weight)
        return onednn_product(inputs, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the inputs `(batch_size, ..., in_features)`, the weight and the bias, where they are needed."""
        inputs, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)  # (..., O) -> (R, O)
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            onednn_product(gradient, weight.t()) if needs_inputs else None,
            onednn_product(rows.t(), inputs.flatten(0, -2).t()) if needs_weight else None,  # -> (O, I)
            rows.sum(dim=0) if needs_bias else None,
        )


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
    if not is_for_onednn(inputs, weight):
        return nn.functional.linear(inputs, weight, bias)
    product = OneDnnLinearFunction.apply if torch.is_grad_enabled() else onednn_product
    return product(inputs, weight, bias)


def is_for_onednn(inputs: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether the product of `(batch_size, ..., in_features)` and `(out_features, in_features)` is for oneDNN."""
    return (
        HAS_PRODUCT
        and inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.numel() * len(weight) >= SMALLEST_PRODUCT
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


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


class OneDnnLinear(nn.Linear):
    """An `nn.Linear` that computes with [`linear`]."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`(batch_size, ..., in_features)` -> `(batch_size, ..., out_features)`."""
        return linear(inputs, self.weight, self.bias)


class InPlaceQwen2MLP(Qwen2MLP):
    """
    A `Qwen2MLP` that, without gradients, overwrites what it no longer needs. Fresh memory of this size has to be asked
    of the system each time, which on a CPU takes as long as a third of the products.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(batch_size, sequence_length, hidden_size)`, as the input's."""
        if torch.is_grad_enabled() or self.config.hidden_act != "silu":
            return super().forward(x)
        gates = nn.functional.silu(self.gate_proj(x), inplace=True)
        return self.down_proj(gates.mul_(self.up_proj(x)))


FAST_FORMS = {nn.Linear: OneDnnLinear, Qwen2MLP: InPlaceQwen2MLP}


def use_fast_forms(module: nn.Module) -> None:
    """Let the layers of a module of which there is a faster form, wherever their code comes from, take it."""
    for layer in module.modules():
        layer.__class__ = FAST_FORMS.get(type(layer), type(layer))
