"""
The arithmetic limit of a case: the time of its linear layers and nothing else, each by the fastest way there is on this
machine.

A way is a library (on CPUs oneDNN and MKL) and the number of rows it takes at a time: large products are slower in one
go than in parts that stay in the cache. Results go to memory that is there already: MKL writes into one buffer. oneDNN
has no such form; what it returns is freed at once, and the C library hands the same memory out again (it keeps blocks
of up to 32 MB; larger parts come out slower, so that they are not chosen).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from measuring import seconds_of
from operations import Product

SMALLEST_PART = 256  # rows
TRIALS = 3
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def default_product(inputs: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> None:
    """PyTorch's own: `(rows, inner)` and `(columns, inner)` into `(rows, columns)`; of fp32 on CPUs by MKL."""
    torch.mm(inputs, weight.t(), out=output)


def onednn_product(inputs: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> None:
    """The same by oneDNN, whose result `(rows, columns)` is dropped."""
    torch.ops.mkldnn._linear_pointwise(inputs, weight, None, "none", [], "")


@dataclass(frozen=True)
class Place:
    """Where products are computed, and in what."""

    device: torch.device
    dtype: torch.dtype

    def numbers(self, rows: int, columns: int) -> torch.Tensor:
        """Random numbers `(rows, columns)`."""
        return torch.randn(rows, columns, device=self.device, dtype=self.dtype)

    def libraries(self) -> dict[str, Callable[..., None]]:
        """What can compute a product here."""
        found = {"default": default_product}
        if self.device.type == "cpu" and self.dtype == torch.float32 and HAS_ONEDNN:
            found["oneDNN"] = onednn_product
        return found


def parts(rows: int) -> Iterator[int]:
    """All rows, a half of them, a quarter and so on."""
    yield rows
    while (rows := -(-rows // 2)) >= SMALLEST_PART:
        yield rows


@cache
@torch.no_grad()
def timings(rows: int, inner: int, columns: int, place: Place) -> dict[tuple[str, int], float]:
    """Seconds of a product in each library and with so many rows at a time, from one such part."""
    weight, inputs, output = place.numbers(columns, inner), place.numbers(rows, inner), place.numbers(rows, columns)
    found = {}
    for name, product in place.libraries().items():
        for part in parts(rows):
            call = lambda x=inputs[:part], y=output[:part], product=product: product(x, weight, y)  # noqa: E731
            call()
            found[name, part] = min(seconds_of(call, place.device) for _ in range(TRIALS)) * rows / part
    return found


def rates(products: Sequence[Product], place: Place) -> dict[str, float]:
    """Operations a second of linear layers: by the best way of each library, and by the best of all (`best`)."""
    layers = [product for product in products if product.kind == "linear"]
    seconds = dict.fromkeys(["best", *place.libraries()], 0.0)
    for layer in layers:
        found = timings(layer.rows, layer.inner, layer.columns, place)
        for name in seconds:
            seconds[name] += layer.times * min(time for way, time in found.items() if name in ("best", way[0]))
    return {name: sum(layer.operations for layer in layers) / time for name, time in seconds.items()}


def products_alone(products: Sequence[Product], place: Place) -> tuple[Callable[[], None], float]:
    """
    The arithmetic of a pass and nothing else: a call of all its linear layers, on numbers that are there already, and
    how many times the operations of these all operations are.
    """
    layers = [product for product in products if product.kind == "linear"]
    numbers = cache(place.numbers)  # made in the first call, so that they do not count as memory of the rivals before
    outputs = cache(place.numbers)

    @torch.no_grad()
    def run() -> None:
        """All products, once each time the model has them."""
        for layer in layers:
            found = timings(layer.rows, layer.inner, layer.columns, place)
            library, part = min(found, key=found.__getitem__)
            product = place.libraries()[library]
            pieces = [
                values.split(part) for values in (numbers(layer.rows, layer.inner), outputs(layer.rows, layer.columns))
            ]
            weight = numbers(layer.columns, layer.inner)
            for _ in range(layer.times):
                for inputs, output in zip(*pieces, strict=True):
                    product(inputs, weight, output)

    return run, sum(product.operations for product in products) / sum(layer.operations for layer in layers)
