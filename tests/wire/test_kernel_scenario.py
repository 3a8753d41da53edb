"""The end-to-end scenario of the kernel's own IPVS self-test, with pylvs in the place of ip_vs.

A director that forwards (``ip_forward=1``) and has the VIP on ``lo``, one real server, rules set by the command line
inside the director's namespace while the daemon runs, and a file that must arrive as it was sent. By NAT, by DR and by
a tunnel, where answers return over a second link between real server and client.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hostnet import HostNet
from livedirector import CIP, FULL, RIP, ROOT, VIP, Daemon, connect, three, until

pytestmark = pytest.mark.root

PORT, SIZE = 8080, 8 << 20


@pytest.fixture(scope="module")
def net() -> Iterator[HostNet]:
    with three(second_link=True) as net:
        net.sysctl("d", "net/ipv4/ip_forward", 1)
        net.sysctl("d", "net/ipv6/conf/all/forwarding", 1)
        for v in (4, 6):
            net.ip("d", f"addr add {VIP[v]}/{FULL[v]} dev lo")
        net.ip("c", f"-6 route add {VIP[6]}/128 via fd00::1")
        for key, value in (("arp_ignore", 1), ("arp_announce", 2)):
            net.sysctl("s", f"net/ipv4/conf/all/{key}", value)
        yield net


@pytest.fixture(scope="module")
def daemon(net: HostNet) -> Iterator[Daemon]:
    daemon = Daemon(net, "d")
    yield daemon
    daemon.accounted()
    assert daemon.stop() == 0, daemon.said
    assert lines(daemon.said) == 1, daemon.said


def lines(text: str) -> int:
    return len(text.splitlines())


def pylvs(net: HostNet, *argv: str) -> str:
    """The command line inside the director's namespace."""
    done = subprocess.run(
        ["ip", "netns", "exec", net.names["d"], sys.executable, "-m", "pylvs", *argv],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def transfer(net: HostNet, v: int) -> None:
    """The real server sends a file of random bytes, the client sends another one; both arrive whole."""
    down, up = os.urandom(SIZE), os.urandom(SIZE)
    received: list[bytes] = []
    with net.inside("s"):
        import socket

        server = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
    server.settimeout(60)

    def serve() -> None:
        peer = server.accept()[0]
        peer.settimeout(60)
        digest = hashlib.sha256()
        size = 0
        while size < SIZE:
            part = peer.recv(1 << 16)
            if not part:
                break
            size += len(part)
            digest.update(part)
        received.append(digest.digest())
        peer.sendall(down)
        peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with connect(net, "c", VIP[v], PORT) as sock:
            sock.settimeout(60)
            sock.sendall(up)
            digest, size = hashlib.sha256(), 0
            while part := sock.recv(1 << 16):
                size += len(part)
                digest.update(part)
    finally:
        thread.join()
        server.close()
    assert received == [hashlib.sha256(up).digest()], "what the client sent"
    assert (size, digest.digest()) == (SIZE, hashlib.sha256(down).digest()), "what the real server sent"


def rules(net: HostNet, v: int, flag: str) -> None:
    vip, rip = (f"[{VIP[v]}]", f"[{RIP[v]}]") if v == 6 else (VIP[v], RIP[v])
    pylvs(net, "ipvsadm", "-C")
    pylvs(net, "ipvsadm", "-A", "-t", f"{vip}:{PORT}", "-s", "rr")
    pylvs(net, "ipvsadm", "-a", "-t", f"{vip}:{PORT}", "-r", f"{rip}:{PORT}", flag)
    listing = pylvs(net, "ipvsadm", "-L", "-n")
    assert f"TCP  {vip}:{PORT} rr" in listing and f"-> {rip}:{PORT}" in listing, listing


def back(net: HostNet, v: int, via: str) -> None:
    """How the real server reaches the client."""
    if v == 4:
        net.ip("s", f"route replace 10.0.0.0/24 via {via}")
    else:
        net.ip("s", f"-6 route replace fd00::/64 via {via}")


def bytes_on(net: HostNet, link: str) -> int:
    """Bytes that the client has received on a link."""
    found = net.run("c", "cat", f"/sys/class/net/{link}/statistics/rx_bytes").stdout
    return int(found)


@pytest.mark.parametrize("v", [4, 6])
def test_nat(net: HostNet, daemon: Daemon, v: int) -> None:
    back(net, v, {4: "10.1.0.1", 6: "fd01::1"}[v])
    rules(net, v, "-m")
    transfer(net, v)
    connections = pylvs(net, "ipvsadm", "-L", "-n", "-c")
    assert RIP[v] in connections and CIP[v] in connections, connections


@pytest.mark.parametrize("v", [4, 6])
def test_dr_with_answers_by_another_link(net: HostNet, daemon: Daemon, v: int) -> None:
    net.ip("s", f"addr add {VIP[v]}/{FULL[v]} dev lo", check=False)
    back(net, v, {4: "10.2.0.2", 6: "fd02::2"}[v])
    rules(net, v, "-g")
    before = bytes_on(net, "c0"), bytes_on(net, "c1")
    transfer(net, v)
    assert bytes_on(net, "c1") - before[1] > SIZE, "the answers come by the second link"
    assert bytes_on(net, "c0") - before[0] < SIZE // 10, "and not through the director"
    net.ip("s", f"addr del {VIP[v]}/{FULL[v]} dev lo")


def test_tun_with_the_decapsulator(net: HostNet, daemon: Daemon) -> None:
    back(net, 4, "10.2.0.2")
    helper = subprocess.Popen(
        ["ip", "netns", "exec", net.names["s"], sys.executable, "-m", "pylvs", "rs", "tun", "--vip", VIP[4]],
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    net.processes.append(helper)
    assert helper.stderr is not None
    assert "ready" in helper.stderr.readline()
    rules(net, 4, "-i")
    before = bytes_on(net, "c0"), bytes_on(net, "c1")
    transfer(net, 4)
    assert bytes_on(net, "c1") - before[1] > SIZE and bytes_on(net, "c0") - before[0] < SIZE // 10
    helper.terminate()
    assert helper.wait(20) == 0
    until(lambda: "pylvs-tun0" not in net.ip("s", "-br link"), "the device is gone")
