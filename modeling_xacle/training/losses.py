"""
Losses over lists of pairs: ListNet and its relatives, over the list of one process or of all processes.

All take `logits` and `labels` of shape `(list_size,)` in label units (-1 not at all, 1 exactly) and return a scalar.
Those with a part for each pair's own error take `bin_weights` for it, as [`balancing_weights`] makes them.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import distributed
from torch.nn.functional import binary_cross_entropy_with_logits, kl_div, mse_loss

# A loss of logits and labels, each of shape `(list_size,)`.
ListLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

NUM_BINS = 10
NUM_LEVELS = 41  # means of four whole ratings from 0 to 10
# In label units: how far means of four listeners scatter, by the within-pair variance of the RELATE ratings, 6.2.
LISTENER_SPREAD = 0.25


def rating_bins(labels: torch.Tensor) -> torch.Tensor:
    """
    Returns the bin, 0 to 9, of each label `(num_pairs,)` in [-1, 1]: ratings up to 1 point, above 1 and up to 2, ...,
    above 9, which are the classes of the official baseline. Labels outside the range are in the first or last bin.
    """
    points = (labels + 1) * (NUM_BINS / 2)  # whole where the rating is, in spite of float32
    return points.ceil().long().sub(1).clamp(0, NUM_BINS - 1)


def balancing_weights(labels: torch.Tensor) -> torch.Tensor:
    """
    Computes weights by which each rating bin counts alike: the inverse of its number of pairs.

    The official baseline (XACLE-Challenge/the_first_XACLE_challenge_baseline_model) means to weight rare classes by
    their effective number (Cui et al. 2019, beta .99), but its weights do nothing: in `losses/loss_function.py` they
    spread over all pairs of a batch alike, and at that beta all classes of a few hundred pairs weigh the same anyhow.
    What it would have gained is not known; this is the usual form, not its own.

    Args:
        labels (`torch.Tensor` of shape `(num_pairs,)`): Those of the whole training split, in label units.

    Returns:
        `torch.Tensor` of shape `(10,)`: The weight of a pair in each of [`rating_bins`], 0 in empty bins; its mean over
        the split is 1.
    """
    counts = rating_bins(labels).bincount(minlength=NUM_BINS)
    balanced = len(labels) / ((counts > 0).sum() * counts.clamp(min=1))
    return torch.where(counts > 0, balanced, 0.0)


def weighted_mean(losses: torch.Tensor, labels: torch.Tensor, bin_weights: torch.Tensor | None) -> torch.Tensor:
    """
    Averages pairs' losses `(list_size,)` -> `()`, each times the weight of its label's bin, if there are weights. It
    divides by the number of pairs, so that lists of one size count alike and a split's mean is that of its lists.
    """
    if bin_weights is not None:
        losses = losses * bin_weights.to(losses)[rating_bins(labels)]
    return losses.mean()


def list_net_loss(
    logits: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0, one_sided: bool = False
) -> torch.Tensor:
    """
    ListNet in its top-one form (Cao et al. 2007, section 4): the KL divergence of the softmax over the logits from the
    softmax over the labels, so that 0 is perfect. The cross entropy of the paper and the published code is this plus
    the entropy of the labels' softmax, which has no gradient. Adding a constant to all logits changes nothing: the loss
    teaches the order and the distances, not the scale.

    Args:
        logits (`torch.Tensor` of shape `(list_size,)`): Predictions.
        labels (`torch.Tensor` of shape `(list_size,)`): Targets.
        temperature (`float`): Divides both sides, so that a perfect prediction is the minimum at any temperature. Below
            1, the best pairs of a list count more.
        one_sided (`bool`): Divide the labels only, as the published code does: then the minimum is at
            `labels / temperature`. At a temperature of 1 the two forms are the same.

    ```python
    >>> labels = torch.tensor([0.8, -0.2, -0.6])
    >>> list_net_loss(labels + 5, labels)
    tensor(0.)
    ```
    """
    targets = (labels / temperature).log_softmax(dim=0)
    predictions = logits if one_sided else logits / temperature
    return kl_div(predictions.log_softmax(dim=0), targets, reduction="sum", log_target=True)


def squared_error_loss(
    logits: torch.Tensor, labels: torch.Tensor, bin_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error `(list_size,)` -> `()`, with weights `(10,)` of rating bins, if any."""
    return weighted_mean(mse_loss(logits, labels, reduction="none"), labels, bin_weights)


def list_net_mse_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 1.0,
    one_sided: bool = False,
    mse_weight: float = 1.0,
    bin_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    ListNet for the order, plus the mean squared error for the scale, on lists `(list_size,)`; arguments as in
    [`list_net_loss`] and [`squared_error_loss`].
    """
    squared_error = squared_error_loss(logits, labels, bin_weights)
    return list_net_loss(logits, labels, temperature, one_sided) + mse_weight * squared_error


def clipped_mse_loss(
    logits: torch.Tensor, labels: torch.Tensor, tolerance: float = 0.25, bin_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Mean squared error `(list_size,)` -> `()`, in which errors up to the tolerance do not count, with weights `(10,)`
    of rating bins, if any.
    """
    errors = (logits - labels).abs()
    return weighted_mean(torch.where(errors > tolerance, errors.square(), 0), labels, bin_weights)


def difference_loss(logits: torch.Tensor, labels: torch.Tensor, margin: float = 0.1) -> torch.Tensor:
    """
    How far the difference of two predictions is from that of their labels, beyond the margin: half the mean over all
    ordered pairs of a list `(list_size,)`; the "contrastive" loss of UTMOS (arXiv 2204.02152, section 3.2).
    """
    predicted = logits[:, None] - logits  # (L,) -> (L, L)
    actual = labels[:, None] - labels
    return ((predicted - actual).abs() - margin).clamp(min=0).mean() / 2


def clipped_contrastive_loss(
    logits: torch.Tensor, labels: torch.Tensor, bin_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """
    [`clipped_mse_loss`] plus half of [`difference_loss`] on lists `(list_size,)`: the loss of the official baselines
    (XACLE-Challenge/the_first_XACLE_challenge_baseline_model, `config.json`). Weights `(10,)` of rating bins are for
    the first part only.
    """
    return clipped_mse_loss(logits, labels, bin_weights=bin_weights) + 0.5 * difference_loss(logits, labels)


def ordinal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    bin_weights: torch.Tensor | None = None,
    scale: float = LISTENER_SPREAD * math.sqrt(3) / math.pi,
) -> torch.Tensor:
    """
    Cumulative logits of ordered levels (Cheng, Wang and Pollastri 2008; with one slope for all thresholds, so that the
    probabilities never cross, as in CORAL, arXiv 1901.07884): the mean cross entropy, over thresholds and a list
    `(list_size,)`, of whether a rating exceeds each threshold, P(rating > threshold) = sigmoid((logit - threshold) /
    scale).

    Both papers learn the thresholds. Here they are fixed halfway between the levels, in label units, so that the logit
    stays one, too, and nothing is added to the model. The levels are the 41 quarter points that means of four ratings
    take: with whole points, 6.5 would fall on a threshold, and 6.75 and 7.25 would be the same. Other means count as
    the level next to them.

    Relation to its siblings: in the middle of the scale it acts as 1.8 times a squared error, to which evenly spaced
    thresholds add up. Towards the ends it gives way outwards, as a rating of 10 says only that the pair deserves 9.875
    or more: its minimum is beyond the label, by .2 of a point at 9, .5 at 9.5, and without limit at 10.

    ```python
    >>> ordinal_loss(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]))
    tensor(0.9634)
    ```

    Args:
        logits (`torch.Tensor` of shape `(list_size,)`): Predictions, in label units.
        labels (`torch.Tensor` of shape `(list_size,)`): Targets; those outside [-1, 1] count as its ends.
        bin_weights (`torch.Tensor` of shape `(10,)`, *optional*): Weights of rating bins.
        scale (`float`): Width of the steps in label units. By default that of a logistic distribution which spreads as
            far as means of four listeners do.
    """
    gap = 2 / (NUM_LEVELS - 1)
    thresholds = torch.linspace(-1 + gap / 2, 1 - gap / 2, NUM_LEVELS - 1).to(logits)  # (K,)
    exceeds = (labels[:, None] > thresholds).to(logits)  # (L,) -> (L, K)
    margins = (logits[:, None] - thresholds) / scale
    losses = binary_cross_entropy_with_logits(margins, exceeds, reduction="none").mean(dim=1)  # (L, K) -> (L,)
    return weighted_mean(losses, labels, bin_weights)


class Loss(NamedTuple):
    """
    A member of `LOSSES`.

    Fields:
        function (`Callable`): Takes logits and labels `(list_size,)` and the options.
        compares (`bool`): It compares the pairs of a list, at least in part: on one pair, that part teaches nothing.
        options (`tuple` of `str`): Arguments of [`get_loss`] that it takes.
    """

    function: Callable[..., torch.Tensor]
    compares: bool
    options: tuple[str, ...]


LOSSES = {
    "listnet": Loss(list_net_loss, True, ("temperature", "one_sided")),
    "listnet_mse": Loss(list_net_mse_loss, True, ("temperature", "one_sided", "bin_weights")),
    "mse": Loss(squared_error_loss, False, ("bin_weights",)),
    "clipped_contrastive": Loss(clipped_contrastive_loss, True, ("bin_weights",)),
    "ordinal": Loss(ordinal_loss, False, ("bin_weights",)),
}
COMPARING_LOSSES = tuple(name for name, loss in LOSSES.items() if loss.compares)
BALANCED_LOSSES = tuple(name for name, loss in LOSSES.items() if "bin_weights" in loss.options)


def get_loss(
    name: str, temperature: float = 1.0, one_sided: bool = False, bin_weights: torch.Tensor | None = None
) -> ListLoss:
    """
    Returns one of `LOSSES` as a function of logits and labels of shape `(list_size,)`.

    Args:
        name (`str`): Its name.
        temperature (`float`), one_sided (`bool`): Used by ListNet only.
        bin_weights (`torch.Tensor` of shape `(10,)`, *optional*): As [`balancing_weights`] makes them, for the part of
            the loss that is about each pair's own error.

    Raises:
        ValueError: The name is unknown, the temperature is not positive, or there are weights and the loss only
            compares pairs.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive.")
    if name not in LOSSES:
        raise ValueError(f"There is no loss {name!r}: choose one of {', '.join(LOSSES)}.")
    if bin_weights is not None and name not in BALANCED_LOSSES:
        raise ValueError(f"The loss {name!r} cannot be balanced: choose one of {', '.join(BALANCED_LOSSES)}.")
    given = {"temperature": temperature, "one_sided": one_sided, "bin_weights": bin_weights}
    loss = LOSSES[name]
    return partial(loss.function, **{option: given[option] for option in loss.options})


def scale_gradient(value: torch.Tensor, factor: float) -> torch.Tensor:
    """Returns the value `()` unchanged, with its gradient multiplied by a factor."""
    return value + (factor - 1) * (value - value.detach())


def gather_list(values: torch.Tensor) -> torch.Tensor:
    """
    Gathers the values of all processes in the order of their ranks: `(list_size,)` -> `(num_processes * list_size,)`.
    Gradients flow to this process's part only. Each process must have the same number of values.
    """
    parts = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, values.detach().contiguous())
    parts[distributed.get_rank()] = values
    return torch.cat(parts)


def global_list_loss(loss: ListLoss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Returns the loss over the list of all processes, for training that averages gradients over processes.

    The value is that of the whole list. The gradient reaches this process's part only, and is multiplied by the number
    of processes, as averaging divides it by that number: N processes with lists of B / N take the step of one with B.

    Args:
        loss (`Callable`): A loss of this module.
        logits (`torch.Tensor` of shape `(list_size,)`), labels (`torch.Tensor` of shape `(list_size,)`): This process's
            part of the list.
    """
    if not (distributed.is_initialized() and distributed.get_world_size() > 1):
        return loss(logits, labels)
    return scale_gradient(loss(gather_list(logits), gather_list(labels)), distributed.get_world_size())
