"""The host beside the balancer: ARP, neighbour discovery, echo, closed ports, next hops.

A VIP of our own is one that stands on no interface: nobody but pylvs answers for it. A VIP on lo is the host's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cases.craft import (
    C_MAC,
    FLAG,
    NEAR_MAC,
    NEIGHBOURS,
    PLANS,
    ROUTER_MAC,
    V4,
    V6,
    Kind,
    endpoint,
    ethernet,
    exceeded,
    from_router,
    host,
    ip,
    outer,
    own,
    segment,
    to_router,
    to_server,
    unreachable,
)  # fmt: skip
from cases.table import Check, Configure, Host, Run, Story, commands, dropped, each, forward, judge, left, reply
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)  # fmt: skip
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

KINDS = [Kind("nat", family, protocol) for family in (4, 6) for protocol in ("tcp", "udp")]
FAMILIES = [Kind("nat", 4, "tcp"), Kind("dr", 6, "udp")]
OURS = Host(host(vips=()))


def who_has(target: str, source: str = V4.near, mac: str = NEAR_MAC) -> bytes:
    """A broadcast ARP request."""
    return bytes(
        Ether(src=mac, dst="ff:ff:ff:ff:ff:ff")
        / ARP(op=1, hwsrc=mac, psrc=source, hwdst="00:00:00:00:00:00", pdst=target)
    )


def is_at(target: str, source: str = V4.near, mac: str = NEAR_MAC) -> bytes:
    """The answer: the link's own MAC."""
    return bytes(Ether(src=C_MAC, dst=mac) / ARP(op=2, hwsrc=C_MAC, psrc=target, hwdst=mac, pdst=source))


@each([Kind(method, 4, protocol) for method in ("nat", "dr", "tun") for protocol in ("tcp", "udp")])
def test_arp_for_our_own_vip(kind: Kind) -> Story:
    """pylvs answers for a VIP that is on no interface, while there is a service for it."""
    yield OURS
    yield left("c", who_has(V4.vip), "no service yet")
    yield from commands(kind.commands())
    yield reply("c", who_has(V4.vip), "c", is_at(V4.vip))
    yield reply("c", who_has(V4.vip, V4.router, ROUTER_MAC), "c", is_at(V4.vip, V4.router, ROUTER_MAC))
    yield left("c", who_has("10.0.0.101"), "somebody else's")
    yield left("c", who_has(V4.director_c), "the host's own")
    unicast = Ether(src=NEAR_MAC, dst=C_MAC) / ARP(op=1, hwsrc=NEAR_MAC, psrc=V4.near, pdst=V4.vip)
    yield reply("c", bytes(unicast), "c", is_at(V4.vip))
    answer = Ether(src=NEAR_MAC, dst=C_MAC) / ARP(op=2, hwsrc=NEAR_MAC, psrc=V4.near, hwdst=C_MAC, pdst=V4.vip)
    yield left("c", bytes(answer), "an answer is no question")
    yield Run(f"-D {kind.service}")
    yield left("c", who_has(V4.vip), "no service any more")


@each([Kind("dr", 4, "tcp")])
def test_arp_request_with_padding(kind: Kind) -> Story:
    """ARP requests come padded to 60 bytes."""
    yield OURS
    yield from commands(kind.commands())
    yield reply("c", who_has(V4.vip) + bytes(18), "c", is_at(V4.vip))


@each([Kind("dr", 4, "tcp")])
def test_arp_for_the_hosts_vip(kind: Kind) -> Story:
    """The host answers for what it has."""
    yield from commands(kind.commands())
    yield left("c", who_has(V4.vip))


def solicitation(target: str, source: str = V6.near, mac: str = NEAR_MAC) -> bytes:
    """A neighbour solicitation to the solicited-node group."""
    low = int(target.rpartition(":")[2], 16)
    frame = Ether(src=mac, dst=f"33:33:ff:00:{low >> 8:02x}:{low & 255:02x}")
    packet = IPv6(src=source, dst=f"ff02::1:ff00:{low:x}", hlim=255) / ICMPv6ND_NS(tgt=target)
    return bytes(frame / packet / ICMPv6NDOptSrcLLAddr(lladdr=mac))


def advertisement(target: str, router: int, source: str = V6.near, mac: str = NEAR_MAC) -> bytes:
    """The answer: solicited, overriding, with the link's own MAC."""
    packet = Ether(src=C_MAC, dst=mac) / IPv6(src=target, dst=source, hlim=255)
    return bytes(packet / ICMPv6ND_NA(tgt=target, R=router, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=C_MAC))


@pytest.mark.parametrize("kind", [Kind(method, 6, "tcp") for method in ("nat", "dr", "tun")], ids=str)
def test_neighbour_discovery_for_our_own_vip(kind: Kind, directors: Callable[..., Any]) -> None:
    """The same in IPv6. The router flag is the director's affair; everything else is fixed."""
    director = directors(**host(vips=()))
    (outcome,) = director.process([("c", solicitation(V6.vip))], now=1.0)
    assert (outcome.verdict, outcome.frames) == ("pass", [])
    for line in kind.commands():
        assert director.ipvsadm(line).returncode == 0
    for source, mac in ((V6.near, NEAR_MAC), (V6.router, ROUTER_MAC)):
        (outcome,) = director.process([("c", solicitation(V6.vip, source, mac))], now=2.0)
        assert outcome.verdict == "reply"
        assert outcome.frames in [[("c", advertisement(V6.vip, router, source, mac))] for router in (0, 1)]
    for target in ("fd00:c::101", V6.director_c):
        (outcome,) = director.process([("c", solicitation(target))], now=3.0)
        assert (outcome.verdict, outcome.frames) == ("pass", [])


def test_neighbour_discovery_for_the_hosts_vip(directors: Callable[..., Any]) -> None:
    """The host answers for what it has."""
    kind = Kind("dr", 6, "tcp")
    director = directors(**host())
    for line in kind.commands():
        assert director.ipvsadm(line).returncode == 0
    (outcome,) = director.process([("c", solicitation(V6.vip))], now=2.0)
    assert (outcome.verdict, outcome.frames) == ("pass", [])


def test_wrong_solicitations_are_not_answered(directors: Callable[..., Any]) -> None:
    """RFC 4861 §7.1.1: hop limit 255, code 0, a right checksum; anything else is not even looked at."""
    kind = Kind("dr", 6, "tcp")
    director = directors(**host(vips=()))
    for line in kind.commands():
        assert director.ipvsadm(line).returncode == 0
    right = solicitation(V6.vip)
    for at, value in ((21, 254), (54 + 1, 1), (54 + 2, right[56] ^ 1)):
        frame = right[:at] + bytes([value]) + right[at + 1 :]
        (outcome,) = director.process([("c", frame)], now=2.0)
        assert outcome.verdict in ("pass", "drop"), (at, outcome.verdict)
        assert outcome.frames == []


def ping(
    family: int, target: str, kind: str = "request", payload: bytes = b"ping!", ttl: int = 64, **fields: Any
) -> Packet:
    """An echo request to `target` or the reply from it."""
    client = PLANS[family].client
    if family == 4:
        header = ip(client, target, ttl, **fields) if kind == "request" else ip(target, client, ttl, **fields)
        return header / ICMP(type=8 if kind == "request" else 0, id=7, seq=9) / Raw(payload)
    message = (ICMPv6EchoRequest if kind == "request" else ICMPv6EchoReply)(id=7, seq=9, data=payload)
    return (ip(client, target, ttl, **fields) if kind == "request" else ip(target, client, ttl, **fields)) / message


@each(FAMILIES)
def test_echo_to_our_own_vip(kind: Kind) -> Story:
    """A ping is answered as the host would: the same identifier, number and payload, from the VIP."""
    yield OURS
    yield left("c", from_router(ping(kind.family, kind.plan.vip)), "no service yet")
    yield from commands(kind.commands())
    for payload in (b"", b"odd", bytes(56), bytes(range(256)) * 5):
        answer = ping(kind.family, kind.plan.vip, "reply", payload, ident=0)
        yield reply("c", from_router(ping(kind.family, kind.plan.vip, payload=payload, ttl=9)), "c", to_router(answer))
    yield left("c", from_router(ping(kind.family, kind.plan.director_c)), "the host's own address")
    yield left("c", from_router(ping(kind.family, kind.plan.far)), "not ours")


@each(FAMILIES)
def test_echo_to_the_hosts_vip(kind: Kind) -> Story:
    """Echo is never balanced."""
    yield from commands(kind.commands())
    yield left("c", from_router(ping(kind.family, kind.plan.vip)))
    yield left("c", from_router(ping(kind.family, kind.plan.vip, "reply")))


@each(KINDS)
def test_balancing_for_our_own_vip(kind: Kind) -> Story:
    """Where the VIP stands makes no difference to what is balanced."""
    yield OURS
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    yield forward("c", from_router(kind.request(flags="A")), "s", to_server(kind.delivered(flags="A")))


def reset(packet: Packet, family: int) -> Packet:
    """What a host says to a segment for nobody (RFC 9293 §3.10.7.1)."""
    plan, segment = PLANS[family], packet[TCP]
    head = ip(plan.vip, plan.client, 64, ident=0, flags="DF")
    if segment.flags.A:
        return head / TCP(sport=segment.dport, dport=segment.sport, flags="R", seq=segment.ack, window=0)
    length = len(bytes(segment.payload)) + bool(segment.flags.S) + bool(segment.flags.F)
    return head / TCP(sport=segment.dport, dport=segment.sport, flags="RA", seq=0, ack=segment.seq + length, window=0)


@each([Kind("nat", 4, "tcp"), Kind("dr", 6, "tcp")])
def test_stray_segments_to_our_own_vip(kind: Kind) -> Story:
    """A segment of no connection, or to a closed port, is answered with a reset; a reset is not."""
    yield OURS
    yield from commands(kind.commands())
    for flags in ("A", "PA", "FA", "F", ""):
        request = kind.request(flags=flags)
        yield reply("c", from_router(request), "c", to_router(reset(request, kind.family)), note=flags)
    for flags in ("S", "A"):
        request = kind.request(flags=flags)
        request[TCP].dport = 81
        yield reply(
            "c", from_router(request), "c", to_router(reset(request, kind.family)), note=f"closed port, {flags}"
        )


@each([Kind(method, family, protocol) for method in ("nat", "dr") for family in (4, 6) for protocol in ("tcp", "udp")])
def test_answers_keep_the_vlan_tag(kind: Kind) -> Story:
    """Whoever asked from a VLAN that is no link of the host is answered there, or would never hear it."""
    tag, plan = {"vlan": 5, "priority": 3}, kind.plan
    yield OURS
    yield Run(f"-A {kind.service} -s rr")
    request = kind.request()
    answer = own(unreachable, plan.vip, plan.client, request)
    yield reply("c", from_router(request, **tag), "c", to_router(answer, **tag), note="no server")
    yield Run(f"-a {kind.service} {kind.server()} {FLAG[kind.method]}")
    request = kind.request(1)
    answer = own(exceeded, plan.vip, plan.client, request)
    yield reply("c", from_router(request, **tag), "c", to_router(answer, **tag), note="TTL 1")
    answer = ping(kind.family, plan.vip, "reply", ident=0)
    yield reply("c", from_router(ping(kind.family, plan.vip), **tag), "c", to_router(answer, **tag), note="echo")
    if kind.protocol == "tcp":
        request = kind.request(flags="A", sport=4)
        answer = reset(request, kind.family)
        yield reply("c", from_router(request, **tag), "c", to_router(answer, **tag), note="stray ACK")
    if kind.family == 4:
        asked, told = who_has(plan.vip), is_at(plan.vip)
        shim = bytes.fromhex("81006005")
        yield reply("c", asked[:12] + shim + asked[12:], "c", told[:12] + shim + told[12:], note="ARP")


@pytest.mark.parametrize("kind", [Kind("nat", 4, "tcp"), Kind("dr", 6, "tcp")], ids=str)
def test_stray_resets_to_our_own_vip(kind: Kind, directors: Callable[..., Any]) -> None:
    """Nobody answers a reset."""
    director = directors(**host(vips=()))
    for line in kind.commands():
        assert director.ipvsadm(line).returncode == 0
    for flags in ("R", "RA", "SR"):
        (outcome,) = director.process([("c", from_router(kind.request(flags=flags)))], now=1.0)
        assert outcome.verdict in ("pass", "drop")
        assert outcome.frames == []


@each([Kind("nat", 4, "udp"), Kind("dr", 6, "udp")])
def test_closed_udp_port_of_our_own_vip(kind: Kind) -> Story:
    """Port unreachable, as from a host."""
    yield OURS
    yield from commands(kind.commands())
    request = kind.request()
    request.payload.dport = 54
    answer = own(unreachable, kind.plan.vip, kind.plan.client, request)
    yield reply("c", from_router(request), "c", to_router(answer))


@each(KINDS)
def test_vip_moves_to_the_host_and_back(kind: Kind) -> Story:
    """The host's configuration is followed; flows live on."""
    yield OURS
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    yield reply("c", who_has(V4.vip), "c", is_at(V4.vip)) if kind.family == 4 else left("c", who_has(V4.vip))
    yield Configure({"interfaces": host()["interfaces"]})
    yield left("c", who_has(V4.vip))
    yield left("c", from_router(ping(kind.family, kind.plan.vip)))
    yield forward("c", from_router(kind.request(flags="A")), "s", to_server(kind.delivered(flags="A")))
    yield Configure({"interfaces": host(vips=())["interfaces"]})
    yield reply("c", who_has(V4.vip), "c", is_at(V4.vip)) if kind.family == 4 else left("c", who_has(V4.vip))
    yield forward("c", from_router(kind.request(flags="A")), "s", to_server(kind.delivered(flags="A")))


@each([Kind(method, family, "udp") for method in ("nat", "dr", "tun") for family in (4, 6)])
def test_neighbour_changes_its_mac(kind: Kind) -> Story:
    """A real server's new MAC holds for its flows at once."""
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    yield Configure({"neighbours": {**NEIGHBOURS, kind.plan.servers[0]: "02:00:00:00:09:99"}})
    frame = ethernet("02:00:00:00:00:02", "02:00:00:00:09:99", kind.delivered())
    yield forward("c", from_router(kind.request()), "s", frame)


@pytest.mark.parametrize(
    "kind", [Kind(method, family, "udp") for method in ("nat", "dr", "tun") for family in (4, 6)], ids=str
)
def test_unknown_neighbour(kind: Kind, directors: Callable[..., Any]) -> None:
    """A frame whose next hop is not resolved waits; it is never sent to a guessed station."""
    director = directors(**host(neighbours={V4.router: ROUTER_MAC, V6.router: ROUTER_MAC}))
    for line in kind.commands():
        assert director.ipvsadm(line).returncode == 0
    step = forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    (outcome,) = director.process([(step.interface, step.frame)], now=1.0)
    assert (outcome.verdict, outcome.frames) == ("forward", [])
    director.configure(neighbours=dict(NEIGHBOURS))
    late = director.advance(now=1.2)
    assert len(late) == 1
    judge(step, replace(outcome, frames=late))
    (outcome,) = director.process([(step.interface, step.frame)], now=1.3)
    judge(step, outcome)


@pytest.mark.parametrize("kind", [Kind("nat", 4, "tcp"), Kind("tun", 6, "udp")], ids=str)
def test_neighbour_that_never_answers(kind: Kind, directors: Callable[..., Any]) -> None:
    """Frames that waited in vain, and those for which there was no room to wait, are named drops."""
    director = directors(**host(neighbours={V4.router: ROUTER_MAC, V6.router: ROUTER_MAC}))
    for line in kind.commands():
        assert director.ipvsadm(line).returncode == 0
    batch = [("c", from_router(kind.request(sport=20000 + n))) for n in range(1000)]
    outcomes = director.process(batch, now=1.0)
    assert {outcome.verdict for outcome in outcomes} <= {"forward", "drop"}
    assert all(outcome.frames == [] for outcome in outcomes)
    assert director.advance(now=30.0) == []
    counters = director.counters()
    assert counters["received"] == sum(counters["drops"].values()) == 1000


@each([Kind(method, family, "tcp") for method in ("nat", "dr", "tun") for family in (4, 6)])
def test_link_goes_and_comes_back(kind: Kind) -> Story:
    """Without the servers' link frames are named drops; flows survive, and go on when it is back."""
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    links = host()["interfaces"]
    yield Configure({"interfaces": {**links, "s": {**links["s"], "up": False}}})
    yield dropped("c", from_router(kind.request(flags="A")))
    yield Configure({"interfaces": links})
    yield forward("c", from_router(kind.request(flags="A")), "s", to_server(kind.delivered(flags="A")))
    yield Configure({"interfaces": {name: link for name, link in links.items() if name != "s"}})
    yield Check(lambda director: director.advance(now=5.0))
    yield Configure({"interfaces": links})
    yield forward("c", from_router(kind.request(flags="PA")), "s", to_server(kind.delivered(flags="PA")))


@each([Kind(method, family, "udp") for method in ("nat", "tun") for family in (4, 6)])
def test_no_route(kind: Kind) -> Story:
    """A server that cannot be reached: a named drop."""
    far = "192.0.2.1" if kind.family == 4 else "2001:db8:dead::1"
    yield Host(host(routes={"198.18.0.0/15": V4.router, "2001:db8:1::/64": V6.router}))
    yield Run(f"-A {kind.service} -s rr")
    yield Run(f"-a {kind.service} -r {endpoint(far, kind.rport)} {FLAG[kind.method]}")
    yield dropped("c", from_router(kind.request()))


@each(
    [
        Kind(method, family, protocol)
        for method in ("nat", "dr", "tun")
        for family in (4, 6)
        for protocol in ("tcp", "udp")
    ]
)
def test_one_armed(kind: Kind) -> Story:
    """Client, director and real server on one link."""
    server = kind.plan.near
    yield Run(f"-A {kind.service} -s rr")
    yield Run(f"-a {kind.service} -r {endpoint(server, kind.rport)} {FLAG[kind.method]}")
    if kind.method == "nat":
        sent = ip(kind.plan.client, server, 63) / segment(kind.protocol, kind.sport, kind.rport)
    elif kind.method == "tun":
        sent = outer(kind.plan, kind.request(63))
        sent.src, sent.dst = kind.plan.director_c, server
    else:
        sent = kind.request(63)
    yield forward("c", from_router(kind.request()), "c", ethernet(C_MAC, NEAR_MAC, sent))
    if kind.method == "nat":
        answer = ip(server, kind.plan.client) / segment(kind.protocol, kind.rport, kind.sport, "SA")
        yield forward("c", ethernet(NEAR_MAC, C_MAC, answer), "c", to_router(kind.returned()))


@each([Kind(method, 4, protocol) for method in ("nat", "dr", "tun") for protocol in ("tcp", "udp")])
def test_vip_on_the_link_itself(kind: Kind) -> Story:
    """The VIP may be an ordinary address of the link; the host answers ARP and pings for it."""
    links = host()["interfaces"]
    links["c"]["addresses"] = [*links["c"]["addresses"], f"{V4.vip}/24"]
    links["lo"]["addresses"] = ["127.0.0.1/8"]
    yield Host(host() | {"interfaces": links})
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    yield left("c", who_has(V4.vip))
    yield left("c", from_router(ping(4, V4.vip)))


@each([Kind("nat", 4, "tcp")])
def test_prefix_on_lo(kind: Kind) -> Story:
    """An address of lo may be a prefix: all of it is local, and the host's to answer for."""
    links = host(vips=())["interfaces"]
    links["lo"]["addresses"] = ["127.0.0.1/8", "10.0.0.96/28"]
    yield Host(host() | {"interfaces": links})
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    yield left("c", who_has(V4.vip))


def test_frames_of_other_protocols(directors: Callable[..., Any]) -> None:
    """STP, LLDP, 802.1X, jumbo LLC, empty frames: the host's, unless cut off."""
    director = directors(**host())
    frames = [
        bytes.fromhex("0180c2000000") + bytes.fromhex(NEAR_MAC.replace(":", "")) + b"\x00\x26" + bytes(38),
        bytes.fromhex("0180c200000e") + bytes.fromhex(NEAR_MAC.replace(":", "")) + b"\x88\xcc" + bytes(46),
        ethernet(NEAR_MAC, C_MAC, bytes(IP(src=V4.near, dst=V4.vip, proto=253) / Raw(b"x" * 30))),
        ethernet(NEAR_MAC, C_MAC, bytes(IP(src=V4.near, dst=V4.vip, proto=2) / Raw(b"x" * 8))),
        bytes.fromhex((C_MAC + NEAR_MAC).replace(":", "")) + b"\x88\x8e" + bytes(4),
    ]
    outcomes = director.process([("c", frame) for frame in frames], now=1.0)
    assert [(outcome.verdict, outcome.frames) for outcome in outcomes] == [("pass", [])] * len(frames)


def test_unknown_interface_is_refused(directors: Callable[..., Any]) -> None:
    """A frame cannot come from an interface that is not there."""
    kind = Kind("nat", 4, "tcp")
    director = directors(**host())
    with pytest.raises((KeyError, ValueError)):
        director.process([("nowhere", from_router(kind.request()))], now=1.0)
