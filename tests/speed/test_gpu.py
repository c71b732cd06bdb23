"""
What has to be seen on a GPU. `benchmarks/speed/gpu.py` runs these tests; with XACLE_TEST_DEVICE=cpu they run on a CPU,
to see that they work.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import EXPECTED, PARITY, SAMPLING_RATE
from safetensors.torch import load_file
from transformers import AutoProcessor, pipeline

import run_stage
from modeling_xacle import DEFAULT_MODEL, XacleForConditionalGeneration, XacleModel
from modeling_xacle.data.pairs import make_dataset, save_dataset
from modeling_xacle.feature_extraction_xacle import XacleFeatureExtractor
from modeling_xacle.scoring.diagnostics import TOLERANCES, self_check_inputs

DEVICE = os.environ.get("XACLE_TEST_DEVICE", "cuda")
ON_GPU = DEVICE == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ON_GPU and not torch.cuda.is_available(), reason="needs a GPU"),
]
SAME_ON_ONE_DEVICE = 1e-4  # scores on 0-10, in fp32
SAME_ON_TWO_DEVICES = 5e-3  # mel bins near their floor round differently


@pytest.fixture(autouse=True)
def no_tf32():
    """fp32 convolutions are computed in fp32; products are by default."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module", params=["parity", "bundled"])
def folder(request, model_folder):
    return str(model_folder if request.param == "parity" else DEFAULT_MODEL)


def pairs():
    """Sixteen pairs of a sound and a caption."""
    generator = np.random.default_rng(0)
    noise = [0.1 * generator.standard_normal(length).astype(np.float32) for length in range(16000, 160001, 12000)]
    texts = ["A dog barks", "Rain", "A bell rings twice while an engine idles in the distance"]
    made = [
        {"audio": sound, "text": texts[number % 3], "sampling_rate": SAMPLING_RATE}
        for number, sound in enumerate(noise)
    ]
    return [*self_check_inputs(), *made]


def scores(folder, device=DEVICE, dtype=torch.float32, batch_size=1):
    align = pipeline("audio-text-alignment", model=folder, dtype=dtype, device=device)
    assert align.model.device.type == torch.device(device).type
    return torch.tensor([result["score"] for result in align(pairs(), batch_size=batch_size)])


def test_scores_are_those_of_the_cpu(folder):
    torch.testing.assert_close(scores(folder), scores(folder, "cpu"), atol=SAME_ON_TWO_DEVICES, rtol=0)


def test_scores_do_not_depend_on_the_batch(folder):
    torch.testing.assert_close(scores(folder, batch_size=8), scores(folder), atol=SAME_ON_ONE_DEVICE, rtol=0)


def test_scores_in_bf16_are_near_those_in_fp32(folder):
    found = scores(folder, dtype=torch.bfloat16, batch_size=8)
    torch.testing.assert_close(found, scores(folder), atol=TOLERANCES["bfloat16"], rtol=0)


def test_captions_of_one_clip_score_as_they_do_alone(folder):
    align = pipeline("audio-text-alignment", model=folder, device=DEVICE)
    sound, texts = str(PARITY / "wav" / "b_16k_3s.wav"), ["A dog barks", "Rain", "A bell"]
    alone = [align({"audio": sound, "text": text})["score"] for text in texts]
    together = [result["score"] for result in align({"audio": sound, "text": texts})]
    assert together == pytest.approx(alone, abs=SAME_ON_ONE_DEVICE)


def test_the_published_scores(model_folder):
    align = pipeline("audio-text-alignment", model=str(model_folder), device=DEVICE)
    for pair in EXPECTED["pairs"]:
        found = align({"audio": str(PARITY / "wav" / pair["wav"]), "text": pair["text"]})["score"]
        assert found == pytest.approx(5 * (pair["raw"] + 1), abs=SAME_ON_TWO_DEVICES), pair


def test_spectrograms_are_those_of_the_cpu(noise):
    extractor = XacleFeatureExtractor()
    found = extractor(noise, sampling_rate=SAMPLING_RATE, device=DEVICE)["input_features"]
    assert found.device.type == DEVICE
    torch.testing.assert_close(found.cpu(), extractor(noise, SAMPLING_RATE)["input_features"], atol=5e-3, rtol=0)


def test_audio_features_are_those_of_the_cpu(folder, noise):
    model = XacleModel.from_pretrained(folder).eval()
    extractor = AutoProcessor.from_pretrained(folder).feature_extractor
    spectrograms = extractor(noise, sampling_rate=SAMPLING_RATE)["input_features"]
    with torch.no_grad():
        expected = model.get_audio_features(spectrograms)
        found = model.to(DEVICE).get_audio_features(spectrograms.to(DEVICE))
    torch.testing.assert_close(found.cpu(), expected, atol=2e-3, rtol=0)


def test_captions_are_written_as_on_the_cpu(folder, noise):
    processor = AutoProcessor.from_pretrained(folder)
    model = XacleForConditionalGeneration.from_pretrained(folder).eval()
    prompt = processor.prepare_captioning(noise[:2], sampling_rate=SAMPLING_RATE)
    expected = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    on_device = {name: tensor.to(DEVICE) for name, tensor in prompt.items()}
    found = model.to(DEVICE).generate(**on_device, max_new_tokens=8, do_sample=False)
    assert found.device.type == DEVICE
    assert found.tolist() == expected.tolist()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Pairs for every stage: 16 to train on, 8 to validate."""
    path = tmp_path_factory.mktemp("gpu")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(24):
        sound = path / f"{number}.wav"
        soundfile.write(sound, 0.1 * generator.standard_normal(SAMPLING_RATE), SAMPLING_RATE)
        rows.append({"id": str(number), "audio": str(sound), "text": f"Sound {number}", "label": number / 12 - 1})
    save_dataset({"train": make_dataset(rows[:16]), "validation": make_dataset(rows[16:])}, path / "dataset")
    return path / "dataset"


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_training_step_in_bf16_moves_what_is_trained_and_nothing_else(stage, dataset, model_folder, tmp_path):
    settings = {"stage": stage, "data": dataset, "model": model_folder, "output_dir": tmp_path / "out", "bf16": True}
    settings |= {"max_steps": 1, "per_device_train_batch_size": 8, "report_to": "none", "use_cpu": not ON_GPU}
    settings |= {"dataloader_num_workers": 0, "learning_rate": 1e-3}
    run_stage.main([str(part) for name, value in settings.items() for part in (f"--{name}", value)])
    before, after = (
        {name.removeprefix("model."): tensor for name, tensor in load_file(Path(path) / "model.safetensors").items()}
        for path in (model_folder, tmp_path / "out")
    )
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"projector", "language_model" if stage == 1 else "score_head"}
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert {tensor.dtype for tensor in after.values()} == {torch.float32}
