"""What befalls a run. To add a fault: a function, and an entry in the table below."""

import os
import random
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .bench import Bench
from .children import Ending, Strike
from .conditions import DAY, launched, limit_files, tomorrow
from .disks import READ_ONLY, REMOUNT, can_mount, mount

PAGE = 4096
AT_ONCE = 200  # bytes: a lock is written in one call, which no signal divides
LAUNCHERS_PATIENCE = 1.0  # seconds


def _alone(bench: Bench) -> bool:
    """Returns True if one process does the task, as nearly all faults suppose."""
    return bench.task.processes == 1


class Fault(NamedTuple):
    """
    A fault.

    Fields:
        strikes (callable): Disturbs one run, mends afterwards what a user would mend (makes room, gives permission,
            brings the file back), and gives the run's ending.
        fits (callable): Returns True if it can befall the task of a bench on this machine.
    """

    strikes: Callable[[Bench, random.Random], Ending]
    fits: Callable[[Bench], bool] = _alone


def by_clock(bench: Bench, rng: random.Random, act: Callable[[int], None]) -> Strike:
    """Strikes at a random instant."""
    return Strike(act, seconds=rng.uniform(0, bench.seconds))


def at_a_change(bench: Bench, rng: random.Random, act: Callable[[int], None]) -> Strike:
    """Strikes just before a file is made, renamed or removed."""
    return Strike(act, change=rng.randint(1, bench.changes))


def send(number: signal.Signals) -> Callable[[int], None]:
    """Sends a signal to a process."""
    return lambda process: os.kill(process, number)


def kill(bench: Bench, rng: random.Random) -> Ending:
    """`kill -9` at a random instant."""
    return bench.run(by_clock(bench, rng, send(signal.SIGKILL)))


def kill_at_a_change(bench: Bench, rng: random.Random) -> Ending:
    """`kill -9` between two changes of files."""
    return bench.run(at_a_change(bench, rng, send(signal.SIGKILL)))


def stop(number: signal.Signals, bench: Bench, rng: random.Random) -> Ending:
    """A signal that a run may catch."""
    when = rng.choice((by_clock, at_a_change))
    return bench.run(when(bench, rng, send(number)))


def full_disk(bench: Bench, rng: random.Random) -> Ending:
    """The disk has room for a part of the result; later for all."""
    bench.renew(mounted=True)
    left = rng.randrange(0, bench.bytes_used + PAGE, PAGE)
    mount(bench.out, REMOUNT, size=max(PAGE, _used(bench.out) + left))
    ending = bench.run()
    mount(bench.out, REMOUNT, size="1g")
    return ending


def _used(folder: Path) -> int:
    """Bytes that are used on a folder's disk."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def limited_files(bench: Bench, rng: random.Random) -> Ending:
    """No file may grow beyond a size: writing fails in the middle, as on a full disk, but anywhere."""
    return bench.run(conditions=(partial(limit_files, some_size(bench, rng)),))


def kill_in_a_write(bench: Bench, rng: random.Random) -> Ending:
    """`kill -9`, in effect, when a part of a file is written: its first bytes are there, the others are not."""
    size = max(AT_ONCE, some_size(bench, rng))
    return bench.run(conditions=(partial(limit_files, size, signal.SIG_DFL),))


def some_size(bench: Bench, rng: random.Random) -> int:
    """Less than that of one of the result's files."""
    sizes = sorted({len(content) for content in bench.expected.values() if content})
    return rng.randrange(rng.choice(sizes))


def read_only(bench: Bench, rng: random.Random) -> Ending:
    """The folder of the results may not be written to; later it may."""
    if os.geteuid() == 0:
        bench.renew(mounted=True)
        mount(bench.out, REMOUNT | READ_ONLY)
        ending = bench.run()
        mount(bench.out, REMOUNT)
        return ending
    bench.out.chmod(0o555)
    ending = bench.run()
    bench.out.chmod(0o755)
    return ending


def clock_back(bench: Bench, rng: random.Random) -> Ending:
    """A run is killed, and the clock is set back: all that it left is of tomorrow."""
    ending = bench.run(at_a_change(bench, rng, send(signal.SIGKILL)), conditions=(tomorrow,))
    for path in bench.out.rglob("*"):
        moment = path.stat().st_mtime + DAY
        os.utime(path, (moment, moment))
    return ending


def shrinking_file(bench: Bench, rng: random.Random) -> Ending:
    """An input is cut while the run may be reading it; later it is whole again."""
    path = rng.choice(sorted(bench.folder.glob(bench.task.reads)))
    content, state = path.read_bytes(), path.stat()
    cut = rng.randrange(len(content))
    try:
        return bench.run(by_clock(bench, rng, lambda _: os.truncate(path, cut)))
    finally:
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def one_of_two(bench: Bench, rng: random.Random) -> Ending:
    """Two processes share the work, and one is killed; the other is stopped soon after, as launchers do."""
    strikes = [by_clock(bench, rng, send(signal.SIGKILL)), Strike(send(signal.SIGTERM), seconds=LAUNCHERS_PATIENCE)]
    ranks = rng.sample(launched(2), 2)
    both = [bench.start(strike, (rank,)) for strike, rank in zip(strikes, ranks, strict=True)]
    return [running.end() for running in both][1]


def _mounts(bench: Bench) -> bool:
    bench.renew()
    return _alone(bench) and can_mount(bench.out)


FAULTS = {
    "kill": Fault(kill),
    "kill at a change": Fault(kill_at_a_change),
    "kill in a write": Fault(kill_in_a_write),
    "SIGTERM": Fault(partial(stop, signal.SIGTERM)),
    "SIGINT": Fault(partial(stop, signal.SIGINT)),
    "full disk": Fault(full_disk, _mounts),
    "limited files": Fault(limited_files),
    "read-only folder": Fault(read_only, lambda bench: _mounts(bench) if os.geteuid() == 0 else _alone(bench)),
    "clock back": Fault(clock_back),
    "shrinking file": Fault(shrinking_file, lambda bench: _alone(bench) and not bench.task.uploads),
    "one of two": Fault(one_of_two, lambda bench: bench.task.processes == 2),
}
