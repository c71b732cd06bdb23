"""The synthetic corpus: the same bytes for a seed, distinct sounds, true and wrong captions, human-like listeners."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import captions
import events
import numpy as np
import pytest
import soundfile
import sounds
import synthesize
import words
from conftest import ROOT

from modeling_xacle import XacleFeatureExtractor
from modeling_xacle.data.pairs import check_rows, load_pairs

SCRIPTS = ROOT / "dataset_scripts/synthetic"

CLIPS, RATED = 10, {"train": 6, "validation": 4, "development": 4, "test": 6}
SIZES = ["--clips", "10", *(part for split, size in RATED.items() for part in (f"--rated-{split}", str(size)))]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "synthesize.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small corpus of seed 0 made by one process."""
    output = tmp_path_factory.mktemp("one") / "synthetic"
    assert synthesize.synthesize(output, 0, CLIPS, RATED, workers=1)
    return output


def sounds_and_annotations(corpus: Path) -> dict[str, bytes]:
    files = [*corpus.rglob("*.flac"), *corpus.rglob("annotations.jsonl")]
    return {str(file.relative_to(corpus)): file.read_bytes() for file in files}


def scenes(count: int, split: str = "train") -> Iterator[tuple[object, np.random.Generator]]:
    for index in range(count):
        rng = np.random.default_rng([11, index])
        yield events.sample_scene(rng, events.split_named(split)), rng


def annotations(split: str, count: int, seed: int = 0) -> list[dict]:
    return [synthesize.annotate(synthesize.Clip("xacle", split, index), seed)[1] for index in range(count)]


# The corpus


def test_embedded_sounds_need_no_folder(corpus, tmp_path):
    output = tmp_path / "synthetic"
    assert synthesize.synthesize(output, 0, CLIPS, RATED, workers=1, embed_audio=True)
    moved = (output / "xacle").rename(tmp_path / "moved")
    shutil.rmtree(output)
    for name, there in load_pairs(corpus / "xacle").items():
        alone = load_pairs(moved)[name]
        assert alone["text"][:] == there["text"][:]
        for row, original in zip(alone, there, strict=True):
            assert row["audio"]["bytes"] == Path(original["audio"]["path"]).read_bytes()


def test_help() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert all(option in result.stdout for option in ("--clips", "--rated-train", "--workers", "--spectrograms"))


def test_two_workers_give_the_bytes_of_one(corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "two"
    result = run("-o", output, *SIZES, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert "within-pair variance" in result.stdout
    assert sounds_and_annotations(output) == sounds_and_annotations(corpus)
    for name, split in (("aac", "train"), ("xacle", "test")):
        first, second = (
            load_pairs(folder / name, split).remove_columns("audio").to_list() for folder in (corpus, output)
        )
        assert first == second


def test_another_seed_and_another_number_of_clips() -> None:
    clip = synthesize.Clip("xacle", "train", 3)
    (scene, annotation), (other_scene, other) = (synthesize.annotate(clip, seed) for seed in (0, 1))
    assert annotation["caption"] != other["caption"] and annotation["ratings"] != other["ratings"]
    first, second = (events.render_clip(one, clip.rng(seed, "sound")) for seed, one in enumerate((scene, other_scene)))
    assert not np.array_equal(first, second)
    assert set(synthesize.plan_clips(10, RATED)) <= set(synthesize.plan_clips(200, {**RATED, "train": 60}))


def test_schema_and_splits(corpus: Path) -> None:
    aac, xacle = load_pairs(corpus / "aac"), load_pairs(corpus / "xacle")
    assert {split: len(rows) for split, rows in aac.items()} == {"train": 27, "validation": 3}
    assert {split: len(rows) for split, rows in xacle.items()} == RATED
    assert set(aac["train"].column_names) == {"id", "audio", "text", "source"}
    assert set(xacle["test"].column_names) == {
        "id",
        "audio",
        "text",
        "label",
        "score",
        "ratings",
        "listener_ids",
        "source",
    }
    for dataset in (aac, xacle):
        assert [problem for rows in dataset.values() for problem in check_rows(rows)] == []
        assert all(
            "Synthetic" in (corpus / name).read_text() for name in ("README.md", "aac/README.md", "xacle/README.md")
        )
    for row in xacle["train"]:
        assert row["source"] == "synthetic"
        assert len(row["ratings"]) == len(set(row["listener_ids"])) == 4
        assert row["score"] == np.mean(row["ratings"]) and row["label"] == pytest.approx(row["score"] / 5 - 1)
        assert all(rating in range(11) for rating in row["ratings"])


def test_every_clip_is_valid(corpus: Path) -> None:
    for file in corpus.rglob("*.flac"):
        info = soundfile.info(file)
        assert (info.samplerate, info.channels, info.frames, info.subtype) == (16000, 1, 160000, "PCM_16")
        samples = soundfile.read(file)[0]
        assert np.isfinite(samples).all() and 0.003 < np.abs(samples).max() < 0.999


def test_captions_of_a_clip_differ(corpus: Path) -> None:
    rows = load_pairs(corpus / "aac", "train")
    paths = [audio["path"] for audio in rows["audio"]]
    assert len(set(zip(paths, rows["text"], strict=True))) == len(rows) == 3 * len(set(paths))


def test_rerun_changes_nothing(corpus: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in corpus.rglob("*")}
    assert not synthesize.synthesize(corpus, 0, CLIPS, RATED, workers=1)
    assert {file: file.stat().st_mtime_ns for file in corpus.rglob("*")} == before


def test_kill_leaves_nothing_and_the_next_run_goes_on(corpus: Path, tmp_path: Path) -> None:
    output, partial = tmp_path / "synthetic", tmp_path / ".synthetic.partial"
    command = [sys.executable, str(SCRIPTS / "synthesize.py"), "-o", str(output), *SIZES, "--workers", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(partial.rglob("*.flac"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()
    kept = {file.relative_to(partial): file.stat().st_ino for file in partial.rglob("*.flac")}
    assert kept
    assert synthesize.synthesize(output, 0, CLIPS, RATED, workers=1)
    assert sounds_and_annotations(output) == sounds_and_annotations(corpus)
    assert all((output / file).stat().st_ino == inode for file, inode in kept.items())
    assert [entry.name for entry in tmp_path.iterdir()] == ["synthetic"]


def test_replaces_its_own_corpus_only(tmp_path: Path) -> None:
    output = tmp_path / "synthetic"
    sizes = {"train": 4, "validation": 4, "test": 4}
    assert synthesize.synthesize(output, 0, 2, sizes, workers=1)
    assert synthesize.synthesize(output, 1, 2, sizes, workers=1)
    assert json.loads((output / "synthesis.json").read_text())["seed"] == 1
    (output / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        synthesize.synthesize(output, 2, 2, sizes, workers=1)
    assert (output / "notes.txt").read_text() == "mine"


def test_mistakes_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    result = run("-o", tmp_path, *SIZES)
    assert result.returncode == 1 and "not a synthetic corpus" in result.stderr and "Traceback" not in result.stderr
    assert run().returncode == 2 and run("-o", tmp_path, "--clips", "1").returncode == 2


# The sounds


@pytest.mark.parametrize("wording", [words.WORDING, words.OTHER_WORDING])
def test_kinds_are_many_and_can_be_named(wording: words.Wording) -> None:
    assert len(events.KIND_NAMES) >= 24 and not set(events.UNSEEN_KINDS) & set(events.KIND_NAMES)
    assert set(wording.words) == set(events.KINDS)
    for name, kind in events.KINDS.items():
        assert kind.is_continuous or wording.words[name].units, name


def test_kinds_sound_different() -> None:
    """Nearest centroid of single-event clips with random attributes, by the largest log-mel of each band."""
    extractor = XacleFeatureExtractor()

    def statistics(name: str, index: int) -> np.ndarray:
        rng = np.random.default_rng([5, index, events.KIND_NAMES.index(name)])
        scene = events.Scene((events.sample_event(rng, name, "alone", 1),), "alone")
        largest = extractor(events.render_clip(scene, rng), events.SAMPLING_RATE)["input_features"][0].amax(0).numpy()
        return largest - largest.mean()

    names = events.KIND_NAMES
    centroids = np.array([np.mean([statistics(name, i) for i in range(4)], axis=0) for name in names])
    guesses = [np.square(centroids - statistics(name, 99)).sum(axis=1).argmin() for name in names]
    assert np.mean(np.array(guesses) == np.arange(len(names))) > 0.6


@pytest.mark.parametrize("kind", ["drops", "telephone", "horn", "bark", "frog", "owl", "knocking"])
def test_counts_can_be_heard(kind: str) -> None:
    """Stretches within 16 dB of the loudest, more than 50 ms apart, are as many as the event has occurrences."""
    for count in range(1, events.KINDS[kind].max_count + 1):
        scene = events.Scene((events.Event(kind, count),), "alone")
        samples = events.render_clip(scene, np.random.default_rng([7, count])).astype(float)
        energy = 10 * np.log10(np.square(np.diff(samples, append=0.0)).reshape(-1, 160).sum(axis=1) + 1)
        loud = np.flatnonzero(energy > energy.max() - 16)
        assert 1 + (np.diff(loud) > 5).sum() == count


def test_schedules_keep_order_and_gaps() -> None:
    for scene, rng in scenes(300):
        schedule = events.schedule(scene, rng)
        spans = [(train[0][0], train[-1][0] + train[-1][1]) for train in schedule]
        assert all(start >= 0 and end <= events.CLIP_SECONDS for start, end in spans), scene
        assert [len(train) for train in schedule] == [event.count for event in scene.events]
        for train in schedule:
            for (start, seconds), (following, _) in pairwise(train):
                assert following - start - seconds >= events.OCCURRENCE_GAP - 1e-9
        if scene.relation == "sequence":
            gaps = [following - end for (_, end), (following, _) in pairwise(spans)]
            assert min(gaps) >= events.SEQUENCE_GAP - 1e-9
        if scene.relation == "together":
            assert max(start for start, _ in spans) <= min(end for _, end in spans)


def test_attributes_can_be_heard() -> None:
    def clip(**levels: int) -> np.ndarray:
        scene = events.Scene((events.Event("siren", 1, **levels),), "alone")
        return events.render_clip(scene, np.random.default_rng(1)).astype(float)

    def pitch(samples: np.ndarray) -> float:
        return float(np.abs(np.fft.rfft(samples)).argmax())

    levels = (-1, 0, 1)
    assert all(quiet.std() * 2 < loud.std() for quiet, loud in pairwise(clip(loudness=level) for level in levels))
    assert all(low * 1.2 < high for low, high in pairwise(pitch(clip(pitch=level)) for level in levels))


@pytest.mark.parametrize("name", list(events.KINDS))
def test_every_kind_gives_a_sound_of_the_length_asked_for(name: str) -> None:
    kind = events.KINDS[name]
    for seconds in (1.5, 4.321) if kind.is_continuous else (kind.seconds,):
        waveform = kind.render(np.random.default_rng(0), seconds, 1.7, 0.55)
        assert waveform.shape == (sounds.num_samples(seconds),)
        assert np.isfinite(waveform).all() and waveform.std() > 0


# Held-out combinations


def named_kinds(annotation: dict) -> list[tuple[str, ...]]:
    return [tuple(event["kind"] for event in annotation[key]["events"]) for key in ("scene", "claim")]


def test_held_out_combinations_are_met_in_their_own_split_only() -> None:
    for split in ("train", "validation", "development", "test"):
        own = {split} & set(events.HELD_OUT)
        for annotation in annotations(split, 300):
            heard, claimed = named_kinds(annotation)
            assert events.held_out_keys(heard) == own or len(heard) == 1
            assert events.held_out_keys(claimed) <= own
    for clip in synthesize.plan_clips(300, {}):
        assert not events.held_out_keys(tuple(e["kind"] for e in synthesize.annotate(clip, 0)[1]["scene"]["events"]))


@pytest.mark.parametrize("split", list(events.HELD_OUT))
def test_every_kind_has_partners_of_every_split(split: str) -> None:
    for first in events.KIND_NAMES:
        held_out = sum(events.held_out_key(first, second) == split for second in events.KIND_NAMES)
        assert 3 <= held_out <= len(events.KIND_NAMES) // 4


# Another generator


def test_unseen_kinds_are_in_every_scene_of_their_splits_and_in_no_other() -> None:
    for split in ("train", "development", "test", "unseen_sounds", "unseen_words", "unseen_kinds", "unseen"):
        for annotation in annotations(split, 100):
            heard, claimed = (set(kinds) & set(events.UNSEEN_KINDS) for kinds in named_kinds(annotation))
            assert heard if split in ("unseen_kinds", "unseen") else not heard | claimed


# Of grammar, or of counting ("two times", "a pair of"): either wording may have them.
COMMON_WORDS = set(re.findall(r"\w+", "a an the of on in and at to with by down is it its two times"))


def vocabulary(wording: words.Wording) -> set[str]:
    told = [part for own in wording.words.values() for actor in own.actors for part in actor]
    told += [name for own in wording.words.values() for name in (*own.masses, *sum(own.units, ()))]
    told += [
        text
        for table in (wording.adverbs, wording.adjectives, wording.times)
        for texts in table.values()
        for text in texts
    ]
    told += [*wording.several_times, *wording.numbers.values(), *wording.several_numbers]
    return set(re.findall(r"[a-z0-9'-]+", " ".join(told).lower())) - COMMON_WORDS


def test_unseen_words_are_other_words() -> None:
    usual, other = vocabulary(words.WORDING), vocabulary(words.OTHER_WORDING)
    assert len(usual) > 200 and len(other) > 200 and not usual & other
    for split, wording in (("test", usual), ("unseen_words", other), ("unseen", other)):
        for annotation in annotations(split, 50):
            assert wording & set(re.findall(r"[a-z0-9'-]+", annotation["caption"].lower()))
    assert events.split_named("unseen_words").rendering == events.RENDERING


def test_unseen_sounds_are_other_sounds_of_the_same_scenes() -> None:
    """The other generator's room is larger and its floor louder: gaps between a dog's barks are filled."""
    scene = events.Scene((events.Event("bark", 3),), "alone")

    def quiet_level(split: str) -> float:
        rendering = events.split_named(split).rendering
        clips = [events.render_clip(scene, np.random.default_rng(n), rendering).astype(float) for n in range(3)]
        frames = [np.square(clip.reshape(-1, 800)).mean(axis=1) for clip in clips]
        return float(np.mean([10 * np.log10(np.quantile(frame, 0.2) / frame.max()) for frame in frames]))

    assert quiet_level("unseen_sounds") > quiet_level("test") + 10


def test_a_world_may_have_one_split_alone(tmp_path: Path) -> None:
    none = [part for option in ("clips", "rated-train", "rated-validation", "rated-development", "rated-test")
            for part in (f"--{option}", 0)]  # fmt: skip
    result = run("-o", tmp_path / "world", *none, "--rated-unseen", 3)
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "world/aac").exists()
    assert {name: len(rows) for name, rows in load_pairs(tmp_path / "world/xacle").items()} == dict.fromkeys(
        events.UNSEEN_SPLITS, 3
    )
    assert run("-o", tmp_path / "nothing", *none).returncode == 2
    assert run("-o", tmp_path / "one", *none, "--rated-test", 1).returncode == 2


# Captions and the alignment rule


def test_faithful_claims_are_fully_aligned() -> None:
    for scene, rng in scenes(300):
        assert captions.true_alignment(scene, scene) == 10
        assert captions.true_alignment(scene, captions.faithful_claim(scene, rng)) == 10


@pytest.mark.parametrize("name", list(captions.ALTERATIONS))
def test_every_alteration_lowers_the_truth(name: str) -> None:
    applied = 0
    for scene, rng in scenes(300):
        altered = captions.ALTERATIONS[name][0](scene, captions.faithful_claim(scene, rng), events.Split(), rng)
        if altered is not None:
            applied += 1
            assert 0 <= captions.true_alignment(scene, altered) < 9.7, (scene, altered)
    assert applied > 30


def test_a_second_alteration_lowers_it_further() -> None:
    for scene, rng in scenes(300):
        claim, names = captions.alter(scene, captions.faithful_claim(scene, rng), events.Split(), rng)
        assert 1 <= len(names) <= 2 and len(set(names)) == len(names)
        assert captions.true_alignment(scene, claim) < 10


def test_matched_above_partly_matching_above_mismatched() -> None:
    truths: dict[str, list[float]] = {}
    for annotation in annotations("train", 1500):
        truths.setdefault(annotation["pairing"], []).append(annotation["alignment"])
    assert set(truths["matched"]) == {10.0} and set(truths["mismatched"]) == {0.0}
    assert min(truths["partly matching"]) > 0 and max(truths["partly matching"]) < 10


def test_alignment_rule_by_hand() -> None:
    dog, bell = events.Event("bark", 2, loudness=1), events.Event("bell", 1)
    scene = events.Scene((dog, bell), "sequence")
    claims = {
        10.0: scene,
        10 * 2 / 3: events.Scene((dog,), "alone"),
        10 * 0.6: replace(scene, events=(bell, dog)),
        10 * 0.7: replace(scene, relation="together"),
        10 * (1 + 0.75) / 2: replace(scene, events=(replace(dog, count=4), bell)),
        10 * (1 + 0.6) / 2: replace(scene, events=(replace(dog, loudness=-1), bell)),
        10 * (1 + 0.8) / 2: replace(scene, events=(replace(dog, pitch=1), bell)),
        10 * (1 + 0.25) / 2: replace(scene, events=(events.Event("meow", None), bell)),
        10 * 0.5: replace(scene, events=(events.Event("rain", None), bell)),
    }
    for alignment, claim in claims.items():
        assert captions.true_alignment(scene, claim) == pytest.approx(alignment)


@pytest.mark.parametrize("wording", [words.WORDING, words.OTHER_WORDING])
def test_captions_say_what_is_claimed(wording: words.Wording) -> None:
    seen = set()
    for scene, rng in scenes(200):
        claim = captions.faithful_claim(scene, rng)
        text = captions.describe(claim, rng, wording)
        seen.add(text)
        assert text == " ".join(text.split()) and text[0].isupper() and not set("{}[]") & set(text)
        stems = [
            [part.lower() for actor in wording.words[event.kind].actors for part in (actor[1], actor[2])]
            + [name.lower() for name in wording.words[event.kind].masses]
            + [name.lower() for unit in wording.words[event.kind].units for name in unit]
            for event in claim.events
        ]
        assert all(any(stem in text.lower() for stem in options) for options in stems), text
        for event in claim.events:
            stated = {(name, getattr(event, name)) for name in events.ATTRIBUTES if getattr(event, name)}
            for key in stated:
                assert any(word in text.lower() for word in wording.adverbs[key] + wording.adjectives[key]), text
    assert len(seen) == 200


# Listeners


def test_listeners_rate_like_real_ones() -> None:
    figures = synthesize.rating_statistics(annotations("train", 5000))
    assert figures["within-pair variance"] == pytest.approx(6.2, abs=0.25)
    assert 0.55 < figures["split-half SRCC"] < 0.6
    assert figures["SRCC of the truth"] == pytest.approx(0.85, abs=0.02)


def test_listeners_have_their_own_bias_and_split() -> None:
    first, second = (synthesize.listener_pool(0, split) for split in ("train", "test"))
    assert not {listener.id for listener in first} & {listener.id for listener in second}
    assert np.std([listener.bias for listener in first]) == pytest.approx(captions.BIAS_SD, rel=0.05)
    rng = np.random.default_rng(0)
    ratings: dict[str, list[int]] = {}
    for _ in range(4000):
        for name, rating in zip(*captions.rate(5.0, first, rng), strict=True):
            ratings.setdefault(name, []).append(rating)
    means = [np.mean(ratings[listener.id]) for listener in first]
    assert np.corrcoef(means, [listener.bias for listener in first])[0, 1] > 0.8


# The page of spectrograms


def test_spectrogram_page(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    synthesize.draw_spectrograms(tmp_path / "docs" / "page.png", 0)
    page = (tmp_path / "docs" / "page.png").read_bytes()
    assert page.startswith(b"\x89PNG") and 50_000 < len(page) < 400_000
