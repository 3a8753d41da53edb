"""Checksums that are updated by their change come out as if summed over the whole packet."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packets import parse
from property.build import C_MAC, ROUTER_MAC, S_MAC, SERVER_MAC, ethernet, ip, right, transport

from pylvs import Director
from pylvs.model import RealServer, Service

MACS = {"c": "02:00:00:00:00:01", "s": "02:00:00:00:00:02"}

#: words that carry in every position, and neutral ones
words = st.one_of(
    st.sampled_from((0, 1, 0x00FF, 0x0100, 0x7FFF, 0x8000, 0xFF00, 0xFFFE, 0xFFFF)), st.integers(0, 0xFFFF)
)
ports = st.one_of(st.sampled_from((1, 21, 255, 256, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF)), st.integers(21, 0xFFFF))
payloads = st.one_of(st.binary(max_size=40), words.map(lambda word: word.to_bytes(2, "big")))


def address(family: int, net: str, tail: int) -> str:
    """An address of one of the networks below."""
    base = {4: {"client": "198.18.0.0", "vip": "10.100.0.0", "server": "10.1.0.0"}}.get(family) or {
        "client": "2001:db8:1::", "vip": "fd00:100::", "server": "fd00:5::",
    }  # fmt: skip
    return str(ipaddress.ip_address(base[net]) + tail)


def director(family: int, vip: str, server: str) -> Director:
    """A director for one flow between any addresses."""
    router, wide = ("10.0.0.254", 32) if family == 4 else ("fd00:c::fe", 128)
    return Director(
        interfaces={
            "lo": {"addresses": [f"{vip}/{wide}"]},
            "c": {"mac": MACS["c"], "addresses": ["10.0.0.1/24", "fd00:c::1/64"]},
            "s": {"mac": MACS["s"], "addresses": ["10.1.255.254/16", "fd00:5::ffff:1/64"]},
        },
        neighbours={server: "02:00:00:00:01:11", router: "02:00:00:00:00:99"},
        routes={"0.0.0.0/0" if family == 4 else "::/0": router},
        now=0.0,
        seed=0,
    )


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@settings(max_examples=150, deadline=None)
@given(
    tails=st.tuples(st.integers(1, 0xFFF0), st.integers(1, 0xFFF0), st.integers(1, 0xFFF0)),
    numbers=st.tuples(ports, ports, ports),
    ident=words,
    ttl=st.integers(2, 255),
    tos=st.integers(0, 255),
    payload=payloads,
)
@example(tails=(1, 1, 1), numbers=(0xFFFF, 0xFFFF, 0xFFFF), ident=0xFFFF, ttl=255, tos=255, payload=b"")
@example(tails=(1, 1, 1), numbers=(21, 21, 21), ident=0, ttl=2, tos=0, payload=b"\xff\xff")
def test_translation(
    family: int, protocol: str, tails: Any, numbers: Any, ident: int, ttl: int, tos: int, payload: bytes
) -> None:
    """Both directions of NAT: addresses, ports, TTL and nothing else have changed, and every checksum is right."""
    client, vip, server = (
        address(family, net, tail) for net, tail in zip(("client", "vip", "server"), tails, strict=True)
    )
    cport, vport, rport = numbers
    d = director(family, vip, server)
    service = Service(protocol=protocol, address=vip, port=vport, scheduler="rr")  # type: ignore[arg-type]
    d.add_service(service)
    d.add_server(service.key, RealServer(address=server, port=rport, method="masq"))
    ways = [
        ("c", (ROUTER_MAC, C_MAC), (client, vip), (cport, vport), "S"),
        ("s", (S_MAC, SERVER_MAC), (client, server), (cport, rport), "S"),
        ("s", (SERVER_MAC, S_MAC), (server, client), (rport, cport), "A"),
        ("c", (C_MAC, ROUTER_MAC), (vip, client), (vport, cport), "A"),
    ]
    frames = []
    for turn, (link, macs, addresses, numbered, flags) in enumerate(ways):
        number, body = transport(*addresses, protocol, *numbered, flags, payload)
        frames.append((link, ethernet(*macs, ip(*addresses, number, body, ttl - turn % 2, tos, ident))))
    for before, after in (frames[:2], frames[2:]):
        (outcome,) = d.process([before], now=1.0)
        assert outcome.verdict == "forward"
        assert [(out, sent.hex()) for out, sent in outcome.frames] == [(after[0], after[1].hex())]
        packet = parse(family, outcome.frames[0][1][14:])  # None if the IPv4 header checksum were wrong
        assert packet
        assert right(packet)


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("method", ["route", "tunnel"])
@settings(max_examples=150, deadline=None)
@given(ident=words, ttl=st.integers(2, 255), tos=st.integers(0, 255), df=st.booleans(), payload=payloads)
@example(ident=0xFFFF, ttl=255, tos=255, df=True, payload=b"")
def test_hop(family: int, method: str, ident: int, ttl: int, tos: int, df: bool, payload: bytes) -> None:
    """DR and TUN: only the TTL and the IPv4 header checksum change, and both headers are right."""
    client, vip, server = (address(family, net, 7) for net in ("client", "vip", "server"))
    d = director(family, vip, server)
    service = Service(protocol="udp", address=vip, port=53, scheduler="rr")
    d.add_service(service)
    d.add_server(service.key, RealServer(address=server, port=53, method=method))  # type: ignore[arg-type]
    number, body = transport(client, vip, "udp", 999, 53, "", payload)
    before = ip(client, vip, number, body, ttl, tos, ident, df)
    (outcome,) = d.process([("c", ethernet(ROUTER_MAC, C_MAC, before))], now=1.0)
    assert outcome.verdict == "forward"
    ((_, sent),) = outcome.frames
    inner = sent[14:]
    if method == "tunnel":
        envelope = parse(family, inner)
        assert envelope
        assert (envelope.protocol, envelope.ttl) == (4 if family == 4 else 41, ttl - 1)
        if family == 4:
            assert inner[6:8] == (b"\x40\0" if df else b"\0\0")
            assert not df or inner[4:6] == b"\0\0"
        inner = envelope.payload
    assert inner == ip(client, vip, number, body, ttl - 1, tos, ident, df)
