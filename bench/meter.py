"""How much of a processor a trial used: hard interrupts, softirqs and processes together, to a few parts in a thousand.

The tick-sampled figures of /proc/stat and of processes are useless below a few milliseconds, and softirq work belongs to
no process at all. So the idle time itself is measured: a *spinner* runs on the director's processor below everything that
forwards (SCHED_RR 1; forwarder and ksoftirqd are SCHED_FIFO 2) and counts units of work. What it counted in a trial, divided
by what it counts per second on the idle processor (calibrated just before and just after), is the share left over. Being a
real-time task it also keeps other jobs off the processor and keeps a virtual CPU from halting. Trials stay below 0.9 s:
the kernel throttles real-time work that takes more than 0.95 s of a second.

Where real-time scheduling is refused the spinner runs as SCHED_IDLE; other jobs on the processor then count as busy, and
`Meter.method` says so.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.interrupts import held
from bench.setup_load import load

T = TypeVar("T")

CALIBRATION = 0.02  # s per calibration window
DRIFT = 0.05  # a processor whose speed moved by more was disturbed
STOLEN = 0.01  # of the trial's time
FORWARDER_PRIORITY = 2
SPINNER_PRIORITY = 1


@dataclass(frozen=True)
class Usage:
    """What one trial used of the director's processor."""

    seconds: float  # length of the trial
    busy: float  # seconds of processor time
    drift: float  # |calibration after / before - 1|: how far the processor's speed moved
    stolen: float = 0.0  # seconds that the hypervisor took from the processor

    @property
    def share(self) -> float:
        """Busy share of the processor, 0 to 1."""
        return self.busy / self.seconds if self.seconds else 0.0

    @property
    def noisy(self) -> bool:
        """Whether something other than the trial moved the figure: do it again."""
        return self.drift > DRIFT or self.stolen > STOLEN * self.seconds


class Window:
    """The measured part of a trial; `start` and `end` may be called by the trial to leave out its ramp."""

    def __init__(self, read: Callable[[], tuple[int, float]]) -> None:
        self._read = read
        self.first = self.last = read()

    def start(self) -> None:
        """From here on."""
        self.first = self.last = self._read()

    def end(self) -> None:
        """Up to here."""
        self.last = self._read()


class Meter:
    """Measures the director's processor `director` while the calling thread makes traffic on processor `load`.

    `with` raises the priority of the two processors' ksoftirqd threads for as long as it lasts and puts it back.
    """

    def __init__(self, load_cpu: int = 0, director_cpu: int = 1) -> None:
        self.load_cpu, self.director_cpu = load_cpu, director_cpu
        self.realtime = _realtime_allowed()
        self.spinner = load().Spinner()
        self.best = 0.0  # fastest calibration of the run
        self._saved: list[tuple[int, int, int]] = []

    @property
    def method(self) -> str:
        """In words, for the head of the report."""
        if self.realtime:
            return "idle time counted by a real-time spinner below the forwarder (irq + softirq + processes)"
        return "idle time counted by a SCHED_IDLE spinner (no real-time rights: other jobs on the core count as busy)"

    def __enter__(self) -> Meter:
        try:
            with held():
                self._affinity = os.sched_getaffinity(0)
                os.sched_setaffinity(0, {self.load_cpu})
                for cpu in (self.load_cpu, self.director_cpu) if self.realtime else ():
                    self._raise_ksoftirqd(cpu)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with held():
            while self._saved:
                pid, policy, priority = self._saved.pop()
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setscheduler(pid, policy, os.sched_param(priority))
            os.sched_setaffinity(0, self._affinity)

    def _raise_ksoftirqd(self, cpu: int) -> None:
        pid = _kernel_thread(f"ksoftirqd/{cpu}")
        if pid:
            policy, priority = os.sched_getscheduler(pid), os.sched_getparam(pid).sched_priority
            if (policy, priority) == (os.SCHED_FIFO, FORWARDER_PRIORITY):
                policy, priority = os.SCHED_OTHER, 0  # left so by a run that was killed
            self._saved.append((pid, policy, priority))
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(FORWARDER_PRIORITY))

    def as_forwarder(self, tid: int = 0) -> None:
        """Pin a thread (0: the calling one) to the director's processor, above the spinner."""
        os.sched_setaffinity(tid, {self.director_cpu})
        if self.realtime:
            os.sched_setscheduler(tid, os.SCHED_FIFO, os.sched_param(FORWARDER_PRIORITY))

    @contextlib.contextmanager
    def as_generator(self, helper: int | None = None) -> Iterator[None]:
        """Give the calling thread, and below it `helper`, real-time priority on the load processor, for less than 0.9 s."""
        if not self.realtime:
            yield
            return
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FORWARDER_PRIORITY))
        try:
            if helper:
                os.sched_setscheduler(helper, os.SCHED_FIFO, os.sched_param(SPINNER_PRIORITY))
            yield
        finally:
            with held():
                if helper:
                    os.sched_setscheduler(helper, os.SCHED_OTHER, os.sched_param(0))
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))

    def trial(self, work: Callable[[Window], T]) -> tuple[T, Usage]:
        """Run `work` with the spinner on the director's processor; return its result and what it used there."""
        thread = threading.Thread(target=self._spin, daemon=True)
        self.spinner.reset()
        thread.start()
        began = time.monotonic()
        try:
            time.sleep(0.005)
            before = self._calibrate(4)
            stolen = steal(self.director_cpu)
            window = Window(self.spinner.read)
            result = work(window)
            if window.last[1] == window.first[1]:
                window.end()
            time.sleep(0.005)
            stolen = steal(self.director_cpu) - stolen
            after = self._calibrate(2)
        finally:
            with held():
                self.spinner.stop()
                thread.join()
        # other users of the machine get their share, and the real-time throttle never bites
        time.sleep(max(0.1, (time.monotonic() - began) * 0.3))
        self.best = max(self.best, before, after)
        rate = max(before, after)
        seconds = window.last[1] - window.first[1]
        idle = (window.last[0] - window.first[0]) / rate
        return result, Usage(seconds, max(0.0, seconds - idle), abs(after / before - 1), stolen)

    def _spin(self) -> None:
        os.sched_setaffinity(0, {self.director_cpu})
        if self.realtime:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(SPINNER_PRIORITY))
        else:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        self.spinner.run()

    def _calibrate(self, windows: int) -> float:
        best = 0.0
        for _ in range(windows):
            units, at = self.spinner.read()
            time.sleep(CALIBRATION)
            more, then = self.spinner.read()
            best = max(best, (more - units) / (then - at))
        return best


def steal(cpu: int) -> float:
    """Seconds that the hypervisor took from a processor since boot, in steps of a clock tick."""
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        if line.startswith(f"cpu{cpu} "):
            return int(line.split()[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _realtime_allowed() -> bool:
    policy = os.sched_getscheduler(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(SPINNER_PRIORITY))
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except OSError:
        return False
    return True


def _kernel_thread(name: str) -> int:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "comm").read_text(encoding="ascii").strip() == name:
                    return int(entry.name)
    return 0
