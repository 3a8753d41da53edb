"""Over a full cycle, wrr and rr give every server exactly its share; wlc comes as near as whole connections can."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from property.build import C_MAC, ROUTER_MAC, ethernet, ip, transport

from pylvs import Director
from pylvs.model import RealServer, Service

VIP = "10.100.0.1"


def served(scheduler: str, protocol: str, weights: list[int], flows: int) -> Counter[int]:
    """How many of `flows` new flows, none of which ends, each server gets."""
    servers = [f"10.1.0.{n + 1}" for n in range(len(weights))]
    director = Director(
        interfaces={
            "lo": {"addresses": [f"{VIP}/32"]},
            "c": {"mac": "02:00:00:00:00:01", "addresses": ["10.0.0.1/24"]},
            "s": {"mac": "02:00:00:00:00:02", "addresses": ["10.1.255.1/16"]},
        },
        neighbours={"10.0.0.254": "02:00:00:00:00:99"} | {a: f"02:00:00:00:01:{n:02x}" for n, a in enumerate(servers)},
        routes={"0.0.0.0/0": "10.0.0.254"},
        now=0.0,
        seed=0,
    )
    service = Service(protocol=protocol, address=VIP, port=53, scheduler=scheduler)  # type: ignore[arg-type]
    director.add_service(service)
    for server, weight in zip(servers, weights, strict=True):
        director.add_server(service.key, RealServer(address=server, port=53, method="route", weight=weight))
    frames = []
    for n in range(flows):
        number, body = transport("198.18.0.1", VIP, protocol, 1024 + n, 53)
        frames.append(("c", ethernet(ROUTER_MAC, C_MAC, ip("198.18.0.1", VIP, number, body))))
    outcomes = director.process(frames, now=1.0)
    counts: Counter[int] = Counter(outcome.frames[0][1][5] for outcome in outcomes if outcome.verdict == "forward")
    status: Any = director.status()[0].servers
    assert {s.server.address: s.active + s.inactive for s in status} == {
        server: counts[n] for n, server in enumerate(servers)
    }
    return counts


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any), cycles=st.integers(1, 3))
def test_wrr(weights: list[int], cycles: int) -> None:
    """A cycle is the sum of the weights by their greatest common divisor, wherever it begins."""
    divisor = math.gcd(*weights)
    counts = served("wrr", "udp", weights, cycles * sum(weights) // divisor)
    assert [counts[n] for n in range(len(weights))] == [cycles * weight // divisor for weight in weights]


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.integers(0, 3), min_size=1, max_size=8).filter(any), cycles=st.integers(1, 5))
def test_rr(weights: list[int], cycles: int) -> None:
    """All servers that have any weight get the same."""
    counts = served("rr", "tcp", weights, cycles * sum(map(bool, weights)))
    assert [counts[n] for n in range(len(weights))] == [cycles * bool(weight) for weight in weights]


@settings(max_examples=30, deadline=None)
@given(
    weights=st.lists(st.integers(0, 10), min_size=1, max_size=6).filter(any),
    cycles=st.integers(1, 3),
    protocol=st.sampled_from(("tcp", "udp")),
)
def test_wlc(weights: list[int], cycles: int, protocol: str) -> None:
    """When nobody leaves, a server is never more than one connection above its share."""
    flows = cycles * sum(weights)
    counts = served("wlc", protocol, weights, flows)
    assert sum(counts.values()) == flows
    for n, weight in enumerate(weights):
        assert counts[n] <= math.ceil(cycles * weight) + 1
        assert weight or not counts[n]


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.integers(0, 3), min_size=1, max_size=8).filter(any), flows=st.integers(1, 60))
def test_lc(weights: list[int], flows: int) -> None:
    """When nobody leaves, servers differ by one connection at the most."""
    counts = served("lc", "tcp", weights, flows)
    usable = [counts[n] for n, weight in enumerate(weights) if weight]
    assert sum(usable) == flows
    assert max(usable) - min(usable) <= 1
