"""NAT: replies translated back, ports mapped, UDP checksums completed."""

from __future__ import annotations

from cases.craft import (
    NAT_KINDS,
    Kind,
    exceeded,
    from_router,
    from_server,
    host,
    ip,
    own,
    segment,
    to_router,
    to_server,
    too_big,
)  # fmt: skip
from cases.table import Check, Host, Run, Story, commands, each, forward, left, reply
from packets import total
from scapy.packet import Packet

UDP_KINDS = [kind for kind in NAT_KINDS if kind.protocol == "udp"]


def opened(kind: Kind) -> Story:
    """A service with one server, and a flow."""
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))


@each(NAT_KINDS)
def test_reply(kind: Kind) -> Story:
    """The client sees answers from the VIP only, with one hop less."""
    yield from opened(kind)
    yield forward("s", from_server(kind.reply()), "c", to_router(kind.returned()))
    for ttl in (2, 255):
        fields = {"flags": "PA", "payload": b"the answer"}
        yield forward("s", from_server(kind.reply(ttl=ttl, **fields)), "c", to_router(kind.returned(ttl - 1, **fields)))

    def listed(director) -> None:
        (connection,) = director.connections()
        assert connection.packets == 1  # of the client's side
        assert connection.state == ("ESTABLISHED" if kind.protocol == "tcp" else "UDP")

    yield Check(listed)


@each(NAT_KINDS)
def test_conversation(kind: Kind) -> Story:
    """Both ways in turn, in one batch too."""
    yield from opened(kind)
    for turn in range(4):
        fields = {"flags": "PA", "payload": bytes(range(turn, turn + 33))}
        yield forward("s", from_server(kind.reply(**fields)), "c", to_router(kind.returned(**fields)))
        yield forward("c", from_router(kind.request(**fields)), "s", to_server(kind.delivered(**fields)))


@each(NAT_KINDS)
def test_reply_on_its_last_hop(kind: Kind) -> Story:
    """The host's routing comes before the balancer: time exceeded goes to the server, untranslated."""
    yield from opened(kind)
    answer = kind.reply(ttl=1)
    error = own(exceeded, kind.plan.director_s, kind.plan.servers[0], answer)
    yield reply("s", from_server(answer), "s", to_server(error))


@each(NAT_KINDS)
def test_reply_too_big(kind: Kind) -> Story:
    """Likewise what does not fit towards the client: the server is told, with its own packet as it sent it."""
    yield Host(host(c_mtu=1400))
    yield from opened(kind)
    most = 1400 - (20 if kind.family == 4 else 40) - (20 if kind.protocol == "tcp" else 8)
    fields = {"payload": b"\x5a" * most, "head": {"flags": "DF"}, "flags": "A"}
    yield forward("s", from_server(kind.reply(**fields)), "c", to_router(kind.returned(**fields)))
    fields["payload"] += b"\x5a"
    answer = kind.reply(**fields)
    error = own(too_big, kind.plan.director_s, kind.plan.servers[0], answer, 1400)
    yield reply("s", from_server(answer), "s", to_server(error))


@each(NAT_KINDS)
def test_what_is_no_reply(kind: Kind) -> Story:
    """A server's packets of no known flow are the host's to forward, whatever port they come from."""
    yield from opened(kind)
    for sport, dport in ((kind.rport, kind.sport + 1), (2222, kind.sport), (kind.vport, kind.sport)):
        stray = ip(kind.plan.servers[0], kind.plan.client) / segment(kind.protocol, sport, dport, "SA")
        yield left("s", from_server(stray), f"{sport} to {dport}")
    other = ip(kind.plan.servers[1], kind.plan.client) / segment(kind.protocol, kind.rport, kind.sport, "SA")
    yield left("s", from_server(other, 1), "another server")
    protocol = "udp" if kind.protocol == "tcp" else "tcp"
    other = ip(kind.plan.servers[0], kind.plan.client) / segment(protocol, kind.rport, kind.sport, "SA")
    yield left("s", from_server(other), "another protocol")


@each(NAT_KINDS)
def test_two_servers_two_clients(kind: Kind) -> Story:
    """The same ports of different servers and clients are different flows."""
    yield from commands(kind.commands(1, 1))
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered(1), 1))
    source = kind.plan.far
    yield forward("c", from_router(kind.request(source=source)), "s", to_server(kind.delivered(0, source=source)))
    yield forward("s", from_server(kind.reply(1), 1), "c", to_router(kind.returned()))
    answer = ip(kind.plan.servers[0], source) / segment(kind.protocol, kind.rport, kind.sport, "SA")
    returned = ip(kind.plan.vip, source, 63) / segment(kind.protocol, kind.vport, kind.sport, "SA")
    yield forward("s", from_server(answer), "c", to_router(returned))
    wrong = ip(kind.plan.servers[1], source) / segment(kind.protocol, kind.rport, kind.sport, "SA")
    yield left("s", from_server(wrong, 1))


@each(NAT_KINDS)
def test_port_kept(kind: Kind) -> Story:
    """A real server may use the virtual port itself."""
    yield Run(f"-A {kind.service} -s rr")
    yield Run(f"-a {kind.service} -r {kind.service.split()[1].replace(kind.plan.vip, kind.plan.servers[0])} -m")
    sent = ip(kind.plan.client, kind.plan.servers[0], 63) / segment(kind.protocol, kind.sport, kind.vport)
    yield forward("c", from_router(kind.request()), "s", to_server(sent))
    answer = ip(kind.plan.servers[0], kind.plan.client) / segment(kind.protocol, kind.vport, kind.sport, "SA")
    yield forward("s", from_server(answer), "c", to_router(kind.returned()))


@each(UDP_KINDS)
def test_udp_without_checksum(kind: Kind) -> Story:
    """A UDP packet without checksum leaves with a computed one, in both directions, as the kernel does it."""
    yield from commands(kind.commands())
    for payload in (b"", b"x", b"no checksum", bytes(100)):
        fields = {"payload": payload}
        yield forward("c", from_router(kind.request(chksum=0, **fields)), "s", to_server(kind.delivered(**fields)))
        yield forward("s", from_server(kind.reply(chksum=0, **fields)), "c", to_router(kind.returned(**fields)))


def summing_to_zero(packet: Packet) -> bytes:
    """Two bytes of payload that make the transport checksum of `packet` (which carries two zero bytes) zero."""
    data = bytes(packet)
    at = (20 if data[0] >> 4 == 4 else 40) + (6 if packet.lastlayer().underlayer.name == "UDP" else 16)
    assert total(data[-2:]) == 0
    return data[at : at + 2]


@each(NAT_KINDS)
def test_checksum_that_comes_to_zero(kind: Kind) -> Story:
    """A translated UDP checksum of zero is written as 0xffff, because zero says that there is none; TCP's stays zero."""
    yield from opened(kind)
    sport = kind.sport + 1
    payload = summing_to_zero(kind.delivered(payload=b"\0\0", sport=sport))
    delivered = kind.delivered(payload=payload, sport=sport)
    expected = bytes.fromhex("ffff") if kind.protocol == "udp" else b"\0\0"
    at = (20 if kind.family == 4 else 40) + (6 if kind.protocol == "udp" else 16)
    assert bytes(delivered)[at : at + 2] == expected
    yield forward("c", from_router(kind.request(payload=payload, sport=sport)), "s", to_server(delivered))
    payload = summing_to_zero(kind.returned(payload=b"\0\0"))
    assert bytes(kind.returned(payload=payload))[at : at + 2] == expected
    yield forward("s", from_server(kind.reply(payload=payload)), "c", to_router(kind.returned(payload=payload)))
