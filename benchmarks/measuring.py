"""How the benchmarks measure: times of rivals in turn, peak memory, and what the machine can do."""

import ctypes
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from operations import Product
from torch.nn import functional

from modeling_xacle.speed.forms import linear

# A case ends when its rivals ran so often, or for so long.
REPETITIONS = 5
SECONDS = 60.0
BANDWIDTH_BYTES = 2**30


def synchronize(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Of one call, to the end of its work on the device."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def peak_memory(function: Callable[[], Any], device: torch.device) -> int:
    """
    Most bytes in use during a call, weights included: of the process (Linux tells it), or on a GPU of its tensors. 0
    where that cannot be told.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device)
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not reset.exists():
        function()
        return 0
    ctypes.CDLL(None).malloc_trim(0)
    reset.write_text("5")
    function()
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def compare(
    rivals: Mapping[str, Callable[[], Any]], device: torch.device, repetitions: int = REPETITIONS
) -> dict[str, dict[str, Any]]:
    """
    Run rivals in turn, so that what disturbs one disturbs the others, for `SECONDS` or the given number of times.

    Returns:
        Of each, the median `seconds` of how many `runs`, the shortest (`fastest`), and `peak_memory` in bytes of a run
        before these, whose time counts only where there was none left for others.
    """
    started = time.perf_counter()
    memory, first = {}, {}
    for name, function in rivals.items():
        begun = time.perf_counter()
        memory[name] = peak_memory(function, device)
        first[name] = time.perf_counter() - begun
    times: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repetitions):
        if time.perf_counter() - started > SECONDS:
            break
        for name, function in rivals.items():
            times[name].append(seconds_of(function, device))
    found = {}
    for name, runs in times.items():
        runs = runs or [first[name]]
        found[name] = {"seconds": median(runs), "fastest": min(runs), "runs": len(runs), "peak_memory": memory[name]}
    return found


def products_alone(
    products: Sequence[Product], device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[], None], float]:
    """
    The arithmetic of a pass and nothing else: a call of all its linear layers, on numbers that are there already, and
    how many times the operations of these all operations are.
    """
    layers = [product for product in products if product.kind == "linear"]

    @cache  # made in the first call, so that they do not count as memory of the rivals before
    def operand(rows: int, columns: int) -> torch.Tensor:
        """Numbers `(rows, columns)`."""
        return torch.randn(rows, columns, device=device, dtype=dtype)

    @torch.no_grad()
    def run() -> None:
        """All products, once each time the model has them."""
        for layer in layers:
            for _ in range(layer.times):
                linear(operand(layer.rows, layer.inner), operand(layer.columns, layer.inner))

    return run, sum(product.operations for product in products) / sum(layer.operations for layer in layers)


def product_rates(
    products: Sequence[Product], device: torch.device, dtype: torch.dtype, repetitions: int
) -> dict[str, float]:
    """
    Operations a second of a model's linear layers, each of its shapes alone and in the numbers in which the model has
    them: as this project computes them (`ours`), and as PyTorch does by default (`default`).
    """
    operations, seconds = 0, {"ours": 0.0, "default": 0.0}
    for product in {product: None for product in products if product.kind == "linear"}:
        inputs = torch.randn(product.rows, product.inner, device=device, dtype=dtype)
        weight = torch.randn(product.columns, product.inner, device=device, dtype=dtype)
        rivals = {"ours": linear, "default": functional.linear}
        with torch.no_grad():
            found = compare(
                {name: lambda f=f, x=inputs, w=weight: f(x, w) for name, f in rivals.items()}, device, repetitions
            )
        operations += product.operations
        for name, entry in found.items():
            seconds[name] += product.times * entry["seconds"]
    return {name: operations / total for name, total in seconds.items()}


def read_bandwidth(device: torch.device, num_bytes: int = BANDWIDTH_BYTES, repetitions: int = REPETITIONS) -> float:
    """Bytes a second at which memory is read."""
    values = torch.ones(num_bytes // 4, device=device)
    return num_bytes / compare({"sum": values.sum}, device, repetitions)["sum"]["seconds"]


def cpu_name() -> str:
    """Of this machine's processor, as the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def device_name(device: torch.device) -> str:
    """What a table is to call a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of {cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"
