"""Judges with two towers: every join, contrastive models as they are, presets, stages, strangers."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import PARITY
from stage_runs import command, finish, launch_two
from teachers import CAPTIONS, make_clip, save_pe_teacher, save_teacher, save_text_encoder
from transformers import AutoConfig, AutoModel, AutoProcessor, BertModel, pipeline

import run_stage
from modeling_xacle import ByolaConfig, M2dConfig, XacleDualEncoder, XacleDualEncoderConfig
from modeling_xacle.checkpoints.dual import build_dual, init_dual
from modeling_xacle.checkpoints.presets import PRESETS
from modeling_xacle.data.pairs import load_pairs
from modeling_xacle.judges.contrastive import ContrastiveTeacher
from modeling_xacle.modeling_dual import JOINS as JOIN_CLASSES
from modeling_xacle.scoring import load_scorer
from modeling_xacle.training.recipes import parse_arguments

BEATS = PARITY / "beats.pt"
CROSS = ["--preset", "beats-cross-attention", "--tower", BEATS]
SMALL = {"projection_size": 16, "num_attention_heads": 2, "num_attention_layers": 1, "lstm_size": 8, "join_sizes": [12]}
JOINS = {
    "cosine": {"projection": "linear"},
    "mlp": {"projection": "none"},
    "bilstm": {"projection": "none", "num_audio_tokens": 6},
    "cross_attention": {"projection": "linear", "num_audio_tokens": 6},
}
CLIPS = [{"array": make_clip(seconds, seed), "sampling_rate": 16000} for seed, seconds in enumerate((0.3, 1.0, 0.8))]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A tiny BERT with its tokenizer."""
    return save_text_encoder(tmp_path_factory.mktemp("text"), BertModel, initializer_range=0.5)


@pytest.fixture(scope="module")
def folders(text, tmp_path_factory):
    """Untrained judges of BEATs and BERT, by their join."""
    made = {}
    for join, fields in JOINS.items():
        made[join] = tmp_path_factory.mktemp(join) / "model"
        init_dual("beats-cross-attention", BEATS, made[join], text, **{"join": join, **SMALL, **fields})
    return made


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """A CLAP and a PE-AV model."""
    folder = tmp_path_factory.mktemp("teachers")
    save_teacher(folder / "clap")
    save_pe_teacher(folder / "pe_audio")
    return {kind: folder / kind for kind in ("clap", "pe_audio")}


def scores_alone(folder):
    """Scores of three pairs, each by itself."""
    align = pipeline("audio-text-alignment", model=str(folder), device="cpu")
    return [align({"audio": clip, "text": text})["score"] for clip, text in zip(CLIPS, CAPTIONS, strict=False)]


@pytest.mark.parametrize("join", JOINS)
def test_a_batch_changes_no_score(join, folders):
    model, processor = AutoModel.from_pretrained(folders[join]).eval(), AutoProcessor.from_pretrained(folders[join])
    assert type(model) is XacleDualEncoder
    alone = scores_alone(folders[join])
    with torch.inference_mode():
        together = model(**processor(text=CAPTIONS[:3], audio=CLIPS)).scores
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert len({round(score, 3) for score in alone}) == 3
    several = load_scorer(folders[join], "cpu")({"audio": CLIPS[0], "text": CAPTIONS})
    assert several[0]["score"] == pytest.approx(alone[0], abs=1e-4)


@pytest.mark.parametrize("join", JOINS)
def test_sound_and_caption_both_matter(join, folders):
    align = load_scorer(folders[join], "cpu")
    pairs = [(CLIPS[0], CAPTIONS[0]), (CLIPS[1], CAPTIONS[0]), (CLIPS[0], CAPTIONS[1])]
    base, other_clip, other_caption = (align({"audio": clip, "text": text})["score"] for clip, text in pairs)
    assert abs(base - other_clip) > 1e-5 < abs(base - other_caption)


@pytest.mark.parametrize("kind", ["clap", "pe_audio"])
def test_a_contrastive_model_scores_as_it_did(kind, teachers, tmp_path, xacle):
    xacle("init", "--preset", "clap", "--tower", teachers[kind], "-o", tmp_path / "model")
    # PE-AV's convolutions let a short sound hear a little of the padding behind it.
    clips = CLIPS if kind == "clap" else [{"array": make_clip(10, seed), "sampling_rate": 16000} for seed in range(2)]
    teacher = ContrastiveTeacher.from_pretrained(teachers[kind])
    cosines = (teacher.embed_audio(clips) * teacher.embed_text(CAPTIONS[: len(clips)])).sum(dim=1)
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    with torch.inference_mode():
        logits = [model(**processor(text=text, audio=clip)).logits for clip, text in zip(clips, CAPTIONS, strict=False)]
    torch.testing.assert_close(torch.cat(logits), cosines, atol=1e-4, rtol=0)


STRANGER = """
import json, sys
import numpy as np
from transformers import pipeline
sounds, texts = json.loads(sys.argv[1]), json.loads(sys.argv[2])
clips = [{"array": np.array(sound, dtype=np.float32), "sampling_rate": 16000} for sound in sounds]
found = {}
for name, folder in json.loads(sys.argv[3]).items():
    align = pipeline("audio-text-alignment", model=folder, device="cpu", trust_remote_code=True)
    assert type(align).__module__.startswith("transformers_modules."), type(align)
    found[name] = [align({"audio": clip, "text": text})["score"] for clip, text in zip(clips, texts)]
assert "modeling_xacle" not in sys.modules
print(json.dumps(found))
"""


def test_a_stranger_gets_the_same_scores(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    clips = json.dumps([np.round(clip["array"][:2000], 4).tolist() for clip in CLIPS])
    places = {join: str(folders[join]) for join in ("bilstm", "cross_attention")}
    arguments = [sys.executable, "-c", STRANGER, clips, json.dumps(CAPTIONS[:3]), json.dumps(places)]
    run = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    for join, found in json.loads(run.stdout.splitlines()[-1]).items():
        align = load_scorer(folders[join], "cpu")
        sounds = [{"array": np.array(clip, dtype=np.float32), "sampling_rate": 16000} for clip in json.loads(clips)]
        here = [align({"audio": clip, "text": text})["score"] for clip, text in zip(sounds, CAPTIONS, strict=False)]
        np.testing.assert_allclose(found, here, atol=1e-5)


@pytest.mark.parametrize(
    ("join", "more", "changed"),
    [
        ("bilstm", ["--train", "score_head"], {"score_head"}),
        ("cross_attention", [], {"language_model", "projector", "score_head"}),
        ("mlp", ["--train", "audio_tower", "score_head"], {"audio_tower", "score_head"}),
        ("cosine", ["--train", "projector", "--lora_rank", 2], {"language_model", "projector"}),
    ],
)
def test_a_stage_trains_the_parts_that_it_names(join, more, changed, folders, pairs, tmp_path):
    steps = ["--max_steps", 2, "--mask_mel_bins", 0, "--mask_frames", 0]
    run_stage.main(command(3, pairs, folders[join], tmp_path / "out", *steps, *more))
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (folders[join], tmp_path / "out"))
    assert {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])} == changed
    assert AutoConfig.from_pretrained(tmp_path / "out").training_stage == 3
    assert "joined by" in (tmp_path / "out" / "README.md").read_text()
    scores_alone(tmp_path / "out")


def test_stored_features_are_those_of_the_join(folders, pairs, tmp_path):
    for join in ("mlp", "bilstm"):
        cached = ["--cache_audio_features", True, "--cache_dir", tmp_path / "cache", "--train", "score_head"]
        steps = ["--max_steps", 1, "--mask_mel_bins", 0, "--mask_frames", 0, "--max_grad_norm", 0]
        runs = {"plain": ["--train", "score_head"], "cached": cached}
        for name, more in runs.items():
            run_stage.main(command(3, pairs, folders[join], tmp_path / f"{join}-{name}", *steps, *more))
        plain, stored = (AutoModel.from_pretrained(tmp_path / f"{join}-{name}").state_dict() for name in runs)
        for name, tensor in plain.items():
            torch.testing.assert_close(stored[name], tensor, atol=1e-6, rtol=1e-4)


def test_frozen_towers_have_no_dropout_in_training(folders):
    model = AutoModel.from_pretrained(folders["bilstm"])
    model.requires_grad_(False)
    model.score_head.requires_grad_(True)
    model.train()
    modes = {name: part.training for name, part in model.named_children()}
    assert modes == {"audio_tower": False, "language_model": False, "projector": False, "score_head": True}


def test_two_processes_fine_tune_a_contrastive_model_as_one_does(teachers, pairs, tmp_path):
    init_dual("clap", teachers["clap"], tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    for part in ("audio_config", "text_config"):  # dropout draws differently in two processes
        config[part] |= {name: 0.0 for name in config[part] if "drop" in name}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    more = ["--max_steps", 2, "--loss", "mse", "--eval_strategy", "no", "--save_strategy", "no", "--patience", 0]
    more += ["--load_best_model_at_end", False, "--learning_rate", 1e-4]
    two = [*more, "--per_device_train_batch_size", 4, "--num_processes", 2]
    finish(launch_two(command(3, pairs, tmp_path / "model", tmp_path / "two", *two)))
    run_stage.main(command(3, pairs, tmp_path / "model", tmp_path / "one", *more))
    start, one, two = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("model", "one", "two"))
    assert any(not torch.equal(start[name], one[name]) for name in start if name.startswith("audio_tower"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=5e-5, rtol=0)


def test_a_preset_brings_its_settings_which_flags_override(folders, pairs, tmp_path):
    stage, args = parse_arguments(["--stage", "3", "--model", str(folders["bilstm"]), "--output_dir", str(tmp_path)])
    assert (stage.loss, args.learning_rate) == ("clipped_contrastive", 2e-5)
    assert stage.train == ["language_model", "projector", "score_head"]
    stage, _ = parse_arguments(["--stage", "3", "--model", str(folders["bilstm"]), "--loss", "mse"])
    assert stage.loss == "mse"
    assert parse_arguments(["--stage", "3", "--model", "runs/none"])[0].loss == "listnet"


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    """A tiny RoBERTa with its tokenizer."""
    return save_text_encoder(tmp_path_factory.mktemp("roberta"), max_position_embeddings=40)


def test_the_2026_baseline_is_built_from_a_text_encoder_and_data_alone_and_trains(roberta, pairs, tmp_path, xacle):
    parts = ["--preset", "baseline-2026", "--text", roberta]
    assert "name the dataset with --data" in xacle("init", *parts, "-o", tmp_path / "none", expect=1)
    xacle("init", *parts, "--data", pairs, "-o", tmp_path / "model")
    assert "xacle_byola 3072 and roberta 1 x 16 -> projection none -> bilstm" in xacle("info", tmp_path / "model")
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    sounds = [row["audio"] for row in load_pairs(pairs, "train")]
    features = torch.cat([processor.feature_extractor(sound)["input_features"] for sound in sounds])
    assert abs(features.mean()) < 1e-3 and abs(features.std() - 1) < 1e-3
    arguments = ["--stage", 3, "--data", pairs, "--model", tmp_path / "model", "--output_dir", tmp_path / "out"]
    quick = ["--max_steps", "1", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--report_to", "none"]
    run_stage.main([*map(str, arguments), *quick])
    log = json.loads((tmp_path / "out" / "training_log.json").read_text())["log"]
    assert log[0]["learning_rate"] == 2e-5
    _, args = parse_arguments([*map(str, arguments)])
    assert args.lr_scheduler_kwargs["mode"] == "max"  # a rising SRCC is no plateau
    assert args.max_grad_norm == 0
    before, after = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("model", "out"))
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"audio_tower", "language_model", "score_head"}


@pytest.mark.parametrize(
    ("preset", "audio", "text", "expected"),
    [
        # BiLSTM: 2 directions x 4 gates x 512 x (3072 + 1024 inputs + 512 states + 2 biases); MLP 1024 -> 2048 -> 1.
        (
            "baseline-2026",
            ByolaConfig(),
            {"model_type": "roberta", "hidden_size": 1024},
            8 * 512 * (3072 + 1024 + 512 + 2) + (1024 * 2048 + 2048) + (2048 + 1),
        ),
        # MLP 1536 -> 1024 -> 256 -> 1.
        (
            "baseline-2027",
            M2dConfig(),
            {"model_type": "bert", "hidden_size": 768},
            (1536 * 1024 + 1024) + (1024 * 256 + 256) + (256 + 1),
        ),
    ],
)
def test_the_joins_of_the_baselines_have_the_described_number_of_weights(preset, audio, text, expected):
    config = XacleDualEncoderConfig(audio_config=audio, text_config=text, **PRESETS[preset].fields)
    with torch.device("meta"):
        join = JOIN_CLASSES[config.join](config)
    assert sum(weight.numel() for weight in join.parameters()) == expected


def test_the_2026_baseline_has_the_described_shapes(roberta, pairs, tmp_path):
    model, processor = build_dual("baseline-2026", None, roberta, data=pairs)
    batch = processor(text=CAPTIONS[:2], audio=CLIPS[:2])
    assert batch["input_features"].shape == (2, 1001, 64)
    sound = model.get_audio_features(batch["input_features"])
    assert sound.shape == (2, 250, 3072)
    caption = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    assert caption.shape == (2, 1, 16) and model.eval()(**batch).logits.shape == (2,)


def test_long_captions_are_cut_with_a_note(folders):
    result = load_scorer(folders["mlp"], "cpu")({"audio": CLIPS[0], "text": "dog " * 600})
    assert "caption cut: 602 tokens to 256" in result["notes"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"join": "sum"}, "join='sum': choose one of cosine, mlp"),
        ({"join": "cosine", "projection": "none"}, "A cosine needs vectors of one size, not 768"),
        ({"projection": "deep"}, "projection='deep': choose one of none"),
        ({"text_summary": "last"}, "text_summary='last'"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        XacleDualEncoderConfig(**{"text_config": {"model_type": "bert", "hidden_size": 12}, **fields})


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--preset", "beats-cross-attention", "--tower", BEATS], 1, "has no text tower; name one with --text"),
        (["--preset", "clap", "--tower", BEATS], 1, "takes a contrastive model as it is (clap, pe_audio"),
        (
            ["--preset", "none", "--tower", BEATS, "--text", "TEXT"],
            1,
            "There is no preset none; there are",
        ),
        (
            ["--preset", "baseline-2026", "--tower", BEATS, "--text", "TEXT"],
            1,
            "a xacle_byola tower, not xacle_beats",
        ),
        ([*CROSS, "--text", PARITY / "llm"], 1, "a model of type qwen2, which is no text encoder"),
        ([*CROSS, "--text", BEATS], 1, "is a file; name the model's folder"),
        ([*CROSS, "--text", "TEXT", "--data", "x"], 1, "--data x: is for a tower that is made anew"),
        (["--preset", "clap", "--tower", BEATS, "--text", "TEXT", "--llm", "x"], 2, "give either --llm, or --preset"),
        (["--tower", BEATS], 2, "give either --llm, or --preset"),
    ],
)
def test_parts_that_do_not_fit_are_refused_in_a_sentence(arguments, code, message, text, tmp_path, xacle):
    arguments = [text if argument == "TEXT" else argument for argument in arguments]
    told = xacle("init", *arguments, "-o", tmp_path / "model", expect=code)
    assert message in " ".join(told.replace("│", " ").split())


@pytest.mark.parametrize(
    ("join", "train", "message"),
    [
        ("cosine", "score_head", "these parts of the model have no weights"),
        ("mlp", "special_tokens", "a judge with two towers has none"),
    ],
)
def test_parts_that_there_are_not_are_not_trained(join, train, message, folders, pairs, tmp_path):
    with pytest.raises(ValueError, match=message):
        run_stage.main(
            command(3, pairs, folders[join], tmp_path, "--train", train, "--mask_mel_bins", 0, "--mask_frames", 0)
        )


@pytest.mark.parametrize("join", JOINS)
def test_a_judge_in_half_precision_scores_nearly_as_in_full(join, folders):
    processor = AutoProcessor.from_pretrained(folders[join])
    batch = processor(text=CAPTIONS[:3], audio=CLIPS)
    with torch.inference_mode():
        full = AutoModel.from_pretrained(folders[join]).eval()(**batch)
        half = AutoModel.from_pretrained(folders[join]).eval().to(torch.bfloat16)(**batch)
    assert half.logits.dtype == torch.float32
    torch.testing.assert_close(half.scores, full.scores, atol=0.5, rtol=0)


def test_two_towers_write_no_captions(folders, pairs, tmp_path):
    with pytest.raises(ValueError, match="writes no captions; begin with stage 2 or 3"):
        run_stage.main(command(1, pairs, folders["mlp"], tmp_path))


def test_info_calibrate_and_doctor_know_two_towers(folders, xacle):
    told = xacle("info", folders["bilstm"])
    assert "BEATs" in told and "bilstm" in told and "text encoder" in told
