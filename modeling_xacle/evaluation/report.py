"""Reports an evaluation to people: tables in a terminal, and a folder with numbers, pictures and one HTML page."""

import base64
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from ..data.columns import AUDIO_COLUMNS, TEXT_COLUMNS
from ..data.files import json_text, whole_folder
from ..waveforms_xacle import load_waveform
from .evaluate import EvaluationPairs, dropped_notes, worst_pairs
from .figures import draw_bands, draw_groups, draw_residuals, draw_scatter, figure_bytes
from .metrics import METRICS, SHOWN_METRICS
from .score_tables import text_table

REPORT_FILE = "report.html"
METRICS_FILE = "metrics.json"
OFFICIAL_FILE = "evaluation_result.csv"
GROUPS_FILE = "groups.csv"
# The files that an earlier report may have left: a new one replaces nothing else.
OWN_FILES = re.compile(
    r"report\.html|metrics\.json|evaluation_result\.csv|groups\.csv|(scatter|residuals|bands|groups_\w+)\.(png|pdf)"
)

SAMPLING_RATE = 16000
AUDIO_SECONDS = 10.0
# Of all sounds in a page together; in base64 they are a third larger.
MAX_AUDIO_BYTES = 8 * 2**20
CSS_INCH = 100  # pixels of a page for an inch of a figure

CAPTIONS = {
    "scatter": "Predictions against the listeners' means; darker where pairs are dense.",
    "residuals": "Errors by the predicted score, with means of equal shares of the pairs, and their distribution.",
    "bands": "Errors by the listeners' mean: a system that shrinks to the middle is too high on the left, too low on "
    "the right.",
}


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "no interval" if ends is None else f"{ends[0]:.4f} to {ends[1]:.4f}"


def _metric_rows(measured: Mapping[str, Any]) -> list[list[str]]:
    """Returns a line for each metric with its interval, and for N."""
    rows = [[name, _number(measured["metrics"][name]), _interval(measured["intervals"][name])] for name in METRICS]
    return [*rows, ["N", str(measured["N"]), ""]]


def _interval_header(evaluation: Mapping[str, Any]) -> str:
    return f"{evaluation['bootstrap']['confidence']:.0%} interval".replace("%", " %")


def _group_rows(evaluation: Mapping[str, Any], column: str) -> list[list[str]]:
    """Returns a line for each group: its N, SRCC and MSE with interval, and the SRCC of all other pairs."""
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
    """Says what the listeners' agreement means for the best SRCC that can be reached."""
    share = listeners["share_of_ceiling"]
    reached = f"; this system reaches {share:.1%} of it".replace("%", " %") if share is not None else ""
    return (
        f"Listeners' ceiling: a perfect predictor would reach an SRCC of about {listeners['ceiling_srcc']:.3f} "
        f"(split halves {listeners['split_half_srcc']:.3f}, reliability {listeners['reliability']:.3f}, "
        f"{listeners['N']} pairs){reached}."
    )


def evaluation_text(evaluation: Mapping[str, Any]) -> str:
    """Returns the evaluation as tables for a terminal, below a line on what was compared with what."""
    columns = evaluation["columns"]
    parts = [
        f"{columns['prediction']} of {Path(evaluation['prediction']).name} against {columns['reference']} of "
        f"{Path(evaluation['reference']).name}, joined by {', '.join(columns['key']) or 'order'}"
    ]
    parts.append(text_table(["metric", "value", _interval_header(evaluation)], _metric_rows(evaluation)))
    if evaluation["listeners"]:
        parts.append(listeners_sentence(evaluation["listeners"]))
    for column in evaluation["groups"]:
        parts.append(text_table(_group_header(evaluation, column), _group_rows(evaluation, column)))
    return "\n\n".join(parts)


def official_csv(metrics: Mapping[str, float]) -> str:
    """Returns `evaluation_result.csv`, byte for byte as the challenge's script writes it."""
    names = [name for name, metric in METRICS.items() if metric.is_official]
    return _csv_text([["metric", "value"], *([name, metrics[name]] for name in (*names, "N"))])


def _csv_text(rows: Sequence[Sequence[Any]]) -> str:
    file = StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()


def _groups_csv(evaluation: Mapping[str, Any]) -> str:
    """Returns, as CSV, every metric of each group with its interval, and of all other pairs."""
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


class Picture(NamedTuple):
    """A drawn figure as files, and how wide it is shown, in CSS pixels."""

    png: bytes
    pdf: bytes
    width: int


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def find_audio(row: Mapping[str, Any], table: str, audio_dir: str | Path | None) -> Path | None:
    """Finds a row's sound: in `audio_dir`, or else at an absolute path or beside the table; `None` if none exists."""
    name = next((str(row[column]) for column in AUDIO_COLUMNS if row.get(column)), None)
    if name is None:
        return None
    folders = [Path(table).parent] if audio_dir is None else [Path(audio_dir), Path(table).parent]
    candidates = [folder / relative for folder in folders for relative in (name.lstrip("/"), name)]
    return next((path for path in candidates if path.is_file()), None)


def _players(pairs: EvaluationPairs, places: Sequence[int], audio_dir: str | Path | None) -> Iterator[str]:
    """Yields a player for each pair, as the model hears it: mono, 16 kHz, the first 10 s; or why there is none."""
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
        player = Markup('<audio controls preload="metadata" src="{}"></audio>')
        yield player.format(_data_uri(file.getvalue(), "audio/flac")) if room >= 0 else "left out, the page is full"


def _worst(pairs: EvaluationPairs, count: int, audio_dir: str | Path | None) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the pairs with the largest errors; with a column of players if there is any sound."""
    places = worst_pairs(pairs, count)
    players = list(_players(pairs, places, audio_dir))
    has_sound = any(isinstance(player, Markup) for player in players)
    rows = []
    for place, player in zip(places, players, strict=True):
        text = next((str(pairs.rows[place][name]) for name in TEXT_COLUMNS if pairs.rows[place].get(name)), "")
        prediction, reference = pairs.predictions[place], pairs.references[place]
        numbers = [f"{prediction:.2f}", f"{reference:.2f}", f"{prediction - reference:+.2f}"]
        rows.append([" | ".join(pairs.keys[place]), text, *numbers, *([player] if has_sound else [])])
    return ["pair", "caption", "predicted", "listeners", "error", *(["sound"] if has_sound else [])], rows


def html_report(
    pairs: EvaluationPairs,
    evaluation: Mapping[str, Any],
    pictures: Mapping[str, Picture],
    audio_dir: str | Path | None = None,
    num_worst: int = 20,
) -> str:
    """
    Returns one page that needs no other file: numbers, pictures, and the pairs with the largest errors.

    Args:
        pairs (`EvaluationPairs`): What was evaluated.
        evaluation (`Mapping`): What `evaluate_pairs` returned.
        pictures (`Mapping[str, Picture]`): What `draw_all` returned.
        audio_dir (`str` or `Path`, *optional*): Where the sounds are, by default beside the reference table.
        num_worst (`int`): How many pairs with large errors to show.
    """
    templates = Environment(loader=PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    templates.filters["data_uri"] = _data_uri
    listeners = evaluation["listeners"]
    worst_header, worst = _worst(pairs, num_worst, audio_dir)
    groups = {
        column: {
            "picture": pictures.get(_group_file(column)),
            "header": _group_header(evaluation, column),
            "rows": _group_rows(evaluation, column),
        }
        for column in evaluation["groups"]
    }
    return templates.get_template("report.html.jinja").render(
        title=f"{Path(pairs.prediction).name} against {Path(pairs.reference).name}",
        evaluation=evaluation,
        interval=_interval_header(evaluation),
        metrics=_metric_rows(evaluation),
        notes=[*dropped_notes(pairs), *([listeners_sentence(listeners)] if listeners else [])],
        captions=CAPTIONS,
        pictures=pictures,
        groups=groups,
        worst_header=worst_header,
        worst=worst,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The folder


def _group_file(column: str) -> str:
    return "groups_" + re.sub(r"\W", "_", column)


def draw_all(pairs: EvaluationPairs, evaluation: Mapping[str, Any]) -> dict[str, Picture]:
    """Draw all pictures and return them by name."""
    figures = {
        "scatter": draw_scatter(pairs.predictions, pairs.references, evaluation),
        "residuals": draw_residuals(pairs.predictions, pairs.references),
        "bands": draw_bands(evaluation["bands"]),
    }
    for column, groups in evaluation["groups"].items():
        if not any(group["metrics"] for group in groups.values()):
            continue  # no group has two pairs
        figures[_group_file(column)] = draw_groups(column, groups, evaluation)
    return {
        name: Picture(figure_bytes(figure), figure_bytes(figure, "pdf"), round(CSS_INCH * figure.get_figwidth()))
        for name, figure in figures.items()
    }


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
    page = html_report(pairs, evaluation, pictures, audio_dir, num_worst)
    files = {REPORT_FILE: page.encode(), METRICS_FILE: (json_text(evaluation, indent=2) + "\n").encode()}
    files[OFFICIAL_FILE] = official_csv(evaluation["metrics"]).encode()
    if evaluation["groups"]:
        files[GROUPS_FILE] = _groups_csv(evaluation).encode()
    files |= {f"{name}.{kind}": getattr(of, kind) for name, of in pictures.items() for kind in ("png", "pdf")}
    with whole_folder(output) as partial:
        for name, content in files.items():
            (partial / name).write_bytes(content)
