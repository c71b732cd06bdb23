"""Maps scores onto the listeners' scale by rising maps that are fitted on a validation table."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from ..checkpoints.loading import load_part
from ..configuration_dual import XacleDualEncoderConfig
from ..configuration_xacle import ScoringConfig, XacleConfig
from ..data.columns import PREDICTION_COLUMNS, find_column
from ..data.files import check_outputs, is_free, read_json, whole_folder, write_json
from ..data.tables import check_table_suffix, read_table, write_table
from .methods import CalibrationMethod
from .metrics import METRICS, alignment_metrics
from .score_tables import read_score_table, text_table

METHODS = get_args(CalibrationMethod)
CONFIG_FILE = "config.json"


@dataclass(frozen=True)
class ScoreCalibration:
    """
    A map from scores to the listeners' scale, which never reverses the order of two scores.

    Fields:
        method (`str`): "affine", strictly rising and not clamped, so that no rank changes; or "isotonic", which is
            flat in places, so that scores tie there, and stays within the means it was fitted to.
        scale (`float`): Slope of the affine map, above 0.
        offset (`float`): Offset of the affine map.
        inputs (`tuple[float, ...]`): Scores at the knots of the isotonic map, rising.
        outputs (`tuple[float, ...]`): Its values there, never falling; straight between knots, flat outside.
    """

    method: CalibrationMethod
    scale: float = 1.0
    offset: float = 0.0
    inputs: tuple[float, ...] = ()
    outputs: tuple[float, ...] = ()

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method must be {' or '.join(METHODS)}, got {self.method!r}.")
        if self.method == "affine" and not (0 < self.scale < np.inf and np.isfinite(self.offset)):
            raise ValueError(f"scale={self.scale} must be positive and offset={self.offset} finite.")
        knots = np.array([self.inputs, self.outputs]) if len(self.inputs) == len(self.outputs) else np.empty((2, 0))
        if self.method == "isotonic" and not (knots.size and np.isfinite(knots).all() and (np.diff(knots) >= 0).all()):
            raise ValueError("An isotonic map needs as many inputs as outputs, at least one, both rising.")

    def __str__(self) -> str:
        if self.method == "affine":
            return f"affine map {self.scale:.4f} x score {self.offset:+.4f}"
        return f"isotonic map of {len(self.inputs)} knots from {self.outputs[0]:.2f} to {self.outputs[-1]:.2f}"

    def __call__(self, scores: ArrayLike) -> np.ndarray:
        """Calibrates scores: array-like of any shape -> `np.ndarray` of the same shape; NaN stays NaN."""
        scores = np.asarray(scores, dtype=np.float64)
        if self.method == "affine":
            return self.scale * scores + self.offset
        return np.where(np.isnan(scores), np.nan, np.interp(scores, self.inputs, self.outputs))


def fit_calibration(predictions: np.ndarray, references: np.ndarray) -> tuple[float, float]:
    """
    Returns the scale and offset that bring `scale * predictions + offset` nearest to the references in the mean square.

    Args:
        predictions (`np.ndarray` of shape `(num_pairs,)`): Logits or scores, without NaN.
        references (`np.ndarray` of shape `(num_pairs,)`): Labels or mean ratings of the same pairs, without NaN.

    Raises:
        ValueError: The predictions do not rise with the references; a calibration would reverse their order.
    """
    predictions, references = predictions.astype(np.float64), references.astype(np.float64)
    centred, variance = predictions - predictions.mean(), predictions.var()
    scale = float((centred * (references - references.mean())).mean() / variance) if variance > 0 else 0.0
    if not scale > 0:
        raise ValueError(
            f"The predictions do not rise with the references (slope {scale:.3g}): there is nothing to calibrate."
        )
    return scale, float(references.mean() - scale * predictions.mean())


def _fit_isotonic(predictions: np.ndarray, references: np.ndarray) -> ScoreCalibration:
    """Fit by pooling adjacent violators over the distinct predictions; both ends of each flat stretch are knots."""
    inputs, places, counts = np.unique(predictions, return_inverse=True, return_counts=True)
    means = np.bincount(places, weights=references) / counts
    outputs = isotonic_regression(means, weights=counts).x
    ends = np.ones(len(inputs), dtype=bool)
    ends[1:-1] = (outputs[1:-1] != outputs[:-2]) | (outputs[1:-1] != outputs[2:])
    if outputs[0] == outputs[-1]:
        raise ValueError("The predictions do not rise with the references: there is nothing to calibrate.")
    return ScoreCalibration("isotonic", inputs=tuple(inputs[ends].tolist()), outputs=tuple(outputs[ends].tolist()))


def fit_score_calibration(predictions: ArrayLike, references: ArrayLike, method: str = "affine") -> ScoreCalibration:
    """
    Returns the rising map that brings predictions nearest to the references in the mean square.

    Args:
        predictions (array-like of shape `(num_pairs,)`): Scores of a validation table, in any unit.
        references (array-like of shape `(num_pairs,)`): Mean ratings of the same pairs. Pairs with NaN are left out.
        method (`str`): "affine" (two numbers, least squares) or "isotonic" (any rising map: needs hundreds of pairs).

    Raises:
        ValueError: Unknown method; fewer than 2 pairs; or the predictions do not rise with the references.
    """
    if method not in METHODS:
        raise ValueError(f"method must be {' or '.join(METHODS)}, got {method!r}.")
    table = np.stack([np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)])
    x, y = table[:, ~np.isnan(table).any(axis=0)]
    if len(x) < 2:
        raise ValueError(f"At least 2 pairs with both scores are needed to calibrate, got {len(x)}.")
    if method == "isotonic":
        return _fit_isotonic(x, y)
    scale, offset = fit_calibration(x, y)
    return ScoreCalibration("affine", scale, offset)


def out_of_fold(
    predictions: np.ndarray, references: np.ndarray, method: str, num_folds: int = 5, seed: int = 0
) -> np.ndarray | None:
    """
    Calibrates each pair by a map that was fitted to the other folds: what the map does to scores it has not seen.

    Args:
        predictions (`np.ndarray` of shape `(num_pairs,)`), references (`np.ndarray` of shape `(num_pairs,)`): As for
            `fit_score_calibration`.
        method (`str`): As there.
        num_folds (`int`): Random folds of equal size.
        seed (`int`): Seed of the folds.

    Returns:
        `np.ndarray` of shape `(num_pairs,)`, or `None` if a fold leaves too little to fit a map.
    """
    folds = np.random.default_rng(seed).permutation(len(predictions)) % num_folds
    calibrated = np.empty(len(predictions))
    for fold in range(num_folds):
        held_out = folds == fold
        try:
            calibration = fit_score_calibration(predictions[~held_out], references[~held_out], method)
        except ValueError:
            return None
        calibrated[held_out] = calibration(predictions[held_out])
    return calibrated


def calibration_report(
    calibration: ScoreCalibration, predictions: np.ndarray, references: np.ndarray
) -> dict[str, Any]:
    """
    Returns the metrics before calibration, after it, and out of fold.

    Args:
        calibration (`ScoreCalibration`): Fitted to these pairs.
        predictions (`np.ndarray` of shape `(num_pairs,)`), references (`np.ndarray` of shape `(num_pairs,)`): The
            pairs.

    Returns:
        `dict`: `before`, `after` and `out_of_fold` (`None` if there are too few pairs), as by `alignment_metrics`.
    """
    unseen = out_of_fold(predictions, references, calibration.method)
    return {
        "before": alignment_metrics(predictions, references),
        "after": alignment_metrics(calibration(predictions), references),
        "out_of_fold": None if unseen is None else alignment_metrics(unseen, references),
    }


def calibration_text(report: Mapping[str, Any]) -> str:
    """Returns the result of `calibration_report` as a table for a terminal."""
    rows = [
        [name.replace("_", " "), *(f"{of[metric]:.4f}" for metric in METRICS), str(of["N"])]
        for name, of in report.items()
        if of is not None
    ]
    return text_table(["scores", *METRICS, "N"], rows)


def save_calibration(calibration: ScoreCalibration, path: str | Path) -> None:
    """Write a calibration as JSON, whole or not at all."""
    write_json(path, asdict(calibration))


def load_calibration(path: str | Path) -> ScoreCalibration:
    """
    Read a calibration that `save_calibration` wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file holds no calibration.
    """
    stored = read_json(path)
    names = [field.name for field in fields(ScoreCalibration)]
    if not isinstance(stored, dict) or "method" not in stored or not set(stored) <= set(names):
        raise ValueError(f"{path}: not a calibration, which is a JSON object of {', '.join(names)}.")
    try:
        return ScoreCalibration(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()}
        )
    except TypeError as error:
        raise ValueError(f"{path}: not a calibration: a value is no number.") from error
    except ValueError as error:
        raise ValueError(f"{path}: not a calibration ({error}).") from error


def calibrate_table(
    calibration: ScoreCalibration,
    table: str | Path,
    output: str | Path,
    score_columns: Sequence[str] = PREDICTION_COLUMNS,
) -> int:
    """
    Write a table again, with its scores calibrated and all else as it was. Rows with an error get no score.

    Args:
        calibration (`ScoreCalibration`): The map.
        table (`str` or `Path`): CSV, TSV, JSON lines or Parquet file.
        output (`str` or `Path`): File of one of these kinds to write, whole or not at all.
        score_columns (`Sequence[str]`): The first of them that the table has holds the scores.

    Returns:
        The number of rows.

    Raises:
        ValueError: As for `read_score_table` and `write_table`; or `output` is the table itself.
    """
    check_table_suffix(output)
    check_outputs([output], [table])
    columns, _ = read_table(table)
    column = find_column(columns, score_columns, table)
    scores = read_score_table(table, score_columns, key_columns=())
    rows, calibrated = [], calibration(scores.scores)
    if np.isinf(calibrated).any():
        raise ValueError(f"{table}: the map gives scores that are no finite numbers ({calibration}); fit it anew.")
    for row, score in zip(scores.rows, calibrated.tolist(), strict=True):
        rows.append({**row, column: None if np.isnan(score) else score})
    write_table(output, rows)
    return len(rows)


CONFIGS = {kind.model_type: kind for kind in (XacleConfig, XacleDualEncoderConfig)}


def calibrate_model(calibration: ScoreCalibration, model: str | Path, output: str | Path) -> ScoringConfig:
    """
    Copy a model's folder with a config that calibrates its scores.

    The table that the map was fitted to went through the calibration that the model has now, so the two are composed.

    Args:
        calibration (`ScoreCalibration`): An affine map of the model's scores.
        model (`str` or `Path`): The folder.
        output (`str` or `Path`): The folder to write; must be new or empty. It appears whole or not at all.

    Returns:
        The new config.

    Raises:
        FileNotFoundError: There is no model folder.
        ValueError: The map is not affine, the folder is not an XACLE model, or there is something at `output`.
    """
    if calibration.method != "affine":
        raise ValueError("A model's config holds an affine map only; apply the isotonic one to tables.")
    model, output = Path(model), Path(output).absolute()
    if not (model / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{model}: no model folder, it has no {CONFIG_FILE}.")
    if not is_free(output):
        raise ValueError(f"{output}: exists; choose another output.")
    settings = read_json(model / CONFIG_FILE)
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind not in CONFIGS:
        raise ValueError(f"{model}: a model of type {kind}, not {' or '.join(CONFIGS)}.")
    try:
        config = _compose(calibration, load_part(CONFIGS[kind], model))
    except OverflowError as error:
        raise ValueError(f"{model}: its {CONFIG_FILE} has numbers that are too large.") from error
    names = ("calibration_scale", "calibration_offset", "apply_calibration")
    settings.update({name: getattr(config, name) for name in names})
    with whole_folder(output) as partial:
        shutil.copytree(model, partial, dirs_exist_ok=True)
        write_json(partial / CONFIG_FILE, settings)
    return config


def _compose(calibration: ScoreCalibration, config: ScoringConfig) -> ScoringConfig:
    """Returns the config with its present calibration followed by the new one, which is in units of scores."""
    scale, offset = (config.calibration_scale, config.calibration_offset) if config.apply_calibration else (1.0, 0.0)
    middle = (config.score_min + config.score_max) / 2  # the score of label 0
    shift = float(config.scores_to_labels(calibration(middle)))
    config.calibration_scale = calibration.scale * scale
    config.calibration_offset = calibration.scale * offset + shift
    config.apply_calibration = True
    return config
