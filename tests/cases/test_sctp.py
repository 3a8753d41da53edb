"""SCTP: what it is forwarded as, its checksum, its states, and chunks that lie."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from cases.craft import (
    FLAG,
    Kind,
    endpoint,
    from_router,
    from_server,
    host,
    ip,
    outer,
    to_router,
    to_server,
    unreachable,
)
from conftest import accounted
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

VPORT, RPORT, SPORT = 2905, 3905, 40007
CHUNKS = {
    "DATA": 0, "INIT": 1, "INIT-ACK": 2, "SACK": 3, "HEARTBEAT": 4, "HEARTBEAT-ACK": 5, "ABORT": 6, "SHUTDOWN": 7,
    "SHUTDOWN-ACK": 8, "ERROR": 9, "COOKIE-ECHO": 10, "COOKIE-ACK": 11, "ECNE": 12, "CWR": 13, "SHUTDOWN-COMPLETE": 14,
    "ASCONF": 193,
}  # fmt: skip
KINDS = [Kind(method, family, "sctp") for method in ("nat", "dr", "tun") for family in (4, 6)]
Frames = Callable[[str], tuple[str, bytes]]


def chunk(name: str, body: bytes = b"12345678") -> bytes:
    """A chunk, padded."""
    return struct.pack("!BBH", CHUNKS[name], 0, 4 + len(body)) + body + bytes(-len(body) % 4)


def packet(source: str, target: str, sport: int, dport: int, chunks: bytes, ttl: int = 64) -> Packet:
    """An SCTP packet with a right checksum."""
    return (
        ip(source, target, ttl, **({"nh": 132} if ":" in source else {"proto": 132}))
        / SCTP(sport=sport, dport=dport, tag=0x11223344)
        / Raw(chunks)
    )


def up(kind: Kind, chunks: bytes, ttl: int = 64, target: str = "", dport: int = VPORT) -> Packet:
    """From the client, to the VIP if nothing else is said."""
    return packet(kind.plan.client, target or kind.plan.vip, SPORT, dport, chunks, ttl)


def down(kind: Kind, chunks: bytes, rport: int = RPORT) -> Packet:
    """From a NAT server."""
    return packet(kind.plan.servers[0], kind.plan.client, rport, SPORT, chunks)


def fresh(directors: Callable[..., Any], kind: Kind, rport: int = RPORT, **more: Any) -> Any:
    """A director with one SCTP service and one server."""
    director = directors(**host(**more))
    port = rport if kind.method == "nat" else VPORT
    service = f"--sctp-service {endpoint(kind.plan.vip, VPORT)}"
    server = f"-r {endpoint(kind.plan.servers[0], port)} {FLAG[kind.method]}"
    for line in (f"-A {service} -s rr", f"-a {service} {server}"):
        assert director.ipvsadm(line).returncode == 0
    return director


def walk(director: Any, kind: Kind, path: str, now: float = 1.0) -> None:
    """Send chunks one by one, `c:` from the client, `s:` from the server; each must be forwarded."""
    for event in path.split():
        now += 0.001
        side, names = event.split(":")
        chunks = b"".join(chunk(name) for name in names.split("+"))
        frame = ("c", from_router(up(kind, chunks))) if side == "c" else ("s", from_server(down(kind, chunks)))
        (outcome,) = director.process([frame], now=now)
        assert outcome.verdict == "forward", (event, outcome.verdict, outcome.reason)


@pytest.mark.parametrize("size", [0, 1, 3, 700])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_forwarded_both_ways(kind: Kind, size: int, directors: Callable[..., Any]) -> None:
    """Byte for byte, with a checksum that is right behind a translated port and untouched elsewhere."""
    director = fresh(directors, kind)
    chunks = chunk("INIT", random.Random(size).randbytes(size))
    request = up(kind, chunks)
    (outcome,) = director.process([("c", from_router(request))], now=1.0)
    if kind.method == "nat":
        delivered: Packet = up(kind, chunks, 63, kind.plan.servers[0], RPORT)
    else:
        delivered = up(kind, chunks, 63)
        if kind.method == "tun":
            delivered = outer(kind.plan, delivered)
    ((interface, frame),) = outcome.frames
    got, want = frame, to_server(delivered)
    if kind.method == "tun" and kind.family == 4:  # the identification is the director's own choice
        got, want = got[:18] + got[20:24] + got[26:], want[:18] + want[20:24] + want[26:]
    assert (outcome.verdict, interface, got) == ("forward", "s", want)
    assert outcome.service == f"SCTP {endpoint(kind.plan.vip, VPORT)}"
    if kind.method == "nat":
        (outcome,) = director.process([("s", from_server(down(kind, chunk("INIT-ACK"))))], now=1.1)
        returned = packet(kind.plan.vip, kind.plan.client, VPORT, SPORT, chunk("INIT-ACK"), 63)
        assert outcome.frames == [("c", to_router(returned))]


@pytest.mark.parametrize("family", [4, 6])
def test_a_port_that_stays_leaves_the_checksum(family: int, directors: Callable[..., Any]) -> None:
    """Addresses are no part of it: a wrong one stays wrong, so that the receiver notices; a new port seals it anew."""
    for rport, stays in ((VPORT, True), (RPORT, False)):
        kind = Kind("nat", family, "sctp")
        director = fresh(directors, kind, rport)
        request = up(kind, chunk("INIT"))
        request[SCTP].chksum = 0xDEADBEEF
        (outcome,) = director.process([("c", from_router(request))], now=1.0)
        wanted = up(kind, chunk("INIT"), 63, kind.plan.servers[0], rport)
        if stays:
            wanted[SCTP].chksum = 0xDEADBEEF
        assert outcome.frames == [("s", to_server(wanted))]


NAT_PATHS = {
    "c:INIT": ("INIT1", 4),
    "c:INIT s:INIT-ACK": ("C-SENT", 61),
    "c:INIT s:INIT-ACK c:COOKIE-ECHO": ("C-REPLIED", 61),
    "c:INIT s:INIT-ACK c:COOKIE-ECHO s:COOKIE-ACK": ("ESTABLISHED", 900),
    "c:INIT c:INIT": ("INIT", 61),
    "c:INIT c:DATA": ("INIT1", 4),
    "c:INIT s:INIT": ("C-WAIT", 61),
    "c:INIT s:ABORT": ("REJECTED", 4),
    "c:INIT c:ABORT": ("CLOSED", 61),
    "c:INIT s:COOKIE-ACK c:SHUTDOWN": ("S-RECEIVED", 61),
    "c:INIT s:COOKIE-ACK s:SHUTDOWN": ("S-SENT", 61),
    "c:INIT s:COOKIE-ACK s:SHUTDOWN c:SHUTDOWN-ACK": ("CLOSED", 61),
    "c:INIT s:COOKIE-ACK c:ASCONF": ("ESTABLISHED", 900),
    "c:INIT s:COOKIE-ACK c:SHUTDOWN s:SHUTDOWN-ACK": ("S-ACK-SENT", 61),
    "c:INIT s:COOKIE-ACK s:COOKIE-ACK+ABORT": ("CLOSED", 61),
    "c:INIT s:COOKIE-ACK c:COOKIE-ECHO+ABORT": ("CLOSED", 61),
    "c:INIT s:COOKIE-ACK c:DATA+ABORT": ("ESTABLISHED", 900),  # only behind a cookie is the second chunk looked at
}
ONE_WAY_PATHS = {
    "c:INIT": ("INIT1", 4),
    "c:INIT c:COOKIE-ECHO": ("ESTABLISHED", 900),
    "c:INIT c:COOKIE-ECHO c:SHUTDOWN": ("S-RECEIVED", 61),
    "c:INIT c:COOKIE-ECHO c:SHUTDOWN-ACK": ("CLOSED", 61),
    "c:INIT c:COOKIE-ECHO c:ABORT": ("CLOSED", 61),
}
PATHS = [(Kind("nat", 4, "sctp"), *each) for each in NAT_PATHS.items()] + [
    (Kind(method, 4, "sctp"), *each) for method in ("dr", "tun") for each in ONE_WAY_PATHS.items()
]


@pytest.mark.parametrize(("kind", "path", "end"), PATHS, ids=[f"{kind}-{path}" for kind, path, _ in PATHS])
def test_state_and_lifetime(kind: Kind, path: str, end: tuple[str, int], directors: Callable[..., Any]) -> None:
    """The state after a path, how long it lasts; only ESTABLISHED counts as active."""
    director = fresh(directors, kind)
    walk(director, kind, path)
    (connection,) = director.connections()
    assert (connection.protocol, connection.state) == ("SCTP", end[0])
    assert end[1] - 1 <= connection.expires <= end[1]
    server = director.status()[0].servers[0]
    assert (server.active, server.inactive) == ((1, 0) if end[0] == "ESTABLISHED" else (0, 1))
    director.advance(now=1.0 + end[1] * 1.125 + 2)
    assert director.connections() == []


@pytest.mark.parametrize("first", [name for name in CHUNKS if name != "INIT"])
@pytest.mark.parametrize("sloppy", [0, 1])
def test_who_may_begin(first: str, sloppy: int, directors: Callable[..., Any]) -> None:
    """INIT; with sloppy_sctp everything but ABORT. What may not is the host's, even with an INIT behind."""
    kind = Kind("nat", 4, "sctp")
    director = fresh(directors, kind)
    director.settings["sloppy_sctp"] = sloppy
    (outcome,) = director.process([("c", from_router(up(kind, chunk(first) + chunk("INIT"))))], now=1.0)
    begins = bool(sloppy) and first != "ABORT"
    assert outcome.verdict == ("forward" if begins else "pass")
    assert len(director.connections()) == begins


def test_no_server_available(directors: Callable[..., Any]) -> None:
    """Port unreachable, as for the other protocols."""
    kind = Kind("nat", 4, "sctp")
    director = fresh(directors, kind)
    port = endpoint(kind.plan.vip, VPORT)
    assert (
        director.ipvsadm(f"-e --sctp-service {port} -r {endpoint(kind.plan.servers[0], RPORT)} -m -w 0").returncode == 0
    )
    request = up(kind, chunk("INIT"))
    (outcome,) = director.process([("c", from_router(request))], now=1.0)
    assert outcome.verdict == "reply"
    ((interface, frame),) = outcome.frames
    answer = unreachable(kind.plan.vip, kind.plan.client, request)
    assert interface == "c"
    assert frame[34:] == bytes(answer)[20:]


def test_protocol_unreachable_where_the_host_cannot_answer(directors: Callable[..., Any]) -> None:
    """The VIP is on no interface: what would be the host's is answered as by a host without SCTP."""
    for family, kind_of_answer in ((4, (3, 2)), (6, (4, 1))):
        kind = Kind("nat", family, "sctp")
        director = fresh(directors, kind, vips=())
        (outcome,) = director.process([("c", from_router(up(kind, chunk("DATA"))))], now=1.0)
        assert outcome.verdict == "reply"
        ((_, frame),) = outcome.frames
        at = 34 if family == 4 else 54
        assert (frame[at], frame[at + 1]) == kind_of_answer
        if family == 6:
            assert frame[at + 4 : at + 8] == bytes([0, 0, 0, 6])


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_init_on_a_closed_association(mode: int, directors: Callable[..., Any]) -> None:
    """It is scheduled anew, unless conn_reuse_mode says no; an established one goes on."""
    kind = Kind("nat", 4, "sctp")
    director = fresh(directors, kind)
    director.settings["conn_reuse_mode"] = mode
    walk(director, kind, "c:INIT s:COOKIE-ACK c:INIT")
    (before,) = director.connections()
    assert (before.state, before.packets) == ("ESTABLISHED", 2)
    walk(director, kind, "c:ABORT c:INIT", now=2.0)
    (after,) = director.connections()
    assert (after.state, after.packets) == (("INIT1", 1) if mode else ("INIT", 4))


BROKEN = {
    "no chunk": b"",
    "half a chunk header": b"\x01\0",
    "three bytes": b"\x01\0\0",
}


@pytest.mark.parametrize("name", BROKEN)
def test_packets_without_a_chunk(name: str, directors: Callable[..., Any]) -> None:
    """They begin nothing and are dropped by name; of a connection, they are forwarded and change no state."""
    kind = Kind("nat", 4, "sctp")
    director = fresh(directors, kind)
    frame = ("c", from_router(up(kind, BROKEN[name])))
    (outcome,) = director.process([frame], now=1.0)
    assert (outcome.verdict, outcome.reason) == ("drop", "truncated")
    assert director.connections() == []
    walk(director, kind, "c:INIT s:COOKIE-ACK", now=2.0)
    (outcome,) = director.process([frame], now=3.0)
    assert outcome.verdict == "forward"
    (connection,) = director.connections()
    assert (connection.state, connection.packets) == ("ESTABLISHED", 2)
    assert connection.expires > 899.9


@pytest.mark.parametrize("length", [0, 3, 4, 5, 12, 13, 0xFFFC, 0xFFFD, 0xFFFF])
@pytest.mark.parametrize("cookie", ["COOKIE-ECHO", "COOKIE-ACK"])
def test_chunk_lengths_that_lie(cookie: str, length: int, directors: Callable[..., Any]) -> None:
    """The second chunk is looked for where the first one's length says, within the packet only."""
    kind = Kind("nat", 4, "sctp")
    director = fresh(directors, kind)
    walk(director, kind, "c:INIT s:COOKIE-ACK")
    chunks = struct.pack("!BBH", CHUNKS[cookie], 0, length) + bytes(8) + chunk("ABORT", b"")
    (outcome,) = director.process([("c", from_router(up(kind, chunks)))], now=2.0)
    assert outcome.verdict == "forward"
    (connection,) = director.connections()
    assert connection.state == ("CLOSED" if length == 12 else "ESTABLISHED")


def test_noise_behind_the_header(directors: Callable[..., Any]) -> None:
    """Random chunks, cut off anywhere: each packet ends in one way, and no established flow of another client moves."""
    source = random.Random(7)
    for method in ("nat", "dr", "tun"):
        kind = Kind(method, 4, "sctp")
        director = fresh(directors, kind)
        director.settings["sloppy_sctp"] = 1
        steady = packet("198.18.1.99", kind.plan.vip, SPORT, VPORT, chunk("INIT"))
        director.process([("c", from_router(steady))], now=1.0)
        (before,) = director.connections()
        frames = []
        for _ in range(2000):
            noise = source.randbytes(source.randrange(40))
            if source.random() < 0.5:
                noise = bytes([source.choice((1, 6, 10, 11, 14)), 0, 0, source.randrange(24)]) + noise
            packet_bytes = bytes(up(kind, noise))
            side, make = source.choice((("c", from_router), ("s", from_server)))
            if side == "s":
                packet_bytes = bytes(down(kind, noise))
            frames.append((side, make(packet_bytes)[: source.choice((None, 34, 38, 45, 46, 47, 48, 50))]))
        director.process(frames, now=1.0)
        accounted(director)
        assert all(each.protocol == "SCTP" for each in director.connections())
        assert before in director.connections()
