"""Audio that cannot be scored: the loader, and so all that use it, refuses each kind with its name and a remedy."""

import io

import numpy as np
import pytest
import soundfile
from conftest import SAMPLING_RATE

from modeling_xacle import load_waveform, waveforms_xacle


def encoded(samples, format="WAV", subtype=None):
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLING_RATE, format=format, subtype=subtype)
    return buffer.getvalue()


def refused(tmp_path, content, message, name="clip.wav"):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_waveform(path, max_seconds=10)
    assert str(error.value).startswith(str(path))
    with pytest.raises(ValueError, match=message):
        load_waveform(content)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.wav: no such audio file"):
        load_waveform(tmp_path / "gone.wav")


def test_folder(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        load_waveform(tmp_path)


def test_empty_file(tmp_path):
    refused(tmp_path, b"", r"empty \(0 bytes\)")


def test_text_file(tmp_path):
    refused(tmp_path, b"wav_file_name,text\n" * 20, "not audio that libsndfile can read.*Convert it")


def test_zero_length(tmp_path):
    refused(tmp_path, encoded(np.zeros(0)), "no samples")


@pytest.mark.parametrize(
    ("format", "subtype"),
    [
        ("WAV", "PCM_16"),
        ("WAV", "FLOAT"),
        ("AIFF", None),
        ("AU", None),
        ("W64", None),
        ("FLAC", None),
        ("MP3", None),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("RF64", None),
    ],
)
@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99])
def test_truncated(format, subtype, kept, tmp_path):
    content = encoded(0.1 * np.random.default_rng(0).standard_normal(3 * SAMPLING_RATE), format, subtype)
    refused(tmp_path, content[: int(len(content) * kept)], "truncated|or broken")


def test_truncated_header(tmp_path):
    refused(tmp_path, encoded(np.zeros(100))[:30], "or broken")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_invalid_samples(value, tmp_path):
    samples = np.zeros((1000, 2), dtype=np.float32)
    samples[700, 1] = value
    refused(tmp_path, encoded(samples, subtype="FLOAT"), "1 samples are NaN or infinite, the first at index 700")
    with pytest.raises(ValueError, match="first at index 700"):
        load_waveform(samples.T, sampling_rate=SAMPLING_RATE)


def test_samples_far_beyond_full_scale():
    with pytest.raises(ValueError, match="reach 3000, but full scale is 1; divide 16-bit"):
        load_waveform(np.array([0.0, 3000.0]), sampling_rate=SAMPLING_RATE)


@pytest.mark.parametrize("array", [np.zeros(9), [0.0, 0.1], {"array": np.zeros(9)}])
def test_array_without_its_rate(array):
    with pytest.raises(ValueError, match="sampling rate is missing"):
        load_waveform(array)


@pytest.mark.parametrize("rate", [0, -16000, 44100.5, "16000", np.nan, True, 1, 999, 1_000_001, 10**12])
def test_rate_that_is_none(rate):
    with pytest.raises(ValueError, match=f"whole number of Hz from 1000 to 1000000, not {rate!r}; correct it"):
        load_waveform(np.zeros(9), sampling_rate=rate)


@pytest.mark.parametrize("rate", [1, 250, 2_000_000, 2**31 - 1])
def test_absurd_rate_of_a_file(rate, tmp_path):
    content = encoded(np.zeros(100))
    refused(tmp_path, content[:24] + rate.to_bytes(4, "little") + content[28:], f"1000 to 1000000, not {rate}; correct")


@pytest.mark.parametrize("rate", [1_000, 999_983, 1_000_000])
def test_rates_from_hydrophones_to_bat_detectors_are_accepted(rate):
    waveform, _ = load_waveform(np.zeros(rate), sampling_rate=rate)
    assert len(waveform) == SAMPLING_RATE


@pytest.mark.parametrize(
    ("error", "reason"),
    [(MemoryError(), "does not fit into memory"), (RuntimeError("can't allocate memory"), "can't allocate memory")],
)
def test_what_goes_wrong_inside_names_the_file(error, reason, tmp_path, monkeypatch):
    def failing(*_):
        raise error

    path = tmp_path / "clip.wav"
    path.write_bytes(encoded(np.zeros(100)))
    monkeypatch.setattr(waveforms_xacle, "_check_samples", failing)
    for source in (path, str(path), {"bytes": path.read_bytes(), "path": str(path)}):
        with pytest.raises(OSError, match=reason) as refusal:
            load_waveform(source)
        assert str(refusal.value).startswith(f"{path}: could not be loaded")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((9, 2)), r"shape \(9, 2\) is neither .* transpose"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\)"),
        (np.zeros(0), "no samples"),
        (np.zeros((2, 0)), r"no samples|shape"),
        (np.zeros(9, dtype=np.int64), "scale of int64 samples is unknown"),
        (np.zeros(9, dtype=np.complex64), "complex64 are not audio"),
        (np.array(["a"]), "are not audio"),
        ([[0.0, 1.0], [0.0]], "do not form an array"),
    ],
)
def test_arrays_that_are_no_audio(array, message):
    with pytest.raises(ValueError, match=message):
        load_waveform(array, sampling_rate=SAMPLING_RATE)


def test_a_file_opened_as_text(tmp_path):
    (tmp_path / "clip.txt").write_text("words")
    with (
        open(tmp_path / "clip.txt", encoding="utf-8") as file,
        pytest.raises(TypeError, match="open it in binary mode"),
    ):
        load_waveform(file)


def test_dict_without_audio():
    with pytest.raises(ValueError, match=r"got the keys \['bytes', 'path'\]"):
        load_waveform({"bytes": None, "path": None})


@pytest.mark.parametrize("audio", [None, 3, object()])
def test_other_types(audio):
    with pytest.raises(TypeError, match="is not supported: give a path"):
        load_waveform(audio)
