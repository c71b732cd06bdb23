"""
Losses over lists of pairs: ListNet and its relatives, over the list of one process or of all processes.

All take `logits` and `labels` of shape `(list_size,)` in label units (-1 not at all, 1 exactly) and return a scalar.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import distributed
from torch.nn.functional import kl_div, mse_loss

# A loss of logits and labels, each of shape `(list_size,)`.
ListLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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


def list_net_mse_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float = 1.0,
    one_sided: bool = False,
    mse_weight: float = 1.0,
) -> torch.Tensor:
    """
    ListNet for the order, plus the mean squared error for the scale, on lists `(list_size,)`; arguments as in
    [`list_net_loss`].
    """
    return list_net_loss(logits, labels, temperature, one_sided) + mse_weight * mse_loss(logits, labels)


def clipped_mse_loss(logits: torch.Tensor, labels: torch.Tensor, tolerance: float = 0.25) -> torch.Tensor:
    """Mean squared error `(list_size,)` -> `()`, in which errors up to the tolerance do not count."""
    errors = (logits - labels).abs()
    return torch.where(errors > tolerance, errors.square(), 0).mean()


def difference_loss(logits: torch.Tensor, labels: torch.Tensor, margin: float = 0.1) -> torch.Tensor:
    """
    How far the difference of two predictions is from that of their labels, beyond the margin: half the mean over all
    ordered pairs of a list `(list_size,)`; the "contrastive" loss of UTMOS (arXiv 2204.02152, section 3.2).
    """
    predicted = logits[:, None] - logits  # (L,) -> (L, L)
    actual = labels[:, None] - labels
    return ((predicted - actual).abs() - margin).clamp(min=0).mean() / 2


def clipped_contrastive_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    [`clipped_mse_loss`] plus half of [`difference_loss`] on lists `(list_size,)`: the loss of the official baseline
    (XACLE-Challenge/the_first_XACLE_challenge_baseline_model, `config.json`), without its weights for rare classes.
    """
    return clipped_mse_loss(logits, labels) + 0.5 * difference_loss(logits, labels)


LOSSES = ("listnet", "listnet_mse", "mse", "clipped_contrastive")


def get_loss(name: str, temperature: float = 1.0, one_sided: bool = False) -> ListLoss:
    """
    Returns one of `LOSSES` as a function of logits and labels of shape `(list_size,)`.

    Args:
        name (`str`): Its name.
        temperature (`float`), one_sided (`bool`): Used by ListNet only.

    Raises:
        ValueError: The name is unknown, or the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive.")
    losses: dict[str, ListLoss] = {
        "listnet": partial(list_net_loss, temperature=temperature, one_sided=one_sided),
        "listnet_mse": partial(list_net_mse_loss, temperature=temperature, one_sided=one_sided),
        "mse": mse_loss,
        "clipped_contrastive": clipped_contrastive_loss,
    }
    if name not in losses:
        raise ValueError(f"There is no loss {name!r}: choose one of {', '.join(LOSSES)}.")
    return losses[name]


# Losses that compare the pairs of a list, at least in part: on one pair, that part is 0 and teaches nothing.
COMPARING_LOSSES = ("listnet", "listnet_mse", "clipped_contrastive")


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
