"""The audio towers of the two official baselines: their sizes, steps, front ends and the statistics of these."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from towers import TOWERS, save_tower
from transformers import AutoFeatureExtractor, AutoModel
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from modeling_xacle import ByolaConfig, ByolaFeatureExtractor, ByolaModel, M2dConfig, M2dFeatureExtractor, M2dModel
from modeling_xacle.checkpoints import measure_log_mel
from modeling_xacle.processing_xacle import check_front_end

KINDS = ["xacle_byola", "xacle_m2d"]
EXTRACTORS = [ByolaFeatureExtractor, M2dFeatureExtractor]
RATE = 16000


@pytest.fixture
def sounds():
    """Sounds of 1, 10 and 12 s at 16 kHz, in this order the louder."""
    generator = np.random.default_rng(0)
    return [generator.normal(0, 0.1 * seconds, seconds * RATE).astype(np.float32) for seconds in (1, 10, 12)]


def num_parameters(model_class, config):
    with torch.device("meta"):
        return sum(weight.numel() for weight in model_class(config).parameters())


def test_byola_has_the_parameters_of_its_description():
    convolutions = (9 * 64 + 64) + (64 * 9 * 64 + 64)  # 3 x 3, from 1 and from 64 channels, with biases
    norms = 2 * (64 + 64)
    linears = (1024 * 2048 + 2048) + (2048 * 2048 + 2048)
    assert num_parameters(ByolaModel, ByolaConfig()) == convolutions + norms + linears == 6_333_376


@pytest.mark.parametrize(("num_semantic_layers", "expected"), [(1, 92_582_400), (2, 99_670_272)])
def test_m2d_has_the_parameters_of_its_description(num_semantic_layers, expected):
    size, patches = 768, 5 * 62
    attention = (size * 3 * size + 3 * size) + (size * size + size)
    feed_forward = (size * 3072 + 3072) + (3072 * size + size)
    norm = 2 * size
    layer = norm + attention + norm + feed_forward
    vision = (16 * 16 * size + size) + size + patches * size + 12 * layer + norm  # a class token among them
    semantic = size + num_semantic_layers * layer + norm
    config = M2dConfig(num_semantic_layers=num_semantic_layers)
    assert num_parameters(M2dModel, config) == vision + semantic == expected


@pytest.mark.parametrize(
    ("model_class", "config", "extractor", "frames", "output", "pooled"),
    [
        (ByolaModel, ByolaConfig(), ByolaFeatureExtractor(), (2, 1001, 64), (2, 250, 3072), None),
        (M2dModel, M2dConfig(), M2dFeatureExtractor(), (2, 1001, 80), (2, 310, 768), (2, 768)),
    ],
)
def test_every_step_has_the_shape_of_the_description(model_class, config, extractor, frames, output, pooled, sounds):
    features = extractor(sounds[:2], sampling_rate=RATE, device="meta")["input_features"]
    assert features.shape == frames and features.dtype == torch.float32
    with torch.device("meta"):
        model = model_class(config).eval()
    shapes = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda module, args, out, name=name: shapes.update({name: tuple(out.shape)}))
    outputs = model(features)
    assert outputs.last_hidden_state.shape == output and config.hidden_size == output[-1]
    if pooled is None:
        assert shapes == {"blocks": (2, 64, 250, 16), "projection": (2, 250, 2048)}
    else:
        assert outputs.pooler_output.shape == pooled
        vision = {"patch_embedding": (2, 768, 62, 5), "layers": (2, 311, 768), "layer_norm": (2, 310, 768)}
        assert shapes == vision | {"semantic_layers": (2, 311, 768), "semantic_layer_norm": (2, 768)}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_weights_start_as_the_rule_says_and_survive_a_folder(kind, tmp_path):
    build, config, _ = TOWERS[kind]
    torch.manual_seed(0)
    model = build(config).eval()
    for name, tensor in model.state_dict().items():
        assert tensor.isfinite().all(), name
        assert tensor.any() == (not name.endswith(("bias", "running_mean", "num_batches_tracked"))), name
    model.save_pretrained(tmp_path)
    again, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)


def test_a_weight_that_a_folder_lacks_starts_anew(tmp_path):
    torch.manual_seed(0)
    model = M2dModel(TOWERS["xacle_m2d"][1])
    kept = {name: tensor for name, tensor in model.state_dict().items() if "semantic" not in name}
    model.save_pretrained(tmp_path, state_dict=kept)
    again = AutoModel.from_pretrained(tmp_path)
    for weight in (again.semantic_layers[0].self_attn.in_proj_weight, again.semantic_token):
        assert 0.01 < weight.std().item() < 0.03
    torch.testing.assert_close(again.class_token, model.class_token)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_clip_sounds_alike_in_any_batch_and_each_time(kind, sounds):
    build, config, extractor = TOWERS[kind]
    torch.manual_seed(0)
    model, features = build(config).eval(), extractor(sounds, sampling_rate=RATE)["input_features"]
    together = model(features)
    torch.testing.assert_close(model(features).last_hidden_state, together.last_hidden_state, rtol=0, atol=0)
    for index in range(3):
        alone = model(extractor(sounds[index], sampling_rate=RATE)["input_features"])
        for name, value in alone.items():
            torch.testing.assert_close(value[0], together[name][index], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_tokens_are_in_the_order_of_time(kind):
    build, config, _ = TOWERS[kind]
    torch.manual_seed(0)
    model = build(config).eval()
    silent = torch.zeros(1, 160, config.num_mel_bins)
    sounding = silent.clone()
    sounding[:, 96:112] = torch.randn(16, config.num_mel_bins)  # the seventh of ten stretches
    if kind == "xacle_m2d":
        model.layers = torch.nn.Identity()  # attention would spread it
    silent, sounding = model(silent).last_hidden_state, model(sounding).last_hidden_state
    changed = (silent - sounding).abs().amax(dim=(0, 2)) > 1e-6
    stretches = changed.nonzero().flatten().float() / len(changed) * 10
    assert stretches.min() >= 5.5 and stretches.max() <= 7.5 and 0.08 < changed.float().mean() < 0.2


@torch.inference_mode()
def test_a_shorter_clip_takes_the_first_positions():
    model = M2dModel(TOWERS["xacle_m2d"][1]).eval()
    model.layers = torch.nn.Identity()
    features = torch.randn(1, 1001, 80)
    short = M2dFeatureExtractor(max_seconds=3.0)(np.ones(RATE, np.float32), sampling_rate=RATE)["input_features"]
    assert short.shape[1] == 301
    states = [model(frames).last_hidden_state for frames in (features, features[:, :301])]
    torch.testing.assert_close(states[0][:, : 18 * 5], states[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 100, 40), (0, 100, None), (1, 3, None), (100, None)])
def test_other_shapes_are_refused(kind, shape):
    build, config, extractor = TOWERS[kind]
    shape = tuple(size or config.num_mel_bins if size != 0 else 0 for size in shape)
    with pytest.raises(ValueError, match=rf"but the audio tower expects .* Make them with {type(extractor).__name__}"):
        build(config)(torch.zeros(shape))


def test_a_clip_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match=r"1024 frames, but there are positions for 1001 only: set .* max_seconds"):
        M2dModel(TOWERS["xacle_m2d"][1])(torch.zeros(1, 1024, 80))


@pytest.mark.parametrize(
    ("config", "wrong", "message"),
    [
        (ByolaConfig, {"num_mel_bins": 62}, "num_mel_bins=62 is not a multiple of 4"),
        (M2dConfig, {"num_mel_bins": 72}, "num_mel_bins=72 is not a multiple of patch_size=16"),
        (M2dConfig, {"num_attention_heads": 7}, "not a multiple of num_attention_heads=7"),
        (M2dConfig, {"num_semantic_layers": 0}, "num_semantic_layers=0 must be at least 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(config, wrong, message):
    with pytest.raises(ValueError, match=message):
        config(**wrong)


@pytest.mark.parametrize(
    ("extractor", "fft_size", "mel_bins", "lowest", "highest"),
    [(ByolaFeatureExtractor(), 1024, 64, 60, 7800), (M2dFeatureExtractor(), 400, 80, 50, 8000)],
)
def test_log_mel_is_that_of_the_library(extractor, fft_size, mel_bins, lowest, highest, sounds):
    filters = mel_filter_bank(fft_size // 2 + 1, mel_bins, lowest, highest, RATE, norm="slaney", mel_scale="slaney")
    assert (filters.max(axis=0) > 0).all()
    clip = sounds[1]
    energies = spectrogram(
        clip, window_function(fft_size, "hann"), fft_size, 160, power=2.0, mel_filters=filters, mel_floor=0.0
    )
    expected = torch.from_numpy(np.log(energies + np.finfo(np.float32).eps)).T.float()
    features = extractor(clip, sampling_rate=RATE)["input_features"]
    torch.testing.assert_close(features, expected[None], rtol=1e-4, atol=1e-4)
    assert features.shape == (1, 1001, mel_bins)


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_mel_convention_is_a_setting(extractor):
    equal_area, equal_height = extractor().filters(), extractor(mel_scale="htk", mel_norm=None).filters()
    bin_width = RATE / extractor().window_size
    torch.testing.assert_close((equal_area.sum(dim=0) * bin_width)[-20:], torch.ones(20), rtol=0.02, atol=0)
    assert 0.95 < equal_height.max() <= 1 and equal_area.max() < 0.1
    span = (extractor().lowest_hz, extractor().highest_hz)
    corners = 700 * (
        10 ** (np.linspace(*(2595 * np.log10(1 + np.array(span) / 700)), len(equal_height[0]) + 2) / 2595) - 1
    )
    peaks = equal_height.argmax(dim=0).numpy() * bin_width
    assert np.abs(peaks - corners[1:-1]).max() <= bin_width


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_settings_of_a_front_end_survive_a_folder(extractor, tmp_path, sounds):
    made = extractor(mel_mean=-6.5, mel_std=3.5, mel_scale="htk", mel_norm=None, max_seconds=4.0)
    made.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is extractor and loaded.to_dict() == made.to_dict()
    plain = extractor(mel_scale="htk", mel_norm=None, max_seconds=4.0)
    features, unscaled = (front_end(sounds, sampling_rate=RATE)["input_features"] for front_end in (loaded, plain))
    torch.testing.assert_close(features, (unscaled + 6.5) / 3.5)


def test_a_window_shorter_than_a_frame_is_refused():
    with pytest.raises(ValueError, match=r"max_seconds=0.05: ByolaFeatureExtractor takes windows from 0.064 s"):
        ByolaFeatureExtractor(max_seconds=0.05)


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_measured_statistics_normalise_the_training_split(extractor, sounds):
    clips = [{"array": sound, "sampling_rate": RATE} for sound in sounds]
    mean, std = measure_log_mel(extractor(mel_mean=3.0, mel_std=9.0), iter(clips))
    features = extractor(mel_mean=mean, mel_std=std)(clips)["input_features"].double()
    assert features.mean() == pytest.approx(0, abs=1e-5) and features.std(unbiased=False) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("clips", "message"), [([], "split is empty"), ([np.zeros(RATE, np.float32)], "no sound")])
def test_a_split_without_sound_has_no_statistics(clips, message):
    with pytest.raises(ValueError, match=message):
        measure_log_mel(ByolaFeatureExtractor(), ({"array": clip, "sampling_rate": RATE} for clip in clips))


STRANGER = """
import json, sys
import torch
from transformers import AutoFeatureExtractor, AutoModel
found = []
for folder in sys.argv[1:]:
    autos = (AutoFeatureExtractor, AutoModel)
    extractor, model = (auto.from_pretrained(folder, trust_remote_code=True) for auto in autos)
    with torch.inference_mode():
        states = model.eval()(**extractor(torch.linspace(-1, 1, 16000).numpy(), sampling_rate=16000)).last_hidden_state
    found.append([*states.shape, states.double().abs().sum().item()])
assert "modeling_xacle" not in sys.modules
print(json.dumps(found))
"""


def test_a_stranger_loads_a_tower_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    expected = []
    for kind in KINDS:
        save_tower(kind, tmp_path / kind)
        model, features = AutoModel.from_pretrained(tmp_path / kind).eval(), np.linspace(-1, 1, RATE, dtype=np.float32)
        with torch.inference_mode():
            states = model(**TOWERS[kind][2](features, sampling_rate=RATE)).last_hidden_state
        expected.append([*states.shape, pytest.approx(states.double().abs().sum().item(), rel=1e-3)])
    command = [sys.executable, "-c", STRANGER, *(str(tmp_path / kind) for kind in KINDS)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout.splitlines()[-1]) == expected


def test_the_other_baselines_front_end_is_refused():
    with pytest.raises(ValueError, match=r"type xacle_m2d hears what M2dFeatureExtractor makes .* not what Byola"):
        check_front_end(M2dConfig(), ByolaFeatureExtractor())
