"""Bulk TCP from the client through the director to the server, with every offload at its default: 64 KB super-frames.

Sender and receiver are plain sockets on the load processor. A trial leaves out the connection's first moments, then
counts what the receiver read and what the director's processor spent.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from dataclasses import dataclass

from bench.meter import Meter, Usage, Window
from bench.topology import VIP, BenchError, Topology

CHUNK = 1 << 20  # bytes per send call
RAMP = 0.12  # s before measuring
CONNECT_LIMIT = 3.0


@dataclass(frozen=True)
class Transfer:
    """One measured piece of a TCP transfer."""

    received: int  # bytes in the window
    usage: Usage
    frames: int  # frames that the director sent on the way of the data, whole transfer
    frame_bytes: float  # their average size

    @property
    def gbit(self) -> float:
        """Gbit carried in the window."""
        return self.received * 8e-9

    @property
    def rate(self) -> float:
        """Gbit/s of payload."""
        return self.gbit / self.usage.seconds

    @property
    def cost(self) -> float:
        """Milliseconds of the director's processor per Gbit."""
        return self.usage.busy * 1e3 / self.gbit if self.gbit else float("inf")


def steer(topology: Topology, meter: Meter) -> None:
    """Let the director's processor pay for the director's work only: its own two links there, the hosts' elsewhere."""
    for role, link, cpu in (
        ("director", "dc", meter.director_cpu),
        ("director", "ds", meter.director_cpu),
        ("client", "c0", meter.load_cpu),
        ("server", "s0", meter.load_cpu),
    ):
        topology.steer(role, link, cpu)


def replies(topology: Topology, direct: bool) -> None:
    """Let the server answer the client over their own link (direct routing) or through the director."""
    way = "via 10.7.0.1 dev s1" if direct else "via 10.2.0.254 dev s0"
    topology.ip("server", f"route replace 10.1.0.0/16 {way}")


def transfer(topology: Topology, meter: Meter, port: int, seconds: float, download: bool = False) -> Transfer:
    """Connect to the VIP and move data for `seconds`; raise `BenchError` if no connection comes about."""
    with topology.inside("server"):
        listener = socket.create_server(("0.0.0.0", port))
    link = "dc" if download else "ds"
    with listener, contextlib.ExitStack() as stack:
        client = stack.enter_context(_connect(topology, port))
        listener.settimeout(CONNECT_LIMIT)
        server = stack.enter_context(listener.accept()[0])
        source, sink = (server, client) if download else (client, server)
        source.settimeout(None)
        sink.settimeout(None)
        counter = [0]
        stop, go = threading.Event(), threading.Event()
        threads = [
            threading.Thread(target=_pour, args=(source, go, stop), daemon=True),
            threading.Thread(target=_drink, args=(sink, counter), daemon=True),
        ]
        for thread in threads:
            thread.start()
        frames_before, bytes_before = sent_on(topology, link)

        def work(window: Window) -> int:
            with meter.as_generator():
                go.set()
                time.sleep(RAMP)
                window.start()
                first = counter[0]
                time.sleep(seconds)
                window.end()
                moved = counter[0] - first
                stop.set()
                return moved

        try:
            received, usage = meter.trial(work)
        finally:
            stop.set()
            go.set()
            for one in (source, sink):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(5)
        frames, size = sent_on(topology, link)
        count = frames - frames_before
        return Transfer(received, usage, count, (size - bytes_before) / count if count else 0.0)


def sent_on(topology: Topology, link: str) -> tuple[int, int]:
    """(frames, bytes) that the director sent on a link so far."""
    with topology.inside("director"), open("/proc/thread-self/net/dev", encoding="ascii") as text:
        for line in text:
            name, _, rest = line.partition(":")
            if name.strip() == link:
                fields = rest.split()
                return int(fields[9]), int(fields[8])
    raise BenchError(f"no link {link} in the director's namespace")


def _connect(topology: Topology, port: int) -> socket.socket:
    with topology.inside("client"):
        client = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    client.settimeout(CONNECT_LIMIT)
    try:
        client.connect((VIP, port))
    except OSError as error:
        client.close()
        raise BenchError(f"no TCP connection to {VIP}:{port}: {error}") from None
    return client


def _pour(source: socket.socket, go: threading.Event, stop: threading.Event) -> None:
    _be_nice()
    data = memoryview(bytes(CHUNK))
    go.wait()
    with contextlib.suppress(OSError):
        while not stop.is_set():
            source.send(data)


def _drink(sink: socket.socket, counter: list[int]) -> None:
    _be_nice()
    buffer = bytearray(CHUNK)
    with contextlib.suppress(OSError):
        while count := sink.recv_into(buffer):
            counter[0] += count


def _be_nice() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)
