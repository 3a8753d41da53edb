"""The processes of a lab: started inside its namespaces, known by pid *and* start time, and stopped in order.

A pid alone may belong to somebody else by the time it is used, so nothing is signalled unless the start time that was
written down still holds. Every process of a lab also carries its name in the environment (`MARK`): whoever was started
in the instant before an interruption, and so never written down, is found by it.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from pylvs.lab import namespace

MARK = "PYLVS_LAB"
PATIENCE = 5.0  # seconds between SIGTERM and SIGKILL


class Interrupted(Exception):
    """A signal asked the lab to stop; `signal` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number


class Failed(Exception):
    """A step of the lab did not work; the text says which and why."""


class Stop:
    """Turns SIGINT, SIGTERM and SIGHUP into `Interrupted`, raised at the next `check` or `wait`: never in the middle of
    a step, so that whatever a step made is known to the clean-up. Signals that follow change nothing."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.number = 0
        self._pid = os.getpid()
        self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked child that has not replaced itself yet shares the pipe
            return
        self.number = self.number or number
        with suppress(BlockingIOError):
            os.write(self._pipe[1], b".")

    def check(self) -> None:
        """Raise `Interrupted` if a signal has come."""
        if self.number:
            raise Interrupted(self.number)

    def wait(self, seconds: float, *readable: int) -> list[int]:
        """Wait up to `seconds` for a file descriptor to become readable, and return those that are."""
        self.check()
        ready, _, _ = select.select([self._pipe[0], *readable], [], [], max(0.0, seconds))
        self.check()
        return ready

    def close(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for end in self._pipe:
            os.close(end)


@dataclass(frozen=True)
class Identity:
    """A process beyond doubt: `start` is its start time in clock ticks since boot."""

    name: str
    node: str
    pid: int
    start: int

    @property
    def alive(self) -> bool:
        """True while this very process runs (a zombie does not)."""
        return started(self.pid) == self.start


def started(pid: int) -> int:
    """Start time of process `pid` in clock ticks since boot; 0 if there is none, or only its corpse."""
    try:
        # the command name, in parentheses, may hold spaces and parentheses itself
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def environment(lab: str) -> dict[str, str]:
    """The environment of a lab's processes: the mark, and the place of this very package on the module path."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, MARK: lab, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"}


def start(
    argv: Sequence[str],
    *,
    lab: str,
    network: str = "",
    output: int | IO[bytes] = subprocess.DEVNULL,
    errors: int | IO[bytes] = subprocess.STDOUT,
) -> subprocess.Popen[bytes]:
    """Start `argv` in the namespace `network` (empty: in this one), in a session of its own so that a Ctrl-C of the terminal
    reaches only the lab, which then stops its processes in order."""
    with namespace.inside(network) if network else nullcontext():
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=environment(lab),
            start_new_session=True,
        )


def lines(child: subprocess.Popen[bytes], stop: Stop, seconds: float) -> Iterator[str]:
    """The lines that `child` writes to its standard output, as they come; `Failed` after `seconds` without one."""
    assert child.stdout is not None
    handle = child.stdout.fileno()
    rest = b""
    while True:
        if handle not in stop.wait(seconds, handle):
            raise Failed(f"{Path(child.args[0]).name} has said nothing for {seconds:.0f} s")  # type: ignore[index,arg-type]
        data = os.read(handle, 65536)
        if not data:
            return
        *whole, rest = (rest + data).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")


def finished(child: subprocess.Popen[bytes], stop: Stop, seconds: float) -> int:
    """Wait for `child` to end and return its exit status; `Failed` after `seconds`."""
    deadline = time.monotonic() + seconds
    while child.poll() is None:
        if time.monotonic() > deadline:
            raise Failed(f"process {child.pid} has not ended within {seconds:.0f} s")
        stop.wait(0.01)
    return child.returncode


def marked(lab: str, networks: Iterable[str]) -> list[Identity]:
    """Processes that carry the mark of `lab` and live in one of its namespaces `networks`."""
    inodes = set()
    for name in networks:
        with suppress(OSError):
            inodes.add(namespace.path(name).stat().st_ino)
    found = []
    wanted = f"{MARK}={lab}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if (entry / "ns/net").stat().st_ino not in inodes:
                continue
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                pid = int(entry.name)
                found.append(Identity(name="?", node="?", pid=pid, start=started(pid)))
    return [identity for identity in found if identity.start]


def stop_all(identities: Iterable[Identity], children: Mapping[int, subprocess.Popen[bytes]] | None = None) -> None:
    """Ask all of `identities` to end, the last started first; after `PATIENCE` seconds make them. `children` are those of
    this process, by pid: they are reaped."""
    handles: dict[int, Identity] = {}
    try:
        for identity in reversed(list(identities)):
            with suppress(ProcessLookupError):
                handle = os.pidfd_open(identity.pid)
                handles[handle] = identity
                if identity.alive:  # asked after the handle is held: from here on the pid cannot change hands
                    signal.pidfd_send_signal(handle, signal.SIGTERM)
        waiting = [handle for handle, identity in handles.items() if identity.alive]
        deadline = time.monotonic() + PATIENCE
        while waiting and (left := deadline - time.monotonic()) > 0:
            ended, _, _ = select.select(waiting, [], [], left)
            waiting = [handle for handle in waiting if handle not in ended]
        for handle in waiting:
            if handles[handle].alive:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
        if waiting:
            select.select(waiting, [], [], 2.0)
    finally:
        for handle in handles:
            os.close(handle)
    for child in (children or {}).values():
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=2.0)
