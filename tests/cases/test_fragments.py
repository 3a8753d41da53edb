"""Datagrams that come in fragments: balanced whole, sent on in fragments of the same sizes, and bounded in every way."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
from cases.craft import NAT_KINDS, Kind, from_router, from_server, host, to_router, to_server
from packets import checksum, splice

KINDS = [Kind(method, family, "udp") for method in ("nat", "dr") for family in (4, 6)]
PAYLOAD = bytes(n % 251 for n in range(2400))


def cut(packet: bytes, sizes: tuple[int, ...], ident: int = 0x1234) -> list[bytes]:
    """A packet without options or extensions in fragments with `sizes` bytes each, and the rest."""
    v6 = packet[0] >> 4 == 6
    head, body = (packet[:40], packet[40:]) if v6 else (packet[:20], packet[20:])
    pieces, offset = [], 0
    for size in (*sizes, len(body) - sum(sizes)):
        part, more = body[offset : offset + size], offset + size < len(body)
        if v6:
            extension = bytes([packet[6], 0]) + (offset | more).to_bytes(2, "big") + ident.to_bytes(4, "big")
            top = splice(splice(head, 4, (8 + len(part)).to_bytes(2, "big")), 6, b"\x2c")
            pieces.append(top + extension + part)
        else:
            top = splice(splice(head, 2, (20 + len(part)).to_bytes(2, "big")), 10, b"\0\0")
            top = splice(splice(top, 4, ident.to_bytes(2, "big")), 6, (0x2000 * more | offset // 8).to_bytes(2, "big"))
            pieces.append(splice(top, 10, checksum(top)) + part)
        offset += size
    return pieces


class Net:
    """A director with one service, and its counters."""

    def __init__(self, directors: Callable[..., Any], kind: Kind, **more: Any) -> None:
        self.director, self.now, self.given = directors(**host(**more)), 1.0, 0
        for line in kind.commands():
            assert self.director.ipvsadm(line).returncode == 0

    def give(self, interface: str, frame: bytes) -> Any:
        self.now += 0.001
        self.given += 1
        (outcome,) = self.director.process([(interface, frame)], now=self.now)
        counts = self.director.counters()
        assert counts["received"] == self.given
        ended = counts["forwarded"] + counts["passed"] + counts["replied"] + sum(counts["drops"].values())
        assert ended == self.given
        return outcome

    @property
    def drops(self) -> dict[str, int]:
        drops: dict[str, int] = self.director.counters()["drops"]
        return drops


@pytest.mark.parametrize("sizes", [(1008,), (1448,), (600, 800), (8, 1000, 24)], ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_same_sizes(kind: Kind, sizes: tuple[int, ...], directors: Callable[..., Any]) -> None:
    """Whatever the order, the datagram leaves once it is whole, cut as it came."""
    for order in permutations(range(len(sizes) + 1)):
        net = Net(directors, kind)
        pieces = cut(bytes(kind.request(payload=PAYLOAD)), sizes, 0x1234)
        sent = cut(bytes(kind.delivered(payload=PAYLOAD)), sizes, 0x1234)
        for number in order[:-1]:
            outcome = net.give("c", from_router(pieces[number]))
            assert (outcome.verdict, outcome.frames) == ("forward", [])
        outcome = net.give("c", from_router(pieces[order[-1]]))
        assert outcome.verdict == "forward" and outcome.dest
        assert outcome.frames == [("s", to_server(piece)) for piece in sent]
        assert net.drops == {}


@pytest.mark.parametrize("kind", [kind for kind in NAT_KINDS if kind.protocol == "udp"], ids=str)
def test_replies(kind: Kind, directors: Callable[..., Any]) -> None:
    """A real server's fragmented answer."""
    net = Net(directors, kind)
    net.give("c", from_router(kind.request()))
    for number, piece in enumerate(cut(bytes(kind.reply(payload=PAYLOAD)), (1448,))):
        outcome = net.give("s", from_server(piece))
        assert len(outcome.frames) == 2 * number
    sent = cut(bytes(kind.returned(payload=PAYLOAD)), (1448,))
    assert outcome.frames == [("c", to_router(piece)) for piece in sent]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_never_complete(kind: Kind, directors: Callable[..., Any]) -> None:
    """30 s for IPv4, 60 s for IPv6; then those that waited are drops, and a latecomer waits anew."""
    net = Net(directors, kind)
    first, second, _ = cut(bytes(kind.request(payload=PAYLOAD)), (1000, 1000))
    net.give("c", from_router(first))
    net.now += 20
    net.give("c", from_router(second))
    wait = 30 if kind.family == 4 else 60
    net.director.advance(now=1.0005 + wait)
    assert net.drops == {}
    net.director.advance(now=1.0015 + wait)
    assert net.drops == {"fragment_timeout": 2}
    assert net.director.connections() == []


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_overlap(kind: Kind, directors: Callable[..., Any]) -> None:
    """Overlapping fragments end the datagram; a fragment that is there twice does not."""
    net = Net(directors, kind)
    packet = bytes(kind.request(payload=PAYLOAD))
    coarse, fine = cut(packet, (1008, 1000)), cut(packet, (1000, 1000))
    net.give("c", from_router(coarse[0]))
    assert net.give("c", from_router(coarse[0])).reason == "fragment"
    outcome = net.give("c", from_router(fine[1]))
    assert (outcome.verdict, outcome.reason) == ("drop", "fragment_overlap")
    assert net.drops == {"fragment": 1, "fragment_overlap": 2}
    for piece in coarse[1:]:
        assert net.give("c", from_router(piece)).frames == []


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_flood(kind: Kind, directors: Callable[..., Any]) -> None:
    """Many datagrams that never get whole push out the oldest; a whole one passes through all the same."""
    net = Net(directors, kind)
    packet = bytes(kind.request(payload=PAYLOAD))
    for ident in range(1, 1001):
        assert net.give("c", from_router(cut(packet, (1000,), ident)[0])).verdict == "forward"
    assert 700 <= net.drops["fragment_flood"] < 1000
    sent = [net.give("c", from_router(piece)).frames for piece in cut(packet, (1000,), 7777)]
    assert len(sent[-1]) == 2
    tiny = cut(packet, (8,) * 200, 9999)
    for piece in tiny:
        net.give("c", from_router(piece))
    assert net.director.counters()["received"] == net.given


@pytest.mark.parametrize("family", [4, 6])
def test_not_ours(family: int, directors: Callable[..., Any]) -> None:
    """Fragments that concern no service are the host's; so is a whole datagram to a port without service."""
    kind = Kind("nat", family, "udp")
    net = Net(directors, kind)
    target = bytes(kind.reply(payload=PAYLOAD))
    for piece in cut(splice(target, 12 if family == 4 else 8, b"\x0a\x09\x09\x09"), (800,)):
        assert net.give("c", from_router(piece)).verdict == "pass"
    other = Kind("nat", family, "udp", sport=7)
    packet = bytes(other.request(payload=PAYLOAD))
    at = 20 if family == 4 else 40
    packet = packet[: at + 2] + (999).to_bytes(2, "big") + packet[at + 4 :]
    verdicts = [net.give("c", from_router(piece)).verdict for piece in cut(packet, (800,))]
    assert verdicts == ["forward", "pass"]
    assert net.director.counters()["passed"] == 4


@pytest.mark.parametrize("method", ["nat", "dr", "tun"])
@pytest.mark.parametrize("family", [4, 6])
def test_nonsense(method: str, family: int, directors: Callable[..., Any]) -> None:
    """Random fragments of random datagrams, some of them mutilated: every one is booked, and the next flow works."""
    kind = Kind(method, family, "udp")
    net, source = Net(directors, kind), random.Random(family)
    for _ in range(1500):
        packet = bytes(kind.request(payload=bytes(source.randrange(24, 1400))))
        sizes = tuple(8 * source.randrange(1, 20) for _ in range(source.randrange(1, 3)))
        if sum(sizes) >= len(packet) - 40:
            continue
        piece = bytearray(source.choice(cut(packet, sizes, source.randrange(4))))
        if source.random() < 0.5:
            at = source.randrange(40, len(piece)) if family == 6 else source.randrange(20, len(piece))
            piece[at] ^= 1 << source.randrange(8)
        net.give("c", from_router(bytes(piece)))
    net.director.advance(now=net.now + 61)
    counts = net.director.counters()
    assert counts["received"] == net.given
    whole = cut(bytes(kind.request(payload=PAYLOAD)), (1000,), 55)
    assert [len(net.give("c", from_router(piece)).frames) for piece in whole][1] >= 2
