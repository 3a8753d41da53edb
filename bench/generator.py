"""Where the small packets come from: two generators with one face, `send(seconds, rate, flows, packets)`.

`LiveFrames` lets the kernel run a small XDP program of ours over frames that it then hands to the director's link as a
network card would: several at a time, by NAPI (``BPF_PROG_TEST_RUN`` with live frames). It makes millions of packets per
second and needs bpf(2). `SocketFrames` sends through an AF_PACKET socket: it works everywhere, but its own speed is near
that of what it measures, and each of its frames wakes the director's processor on its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import platform
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from bench.interrupts import held
from bench.setup_load import load
from bench.topology import FIRST_FLOW, VIP, Topology, mac_bytes

SYS_BPF = {"x86_64": 321, "aarch64": 280}
MAP_CREATE, PROG_LOAD, PROG_TEST_RUN = 0, 5, 10
ARRAY, XDP, MMAPABLE, LIVE_FRAMES = 2, 6, 1 << 10, 2
BATCH = 64  # frames per run of the kernel's test loop
MAX_FLOWS = 1 << 20
FOREVER = 2_000_000_000
ARM_LIMIT = 5.0  # s


@dataclass(frozen=True)
class Sent:
    """What a generator did: frames that left, and how long it took (seconds)."""

    frames: int
    seconds: float

    @property
    def rate(self) -> float:
        """Frames per second."""
        return self.frames / self.seconds if self.seconds else 0.0


class Generator(Protocol):
    """The face of both generators."""

    name: str
    thread: int | None  # the thread that sends while armed, None: the caller's

    def armed(self) -> contextlib.AbstractContextManager[None]:
        """Be ready to send at once; `send` may be called in here only, from the main thread, for less than a second."""

    def send(self, seconds: float, rate: float = 0.0, flows: int = 1, packets: int = 0) -> Sent:
        """Send for `seconds` at `rate` frames per second (0: flat out), at most about `packets` (0: no limit)."""


def udp_frame(size: int, port: int, target: str = VIP, source: str = FIRST_FLOW) -> bytes:
    """A UDP frame of `size` bytes (no FCS) from the first client to `target`:`port`, addressed to the director's MAC."""
    addresses = socket.inet_aton(source) + socket.inet_aton(target)
    header = struct.pack("!BBHHHBBH", 0x45, 0, size - 14, 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    datagram = struct.pack("!HHHH", 1024, port, size - 34, 0)
    return (mac_bytes("dc") + mac_bytes("c0") + b"\x08\x00" + header + datagram).ljust(size, b"p")


class SocketFrames:
    """Sends through an AF_PACKET socket in bursts."""

    name = "AF_PACKET sendmmsg"
    thread: int | None = None

    def __init__(self, topology: Topology, frame: bytes, burst: int = 32) -> None:
        with topology.inside("client"):
            self._sender = load().Generator("c0", frame)
        self.burst = burst

    def armed(self) -> contextlib.AbstractContextManager[None]:
        """See `Generator.armed`."""
        return contextlib.nullcontext()

    def send(self, seconds: float, rate: float = 0.0, flows: int = 1, packets: int = 0) -> Sent:
        """See `Generator.send`."""
        frames, _, spent = self._sender.send(seconds, rate, flows, packets, self.burst)
        return Sent(frames, spent)


class LiveFrames:
    """Sends by an XDP program that the kernel runs over live frames; `OSError` where bpf(2) is refused."""

    name = "XDP live frames"

    # the program's state, one u64 each; times in 1/256 ns
    NEXT, INTERVAL, PATIENCE, LEFT, BURST, SENT, FLOW, FLOWS, FIRST, LAST, GO, IDLE = range(0, 96, 8)

    def __init__(self, topology: Topology, frame: bytes, burst: int = 32) -> None:
        self.topology, self.frame, self.burst = topology, frame, burst
        with topology.inside("client"):
            self._sender = load().Generator("c0", frame)
            link = socket.if_nametoindex("c0")
        napi(topology, "director", "dc")
        self._state_fd = bpf(MAP_CREATE, struct.pack("=5I", ARRAY, 4, 96, 1, MMAPABLE))
        self._flows_fd = bpf(MAP_CREATE, struct.pack("=5I", ARRAY, 4, 24, MAX_FLOWS, MMAPABLE))
        self._state = mmap.mmap(self._state_fd, 4096)
        self._entries = mmap.mmap(self._flows_fd, 24 * MAX_FLOWS)
        self._program = load_program(self._assemble(link))
        self._known = 0
        interruptible()
        self.thread: int | None = None

    def close(self) -> None:
        """Give the program and its maps back to the kernel."""
        for fd in (self._program, self._flows_fd, self._state_fd):
            os.close(fd)

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """See `Generator.armed`: starting and ending a run takes the kernel milliseconds, so frames only flow between."""
        self._state[:96] = bytes(96)
        failure: list[OSError] = []
        ending, ended, signalled = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            self._work(failure, ending)
            ended.set()
            signalled.wait()  # a thread that is gone must not be signalled

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self.thread = thread.native_id
        try:
            end = time.monotonic() + ARM_LIMIT
            while not self._get(self.IDLE):
                if failure or time.monotonic() > end:
                    raise failure[0] if failure else OSError("the kernel did not start the generator's program")
                time.sleep(0.001)
            yield
        finally:
            with held():
                self._set(self.GO, 0)
                self.thread = None
                ending.set()
                while not ended.wait(0.001):
                    signal.pthread_kill(thread.ident or 0, signal.SIGALRM)
                signalled.set()
                thread.join()

    def send(self, seconds: float, rate: float = 0.0, flows: int = 1, packets: int = 0) -> Sent:
        """See `Generator.send`."""
        if not 1 <= flows <= MAX_FLOWS:
            raise ValueError(f"flows {flows} is out of range; use 1 to {MAX_FLOWS}")
        if flows > self._known:
            self._sender.table(self._entries, flows)
            self._known = flows
        interval = int(self.burst / rate * 1e9 * 256) if rate else 0
        if packets and rate:
            seconds = min(seconds, packets / rate)
        at = self._get(self.FLOW) if self._get(self.FLOW) < flows else 0
        self._state[:80] = struct.pack("=10Q", 0, interval, 64 * interval, 0, self.burst, 0, at, flows, 0, 0)
        self._set(self.GO, 1)
        time.sleep(seconds)
        self._set(self.GO, 0)
        time.sleep(0.001)  # the batch under way
        spent = self._get(self.LAST) - self._get(self.FIRST) + interval
        return Sent(self._get(self.SENT), spent / 256e9)

    def _work(self, failure: list[OSError], ending: threading.Event) -> None:
        with contextlib.suppress(OSError):  # it spins while it waits: whoever else needs the processor goes first
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        with self.topology.inside("client"):
            while not ending.is_set():  # any signal ends a run, not only ours
                try:
                    self._run()
                except InterruptedError:
                    pass
                except OSError as error:
                    failure.append(error)
                    return

    def _run(self) -> None:
        data = ctypes.create_string_buffer(self.frame, len(self.frame))
        bpf(
            PROG_TEST_RUN,
            struct.pack(
                "=4I2Q4I2Q3I", self._program, 0, len(self.frame), 0, ctypes.addressof(data), 0,
                FOREVER, 0, 0, 0, 0, 0, LIVE_FRAMES, 0, BATCH,
            ),
        )  # fmt: skip

    def _set(self, field: int, value: int) -> None:
        struct.pack_into("=Q", self._state, field, value)

    def _get(self, field: int) -> int:
        return int(struct.unpack_from("=Q", self._state, field)[0])

    def _assemble(self, link: int) -> bytes:
        """The program: pace, take the next flow's header, write what a director may have changed, redirect to `link`."""
        a = Assembler()
        # r7 = packet (bounds checked), r9 = state
        a.load(4, 7, 1, 0).load(4, 8, 1, 4)
        a.move(2, 7).add(2, 42).jump(">", 2, 8, "drop")
        a.store_imm(4, 10, -4, 0).move(2, 10).add(2, -4).map(1, self._state_fd).call(1)
        a.jump_imm("==", 0, 0, "drop").move(9, 0)
        a.load(8, 1, 9, self.GO).jump_imm("!=", 1, 0, "go")
        a.load(8, 1, 9, self.IDLE).add(1, 1).store(8, 9, self.IDLE, 1).move_imm(0, 1).exit()
        a.label("go")
        # a burst is under way, or the next one is due
        a.load(8, 1, 9, self.LEFT).jump_imm("!=", 1, 0, "send")
        a.call(5).shift_left(0, 8).load(8, 2, 9, self.NEXT).jump(">", 2, 0, "drop")
        a.move(3, 0).subtract(3, 2).load(8, 4, 9, self.PATIENCE).jump("<=", 3, 4, "punctual").move(2, 0)
        a.label("punctual").load(8, 4, 9, self.INTERVAL).add_register(2, 4).store(8, 9, self.NEXT, 2)
        a.load(8, 1, 9, self.FIRST).jump_imm("!=", 1, 0, "begun").store(8, 9, self.FIRST, 0)
        a.label("begun").store(8, 9, self.LAST, 0)
        a.load(8, 1, 9, self.BURST)
        a.label("send").add(1, -1).store(8, 9, self.LEFT, 1)
        # the flow's entry
        a.load(8, 1, 9, self.FLOW).store(4, 10, -8, 1).add(1, 1)
        a.load(8, 2, 9, self.FLOWS).jump("<", 1, 2, "within").move_imm(1, 0)
        a.label("within").store(8, 9, self.FLOW, 1)
        a.move(2, 10).add(2, -8).map(1, self._flows_fd).call(1).jump_imm("==", 0, 0, "drop")
        a.load(8, 1, 9, self.SENT).add(1, 1).store(8, 9, self.SENT, 1)
        # live frames come back with whatever the last round wrote into them
        for at in (0, 4, 8):
            a.store_imm(4, 7, at, struct.unpack_from("=i", self.frame, at)[0])
        for at in range(0, 20, 4):
            a.load(4, 1, 0, at).store(4, 7, 22 + at, 1)
        a.move_imm(1, link).move_imm(2, 0).call(23).exit()
        a.label("drop").move_imm(0, 1).exit()
        return a.code()


class Assembler:
    """Just enough of an eBPF assembler: each method adds one instruction and returns the assembler."""

    SIZES = {8: 0x18, 4: 0x00, 2: 0x08}  # noqa: RUF012
    JUMPS = {"==": 0x10, ">": 0x20, "!=": 0x50, "<": 0xA0, "<=": 0xB0}  # noqa: RUF012

    def __init__(self) -> None:
        self._code: list[tuple[int, int, int, int | str, int]] = []
        self._labels: dict[str, int] = {}

    def _add(self, code: int, dst: int = 0, src: int = 0, offset: int | str = 0, imm: int = 0) -> Assembler:
        self._code.append((code, dst, src, offset, imm))
        return self

    def load(self, size: int, dst: int, src: int, offset: int) -> Assembler:
        """dst = *(size)(src + offset)"""
        return self._add(0x61 | self.SIZES[size], dst, src, offset)

    def store(self, size: int, dst: int, offset: int, src: int) -> Assembler:
        """*(size)(dst + offset) = src"""
        return self._add(0x63 | self.SIZES[size], dst, src, offset)

    def store_imm(self, size: int, dst: int, offset: int, imm: int) -> Assembler:
        """*(size)(dst + offset) = imm"""
        return self._add(0x62 | self.SIZES[size], dst, 0, offset, imm)

    def move(self, dst: int, src: int) -> Assembler:
        """dst = src"""
        return self._add(0xBF, dst, src)

    def move_imm(self, dst: int, imm: int) -> Assembler:
        """dst = imm"""
        return self._add(0xB7, dst, imm=imm)

    def add(self, dst: int, imm: int) -> Assembler:
        """dst += imm"""
        return self._add(0x07, dst, imm=imm)

    def add_register(self, dst: int, src: int) -> Assembler:
        """dst += src"""
        return self._add(0x0F, dst, src)

    def subtract(self, dst: int, src: int) -> Assembler:
        """dst -= src"""
        return self._add(0x1F, dst, src)

    def shift_left(self, dst: int, imm: int) -> Assembler:
        """dst <<= imm"""
        return self._add(0x67, dst, imm=imm)

    def map(self, dst: int, fd: int) -> Assembler:
        """dst = the map behind `fd` (two instruction slots)"""
        return self._add(0x18, dst, 1, imm=fd)._add(0)

    def call(self, helper: int) -> Assembler:
        """r0 = helper(r1 …)"""
        return self._add(0x85, imm=helper)

    def jump(self, condition: str, dst: int, src: int, label: str) -> Assembler:
        """if dst condition src goto label (unsigned)"""
        return self._add(0x0D | self.JUMPS[condition], dst, src, label)

    def jump_imm(self, condition: str, dst: int, imm: int, label: str) -> Assembler:
        """if dst condition imm goto label (unsigned)"""
        return self._add(0x05 | self.JUMPS[condition], dst, 0, label, imm)

    def exit(self) -> Assembler:
        """return r0"""
        return self._add(0x95)

    def label(self, name: str) -> Assembler:
        """The next instruction is `name`."""
        self._labels[name] = len(self._code)
        return self

    def code(self) -> bytes:
        """The program's bytes, jumps resolved."""
        out = b""
        for index, (code, dst, src, offset, imm) in enumerate(self._code):
            distance = self._labels[offset] - index - 1 if isinstance(offset, str) else offset
            out += struct.pack("=BBhi", code, dst | src << 4, distance, imm)
        return out


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2); the interpreter's lock is free meanwhile; raise `OSError`."""
    number = SYS_BPF.get(platform.machine())
    if number is None:
        raise OSError(f"bpf(2): number unknown on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = libc.syscall(number, command, buffer, len(attributes))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"bpf(2): {os.strerror(code)}")
    return int(result)


def load_program(code: bytes) -> int:
    """Load an XDP program; raise `OSError` with the verifier's last words if it is refused."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    log = ctypes.create_string_buffer(1 << 16)
    words = (XDP, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(licence))
    try:
        return bpf(PROG_LOAD, struct.pack("=2I2Q2IQ2I", *words, 1, len(log), ctypes.addressof(log), 0, 0))
    except OSError as error:
        last = log.value.decode(errors="replace").strip().splitlines()[-3:]
        raise OSError(error.errno, " / ".join([error.strerror or "", *last])) from None


def napi(topology: Topology, role: str, link: str) -> None:
    """Have `link` receive by NAPI, as a network card does (veth: by enabling GRO); frames can then be handed to it."""
    SIOCETHTOOL, ETHTOOL_SGRO = 0x8946, 0x2C
    value = ctypes.create_string_buffer(struct.pack("=II", ETHTOOL_SGRO, 1))
    with topology.inside(role), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as door:
        fcntl.ioctl(door, SIOCETHTOOL, struct.pack("=16sQ16x", link.encode(), ctypes.addressof(value)))


def interruptible() -> None:
    """Let SIGALRM interrupt a system call and do nothing else, from now on: one may arrive late."""

    def nothing(*_: Any) -> None:
        """The interruption itself is the point."""

    signal.signal(signal.SIGALRM, nothing)
