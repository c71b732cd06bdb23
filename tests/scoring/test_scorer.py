"""What tells one scorer from another: the signature of its scores."""

import functools
import json
import shutil

import pytest
import torch
from scored_tables import TEXTS
from transformers import ByT5Tokenizer

from modeling_xacle.checkpoints import fingerprints
from modeling_xacle.scoring.options import TableOptions
from modeling_xacle.scoring.scorer import load_scorer, scorer_settings, scorer_signature


def signature(align, **options):
    return scorer_signature(scorer_settings(align, TableOptions(**options)))


def set_to(path, value):
    """A function that sets an attribute of a pipeline, at any depth."""
    *parents, name = path.split(".")

    def change(align):
        setattr(functools.reduce(getattr, parents, align), name, value)

    return change


def move_weight(part):
    def change(align):
        with torch.no_grad():
            next(getattr(align.model, part).parameters()).view(-1)[0] += 1e-3

    return change


CHANGES = {
    **{f"weights of {part}": move_weight(part) for part in ("audio_tower", "projector", "language_model")},
    "weights of score_head": move_weight("score_head"),
    "dtype": lambda align: align.model.to(torch.bfloat16),
    "order": set_to("processor.audio_first", True),
    "caption length": set_to("processor.max_text_tokens", 9),
    "audio tokens of the processor": set_to("processor.num_audio_tokens", 9),
    "word": lambda align: align.processor.tokenizer.add_tokens(["zzz"]),
    "end of text": lambda align: align.processor.tokenizer.add_special_tokens({"eos_token": "[SCORE]"}),
    **{f"front end, {name}": set_to(f"processor.feature_extractor.{name}", 7) for name in (
        "sampling_rate", "padding_value", "max_seconds", "frame_length_ms", "frame_shift_ms", "mel_mean", "mel_std"
    )},
    **{f"config, {name}": set_to(f"model.config.{name}", value) for name, value in {
        "num_audio_tokens": 9,
        "score_min": -1.0,
        "score_max": 5.0,
        "calibration_scale": 2.0,
        "calibration_offset": 0.5,
        "apply_calibration": False,
        "caption_likelihood": True,
        "text_config.rms_norm_eps": 1e-3,
        "text_config.rope_parameters": {"rope_type": "default", "rope_theta": 5.0},
        "audio_config.layer_norm_eps": 1e-3,
        "audio_config.relative_position_max_distance": 7,
    }.items()},
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_signature_tells_all_that_a_score_depends_on(change, model_folder):
    align = load_scorer(model_folder, "cpu")
    before = signature(align)
    change(align)
    assert signature(align) != before


def test_the_signature_tells_windows_and_the_front_ends_code(align, monkeypatch):
    found = {signature(align), signature(align, window_seconds=5), signature(align, window_seconds=5, hop_seconds=1)}
    for name, value in {"FRONT_END_VERSION": -1, "audio_engine": lambda: "another"}.items():
        with monkeypatch.context() as patch:
            patch.setattr(fingerprints, name, value)
            found.add(signature(align))
    assert len(found) == 5


def test_a_tokenizer_without_tokenizer_json_is_told_apart():
    one, again, other = map(
        fingerprints.tokenizer_fingerprint, (ByT5Tokenizer(), ByT5Tokenizer(), ByT5Tokenizer("</e>"))
    )
    assert one == again != other


def test_the_signature_is_of_content_alone(align, model_folder, tmp_path):
    before = signature(align)
    folder = shutil.copytree(model_folder, tmp_path / "elsewhere")
    for name in ("config.json", "processor_config.json"):
        settings = json.loads((folder / name).read_text()) | {"transformers_version": "6.0", "training_stage": 2}
        (folder / name).write_text(json.dumps(settings))
    other = load_scorer(folder, "cpu")
    other.processor.chat_template = "{{ messages }}"
    other.model.set_attn_implementation("eager")
    other.processor.tokenizer(TEXTS, padding=True, truncation=True, max_length=5)  # leaves its traces in the tokenizer
    assert signature(other, batch_size=3, workers=2, prefix="our_", restart=True) == before
    other.save_pretrained(tmp_path / "again")
    assert signature(load_scorer(tmp_path / "again", "cpu")) == before
