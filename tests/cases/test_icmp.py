"""ICMP errors about flows of ours, from both sides, and those that are not ours."""

from __future__ import annotations

from cases.craft import (
    KINDS,
    NAT_KINDS,
    Kind,
    exceeded,
    from_router,
    from_server,
    ip,
    outer,
    segment,
    to_router,
    to_server,
    too_big,
    unreachable,
)  # fmt: skip
from cases.table import Story, commands, dropped, each, forward, left
from scapy.layers.inet import ICMP
from scapy.layers.inet6 import ICMPv6ParamProblem
from scapy.packet import Packet, Raw


def quotes(packet: Packet) -> list[bytes]:
    """The whole packet, and as little of it as IPv4 routers may quote."""
    data = bytes(packet)
    return [data, data[: (20 if data[0] >> 4 == 4 else 40) + 8]]


def makers(source: str, target: str, quoted: bytes, ttl: int) -> list[Packet]:
    """One error of each kind that is followed."""
    return [
        unreachable(source, target, quoted, ttl=ttl),
        exceeded(source, target, quoted, ttl=ttl),
        too_big(source, target, quoted, 1300, ttl=ttl),
    ]


def requoted(original: Packet, received: Packet, translated: Packet) -> bytes:
    """`translated` as a router quotes it that saw `received`: with the transport checksum of what it saw.

    The kernel translates addresses and ports of a quotation, not its TCP or UDP checksum.
    """
    data, seen = bytes(translated), bytes(received)
    at = (20 if data[0] >> 4 == 4 else 40) + (16 if original.payload.name == "TCP" else 6)
    return data[:at] + seen[at : at + 2] + data[at + 2 :]


@each(NAT_KINDS)
def test_from_the_server_side(kind: Kind) -> Story:
    """Errors about what NAT sent: the client must recognise its own packet, and hear it from the VIP."""
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    seen = kind.delivered()
    known = requoted(seen, seen, kind.request(63))
    for source in (kind.plan.servers[0], kind.plan.far):
        for length in (len(known), (20 if kind.family == 4 else 40) + 8):
            errors = makers(source, kind.plan.client, bytes(seen)[:length], 60)
            answers = makers(kind.plan.vip, kind.plan.client, known[:length], 59)
            for error, answer in zip(errors, answers, strict=True):
                yield forward("s", from_server(error), "c", to_router(answer))


@each(KINDS)
def test_from_the_client_side(kind: Kind) -> Story:
    """Errors about the server's answers reach that server: translated by NAT, as they are by DR and TUN."""
    yield from commands(kind.commands(1, 1))
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered(1), 1))
    seen = kind.returned(50)
    if kind.method == "nat":
        yield forward("s", from_server(kind.reply(1), 1), "c", to_router(kind.returned()))
        known = requoted(seen, seen, kind.reply(1, ttl=50))
    else:
        known = bytes(seen)
    for source in (kind.plan.client, kind.plan.far):
        for length in (len(known), (20 if kind.family == 4 else 40) + 8):
            errors = makers(source, kind.plan.vip, bytes(seen)[:length], 60)
            target = kind.plan.servers[1] if kind.method == "nat" else kind.plan.vip
            answers = makers(source, target, known[:length], 59)
            for error, answer in zip(errors, answers, strict=True):
                sent = outer(kind.plan, answer, 1, ttl=59) if kind.method == "tun" else answer
                yield forward("c", from_router(error), "s", to_server(sent, 1))


@each(KINDS)
def test_about_unknown_flows(kind: Kind) -> Story:
    """Errors about flows that are not ours are the host's."""
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    stranger = ip(kind.plan.vip, kind.plan.client, 50) / segment(kind.protocol, kind.vport, kind.sport + 7)
    for error in makers(kind.plan.client, kind.plan.vip, bytes(stranger), 60):
        yield left("c", from_router(error))
    stranger = ip(kind.plan.client, kind.plan.servers[0], 50) / segment(kind.protocol, kind.sport + 7, kind.rport)
    for error in makers(kind.plan.servers[0], kind.plan.client, bytes(stranger), 60):
        yield left("s", from_server(error))


@each(NAT_KINDS)
def test_broken_error(kind: Kind) -> Story:
    """An ICMP error with a wrong checksum is dropped, from either side."""
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    for error in makers(kind.plan.servers[0], kind.plan.client, bytes(kind.delivered()), 60):
        yield dropped("s", from_server(bytes(error)[:-1] + bytes([bytes(error)[-1] ^ 0x10])))
    for error in makers(kind.plan.client, kind.plan.vip, bytes(kind.returned(50)), 60):
        yield dropped("c", from_router(bytes(error)[:-1] + bytes([bytes(error)[-1] ^ 0x10])))


@each(KINDS)
def test_error_on_its_last_hop(kind: Kind) -> Story:
    """No error is sent about an error: with TTL 1 it ends in silence."""
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    for error in makers(kind.plan.client, kind.plan.vip, bytes(kind.returned(50)), 1):
        yield dropped("c", from_router(error))


@each(NAT_KINDS)
def test_other_types(kind: Kind) -> Story:
    """Redirects and (IPv4) parameter problems are the host's; ICMPv6 parameter problems are followed."""
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    seen = kind.delivered()
    server, client = kind.plan.servers[0], kind.plan.client
    if kind.family == 4:
        for message in (ICMP(type=5, code=1, gw="10.1.0.250"), ICMP(type=12, code=0, ptr=20), ICMP(type=13)):
            yield left("s", from_server(ip(server, client) / message / Raw(bytes(seen))))
        return
    known = requoted(seen, seen, kind.request(63))
    problem = ip(server, client, 60) / ICMPv6ParamProblem(code=1, ptr=40) / Raw(bytes(seen))
    answer = ip(kind.plan.vip, client, 59) / ICMPv6ParamProblem(code=1, ptr=40) / Raw(known)
    yield forward("s", from_server(problem), "c", to_router(answer))
