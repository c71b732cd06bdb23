"""Finds out, when a command is given again, whether it is the same run, where it goes on, or that it is finished."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, ProcessorMixin, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..checkpoints.fingerprints import model_fingerprint, split_fingerprint
from ..data.files import read_json, write_json
from .recipes import StageArguments, list_size
from .trainers import StageTrainer

logger = logging.get_logger(__name__)

SETTINGS_FILE = "run_settings.json"
# That file's keys besides the settings: digests of what the run starts from, and, when finished, its result's files.
CONTENTS, RESULT = "contents", "result"
RESULT_FILES = ("*.safetensors", "*.json", "README.md")  # a complete result has all of them
# Values of --resume_from_checkpoint that mean the last one, which is also the default.
LAST = ("true", "last")
# Fields of `TrainingArguments` on machine, logs and uploads; all others are compared, also those of later versions.
MACHINE = """
    accelerator_config activation_checkpointing activation_checkpointing_kwargs auto_find_batch_size bf16_full_eval
    dataloader_multiprocessing_context dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory
    dataloader_prefetch_factor ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_find_unused_parameters
    ddp_static_graph ddp_timeout deepspeed eval_accumulation_steps fp16_full_eval fsdp fsdp_config
    gradient_accumulation_steps gradient_checkpointing gradient_checkpointing_kwargs local_rank parallelism_config
    per_device_eval_batch_size per_device_train_batch_size skip_memory_metrics tf32 torch_compile torch_compile_backend
    torch_compile_mode torch_empty_cache_steps use_cpu
"""
LOGS = """
    debug disable_tqdm do_eval do_predict do_train include_for_metrics include_num_input_tokens_seen log_level
    log_level_replica log_on_each_node logging_first_step logging_nan_inf_filter logging_steps logging_strategy project
    report_to run_name trackio_bucket_id trackio_space_id trackio_static_space_id
"""
UPLOADS = """
    enable_jit_checkpoint hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token output_dir
    push_to_hub resume_from_checkpoint save_on_each_node save_total_limit
"""
FREE_TRAINING_FIELDS = {*MACHINE.split(), *LOGS.split(), *UPLOADS.split()}
# Settings of a stage that change its weights by no more than rounding.
FREE_FIELDS = {"cache_audio_features", "cache_dir", "cache_dtype", "num_sample_captions", "num_processes", "restart"}


def run_settings(stage: StageArguments, args: TrainingArguments) -> dict[str, Any]:
    """Returns all settings that a run's weights depend on, as JSON has them."""
    settings = {name: value for name, value in vars(stage).items() if name not in FREE_FIELDS}
    settings |= {name: value for name, value in args.to_dict().items() if name not in FREE_TRAINING_FIELDS}
    settings |= {"batch_size": total_batch_size(args), "list_size": list_size(stage, args)}
    return json.loads(json.dumps(settings, default=str))


def total_batch_size(args: TrainingArguments) -> int:
    """Returns the number of pairs in an optimiser step."""
    return args.train_batch_size * args.world_size * args.gradient_accumulation_steps


@dataclass(frozen=True)
class EarlierRun:
    """
    What an earlier run of the same command has left in the output folder.

    Fields:
        checkpoint (`Path`, *optional*): Where training goes on; without one it starts from the beginning.
        is_finished (`bool`): Whether the result is there, and nothing is left to do.
    """

    checkpoint: Path | None = None
    is_finished: bool = False


def find_run(
    stage: StageArguments,
    args: TrainingArguments,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    splits: Sequence[Dataset],
) -> EarlierRun:
    """
    Look in the output folder for a run to resume, and record there what this one starts from. A checkpoint that was
    only half written is deleted. The first process looks on behalf of all.

    Args:
        stage (`StageArguments`), args (`TrainingArguments`): The run's options.
        model (`PreTrainedModel`), processor (`ProcessorMixin`): Where it starts.
        splits (two `Dataset`): The data it trains on, and the data it validates on.

    Raises:
        ValueError: The output folder holds a run with other settings, on other data or from another start (all
            differences are listed), or `--resume_from_checkpoint` names none of its checkpoints.
    """

    def find() -> EarlierRun:
        contents = run_contents(model, processor, splits)
        return _find_run(stage, args, {**run_settings(stage, args), CONTENTS: contents})

    return on_first_process(find)


def on_first_process(function: Callable[[], Any]) -> Any:
    """Calls the function on the first process only; all processes return its result, or raise its error."""
    found: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            found[0] = function()
        except Exception as error:  # else the others would wait for ever
            found[1] = error
    broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def run_contents(model: PreTrainedModel, processor: ProcessorMixin, splits: Sequence[Dataset]) -> dict[str, str]:
    """Returns digests of what a run starts from: the model, the rows and the sounds."""
    contents = {"starting model": model_fingerprint(model, processor)}
    for name, rows in zip(("training", "validation"), splits, strict=True):
        contents |= {f"{name} {part}": digest for part, digest in split_fingerprint(rows).items()}
    return contents


def _find_run(stage: StageArguments, args: TrainingArguments, settings: dict[str, Any]) -> EarlierRun:
    output = Path(args.output_dir)
    file, checkpoints, wanted = output / SETTINGS_FILE, list_checkpoints(output), args.resume_from_checkpoint
    if stage.restart:
        if wanted:
            raise ValueError("--restart deletes the checkpoints, --resume_from_checkpoint needs one: leave one out.")
        _clear(output)
        checkpoints = []
    earlier = read_settings_of(output)
    complete = [checkpoint for checkpoint in checkpoints if is_complete(checkpoint)]
    finished = bool(earlier.get(RESULT)) and all((output / name).is_file() for name in earlier[RESULT])
    of_unknown_origin = CONTENTS not in earlier and not stage.restart and any(output.glob("*.safetensors"))
    if complete or finished or of_unknown_origin:
        _check_same_run(settings, earlier, output)
    if finished:
        logger.warning(f"This run is finished, and its result is in {output}: nothing is trained or written.")
        return EarlierRun(is_finished=True)
    checkpoint = _choose_checkpoint(wanted, complete, output)
    for incomplete in set(checkpoints) - set(complete):
        logger.warning(f"{incomplete} is incomplete; it is deleted.")
        shutil.rmtree(incomplete)
    write_json(file, settings)
    if checkpoint:
        logger.warning(describe_resumption(checkpoint))
    return EarlierRun(checkpoint)


def read_settings_of(output: Path) -> dict[str, Any]:
    """
    Returns the record of an output folder's run; an empty one if there is none.

    Raises:
        ValueError: The record is broken.
    """
    file = output / SETTINGS_FILE
    if not file.is_file():
        return {}
    try:
        settings = read_json(file)
    except ValueError as error:
        raise ValueError(f"{file}: is broken ({error}); choose another --output_dir, or --restart true.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: is no record of a run; choose another --output_dir, or --restart true.")
    return settings


def _clear(output: Path) -> None:
    """Delete an earlier run: its result, which would be taken for this run's, its checkpoints and its record."""
    try:
        result = read_settings_of(output).get(RESULT, [])
    except ValueError:
        result = []
    for name in result:
        (output / name).unlink(missing_ok=True)
    for checkpoint in list_checkpoints(output):
        shutil.rmtree(checkpoint)
    (output / SETTINGS_FILE).unlink(missing_ok=True)


def list_checkpoints(output: Path) -> list[Path]:
    """Lists the checkpoints of an output folder, complete or not, in the order of their steps."""
    checkpoints = [path for path in output.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(checkpoints, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _check_same_run(settings: Mapping[str, Any], earlier: Mapping[str, Any], output: Path) -> None:
    remedy = "choose another --output_dir, or --restart true to begin anew there, without its checkpoints."
    if CONTENTS not in earlier:
        raise ValueError(
            f"{output} holds checkpoints or a model, but no record of the data and the start they were made from "
            f"(earlier versions kept none), so that this may be another run: {remedy}"
        )
    changed = [name for name, digest in settings[CONTENTS].items() if earlier[CONTENTS].get(name) != digest]
    # The same content may have another name; where the content differs, the name says where to look.
    compared = [name for name in settings if name != CONTENTS and (changed or name not in ("data", "model"))]
    listed = [f"other {name}" for name in changed]
    listed += [
        f"{name} {earlier.get(name)} then, {settings[name]} now"
        for name in compared
        if settings[name] != earlier.get(name)
    ]
    if listed:
        raise ValueError(f"{output} holds a run with other settings ({', '.join(listed)}): {remedy}")


def _choose_checkpoint(wanted: str | bool | None, complete: Sequence[Path], output: Path) -> Path | None:
    """Returns the checkpoint that `--resume_from_checkpoint` names; the last, or None, by `true`, `last` or default."""
    if not wanted or str(wanted).lower() in LAST:
        return complete[-1] if complete else None
    for checkpoint in complete:
        if checkpoint.resolve() == Path(str(wanted)).resolve():
            return checkpoint
    there = f"there are {', '.join(path.name for path in complete)}" if complete else "it has none"
    raise ValueError(
        f"--resume_from_checkpoint {wanted}: is no complete checkpoint of {output} ({there}). Leave it out: the same "
        "command goes on from the last checkpoint by itself."
    )


def describe_resumption(checkpoint: Path) -> str:
    """Says in a sentence from which step and epoch, of how many, a run goes on."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    place = (
        f"step {state.global_step} of {state.max_steps} (epoch {state.epoch or 0:.4g} of {state.num_train_epochs}), "
        f"{checkpoint}"
    )
    if state.global_step >= state.max_steps or had_stopped(checkpoint):
        return f"Training had ended at {place}; what comes after it is done again."
    return f"Resuming from {place}."


def mark_finished(args: TrainingArguments) -> None:
    """Record that the result is complete, and which files in the output folder belong to it."""
    if args.process_index:
        return
    file = Path(args.output_dir, SETTINGS_FILE)
    names = {path.name for pattern in RESULT_FILES for path in file.parent.glob(pattern)} - {SETTINGS_FILE}
    write_json(file, {**read_json(file), RESULT: sorted(names)})


def is_complete(checkpoint: Path) -> bool:
    """Returns True if the checkpoint is complete (its trainer state, written last, exists)."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, json.JSONDecodeError):
        return False
    return True


def had_stopped(checkpoint: Path) -> bool:
    """Returns True if early stopping ended the run at this checkpoint."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    stopping = state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
    if not stopping:
        return False
    return stopping["attributes"]["early_stopping_patience_counter"] >= stopping["args"]["early_stopping_patience"]


def train(trainer: StageTrainer, checkpoint: Path | None) -> None:
    """Train from the start or from a checkpoint; a run that early stopping had ended only loads its best weights."""
    if checkpoint is None or not had_stopped(checkpoint):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return
    trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    best = checkpoint.with_name(f"checkpoint-{trainer.state.best_global_step}")
    trainer._load_from_checkpoint(str(best))
    trainer._move_model_to_device(trainer.model, trainer.args.device)
