"""The shape of the package: what travels with a checkpoint imports nothing that stays at home; arrows run one way."""

import ast
import configparser
import runpy
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor
from transformers.pipelines import PIPELINE_REGISTRY

import modeling_xacle

PACKAGE = Path(modeling_xacle.__file__).parent
# Each travelling file with those it may import, as in the design: pipeline -> processor, model -> config. The config
# imports the pipeline when it is saved, to take it along.
TRAVELS = {
    "configuration_byola": set(),
    "configuration_m2d": set(),
    "configuration_xacle": {"configuration_byola", "configuration_m2d", "modeling_captioning", "pipeline_xacle"},
    "waveforms_xacle": set(),
    "feature_extraction_xacle": {"waveforms_xacle"},
    "feature_extraction_mel": {"feature_extraction_xacle"},
    "feature_extraction_towers": {"feature_extraction_xacle"},
    "processing_xacle": {"feature_extraction_xacle", "modeling_towers"},
    "modeling_beats": {"configuration_xacle"},
    "modeling_byola": {"configuration_byola", "modeling_beats"},
    "modeling_m2d": {"configuration_m2d", "modeling_beats"},
    "modeling_towers": {"modeling_beats", "modeling_byola", "modeling_m2d"},
    "modeling_xacle": {"configuration_xacle", "modeling_towers"},
    "configuration_dual": {"configuration_xacle"},
    "processing_dual": {"processing_xacle"},
    "modeling_dual": {"configuration_dual", "modeling_towers", "modeling_xacle"},
    "modeling_captioning": {"configuration_xacle", "modeling_xacle"},
    "pipeline_xacle": {"feature_extraction_xacle", "processing_xacle", "waveforms_xacle"},
}
ALLOWED = {"torch", "torchaudio", "transformers", "numpy", "soundfile"}


def imports(path):
    """Names of relatively and absolutely imported modules of a file, wherever in it they are imported."""
    relative, absolute = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            (relative if node.level else absolute).add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            absolute |= {alias.name.split(".")[0] for alias in node.names}
    return relative, absolute


@pytest.mark.parametrize("name", TRAVELS)
def test_travelling_files_import_nothing_that_stays_at_home(name):
    relative, absolute = imports(PACKAGE / f"{name}.py")
    assert relative <= TRAVELS[name]
    assert absolute <= ALLOWED | sys.stdlib_module_names


# Each room with those it may look down at; whatever travels may be imported by all, and imports none of them.
ROOMS = {
    "data": set(),
    "speed": set(),
    "checkpoints": {"data"},
    "judges": {"checkpoints", "data"},
    "evaluation": {"checkpoints", "data"},
    "training": {"checkpoints", "data", "evaluation", "speed"},
    "scoring": {"checkpoints", "data", "judges"},
    "cli": {"checkpoints", "data", "evaluation", "scoring", "training"},
}


def rooms_imported(path):
    """The rooms that a file of the package imports from, relatively or absolutely, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            above = path.relative_to(PACKAGE.parent).parts[: -node.level] if node.level else ()
            target = [*above, *(node.module or "").split(".")] if node.module else [*above]
            found |= {".".join([*target, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    own = path.relative_to(PACKAGE).parts[0]
    return {name.split(".")[1] for name in found if name.startswith(f"{PACKAGE.name}.")} & set(ROOMS) - {own}


def test_every_folder_of_code_is_a_room():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_between_rooms_run_one_way(room):
    files = list((PACKAGE / room).rglob("*.py"))
    assert files
    assert set().union(*map(rooms_imported, files)) == ROOMS[room]


def test_rooms_make_no_circle_and_nothing_imports_the_command():
    assert set(TopologicalSorter(ROOMS).static_order()) == set(ROOMS)
    assert not any("cli" in rooms for rooms in ROOMS.values())
    for path in PACKAGE.glob("*.py"):
        assert rooms_imported(path) <= {"judges", "speed"}, path.name


def test_auto_classes_and_task_know_the_names():
    config = AutoConfig.for_model("xacle")
    assert type(config) is modeling_xacle.XacleConfig
    assert type(AutoConfig.for_model("xacle_beats")) is modeling_xacle.BeatsConfig
    assert AutoModel._model_mapping[type(config)] is modeling_xacle.XacleModel
    folder = modeling_xacle.DEFAULT_MODEL
    assert type(AutoProcessor.from_pretrained(folder)) is modeling_xacle.XacleProcessor
    assert type(AutoFeatureExtractor.from_pretrained(folder)) is modeling_xacle.XacleFeatureExtractor
    task = PIPELINE_REGISTRY.check_task("audio-text-alignment")[1]
    assert issubclass(task["impl"], modeling_xacle.AudioTextAlignmentPipeline)


def test_bundled_model_is_small_and_carries_no_code():
    files = list(Path(modeling_xacle.DEFAULT_MODEL).iterdir())
    tracked = [path for path in files if path.suffix != ".py"]
    assert sum(path.stat().st_size for path in tracked) < 12 * 2**20
    assert {path.suffix for path in tracked} == {".json", ".safetensors", ".md", ".png"}


def test_the_oldest_versions_are_told_of_every_requirement(monkeypatch, capsys):
    monkeypatch.chdir(PACKAGE.parent)
    setup = configparser.ConfigParser()
    setup.read("setup.cfg")
    sections = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = [line for section in sections for line in section.splitlines() if line and not line.startswith("#")]
    runpy.run_path(".ci/oldest_versions.py")
    oldest = [line.split(" == ") for line in capsys.readouterr().out.splitlines()]
    assert [name for name, _ in oldest] == [line.split()[0] for line in lines]
    assert all(f"= {version}" in line for (_, version), line in zip(oldest, lines, strict=True))


def test_torchaudio_is_an_extra():
    setup = configparser.ConfigParser()
    setup.read(PACKAGE.parent / "setup.cfg")
    assert "torchaudio" not in setup["options"]["install_requires"]
    assert setup["options.extras_require"]["torchaudio"].split("\n")[1:] == ["torch == 2.11.*", "torchaudio == 2.11.*"]
