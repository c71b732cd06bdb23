"""The three stages' recipes: the options of `run_stage.py` and their defaults."""

import os
import sys
from argparse import ArgumentParser
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin

import torch
import yaml
from accelerate.utils import parse_flag_from_env
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations.integration_utils import (
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging

from ..checkpoints.loading import CONFIG_FILE, find_file
from ..checkpoints.presets import PRESETS
from ..configuration_xacle import STAGES
from ..data.files import read_json
from ..evaluation.metrics import METRICS
from .losses import BALANCED_LOSSES, LOSSES

logger = logging.get_logger(__name__)

PARTS = ("projector", "score_head", "language_model", "audio_tower", "special_tokens")
LIST_SCOPES = ("global", "local")
TARGETS = ("mean", "listener_zscore")
FEWEST_RATINGS = 3  # of a listener
CACHE_DTYPES = ("float32", "float16")
# The metrics of validation, and whether a larger value is better.
SCORE_METRICS = {name.lower(): metric.greater_is_better for name, metric in METRICS.items()}
STAGE_METRICS = {1: {"loss": False, "perplexity": False}, 2: SCORE_METRICS, 3: SCORE_METRICS}


@dataclass
class StageArguments:
    """A stage's options beyond `transformers.TrainingArguments`. Defaults that depend on the stage are in `RECIPES`."""

    stage: int = field(metadata={"help": "1 captioning, 2 CLAP pseudo-labels, 3 listeners' scores."})
    model: str = field(
        default="",
        metadata={"help": "Folder or Hub id to start from."},
    )
    data: str = field(
        default="",
        metadata={"help": "Dataset, folder or Hub id."},
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    validation_split: str = field(
        default="validation", metadata={"help": "Split by which the best checkpoint is chosen."}
    )
    train: list[str] = field(
        default_factory=list,
        metadata={"help": f"Parts that are trained, one or more of {', '.join(PARTS)}."},
    )
    lora_rank: int = field(
        default=0,
        metadata={"help": "Train LoRA adapters of this rank in the language model, merged at the end. 0: none."},
    )
    loss: str = field(default="listnet", metadata={"help": f"Stages 2 and 3: {', '.join(LOSSES)}."})
    temperature: float = field(default=1.0, metadata={"help": "ListNet's temperature."})
    one_sided: bool = field(
        default=False, metadata={"help": "Let the temperature divide the labels only, as the published code does."}
    )
    class_balance: bool = field(
        default=False,
        metadata={
            "help": "Weigh each pair's own error so that every point of the rating scale counts alike in the training "
            f"split. Losses: {', '.join(BALANCED_LOSSES)}."
        },
    )
    targets: str = field(
        default="mean",
        metadata={
            "help": "Stage 3: learn from the mean ratings (mean), or from ratings standardised by each listener's own "
            "mean and deviation (listener_zscore)."
        },
    )
    screen_distance: float = field(
        default=0.0,
        metadata={
            "help": "listener_zscore: leave out ratings that are more than so many points from any other of their "
            "clip. 0: none."
        },
    )
    screen_ratings: int = field(
        default=5, metadata={"help": "listener_zscore: leave out listeners with fewer ratings than this."}
    )
    screen_correlation: float = field(
        default=0.0,
        metadata={
            "help": "listener_zscore: leave out listeners whose ratings correlate less than this with the others' "
            "means. -1: none."
        },
    )
    caption_weight: float = field(
        default=0.0,
        metadata={
            "help": "Stage 2, of a model with caption_likelihood: go on with captioning beside the loss, with so much "
            "of the cross entropy of the pairs that are no negatives."
        },
    )
    list_scope: str = field(
        default="global",
        metadata={
            "help": "A list of the loss spans the batches of all processes (global) or of one (local); either way all "
            "batches that --gradient_accumulation_steps accumulates."
        },
    )
    mask_mel_bins: int = field(default=0, metadata={"help": "SpecAugment: widest mask in mel bins. 0: none."})
    mask_frames: int = field(default=0, metadata={"help": "SpecAugment: widest mask in frames. 0: none."})
    patience: int = field(
        default=0,
        metadata={"help": "Stop when validation has not improved for so many evaluations. 0: never."},
    )
    calibrate: bool = field(default=False, metadata={"help": "Fit the 0-10 scale on the validation split at the end."})
    cache_audio_features: bool = field(
        default=False, metadata={"help": "Encode each clip once, and train from the stored features."}
    )
    cache_dir: str = field(default="data/feature_cache", metadata={"help": "Folder of the stored features."})
    cache_dtype: str = field(
        default="float32", metadata={"help": f"Of the stored features: {' or '.join(CACHE_DTYPES)}."}
    )
    augmented_views: int = field(
        default=0, metadata={"help": "Store so many augmented views of each clip, of which an epoch sees one."}
    )
    num_sample_captions: int = field(
        default=4, metadata={"help": "Stage 1: clips of the validation split captioned at every evaluation."}
    )
    num_processes: int = field(
        default=0, metadata={"help": "Refuse to run with another number of processes than this. 0: any."}
    )
    restart: bool = field(
        default=False,
        metadata={"help": "Delete the checkpoints of an earlier run in the output folder and start anew."},
    )

    def __post_init__(self):
        if isinstance(self.train, str):  # as a YAML file may have it
            self.train = [self.train]
        self._check_types()
        unknown = [part for part in self.train if part not in PARTS]
        if unknown:
            raise ValueError(f"--train {' '.join(unknown)}: choose among {', '.join(PARTS)}.")
        offered = {"loss": LOSSES, "list_scope": LIST_SCOPES, "targets": TARGETS, "cache_dtype": CACHE_DTYPES}
        for name, choices in offered.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"--{name} {getattr(self, name)}: choose one of {', '.join(choices)}.")
        if not self.temperature > 0:
            raise ValueError(f"--temperature {self.temperature}: must be positive.")
        if self.caption_weight < 0:
            raise ValueError(f"--caption_weight {self.caption_weight}: must not be negative.")
        self._check_combinations()
        self._check_targets()
        self._check_cache()

    def _check_types(self) -> None:
        """Refuses values of the wrong type, which a settings file may hold."""
        for entry in fields(self):
            value, kind = getattr(self, entry.name), get_origin(entry.type) or entry.type
            if not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(
                    f"--{entry.name} {value}: must be of type {kind.__name__}, not {type(value).__name__}."
                )
            if kind is int and value < 0:
                raise ValueError(f"--{entry.name} {value}: must not be negative.")

    def _check_combinations(self) -> None:
        if self.lora_rank and "language_model" in self.train:
            raise ValueError(
                "--lora_rank trains adapters of a frozen language model: leave language_model out of --train "
                "(--train projector)."
            )
        if self.stage == 1 and "score_head" in self.train:
            raise ValueError(
                "--train score_head: captioning (stage 1) does not use the score head, leave it out of --train."
            )
        if self.stage == 1 and self.calibrate:
            raise ValueError("--calibrate: captioning (stage 1) gives no scores, leave it to stages 2 and 3.")
        if self.stage == 1 and self.caption_weight:
            raise ValueError("--caption_weight: captioning is all that stage 1 does, leave it to stage 2.")

    def _check_targets(self) -> None:
        if self.class_balance and (self.stage == 1 or self.loss not in BALANCED_LOSSES):
            chosen = "captioning (stage 1)" if self.stage == 1 else f"--loss {self.loss}"
            raise ValueError(
                f"--class_balance weighs each pair's own error, which {chosen} does not have: leave it out, or choose "
                f"stage 2 or 3 and --loss {' or '.join(BALANCED_LOSSES)}."
            )
        if self.targets == "mean":
            usual = {entry.name: entry.default for entry in fields(self) if entry.name.startswith("screen_")}
            idle = [f"--{name} {getattr(self, name)}" for name in usual if getattr(self, name) != usual[name]]
            if idle:
                raise ValueError(f"{' '.join(idle)}: listeners are screened for --targets listener_zscore only.")
        elif self.stage != 3:
            raise ValueError(f"--targets {self.targets}: stage 3 alone learns from listeners, leave it out.")
        if not self.screen_distance >= 0:
            raise ValueError(f"--screen_distance {self.screen_distance}: must not be negative.")
        if self.screen_ratings < FEWEST_RATINGS:
            raise ValueError(
                f"--screen_ratings {self.screen_ratings}: must be at least {FEWEST_RATINGS}, as any two ratings "
                "correlate fully."
            )
        if not -1 <= self.screen_correlation <= 1:
            raise ValueError(f"--screen_correlation {self.screen_correlation}: must be from -1 to 1.")

    def _check_cache(self) -> None:
        if self.augmented_views and not self.cache_audio_features:
            raise ValueError("--augmented_views are stored features: add --cache_audio_features.")
        if self.augmented_views and not self.augments:
            raise ValueError("--augmented_views needs SpecAugment: add --mask_mel_bins 15 --mask_frames 30.")
        if self.cache_audio_features and "audio_tower" in self.train:
            raise ValueError("--cache_audio_features needs a frozen encoder: leave audio_tower out of --train.")
        if self.cache_audio_features and self.augments and not self.augmented_views:
            raise ValueError(
                "--cache_audio_features stores clips as they are, but SpecAugment is on: store augmented views too "
                "(--augmented_views 8), or switch it off (--mask_mel_bins 0 --mask_frames 0)."
            )

    @property
    def augments(self) -> bool:
        """True if SpecAugment masks anything."""
        return self.mask_mel_bins > 0 or self.mask_frames > 0


# Pairs in a list, over all processes (arXiv 2602.00604, stages 2 and 3; the paper gives none for stage 1).
BATCH_SIZE = 16

# From arXiv 2602.00604 and its released code, where they give a value.
COMMON = {
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.01},
    "per_device_eval_batch_size": 16,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 3,
    "logging_steps": 10,
    "logging_first_step": True,
    "logging_nan_inf_filter": False,
    "report_to": ["tensorboard"],
    "remove_unused_columns": False,
    "ddp_find_unused_parameters": False,
    "ddp_timeout": 86_400,
    "hub_strategy": "end",
}
RECIPES: dict[int, dict[str, Any]] = {
    1: {
        "num_train_epochs": 3,
        "learning_rate": 1e-5,
        "metric_for_best_model": "loss",
        "data": "data/aac",
        "train": ["projector", "language_model"],
    },
    2: {
        "num_train_epochs": 20,
        "learning_rate": 1e-5,
        "dataloader_drop_last": True,
        "metric_for_best_model": "srcc",
        "data": "data/clap_pseudo",
        "train": ["projector", "score_head"],
    },
    3: {
        "num_train_epochs": 150,
        "learning_rate": 6.2e-6,
        "dataloader_drop_last": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": "srcc",
        "data": "data/xacle",
        "train": ["projector", "score_head"],
        "mask_mel_bins": 15,
        "mask_frames": 30,
        "patience": 20,
        "calibrate": True,
    },
}


def recipe(stage: int) -> dict[str, Any]:
    """Returns a stage's defaults for both kinds of arguments."""
    gpu = torch.accelerator.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    return {
        **COMMON,
        **RECIPES[stage],
        "model": f"runs/stage{stage - 1}",
        "output_dir": f"runs/stage{stage}",
        "use_cpu": not gpu,
        "bf16": gpu and torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        "dataloader_num_workers": min(8, os.cpu_count() or 1) if gpu else 0,
        "dataloader_pin_memory": gpu,
        "per_device_train_batch_size": share_of_batch(int(os.environ.get("WORLD_SIZE", 1))),
    }


def share_of_batch(num_processes: int) -> int:
    """Returns the pairs per process for which all processes together have at least the published batch."""
    return -(-BATCH_SIZE // num_processes)


def list_size(stage: StageArguments, args: TrainingArguments) -> int:
    """Returns the pairs in a list of the loss: all batches that a step accumulates, of all processes if global."""
    processes = args.world_size if stage.list_scope == "global" else 1
    return args.train_batch_size * args.gradient_accumulation_steps * processes


def read_settings(path: str) -> dict[str, Any]:
    """Reads settings from a YAML or JSON file, where they have the names of the flags."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"--config {path}: no such file.")
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: neither YAML nor JSON ({error}).") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path}: names and values are needed, such as `stage: 3`.")
    known = {entry.name for kind in (StageArguments, TrainingArguments) for entry in fields(kind) if entry.init}
    unknown = [str(name) for name in settings if name not in known]
    if unknown:
        raise ValueError(f"--config {path}: there is no setting {', '.join(unknown)}; `--help` lists them.")
    return settings


def stage_and_settings(arguments: list[str]) -> tuple[int | None, dict[str, Any], list[str]]:
    """Returns the stage, the settings in the `--config` file, and the arguments without these two flags."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stage", type=int)
    parser.add_argument("--config")
    known, rest = parser.parse_known_args(arguments)
    settings = read_settings(known.config) if known.config is not None else {}
    stage = known.stage if known.stage is not None else settings.get("stage")
    if stage is not None and stage not in STAGES:
        raise ValueError(f"--stage {stage}: the stages are {', '.join(f'{n} ({what})' for n, what in STAGES.items())}.")
    return stage, settings, rest


def model_of(settings: dict[str, Any], arguments: list[str]) -> str:
    """Returns the model that a stage starts from, by its arguments or else by its settings."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--model", default=settings["model"])
    return parser.parse_known_args(arguments)[0].model


def preset_settings(stage: int, model: str) -> dict[str, Any]:
    """Returns how a judge with two towers is trained, if its config names a preset; that overrides the recipe."""
    if not isinstance(model, str) or (model.startswith("runs/") and not Path(model).exists()):  # a folder to come
        return {}
    try:
        file = find_file(model, CONFIG_FILE)
        config = read_json(file) if file else {}
    except (ValueError, OSError):  # told when the model is loaded
        return {}
    name = config.get("preset") if isinstance(config, dict) else None
    if stage == 1 or not isinstance(name, str) or name not in PRESETS:
        return {}
    logger.info(f"{model}: trained by the settings of the preset {name}, where no other are given.")
    return PRESETS[name].settings


# Help texts that replace those of Transformers where these are wrong here.
HELP = {
    "resume_from_checkpoint": "A checkpoint of the output folder to go on from. By default the last: the same command "
    "goes on by itself.",
    "metric_for_best_model": "Metric of the validation split by which the best checkpoint is chosen.",
}


def parse_arguments(arguments: list[str] | None = None) -> tuple[StageArguments, TrainingArguments]:
    """
    Parses a stage's arguments, by default those of the command line. A flag overrides the file given by `--config`,
    which overrides the stage's recipe.

    Raises:
        FileNotFoundError: The settings file does not exist.
        ValueError: A setting is unknown or out of range, or settings do not go together.
    """
    stage, settings, rest = stage_and_settings(sys.argv[1:] if arguments is None else arguments)
    parser = HfArgumentParser(
        (StageArguments, TrainingArguments), allow_abbrev=False, description="Train one stage of the alignment model."
    )
    parser.add_argument("--config", help="YAML or JSON file of settings, by the names of the flags.")
    for action in parser._actions:
        action.help = HELP.get(action.dest, action.help)
    if stage is not None:
        own = preset_settings(stage, model_of({**recipe(stage), **settings}, rest))
        parser.set_defaults(**{**recipe(stage), **own, **settings})
        rest = ["--stage", str(stage), *rest]
    elif {"-h", "--help"}.intersection(rest):
        parser.set_defaults(**defaults_by_stage(parser))
    try:
        stage_arguments, training_arguments, *_, unknown = parser.parse_args_into_dataclasses(
            rest, return_remaining_strings=True, look_for_args_file=False
        )
    except ValueError as error:
        raise ValueError(_in_one_sentence(error)) from error
    if unknown:
        raise ValueError(f"There is no setting {' '.join(unknown)}; `--help` lists them.")
    _check_training(stage_arguments.stage, training_arguments)
    if stage_arguments.patience:
        _be_patient(stage_arguments.stage, training_arguments)
    training_arguments.disable_tqdm |= not sys.stderr.isatty()
    schedule, settings_of_schedule = training_arguments.lr_scheduler_type, training_arguments.lr_scheduler_kwargs
    if "min_lr" not in schedule and settings_of_schedule == COMMON["lr_scheduler_kwargs"]:
        training_arguments.lr_scheduler_kwargs = None  # the recipe's fit its own schedule only
    return stage_arguments, training_arguments


def defaults_by_stage(parser: ArgumentParser) -> dict[str, Any]:
    """Returns the recipes' defaults for `--help` without a stage, listed by stage where they differ."""
    recipes = {stage: recipe(stage) for stage in STAGES}
    shown = {}
    for name in {name for settings in recipes.values() for name in settings}:
        values = {stage: settings.get(name, parser.get_default(name)) for stage, settings in recipes.items()}
        words = {stage: " ".join(value) if isinstance(value, list) else str(value) for stage, value in values.items()}
        by_stage = ", ".join(f"stage {stage}: {word}" for stage, word in words.items())
        shown[name] = by_stage if len(set(words.values())) > 1 else words[1]
    return shown


def _in_one_sentence(error: ValueError) -> str:
    """Restates an error of `TrainingArguments` about settings that do not go together, in terms of the flags."""
    if "save and eval strategy to match" in str(error):
        return (
            "--eval_strategy and --save_strategy differ, but the best checkpoint is kept: give both, either epoch, or "
            "steps with --save_steps a multiple of --eval_steps."
        )
    return " ".join(str(error).split())


def _check_training(stage: int, args: TrainingArguments) -> None:
    """Refuses settings that `Trainer` would refuse later with a traceback, or would not apply as meant."""
    if args.push_to_hub and args.hub_strategy != HubStrategy.END:
        chosen = args.hub_strategy.value
        raise ValueError(f"--hub_strategy {chosen}: leave it out, the result is uploaded once, when it is finished.")
    if args.remove_unused_columns:
        raise ValueError("--remove_unused_columns true: sounds and captions are columns of the dataset; leave it out.")
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    if metric not in STAGE_METRICS[stage]:
        raise ValueError(f"--metric_for_best_model {metric}: stage {stage} has {', '.join(STAGE_METRICS[stage])}.")
    # `TrainingArguments` assumes that larger is better for everything but losses.
    args.greater_is_better = STAGE_METRICS[stage][metric]
    get_reporting_integration_callbacks(args.report_to)  # refuses unknown names
    for name in args.report_to:
        if name != "flyte" and name not in get_available_reporting_integrations():  # Flyte is not in that list
            raise ValueError(
                f"--report_to {name}: it is not installed; install it (pip install {name}), or leave it out."
            )


def _be_patient(stage: int, args: TrainingArguments) -> None:
    """Ensures what `--patience` needs: a checkpoint at each evaluation, and the best of them as the result."""
    if args.eval_strategy != args.save_strategy or args.eval_strategy == "no":
        raise ValueError(
            "--patience needs a checkpoint at each evaluation: give --eval_strategy and --save_strategy the same, "
            "epoch or steps, or switch it off with --patience 0."
        )
    if stage == 3 and not args.load_best_model_at_end:
        raise ValueError(
            "--load_best_model_at_end false: --patience ends long after the best weights, so these are the result; "
            "--patience 0 keeps the last."
        )
    args.load_best_model_at_end = True
