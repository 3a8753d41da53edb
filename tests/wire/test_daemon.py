"""The daemon's life: starts that must fail, signals at any moment, bad requests."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostnet import HostNet
from livedirector import (
    RIP,
    ROOT,
    VIP,
    Daemon,
    Echo,
    connect,
    directorless,
    lines,
    threads,
    three,
    until,
    works,
)

from pylvs.host.guard import TABLE
from pylvs.host.nftables import Nftables

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def net() -> Iterator[HostNet]:
    with three() as net, Echo(net, "s", 8080):
        yield net


@pytest.fixture
def daemon(net: HostNet) -> Iterator[Daemon]:
    daemon = Daemon(net, "d")
    yield daemon
    if daemon.process.poll() is None:
        daemon.accounted()
        assert daemon.stop() == 0, daemon.said
    assert "Traceback" not in daemon.said
    nothing_left(net)


@pytest.fixture(scope="module")
def idle(net: HostNet) -> Iterator[Daemon]:
    """A director that is only asked things, elsewhere."""
    daemon = Daemon(net, "s")
    yield daemon
    assert daemon.stop() == 0 and len(lines(daemon.said)) == 1, daemon.said


def nothing_left(net: HostNet, name: str = "d") -> None:
    """No director, no guard, no packet socket in the namespace."""
    assert directorless(net, name)
    with net.inside(name):
        nftables = Nftables()
        tables = nftables.tables()
        nftables.close()
        assert TABLE not in tables
        packet_sockets = Path("/proc/thread-self/net/packet").read_text().splitlines()[1:]
    assert packet_sockets == []


def pylvs(net: HostNet, name: str, *argv: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ip", "netns", "exec", net.names[name], *before, sys.executable, "-m", "pylvs", *argv],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ starts that must fail


@pytest.mark.parametrize(
    ("privileges", "names"),
    [
        (("setpriv", "--reuid", "65534", "--clear-groups"), "CAP_NET_ADMIN and CAP_NET_RAW"),
        (("setpriv", "--bounding-set", "-net_raw"), "CAP_NET_RAW"),
        (("setpriv", "--bounding-set", "-net_admin"), "CAP_NET_ADMIN"),
    ],
)
def test_without_permission(net: HostNet, privileges: tuple[str, ...], names: str) -> None:
    done = pylvs(net, "d", "daemon", before=privileges)
    assert done.returncode == 4, done.stderr
    assert len(lines(done.stderr)) == 1 and names in done.stderr
    nothing_left(net)


def test_with_the_two_capabilities_and_no_root(net: HostNet) -> None:
    daemon = subprocess.Popen(
        ["ip", "netns", "exec", net.names["d"], "setpriv", "--reuid", "65534", "--clear-groups",
         "--inh-caps", "+net_raw,+net_admin", "--ambient-caps", "+net_raw,+net_admin",
         sys.executable, "-m", "pylvs", "daemon", "--ring", "16"],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    net.processes.append(daemon)
    assert daemon.stderr is not None
    first = daemon.stderr.readline()
    assert "ready" in first, first + daemon.stderr.read()
    daemon.terminate()
    assert daemon.wait(20) == 0
    nothing_left(net)


def test_an_interface_that_does_not_exist(net: HostNet) -> None:
    done = pylvs(net, "d", "daemon", "--interface", "eth7")
    assert done.returncode == 1
    assert len(lines(done.stderr)) == 1
    assert "eth7 does not exist" in done.stderr and "d0, d1, lo" in done.stderr
    nothing_left(net)


def test_one_director_in_a_namespace(net: HostNet, daemon: Daemon) -> None:
    done = pylvs(net, "d", "daemon")
    assert done.returncode == 1
    assert len(lines(done.stderr)) == 1 and "already runs" in done.stderr
    other = Daemon(net, "c")
    assert other.stop() == 0
    nothing_left(net, "c")
    assert daemon.ask("GET", "/v1/status")["guard"] is True, "the first one is not disturbed"


def test_no_director(net: HostNet) -> None:
    done = pylvs(net, "d", "ipvsadm", "-L")
    assert done.returncode == 3
    assert len(lines(done.stderr)) == 1 and "pylvs daemon" in done.stderr


# --------------------------------------------------------------------------------------------------- the control API


def test_only_root_may_ask(net: HostNet, idle: Daemon) -> None:
    done = pylvs(net, "s", "ipvsadm", "-L", before=("setpriv", "--reuid", "65534", "--clear-groups"))
    assert done.returncode == 4
    assert len(lines(done.stderr)) == 1 and "root" in done.stderr


def raw_request(net: HostNet, data: bytes, seconds: float) -> bytes:
    """Send bytes to the control socket; return what comes back until it is closed, or `seconds` of silence."""
    with net.inside("s"), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(seconds)
        sock.connect("\0pylvs")
        found = b""
        try:
            sock.sendall(data)
            while part := sock.recv(65536):
                found += part
        except (TimeoutError, ConnectionError):
            pass
    return found


def post(body: bytes, path: str = "/v1/ipvsadm", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: pylvs\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"{}", 400),
        (b'{"argv": "-L"}', 400),
        (b'{"argv": [1]}', 400),
        (b'{"argv": ["-L"], "more": 1}', 400),
        (b'{"argv": ["-R"], "stdin": 7}', 400),
        (b'{"argv": ["\xff\xfe"]}', 400),
        (b'{"argv": ["\\ud800"]}', 400),
        (b"[" * 100000, 400),
        (b" " * (17 << 20), 413),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else None,
)
def test_bad_bodies(net: HostNet, idle: Daemon, body: bytes, status: int) -> None:
    problem(raw_request(net, post(body), 20), status)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/v1/nothing", 404), ("GET", "/v1/ipvsadm", 405), ("POST", "/v1/counters", 405), ("GET", "/", 404)],
)
def test_bad_paths(net: HostNet, idle: Daemon, method: str, path: str, status: int) -> None:
    problem(raw_request(net, post(b"{}", path, method), 20), status)


def problem(answer: bytes, status: int) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()), answer[:300]
    assert body.startswith(b'{"problem":"'), answer[:300]


def test_what_is_not_http(net: HostNet, idle: Daemon) -> None:
    for data in (
        b"\0" * 100,
        b"GET\r\n\r\n",
        b"\x16\x03\x01",
        b"POST /v1/ipvsadm HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: \xff\r\n" + b"X: y\r\n" * 5000 + b"\r\n",
        b"A" * 100000,
        b"",
    ):
        raw_request(net, data, 0.3)
    assert idle.admin("-L -n") and len(lines(idle.said)) == 1, idle.said


def test_odd_arguments_are_answered(idle: Daemon) -> None:
    for argv in ([""], ["\0"], ["-A", "-t", "10.0.0.100:80\n", "-s", "rr"], ["-" * 1000], ["-a"] * 500, ["é" * 50]):
        assert idle.ask("POST", "/v1/ipvsadm", {"argv": argv})["returncode"] != 0, argv


# ------------------------------------------------------------------------------------------------------- the signals


def handles_signals(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")), 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


def test_a_signal_at_any_moment_of_the_start(net: HostNet) -> None:
    """From the moment that the daemon is asked for, whatever it has set up is undone, and it says nothing of it."""
    draw = random.Random(7)
    for number in range(8):
        daemon = Daemon(net, "d", wait=False)
        until(lambda daemon=daemon: handles_signals(daemon.process.pid), "the daemon handles signals")  # type: ignore[misc]
        time.sleep(draw.random() * 1.2 * number / 8)
        how = draw.choice((signal.SIGTERM, signal.SIGINT))
        assert daemon.stop(how) == 0, daemon.said
        assert "Traceback" not in daemon.said and "rror" not in daemon.said, daemon.said
        nothing_left(net)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load(net: HostNet, how: int) -> None:
    daemon = Daemon(net, "d")
    daemon.admin(f"-A -t {VIP[4]}:80 -s rr", f"-a -t {VIP[4]}:80 -r {RIP[4]}:8080 -m")
    with connect(net, "c", VIP[4], 80) as sock:
        sock.setblocking(False)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            for step in (lambda: sock.send(b"x" * 65536), lambda: sock.recv(65536)):
                try:
                    step()
                except BlockingIOError:
                    continue
        before = time.monotonic()
        daemon.process.send_signal(how)
        daemon.process.send_signal(how)
        assert daemon.stop(how) == 0, daemon.said
        assert time.monotonic() - before < 5
    assert len(lines(daemon.said)) == 1, daemon.said
    nothing_left(net)


def test_killed(net: HostNet) -> None:
    daemon = Daemon(net, "d")
    daemon.admin(f"-A -t {VIP[4]}:80 -s rr", f"-a -t {VIP[4]}:80 -r {RIP[4]}:8080 -m")
    assert len(threads(daemon.process.pid)) > 1
    assert daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    nothing_left(net)
    again = Daemon(net, "d")
    again.admin(f"-A -t {VIP[4]}:80 -s rr", f"-a -t {VIP[4]}:80 -r {RIP[4]}:8080 -m")
    assert works(net, "c", VIP[4], 80, 10)
    assert again.stop() == 0
    nothing_left(net)


# ---------------------------------------------------------------------------------------------------- what it warns of


def test_without_guard_it_says_what_may_happen(net: HostNet) -> None:
    net.ip("d", f"addr add {VIP[4]}/32 dev lo")
    daemon = Daemon(net, "d", "--no-guard")
    try:
        daemon.admin(f"-A -t {VIP[4]}:80 -s rr", f"-A -t {VIP[4]}:81 -s rr")
        said = lines(daemon.said)
        assert len(said) == 2 and VIP[4] in said[1] and "no guard" in said[1], said
    finally:
        net.ip("d", f"addr del {VIP[4]}/32 dev lo")
        assert daemon.stop() == 0
