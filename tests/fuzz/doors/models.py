"""Folders and files of models: what `--model` takes, and what `convert` and `init` read."""

import functools
import io
import json
import os
import pickle
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from modeling_xacle.checkpoints import convert_tmu

from ..cases import Case
from ..materials import NOT_THE_FILE, broken_json, damaged, table_bytes, write_good_sound

PARITY = Path(__file__).parents[2] / "fixtures/parity"
WEIGHTS = "model.safetensors"
JSON_FILES = ("config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json")
CARDS = (
    *("license: [", "a: b: c", "- 1", "license: {x: 1}\nmodel-index: 5"),
    *("model-index:\n- name: 1\n  results: 2", "\x00"),
    *('license: "<script>"', "base_model: !!python/object/apply:os.system ['x']", "x: &a [*a]"),
    "license: " + "x" * 10**5,
    "model-index:\n- name: m\n  results:\n  - {task: {type: x}, dataset: {}, metrics: [{type: x, value: .nan}]}",
)
TRACE = "code was run"
PLANTED = f"open({TRACE!r}, 'w').close()\n"


@functools.cache
def model_files() -> dict[str, bytes]:
    """Every file of a whole, tiny model."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "model"
        convert_tmu(PARITY, folder, llm=str(PARITY / "llm"), beats=PARITY / "beats.pt")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@functools.cache
def weights() -> dict[str, torch.Tensor]:
    """Its weights."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(model_files()[WEIGHTS])
        file.flush()
        return load_file(file.name)


def use(rng: random.Random, folder: Path, changed: dict[str, bytes | None]) -> Case:
    """A command that takes a model, whose folder has these files changed or left out."""
    write_good_sound(folder)
    (folder / "model").mkdir()
    for name, content in {**model_files(), **changed}.items():
        if content is not None:
            (folder / "model" / name).write_bytes(content)
    names = ("model",)
    way = rng.choice(["info", "score", "score", "table", "calibrate"])
    if way == "info":
        return Case(["info", "model", "--json"], names, check=ran_nothing)
    if way == "score":
        return Case(
            ["score", "--audio", "good.wav", "--text", "a dog", "--model", "model", "--json"], names, check=ran_nothing
        )
    if way == "table":
        (folder / "pairs.csv").write_text("audio,text\ngood.wav,a dog\n")
        return Case(["score", "pairs.csv", "-o", "out.csv", "--model", "model"], names, ("out.csv",), check=ran_nothing)
    for name, scale in {"scores.csv": rng.random(), "listeners.csv": 1.0}.items():
        (folder / name).write_bytes(table_bytes(["id", "score"], [[row, scale * row] for row in range(6)], ".csv"))
    command = ["calibrate", "scores.csv", "listeners.csv", "--model", "model", "-o", "out"]
    return Case(command, names, ("out",), check=ran_nothing)


def ran_nothing(folder: Path, stdout: str) -> Iterator[str]:
    """No code out of a file was run."""
    if (folder / TRACE).exists():
        yield "code out of a file was run"


def odd_weights(rng: random.Random, folder: Path) -> Case:
    """A file of weights that is cut, empty, a page, a pointer or damaged."""
    content = model_files()[WEIGHTS]
    huge = rng.choice([2**63, 2**40, 10**9, 0, 8]).to_bytes(8, "little") + content[8:]
    cut = content[: rng.choice([4, 8, 1000, len(content) - 1])]
    odd = rng.choice([*NOT_THE_FILE, huge, cut, damaged(rng, content, 4000), damaged(rng, content)])
    return use(rng, folder, {WEIGHTS: odd})


def odd_tensors(rng: random.Random, folder: Path) -> Case:
    """Weights that are NaN, of another shape or type, missing, or too many."""
    state, name = dict(weights()), rng.choice(sorted(weights()))
    kind = rng.choice(["nan", "inf", "all nan", "shape", "type", "missing", "more", "renamed", "none", "huge"])
    if kind in ("nan", "inf", "huge"):
        state[name] = torch.full_like(state[name], {"nan": torch.nan, "inf": torch.inf, "huge": 3e38}[kind])
    elif kind == "all nan":
        state = {key: torch.full_like(value, torch.nan) for key, value in state.items()}
    elif kind == "shape":
        state[name] = torch.zeros(rng.choice([(1,), (3, 5), (0,), (2, 2, 2)]))
    elif kind == "type":
        state[name] = state[name].to(
            rng.choice([torch.int64, torch.float16, torch.bfloat16, torch.float64, torch.bool])
        )
    elif kind in ("missing", "renamed"):
        removed = state.pop(name)
        state |= {"a.stranger": removed} if kind == "renamed" else {}
    else:
        state = {} if kind == "none" else {**state, "a.stranger": torch.zeros(2)}
    return use(rng, folder, {WEIGHTS: save(state, metadata=rng.choice([{"format": "pt"}, None, {"format": "tf"}]))})


def odd_json(rng: random.Random, folder: Path) -> Case:
    """A config, or another JSON file, of which something is wrong."""
    name = rng.choice([*JSON_FILES[:3], *JSON_FILES])
    content = json.loads(model_files()[name])
    if name == "tokenizer.json":
        content["model"] = (
            {**content["model"], **{"vocab": {}, "merges": []}} if rng.random() < 0.2 else content["model"]
        )
        return use(rng, folder, {name: rng.choice([broken_json(rng, content), damaged(rng, model_files()[name])])})
    return use(rng, folder, {name: broken_json(rng, content)})


def odd_size(rng: random.Random, folder: Path) -> Case:
    """A config with a number that is huge, negative, or no number."""
    config = json.loads(model_files()["config.json"])
    part = rng.choice([config, config["audio_config"], config["text_config"]])
    name = rng.choice([name for name, value in part.items() if type(value) in (int, float)])
    part[name] = rng.choice([0, -1, 1, 7, 2**20, 2**31, 2**63, 10**30, 1.5, 1e308, None, "8", float("nan"), True])
    return use(rng, folder, {"config.json": json.dumps(config).encode()})


def other_model(rng: random.Random, folder: Path) -> Case:
    """A config of another kind of model, or of none."""
    kind = rng.choice(["bert", "clap", "qwen2", "beats", "", "gone", None, 5, "XACLE"])
    config = rng.choice([{"model_type": kind}, {**json.loads(model_files()["config.json"]), "model_type": kind}, {}])
    return use(rng, folder, {"config.json": json.dumps(config).encode()})


def missing_file(rng: random.Random, folder: Path) -> Case:
    """A file that is not there, or is empty, a page or a pointer."""
    name = rng.choice(sorted(model_files()))
    return use(rng, folder, {name: rng.choice([None, None, *NOT_THE_FILE])})


def planted_code(rng: random.Random, folder: Path) -> Case:
    """Code in the places from which some library might run it."""
    config = json.loads(model_files()["config.json"])
    config["auto_map"] = {"AutoConfig": "planted.Planted", "AutoModel": "planted.Planted"}
    kind = rng.choice(["auto_map", "other type", "pickle", "processor"])
    changed: dict[str, bytes | None] = {"planted.py": PLANTED.encode()}
    if kind in ("auto_map", "other type"):
        config["model_type"] = "xacle" if kind == "auto_map" else "planted"
        changed["config.json"] = json.dumps(config).encode()
    elif kind == "pickle":
        changed |= {WEIGHTS: None, "pytorch_model.bin": rng.choice([planted_pickle(), b"PK\x03\x04", b""])}
    else:
        processor = json.loads(model_files()["processor_config.json"])
        changed["processor_config.json"] = json.dumps(
            {**processor, "auto_map": {"AutoProcessor": "planted.Planted"}}
        ).encode()
    return use(rng, folder, changed)


class Planted:
    """An object that runs code when it is unpickled."""

    def __reduce__(self) -> tuple:
        return exec, (PLANTED,)


def planted_pickle() -> bytes:
    """A pickle of it."""
    return pickle.dumps(Planted())


def odd_card(rng: random.Random, folder: Path) -> Case:
    """A model card whose metadata are none."""
    metadata = rng.choice(CARDS)
    return use(rng, folder, {"README.md": f"---\n{metadata}\n---\n# A model\n".encode()})


def odd_checkpoint(rng: random.Random, folder: Path) -> Case:
    """A file of PyTorch's that `convert` or `init` is to read."""
    content = (PARITY / rng.choice(["beats.pt", "model.pt"])).read_bytes()
    buffer = io.BytesIO()
    torch.save(
        rng.choice([[], {}, {"cfg": 1, "model": 2}, {"cfg": {}, "model": {}}, torch.zeros(2), {1: torch.zeros(1)}]),
        buffer,
    )
    odd = rng.choice(
        [
            *NOT_THE_FILE,
            planted_pickle(),
            content[:1000],
            damaged(rng, content),
            damaged(rng, content),
            buffer.getvalue(),
        ]
    )
    (folder / "odd.pt").write_bytes(odd)
    os.symlink(PARITY / "llm", folder / "llm")
    os.symlink(PARITY / "beats.pt", folder / "beats.pt")
    parts = ["--llm", "llm", "--beats"]
    commands = [["convert", "beats", "odd.pt"], ["init", *parts, "odd.pt"]]
    commands += [["convert", "tmu", "odd.pt", *parts, "beats.pt"], ["convert", "tmu", str(PARITY), *parts, "odd.pt"]]
    command = rng.choice(commands)
    return Case([*command, "-o", "out"], ("odd.pt",), ("out",), check=ran_nothing)


TRICKS = (
    *(odd_weights, odd_tensors, odd_json, odd_size, other_model, missing_file, planted_code, odd_card),
    odd_checkpoint,
)
