"""Ensembles of tables: reads and joins them by their keys, combines and judges them, and stores fitted weights."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.columns import AUDIO_COLUMNS, PREDICTION_COLUMNS, REFERENCE_COLUMNS, RESULT_COLUMNS
from ..data.files import read_json, write_json
from ..data.tables import write_table
from .compare import system_names
from .ensemble import FITS, FITTED_METHODS, Judged, ensemble, fit_nnls, grouped_folds, leave_one_out
from .methods import EnsembleMethod
from .metrics import METRICS, SHOWN_METRICS, alignment_metrics
from .score_tables import (
    KEYS_LISTED,
    LARGEST_SCORE,
    STATUS_COLUMN,
    ScoreTable,
    check_sides,
    join_tables,
    prefix_of,
    read_score_table,
    text_table,
)

ENSEMBLE = "ensemble"


class Members(NamedTuple):
    """
    Systems to combine.

    Fields:
        names (`list[str]` of length num_systems): Names of the files, without suffix.
        signatures (`list[str]` of length num_systems): What gave each system's scores; "unknown" where nothing tells.
        table (`ScoreTable`): The first system's table, whose order of rows is kept.
        scores (`np.ndarray` of shape `(num_systems, N)`): Finite.
        targets (`np.ndarray` of shape `(N,)`, *optional*): Mean ratings.
    """

    names: list[str]
    signatures: list[str]
    table: ScoreTable
    scores: np.ndarray
    targets: np.ndarray | None


def read_members(
    paths: Sequence[str | Path],
    reference: str | Path | None = None,
    key_columns: Sequence[str] | None = None,
    prediction_columns: Sequence[str] = PREDICTION_COLUMNS,
    reference_columns: Sequence[str] = REFERENCE_COLUMNS,
) -> Members:
    """
    Read tables of scores of the same pairs, in any order of rows.

    Args:
        paths (`Sequence` of length num_systems): Tables as `read_score_table` takes them.
        reference (`str` or `Path`, *optional*): Table with the mean ratings of the same pairs.
        key_columns, prediction_columns, reference_columns (`Sequence[str]`): As for `read_score_table`.

    Raises:
        ValueError: The tables differ in their keys, or a pair has no score in one of them; the message lists them.
    """
    first, *others = [read_score_table(path, prediction_columns, key_columns) for path in paths]
    if reference is not None:
        others.append(read_score_table(reference, reference_columns, key_columns))
    joined = np.roll(join_tables([*others, first]), 1, axis=0)  # the order of the first table, which comes first
    for table, scores in zip([first, *others], joined, strict=True):
        missing = [" | ".join(first.keys[row]) for row in np.flatnonzero(np.isnan(scores))]
        if missing:
            listed = ", ".join(missing[:KEYS_LISTED]) + (", ..." if len(missing) > KEYS_LISTED else "")
            raise ValueError(f"{table.path}: {len(missing)} pairs have no score, an ensemble needs all: {listed}.")
    for table, scores in zip([first, *others], joined, strict=True) if reference is not None else ():
        if table is not others[-1]:
            check_sides(table, others[-1], np.stack([scores, joined[-1]]), prediction_columns)
    names = system_names(paths)
    if ENSEMBLE in names:
        names = [str(path) for path in paths]
    systems = [first, *others][: len(paths)]
    signatures = [(table.scorer or {}).get("signature") or "unknown" for table in systems]
    return Members(names, signatures, first, joined[: len(paths)], None if reference is None else joined[-1])


def clip_of_rows(table: ScoreTable) -> list[str]:
    """Returns the clip of each row: its sound, or its key if the table does not name the sound."""
    column = next((name for name in AUDIO_COLUMNS if name in table.rows[0]), None)
    if column is None:
        return [" | ".join(key) for key in table.keys]
    return [str(row[column]).lstrip("/") for row in table.rows]


def write_ensemble(
    path: str | Path, members: Members, method: str, scores: np.ndarray, prediction_columns: Sequence[str] = ()
) -> None:
    """
    Write the rows of the first system's table with the ensemble's `score` and `signature` in place of its own, and of
    what else that system says of its scores (`status`, `notes`, `windows`).

    Args:
        path (`str` or `Path`): The CSV, TSV, JSON lines or Parquet file to write.
        members (`Members`): The systems.
        method (`str`): How their scores were combined.
        scores (`np.ndarray` of shape `(N,)`): The ensemble's scores.
        prediction_columns (`Sequence[str]`): Columns besides `PREDICTION_COLUMNS` that hold the first system's scores.
    """
    prefix = prefix_of(members.table.score_column)
    told = (prefix + name for name in RESULT_COLUMNS)
    own = {*PREDICTION_COLUMNS, *prediction_columns, *told, STATUS_COLUMN}
    systems = zip(members.names, members.signatures, strict=True)
    signature = f"{method} of {', '.join(f'{name} ({signature})' for name, signature in systems)}"
    others = ({name: value for name, value in row.items() if name not in own} for row in members.table.rows)
    rows = zip(others, scores.tolist(), strict=True)
    write_table(path, [{**row, "score": score, "signature": signature} for row, score in rows])


def _fingerprint(table: ScoreTable) -> str:
    """Returns a digest that is the same for the same clips, in any order."""
    return hashlib.sha256(json.dumps(sorted(set(clip_of_rows(table)))).encode()).hexdigest()


def save_weights(path: str | Path, method: EnsembleMethod, members: Members) -> None:
    """
    Fit an ensemble on all pairs and store it as JSON, for other pairs.

    Args:
        path (`str` or `Path`): The file to write.
        method (`str`): One of `FITTED_METHODS`.
        members (`Members`): The systems, with ratings.

    Raises:
        ValueError: The method has no weights, or there are no ratings to fit them to.
    """
    if method not in FITTED_METHODS:
        raise ValueError(f"{method} has no weights to store; {' and '.join(FITTED_METHODS)} have.")
    if members.targets is None:
        raise ValueError("Storing weights needs a reference with the ratings.")
    fit, _ = FITS[method]
    fitted = fit(members.scores, members.targets)
    stored = {
        "method": method,
        "members": members.names,
        "fitted_on": {"pairs": len(members.targets), "clips_sha256": _fingerprint(members.table)},
        "parameters": {name: np.asarray(value).tolist() for name, value in fitted._asdict().items()},
    }
    write_json(path, stored)


def _report(members: Members, method: str, combined: np.ndarray) -> dict[str, Any]:
    """Returns what was done; with ratings, also the metrics of each system and of the combined scores (N,)."""
    report = {"method": method, "members": members.names, "pairs": len(combined)}
    if members.targets is None:
        return report
    systems = zip([*members.names, ENSEMBLE], [*members.scores, combined], strict=True)
    return report | {"metrics": {name: alignment_metrics(scores, members.targets) for name, scores in systems}}


def apply_weights(path: str | Path, members: Members) -> tuple[np.ndarray, dict[str, Any]]:
    """
    Combine systems by weights that `save_weights` stored.

    Args:
        path (`str` or `Path`): The file.
        members (`Members`): The systems, in the order of the fit.

    Returns:
        Combined scores of shape `(N,)`, and a report as `combine_members` returns it.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is something else, or for another number of systems; or the members have ratings and are
            the very clips of the fit, by which these weights must not be judged.
    """
    stored = read_json(path)
    try:
        parameters = {name: np.array(value, dtype=np.float64) for name, value in stored["parameters"].items()}
        fitted = FITS[stored["method"]][1](**parameters)
        names, fitted_on = list(map(str, stored["members"])), stored["fitted_on"]["clips_sha256"]
        with np.errstate(all="ignore"):
            combined = fitted.predict(np.zeros((len(names), 1)))
        is_sound = combined.shape == (1,) and all(np.isfinite(value).all() for value in parameters.values())
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError):
        is_sound = False
    if not is_sound:
        raise ValueError(f"{path}: not weights that `xacle ensemble --save-weights` wrote; store them anew.")
    if len(names) != len(members.names):
        raise ValueError(f"{path}: weights of {len(names)} systems ({', '.join(names)}), got {len(members.names)}.")
    if members.targets is not None and fitted_on == _fingerprint(members.table):
        raise ValueError(f"{path}: was fitted on these very clips and cannot be judged by them; leave out --weights.")
    with np.errstate(all="ignore"):
        combined = fitted.predict(members.scores)
    if not (np.abs(combined) <= LARGEST_SCORE).all():
        raise ValueError(f"{path}: gives scores that are no numbers below {LARGEST_SCORE:g}; store the weights anew.")
    return combined, _report(members, stored["method"], combined)


def _judged(members: Members, method: EnsembleMethod, num_folds: int, seed: int) -> Judged | None:
    """Returns the ratings, if there are any, with folds where something is fitted."""
    if members.targets is None:
        return None
    if method not in FITTED_METHODS:
        return Judged(members.targets, np.zeros(len(members.targets), dtype=np.int64))
    try:
        return Judged(members.targets, grouped_folds(clip_of_rows(members.table), num_folds, seed))
    except ValueError as error:
        raise ValueError(f"{members.table.path}: {error}") from error


def combine_members(
    members: Members,
    method: EnsembleMethod = "mean",
    num_folds: int = 5,
    seed: int = 0,
    leave_out: bool = False,
    num_resamples: int = 2000,
) -> tuple[np.ndarray, dict[str, Any]]:
    """
    Combine systems, and judge the result if there are ratings.

    Args:
        members (`Members`): The systems.
        method (`str`): One of `EnsembleMethod`.
        num_folds (`int`), seed (`int`): As for `grouped_folds`, by clip.
        leave_out (`bool`): Also report what each system adds.
        num_resamples (`int`): Resamples of the bootstrap for that.

    Returns:
        Combined scores of shape `(N,)`, out of fold where something is fitted; and a report: `method`, `members` and
        `pairs`; with ratings `metrics` of each system and of the `ensemble`; `weights` of `nnls`, fitted on all pairs;
        and `leave_one_out`, if asked for.

    Raises:
        ValueError: As for `ensemble` and `grouped_folds`; or there are no ratings to judge by.
    """
    if leave_out and members.targets is None:
        raise ValueError("Leaving one out needs a reference with the ratings.")
    judged = _judged(members, method, num_folds, seed)
    combined = ensemble(members.scores, method, judged)
    report = _report(members, method, combined)
    if judged is not None and method == "nnls":
        report["weights"] = fit_nnls(members.scores, judged.targets).weights.tolist()
    if leave_out:
        without = leave_one_out(members.scores, method, judged, num_resamples, seed)
        report["leave_one_out"] = dict(zip(members.names, without, strict=True))
    return combined, report


def ensemble_text(report: Mapping[str, Any]) -> str:
    """Returns an ensemble's report as tables for the terminal; "" if there were no ratings."""
    if "metrics" not in report:
        return ""
    weights = [f"{weight:.3f}" for weight in report.get("weights", [])]
    columns = [[f"{values[metric]:.3f}" for values in report["metrics"].values()] for metric in METRICS]
    header = ["system", *METRICS]
    if weights:
        header, columns = [*header, "weight"], [*columns, [*weights, ""]]
    text = text_table(header, list(zip(report["metrics"], *columns, strict=True))) + "\n"
    return text + (f"\n{_left_out_text(report['leave_one_out'])}\n" if "leave_one_out" in report else "")


def _left_out_text(left_out: Mapping[str, Any]) -> str:
    """Returns a table of the ensemble without each system, and of what the system adds to that."""
    header = ["without", *(cell for metric in SHOWN_METRICS for cell in (metric, "it adds", "95 % interval", "p"))]
    rows = []
    for name, result in left_out.items():
        row = [name]
        for metric in SHOWN_METRICS:
            difference = result["differences"][metric]
            low, high = difference["interval"]
            row += [f"{result['metrics'][metric]:.3f}", f"{difference['difference']:+.3f}"]
            row += [f"{low:+.3f} to {high:+.3f}", f"{difference['p_value']:.3f}"]
        rows.append(row)
    return text_table(header, rows)
