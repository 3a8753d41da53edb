"""ICMP errors about the director's own tunnel packets: the client hears of them, and the path's MTU is learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cases.craft import (
    V4,
    Kind,
    endpoint,
    exceeded,
    from_router,
    from_server,
    host,
    outer,
    own,
    to_router,
    to_server,
    too_big,
    unreachable,
)  # fmt: skip
from cases.table import Run, Story, Wait, commands, dropped, each, forward, judge, left, reply
from packets import checksum, splice
from scapy.layers.inet import IP, UDP
from scapy.packet import Packet, Raw

KINDS = [Kind("tun", 4, "tcp"), Kind("tun", 4, "udp")]
DF = {"flags": "DF"}
FAR = "10.1.0.250"


def tunnelled(kind: Kind, df: bool = True, **fields: Any) -> Packet:
    """What the director sends for `request`."""
    return kind.delivered(head=DF if df else {}, **fields)


@each(KINDS)
def test_relayed(kind: Kind) -> Story:
    """Unreachable and time exceeded: the same to the client, in the VIP's name, about its own packet."""
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request(head=DF)), "s", to_server(tunnelled(kind)))
    packet, mine = bytes(tunnelled(kind)), kind.request(63, head=DF)
    for make in (unreachable, exceeded):
        error = from_server(make(FAR, V4.director_s, packet))
        yield reply("s", error, "c", to_router(own(make, V4.vip, V4.client, mine)))
    short = packet[: 20 + 24]  # the ports are there, and nothing behind them
    error = from_server(unreachable(FAR, V4.director_s, short))
    yield reply("s", error, "c", to_router(own(unreachable, V4.vip, V4.client, bytes(mine)[:24])))


@each(KINDS)
def test_learns_the_mtu(kind: Kind) -> Story:
    """The old MTU is named once, the new one holds from the next packet on, for ten minutes."""
    yield from commands(kind.commands())
    yield Run("--set 3000 0 3000")
    big = bytes(1400)
    request, mine = kind.request(head=DF, payload=big), bytes(kind.request(63, head=DF, payload=big))
    sent = tunnelled(kind, payload=big)
    yield forward("c", from_router(request), "s", to_server(sent))
    told = from_server(too_big(FAR, V4.director_s, bytes(sent)[:556], 1380))
    quoted = mine[: 556 - 20]
    yield reply("s", told, "c", to_router(own(too_big, V4.vip, V4.client, quoted, 1480)))
    yield reply("c", from_router(request), "c", to_router(own(too_big, V4.vip, V4.client, mine, 1360)))
    again = from_server(too_big(FAR, V4.director_s, bytes(sent)[:556], 1480))  # no way back up
    yield reply("s", again, "c", to_router(own(too_big, V4.vip, V4.client, quoted, 1360)))
    lowest = from_server(too_big(FAR, V4.director_s, bytes(sent)[:556], 68))
    yield reply("s", lowest, "c", to_router(own(too_big, V4.vip, V4.client, quoted, 1360)))
    yield reply("c", from_router(request), "c", to_router(own(too_big, V4.vip, V4.client, mine, 532)))
    if kind.protocol == "udp":
        yield Wait(601)
        yield forward("c", from_router(request), "s", to_server(sent))


@each(KINDS)
def test_others(kind: Kind) -> Story:
    """Errors about what is not ours, cut off or broken."""
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request(head=DF)), "s", to_server(tunnelled(kind)))
    packet = bytes(tunnelled(kind))
    for quoted in (
        packet[:28],  # as little as a router may quote
        bytes(outer(V4, bytes(kind.request(63, sport=999)), df=True)),  # no such flow
        bytes(outer(V4, bytes(kind.request(63, head=DF)), 1, df=True)),  # another server
        bytes(IP(src=V4.director_s, dst=V4.servers[0], proto=47) / Raw(b"\0\0\x08\0" + packet[20:])),  # no such tunnel
        packet[:20] + packet[20:26] + b"\x00\x10" + packet[28:],  # a later fragment inside
    ):
        yield left("s", from_server(unreachable(FAR, V4.director_s, quoted)))
    error = bytes(unreachable(FAR, V4.director_s, packet))
    yield dropped("s", from_server(error[:-1] + bytes([error[-1] ^ 1])))
    clear = bytes(tunnelled(kind, df=False))  # whose sender does not care: nothing to tell it
    yield dropped("s", from_server(too_big(FAR, V4.director_s, clear, 1300)))


@pytest.mark.parametrize("tunnel", ["gre", "gre --tun-csum", "gue --tun-port 6080", "gue --tun-port 6080 --tun-csum"])
def test_other_tunnels(tunnel: str, directors: Callable[..., Any]) -> None:
    """GRE and GUE are taken off before the client's packet is looked at; their headers count in the MTU."""
    director, kind = directors(**host()), Kind("tun", 4, "udp")
    line = f"-a {kind.service} -r {endpoint(V4.servers[0], 53)} -i --tun-type {tunnel}"
    for command in (f"-A {kind.service} -s rr", line):
        assert director.ipvsadm(command).returncode == 0
    (outcome,) = director.process([("c", from_router(kind.request(head=DF)))], now=1.0)
    packet = outcome.frames[0][1][14:]
    mine = bytes(kind.request(63, head=DF))
    room = 1500 - (len(packet) - len(mine))
    error = from_server(too_big(FAR, V4.director_s, packet, 1300))
    (outcome,) = director.process([("s", error)], now=1.1)
    answer = to_router(own(too_big, V4.vip, V4.client, mine, room))
    judge(reply("s", error, "c", answer), outcome)
    big = kind.request(head=DF, payload=bytes(1300))
    quoted = bytes(kind.request(63, head=DF, payload=bytes(1300)))
    (outcome,) = director.process([("c", from_router(big))], now=1.2)
    answer = to_router(own(too_big, V4.vip, V4.client, quoted, room - 200))
    judge(reply("c", from_router(big), "c", answer), outcome)
    for length in range(20, len(packet)):  # cut off anywhere: never an answer that quotes what is not there
        error = from_server(unreachable(FAR, V4.director_s, packet[:length]))
        (outcome,) = director.process([("s", error)], now=1.3)
        assert outcome.verdict in ("pass", "reply")


@pytest.mark.parametrize("kind", [Kind("nat", family, protocol) for family in (4, 6) for protocol in ("tcp", "udp")])
def test_scheduled_by_an_error(kind: Kind, directors: Callable[..., Any]) -> None:
    """schedule_icmp: an error about an unknown flow chooses a server for it; without, it is the host's."""
    director = directors(**host())
    for command in kind.commands():
        assert director.ipvsadm(command).returncode == 0
    seen = kind.returned(50)
    error = from_router(unreachable(kind.plan.client, kind.plan.vip, bytes(seen)))
    (outcome,) = director.process([("c", error)], now=1.0)
    assert outcome.verdict == "pass" and not director.connections()
    director.settings["schedule_icmp"] = 1
    (outcome,) = director.process([("c", error)], now=1.1)
    assert outcome.verdict == "forward" and len(outcome.frames) == 1
    (connection,) = director.connections()
    assert (connection.dest, connection.dest_port) == (kind.plan.servers[0], kind.rport)
    assert connection.client_port == kind.sport


def test_ipsec_follows_isakmp(directors: Callable[..., Any]) -> None:
    """ESP and AH go where the ISAKMP connection goes, addresses translated, and back."""
    director = directors(**host())
    for command in (f"-A -u {V4.vip}:500 -s rr", f"-a -u {V4.vip}:500 -r {V4.servers[0]}:500 -m"):
        assert director.ipvsadm(command).returncode == 0
    for proto in (50, 51):
        packet = IP(src=V4.client, dst=V4.vip, proto=proto, id=7) / Raw(bytes(60))
        (outcome,) = director.process([("c", from_router(packet))], now=1.0)
        assert outcome.verdict == "pass"
    isakmp = IP(src=V4.client, dst=V4.vip) / UDP(sport=500, dport=500) / Raw(b"hello")
    director.process([("c", from_router(isakmp))], now=1.1)
    for proto in (50, 51):
        packet = IP(src=V4.client, dst=V4.vip, proto=proto, id=7) / Raw(bytes(60))
        sent = IP(src=V4.client, dst=V4.servers[0], proto=proto, id=7, ttl=63) / Raw(bytes(60))
        (outcome,) = director.process([("c", from_router(packet))], now=1.2)
        judge(forward("c", from_router(packet), "s", to_server(sent)), outcome)
        packet = IP(src=V4.servers[0], dst=V4.client, proto=proto, id=7) / Raw(bytes(60))
        sent = IP(src=V4.vip, dst=V4.client, proto=proto, id=7, ttl=63) / Raw(bytes(60))
        (outcome,) = director.process([("s", from_server(packet))], now=1.3)
        judge(forward("s", from_server(packet), "c", to_router(sent)), outcome)


def test_options(directors: Callable[..., Any]) -> None:
    """Routes are recorded, source routes and nonsense refused, and no length is believed."""
    director, kind = directors(**host()), Kind("nat", 4, "udp")
    for command in kind.commands():
        assert director.ipvsadm(command).returncode == 0

    def sent(option: bytes) -> Any:
        option += bytes(-len(option) % 4)
        packet = bytes(kind.request())
        size = 20 + len(option)
        head = bytes([0x40 | size // 4, 0]) + (len(packet) + len(option)).to_bytes(2, "big") + packet[4:20] + option
        head = splice(splice(head, 10, b"\0\0"), 10, checksum(splice(head, 10, b"\0\0")))
        (outcome,) = director.process([("c", from_router(head + packet[20:]))], now=1.0)
        return outcome

    outcome = sent(bytes([7, 11, 4]) + bytes(8))
    assert outcome.frames[0][1][34:46] == bytes([7, 11, 8, 10, 0, 0, 100]) + bytes(5)
    outcome = sent(bytes([68, 12, 5, 1]) + bytes(8))
    assert outcome.frames[0][1][34:42] == bytes([68, 12, 13, 1, 10, 0, 0, 100])
    assert sent(bytes([131, 7, 4, 1, 2, 3, 4])).reason == "bad_option"
    assert sent(bytes([7, 40, 4])).verdict == "reply"
    for kinds in (0, 1, 2, 7, 68, 130, 131, 136, 137, 148, 255):
        for second in range(0, 256, 5):
            assert sent(bytes([kinds, second, kinds ^ second, second, 4, 5, 6, 7])).verdict
