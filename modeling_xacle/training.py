"""What `run_stage.py` assembles: the start, what is trained, the trainers of the stages, resuming, and the end."""

import json
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    AutoConfig,
    AutoProcessor,
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from .batches import AudioCollator, CaptionCollator, PairCollator, SpecAugment, TrainingRows
from .calibration import fit_calibration
from .configuration_xacle import XacleConfig
from .data import check_rows, load_pairs, write_whole
from .feature_cache import AudioFeatureCache
from .losses import get_loss, global_list_loss
from .metrics import alignment_metrics
from .modeling_xacle import XacleForConditionalGeneration, XacleModel
from .processing_xacle import IGNORED, XacleProcessor
from .recipes import StageArguments

logger = logging.get_logger(__name__)

SETTINGS_FILE = "run_settings.json"
SAMPLES_FILE = "sample_captions.json"
ADAPTER_FOLDER = "adapter"
# Of an output folder: checkpoints, TensorBoard's and hidden files, what only a resumed run needs, and pickles.
NOT_UPLOADED = ["checkpoint-*", "runs/*", "*tfevents*", ".*", SETTINGS_FILE]
NOT_UPLOADED += ["*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt"]
SHOWN_PROBLEMS = 20
SAMPLE_TOKENS = 60
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

# ---------------------------------------------------------------------------------------------------------------------
# Start: the model, the data, what is trained


def check_processes(stage: StageArguments, args: TrainingArguments) -> None:
    """
    Refuse to train several copies where one run on several processes was meant.

    Raises:
        ValueError: The launcher started more processes than train together, or not as many as asked for; or one
            process would use several GPUs.
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


def load_start(stage: StageArguments) -> tuple[PreTrainedModel, XacleProcessor]:
    """
    The model a stage starts from, in fp32, and its processor.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: A model of another kind, or one that lacks weights.
    """
    source = stage.model
    if not Path(source).exists() and source.startswith("runs/"):
        before = (
            f"train stage {stage.stage - 1} first (run_stage.py --stage {stage.stage - 1})"
            if stage.stage > 1
            else "build it with `xacle init --beats BEATS --llm LLM -o runs/stage0`"
        )
        raise FileNotFoundError(f"{source}, where stage {stage.stage} starts, is missing: {before}, or name --model.")
    config = AutoConfig.from_pretrained(source)
    if not isinstance(config, XacleConfig):
        raise ValueError(f"--model {source}: a model of type {config.model_type}, not {XacleConfig.model_type}.")
    model_class = XacleForConditionalGeneration if stage.stage == 1 else XacleModel
    model, info = model_class.from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    missing = sorted(set(info["missing_keys"]) - {"lm_head.weight"})
    if missing or info["mismatched_keys"]:
        raise ValueError(f"--model {source}: weights are missing or of another shape: {', '.join(missing[:5])}.")
    inner = alignment_model(model).config
    if stage.caption_weight and not inner.caption_likelihood:
        raise ValueError(
            f"--model {source}: it computes no likelihoods, which --caption_weight needs; leave that out, or begin "
            "with `xacle init --caption-likelihood`."
        )
    inner.calibration_scale, inner.calibration_offset = 1.0, 0.0  # of the earlier head
    return model, AutoProcessor.from_pretrained(source)


def load_splits(stage: StageArguments, batch_size: int) -> tuple[Dataset, Dataset]:
    """
    The training and the validation split of a stage, checked.

    Args:
        stage (`StageArguments`): Names them.
        batch_size (`int`): Pairs of a step, over all processes.

    Raises:
        FileNotFoundError: There is no such dataset.
        ValueError: A split that is missing, empty, without labels or too small, or rows with problems; they are listed.
    """
    if not Path(stage.data).exists() and stage.data.startswith("data/"):
        scripts = {1: "prepare_aac.py", 2: "label_with_clap.py", 3: "prepare_xacle.py"}
        raise FileNotFoundError(
            f"{stage.data}, the default dataset of stage {stage.stage}, is missing: make it with "
            f"dataset_scripts/{scripts[stage.stage]}, or name --data."
        )
    splits = load_pairs(stage.data)
    train, validation = (_checked_split(splits, name, stage) for name in (stage.train_split, stage.validation_split))
    if len(train) < batch_size:
        raise ValueError(f"{stage.data}, split {stage.train_split}: {len(train)} rows are no batch of {batch_size}.")
    return train, validation


def _checked_split(splits: DatasetDict, name: str, stage: StageArguments) -> Dataset:
    where = f"{stage.data}, split {name}"
    if name not in splits:
        raise ValueError(f"{where}: there is no such split; there are {', '.join(splits)}.")
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
    return rows


def is_known(rows: Dataset, column: str) -> bool:
    """Whether every row has a value in a column."""
    return column in rows.column_names and not rows.data.column(column).null_count


def alignment_model(model: nn.Module) -> XacleModel:
    """The [`XacleModel`] inside a stage's model, whatever is wrapped around it."""
    return next(module for module in model.modules() if isinstance(module, XacleModel))


def choose_trained(model: PreTrainedModel, stage: StageArguments) -> nn.Module:
    """
    Freeze a model but for the parts that a stage trains: `special_tokens` are the embeddings of `[AUDIO_START]`,
    `[AUDIO_END]` and `[SCORE]`.

    Returns:
        The model, or with LoRA adapters a `PeftModel` around it.
    """
    inner = alignment_model(model)
    modules = [part for part in stage.train if part != "special_tokens"]
    config = inner.config
    special_ids = []
    if "special_tokens" in stage.train and "language_model" not in stage.train:
        special_ids = [config.audio_start_token_id, config.audio_end_token_id, config.score_token_id]
    model.requires_grad_(False)
    if not stage.train and not stage.lora_rank:
        raise ValueError("There is nothing to train: name parts with --train, or give --lora_rank.")
    if stage.lora_rank:
        model = _with_adapters(model, modules, stage.lora_rank, special_ids)
    else:
        for part in modules:
            getattr(inner, part).requires_grad_(True)
        if special_ids:
            train_rows(inner.get_input_embeddings().weight, special_ids)
    return model


def _with_adapters(model: PreTrainedModel, modules: list[str], rank: int, special_ids: list[int]) -> PeftModel:
    """The model with adapters of a rank for all linear layers of its language model."""
    inner = alignment_model(model)
    names = {module: name for name, module in model.named_modules()}
    linear = [names[layer] for layer in inner.language_model.modules() if isinstance(layer, nn.Linear)]
    embeddings = names[inner.get_input_embeddings()]
    adapters = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=linear,
        modules_to_save=[names[getattr(inner, part)] for part in modules],
        trainable_token_indices={embeddings: special_ids} if special_ids else None,
    )
    return get_peft_model(model, adapters)


def train_rows(weight: nn.Parameter, rows: list[int]) -> None:
    """Train some rows of an embedding `(vocab_size, hidden_size)`: the gradient of all others is zero."""
    mask = torch.zeros(len(weight), 1)
    mask[rows] = 1
    weight.requires_grad_(True)
    weight.register_hook(lambda gradient: gradient * mask.to(gradient))


# ---------------------------------------------------------------------------------------------------------------------
# Trainers


class EpochCallback(TrainerCallback):
    """Tells the training rows which epoch they are in, before an epoch's first batch."""

    def __init__(self, rows: TrainingRows):
        self.rows = rows

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """In the middle of an epoch, `state.epoch` of a resumed run is a fraction."""
        self.rows.set_epoch(math.floor(state.epoch or 0))


class FiniteLossCallback(TrainerCallback):
    """Ends a run whose loss is no number any more."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """`logs` may hold the training loss since the last log."""
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss is {loss} at step {state.global_step}: lower --learning_rate, or look for broken sounds or "
                "labels. Checkpoints since the loss was last logged are of no use."
            )


class StageTrainer(Trainer):
    """
    What the stages' trainers share: evaluations of whole splits, parts of an embedding without weight decay, and no
    pickles in saved folders.
    """

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        """The last, incomplete list of an epoch is left out; `Trainer` would leave it out of evaluations too."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Decay would move the rows of an embedding of which only some are trained."""
        inner = alignment_model(model)
        names = super().get_decay_parameter_names(model)
        if any(weight.requires_grad for weight in inner.language_model.layers.parameters()):
            return names
        embedding = inner.get_input_embeddings().weight
        rows_only = {name for name, weight in model.named_parameters() if weight is embedding}
        return [name for name in names if name not in rows_only]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        Path(output_dir or self.args.output_dir, "training_args.bin").unlink(missing_ok=True)


class PairTrainer(StageTrainer):
    """
    Stages 2 and 3: a loss over lists of pairs, validated by rank correlation.

    Args:
        stage (`StageArguments`): Names the loss and its scope.

    Attributes:
        validated (`tuple` of two `np.ndarray` of shape `(num_pairs,)`): Scores and references of the last evaluation.
    """

    loss_is_scaled_for_ga = False
    validated: tuple[np.ndarray, np.ndarray] | None = None

    def __init__(self, stage: StageArguments, **kwargs: Any):
        super().__init__(compute_metrics=self.metrics, **kwargs)
        self.list_loss = get_loss(stage.loss, stage.temperature, stage.one_sided)
        self.global_list = stage.list_scope == "global"
        self.caption_weight = stage.caption_weight

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of a list `(batch_size,)`, or of the one that all processes' batches make together."""
        labels, is_own = inputs.pop("labels"), inputs.pop("is_own", None)
        outputs = model(**inputs)
        labels = labels.to(outputs.logits)
        if self.global_list:
            loss = global_list_loss(self.list_loss, outputs.logits, labels)
        else:
            loss = self.list_loss(outputs.logits, labels)
        if is_own is not None:  # over the whole batch, so that processes weigh each pair alike
            loss = loss - self.caption_weight * (outputs.caption_log_likelihood * is_own).mean()
        return (loss, outputs) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """No loss, which would depend on how the split falls into lists; logits and labels, each `(batch_size,)`."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        inputs.pop("is_own", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            logits = model(**inputs).logits
        return None, logits, labels

    def metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Official metrics, on the 0-10 scale, of logits and labels `(num_pairs,)` of the whole split."""
        config = self.accelerator.unwrap_model(self.model).config
        scores = config.logits_to_scores(prediction.predictions.astype(np.float64))
        references = (prediction.label_ids.astype(np.float64) + 1) * (config.score_max - config.score_min) / 2
        if not np.isfinite(scores).all():
            raise ValueError("The model's scores are not finite: lower --learning_rate.")
        self.validated = scores, references + config.score_min
        found = alignment_metrics(*self.validated)
        return {name.lower(): value for name, value in found.items() if name != "N"}


def keep_captions(inputs: dict[str, torch.Tensor], prompt_length: int) -> dict[str, torch.Tensor]:
    """
    Inputs of [`XacleForConditionalGeneration`] for the logits of the captions alone: `labels` of shape `(batch_size,
    sequence_length)` lose the prompt, and each logit that is left predicts the label in its place. Most of a sequence
    is sound, and the LM head is more than a third as large as all layers before it.
    """
    labels = inputs["labels"]
    places = torch.arange(prompt_length, labels.shape[1], device=labels.device)
    return {**inputs, "labels": labels[:, prompt_length:], "logits_to_keep": places - 1}


def caption_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
    """
    Cross entropy of the captions, summed over a batch and divided by the tokens that count in the whole step, of all
    processes and accumulated batches.

    Args:
        outputs (`CausalLMOutputWithPast`): With `logits` `(batch_size, caption_length, vocab_size)`, as
            [`keep_captions`] asks for them.
        labels (`torch.Tensor` of shape `(batch_size, caption_length)`): What each logit is to predict; -100 where
            nothing counts.
        num_items_in_batch (`torch.Tensor` or `int`): Tokens of the step.
    """
    return token_losses(outputs.logits, labels).sum() / num_items_in_batch


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy `(batch_size, caption_length)` of each token; 0 where none is to be predicted."""
    losses = cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(labels)


class CaptionTrainer(StageTrainer):
    """Stage 1: next-token cross entropy, validated by the perplexity of all tokens of a split, with sample captions."""

    def __init__(self, stage: StageArguments, **kwargs: Any):
        super().__init__(compute_loss_func=caption_loss, compute_metrics=self.metrics, **kwargs)
        self.num_samples = stage.num_sample_captions

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inputs = super()._prepare_inputs(inputs)
        prompt = self.processing_class.audio_and_score_ids[:-1]
        return keep_captions(inputs, len(prompt)) if "labels" in inputs else inputs

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[None, torch.Tensor, torch.Tensor]:
        """Summed cross entropy and number of tokens of each caption, both `(batch_size,)`."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.pop("labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            losses = token_losses(model(**inputs).logits, labels).sum(dim=1)
        return None, losses, (labels != IGNORED).sum(dim=1)

    @staticmethod
    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        """Mean over the tokens of a split, of `(num_captions,)` sums and numbers; perplexity is its exponential."""
        loss = float(prediction.predictions.astype(np.float64).sum() / prediction.label_ids.sum())
        return {"loss": loss, "perplexity": math.exp(loss)}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As any trainer's, with captions written for some clips."""
        metrics = super().evaluate(*args, **kwargs)
        self.write_samples()
        return metrics

    def write_samples(self) -> None:
        """Caption some clips of the validation split, greedily: to the log, and to a file of the output folder."""
        if not self.num_samples:
            return
        spacing = max(1, len(self.eval_dataset) // self.num_samples)  # neighbours are often captions of one clip
        rows = list(self.eval_dataset.select(range(0, len(self.eval_dataset), spacing)))[: self.num_samples]
        processor = self.processing_class
        prompts = processor.pad([processor.audio_and_score_ids[:-1]] * len(rows))
        inputs = self._prepare_inputs({**prompts, **self.data_collator.audio(rows)})
        model = self.accelerator.unwrap_model(self.model)
        generated = model.generate(**inputs, max_new_tokens=SAMPLE_TOKENS, do_sample=False)
        captions = processor.batch_decode(generated, skip_special_tokens=True)
        samples = [
            {"id": row["id"], "reference": row["text"], "caption": caption}
            for row, caption in zip(rows, captions, strict=True)
        ]
        if self.is_world_process_zero():
            for sample in samples:
                logger.info("%(id)s: %(caption)r (reference: %(reference)r)", sample)
            write_json(Path(self.args.output_dir, SAMPLES_FILE), samples)


def make_cache(
    stage: StageArguments, model: nn.Module, processor: XacleProcessor, augment: SpecAugment | None
) -> AudioFeatureCache | None:
    """The store of a stage's audio features, if it uses one."""
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
    """The trainer of a stage, with its collator, cache and callbacks."""
    augment = SpecAugment(stage.mask_mel_bins, stage.mask_frames) if stage.augments else None
    cache = make_cache(stage, model, processor, augment)
    if cache is not None:
        inner = alignment_model(model).to(args.device)
        cache.fill([train, validation], inner, args.per_device_eval_batch_size, args.dataloader_num_workers)
    rows = TrainingRows(train, args.seed)
    callbacks: list[TrainerCallback] = [EpochCallback(rows), FiniteLossCallback()]
    if stage.patience:
        if args.eval_strategy != args.save_strategy or args.eval_strategy == "no":
            raise ValueError(
                "--patience needs a checkpoint at each evaluation: give --eval_strategy and --save_strategy the same, "
                "epoch or steps, or switch it off with --patience 0."
            )
        args.load_best_model_at_end = True
        callbacks.append(EarlyStoppingCallback(stage.patience))
    collator: AudioCollator
    trainer: type[StageTrainer]
    if stage.stage == 1:
        collator, trainer = CaptionCollator(processor, augment, cache), CaptionTrainer
    else:
        collator = PairCollator(processor, augment, cache, says_whose=stage.caption_weight > 0)
        trainer = PairTrainer
    return trainer(
        stage,
        model=model,
        args=args,
        data_collator=collator,
        train_dataset=rows,
        eval_dataset=validation,
        processing_class=processor,
        callbacks=callbacks,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Resuming


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


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


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


# ---------------------------------------------------------------------------------------------------------------------
# The end


def calibrate(trainer: PairTrainer) -> None:
    """Fit the model's scale on the validation split and store it in its config; the order of scores stays."""
    found = trainer.predict(trainer.eval_dataset)
    config = alignment_model(trainer.model).config
    try:
        config.calibration_scale, config.calibration_offset = fit_calibration(found.predictions, found.label_ids)
    except ValueError as error:
        logger.warning(f"No calibration: {error}")


def save_result(trainer: StageTrainer, stage: StageArguments) -> None:
    """
    Write the stage's model and processor to the output folder, as one plain model; adapters are merged into it and
    also kept by themselves.
    """
    output = Path(trainer.args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model)
    config = alignment_model(model).config
    config.training_stage = stage.stage
    if isinstance(model, PeftModel):
        if trainer.is_world_process_zero():
            model.save_pretrained(output / ADAPTER_FOLDER)
        trainer.model = trainer.model_wrapped = model.merge_and_unload()
    trainer.save_model(str(output), _internal_call=True)  # else Trainer would upload too, pickles included


def push(trainer: StageTrainer) -> str:
    """
    Upload the output folder to `--hub_model_id` (by default a repository named like the folder): model, processor,
    code, card and curves, but no checkpoints, logs or pickles. An upload that failed is done by the same command again.

    Returns:
        The repository's address; "" on all processes but the first.

    Raises:
        OSError: The upload failed; the output folder is complete.
    """
    if not trainer.is_world_process_zero():
        return ""
    args = trainer.args
    api = HfApi(token=args.hub_token)
    name = args.hub_model_id or Path(args.output_dir).absolute().name
    repository = api.create_repo(name, private=args.hub_private_repo, exist_ok=True)
    if args.hub_revision:
        api.create_branch(repository.repo_id, branch=args.hub_revision, exist_ok=True)
    stage = alignment_model(trainer.model).config.training_stage
    try:
        api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=args.output_dir,
            revision=args.hub_revision,
            ignore_patterns=NOT_UPLOADED,
            commit_message=f"Trained by run_stage.py --stage {stage}",
        )
    except (RuntimeError, OSError) as error:
        reason = f"{error} {error.__cause__ or ''}"
        raise OSError(
            f"The model is in {args.output_dir}, but not on the Hub; give the same command again. {reason}"
        ) from error
    return str(repository)
