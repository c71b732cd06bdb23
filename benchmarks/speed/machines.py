"""
Names a machine in results, and its file: each processor has its own, so that no run overwrites another's. Also tells
which code results were made with.
"""

import hashlib
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
# Instructions for fp32, widest first, and for bf16 products, best first; a processor is named by the first it has.
INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
BF16_INSTRUCTIONS = INSTRUCTIONS[:2]


def processor_facts() -> dict[str, str]:
    """Returns what Linux says about the first processor; elsewhere only its name."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {"model name": platform.processor() or platform.machine(), "flags": ""}
    first = file.read_text().split("\n\n")[0]
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}


def describe(device: torch.device) -> dict[str, Any]:
    """Returns the processor's `name` and what else its speed depends on: instructions, threads, PyTorch."""
    version = ".".join(torch.__version__.split(".")[:2])
    if device.type == "cuda":
        return {"name": torch.cuda.get_device_name(device), "instructions": "cuda", "threads": 0, "torch": version}
    facts = processor_facts()
    flags = facts.get("flags", facts.get("Features", "")).split()
    family = facts.get("cpu family")
    name = facts.get("model name", platform.machine())
    return {
        "name": f"{name} (family {family})" if family else name,
        "instructions": next((name for name in INSTRUCTIONS if name in flags), "plain"),
        "threads": torch.get_num_threads(),
        "torch": version,
    }


def has_bf16(machine: dict[str, Any]) -> bool:
    """Returns True if a processor has instructions for bf16 products."""
    return machine["instructions"] in ("cuda", *BF16_INSTRUCTIONS)


def file_stem(machine: dict[str, Any]) -> str:
    """Returns the name of a machine's result file, without its ending."""
    parts = [machine["name"], f"torch {machine['torch']}"]
    if machine["threads"]:
        parts[1:1] = [machine["instructions"], f"{machine['threads']} threads"]
    return re.sub(r"[^a-z0-9._]+", "-", " ".join(parts).lower()).strip("-")


def in_words(machine: dict[str, Any]) -> str:
    """Returns a machine's name for tables."""
    if not machine["threads"]:
        return machine["name"]
    return f"{machine['threads']} cores of {machine['name']}, {machine['instructions']}"


def code_digest(patterns: Iterable[str]) -> str:
    """Returns a checksum of the project's files that match patterns, which tells apart results of different code."""
    digest = hashlib.sha256()
    for file in sorted({file for pattern in patterns for file in ROOT.glob(pattern)}):
        digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
