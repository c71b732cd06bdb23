"""Presents the benchmark's results: a page and a picture for each processor, and one table of all processors."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from machines import in_words
from matplotlib.figure import Figure

from modeling_xacle.data.files import write_whole
from modeling_xacle.data.tables import markdown_table
from modeling_xacle.evaluation.figures import BLUE, GREY, figure_bytes, styled_figure

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/speed.md"
DTYPES = ("fp32", "bf16")
GIGA = 1e9
# Figures that others measured on their processors, under the names of the table's columns.
ELSEWHERE = "measured_elsewhere.json"
# Columns in the table of all processors: ratios to the published design by case, in fp32.
RATIOS = {
    "pair, batch 1": "whole pair, 1 pairs",
    "encoder, batch 8": "encoder, 8 clips",
    "four captions a clip": "4 captions a clip, 8 captions",
    "stage 2 step, stored features": "stage 2, step of 8, cached",
    "stage 2 step, encoder run": "stage 2, step of 8",
}
PAIR, BF16_PAIR = "whole pair, 8 pairs", "whole pair in bf16, 8 pairs"
FIRST_COLUMN = "processor, fp32"


def all_rows(results: Mapping[str, Any], dtype: str) -> list[dict[str, Any]]:
    """Returns all rows of a dtype, withdrawn ones included."""
    return [row for section in results.get(dtype, {}).get("sections", {}).values() for row in section["rows"]]


def rows_of(results: Mapping[str, Any], dtype: str) -> list[dict[str, Any]]:
    """Returns the rows that were measured in a dtype and still count."""
    return [row for row in all_rows(results, dtype) if "ours" in row]


def case_row(row: dict[str, Any]) -> dict[str, str]:
    """Returns a row of a processor's table, per clip, pair or caption."""
    ours, plain = row["ours"], row.get("reference")
    return {
        "case": row["case"],
        "GFLOP": f"{row['operations'] / row['items'] / GIGA:.1f}" if "operations" in row else "",
        "limit (s)": f"{row['limit'] / row['items']:.3f}" if "limit" in row else "",
        "ours (s)": f"{ours['seconds'] / row['items']:.4f}",
        "of the limit": f"{row['of the limit']:.0%}" if "limit" in row else "",
        "beside": row["beside"] if plain else "",
        "its time (s)": f"{plain['seconds'] / row['items']:.4f}" if plain else "",
        "ratio": f"{row['ratio']:.2f}" if plain else "",
        "peak memory (GB)": f"{ours['peak_memory'] / GIGA:.2f}",
        "its peak memory": f"{plain['peak_memory'] / GIGA:.2f}" if plain else "",
    }


def capacity_line(capacity: dict[str, Any]) -> str:
    """Says what a processor can do."""
    rates = capacity["rates"]
    others = [f"{rate / GIGA:.0f} by {name}" for name, rate in rates.items() if name != "best"]
    return (
        f"{rates['best'] / GIGA:.0f} GFLOP/s in the model's own matrix products ({', '.join(others)}), "
        f"{capacity['bandwidth'] / GIGA:.0f} GB/s read. Scores differ from the reference's by "
        f"{capacity['score difference']:.1g} at most, one pair at a time."
    )


def tables_row(row: dict[str, Any]) -> dict[str, str]:
    """Returns a row of the table about scoring tables."""
    (short, long), (few, many) = row["peak_memory"], row["pairs"]
    return {
        "processes": str(row["processes"]),
        "ms a pair": f"{1000 * row['seconds a pair']:.1f}",
        "s to start": f"{row['seconds to start']:.1f}",
        f"peak memory, {few} pairs (MB)": f"{short / 1e6:.0f}",
        f"{many} pairs (MB)": f"{long / 1e6:.0f}",
    }


def bf16_line(results: Mapping[str, Any]) -> str:
    """Says how fast scoring in bf16 is and how far it moves scores, or why that was not measured."""
    for row in rows_of(results, "fp32"):
        if row["case"] == BF16_PAIR:
            return f"{row['ratio']:.2f} times as fast, scores move by {row['score difference']:.2g} at most"
    tried = "bf16" in results.get("fp32", {}).get("sections", {})
    return "no instructions for it" if tried else "not measured"


def check_lines(checks: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """Lists what gpu.py found apart from speed."""
    for name, value in checks.items():
        told = {key: part for key, part in value.items() if not isinstance(part, Mapping)}
        if told:
            shown = [f"{key} {part:.4g}" if isinstance(part, float) else f"{key} {part}" for key, part in told.items()]
            yield f"- {above}{name}: {', '.join(shown)}"
        nested = {key: part for key, part in value.items() if isinstance(part, Mapping)}
        yield from check_lines(nested, f"{above}{name}, ")


def machine_page(results: dict[str, Any]) -> str:
    """Returns a page with all that was measured on a processor."""
    machine = results["machine"]
    intro = "Made by `python benchmarks/speed/run.py`. Times and operations are of one clip, pair or caption."
    parts = [f"# Speed: {in_words(machine)}, PyTorch {machine['torch']}", intro, *results.get("notes", [])]
    for dtype in DTYPES:
        if not (rows := all_rows(results, dtype)):
            continue
        parts += [f"## {dtype}", capacity_line(results[dtype]["capacity"])]
        parts.append(markdown_table([case_row(row) for row in rows_of(results, dtype)]))
        withdrawn = [f"- {row['case']}: {row['withdrawn']['reason']}" for row in rows if "withdrawn" in row]
        if withdrawn:
            parts.append("\n".join(["Withdrawn:\n", *withdrawn]))
    parts.append(f"Scoring in bf16, batches of 8, beside fp32: {bf16_line(results)}.")
    if "checks" in results:
        parts.append("## Checks\n\n" + "\n".join(check_lines(results["checks"])))
    if "scale" in results:
        tables = markdown_table([tables_row(row) for row in results["scale"]])
        parts.append(f"## Tables, one thread a process\n\n{tables}")
    return "\n\n".join(parts) + "\n"


def draw_speed(results: dict[str, Any]) -> Figure:
    """Draws, for each case in fp32, the speed relative to what it is compared with, and the share of the limit."""
    rows = [row for row in rows_of(results, "fp32") if "ratio" in row or "of the limit" in row][::-1]
    panels = {
        "times as fast as what it is compared with": ("ratio", 1),
        "share of the arithmetic limit": ("of the limit", 1),
    }
    with styled_figure(7.2, 1.0 + 0.24 * len(rows), columns=2) as (figure, both):
        for axes, (label, (key, line)) in zip(both, panels.items(), strict=True):
            values = [row.get(key, 0) for row in rows]
            bars = axes.barh(range(len(rows)), values, height=0.7, color=BLUE, alpha=0.6)
            axes.bar_label(bars, [f"{value:.2f}" if value else "" for value in values], padding=2, fontsize=7)
            axes.axvline(line, color=GREY, lw=0.8, ls="--")
            axes.set(xlabel=label, yticks=[])
        both[0].set_yticks(range(len(rows)), [row["case"] for row in rows])
    return figure


def result_files(folder: Path) -> list[Path]:
    """Returns the files of the measured processors."""
    return [file for file in sorted(folder.glob("*.json")) if file.name != ELSEWHERE]


def summary_row(results: dict[str, Any]) -> dict[str, str]:
    """Returns a processor's row in the table of all processors."""
    rows = {row["case"]: row for row in rows_of(results, "fp32")}
    pair = rows.get(PAIR)
    seconds = [f"{pair[form]['seconds'] / pair['items']:.2f} s" if pair else "" for form in ("ours", "reference")]
    return {
        FIRST_COLUMN: in_words(results["machine"]),
        "pair, batch 8": seconds[0],
        "published design": seconds[1],
        "ratio": f"**{pair['ratio']:.2f}**" if pair else "",
        "of the limit": f"{'at most ' * results.get('limit too long', False)}{pair['of the limit']:.0%}"
        if pair
        else "",
        **{
            name: f"{rows[case]['ratio']:.2f}" if "ratio" in rows.get(case, {}) else "" for name, case in RATIOS.items()
        },
        "bf16 beside fp32": bf16_line(results),
    }


def summary(folder: Path) -> str:
    """Returns the table of all measured processors: ratios to the published design."""
    rows = [summary_row(json.loads(file.read_text())) for file in result_files(folder)]
    elsewhere = folder / ELSEWHERE
    known = json.loads(elsewhere.read_text()) if elsewhere.exists() else []
    names = [FIRST_COLUMN, "pair, batch 8", "published design", "ratio", "of the limit", *RATIOS, "bf16 beside fp32"]
    return markdown_table([*rows, *({name: entry.get(name, "") for name in names} for entry in known)])


def write_pages(folder: Path) -> None:
    """Write the page and the picture of each processor, beside its file."""
    for file in result_files(folder):
        results = json.loads(file.read_text())
        write_whole(file.with_suffix(".md"), machine_page(results))
        write_whole(file.with_suffix(".png"), figure_bytes(draw_speed(results)))


def tables_of(text: str) -> Iterator[str]:
    """Yields the tables in a document that list processors."""
    for block in text.split("\n\n"):
        if block.startswith(f"| {FIRST_COLUMN} |"):
            yield block.rstrip("\n")


def update_document(folder: Path) -> None:
    """Update the table of all processors in the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for table in tables_of(text):
        text = text.replace(table, summary(folder))
    write_whole(DOCUMENT, text)
