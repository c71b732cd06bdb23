"""Linear layers that, on CPUs, compute fp32 products with oneDNN, whatever product library PyTorch prefers there."""

from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

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
    is_for_onednn = (
        HAS_PRODUCT
        and inputs.device.type == "cpu"
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.numel() * len(weight) >= SMALLEST_PRODUCT
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )
    if not is_for_onednn:
        return nn.functional.linear(inputs, weight, bias)
    return OneDnnLinearFunction.apply(inputs, weight, bias)


class OneDnnLinear(nn.Linear):
    """An `nn.Linear` that computes with [`linear`]."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """`(batch_size, ..., in_features)` -> `(batch_size, ..., out_features)`."""
        return linear(inputs, self.weight, self.bias)


def use_onednn(module: nn.Module) -> None:
    """Let all plain linear layers of a module, wherever their code comes from, be [`OneDnnLinear`]."""
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = OneDnnLinear
