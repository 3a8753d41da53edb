"""A client, a director and a real server in namespaces, with the daemon running: what the wire tests of it share."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hostnet import HostNet
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from pylvs.cli.client import ApiError, NoDirector, request

ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_IGNORE_OUTGOING = 23
PATIENCE = 20.0  # seconds for what must happen, on a machine that is busy with something else
QUIET = 0.15  # seconds without another frame after which nothing more is expected
ROOT = Path(__file__).parent.parent

CIP = {4: "10.0.0.2", 6: "fd00::2"}
DIP = {4: "10.0.0.1", 6: "fd00::1"}
RIP = {4: "10.1.0.11", 6: "fd01::11"}
RGW = {4: "10.1.0.1", 6: "fd01::1"}
VIP = {4: "10.0.0.100", 6: "fd00::100"}
FULL = {4: 32, 6: 128}
INET = {4: socket.AF_INET, 6: socket.AF_INET6}


def until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait until `condition` is true; return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.02)
    return value


class Daemon:
    """A running ``pylvs daemon``; what it says is kept."""

    def __init__(self, net: HostNet, name: str, *argv: str, wait: bool = True) -> None:
        self._net, self._name = net, name
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", net.names[name], sys.executable, "-m", "pylvs", "daemon", "--ring", "16",
             "--connections", "65536", *argv],
            stderr=self._said,
            stdin=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
        )  # fmt: skip
        net.processes.append(self.process)
        if wait:
            until(lambda: "ready" in self.said or self.process.poll() is not None, "the daemon is ready")
            assert self.process.poll() is None, self.said

    @property
    def said(self) -> str:
        """Everything on its stderr."""
        return os.pread(self._said.fileno(), 1 << 20, 0).decode()

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """A request to its control API."""
        with self._net.inside(self._name):
            return request(method, path, body)

    def admin(self, *lines: str, check: bool = True) -> list[dict[str, Any]]:
        """ipvsadm command lines."""
        answers = []
        for line in lines:
            answers.append(self.ask("POST", "/v1/ipvsadm", {"argv": line.split()}))
            assert not check or answers[-1]["returncode"] == 0, (line, answers[-1])
        return answers

    def counters(self) -> dict[str, Any]:
        """Its counters; every frame it has received is accounted for."""
        counters: dict[str, Any] = self.ask("GET", "/v1/counters")
        return counters

    def follows(self, seen: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until it sees the host as the test has made it."""
        until(lambda: seen(self.ask("GET", "/v1/status")), "the daemon has followed the host")

    def accounted(self) -> None:
        """received = forwarded + passed + replied + Σ drops, as soon as no frame is under way."""
        until(lambda: balanced(self.counters()), f"every frame is accounted for: {self.counters()}")


def balanced(counters: dict[str, Any]) -> bool:
    ended = counters["forwarded"] + counters["passed"] + counters["replied"] + sum(counters["drops"].values())
    return bool(counters["received"] == ended)


class Tap:
    """Frames that arrive on interfaces of one namespace."""

    def __init__(self, net: HostNet, name: str, *links: str) -> None:
        self._sockets = []
        with net.inside(name):
            for link in links:
                sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
                sock.bind((link, ETH_P_ALL))
                self._sockets.append(sock)

    def send(self, frame: bytes | Packet) -> None:
        """Put a frame on the first interface's wire."""
        self._sockets[0].send(bytes(frame))

    def frames(self, quiet: float = QUIET) -> Iterator[bytes]:
        """What has arrived, until nothing more does."""
        while ready := select.select(self._sockets, [], [], quiet)[0]:
            for sock in ready:
                yield sock.recv(1 << 17)

    def packets(self, quiet: float = QUIET) -> list[Packet]:
        """The same, decoded."""
        return [Ether(frame) for frame in self.frames(quiet)]

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Echo:
    """A TCP server that sends back what it gets, on all addresses of a namespace and on several ports."""

    def __init__(self, net: HostNet, name: str, *ports: int, address: str = "") -> None:
        self._stop = threading.Event()
        self._servers = []
        self.accepted = 0
        with net.inside(name):
            for port in ports:
                if address:
                    sock = socket.create_server((address, port), family=INET[6 if ":" in address else 4])
                else:
                    sock = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
                self._servers.append(sock)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        clients: list[socket.socket] = []
        while not self._stop.is_set():
            for sock in select.select([*self._servers, *clients], [], [], 0.05)[0]:
                if sock in self._servers:
                    clients.append(sock.accept()[0])
                    clients[-1].settimeout(1.0)  # for one that sends and never reads
                    self.accepted += 1
                    continue
                try:
                    data = sock.recv(65536)
                    if data:
                        sock.sendall(data)
                        continue
                except OSError:
                    pass
                clients.remove(sock)
                sock.close()
        for sock in [*self._servers, *clients]:
            sock.close()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Echo:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(net: HostNet, name: str, address: str, port: int, timeout: float = PATIENCE) -> socket.socket:
    """A TCP connection from a namespace."""
    with net.inside(name):
        sock = socket.socket(INET[6 if ":" in address else 4])
    try:
        sock.settimeout(timeout)
        sock.connect((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def exchange(sock: socket.socket, data: bytes = b"hello") -> bytes:
    """Send something and read as much."""
    sock.sendall(data)
    found = b""
    while len(found) < len(data) and (part := sock.recv(65536)):
        found += part
    return found


def works(net: HostNet, name: str, address: str, port: int, timeout: float = 1.0) -> bool:
    """Whether a connection is made and echoed."""
    try:
        with connect(net, name, address, port, timeout) as sock:
            return exchange(sock) == b"hello"
    except OSError:
        return False


def refused(net: HostNet, name: str, address: str, port: int) -> bool:
    """Whether a connection is refused."""
    try:
        connect(net, name, address, port).close()
    except OSError as error:
        return error.errno == errno.ECONNREFUSED
    return False


@contextmanager
def three(second_link: bool = False) -> Iterator[HostNet]:
    """Client c - director d - real server s, both families; with `second_link` c and s are also joined directly."""
    with ExitStack() as stack:
        net = stack.enter_context(HostNet("c", "d", "s"))
        for name in "cds":
            for key, value in (
                ("net/ipv4/conf/all/rp_filter", 0), ("net/ipv4/conf/default/rp_filter", 0),
                ("net/ipv4/icmp_ratelimit", 0), ("net/ipv6/icmp/ratelimit", 0),
                ("net/ipv4/icmp_msgs_per_sec", 100000), ("net/ipv4/icmp_msgs_burst", 100000),
            ):  # fmt: skip
                if net.run(name, "test", "-e", f"/proc/sys/{key}").returncode == 0:
                    net.sysctl(name, key, value)
        net.veth("c", "c0", "d", "d0")
        net.veth("s", "s0", "d", "d1")
        address(net, "c", "c0", CIP)
        address(net, "d", "d0", DIP)
        address(net, "d", "d1", RGW)
        address(net, "s", "s0", RIP)
        net.ip("c", f"route add default via {DIP[4]}; -6 route add default via {DIP[6]}")
        net.ip("s", f"route add default via {RGW[4]}; -6 route add default via {RGW[6]}")
        if second_link:
            net.veth("s", "s1", "c", "c1")
            net.ip("s", "addr add 10.2.0.11/24 dev s1; addr add fd02::11/64 dev s1")
            net.ip("c", "addr add 10.2.0.2/24 dev c1; addr add fd02::2/64 dev c1")
        yield net


def address(net: HostNet, name: str, link: str, addresses: dict[int, str]) -> None:
    net.ip(name, f"addr add {addresses[4]}/24 dev {link}; addr add {addresses[6]}/64 dev {link}")


def mac(net: HostNet, name: str, link: str) -> str:
    """The MAC of an interface."""
    return net.ip(name, f"-br link show {link}").split()[2]


def threads(pid: int) -> list[str]:
    """Names of a process's threads."""
    return [(task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()]


def directorless(net: HostNet, name: str) -> bool:
    """Whether no director answers in a namespace."""
    with net.inside(name):
        try:
            request("GET", "/v1/status")
        except NoDirector:
            return True
        except ApiError:
            return False
    return False


def lines(text: str) -> Sequence[str]:
    return text.strip().splitlines()
