"""Beside the host's own stack: whatever the host has and does, the client gets one answer, from pylvs or from the host."""

from __future__ import annotations

import itertools
import socket
import struct
from collections import Counter
from collections.abc import Iterator

import pytest
from hostnet import HostNet
from livedirector import (
    CIP,
    DIP,
    FULL,
    INET,
    RIP,
    VIP,
    Daemon,
    Echo,
    Tap,
    connect,
    exchange,
    mac,
    refused,
    three,
    until,
    works,
)
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6ND_NA, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

pytestmark = pytest.mark.root

PORT, CLOSED, HOST_PORT = 80, 81, 22
ports = itertools.count(20000)


@pytest.fixture(scope="module")
def net() -> Iterator[HostNet]:
    with three(second_link=True) as net:
        for v in (4, 6):  # a real server for DR has the VIP
            net.ip("s", f"addr add {VIP[v]}/{FULL[v]} dev lo")
        with Echo(net, "s", 80, 8080), Echo(net, "d", HOST_PORT):
            yield net


@pytest.fixture(scope="module")
def daemon(net: HostNet) -> Iterator[Daemon]:
    daemon = Daemon(net, "d")
    yield daemon
    daemon.accounted()
    assert daemon.stop() == 0, daemon.said
    assert "Traceback" not in daemon.said


def place(net: HostNet, daemon: Daemon, v: int, where: str, forward: int) -> None:
    """Put the VIP of the director where the test wants it, and wait until the daemon knows."""
    daemon.admin("-C")
    for link in ("lo", "d0"):
        net.ip("d", f"addr del {VIP[v]}/{FULL[v]} dev {link}", check=False)
    net.sysctl("d", "net/ipv4/ip_forward", forward)
    net.sysctl("d", "net/ipv6/conf/all/forwarding", forward)
    if where != "nowhere":
        net.ip("d", f"addr add {VIP[v]}/{FULL[v]} dev {where}")
    daemon.follows(
        lambda status: status["forwarding"] == {"4": bool(forward), "6": bool(forward)}
        and (VIP[v] in status["local"]) == (where != "nowhere")
    )
    net.ip("c", "neigh flush dev c0")
    if v == 6:  # a host answers solicitations for addresses of the interface they arrive on only
        net.ip("c", f"-6 route del {VIP[6]}/128", check=False)
        if where == "lo":
            net.ip("c", f"-6 route add {VIP[6]}/128 via {DIP[6]}")


def serve(net: HostNet, daemon: Daemon, v: int, method: str) -> str:
    """A service with the real server, whose answers go back by the method's way; return ipvsadm's name of it."""
    name = f"[{VIP[v]}]:{PORT}" if v == 6 else f"{VIP[v]}:{PORT}"
    rip = f"[{RIP[v]}]" if v == 6 else RIP[v]
    daemon.admin(f"-A -t {name} -s rr", f"-a -t {name} -r {rip}:{8080 if method == 'nat' else PORT} -{method[0]}"
                 .replace("-n", "-m").replace("-d", "-g"))  # fmt: skip
    family = "-6 " if v == 6 else ""
    prefix = "fd00::/64" if v == 6 else "10.0.0.0/24"
    back = ("fd02::2" if v == 6 else "10.2.0.2") if method == "dr" else ("fd01::1" if v == 6 else "10.1.0.1")
    net.ip("s", f"{family}route replace {prefix} via {back}")
    return name


def ip(v: int, source: str, destination: str) -> Packet:
    return IP(src=source, dst=destination) if v == 4 else IPv6(src=source, dst=destination)


def echo_request(net: HostNet, v: int, destination: str, number: int) -> None:
    """One ping from the client, without a ping program."""
    protocol = socket.IPPROTO_ICMP if v == 4 else socket.IPPROTO_ICMPV6
    body = struct.pack(">BBHHH", 8 if v == 4 else 128, 0, 0, number, 1) + b"ping"
    if v == 4:
        total = sum(struct.unpack(">6H", body))
        body = body[:2] + struct.pack(">H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + body[4:]
    with net.inside("c"), socket.socket(INET[v], socket.SOCK_RAW, protocol) as raw:
        raw.sendto(body, (destination, 0))


def is_icmp_error(packet: Packet) -> bool:
    if packet.haslayer(ICMP):
        return packet[ICMP].type in (3, 4, 5, 11, 12)
    return packet.haslayer(IPv6) and packet[IPv6].nh == 58 and (bytes(packet[IPv6].payload)[:1] or b"\x80")[0] < 128


def is_redirect(packet: Packet) -> bool:
    if packet.haslayer(ICMP):
        return bool(packet[ICMP].type == 5)
    return packet.haslayer(IPv6) and packet[IPv6].nh == 58 and bytes(packet[IPv6].payload)[:1] == b"\x89"


def is_pong6(packet: Packet) -> bool:
    return bool(packet[IPv6].nh == 58 and bytes(packet[IPv6].payload)[:1] == b"\x81")


def answers(packets: list[Packet], v: int) -> Counter[str]:
    """What the client got, by kind; TCP by the client's port."""
    found: Counter[str] = Counter()
    network = IP if v == 4 else IPv6
    for packet in packets:
        if not packet.haslayer(network):
            continue
        source = packet[network].src
        if is_redirect(packet):
            found["redirect"] += 1
        elif is_icmp_error(packet):
            found["error"] += 1
        elif packet.haslayer(TCP):
            flags, port = packet[TCP].flags, packet[TCP].dport
            assert source in (VIP[v], DIP[v]), f"the client sees {packet.summary()}"
            if "R" in flags:
                found[f"rst {port}"] += 1
            elif "S" in flags:
                found[f"syn-ack {port}"] += 1
        elif packet[ICMP].type == 0 if packet.haslayer(ICMP) else v == 6 and is_pong6(packet):
            found["pong"] += 1
    return found


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("method", ["nat", "dr"])
@pytest.mark.parametrize("forward", [0, 1])
@pytest.mark.parametrize("where", ["lo", "d0", "nowhere"])
def test_exactly_one_answer(net: HostNet, daemon: Daemon, where: str, forward: int, method: str, v: int) -> None:
    place(net, daemon, v, where, forward)
    serve(net, daemon, v, method)
    with Tap(net, "c", "c0", "c1") as tap:
        wanted: Counter[str] = Counter()
        for number in range(6):
            with connect(net, "c", VIP[v], PORT) as sock:
                assert exchange(sock, b"x" * 3000) == b"x" * 3000
                wanted[f"syn-ack {sock.getsockname()[1]}"] = 1
            assert refused_port(net, v, wanted), f"the closed port is refused, attempt {number}"
        echo_request(net, v, VIP[v], 77)
        wanted["pong"] = 1
        # a segment of no connection
        stray = next(ports)
        tap.send(
            Ether(src=mac(net, "c", "c0"), dst=mac(net, "d", "d0"))
            / ip(v, CIP[v], VIP[v])
            / TCP(sport=stray, dport=PORT, flags="A", seq=1, ack=7)
        )
        wanted[f"rst {stray}"] = 1
        # a datagram to a closed port
        tap.send(
            Ether(src=mac(net, "c", "c0"), dst=mac(net, "d", "d0"))
            / ip(v, CIP[v], VIP[v])
            / UDP(sport=stray, dport=CLOSED)
            / b"anybody?"
        )
        wanted["error"] = 1
        packets = tap.packets()
        errors = [packet for packet in packets if is_icmp_error(packet)]
        assert answers(packets, v) == wanted, [packet.summary() for packet in packets]
        if v == 4:
            assert (errors[0][ICMP].type, errors[0][ICMP].code) == (3, 3), "a port unreachable"
        else:
            assert errors[0].haslayer(ICMPv6DestUnreach) and errors[0][ICMPv6DestUnreach].code == 4
        resets = [packet for packet in packets if packet.haslayer(TCP) and packet[TCP].dport == stray]
        assert resets[0][TCP].seq == 7, "a reset of the sequence that the segment acknowledged"


def refused_port(net: HostNet, v: int, wanted: Counter[str]) -> bool:
    """A connection to a port without service is refused; its reset is expected."""
    with net.inside("c"), socket.socket(INET[v]) as sock:
        sock.bind(("", 0))
        sock.settimeout(10)
        try:
            wanted[f"rst {sock.getsockname()[1]}"] = 1
            sock.connect((VIP[v], CLOSED))
        except ConnectionRefusedError:
            return True
    return False


@pytest.mark.parametrize("v", [4, 6])
@pytest.mark.parametrize("where", ["lo", "nowhere"])
def test_the_host_keeps_what_is_its_own(net: HostNet, daemon: Daemon, where: str, v: int) -> None:
    place(net, daemon, v, where, 1)
    name = serve(net, daemon, v, "nat")
    assert works(net, "c", DIP[v], HOST_PORT, 10), "the host's server on its own address"
    if where == "lo":
        assert works(net, "c", VIP[v], HOST_PORT, 10), "the host's server on another port of a VIP that it has"
    else:
        assert refused(net, "c", VIP[v], HOST_PORT), "a VIP that is not the host's has none of its servers"
    assert works(net, "d", RIP[v], 8080, 10), "a health check of the director's own"
    assert works(net, "d", RIP[v], 80, 10)
    with Tap(net, "c", "c0", "c1") as tap:
        with connect(net, "c", RIP[v], 8080) as sock:
            assert exchange(sock) == b"hello", "the real server itself, through the director as a router"
            port = sock.getsockname()[1]
        packets = [packet for packet in tap.packets() if packet.haslayer(TCP) and packet[TCP].dport == port]
    assert sum("S" in packet[TCP].flags for packet in packets) == 1, [packet.summary() for packet in packets]
    assert not any("R" in packet[TCP].flags for packet in packets)
    assert len({(packet[TCP].seq, len(packet[TCP].payload), str(packet[TCP].flags)) for packet in packets}) == len(packets)
    if where == "lo" and v == 4:
        daemon.admin(f"-D -t {name}")
        until(lambda: works(net, "c", RIP[v], 8080, 10), "and without a service as well")


@pytest.mark.parametrize("forward", [0, 1])
def test_arp_for_a_vip_that_nobody_has(net: HostNet, daemon: Daemon, forward: int) -> None:
    place(net, daemon, 4, "nowhere", forward)
    with Tap(net, "c", "c0") as tap:
        serve(net, daemon, 4, "nat")
        heard = [packet for packet in tap.packets() if packet.haslayer(ARP) and packet[ARP].psrc == VIP[4]]
        assert {packet[ARP].op for packet in heard} == {1, 2}, "announced when the service is added"
        tap.send(
            Ether(src=mac(net, "c", "c0"), dst="ff:ff:ff:ff:ff:ff")
            / ARP(op=1, hwsrc=mac(net, "c", "c0"), psrc=CIP[4], pdst=VIP[4])
        )
        replies = [packet for packet in tap.packets() if packet.haslayer(ARP) and packet[ARP].op == 2]
        assert [packet[ARP].hwsrc for packet in replies] == [mac(net, "d", "d0")]


@pytest.mark.parametrize("forward", [0, 1])
def test_neighbour_discovery_for_a_vip_that_nobody_has(net: HostNet, daemon: Daemon, forward: int) -> None:
    place(net, daemon, 6, "nowhere", forward)
    with Tap(net, "c", "c0") as tap:
        serve(net, daemon, 6, "nat")
        heard = [packet for packet in tap.packets() if packet.haslayer(ICMPv6ND_NA)]
        assert [packet[ICMPv6ND_NA].tgt for packet in heard] == [VIP[6]], "announced when the service is added"
        assert works(net, "c", VIP[6], PORT, 10)
        replies = [packet for packet in tap.packets() if packet.haslayer(ICMPv6ND_NA) and packet[ICMPv6ND_NA].S]
        assert [packet[ICMPv6ND_NA].tgt for packet in replies].count(VIP[6]) == 1
        assert not any(packet.haslayer(ICMPv6EchoRequest) for packet in replies)


def test_taken_away_services_leave_the_host_as_it_was(net: HostNet, daemon: Daemon) -> None:
    place(net, daemon, 4, "lo", 1)
    name = serve(net, daemon, 4, "nat")
    assert works(net, "c", VIP[4], PORT, 10)
    daemon.admin(f"-D -t {name}")
    assert refused(net, "c", VIP[4], PORT), "what is no service any more"


def test_connections_outlive_a_reload_of_the_rules(net: HostNet, daemon: Daemon) -> None:
    place(net, daemon, 4, "lo", 1)
    name = serve(net, daemon, 4, "nat")
    with connect(net, "c", VIP[4], PORT) as sock, Tap(net, "c", "c0") as tap:
        assert exchange(sock) == b"hello"
        daemon.admin("-C")
        sock.sendall(b"lost, and sent again")
        assert not [packet for packet in tap.packets() if packet.haslayer(TCP) and "R" in packet[TCP].flags]
        daemon.admin(f"-A -t {name} -s rr", f"-a -t {name} -r {RIP[4]}:8080 -m")
        found = b""
        while len(found) < 20:
            found += sock.recv(100)
        assert found == b"lost, and sent again"


def test_a_vip_moves_between_the_host_and_nobody(net: HostNet, daemon: Daemon) -> None:
    place(net, daemon, 4, "nowhere", 1)
    serve(net, daemon, 4, "nat")
    for _ in range(3):
        net.ip("d", f"addr add {VIP[4]}/32 dev lo")
        daemon.follows(lambda status: VIP[4] in status["local"])
        assert works(net, "c", VIP[4], PORT, 10) and works(net, "c", VIP[4], HOST_PORT, 10)
        net.ip("d", f"addr del {VIP[4]}/32 dev lo")
        daemon.follows(lambda status: VIP[4] not in status["local"])
        assert works(net, "c", VIP[4], PORT, 10) and refused(net, "c", VIP[4], HOST_PORT)


def test_vlans_have_their_own_guard(net: HostNet, daemon: Daemon) -> None:
    """Frames of a VLAN pass the guard of the interface that carries it, and are met at the VLAN's own."""
    if net.run("c", "ip", "link", "add", "link", "c0", "name", "c0.7", "type", "vlan", "id", "7").returncode:
        pytest.skip("this kernel has no VLAN interfaces")
    net.ip("c", "link del c0.7")
    for name, link, host in (("c", "c0", "10.7.0.2"), ("d", "d0", "10.7.0.1")):
        net.ip(name, f"link add link {link} name {link}.7 type vlan id 7; addr add {host}/24 dev {link}.7")
        net.ip(name, f"link set {link}.7 up")
    try:
        place(net, daemon, 4, "lo", 1)
        daemon.follows(lambda status: "d0.7" in status["interfaces"])
        serve(net, daemon, 4, "nat")
        net.ip("s", "route add 10.7.0.0/24 via 10.1.0.1")
        net.ip("c", f"route add {VIP[4]}/32 via 10.7.0.1 src 10.7.0.2")
        with Tap(net, "c", "c0.7") as tap:
            for _ in range(3):
                assert works(net, "c", VIP[4], PORT, 10)
            packets = [packet[TCP] for packet in tap.packets() if packet.haslayer(TCP)]
        assert sum("S" in packet.flags for packet in packets) == 3 and not any("R" in packet.flags for packet in packets)
    finally:
        net.ip("c", "link del c0.7")
        net.ip("d", "link del d0.7")
