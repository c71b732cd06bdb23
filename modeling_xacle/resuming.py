"""An interrupted run, started again with the same command: whether it is the same run, and where it goes on."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from .data import write_json
from .recipes import StageArguments
from .trainers import StageTrainer

logger = logging.get_logger(__name__)

SETTINGS_FILE = "run_settings.json"
# What a run's weights depend on besides the stage's own settings; another value is another run.
TRAINING_FIELDS = (
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "num_train_epochs",
    "max_steps",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "optim",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "seed",
    "data_seed",
    "bf16",
    "fp16",
)
# Settings of a stage that change its weights by no more than rounding.
FREE_FIELDS = {"cache_audio_features", "cache_dir", "cache_dtype", "num_sample_captions", "num_processes", "restart"}


def run_settings(stage: StageArguments, args: TrainingArguments) -> dict[str, Any]:
    """All settings that a run's weights depend on, as JSON has them."""
    settings = {name: value for name, value in vars(stage).items() if name not in FREE_FIELDS}
    training = args.to_dict()
    settings |= {name: training[name] for name in TRAINING_FIELDS}
    settings["batch_size"] = total_batch_size(args)
    return json.loads(json.dumps(settings, default=str))


def total_batch_size(args: TrainingArguments) -> int:
    """Pairs of an optimiser step."""
    return args.train_batch_size * args.world_size * args.gradient_accumulation_steps


def find_checkpoint(stage: StageArguments, args: TrainingArguments) -> Path | None:
    """
    The checkpoint from which an interrupted run goes on, if there is one; a checkpoint that was being written when the
    run was killed is deleted.

    Raises:
        ValueError: The output folder holds a run with other settings; they are listed.
    """
    output = Path(args.output_dir)
    checkpoints = [path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    checkpoints.sort(key=lambda path: int(path.name.removeprefix("checkpoint-")))
    with args.main_process_first(desc="checkpoints"):
        if stage.restart:
            for checkpoint in checkpoints:
                shutil.rmtree(checkpoint, ignore_errors=True)
        for checkpoint in checkpoints:
            if checkpoint.exists() and not is_complete(checkpoint):
                logger.warning(f"{checkpoint} is incomplete; it is deleted.")
                shutil.rmtree(checkpoint, ignore_errors=True)
    checkpoints = [checkpoint for checkpoint in checkpoints if checkpoint.exists()]
    settings, file = run_settings(stage, args), output / SETTINGS_FILE
    if checkpoints and file.exists():
        _check_same_run(settings, json.loads(file.read_text()), output)
    if args.process_index == 0:
        output.mkdir(parents=True, exist_ok=True)
        write_json(file, settings)
    return checkpoints[-1] if checkpoints else None


def _check_same_run(settings: Mapping[str, Any], earlier: Mapping[str, Any], output: Path) -> None:
    differing = [name for name in settings if settings[name] != earlier.get(name)]
    if differing:
        listed = ", ".join(f"{name} {earlier.get(name)} then, {settings[name]} now" for name in differing)
        raise ValueError(
            f"{output} holds checkpoints of a run with other settings ({listed}): choose another --output_dir, or "
            "--restart true to delete them."
        )


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end; its state is written last."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return True


def had_stopped(checkpoint: Path) -> bool:
    """Whether early stopping had ended the run with this checkpoint."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    stopping = state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
    if not stopping:
        return False
    return stopping["attributes"]["early_stopping_patience_counter"] >= stopping["args"]["early_stopping_patience"]


def train(trainer: StageTrainer, checkpoint: Path | None) -> None:
    """Train from the start or from a checkpoint; a run that early stopping had ended takes up its best weights."""
    if checkpoint is None or not had_stopped(checkpoint):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return
    trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    best = checkpoint.with_name(f"checkpoint-{trainer.state.best_global_step}")
    trainer._load_from_checkpoint(str(best))
    trainer._move_model_to_device(trainer.model, trainer.args.device)
