"""Settings of the stages: the published recipes, files, flags, and what is refused."""

import json
from dataclasses import fields

import pytest
import yaml
from transformers import TrainingArguments

from modeling_xacle.training import recipes
from modeling_xacle.training.recipes import StageArguments, list_size, parse_arguments, recipe, share_of_batch

COMMON = {
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "cosine_with_min_lr",
    "lr_scheduler_kwargs": {"min_lr_rate": 0.01},
    "warmup_steps": 0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "loss": "listnet",
    "temperature": 1.0,
    "list_scope": "global",
    "class_balance": False,
    "targets": "mean",
    "lora_rank": 0,
    "cache_audio_features": False,
}
PUBLISHED = {
    1: {
        "num_train_epochs": 3,
        "learning_rate": 1e-5,
        "train": ["projector", "language_model"],
        "mask_mel_bins": 0,
        "mask_frames": 0,
        "patience": 0,
        "load_best_model_at_end": False,
        "calibrate": False,
        "model": "runs/stage0",
        "data": "data/aac",
        "output_dir": "runs/stage1",
    },
    2: {
        "num_train_epochs": 20,
        "learning_rate": 1e-5,
        "train": ["projector", "score_head"],
        "mask_mel_bins": 0,
        "mask_frames": 0,
        "patience": 0,
        "load_best_model_at_end": False,
        "dataloader_drop_last": True,
        "calibrate": False,
        "model": "runs/stage1",
        "data": "data/clap_pseudo",
        "output_dir": "runs/stage2",
    },
    3: {
        "num_train_epochs": 150,
        "learning_rate": 6.2e-6,
        "train": ["projector", "score_head"],
        "mask_mel_bins": 15,
        "mask_frames": 30,
        "patience": 20,
        "load_best_model_at_end": True,
        "metric_for_best_model": "srcc",
        "greater_is_better": True,
        "save_total_limit": 3,
        "dataloader_drop_last": True,
        "calibrate": True,
        "model": "runs/stage2",
        "data": "data/xacle",
        "output_dir": "runs/stage3",
    },
}


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def settings(*arguments):
    """All settings in one mapping."""
    stage, training = parse_arguments([*map(str, arguments), "--use_cpu", "true", "--bf16", "false"])
    return {**vars(training), **vars(stage), "train_batch_size": training.train_batch_size}


@pytest.fixture
def write(tmp_path):
    def write(content, name="stage.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize("stage", PUBLISHED)
def test_defaults_are_the_published_ones(stage):
    found = settings("--stage", stage)
    expected = {**COMMON, **PUBLISHED[stage], "stage": stage}
    assert {name: found[name] for name in expected} == expected
    assert found["optim"].startswith("adamw")


@pytest.mark.parametrize(("num_processes", "share"), [(1, 16), (2, 8), (3, 6), (8, 2), (16, 1), (32, 1)])
def test_processes_share_the_batch(num_processes, share, monkeypatch):
    assert share_of_batch(num_processes) == share
    monkeypatch.setenv("WORLD_SIZE", str(num_processes))
    assert recipe(3)["per_device_train_batch_size"] == share


def test_a_launch_on_cpus_is_one(monkeypatch):
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: True)
    assert not recipe(3)["use_cpu"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    chosen = recipe(3)
    assert chosen["use_cpu"] and not chosen["bf16"] and chosen["dataloader_num_workers"] == 0


def test_a_flag_beats_the_file_and_the_file_the_recipe(write):
    file = write({"stage": 3, "learning_rate": 0.5, "patience": 7, "num_train_epochs": 9, "train": ["score_head"]})
    found = settings("--config", file, "--learning_rate", "0.25", "--calibrate", "false")
    assert (found["learning_rate"], found["patience"], found["num_train_epochs"]) == (0.25, 7, 9)
    assert (found["mask_frames"], found["train"], found["calibrate"]) == (30, ["score_head"], False)
    found = settings("--config", file, "--stage", 2, "--patience", 1)
    assert (found["stage"], found["data"], found["mask_frames"]) == (2, "data/clap_pseudo", 0)
    assert (found["patience"], found["learning_rate"]) == (1, 0.5)


def test_files_of_both_kinds(write):
    """YAML reads 1e-5, without a point, as a string."""
    in_yaml = settings("--config", write("stage: 2\nlearning_rate: 1e-4\ncache_audio_features: true\nreport_to: none"))
    content = {"stage": 2, "learning_rate": 1e-4, "cache_audio_features": True, "report_to": "none"}
    in_json = settings("--config", write(json.dumps(content), "stage.json"))
    for found in (in_yaml, in_json):
        assert (found["learning_rate"], found["cache_audio_features"], found["report_to"]) == (1e-4, True, [])
    assert settings("--stage=2", f"--config={write('temperature: 2')}")["temperature"] == 2
    assert settings("--stage=3", f"--config={write('train: score_head')}")["train"] == ["score_head"]


def test_another_schedule_goes_without_the_settings_of_the_recipes():
    assert not settings("--stage", 3, "--lr_scheduler_type", "linear")["lr_scheduler_kwargs"]
    own = settings("--stage", 3, "--lr_scheduler_type", "polynomial", "--lr_scheduler_kwargs", '{"power": 2}')
    assert own["lr_scheduler_kwargs"] == {"power": 2}
    kept = settings("--stage", 3, "--lr_scheduler_type", "cosine_warmup_with_min_lr")
    assert kept["lr_scheduler_kwargs"] == {"min_lr_rate": 0.01}


EVERY_4_AND_6 = ["--eval_strategy", "steps", "--save_strategy", "steps", "--eval_steps", "4", "--save_steps", "6"]
ZSCORE = ["--targets", "listener_zscore"]
CACHED = ["--cache_audio_features", "--augmented_views", 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", 4], r"--stage 4: the stages are 1 \(captioning\), 2 \(CLAP pseudo-labels\), 3"),
        (["--stage", 3, "--train", "head"], "--train head: choose among projector, score_head, language_model"),
        (["--stage", 3, "--loss", "ranknet"], "--loss ranknet: choose one of listnet, listnet_mse, mse"),
        (["--stage", 3, "--list_scope", "all"], "--list_scope all: choose one of global, local"),
        (["--stage", 3, "--cache_dtype", "int8"], "--cache_dtype int8: choose one of float32, float16"),
        (
            ["--stage", 3, "--class_balance"],
            "pair's own error, which --loss listnet does not have: .*--loss listnet_mse or",
        ),
        (
            ["--stage", 1, "--loss", "mse", "--class_balance"],
            r"which captioning \(stage 1\) does not have: leave it out",
        ),
        (["--stage", 3, "--targets", "median"], "--targets median: choose one of mean, listener_zscore"),
        (["--stage", 2, *ZSCORE], "--targets listener_zscore: stage 3 alone learns from listeners"),
        (["--stage", 3, "--screen_ratings", 9], "--screen_ratings 9: listeners are screened for --targets listener_zs"),
        (["--stage", 3, *ZSCORE, "--screen_ratings", 2], "--screen_ratings 2: must be at least 3"),
        (["--stage", 3, *ZSCORE, "--screen_correlation", "nan"], "--screen_correlation nan: must be from -1 to 1"),
        (["--stage", 3, *ZSCORE, "--screen_distance", -1], "--screen_distance -1.0: must not be negative"),
        (["--stage", 3, "--temperature", 0], "--temperature 0.0: must be positive"),
        (["--stage", 3, "--temperature", "nan"], "--temperature nan: must be positive"),
        (["--stage", 3, "--mask_frames", -1], "--mask_frames -1: must not be negative"),
        (["--stage", 3, "--lora_rank", 4, "--train", "language_model"], "--lora_rank .* leave language_model out"),
        (["--stage", 1, "--lora_rank", 4], r"--lora_rank .* \(--train projector\)"),
        (["--stage", 1, "--train", "score_head"], "--train score_head: captioning .* leave it out"),
        (["--stage", 1, "--calibrate"], "--calibrate: captioning .* leave it to stages 2 and 3"),
        (["--stage", 3, "--augmented_views", 8], "--augmented_views .* add --cache_audio_features"),
        (["--stage", 2, *CACHED], "--augmented_views needs SpecAugment: add --mask_mel_bins 15"),
        (["--stage", 3, *CACHED, "--train", "audio_tower"], "--cache_audio_features .* leave audio_tower out"),
        (["--stage", 3, "--cache_audio_features"], r"--augmented_views 8\), or switch it off \(--mask_mel_bins 0"),
        (["--stage", 3, "--learning_rat", 1], "no setting --learning_rat 1; `--help` lists them"),
        (["--stage", 3, "stray"], "no setting stray"),
        (["--stage", 3, "--report_to", "wandb"], r"--report_to wandb: it is not installed; .*pip install wandb"),
        (["--stage", 3, "--report_to", "paper"], "paper is not supported, only .*tensorboard"),
        (["--stage", 3, "--metric_for_best_model", "f1"], "--metric_for_best_model f1: stage 3 has srcc, lcc"),
        (
            ["--stage", 3, "--eval_strategy", "steps"],
            "^--eval_strategy and --save_strategy differ, .* give both[^\\n]*$",
        ),
        (
            ["--stage", 3, *EVERY_4_AND_6],
            r"^[^\n]*6, which is not a round multiple of 4\.$",
        ),
    ],
)
def test_refusals_name_the_flag_and_the_remedy(arguments, message, monkeypatch):
    monkeypatch.setattr(recipes, "get_available_reporting_integrations", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=message):
        settings(*arguments)


def test_what_goes_together():
    assert settings("--stage", 3, *CACHED)["augmented_views"] == 8
    assert settings("--stage", 3, "--cache_audio_features", "--mask_mel_bins", 0, "--mask_frames", 0)["patience"] == 20
    assert settings("--stage", 2, "--cache_audio_features")["augmented_views"] == 0
    assert settings("--stage", 1, "--lora_rank", 4, "--train", "projector", "special_tokens")["lora_rank"] == 4
    assert settings("--stage", 2, "--loss", "listnet_mse", "--class_balance")["class_balance"]
    assert settings("--stage", 3, *ZSCORE, "--screen_correlation", -1, "--screen_distance", 5)["screen_ratings"] == 5
    assert settings("--stage", 3, "--train", "audio_tower", "--one_sided", "--temperature", 0.5)["one_sided"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("stage: 3\nlearning_rat: 1\n3: 4", "there is no setting learning_rat, 3; `--help` lists them"),
        ("stage: 3\n_n_gpu: 2", "there is no setting _n_gpu"),
        ("- stage", "names and values are needed, such as `stage: 3`"),
        ("", "names and values are needed"),
        ("stage: [", "neither YAML nor JSON"),
        ("stage: 8", "--stage 8: the stages are 1"),
        ("stage: 3\nmask_frames: 2.5", "--mask_frames 2.5: must be of type int, not float"),
        ("stage: 3\ntrain: head", "--train head: choose among projector"),
        ("stage: 3\ntrain: 3", "--train 3: must be of type list, not int"),
        ("stage: 3\nmodel:", "--model None: must be of type str, not NoneType"),
    ],
)
def test_files_that_are_refused(content, message, write):
    with pytest.raises(ValueError, match=message):
        settings("--config", write(content))


def test_a_file_that_is_missing(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(FileNotFoundError, match=rf"--config {path}: no such file"):
            settings("--stage", 3, "--config", path)


def test_no_other_file_is_read(tmp_path, monkeypatch):
    """`HfArgumentParser` by default reads settings from a file that is named like the script."""
    (tmp_path / "run_stage.args").write_text("--patience 3")
    monkeypatch.setattr("sys.argv", [str(tmp_path / "run_stage.py"), "--stage", "3", "--use_cpu", "--bf16", "false"])
    assert parse_arguments()[0].patience == 20


def help_of(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        parse_arguments([*arguments, "--help"])
    assert end.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_shows_the_recipes_defaults_by_stage(capsys):
    text = help_of([], capsys)
    assert "--config" in text
    for default in (
        "The initial learning rate for the optimizer. (default: stage 1: 1e-05, stage 2: 1e-05, stage 3: 6.2e-06)",
        "0: never. (default: stage 1: 0, stage 2: 0, stage 3: 20)",
        "stage 1: projector language_model, stage 2: projector score_head, stage 3: projector score_head)",
        "'epoch'. (default: epoch)",
        "(default: stage 1: data/aac, stage 2: data/clap_pseudo, stage 3: data/xacle)",
    ):
        assert default in text


@pytest.mark.parametrize(("stage", "rate", "patience"), [("1", "1e-05", "0"), ("3", "6.2e-06", "20")])
def test_help_of_a_stage_shows_its_own_defaults(stage, rate, patience, capsys):
    text = help_of(["--stage", stage], capsys)
    assert f"The initial learning rate for the optimizer. (default: {rate})" in text
    assert f"0: never. (default: {patience})" in text


@pytest.mark.parametrize(
    ("stage", "metric", "greater"), [(3, "srcc", True), (3, "mse", False), (1, "perplexity", False)]
)
def test_the_best_is_what_the_metric_means_by_it(stage, metric, greater):
    assert settings("--stage", stage, "--metric_for_best_model", metric)["greater_is_better"] is greater


@pytest.mark.parametrize(
    ("arguments", "size"),
    [
        ([], 16),
        (["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 3], 6),
        (["--per_device_train_batch_size", 1], 1),
    ],
)
def test_how_long_a_list_is(arguments, size):
    assert list_size(*parse_arguments(list(map(str, ["--stage", 3, "--use_cpu", "true", *arguments])))) == size


@pytest.mark.parametrize("arguments", [[], ["--learning_rate", "1"], ["--stage", "three"], ["--stage"]])
def test_no_stage_is_a_mistake_in_the_command(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        parse_arguments(arguments)
    assert end.value.code == 2
    assert "--stage" in capsys.readouterr().err.splitlines()[-1]


def test_no_setting_of_a_stage_hides_one_of_transformers():
    own, theirs = ({entry.name for entry in fields(kind)} for kind in (StageArguments, TrainingArguments))
    assert not own & theirs
    assert all(entry.metadata["help"] for entry in fields(StageArguments))
