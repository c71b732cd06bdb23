"""Measures times of rivals in turn, peak memory, and how fast memory is read."""

import ctypes
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch

# A case ends when its rivals have run this often, or for this long.
REPETITIONS = 5
SECONDS = 60.0
BANDWIDTH_BYTES = 2**30


def synchronize(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Returns the seconds that one call takes, including its work on the device."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def peak_memory(function: Callable[[], Any], device: torch.device) -> int:
    """
    Returns the most bytes in use during a call, weights included: by the process (if Linux reports it), or on a GPU by
    its tensors; 0 if that is not known.
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
    Run rivals in turn, so that a disturbance hits all of them, for `SECONDS` or the given number of times.

    Args:
        calls (`int`): Calls of a rival in its turn, of which only the last is timed: the first has to ask the system
            for memory again, which in a training run only the first step does.

    Returns:
        For each rival the median `seconds`, the number of `runs`, the shortest time (`fastest`), and the `peak_memory`
        in bytes of an earlier run. There is at least one turn.
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
    """Returns how many bytes a second are read from memory."""
    values = torch.ones(num_bytes // 4, device=device)
    return num_bytes / compare({"sum": values.sum}, device, repetitions)["sum"]["seconds"]
