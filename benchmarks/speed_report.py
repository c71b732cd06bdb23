"""The benchmark's results for people: a table and a picture."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from modeling_xacle.cards import markdown_table
from modeling_xacle.figures import BLUE, GREY, ORANGE, styled_figure

COLUMNS = ("cpu fp32", "cuda fp32", "cuda bf16")
GIGA = 1e9


def rows_of(results: dict[str, Any], place: str) -> Iterator[dict[str, Any]]:
    """All rows that were measured on a device."""
    for section in results.get(place, {}).get("sections", {}).values():
        yield from section["rows"]


def case_row(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table, per clip, pair or caption."""
    ours, plain = row["ours"], row.get("reference")
    return {
        "case": row["case"],
        "GFLOP": f"{row['operations'] / row['items'] / GIGA:.1f}" if "limit" in row else "",
        "limit (s)": f"{row['limit'] / row['items']:.3f}" if "limit" in row else "",
        "ours (s)": f"{ours['seconds'] / row['items']:.4f}",
        "of the limit": f"{row['of the limit']:.0%}" if "limit" in row else "",
        "reference (s)": f"{plain['seconds'] / row['items']:.4f}" if plain else "",
        "times the reference": f"{row['times the reference']:.2f}" if plain else "",
        "peak memory (GB)": f"{ours['peak_memory'] / GIGA:.2f}",
        "reference's": f"{plain['peak_memory'] / GIGA:.2f}" if plain else "",
    }


def machine_line(machine: dict[str, Any]) -> str:
    """What the device can do."""
    return (
        f"{machine['name']}: {machine['rate'] / GIGA:.0f} GFLOP/s in the model's own matrix products "
        f"({machine['default rate'] / GIGA:.0f} with PyTorch's default), {machine['bandwidth'] / GIGA:.0f} GB/s read. "
        f"Scores differ from the reference's by {machine['score difference']:.1g} at most, one pair at a time."
    )


def tables_row(row: dict[str, Any]) -> dict[str, str]:
    """A row of the table of tables."""
    (short, long), (few, many) = row["peak_memory"], row["pairs"]
    return {
        "processes": str(row["processes"]),
        "ms a pair": f"{1000 * row['seconds a pair']:.1f}",
        "s to start": f"{row['seconds to start']:.1f}",
        f"peak memory, {few} pairs (MB)": f"{short / 1e6:.0f}",
        f"{many} pairs (MB)": f"{long / 1e6:.0f}",
    }


def as_markdown(results: dict[str, Any]) -> str:
    """All that was measured; a device that there was not has an empty section."""
    parts = ["# Speed\n\nMade by `python benchmarks/run.py`. Times and operations are of one clip, pair or caption."]
    for place in COLUMNS:
        parts.append(f"## {place}")
        rows = [case_row(row) for row in rows_of(results, place)]
        parts.append(
            f"{machine_line(results[place]['machine'])}\n\n{markdown_table(rows)}" if rows else "Not measured."
        )
    if "scale" in results:
        tables = markdown_table([tables_row(row) for row in results["scale"]])
        parts.append(f"## Tables, one thread a process\n\n{tables}")
    return "\n\n".join(parts) + "\n"


def draw_speed(results: dict[str, Any]) -> Figure:
    """Our time and the reference's for each case on the CPU, with the arithmetic limit."""
    rows = list(rows_of(results, COLUMNS[0]))[::-1]
    places = np.arange(len(rows))
    with styled_figure(6.6, 1.2 + 0.26 * len(rows)) as (figure, axes):
        for offset, name, color in ((0.2, "ours", BLUE), (-0.2, "reference", ORANGE)):
            seconds = [row[name]["seconds"] / row["items"] if name in row else np.nan for row in rows]
            axes.barh(places + offset, seconds, height=0.38, color=color, alpha=0.8, label=name)
        limits = [row["limit"] / row["items"] if "limit" in row else np.nan for row in rows]
        axes.plot(limits, places, "|", color=GREY, ms=11, mew=1.5, label="arithmetic limit")
        axes.set_yticks(places, [row["case"] for row in rows])
        axes.set(xscale="log", xlabel="seconds per clip, pair or caption")
        axes.grid(axis="x")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
