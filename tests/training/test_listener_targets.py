"""Targets from standardised listeners: what they are by hand, who is screened, and runs that learn from them."""

import json
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from stage_runs import command, every

import run_stage
from modeling_xacle.data.pairs import load_pairs, make_dataset, save_dataset
from modeling_xacle.training import resuming
from modeling_xacle.training.listener_targets import listener_agreement, listener_zscore_targets, read_ratings
from modeling_xacle.training.losses import balancing_weights
from modeling_xacle.training.recipes import StageArguments, parse_arguments
from modeling_xacle.training.run import load_splits, load_start, make_trainer

ZSCORE = ["--targets", "listener_zscore", "--screen_ratings", 3]
BALANCE = ["--loss", "mse", "--class_balance"]


def table(ratings):
    """A split of the ratings `{listener: one of each row, or None}`."""
    rows = [[(name, given[place]) for name, given in ratings.items()] for place in range(len(ratings["ann"]))]
    rows = [[(name, rating) for name, rating in row if rating is not None] for row in rows]
    means = [np.mean([rating for _, rating in row]) for row in rows]
    columns = {"id": [f"row {place}" for place in range(len(rows))], "label": np.float32(np.array(means) / 5 - 1)}
    columns |= {"ratings": [[rating for _, rating in row] for row in rows]}
    return Dataset.from_dict(columns | {"listener_ids": [[name for name, _ in row] for row in rows]})


def targets(ratings, **settings):
    stage = StageArguments(stage=3, targets="listener_zscore", **{"screen_ratings": 3, **settings})
    rows = ratings if isinstance(ratings, Dataset) else table(ratings)
    return listener_zscore_targets(rows, stage, "data, split train")


def rated_by(rows, ratings):
    """The rows with their labels, but other ratings."""
    other = table(ratings)
    for name in ("ratings", "listener_ids"):
        rows = rows.remove_columns(name).add_column(name, other[name][:])
    return rows


AGREEING = {"ann": [2, 4, 6, 8, 5], "bob": [1, 5, 5, 9, 4], "cat": [3, 4, 7, 7, 6]}


def test_targets_are_the_mean_z_scores_on_the_labels_mean_and_spread():
    rows = table(AGREEING)
    scores = np.mean(
        [(np.array(given) - np.mean(given)) / np.std(given, ddof=1) for given in AGREEING.values()], axis=0
    )
    labels = np.array(rows["label"][:])
    expected = labels.mean() + labels.std() * (scores - scores.mean()) / scores.std()
    found = targets(AGREEING)
    np.testing.assert_allclose(found["label"][:], expected, atol=1e-6)
    assert (np.mean(found["label"]), np.std(found["label"])) == pytest.approx((labels.mean(), labels.std()), abs=1e-6)
    assert found["ratings"][:] == rows["ratings"][:] and found.features["label"].dtype == "float32"


def test_how_mild_or_wide_a_listener_rates_does_not_matter():
    milder = {**AGREEING, "bob": [0.5 * rating + 5 for rating in AGREEING["bob"]]}
    first, second = (np.array(targets(ratings)["label"][:]) for ratings in (AGREEING, milder))
    ranks = [np.array(table(ratings)["label"][:]).argsort().tolist() for ratings in (AGREEING, milder)]
    np.testing.assert_allclose((first - first.mean()) / first.std(), (second - second.mean()) / second.std(), atol=1e-5)
    assert ranks[0] == ranks[1] and np.ptp(first) > np.ptp(second)  # the spread is that of the labels


SCREENED = {
    "few": ([9, None, None, 1, None], "1 listeners with fewer than 3 ratings"),
    "alike": ([7, 7, 7, 7, None], "1 whose ratings are all alike"),
    "contrary": ([8, 6, 4, 2, 5], "1 whose correlation with the others is below 0"),
}


@pytest.mark.parametrize("kind", SCREENED)
def test_screened_listeners_count_for_nothing_and_are_told(kind, caplog):
    caplog.set_level(logging.INFO)
    given, told = SCREENED[kind]
    with_them = table({**AGREEING, "dan": given})
    expected = targets(rated_by(with_them, AGREEING))
    caplog.clear()
    assert targets(with_them)["label"][:] == expected["label"][:]
    assert told in caplog.text and caplog.text.count(" 0 whose") + caplog.text.count(" 0 listeners") == 2


def test_agreement_is_the_correlation_with_the_others_alone():
    ratings = read_ratings(table({**AGREEING, "dan": [3, 3, 9, None, None]}))
    found = listener_agreement(ratings, 3)
    others = [(1 + 3 + 3) / 3, (5 + 4 + 3) / 3, (5 + 7 + 9) / 3, (9 + 7) / 2, (4 + 6) / 2]
    by_hand = np.corrcoef(AGREEING["ann"], others)[0, 1]
    assert found["ann"] == pytest.approx(by_hand) and len(found) == 4
    assert listener_agreement(ratings, 4).isna().to_dict() == {"ann": False, "bob": False, "cat": False, "dan": True}


def test_minus_one_screens_nobody_for_disagreeing(caplog):
    caplog.set_level(logging.INFO)
    targets({**AGREEING, "dan": [-rating + 9 for rating in AGREEING["ann"]]}, screen_correlation=-1.0)
    assert "0 whose correlation with the others is below -1" in caplog.text


def test_a_listener_without_company_is_kept_and_told(caplog):
    caplog.set_level(logging.INFO)
    alone = table(
        {**{name: [*given, None, None, None] for name, given in AGREEING.items()}, "dan": [None] * 5 + [1, 5, 9]}
    )
    assert len(targets(alone)) == 8
    assert "too little to compare them with: 1." in caplog.text


def test_ratings_far_from_all_others_are_left_out(caplog):
    caplog.set_level(logging.INFO)
    ratings = {"ann": [0, 4, 6, 8, 2], "bob": [6, 5, 5, 9, 4], "cat": [6, 4, 7, 7, 1]}  # the first 0 is 6 from both
    found = targets(ratings, screen_distance=5.0)
    assert "Left out: 1 ratings more than 5 points from all others" in caplog.text
    without = rated_by(table(ratings), {**ratings, "ann": [None, 4, 6, 8, 2]})
    assert found["label"][:] == targets(without)["label"][:] != targets(ratings)["label"][:]
    assert targets(ratings, screen_distance=6.0)["label"][:] == targets(ratings)["label"][:]


@pytest.mark.parametrize("last", [{"few": [9]}, {"alike": [7, 7, 7, 7, None, 7]}])
def test_rows_without_a_listener_are_left_out_and_told(last, caplog):
    ((name, given),) = last.items()
    ratings = {who: [*theirs, None] for who, theirs in AGREEING.items()}
    ratings[name] = [None] * (6 - len(given)) + given
    found = targets(ratings)
    assert found["id"][:] == [f"row {place}" for place in range(5)]
    assert "1 of 6 rows have no listener left and are left out: row 5." in caplog.text
    assert np.mean(found["label"]) == pytest.approx(np.mean(table(ratings)["label"]), abs=1e-6)


def test_splits_without_listeners_are_refused():
    rows = table(AGREEING)
    for lacking in (rows.remove_columns("listener_ids"), rows.remove_columns("ratings")):
        with pytest.raises(ValueError, match=r"split train: no row has ratings with their listeners .*--targets mean"):
            targets(lacking)
    for strict in ({"screen_ratings": 6}, {"screen_correlation": 1.0}):
        with pytest.raises(ValueError, match=r"leaves 0 of 5 rows, .* lower --screen_ratings or --screen_correlation"):
            targets(AGREEING, **strict)


@pytest.fixture(scope="module")
def rated(pairs, tmp_path_factory):
    """The stages' dataset with six listeners, each of a mildness of their own, three to a row."""
    folder = tmp_path_factory.mktemp("rated") / "dataset"
    generator, splits = np.random.default_rng(0), {}
    for name, rows in load_pairs(pairs).items():
        told = []
        for row in rows.to_list():
            listeners = generator.choice(6, 3, replace=False)
            given = [float(np.clip(row["score"] + who - 2.5 + generator.normal(), 0, 10)) for who in listeners]
            told.append({**row, "ratings": given, "listener_ids": [f"listener {who}" for who in listeners]})
        splits[name] = make_dataset(told)
    save_dataset(splits, folder)
    return folder


def test_only_the_training_split_is_standardised(rated, steady_folder, tmp_path):
    plain, standardised = (
        load_splits(parse_arguments(command(3, rated, steady_folder, tmp_path, *more))[0], 8) for more in ([], ZSCORE)
    )
    assert plain[1]["label"][:] == standardised[1]["label"][:]
    assert plain[0]["label"][:] != standardised[0]["label"][:] and len(plain[0]) == len(standardised[0])


def test_a_stage_refuses_a_split_without_listeners(pairs, steady_folder, tmp_path):
    with pytest.raises(ValueError, match=r"split train: no row has ratings with their listeners"):
        run_stage.main(command(3, pairs, steady_folder, tmp_path, *ZSCORE))


def test_weights_are_of_the_labels_that_are_trained_on(rated, steady_folder, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    arguments = command(3, rated, steady_folder, tmp_path, *ZSCORE, *BALANCE)
    stage, args = parse_arguments(arguments)
    splits = load_splits(stage, 8)
    trainer = make_trainer(stage, args, *load_start(stage), *splits)
    weights = trainer.list_loss.keywords["bin_weights"]
    assert torch.equal(weights, balancing_weights(torch.tensor(splits[0]["label"][:])))
    assert not torch.equal(weights, balancing_weights(torch.tensor(load_pairs(rated, "train")["label"][:])))
    assert "Class balance, by rating bins from 0 to 1 up to 9 to 10: " in caplog.text


@pytest.mark.parametrize(
    "change",
    [
        ["--targets", "mean"],
        ["--screen_ratings", 4],
        ["--screen_correlation", 0.1],
        ["--screen_distance", 9],
        ["--class_balance", "false"],
        ["--loss", "ordinal"],
    ],
)
def test_other_targets_and_weights_make_another_run(change, rated, steady_folder, tmp_path):
    mean = change == ["--targets", "mean"]
    found = [
        resuming.run_settings(*parse_arguments(command(3, rated, steady_folder, tmp_path, *BALANCE, *more)))
        for more in (ZSCORE, change if mean else [*ZSCORE, *change])
    ]
    assert change[0].removeprefix("--") in {name for name in found[0] if found[0][name] != found[1][name]}


def test_a_balanced_run_on_standardised_listeners_goes_on_as_the_uninterrupted_one(rated, model_folder, tmp_path):
    arguments = command(3, rated, model_folder, tmp_path, *ZSCORE, *BALANCE, *every(2), "--max_steps", 4)
    run_stage.main(arguments)
    first = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "checkpoint-4/trainer_state.json").unlink()  # killed while it saved the last
    run_stage.main(arguments)
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        torch.testing.assert_close(tensor, first[name], rtol=0, atol=0)
    assert "| class_balance | `True` |" in (tmp_path / "README.md").read_text()
    with pytest.raises(ValueError, match=r"other settings \(other training rows, .*targets listener_zscore then, mean"):
        run_stage.main(command(3, rated, model_folder, tmp_path, *BALANCE, *every(2), "--max_steps", 4))


@pytest.mark.parametrize("loss", ["ordinal", "clipped_contrastive"])
def test_balanced_losses_of_accumulated_batches_are_those_of_one(loss, rated, steady_folder, tmp_path):
    logs = []
    for batch, steps in ((8, 1), (4, 2)):
        parts = ["--loss", loss, "--class_balance", "--per_device_train_batch_size", batch, "--max_steps", 2]
        output = tmp_path / str(steps)
        run_stage.main(command(3, rated, steady_folder, output, *parts, "--gradient_accumulation_steps", steps))
        log = json.loads((output / "training_log.json").read_text())["log"]
        logs.append([entry["loss"] for entry in log if "loss" in entry])
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("1", "2"))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, two[name], rtol=0, atol=5e-5)
