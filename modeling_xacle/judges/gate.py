"""Fits the gate of an ensemble: a small MLP that weighs the members for each pair."""

import math
from collections.abc import Callable

import numpy as np
import torch

from .ensemble import Gate, XacleEnsembleConfig

# A loss of predictions and targets, each of shape `(list_size,)`, in label units.
ListLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Of the winners of 2026, who trained their gate alone, after the members. It weighs how far the shares' entropy is from
# that of equal shares. With the other sign, which rewards a gate that decides, the gate learns its clips by heart.
ENTROPY_WEIGHT = 0.2
EPOCHS, LIST_SIZE = 30, 128
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-2
SMALLEST_DEVIATION = 1e-6


def fit_gate(
    scores: np.ndarray, features: np.ndarray, targets: np.ndarray, loss: ListLoss, gate_size: int = 64, seed: int = 0
) -> Gate:
    """
    Fits a gate on frozen members: Adam, on lists in a seeded order, from equal weights for all members. On a CPU, the
    same seed gives the same gate.

    Args:
        scores (`np.ndarray` of shape `(num_members, N)`): The members' scores, on any scale.
        features (`np.ndarray` of shape `(N, feature_size)`): The clips' audio features.
        targets (`np.ndarray` of shape `(N,)`): Mean ratings, 0-10.
        loss (callable): The winners' is half of `difference_loss` added to `clipped_mse_loss` (`training.losses`).
        gate_size (`int`): Width of the hidden layer.
        seed (`int`): Seed of the weights and of the order.
    """
    inputs = [torch.as_tensor(values, dtype=torch.float32) for values in (scores.T, features, targets)]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        gate = start_gate(*inputs, gate_size)
        optimizer = torch.optim.Adam(gate.layers.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(targets)).split(LIST_SIZE):
                optimizer.zero_grad()
                gate_loss(gate, *(values[rows] for values in inputs), loss).backward()
                optimizer.step()
    return gate.requires_grad_(False).eval()


def start_gate(scores: torch.Tensor, features: torch.Tensor, targets: torch.Tensor, gate_size: int) -> Gate:
    """
    Returns a gate that gives all members the same weight. Each is mapped to the listeners' scale by least squares, and
    all are then stretched alike, so that their mean is on that scale too.

    Args:
        scores (`torch.Tensor` of shape `(N, num_members)`), features (`torch.Tensor` of shape `(N, feature_size)`),
            targets (`torch.Tensor` of shape `(N,)`): What it will be fitted on.
        gate_size (`int`): Width of the hidden layer.
    """
    members = [{} for _ in range(scores.shape[1])]
    config = XacleEnsembleConfig(members=members, method="gate", feature_size=features.shape[1], gate_size=gate_size)
    gate = Gate(config)
    inputs = torch.cat([features, scores], dim=1)
    gate.means.copy_(inputs.mean(dim=0))
    gate.deviations.copy_(inputs.std(dim=0, correction=0).clamp(min=SMALLEST_DEVIATION))
    centred = scores - scores.mean(dim=0)
    variances = centred.square().mean(dim=0).clamp(min=SMALLEST_DEVIATION**2)
    slopes = (centred * (targets - targets.mean())[:, None]).mean(dim=0) / variances
    slopes = slopes.clamp(min=0)  # no member counts against the score
    mean = (slopes * centred).mean(dim=1)
    stretch = (mean * (targets - targets.mean())).mean() / mean.square().mean().clamp(min=SMALLEST_DEVIATION**2)
    gate.scales.copy_(stretch * slopes)
    gate.offsets.copy_(targets.mean() - gate.scales * scores.mean(dim=0))
    torch.nn.init.zeros_(gate.layers[-1].weight)
    torch.nn.init.zeros_(gate.layers[-1].bias)
    return gate


def gate_loss(
    gate: Gate, scores: torch.Tensor, features: torch.Tensor, targets: torch.Tensor, loss: ListLoss
) -> torch.Tensor:
    """Returns a list's loss `()`, in label units, plus the weighted mean lack of entropy of the shares, in nats."""
    shares = gate.shares(scores, features)
    lack = math.log(shares.shape[1]) - torch.special.entr(shares).sum(dim=1).mean()
    return loss(gate(scores, features) / 5 - 1, targets / 5 - 1) + ENTROPY_WEIGHT * lack


@torch.inference_mode()
def apply_gate(gate: Gate, scores: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Combines scores `(num_members, N)`, given audio features `(N, feature_size)`: `(N,)`."""
    combined = gate(*(torch.as_tensor(values, dtype=torch.float32) for values in (scores.T, features)))
    return combined.double().numpy()
