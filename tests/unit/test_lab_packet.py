"""Frames decoded, and the lines that students read."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6NDOptDstLLAddr, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from pylvs.lab import packet
from pylvs.lab.capture import VNET, cable
from pylvs.lab.packet import Frame

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:d0")
SEGMENT = (
    IP(src="10.0.0.10", dst="10.0.0.2", ttl=64, id=7)
    / TCP(sport=40080, dport=80, seq=9, ack=4, flags="PA")
    / Raw(b"GET /")
)


def frame(data: object, direction: str = "out") -> Frame:
    return Frame("client", "eth0", direction, 1.0, bytes(data))  # type: ignore[call-overload]


def test_tcp_segment() -> None:
    found = frame(ETHER / SEGMENT).ip
    assert found is not None and found.tcp is not None
    assert (found.source, found.target, found.ttl, found.identification) == ("10.0.0.10", "10.0.0.2", 64, 7)
    assert (found.tcp.source, found.tcp.target, found.tcp.sequence, found.tcp.marks) == (40080, 80, 9, "P.")
    assert found.tcp.payload == b"GET /"
    assert found.sound and found.segment_sound


@pytest.mark.parametrize(("at", "says"), [(10, "sound"), (36, "segment_sound"), (40, "segment_sound")])
def test_a_wrong_checksum_is_seen(at: int, says: str) -> None:
    data = bytearray(bytes(SEGMENT))
    data[at] ^= 1
    found = packet.ipv4(bytes(data))
    assert found is not None and not getattr(found, says)


def test_padding_of_short_frames_is_no_payload() -> None:
    data = bytes(ETHER / IP(src="1.2.3.4", dst="5.6.7.8") / TCP()) + bytes(6)
    found = frame(data).ip
    assert found is not None and found.tcp is not None and found.tcp.payload == b""


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (
            ETHER / SEGMENT,
            "client eth0 out [client:eth0 > director:eth0] "
            "IP 10.0.0.10 > 10.0.0.2 ttl 64 TCP 40080 > 80 [P.] seq 9 length 5",
        ),
        (
            ETHER / ARP(op=1, hwsrc="02:00:00:00:00:01", psrc="10.0.0.10", pdst="10.0.0.2"),
            "client eth0 out [client:eth0 > director:eth0] ARP who has 10.0.0.2? tell 10.0.0.10",
        ),
        (
            ETHER / ARP(op=2, hwsrc="02:00:00:00:00:d0", psrc="10.0.0.2", pdst="10.0.0.10"),
            "client eth0 out [client:eth0 > director:eth0] ARP 10.0.0.2 is at 02:00:00:00:00:d0",
        ),
        (
            ETHER / IP(src="10.0.0.2", dst="10.0.0.10") / ICMP(type=3, code=4, nexthopmtu=1480) / Raw(bytes(28)),
            "client eth0 out [client:eth0 > director:eth0] "
            "IP 10.0.0.2 > 10.0.0.10 ttl 64 ICMP fragmentation needed, MTU 1480",
        ),
        (
            ETHER / IPv6(src="2001:db8::10", dst="ff02::1:ff00:2") / ICMPv6ND_NS(tgt="2001:db8::2"),
            "client eth0 out [client:eth0 > director:eth0] ND who has 2001:db8::2? tell 2001:db8::10",
        ),
        (
            ETHER
            / IPv6(src="2001:db8::2", dst="2001:db8::10")
            / ICMPv6ND_NA(tgt="2001:db8::2")
            / ICMPv6NDOptDstLLAddr(lladdr="02:00:00:00:00:d0"),
            "client eth0 out [client:eth0 > director:eth0] ND 2001:db8::2 is at 02:00:00:00:00:d0",
        ),
        (
            ETHER / IPv6(src="2001:db8::2", dst="2001:db8::10", hlim=63) / ICMPv6PacketTooBig(mtu=1460),
            "client eth0 out [client:eth0 > director:eth0] "
            "IP6 2001:db8::2 > 2001:db8::10 hlim 63 ICMPv6 packet too big, MTU 1460",
        ),
        (
            ETHER
            / IPv6(src="2001:db8:1::1", dst="2001:db8:1::2", hlim=61)
            / IPv6(src="2001:db8::10", dst="2001:db8::2")
            / TCP(sport=40080, dport=80, seq=9, flags="S"),
            "client eth0 out [client:eth0 > director:eth0] IP6 2001:db8:1::1 > 2001:db8:1::2 hlim 61 proto 41 "
            "{IP6 2001:db8::10 > 2001:db8::2 hlim 64 TCP 40080 > 80 [S] seq 9}",
        ),
        (
            ETHER / IP(src="1.1.1.1", dst="2.2.2.2", ttl=61) / SEGMENT,
            "client eth0 out [client:eth0 > director:eth0] IP 1.1.1.1 > 2.2.2.2 ttl 61 proto 4 "
            "{IP 10.0.0.10 > 10.0.0.2 ttl 64 TCP 40080 > 80 [P.] seq 9 length 5}",
        ),
        (
            ETHER / IP(src="1.1.1.1", dst="2.2.2.2") / UDP(),
            "client eth0 out [client:eth0 > director:eth0] IP 1.1.1.1 > 2.2.2.2 ttl 64 proto 17",
        ),
        (Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:d0", type=0x88B5) / Raw(b"x"),
         "client eth0 out [client:eth0 > director:eth0] type 0x88b5"),
    ],
)  # fmt: skip
def test_lines(data: object, line: str) -> None:
    names = {"02:00:00:00:00:01": "client:eth0", "02:00:00:00:00:d0": "director:eth0"}
    assert frame(data).line(names) == line


@settings(deadline=None)
@given(st.binary(max_size=120), st.sampled_from([b"\x08\x00", b"\x08\x06", b"\x86\xdd"]))
def test_no_bytes_are_an_error(data: bytes, kind: bytes) -> None:
    frame(bytes(12) + kind + data).line()


@settings(deadline=None)
@given(st.integers(0, 130))
def test_no_cut_is_an_error(length: int) -> None:
    frame(bytes(ETHER / IP(dst="2.2.2.2") / SEGMENT)[:length]).line()


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=64))
def test_checksum_is_the_sum_of_words(data: bytes) -> None:
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = sum(words)
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    assert packet.checksum(data) == total


def test_an_unfinished_checksum_is_finished() -> None:
    """As a veth pair delivers it: the field holds the pseudo header's sum, the virtio-net header says from where."""
    whole = bytes(ETHER / SEGMENT)
    pseudo = whole[26:34] + struct.pack("!HH", 6, len(whole) - 34)
    partial = bytearray(whole)
    partial[50:52] = struct.pack("!H", packet.checksum(pseudo))
    assert bytes(partial) != whole
    assert cable(VNET.pack(1, 0, 0, 0, 34, 16) + bytes(partial)) == whole
    assert cable(VNET.pack(0, 0, 0, 0, 0, 0) + whole) == whole


def test_a_lying_checksum_offset_does_nothing() -> None:
    whole = bytes(ETHER / SEGMENT)
    assert cable(VNET.pack(1, 0, 0, 0, 60000, 60000) + whole) == whole
