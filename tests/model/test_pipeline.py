"""`pipeline("audio-text-alignment")` as users call it."""

from pathlib import Path

import captions
import events
import numpy as np
import pytest
import torch
from conftest import PARITY, SAMPLING_RATE
from datasets import Audio, Dataset
from transformers import AutoProcessor, pipeline

from modeling_xacle import XacleProcessor
from modeling_xacle.pipeline_xacle import window_spans

CLIP = str(PARITY / "wav" / "b_16k_3s.wav")
LONG_CLIP = str(PARITY / "wav" / "c_44k_stereo_12s.wav")
TEXTS = ["A dog barking in the park", "beep", "Rain falls while a man speaks, then thunder rumbles in the distance"]


@pytest.fixture(scope="module")
def expected(align):
    """Scores of the clip with each text, one at a time."""
    return [align({"audio": CLIP, "text": text})["score"] for text in TEXTS]


def scores(results):
    return [result["score"] for result in results]


def close(found, expected):
    assert found == pytest.approx(expected, abs=1e-4)


def test_one_pair(align):
    result = align({"audio": CLIP, "text": "beep"})
    assert result == {"score": pytest.approx(6.9412, abs=1e-3), "notes": ["padded: 3.1 s to 10 s"]}


def test_a_score_without_notes_is_only_a_score(align, noise):
    assert set(align({"audio": {"array": noise[-1], "sampling_rate": SAMPLING_RATE}, "text": "noise"})) == {"score"}


def test_many_captions_encode_the_audio_once(align, expected, monkeypatch):
    encoded = []
    encode = align.model.get_audio_features
    monkeypatch.setattr(
        align.model,
        "get_audio_features",
        lambda input_features, *mask: encoded.append(len(input_features)) or encode(input_features),
    )
    results = align({"audio": CLIP, "text": TEXTS})
    assert encoded == [1]
    assert [result["text"] for result in results] == TEXTS
    close(scores(results), expected)


def test_more_captions_than_fit_one_pass(align, expected):
    results = align({"audio": CLIP, "text": TEXTS * 15})
    close(scores(results), expected * 15)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_batches_change_no_score(batch_size, align):
    items = [{"audio": clip, "text": text} for clip in (CLIP, LONG_CLIP) for text in TEXTS]
    mixed = [*items, {"audio": LONG_CLIP, "text": TEXTS}]
    one_by_one = [align(item) for item in mixed]
    results = align(mixed, batch_size=batch_size)
    assert isinstance(results[-1], list)
    close(scores(results[:-1]) + scores(results[-1]), scores(one_by_one[:-1]) + scores(one_by_one[-1]))


def test_generator_streams(align, expected):
    taken = []

    def pairs():
        for text in TEXTS:
            taken.append(text)
            yield {"audio": CLIP, "text": text}

    results = align(pairs())
    first = next(iter(results))
    assert len(taken) < len(TEXTS)
    close([first["score"], *scores(results)], expected)
    close(scores(align(map(lambda text: {"audio": CLIP, "text": text}, TEXTS))), expected)


def test_columns(align, expected):
    close(scores(align({"audio": [CLIP] * 3, "text": TEXTS})), expected)
    close(scores(align({"audio": np.array([CLIP] * 3), "text": np.array(TEXTS)})), expected)


def test_datasets(align, expected, tone):
    """A dataset of the project's schema: as a whole, by its columns, streamed, with the bytes embedded."""
    rows = {"id": ["a", "b", "c"], "audio": [CLIP] * 3, "text": TEXTS}
    dataset = Dataset.from_dict(rows).cast_column("audio", Audio(decode=False))
    content = Path(CLIP).read_bytes()
    embedded = Dataset.from_dict({**rows, "audio": [{"bytes": content, "path": None}] * 3})
    close(scores(align(dataset, batch_size=2)), expected)
    close(scores(align({"audio": dataset["audio"], "text": dataset["text"]})), expected)
    close(scores(align(dataset.to_iterable_dataset())), expected)
    close(scores(align({"audio": CLIP, "text": dataset["text"]})), expected)
    close(scores(align(embedded.cast_column("audio", Audio(decode=False)))), expected)
    close(scores(align(dataset, num_workers=2, batch_size=2)), expected)


def test_audio_forms(align, expected, tmp_path):
    content = Path(CLIP).read_bytes()
    array = np.frombuffer(content[44:], dtype=np.int16)
    for audio in (content, {"bytes": content, "path": None}, {"array": array, "sampling_rate": SAMPLING_RATE}):
        close(align({"audio": audio, "text": TEXTS[0]})["score"], expected[0])
    close(align({"audio": array, "sampling_rate": SAMPLING_RATE, "text": TEXTS[0]})["score"], expected[0])
    close(align({"audio": array, "text": TEXTS[0]}, sampling_rate=SAMPLING_RATE)["score"], expected[0])


def test_nothing_in_nothing_out(align):
    assert align([]) == []


def test_long_audio_is_cut_by_default_and_told(align):
    assert "cut: 12.3 s to 10 s" in align({"audio": LONG_CLIP, "text": "a"})["notes"]


def test_windows_cover_everything():
    assert window_spans(25, window=10, hop=10) == [(0, 10), (10, 20), (20, 25)]
    assert window_spans(26, window=10, hop=5) == [(0, 10), (5, 15), (10, 20), (15, 25), (20, 26)]
    assert window_spans(25, window=10, hop=5)[-1] == (15, 25)
    assert window_spans(4, window=10, hop=5) == [(0, 4)]
    for length in range(1, 60):
        spans = window_spans(length, window=10, hop=7)
        assert set(range(length)) == {sample for start, end in spans for sample in range(start, end)}


def test_windows_are_averaged_by_length(align, noise):
    clip = np.concatenate(noise[-3:])[: 25 * SAMPLING_RATE]
    item = {"audio": {"array": clip, "sampling_rate": SAMPLING_RATE}, "text": ["beep", "A dog"]}
    results = align(item, window_seconds=10, return_windows=True)
    for result in results:
        windows = result["windows"]
        assert [(window["start"], window["end"]) for window in windows] == [(0, 10), (10, 20), (20, 25)]
        by_hand = [
            align(
                {"audio": clip[int(start) * 16000 : int(end) * 16000], "sampling_rate": 16000, "text": result["text"]}
            )
            for start, end in [(0, 10), (10, 20), (20, 25)]
        ]
        close(scores(windows), scores(by_hand))
        assert result["score"] == pytest.approx(np.average(scores(windows), weights=[10, 10, 5]), abs=1e-5)
        assert result["notes"] == [
            "windowed: 3 of 10 s, one every 10 s",
            "padded: windows, the shortest of 5 s to 10 s",
        ]


def test_short_windows_with_overlap(align):
    result = align({"audio": LONG_CLIP, "text": "a"}, window_seconds=4, hop_seconds=2, return_windows=True)
    assert [window["start"] for window in result["windows"]] == [0, 2, 4, 6, 8, 10]
    assert result["windows"][-1]["end"] == pytest.approx(12.3)


def test_bundled_model_needs_no_name_and_no_network():
    align = pipeline("audio-text-alignment", device="cpu")
    assert align.model.config.training_stage == 3
    assert np.isfinite(align({"audio": CLIP, "text": "beep"})["score"])


def test_autocast_to_bf16_moves_a_score_by_less_than_two_hundredths():
    align = pipeline("audio-text-alignment", device="cpu")
    rng = np.random.default_rng(0)
    scenes = [events.sample_scene(rng, events.split_named("train")) for _ in range(8)]
    texts = [captions.describe(scene, rng) for scene in scenes]
    inputs = [
        {"audio": events.render_clip(scene, rng), "sampling_rate": SAMPLING_RATE, "text": [texts[n], texts[n - 1]]}
        for n, scene in enumerate(scenes)
    ]
    exact = torch.tensor([scores(results) for results in align(inputs)])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = torch.tensor([scores(results) for results in align(inputs)])
    assert exact.std() > 1
    assert 0 < (rounded - exact).abs().max() < 0.02


def test_untrained_model_says_so(model, processor, caplog):
    model.config.training_stage = 0
    pipeline("audio-text-alignment", model=model, processor=processor, device="cpu")
    assert "never trained (training_stage=0): its scores are noise" in caplog.text


def test_saved_pipeline_is_complete(align, expected, tmp_path):
    align.save_pretrained(tmp_path)
    again = pipeline("audio-text-alignment", model=str(tmp_path), device="cpu")
    close(again({"audio": CLIP, "text": TEXTS[0]})["score"], expected[0])
    assert "checkpoints" not in (tmp_path / "config.json").read_text()  # the registered default's path


def test_own_model_and_processor(model, processor, expected):
    align = pipeline("audio-text-alignment", model=model.train(), processor=processor, device="cpu")
    close(align({"audio": CLIP, "text": TEXTS[0]})["score"], expected[0])
    assert align.model.training
    assert align.model.projector.training


def test_a_pipeline_between_training_steps_has_no_dropout(model, processor, expected):
    align = pipeline("audio-text-alignment", model=model, processor=processor, device="cpu")
    model.train()
    model.audio_tower.eval()
    close(align({"audio": CLIP, "text": TEXTS[0]})["score"], expected[0])
    assert model.score_head.training
    assert not model.audio_tower.training


def test_one_window_ends_where_the_sound_does(align):
    [window] = align({"audio": CLIP, "text": "a"}, return_windows=True)["windows"]
    assert (window["start"], window["end"]) == (0, pytest.approx(3.1))
    [window] = align({"audio": LONG_CLIP, "text": "a"}, return_windows=True)["windows"]
    assert (window["start"], window["end"]) == (0, 10)


def test_many_windows_go_through_in_passes(align, monkeypatch):
    """However long the sound, no more than a pass of spectrograms is in memory."""
    passes = []
    encode = align.model.get_audio_features
    monkeypatch.setattr(
        align.model,
        "get_audio_features",
        lambda input_features, *mask: passes.append(len(input_features)) or encode(input_features),
    )
    result = align({"audio": LONG_CLIP, "text": ["a", "b"]}, window_seconds=1, hop_seconds=0.25, return_windows=True)
    assert passes == [16, 16, 15]
    assert len(result[1]["windows"]) == 47
    by_itself = align({"audio": LONG_CLIP, "text": "b"}, window_seconds=1, hop_seconds=0.25)
    assert result[1]["score"] == pytest.approx(by_itself["score"], abs=1e-4)


def test_the_rate_beside_the_samples_counts(align, expected, tone):
    item = {"audio": tone, "text": "a"}
    right = align({**item, "sampling_rate": SAMPLING_RATE})["score"]
    wrong = align({**item, "sampling_rate": 8000})["score"]
    assert right != wrong
    assert align({**item, "sampling_rate": SAMPLING_RATE}, sampling_rate=8000)["score"] == right
    assert align({**item, "sampling_rate": None}, sampling_rate=SAMPLING_RATE)["score"] == right
    nested = {"audio": {"array": tone, "sampling_rate": None}, "text": "a"}
    assert align(nested, sampling_rate=SAMPLING_RATE)["score"] == right
    columns = {"audio": [tone, tone], "text": ["a", "a"], "sampling_rate": [SAMPLING_RATE, 8000]}
    close(scores(align(columns)), [right, wrong])


def test_half_precision(model_folder, expected):
    align = pipeline("audio-text-alignment", model=str(model_folder), dtype=torch.bfloat16, device="cpu")
    assert align({"audio": CLIP, "text": TEXTS[0]})["score"] == pytest.approx(expected[0], abs=0.2)


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ("a dog", ValueError, "dict with `audio` and `text`, not a str"),
        ({"audio": CLIP}, ValueError, r"dict with `audio` and `text`, not the keys \['audio'\]"),
        ({"audio": CLIP, "text": ""}, ValueError, "caption is empty"),
        ({"audio": CLIP, "text": []}, ValueError, "empty list"),
        ({"audio": CLIP, "text": None}, TypeError, "There is no caption"),
        ({"audio": CLIP, "text": ["a", 5]}, TypeError, "must be a string, not int: 5"),
        ({"audio": [CLIP, CLIP], "text": ["a", "b", "c"]}, ValueError, "2 clips and 3 captions do not make pairs"),
        ({"audio": [CLIP, CLIP], "text": "a"}, ValueError, "2 clips and 1 captions do not make pairs"),
    ],
)
def test_what_is_no_input(item, error, message, align):
    with pytest.raises(error, match=message):
        align(item)


@pytest.mark.parametrize(
    "arguments",
    [{"window_seconds": 11}, {"window_seconds": 5, "hop_seconds": 6}, {"hop_seconds": 0}, {"window_seconds": -1}],
)
def test_windows_that_make_no_sense(arguments, align):
    with pytest.raises(ValueError, match=r"must satisfy 0\.025 <= hop <= window <= 10"):
        align({"audio": CLIP, "text": "a"}, **arguments)


def test_an_error_names_the_pair(align):
    with pytest.raises(FileNotFoundError, match=r"gone\.wav") as error:
        align([{"audio": CLIP, "text": "here"}, {"audio": "gone.wav", "text": "not here"}])
    assert error.value.__notes__ == ["in the input with the text 'not here'"]


def test_unknown_task():
    with pytest.raises(
        KeyError, match=r"Unknown task audio-text-alignmint, available tasks are .*audio-text-alignment"
    ):
        pipeline("audio-text-alignmint")


def test_unknown_argument(align):
    with pytest.raises(TypeError, match="windows_seconds"):
        align({"audio": CLIP, "text": "a"}, windows_seconds=5)


def test_a_model_without_its_processor(model, model_folder, tmp_path):
    with pytest.raises(Exception, match="provide a processor"):
        pipeline("audio-text-alignment", model=model)
    model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match="no complete XacleProcessor"):
        pipeline("audio-text-alignment", model=str(tmp_path))
    extractor = AutoProcessor.from_pretrained(model_folder).feature_extractor
    with pytest.raises(ValueError, match="comes without its XacleProcessor"):
        pipeline("audio-text-alignment", model=model, processor=extractor, device="cpu")


def test_a_processor_of_another_model(model, processor):
    other = XacleProcessor(processor.feature_extractor, processor.tokenizer, num_audio_tokens=50)
    with pytest.raises(ValueError, match="differ in their special tokens or in the number of audio tokens"):
        pipeline("audio-text-alignment", model=model, processor=other, device="cpu")
    other = XacleProcessor(processor.feature_extractor, processor.tokenizer, audio_first=True)
    with pytest.raises(ValueError, match=r"captions behind the sound.*other order.*processor that was saved with this"):
        pipeline("audio-text-alignment", model=model, processor=other, device="cpu")
    with pytest.raises(ValueError, match="A qwen2 model cannot do this task"):
        pipeline("audio-text-alignment", model=model.language_model, processor=processor, device="cpu")
