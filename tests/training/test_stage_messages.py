"""What a stage tells: its summary, progress without a terminal, and one line where something is wrong."""

import errno
import json
import logging
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file
from stage_runs import SUBPROCESS_SECONDS, command, every

import run_stage
from modeling_xacle.data.files import saving
from modeling_xacle.data.pairs import load_pairs, make_dataset, save_dataset
from modeling_xacle.training import progress
from modeling_xacle.training.recipes import StageArguments
from modeling_xacle.training.run import load_splits, tell_stop
from modeling_xacle.training.trainers import StageTrainer


@pytest.fixture(scope="module")
def finished(pairs, model_folder, tmp_path_factory):
    """A run of stage 3 in a process of its own, without a terminal, under a umask of 027."""
    output = tmp_path_factory.mktemp("finished") / "stage3"
    process = subprocess.run(
        [sys.executable, str(ROOT / "run_stage.py"), *command(3, pairs, model_folder, output)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SUBPROCESS_SECONDS,
        umask=0o027,
    )
    assert process.returncode == 0, process.stderr
    return output, process


def test_a_stage_ends_with_a_summary(finished):
    output, process = finished
    first, validation, calibration, result, following = process.stdout.splitlines()
    assert first.startswith("stage 3 (listeners' scores): 6 steps, weights of step ")
    log = json.loads((output / "training_log.json").read_text())
    low, high = log["intervals"]["srcc"]
    assert f"SRCC {round(log['metrics']['eval_srcc'], 4):.4g} [{low:.4g}, {high:.4g}]" in validation
    assert calibration.startswith("calibration: scale ")
    assert str(output) in result and "README.md" in result
    assert following == f"next: xacle score PAIRS.csv --model {output} -o scores.csv"


def test_progress_is_told_without_a_terminal(finished):
    lines = finished[1].stderr.splitlines()
    assert "A list of the loss has 8 pairs: 8 of a batch x 1 accumulated x 1 processes." in lines
    assert any(line.startswith("validation at step 3: srcc ") for line in lines)


def test_saved_files_have_ordinary_permissions(finished, model_folder):
    output, _ = finished
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in output.rglob("*") if path.is_file()}
    assert "model.safetensors" in modes and "optimizer.pt" in modes
    assert set(modes.values()) == {0o640}, modes
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((model_folder / "model.safetensors").stat().st_mode) == 0o666 & ~umask


def state_at(step):
    return SimpleNamespace(global_step=step, max_steps=100, epoch=step / 50, is_world_process_zero=True)


def test_a_line_every_so_often(monkeypatch, caplog):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = progress.ProgressLines(seconds=30)
    with caplog.at_level(logging.INFO, logger="modeling_xacle"):
        lines.on_train_begin(None, state_at(20), None)
        lines.on_log(None, state_at(21), None, logs={"loss": 0.125})
        for step in range(21, 60):  # two seconds each
            clock[0] += 2
            lines.on_step_end(None, state_at(step), None)
        clock[0] += 40
        lines.on_prediction_step(None, state_at(59), None, eval_dataloader=[None] * 8)
        lines.on_evaluate(None, state_at(59), None, metrics={"eval_srcc": 0.5, "eval_runtime": 3.0, "epoch": 1.0})
    assert caplog.messages == [
        "step 35 of 100 (epoch 0.70), loss 0.125, 0:02:10 left",
        "step 50 of 100 (epoch 1.00), loss 0.125, 0:01:40 left",
        "validation: batch 1 of 8",
        "validation at step 59: srcc 0.5",
    ]


def test_ctrl_c_tells_what_is_saved(pairs, model_folder, tmp_path):
    arguments = command(3, pairs, model_folder, tmp_path / "run", "--num_train_epochs", 500, *every(2), "--patience", 0)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_stage.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + SUBPROCESS_SECONDS
    while not (tmp_path / "run/checkpoint-4").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=SUBPROCESS_SECONDS)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    last = stderr.strip().splitlines()[-1]
    assert last.startswith(f"stopped: {tmp_path / 'run'}/checkpoint-")
    assert last.endswith("is saved; the same command goes on from there.")


def test_stopped_before_the_first_checkpoint(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()  # half written
    assert tell_stop(tmp_path) == f"stopped: {tmp_path} has no checkpoint yet; the same command begins anew."


@pytest.fixture
def full_disk():
    """No file may grow beyond 64 kB: the nearest thing to a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def write_too_much(folder):
    (folder / "table.txt").write_text("x" * 2**17)


@pytest.mark.parametrize(
    "write",
    [
        write_too_much,
        lambda folder: torch.save(torch.zeros(2**17), folder / "optimizer.pt"),
        lambda folder: save_file({"weight": torch.zeros(2**17)}, folder / "model.safetensors"),
    ],
)
def test_a_half_written_folder_is_removed(write, tmp_path, full_disk):
    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    with (
        pytest.raises(OSError, match=r"checkpoint-1 could not be written and was removed: .*there is room") as error,
        saving(folder),
    ):
        write(folder)
    assert "\n" not in str(error.value)
    assert not folder.exists()


def test_a_full_disk_keeps_earlier_checkpoints(pairs, model_folder, tmp_path, monkeypatch):
    write = StageTrainer._save

    def fail(self, folder=None, *args, **kwargs):
        write(self, folder, *args, **kwargs)
        if folder.endswith("checkpoint-4"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(StageTrainer, "_save", fail)
    with pytest.raises(OSError, match=r"checkpoint-4 could not be written and was removed: .*No space left on device"):
        run_stage.main(command(3, pairs, model_folder, tmp_path, *every(2)))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-2"]


def stage_of(data, **settings):
    return StageArguments(stage=3, data=str(data), train=["score_head"], **settings)


def test_a_missing_split_tells_the_remedy(pairs, tmp_path):
    save_dataset({name: load_pairs(pairs, "train") for name in ("train", "test")}, tmp_path / "data")
    with pytest.raises(ValueError, match=r"name another \(--validation_split test\), or make .*prepare_xacle\.py"):
        load_splits(stage_of(tmp_path / "data"), 8)
    with pytest.raises(ValueError, match=r"split learning: .*name another \(--train_split t"):
        load_splits(stage_of(tmp_path / "data", train_split="learning"), 8)


def test_equal_labels_are_a_warning(pairs, tmp_path, caplog):
    rows = [{**row, "label": 0.5} for row in load_pairs(pairs, "train").to_list()]
    save_dataset({name: make_dataset(rows) for name in ("train", "validation")}, tmp_path / "data")
    load_splits(stage_of(tmp_path / "data"), 8)
    assert [message.split(": ", 1)[1] for message in caplog.messages] == [
        "all 24 labels are 0.5, so there is no order to learn.",
        "all 24 labels are 0.5, so there is no order to measure: correlations are undefined (told as 0).",
    ]


def test_a_file_without_rows_is_told_in_one_line(tmp_path):
    (tmp_path / "train.jsonl").touch()
    with pytest.raises(ValueError, match=r"cannot be read, a split may be empty \(a file has no rows"):
        load_pairs(tmp_path)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("shapes differ")])
def test_what_is_stopped_while_it_is_written_is_gone(error, tmp_path):
    """Else the same command would find a folder that is not empty. The error is no full disk's."""
    folder = tmp_path / "model"
    with pytest.raises(type(error)) as raised, saving(folder):
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise error
    assert raised.value is error and not folder.exists()


def test_missing_start_and_data_say_how_to_get_them(pairs, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage, hint in ((1, "xacle init"), (3, "run_stage.py --stage 2")):
        with pytest.raises(FileNotFoundError, match=hint):
            run_stage.main(["--stage", str(stage), "--data", str(pairs), "--use_cpu", "true"])
    for stage, script in ((1, "prepare_aac"), (2, "label_pairs"), (3, "prepare_xacle")):
        with pytest.raises(FileNotFoundError, match=rf"dataset_scripts/{script}\.py"):
            run_stage.main(["--stage", str(stage), "--model", str(model_folder), "--use_cpu", "true"])


def test_a_checkpoint_of_another_architecture_is_refused(pairs, tmp_path):
    with pytest.raises(ValueError, match="a model of type qwen2, not xacle"):
        run_stage.main(command(3, pairs, ROOT / "tests/fixtures/parity/llm", tmp_path))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--eval_strategy", "no"], "--patience needs a checkpoint at each evaluation"),
        (["--eval_strategy", "steps", "--eval_steps", "1"], "--patience needs a checkpoint at each evaluation"),
    ],
)
def test_settings_that_do_not_go_together(pairs, model_folder, tmp_path, more, message):
    with pytest.raises(ValueError, match=message):
        run_stage.main([*command(2, pairs, model_folder, tmp_path, "--patience", 3), *more])


def test_a_loss_that_is_no_number_ends_the_run(pairs, model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"(loss is nan|loss is inf|not finite).*lower --learning_rate"):
        run_stage.main(command(3, pairs, model_folder, tmp_path, "--learning_rate", 1e30, "--logging_steps", 1))


def test_without_data_the_command_ends_in_one_line(tmp_path):
    process = subprocess.run(
        [sys.executable, str(ROOT / "run_stage.py"), "--stage", "3", "--use_cpu", "true"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=SUBPROCESS_SECONDS,
    )
    assert process.returncode == 1
    assert process.stderr.strip().splitlines()[-1].startswith("error: data/xacle, the default dataset of stage 3")
