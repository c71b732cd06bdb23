"""How the benchmarks measure: times of rivals in turn, peak memory, and how fast memory is read."""

import ctypes
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

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
    rivals: Mapping[str, Callable[[], Any]], device: torch.device, repetitions: int = REPETITIONS, calls: int = 1
) -> dict[str, dict[str, Any]]:
    """
    Run rivals in turn, so that what disturbs one disturbs the others, for `SECONDS` or the given number of times.

    Args:
        calls (`int`): Calls of a rival in its turn, of which the last is timed: the first after another's has to ask
            the system for memory anew, which in a training run only its first step does.

    Returns:
        Of each, the median `seconds` of how many `runs`, the shortest (`fastest`), and `peak_memory` in bytes of a run
        before these. There is one turn at least.
    """
    memory = {name: peak_memory(function, device) for name, function in rivals.items()}
    times: dict[str, list[float]] = {name: [] for name in rivals}
    started = time.perf_counter()
    for turn in range(repetitions):
        if turn and time.perf_counter() - started > SECONDS:
            break
        for name, function in rivals.items():
            times[name].append([seconds_of(function, device) for _ in range(calls)][-1])
    return {
        name: {"seconds": median(runs), "fastest": min(runs), "runs": len(runs), "peak_memory": memory[name]}
        for name, runs in times.items()
    }


def read_bandwidth(device: torch.device, num_bytes: int = BANDWIDTH_BYTES, repetitions: int = REPETITIONS) -> float:
    """Bytes a second at which memory is read."""
    values = torch.ones(num_bytes // 4, device=device)
    return num_bytes / compare({"sum": values.sum}, device, repetitions)["sum"]["seconds"]
