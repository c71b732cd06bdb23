"""What is delivered: the files of sdist and wheel, the versions it was tested with, and what SECURITY.md promises."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from conftest import ROOT
from packaging.requirements import Requirement

from modeling_xacle import DEFAULT_MODEL
from modeling_xacle.scoring import load_scorer

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
JUNK = ("docs/__pycache__/a.pyc", "tests/.hypothesis/a", "modeling_xacle/checkpoints/xacle-tiny/modeling_xacle.py")
# Fails where a plain call reaches for a host or unpickles an object.
WATCHED = """
import os, sys
from modeling_xacle.cli.main import main
from run_stage import main as train

def watch(event, details):
    if event in ("socket.connect", "socket.getaddrinfo", "pickle.find_class"):
        print(event, details, file=sys.stderr, flush=True)
        os._exit(1)

sys.addaudithook(watch)
sound, *settings = sys.argv[1:]
train(settings)
sys.argv = ["xacle", "score", "--audio", sound, "--text", "A dog barks twice"]
main()
"""


def kept_files(repository):
    """Paths of all files here that .gitignore does not exclude, by an empty repository: there may be no other."""
    if not shutil.which("git"):
        pytest.skip("no git, which tells the project's files from others")
    subprocess.run(["git", "init", "--quiet", "--bare", repository], check=True)
    listed = ["git", "--git-dir", repository, "--work-tree", ROOT, "ls-files", "-z", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    return {*names} - {"", "PKG-INFO"}


def test_sdist_and_the_wheel_made_from_it_hold_every_file(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    kept, source, dist = kept_files(tmp_path / "git"), tmp_path / "source", tmp_path / "dist"
    for name in kept | set(JUNK):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / (name if name in kept else "setup.cfg"), source / name)

    build = [sys.executable, "-c", BUILD]
    subprocess.run([*build, "build_sdist", dist], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        packed = {member.name.split("/", 1)[1] for member in sdist if member.isfile()}
        sdist.extractall(tmp_path, filter="data")
    assert {name for name in packed if name != "PKG-INFO" and ".egg-info/" not in name} == kept

    subprocess.run(
        [*build, "build_wheel", dist], cwd=next(tmp_path.glob("modeling_xacle-*")), check=True, capture_output=True
    )
    installed = {name for name in zipfile.ZipFile(next(dist.glob("*.whl"))).namelist() if ".dist-info/" not in name}
    assert installed == {name for name in kept if name.startswith("modeling_xacle/")}


def test_every_requirement_is_capped_and_allows_the_version_that_was_tested():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = f"{setup['options']['install_requires']}\n{setup['options.extras_require']['test']}".splitlines()
    tested = dict(line.split("==") for line in (ROOT / ".ci/constraints-newest.txt").read_text().splitlines())
    for requirement in (Requirement(line) for line in lines if line and not line.startswith("#")):
        assert any(part.operator == "<" for part in requirement.specifier), requirement
        assert requirement.specifier.contains(tested[requirement.name.lower().replace("_", "-")]), requirement


def test_each_test_that_holds_a_promise_exists():
    named = re.findall(r"\btest_\w+\b(?!\.py)", (ROOT / "SECURITY.md").read_text())
    code = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert named and [name for name in named if f"def {name}(" not in code] == []


def test_scoring_and_training_reach_for_no_host_and_unpickle_nothing(pairs, tmp_path):
    settings = ["--stage", 3, "--data", pairs, "--model", DEFAULT_MODEL, "--output_dir", tmp_path / "run"]
    settings += ["--max_steps", 1, "--use_cpu", "true"]
    command = [sys.executable, "-c", WATCHED, ROOT / "docs/sounds/dog.flac", *settings]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("6.96\n")


def test_code_beside_a_model_is_not_run(model_folder, tmp_path):
    trap = f"open({str(tmp_path / 'executed')!r}, 'w')"
    folder = shutil.copytree(model_folder, tmp_path / "known")
    for path in folder.glob("*.py"):
        path.write_text(trap)
    assert np.isfinite(load_scorer(folder, "cpu")({"audio": ROOT / "docs/sounds/dog.flac", "text": "a dog"})["score"])

    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "other.py").write_text(trap)
    (unknown / "config.json").write_text(json.dumps({"model_type": "other", "auto_map": {"AutoConfig": "other.Other"}}))
    with pytest.raises(ValueError, match="code of its own, which is not run"):
        load_scorer(unknown, "cpu")
    assert not (tmp_path / "executed").exists()
