"""Ensembles of judges as one model: its configuration, its rule, and the folder it is loaded from."""

import os
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from ..pipeline_xacle import AudioTextAlignmentPipeline

ENSEMBLE = "xacle_ensemble"


class XacleEnsembleConfig(PreTrainedConfig):
    r"""
    Configuration of a [`XacleEnsemble`].

    Args:
        members (`list` of `dict`): Of each member its `name`; its `model`, a Hub id, the path of a folder, or where it
            lies in the ensemble's own folder; the `revision` of a Hub id; its `scale`; and its `fingerprint`
            (`member_fingerprint` in loading.py) when the ensemble was made.
        method (`str`): How the rule came about: `mean`, `zscore`, `nnls` or `gate`. Only `gate` is a rule of its own,
            the others are weighted sums.
        feature_size (`int`): Width of the audio features that a gate hears, of all distinct towers together.
        gate_size (`int`): Width of a gate's hidden layer.
    """

    model_type = ENSEMBLE

    members: list[dict[str, Any]] | None = None
    method: str = "mean"
    feature_size: int = 0
    gate_size: int = 64

    def __post_init__(self, **kwargs: Any):
        super().__post_init__(**kwargs)
        self.members = self.members or []


class WeightedSum(nn.Module):
    """A weighted sum of the members' scores, and an offset."""

    def __init__(self, config: XacleEnsembleConfig):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(len(config.members)))
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, scores: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Combines scores `(N, num_members)`; features `(N, feature_size)` do not count: `(N,)`."""
        return (scores * self.weights).sum(dim=-1) + self.offset


class Gate(nn.Module):
    """
    A mean of the members' scores, with weights that a small MLP gives each pair. Before, members are put on the
    listeners' scale, each by an affine map of its own.

    Its inputs are the frozen towers' audio features, one vector a clip, and what all members have, their scores,
    which stand for the caption.
    """

    def __init__(self, config: XacleEnsembleConfig):
        super().__init__()
        num_members = len(config.members)
        size = config.feature_size + num_members
        self.register_buffer("scales", torch.ones(num_members))
        self.register_buffer("offsets", torch.zeros(num_members))
        self.register_buffer("means", torch.zeros(size))
        self.register_buffer("deviations", torch.ones(size))
        self.layers = nn.Sequential(
            nn.Linear(size, config.gate_size), nn.ReLU(), nn.Linear(config.gate_size, num_members)
        )

    def shares(self, scores: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Returns the members' weights `(N, num_members)`, which add up to 1; arguments as for `forward`."""
        inputs = (torch.cat([features, scores], dim=-1) - self.means) / self.deviations
        return self.layers(inputs).softmax(dim=-1)

    def forward(self, scores: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Combines scores `(N, num_members)`, given audio features `(N, feature_size)`: `(N,)`."""
        return (self.shares(scores, features) * (scores * self.scales + self.offsets)).sum(dim=-1)


class XacleEnsemble(PreTrainedModel):
    """
    Several judges and the rule that combines their scores. Its folder holds the rule's weights; members are loaded from
    where the configuration says. They answer behind the pipeline ([`EnsemblePipeline`]), not in a `forward`: each takes
    inputs of its own.
    """

    config: XacleEnsembleConfig
    base_model_prefix = "ensemble"
    _keep_in_fp32_modules_strict = ["rule"]

    def __init__(self, config: XacleEnsembleConfig):
        super().__init__(config)
        self.rule = Gate(config) if config.method == "gate" else WeightedSum(config)
        self.scorers: list[AudioTextAlignmentPipeline] = []
        self.post_init()

    @property
    def pipeline_class(self) -> type[AudioTextAlignmentPipeline]:
        """The pipeline that runs the members."""
        from .ensemble_pipeline import EnsemblePipeline  # which imports this file

        return EnsemblePipeline

    def attach(self, scorers: list[AudioTextAlignmentPipeline]) -> None:
        """Take loaded members, which move to other devices with this model from now on."""
        self.scorers, self.members = scorers, nn.ModuleList(scorer.model for scorer in scorers)

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """
        Loads the rule from a folder or Hub id, and the members from where it says; arguments and result are those of
        the parent's method.

        Raises:
            ValueError: A member is missing, cannot be loaded, or has changed.
        """
        from .loading import load_members  # which takes long, and imports this file

        found = super().from_pretrained(name, *args, **kwargs)
        model = found[0] if isinstance(found, tuple) else found
        dtype = str(kwargs.get("dtype", "auto")).removeprefix("torch.")
        model.attach(load_members(name, model.config, "float32" if dtype in ("auto", "None") else dtype))
        return found

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save the configuration and the rule; members stay where they are."""
        rule = {f"rule.{name}": weight for name, weight in self.rule.state_dict().items()}
        super().save_pretrained(save_directory, **{**kwargs, "state_dict": rule})


class XacleEnsembleProcessor(ProcessorMixin):
    """Stands where Transformers asks for a model's processor: the members of an ensemble have their own."""

    def __init__(self, **kwargs: Any):
        super().__init__()

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs: Any) -> "XacleEnsembleProcessor":
        """Returns one; nothing is read from the folder."""
        return cls()
