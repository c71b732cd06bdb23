"""The Hub round trip: pushed from home and used by a stranger, through the real client and a Hub on loopback."""

import ast
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from conftest import EXPECTED, PARITY, ROOT
from hub_server import TOKEN, HubServer
from huggingface_hub import DatasetCard, ModelCard
from transformers import pipeline

from modeling_xacle.data.pairs import make_dataset, save_dataset
from modeling_xacle.scoring.diagnostics import model_info

CLIP = str(PARITY / "wav" / "b_16k_3s.wav")
SCORE = next(
    pair["score_0_10"] for pair in EXPECTED["pairs"] if (pair["wav"], pair["text"]) == ("b_16k_3s.wav", "beep")
)
CODE = {
    "waveforms_xacle",
    "configuration_xacle",
    "feature_extraction_xacle",
    "modeling_beats",
    "modeling_xacle",
    "pipeline_xacle",
}
ALLOWED = {"torch", "torchaudio", "transformers", "numpy", "soundfile"}

BEGIN = """
import json, sys
clip, folder, pairs, output = sys.argv[1:]
found = {}

def attempt(name, function):
    try:
        found[name] = function()
    except Exception as error:
        found[name] = f"{type(error).__name__}: {error}"
"""
# Fails where anything is imported from home, reaches for another host, or is made by a pickle.
AS_A_STRANGER = """
import sys
sys.modules["modeling_xacle"] = None

def watch(event, details):
    if event == "socket.connect" and details[1][0] != "127.0.0.1":
        raise AssertionError(f"reached for {details[1]}")
    if event == "pickle.find_class":
        raise AssertionError(f"a pickle asked for {details}")

from transformers import AutoModel, AutoProcessor, pipeline
sys.addaudithook(watch)
"""
END = "\nprint(json.dumps(found))"

HOME = """
import run_stage
from huggingface_hub import HfApi
from transformers import AutoModel, AutoProcessor, pipeline
from modeling_xacle.data import load_pairs
from modeling_xacle.scoring import model_info
from modeling_xacle.scoring import load_scorer

def score():
    return pipeline("audio-text-alignment", model=model, processor=processor, device="cpu")(pair)["score"]

def train(*more):
    run_stage.main([*settings, "--push_to_hub", "true", "--hub_model_id", "user/trained", *more])

api, pair = HfApi(), {"audio": clip, "text": "beep"}
settings = ["--stage", "3", "--data", pairs, "--model", folder, "--output_dir", output, "--use_cpu", "true",
            "--num_train_epochs", "1", "--per_device_train_batch_size", "4"]
model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)

# The first upload of weights is cut, and refused when the client tries again; then a second one is.
attempt("wrong token", lambda: model.push_to_hub("user/broken", token="hf_wrong"))
attempt("upload", lambda: model.push_to_hub("user/broken"))
found["files"] = api.list_repo_files("user/broken")
model.push_to_hub("user/broken")
processor.push_to_hub("user/broken")
attempt("no such dataset", lambda: load_pairs("user/none"))
attempt("strategy", lambda: train("--hub_strategy", "every_save"))
attempt("training, wrong token", lambda: train("--hub_token", "hf_wrong"))
attempt("training, no upload", train)
train()
train("--hub_revision", "candidate")
found["info"] = model_info("user/trained")
found["scored by"] = load_scorer("user/trained", "cpu").commit

model.push_to_hub("user/parts")
processor.push_to_hub("user/parts")
pipeline("audio-text-alignment", model=folder, device="cpu").push_to_hub("user/xacle")
found["first"], found["commit"] = score(), api.model_info("user/parts").sha
api.create_tag("user/parts", tag="v1")
model.score_head.layers[-1].bias.data += 0.1
model.push_to_hub("user/parts")
found["second"] = score()

api.create_repo("user/large")
api.upload_file(repo_id="user/large", path_or_fileobj=bytes(24 * 2**20), path_in_repo="model.safetensors")
load_pairs(pairs).push_to_hub("user/pairs")
api.create_repo("user/folder", repo_type="dataset")
api.upload_folder(repo_id="user/folder", folder_path=pairs, repo_type="dataset")
for name in ("user/pairs", "user/folder"):
    rows = load_pairs(name)["train"]
    found[name] = [rows["text"][:], rows["label"][:], len(rows[0]["audio"]["bytes"])]
"""

AWAY = """
from pathlib import Path
from huggingface_hub import get_safetensors_metadata, hf_hub_download

def score(model, **settings):
    align = pipeline("audio-text-alignment", model=model, **{"trust_remote_code": True, "device": "cpu", **settings})
    assert type(align).__module__.startswith("transformers_modules."), type(align)
    return align({"audio": clip, "text": "beep"})["score"]

def load(name="user/parts", **settings):
    return AutoModel.from_pretrained(name, **{"trust_remote_code": True, **settings}).eval()

def score_by_parts(**revision):
    processor = AutoProcessor.from_pretrained("user/parts", trust_remote_code=True, **revision)
    return load(**revision)(**processor(text="beep", audio=clip)).scores.item()

commit = output
attempt("wrong token", lambda: str(load(token="hf_wrong")))
attempt("broken download", lambda: str(load("user/broken")))
found["again"] = score("user/broken")
found["pipeline"], found["trained"] = score("user/xacle"), score("user/trained")
found["now"], found["then"], found["tag"] = score_by_parts(), *(score_by_parts(revision=r) for r in (commit, "v1"))
found["pinned pipeline"] = score("user/parts", revision=commit)
attempt("no trust", lambda: str(load(trust_remote_code=False)))
attempt("no trust, pipeline", lambda: score("user/xacle", trust_remote_code=False))
attempt("no such revision", lambda: str(load(revision="v9")))
attempt("no such model", lambda: str(load("user/none")))
found["large"] = Path(hf_hub_download("user/large", "model.safetensors")).stat().st_size
found["parameters"] = sum(get_safetensors_metadata("user/xacle").parameter_count.values())
"""


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A dataset with its sounds in it: 8 rows to train on, 6 to validate."""
    folder = tmp_path_factory.mktemp("pairs")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(14):
        soundfile.write(folder / f"{number}.wav", 0.1 * generator.standard_normal(8000), 16000)
        label = float(generator.uniform(-1, 1))
        audio = {"path": f"{number}.wav", "bytes": (folder / f"{number}.wav").read_bytes()}
        rows.append({"id": str(number), "audio": audio, "text": f"Sound {number}", "label": label})
    save_dataset({"train": make_dataset(rows[:8]), "validation": make_dataset(rows[8:])}, folder / "data", True)
    return folder / "data"


@pytest.fixture(scope="module")
def run(hub, model_folder, pairs, tmp_path_factory):
    """Run code in a process of its own that knows this Hub and no other host; what it found."""

    def run(code, output, token=TOKEN, path=ROOT):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= hub.environment(tmp_path_factory.mktemp("home"), token) | (
            {"PYTHONPATH": str(path)} if path else {}
        )
        command = [sys.executable, "-c", BEGIN + code + END, CLIP, str(model_folder), str(pairs), str(output)]
        where = tmp_path_factory.mktemp("work")
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, env=environment, cwd=where, input=""
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Where a stage is trained; what else lies there is not to be uploaded."""
    folder = tmp_path_factory.mktemp("runs") / "stage3"
    (folder / "runs").mkdir(parents=True)
    for leftover in ("model.bin", "runs/old.pt"):
        (folder / leftover).write_bytes(b"a pickle")
    return folder


@pytest.fixture(scope="module")
def home(hub, run, output):
    """What happened at home. Of the run, the commit fails."""
    hub.fail("PUT", "/lfs/")
    hub.fail("PUT", "/lfs/", status=403)
    hub.fail("POST", "user/trained/commit", status=403)
    return run(HOME, output)


@pytest.fixture(scope="module")
def away(hub, home, run):
    """What a stranger found. The download of one model is cut, and what the client then tries fails."""
    hub.requests.clear()
    hub.fail("GET", "user/broken/.*safetensors")
    hub.fail("GET", "user/broken/.*safetensors", status=500)
    hub.fail("GET", "user/large/.*safetensors")
    return run(AS_A_STRANGER + AWAY, home["commit"], token="", path=None)


def test_a_pushed_folder_is_complete(hub, home, model_folder):
    """Code, weights, processor, tokenizer and card, whichever object was pushed; no pickle anywhere."""
    for name in ("user/parts", "user/xacle", "user/trained"):
        files = hub.files(name)
        needed = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "README.md"}
        assert needed | {f"{module}.py" for module in CODE} <= set(files), name
        config = json.loads(files["config.json"])
        assert config["auto_map"]["AutoModel"] == "modeling_xacle.XacleModel"
        assert list(config["custom_pipelines"]) == ["audio-text-alignment"]
        assert not [path for path in files if path.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
        content = b"".join(files.values())
        assert str(ROOT).encode() not in content and str(model_folder).encode() not in content


def test_pushed_code_imports_nothing_that_stays_at_home(hub, home):
    files = hub.files("user/xacle")
    code = {path.removesuffix(".py"): content for path, content in files.items() if path.endswith(".py")}
    for content in code.values():
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.module in code
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in ALLOWED | sys.stdlib_module_names
            elif isinstance(node, ast.Import):
                assert all(name.name.split(".")[0] in ALLOWED | sys.stdlib_module_names for name in node.names)


def test_training_uploads_its_result_once(hub, home, output):
    files = hub.files("user/trained")
    assert (output / "checkpoint-2").is_dir() and list(output.rglob("runs/**/*tfevents*"))
    assert {"training_curves.png", "training_log.json"} <= set(files)
    assert not [path for path in files if path.startswith(("checkpoint", "runs")) or "tfevents" in path]
    assert files["model.safetensors"] == (output / "model.safetensors").read_bytes()
    assert len(hub.repositories["models", "user/trained"].commits) == 3  # an empty one, this, and that of the branch
    assert hub.files("user/trained", revision="candidate")["config.json"] == files["config.json"]


def test_the_card_of_a_run(hub, home, output):
    content = hub.files("user/trained")["README.md"].decode()
    card = ModelCard(content)
    log = json.loads((output / "training_log.json").read_text())
    results = {result.metric_name: result for result in card.data.eval_results}
    assert set(results) == {"SRCC", "LCC", "KTAU", "MSE"}
    for name, result in results.items():
        assert result.task_type == card.data.pipeline_tag == "audio-text-alignment"
        assert result.metric_value == pytest.approx(log["metrics"][f"eval_{name.lower()}"], abs=1e-4)
        low, high = result.metric_args["interval"]
        assert low <= result.metric_value <= high
        assert log["intervals"][name.lower()] == pytest.approx([low, high], abs=1e-4)
    assert 'model="user/trained", trust_remote_code=True' in content
    assert card.data.license == "cc-by-nc-4.0"  # of the model it started from
    assert "| starting model | " in content
    for heading in ("Use", "Data", "Validation", "Intended use and limits", "Licences", "Recipe", "Citation"):
        assert f"\n## {heading}\n" in content


def test_info_of_a_model_on_the_hub(hub, home, output):
    info, repository = home["info"], hub.repositories["models", "user/trained"]
    assert info["revision"] == home["scored by"] == repository.references["main"]
    assert info["card"]["license"] == "cc-by-nc-4.0"
    metrics = {metric["metric"]: metric["value"] for metric in info["metrics"]}
    log = json.loads((output / "training_log.json").read_text())["metrics"]
    assert metrics == {name: pytest.approx(log[f"eval_{name.lower()}"], abs=1e-4) for name in metrics}
    assert info["signature"] == model_info(str(output))["signature"]


def test_a_stranger_gets_the_same_scores(away, home):
    assert away["pipeline"] == pytest.approx(home["first"], abs=1e-6)
    assert away["pipeline"] == pytest.approx(SCORE, abs=1e-4)
    assert away["now"] == pytest.approx(home["second"], abs=1e-5)


def test_what_a_run_pushed_is_what_it_trained(away, output):
    at_home = pipeline("audio-text-alignment", model=str(output), device="cpu")
    assert away["trained"] == pytest.approx(at_home({"audio": CLIP, "text": "beep"})["score"], abs=1e-6)


def test_a_pinned_revision_keeps_its_score(away, home):
    assert abs(home["first"] - home["second"]) > 0.4
    assert away["then"] == away["tag"] == pytest.approx(home["first"], abs=1e-6)
    assert away["pinned pipeline"] == pytest.approx(home["first"], abs=1e-6)


def test_a_dataset_comes_back(hub, home):
    texts, labels, size = home["user/pairs"]
    assert texts == [f"Sound {number}" for number in range(8)]
    assert home["user/folder"] == [texts, labels, size]
    assert size > 16000
    card = DatasetCard(hub.files("user/folder", "datasets")["README.md"].decode())
    assert card.data.size_categories == ["n<1K"] and card.data.language == ["en"]
    assert [file["split"] for file in card.data.to_dict()["configs"][0]["data_files"]] == ["train", "validation"]


def test_remote_code_has_to_be_trusted(away):
    for name in ("no trust", "no trust, pipeline"):
        assert away[name].startswith("ValueError: ") and "trust_remote_code=True" in away[name]


def test_a_stranger_is_told_what_is_missing(away):
    assert "v9 is not a valid git identifier" in away["no such revision"]
    assert "user/none is not a local folder and is not a valid model identifier" in away["no such model"]
    assert "Invalid credentials in Authorization header" in away["wrong token"]


def test_a_download_that_failed_succeeds_again(away):
    assert away["broken download"].startswith("OSError: ") and "user/broken" in away["broken download"]
    assert away["again"] == pytest.approx(SCORE, abs=1e-4)


def test_a_long_download_goes_on_where_it_broke_off(hub, away):
    """The client writes 10 MiB at a time; of 24 MiB, the first 10 had arrived when the connection was cut half way."""
    assert away["large"] == 24 * 2**20
    wanted = [request.split()[2:] for request in hub.requests if "GET /user/large" in request]
    assert wanted == [[], [f"bytes={10 * 2**20}-"]]


def test_the_hub_knows_the_weights_by_their_first_bytes(hub, away, model):
    assert away["parameters"] == sum(weight.numel() for weight in model.parameters())
    assert any("GET /user/xacle" in request and "bytes=0-" in request for request in hub.requests)


def test_an_upload_that_failed_left_nothing_and_succeeds_again(hub, home):
    assert home["upload"] == "RuntimeError: Error while uploading 'model.safetensors' to the Hub."
    assert home["files"] == [".gitattributes"]
    assert "model.safetensors" in hub.files("user/broken")


def test_a_run_whose_upload_failed_is_uploaded_by_the_same_command(home, output):
    message = home["training, no upload"]
    assert message.startswith(f"OSError: The model is in {output}, but not on the Hub; give the same command again.")
    assert "403 Forbidden" in message


def test_a_wrong_token_is_refused(home):
    assert "401" in home["wrong token"] and "Invalid credentials in Authorization header" in home["wrong token"]
    assert "401" in home["training, wrong token"] and "The model is in" not in home["training, wrong token"]


def test_other_mistakes_are_told(home):
    assert home["strategy"].startswith("ValueError: --hub_strategy every_save: leave it out")
    assert home["no such dataset"].startswith("FileNotFoundError: user/none: neither a dataset folder")
