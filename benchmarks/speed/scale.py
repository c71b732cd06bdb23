"""
Measures the cost of scoring a table: time per pair with 1, 2 and 4 processes, and memory for two table sizes.

    PYTHONPATH=. python benchmarks/speed/scale.py --pairs 100000

is a trial under load on one process: time per pair, and the memory of a tenth of the table beside that of the whole.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import typer

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "accelerate_configs" / "cpu_2_processes.yaml"
PROCESSES = (1, 2, 4)
# Pairs in the tables: the difference in time between the two leaves out the time to start.
SHORT, LONG = 512, 8192
SAMPLING_RATE, SECONDS, SOUNDS = 16000, 10, 16
PAIRS_PER_CLIP = 4
# Prints the most kilobytes that any process of a command had. It runs in its own process, since Linux counts a parent's
# memory at a command's start, and this process may have held a large model.
WATCH = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[1:], stdout=sys.stderr)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""


def write_table(folder: Path, pairs: int) -> Path:
    """Write a table of `pairs` pairs, with `PAIRS_PER_CLIP` captions per clip; each clip has its own file name."""
    generator = np.random.default_rng(0)
    for index in range(SOUNDS):
        noise = (0.1 * generator.standard_normal(SECONDS * SAMPLING_RATE)).astype(np.float32)
        soundfile.write(folder / f"sound{index}.wav", noise, SAMPLING_RATE)
    lines = ["audio,text"]
    for row in range(pairs):
        clip = row // PAIRS_PER_CLIP
        link = folder / f"{clip}.wav"
        if not link.is_symlink():
            link.symlink_to(folder / f"sound{clip % SOUNDS}.wav")
        lines.append(f"{link.name},A dog barks {row} times while rain falls on a roof")
    table = folder / f"{pairs}.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def score(table: Path, processes: int) -> dict[str, float]:
    """
    Score a table with the bundled model, on one thread per process; returns wall-clock `seconds` and the most bytes
    that any one process had (`peak_memory`).

    Raises:
        RuntimeError: The command failed.
    """
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(LAUNCHER), "--main_process_port", "0"]
    launch += ["--num_processes", str(processes), "--module"]
    output = table.with_name(f"{table.stem}_{processes}.csv")
    command = [*(launch if processes > 1 else ["-m"]), "modeling_xacle.cli", "score", str(table), "-o", str(output)]
    watched = [sys.executable, "-c", WATCH, sys.executable, *command, "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    done = subprocess.run(watched, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Scoring a table failed:\n{done.stderr[-2000:]}")
    return {"seconds": time.perf_counter() - start, "peak_memory": int(done.stdout) * 1024}


def measure_sizes(sizes: tuple[int, int], processes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measures for each number of processes: seconds a pair, seconds to start, and peak memory with either table."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tables = [write_table(Path(folder), pairs) for pairs in sizes]
        for count in processes:
            short, long = (score(table, count) for table in tables)
            pair = (long["seconds"] - short["seconds"]) / (sizes[1] - sizes[0])
            rows.append(
                {
                    "processes": count,
                    "pairs": list(sizes),
                    "seconds a pair": pair,
                    "seconds to start": short["seconds"] - pair * sizes[0],
                    "peak_memory": [short["peak_memory"], long["peak_memory"]],
                }
            )
    return rows


def measure_tables(smoke: bool = False) -> list[dict[str, Any]]:
    """Measures the tables of the benchmark; a smoke test measures small ones with one process."""
    return measure_sizes((8, 16), PROCESSES[:1]) if smoke else measure_sizes((SHORT, LONG), PROCESSES)


def main(pairs: Annotated[int, typer.Option(min=100, help="Rows of the table.")] = 100_000) -> None:
    """Score a large table, and tell the time per pair and the peak memory."""
    for row in measure_sizes((pairs // 10, pairs), PROCESSES[:1]):
        small, large = (memory / 2**20 for memory in row["peak_memory"])
        typer.echo(
            f"{1e3 * row['seconds a pair']:.2f} ms a pair; peak memory {small:.0f} MiB with {pairs // 10:,} pairs, "
            f"{large:.0f} MiB with {pairs:,}"
        )


if __name__ == "__main__":
    typer.run(main)
