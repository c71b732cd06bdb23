"""A run started again with the same command: whether it is the same run, where it goes on, or that it is finished."""

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
from ..data.files import write_json
from .recipes import StageArguments, list_size
from .trainers import StageTrainer

logger = logging.get_logger(__name__)

SETTINGS_FILE = "run_settings.json"
# Keys of that file besides the settings: digests of what the run is made from; at its end, the files of its result.
CONTENTS, RESULT = "contents", "result"
RESULT_FILES = ("*.safetensors", "*.json", "README.md")  # without which a result is not complete
# Values of --resume_from_checkpoint for the last one, which is also taken without it.
LAST = ("true", "last")
# What `TrainingArguments` say of the machine, logs and uploads; all else is compared, also what later versions add.
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
    """All settings that a run's weights depend on, as JSON has them."""
    settings = {name: value for name, value in vars(stage).items() if name not in FREE_FIELDS}
    settings |= {name: value for name, value in args.to_dict().items() if name not in FREE_TRAINING_FIELDS}
    settings |= {"batch_size": total_batch_size(args), "list_size": list_size(stage, args)}
    return json.loads(json.dumps(settings, default=str))


def total_batch_size(args: TrainingArguments) -> int:
    """Pairs of an optimiser step."""
    return args.train_batch_size * args.world_size * args.gradient_accumulation_steps


@dataclass(frozen=True)
class EarlierRun:
    """
    What an earlier run of the same command has left in the output folder.

    Fields:
        checkpoint (`Path`, *optional*): Where training goes on; without one it begins.
        is_finished (`bool`): The result is there, and nothing is left to be done.
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
    Look in the output folder for a run to go on with, and record there what this one is made from. A checkpoint that
    was being written when a run was killed is deleted. The first process looks, for all.

    Args:
        stage (`StageArguments`), args (`TrainingArguments`): Of the run.
        model (`PreTrainedModel`), processor (`ProcessorMixin`): Where it starts.
        splits (two `Dataset`): What it trains on, and what it validates on.

    Raises:
        ValueError: The output folder holds a run with other settings, on other data or from another start, all listed;
            or `--resume_from_checkpoint` names none of its checkpoints.
    """

    def find() -> EarlierRun:
        contents = run_contents(model, processor, splits)
        return _find_run(stage, args, {**run_settings(stage, args), CONTENTS: contents})

    return on_first_process(find)


def on_first_process(function: Callable[[], Any]) -> Any:
    """What a function gives on the first process, on all; what it raises there is raised by all."""
    found: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            found[0] = function()
        except Exception as error:  # else the others would wait for what never comes
            found[1] = error
    broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def run_contents(model: PreTrainedModel, processor: ProcessorMixin, splits: Sequence[Dataset]) -> dict[str, str]:
    """Digests of what a run is made from: the start, the rows and the sounds."""
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
    What an output folder records of its run; nothing where there is no record.

    Raises:
        ValueError: The record is broken.
    """
    file = output / SETTINGS_FILE
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: is broken ({error}); choose another --output_dir, or --restart true.") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: is no record of a run; choose another --output_dir, or --restart true.")
    return settings


def _clear(output: Path) -> None:
    """Delete what an earlier run left: its result, which would be taken for this one's, its checkpoints, its record."""
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
    """Checkpoints of an output folder, complete or not, by their steps."""
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
    # The same content under another name is the same; of other content, the name says where to look.
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
    """The checkpoint that `--resume_from_checkpoint` names; by `true`, `last` or without it the last, or none."""
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
    """From which step and epoch of how many a run goes on, in a sentence."""
    state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    place = (
        f"step {state.global_step} of {state.max_steps} (epoch {state.epoch or 0:.4g} of {state.num_train_epochs}), "
        f"{checkpoint}"
    )
    if state.global_step >= state.max_steps or had_stopped(checkpoint):
        return f"Training had ended at {place}; what comes after it is done again."
    return f"Resuming from {place}."


def mark_finished(args: TrainingArguments) -> None:
    """Record that the result is complete, and which files of the output folder it is."""
    if args.process_index:
        return
    file = Path(args.output_dir, SETTINGS_FILE)
    names = {path.name for pattern in RESULT_FILES for path in file.parent.glob(pattern)} - {SETTINGS_FILE}
    write_json(file, {**json.loads(file.read_text(encoding="utf-8")), RESULT: sorted(names)})


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
