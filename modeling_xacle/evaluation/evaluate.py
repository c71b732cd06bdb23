"""Evaluates one table of scores: metrics with intervals, by group and by score band, beside the listeners' ceiling."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from .. import __version__
from ..data.columns import PREDICTION_COLUMNS, RATING_COLUMNS, REFERENCE_COLUMNS, SOURCE_COLUMNS
from .ensemble import SMALLEST_SPREAD
from .listeners import listeners_ceiling
from .metrics import alignment_metrics
from .resampling import bootstrap_intervals, mean_interval
from .score_tables import (
    KEYS_LISTED,
    Key,
    ScoreTable,
    check_sides,
    common_keys,
    join_tables,
    merge_as_official,
    read_score_table,
)

MAX_GROUPS = 100
RATINGS_COLUMN = "ratings"
BAND_EDGES = tuple(range(11))


class EvaluationPairs(NamedTuple):
    """
    Pairs with a prediction and a reference.

    Fields:
        prediction (`str`): File of the predictions.
        reference (`str`): File of the references.
        predictions (`np.ndarray` of shape `(N,)`): Predicted scores, none of them NaN.
        references (`np.ndarray` of shape `(N,)`): Mean ratings, none of them NaN.
        key_columns (`tuple[str, ...]`): Columns that tell the pairs apart in the reference.
        keys (`list[tuple[str, ...]]` of length N): Their values.
        rows (`list[dict[str, Any]]` of length N): Columns of both tables; where they share one, the reference's.
        dropped (`dict[str, int]`): Rows that were left out: `missing`, `extra` and `multiplied` (more rather than
            fewer) by the official merge, and `without_score`.
        columns (`dict[str, str]`): Columns of the scores in the `prediction` and in the `reference`.
        scorer (`dict`, *optional*): `model`, `revision` and `signature` of what gave the predictions, if it is known.
    """

    prediction: str
    reference: str
    predictions: np.ndarray
    references: np.ndarray
    key_columns: tuple[str, ...]
    keys: list[Key]
    rows: list[dict[str, Any]]
    dropped: dict[str, int]
    columns: dict[str, str]
    scorer: dict[str, str | None] | None = None


def read_pairs(
    prediction: str | Path,
    reference: str | Path,
    official: bool = False,
    key_columns: Sequence[str] | None = None,
    prediction_columns: Sequence[str] = PREDICTION_COLUMNS,
    reference_columns: Sequence[str] = REFERENCE_COLUMNS,
) -> EvaluationPairs:
    """
    Read a table of predictions and its reference, and join them.

    Args:
        prediction (`str` or `Path`): Table of predicted scores.
        reference (`str` or `Path`): Table of mean ratings, one row per pair.
        official (`bool`): Join as the challenge's script does, which drops rows that only one table has.
        key_columns (`Sequence[str]`, *optional*): As for `read_score_table`.
        prediction_columns (`Sequence[str]`): The first that is there holds the predictions.
        reference_columns (`Sequence[str]`): The first that is there holds the references.

    Raises:
        FileNotFoundError: A table is not there.
        ValueError: A table cannot be read; or the tables do not have the same rows, unless `official`; or fewer than 2
            pairs are left.
    """
    table = read_score_table(prediction, prediction_columns, key_columns)
    truth = read_score_table(reference, reference_columns, key_columns)
    scores, rows, others, dropped = _merge(table, truth) if official else _join(table, truth)
    check_sides(table, truth, scores, prediction_columns)
    used = np.flatnonzero(~np.isnan(scores).any(axis=0))
    dropped["without_score"] = scores.shape[1] - len(used)
    if len(used) < 2:
        raise ValueError(f"{table.path}, {truth.path}: at least 2 pairs with both scores are needed, got {len(used)}.")
    return EvaluationPairs(
        table.path,
        truth.path,
        *scores[:, used],
        truth.key_columns,
        [truth.keys[others[index]] for index in used],
        [{**table.rows[rows[index]], **truth.rows[others[index]]} for index in used],
        dropped,
        {"prediction": table.score_column, "reference": truth.score_column},
        table.scorer,
    )


def _merge(table: ScoreTable, truth: ScoreTable) -> tuple[np.ndarray, Sequence[int], Sequence[int], dict[str, int]]:
    """Returns scores (2, M), rows of the prediction and of the reference, and what was dropped."""
    merged = merge_as_official(table, truth)
    dropped = {"missing": merged.num_missing, "extra": merged.num_extra, "multiplied": merged.num_multiplied}
    return merged.scores, merged.prediction_rows, merged.reference_rows, dropped


def _join(table: ScoreTable, truth: ScoreTable) -> tuple[np.ndarray, Sequence[int], Sequence[int], dict[str, int]]:
    """Returns the same as `_merge`, for tables that must have the same rows."""
    scores = join_tables([table, truth])
    keys, wanted = common_keys([table, truth])
    place = {key: index for index, key in enumerate(keys)}
    return scores, [place[key] for key in wanted], range(len(wanted)), {"missing": 0, "extra": 0, "multiplied": 0}


def dropped_notes(pairs: EvaluationPairs) -> list[str]:
    """Describes what the numbers leave out or count more than once."""
    words = {
        "missing": f"rows of {pairs.reference} have no prediction and were dropped",
        "extra": f"rows of {pairs.prediction} have no reference and were dropped",
        "multiplied": "pairs are there more than once",
        "without_score": "pairs have no score (an error or NaN) and were dropped",
    }
    return [f"{count} {words[name]}" for name, count in pairs.dropped.items() if count]


def read_ratings(
    pairs: EvaluationPairs, table: str | Path | None = None, key_columns: Sequence[str] | None = None
) -> list[list[float]] | None:
    """
    Returns the individual ratings of the pairs, in their order; `None` if there are none.

    Args:
        pairs (`EvaluationPairs`): The pairs; without `table`, their column `ratings` is read.
        table (`str` or `Path`, *optional*): Table with a row for each rating, such as the challenge's validation.csv.
        key_columns (`Sequence[str]`, *optional*): As for `read_score_table`.

    Raises:
        ValueError: The table has no ratings of a pair; or a value of the column is not a list of numbers.
    """
    if table is None:
        values = [row.get(RATINGS_COLUMN) for row in pairs.rows]
        return None if all(value is None for value in values) else [_rating_list(value) for value in values]
    ratings = read_score_table(table, RATING_COLUMNS, key_columns)
    truth = ScoreTable(pairs.reference, pairs.key_columns, pairs.keys, pairs.references, pairs.rows)
    keys, wanted = common_keys([ratings, truth])
    found: dict[Key, list[float]] = defaultdict(list)
    for key, rating in zip(keys, ratings.scores.tolist(), strict=True):
        found[key].append(rating)
    missing = [" | ".join(key) for key in wanted if key not in found]
    if missing:
        raise ValueError(f"{table}: no ratings of {len(missing)} pairs: {', '.join(missing[:KEYS_LISTED])}.")
    return [found[key] for key in wanted]


def _rating_list(value: Any) -> list[float]:
    try:
        return [float(rating) for rating in (json.loads(value) if isinstance(value, str) else value)]
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"The {RATINGS_COLUMN} {value!r} are not a list of numbers.") from error


def group_rows(pairs: EvaluationPairs, columns: Sequence[str] | None = None) -> dict[str, dict[str, np.ndarray]]:
    """
    Says which pairs belong to which group.

    Args:
        pairs (`EvaluationPairs`): The pairs.
        columns (`Sequence[str]`, *optional*): Columns to group by, by default those of `SOURCE_COLUMNS` that are there
            and have 2 to 100 values.

    Returns:
        For each column and each of its values in alphabetical order, the numbers of its pairs, `np.ndarray` of shape
        `(num_in_group,)`.

    Raises:
        ValueError: A column that was asked for is not there, or has more than 100 values.
    """
    groups: dict[str, dict[str, np.ndarray]] = {}
    for column in SOURCE_COLUMNS if columns is None else columns:
        values = np.array([str(row.get(column)) for row in pairs.rows])
        names = np.unique(values)
        if columns is not None and (column not in pairs.rows[0] or len(names) > MAX_GROUPS):
            raise ValueError(
                f"{pairs.reference}: cannot group by {column}, "
                + ("there is no such column." if column not in pairs.rows[0] else f"it has {len(names)} values.")
            )
        if columns is not None or 1 < len(names) <= MAX_GROUPS:
            groups[column] = {str(name): np.flatnonzero(values == name) for name in names}
    return groups


def score_bands(predictions: np.ndarray, references: np.ndarray) -> list[dict[str, float]]:
    """
    Returns errors by the listeners' mean, in bands of one point; a mean outside 0-10 counts to the first or last.

    Args:
        predictions (`np.ndarray` of shape `(N,)`): Predicted scores.
        references (`np.ndarray` of shape `(N,)`): Mean ratings.

    Returns:
        For each band that has pairs: `low`, `high`, `N`, `bias` (mean of prediction less reference), `bias_interval`
        (its 95 % t interval, `None` for a single pair), `MAE` and `RMSE`.
    """
    bands = np.digitize(references, BAND_EDGES[1:-1])
    result = []
    for band in np.unique(bands).tolist():
        errors = (predictions - references)[bands == band]
        result.append(
            {
                "low": BAND_EDGES[band],
                "high": BAND_EDGES[band + 1],
                "N": len(errors),
                "bias": float(errors.mean()),
                "bias_interval": mean_interval(errors),
                "MAE": float(np.abs(errors).mean()),
                "RMSE": float(np.sqrt((errors**2).mean())),
            }
        )
    return result


def calibration_line(predictions: np.ndarray, references: np.ndarray) -> dict[str, float] | None:
    """
    Returns the least-squares line through (prediction, reference): `scale` 1 and `offset` 0 mean a calibrated system;
    `None` if all predictions are the same.

    Args:
        predictions (`np.ndarray` of shape `(N,)`), references (`np.ndarray` of shape `(N,)`): The pairs.
    """
    if predictions.std() < SMALLEST_SPREAD:
        return None
    scale, offset = np.polyfit(predictions, references, 1)
    return {"scale": float(scale), "offset": float(offset)}


def _measure(pairs: EvaluationPairs, rows: np.ndarray | slice, bootstrap: dict[str, Any] | None) -> dict[str, Any]:
    """Returns `metrics` and, with bootstrap settings, `intervals` of some pairs; both are `None` for a single one."""
    predictions, references = pairs.predictions[rows], pairs.references[rows]
    if len(predictions) < 2:
        return {"metrics": None, "intervals": None, "N": len(predictions)}
    measured = {"metrics": alignment_metrics(predictions, references), "N": len(predictions)}
    if bootstrap is not None:
        measured["intervals"] = bootstrap_intervals(predictions, references, **bootstrap)
    return measured


def _measure_groups(
    pairs: EvaluationPairs, groups: dict[str, np.ndarray], column: str, bootstrap: dict[str, Any]
) -> dict[str, Any]:
    """Measures each group by itself, with a progress bar."""
    shown = tqdm(groups.items(), desc=f"intervals by {column}", disable=None)
    return {name: _measure(pairs, rows, bootstrap) for name, rows in shown}


def _leave_one_out(pairs: EvaluationPairs, groups: dict[str, np.ndarray]) -> dict[str, Any]:
    """Returns, for each group, the metrics of all pairs outside it."""
    numbers = np.arange(len(pairs.keys))
    return {name: _measure(pairs, np.delete(numbers, rows), None) for name, rows in groups.items()}


def _listeners(ratings: list[list[float]] | None, srcc: float) -> dict[str, float | None] | None:
    """Returns the ceiling from the pairs with at least two ratings, and how much of it was reached."""
    rated = [pair for pair in ratings or [] if len(pair) > 1]
    if len(rated) < 2:
        return None
    ceiling = listeners_ceiling(rated)
    reached = srcc / ceiling["ceiling_srcc"] if ceiling["ceiling_srcc"] > 0 else None
    return {"N": len(rated), **ceiling, "share_of_ceiling": reached}


def evaluate_pairs(
    pairs: EvaluationPairs,
    group_columns: Sequence[str] | None = None,
    ratings: list[list[float]] | None = None,
    num_resamples: int = 10_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """
    Computes all numbers of a report, ready for JSON.

    Args:
        pairs (`EvaluationPairs`): The pairs.
        group_columns (`Sequence[str]`, *optional*): As for `group_rows`.
        ratings (`list[list[float]]`, *optional*): Individual ratings of the pairs.
        num_resamples (`int`), confidence (`float`), seed (`int`): As for `bootstrap_intervals`.

    Returns:
        `dict`: `metrics` and `intervals` of all pairs; `groups`, the same for each group of each column;
        `leave_one_out`, `metrics` of all pairs but those of a group; `bands` from `score_bands`; `calibration_line`;
        `listeners` from `listeners_ceiling` with `share_of_ceiling`, or `None`; and what they were computed from and
        how, with `columns` and `scorer`.
    """
    bootstrap = {"num_resamples": num_resamples, "confidence": confidence, "seed": seed}
    groups = group_rows(pairs, group_columns)
    overall = _measure(pairs, slice(None), bootstrap)
    return {
        "prediction": pairs.prediction,
        "reference": pairs.reference,
        "columns": {**pairs.columns, "key": list(pairs.key_columns)},
        "scorer": pairs.scorer,
        "dropped": pairs.dropped,
        **overall,
        "groups": {column: _measure_groups(pairs, of, column, bootstrap) for column, of in groups.items()},
        "leave_one_out": {column: _leave_one_out(pairs, of) for column, of in groups.items()},
        "bands": score_bands(pairs.predictions, pairs.references),
        "calibration_line": calibration_line(pairs.predictions, pairs.references),
        "listeners": _listeners(ratings, overall["metrics"]["SRCC"]),
        "bootstrap": bootstrap,
        "version": __version__,
    }


def worst_pairs(pairs: EvaluationPairs, count: int) -> list[int]:
    """Returns the numbers of the pairs with the largest absolute errors, the largest first."""
    errors = np.abs(pairs.predictions - pairs.references)
    return np.argsort(-errors, kind="stable")[:count].tolist()
