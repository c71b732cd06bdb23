"""The model card's metadata and tables, as the Hub and people read them."""

import numpy as np
import pytest
from huggingface_hub import DatasetCard, ModelCard

from modeling_xacle import XacleConfig
from modeling_xacle.checkpoints.provenance import UNNAMED, dataset_name, licence_of, made_from, read_card
from modeling_xacle.data.pairs import dataset_licence, make_dataset, save_dataset
from modeling_xacle.evaluation.resampling import bootstrap_intervals
from modeling_xacle.training import cards
from modeling_xacle.training.recipes import StageArguments

METRICS = {"eval_srcc": 0.51234, "eval_mse": 3.0, "eval_runtime": 7.0}
INTERVALS = {"srcc": (0.45, 0.56789), "mse": (2.5, 3.5)}


def stage_of(stage, **settings):
    return StageArguments(stage=stage, train=["projector"], **settings)


def test_metadata_survives_the_hubs_form(tmp_path):
    data = cards.card_metadata("m", stage_of(3, model="stage2", data="a/ratings"), XacleConfig(), METRICS, INTERVALS)
    ModelCard(f"---\n{data.to_yaml()}\n---\n").save(tmp_path / "README.md")
    read = read_card(tmp_path)
    assert (read.datasets, read.license, read.base_model) == (["a/ratings"], None, None)
    [srcc, mse] = read.eval_results
    assert (srcc.metric_type, srcc.metric_name, srcc.metric_value) == ("spearmanr", "SRCC", 0.5123)
    assert srcc.metric_args == {"interval": [0.45, 0.5679], "confidence": 0.95, "resamples": 1000}
    assert (mse.dataset_type, mse.dataset_split) == ("a/ratings", "validation")


def test_base_model_and_licence_are_those_of_the_start(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    config = XacleConfig()
    config.text_config._name_or_path = "Qwen/Qwen2.5-0.5B-Instruct"
    data = cards.card_metadata("m", stage_of(1, model=str(tmp_path), data="data"), config, {"eval_loss": 2.0}, {})
    assert (data.license, data.base_model) == ("cc-by-nc-4.0", ["Qwen/Qwen2.5-0.5B-Instruct"])
    assert data.pipeline_tag == "audio-text-to-text"
    data = cards.card_metadata("m", stage_of(1, model="user/start", data="data"), config, {}, {})
    assert (data.license, data.base_model) == (None, ["user/start"])


def test_tables(tmp_path):
    table = cards.validation_table(METRICS, INTERVALS).splitlines()
    assert table[0] == "| metric | value | 95 % interval |"
    assert table[2] == "| SRCC | 0.5123 | 0.4500 to 0.5679 |"
    assert cards.validation_table({"eval_loss": 2.0}, {}).splitlines()[-1] == "| loss | 2.0000 |"
    config = XacleConfig()
    config.audio_config._name_or_path = "BEATs_iter3_plus_AS2M.pt"
    licences = cards.licence_table(config, stage_of(3, model=str(tmp_path), data=str(tmp_path / "data")))
    assert "| audio encoder | BEATs_iter3_plus_AS2M.pt | mit |" in licences
    assert "| training data | data | unknown |" in licences and str(tmp_path) not in licences


def test_intervals_are_those_of_the_validation_split():
    generator = np.random.default_rng(0)
    validated = generator.normal(size=(2, 40))
    found = cards.validation_intervals(validated)
    assert found["srcc"] == bootstrap_intervals(*validated, num_resamples=1000)["SRCC"]
    assert cards.validation_intervals(None) == {}
    assert cards.validation_intervals(np.zeros((2, 10_001))) == {}


def curves(monkeypatch, tmp_path, log, best_step):
    """The axes of the figure that is drawn of a log, by their titles."""
    drawn = []
    save = cards.Figure.savefig
    monkeypatch.setattr(
        cards.Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self) or save(self, *args, **kwargs)
    )
    cards.draw_training_curves(log, tmp_path / "curves.png", best_step)
    return {axis.get_title(): axis for axis in drawn[0].axes}


def test_curves_mark_the_best_checkpoint(monkeypatch, tmp_path):
    log = [{"step": 10 * n, "epoch": n, "eval_srcc": value} for n, value in enumerate((0.3, 0.5, 0.4))]
    axis = curves(monkeypatch, tmp_path, [{"step": 5, "epoch": 0.5, "loss": 1.0}, *log], 10)["validation SRCC"]
    line, star = axis.lines
    assert line.get_xydata().tolist() == [[0, 0.3], [1, 0.5], [2, 0.4]]
    assert star.get_xydata().tolist() == [[1, 0.5]]
    assert axis.get_legend().get_texts()[0].get_text() == "best checkpoint (10)"


def test_a_dataset_tells_its_licence(tmp_path):
    rows = [{"id": "0", "audio": "/0.wav", "text": "Rain"}]
    save_dataset({"train": make_dataset(rows)}, tmp_path / "data", card="# Rain\n", licence="mit")
    card = DatasetCard.load(tmp_path / "data" / "README.md")
    assert (card.data.license, card.data.language, card.data.size_categories) == ("mit", ["en"], ["n<1K"])
    assert card.text.strip() == "# Rain"
    assert dataset_licence(tmp_path / "data") == "mit"
    save_dataset({"train": make_dataset(rows)}, tmp_path / "data")
    assert dataset_licence(tmp_path / "data") is dataset_licence("user/data") is None
    assert (dataset_name(tmp_path / "data"), dataset_name("user/data")) == ("Sound-caption pairs", "user/data")


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("# Synthetic rated pairs\n\n# More\n", "Synthetic rated pairs"),
        ("---\npretty_name: Rain\n---\n# Title\n", "Rain"),
        ("No title.\n", UNNAMED),
        (None, UNNAMED),
    ],
)
def test_a_dataset_is_named_by_its_card_and_not_by_its_folder(card, name, tmp_path):
    folder = tmp_path / "xacle"
    folder.mkdir()
    if card is not None:
        (folder / "README.md").write_text(card)
    assert dataset_name(folder) == name
    data = cards.card_metadata("m", stage_of(3, model="stage2", data=str(folder)), XacleConfig(), METRICS, INTERVALS)
    assert {result.dataset_name for result in data.eval_results} == {name}
    assert "xacle" not in {result.dataset_type for result in data.eval_results}


def test_the_bundled_models_metrics_are_said_to_be_of_synthetic_data(xacle):
    lines = [line for line in xacle("info").splitlines() if "SRCC" in line]
    assert lines == ["SRCC: 0.7657 (95 %: 0.7217 to 0.8007) on Synthetic rated pairs, validation"]


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        ("BEATs_iter3_plus_AS2M.pt", "mit"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "apache-2.0"),
        ("Qwen/Qwen2.5-3B-Instruct", "unknown"),
        ("Atotti/xacle-tmu-2026", "cc-by-nc-4.0"),
        ("beats", "unknown"),
    ],
)
def test_licences_of_known_sources(source, licence):
    assert licence_of(source) == licence


def test_parts_without_a_name():
    assert {part["source"] for part in made_from(XacleConfig())} == {"unknown"}
