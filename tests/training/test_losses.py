"""The losses over lists: published values, where their minima lie, and one list over several processes."""

import math
from datetime import timedelta

import pytest
import torch
from conftest import EXPECTED, run_processes
from torch import distributed
from torch.nn.functional import mse_loss

from modeling_xacle.training.losses import (
    BALANCED_LOSSES,
    COMPARING_LOSSES,
    LOSSES,
    balancing_weights,
    clipped_contrastive_loss,
    clipped_mse_loss,
    difference_loss,
    get_loss,
    global_list_loss,
    list_net_loss,
    list_net_mse_loss,
    ordinal_loss,
    rating_bins,
    scale_gradient,
)

PREDICTIONS = torch.tensor(EXPECTED["listnet"]["predictions"])
TARGETS = torch.tensor(EXPECTED["listnet"]["targets"])
NUM_PROCESSES = 2


def gradient(loss, logits):
    logits = logits.clone().requires_grad_(True)
    loss(logits, TARGETS).backward()
    return logits.grad


def cross_entropy_of_lists(logits, labels, temperature):
    """ListNet as it was published: one-sided."""
    return -((labels / temperature).softmax(dim=0) * logits.log_softmax(dim=0)).sum()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_list_net_is_the_published_loss_less_its_least_value(temperature):
    published = cross_entropy_of_lists(PREDICTIONS, TARGETS, temperature)
    assert published.item() == pytest.approx(EXPECTED["listnet"][f"temperature_{temperature}"], abs=1e-6)
    least = cross_entropy_of_lists(TARGETS / temperature, TARGETS, temperature)
    loss = list_net_loss(PREDICTIONS, TARGETS, temperature, one_sided=True)
    torch.testing.assert_close(loss, published - least)
    torch.testing.assert_close(
        gradient(get_loss("listnet", temperature, one_sided=True), PREDICTIONS),
        gradient(lambda logits, labels: cross_entropy_of_lists(logits, labels, temperature), PREDICTIONS),
    )


# A list's least ordinal loss is the scatter of listeners, which is not 0.
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ordinal"])
@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_a_perfect_prediction_costs_nothing(name, temperature):
    assert get_loss(name, temperature)(TARGETS, TARGETS).item() == pytest.approx(0, abs=1e-6)
    one_sided = get_loss(name, temperature, one_sided=True)
    perfect = TARGETS / temperature if name == "listnet" else TARGETS
    if name != "listnet_mse":  # its two parts have their minima in different places
        assert one_sided(perfect, TARGETS).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_which_losses_teach_nothing_on_one_pair(name):
    """Of `listnet_mse` and `clipped_contrastive` the part that compares."""
    logits = torch.tensor([0.3], requires_grad=True)
    others = {"listnet_mse": mse_loss, "clipped_contrastive": clipped_mse_loss}
    labels = torch.tensor([-0.5])
    loss = get_loss(name)(logits, labels) - (others[name](logits, labels) if name in others else 0)
    assert (loss.item() == 0) == (name in COMPARING_LOSSES)
    assert torch.autograd.grad(loss, logits)[0].any() == (name not in COMPARING_LOSSES)


def test_a_gradient_is_scaled_and_the_value_is_not():
    logits = PREDICTIONS.clone().requires_grad_(True)
    value = scale_gradient(mse_loss(logits, TARGETS), 4)
    assert value.item() == mse_loss(PREDICTIONS, TARGETS).item()
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], 4 * gradient(mse_loss, PREDICTIONS))


def test_both_forms_of_list_net_are_one_at_temperature_one():
    forms = [list_net_loss(PREDICTIONS, TARGETS, one_sided=one_sided) for one_sided in (False, True)]
    assert torch.equal(*forms)
    assert not torch.equal(*(list_net_loss(PREDICTIONS, TARGETS, 0.5, one_sided) for one_sided in (False, True)))


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("one_sided", [False, True])
def test_where_list_net_has_its_minimum(temperature, one_sided):
    loss = get_loss("listnet", temperature, one_sided)
    minimum = (TARGETS / temperature if one_sided else TARGETS) + 3
    torch.testing.assert_close(gradient(loss, minimum), torch.zeros(16), atol=1e-6, rtol=0)
    for direction in torch.eye(16):
        assert loss(minimum + 0.1 * direction, TARGETS) > loss(minimum, TARGETS)
    if one_sided and temperature != 1:
        assert gradient(loss, TARGETS).abs().max() > 1e-3


@pytest.mark.parametrize("name", LOSSES)
def test_which_losses_learn_the_scale(name):
    loss = get_loss(name, temperature=0.5)
    moved = (loss(PREDICTIONS + 2, TARGETS) - loss(PREDICTIONS, TARGETS)).abs()
    assert (moved < 1e-5) == (name == "listnet")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss(PREDICTIONS[order], TARGETS[order]), loss(PREDICTIONS, TARGETS))
    torch.testing.assert_close(difference_loss(PREDICTIONS + 2, TARGETS), difference_loss(PREDICTIONS, TARGETS))


def test_clipped_contrastive_loss_is_what_two_loops_give():
    pairs = list(zip(PREDICTIONS.tolist(), TARGETS.tolist(), strict=True))
    clipped, differences = 0.0, 0.0
    for predicted, actual in pairs:
        if abs(predicted - actual) > 0.25:
            clipped += (predicted - actual) ** 2 / 16
        for other_predicted, other_actual in pairs:
            off = abs((predicted - other_predicted) - (actual - other_actual))
            differences += max(0.0, off - 0.1) / 16**2 / 2
    assert clipped_mse_loss(PREDICTIONS, TARGETS).item() == pytest.approx(clipped, rel=1e-5)
    assert difference_loss(PREDICTIONS, TARGETS).item() == pytest.approx(differences, rel=1e-5)
    whole = clipped_contrastive_loss(PREDICTIONS, TARGETS).item()
    assert whole == pytest.approx(clipped + differences / 2, rel=1e-5)


def test_small_errors_cost_nothing():
    assert clipped_mse_loss(TARGETS + 0.2, TARGETS) == 0
    near = TARGETS + 0.04 * torch.tensor([1.0, -1.0]).repeat(8)
    assert clipped_contrastive_loss(near, TARGETS) == 0
    assert not gradient(clipped_contrastive_loss, near).any()


def test_list_net_mse_is_their_sum():
    expected = list_net_loss(PREDICTIONS, TARGETS, 0.5) + 2 * mse_loss(PREDICTIONS, TARGETS)
    torch.testing.assert_close(list_net_mse_loss(PREDICTIONS, TARGETS, 0.5, mse_weight=2), expected)


def test_ordinal_loss_is_the_cross_entropy_of_every_threshold():
    """By hand, in points: at 6.25, the 25 thresholds up to 6.125 are exceeded and the 15 from 6.375 on are not."""
    logit, scale = 0.1, 0.2  # 5.5 points, 1 point
    thresholds = [0.125 + 0.25 * step for step in range(40)]
    chances = [1 / (1 + math.exp(threshold - 5.5)) for threshold in thresholds]
    by_hand = -sum(math.log(p if t < 6.25 else 1 - p) for p, t in zip(chances, thresholds, strict=True)) / 40
    slope = sum(p - (t < 6.25) for p, t in zip(chances, thresholds, strict=True)) / 40 / scale
    logits = torch.tensor([logit], requires_grad=True)
    loss = ordinal_loss(logits, torch.tensor([0.25]), scale=scale)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert torch.autograd.grad(loss, logits)[0].item() == pytest.approx(slope, rel=1e-5)


def ordinal_slope(logit, label):
    logits = torch.tensor([float(logit)], requires_grad=True)
    return torch.autograd.grad(ordinal_loss(logits, torch.tensor([float(label)])), logits)[0].item()


def test_ordinal_loss_is_a_squared_error_in_the_middle_and_gives_way_at_the_ends():
    assert ordinal_slope(0.3, 0.0) / 0.3 == pytest.approx(1.8 * 2, rel=0.02)
    assert ordinal_slope(0.0, 0.0) == pytest.approx(0, abs=1e-6)
    assert ordinal_slope(1.5, 1.0) < 0 < ordinal_slope(-1.5, -1.0)
    assert ordinal_slope(0.84, 0.8) == pytest.approx(0, abs=0.02) and ordinal_slope(0.8, 0.8) < -0.05


@pytest.mark.parametrize("rating", [0.0, 0.25, 2.5, 7.0, 9.75, 10.0])
def test_every_quarter_point_is_a_level_of_its_own(rating):
    at, above = (torch.tensor([points / 5 - 1]) for points in (rating, rating + 0.25))
    zero = torch.zeros(1)
    assert (ordinal_loss(zero, at) == ordinal_loss(zero, above)) == (rating == 10)
    assert torch.equal(ordinal_loss(zero, at), ordinal_loss(zero, at + 0.01))


def test_rating_bins_are_those_of_the_baseline():
    ratings = torch.tensor([0.0, 0.25, 1.0, 1.25, 6.75, 7.0, 7.25, 9.0, 9.25, 10.0])
    expected = torch.tensor([0, 0, 0, 1, 6, 6, 7, 8, 9, 9])
    assert torch.equal(rating_bins(ratings / 5 - 1), expected)
    whole = torch.arange(1, 11)
    assert torch.equal(rating_bins(whole / 5 - 1), whole - 1)  # whatever the rounding of float32
    assert torch.equal(rating_bins(torch.tensor([-1.3, 1.3])), torch.tensor([0, 9]))


def test_balancing_weights_let_every_bin_count_alike():
    labels = torch.tensor([0.5, 1.0, 5.5, 5.75, 5.25, 9.5, 9.75, 10.0]) / 5 - 1  # bins of 2, 3 and 3 pairs
    weights = balancing_weights(labels)
    expected = torch.zeros(10)
    expected[0], expected[5], expected[9] = 8 / 6, 8 / 9, 8 / 9
    torch.testing.assert_close(weights, expected)
    assert weights[rating_bins(labels)].mean().item() == pytest.approx(1)
    assert torch.equal(balancing_weights(labels.flip(0)), weights)


@pytest.mark.parametrize("name", BALANCED_LOSSES)
def test_weights_scale_each_pair_s_own_error_and_no_comparison(name):
    weights = torch.arange(1.0, 11.0)
    plain, weighted = get_loss(name), get_loss(name, bin_weights=weights)
    label = TARGETS[:1]
    weight = weights[rating_bins(label)].item()
    logits = label - 0.7  # alone in its list, a pair is compared with none
    torch.testing.assert_close(weighted(logits, label), weight * plain(logits, label))
    torch.testing.assert_close(
        get_loss(name, bin_weights=torch.ones(10))(PREDICTIONS, TARGETS), plain(PREDICTIONS, TARGETS)
    )
    own = sum(
        (weights[rating_bins(TARGETS[i : i + 1])] - 1) * plain(PREDICTIONS[i : i + 1], TARGETS[i : i + 1]) / 16
        for i in range(16)
    )
    torch.testing.assert_close(weighted(PREDICTIONS, TARGETS) - plain(PREDICTIONS, TARGETS), own.squeeze())


def test_get_loss_refuses():
    with pytest.raises(ValueError, match="'listnet' cannot be balanced: choose one of listnet_mse, mse, clipped"):
        get_loss("listnet", bin_weights=torch.ones(10))
    with pytest.raises(ValueError, match="no loss 'ranknet': choose one of listnet, listnet_mse, mse"):
        get_loss("ranknet")
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=r"temperature=.* must be positive"):
            get_loss("mse", temperature)


@pytest.mark.parametrize("name", LOSSES)
def test_one_process_has_the_list_to_itself(name):
    loss = get_loss(name)
    assert torch.equal(global_list_loss(loss, PREDICTIONS, TARGETS), loss(PREDICTIONS, TARGETS))


def example():
    """A small linear model, and a list of 16 inputs with labels."""
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(5, 1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return model, torch.randn(16, 5, generator=generator), TARGETS


CASES = [(name, balanced) for name in LOSSES for balanced in (False, True) if name in BALANCED_LOSSES or not balanced]


def value_and_gradients(name, balanced, model, inputs, labels):
    chosen = get_loss(name, temperature=0.5, bin_weights=balancing_weights(TARGETS) if balanced else None)
    loss = global_list_loss(chosen, model(inputs).squeeze(1), labels)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return loss.detach(), [gradient.clone() for gradient in gradients]


def train_part(rank, folder):
    """One process of a training: the loss, and the gradients averaged over processes, of its part of the list."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=NUM_PROCESSES,
        timeout=timedelta(seconds=60),
    )
    model, inputs, labels = example()
    part = slice(8 * rank, 8 * rank + 8)
    results = {}
    for case in CASES:
        value, gradients = value_and_gradients(*case, model, inputs[part], labels[part])
        for gradient in gradients:
            distributed.all_reduce(gradient)
            gradient /= NUM_PROCESSES
        results[case] = (value, gradients)
    torch.save(results, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What each of two real processes found, by the loss's name and whether it is balanced."""
    folder = tmp_path_factory.mktemp("gloo")
    run_processes(train_part, str(folder), count=NUM_PROCESSES)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(NUM_PROCESSES)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_take_the_step_of_one(case, two_processes):
    value, gradients = value_and_gradients(*case, *example())
    for results in two_processes:
        found, averaged = results[case]
        torch.testing.assert_close(found, value)
        torch.testing.assert_close(averaged, gradients)
    assert torch.equal(two_processes[0][case][0], two_processes[1][case][0])
