"""The persistence engine sip: who meets whom by Call-ID, what is dropped, calls that a server begins (semantics §8)."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pylvs import Director
from tests.cases.craft import V4, V6, Plan, from_router, from_server, host, ip, segment, to_router

PORTS = count(21000)


def director(plan: Plan = V4, flags: str = "-p 60 --pe sip") -> Director:
    d = Director(**host(), connections=4096)
    vip = f"[{plan.vip}]" if plan.family == 6 else plan.vip
    assert d.ipvsadm(f"-A -u {vip}:5060 -s rr {flags}").returncode == 0
    for server in plan.servers:
        assert d.ipvsadm(f"-a -u {vip}:5060 -r {f'[{server}]' if plan.family == 6 else server}:5060 -m").returncode == 0
    return d


def message(header: bytes) -> bytes:
    return b"INVITE sip:b@example.test SIP/2.0\r\nFrom: a\r\n" + header + b"\r\nCSeq: 1 INVITE\r\n\r\n"


def call(d: Director, payload: bytes, plan: Plan = V4, client: str = "", now: float = 1.0) -> tuple[str, str | None]:
    """Verdict (or the drop's reason) and server of a first packet from a new port."""
    packet = ip(client or plan.client, plan.vip) / segment("udp", next(PORTS), 5060, payload=payload)
    (outcome,) = d.process([("c", from_router(packet))], now=now)
    return outcome.reason or outcome.verdict, outcome.dest


@pytest.mark.parametrize("plan", [V4, V6], ids=["v4", "v6"])
def test_a_call_stays_with_its_server(plan: Plan) -> None:
    d = director(plan)
    first = call(d, message(b"Call-ID: one@x"), plan)
    second = call(d, message(b"Call-ID: two@x"), plan)
    assert first[0] == second[0] == "forward"
    assert first[1] != second[1]
    for _ in range(4):
        assert call(d, message(b"Call-ID: one@x"), plan) == first
        assert call(d, message(b"Call-ID: two@x"), plan) == second
    known = sorted((c.engine, c.engine_data) for c in d.connections() if c.template)
    assert known == [("sip", "one@x"), ("sip", "two@x")]
    assert not any(c.engine for c in d.connections() if not c.template)


def test_another_client_with_the_same_call_id_has_a_template_of_its_own() -> None:
    d = director()
    servers = {call(d, message(b"Call-ID: one@x"), client=f"198.18.1.{n}")[1] for n in range(3)}
    assert len(servers) == 3


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (b"Call-ID: a1@h", "a1@h"),
        (b"CALL-id:a1", "a1"),
        (b"i: short@form", "short@form"),
        (b"I \t:  blanks", "blanks"),
        (b"Call-ID:\r\n folded", "folded"),
        (b"Call-ID: <w>[o]{r}d~'`%!()*+-./:?\\\"_@x", "<w>[o]{r}d~'`%!()*+-./:?\\\"_@x"),
        (b"Call-ID: " + b"x" * 255, "x" * 255),
        (b"Call-ID: " + b"x" * 256, None),
        (b"Call-ID: ", None),
        (b"Call-ID: a@", None),
        (b"Call-ID: a b", None),
        (b"Call-ID: a@b@c", None),
        (b"Call-ID a", None),
        (b"Call-IDs: a", None),
        (b"X: y\r\n Call-ID: continued", None),
        (b"info: a", None),
    ],
)
def test_reading_the_call_id(header: bytes, found: str | None) -> None:
    d = director()
    verdict, _ = call(d, message(header))
    assert verdict == ("forward" if found else "no_call_id")
    assert [c.engine_data for c in d.connections() if c.template] == ([found] if found else [])


def test_a_line_end_must_follow_and_the_first_line_is_no_header() -> None:
    d = director()
    assert call(d, b"OPTIONS sip:x SIP/2.0\r\nCall-ID: a")[0] == "no_call_id"
    assert call(d, b"Call-ID: a\r\n\r\n")[0] == "no_call_id"
    assert call(d, b"\x00\x01\x02\x03")[0] == "no_call_id"
    assert call(d, b"")[0] == "no_call_id"
    assert d.counters()["drops"] == {"no_call_id": 4}
    assert d.connections() == []


def test_one_packet_leaves_only_the_template() -> None:
    d = director(flags="-p 60 --pe sip -o")
    first = call(d, message(b"Call-ID: one@x"))
    assert call(d, message(b"Call-ID: one@x")) == first
    assert [c.template for c in d.connections()] == [True]


def test_a_call_that_a_server_begins() -> None:
    d = director()
    text = message(b"Call-ID: out@x")
    packet = ip(V4.servers[1], V4.client) / segment("udp", 5060, 7000, payload=text)
    (outcome,) = d.process([("s", from_server(packet, 1))], now=1.0)
    expected = ip(V4.vip, V4.client, ttl=63) / segment("udp", 5060, 7000, payload=text)
    assert (outcome.verdict, outcome.frames) == ("forward", [("c", to_router(expected))])
    entries = {(c.client_port, c.template, c.dest, c.engine_data) for c in d.connections()}
    assert entries == {(0, True, V4.servers[1], "out@x"), (7000, False, V4.servers[1], "")}
    assert call(d, message(b"Call-ID: out@x"))[1] == f"{V4.servers[1]}:5060"  # the client's next one goes there, too


def test_what_a_server_sends_without_call_id_or_without_the_engine_makes_nothing() -> None:
    packet = ip(V4.servers[0], V4.client) / segment("udp", 5060, 7000, payload=b"hello")
    for d in (director(), director(flags="-p 60")):
        (outcome,) = d.process([("s", from_server(packet, 0))], now=1.0)
        assert outcome.verdict == "pass"
        assert d.connections() == []


def test_calls_by_the_thousand_are_found_and_forgotten() -> None:
    d = director(flags="-p 60 --pe sip -o")
    first = [call(d, message(b"Call-ID: c%d" % n))[1] for n in range(2000)]
    assert [call(d, message(b"Call-ID: c%d" % n))[1] for n in range(2000)] == first
    assert len(d.connections()) == 2000
    d.advance(now=100.0)
    assert d.connections() == []
    assert call(d, message(b"Call-ID: c1"), now=101.0)[0] == "forward"


pieces = st.lists(
    st.sampled_from(
        [b"\r", b"\n", b"\r\n", b"Call-ID", b"i", b":", b" ", b"\t", b"@", b"a", b"\xff", b"\x00", b"x" * 250]
    ),
    max_size=40,
).map(b"".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.one_of(pieces, st.binary(max_size=60)), max_size=5))
def test_no_text_harms_an_established_call(texts: list[bytes]) -> None:
    d = director()
    settled = ip(V4.client, V4.vip) / segment("udp", 9999, 5060, payload=message(b"Call-ID: mine@x"))
    (before,) = d.process([("c", from_router(settled))], now=1.0)
    for text in texts:
        call(d, text, now=2.0)
        packet = ip(V4.servers[0], V4.client) / segment("udp", 5060, next(PORTS), payload=text)
        d.process([("s", from_server(packet, 0))], now=2.0)
    (after,) = d.process([("c", from_router(settled))], now=3.0)
    assert after.frames == before.frames
    counts = d.counters()
    known = ("forwarded", "passed", "replied")
    assert counts["received"] == sum(counts[k] for k in known) + sum(counts["drops"].values())
