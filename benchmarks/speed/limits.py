"""
The arithmetic limit of a case: the time that its linear layers alone would take, each computed in the way that is
fastest on this machine.

A way is a library (on CPUs oneDNN or MKL) and the number of rows it takes at a time: large products are slower in one
go than in parts that stay in the cache. Results go to memory that is already allocated: MKL writes into one buffer.
oneDNN cannot; what it returns is freed at once, and the C library hands the same memory out again (it keeps blocks of
up to 32 MB; larger parts turn out slower, so they are not chosen).
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
    """PyTorch's own product, `(rows, inner)` and `(columns, inner)` to `(rows, columns)`; uses MKL for fp32 on CPUs."""
    torch.mm(inputs, weight.t(), out=output)


def onednn_product(inputs: torch.Tensor, weight: torch.Tensor, output: torch.Tensor) -> None:
    """The same product by oneDNN; its result `(rows, columns)` is dropped."""
    torch.ops.mkldnn._linear_pointwise(inputs, weight, None, "none", [], "")


@dataclass(frozen=True)
class Place:
    """The device and the dtype in which products are computed."""

    device: torch.device
    dtype: torch.dtype

    def numbers(self, rows: int, columns: int) -> torch.Tensor:
        """Returns random numbers `(rows, columns)`."""
        return torch.randn(rows, columns, device=self.device, dtype=self.dtype)

    def libraries(self) -> dict[str, Callable[..., None]]:
        """Returns the libraries that can compute a product here."""
        found = {"default": default_product}
        if self.device.type == "cpu" and self.dtype == torch.float32 and HAS_ONEDNN:
            found["oneDNN"] = onednn_product
        return found


def parts(rows: int) -> Iterator[int]:
    """Yields the number of rows, half of it, a quarter and so on."""
    yield rows
    while (rows := -(-rows // 2)) >= SMALLEST_PART:
        yield rows


@cache
@torch.no_grad()
def timings(rows: int, inner: int, columns: int, place: Place) -> dict[tuple[str, int], float]:
    """Times a product for each library and number of rows at a time, extrapolated from one such part, in seconds."""
    weight, inputs, output = place.numbers(columns, inner), place.numbers(rows, inner), place.numbers(rows, columns)
    found = {}
    for name, product in place.libraries().items():
        for part in parts(rows):
            call = lambda x=inputs[:part], y=output[:part], product=product: product(x, weight, y)  # noqa: E731
            call()
            found[name, part] = min(seconds_of(call, place.device) for _ in range(TRIALS)) * rows / part
    return found


def rates(products: Sequence[Product], place: Place) -> dict[str, float]:
    """Returns the linear layers' operations a second in the best way of each library, and of all (`best`)."""
    layers = [product for product in products if product.kind == "linear"]
    seconds = dict.fromkeys(["best", *place.libraries()], 0.0)
    for layer in layers:
        found = timings(layer.rows, layer.inner, layer.columns, place)
        for name in seconds:
            seconds[name] += layer.times * min(time for way, time in found.items() if name in ("best", way[0]))
    return {name: sum(layer.operations for layer in layers) / time for name, time in seconds.items()}


def products_alone(products: Sequence[Product], place: Place) -> tuple[Callable[[], None], float]:
    """
    Returns a call that runs all linear layers of a pass, on data that is already in memory, and nothing else; and the
    ratio of all operations to those of the linear layers.
    """
    layers = [product for product in products if product.kind == "linear"]
    numbers = cache(place.numbers)  # made in the first call, so that earlier rivals' memory does not include them
    outputs = cache(place.numbers)

    @torch.no_grad()
    def run() -> None:
        """Computes each product as often as the model does."""
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
