"""Every tensor accounted for; nothing executed from a pickle; complete folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import PARITY, ROOT
from huggingface_hub import ModelCard
from transformers import AutoConfig, AutoModel, AutoProcessor

from modeling_xacle import BeatsConfig, XacleModel
from modeling_xacle.checkpoints.building import build_model, init_model
from modeling_xacle.checkpoints.conversion import ConversionError, convert_beats, read_beats
from modeling_xacle.checkpoints.conversion_tmu import convert_tmu, tmu_audio_config

LLM = str(PARITY / "llm")
BEATS = PARITY / "beats.pt"


def altered(tmp_path, change, name="model.pt"):
    """The parity checkpoint with a changed state dict, as a file."""
    state = torch.load(PARITY / name, weights_only=True)
    change(state)
    torch.save(state, tmp_path / "altered.pt")
    return tmp_path / "altered.pt"


def altered_beats(tmp_path, change):
    content = torch.load(BEATS, weights_only=True)
    change(content)
    torch.save(content, tmp_path / "altered_beats.pt")
    return tmp_path / "altered_beats.pt"


@pytest.mark.parametrize(
    ("change", "messages"),
    [
        (lambda state: state.pop("score_head.mlp.3.bias"), ["missing: score_head.layers.3.bias (40,)"]),
        (lambda state: state.update({"llm_wrapper.extra": torch.zeros(2)}), ["unexpected: llm_wrapper.extra (2,)"]),
        (
            lambda state: state.update({"final_linear.linear.weight": torch.zeros(1, 9)}),
            ["shape: score_head.layers.7.weight is (1, 9), expected (1, 16)"],
        ),
        (
            lambda state: [state.pop(key) for key in list(state) if "pos_conv.0.param" in key],
            ["missing: audio_tower.conv_position.conv.weight (48, 12, 16)"],
        ),
        (
            lambda state: [state.pop("llm_wrapper.llm.norm.weight"), state.update(stray=torch.zeros(1))],
            ["missing: language_model.norm.weight", "unexpected: stray"],
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(change, messages, tmp_path):
    with pytest.raises(ConversionError) as error:
        convert_tmu(altered(tmp_path, change), tmp_path / "out", llm=LLM, beats=BEATS)
    assert all(message in str(error.value) for message in messages)
    assert not (tmp_path / "out").exists()


def test_copies_of_the_shared_position_bias_are_dropped_only_if_equal(tmp_path):
    key = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
    copied = altered_beats(tmp_path, lambda c: c["model"].update({key.format(2): c["model"][key.format(0)].clone()}))
    assert read_beats(copied).encoder.keys() == read_beats(BEATS).encoder.keys()
    differs = altered_beats(tmp_path, lambda c: c["model"].update({key.format(2): c["model"][key.format(0)] + 1}))
    with pytest.raises(ConversionError, match=r"share one position bias, but layers\.2"):
        read_beats(differs)


@pytest.mark.parametrize(("key", "value"), [("layer_norm_first", True), ("gru_rel_pos", False)])
def test_other_kinds_of_beats_are_refused(key, value, tmp_path):
    with pytest.raises(ConversionError, match=f"{key}={value}"):
        read_beats(altered_beats(tmp_path, lambda content: content["cfg"].update({key: value})))


def test_settings_of_the_beats_file_are_read():
    config = read_beats(BEATS).config
    assert (config.num_attention_heads, config.relative_position_max_distance, config.deep_norm) == (4, 80, True)
    assert BeatsConfig().relative_position_max_distance == 800


def test_without_the_beats_file_the_published_encoder_is_expected(tmp_path):
    with pytest.raises(ConversionError, match=r"missing: audio_tower.layers.11.*"):
        convert_tmu(PARITY, tmp_path / "out", llm=LLM)


def test_a_language_model_of_another_size_is_refused(tmp_path):
    source = altered(tmp_path, lambda s: s.update({"llm_wrapper.llm.embed_tokens.weight": torch.zeros(300, 64)}))
    with pytest.raises(ConversionError, match=r"has 300 rows, but the tokenizer .* makes 371 .* is --llm"):
        convert_tmu(source, tmp_path / "out", llm=LLM, beats=BEATS)


def test_a_lone_file_names_no_language_model(tmp_path):
    shutil.copy(PARITY / "model_container.pt", tmp_path)
    with pytest.raises(ConversionError, match=r"give it with --llm \(published: Qwen/Qwen2.5-0.5B-Instruct\)"):
        convert_tmu(tmp_path / "model_container.pt", tmp_path / "out", beats=BEATS)


@pytest.fixture
def published(tmp_path):
    """Puts the parity checkpoint, its language model and a config.json with these fields into a folder."""

    def write(**settings):
        folder = tmp_path / "published"
        shutil.copytree(PARITY / "llm", folder / "parts" / "llm")
        shutil.copy(PARITY / "model.pt", folder)
        (folder / "config.json").write_text(json.dumps(settings))
        return folder

    return write


@pytest.mark.parametrize("source", ["", "model.pt"])
def test_the_config_beside_the_weights_is_read(source, published, tmp_path, caplog):
    folder = published(llm_model_name="parts/llm", num_audio_tokens=50, training_stage=2)
    config = convert_tmu(folder / source, tmp_path / "out", beats=BEATS).config
    assert (config.num_audio_tokens, config.training_stage, config.text_config._name_or_path) == (50, 2, "llm")
    assert AutoProcessor.from_pretrained(tmp_path / "out").num_audio_tokens == 50
    assert not caplog.records
    for option in ({"audio_tokens": 100}, {"training_stage": 3}):
        [name] = option
        with pytest.raises(ConversionError, match=rf"--{name.replace('_', '-')} {option[name]}, but config.json says"):
            convert_tmu(folder / source, tmp_path / "other", beats=BEATS, **option)
    again = convert_tmu(folder / source, tmp_path / "again", beats=BEATS, audio_tokens=50, training_stage=2).config
    assert (again.num_audio_tokens, again.training_stage) == (50, 2)


def test_what_no_file_tells_comes_from_the_options_or_is_said_to_be_assumed(published, tmp_path, xacle, caplog):
    folder = published()
    parts = ["--llm", LLM, "--beats", BEATS]
    xacle("convert", "tmu", folder, *parts, "-o", tmp_path / "told", "--audio-tokens", 50, "--training-stage", 1)
    assert not caplog.records
    config = AutoConfig.from_pretrained(tmp_path / "told")
    assert (config.num_audio_tokens, config.training_stage) == (50, 1)
    (folder / "config.json").unlink()
    xacle("convert", "tmu", folder / "model.pt", *parts, "-o", tmp_path / "assumed")
    config = AutoConfig.from_pretrained(tmp_path / "assumed")
    assert (config.num_audio_tokens, config.training_stage) == (100, 3)
    assert "num_audio_tokens: 100 is assumed" in caplog.text and "training_stage: 3 is assumed" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object, but a list"),
        ('{"num_audio_tokens": "50"}', "num_audio_tokens is '50', but must be a whole number from 1 to 496"),
        ('{"num_audio_tokens": 0}', "num_audio_tokens is 0"),
        ('{"training_stage": 9}', "training_stage is 9"),
        ('{"llm_model_name": 3}', "llm_model_name is 3"),
    ],
)
def test_a_broken_config_beside_the_weights_is_refused(content, message, published, tmp_path):
    folder = published()
    (folder / "config.json").write_text(content)
    with pytest.raises(ConversionError, match=rf"config\.json: .*{message}"):
        convert_tmu(folder, tmp_path / "out", llm=LLM, beats=BEATS)


def test_the_source_of_a_fine_tuned_encoder_is_named():
    names = [tmu_audio_config(None, is_finetuned)._name_or_path for is_finetuned in (False, True)]
    assert names == ["BEATs_iter3_plus_AS2M.pt", "BEATs_iter3_plus_AS2M_finetuned.pt"]


def test_a_folder_without_a_checkpoint(tmp_path):
    with pytest.raises(ConversionError, match=r"missing: .*model\.pt, .*config\.json"):
        convert_tmu(tmp_path, tmp_path / "out", llm=LLM)


def test_output_is_never_overwritten(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConversionError, match="not an empty folder"):
        convert_beats(BEATS, tmp_path)
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_tmu_checkpoint_is_no_beats_file(tmp_path):
    with pytest.raises(ConversionError, match="has the keys `cfg` and `model`"):
        convert_beats(PARITY / "model.pt", tmp_path / "out")


class Malicious:
    """Unpickling this would leave a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("convert", [convert_tmu, convert_beats])
def test_pickled_objects_are_refused_and_not_executed(convert, tmp_path):
    trace = tmp_path / "executed"
    torch.save({"state_dict": {}, "cfg": Malicious(trace), "model": {}}, tmp_path / "evil.pt")
    with pytest.raises(ConversionError, match="refused, nothing was executed"):
        convert(tmp_path / "evil.pt", tmp_path / "out")
    assert not trace.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert trace.exists()  # the file is indeed dangerous


BROKEN = {"empty": b"", "text": b"not a checkpoint", "truncated": BEATS.read_bytes()[:5000]}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_broken_files(content, tmp_path):
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(ConversionError, match=r"broken\.pt"):
        convert_beats(tmp_path / "broken.pt", tmp_path / "out")


@pytest.mark.parametrize("content", [{}, {"weights": {"a": torch.zeros(1)}}, {"state_dict": {"epoch": 3}}])
def test_a_file_without_a_state_dict(content, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ConversionError, match=r"other\.pt: (holds no state dict|not finite)"):
        convert_tmu(tmp_path / "other.pt", tmp_path / "out", llm=LLM)


@pytest.mark.parametrize("content", [[1], None, "text"])
def test_a_state_dict_that_is_none(content, tmp_path):
    torch.save({"state_dict": content}, tmp_path / "other.pt")
    with pytest.raises(ConversionError, match="holds no state dict"):
        convert_tmu(tmp_path / "other.pt", tmp_path / "out", llm=LLM)
    torch.save({"cfg": {}, "model": content}, tmp_path / "beats.pt")
    with pytest.raises(ConversionError, match="holds no state dict"):
        read_beats(tmp_path / "beats.pt")


NO_WEIGHTS = {
    "nan": torch.full((40,), torch.nan),
    "integers": torch.zeros(40, dtype=torch.int64),
    "sparse": torch.zeros(40).to_sparse(),
    "list": [0.0] * 40,
}


@pytest.mark.parametrize("value", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_weights_that_are_no_numbers(value, tmp_path):
    source = altered(tmp_path, lambda state: state.update({"score_head.mlp.3.bias": value}))
    with pytest.raises(ConversionError, match=r"not finite floating point tensors: score_head\.mlp\.3\.bias"):
        convert_tmu(source, tmp_path / "out", llm=LLM, beats=BEATS)


def test_two_names_of_one_weight_are_refused(tmp_path):
    twin = altered(tmp_path, lambda state: state.update({"projector.norm.weight": torch.zeros(48)}))
    with pytest.raises(ConversionError, match=r"mlp\.norm\.weight and projector\.norm\.weight are the same weight"):
        convert_tmu(twin, tmp_path / "out", llm=LLM, beats=BEATS)
    second = {"encoder.pos_conv.0.parametrizations.weight.original0": torch.ones(1, 1, 16)}
    with pytest.raises(ConversionError, match="are the same weight"):
        read_beats(altered_beats(tmp_path, lambda content: content["model"].update(second)))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.update({"encoder.pos_conv.0.weight": torch.zeros(48, 12, 16)}),
        lambda model: model.update({"encoder.pos_conv.0.weight_v": torch.zeros(16)}),
        lambda model: model.pop("encoder.pos_conv.0.weight_g"),
    ],
)
def test_weight_norm_of_another_form_is_listed(change, tmp_path):
    path = altered_beats(tmp_path, lambda content: change(content["model"]))
    with pytest.raises(ConversionError, match=r"unexpected: conv_position\.conv\.weight_v"):
        convert_beats(path, tmp_path / "out")


def test_both_spellings_of_weight_norm_fold_alike(tmp_path):
    def respell(content):
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            weight = content["model"].pop(f"encoder.pos_conv.0.{old}")
            content["model"][f"encoder.pos_conv.0.parametrizations.weight.{new}"] = weight

    folded = read_beats(altered_beats(tmp_path, respell)).encoder["conv_position.conv.weight"]
    assert torch.equal(folded, read_beats(BEATS).encoder["conv_position.conv.weight"])
    published = torch.load(BEATS, weights_only=True)["model"]
    conv = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(48, 48, 16, groups=4), dim=2)
    conv.parametrizations.weight.original0.data = published["encoder.pos_conv.0.weight_g"]
    conv.parametrizations.weight.original1.data = published["encoder.pos_conv.0.weight_v"]
    torch.testing.assert_close(folded, conv.weight.detach())


def test_an_incomplete_predictor_is_listed(tmp_path):
    content = torch.load(PARITY / "beats_finetuned.pt", weights_only=True)
    del content["model"]["predictor.bias"]
    torch.save(content, tmp_path / "beats.pt")
    with pytest.raises(ConversionError, match=r"missing: bias \(11,\)"):
        convert_beats(tmp_path / "beats.pt", tmp_path / "out")


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"activation_fn": "glu"}, "activation_fn='glu'; supported are"),
        ({"encoder_layers": "3"}, "another type for num_hidden_layers"),
    ],
)
def test_settings_that_cannot_be_used(cfg, message, tmp_path):
    with pytest.raises(ConversionError, match=message):
        read_beats(altered_beats(tmp_path, lambda content: content["cfg"].update(cfg)))


def test_llm_must_be_a_causal_language_model(model_folder, tmp_path):
    with pytest.raises(ConversionError, match="holds a xacle model; --llm takes"):
        build_model(BEATS, str(model_folder))
    with pytest.raises(ConversionError, match="holds a xacle model; --llm takes"):
        convert_tmu(PARITY, tmp_path / "out", llm=str(model_folder), beats=BEATS)


def test_a_misspelt_field_is_refused():
    with pytest.raises(TypeError, match="has no field num_audio_token"):
        build_model(BEATS, LLM, num_audio_token=6)


def test_missing_file(tmp_path):
    with pytest.raises(ConversionError, match=r"gone\.pt: no such file"):
        convert_beats(tmp_path / "gone.pt", tmp_path / "out")


def test_hub_id(tmp_path):
    """A Hub id is read through the library's own cache, here laid out as a download leaves it."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--Atotti--xacle-tmu-2026"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    for name in ("model.pt", "config.json"):
        (snapshot / name).write_bytes((PARITY / name).read_bytes())
    parts = ["--llm", LLM, "--beats", str(BEATS), "-o", str(tmp_path / "out")]
    command = ["convert", "tmu", "Atotti/xacle-tmu-2026", *parts]
    code = "import sys; from modeling_xacle.cli import main; sys.argv[0] = 'xacle'; main()"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code, *command], check=True, env=environment, cwd=ROOT)
    assert AutoModel.from_pretrained(tmp_path / "out").config.training_stage == 3


def test_converted_folder_is_complete(model_folder):
    files = {path.name for path in model_folder.iterdir()}
    code = {
        "configuration_xacle.py",
        "feature_extraction_xacle.py",
        "pipeline_xacle.py",
        "processing_xacle.py",
        "waveforms_xacle.py",
    }
    code |= {f"{part}_{name}.py" for part in ("configuration", "modeling") for name in ("byola", "m2d")}
    code |= {"modeling_towers.py", "modeling_beats.py", "modeling_captioning.py", "modeling_xacle.py"}
    data = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert files == code | data | {"README.md"}
    assert ModelCard.load(model_folder / "README.md").data.license == "cc-by-nc-4.0"
    text = (model_folder / "config.json").read_text()
    assert "AudioTextAlignmentPipeline" in text
    assert str(ROOT) not in text


def test_untrained_model_keeps_the_pretrained_parts(tmp_path):
    init_model(BEATS, LLM, tmp_path / "model", seed=3)
    model = XacleModel.from_pretrained(tmp_path / "model")
    assert model.config.training_stage == 0
    for name, tensor in read_beats(BEATS).encoder.items():
        assert torch.equal(model.audio_tower.state_dict()[name], tensor), name
    plain = AutoModel.from_pretrained(LLM)
    for name, tensor in model.language_model.state_dict().items():
        rows = 368 if name == "embed_tokens.weight" else None
        assert torch.equal(tensor[:rows], plain.state_dict()[name][:rows]), name
    assert AutoProcessor.from_pretrained(tmp_path / "model").num_audio_tokens == 100


def test_seed_rules_the_random_parts_and_nothing_else():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (build_model(BEATS, LLM, seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    differ = {name.split(".")[0] for name in first if not torch.equal(first[name], other[name])}
    assert differ == {"projector", "score_head"}


def test_init_from_a_converted_encoder(tmp_path):
    convert_beats(BEATS, tmp_path / "beats")
    convert_beats(PARITY / "beats_finetuned.pt", tmp_path / "classifier")
    expected = read_beats(BEATS).encoder
    for folder in ("beats", "classifier"):
        model, _ = build_model(tmp_path / folder, LLM)
        assert model.config.audio_config.relative_position_max_distance == 80
    for name, tensor in build_model(tmp_path / "beats", LLM)[0].audio_tower.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_settings_come_from_a_converted_encoder_too(tmp_path):
    convert_beats(BEATS, tmp_path / "beats")
    model = convert_tmu(PARITY, tmp_path / "model", llm=LLM, beats=tmp_path / "beats")
    assert model.config.audio_config.relative_position_max_distance == 80


def test_init_from_something_else(tmp_path):
    with pytest.raises(ConversionError, match="holds a qwen2 model"):
        build_model(LLM, LLM)


def test_fields_of_the_configuration_can_be_chosen():
    model, _ = build_model(BEATS, LLM, num_audio_tokens=20, score_head_hidden_size=24)
    assert model.config.num_audio_tokens == 20
    assert model.score_head.layers[0].out_features == 24
    assert model.config.projector_intermediate_size == 4 * 64
