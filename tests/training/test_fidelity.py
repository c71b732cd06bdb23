"""Where the published code can be followed at no cost, it is: how new parts start, and what weight decay reaches."""

import math

import pytest
import torch
from torch import nn

from modeling_xacle import XacleModel
from modeling_xacle.training.freezing import choose_trained
from modeling_xacle.training.recipes import parse_arguments
from modeling_xacle.training.trainers import PairTrainer


@pytest.fixture
def start(model):
    """An untrained model of the parity checkpoint's sizes."""
    torch.manual_seed(0)
    return XacleModel(model.config)


def test_the_score_head_starts_from_xavier_weights_without_biases(start):
    linear = [layer for layer in start.score_head.layers if isinstance(layer, nn.Linear)]
    for layer in linear:
        bound = math.sqrt(6 / (layer.in_features + layer.out_features))
        assert 0.8 * bound < layer.weight.abs().max() <= bound
        assert not layer.bias.any()
    assert len(linear) == 4


def test_the_projector_starts_as_linear_layers_of_pytorch_do(start):
    for layer in (start.projector.up_proj, start.projector.residual_gate):
        torch.manual_seed(0)
        plain = nn.Linear(layer.in_features, layer.out_features)
        for found, expected in ((layer.weight, plain.weight), (layer.bias, plain.bias)):
            assert found.abs().max().item() == pytest.approx(expected.abs().max().item(), rel=0.1)
            assert found.std().item() == pytest.approx(expected.std().item(), rel=0.2)


@pytest.mark.parametrize(
    ("more", "spared"),
    [
        ([], set()),
        (["--train", "projector", "language_model"], set()),
        (["--train", "score_head", "special_tokens"], {"language_model.embed_tokens.weight"}),
    ],
)
def test_weight_decay_reaches_all_that_is_trained_but_rows_of_an_embedding(more, spared, model, tmp_path):
    stage, args = parse_arguments(["--stage", "3", "--output_dir", str(tmp_path), "--use_cpu", "true", *more])
    trainer = PairTrainer(stage, model=choose_trained(model, stage), args=args, eval_dataset=[])
    trainer.create_optimizer()
    names = {weight: name for name, weight in model.named_parameters()}
    groups = {
        group["weight_decay"]: {names[weight] for weight in group["params"]} for group in trainer.optimizer.param_groups
    }
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert groups == {0.01: trained - spared, 0.0: spared}
    assert any(name.endswith("bias") for name in groups[0.01])
