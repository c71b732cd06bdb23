"""Ensembles as scorers: shared work changes no score, members are pinned, bad input is told in one sentence."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from conftest import PARITY
from language_models import save_language_model
from teachers import CAPTIONS, make_clip, make_tokenizer, save_pe_teacher, save_teacher
from transformers import AutoModel, BertConfig, BertModel, pipeline

from modeling_xacle import XacleModel, waveforms_xacle
from modeling_xacle.checkpoints.dual import init_dual
from modeling_xacle.data.sources import PairSource
from modeling_xacle.judges.ensemble import WeightedSum, XacleEnsemble
from modeling_xacle.judges.ensemble_pipeline import EnsemblePipeline
from modeling_xacle.scoring import load_scorer, score_table
from modeling_xacle.scoring.ensemble import check_scales, join_members, save_ensemble, score_members

WEIGHTS, OFFSET = [0.5, 0.25, 2.0, 3.0], 1.0
CLIPS = [{"array": make_clip(seconds, seed), "sampling_rate": 16000} for seed, seconds in enumerate((0.6, 2.5, 11.0))]


@pytest.fixture(scope="module")
def members(model_folder, tmp_path_factory):
    """Two xacle models and a judge with two towers that hear with the same BEATs, and a CLAP."""
    folder = tmp_path_factory.mktemp("members")
    shutil.copytree(model_folder, folder / "first")
    other = XacleModel.from_pretrained(model_folder)
    with torch.no_grad():
        other.score_head.layers[0].weight.mul_(-0.7)
    shutil.copytree(model_folder, folder / "second")
    other.save_pretrained(folder / "second")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.5, **size)).save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    fields = {"join": "bilstm", "projection": "none", "num_audio_tokens": 6, "lstm_size": 8, "join_sizes": [12]}
    init_dual("beats-cross-attention", PARITY / "beats.pt", folder / "dual", folder / "text", **fields)
    save_teacher(folder / "clap")
    return [folder / name for name in ("first", "second", "dual", "clap")]


def save_sum(folder, members, **options):
    """Save an ensemble of the members, with the first of the weights."""
    align = join_members(members)
    rule = WeightedSum(align.model.config)
    rule.load_state_dict({"weights": torch.tensor(WEIGHTS[: len(members)]), "offset": torch.tensor(OFFSET)})
    save_ensemble(folder, align, "nnls", rule, "# An ensemble\n", **options)
    return folder


@pytest.fixture(scope="module")
def folder(members, tmp_path_factory):
    return save_sum(tmp_path_factory.mktemp("ensemble") / "ensemble", members)


def expected(members, inputs, **call):
    """The weighted sums of what the members say alone."""
    alone = [load_scorer(member, "cpu")(inputs, **call) for member in members]
    return [
        OFFSET + sum(weight * result["score"] for weight, result in zip(WEIGHTS, of_pair, strict=False))
        for of_pair in zip(*alone, strict=True)
    ]


def scores(results):
    return [result["score"] for result in results]


def test_the_registered_task_and_the_scorer_both_load_the_folder(folder, members):
    pairs = [{"audio": clip, "text": text} for clip, text in zip(CLIPS, CAPTIONS, strict=False)]
    wanted = expected(members, pairs)
    assert len({round(score, 3) for score in wanted}) == len(pairs)
    for align in (pipeline("audio-text-alignment", model=str(folder), device="cpu"), load_scorer(folder, "cpu")):
        assert type(align) is EnsemblePipeline
        np.testing.assert_allclose(scores(align(pairs)), wanted, atol=1e-4)
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert (folder / "model.safetensors").stat().st_size < 1000


def test_a_batch_and_its_order_change_no_score(folder):
    align = load_scorer(folder, "cpu")
    pairs = [{"audio": clip, "text": text} for clip in CLIPS for text in CAPTIONS[:2]]
    alone = [align(pair)["score"] for pair in pairs]
    np.testing.assert_allclose(scores(align(pairs, batch_size=4)), alone, atol=1e-4)
    np.testing.assert_allclose(scores(align(pairs[::-1], batch_size=6))[::-1], alone, atol=1e-4)
    np.testing.assert_allclose(scores(align({"audio": CLIPS[0], "text": CAPTIONS[:2]})), alone[:2], atol=1e-4)


def count(monkeypatch, calls, name, owner, attribute):
    """Count the calls of a function."""
    plain = getattr(owner, attribute)
    monkeypatch.setattr(owner, attribute, lambda *args, **kwargs: calls.append(name) or plain(*args, **kwargs))


def test_each_sound_front_end_and_tower_runs_once(folder, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "clip.wav", np.stack([make_clip(1.5), make_clip(1.5, 1)], axis=1), 22050)
    align, calls = load_scorer(folder, "cpu"), []
    assert (align.front_ends, align.towers) == ([[0, 1, 2], [3]], [[[0, 1, 2]], [[3]]])
    assert len({id(align.members[number].model.audio_tower) for number in (0, 1, 2)}) == 1
    count(monkeypatch, calls, "read", waveforms_xacle, "_read_file")
    count(monkeypatch, calls, "resample", waveforms_xacle, "resample")
    for number, member in enumerate(align.members):
        count(
            monkeypatch,
            calls,
            f"front end {number}",
            member.processor.feature_extractor,
            "encode" if number < 3 else "_np_extract_fbank_features",
        )
    count(monkeypatch, calls, "BEATs", align.members[0].model.audio_tower, "forward")
    count(monkeypatch, calls, "CLAP", align.members[3].model, "get_audio_features")
    result = align({"audio": tmp_path / "clip.wav", "text": CAPTIONS[:2]})
    assert len(result) == 2
    assert sorted(set(calls)) == ["BEATs", "CLAP", "front end 0", "front end 3", "read", "resample"]
    once = [call for call in calls if call != "front end 3"]  # CLAP's extractor makes each window's features by itself
    assert len(once) == len(set(once))


def test_towers_that_differ_in_a_weight_run_each_by_itself(members, tmp_path):
    shutil.copytree(members[0], tmp_path / "moved")
    model = XacleModel.from_pretrained(members[0])
    with torch.no_grad():
        next(model.audio_tower.parameters()).view(-1)[0] += 0.5
    model.save_pretrained(tmp_path / "moved")
    align = join_members([members[0], tmp_path / "moved"])
    assert (align.front_ends, align.towers) == ([[0, 1]], [[[0], [1]]])


def test_other_extractor_settings_are_another_front_end(members, tmp_path):
    shutil.copytree(members[0], tmp_path / "shorter")
    file = tmp_path / "shorter" / "processor_config.json"
    settings = json.loads(file.read_text())
    settings["feature_extractor"]["max_seconds"] = 5.0
    file.write_text(json.dumps(settings))
    both = [members[0], tmp_path / "shorter"]
    align = load_scorer(save_sum(tmp_path / "ensemble", both), "cpu")
    assert align.front_ends == [[0], [1]]
    pair = {"audio": CLIPS[2], "text": CAPTIONS[0]}
    result = align(pair)
    assert result["score"] == pytest.approx(expected(both, [pair])[0], abs=1e-4)
    assert result["notes"] == ["cut: 11 s to 10 s", "cut: 11 s to 5 s"]


def test_windows_count_for_each_member_as_they_do_alone(members, tmp_path):
    align = load_scorer(save_sum(tmp_path / "ensemble", members[:2]), "cpu")
    pair = {"audio": CLIPS[2], "text": CAPTIONS[0]}
    found = align(pair, window_seconds=4, hop_seconds=3, return_windows=True)
    wanted = expected(members[:2], [pair], window_seconds=4, hop_seconds=3)[0]
    assert found["score"] == pytest.approx(wanted, abs=1e-4)
    assert found["windows"] == [{"start": 0.0, "end": 11.0, "score": found["score"]}]


def make_table(folder):
    lines = ["audio,text,rating"]
    for number, clip in enumerate(CLIPS):
        soundfile.write(folder / f"{number}.wav", clip["array"], 16000)
        lines += [f"{number}.wav,{text},{5 + number}" for text in CAPTIONS[:2]]
    (folder / "pairs.csv").write_text("\n".join(lines))
    return PairSource(folder / "pairs.csv")


def test_a_table_is_scored_as_pairs_are_and_signed_by_all_members(folder, members, tmp_path, xacle):
    pairs = make_table(tmp_path)
    xacle("score", tmp_path / "pairs.csv", "-o", tmp_path / "s.csv", "--model", folder)
    lines = (tmp_path / "s.csv").read_text().splitlines()[1:]
    wanted = expected(members, [{"audio": clip, "text": text} for clip in CLIPS for text in CAPTIONS[:2]])
    np.testing.assert_allclose([float(line.split(",")[3]) for line in lines], wanted, atol=2e-4)  # 16-bit files
    settings = json.loads((tmp_path / "s.csv.json").read_text())["scorer"]
    assert (settings["method"], len(settings["members"])) == ("nnls", 4)
    align = load_scorer(folder, "cpu")
    report = score_table(align, pairs, tmp_path / "t.csv")
    with torch.no_grad():
        align.model.rule.offset += 1
    assert score_table(align, pairs, tmp_path / "u.csv").signature != report.signature


def test_workers_load_without_weights(folder, tmp_path):
    align = load_scorer(folder, "cpu")
    light = align.without_model()
    assert light.model is None and all(member.model is None for member in light.members)
    assert align.model is not None and all(member.model is not None for member in align.members)


def test_members_scores_and_features_are_those_of_each_pair(members, tmp_path):
    align, pairs = join_members(members), make_table(tmp_path)
    found = score_members(align, pairs)
    size = align.members[0].model.config.audio_config.hidden_size
    assert found.scores.shape == (4, 6) and found.features.shape == (6, size)  # CLAP has no features of its own
    rows = [{"audio": str(tmp_path / row["audio"]), "text": row["text"]} for _, row in pairs.rows()]
    for member, of_member in zip(members, found.scores, strict=True):
        np.testing.assert_allclose(of_member, scores(load_scorer(member, "cpu")(rows)), atol=1e-4)
    np.testing.assert_array_equal(found.features[0::2], found.features[1::2])
    assert np.abs(np.diff(found.features[0::2], axis=0)).max() > 1e-3
    assert [found.clips.index(clip) for clip in found.clips] == [0, 0, 2, 2, 4, 4]


def test_copied_members_make_a_folder_that_can_be_moved(members, tmp_path):
    save_sum(tmp_path / "ensemble", members[:2], copies=True)
    before = load_scorer(tmp_path / "ensemble", "cpu")({"audio": CLIPS[0], "text": "a dog"})
    (tmp_path / "ensemble").rename(tmp_path / "elsewhere")
    config = json.loads((tmp_path / "elsewhere" / "config.json").read_text())
    assert [member["model"] for member in config["members"]] == ["members/0", "members/1"]
    align = load_scorer(tmp_path / "elsewhere", "cpu")
    assert align({"audio": CLIPS[0], "text": "a dog"}) == before
    align.save_pretrained(tmp_path / "names them")
    assert load_scorer(tmp_path / "names them", "cpu")({"audio": CLIPS[0], "text": "a dog"}) == before


def test_saving_a_loaded_ensemble_saves_no_member(folder, tmp_path):
    align = load_scorer(folder, "cpu")
    align.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").stat().st_size < 1000
    pair = {"audio": CLIPS[0], "text": "a dog"}
    assert load_scorer(tmp_path / "again", "cpu")(pair) == align(pair)
    assert isinstance(AutoModel.from_pretrained(tmp_path / "again"), XacleEnsemble)


def test_a_member_that_changed_or_went_is_named(members, tmp_path):
    shutil.copytree(members[0], tmp_path / "member")
    ensemble = save_sum(tmp_path / "ensemble", [tmp_path / "member", members[3]])
    (tmp_path / "member" / "README.md").write_text("# No part of the model\n")
    load_scorer(ensemble, "cpu")
    config = json.loads((tmp_path / "member" / "config.json").read_text())
    (tmp_path / "member" / "config.json").write_text(json.dumps({**config, "calibration_offset": 0.1}))
    with pytest.raises(ValueError, match=r"^.*ensemble: the member .*member has changed since"):
        load_scorer(ensemble, "cpu")
    with pytest.raises(ValueError, match="has changed since"):
        pipeline("audio-text-alignment", model=str(ensemble))
    shutil.rmtree(tmp_path / "member")
    with pytest.raises(ValueError, match=r"a member cannot be loaded.*member: there is no such folder"):
        load_scorer(ensemble, "cpu")


def test_the_type_that_members_compute_in_is_no_change(members, tmp_path):
    align = load_scorer(save_sum(tmp_path / "ensemble", members[:2]), "cpu", dtype="bfloat16")
    assert {member.model.dtype for member in align.members} == {torch.bfloat16}
    assert align.model.rule.weights.dtype == torch.float32


@pytest.mark.parametrize("chosen", [[0], [0, 0]])
def test_one_member_alone_or_twice_is_refused(chosen, members):
    with pytest.raises(ValueError, match="at least 2 models, each named once"):
        join_members([members[number] for number in chosen])


def test_an_ensemble_in_an_ensemble_is_refused(folder, members):
    with pytest.raises(ValueError, match="is an ensemble itself; name its members instead"):
        join_members([folder, members[0]])


def test_an_ensemble_that_was_made_to_name_itself_is_refused(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "ensemble")
    config = json.loads((folder / "config.json").read_text())
    config["members"][0]["model"] = str(tmp_path / "ensemble")
    (tmp_path / "ensemble" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"a member cannot be loaded.*is an ensemble itself"):
        load_scorer(tmp_path / "ensemble", "cpu")


def test_judges_of_every_kind_can_be_members(members, tmp_path):
    save_pe_teacher(tmp_path / "pe")
    save_language_model(tmp_path / "asked")
    chosen = [members[0], tmp_path / "pe", tmp_path / "asked"]
    align = load_scorer(save_sum(tmp_path / "ensemble", chosen), "cpu")
    pairs = [{"audio": clip, "text": text} for clip, text in zip(CLIPS[:2], CAPTIONS, strict=False)]
    np.testing.assert_allclose(scores(align(pairs)), expected(chosen, pairs), atol=1e-4)
    assert [member["scale"] for member in align.model.config.members] == ["0-10", "cosine", "yes / (yes + no)"]


def test_a_mean_of_different_scales_is_refused(members):
    check_scales(join_members(members[:2]).model.config)
    with pytest.raises(ValueError, match=r"clap scores by cosine.*take zscore, nnls or gate"):
        check_scales(join_members([members[0], members[3]]).model.config)


def test_a_row_that_cannot_be_scored_stops_the_fit(members, tmp_path):
    make_table(tmp_path)
    (tmp_path / "1.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pairs.csv, line 4: .*1.wav: the file is empty .* leaves no row out"):
        score_members(join_members(members[:2]), PairSource(tmp_path / "pairs.csv"))


def test_windows_are_refused_where_a_member_has_its_own(folder):
    with pytest.raises(ValueError, match="in its own windows"):
        load_scorer(folder, "cpu")({"audio": CLIPS[0], "text": "a dog"}, window_seconds=1)
