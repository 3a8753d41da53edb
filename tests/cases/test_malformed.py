"""Malformed frames of every kind: each ends in exactly one counted way, and no flow of others notices.

Everything here is a table or comes from a fixed seed, so that the sanitizer builds see the same frames each time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from cases.craft import (
    C_MAC,
    METHODS,
    NEAR_MAC,
    PLANS,
    ROUTER_MAC,
    S_MAC,
    SERVER_MACS,
    V4,
    V6,
    Kind,
    exceeded,
    from_router,
    from_server,
    host,
    ip,
    outer,
    segment,
    to_router,
    to_server,
    too_big,
    unreachable,
)  # fmt: skip
from cases.table import forward, judge
from cases.test_host import ping, solicitation, who_has
from conftest import VERDICTS, accounted
from packets import checksum, splice
from scapy.layers.inet import ICMP, IPOption_Router_Alert
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.packet import Packet, Raw

Give = tuple[str, bytes]
KNOWN_MACS = {mac.replace(":", "") for mac in (*SERVER_MACS, ROUTER_MAC, NEAR_MAC)}
OWN_MACS = {"c": C_MAC.replace(":", ""), "s": S_MAC.replace(":", "")}
STRANGER = {4: "198.18.77.77", 6: "2001:db8:77::77"}


class Bystanders:
    """A director with established flows of every kind, which junk must not disturb."""

    def __init__(self, directors: Callable[..., Any], method: str, local: bool = True, **more: Any) -> None:
        vips = (V4.vip, V6.vip) if local else ()
        self.director = directors(**host(vips=vips, **more))
        self.method, self.now, self.local = method, 1.0, local
        self.kinds = [Kind(method, family, protocol) for family in (4, 6) for protocol in ("tcp", "udp")]
        for kind in self.kinds:
            for line in kind.commands(1, 1):
                assert self.director.ipvsadm(line).returncode == 0
        self.talk("S")
        self.talk("A")
        self.before = self.mine()

    def mine(self) -> list[Any]:
        """What is known of the bystanders' flows, but for the time that passes."""
        flows = [
            c for c in self.director.connections() if c.client in (V4.client, V6.client) and c.client_port == 40007
        ]
        return sorted((c.client, c.protocol, c.state, c.dest, c.dest_port, c.packets) for c in flows)

    def talk(self, flags: str) -> None:
        """Every bystander sends a packet, which arrives, byte for byte, where it always did."""
        self.now += 0.01
        for kind in self.kinds:
            frames = [
                forward("c", from_router(kind.request(flags=flags)), "s", to_server(kind.delivered(1, flags=flags), 1))
            ]
            if self.method == "nat":
                answer = from_server(kind.reply(1, flags="A"), 1)
                frames.append(forward("s", answer, "c", to_router(kind.returned(flags="A"))))
            for step in frames:
                (outcome,) = self.director.process([(step.interface, step.frame)], now=self.now)
                judge(step, outcome)

    def suffer(self, junk: Iterable[Give], size: int = 256) -> Counter[str]:
        """Process the junk in batches; then the bystanders must be as they were. Returns the count of each verdict."""
        frames, verdicts = list(junk), Counter[str]()
        for start in range(0, len(frames), size):
            batch = frames[start : start + size]
            self.now += 0.01
            before = self.director.counters()["received"]
            outcomes = self.director.process(batch, now=self.now)
            assert len(outcomes) == len(batch)
            assert self.director.counters()["received"] - before == len(batch)
            accounted(self.director)
            for outcome in outcomes:
                self.sane(outcome)
                verdicts[outcome.verdict] += 1
        assert self.mine() == self.before
        self.talk("A")
        self.before = self.mine()
        return verdicts

    def sane(self, outcome: Any) -> None:
        """One of the four verdicts, a reason for every drop, and no frame to or from a station that is not there."""
        assert outcome.verdict in VERDICTS
        assert outcome.verdict != "drop" or outcome.reason
        if outcome.verdict in ("pass", "drop"):
            assert outcome.frames == []
        for interface, frame in outcome.frames:
            assert len(frame) >= 34
            assert frame[6:12].hex() == OWN_MACS[interface]
            if outcome.verdict == "forward":
                assert frame[:6].hex() in KNOWN_MACS


def templates(method: str) -> Iterator[tuple[str, Give]]:
    """One valid frame of each kind that the director looks into; their clients are not the bystanders'."""
    for family in (4, 6):
        plan, stranger = PLANS[family], STRANGER[family]
        for protocol in ("tcp", "udp"):
            kind = Kind(method, family, protocol)
            request = kind.request(source=stranger)
            yield f"{kind} request", ("c", from_router(request))
            yield f"{kind} request, tagged", ("c", from_router(request, vlan=7))
            yield f"{kind} of no service", ("c", from_router(ip(stranger, plan.vip) / segment(protocol, 1, 9999)))
            answer = ip(plan.servers[1], stranger) / segment(protocol, kind.rport, kind.sport, "SA")
            yield f"{kind} reply", ("s", from_server(answer, 1))
            quoted = ip(plan.vip, stranger) / segment(protocol, kind.vport, kind.sport, "SA")
            for make, more in ((unreachable, ()), (exceeded, ()), (too_big, (1280,))):
                yield f"{kind} {make.__name__}, client", ("c", from_router(make(stranger, plan.vip, quoted, *more)))
            quoted = ip(stranger, plan.servers[1], 63) / segment(protocol, kind.sport, kind.rport)
            yield f"{kind} unreachable, server", ("s", from_server(unreachable(plan.servers[1], stranger, quoted), 1))
            tunnelled = too_big(plan.far, plan.director_s, outer(plan, request, 1), 1280)
            yield f"{kind} too big, tunnel", ("s", from_server(tunnelled, 1))
        yield f"echo v{family}", ("c", from_router(ping(family, plan.vip)))
        yield f"fragment v{family}", ("c", from_router(first_fragment(Kind(method, family, "udp"), stranger)))
    options = {"options": [IPOption_Router_Alert()] * 3}
    request = Kind(method, 4, "udp").request(source=STRANGER[4], head=options)
    yield "options", ("c", from_router(request))
    for extension in (IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(type=0, addresses=[V6.far])):
        packet = ip(STRANGER[6], V6.vip) / extension / segment("udp", 5, 53)
        yield type(extension).__name__, ("c", from_router(packet))
    yield "ARP", ("c", who_has(V4.vip))
    yield "ND", ("c", solicitation(V6.vip))


def first_fragment(kind: Kind, source: str) -> Packet:
    """A first fragment; the rest never comes."""
    if kind.family == 4:
        return kind.request(source=source, head={"flags": "MF"}, payload=bytes(64), chksum=0x1234)
    return (
        ip(source, kind.plan.vip) / IPv6ExtHdrFragment(m=1, offset=0, id=77) / segment("udp", 5, 53, payload=bytes(64))
    )


@pytest.mark.parametrize("local", [True, False], ids=["host's VIP", "our VIP"])
@pytest.mark.parametrize("method", METHODS)
def test_every_length(method: str, local: bool, directors: Callable[..., Any]) -> None:
    """Every valid frame cut off or drawn out to every length from 0 to 200 bytes."""
    bystanders = Bystanders(directors, method, local)
    for name, (interface, frame) in templates(method):
        junk = [(interface, frame[:length] + bytes(max(0, length - len(frame)))) for length in range(201)]
        bystanders.suffer(junk)
        assert name


@pytest.mark.parametrize("method", METHODS)
def test_cut_off_packets_are_dropped(method: str, directors: Callable[..., Any]) -> None:
    """A packet that claims more bytes than there are never leaves, and begins no flow."""
    bystanders = Bystanders(directors, method)
    flows = len(bystanders.director.connections())
    for family in (4, 6):
        for protocol in ("tcp", "udp"):
            frame = from_router(Kind(method, family, protocol).request(source=STRANGER[family]))
            junk = [("c", frame[:length]) for length in range(14, len(frame))]
            verdicts = bystanders.suffer(junk)
            assert verdicts == {"drop": len(junk)}
            assert len(bystanders.director.connections()) == flows


def with_checksum(frame: bytes, at: int = 14) -> bytes:
    """The IPv4 header checksum made right over as many bytes as the header says it has."""
    size = (frame[at] & 15) * 4
    header = splice(frame[at : at + size], 10, b"\0\0") if size >= 12 else frame[at : at + size]
    return splice(frame, at + 10, checksum(header))


def lying_ipv4(frame: bytes) -> Iterator[bytes]:
    """Wrong versions, header lengths, total lengths, fragment fields and checksums, alone and in pairs."""
    length = len(frame) - 14
    for version in range(16):
        for size in range(16):
            yield with_checksum(splice(frame, 14, bytes([version << 4 | size])))
            yield splice(frame, 14, bytes([version << 4 | size]))
    totals = {0, 1, 19, 20, 21, 23, 24, 27, 28, 29, 39, 40, 41, length - 1, length, length + 1, 1500, 65535}
    for total in totals:
        for size in (5, 6, 10, 15):
            yield with_checksum(splice(splice(frame, 16, total.to_bytes(2, "big")), 14, bytes([0x40 | size])))
    for fragment in (0x2000, 0x0001, 0x2001, 0x1FFF, 0x3FFF, 0x8000, 0xFFFF, 0x6000):
        yield with_checksum(splice(frame, 20, fragment.to_bytes(2, "big")))
    for protocol in range(256):
        yield with_checksum(splice(frame, 23, bytes([protocol])))
    for value in (0, 0xFFFF, 0x1234):
        yield splice(frame, 24, value.to_bytes(2, "big"))
    for ttl in (0, 1):
        yield with_checksum(splice(frame, 22, bytes([ttl])))


def lying_ipv6(frame: bytes) -> Iterator[bytes]:
    """Wrong versions, payload lengths and next headers."""
    length = len(frame) - 54
    for version in range(16):
        yield splice(frame, 14, bytes([version << 4]))
    for payload in {0, 1, 7, 8, 9, 19, 20, 21, length - 1, length, length + 1, 1460, 65535}:
        for following in (0, 6, 17, 43, 44, 50, 51, 58, 59, 60, 132, 135, 139, 140, 253):
            yield splice(splice(frame, 18, payload.to_bytes(2, "big")), 20, bytes([following]))
    for following in range(256):
        yield splice(frame, 20, bytes([following]))
    for hops in (0, 1):
        yield splice(frame, 21, bytes([hops]))


def lying_transport(frame: bytes, start: int, protocol: str) -> Iterator[bytes]:
    """Wrong data offsets, flags, lengths and ports."""
    if protocol == "tcp":
        for offset in range(16):
            for reserved in (0, 15):
                yield splice(frame, start + 12, bytes([offset << 4 | reserved]))
        for flags in range(256):
            yield splice(frame, start + 13, bytes([flags]))
    else:
        for length in (0, 1, 7, 8, 9, 30, 31, 32, 1472, 65535):
            yield splice(frame, start + 4, length.to_bytes(2, "big"))
    for ports in (b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\x14\0\x15", b"\0\0" + frame[start + 2 : start + 4]):
        yield splice(frame, start, ports)


@pytest.mark.parametrize("local", [True, False], ids=["host's VIP", "our VIP"])
@pytest.mark.parametrize("method", METHODS)
def test_lying_headers(method: str, local: bool, directors: Callable[..., Any]) -> None:
    """Every length, offset and type field of the packet itself, set to what it cannot be."""
    bystanders = Bystanders(directors, method, local)
    for family, start, liars in ((4, 34, lying_ipv4), (6, 54, lying_ipv6)):
        for protocol in ("tcp", "udp"):
            frame = from_router(Kind(method, family, protocol).request(source=STRANGER[family]))
            bystanders.suffer(("c", lie) for lie in liars(frame))
            bystanders.suffer(("c", lie) for lie in lying_transport(frame, start, protocol))


@pytest.mark.parametrize("method", METHODS)
def test_wrong_ipv4_checksum(method: str, directors: Callable[..., Any]) -> None:
    """A packet with a wrong header checksum is never forwarded, known flow or not."""
    bystanders = Bystanders(directors, method)
    for source in (STRANGER[4], V4.client):
        for protocol in ("tcp", "udp"):
            frame = from_router(Kind(method, 4, protocol).request(source=source, flags="A"))
            right = int.from_bytes(frame[24:26], "big")
            junk = [("c", splice(frame, 24, (right ^ 1 << bit).to_bytes(2, "big"))) for bit in range(16)]
            assert bystanders.suffer(junk) == {"drop": 16}


@pytest.mark.parametrize("method", METHODS)
def test_extension_header_chains(method: str, directors: Callable[..., Any]) -> None:
    """Long chains, lengths beyond the end, loops of the same header, nothing after the last one."""
    bystanders = Bystanders(directors, method)
    junk = []
    datagram = bytes(ip(STRANGER[6], V6.vip) / segment("udp", 5, 53))[40:]
    for kind in (0, 43, 44, 50, 51, 59, 60, 135, 139, 140):
        for count in (1, 2, 7, 8, 9, 50, 180):
            for length in (0, 1, 2, 31, 255):
                body = b""
                for n in range(count):
                    following = kind if n < count - 1 else 17
                    body += bytes([following, length]) + bytes(6)
                    if len(body) > 1500:
                        break
                for tail in (datagram, b"", datagram[:7]):
                    packet = ip(STRANGER[6], V6.vip, nh=kind) / Raw(body + tail)
                    junk.append(("c", from_router(packet)))
    bystanders.suffer(junk)


@pytest.mark.parametrize("method", METHODS)
def test_lying_quotations(method: str, directors: Callable[..., Any]) -> None:
    """ICMP errors whose quotation is cut off, is no packet, or lies about its own lengths."""
    bystanders = Bystanders(directors, method)
    junk: list[Give] = []
    for family in (4, 6):
        plan, size = PLANS[family], 20 if family == 4 else 40
        for protocol in ("tcp", "udp"):
            kind = Kind(method, family, protocol)
            quoted = bytes(ip(plan.vip, STRANGER[family]) / segment(protocol, kind.vport, kind.sport, "SA"))
            lies = [quoted[:length] for length in range(len(quoted))]
            lies += [bytes([first]) + quoted[1:] for first in range(256)]
            lies += [quoted[:2] + length.to_bytes(2, "big") + quoted[4:] for length in (0, 19, 20, 27, 28, 65535)]
            lies += [quoted[:6] + bytes([value]) + quoted[7:] for value in range(256)]
            lies += [quoted[:9] + bytes([value]) + quoted[10:] for value in (0, 1, 4, 41, 47, 50, 58, 132)]
            lies += [quoted[:size] + bytes(8), bytes(size) + quoted[size:], b"\xff" * 64]
            for lie in lies:
                junk.append(("c", from_router(unreachable(STRANGER[family], plan.vip, lie))))
                junk.append(("s", from_server(unreachable(plan.servers[0], STRANGER[family], lie))))
            request = bytes(kind.request(source=STRANGER[family]))
            nested = bytes(outer(plan, request, 1))
            for length in range(len(nested)):
                junk.append(("s", from_server(too_big(plan.far, plan.director_s, nested[:length], 1280))))
    for kind in range(256):
        junk.append(("c", from_router(ip(STRANGER[4], V4.vip) / ICMP(type=kind) / Raw(bytes(40)))))
    bystanders.suffer(junk)


@pytest.mark.parametrize("method", METHODS)
def test_quotations_of_established_flows(method: str, directors: Callable[..., Any]) -> None:
    """Errors that do concern the bystanders, cut off and spoilt anywhere: forwarded, dropped or left, never worse."""
    bystanders = Bystanders(directors, method)
    junk: list[Give] = []
    for kind in bystanders.kinds:
        quoted = bytes(kind.returned(50))
        for length in range(len(quoted)):
            junk.append(("c", from_router(unreachable(kind.plan.client, kind.plan.vip, quoted[:length]))))
        for at in range(len(quoted)):
            spoilt = splice(quoted, at, bytes([quoted[at] ^ 0xFF]))
            junk.append(("c", from_router(unreachable(kind.plan.client, kind.plan.vip, spoilt))))
        seen = bytes(kind.delivered(1)) if method != "tun" else bytes(kind.request(63))
        for length in range(len(seen)):
            junk.append(("s", from_server(unreachable(kind.plan.servers[1], kind.plan.client, seen[:length]), 1)))
    bystanders.suffer(junk)


@pytest.mark.parametrize("method", METHODS)
def test_random_bytes(method: str, directors: Callable[..., Any]) -> None:
    """Noise, with and without a plausible beginning."""
    bystanders, dice = Bystanders(directors, method), random.Random(20240611)
    beginnings = [
        b"",
        bytes.fromhex(C_MAC.replace(":", "")),
        *(frame[:n] for _, (_, frame) in templates(method) for n in (14, 34, 54)),
    ]
    junk = [("c", dice.choice(beginnings) + dice.randbytes(dice.randrange(0, 120))) for _ in range(3000)]
    junk += [("s", dice.randbytes(dice.randrange(0, 1600))) for _ in range(300)]
    bystanders.suffer(junk)


@pytest.mark.parametrize("local", [True, False], ids=["host's VIP", "our VIP"])
@pytest.mark.parametrize("method", METHODS)
def test_mutations(method: str, local: bool, directors: Callable[..., Any]) -> None:
    """Valid frames with a few bytes changed, header checksums made right again half of the time."""
    bystanders, dice = Bystanders(directors, method, local), random.Random(7)
    valid, junk = [give for _, give in templates(method)], []
    for _ in range(4000):
        interface, frame = dice.choice(valid)
        for _ in range(dice.randrange(1, 6)):
            at = dice.randrange(12, len(frame))
            frame = splice(frame, at, bytes([dice.choice((0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)))]))
        if frame[12:14] == b"\x08\x00" and dice.random() < 0.5:
            frame = with_checksum(frame)
        junk.append((interface, frame))
    bystanders.suffer(junk)


@pytest.mark.parametrize("method", METHODS)
def test_oversized_frames(method: str, directors: Callable[..., Any]) -> None:
    """Frames far beyond every MTU, up to and beyond what an IP length field can say."""
    bystanders = Bystanders(directors, method)
    junk: list[Give] = []
    for family in (4, 6):
        for protocol in ("tcp", "udp"):
            kind = Kind(method, family, protocol)
            base = 20 if family == 4 else 0
            for size in (1501, 9000, 16000, 32768, 60000, 65535 - base):
                payload = bytes(size - base - (20 if protocol == "tcp" else 8))
                packet = kind.request(source=STRANGER[family], head={"flags": "DF"}, payload=payload)
                junk.append(("c", from_router(packet)))
            frame = from_router(kind.request(source=STRANGER[family]))
            junk += [("c", frame + bytes(more)) for more in (1, 1500, 65535, 70000, 200000)]
    junk += [("c", bytes(100000)), ("s", b"\xff" * 70000)]
    bystanders.suffer(junk, size=8)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_same_results(method: str, directors: Callable[..., Any]) -> None:
    """Two directors with the same seed agree in everything, identifications included."""
    dice = random.Random(99)
    valid = [give for _, give in templates(method)]
    frames = []
    for _ in range(600):
        interface, frame = dice.choice(valid)
        if dice.random() < 0.4:
            frame = splice(frame, dice.randrange(14, len(frame)), dice.randbytes(1))
        frames.append((interface, frame))
    results = []
    for _ in range(2):
        bystanders = Bystanders(directors, method, seed=12345)
        outcomes = bystanders.director.process(frames, now=bystanders.now + 1)
        results.append(
            [(o.verdict, o.reason, o.frames, o.service, o.dest) for o in outcomes] + [bystanders.director.counters()]
        )
    assert results[0] == results[1]


def test_one_by_one_or_in_batches(directors: Callable[..., Any]) -> None:
    """How frames are grouped changes nothing about them."""
    dice = random.Random(5)
    valid = [give for _, give in templates("nat")]
    frames = [dice.choice(valid) for _ in range(300)]
    results = []
    for size in (1, 7, 300):
        director = Bystanders(directors, "nat", seed=1).director
        outcomes = [o for start in range(0, 300, size) for o in director.process(frames[start : start + size], now=3.0)]
        results.append([(o.verdict, o.reason, o.frames, o.service, o.dest) for o in outcomes])
    assert results[0] == results[1] == results[2]


def test_nothing_at_all(directors: Callable[..., Any]) -> None:
    """An empty batch and empty frames."""
    director = directors(**host())
    assert list(director.process([], now=1.0)) == []
    outcomes = director.process([("c", b""), ("s", b"\0")], now=1.0)
    assert [outcome.verdict for outcome in outcomes] == ["drop", "drop"]
    assert director.counters()["received"] == 2


def flood(count: int) -> list[Give]:
    """First packets of as many different flows."""
    frame = from_router(Kind("dr", 4, "udp").request(source="198.19.0.0"))
    addresses = ((0xC6130000 + number).to_bytes(4, "big") for number in range(count))
    return [("c", with_checksum(splice(frame, 26, address))) for address in addresses]


def test_table_is_bounded(directors: Callable[..., Any]) -> None:
    """A flood of new flows ends as named drops; what was there before lives on, and room that is free again is used."""
    bystanders = Bystanders(directors, "dr", connections=1024)
    verdicts = bystanders.suffer(flood(5000), size=512)
    assert set(verdicts) == {"forward", "drop"}
    assert 512 <= verdicts["forward"] <= 1024
    assert bystanders.director.counters()["drops"] == {"table_full": verdicts["drop"]}
    bystanders.now += 200
    bystanders.talk("A")
    bystanders.now += 200
    bystanders.talk("A")
    assert len(bystanders.director.connections()) == 4
    bystanders.before = bystanders.mine()
    assert bystanders.suffer(flood(500)) == {"forward": 500}


def test_mass_expiry(directors: Callable[..., Any]) -> None:
    """Many flows that end together leave nothing behind."""
    bystanders = Bystanders(directors, "dr")
    assert bystanders.suffer(flood(20000), size=4096) == {"forward": 20000}
    assert len(bystanders.director.connections()) == 20004
    bystanders.director.advance(now=bystanders.now + 2000)
    assert bystanders.director.connections() == []
    for service in bystanders.director.status():
        assert [(server.active, server.inactive) for server in service.servers] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("scheduled", [True, False], ids=["with servers", "without"])
def test_impossible_sources(scheduled: bool, directors: Callable[..., Any]) -> None:
    """Nobody is at these addresses (RFC 1122 §3.2.1.3, RFC 4291 §2.7): nothing is forwarded for them or sent to them."""
    director = directors(**host())
    kinds = [Kind("nat", family, protocol) for family in (4, 6) for protocol in ("tcp", "udp")]
    for kind in kinds:
        for line in kind.commands(1)[: 2 if scheduled else 1]:
            assert director.ipvsadm(line).returncode == 0
    impossible = {
        4: ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255", V4.vip, V4.director_c],
        6: ["::1", "ff02::1"],
    }
    for kind in kinds:
        for source in impossible[kind.family]:
            frame = from_router(kind.request(source=source))
            (outcome,) = director.process([("c", frame)], now=1.0)
            assert outcome.verdict in ("pass", "drop"), (source, outcome.verdict)
            assert outcome.frames == []
    assert director.connections() == []
