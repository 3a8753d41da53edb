"""Tunnels beyond plain ipip: GRE and GUE, with and without checksums, and the two families in each other."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from cases.craft import (
    PLANS,
    V4,
    V6,
    Kind,
    endpoint,
    from_router,
    host,
    own,
    to_router,
    to_server,
    too_big,
)  # fmt: skip
from cases.table import Host, Story, commands, each, reply
from packets import checksum, pseudo, splice
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.packet import Packet, Raw

PORT = 6080


@dataclass(frozen=True)
class Tunnel:
    """A type of tunnel with its checksum, an inner and an outer family."""

    type: str
    checksum: str
    inner: int
    outer: int

    def __str__(self) -> str:
        return f"{self.type}{self.checksum}-{self.inner}in{self.outer}"

    @property
    def kind(self) -> Kind:
        return Kind("tun", self.inner, "udp")

    @property
    def shim(self) -> int:
        if self.type == "gue":
            return 12
        return 8 if self.checksum == "csum" else 4

    @property
    def room(self) -> int:
        """Bytes that the path's MTU loses."""
        return self.shim + (20 if self.outer == 4 else 40)

    def commands(self) -> list[str]:
        line = f"-a {self.kind.service} -r {endpoint(PLANS[self.outer].servers[0], 53)} -i --tun-type {self.type}"
        line += f" --tun-port {PORT}" if self.type == "gue" else ""
        line += f" --tun-{self.checksum}" if self.checksum else ""
        return [f"-A {self.kind.service} -s rr", line]

    def wrap(self, inner: bytes, sport: int) -> bytes:
        """What goes behind the outer IP header."""
        number, ethertype = (4, 0x0800) if self.inner == 4 else (41, 0x86DD)
        if self.type == "gre":
            if not self.checksum:
                return struct.pack("!HH", 0, ethertype) + inner
            data = struct.pack("!HHI", 0x8000, ethertype, 0) + inner
            return splice(data, 4, checksum(data))
        data = bytes(UDP(sport=sport, dport=PORT, len=len(inner) + 12, chksum=0)) + bytes([0, number, 0, 0]) + inner
        if not self.checksum:
            return data
        ends = IP(src=V4.director_s, dst=V4.servers[0]) if self.outer == 4 else IPv6(src=V6.director_s, dst=V6.servers[0])
        raw = bytes(ends)
        addresses = raw[12:20] if self.outer == 4 else raw[8:40]
        half = len(addresses) // 2
        return splice(data, 6, checksum(pseudo(addresses[:half], addresses[half:], 17, len(data)) + data))

    def sent(self, inner: bytes, sport: int, ident: int, ttl: int = 63, df: bool = False, tos: int = 0) -> Packet:
        plan, data = PLANS[self.outer], self.wrap(inner, sport)
        proto = 47 if self.type == "gre" else 17
        if self.outer == 4:
            return IP(
                src=plan.director_s, dst=plan.servers[0], ttl=ttl, proto=proto, id=ident, tos=tos,
                flags="DF" if df else 0,
            ) / Raw(data)  # fmt: skip
        return IPv6(src=plan.director_s, dst=plan.servers[0], hlim=ttl, nh=proto, tc=tos) / Raw(data)


TUNNELS = [
    Tunnel(*each, inner, outer)
    for each in (("gre", ""), ("gre", "csum"), ("gue", ""), ("gue", "csum"), ("gue", "remcsum"))
    for inner in (4, 6)
    for outer in (4, 6)
]


def inner_of(tunnel: Tunnel, **fields: Any) -> bytes:
    """The client's packet as it is inside."""
    kind = tunnel.kind
    return bytes(Kind("dr", kind.family, "udp").delivered(**fields))


def chosen(tunnel: Tunnel, frame: bytes) -> tuple[int, int]:
    """What only the director can choose: the GUE source port and the IPv4 identification."""
    start = 34 if tunnel.outer == 4 else 54
    port = int.from_bytes(frame[start : start + 2], "big")
    return port, int.from_bytes(frame[18:20], "big") if tunnel.outer == 4 else 0


@pytest.mark.parametrize("tunnel", TUNNELS, ids=str)
def test_wrapped(tunnel: Tunnel, directors: Callable[..., Any]) -> None:
    """Every byte of the outer headers; a flow keeps its source port, and another has another."""
    director = directors(**host())
    for line in tunnel.commands():
        assert director.ipvsadm(line).returncode == 0
    ports = set()
    for sport in (40007, 40008, 40009):
        seen = set()
        for payload, tos, ttl, flags in ((b"odd", 0, 64, 0), (b"", 0xB9, 7, 0), (bytes(900), 3, 255, "DF")):
            head: dict[str, Any] = {"tos": tos, **({"flags": flags} if flags else {})}
            request = tunnel.kind.request(ttl=ttl, sport=sport, head=head, payload=payload)
            (outcome,) = director.process([("c", from_router(request))], now=1.0)
            assert outcome.verdict == "forward"
            ((interface, frame),) = outcome.frames
            port, ident = chosen(tunnel, frame)
            inner = inner_of(tunnel, ttl=ttl - 1, sport=sport, head=head, payload=payload)
            df = bool(flags) and tunnel.inner == tunnel.outer == 4
            outer_tos = tos & 0xFC | 2 if tos & 3 == 3 else tos
            expected = tunnel.sent(inner, port, 0 if df else ident, ttl - 1, df, outer_tos)
            assert (interface, frame) == ("s", to_server(expected))
            seen.add(port)
        if tunnel.type == "gue":
            (port,) = seen
            assert 32768 <= port <= 60999
            ports.add(port)
    assert tunnel.type != "gue" or len(ports) > 1


@each(TUNNELS)
def test_size(tunnel: Tunnel) -> Story:
    """What does not fit is answered with what would."""
    kind = tunnel.kind
    yield Host(host(s_mtu=1400))
    yield from commands(tunnel.commands())
    room = 1400 - tunnel.room
    head = {"flags": "DF"}
    least = room - 28 if tunnel.inner == 4 else room - 48
    big = kind.request(head=head, payload=bytes(least + 1))
    quoted = bytes(kind.request(ttl=63, head=head, payload=bytes(least + 1)))
    yield reply("c", from_router(big), "c", to_router(own(too_big, kind.plan.vip, kind.plan.client, quoted, room)))


def test_an_edit_holds_for_living_connections(directors: Callable[..., Any]) -> None:
    """The tunnel belongs to the server, not to the connection."""
    director, tunnel = directors(**host()), Tunnel("gre", "", 4, 4)
    for line in tunnel.commands():
        assert director.ipvsadm(line).returncode == 0
    frame = from_router(tunnel.kind.request())
    (before,) = director.process([("c", frame)], now=1.0)
    assert director.ipvsadm(tunnel.commands()[1].replace("-a", "-e", 1).replace(" --tun-type gre", "")).returncode == 0
    (after,) = director.process([("c", frame)], now=1.1)
    assert (before.frames[0][1][23], after.frames[0][1][23]) == (47, 4)
    assert len(before.frames[0][1]) == len(after.frames[0][1]) + 4


def test_outer_ipv6_fragments(directors: Callable[..., Any]) -> None:
    """IPv4 without DF in an IPv6 tunnel: the outer packet is fragmented at its source, which is us."""
    director, tunnel = directors(**host()), Tunnel("gre", "", 4, 6)
    for line in tunnel.commands():
        assert director.ipvsadm(line).returncode == 0
    payload = bytes(n % 251 for n in range(1472))
    (outcome,) = director.process([("c", from_router(tunnel.kind.request(payload=payload)))], now=1.0)
    assert outcome.verdict == "forward" and len(outcome.frames) == 2
    whole = bytes(tunnel.sent(inner_of(tunnel, payload=payload), 0, 0))[40:]
    got = b""
    for number, (_, frame) in enumerate(outcome.frames):
        assert len(frame) - 14 <= 1500 and frame[20] == 44 and frame[54] == 47
        field = int.from_bytes(frame[56:58], "big")
        assert (field & 0xFFF8, field & 1) == (len(got), 1 - number)
        assert frame[58:62] == outcome.frames[0][1][58:62]
        got += frame[62:]
    assert got == whole
