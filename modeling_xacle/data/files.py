"""Writes files and folders whole or not at all, and with the permissions that any other file gets."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import SoftFileLock, Timeout
from huggingface_hub import metadata_load
from safetensors import SafetensorError

# Words in the error that PyTorch's writer raises if the disk is full; it has no class of its own.
WRITER_FAILED = ("PytorchStreamWriter", "inline_container")


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """
    Surrounds the writing of a folder. If that fails, the folder is removed; otherwise its files get ordinary
    permissions, since safetensors makes its files readable for their owner only.

    Args:
        folder (`Path`): Everything in it is written inside the context.

    Raises:
        OSError: It could not be written, for example because the disk is full.
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
    """
    Gives a file beside the one to write, which takes that one's place when the context ends without an error. A link
    stays a link.

    Raises:
        ValueError: There is a folder, a device or the like at that place.
    """
    path = _real(Path(path))
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is not a file that can be replaced; choose another output.")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file, whole or not at all; an earlier one stays until then."""
    with whole_file(path) as partial:
        # Half a character is written as an escape such as "\ud83d", which JSON can read.
        partial.write_bytes(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


def parse_json(text: str, place: str | Path) -> Any:
    """
    Returns the content of a JSON text.

    Args:
        text (`str`): The text.
        place (`str` or `Path`): Where the text is from, for the message.

    Raises:
        ValueError: The text is not JSON, or is nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON ({error}).") from error


def read_text(file: str | Path) -> str:
    """
    Returns the content of a text file, without a byte order mark.

    Raises:
        ValueError: It is not UTF-8.
        OSError: It cannot be read.
    """
    try:
        return Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 (byte {error.start}); save it as UTF-8.") from error


def read_json(file: str | Path) -> Any:
    """
    Returns the content of a JSON file.

    Raises:
        ValueError: It is not JSON in UTF-8.
        OSError: It cannot be read.
    """
    return parse_json(read_text(file), file)


def json_text(content: Any, indent: int | None = None) -> str:
    """Returns strict JSON, with `null` for NaN and infinity."""
    return json.dumps(_without_nan(content), indent=indent, ensure_ascii=False, allow_nan=False, default=str)


def _without_nan(content: Any) -> Any:
    """Returns the same content, of mappings, sequences and plain values, with `None` for NaN and infinity."""
    if isinstance(content, Mapping):
        return {name: _without_nan(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return list(map(_without_nan, content))
    return None if isinstance(content, float) and not math.isfinite(content) else content


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(file, json_text(content, indent=2) + "\n")


CARD = "README.md"
# Metadata key of the card for the checksums of what `save_dataset` wrote: it replaces its own files and nothing else.
MANIFEST = "xacle_files"


def check_replaceable(output: Path) -> None:
    """Refuse to replace what `save_dataset` did not write, or a dataset to which somebody added files."""
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
    """Returns the metadata of a dataset's card; an empty dict if there is no card."""
    try:
        return (metadata_load(card) or {}) if card.is_file() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{card}: its metadata, between the lines of three hyphens, is no YAML ({error}).") from error


def check_outputs(outputs: Iterable[str | Path | None], inputs: Iterable[str | Path | None]) -> None:
    """
    Refuse to write over what a command reads, however the paths are spelled.

    Args:
        outputs (iterable of paths): Files to write, and folders to replace; those that are `None` are left out.
        inputs (iterable of paths): What is read, as files or folders.

    Raises:
        ValueError: An output is an input, holds one, or lies in one that is a folder; or two outputs are the same.
    """
    written, read = ([Path(path) for path in paths if path is not None] for paths in (outputs, inputs))
    for number, output in enumerate(written):
        for source in read:
            holds = any(_is_same(output, folder) for folder in _real(source).parents)
            lies_in = source.is_dir() and any(_is_same(source, folder) for folder in _real(output).parents)
            if holds or lies_in or _is_same(output, source):
                where = "into" if lies_in else "over"
                raise ValueError(f"{output}: would be written {where} the input {source}; choose another output.")
        for other in written[:number]:
            if _is_same(output, other):
                raise ValueError(f"{output}: is named for two outputs; choose another name for one.")


def _is_same(path: Path, other: Path) -> bool:
    """Returns True if two paths lead to the same file or folder, by links or in letters of another case too."""
    if _real(path) == _real(other):
        return True
    return path.exists() and other.exists() and path.samefile(other)


def _real(path: Path) -> Path:
    """Returns the path without links; a loop of links is left as it is."""
    return Path(os.path.realpath(path))


@contextmanager
def held(output: str | Path, is_holder: bool = True) -> Iterator[None]:
    """
    Holds an output for this process alone, by the file `OUT.lock`. A killed process's lock does not count if it ran on
    this machine and in this container; otherwise, the file has to be deleted.

    Args:
        output (`str` or `Path`): File or folder.
        is_holder (`bool`): Of several processes that share the work, only the first holds it, for all.

    Raises:
        ValueError: Another process holds the output; the message says which, and on what machine.
    """
    if not is_holder:
        yield
        return
    lock = SoftFileLock(f"{_real(Path(output))}.lock", timeout=0)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"{output}: is being written by {_holder(lock.lock_file)}; wait for it, or choose another output. If "
            f"there is no such process any more, delete {lock.lock_file}."
        ) from error
    try:
        yield
    finally:
        lock.release()


def _holder(lock_file: str) -> str:
    """Says which process wrote a lock file, and on what machine."""
    try:
        process, machine, *_ = Path(lock_file).read_text(encoding="utf-8", errors="replace").split()
    except (OSError, ValueError):
        return "another process"
    return f"process {process} on {machine.split('?')[0]}"


def is_free(output: Path) -> bool:
    """Returns True if writing there would lose nothing: nothing exists there, or only an empty folder."""
    return not output.exists() or (output.is_dir() and not any(output.iterdir()))


def file_digest(path: str | Path) -> str:
    """Returns the SHA-256 of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Gives a folder beside the output to write into, which takes the output's place at the end, not before."""
    with unfinished_folder(output) as partial:
        yield partial
        replace_folder(partial, output)


@contextmanager
def unfinished_folder(output: Path) -> Iterator[Path]:
    """
    Gives a folder beside the output for work in progress; it is removed at the end, or when the next run begins.

    Raises:
        ValueError: Another process is at work on the output.
    """
    output = _real(output)
    folder = output.with_name(f".{output.name}.partial")
    with held(output):
        shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
        _restore(output)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _earlier(output: Path) -> Path:
    """Returns where a folder is kept while its successor takes its place."""
    return output.with_name(f".{output.name}.earlier")


def _restore(output: Path) -> None:
    """Put a folder back that a run moved aside before it was killed."""
    if _earlier(output).exists() and not output.exists():
        _earlier(output).rename(output)


def replace_folder(partial: Path, output: Path) -> None:
    """Put the finished folder in its place; an earlier one is moved aside first and removed last. A link stays one."""
    output = _real(output)
    earlier = _earlier(output)
    shutil.rmtree(earlier, ignore_errors=True)
    if output.exists():
        output.rename(earlier)
    partial.rename(output)
    shutil.rmtree(earlier, ignore_errors=True)
