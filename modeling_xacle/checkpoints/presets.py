"""Judges with two towers that others have published: what they are made of, and how they are trained."""

from dataclasses import dataclass, field
from typing import Any

# Of both official baselines (XACLE-Challenge on GitHub): no warm-up, no clipping, best checkpoint by validation SRCC.
# They use Adam; ours is AdamW, whose decoupled decay of 1e-5 times the rate is practically none. The plateau is that of
# SRCC here, of the validation loss there.
BASELINE = {
    "loss": "clipped_contrastive",
    "learning_rate": 2e-5,
    "per_device_train_batch_size": 12,
    "num_train_epochs": 20,
    "patience": 10,
    "max_grad_norm": 0.0,
    "weight_decay": 1e-5,
    "mask_mel_bins": 0,
    "mask_frames": 0,
    "calibrate": False,
}
PLATEAU = {
    "lr_scheduler_type": "reduce_lr_on_plateau",
    "lr_scheduler_kwargs": {"mode": "max", "factor": 0.5, "patience": 5},
}
CONSTANT = {"lr_scheduler_type": "constant"}
ALL = ["audio_tower", "language_model", "projector", "score_head"]
UNMASKED = {"mask_mel_bins": 0, "mask_frames": 0}


@dataclass(frozen=True)
class Preset:
    """
    A judge with two towers.

    Args:
        about (`str`): What it is.
        fields (`dict`): Fields of [`XacleDualEncoderConfig`].
        settings (`dict`): How stages 2 and 3 train it, by the names of `run_stage.py`'s options.
        tower (`str`, *optional*): Type of its audio tower; any, if it is not given.
        text (`str`, *optional*): Type of its text tower.
    """

    about: str
    fields: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    tower: str | None = None
    text: str | None = None


PRESETS = {
    "baseline-2026": Preset(
        "the official baseline of 2026: BYOL-A v2 and RoBERTa-large, joined by a BiLSTM",
        {"join": "bilstm", "num_audio_tokens": 250, "lstm_size": 512, "join_sizes": [2048]},
        {**BASELINE, **PLATEAU, "train": ALL},
        tower="xacle_byola",
        text="roberta",
    ),
    "baseline-2027": Preset(
        "the official baseline of 2027: frozen M2D-CLAP and BERT, joined by an MLP",
        {"join": "mlp", "join_sizes": [1024, 256]},
        {**BASELINE, **CONSTANT, "train": ["score_head"]},
        tower="xacle_m2d",
        text="bert",
    ),
    "clap": Preset(
        "a contrastive model as it is (CLAP, PE-AV), to be fine-tuned on ratings; its score is the cosine",
        {"join": "cosine"},
        {"train": ["audio_tower", "language_model", "projector"], "learning_rate": 1e-5, **UNMASKED},
    ),
    "beats-cross-attention": Preset(
        "BEATs and a text encoder that attend to each other, the kind of expert that the winners of 2026 added",
        {"join": "cross_attention", "projection": "linear", "projection_size": 512, "join_sizes": [512]},
        {"train": ["language_model", "projector", "score_head"], "learning_rate": 2e-5, "loss": "clipped_contrastive"},
        tower="xacle_beats",
    ),
}
