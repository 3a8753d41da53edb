"""What each method makes of a client's packets, in both families."""

from __future__ import annotations

import pytest
from cases.craft import (
    FLAG,
    KINDS,
    METHODS,
    NAT_KINDS,
    ROUTES,
    S_MAC,
    SERVER_MACS,
    Kind,
    endpoint,
    ethernet,
    exceeded,
    from_router,
    from_server,
    host,
    ip,
    outer,
    own,
    segment,
    to_router,
    to_server,
    too_big,
)  # fmt: skip
from cases.table import Check, Host, Run, Story, commands, each, forward, reply
from packets import total


def wrong(frame: bytes, right: bytes, good: bytes) -> bytes:
    """`good` with a transport checksum as wrong as `frame`'s is beside `right`'s (RFC 1624: errors survive updates)."""
    at = next(n for n in range(14, len(right)) if frame[n] != right[n])
    error = total(frame[at : at + 2] + bytes(255 - byte for byte in right[at : at + 2]))
    offset = len(good) - len(right) + at
    value = total(good[offset : offset + 2] + error.to_bytes(2, "big"))
    return good[:offset] + value.to_bytes(2, "big") + good[offset + 2 :]


@each(KINDS)
def test_first_packet(kind: Kind) -> Story:
    """The first packet of a flow is given to a real server and forwarded, with one hop less."""
    yield from commands(kind.commands())
    yield forward(
        "c", from_router(kind.request()), "s", to_server(kind.delivered()),
        service=f"{kind.protocol.upper()} {endpoint(kind.plan.vip, kind.vport)}",
        dest=endpoint(kind.plan.servers[0], kind.rport),
    )  # fmt: skip

    def listed(director) -> None:
        (connection,) = director.connections()
        assert (connection.client, connection.client_port) == (kind.plan.client, kind.sport)
        assert (connection.virtual, connection.virtual_port) == (kind.plan.vip, kind.vport)
        assert (connection.dest, connection.dest_port) == (kind.plan.servers[0], kind.rport)
        assert connection.protocol == kind.protocol.upper()
        assert connection.state == ("SYN_RECV" if kind.protocol == "tcp" else "UDP")

    yield Check(listed)


@each(KINDS)
def test_a_flow_stays_with_its_server(kind: Kind) -> Story:
    """Later packets follow the first; other flows go round robin, the server added last being the first."""
    yield from commands(kind.commands(1, 1))
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered(1), 1))
    yield forward("c", from_router(kind.request(sport=40008)), "s", to_server(kind.delivered(0, sport=40008)))
    yield forward("c", from_router(kind.request(flags="A")), "s", to_server(kind.delivered(1, flags="A"), 1))
    yield forward(
        "c",
        from_router(kind.request(flags="PA", payload=b"x")),
        "s",
        to_server(kind.delivered(1, flags="PA", payload=b"x"), 1),
    )
    yield forward(
        "c",
        from_router(kind.request(sport=40008, flags="A")),
        "s",
        to_server(kind.delivered(0, sport=40008, flags="A")),
    )


@each(KINDS)
def test_payload_sizes(kind: Kind) -> Story:
    """Empty, odd and even payloads arrive as they were."""
    yield from commands(kind.commands())
    for size in (0, 1, 2, 3, 64, 999, 1400):
        payload = bytes(n * 7 % 256 for n in range(size))
        yield forward(
            "c",
            from_router(kind.request(payload=payload)),
            "s",
            to_server(kind.delivered(payload=payload)),
            note=f"{size} bytes",
        )


@each(KINDS)
def test_hops(kind: Kind) -> Story:
    """TTL and hop limit go down by one, from whatever they were."""
    yield from commands(kind.commands())
    for ttl in (2, 3, 64, 128, 255):
        yield forward(
            "c", from_router(kind.request(ttl)), "s", to_server(kind.delivered(0, ttl - 1)), note=f"TTL {ttl}"
        )


@each(KINDS)
def test_last_hop(kind: Kind) -> Story:
    """TTL 1: time exceeded from the VIP, quoting the packet as it came; the flow exists all the same."""
    yield from commands(kind.commands(1, 1))
    request = kind.request(1)
    answer = to_router(own(exceeded, kind.plan.vip, kind.plan.client, request))
    yield reply("c", from_router(request), "c", answer)
    yield forward("c", from_router(kind.request(flags="A")), "s", to_server(kind.delivered(1, flags="A"), 1))
    request = kind.request(1, flags="A")
    yield reply("c", from_router(request), "c", to_router(own(exceeded, kind.plan.vip, kind.plan.client, request)))
    yield forward("c", from_router(kind.request(sport=40008)), "s", to_server(kind.delivered(0, sport=40008)))


@each(KINDS)
def test_too_big(kind: Kind) -> Story:
    """What just fits is forwarded; one byte more (with DF) is answered with the MTU that the method leaves."""
    yield Host(host(s_mtu=1400))
    yield from commands(kind.commands())
    room = 1400 - (kind.plan.room if kind.method == "tun" else 0)
    most = room - (20 if kind.family == 4 else 40) - (20 if kind.protocol == "tcp" else 8)
    df = {"flags": "DF"}
    fits = {"payload": b"\xa5" * most, "head": df}
    yield forward("c", from_router(kind.request(**fits)), "s", to_server(kind.delivered(**fits)))
    more = {"payload": b"\xa5" * (most + 1), "head": df}
    answer = own(too_big, kind.plan.vip, kind.plan.client, kind.request(63, **more), room)
    yield reply("c", from_router(kind.request(**more)), "c", to_router(answer))
    more = {"payload": b"\xa5" * (most + 60), "head": df, "sport": 40008}
    answer = own(too_big, kind.plan.vip, kind.plan.client, kind.request(63, **more), room)
    yield reply("c", from_router(kind.request(**more)), "c", to_router(answer), note="the first packet of a flow")


@each(KINDS)
def test_wrong_checksum_stays_wrong(kind: Kind) -> Story:
    """A wrong transport checksum is not repaired: the real server must see that the packet is broken."""
    yield from commands(kind.commands())
    right, good = from_router(kind.request()), to_server(kind.delivered())
    at = 14 + (20 if kind.family == 4 else 40) + (16 if kind.protocol == "tcp" else 6)
    broken = right[:at] + bytes([right[at] ^ 0x5A, right[at + 1] ^ 0x33]) + right[at + 2 :]
    yield forward("c", broken, "s", wrong(broken, right, good))


@each(KINDS)
def test_padding_is_not_forwarded(kind: Kind) -> Story:
    """Bytes behind the IP packet (a short frame's padding) belong to the link, not to the packet."""
    yield from commands(kind.commands())
    for padding in (b"\0" * 6, b"rubbish"):
        frame = from_router(kind.request(payload=b"")) + padding
        yield forward("c", frame, "s", to_server(kind.delivered(payload=b"")))


@each(KINDS)
def test_client_on_the_same_link(kind: Kind) -> Story:
    """A client need not be behind a router, and real servers may answer it there."""
    yield from commands(kind.commands())
    request = kind.request(source=kind.plan.near)
    frame = ethernet("02:00:00:00:00:33", "02:00:00:00:00:01", request)
    yield forward("c", frame, "s", to_server(kind.delivered(source=kind.plan.near)))
    if kind.method == "nat":
        answer = ip(kind.plan.servers[0], kind.plan.near) / segment(kind.protocol, kind.rport, kind.sport, "SA")
        returned = ip(kind.plan.vip, kind.plan.near, 63) / segment(kind.protocol, kind.vport, kind.sport, "SA")
        yield forward("s", from_server(answer), "c", ethernet("02:00:00:00:00:01", "02:00:00:00:00:33", returned))


@each([kind for kind in KINDS if kind.method != "dr"])
def test_server_behind_a_gateway(kind: Kind) -> Story:
    """NAT and TUN reach real servers through routers; the frame goes to the router's MAC."""
    far, prefix = ("192.168.9.5", "192.168.9.0/24") if kind.family == 4 else ("fd00:9::5", "fd00:9::/64")
    yield Host(host() | {"routes": {**ROUTES, prefix: kind.plan.servers[2]}})
    yield Run(f"-A {kind.service} -s rr")
    yield Run(f"-a {kind.service} -r {endpoint(far, kind.rport)} {FLAG[kind.method]}")
    if kind.method == "nat":
        sent = ip(kind.plan.client, far, 63) / segment(kind.protocol, kind.sport, kind.rport)
    else:
        sent = outer(kind.plan, kind.request(63))
        sent.dst = far
    yield forward("c", from_router(kind.request()), "s", ethernet(S_MAC, SERVER_MACS[2], sent))


@each([Kind(method, family, "tcp") for method in METHODS for family in (4, 6)])
def test_every_method_in_one_service(kind: Kind) -> Story:
    """The method belongs to the real server, not to the service."""
    order = [kind, *(Kind(method, kind.family, "tcp") for method in METHODS if method != kind.method)]
    yield Run(f"-A {kind.service} -s rr")
    for number, other in enumerate(order):
        yield Run(f"-a {kind.service} {other.server(number)} {FLAG[other.method]}")
    for turn, number in enumerate((2, 1, 0, 2, 1, 0)):
        sport = 41000 + turn
        yield forward(
            "c",
            from_router(kind.request(sport=sport)),
            "s",
            to_server(order[number].delivered(number, sport=sport), number),
        )


@pytest.mark.parametrize("kind", NAT_KINDS, ids=str)
def test_every_checksum_is_updated_rightly(kind: Kind, directors) -> None:
    """Identification, ports and payload sweep the header and transport checksums over their edges."""
    director = directors(**host())
    for line in kind.commands():
        assert director.ipvsadm(line).returncode == 0
    values = [0, 1, 2, 0x00FF, 0x0100, 0x7FFF, 0x8000, 0xFEFF, 0xFF00, 0xFFFE, 0xFFFF]
    variants = [{"ident": value} for value in values] if kind.family == 4 else [{}]
    batch = []
    for head in variants:
        for value in values:
            fields = {"payload": value.to_bytes(2, "big"), "head": head}
            batch.append((from_router(kind.request(**fields)), to_server(kind.delivered(**fields))))
    outcomes = director.process([("c", frame) for frame, _ in batch], now=1.0)
    assert [outcome.frames for outcome in outcomes] == [[("s", frame)] for _, frame in batch]
