"""The stages end to end on a tiny model: what is trained and what is not, resuming, caches, processes, errors."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PARITY
from safetensors.torch import load_file
from stage_runs import SUBPROCESS_SECONDS, TRAIN, command, every, finish, launch, launch_two
from transformers import AutoModelForMultimodalLM, TrainerCallback, pipeline

import run_stage
from modeling_xacle import XacleModel
from modeling_xacle.checkpoints.building import init_model
from modeling_xacle.data.pairs import load_pairs, make_dataset, save_dataset
from modeling_xacle.evaluation.calibrate import fit_calibration
from modeling_xacle.evaluation.metrics import alignment_metrics
from modeling_xacle.modeling_beats import BeatsModel
from modeling_xacle.training.collators import CaptionCollator
from modeling_xacle.training.freezing import alignment_model, choose_trained
from modeling_xacle.training.recipes import parse_arguments
from modeling_xacle.training.resuming import total_batch_size, train
from modeling_xacle.training.run import check_lists, check_processes, load_splits, load_start, make_trainer


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def assert_same_weights(first, second, tolerance=0.0):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        difference = (tensor - second[name]).abs().max().item()
        assert difference <= tolerance, f"{name}: {difference}"


def moved(before, after):
    """Names of the weights that training changed."""
    before, after = weights(before), weights(after)
    return {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}


@pytest.fixture(scope="module")
def trained(pairs, model_folder, tmp_path_factory):
    """A run of stage 3 as it is by default."""
    output = tmp_path_factory.mktemp("runs") / "stage3"
    run_stage.main(command(3, pairs, model_folder, output))
    return output


def test_a_stage_ends_in_a_folder_that_pipeline_loads(trained, pairs):
    align = pipeline("audio-text-alignment", model=str(trained), device="cpu")
    assert align.model.config.training_stage == 3
    row = load_pairs(pairs, "validation")[0]
    assert np.isfinite(align({"audio": row["audio"], "text": row["text"]})["score"])
    card = (trained / "README.md").read_text()
    metrics = json.loads((trained / "training_log.json").read_text())["metrics"]
    assert f"| SRCC | {metrics['eval_srcc']:.4f} |" in card
    assert "model-index" in card
    assert (trained / "training_curves.png").stat().st_size > 5000
    assert not list(trained.rglob("training_args.bin"))


def test_frozen_stays_frozen_and_trained_moves(trained, model_folder):
    changed = moved(model_folder, trained)
    expected = {name for name in weights(trained) if name.startswith(("projector", "score_head"))}
    assert changed == expected


def test_logged_metrics_are_those_of_the_saved_model(trained, pairs):
    align = pipeline("audio-text-alignment", model=str(trained), device="cpu")
    rows = load_pairs(pairs, "validation")
    scores = [align({"audio": row["audio"], "text": row["text"]})["score"] for row in rows]
    found = alignment_metrics(scores, 5 * (np.array(rows["label"][:]) + 1))
    metrics = json.loads((trained / "training_log.json").read_text())["metrics"]
    assert metrics["eval_srcc"] == pytest.approx(found["SRCC"], abs=1e-9)
    assert metrics["eval_mse"] == pytest.approx(found["MSE"], abs=1e-4)


def test_calibration_is_least_squares_keeps_the_order_and_improves_the_scale(trained, pairs):
    config = XacleModel.from_pretrained(trained).config
    history = json.loads((trained / "training_log.json").read_text())
    best = max((entry for entry in history["log"] if "eval_srcc" in entry), key=lambda entry: entry["eval_srcc"])
    assert history["metrics"]["eval_mse"] < best["eval_mse"]
    assert history["metrics"]["eval_srcc"] == pytest.approx(best["eval_srcc"])
    assert config.calibration_scale > 0
    generator = np.random.default_rng(0)
    logits = generator.normal(size=50)
    labels = 0.3 * logits + 0.2 + 0.1 * generator.normal(size=50)
    np.testing.assert_allclose(fit_calibration(logits, labels), np.polyfit(logits, labels, 1))
    with pytest.raises(ValueError, match="nothing to calibrate"):
        fit_calibration(logits, -labels)


class Spy(TrainerCallback):
    """Which parts are in training mode after each step."""

    def __init__(self):
        self.modes = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        inner = alignment_model(model)
        self.modes.append({name: part.training for name, part in inner.named_children()})


def run_with_spy(arguments):
    stage, args = parse_arguments(arguments)
    splits = load_splits(stage, total_batch_size(args))
    model, processor = load_start(stage)
    trainer = make_trainer(stage, args, choose_trained(model, stage), processor, *splits)
    spy = Spy()
    trainer.add_callback(spy)
    train(trainer, None)
    return spy.modes


@pytest.mark.parametrize(
    ("more", "in_training"),
    [
        ([], {"projector", "score_head"}),
        (["--train", "projector", "language_model"], {"projector", "language_model"}),
        (["--train", "score_head", "special_tokens"], {"score_head"}),
        (["--train", "audio_tower", "--mask_frames", 0], {"audio_tower"}),
        (["--lora_rank", 2], {"projector", "score_head", "language_model"}),
    ],
)
def test_dropout_is_off_in_frozen_parts(pairs, model_folder, tmp_path, more, in_training):
    modes = run_with_spy(command(3, pairs, model_folder, tmp_path, "--max_steps", 2, *more))
    assert len(modes) == 2
    for mode in modes:
        assert {name for name, training_mode in mode.items() if training_mode} == in_training


def masked_shares(monkeypatch, arguments):
    """For each pass of the encoder, the share of bins that are exactly the mask's value."""
    shares = []
    forward = BeatsModel.forward

    def spy(self, input_features, **kwargs):
        shares.append((input_features == 0).float().mean().item())
        return forward(self, input_features, **kwargs)

    monkeypatch.setattr(BeatsModel, "forward", spy)
    run_with_spy(arguments)
    return shares[:3], shares[3:]  # three steps of an epoch, then validation


@pytest.mark.parametrize("parts", [["projector"], ["projector", "audio_tower"]])
def test_augmentation_in_training_only_whether_or_not_the_encoder_is_frozen(
    pairs, model_folder, tmp_path, monkeypatch, parts
):
    arguments = command(3, pairs, model_folder, tmp_path, "--num_train_epochs", 1, "--train", *parts)
    steps, validation = masked_shares(monkeypatch, arguments)
    assert min(steps) > 0.005
    assert max(validation) == 0
    steps, _ = masked_shares(monkeypatch, [*arguments, "--mask_mel_bins", "0", "--mask_frames", "0"])
    assert max(steps) == 0


def test_the_feature_cache_gives_the_same_weights(pairs, model_folder, tmp_path, monkeypatch):
    plain = ["--mask_mel_bins", 0, "--mask_frames", 0]
    run_stage.main(command(3, pairs, model_folder, tmp_path / "plain", *plain))
    cache = [*plain, "--cache_audio_features", True, "--cache_dir", tmp_path / "cache"]
    run_stage.main(command(3, pairs, model_folder, tmp_path / "cached", *cache))
    assert_same_weights(tmp_path / "plain", tmp_path / "cached", tolerance=1e-5)
    assert moved(model_folder, tmp_path / "cached")

    def no_encoder(*_, **__):
        raise AssertionError("the encoder ran")

    monkeypatch.setattr(BeatsModel, "forward", no_encoder)
    run_stage.main(command(3, pairs, model_folder, tmp_path / "again", *cache))
    assert_same_weights(tmp_path / "again", tmp_path / "cached")


def test_augmented_views_are_trained_on(pairs, model_folder, tmp_path):
    cache = ["--cache_audio_features", True, "--cache_dir", tmp_path / "cache", "--augmented_views", 2]
    run_stage.main(command(3, pairs, model_folder, tmp_path / "views", *cache))
    assert np.load(next((tmp_path / "cache").rglob("*.npy")), mmap_mode="r").shape[0] == 3
    plain = ["--mask_mel_bins", 0, "--mask_frames", 0]
    run_stage.main(command(3, pairs, model_folder, tmp_path / "plain", *plain))
    assert any(not torch.equal(a, weights(tmp_path / "plain")[name]) for name, a in weights(tmp_path / "views").items())


def test_stage_1_captions_and_stage_2_starts_from_it(pairs, model_folder, tmp_path):
    first = tmp_path / "stage1"
    run_stage.main(command(1, pairs, model_folder, first))
    changed = {name.removeprefix("model.") for name in weights(first)}
    before = weights(model_folder)
    after = {name.removeprefix("model."): tensor for name, tensor in weights(first).items()}
    assert {name for name in changed if not torch.equal(after[name], before[name])} == {
        name for name in before if name.startswith(("projector", "language_model"))
    }
    samples = json.loads((first / "sample_captions.json").read_text())
    assert [sample["id"] for sample in samples] == load_pairs(pairs, "validation")["id"][:8:2]
    model, info = AutoModelForMultimodalLM.from_pretrained(first, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    run_stage.main(command(2, pairs, first, tmp_path / "stage2"))
    second = weights(tmp_path / "stage2")
    for name, tensor in model.model.language_model.state_dict().items():
        torch.testing.assert_close(second[f"language_model.{name}"], tensor, rtol=0, atol=0)
    assert XacleModel.from_pretrained(tmp_path / "stage2").config.training_stage == 2


@pytest.fixture(scope="module")
def likelihood_folder(tmp_path_factory):
    """An untrained model that computes captions' likelihoods."""
    output = tmp_path_factory.mktemp("likelihood") / "model"
    init_model(PARITY / "beats.pt", str(PARITY / "llm"), output, caption_likelihood=True)
    return output


def test_captioning_goes_on_beside_the_list_loss(pairs, likelihood_folder, tmp_path):
    rows = list(load_pairs(pairs, "validation"))
    losses = []
    for weight in (0, 3):
        stage, args = parse_arguments(command(2, pairs, likelihood_folder, tmp_path, "--caption_weight", weight))
        model, processor = load_start(stage)
        splits = load_splits(stage, 8)
        trainer = make_trainer(stage, args, choose_trained(model, stage), processor, *splits)
        with torch.no_grad():
            losses.append(trainer.compute_loss(model.eval(), trainer.data_collator(rows)).item())
    captioner, collate = AutoModelForMultimodalLM.from_pretrained(likelihood_folder).eval(), CaptionCollator(processor)
    with torch.no_grad():
        own = [captioner(**collate([row])).loss.item() for row in rows if not row["is_negative"]]
    assert 0 < len(own) < len(rows)
    assert losses[1] - losses[0] == pytest.approx(3 * sum(own) / len(rows), rel=1e-4)
    run_stage.main(command(2, pairs, likelihood_folder, tmp_path / "out", "--caption_weight", 3))
    assert "eval_srcc" in json.loads((tmp_path / "out" / "training_log.json").read_text())["metrics"]


def test_perplexity_counts_every_token_once(pairs, model_folder, processor, tmp_path):
    run_stage.main(command(1, pairs, model_folder, tmp_path, "--max_steps", 1, "--per_device_eval_batch_size", 3))
    metrics = json.loads((tmp_path / "training_log.json").read_text())["metrics"]
    model = AutoModelForMultimodalLM.from_pretrained(tmp_path).eval()
    total, tokens = 0.0, 0
    for row in load_pairs(pairs, "validation"):
        inputs = processor.prepare_captioning([row["audio"]], [row["text"]])
        count = int((inputs["labels"] != -100).sum())
        with torch.no_grad():
            total += float(model(**inputs).loss) * count
        tokens += count
    assert metrics["eval_perplexity"] == pytest.approx(np.exp(total / tokens), rel=1e-4)


@pytest.mark.parametrize("stage", [1, 3])
def test_accumulated_batches_are_one_batch(pairs, steady_folder, tmp_path, stage):
    loss = ["--loss", "mse"] if stage == 3 else []
    run_stage.main(command(stage, pairs, steady_folder, tmp_path / "one", *loss))
    parts = ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 2]
    run_stage.main(command(stage, pairs, steady_folder, tmp_path / "two", *loss, *parts))
    assert_same_weights(tmp_path / "one", tmp_path / "two", tolerance=5e-5)


@pytest.mark.parametrize("loss", ["listnet_mse", "clipped_contrastive"])
def test_a_list_spans_the_batches_that_are_accumulated(pairs, steady_folder, tmp_path, loss):
    """The last 8 of 24 rows are left out either way."""
    losses = []
    for batch, steps in ((16, 1), (4, 4)):
        batches = ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", steps]
        output = tmp_path / str(steps)
        run_stage.main(command(3, pairs, steady_folder, output, "--loss", loss, "--num_train_epochs", 3, *batches))
        log = json.loads((output / "training_log.json").read_text())["log"]
        losses.append([entry["loss"] for entry in log if "loss" in entry])
        assert "| pairs of a list | `16` |" in (output / "README.md").read_text()
    assert_same_weights(tmp_path / "1", tmp_path / "4", tolerance=5e-5)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_both_passes_over_accumulated_batches_draw_alike(pairs, model_folder, tmp_path, monkeypatch):
    forward, seen = XacleModel.forward, {False: [], True: []}

    def spy(self, *args, **kwargs):
        outputs = forward(self, *args, **kwargs)
        if self.training:
            seen[torch.is_grad_enabled()].append(outputs.logits.detach())
        return outputs

    monkeypatch.setattr(XacleModel, "forward", spy)
    assert XacleModel.from_pretrained(model_folder).config.score_head_dropout > 0
    batches = ["--per_device_train_batch_size", 4, "--gradient_accumulation_steps", 3, "--learning_rate", 0]
    run_with_spy(command(3, pairs, model_folder, tmp_path, "--num_train_epochs", 1, *batches))
    assert len(seen[False]) == len(seen[True]) == 6
    assert all(torch.equal(first, second) for first, second in zip(seen[False], seen[True], strict=True))


def test_lists_of_one_pair_are_refused(pairs, model_folder, tmp_path, monkeypatch):
    def check(*more):
        stage, args = parse_arguments(command(3, pairs, model_folder, tmp_path / "out", *more))
        check_lists(stage, args, TRAIN)

    one = ["--per_device_train_batch_size", 1]
    for loss in ("listnet", "listnet_mse", "clipped_contrastive"):
        with pytest.raises(ValueError, match=f"--loss {loss} compares the pairs of a list, which would be one pair"):
            check(*one, "--loss", loss)
    for loss in ("mse", "ordinal"):
        check(*one, "--loss", loss)
    check(*one, "--gradient_accumulation_steps", 2)
    with pytest.raises(ValueError, match=r"leave one pair for the last list of an epoch.*--dataloader_drop_last true"):
        check("--per_device_train_batch_size", 23, "--dataloader_drop_last", "false")
    with pytest.raises(ValueError, match="would be one pair"):
        run_stage.main(command(3, pairs, model_folder, tmp_path / "out", *one))


def test_special_tokens_alone(pairs, model_folder, tmp_path):
    run_stage.main(command(3, pairs, model_folder, tmp_path, "--train", "special_tokens"))
    assert moved(model_folder, tmp_path) == {"language_model.embed_tokens.weight"}
    before, after = (weights(folder)["language_model.embed_tokens.weight"] for folder in (model_folder, tmp_path))
    config = XacleModel.from_pretrained(tmp_path).config
    rows = [config.audio_start_token_id, config.audio_end_token_id, config.score_token_id]
    assert (before != after).any(dim=1).nonzero().flatten().tolist() == sorted(rows)


def test_adapters_are_merged_and_kept(pairs, model_folder, tmp_path):
    parts = ["--lora_rank", 2, "--train", "projector", "special_tokens"]
    run_stage.main(command(3, pairs, model_folder, tmp_path, *parts))
    _, info = XacleModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    changed = moved(model_folder, tmp_path)
    assert any("q_proj.weight" in name for name in changed) and any("down_proj.weight" in name for name in changed)
    assert not any(name.startswith(("audio_tower", "score_head")) for name in changed)
    kept = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any("lora_A" in name for name in kept) and any("projector" in name for name in kept)


def test_gradient_checkpointing_changes_nothing(pairs, steady_folder, tmp_path):
    parts = ["--train", "projector", "score_head", "language_model", "--max_steps", 2]
    run_stage.main(command(3, pairs, steady_folder, tmp_path / "plain", *parts))
    run_stage.main(command(3, pairs, steady_folder, tmp_path / "saving", *parts, "--activation_checkpointing", True))
    assert_same_weights(tmp_path / "plain", tmp_path / "saving", tolerance=1e-6)


def test_a_finished_or_stopped_run_is_taken_up_where_it_was(pairs, model_folder, tmp_path):
    arguments = command(3, pairs, model_folder, tmp_path, "--patience", 1, "--num_train_epochs", 12)
    run_stage.main(arguments)
    log = json.loads((tmp_path / "training_log.json").read_text())["log"]
    assert max(entry["epoch"] for entry in log) < 12
    (tmp_path / "model.safetensors").rename(tmp_path / "first.safetensors")
    run_stage.main(arguments)
    for name, tensor in load_file(tmp_path / "first.safetensors").items():
        torch.testing.assert_close(weights(tmp_path)[name], tensor, rtol=0, atol=0)


def test_other_settings_are_another_run(pairs, model_folder, tmp_path):
    run_stage.main(command(3, pairs, model_folder, tmp_path, "--max_steps", 3, *every(2)))
    arguments = command(3, pairs, model_folder, tmp_path, "--temperature", 0.5)
    with pytest.raises(ValueError, match=r"other settings \(temperature 1.0 then, 0.5 now.*--restart true"):
        run_stage.main(arguments)
    run_stage.main([*arguments, "--restart", "true"])
    assert "`0.5`" in (tmp_path / "README.md").read_text()


def test_killed_and_started_again_ends_as_the_uninterrupted_run(pairs, model_folder, tmp_path):
    more = ["--num_train_epochs", 4, *every(2)]
    run_stage.main(command(3, pairs, model_folder, tmp_path / "whole", *more))
    arguments = command(3, pairs, model_folder, tmp_path / "killed", *more)
    process = launch(arguments)
    deadline = time.monotonic() + SUBPROCESS_SECONDS
    while not (tmp_path / "killed/checkpoint-4").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)  # most often while the checkpoint is being written
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed/model.safetensors").exists()
    run_stage.main(arguments)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


def test_an_incomplete_checkpoint_is_not_resumed_from(pairs, model_folder, tmp_path):
    arguments = command(3, pairs, model_folder, tmp_path / "run")
    run_stage.main(arguments)
    first = weights(tmp_path / "run")
    (tmp_path / "run/model.safetensors").unlink()
    (tmp_path / "run/checkpoint-6/trainer_state.json").write_text('{"epoch": 1.')
    run_stage.main(arguments)
    for name, tensor in weights(tmp_path / "run").items():
        torch.testing.assert_close(tensor, first[name], rtol=0, atol=0)


@pytest.mark.parametrize("stage", [1, 3])
def test_two_processes_equal_one(pairs, steady_folder, tmp_path, stage):
    loss = ["--loss", "listnet_mse", "--temperature", 0.5, "--class_balance"] if stage == 3 else []
    parts = ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--num_processes", 2]
    process = launch_two(command(stage, pairs, steady_folder, tmp_path / "two", *loss, *parts))
    run_stage.main(command(stage, pairs, steady_folder, tmp_path / "one", *loss))
    finish(process)
    assert_same_weights(tmp_path / "one", tmp_path / "two", tolerance=5e-5)
    logs = [json.loads((tmp_path / name / "training_log.json").read_text())["metrics"] for name in ("one", "two")]
    for name in ("eval_srcc", "eval_mse") if stage == 3 else ("eval_perplexity",):
        assert logs[0][name] == pytest.approx(logs[1][name], rel=1e-3)


def test_processes_that_would_train_alone_are_refused(pairs, model_folder, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="--num_processes 2, but 1 train together"):
        run_stage.main(command(3, pairs, model_folder, tmp_path, "--num_processes", 2))
    stage, args = parse_arguments(command(3, pairs, model_folder, tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, but each would train alone"):
        check_processes(stage, args)


@pytest.fixture
def broken(pairs, tmp_path):
    """Makes a dataset whose rows went through a function, by split."""

    def make(change):
        splits = {
            name: make_dataset([row for row in map(change(name), split.to_list()) if row is not None])
            for name, split in load_pairs(pairs).items()
        }
        save_dataset(splits, tmp_path / "broken")
        return tmp_path / "broken"

    return make


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda split: lambda row: {**row, "label": 1.5}, r"split train: 24 problems.*\n  0: the label 1.5 is not in"),
        (lambda split: lambda row: {**row, "label": float("nan")}, "the label is not a number"),
        (lambda split: lambda row: {**row, "label": None}, "rows have no label, which stage 3 learns from"),
        (lambda split: lambda row: None if split == "validation" else row, "a split may be empty .*validation"),
        (lambda split: lambda row: row if int(row["id"]) < 7 or split != "train" else None, "7 rows are no batch of 8"),
        (lambda split: lambda row: {**row, "audio": "/nowhere/x.wav"}, "there is no file /nowhere/x.wav"),
        (lambda split: lambda row: {**row, "text": " "}, "the text is empty"),
    ],
)
def test_bad_data_is_refused_before_the_first_step(broken, model_folder, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run_stage.main(command(3, broken(change), model_folder, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_captioning_beside_the_list_loss_needs_likelihoods_and_own_captions(
    pairs, broken, model_folder, likelihood_folder, tmp_path
):
    def run(stage, data, model):
        run_stage.main(command(stage, data, model, tmp_path / "out", "--caption_weight", 1))

    with pytest.raises(ValueError, match="it computes no likelihoods, which --caption_weight needs"):
        run(2, pairs, model_folder)
    nameless = broken(lambda split: lambda row: {**row, "is_negative": None})
    with pytest.raises(ValueError, match="is_negative is not known of all rows, by which --caption_weight"):
        run(2, nameless, likelihood_folder)
    with pytest.raises(ValueError, match="leave it to stage 2"):
        run(1, pairs, likelihood_folder)
    with pytest.raises(ValueError, match="must not be negative"):
        run_stage.main(command(2, pairs, likelihood_folder, tmp_path / "out", "--caption_weight", -1))
