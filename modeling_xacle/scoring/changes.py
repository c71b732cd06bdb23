"""Tells whether a clip's file is still the one that was scored: by size and times and, where these differ, content."""

import os
from typing import Any

from ..data.files import file_digest

ClipState = dict[str, Any]


def clip_state(audio: Any) -> ClipState | None:
    """
    Returns `path`, `size` in bytes, and `modified` and `changed` (which a new name changes too) in nanoseconds; `None`
    if there is no such file, or the sound is embedded in the table, whose own digest covers it.
    """
    if not isinstance(audio, str):
        return None
    try:
        status = os.stat(audio)
    except (OSError, ValueError):  # ValueError: no file can have this name
        return None
    times = {"modified": status.st_mtime_ns, "changed": status.st_ctime_ns}
    return {"path": audio, "size": status.st_size, **times}


def with_digest(state: ClipState | None, audio: Any) -> ClipState | None:
    """
    Adds the `sha256` of a file that was just read.

    Args:
        state (`dict`, *optional*): What [`clip_state`] returned before the file was read.
        audio: The sound that was given to [`clip_state`].

    Raises:
        OSError: The file is no longer the one that was read.
    """
    digest = state and file_digest(audio)
    if clip_state(audio) != state:
        raise OSError(f"{audio}: changed while it was read; give the same command again.")
    return state and {**state, "sha256": digest}


def is_unchanged(state: ClipState, verify: bool = False) -> bool:
    """
    Returns True if the file holds what it held when it was scored.

    Args:
        state (`dict`): As [`with_digest`] returned it.
        verify (`bool`): Compare the content even where size and times are the same.
    """
    now = clip_state(state["path"])
    if now is None or now["size"] != state["size"]:
        return False
    if not verify and now == {name: state[name] for name in now}:
        return True
    return file_digest(state["path"]) == state["sha256"]
