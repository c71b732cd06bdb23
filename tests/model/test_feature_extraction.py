"""The audio loader and the log-mel front end."""

import io
import sys
import tracemalloc
import types

import numpy as np
import pytest
import soundfile
import torch
from conftest import EXPECTED, PARITY, SAMPLING_RATE
from transformers import AutoFeatureExtractor

from modeling_xacle import XacleFeatureExtractor, feature_extraction_xacle, load_waveform, waveforms_xacle
from modeling_xacle.feature_extraction_xacle import mel_filters
from modeling_xacle.waveforms_xacle import DecodedAudio, audio_engine, resample


def write(path, samples, rate=SAMPLING_RATE, **kwargs):
    soundfile.write(path, samples, rate, **kwargs)
    return path


@pytest.fixture
def torchaudio():
    """The reference, where it is installed and imports."""
    pytest.importorskip("torchaudio.compliance.kaldi", reason="needs the extra [torchaudio]")
    return pytest.importorskip("torchaudio")


@pytest.fixture
def without_torchaudio(monkeypatch):
    """As where torchaudio is not installed."""
    decided = (waveforms_xacle.usable_torchaudio, feature_extraction_xacle._window_and_filters)
    monkeypatch.setitem(sys.modules, "torchaudio", None)
    for function in decided:
        function.cache_clear()
    yield
    for function in decided:
        function.cache_clear()


def test_log_mel_equals_torchaudio(noise, torchaudio):
    extractor = XacleFeatureExtractor()
    silence_then_click = np.zeros(SAMPLING_RATE, dtype=np.float32)
    silence_then_click[8000] = 1.0
    clips = [*noise, silence_then_click]
    features = extractor([{"array": clip, "sampling_rate": SAMPLING_RATE} for clip in clips])["input_features"]
    for clip, ours in zip(clips, features, strict=True):
        waveform = extractor.fit(torch.from_numpy(clip)).unsqueeze(0) * 2**15
        fbank = torchaudio.compliance.kaldi.fbank(
            waveform, num_mel_bins=128, sample_frequency=SAMPLING_RATE, frame_length=25, frame_shift=10
        )
        torch.testing.assert_close(ours, (fbank - 15.41663) / (2 * 6.55582), atol=1e-4, rtol=0)
    assert features.shape == (len(clips), 998, 128)


RATES = [8000, 11025, 12000, 16010, 22050, 24000, 32000, 37800, 44100, 48000, 88200, 96000, 176400, 192000]
# That many samples at 44.1 kHz are a whole number of samples at 16 kHz and the 441st part of one.
ODD_LENGTH = 441 * 1000 + pow(160, -1, 441)


@pytest.mark.parametrize(
    ("rate", "target"), [*((rate, SAMPLING_RATE) for rate in RATES), (16000, 48000), (44100, 48000)]
)
def test_built_in_resampling_equals_torchaudio_bit_for_bit(rate, target, torchaudio, without_torchaudio):
    generator = torch.Generator().manual_seed(rate)
    for length in (1, 2, 999, rate // 3 + 1, ODD_LENGTH):
        stereo = torch.randn(length, 2, generator=generator).T  # as files are read: channels are not contiguous
        for samples in (stereo, stereo[:1].contiguous()):
            expected = torchaudio.functional.resample(samples, rate, target)
            assert torch.equal(resample(samples, rate, target), expected), (length, len(samples))


@pytest.mark.parametrize("bins", [4, 23, 32, 64, 80, 128])
@pytest.mark.parametrize(("fft_size", "rate"), [(512, 16000), (256, 8000), (1024, 24000), (2048, 44100)])
def test_mel_filters_equal_torchaudio_bit_for_bit(bins, fft_size, rate, torchaudio):
    expected, _ = torchaudio.compliance.kaldi.get_mel_banks(bins, fft_size, rate, 20.0, 0.0, 100.0, -500.0, 1.0)
    assert torch.equal(mel_filters(bins, fft_size, rate), expected)


@pytest.fixture
def in_blocks(monkeypatch):
    """As if every rate had too large a kernel."""
    monkeypatch.setattr(waveforms_xacle, "LARGEST_KERNEL", 0)
    monkeypatch.setattr(waveforms_xacle, "BLOCK_SIZE", 2**12)


@pytest.mark.parametrize(
    ("rate", "target"), [*((rate, SAMPLING_RATE) for rate in RATES), (7919, 500), (99991, 40), (11127, 441)]
)
def test_resampling_in_blocks_differs_by_rounding_alone(rate, target, without_torchaudio, request):
    lengths = (1, 2, 999, rate // 3 + 1)
    clips = [torch.randn(length, 2, generator=torch.Generator().manual_seed(rate)).T for length in lengths]
    expected = [resample(clip, rate, target) for clip in clips]
    request.getfixturevalue("in_blocks")
    for clip, at_once in zip(clips, expected, strict=True):
        torch.testing.assert_close(resample(clip, rate, target), at_once, atol=5e-6, rtol=0)


@pytest.mark.parametrize("rate", [1009, 11127, 22254, 99991, 999983])
def test_no_rate_takes_more_than_a_block_of_weights(rate, monkeypatch):
    sizes, weights = [], waveforms_xacle._sinc_weights

    def noted(*places):
        sizes.append((block := weights(*places)).numel())
        return block

    monkeypatch.setattr(waveforms_xacle, "_sinc_weights", noted)
    resampled = resample(torch.ones(2, rate // 10), rate, SAMPLING_RATE)
    assert resampled.shape == (2, -(-(rate // 10) * SAMPLING_RATE // rate))
    assert 0 < max(sizes) <= waveforms_xacle.BLOCK_SIZE // 2
    torch.testing.assert_close(resampled[:, 200:-200], torch.ones_like(resampled)[:, 200:-200], atol=2e-2, rtol=0)


@pytest.mark.parametrize("rate", [rate for rate in RATES if rate != 16010])
@pytest.mark.parametrize("target", [SAMPLING_RATE, 48000])
def test_ordinary_rates_are_never_resampled_in_blocks(rate, target, monkeypatch):
    monkeypatch.setattr(waveforms_xacle, "_resample_in_blocks", None)
    resample(torch.ones(1, 100), rate, target)


ODD_RATES = [7919, 11127, 15999, 16001, 22254, 44056, 99991]


@pytest.mark.parametrize("rate", [*RATES, *ODD_RATES])
def test_built_in_resampling_keeps_a_tone(rate, without_torchaudio):
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(rate) / rate)[None]
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(SAMPLING_RATE) / SAMPLING_RATE)
    resampled = resample(tone, rate, SAMPLING_RATE)[0]
    assert resampled.shape == expected.shape
    torch.testing.assert_close(resampled[500:-500], expected[500:-500], atol=2e-2, rtol=0)


@pytest.mark.parametrize("rate", [48000, 99991])
def test_a_tone_too_high_for_the_new_rate_is_gone(rate, without_torchaudio):
    tone = torch.sin(2 * torch.pi * 11000 * torch.arange(rate) / rate)[None]
    assert resample(tone, rate, SAMPLING_RATE)[0, 500:-500].abs().max() < 1e-2


@pytest.mark.parametrize("rate", [15999, 22254])
def test_an_odd_rate_does_not_drift(rate, without_torchaudio):
    click = torch.zeros(1, 11 * rate)
    click[0, 10 * rate] = 1
    assert resample(click, rate, SAMPLING_RATE)[0].argmax() == 10 * SAMPLING_RATE


def test_neighbouring_mel_filters_add_up_to_one():
    filters = mel_filters(32, 512, SAMPLING_RATE)
    first, last = filters[0].argmax(), filters[-1].argmax()
    torch.testing.assert_close(filters.sum(dim=0)[first + 1 : last], torch.ones(last - first - 1))
    assert filters.argmax(dim=1).diff().gt(0).all() and filters.min() == 0


def test_the_built_in_engine_gives_the_published_scores(without_torchaudio, align):
    assert audio_engine() == "built-in"
    pairs = [{"audio": PARITY / "wav" / pair["wav"], "text": pair["text"]} for pair in EXPECTED["pairs"]]
    scores = [result["score"] for result in align(pairs)]
    torch.testing.assert_close(scores, [pair["score_0_10"] for pair in EXPECTED["pairs"]], atol=1e-4, rtol=0)


def test_one_function_decides_the_engine(noise, torchaudio, request):
    stereo = np.stack([noise[0], noise[0][::-1]])

    def features():
        return XacleFeatureExtractor()(stereo, sampling_rate=44100)["input_features"]

    expected = features()
    assert audio_engine() == f"torchaudio {torchaudio.__version__.split('+')[0]}"
    request.getfixturevalue("without_torchaudio")
    assert audio_engine() == "built-in"
    assert torch.equal(features(), expected)


def test_batch_equals_single(noise):
    extractor = XacleFeatureExtractor()
    together = extractor(noise, sampling_rate=SAMPLING_RATE)["input_features"]
    alone = torch.cat([extractor(clip, sampling_rate=SAMPLING_RATE)["input_features"] for clip in noise])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=0)


def test_device_argument_reaches_the_result(tone, processor):
    features = XacleFeatureExtractor()(tone, sampling_rate=SAMPLING_RATE, device="meta")
    assert features["input_features"].is_meta
    inputs = processor(text="a", audio=tone, sampling_rate=SAMPLING_RATE, device="meta")
    assert all(inputs[name].is_meta for name in processor.model_input_names)


def test_numpy_result(tone):
    features = XacleFeatureExtractor()(tone, sampling_rate=SAMPLING_RATE, return_tensors="np")["input_features"]
    assert isinstance(features, np.ndarray)


def test_settings_survive_saving(tmp_path):
    extractor = XacleFeatureExtractor(feature_size=64, max_seconds=4.0, mel_mean=1.0)
    extractor.save_pretrained(tmp_path)
    again = XacleFeatureExtractor.from_pretrained(tmp_path)
    assert again.to_dict() == extractor.to_dict()
    assert again(np.zeros(10, dtype=np.float32), sampling_rate=SAMPLING_RATE)["input_features"].shape == (1, 398, 64)


def test_auto_class_loads_the_converted_one(model_folder):
    assert isinstance(AutoFeatureExtractor.from_pretrained(model_folder), XacleFeatureExtractor)


@pytest.mark.parametrize(
    ("suffix", "subtype", "tolerance"),
    [
        ("wav", "PCM_16", 1e-4),
        ("wav", "PCM_24", 1e-6),
        ("wav", "FLOAT", 0),
        ("wav", "PCM_U8", 1e-2),
        ("flac", "PCM_16", 1e-4),
        ("aiff", "PCM_16", 1e-4),
        ("ogg", "VORBIS", 0.1),
        ("mp3", None, 0.1),
    ],
)
def test_formats(suffix, subtype, tolerance, tmp_path, tone):
    waveform, notes = load_waveform(write(tmp_path / f"clip.{suffix}", tone, subtype=subtype))
    assert notes == []
    torch.testing.assert_close(waveform, torch.from_numpy(tone), atol=tolerance, rtol=0)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 96000])
def test_any_sampling_rate(rate):
    times = np.arange(rate) / rate
    waveform, notes = load_waveform({"array": np.sin(2 * np.pi * 440 * times), "sampling_rate": rate})
    expected = torch.sin(2 * torch.pi * 440 * torch.arange(SAMPLING_RATE) / SAMPLING_RATE)
    assert notes == [f"resampled: {rate} Hz to 16000 Hz"]
    torch.testing.assert_close(waveform[500:-500], expected[500:-500], atol=2e-2, rtol=0)


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_averaged(channels, tmp_path, tone):
    samples = np.stack([tone * weight for weight in range(channels)], axis=1) / channels
    waveform, notes = load_waveform(write(tmp_path / "clip.wav", samples, subtype="FLOAT"))
    assert notes == [f"mixed down: {channels} channels to 1"]
    torch.testing.assert_close(waveform, torch.from_numpy(samples.mean(axis=1)))


def test_sources_agree(tmp_path, tone):
    path = write(tmp_path / "clip.wav", tone, subtype="FLOAT")
    content = path.read_bytes()
    decoder = types.SimpleNamespace(
        get_all_samples=lambda: types.SimpleNamespace(
            data=torch.from_numpy(tone).unsqueeze(0), sample_rate=SAMPLING_RATE
        )
    )
    sources = [
        path,
        str(path),
        content,
        io.BytesIO(content),
        {"path": str(path), "bytes": None},
        {"path": "gone.wav", "bytes": content},
        {"array": tone, "sampling_rate": SAMPLING_RATE},
        {"array": tone.tolist(), "sampling_rate": SAMPLING_RATE},
        {"array": torch.from_numpy(tone).unsqueeze(0), "sampling_rate": SAMPLING_RATE},
        decoder,
    ]
    for source in sources:
        waveform, notes = load_waveform(source)
        assert notes == []
        torch.testing.assert_close(waveform, torch.from_numpy(tone))


@pytest.mark.parametrize(
    ("dtype", "full_scale", "zero"),
    [("int16", 2**15, 0), ("int32", 2**31, 0), ("int8", 2**7, 0), ("uint8", 2**7, 128), (">i2", 2**15, 0)],
)
def test_integer_samples_are_scaled(dtype, full_scale, zero, tone):
    samples = (tone.astype(np.float64) * full_scale + zero).astype(dtype)
    waveform, _ = load_waveform(samples, sampling_rate=SAMPLING_RATE)
    torch.testing.assert_close(waveform, torch.from_numpy(tone), atol=max(2 / full_scale, 1e-6), rtol=0)


@pytest.mark.parametrize("dtype", [">f4", "float64", "longdouble", "float16"])
def test_floating_point_of_any_kind(dtype, tone):
    waveform, _ = load_waveform(tone.astype(dtype), sampling_rate=SAMPLING_RATE)
    torch.testing.assert_close(waveform, torch.from_numpy(tone), atol=1e-3, rtol=0)


def test_slightly_clipping_audio_is_taken_as_it_is(tone):
    waveform, _ = load_waveform(3 * tone, sampling_rate=SAMPLING_RATE)
    torch.testing.assert_close(waveform, torch.from_numpy(3 * tone))


def test_padding_value_is_used(tone):
    padded = XacleFeatureExtractor(padding_value=0.25).fit(torch.from_numpy(tone))
    assert padded[len(tone) :].eq(0.25).all()


def test_cut_reads_the_same_as_the_whole(tmp_path):
    samples = 0.1 * np.random.default_rng(0).standard_normal((44100 * 14, 2))
    path = write(tmp_path / "long.flac", samples, 44100)
    cut, notes = load_waveform(path, max_seconds=10)
    whole, _ = load_waveform(path)
    assert notes[-1] == "cut: 14 s to 10 s"
    torch.testing.assert_close(cut, whole[: 10 * SAMPLING_RATE], atol=1e-6, rtol=0)


def with_length(flac, total):
    """The FLAC file with another number of samples in its header, of which they are the low 36 bits of 8 bytes."""
    field = int.from_bytes(flac[18:26], "big")
    return flac[:18] + (field >> 36 << 36 | total).to_bytes(8, "big") + flac[26:]


@pytest.mark.parametrize(
    ("seconds", "notes"), [(4, []), (10.5, ["cut: 10.5 s to 10 s"]), (12, ["cut: unknown length to 10 s"])]
)
def test_a_flac_stream_of_unknown_length_is_read_to_its_end(seconds, notes, tmp_path):
    samples = 0.1 * np.random.default_rng(0).standard_normal(int(seconds * SAMPLING_RATE))
    content = write(tmp_path / "clip.flac", samples).read_bytes()
    expected, _ = load_waveform(content)
    waveform, nothing = load_waveform(with_length(content, 0))
    assert nothing == [] and torch.equal(waveform, expected)
    waveform, cut = load_waveform(with_length(content, 0), max_seconds=10)
    assert cut == notes and torch.equal(waveform, expected[: 10 * SAMPLING_RATE])


@pytest.mark.parametrize("max_seconds", [None, 10])
@pytest.mark.parametrize("total", [2 * SAMPLING_RATE + 1, 2**30, 2**36 - 1])
def test_a_declared_length_that_is_not_there_takes_no_memory(total, max_seconds, tmp_path, tone):
    content = with_length(write(tmp_path / "clip.flac", tone).read_bytes(), total)
    tracemalloc.start()
    with pytest.raises(ValueError, match=rf"truncated: \d+ samples promised, {len(tone)} found"):
        load_waveform(content, max_seconds=max_seconds)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * waveforms_xacle.BLOCK_SIZE  # bytes


def test_only_what_is_needed_has_to_be_there(tmp_path, tone):
    content = write(tmp_path / "clip.flac", np.tile(tone, 3)).read_bytes()
    waveform, notes = load_waveform(with_length(content, 2**36 - 1), max_seconds=4)
    assert len(waveform) == 4 * SAMPLING_RATE and notes[-1].startswith("cut: 4.29")


@pytest.mark.parametrize("format", ["WAV", "FLAC", "MP3", "VORBIS", "OPUS"])
def test_reading_in_blocks_gives_the_samples_of_the_whole(format, tmp_path, monkeypatch, noise):
    monkeypatch.setattr(waveforms_xacle, "BLOCK_SIZE", 7777)
    name, subtype = ("ogg", format) if format in ("VORBIS", "OPUS") else (format.lower(), None)
    path = write(tmp_path / f"clip.{name}", noise[0], subtype=subtype)
    with soundfile.SoundFile(path) as file:
        whole = file.read(dtype="float32")
    waveform, _ = load_waveform(path)
    assert torch.equal(waveform, torch.from_numpy(whole))


def test_notes_tell_what_happened(tmp_path, tone):
    path = write(tmp_path / "clip.wav", np.stack([tone, tone], axis=1), 8000)
    batch = XacleFeatureExtractor()([path, path], return_notes=True)
    expected = ["resampled: 8000 Hz to 16000 Hz", "mixed down: 2 channels to 1", "padded: 4 s to 10 s"]
    assert batch["notes"] == [expected, expected]


def test_exactly_ten_seconds_has_no_note():
    _, notes = XacleFeatureExtractor().load(np.zeros(10 * SAMPLING_RATE, dtype=np.float32), SAMPLING_RATE)
    assert notes == []


def test_unknown_length_in_a_streamed_header_is_no_truncation(tmp_path, tone):
    content = bytearray(write(tmp_path / "clip.wav", tone, subtype="PCM_16").read_bytes())
    size = content.index(b"data") + 4
    content[size : size + 4] = b"\xff\xff\xff\xff"
    waveform, _ = load_waveform(bytes(content))
    assert len(waveform) == len(tone)


@pytest.mark.parametrize("rate", [16000, 8000, 44100])
def test_decoded_audio_is_read_once_and_loads_as_its_file_does(rate, monkeypatch):
    file, reads = PARITY / "wav" / "c_44k_stereo_12s.wav", []
    plain = {seconds: load_waveform(file, None, rate, seconds) for seconds in (None, 10.0, 3.0)}
    read = waveforms_xacle._read_file
    monkeypatch.setattr(waveforms_xacle, "_read_file", lambda *args: reads.append(args) or read(*args))
    decoded = DecodedAudio(file)
    for seconds, (waveform, notes) in plain.items():
        for _ in range(2):
            found, told = load_waveform(decoded, None, rate, seconds)
            torch.testing.assert_close(found, waveform, atol=1e-6, rtol=0)
            assert told == notes
    assert len(reads) == 1
    with pytest.raises(ValueError, match=r"c_44k_stereo_12s.wav: only the first 3 s of it were read"):
        load_waveform(DecodedAudio(file, max_seconds=3.0), None, rate, 10.0)
    beginning, told = load_waveform(DecodedAudio(file, max_seconds=3.0), None, rate, 3.0)
    torch.testing.assert_close(beginning, plain[3.0][0], atol=1e-6, rtol=0)
    assert told == plain[3.0][1] and told[-1] == "cut: 12.3 s to 3 s"
