"""How files and folders are written: whole or not at all, and with the permissions that any other file gets."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Write a file that is there whole or not at all; an earlier one stays until then."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file, whole or not at all."""
    write_whole(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
