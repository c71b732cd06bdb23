"""The building blocks of `run_stage.py`: the start, the trainer of a stage, and the end."""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoProcessor,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PrinterCallback,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from ..checkpoints.loading import load_model, load_part
from ..configuration_dual import XacleDualEncoderConfig
from ..configuration_xacle import ScoringConfig, XacleConfig
from ..data.files import saving
from ..data.pairs import check_rows, load_pairs
from ..evaluation.calibrate import fit_calibration
from ..feature_extraction_xacle import XacleFeatureExtractor
from ..modeling_captioning import XacleForConditionalGeneration
from ..modeling_dual import XacleDualEncoder
from ..modeling_xacle import XacleModel
from ..processing_xacle import XacleProcessor, check_agreement
from .collators import AudioCollator, CaptionCollator, PairCollator, SpecAugment, TrainingRows
from .feature_cache import AudioFeatureCache
from .freezing import alignment_model
from .listener_targets import listener_zscore_targets
from .losses import COMPARING_LOSSES
from .progress import ProgressLines
from .recipes import StageArguments, list_size
from .resuming import SETTINGS_FILE, is_complete, list_checkpoints, total_batch_size
from .trainers import CaptionTrainer, EpochCallback, FiniteLossCallback, PairTrainer, StageTrainer

logger = logging.get_logger(__name__)

ADAPTER_FOLDER = "adapter"
PARTIAL_FOLDER = ".partial"
# Files of the output folder that stay there: checkpoints, TensorBoard's and hidden files, resuming's record, pickles.
NOT_UPLOADED = ["checkpoint-*", "runs/*", "*tfevents*", ".*", SETTINGS_FILE]
NOT_UPLOADED += ["*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt"]
SHOWN_PROBLEMS = 20
SCRIPTS = {1: "prepare_aac.py", 2: "label_pairs.py", 3: "prepare_xacle.py"}

# ---------------------------------------------------------------------------------------------------------------------
# Start: the model, the data, the trainer


def check_processes(stage: StageArguments, args: TrainingArguments) -> None:
    """
    Refuse to train several copies where one run over several processes was meant.

    Raises:
        ValueError: The launcher started more processes than train together, or another number than was asked for; or
            one process would use several GPUs.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != args.world_size:
        raise ValueError(
            f"{launched} processes were started, but each would train alone ({args.world_size} together). On CPUs add "
            "--use_cpu true."
        )
    if stage.num_processes and stage.num_processes != args.world_size:
        raise ValueError(
            f"--num_processes {stage.num_processes}, but {args.world_size} train together. Launch with a file of "
            "accelerate_configs/; `accelerate launch --cpu --num_processes N` starts one process only."
        )
    if args.n_gpu > 1:
        raise ValueError(
            f"One process would share its batch among {args.n_gpu} GPUs: launch one for each with `accelerate launch`, "
            "or set CUDA_VISIBLE_DEVICES=0."
        )


def check_lists(stage: StageArguments, args: TrainingArguments, num_rows: int) -> None:
    """
    Refuse lists of one pair, on which a loss that compares pairs is 0 and teaches nothing; else log the list's size.

    Args:
        stage (`StageArguments`), args (`TrainingArguments`): The loss, and what makes a list.
        num_rows (`int`): Rows in the training split.

    Raises:
        ValueError: A list, or the last of an epoch, would have one pair.
    """
    if stage.stage == 1 or stage.loss not in COMPARING_LOSSES:
        return
    size = list_size(stage, args)
    if size < 2:
        raise ValueError(
            f"--loss {stage.loss} compares the pairs of a list, which would be one pair: choose a larger "
            "--per_device_train_batch_size or --gradient_accumulation_steps, or --loss mse."
        )
    if not args.dataloader_drop_last and num_rows % total_batch_size(args) == 1:
        raise ValueError(
            f"{num_rows} rows leave one pair for the last list of an epoch, and --loss {stage.loss} compares pairs: "
            "leave that list out with --dataloader_drop_last true."
        )
    logger.info(
        f"A list of the loss has {size} pairs: {args.train_batch_size} of a batch x "
        f"{args.gradient_accumulation_steps} accumulated x "
        f"{size // args.train_batch_size // args.gradient_accumulation_steps} processes."
    )


def load_start(stage: StageArguments) -> tuple[PreTrainedModel, XacleProcessor]:
    """
    Loads the model that a stage starts from, in fp32, and its processor.

    Raises:
        FileNotFoundError: The folder does not exist.
        ValueError: The model is of another kind, or lacks weights.
    """
    source = stage.model
    if not Path(source).exists() and source.startswith("runs/"):
        before = (
            f"train stage {stage.stage - 1} first (run_stage.py --stage {stage.stage - 1})"
            if stage.stage > 1
            else "build it with `xacle init --tower TOWER --llm LLM -o runs/stage0`"
        )
        raise FileNotFoundError(f"{source}, where stage {stage.stage} starts, is missing: {before}, or name --model.")
    config = load_part(AutoConfig, source)
    if not isinstance(config, ScoringConfig):
        raise ValueError(f"--model {source}: a model of type {config.model_type}, not {XacleConfig.model_type}.")
    model_class: type[PreTrainedModel] = XacleForConditionalGeneration if stage.stage == 1 else XacleModel
    if isinstance(config, XacleDualEncoderConfig):
        if stage.stage == 1:
            raise ValueError(f"--model {source}: a judge with two towers writes no captions; begin with stage 2 or 3.")
        model_class = XacleDualEncoder
    model = load_model(model_class, source, dtype=torch.float32)
    inner = alignment_model(model).config
    if stage.caption_weight and not getattr(inner, "caption_likelihood", False):
        raise ValueError(
            f"--model {source}: it computes no likelihoods, which --caption_weight needs; leave that out, or begin "
            "with `xacle init --caption-likelihood`."
        )
    inner.calibration_scale, inner.calibration_offset = 1.0, 0.0  # the old calibration fits the old head
    processor = load_part(AutoProcessor, source)
    check_agreement(inner, processor)
    return model, processor


def load_splits(stage: StageArguments, batch_size: int) -> tuple[Dataset, Dataset]:
    """
    Loads and checks a stage's training and validation splits, with the targets that the stage learns from as labels
    of the first.

    Args:
        stage (`StageArguments`): Names them.
        batch_size (`int`): Pairs in a step, over all processes.

    Raises:
        FileNotFoundError: The dataset does not exist.
        ValueError: A split is missing, empty, too small, or without labels or the listeners that `stage.targets` needs,
            or rows have problems, which are listed.
    """
    if not Path(stage.data).exists() and stage.data.startswith("data/"):
        raise FileNotFoundError(
            f"{stage.data}, the default dataset of stage {stage.stage}, is missing: make it with "
            f"dataset_scripts/{SCRIPTS[stage.stage]}, or name --data."
        )
    splits = load_pairs(stage.data)
    train, validation = (_checked_split(splits, name, stage) for name in (stage.train_split, stage.validation_split))
    if stage.targets == "listener_zscore":
        train = listener_zscore_targets(train, stage, f"{stage.data}, split {stage.train_split}")
    if len(train) < batch_size:
        raise ValueError(f"{stage.data}, split {stage.train_split}: {len(train)} rows are no batch of {batch_size}.")
    return train, validation


def is_known(rows: Dataset, column: str) -> bool:
    """Returns True if every row has a value in the column."""
    return column in rows.column_names and not rows.data.column(column).null_count


def _checked_split(splits: DatasetDict, name: str, stage: StageArguments) -> Dataset:
    where = f"{stage.data}, split {name}"
    if name not in splits:
        option = "--train_split" if name == stage.train_split else "--validation_split"
        others = [f"name another ({option} {other})" for other in splits if other != stage.train_split][:1]
        make = f"make the dataset with a table for {name} too (dataset_scripts/{SCRIPTS[stage.stage]})"
        raise ValueError(
            f"{where}: there is no such split; there are {', '.join(splits)}: {', or '.join([*others, make])}."
        )
    rows = splits[name]
    if not len(rows):
        raise ValueError(f"{where}: it is empty.")
    if stage.caption_weight and not is_known(rows, "is_negative"):
        raise ValueError(
            f"{where}: is_negative is not known of all rows, by which --caption_weight knows a clip's own captions."
        )
    if stage.stage > 1 and not is_known(rows, "label"):
        raise ValueError(f"{where}: rows have no label, which stage {stage.stage} learns from.")
    problems = check_rows(rows)
    if problems:
        listed = "\n  ".join(problems[:SHOWN_PROBLEMS])
        raise ValueError(f"{where}: {len(problems)} problems, mend or remove these rows:\n  {listed}")
    if stage.stage > 1 and len(set(rows["label"][:])) == 1:
        logger.warning(
            f"{where}: all {len(rows)} labels are {rows['label'][0]:g}, so there is no order to "
            f"{'learn' if name == stage.train_split else 'measure: correlations are undefined (told as 0)'}."
        )
    return rows


def make_augment(stage: StageArguments, processor: XacleProcessor) -> SpecAugment | None:
    """
    Returns the stage's SpecAugment, or None.

    Raises:
        ValueError: It masks spectrograms, but the audio tower hears something else.
    """
    if not stage.augments:
        return None
    extractor = processor.feature_extractor
    if extractor.axes is None:
        raise ValueError(
            f"--mask_mel_bins {stage.mask_mel_bins} --mask_frames {stage.mask_frames}: masks are for spectrograms, but "
            "this model's audio tower hears waveforms; set both to 0."
        )
    filler = 0.0 if isinstance(extractor, XacleFeatureExtractor) else None
    return SpecAugment(stage.mask_mel_bins, stage.mask_frames, extractor.axes, filler)


def make_cache(
    stage: StageArguments, model: nn.Module, processor: XacleProcessor, augment: SpecAugment | None
) -> AudioFeatureCache | None:
    """Returns the stage's audio feature cache, or None."""
    if not stage.cache_audio_features:
        return None
    return AudioFeatureCache(
        stage.cache_dir, alignment_model(model), processor, stage.cache_dtype, augment, stage.augmented_views
    )


def make_trainer(
    stage: StageArguments,
    args: TrainingArguments,
    model: nn.Module,
    processor: XacleProcessor,
    train: Dataset,
    validation: Dataset,
) -> StageTrainer:
    """Builds the trainer of a stage, with its collator, cache and callbacks."""
    augment = make_augment(stage, processor)
    cache = make_cache(stage, model, processor, augment)
    if cache is not None:
        inner = alignment_model(model).to(args.device)
        cache.fill([train, validation], inner, args.per_device_eval_batch_size, args.dataloader_num_workers)
    rows = TrainingRows(train, args.seed)
    callbacks: list[TrainerCallback] = [EpochCallback(rows), FiniteLossCallback()]
    if stage.patience:
        callbacks.append(EarlyStoppingCallback(stage.patience))
    collator: AudioCollator
    trainer: type[StageTrainer]
    if stage.stage == 1:
        collator, trainer = CaptionCollator(processor, augment, cache), CaptionTrainer
    else:
        collator = PairCollator(processor, augment, cache, says_whose=stage.caption_weight > 0)
        trainer = PairTrainer
    if args.disable_tqdm:
        callbacks.append(ProgressLines())
    made = trainer(
        stage,
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=processor,
        callbacks=callbacks,
    )
    made.remove_callback(PrinterCallback)  # prints the same on stdout
    return made


# ---------------------------------------------------------------------------------------------------------------------
# The end


class Validation(NamedTuple):
    """
    The result of a finished stage on the validation split.

    Fields:
        metrics (`dict[str, float]`): Their names have the prefix `eval_`.
        pairs (`tuple` of two `np.ndarray` of shape `(num_pairs,)`, *optional*): Scores and references; None in stage 1.
    """

    metrics: dict[str, float]
    pairs: tuple[np.ndarray, np.ndarray] | None


def validate(trainer: StageTrainer, stage: StageArguments) -> Validation:
    """Validate the weights that were kept, in one pass, and calibrate the model if the stage does so."""
    found = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
    if isinstance(trainer, CaptionTrainer):
        trainer.write_samples()
        return Validation(found.metrics, None)
    if stage.calibrate:
        calibrate(alignment_model(trainer.model).config, found.predictions, found.label_ids)
    prediction = EvalPrediction(found.predictions, found.label_ids)
    metrics = {f"eval_{name}": value for name, value in trainer.metrics(prediction).items()}
    return Validation({**found.metrics, **metrics}, trainer.scores_and_references(prediction))


def calibrate(config: ScoringConfig, logits: np.ndarray, labels: np.ndarray) -> None:
    """Fit a scale to logits and labels `(num_pairs,)` and let the config apply it; the scores keep their order."""
    try:
        config.calibration_scale, config.calibration_offset = fit_calibration(logits, labels)
    except ValueError as error:
        logger.warning(f"No calibration: {error}")
        return
    if not config.apply_calibration:
        logger.warning("The starting model's config has apply_calibration=false; the fitted calibration is applied.")
    config.apply_calibration = True


def save_result(trainer: StageTrainer, stage: StageArguments) -> None:
    """
    Write the stage's model and processor to the output folder, as one plain model; adapters are merged into it and
    also saved separately. The files are moved there once all of them are written.

    Raises:
        OSError: They could not be written; the output folder and its checkpoints are unchanged.
    """
    output = Path(trainer.args.output_dir)
    partial = output / PARTIAL_FOLDER
    if trainer.is_world_process_zero():
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = alignment_model(model).config
    config.training_stage = stage.stage
    with saving(partial) if trainer.is_world_process_zero() else nullcontext():
        if isinstance(model, PeftModel):
            if trainer.is_world_process_zero():
                model.save_pretrained(partial / ADAPTER_FOLDER)
            trainer.model = trainer.model_wrapped = model.merge_and_unload()
        trainer.save_model(str(partial), _internal_call=True)  # else Trainer would upload too, pickles included
    if trainer.is_world_process_zero():
        shutil.copytree(partial, output, copy_function=os.replace, dirs_exist_ok=True)
        shutil.rmtree(partial)


def tell_stop(output: Path) -> str:
    """Says in one line what a stopped run has saved, and how to go on."""
    checkpoints = [path for path in list_checkpoints(output) if is_complete(path)]
    if not checkpoints:
        return f"stopped: {output} has no checkpoint yet; the same command begins anew."
    return f"stopped: {checkpoints[-1]} is saved; the same command goes on from there."


def push(stage: StageArguments, args: TrainingArguments) -> str:
    """
    Upload the output folder to `--hub_model_id` (by default a repository named like the folder): model, processor,
    code, card and curves, but no checkpoints, logs or pickles. The same command repeats a failed upload.

    Returns:
        The repository's address; "" on all processes but the first.

    Raises:
        OSError: The upload failed; the output folder is complete.
    """
    if args.process_index:
        return ""
    api = HfApi(token=args.hub_token)
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    repository = api.create_repo(name, private=args.hub_private_repo, exist_ok=True)
    if args.hub_revision:
        api.create_branch(repository.repo_id, branch=args.hub_revision, exist_ok=True)
    try:
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=args.output_dir,
            revision=args.hub_revision,
            ignore_patterns=NOT_UPLOADED,
            commit_message=f"Trained by run_stage.py --stage {stage.stage}",
        )
    except (RuntimeError, OSError) as error:
        reason = f"{error} {error.__cause__ or ''}"
        raise OSError(
            f"The model is in {args.output_dir}, but not on the Hub; give the same command again. {reason}"
        ) from error
    return str(repository)
