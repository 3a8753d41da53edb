"""Whatever arrives, the director neither fails nor loses count, and answers the same when asked the same again."""

from __future__ import annotations

from typing import Any

from cases.craft import V4, V6, Kind, from_router, from_server, host, ip, outer, too_big, unreachable
from cases.test_host import ping, solicitation, who_has
from conftest import VERDICTS, accounted
from hypothesis import given, settings
from hypothesis import strategies as st
from packets import checksum, splice
from property.build import C_MAC, ROUTER_MAC

from pylvs import Director

KINDS = [
    Kind(method, family, protocol)
    for method in ("nat", "dr", "tun")
    for family in (4, 6)
    for protocol in ("tcp", "udp")
]
VALID = [
    *(("c", from_router(kind.request())) for kind in KINDS[:4]),
    *(("s", from_server(kind.reply())) for kind in KINDS[:4]),
    *(("c", from_router(unreachable(kind.plan.client, kind.plan.vip, kind.returned(50)))) for kind in KINDS[:4]),
    *(("s", from_server(unreachable(kind.plan.servers[0], kind.plan.client, kind.delivered()))) for kind in KINDS[:4]),
    *(("s", from_server(too_big(k.plan.far, k.plan.director_s, outer(k.plan, k.request(), 0), 1280))) for k in KINDS[-4:]),
    *(("c", from_router(ping(family, vip))) for family, vip in ((4, V4.vip), (6, V6.vip))),
    ("c", who_has(V4.vip)),
    ("c", solicitation(V6.vip)),
    ("c", from_router(ip(V4.client, V4.vip) / b"\0\0\0", vlan=9)),
]  # fmt: skip

changes = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255)), max_size=6)
mutants = st.tuples(
    st.integers(0, len(VALID) - 1),
    changes,
    st.one_of(st.none(), st.integers(0, 200)),
    st.booleans(),
    st.binary(max_size=8),
)
noise = st.tuples(st.sampled_from("cs"), st.booleans(), st.binary(max_size=120))


def spoilt(number: int, edits: list[tuple[int, int]], cut: int | None, repair: bool, tail: bytes) -> tuple[str, bytes]:
    """A valid frame, changed, perhaps with its IPv4 header checksum made right again, cut off and drawn out."""
    interface, frame = VALID[number]
    for at, value in edits:
        if at < len(frame):
            frame = splice(frame, at, bytes([value]))
    if repair and len(frame) >= 34:
        size = max(12, (frame[14] & 15) * 4)
        frame = splice(frame, 24, checksum(splice(frame[14 : 14 + size], 10, b"\0\0")))
    return interface, frame[:cut] + tail


def given_frames(mutated: list[Any], random: list[Any]) -> list[tuple[str, bytes]]:
    """All frames of an example."""
    head = C_MAC + ROUTER_MAC
    return [spoilt(*each) for each in mutated] + [(link, head * plausible + data) for link, plausible, data in random]


def director(method: str, local: bool) -> Director:
    """A director with a service of each kind."""
    made = Director(**host(vips=(V4.vip, V6.vip) if local else ()))
    for kind in KINDS:
        if kind.method == method:
            for line in kind.commands():
                assert made.ipvsadm(line).returncode == 0
    return made


@settings(max_examples=250, deadline=None)
@given(
    method=st.sampled_from(("nat", "dr", "tun")),
    local=st.booleans(),
    mutated=st.lists(mutants, max_size=20),
    random=st.lists(noise, max_size=5),
)
def test_every_frame_ends_once(method: str, local: bool, mutated: list[Any], random: list[Any]) -> None:
    """One outcome for each frame, one of four verdicts, a reason for each drop, and every frame in the books."""
    frames = given_frames(mutated, random)
    results = []
    for _ in range(2):
        made = director(method, local)
        outcomes = made.process(frames, now=1.0)
        assert len(outcomes) == len(frames)
        for outcome in outcomes:
            assert outcome.verdict in VERDICTS
            assert outcome.verdict != "drop" or outcome.reason
            assert outcome.verdict in ("forward", "reply") or outcome.frames == []
        accounted(made)
        made.advance(now=2000.0)
        accounted(made)
        assert made.counters()["received"] == len(frames)
        assert made.connections() == []
        assert all(s.active == s.inactive == 0 for service in made.status() for s in service.servers)
        results.append([(o.verdict, o.reason, o.frames, o.service, o.dest) for o in outcomes])
    assert results[0] == results[1]
