"""What is compared: each forwarder is started in the director's namespace, proves by packets that it forwards, is
measured, and is gone.

`kernel` is plain routing by the host (`ip_forward`). `bare` is the floor: the receive and transmit lanes of the
director with nothing between but new MAC addresses. `pylvs …` is the real daemon with rules set by `pylvs ipvsadm`.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.interrupts import held
from bench.meter import Meter
from bench.setup_load import ROOT, load
from bench.topology import DROP_ALL, SERVERS, VIP, BenchError, Topology, mac_bytes

UDP_PORT = 80
TCP_PORT = 5001
START_LIMIT = 20.0  # s that a daemon may take to say that it is ready
PYLVS = (sys.executable, "-c", "import sys; from pylvs.cli.main import main; sys.exit(main())")
FLAG = {"DR": "-g", "NAT": "-m", "TUN": "-i"}


@dataclass(frozen=True)
class Bench:
    """What a forwarder needs to start."""

    topology: Topology
    meter: Meter
    slots: int = 1024
    slot_bytes: int = 66048


class Forwarder:
    """One row of the comparison."""

    name = ""

    @contextlib.contextmanager
    def running(self, bench: Bench, both_ways: bool = False) -> Iterator[dict[str, Any]]:
        """Forward while the context lasts; yields a dict that afterwards holds the forwarder's own counters."""
        raise NotImplementedError

    def wrong(self, frame: bytes) -> str:
        """Why a frame that reached the server is not what this forwarder should have made of it; "" if it is."""
        raise NotImplementedError


class Drop(Forwarder):
    """Receive and drop at ingress: what the links and the generator cost before any forwarder has begun."""

    name = "drop only"

    @contextlib.contextmanager
    def running(self, bench: Bench, both_ways: bool = False) -> Iterator[dict[str, Any]]:
        """See `Forwarder.running`."""
        bench.topology.drop("director", "dc", DROP_ALL)
        try:
            yield {}
        finally:
            bench.topology.drop("director", "dc", None)


class Kernel(Forwarder):
    """The host routes."""

    name = "kernel ip_forward"

    @contextlib.contextmanager
    def running(self, bench: Bench, both_ways: bool = False) -> Iterator[dict[str, Any]]:
        """See `Forwarder.running`."""
        bench.topology.ip("director", f"route replace {VIP}/32 via {SERVERS[0]}")
        bench.topology.forwarding(True)
        try:
            yield {}
        finally:
            bench.topology.forwarding(False)
            bench.topology.ip("director", f"route del {VIP}/32")

    def wrong(self, frame: bytes) -> str:
        """See `Forwarder.wrong`."""
        return unlike(frame, ttl=63, targets=(VIP,))


class Bare(Forwarder):
    """AF_PACKET in, new MAC addresses, AF_PACKET out; the host's stack is kept from the frames as the director's guard does."""

    name = "bare AF_PACKET"

    @contextlib.contextmanager
    def running(self, bench: Bench, both_ways: bool = False) -> Iterator[dict[str, Any]]:
        """See `Forwarder.running`."""
        lanes = [("dc", "ds", mac_bytes("s0"), mac_bytes("ds"))]
        if both_ways:
            lanes.append(("ds", "dc", mac_bytes("c0"), mac_bytes("dc")))
        with bench.topology.inside("director"):
            forwarder = load().Forwarder(lanes, bench.slots, bench.slot_bytes)
        for link in ("dc", "ds"):
            bench.topology.drop("director", link, DROP_ALL)

        def work() -> None:
            bench.meter.as_forwarder()
            forwarder.run()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        counters: dict[str, Any] = {}
        try:
            yield counters
        finally:
            with held():
                forwarder.stop()
                thread.join()
            names = ("received", "forwarded", "other", "truncated", "refused", "overruns", "polls", "calls")
            counters.update({name: getattr(forwarder, name) for name in names})
            forwarder.close()
            for link in ("dc", "ds"):
                bench.topology.drop("director", link, None)

    def wrong(self, frame: bytes) -> str:
        """See `Forwarder.wrong`."""
        return unlike(frame, ttl=64, targets=(VIP,))


class Pylvs(Forwarder):
    """The director daemon, every thread of it on the director's processor; the VIP is on its `lo`, rules by `ipvsadm`."""

    def __init__(self, method: str, vip_on_host: bool = True) -> None:
        self.method, self.vip_on_host = method, vip_on_host
        self.name = f"pylvs {method}"

    @contextlib.contextmanager
    def running(self, bench: Bench, both_ways: bool = False) -> Iterator[dict[str, Any]]:
        """See `Forwarder.running`."""
        topology = bench.topology
        if self.vip_on_host:
            topology.ip("director", f"address replace {VIP}/32 dev lo")
        try:
            with daemon(topology) as pid:
                for service, port in (("-u", UDP_PORT), ("-t", TCP_PORT)):
                    ipvsadm(topology, "-A", service, f"{VIP}:{port}", "-s", "rr")
                    for server in SERVERS:
                        ipvsadm(topology, "-a", service, f"{VIP}:{port}", "-r", f"{server}:{port}", FLAG[self.method])
                for tid in os.listdir(f"/proc/{pid}/task"):
                    bench.meter.as_forwarder(int(tid))
                yield {}
        finally:
            if self.vip_on_host:
                topology.ip("director", f"address del {VIP}/32 dev lo")

    def wrong(self, frame: bytes) -> str:
        """See `Forwarder.wrong`."""
        if self.method == "NAT":
            return unlike(frame, ttl=63, targets=SERVERS)
        if self.method == "DR":
            return unlike(frame, ttl=63, targets=(VIP,))
        if frame[23] != socket.IPPROTO_IPIP or socket.inet_ntoa(frame[30:34]) not in SERVERS:
            return "no IPIP header towards a real server"
        return unlike(frame[:14] + frame[34:], ttl=None, targets=(VIP,))


def unlike(frame: bytes, ttl: int | None, targets: tuple[str, ...]) -> str:
    """What is not as expected in a UDP frame at the server; "" if all is."""
    if frame[:12] != mac_bytes("s0") + mac_bytes("ds"):
        return f"MAC addresses {frame[:6].hex(':')} ← {frame[6:12].hex(':')}"
    if ttl is not None and frame[22] != ttl:
        return f"TTL {frame[22]} instead of {ttl}"
    if socket.inet_ntoa(frame[30:34]) not in targets:
        return f"destination {socket.inet_ntoa(frame[30:34])}"
    if internet_sum(frame[14:34]) != 0xFFFF:
        return "wrong IP checksum"
    length = int.from_bytes(frame[38:40], "big")
    pseudo = frame[26:34] + bytes((0, socket.IPPROTO_UDP)) + frame[38:40]
    return "" if internet_sum(pseudo + frame[34 : 34 + length]) == 0xFFFF else "wrong UDP checksum"


def internet_sum(data: bytes) -> int:
    """Ones' complement sum of 16-bit words (RFC 1071); 0xFFFF over data that includes a right checksum."""
    padded = data + b"\0" * (len(data) % 2)
    total = sum(int.from_bytes(padded[i : i + 2], "big") for i in range(0, len(padded), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@contextlib.contextmanager
def daemon(topology: Topology) -> Iterator[int]:
    """`pylvs daemon` on the director's two links; yields its process id once it forwards."""
    command = topology.command("director", *PYLVS, "daemon", "--interface", "dc", "--interface", "ds")
    devnull = subprocess.DEVNULL
    process: subprocess.Popen[bytes] | None = None
    said: deque[bytes] = deque(maxlen=20)
    try:
        with held():
            process = subprocess.Popen(
                command, stdin=devnull, stdout=devnull, stderr=subprocess.PIPE, cwd=ROOT, start_new_session=True
            )
        said.append(_until_ready(process))
        threading.Thread(target=said.extend, args=(process.stderr,), daemon=True).start()
        yield process.pid
        if process.poll() is not None:
            words = b"".join(said).decode(errors="replace").strip()
            raise BenchError(f"pylvs daemon ended with {process.returncode} while it was measured: {words}")
    finally:
        with held():
            if process is not None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def ipvsadm(topology: Topology, *words: str) -> None:
    """`pylvs ipvsadm …` in the director's namespace."""
    done = subprocess.run(
        topology.command("director", *PYLVS, "ipvsadm", *words), capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        raise BenchError(f"pylvs ipvsadm {' '.join(words)}: {(done.stderr or done.stdout).strip()}")


def missing() -> str:
    """Why the pylvs rows cannot run here; "" if they can."""
    done = subprocess.run([*PYLVS, "daemon", "--help"], capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode == 0:
        return ""
    words = (done.stderr or done.stdout).strip().splitlines()
    return words[-1] if words else f"pylvs daemon --help ended with {done.returncode}"


def capture(topology: Topology, send: Any, wanted: int, limit: float = 2.0) -> list[bytes]:
    """Call `send`, return up to `wanted` IPv4 frames that then arrive at the server."""
    with topology.inside("server"):
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        tap.bind(("s0", 3))
    frames: list[bytes] = []
    with tap:
        send()
        end = time.monotonic() + limit
        while len(frames) < wanted and select.select([tap], [], [], max(0.0, end - time.monotonic()))[0]:
            frame, where = tap.recvfrom(2048)
            if where[2] != socket.PACKET_OUTGOING and frame[12:14] == b"\x08\x00":
                frames.append(frame)
    return frames


def _until_ready(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr is not None
    said, end = b"", time.monotonic() + START_LIMIT
    os.set_blocking(process.stderr.fileno(), False)
    while b": ready" not in said:
        ready, _, _ = select.select([process.stderr], [], [], max(0.0, end - time.monotonic()))
        chunk = process.stderr.read() if ready else b""
        if not chunk:
            words = said.decode(errors="replace").strip().splitlines()
            reason = words[-1] if words else "it said nothing"
            raise BenchError(f"pylvs daemon did not become ready: {reason}")
        said += chunk
    os.set_blocking(process.stderr.fileno(), True)
    return said
