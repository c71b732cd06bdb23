"""What is set in a process before it runs a command."""

import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from functools import partial

from hub_server import TOKEN
from huggingface_hub import constants

DAY = 86_400


def use_hub(address: str) -> None:
    """Let this process know the Hub at an address, and no other host; the client has read its settings long ago."""
    constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = address, False, True
    os.environ |= {"HF_TOKEN": TOKEN, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    os.environ |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")


def rank_of(rank: int, count: int, port: int) -> None:
    """Make this process one of several that share the work, as a launcher does."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def launched(count: int) -> list[Callable[[], None]]:
    """What makes each of several processes one that shares the work with the others, who meet at a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return [partial(rank_of, rank, count, free.getsockname()[1]) for rank in range(count)]


def limit_files(size: int, beyond: signal.Handlers = signal.SIG_IGN) -> None:
    """Let writes of this process beyond a size fail; or let them end it, if that is what its signal is to do."""
    signal.signal(signal.SIGXFSZ, beyond)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def tomorrow() -> None:
    """Let this process's clock be a day ahead."""
    now = time.time
    time.time = lambda: now() + DAY
