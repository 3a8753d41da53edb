"""What surrounds the daemon goes wrong and comes right: next hops, foreign hosts, interfaces, frames that lie."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hostnet import HostNet
from livedirector import (
    CIP,
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
from pyroute2 import IPRoute
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption
from scapy.layers.inet6 import ICMPv6DestUnreach, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

from pylvs.host import arp

pytestmark = pytest.mark.root

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_VNET_HDR = 1, 15
PACKET_MR_PROMISC = 1


@pytest.fixture(scope="module")
def net() -> Iterator[HostNet]:
    with three() as net, Echo(net, "s", 8080):
        net.sysctl("d", "net/ipv4/ip_forward", 1)
        net.sysctl("d", "net/ipv6/conf/all/forwarding", 1)
        for key in ("base_reachable_time_ms", "retrans_time_ms"):
            net.sysctl("d", f"net/ipv4/neigh/d1/{key}", 300)
        net.sysctl("d", "net/ipv4/neigh/d1/delay_first_probe_time", 1)
        yield net


@pytest.fixture(scope="module")
def running(net: HostNet) -> Iterator[Daemon]:
    daemon = Daemon(net, "d")
    yield daemon
    daemon.accounted()
    assert daemon.stop() == 0, daemon.said
    assert "Traceback" not in daemon.said, daemon.said


@pytest.fixture
def daemon(running: Daemon) -> Daemon:
    """With one service by NAT for each family."""
    running.admin("-C")
    for v in (4, 6):
        vip, rip = (f"[{VIP[v]}]", f"[{RIP[v]}]") if v == 6 else (VIP[v], RIP[v])
        running.admin(f"-A -t {vip}:80 -s rr", f"-a -t {vip}:80 -r {rip}:8080 -m")
    return running


def works_again(net: HostNet, v: int = 4) -> None:
    until(lambda: works(net, "c", VIP[v], 80), f"the service of IPv{v} works again", 30)


# --------------------------------------------------------------------------------------------------------- neighbours


class Claimant:
    """A foreign host that answers for an address on the director's link."""

    def __init__(self, net: HostNet, vip: str) -> None:
        self._vip, self._mac = vip, "02:00:00:00:99:99"
        self._stop = threading.Event()
        with net.inside("c"):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._sock.bind(("c0", 3))
            # promiscuous: solicitations go to a group that the client does not listen to
            member = struct.pack("=iHH8s", socket.if_nametoindex("c0"), PACKET_MR_PROMISC, 0, b"")
            self._sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
        self._sock.settimeout(0.1)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                frame = self._sock.recv(2048)
            except TimeoutError:
                continue
            asked = arp.parse_arp(frame)
            if asked and asked.target == self._vip and asked.operation == arp.REQUEST:
                answer = arp.Arp(arp.REPLY, self._mac, self._vip, asked.sender_mac, asked.sender)
                self._sock.send(arp.arp(answer, destination=asked.sender_mac))
            solicited = arp.parse_nd(frame)
            if solicited and solicited.target == self._vip and solicited.type == arp.SOLICITATION:
                nd = arp.Nd(arp.ADVERTISEMENT, self._vip, arp.ALL_NODES, self._vip, self._mac, arp.OVERRIDE)
                self._sock.send(arp.nd(nd, source=self._mac))

    def __enter__(self) -> Claimant:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._sock.close()


@pytest.mark.parametrize("vip", ["10.0.0.77", "fd00::77"])
def test_a_vip_that_another_host_has(net: HostNet, daemon: Daemon, vip: str) -> None:
    before = daemon.admin("-L -n")
    name = f"[{vip}]:80" if ":" in vip else f"{vip}:80"
    with Claimant(net, vip):
        answer = daemon.admin(f"-A -t {name} -s rr", check=False)[0]
        assert answer["returncode"] != 0
        assert vip in answer["stderr"] and "02:00:00:00:99:99" in answer["stderr"], answer["stderr"]
        assert daemon.admin("-L -n") == before, "nothing is half applied"
        with Tap(net, "c", "c0") as tap:
            assert not [each for each in tap.frames() if arp.owner(each, vip) == mac(net, "d", "d0")], "not announced"
    daemon.admin(f"-A -t {name} -s rr", f"-D -t {name}")


def test_a_real_server_that_nobody_is(net: HostNet, daemon: Daemon) -> None:
    """Its clients hear nothing false, others are not held up, and it serves as soon as it is there."""
    daemon.admin(f"-A -t {VIP[4]}:81 -s rr", f"-a -t {VIP[4]}:81 -r 10.1.0.99:8080 -m")
    before = daemon.counters()["drops"].get("no_neighbour", 0)
    with Tap(net, "c", "c0") as tap:
        assert not works(net, "c", VIP[4], 81, 2.5)
        assert works(net, "c", VIP[4], 80, 5), "the other service"
        heard = [packet for packet in tap.packets() if packet.haslayer(TCP) and packet[TCP].sport == 81]
        heard += [packet for packet in tap.packets() if packet.haslayer(ICMP)]
        assert heard == [], [packet.summary() for packet in heard]
    until(lambda: daemon.counters()["drops"].get("no_neighbour", 0) > before, "the frames are counted")
    net.ip("s", "addr add 10.1.0.99/24 dev s0")
    try:
        until(lambda: works(net, "c", VIP[4], 81), "it has come", 30)
    finally:
        net.ip("s", "addr del 10.1.0.99/24 dev s0")


def test_a_real_server_whose_mac_changes(net: HostNet, daemon: Daemon) -> None:
    assert works(net, "c", VIP[4], 80, 5)
    before = mac(net, "s", "s0")
    net.ip("s", "link set s0 address 02:00:00:00:11:22")
    try:
        works_again(net)
    finally:
        net.ip("s", f"link set s0 address {before}")
    works_again(net)


# --------------------------------------------------------------------------------------------------------- interfaces


@pytest.mark.parametrize("link", ["d0", "d1"])
def test_an_interface_goes_down_and_up(net: HostNet, daemon: Daemon, link: str) -> None:
    with connect(net, "c", VIP[4], 80) as sock, Tap(net, "c", "c0") as tap:
        assert exchange(sock) == b"hello"
        net.ip("d", f"link set {link} down")
        assert not works(net, "c", VIP[4], 80, 0.5)
        list(tap.frames())
        net.ip("d", f"link set {link} up")
        net.ip("d", "addr add fd00::1/64 dev d0; addr add fd01::1/64 dev d1", check=False)  # IPv6 goes with the link
        works_again(net)
        if link == "d0":
            owners = {arp.owner(frame, VIP[4]) for frame in tap.frames()}
            assert mac(net, "d", "d0") in owners, "announced again"
        assert exchange(sock) == b"hello", "the connection goes on"
    works_again(net, 6)
    assert daemon.ask("GET", "/v1/status")["guard"]


@pytest.mark.parametrize("link", ["d0", "d1"])
def test_an_interface_is_deleted_and_made_anew(net: HostNet, daemon: Daemon, link: str) -> None:
    index = daemon.ask("GET", "/v1/status")["interfaces"][link]["index"]
    net.ip("d", f"link del {link}")
    until(lambda: link not in daemon.ask("GET", "/v1/status")["interfaces"], "the daemon lets go of it")
    if link == "d0":
        net.veth("c", "c0", "d", "d0")
        net.ip("c", "addr add 10.0.0.2/24 dev c0; addr add fd00::2/64 dev c0")
        net.ip("d", "addr add 10.0.0.1/24 dev d0; addr add fd00::1/64 dev d0")
        net.ip("c", "route add default via 10.0.0.1; -6 route add default via fd00::1")
    else:
        net.veth("s", "s0", "d", "d1")
        net.ip("s", "addr add 10.1.0.11/24 dev s0; addr add fd01::11/64 dev s0")
        net.ip("d", "addr add 10.1.0.1/24 dev d1; addr add fd01::1/64 dev d1")
        net.ip("s", "route add default via 10.1.0.1; -6 route add default via fd01::1")
    works_again(net)
    works_again(net, 6)
    assert daemon.ask("GET", "/v1/status")["interfaces"][link]["index"] != index
    with Tap(net, "c", "c0") as tap:
        assert works(net, "c", VIP[4], 80, 5)
        seen = [packet[TCP].flags for packet in tap.packets() if packet.haslayer(TCP)]
    assert sum("S" in flags for flags in seen) == 1 and not any("R" in flags for flags in seen), "the guard stands again"


@pytest.mark.parametrize("link", ["d0", "d1"])
def test_an_interface_leaves_and_comes_back_before_anybody_looks(net: HostNet, daemon: Daemon, link: str) -> None:
    """With the same name and index, so that the host looks as before; the sockets are at nothing all the same."""
    prefix = "10.0.0.1/24" if link == "d0" else "10.1.0.1/24"
    with net.inside("c"), IPRoute() as there, open("/proc/thread-self/ns/net") as away, net.inside("d"), IPRoute() as here:
        with open("/proc/thread-self/ns/net") as home:
            index = here.link_lookup(ifname=link)[0]
            here.link("set", index=index, net_ns_fd=away.fileno())
            there.link("set", index=there.link_lookup(ifname=link)[0], net_ns_fd=home.fileno())
            here.link("set", index=here.link_lookup(ifname=link)[0], state="up")
    net.ip("d", f"addr add {prefix} dev {link}")
    net.ip("d", "addr add fd00::1/64 dev d0; addr add fd01::1/64 dev d1", check=False)
    works_again(net)
    works_again(net, 6)


def test_the_vip_s_link_gets_another_mac(net: HostNet, daemon: Daemon) -> None:
    before = mac(net, "d", "d0")
    with Tap(net, "c", "c0") as tap:
        net.ip("d", "link set d0 address 02:00:00:00:33:44")
        try:
            heard: set[str] = set()
            until(lambda: heard.update(arp.owner(frame, VIP[4]) for frame in tap.frames(0.01))
                  or "02:00:00:00:33:44" in heard, "announced with the new MAC")  # fmt: skip
            works_again(net)
        finally:
            net.ip("d", f"link set d0 address {before}")
    works_again(net)


def test_an_interface_that_is_renamed(net: HostNet, daemon: Daemon) -> None:
    for old, new in (("d1", "uplink"), ("uplink", "d1")):
        net.ip("d", f"link set {old} down; link set {old} name {new}; link set {new} up")
        net.ip("d", f"addr add fd01::1/64 dev {new}", check=False)
        works_again(net)
        until(lambda new=new: new in daemon.ask("GET", "/v1/status")["interfaces"], "known by its new name")  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------------------- frames


def valid(net: HostNet) -> list[bytes]:
    """One frame of each kind that the data plane takes apart."""
    ether = Ether(src=mac(net, "c", "c0"), dst=mac(net, "d", "d0"))
    four, six = IP(src=CIP[4], dst=VIP[4]), IPv6(src=CIP[6], dst=VIP[6])
    syn = TCP(sport=1234, dport=80, flags="S")
    inner = IP(src=VIP[4], dst=CIP[4]) / TCP(sport=80, dport=1234)
    return [bytes(frame) for frame in (
        ether / four / syn, ether / six / syn, ether / four / UDP(sport=9, dport=80) / Raw(bytes(50)),
        ether / six / UDP(sport=9, dport=80) / Raw(bytes(50)), ether / four / ICMP() / b"ping", ether / four / ICMP(type=3, code=4) / inner,
        ether / six / ICMPv6DestUnreach() / IPv6(src=VIP[6], dst=CIP[6]) / syn, ether / Dot1Q(vlan=5) / four / syn,
        ether / IP(src=CIP[4], dst=VIP[4], options=[IPOption(b"\x07\x07\x04\0\0\0\0")]) / syn,
        ether / IP(src=CIP[4], dst=VIP[4], frag=100) / Raw(b"z" * 40), ether / IP(src=CIP[4], dst=VIP[4], flags="MF") / syn,
        ether / IPv6(src=CIP[6], dst=VIP[6]) / IPv6ExtHdrHopByHop() / syn,
        ether / IPv6(src=CIP[6], dst=VIP[6]) / IPv6ExtHdrFragment(offset=10) / Raw(b"z" * 40),
        ether / ARP(pdst=VIP[4], psrc=CIP[4]),
        arp.question(VIP[6], mac(net, "c", "c0")), ether / IP(src=CIP[4], dst=VIP[4], proto=4) / inner,
    )]  # fmt: skip


def lying(draw: random.Random, frame: bytes) -> bytes:
    """The frame with a few bytes behind the MACs changed: lengths, offsets, flags, anything."""
    data = bytearray(frame)
    for _ in range(draw.randrange(1, 5)):
        data[draw.randrange(12, len(data))] = draw.choice((0, 1, 4, 5, 0x0F, 0x40, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(data)


def blast(net: HostNet, send: Callable[[bytes], object]) -> int:
    """Everything that is wrong with a frame; return how many were sent."""
    draw = random.Random(2)
    kinds = valid(net)
    sent = 0
    for frame in kinds:
        padded = (frame + bytes(200))[:200]
        for length in range(14, 201):
            send(padded[:length])
            sent += 1
        for _ in range(300):
            send(lying(draw, frame))
            sent += 1
    own = kinds[0][:12]
    for length in range(2, 200):
        send(own + draw.randbytes(length))
        send(own + b"\x08\x00" + draw.randbytes(length))
        send(own + b"\x86\xdd" + draw.randbytes(length))
        sent += 3
    for kind in (b"\x08\x00\x45\x00", b"\x86\xdd\x60\x00"):
        send(own + kind + draw.randbytes(1400))
        sent += 1
    return sent


def seen(daemon: Daemon) -> int:
    """Frames that have reached the daemon or found its ring full."""
    interfaces = daemon.ask("GET", "/v1/status")["interfaces"].values()
    return int(daemon.counters()["received"]) + sum(each["lost"] for each in interfaces)


@pytest.mark.parametrize("side", ["c", "s"])
def test_frames_of_all_kinds(net: HostNet, daemon: Daemon, side: str) -> None:
    """The daemon lives, accounts for every frame, and connections of others do not notice."""
    pid = daemon.process.pid
    with connect(net, "c", VIP[4], 80) as four, connect(net, "c", VIP[6], 80) as six, Tap(net, side, f"{side}0") as tap:
        ours, theirs = (mac(net, *end) for end in ((("c", "c0"), ("d", "d0")) if side == "c" else (("s", "s0"), ("d", "d1"))))
        heads = bytes.fromhex(theirs.replace(":", "")), bytes.fromhex(ours.replace(":", ""))
        before = seen(daemon)
        count = oversized = 0

        def send(frame: bytes) -> None:
            nonlocal count, oversized
            count += 1
            if count % 50 == 0:
                time.sleep(0.002)  # the receive ring is small
            whole = (heads[0] + heads[1] + frame[12:]) if frame[:1] != b"\x33" else frame
            try:
                tap.send(whole)
            except OSError:  # the sender's own kernel refuses it
                oversized += 1

        sent = blast(net, send) - oversized
        assert exchange(four, b"still there") == b"still there"
        assert exchange(six, b"still there") == b"still there"
        until(lambda: seen(daemon) - before >= sent, "the frames have arrived")
    assert daemon.process.poll() is None and daemon.process.pid == pid
    daemon.accounted()
    works_again(net)
    works_again(net, 6)


def test_frames_larger_than_the_link(net: HostNet, daemon: Daemon) -> None:
    """Jumbo frames and super-frames whose offload metadata promises what is not there."""
    for end, link in (("c", "c0"), ("d", "d0")):
        net.ip(end, f"link set {link} mtu 9000")
    try:
        ether = Ether(src=mac(net, "c", "c0"), dst=mac(net, "d", "d0"))
        with Tap(net, "c", "c0") as tap:
            for size in (1461, 2000, 8900):
                for flags in ("", "DF"):
                    tap.send(ether / IP(src=CIP[4], dst=VIP[4], flags=flags) / TCP(sport=99, dport=80, flags="S") / Raw(bytes(size)))
                    tap.send(ether / IP(src=CIP[4], dst=VIP[4], flags=flags) / UDP(sport=99, dport=80) / Raw(bytes(size)))
        with net.inside("c"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as raw:
            raw.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            raw.bind(("c0", 0))
            draw = random.Random(3)
            frame = bytes(ether / IP(src=CIP[4], dst=VIP[4]) / TCP(sport=98, dport=80, flags="A") / Raw(bytes(6000)))
            for _ in range(500):
                header = bytes((draw.choice((0, 1)), draw.choice((0, 1, 3, 4, 5, 0x81)))) + draw.randbytes(8)
                if draw.random() < 0.7:
                    header = header[:2] + b"\x36\x00" + draw.choice((b"\x64\x00", b"\x00\x05")) + b"\x22\x00\x10\x00"
                with contextlib.suppress(OSError):
                    raw.send(header + frame)
    finally:
        for end, link in (("c", "c0"), ("d", "d0")):
            net.ip(end, f"link set {link} mtu 1500")
    daemon.accounted()
    works_again(net)


def test_a_flood_of_unresolved_next_hops(net: HostNet, daemon: Daemon) -> None:
    """Clients that do not exist, on the link: their answers are asked for, and others are served meanwhile."""
    ether = Ether(src=mac(net, "c", "c0"), dst=mac(net, "d", "d0"))
    started = time.monotonic()
    with Tap(net, "c", "c0") as tap:
        for number in range(3, 253):
            tap.send(ether / IP(src=f"10.0.0.{number}", dst=VIP[4]) / TCP(sport=1000 + number, dport=80, flags="S"))
        works_again(net)
    assert time.monotonic() - started < 10
    daemon.accounted()
    assert refused(net, "c", VIP[4], 4444), "closed ports are still answered"
