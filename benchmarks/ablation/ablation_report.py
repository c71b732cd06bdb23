"""Reports a table of the ablation's scores: rows with their intervals, another generator's shares, a picture."""

from pathlib import Path
from typing import Any

import numpy as np
import rows
import tiny
from rows import RELEASED, ROWS, Row
from worlds import interval, resampled_srcc, with_interval

from modeling_xacle.data.tables import markdown_table, write_table
from modeling_xacle.evaluation.figures import BLUE, GREY, ORANGE, figure_bytes, styled_figure
from modeling_xacle.evaluation.metrics import alignment_metrics

TEACHER, CEILING = "CLAP teacher alone", "listeners' ceiling: the true alignment"
BOOTSTRAP_SEED = 0
SEEDS_TOLD = (
    "Seeds are of stages 2 and 3: the order of the data and dropout. Parts, teacher, labels and stage 1 are made once. "
    "Intervals are over pairs and, of rows with several seeds, over these too."
)


def system_columns() -> dict[str, list[str]]:
    """Returns each system's columns in a table of scores, one for each seed."""
    own = {row.name: [f"{row.name} ({seed})" for seed in row.seeds] for row in ROWS}
    return {TEACHER: [TEACHER], **own, CEILING: ["alignment"]}


def split_scores(lines: list[dict[str, Any]], split: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns each system's scores `(num_seeds, num_pairs)` and the mean ratings `(num_pairs,)` in a split's lines."""
    own = [line for line in lines if line["split"] == split]

    def column(name: str) -> np.ndarray:
        """Returns a column's values `(num_pairs,)`."""
        return np.array([float(line[name]) for line in own])

    systems = {system: np.stack([column(name) for name in names]) for system, names in system_columns().items()}
    return systems, column("average_score")


def resample_rows(scores: dict[str, np.ndarray], references: np.ndarray) -> dict[str, np.ndarray]:
    """
    Computes the SRCC `(num_resamples,)` of every row on the same samples of the pairs. A row with several seeds gets
    the mean over a sample of them; its deviation from their mean is widened, because that of n values is too narrow by
    the root of (n - 1) / n.
    """
    samples = resampled_srcc(np.concatenate(list(scores.values())), references, BOOTSTRAP_SEED)
    generator = np.random.default_rng([BOOTSTRAP_SEED, 1])
    found, start = {}, 0
    for name, values in scores.items():
        own = samples[:, start : start + len(values)]  # (R, seeds)
        drawn = generator.integers(len(values), size=own.shape)
        mean, wide = own.mean(axis=1), np.sqrt(len(values) / max(1, len(values) - 1))
        found[name] = mean + wide * (np.take_along_axis(own, drawn, axis=1).mean(axis=1) - mean)
        start += len(values)
    return found


def measure(scores: dict[str, np.ndarray], references: np.ndarray) -> list[dict[str, Any]]:
    """
    Compute the rows of the table.

    Args:
        scores (`dict` of `np.ndarray` of shape `(num_seeds, num_pairs)`): Every row's scores.
        references (`np.ndarray` of shape `(num_pairs,)`): Mean ratings.
    """
    metrics = {name: [alignment_metrics(one, references) for one in values] for name, values in scores.items()}
    means = {
        name: {key: float(np.mean([one[key] for one in found])) for key in found[0]} for name, found in metrics.items()
    }
    samples = resample_rows(scores, references)
    table = []
    for name, mean in means.items():
        over = samples[name] - samples[RELEASED]
        table.append(
            {
                "system": name,
                "seeds": len(scores[name]),
                **{key: mean[key] for key in ("SRCC", "LCC", "KTAU", "MSE")},
                "SRCC of each seed": [one["SRCC"] for one in metrics[name]],
                "SRCC interval": interval(samples[name]),
                "of the ceiling": mean["SRCC"] / means[CEILING]["SRCC"],
                "of the ceiling, interval": interval(samples[name] / samples[CEILING]),
                "over the released recipe": mean["SRCC"] - means[RELEASED]["SRCC"],
                "over the released recipe, interval": interval(over),
            }
        )
    return table


def table_row(row: dict[str, Any]) -> dict[str, str]:
    """Formats a row of the table for people."""
    over = with_interval(row["over the released recipe"], row["over the released recipe, interval"])
    return {
        "system": row["system"],
        "seeds": str(row["seeds"]),
        "of the ceiling [95 %]": with_interval(row["of the ceiling"], row["of the ceiling, interval"]),
        "SRCC [95 %]": with_interval(row["SRCC"], row["SRCC interval"]),
        "over the released recipe [95 %]": "" if row["system"] == RELEASED else over,
        "LCC": f"{row['LCC']:.3f}",
        "KTAU": f"{row['KTAU']:.3f}",
        "MSE": f"{row['MSE']:.2f}",
    }


SUMMARY_COLUMNS = ("system", "seeds", "of the ceiling [95 %]", "over the released recipe [95 %]", "MSE")


def summary(table: list[dict[str, Any]]) -> str:
    """Returns the table's most important columns, for other documents."""
    return markdown_table([{column: table_row(row)[column] for column in SUMMARY_COLUMNS} for row in table])


def settings_row(row: Row) -> dict[str, str]:
    """Says how a row was made: start and all settings of each of its runs; for other seeds, only the seed differs."""
    runs = []
    for run in row.runs:
        settings = {"data": tiny.DATA[tiny.STAGES[run.stage]["stage"]], **tiny.STAGES[run.stage], **run.settings}
        runs.append(f"`{run.folder}` from `{run.start}`: {' '.join(tiny.flags(settings))}")
    form = "caption, sound" if row.runs[-1].folder.startswith(rows.PUBLISHED_FORM) else "sound, caption; likelihood"
    return {"system": row.name, "sequence": form, "runs": "; ".join(runs)}


def draw_forest(table: list[dict[str, Any]], title: str) -> bytes:
    """Draws each row's SRCC with its interval, and the ceiling as a line, as a PNG image."""
    systems, ceiling = table[:-1], table[-1]["SRCC"]
    with styled_figure(8.0, 0.9 + 0.24 * len(systems)) as (figure, axes):
        for place, row in enumerate(reversed(systems)):
            low, high = row["SRCC interval"]
            colour = {RELEASED: ORANGE, rows.OURS: BLUE}.get(row["system"], GREY)
            axes.plot([low, high], [place, place], color=colour, linewidth=1.6)
            axes.plot(row["SRCC"], place, "o", color=colour, markersize=4)
        axes.axvline(ceiling, color="black", linestyle="--", linewidth=0.8)
        axes.text(ceiling, len(systems) - 0.4, "ceiling", ha="center", va="bottom", fontsize=8)
        axes.set_yticks(range(len(systems)), [row["system"] for row in reversed(systems)])
        axes.set_xlabel(f"SRCC, 95 % interval ({title})")
        axes.grid(axis="x")
        return figure_bytes(figure)


def shares(lines: list[dict[str, Any]], splits: list[str]) -> str:
    """Returns a table of the share that every system reaches of each split's own ceiling."""
    found: dict[str, dict[str, str]] = {}
    for split in splits:
        for row in measure(*split_scores(lines, split)):
            share = with_interval(row["of the ceiling"], row["of the ceiling, interval"])
            found.setdefault(row["system"], {"system": row["system"]})[split] = share
    return markdown_table([row for system, row in found.items() if system != CEILING])


def report(name: str, lines: list[dict[str, Any]]) -> tuple[str, bytes]:
    """Makes the page (Markdown) and the picture of a table of scores, mainly about its first split."""
    first, *others = dict.fromkeys(line["split"] for line in lines)
    scores, references = split_scores(lines, first)
    table = measure(scores, references)
    page = f"# Ablation: {name}, {len(references)} synthetic pairs\n\n![Forest plot]({name.replace(' ', '-')}.png)\n\n"
    page += f"{markdown_table([table_row(row) for row in table])}\n\n{SEEDS_TOLD}\n"
    if others:
        page += f"\n## Another generator\n\nShare of each split's own ceiling.\n\n{shares(lines, [first, *others])}\n"
    made = markdown_table([settings_row(row) for row in ROWS])
    return f"{page}\n## Settings\n\n{made}\n", draw_forest(table, name)


def write_report(output: Path, name: str, lines: list[dict[str, Any]]) -> str:
    """Write the scores, the page and the picture; returns the page."""
    output.mkdir(parents=True, exist_ok=True)
    file = name.replace(" ", "-")
    page, picture = report(name, lines)
    write_table(output / f"{file}.csv", lines)
    (output / f"{file}.md").write_text(page, encoding="utf-8")
    (output / f"{file}.png").write_bytes(picture)
    return page
