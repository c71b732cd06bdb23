"""The speed benchmark: that the reference design, fast paths and counted operations are what they are said to be."""

import importlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import EXPECTED, PARITY, ROOT, run_script
from torch.utils.flop_counter import FlopCounterMode

from modeling_xacle import DEFAULT_MODEL, modeling_beats, modeling_xacle
from modeling_xacle.speed import forms


@pytest.fixture(scope="module")
def speed():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks/speed"))
        names = ("run", "reference", "operations", "workbench", "measuring", "training_steps")
        names += ("cases", "limits", "machines", "speed_report", "gpu_steps")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


RESULT_FILES = sorted((ROOT / "benchmarks/results/speed").glob("*-torch-*.json"))


@pytest.fixture(params=RESULT_FILES, ids=lambda file: file.stem)
def measured(request):
    """Each processor's stored results."""
    return json.loads(request.param.read_text())


def rows_by_case(results):
    return {row["case"]: row for section in results["fp32"]["sections"].values() for row in section["rows"]}


def test_the_document_tells_the_speed_of_every_processor(speed):
    report = speed.speed_report
    assert report.result_files(RESULT_FILES[0].parent) == RESULT_FILES
    table = report.summary(RESULT_FILES[0].parent)
    assert len(table.splitlines()) == 2 + len(RESULT_FILES) + 1  # and the one that was measured elsewhere
    assert list(report.tables_of(report.DOCUMENT.read_text())) == [table]


def test_the_page_of_a_processor_tells_its_figures(measured, speed):
    file = ROOT / "benchmarks/results/speed" / speed.machines.file_stem(measured["machine"])
    assert file.with_name(f"{file.name}.json") in RESULT_FILES
    assert file.with_name(f"{file.name}.md").read_text() == speed.speed_report.machine_page(measured)


def test_what_the_speed_must_be(measured):
    rows = rows_by_case(measured)
    pair = rows["whole pair, 8 pairs"]
    assert pair["ratio"] >= 1.35 and pair["of the limit"] >= 0.8
    assert rows["4 captions a clip, 8 captions"]["ratio"] >= 2
    assert rows["stage 2, step of 8, cached"]["ratio"] >= 2.3


def test_no_case_is_faster_than_its_limit(measured):
    for name, row in rows_by_case(measured).items():
        assert row.get("of the limit", 0) <= 1.03, name


def test_stage_1_is_compared_with_our_own_plain_form(measured):
    """The published code's was never released."""
    rows = rows_by_case(measured)
    assert rows["stage 1, step of 8, cached"]["beside"] == "our own plain form"
    assert rows["stage 2, step of 8, cached"]["beside"] == "published design"


@pytest.fixture(scope="module")
def published_spectrograms():
    """Skips what computes the reference's spectrograms where torchaudio is missing."""
    pytest.importorskip("torchaudio", reason="the reference's spectrograms need the extra [torchaudio]")


@pytest.fixture(scope="module")
def bench(speed):
    return speed.workbench.Workbench(torch.device("cpu"), small=True)


def test_the_reference_gives_the_published_scores_alone_and_beside_others(speed, model, processor):
    """The longer captions of a batch move the audio of the others: the published scores show it, and so must these."""
    pairs = EXPECTED["pairs"]
    spectrograms = torch.cat(
        [processor.feature_extractor(PARITY / "wav" / pair["wav"])["input_features"] for pair in pairs]
    )
    features = speed.reference.audio_features(model, spectrograms)
    captions = [processor.tokenize_caption(pair["text"])[0][: -len(processor.audio_and_score_ids)] for pair in pairs]
    alone = [
        speed.reference.score(model, [caption], clip[None]).item()
        for caption, clip in zip(captions, features, strict=True)
    ]
    torch.testing.assert_close(alone, [pair["raw"] for pair in pairs], atol=1e-5, rtol=0)


@pytest.mark.usefixtures("published_spectrograms")
def test_the_reference_computes_the_same_spectrogram(speed, bench):
    waveforms = bench.waveforms(3)
    ours, plain = bench.extractor.log_mel(waveforms), speed.reference.log_mel(bench.extractor, waveforms)
    torch.testing.assert_close(ours, plain, atol=2e-3, rtol=0)


@pytest.mark.usefixtures("published_spectrograms")
def test_ours_alone_and_in_a_batch_equals_the_reference_one_by_one(bench):
    waveforms, captions = bench.waveforms(5), bench.captions(5)
    alone = torch.cat([bench.reference_scores(waveforms[i : i + 1], captions[i : i + 1]) for i in range(5)])
    ours = torch.cat([bench.scores(waveforms[i : i + 1], captions[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(ours, alone, atol=1e-4, rtol=0)
    torch.testing.assert_close(bench.scores(waveforms, captions, pass_size=5), alone, atol=1e-4, rtol=0)


def test_fast_and_plain_paths_agree(speed, bench, monkeypatch):
    waveforms, captions = bench.waveforms(4), bench.captions(8)
    monkeypatch.setattr(forms, "SMALLEST_PRODUCT", 1)
    fast = bench.scores(waveforms, captions)
    bench.model.set_attn_implementation("eager")
    monkeypatch.setattr(modeling_beats, "CPU_CACHE_BYTES", 1)
    monkeypatch.setenv("XACLE_FAST", "0")
    plain = bench.scores(waveforms, captions)
    bench.model.set_attn_implementation("sdpa")
    torch.testing.assert_close(fast, plain, atol=1e-4, rtol=0)


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_operations_of_a_pass_are_those_that_run(speed, bench):
    config, operations = bench.config, speed.operations
    bench.model.set_attn_implementation("eager")  # the counter does not know the CPU's fused kernel
    lengths, captions, spectrograms = [12] * 3, [[1] * 12] * 3, bench.extractor.log_mel(bench.waveforms(3))
    features = bench.encode(spectrograms)
    encoder = operations.encoder_products(config, 3, bench.num_frames)
    assert counted(lambda: bench.encode(spectrograms)) == operations.total(encoder)
    front_end = operations.front_end_products(config, 3, bench.num_frames)
    assert counted(lambda: bench.extractor.log_mel(bench.waveforms(3))) == operations.total(front_end)
    text = operations.score_products(config, lengths)
    assert counted(lambda: bench.logits(captions, features)) == operations.total(text)
    bench.model.set_attn_implementation("sdpa")


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_operations_of_a_step_are_those_that_run(stage, rank, speed, bench, monkeypatch):
    monkeypatch.setattr(bench, "lengths", lambda pairs: [12] * pairs)
    bench.captioner.set_attn_implementation("eager")
    with bench.stage(stage, rank) as model:
        steps = speed.training_steps.TrainingSteps(bench, model, stage, 2).forms()
        steps["ours, cached"]()
        for form, cached in (("ours, cached", True), ("ours", False)):
            products = speed.operations.step_products(bench.config, stage, [12, 12], cached, rank, bench.num_frames)
            assert counted(steps[form]) == speed.operations.total(products), form
    bench.captioner.set_attn_implementation("sdpa")


def test_the_published_size(speed):
    config = speed.workbench.make_config(speed.workbench.make_processor(100))
    with torch.device("meta"):
        model = modeling_xacle.XacleModel(config)
    assert sum(weight.numel() for weight in model.parameters()) == 594_996_849
    operations = speed.operations.total(speed.operations.pair_products(config, [15]))
    assert operations == pytest.approx(186e9, rel=0.01)


def test_a_step_that_runs_the_encoder_runs_it_as_training_does(speed, bench):
    """The model is called with spectrograms, and decides itself whether the encoder needs gradients."""
    seen = []
    with bench.stage(2) as model:
        steps = speed.training_steps.TrainingSteps(bench, model, 2, 2)
        watch = lambda module, given, named: seen.append((torch.is_grad_enabled(), *named))  # noqa: E731
        hook = model.register_forward_pre_hook(watch, with_kwargs=True)
        steps.forms()["ours"]()
        hook.remove()
    assert seen == [(True, "input_ids", "attention_mask", "input_features")]


def test_a_step_trains(speed, bench):
    """Forward, gradients and optimiser: what a stage trains moves, and its gradients are gone."""
    for stage, trained in ((1, "language_model"), (2, "score_head")):
        before = {name: weight.clone() for name, weight in bench.model.named_parameters()}
        with bench.stage(stage) as model:
            speed.training_steps.TrainingSteps(bench, model, stage, 2).forms()["ours"]()
        moved = {name.split(".")[0] for name, weight in bench.model.named_parameters() if weight.ne(before[name]).any()}
        assert moved == {"projector", trained}
        assert all(weight.grad is None for weight in bench.model.parameters())


def test_the_limit_takes_the_best_way_and_no_new_memory(speed, bench, monkeypatch):
    limits, outputs = speed.limits, []
    place = limits.Place(torch.device("cpu"), torch.float32)
    products = speed.operations.encoder_products(bench.config, 8, 998)
    rates = limits.rates(products, place)
    assert rates["best"] >= max(rates.values())
    monkeypatch.setattr(limits.Place, "libraries", lambda self: {"default": spy})
    limits.timings.cache_clear()

    def spy(inputs, weight, output):
        outputs.append(output.data_ptr())
        limits.default_product(inputs, weight, output)

    run, _ = limits.products_alone(products, place)
    run()
    used = set(outputs)
    outputs.clear()
    run()
    assert outputs and set(outputs) <= used
    limits.timings.cache_clear()


def test_the_published_way_of_loading_gives_the_same_model(bench):
    ours, plain = (load().state_dict() for load in bench.loading())
    assert ours.keys() - plain.keys() == {"lm_head.weight"}  # tied to the embeddings; the published system has none
    for name, tensor in plain.items():
        assert torch.equal(tensor, ours[name]), name


def test_bf16_is_left_out_where_there_are_no_instructions_for_it(speed, bench, monkeypatch):
    machine = {"name": "A", "instructions": "avx512_bf16", "threads": 1, "torch": "2.11"}
    monkeypatch.setattr(speed.cases, "describe", lambda device: machine)
    (case,) = speed.cases.bf16(bench)
    (row,) = speed.run.measure_case(case, bench, 1)
    assert row["beside"] == "ours in fp32" and 0 < row["score difference"] < 1
    results = {"machine": machine, "fp32": {"sections": {"bf16": {"rows": [row]}}}}
    assert "scores move by" in speed.speed_report.bf16_line(results)
    machine["instructions"] = "avx512f"
    assert list(speed.cases.bf16(bench)) == []
    results["fp32"]["sections"]["bf16"]["rows"] = []
    assert speed.speed_report.bf16_line(results) == "no instructions for it"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory, speed, published_spectrograms):
    """Everything, in small."""
    folder = tmp_path_factory.mktemp("speed")
    code, shown, message = run_script(ROOT / "benchmarks/speed/run.py", "--smoke", "-o", folder)
    assert code == 0, message
    (file,) = folder.glob("*.json")
    return file, shown


def test_the_command_measures_everything(speed, smoke):
    file, shown = smoke
    results = json.loads(file.read_text())
    assert file.stem == speed.machines.file_stem(results["machine"])
    assert set(results["fp32"]["sections"]) == set(speed.run.SECTIONS)
    assert "scale" in results
    for section in results["fp32"]["sections"].values():
        for row in section["rows"]:
            assert row["ours"]["seconds"] > 0 and row["ours"]["peak_memory"] > 0
    assert file.with_suffix(".md").read_text() in shown
    assert file.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def run_front_end(folder, *more):
    arguments = ["--smoke", "-o", folder, "--only", "front_end", *more]
    code, _, message = run_script(ROOT / "benchmarks/speed/run.py", *arguments)
    assert code == 0, message
    return message


def test_a_run_goes_on_and_leaves_other_sections_and_other_processors(speed, smoke, tmp_path, monkeypatch):
    file = Path(shutil.copy(smoke[0], tmp_path))
    before = json.loads(file.read_text())
    assert "front end" not in run_front_end(tmp_path)  # nothing is measured again
    assert json.loads(file.read_text())["fp32"]["sections"] == before["fp32"]["sections"]
    before["fp32"]["sections"]["front_end"]["done"].pop()
    file.write_text(json.dumps(before))
    assert run_front_end(tmp_path).count("front end") == 1
    assert run_front_end(tmp_path, "--again").count("front end") == 3
    assert list(json.loads(file.read_text())["fp32"]["sections"]) == list(before["fp32"]["sections"])
    untouched = file.read_text()
    other = {**before["machine"], "name": "Another processor"}
    monkeypatch.setattr(speed.machines, "describe", lambda device: other)
    run_front_end(tmp_path)
    assert file.read_text() == untouched
    assert len(list(tmp_path.glob("*.json"))) == 2


def test_a_trial_run_does_not_overwrite_what_was_measured(speed):
    code, _, message = run_script(ROOT / "benchmarks/speed/run.py", "--smoke")
    assert code and "--output" in message


# ---------------------------------------------------------------------------------------------------------------------
# GPUs


def run_gpu(folder, *more):
    code, shown, message = run_script(ROOT / "benchmarks/speed/gpu.py", folder, *more)
    return code, shown + message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_command_says_how_to_try_it(speed, tmp_path):
    code, shown = run_gpu(tmp_path)
    assert code and len(shown.strip().splitlines()) == 1
    assert "--device cpu --smoke" in shown


def test_all_steps_for_a_gpu_run_in_small_and_are_kept(speed, published_spectrograms, tmp_path):
    small = ["--device", "cpu", "--smoke"]
    for name in speed.gpu_steps.STEPS:
        code, shown = run_gpu(tmp_path, "--step", name, *small)
        assert code == 0, shown
    file = tmp_path / "results" / f"{speed.machines.file_stem(speed.machines.describe(torch.device('cpu')))}.json"
    results = json.loads(file.read_text())
    assert {"fp32", "bf16", "machine"} < set(results)
    assert "passed" in results["checks"]["tests"]["outcome"]
    assert "sharded" in file.with_suffix(".md").read_text()
    code, shown = run_gpu(tmp_path, *small)
    assert code == 0 and shown.count("finished earlier") == len(speed.gpu_steps.STEPS)
    kept = json.loads((tmp_path / "scores.json").read_text())
    kept["conditions"]["code"] = "other"
    (tmp_path / "scores.json").write_text(json.dumps(kept))
    _, shown = run_gpu(tmp_path, "--list", *small)
    assert shown.count("finished") == len(speed.gpu_steps.STEPS) - 1 and "scores: to do" in shown


def test_rivals_run_in_turn(speed):
    calls = []
    found = speed.measuring.compare(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, torch.device("cpu"), 3
    )
    assert calls == ["a", "b"] * 4
    assert found["a"]["runs"] == 3 and found["a"]["fastest"] <= found["a"]["seconds"]


def test_an_ensemble_is_measured_beside_its_members(tmp_path):
    for name in ("one", "other"):
        shutil.copytree(DEFAULT_MODEL, tmp_path / name)
    models = [part for name in ("one", "other") for part in ("--model", tmp_path / name)]
    code, told, _ = run_script(
        ROOT / "benchmarks/speed/ensemble.py", *models, "--pairs", 1, "--batch-size", 1, "--repetitions", 1
    )
    found = json.loads(told)
    assert code == 0 and found["towers"] == [[[0, 1]]]
    for part in ("whole", "passes"):
        times = found[part]
        assert times["share_of_sum"] == pytest.approx(times["ensemble"] / sum(times["members"]))
        assert len(times["members"]) == 2 and times["ensemble"] > 0
