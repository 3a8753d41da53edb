"""Headers around the flow: VLAN tags, IPv4 options, IPv6 extension headers, traffic classes, DF."""

from __future__ import annotations

from typing import Any

from cases.craft import KINDS, Kind, from_router, from_server, ip, outer, segment, to_router, to_server
from cases.table import Story, commands, each, forward
from scapy.layers.inet import IPOption_Router_Alert
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrHopByHop, PadN
from scapy.packet import Packet

V4_KINDS = [kind for kind in KINDS if kind.family == 4]
V6_KINDS = [kind for kind in KINDS if kind.family == 6]


@each(KINDS)
def test_vlan_tag_stays(kind: Kind) -> Story:
    """A tagged frame whose VLAN is not a link of the host keeps its tag, priority included, in what is forwarded."""
    yield from commands(kind.commands())
    tag = {"vlan": 5, "priority": 3}
    yield forward("c", from_router(kind.request(), **tag), "s", to_server(kind.delivered(), **tag))
    yield forward("c", from_router(kind.request(flags="A")), "s", to_server(kind.delivered(flags="A")), note="untagged")
    if kind.method == "nat":
        tag = {"vlan": 4095, "priority": 0}
        yield forward("s", from_server(kind.reply(), **tag), "c", to_router(kind.returned(), **tag))


@each(V4_KINDS)
def test_ipv4_options(kind: Kind) -> Story:
    """Options travel with the packet they are of; a tunnel's outer header has none."""
    yield from commands(kind.commands())
    head = {"options": [IPOption_Router_Alert()]}
    yield forward("c", from_router(kind.request(head=head)), "s", to_server(kind.delivered(head=head)))
    head = {"options": b"\x01" * 39 + b"\x00"}
    yield forward("c", from_router(kind.request(head=head)), "s", to_server(kind.delivered(head=head)), note="the most")
    if kind.method == "nat":
        yield forward("s", from_server(kind.reply(head=head)), "c", to_router(kind.returned(head=head)))


def extended(kind: Kind, source: str, target: str, ttl: int, dport: int, *extensions: Packet, **fields: Any) -> Packet:
    """A packet with extension headers."""
    packet = ip(source, target, ttl, **fields)
    for extension in extensions:
        packet = packet / extension.copy()
    return packet / segment(kind.protocol, kind.sport, dport)


@each(V6_KINDS)
def test_ipv6_extension_headers(kind: Kind) -> Story:
    """Hop-by-hop and destination options are walked over and left as they are."""
    yield from commands(kind.commands())
    long = IPv6ExtHdrDestOpt(options=[PadN(otype=1, optdata=bytes(60))])
    for extensions in (
        [IPv6ExtHdrDestOpt()],
        [IPv6ExtHdrHopByHop()],
        [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt()],
        [IPv6ExtHdrHopByHop(), long, IPv6ExtHdrDestOpt()],
    ):
        plan = kind.plan
        request = extended(kind, plan.client, plan.vip, 64, kind.vport, *extensions)
        if kind.method == "nat":
            sent = extended(kind, plan.client, plan.servers[0], 63, kind.rport, *extensions)
        else:
            sent = extended(kind, plan.client, plan.vip, 63, kind.vport, *extensions)
        if kind.method == "tun":
            sent = outer(plan, sent)
        yield forward("c", from_router(request), "s", to_server(sent), note=f"{len(extensions)} extension headers")


@each(KINDS)
def test_traffic_class(kind: Kind) -> Story:
    """TOS or traffic class stays; a tunnel copies it outwards, except that congestion becomes ECT(0)."""
    yield from commands(kind.commands())
    for tos in (0xB8, 0x01, 0x02, 0xBA):
        head = {"tos": tos}
        yield forward(
            "c", from_router(kind.request(head=head)), "s", to_server(kind.delivered(head=head)), note=f"tos {tos:#x}"
        )
    head = {"tos": 0xBB}
    delivered = kind.delivered(head=head)
    if kind.method == "tun":
        inner = kind.request(63, head=head)
        delivered = outer(kind.plan, inner, tos=0xBA)
    yield forward("c", from_router(kind.request(head=head)), "s", to_server(delivered), note="congestion")


@each(V6_KINDS)
def test_flow_label(kind: Kind) -> Story:
    """The flow label stays; a tunnel's outer header has none."""
    yield from commands(kind.commands())
    head = {"fl": 0x12345}
    delivered = kind.delivered(head=head)
    yield forward("c", from_router(kind.request(head=head)), "s", to_server(delivered))


@each(V4_KINDS)
def test_dont_fragment(kind: Kind) -> Story:
    """DF stays, and a tunnel copies it outwards, where the identification is then 0."""
    yield from commands(kind.commands())
    for head in ({"flags": "DF"}, {"flags": 0}, {"flags": "DF", "ident": 0}):
        yield forward("c", from_router(kind.request(head=head)), "s", to_server(kind.delivered(head=head)))


@each([kind for kind in KINDS if kind.protocol == "tcp"])
def test_tcp_options_and_urgent(kind: Kind) -> Story:
    """Whatever the method, of a TCP header only ports and checksum ever change."""
    yield from commands(kind.commands())
    fields = {
        "flags": "SU",
        "urgptr": 9,
        "options": [("MSS", 1460), ("SAckOK", b""), ("NOP", None), ("WScale", 7)],
        "reserved": 5,
    }
    yield forward("c", from_router(kind.request(**fields)), "s", to_server(kind.delivered(**fields)))
