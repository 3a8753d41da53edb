"""Schedulers compile lists of servers into picks; this is what each of them compiles to."""

from __future__ import annotations

from math import gcd

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pylvs.sched import SCHEDULERS, Cursor, Least, Nobody, Server

NO_FLAGS: frozenset[str] = frozenset()
weights = st.lists(st.integers(0, 50), max_size=8)


def servers(*some: int) -> list[Server]:
    """Servers with these weights."""
    return [Server(address=f"10.1.0.{n}", port=80, weight=weight) for n, weight in enumerate(some)]


def test_the_names() -> None:
    """Each is found by its own name and says in a line what it does."""
    assert {"rr", "wrr", "lc", "wlc"} <= set(SCHEDULERS)
    for name, scheduler in SCHEDULERS.items():
        assert scheduler.name == name
        assert len(name) <= 15
        assert scheduler.about
        assert "\n" not in scheduler.about


@pytest.mark.parametrize("name", ["rr", "wrr", "lc", "wlc"])
@given(some=weights)
def test_compiling_is_pure(name: str, some: list[int]) -> None:
    """The same servers give the same pick, and are not changed."""
    given_servers = servers(*some)
    before = list(given_servers)
    assert SCHEDULERS[name].compile(given_servers, NO_FLAGS) == SCHEDULERS[name].compile(given_servers, NO_FLAGS)
    assert given_servers == before


@given(some=weights)
def test_rr(some: list[int]) -> None:
    """One level, that every server of any weight reaches; the cursor stays when servers change."""
    pick = SCHEDULERS["rr"].compile(servers(*some), NO_FLAGS)
    if isinstance(pick, Nobody):
        assert not any(some)
        return
    assert isinstance(pick, Cursor)
    assert pick.levels == tuple(min(weight, 1) for weight in some)
    assert (pick.step, pick.top, pick.restart) == (1, 1, False)


@given(some=weights)
def test_wrr(some: list[int]) -> None:
    """Levels fall from the highest weight (less the divisor, plus one) by the divisor, and a change starts afresh."""
    pick = SCHEDULERS["wrr"].compile(servers(*some), NO_FLAGS)
    if isinstance(pick, Nobody):
        assert not any(some)
        return
    assert isinstance(pick, Cursor)
    divisor = gcd(*some) or 1
    assert pick.levels == tuple(some)
    assert pick.step == divisor
    assert pick.top == max(some, default=0) - (divisor - 1)
    assert pick.restart


@pytest.mark.parametrize(("name", "cost"), [("lc", "connections"), ("wlc", "weighted")])
@given(some=weights)
def test_least(name: str, cost: str, some: list[int]) -> None:
    """Weights are handed on; the data plane knows what is least."""
    pick = SCHEDULERS[name].compile(servers(*some), NO_FLAGS)
    if isinstance(pick, Nobody):
        assert not any(some)
        return
    assert pick == Least(weights=tuple(some), cost=cost)  # type: ignore[arg-type]
