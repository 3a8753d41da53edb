"""What the decapsulator lets through, and what it drops."""

from __future__ import annotations

import ipaddress
import os
import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from pylvs.lab import decap
from pylvs.lab.packet import checksum

VIPS = frozenset(ipaddress.ip_address(text).packed for text in ("192.168.56.200", "2001:db8::100"))
SEGMENT = TCP(sport=40080, dport=80, seq=9, flags="PA") / Raw(b"GET / HTTP/1.1")
FOUR = IP(src="10.0.0.10", dst="192.168.56.200") / SEGMENT
SIX = IPv6(src="2001:db8::1", dst="2001:db8::100") / SEGMENT


def view(data: object) -> memoryview:
    return memoryview(bytearray(bytes(data)))  # type: ignore[call-overload]


@pytest.mark.parametrize("packet", [FOUR, SIX], ids=["4", "6"])
def test_the_packet_inside_comes_out(packet: object) -> None:
    tunnel = IP(src="192.168.56.100", dst="192.168.57.101", proto=4 if packet is FOUR else 41) / packet
    assert bytes(decap.inner(decap.outer(view(tunnel)), VIPS)) == bytes(packet)  # type: ignore[call-overload]


def test_outer_options_are_skipped() -> None:
    whole = bytes(IP(src="1.1.1.1", dst="2.2.2.2", options=b"\x01\x01\x01\x00", proto=4) / FOUR)
    assert whole[0] == 0x46
    assert bytes(decap.outer(view(whole))) == bytes(FOUR)


def test_trailing_bytes_are_cut() -> None:
    assert bytes(decap.inner(view(bytes(FOUR) + b"rest"), VIPS)) == bytes(FOUR)
    tunnel = bytes(IP(dst="2.2.2.2", proto=4) / FOUR)
    assert bytes(decap.outer(view(tunnel + b"rest"))) == bytes(FOUR)


@pytest.mark.parametrize("packet", [FOUR, SIX], ids=["4", "6"])
def test_every_cut_is_dropped(packet: object) -> None:
    whole = bytes(packet)  # type: ignore[call-overload]
    for length in range(len(whole)):
        with pytest.raises(decap.Malformed, match="inner header"):
            decap.inner(view(whole[:length]), VIPS)
    tunnel = bytes(IP(dst="2.2.2.2", proto=4) / FOUR)
    for length in range(len(tunnel)):
        with pytest.raises(decap.Malformed, match="outer header"):
            decap.outer(view(tunnel[:length]))


@pytest.mark.parametrize(
    ("at", "value"),
    [(0, 0x55), (0, 0x44), (0, 0x4F), (2, 0xFF), (3, 19)],
    ids=["version", "short", "long", "total", "tiny"],
)
def test_lying_headers_are_dropped(at: int, value: int) -> None:
    data = view(IP(dst="192.168.56.200") / UDP())
    data[at] = value
    for function in (decap.outer, lambda packet: decap.inner(packet, VIPS)):
        with pytest.raises(decap.Malformed):
            function(data)


def test_only_the_vips_are_let_in() -> None:
    with pytest.raises(decap.Malformed, match="not for a VIP"):
        decap.inner(view(IP(dst="192.168.57.101") / SEGMENT), VIPS)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_never_crash(data: bytes) -> None:
    for function in (decap.outer, lambda packet: decap.inner(packet, VIPS)):
        with suppress(decap.Malformed):
            function(view(data))


@pytest.mark.parametrize("size", [0, 1, 2, 13, 1400])
@pytest.mark.parametrize("kind", ["tcp4", "tcp6", "udp4", "udp6"])
def test_unfinished_checksums_are_finished(kind: str, size: int) -> None:
    head = IP(src="10.0.0.10", dst="192.168.56.200") if kind[3] == "4" else IPv6(src="2001:db8::1", dst="2001:db8::100")
    body = TCP(sport=1, dport=80) if kind[:3] == "tcp" else UDP(sport=1, dport=80)
    whole = bytes(head / body / Raw(os.urandom(size)))
    start, at = (20 if kind[3] == "4" else 40), (16 if kind[:3] == "tcp" else 6)
    addresses = whole[12:20] if start == 20 else whole[8:40]
    pseudo = addresses + struct.pack("!HH", 6 if at == 16 else 17, len(whole) - start)
    partial = view(whole)
    struct.pack_into("!H", partial, start + at, checksum(pseudo))
    assert decap.finish(partial)
    assert bytes(partial) == whole


@pytest.mark.parametrize(
    "packet",
    [
        FOUR,
        SIX,
        IP(dst="192.168.56.200") / UDP(chksum=0) / Raw(b"x"),
        IP(dst="192.168.56.200") / ICMP(),
        IP(dst="192.168.56.200", frag=10) / Raw(bytes(40)),
        IP(dst="192.168.56.200", flags="MF") / TCP(chksum=0),
    ],
    ids=["tcp4", "tcp6", "udp without", "icmp", "fragment", "first fragment"],
)
def test_everything_else_stays_as_it_is(packet: object) -> None:
    data = view(packet)
    before = bytes(data)
    assert not decap.finish(data)
    assert bytes(data) == before


def test_the_report() -> None:
    counts = decap.Counter({"unwrapped": 7, "finished": 2, "not for a VIP": 1, "inner header": 3})
    assert decap.report(counts) == "unwrapped 7 (checksum finished in 2), dropped inner header: 3, not for a VIP: 1"
    assert decap.report(decap.Counter()) == "unwrapped 0"
