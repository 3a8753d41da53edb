"""The guard in namespaces: client c, director d (VIP on lo, forwarding on), real server s."""

from __future__ import annotations

import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hostnet import HostNet
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6
from scapy.layers.l2 import Ether

from pylvs.host.guard import TABLE, Guard, GuardError, available
from pylvs.host.links import read_links
from pylvs.host.netlink import RouteSocket
from pylvs.host.nftables import Batch, Nftables

pytestmark = pytest.mark.root

QUIET = 0.4  # seconds without an answer that count as silence; an answer over veth takes well under a millisecond
PATIENCE = 10.0  # seconds for an answer that must come, on a machine that is busy with something else
ETH_P_ALL = 3
CIP, DIP, RIP, VIP = ({4: a, 6: b} for a, b in (
    ("10.0.0.2", "fd00::2"), ("10.0.0.1", "fd00::1"), ("10.1.0.11", "fd01::11"), ("10.9.9.9", "fd09::9"),
))  # fmt: skip
FAMILIES = pytest.mark.parametrize("v", [4, 6])


@pytest.fixture(scope="module")
def net() -> Iterator[HostNet]:
    with HostNet("c", "d", "s") as net:
        net.veth("d", "eth0", "c", "c0")
        net.veth("d", "eth1", "s", "s0")
        net.ip("c", f"addr add {CIP[4]}/24 dev c0; addr add {CIP[6]}/64 dev c0")
        net.ip("c", f"route add default via {DIP[4]}; -6 route add default via {DIP[6]}")
        net.ip("d", f"addr add {DIP[4]}/24 dev eth0; addr add {DIP[6]}/64 dev eth0")
        net.ip("d", "addr add 10.1.0.1/24 dev eth1; addr add fd01::1/64 dev eth1")
        net.ip("d", f"addr add {VIP[4]}/32 dev lo; addr add {VIP[6]}/128 dev lo")
        net.ip("s", f"addr add {RIP[4]}/24 dev s0; addr add {RIP[6]}/64 dev s0")
        net.ip("s", "route add default via 10.1.0.1; -6 route add default via fd01::1")
        net.sysctl("d", "net/ipv4/ip_forward", 1)
        net.sysctl("d", "net/ipv6/conf/all/forwarding", 1)
        for name in "ds":
            net.sysctl(name, "net/ipv4/icmp_ratelimit", 0)
            net.sysctl(name, "net/ipv6/icmp/ratelimit", 0)
        yield net


@pytest.fixture(params=["fib", "sets"])
def guard(net: HostNet, request: pytest.FixtureRequest) -> Iterator[Guard]:
    """In both forms: the kernel knows what is local, or is told by a set."""
    with net.inside("d"):
        guard = Guard(["eth0", "eth1"], fib=request.param == "fib")
        netlink = RouteSocket()
        for _ in range(2):  # the second replaces the first
            guard.set_local(read_links(netlink))
        netlink.close()
    yield guard
    guard.close()


def inet(v: int) -> socket.AddressFamily:
    return socket.AF_INET if v == 4 else socket.AF_INET6


@contextmanager
def listening(net: HostNet, name: str, v: int, address: str, port: int) -> Iterator[None]:
    """A TCP server that accepts and closes."""
    with net.inside(name):
        server = socket.create_server((address, port), family=inet(v))

    def serve() -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


def tcp(net: HostNet, name: str, v: int, address: str, port: int, wanted: str) -> None:
    """A connection attempt must end open, refused or silent."""
    found = "open"
    with net.inside(name), socket.socket(inet(v)) as client:
        client.settimeout(QUIET if wanted == "silent" else PATIENCE)
        try:
            client.connect((address, port))
        except TimeoutError:
            found = "silent"
        except ConnectionRefusedError:
            found = "refused"
    assert found == wanted, f"TCP from {name} to {address} port {port}"


def udp(net: HostNet, name: str, v: int, address: str, port: int, wanted: str) -> None:
    """A datagram must be refused (an ICMP error came) or meet silence."""
    found = "answered"
    with net.inside(name), socket.socket(inet(v), socket.SOCK_DGRAM) as client:
        client.settimeout(QUIET if wanted == "silent" else PATIENCE)
        client.connect((address, port))
        client.send(b"?")
        try:
            client.recv(100)
        except TimeoutError:
            found = "silent"
        except ConnectionRefusedError:
            found = "refused"
    assert found == wanted, f"UDP from {name} to {address} port {port}"


def pings(net: HostNet, name: str, v: int, address: str) -> bool:
    """Whether an echo request is answered; made of a raw socket, because a machine may be without ping."""
    protocol = socket.IPPROTO_ICMP if v == 4 else socket.IPPROTO_ICMPV6
    request, reply = (8, 0) if v == 4 else (128, 129)
    with net.inside(name), socket.socket(inet(v), socket.SOCK_RAW, protocol) as raw:
        raw.settimeout(PATIENCE)
        raw.connect((address, 0))
        # the kernel fills in the checksum of ICMPv6 on a raw socket, not that of ICMP
        raw.send(struct.pack(">BBHHH", request, 0, 0xF7F8 if v == 4 else 0, 7, 0))
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                data = raw.recv(2000)
            except TimeoutError:
                return False
            if data[20 if v == 4 else 0] == reply:
                return True
    return False


class Tap:
    """Frames that a packet socket sees, as pylvs' own does."""

    def __init__(self, net: HostNet, name: str, link: str) -> None:
        with net.inside(name):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
            self.socket.bind((link, ETH_P_ALL))
        self.socket.setblocking(False)

    def packets(self) -> list[Ether]:
        found = []
        while True:
            try:
                found.append(Ether(self.socket.recv(70000)))
            except BlockingIOError:
                return found

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def errors_received(net: HostNet, v: int) -> int:
    """How many ICMP destination unreachable messages the director's own stack has taken."""
    with net.inside("d"):
        if v == 6:
            lines = Path("/proc/thread-self/net/snmp6").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("Icmp6InDestUnreachs"))
        lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
        names, values = [line.split() for line in lines if line.startswith("Icmp:")]
        return int(values[names.index("InDestUnreachs")])


# ------------------------------------------------------------------------------------------------- what it keeps


@FAMILIES
def test_a_virtual_service_is_ours_and_everything_else_the_hosts(net: HostNet, guard: Guard, v: int) -> None:
    tcp(net, "c", v, VIP[v], 80, "refused")  # without the guard's sets the host answers
    guard.update({("tcp", VIP[v], 80), ("udp", VIP[v], 53)}, set())
    with Tap(net, "d", "eth0") as tap, listening(net, "d", v, VIP[v], 22):
        tcp(net, "c", v, VIP[v], 80, "silent")
        udp(net, "c", v, VIP[v], 53, "silent")
        seen = tap.packets()
        assert any(TCP in p and p[TCP].dport == 80 and p[TCP].flags == "S" for p in seen), "our socket saw the SYN"
        assert any(UDP in p and p[UDP].dport == 53 for p in seen)
        assert not any(TCP in p and p[TCP].sport == 80 for p in seen), "and no RST was sent"
        assert not any(ICMP in p or ICMPv6DestUnreach in p for p in seen)
        assert pings(net, "c", v, VIP[v])
        tcp(net, "c", v, VIP[v], 22, "open")
        tcp(net, "c", v, VIP[v], 81, "refused")
        udp(net, "c", v, VIP[v], 54, "refused")
        tcp(net, "c", v, DIP[v], 80, "refused")  # the same port of another address
        udp(net, "c", v, VIP[v], 80, "refused")  # the same port of another protocol
    guard.update(set(), set())
    tcp(net, "c", v, VIP[v], 80, "refused")  # a removed service is the host's again


@FAMILIES
def test_a_service_of_all_ports(net: HostNet, guard: Guard, v: int) -> None:
    guard.update({("tcp", VIP[v], 0)}, set())
    tcp(net, "c", v, VIP[v], 80, "silent")
    tcp(net, "c", v, VIP[v], 65000, "silent")
    udp(net, "c", v, VIP[v], 80, "refused")
    assert pings(net, "c", v, VIP[v])


@FAMILIES
@pytest.mark.parametrize("port", [8080, 0])
def test_nat_replies_are_ours_but_the_hosts_own_connections_live(net: HostNet, guard: Guard, v: int, port: int) -> None:
    with listening(net, "s", v, RIP[v], 8080), listening(net, "s", v, RIP[v], 9090):
        tcp(net, "c", v, RIP[v], 8080, "open")  # the host forwards
        guard.update(set(), {("tcp", RIP[v], port), ("udp", RIP[v], 5353)})
        with Tap(net, "d", "eth1") as tap, Tap(net, "c", "c0") as client:
            tcp(net, "c", v, RIP[v], 8080, "silent")
            assert any(TCP in p and p[TCP].sport == 8080 and p[TCP].flags == "SA" for p in tap.packets())
            # connections of earlier tests may still be closing, so only this one's answer is looked for
            assert not [p for p in client.packets() if TCP in p and p[TCP].sport == 8080 and p[TCP].flags == "SA"]
        tcp(net, "d", v, RIP[v], 8080, "open")  # a health check of the host
        tcp(net, "d", v, RIP[v], 9090, "open")
        if port:
            tcp(net, "c", v, RIP[v], 9090, "open")  # the host still routes what is not ours
        assert pings(net, "c", v, RIP[v])
        assert pings(net, "d", v, RIP[v])


@FAMILIES
def test_icmp_errors_about_nat_replies(net: HostNet, guard: Guard, v: int) -> None:
    udp(net, "c", v, RIP[v], 5353, "refused")  # the real server's error is forwarded by the host
    guard.update(set(), {("udp", RIP[v], 5353)})
    udp(net, "c", v, RIP[v], 5353, "silent")
    udp(net, "c", v, RIP[v], 5354, "refused")
    udp(net, "d", v, RIP[v], 5353, "refused")  # an error for the host itself
    guard.update(set(), {("udp", RIP[v], 0)})
    udp(net, "c", v, RIP[v], 5354, "silent")


@FAMILIES
def test_icmp_errors_about_what_a_service_sent(net: HostNet, guard: Guard, v: int) -> None:
    with net.inside("d"):
        gateway = next(line.split()[1] for line in net.ip("d", "link show eth0").splitlines() if "link/ether" in line)
    inner = (IP(src=VIP[4], dst=CIP[4]) if v == 4 else IPv6(src=VIP[6], dst=CIP[6])) / TCP(sport=80, dport=4000)
    outer = (
        IP(src=CIP[4], dst=VIP[4]) / ICMP(type=3, code=3)
        if v == 4
        else IPv6(src=CIP[6], dst=VIP[6]) / ICMPv6DestUnreach(code=4)
    )
    other = inner.copy()
    other[TCP].sport = 81
    with net.inside("c"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("c0", 0))

        def send(about: IP, taken: int) -> None:
            before = errors_received(net, v)
            raw.send(bytes(Ether(dst=gateway) / outer / about))
            deadline = time.monotonic() + (PATIENCE if taken else QUIET)
            while (found := errors_received(net, v) - before) != taken or not taken:
                if time.monotonic() > deadline:
                    break
            assert found == taken

        send(inner, 1)
        guard.update({("tcp", VIP[v], 80)}, set())
        send(inner, 0)
        send(other, 1)
        guard.update({("tcp", VIP[v], 0)}, set())
        send(other, 0)


def test_broadcast_and_multicast_of_a_real_server_reach_the_host(net: HostNet, guard: Guard) -> None:
    guard.update(set(), {("udp", RIP[4], 0)})
    with net.inside("d"):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("", 6700))
        server.settimeout(PATIENCE)
    with net.inside("s"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(b"to the subnet", ("10.1.0.255", 6700))
        client.sendto(b"to all", ("255.255.255.255", 6700))
    with server:
        assert {server.recv(100), server.recv(100)} == {b"to the subnet", b"to all"}


# ------------------------------------------------------------------------------------------------- how it lives

OWNER = """
import sys
from pylvs.host.guard import Guard
guard = Guard(["eth0"])
guard.update({("tcp", "10.9.9.9", 80)}, set())
print("ready", flush=True)
sys.stdin.read()
"""


def tables(net: HostNet) -> dict[str, int]:
    with net.inside("d"):
        nftables = Nftables()
    try:
        return nftables.tables()
    finally:
        nftables.close()


def test_the_kernel_removes_it_when_the_owner_is_killed(net: HostNet) -> None:
    process = net.python("d", OWNER)
    assert process.first == "ready"  # type: ignore[attr-defined]
    tcp(net, "c", 4, VIP[4], 80, "silent")
    assert TABLE in tables(net)
    with net.inside("d"), pytest.raises(GuardError, match="stop it first"):
        Guard(["eth0"])
    tcp(net, "c", 4, VIP[4], 80, "silent")  # the attempt did the owner no harm
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert tables(net) == {}
    tcp(net, "c", 4, VIP[4], 80, "refused")


def test_a_table_of_a_living_owner_is_not_touched_and_a_stale_one_is_replaced(net: HostNet) -> None:
    batch = Batch(TABLE)
    batch.add_table(owned=True)
    with net.inside("d"):
        other = Nftables()
        other.commit(batch)
        with pytest.raises(GuardError, match="netlink port"):
            Guard(["eth0"])
        other.close()
        batch = Batch(TABLE)
        batch.add_table(owned=False)
        batch.add_chain("ip4")
        batch.add_ingress("from_eth0", "eth0", -400)
        stale = Nftables()
        stale.commit(batch)
        stale.close()
    assert tables(net) == {TABLE: 0}
    with net.inside("d"):
        guard = Guard(["eth0"])
    assert tables(net)[TABLE] > 0
    guard.update({("tcp", VIP[4], 80)}, set())
    tcp(net, "c", 4, VIP[4], 80, "silent")
    guard.close()
    guard.close()
    assert tables(net) == {}


def test_interfaces_come_and_go(net: HostNet) -> None:
    with net.inside("d"):
        guard = Guard(["eth1"])
        guard.update({("tcp", VIP[4], 80), ("tcp", "10.5.0.1", 80)}, set())
        tcp(net, "c", 4, VIP[4], 80, "refused")
        guard.set_interfaces(["eth0", "eth1"])
        tcp(net, "c", 4, VIP[4], 80, "silent")
        with pytest.raises(GuardError, match="eth7 does not exist"):
            guard.set_interfaces(["eth7"])
        tcp(net, "c", 4, VIP[4], 80, "silent")
        guard.set_interfaces(["eth1"])
        tcp(net, "c", 4, VIP[4], 80, "refused")
        for _ in range(2):  # deleted and made again under the same name
            net.veth("d", "eth5", "c", "c5")
            net.ip("d", "addr add 10.5.0.1/24 dev eth5")
            net.ip("c", "addr add 10.5.0.2/24 dev c5")
            guard.set_interfaces(["eth1", "eth5"])
            tcp(net, "c", 4, "10.5.0.1", 80, "silent")
            net.ip("d", "link del eth5")
        guard.set_interfaces(["eth1"])
        guard.set_interfaces([])
        guard.close()


def test_many_services_are_one_transaction(net: HostNet, guard: Guard) -> None:
    services = {("tcp", f"10.{n >> 14}.{n >> 6 & 255}.{n & 63}", 80) for n in range(20_000)}
    replies = {("udp", f"fd02::{n:x}", 53) for n in range(1, 20_001)}
    began = time.monotonic()
    guard.update(services | {("tcp", VIP[4], 80)}, replies)
    tcp(net, "c", 4, VIP[4], 80, "silent")
    guard.update(services, replies)
    tcp(net, "c", 4, VIP[4], 80, "refused")
    guard.update(set(), set())
    assert time.monotonic() - began < 20


def test_available_says_why_not(net: HostNet) -> None:
    with net.inside("d"):
        assert available() is None
        assert tables(net) == {}
    code = "import os; os.setuid(65534); from pylvs.host.guard import available, Guard\n"
    code += "print(available(), flush=True)"
    process = net.python("d", code.replace("os.setuid", "import pylvs.host.guard; os.setuid"))
    assert "CAP_NET_ADMIN" in process.first  # type: ignore[attr-defined]
