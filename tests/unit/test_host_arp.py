"""ARP and neighbour discovery frames, held against scapy's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether

from pylvs.host.arp import (
    ADVERTISEMENT,
    NO_MAC,
    OVERRIDE,
    REPLY,
    REQUEST,
    SOLICITATION,
    SOLICITED,
    Arp,
    Nd,
    arp,
    checksum,
    gratuitous,
    multicast_mac,
    nd,
    owner,
    parse_arp,
    parse_nd,
    question,
    solicited_node,
)

MAC, OTHER = "02:00:00:00:00:01", "02:00:00:00:00:02"


def test_announcements_of_ipv4_in_both_forms() -> None:
    request, reply = gratuitous("10.0.0.100", MAC)
    ether = Ether(dst="ff:ff:ff:ff:ff:ff", src=MAC)
    own = {"hwsrc": MAC, "psrc": "10.0.0.100", "pdst": "10.0.0.100"}
    assert request == bytes(ether / ARP(op=1, hwdst=NO_MAC, **own))
    assert reply == bytes(ether / ARP(op=2, hwdst="ff:ff:ff:ff:ff:ff", **own))


def test_announcement_of_ipv6() -> None:
    (frame,) = gratuitous("2001:db8::100", MAC)
    wanted = (
        Ether(dst="33:33:00:00:00:01", src=MAC)
        / IPv6(src="2001:db8::100", dst="ff02::1", hlim=255)
        / ICMPv6ND_NA(R=0, S=0, O=1, tgt="2001:db8::100")
        / ICMPv6NDOptDstLLAddr(lladdr=MAC)
    )
    assert frame == bytes(wanted)
    assert parse_nd(frame) == Nd(ADVERTISEMENT, "2001:db8::100", "ff02::1", "2001:db8::100", MAC, OVERRIDE)


def test_a_question_claims_nothing() -> None:
    assert parse_arp(question("10.0.0.100", MAC)) == Arp(REQUEST, MAC, "0.0.0.0", NO_MAC, "10.0.0.100")
    wanted = (
        Ether(dst="33:33:ff:12:34:56", src=MAC)
        / IPv6(src="::", dst="ff02::1:ff12:3456", hlim=255)
        / ICMPv6ND_NS(tgt="2001:db8::12:3456")
    )
    frame = question("2001:db8::12:3456", MAC)
    assert frame == bytes(wanted)
    assert parse_nd(frame) == Nd(SOLICITATION, "::", "ff02::1:ff12:3456", "2001:db8::12:3456", "")


def test_answers_of_scapy_are_read() -> None:
    reply = Ether(dst=MAC, src=OTHER) / ARP(op=2, hwsrc=OTHER, psrc="10.0.0.5", hwdst=MAC, pdst="10.0.0.1")
    assert parse_arp(bytes(reply)) == Arp(REPLY, OTHER, "10.0.0.5", MAC, "10.0.0.1")
    assert parse_arp(bytes(reply) + bytes(18)) is not None, "padded to the shortest frame"
    answer = Ether(dst=MAC, src=OTHER) / IPv6(src="fd00::5", dst="fd00::1", hlim=255)
    answer = answer / ICMPv6ND_NA(R=0, S=1, O=1, tgt="fd00::5") / ICMPv6NDOptDstLLAddr(lladdr=OTHER)
    assert parse_nd(bytes(answer)) == Nd(ADVERTISEMENT, "fd00::5", "fd00::1", "fd00::5", OTHER, SOLICITED | OVERRIDE)
    asked = Ether(src=OTHER) / IPv6(src="fd00::5", dst="ff02::1:ff00:1", hlim=255)
    asked = asked / ICMPv6ND_NS(tgt="fd00::1") / ICMPv6NDOptSrcLLAddr(lladdr=OTHER)
    assert parse_nd(bytes(asked)) == Nd(SOLICITATION, "fd00::5", "ff02::1:ff00:1", "fd00::1", OTHER)


def test_who_owns_an_address() -> None:
    other = arp(Arp(REPLY, OTHER, "10.0.0.5", MAC, "10.0.0.1"))
    assert owner(other, "10.0.0.5") == OTHER
    assert owner(other, "10.0.0.6") == ""
    assert owner(question("10.0.0.5", OTHER), "10.0.0.5") == "", "a probe of another host owns nothing yet"
    (advert,) = gratuitous("fd00::5", OTHER)
    assert owner(advert, "fd00::5") == OTHER
    assert owner(advert, "fd00::6") == ""
    silent = nd(Nd(ADVERTISEMENT, "fd00::5", "ff02::1", "fd00::5", ""), source=OTHER)
    assert owner(silent, "fd00::5") == OTHER, "without the option, the frame tells"
    assert owner(question("fd00::5", OTHER), "fd00::5") == ""
    assert owner(b"", "fd00::5") == owner(b"", "10.0.0.5") == ""


def test_what_routers_forged_or_cut_is_not_read() -> None:
    (frame,) = gratuitous("fd00::5", MAC)
    assert parse_nd(frame[:21] + b"\x40" + frame[22:]) is None, "hop limit below 255"
    assert parse_nd(frame[:-1] + b"\x07") is None, "checksum"
    assert parse_arp(frame) is None
    assert parse_nd(gratuitous("10.0.0.5", MAC)[0]) is None
    zero = nd(Nd(ADVERTISEMENT, "fd00::5", "ff02::1", "fd00::5", MAC), source=MAC)
    body = bytearray(zero)
    body[79] = 0  # an option of length zero would never end
    body[56:58] = b"\0\0"
    body[56:58] = checksum(
        bytes(body[22:54]) + (32).to_bytes(4, "big") + (58).to_bytes(4, "big") + bytes(body[54:])
    ).to_bytes(2, "big")
    assert parse_nd(bytes(body)) is None


@pytest.mark.parametrize("frame", [gratuitous("10.0.0.5", MAC)[0], gratuitous("fd00::5", MAC)[0]])
def test_every_shorter_frame_is_refused(frame: bytes) -> None:
    for length in range(len(frame)):
        assert parse_arp(frame[:length]) is None
        assert parse_nd(frame[:length]) is None


@given(st.binary(max_size=120))
def test_any_bytes_are_survived(data: bytes) -> None:
    parse_arp(data)
    parse_nd(data)
    parse_nd(b"\0" * 12 + b"\x86\xdd\x60" + data[:5] + b"\x3a\xff" + data)


def test_multicast_addresses() -> None:
    assert solicited_node("2001:db8::aabb:ccdd") == "ff02::1:ffbb:ccdd"
    assert multicast_mac("ff02::1:ffbb:ccdd") == "33:33:ff:bb:cc:dd"


def test_checksum_of_odd_length() -> None:
    assert checksum(b"\x01") == 0xFEFF
    assert checksum(b"") == 0xFFFF
