"""Small disks in memory, where this user may mount them."""

import ctypes
import sys
from pathlib import Path

READ_ONLY, REMOUNT = 1, 32  # of <sys/mount.h>


def mount(folder: Path, flags: int = 0, **settings: object) -> None:
    """Put a disk in memory at a folder; or, by `REMOUNT`, change the one that is there."""
    words = ",".join(f"{name}={value}" for name, value in settings.items())
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", ctypes.c_ulong(flags), words.encode()):
        raise OSError(ctypes.get_errno(), f"{folder}: cannot mount")


def unmount(folder: Path) -> None:
    """Take away the disk at a folder, with what is on it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(str(folder).encode(), 2):  # MNT_DETACH
        raise OSError(ctypes.get_errno(), f"{folder}: cannot unmount")


def can_mount(folder: Path) -> bool:
    """Returns True if this user may mount, tried at an empty folder."""
    if sys.platform != "linux":
        return False
    try:
        mount(folder)
        unmount(folder)
    except OSError:
        return False
    return True
