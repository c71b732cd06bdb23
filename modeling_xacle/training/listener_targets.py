"""
Targets of stage 3 from standardised listeners: each one's ratings by their own mean and deviation, without those that
screening leaves out. The idea is that of the challenge's sixth-placed system (SPO-CLAPScore, arXiv 2601.02900).
"""

import numpy as np
import pandas as pd
from datasets import Dataset
from transformers.utils import logging

from ..data.columns import FEATURES
from .recipes import StageArguments

logger = logging.get_logger(__name__)

SHOWN_ROWS = 5


def read_ratings(rows: Dataset) -> pd.DataFrame:
    """Returns a line for every rating by a known listener: `row`, its place, `rating` in points, and `listener`."""
    columns = {"ratings": "rating", "listener_ids": "listener"}
    if not set(columns).issubset(rows.column_names):
        return pd.DataFrame(columns=["row", *columns.values()])
    table = rows.select_columns(list(columns)).to_pandas().rename(columns=columns).rename_axis("row")
    ratings = table.dropna().explode(list(columns.values())).dropna().reset_index()
    return ratings.astype({"rating": "float64", "listener": "str"})


def are_near_another(ratings: pd.DataFrame, distance: float) -> pd.Series:
    """Returns for each rating whether it is at most so many points from another of its row, or has no other."""
    ordered = ratings.sort_values(["row", "rating"]).groupby("row")["rating"]
    gaps = pd.concat([ordered.diff(), -ordered.diff(-1)], axis=1)  # to the next lower and the next higher
    nearest = gaps.min(axis=1)  # NaN of a rating that is alone in its row, from which nothing is far
    return ((nearest <= distance) | nearest.isna()).reindex(ratings.index)


def listener_agreement(ratings: pd.DataFrame, fewest_rows: int) -> pd.Series:
    """
    Returns each listener's agreement: Pearson's correlation of their ratings with the means of all others' ratings of
    the same rows; NaN if others rated fewer of them than `fewest_rows`, or if either side is constant.
    """
    own = ratings.groupby(["listener", "row"])["rating"].agg(["sum", "size"])
    others = own.groupby("row").transform("sum") - own
    means = pd.DataFrame({"own": own["sum"] / own["size"], "others": others["sum"] / others["size"]})
    found = {
        name: part["own"].corr(part["others"], min_periods=fewest_rows) for name, part in means.groupby("listener")
    }
    return pd.Series(found, dtype="float64")


def screen_listeners(ratings: pd.DataFrame, stage: StageArguments) -> pd.DataFrame:
    """
    Leaves out ratings and listeners by the stage's rules, and logs how many and why.

    First go the ratings that are more than `screen_distance` points from every other of their row (the sixth-placed
    system's only rule, with 5). Of what is left, listeners with fewer ratings than `screen_ratings` are left out, those
    whose ratings are all alike, and those whose agreement is below `screen_correlation`. Where it cannot be computed,
    nothing says that they disagree, and they are kept.

    Args:
        ratings (`pd.DataFrame`): As [`read_ratings`] returns them.
        stage (`StageArguments`): The rules.
    """
    near = are_near_another(ratings, stage.screen_distance) if stage.screen_distance else ratings["row"].notna()
    kept = ratings[near]
    by_listener = kept.groupby("listener")["rating"]
    few = by_listener.size() < stage.screen_ratings
    alike = ~few & (by_listener.nunique() == 1)
    agreement = listener_agreement(kept, stage.screen_ratings)
    apart = ~few & ~alike & (agreement < stage.screen_correlation)
    unknown = ~few & ~alike & agreement.isna()
    far = f"{(~near).sum()} ratings more than {stage.screen_distance:g} points from all others of their clip, "
    logger.info(
        f"{ratings['listener'].nunique()} listeners with {len(ratings)} ratings. Left out: "
        f"{far if stage.screen_distance else ''}{few.sum()} listeners with fewer than {stage.screen_ratings} ratings, "
        f"{alike.sum()} whose ratings are all alike, {apart.sum()} whose correlation with the others is below "
        f"{stage.screen_correlation:g}. Kept although there is too little to compare them with: {unknown.sum()}."
    )
    return kept[~kept["listener"].isin(few.index[few | alike | apart])]


def listener_zscore_targets(rows: Dataset, stage: StageArguments, where: str) -> Dataset:
    """
    Replaces a split's labels by the means of standardised ratings: each listener's ratings less their mean, divided by
    their deviation, averaged over the listeners of a row that [`screen_listeners`] keeps, then moved and scaled to the
    mean and deviation of the old labels. New labels may lie outside [-1, 1].

    Rows without a listener are left out, with a warning: their mean ratings are what screening distrusts, and on
    another scale than the other targets. (The sixth-placed system leaves them out as well. It keeps listeners with few
    or equal ratings, and standardises its validation split too; ours keeps its mean ratings.)

    Args:
        rows (`Dataset`): The training split, checked, with labels, `ratings` in points and `listener_ids`.
        stage (`StageArguments`): How listeners are screened.
        where (`str`): The split's name, for messages.

    Raises:
        ValueError: The split has no listeners, or screening leaves no two rows with different targets.
    """
    ratings = read_ratings(rows)
    if not len(ratings):
        raise ValueError(
            f"{where}: no row has ratings with their listeners (ratings, listener_ids), which --targets "
            f"{stage.targets} needs: make the dataset from tables that name the listeners, or take --targets mean."
        )
    kept = screen_listeners(ratings, stage)
    by_listener = kept.groupby("listener")["rating"]
    scores = (kept["rating"] - by_listener.transform("mean")) / by_listener.transform("std")
    targets = scores.groupby(kept["row"]).mean()
    spread = targets.std(ddof=0)
    if not spread > 0:
        raise ValueError(
            f"{where}: screening the listeners leaves {len(targets)} of {len(rows)} rows, with nothing to tell them "
            "apart: lower --screen_ratings or --screen_correlation, or take --targets mean."
        )
    labels = np.array(rows["label"][:], dtype=np.float64)
    targets = labels.mean() + labels.std() * (targets - targets.mean()) / spread
    without = [name for place, name in enumerate(rows["id"][:]) if place not in targets.index]
    if without:
        shown = ", ".join(without[:SHOWN_ROWS]) + (", ..." if len(without) > SHOWN_ROWS else "")
        logger.warning(f"{where}: {len(without)} of {len(rows)} rows have no listener left and are left out: {shown}.")
    column = targets.reindex(range(len(rows))).to_numpy(np.float32)
    replaced = rows.remove_columns("label").add_column("label", column, feature=FEATURES["label"])
    return replaced.select(targets.index)
