"""Draws the pictures of an evaluation in a form that a paper can use."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter

from .calibrate import ScoreCalibration
from .metrics import SHOWN_METRICS
from .resampling import mean_interval

STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.axisbelow": True,
    "grid.linewidth": 0.5,
    "grid.alpha": 0.35,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "pdf.fonttype": 42,
}
# Okabe and Ito (2008): colours that differ for the colour-blind, and in print.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"
DOTS_PER_INCH = 200
DENSITY_CELLS = 80
RELIABILITY_BINS = 10
PAIRS_PER_BIN = 10  # in the plot of residuals, and at most 20 bins
# From green to dark violet: the yellow end of the map can hardly be seen on white.
DENSITY_COLOURS = ListedColormap(colormaps["viridis_r"](np.linspace(0.3, 1, 256)))
POINT_INK = 6000  # points squared, for all points together
NAME_LENGTH = 28
# Height of a line of the legend, as a share of the axis.
LEGEND_ROOM = 0.14
# Share of the references' range: predictions that spread less are on a scale of their own.
MIN_SPREAD = 0.2


@contextmanager
def styled_figure(width: float, height: float, columns: int = 1) -> Iterator[tuple[Figure, Any]]:
    """Gives a figure of a size in inches in this project's style, and its axes side by side."""
    with rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.subplots(1, columns)


def figure_bytes(figure: Figure, format: str = "png") -> bytes:
    """Returns the picture as a file of this format, "png" or "pdf"; the same picture gives the same bytes."""
    buffer = BytesIO()
    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # drawn as a box
        metadata = {"CreationDate": None} if format == "pdf" else None
        figure.savefig(buffer, format=format, dpi=DOTS_PER_INCH, metadata=metadata)
    return buffer.getvalue()


def _legend_above(axes: Axes, **arguments: Any) -> None:
    """Draw a legend above what is drawn, and make the axis longer for it."""
    low, high = axes.get_ylim()
    axes.set_ylim(top=high + LEGEND_ROOM * (high - low))
    axes.legend(loc="upper left", **arguments)


def _densities(x: np.ndarray, y: np.ndarray, limits: Sequence[tuple[float, float]]) -> np.ndarray:
    """Returns how crowded it is around each point, from a smoothed histogram: (N,), (N,) -> (N,)"""
    counts, *edges = np.histogram2d(x, y, bins=DENSITY_CELLS, range=limits)
    smooth = gaussian_filter(counts, sigma=2)
    places = [np.clip(np.digitize(v, e) - 1, 0, DENSITY_CELLS - 1) for v, e in zip((x, y), edges, strict=True)]
    return smooth[places[0], places[1]]


def _limits(*columns: np.ndarray) -> tuple[float, float]:
    """Returns the limits of an axis: 0-10 with a margin, wider if scores fall outside."""
    low, high = min(0.0, *(column.min() for column in columns)), max(10.0, *(column.max() for column in columns))
    return float(low) - 0.3, float(high) + 0.3


def _on_one_scale(predictions: np.ndarray, references: np.ndarray) -> bool:
    """Returns True if an identity line makes sense: not for cosines beside ratings of 0-10."""
    return bool(np.ptp(predictions) >= MIN_SPREAD * np.ptp(references))


def draw_scatter(predictions: np.ndarray, references: np.ndarray, evaluation: Mapping[str, Any]) -> Figure:
    """
    Draw predictions against listeners' means, darker where there are more, with the calibration line and, if both are
    on one scale, the identity line.

    Args:
        predictions (`np.ndarray` of shape `(N,)`), references (`np.ndarray` of shape `(N,)`): The pairs.
        evaluation (`Mapping`): What `evaluate_pairs` returned for them.
    """
    metrics, same_scale = evaluation["metrics"], _on_one_scale(predictions, references)
    y_limits = _limits(predictions, references) if same_scale else _limits(references)
    margin = 0.05 * np.ptp(predictions) or 0.5
    x_limits = y_limits if same_scale else (predictions.min() - margin, predictions.max() + margin)
    with styled_figure(4.2, 3.9) as (figure, axes):
        density = _densities(predictions, references, [x_limits, y_limits])
        density /= density.max()
        order = density.argsort()
        style = {"cmap": DENSITY_COLOURS, "s": np.clip(POINT_INK / len(order), 5, 30), "lw": 0, "rasterized": True}
        points = axes.scatter(predictions[order], references[order], c=density[order], vmin=0, vmax=1, **style)
        figure.colorbar(points, ax=axes, label="relative density", shrink=0.8)
        if same_scale:
            axes.plot(x_limits, y_limits, color=GREY, lw=0.8, ls="--", label="identity")
            axes.set_aspect("equal")
        if line := evaluation["calibration_line"]:
            ends = np.array([predictions.min(), predictions.max()])
            label = f"fit: {line['scale']:.2f} x {'+' if line['offset'] >= 0 else '-'} {abs(line['offset']):.2f}"
            axes.plot(ends, line["scale"] * ends + line["offset"], color=ORANGE, lw=1.6, label=label)
        title = f"SRCC {metrics['SRCC']:.3f}   LCC {metrics['LCC']:.3f}   MSE {metrics['MSE']:.2f}   N {metrics['N']}"
        axes.set(xlim=x_limits, ylim=y_limits, title=title)
        axes.set(xlabel="predicted score", ylabel="listeners' mean score")
        if axes.get_lines():
            figure.legend(loc="outside lower center", ncols=2)
    return figure


def draw_residuals(predictions: np.ndarray, references: np.ndarray) -> Figure:
    """
    Draw prediction less listeners' mean: against the prediction, with means of equal shares of the pairs and their 95 %
    t intervals, and as a histogram.

    Args:
        predictions (`np.ndarray` of shape `(N,)`), references (`np.ndarray` of shape `(N,)`): The pairs.
    """
    residuals = predictions - references
    with styled_figure(6.6, 2.8, columns=2) as (figure, (left, right)):
        size = np.clip(POINT_INK / len(residuals), 5, 30)
        left.scatter(predictions, residuals, s=size, color=BLUE, alpha=0.25, lw=0, rasterized=True)
        bins = np.array_split(predictions.argsort(kind="stable"), np.clip(len(predictions) // PAIRS_PER_BIN, 1, 20))
        means = [residuals[rows].mean() for rows in bins]
        margins = _margins(means, [mean_interval(residuals[rows]) for rows in bins])
        label = f"means of {len(bins)} equal shares, 95 % interval"
        where = [predictions[rows].mean() for rows in bins]
        left.errorbar(where, means, yerr=margins, color=ORANGE, lw=1.4, fmt="-o", ms=3, capsize=2, label=label)
        left.axhline(0, color=GREY, lw=0.8, ls="--")
        left.set(xlabel="predicted score", ylabel="prediction - listeners' mean")
        _legend_above(left)
        right.hist(residuals, bins=int(np.clip(2 * np.sqrt(len(residuals)), 5, 40)), color=BLUE, alpha=0.8)
        right.axvline(residuals.mean(), color=ORANGE, lw=1.6, label=f"mean {residuals.mean():.2f}")
        right.axvline(0, color=GREY, lw=0.8, ls="--")
        right.set(xlabel="prediction - listeners' mean", ylabel="pairs")
        right.set(title=f"standard deviation {residuals.std():.2f}")
        _legend_above(right)
    return figure


def _margins(values: Sequence[float], intervals: Sequence[tuple[float, float] | None]) -> np.ndarray:
    """Returns how far each interval reaches below and above its value, 0 where there is none: (2, N)"""
    ends = [(value, value) if ends is None else ends for value, ends in zip(values, intervals, strict=True)]
    low, high = np.array(ends).T
    return np.clip([values - low, high - values], 0, None)


def draw_bands(bands: Sequence[Mapping[str, Any]]) -> Figure:
    """
    Draw the mean error with its 95 % interval, and the root mean square error, by the listeners' mean.

    Args:
        bands (`Sequence`): As `score_bands` returns them.
    """
    names = [f"{band['low']} to {band['high']}\nn={band['N']}" for band in bands]
    names = [name if band["bias_interval"] else f"{name}\nno interval" for name, band in zip(names, bands, strict=True)]
    places, biases = np.arange(len(bands)), [band["bias"] for band in bands]
    with styled_figure(max(3.0, 0.55 * len(bands) + 1), 2.8) as (figure, axes):
        axes.bar(places, [band["RMSE"] for band in bands], width=0.7, color=BLUE, alpha=0.3, label="RMSE")
        margins = _margins(biases, [band["bias_interval"] for band in bands])
        style = {"fmt": "o", "ms": 4, "color": ORANGE, "capsize": 2}
        axes.errorbar(places, biases, yerr=margins, label="mean error, 95 % interval", **style)
        axes.axhline(0, color=GREY, lw=0.8)
        # The interval of two pairs may be as wide as the scale: it may leave the axes.
        largest = max(0.5, *(band["RMSE"] for band in bands))
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, -2 * largest), min(high, 2 * largest))
        axes.set_xticks(places, names, fontsize=7)
        axes.set(xlabel="listeners' mean score", ylabel="error in points")
        _legend_above(axes, ncols=2)
    return figure


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 3] + "..."


def draw_groups(column: str, groups: Mapping[str, Mapping[str, Any]], evaluation: Mapping[str, Any]) -> Figure:
    """
    Draw SRCC and mean squared error of each group with their intervals, best SRCC on top, beside those of all pairs.

    Args:
        column (`str`): The column that the pairs were grouped by.
        groups (`Mapping`): `metrics` and `intervals` of each group; groups without them are left out.
        evaluation (`Mapping`): What `evaluate_pairs` returned.
    """
    measured = [(name, group) for name, group in groups.items() if group["metrics"]]
    measured.sort(key=lambda item: item[1]["metrics"]["SRCC"])
    places = np.arange(len(measured))
    with styled_figure(6.6, 1.1 + 0.27 * len(measured), columns=2) as (figure, both):
        for axes, metric in zip(both, SHOWN_METRICS, strict=True):
            values = np.array([group["metrics"][metric] for _, group in measured])
            axes.barh(places, values, height=0.65, color=BLUE, alpha=0.35)
            margins = _margins(values, [group["intervals"][metric] for _, group in measured])
            axes.errorbar(values, places, xerr=margins, fmt="o", ms=3.5, color=BLUE, capsize=2, lw=1)
            axes.axvline(evaluation["metrics"][metric], color=ORANGE, lw=1.2, ls="--", label="all pairs")
            axes.set(xlabel=metric, ylim=(-0.6, len(measured) - 0.4))
            axes.grid(axis="x")
        names = [f"{_shortened(name)} (n={group['N']})" for name, group in measured]
        both[0].set_yticks(places, names, parse_math=False)  # names may have a "$"
        both[0].set_ylabel(column, parse_math=False)
        both[1].set_yticks([])
        figure.get_layout_engine().set(wspace=0.06)
        figure.legend(*both[0].get_legend_handles_labels(), loc="outside upper right")
    return figure


def _reliability(predictions: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Returns, by equal shares of the pairs, mean prediction, mean reference and half its 95 % interval: (3, shares)"""
    shares = np.array_split(predictions.argsort(kind="stable"), max(1, min(RELIABILITY_BINS, len(predictions) // 2)))
    means = [(predictions[rows].mean(), references[rows].mean()) for rows in shares]
    margins = _margins([mean for _, mean in means], [mean_interval(references[rows]) for rows in shares])[0]
    return np.array([*zip(*means, strict=True), margins])


def draw_reliability(calibration: ScoreCalibration, predictions: np.ndarray, references: np.ndarray) -> Figure:
    """
    Draw the map over the pairs of its fit, and the reliability diagram: does a score of 6 mean a mean rating of 6?

    Args:
        calibration (`ScoreCalibration`): The map.
        predictions (`np.ndarray` of shape `(N,)`), references (`np.ndarray` of shape `(N,)`): The pairs, at least 2.
    """
    calibrated = calibration(predictions)
    with styled_figure(6.6, 3.2, columns=2) as (figure, (left, right)):
        left.scatter(predictions, references, s=5, color=GREY, alpha=0.25, lw=0, rasterized=True)
        grid = np.linspace(predictions.min(), predictions.max(), 500)
        left.plot(grid, calibration(grid), color=ORANGE, lw=1.8, label=f"{calibration.method} map")
        left.set(xlabel="score", ylabel="listeners' mean score")
        left.legend(loc="upper left")
        before, after = _reliability(predictions, references), _reliability(calibrated, references)
        limits = _limits(before[:2], after[:2])
        right.plot(limits, limits, color=GREY, lw=0.8, ls="--")
        for (x, y, margins), color, label in ((before, BLUE, "before"), (after, ORANGE, "after")):
            right.errorbar(x, y, yerr=margins, color=color, marker="o", ms=3.5, capsize=2, lw=1.2, label=label)
        right.set(xlim=limits, ylim=limits, aspect="equal")
        right.set(xlabel="mean score of equal shares of the pairs", ylabel="their mean rating")
        right.legend(loc="upper left")
    return figure
