"""Who is balanced and who is not: services, servers that come and go, packets out of the blue."""

from __future__ import annotations

from cases.craft import (
    C_MAC,
    FLAG,
    KINDS,
    NAT_KINDS,
    ROUTER_MAC,
    Kind,
    endpoint,
    ethernet,
    from_router,
    from_server,
    own,
    to_router,
    to_server,
    unreachable,
)  # fmt: skip
from cases.table import Check, Run, Story, Wait, commands, dropped, each, forward, left, reply

TCP_KINDS = [kind for kind in KINDS if kind.protocol == "tcp"]


def refused(kind: Kind, **fields) -> Story:
    """Port unreachable from the VIP, for TCP too: the kernel sends no RST."""
    request = kind.request(**fields)
    answer = own(unreachable, kind.plan.vip, kind.plan.client, request)
    yield reply("c", from_router(request), "c", to_router(answer))


def opened(kind: Kind, number: int = 0, **fields) -> Story:
    """A new flow goes to this server."""
    yield forward("c", from_router(kind.request(**fields)), "s", to_server(kind.delivered(number, **fields), number))


@each(KINDS)
def test_no_server(kind: Kind) -> Story:
    """A service without servers answers port unreachable, quoting the packet as it came."""
    yield Run(f"-A {kind.service} -s rr")
    yield from refused(kind)
    yield from refused(kind, payload=b"")
    yield from refused(kind, payload=bytes(1400), sport=40008)
    yield from refused(kind, ttl=1)


@each(KINDS)
def test_weight_zero(kind: Kind) -> Story:
    """A server of weight 0 gets no new flow, by any scheduler; with weight again it does."""
    for scheduler in ("rr", "wrr", "lc", "wlc"):
        yield from commands(kind.commands(0, 0, scheduler=scheduler))
        yield from refused(kind)
        yield Run(f"-e {kind.service} {kind.server(0)} {FLAG[kind.method]} -w 5")
        yield from opened(kind)
        yield from opened(kind, sport=40008)
        yield Run("-C")
        yield Wait(1200)


@each(KINDS)
def test_quiesced_server_keeps_its_flows(kind: Kind) -> Story:
    """Weight 0 later on: existing flows continue, new ones go elsewhere or are refused."""
    yield from commands(kind.commands())
    yield from opened(kind)
    yield Run(f"-e {kind.service} {kind.server(0)} {FLAG[kind.method]} -w 0")
    yield from opened(kind, flags="A")
    yield from refused(kind, sport=40008)
    yield Run(f"-a {kind.service} {kind.server(1)} {FLAG[kind.method]}")
    yield from opened(kind, 1, sport=40008)
    yield from opened(kind, flags="A")


@each(KINDS)
def test_deleted_server(kind: Kind) -> Story:
    """Packets of its flows are dropped in silence, new flows go elsewhere; NAT still translates what it answers."""
    yield from commands(kind.commands(1))
    yield from opened(kind)
    yield Run(f"-a {kind.service} {kind.server(1)} {FLAG[kind.method]}")
    yield Run(f"-d {kind.service} {kind.server(0)}")
    yield dropped("c", from_router(kind.request(flags="A")))
    yield dropped("c", from_router(kind.request(flags="PA", payload=b"anybody there?")))
    yield from opened(kind, 1, sport=40008)
    if kind.method == "nat":
        yield forward("s", from_server(kind.reply()), "c", to_router(kind.returned()))
    yield Run(f"-d {kind.service} {kind.server(1)}")
    yield dropped("c", from_router(kind.request(flags="A", sport=40008)))
    yield from refused(kind, sport=40009)


@each(KINDS)
def test_server_comes_back(kind: Kind) -> Story:
    """A deleted server that is added again takes its flows up."""
    yield from commands(kind.commands(1, 1))
    yield from opened(kind, 1)
    yield Run(f"-d {kind.service} {kind.server(1)}")
    yield dropped("c", from_router(kind.request(flags="A")))
    yield Run(f"-a {kind.service} {kind.server(1)} {FLAG[kind.method]} -w 3")
    yield from opened(kind, 1, flags="A")

    def counted(director) -> None:
        (service,) = director.status()
        assert [status.server.address for status in service.servers] == [kind.plan.servers[1], kind.plan.servers[0]]
        assert [status.active + status.inactive for status in service.servers] == [1, 0]

    yield Check(counted)


@each(KINDS)
def test_deleted_service(kind: Kind) -> Story:
    """Its flows are dropped, other packets are the host's; set up again, everything goes on.

    Without any service of the address family all is the host's, even a real server's reply (asked of the kernel).
    """
    yield from commands(kind.commands())
    yield from opened(kind)
    yield Run(f"-D {kind.service}")
    yield left("c", from_router(kind.request(flags="A")))
    if kind.method == "nat":
        yield left("s", from_server(kind.reply()))
    yield Run(f"-A -{kind.protocol[0]} {endpoint(kind.plan.vip, 4444)} -s rr")
    yield dropped("c", from_router(kind.request(flags="A")))
    yield left("c", from_router(kind.request(sport=40008)))
    if kind.method == "nat":
        yield forward("s", from_server(kind.reply()), "c", to_router(kind.returned()))
    yield from commands(kind.commands())
    yield from opened(kind, flags="A")
    yield from opened(kind, sport=40008)


@each(KINDS)
def test_flush(kind: Kind) -> Story:
    """Clearing the table does not forget the flows; they end by their timers. With no service left, all is the host's."""
    yield from commands(kind.commands())
    yield from opened(kind)
    yield Run("-C")
    yield left("c", from_router(kind.request(flags="A")))
    yield Run(f"-A {'-t' if kind.protocol == 'tcp' else '-u'} {endpoint(kind.plan.vip, 4444)} -s rr")
    yield dropped("c", from_router(kind.request(flags="A")))
    yield Wait(1200)
    yield left("c", from_router(kind.request(flags="A")))


@each(KINDS)
def test_method_of_a_flow(kind: Kind) -> Story:
    """A server's new method holds for new flows."""
    others = {"nat": "dr", "dr": "tun", "tun": "dr"}
    other = Kind(others[kind.method], kind.family, kind.protocol)
    yield Run(f"-A {kind.service} -s rr")
    server = f"-r {endpoint(kind.plan.servers[0], kind.vport)}"
    yield Run(f"-a {kind.service} {server} {FLAG[kind.method]}")
    if kind.method == "nat":
        yield left("s", from_server(kind.reply()))  # nothing yet
        yield Run(f"-e {kind.service} {server} {FLAG[other.method]}")
    else:
        yield from opened(kind)
        yield Run(f"-e {kind.service} {server} {FLAG[other.method]}")
        yield from opened(kind, flags="A")
    fields = {"sport": 40008}
    yield forward("c", from_router(kind.request(**fields)), "s", to_server(other.delivered(**fields)))


@each(KINDS)
def test_no_service(kind: Kind) -> Story:
    """Other ports, protocols and addresses of the director are the host's."""
    yield from commands(kind.commands())
    protocol = "udp" if kind.protocol == "tcp" else "tcp"
    other = Kind(kind.method, kind.family, protocol)
    yield left("c", from_router(other.request()), "the other protocol's port")
    request = kind.request()
    request.payload.dport = kind.vport + 1
    yield left("c", from_router(request), "another port")
    request = kind.request()
    request.dst = kind.plan.director_c
    yield left("c", from_router(request), "the director itself")
    request = kind.request()
    request.dst = kind.plan.far
    yield left("c", from_router(request), "to be routed")


@each(KINDS)
def test_other_stations(kind: Kind) -> Story:
    """Frames for other stations, broadcasts and multicasts are left alone, known flow or not."""
    yield from commands(kind.commands())
    for target in (
        "02:00:00:00:00:77",
        "ff:ff:ff:ff:ff:ff",
        "01:00:5e:00:00:01",
        "33:33:00:00:00:01",
        "02:00:00:00:00:02",
    ):
        yield left("c", ethernet(ROUTER_MAC, target, kind.request()), target)
    yield from opened(kind)
    for target in ("02:00:00:00:00:77", "ff:ff:ff:ff:ff:ff"):
        yield left("c", ethernet(ROUTER_MAC, target, kind.request(flags="A")), target)
    yield forward(
        "c", ethernet("02:00:00:00:00:55", C_MAC, kind.request(flags="A")), "s", to_server(kind.delivered(flags="A"))
    )


@each(TCP_KINDS)
def test_out_of_the_blue(kind: Kind) -> Story:
    """Only a SYN (whatever else is set, but RST) begins a flow; the rest is for the host, which answers RST."""
    yield from commands(kind.commands())
    strays = ["A", "PA", "FA", "F", "", "R", "RA", "SR", "SRA", "U", "FPU"]
    for turn, flags in enumerate(strays):
        yield left("c", from_router(kind.request(flags=flags, sport=41000 + turn)), flags or "null")

    def none(director) -> None:
        assert director.connections() == []

    yield Check(none)
    for turn, flags in enumerate(["S", "SA", "SF", "SU", "SEC", "SP"]):
        yield from opened(kind, flags=flags, sport=42000 + turn)


@each(TCP_KINDS)
def test_out_of_the_blue_without_server(kind: Kind) -> Story:
    """A stray segment is the host's even where a new flow would be refused."""
    yield Run(f"-A {kind.service} -s rr")
    yield left("c", from_router(kind.request(flags="A")))
    yield left("c", from_router(kind.request(flags="R")))
    yield from refused(kind, flags="S")


@each(KINDS)
def test_ftp_data_port(kind: Kind) -> Story:
    """Source port 20 is never scheduled: it would be a real server's own FTP data connection."""
    yield from commands(kind.commands())
    yield left("c", from_router(kind.request(sport=20)))
    yield from opened(kind, sport=21)


@each([kind for kind in NAT_KINDS if kind.protocol == "tcp"])
def test_port_used_again(kind: Kind) -> Story:
    """A SYN on a closed flow's ports is a new flow, for a server chosen anew."""
    yield from commands(kind.commands(1, 1))
    yield from opened(kind, 1)
    yield forward("s", from_server(kind.reply(1), 1), "c", to_router(kind.returned()))
    yield from opened(kind, 1, flags="A")
    yield from opened(kind, 1, flags="S")  # not closed yet: the same flow
    yield from opened(kind, 1, flags="A")
    yield forward("s", from_server(kind.reply(1, flags="FA"), 1), "c", to_router(kind.returned(flags="FA")))
    yield from opened(kind, 1, flags="FA")  # TIME_WAIT
    yield from opened(kind, 0, flags="S")
    yield from opened(kind, 0, flags="A")


@each([kind for kind in TCP_KINDS if kind.method != "nat"])
def test_port_used_again_without_replies(kind: Kind) -> Story:
    """The same where only the client's half is seen: its FIN after a SYN alone is TIME_WAIT, a RST is CLOSE."""
    yield from commands(kind.commands(1, 1))
    yield from opened(kind, 1)
    yield from opened(kind, 1, flags="FA")
    yield from opened(kind, 0, flags="S")
    yield from opened(kind, 0, flags="A")
    yield from opened(kind, 0, flags="R")
    yield from opened(kind, 1, flags="S")
