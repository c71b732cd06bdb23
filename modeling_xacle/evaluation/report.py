"""An evaluation for people: the table in a terminal, and a folder with numbers, pictures and one HTML page."""

import base64
import csv
import html
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import soundfile

from ..data.columns import AUDIO_COLUMNS, TEXT_COLUMNS
from ..data.files import whole_folder
from ..feature_extraction_xacle import load_waveform
from .evaluate import EvaluationPairs, dropped_notes, worst_pairs
from .figures import draw_bands, draw_groups, draw_residuals, draw_scatter, figure_bytes
from .metrics import METRICS, SHOWN_METRICS
from .score_tables import text_table

REPORT_FILE = "report.html"
METRICS_FILE = "metrics.json"
OFFICIAL_FILE = "evaluation_result.csv"
GROUPS_FILE = "groups.csv"
# What an earlier report may have left, so that a new one replaces nothing else.
OWN_FILES = re.compile(
    r"report\.html|metrics\.json|evaluation_result\.csv|groups\.csv|(scatter|residuals|bands|groups_\w+)\.(png|pdf)"
)

SAMPLING_RATE = 16000
AUDIO_SECONDS = 10.0
# Of all sounds in a page together; in base64 they are a third larger.
MAX_AUDIO_BYTES = 8 * 2**20

CAPTIONS = {
    "scatter": "Predictions against the means of the listeners; yellow is sparse, dark is dense.",
    "residuals": "Errors by the predicted score, and their distribution.",
    "bands": "Errors by the listeners' mean: a system that shrinks to the middle is too high on the left, too low on "
    "the right.",
}
PAGE_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid #e2e2e2; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid #888; }
th.text, td.text { text-align: left; max-width: 22rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; } figcaption, .note { color: #555; }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
.scroll { overflow-x: auto; } audio { width: 15rem; height: 2rem; }
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def _metric_rows(measured: Mapping[str, Any]) -> list[list[str]]:
    """A line for each metric with its interval, and N."""
    rows = [[name, _number(measured["metrics"][name]), _interval(measured["intervals"][name])] for name in METRICS]
    return [*rows, ["N", str(measured["N"]), ""]]


def _interval_header(evaluation: Mapping[str, Any]) -> str:
    return f"{evaluation['bootstrap']['confidence']:.0%} interval".replace("%", " %")


def _group_rows(evaluation: Mapping[str, Any], column: str) -> list[list[str]]:
    """A line for each group: its N, SRCC and MSE with interval, and the SRCC of all other pairs."""
    rows = []
    for name, group in evaluation["groups"][column].items():
        metrics, intervals = group["metrics"] or {}, group["intervals"] or {}
        others = evaluation["leave_one_out"][column][name]["metrics"] or {}
        cells = [text for key in SHOWN_METRICS for text in (_number(metrics.get(key)), _interval(intervals.get(key)))]
        rows.append([name, str(group["N"]), *cells, _number(others.get(SHOWN_METRICS[0]))])
    return rows


def _group_header(evaluation: Mapping[str, Any], column: str) -> list[str]:
    interval = _interval_header(evaluation)
    shown = [cell for name in SHOWN_METRICS for cell in (name, interval)]
    return [column, "N", *shown, f"{SHOWN_METRICS[0]} without"]


def listeners_sentence(listeners: Mapping[str, Any]) -> str:
    """What the listeners' agreement says about the best that can be reached."""
    share = listeners["share_of_ceiling"]
    reached = f"; this system reaches {share:.1%} of it".replace("%", " %") if share is not None else ""
    return (
        f"Listeners' ceiling: a perfect predictor would reach an SRCC of about {listeners['ceiling_srcc']:.3f} "
        f"(split halves {listeners['split_half_srcc']:.3f}, reliability {listeners['reliability']:.3f}, "
        f"{listeners['N']} pairs){reached}."
    )


def evaluation_text(evaluation: Mapping[str, Any]) -> str:
    """The evaluation as tables for a terminal."""
    parts = [text_table(["metric", "value", _interval_header(evaluation)], _metric_rows(evaluation))]
    if evaluation["listeners"]:
        parts.append(listeners_sentence(evaluation["listeners"]))
    for column in evaluation["groups"]:
        parts.append(text_table(_group_header(evaluation, column), _group_rows(evaluation, column)))
    return "\n\n".join(parts)


def official_csv(metrics: Mapping[str, float]) -> str:
    """`evaluation_result.csv`, byte for byte as the challenge's script writes it."""
    return _csv_text([["metric", "value"], *([name, metrics[name]] for name in (*METRICS, "N"))])


def _csv_text(rows: Sequence[Sequence[Any]]) -> str:
    file = StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()


def _groups_csv(evaluation: Mapping[str, Any]) -> str:
    """Every metric of each group with its interval, and of all other pairs."""
    header = ["column", "group", "N"]
    header += [f"{name}{end}" for name in METRICS for end in ("", "_low", "_high", "_without")]
    rows = []
    for column, groups in evaluation["groups"].items():
        for name, group in groups.items():
            metrics, intervals = group["metrics"] or {}, group["intervals"] or {}
            others = evaluation["leave_one_out"][column][name]["metrics"] or {}
            cells = [(metrics.get(key), *intervals.get(key, (None, None)), others.get(key)) for key in METRICS]
            rows.append([column, name, group["N"], *(cell for four in cells for cell in four)])
    return _csv_text([header, *rows])


# ---------------------------------------------------------------------------------------------------------------------
# The page


class _Html(str):
    """Text that is HTML already."""


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first columns hold words and the others numbers."""

    def table_row(cells: Sequence[str], tag: str) -> str:
        """One line of the table, of `th` or `td`."""
        kinds = [' class="text"' if place < text_columns else "" for place in range(len(cells))]
        inner = [cell if isinstance(cell, _Html) else html.escape(cell) for cell in cells]
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, inner, strict=True)) + "</tr>"

    lines = [table_row(header, "th"), *(table_row(row, "td") for row in rows)]
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _picture(png: bytes, caption: str) -> str:
    caption = html.escape(caption)
    return f'<figure><img width="{_width(png)}" src="{_data_uri(png, "image/png")}" alt="{caption}">' + (
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _width(png: bytes) -> int:
    """Width of a PNG on a screen, at half of its pixels."""
    return int.from_bytes(png[16:20], "big") // 2


def find_audio(row: Mapping[str, Any], table: str, audio_dir: str | Path | None) -> Path | None:
    """The sound of a row: in `audio_dir`, or else where an absolute path points or beside the table, if it is there."""
    name = next((str(row[column]) for column in AUDIO_COLUMNS if row.get(column)), None)
    if name is None:
        return None
    folders = [Path(table).parent] if audio_dir is None else [Path(audio_dir), Path(table).parent]
    candidates = [folder / relative for folder in folders for relative in (name.lstrip("/"), name)]
    return next((path for path in candidates if path.is_file()), None)


def _players(pairs: EvaluationPairs, places: Sequence[int], audio_dir: str | Path | None) -> Iterator[str]:
    """A player for each pair, as the model hears it: mono, 16 kHz, the first 10 s; or why there is none."""
    room = MAX_AUDIO_BYTES
    for place in places:
        path = find_audio(pairs.rows[place], pairs.reference, audio_dir)
        if path is None:
            yield "no sound"
            continue
        try:
            waveform, _ = load_waveform(str(path), max_seconds=AUDIO_SECONDS)
        except (ValueError, OSError) as error:
            yield str(error)
            continue
        file = BytesIO()
        soundfile.write(file, waveform.numpy(), SAMPLING_RATE, format="FLAC", subtype="PCM_16")
        room -= len(file.getvalue())
        source = _data_uri(file.getvalue(), "audio/flac")
        player = _Html(f'<audio controls preload="metadata" src="{source}"></audio>')
        yield player if room >= 0 else "left out, the page is full"


def _worst_table(pairs: EvaluationPairs, count: int, audio_dir: str | Path | None) -> str:
    places = worst_pairs(pairs, count)
    players = list(_players(pairs, places, audio_dir))
    has_sound = any(isinstance(player, _Html) for player in players)
    rows = []
    for place, player in zip(places, players, strict=True):
        text = next((str(pairs.rows[place][name]) for name in TEXT_COLUMNS if pairs.rows[place].get(name)), "")
        prediction, reference = pairs.predictions[place], pairs.references[place]
        numbers = [f"{prediction:.2f}", f"{reference:.2f}", f"{prediction - reference:+.2f}"]
        rows.append([" | ".join(pairs.keys[place]), text, *numbers, *([player] if has_sound else [])])
    header = ["pair", "caption", "predicted", "listeners", "error", *(["sound"] if has_sound else [])]
    return _html_table(header, rows, text_columns=2)


def html_report(
    pairs: EvaluationPairs,
    evaluation: Mapping[str, Any],
    pictures: Mapping[str, bytes],
    audio_dir: str | Path | None = None,
    num_worst: int = 20,
) -> str:
    """
    One page that needs no other file: numbers, pictures, and the pairs with the largest errors.

    Args:
        pairs (`EvaluationPairs`): What was evaluated.
        evaluation (`Mapping`): What `evaluate_pairs` gave.
        pictures (`Mapping[str, bytes]`): PNG files by name.
        audio_dir (`str` or `Path`, *optional*): Where the sounds are, by default beside the reference table.
        num_worst (`int`): How many pairs with large errors to show.
    """
    title = f"{Path(pairs.prediction).name} against {Path(pairs.reference).name}"
    notes = [*dropped_notes(pairs), *([listeners_sentence(evaluation["listeners"])] if evaluation["listeners"] else [])]
    bootstrap = evaluation["bootstrap"]
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _html_table(["metric", "value", _interval_header(evaluation)], _metric_rows(evaluation)),
        *(f"<p>{html.escape(note)}</p>" for note in notes),
        '<div class="pictures">',
        *(_picture(png, CAPTIONS[name]) for name, png in pictures.items() if name in CAPTIONS),
        "</div>",
        *(_group_section(evaluation, column, pictures[_group_file(column)]) for column in evaluation["groups"]),
        f"<h2>The {min(num_worst, len(pairs.keys))} largest errors</h2>",
        _worst_table(pairs, num_worst, audio_dir),
        f'<p class="note">Intervals: percentile bootstrap over pairs, {bootstrap["num_resamples"]:,} resamples, seed '
        f"{bootstrap['seed']}; the listeners' own noise is not in them. Made with modeling-xacle "
        f"{evaluation['version']}.</p>",
    ]
    return PAGE.format(title=html.escape(title), style=PAGE_STYLE, body="\n".join(body))


def _group_section(evaluation: Mapping[str, Any], column: str, picture: bytes) -> str:
    """Heading, picture and table of the groups of a column."""
    return "\n".join(
        [
            f"<h2>By {html.escape(column)}</h2>",
            _picture(picture, f"Each {column} with its interval; dashed: all pairs."),
            _html_table(_group_header(evaluation, column), _group_rows(evaluation, column)),
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def _group_file(column: str) -> str:
    return "groups_" + re.sub(r"\W", "_", column)


def draw_all(pairs: EvaluationPairs, evaluation: Mapping[str, Any]) -> dict[str, dict[str, bytes]]:
    """The pictures by name, each as `png` and as `pdf`."""
    figures = {
        "scatter": draw_scatter(pairs.predictions, pairs.references, evaluation),
        "residuals": draw_residuals(pairs.predictions, pairs.references),
        "bands": draw_bands(evaluation["bands"]),
    }
    for column, groups in evaluation["groups"].items():
        figures[_group_file(column)] = draw_groups(column, groups, evaluation)
    return {name: {kind: figure_bytes(figure, kind) for kind in ("png", "pdf")} for name, figure in figures.items()}


def check_report_folder(output: str | Path) -> None:
    """
    Refuse to replace what is not an earlier report.

    Raises:
        ValueError: `output` is a file, or a folder with anything else in it.
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file; choose another output.")
    others = (
        sorted(path.name for path in output.iterdir() if not OWN_FILES.fullmatch(path.name)) if output.exists() else []
    )
    if others:
        raise ValueError(f"{output}: holds files that would be lost, choose another output: {', '.join(others[:10])}.")


def write_report(
    pairs: EvaluationPairs,
    evaluation: Mapping[str, Any],
    output: str | Path,
    audio_dir: str | Path | None = None,
    num_worst: int = 20,
) -> None:
    """
    Write the folder of a report: report.html, metrics.json, evaluation_result.csv, groups.csv where there are groups,
    and the pictures as PNG and PDF. It appears whole or not at all, and replaces an earlier report.

    Args:
        pairs (`EvaluationPairs`), evaluation (`Mapping`), audio_dir (`str`), num_worst (`int`): As for `html_report`.
        output (`str` or `Path`): The folder.

    Raises:
        ValueError: There is something else at `output`.
    """
    check_report_folder(output)
    output = Path(output).absolute()
    pictures = draw_all(pairs, evaluation)
    page = html_report(pairs, evaluation, {name: of["png"] for name, of in pictures.items()}, audio_dir, num_worst)
    files = {REPORT_FILE: page.encode(), METRICS_FILE: (json.dumps(evaluation, indent=2) + "\n").encode()}
    files[OFFICIAL_FILE] = official_csv(evaluation["metrics"]).encode()
    if evaluation["groups"]:
        files[GROUPS_FILE] = _groups_csv(evaluation).encode()
    files |= {f"{name}.{kind}": content for name, kinds in pictures.items() for kind, content in kinds.items()}
    with whole_folder(output) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)
