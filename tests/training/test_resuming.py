"""A run started again: the same data, start and settings go on where it stopped; anything else is refused."""

import json
import logging
import os
import shutil
import socket

import numpy as np
import pytest
import soundfile
import torch
from accelerate import PartialState
from conftest import run_processes
from transformers import AutoModel, AutoProcessor

import run_stage
from modeling_xacle.checkpoints.fingerprints import split_fingerprint
from modeling_xacle.data.pairs import load_pairs, make_dataset, save_dataset
from modeling_xacle.training import resuming
from modeling_xacle.training.recipes import parse_arguments
from modeling_xacle.training.run import load_splits, load_start

ROWS, VALIDATION = 8, 4


def make_pairs(folder, embed_audio=False):
    """A dataset of tones in `folder/dataset`: 8 rows to train on, 4 to validate."""
    folder.mkdir()
    rows = []
    for number in range(ROWS + VALIDATION):
        path = folder / f"{number}.wav"
        soundfile.write(path, 0.3 * np.sin(np.arange(4000) * 0.01 * (1 + number)), 16000)
        row = {"id": str(number), "audio": str(path), "text": f"sound {number}", "label": number / 12}
        rows.append({**row, "score": 5 * (row["label"] + 1)})
    save(rows, folder / "dataset", embed_audio)
    return folder / "dataset"


def save(rows, output, embed_audio=False):
    splits = {"train": make_dataset(rows[:ROWS]), "validation": make_dataset(rows[ROWS:])}
    save_dataset(splits, output, embed_audio=embed_audio)


@pytest.fixture
def pairs(tmp_path):
    return make_pairs(tmp_path / "pairs")


@pytest.fixture
def start(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "start")


@pytest.fixture
def command(pairs, start, tmp_path):
    """Arguments of a run of two steps, with some of them changed."""

    def make(*more, **changed):
        settings = {"stage": 3, "data": pairs, "model": start, "output_dir": tmp_path / "run", "max_steps": 2}
        settings |= {"per_device_train_batch_size": 4, "mask_mel_bins": 0, "mask_frames": 0, "report_to": "none"}
        settings |= {"use_cpu": True, "save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps"}
        settings |= {"eval_steps": 1, **changed}
        return [*(str(part) for name, value in settings.items() for part in (f"--{name}", value)), *more]

    return make


def look(arguments):
    """What a command finds in its output folder, before it trains."""
    stage, args = parse_arguments(arguments)
    splits = load_splits(stage, 4)
    return resuming.find_run(stage, args, *load_start(stage), splits)


def add_checkpoint(output, step, max_steps=2):
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    state = {"epoch": step / 2, "global_step": step, "max_steps": max_steps, "num_train_epochs": max_steps // 2}
    (folder / "trainer_state.json").write_text(json.dumps(state))


@pytest.fixture
def begun(command, tmp_path):
    """The output folder of a run that was killed after its first step."""
    assert look(command()) == resuming.EarlierRun()
    add_checkpoint(tmp_path / "run", 1)
    return tmp_path / "run"


def test_a_run_goes_on_and_says_where(begun, command, caplog):
    assert look(command()) == resuming.EarlierRun(begun / "checkpoint-1")
    assert "Resuming from step 1 of 2 (epoch 0.5 of 1)" in caplog.text
    add_checkpoint(begun, 2)
    assert look(command()).checkpoint == begun / "checkpoint-2"
    assert "Training had ended at step 2 of 2" in caplog.text


def change_rows(folder, **values):
    """Make the dataset again, with other values in its first training row."""
    splits = load_pairs(folder)
    rows = [row for name in ("train", "validation") for row in splits[name].to_list()]
    save([{**rows[0], **values}, *rows[1:]], folder)


def change_sound(pairs, start):
    soundfile.write(pairs.parent / "3.wav", np.full(4000, 0.1), 16000)


def touch_sound(pairs, start):
    os.utime(pairs.parent / "3.wav", (0, 0))


def change_weights(pairs, start):
    model = AutoModel.from_pretrained(start)
    with torch.no_grad():
        model.score_head.layers[0].weight.view(-1)[0] += 1
    model.save_pretrained(start)


def change_json(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


CHANGES = {
    "label": (lambda pairs, start: change_rows(pairs, label=0.5), "other training rows"),
    "caption": (lambda pairs, start: change_rows(pairs, text="another"), "other training rows"),
    "sound": (change_sound, "other training sounds"),
    "time of a sound": (touch_sound, "other training sounds"),
    "weights": (change_weights, "other starting model"),
    "config": (lambda _, start: change_json(start / "config.json", score_max=5.0), "other starting model"),
    "processor": (
        lambda _, start: change_json(start / "processor_config.json", max_text_tokens=9),
        "other starting model",
    ),
}


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_what_changed_at_the_same_path_is_another_run(change, message, begun, command, pairs, start):
    before = (begun / resuming.SETTINGS_FILE).read_text()
    change(pairs, start)
    with pytest.raises(ValueError, match=rf"holds a run with other settings \({message}.*--output_dir, or --restart"):
        look(command())
    assert (begun / "checkpoint-1").exists() and (begun / resuming.SETTINGS_FILE).read_text() == before
    assert look(command("--restart", "true")) == resuming.EarlierRun()
    assert not (begun / "checkpoint-1").exists()
    add_checkpoint(begun, 1)
    assert look(command()).checkpoint


def test_other_data_is_named_with_its_path(begun, command, tmp_path):
    other = make_pairs(tmp_path / "other")
    change_rows(other, text="another")
    with pytest.raises(ValueError, match=r"other training rows, other training sounds, .*data .*pairs.* then, .*other"):
        look(command(data=other))


def test_copies_elsewhere_are_the_same(begun, command, pairs, start, tmp_path):
    copies = [shutil.copytree(folder, tmp_path / f"copy of {folder.name}") for folder in (pairs, start)]
    assert look(command(data=copies[0], model=copies[1])).checkpoint == begun / "checkpoint-1"


def test_embedded_sounds_count_by_their_content(tmp_path):
    one = make_pairs(tmp_path / "one", embed_audio=True)
    two = shutil.copytree(one, tmp_path / "two")
    splits = load_pairs(two)
    assert split_fingerprint(load_pairs(one, "train")) == split_fingerprint(splits["train"])
    rows = splits["train"].to_list()
    rows[2]["audio"]["bytes"] = rows[1]["audio"]["bytes"]
    found, before = split_fingerprint(make_dataset(rows)), split_fingerprint(splits["train"])
    assert found["rows"] == before["rows"] and found["sounds"] != before["sounds"]
    assert split_fingerprint(make_dataset(reversed(rows))) != found


def test_a_run_that_recorded_less_is_not_gone_on_with(begun, command):
    file = begun / resuming.SETTINGS_FILE
    settings = json.loads(file.read_text())
    settings.pop(resuming.CONTENTS)
    file.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"no record of the data and the start .*earlier versions.*--restart true"):
        look(command())
    file.unlink()
    with pytest.raises(ValueError, match="no record of the data and the start"):
        look(command())


def test_a_model_that_no_run_made_is_not_replaced(command, start):
    with pytest.raises(ValueError, match="no record of the data and the start"):
        look(command(output_dir=start))
    assert not (start / resuming.SETTINGS_FILE).exists()
    assert look(command("--restart", "true", output_dir=start)) == resuming.EarlierRun()


def test_a_checkpoint_can_be_named(begun, command, tmp_path):
    add_checkpoint(begun, 2)
    first, last = begun / "checkpoint-1", begun / "checkpoint-2"
    for named, expected in ((first, first), (last, last), ("last", last), ("true", last)):
        assert look(command("--resume_from_checkpoint", str(named))).checkpoint == expected
    add_checkpoint(tmp_path / "other", 1)
    for named in (tmp_path / "other/checkpoint-1", tmp_path / "nowhere", "false"):
        with pytest.raises(ValueError, match=r"is no complete checkpoint of .*there are checkpoint-1, checkpoint-2\)"):
            look(command("--resume_from_checkpoint", str(named)))
    with pytest.raises(ValueError, match="leave one out"):
        look(command("--resume_from_checkpoint", "last", "--restart", "true"))
    assert first.exists()
    with pytest.raises(ValueError, match=r"other settings \(temperature"):
        look(command("--resume_from_checkpoint", str(first), temperature=0.5))


def test_without_a_checkpoint_none_can_be_named(command):
    with pytest.raises(ValueError, match="it has none"):
        look(command("--resume_from_checkpoint", "checkpoint-1"))
    for first in ("last", "true"):  # as in a job's script that always says it
        assert look(command("--resume_from_checkpoint", first)).checkpoint is None


def test_a_start_whose_processor_has_another_order_is_refused(command, start):
    change_json(start / "processor_config.json", audio_first=True)
    with pytest.raises(ValueError, match=r"captions behind the sound .* other order"):
        look(command())


def states(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_finished_run_says_so_and_leaves_everything_as_it_is(command, pairs, tmp_path, caplog, monkeypatch):
    output, uploads = tmp_path / "run", []
    run_stage.main(command())
    before = states(output)
    with monkeypatch.context() as patch:
        patch.setattr(run_stage, "make_trainer", lambda *_: pytest.fail("it trains"))
        patch.setattr(run_stage, "push", lambda stage, args: uploads.append(args.output_dir))
        run_stage.main(command())
        assert f"This run is finished, and its result is in {output}" in caplog.text
        assert states(output) == before and not uploads
        run_stage.main(command("--push_to_hub", "true"))
        assert states(output) == before and uploads == [str(output)]
        change_rows(pairs, text="another")
        with pytest.raises(ValueError, match="other training rows"):
            run_stage.main(command())
        assert states(output) == before


def test_a_result_that_lost_a_file_is_made_again_without_training(command, tmp_path, caplog):
    output = tmp_path / "run"
    run_stage.main(command())
    first = (output / "model.safetensors").read_bytes()
    (output / "model.safetensors").unlink()
    run_stage.main(command())
    assert "Training had ended at step 2 of 2" in caplog.text
    assert (output / "model.safetensors").read_bytes() == first


def test_a_finished_run_without_checkpoints_is_not_replaced(command, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    without = {"save_strategy": "no", "patience": 0, "load_best_model_at_end": False}
    run_stage.main(command(**without))
    run_stage.main(command(**without))
    assert "This run is finished" in caplog.text
    with pytest.raises(ValueError, match=r"other settings \(temperature 1.0 then, 0.5 now\)"):
        run_stage.main(command(**without, temperature=0.5))


def look_together(rank, port, arguments, folder):
    """One of two processes that look; only the first may read the data, and all learn what it found."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    stage, args = parse_arguments(arguments)
    model, splits = AutoModel.from_pretrained(stage.model), load_pairs(stage.data)
    processor, splits = AutoProcessor.from_pretrained(stage.model), [splits["train"], splits["validation"]]
    if rank:
        resuming.run_contents = None
    found = [resuming.find_run(stage, args, model, processor, splits).checkpoint]
    stage.temperature = 0.5
    try:
        found.append(resuming.find_run(stage, args, model, processor, splits))
    except ValueError as error:
        found.append(error)
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(list(map(str, found)), file)
    PartialState().destroy_process_group()


def test_of_several_processes_one_looks_for_all(begun, command, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    halves = command(per_device_train_batch_size=2)
    run_processes(look_together, port, halves, str(tmp_path), seconds=240)
    for rank in range(2):
        checkpoint, refusal = json.loads((tmp_path / f"{rank}.json").read_text())
        assert checkpoint == str(begun / "checkpoint-1")
        assert "other settings (temperature 1.0 then, 0.5 now)" in refusal


@pytest.mark.parametrize(
    "settings",
    [
        {"metric_for_best_model": "lcc"},
        {"dataloader_drop_last": False},
        {"neftune_noise_alpha": 5},
        {"eval_strategy": "no", "patience": 0, "load_best_model_at_end": False},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_whatever_may_change_the_weights_makes_another_run(settings, begun, command):
    with pytest.raises(ValueError, match=f"other settings .*{next(iter(settings))}"):
        look(command(**settings))


def test_how_a_machine_computes_and_logs_does_not(begun, command):
    settings = {"logging_steps": 3, "dataloader_num_workers": 1, "per_device_eval_batch_size": 2, "save_total_limit": 1}
    assert look(command(**settings)).checkpoint


def test_a_local_list_depends_on_how_the_batch_is_shared_out(command, monkeypatch):
    found = []
    for processes in (1, 2):
        sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2 // processes}
        stage, args = parse_arguments(command("--list_scope", "local", **sizes))
        monkeypatch.setattr(type(args), "world_size", property(lambda args, processes=processes: processes))
        found.append(resuming.run_settings(stage, args))
    assert found[0]["batch_size"] == found[1]["batch_size"] and found[0] != found[1]


def test_restarting_deletes_the_earlier_result(command, tmp_path):
    run_stage.main(command())
    result = json.loads((tmp_path / "run" / resuming.SETTINGS_FILE).read_text())[resuming.RESULT]
    assert "model.safetensors" in result
    assert not look(command("--restart", "true")).is_finished
    assert not any((tmp_path / "run" / name).exists() for name in result)


def test_a_broken_record_is_told(begun, command, tmp_path):
    (tmp_path / "run" / resuming.SETTINGS_FILE).write_text("[]")
    with pytest.raises(ValueError, match="is no record of a run"):
        look(command())
