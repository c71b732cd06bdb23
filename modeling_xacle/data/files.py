"""How files and folders are written: whole or not at all, and with the permissions that any other file gets."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import metadata_load
from safetensors import SafetensorError

# What PyTorch's writer says of a disk that is full, in an exception of no class of its own.
WRITER_FAILED = ("PytorchStreamWriter", "inline_container")


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """
    Surrounds the writing of a folder. If that fails, the folder is removed; if not, its files get ordinary permissions,
    since safetensors creates its own for their owner alone.

    Args:
        folder (`Path`): Everything in it is written inside the context.

    Raises:
        OSError: It could not be written: the disk is full, say.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        of_writer = isinstance(error, RuntimeError) and any(name in str(error) for name in WRITER_FAILED)
        if not (of_writer or isinstance(error, (OSError, SafetensorError))):
            raise
        reason = "PyTorch could not write all of a file" if of_writer else str(error).splitlines()[0]
        raise OSError(
            f"{folder} could not be written and was removed: {reason}. Make sure that there is room and that you may "
            "write there, then give the same command again."
        ) from error
    give_ordinary_permissions(folder)


def give_ordinary_permissions(folder: Path) -> None:
    """Give all files below a folder the permissions that the process's umask leaves to new files."""
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file beside the one to write; at the end, and not before, it takes that one's place."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all; an earlier one stays until then."""
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


CARD = "README.md"
# Key of the card's metadata with the checksums of what `save_dataset` wrote: it replaces its own work and nothing else.
MANIFEST = "xacle_files"


def check_replaceable(output: Path) -> None:
    """Refuse to replace what is not a dataset of `save_dataset`, or holds files that somebody added."""
    if is_free(output):
        return
    card = output / CARD
    written = read_metadata(card).get(MANIFEST)
    if written is None:
        raise ValueError(f"{output}: exists and was not written by this command; choose another output.")
    added = sorted(entry.name for entry in output.iterdir() if entry.name not in (CARD, *written))
    if added:
        raise ValueError(f"{output}: holds files that would be lost, move them first: {', '.join(added)}.")


def read_metadata(card: Path) -> dict[str, Any]:
    """The metadata of a dataset's card; nothing if there is no card."""
    try:
        return (metadata_load(card) or {}) if card.is_file() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{card}: its metadata, between the lines of three hyphens, is no YAML ({error}).") from error


def is_free(output: Path) -> bool:
    """Whether nothing would be lost there: no file, or an empty folder."""
    return not output.exists() or (output.is_dir() and not any(output.iterdir()))


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output to write into; at the end, and not before, it takes the output's place."""
    with unfinished_folder(output) as partial:
        yield partial
        replace_folder(partial, output)


@contextmanager
def unfinished_folder(output: Path) -> Iterator[Path]:
    """A folder beside the output for work in progress; gone when that is done, or when the next run begins."""
    folder = output.absolute().with_name(f".{output.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_folder(partial: Path, output: Path) -> None:
    """Put the finished folder in its place; an earlier one is moved away first and removed last."""
    earlier = output.with_name(f".{output.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if output.exists():
        output.rename(earlier)
    partial.rename(output)
    shutil.rmtree(earlier, ignore_errors=True)
