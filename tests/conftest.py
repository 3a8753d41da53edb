"""Fixtures that several shelves share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

VERDICTS = {"forward", "pass", "reply", "drop"}


def accounted(director: Any) -> None:
    """Every frame has ended in exactly one way: received = forwarded + passed + replied + Σ drops."""
    counters = director.counters()
    drops = counters["drops"]
    assert all(isinstance(reason, str) and reason and count >= 0 for reason, count in drops.items()), drops
    ended = counters["forwarded"] + counters["passed"] + counters["replied"] + sum(drops.values())
    assert counters["received"] == ended, counters


@pytest.fixture
def directors() -> Iterator[Any]:
    """Makes directors and checks, at the end of the test, that each accounts for every frame it was given."""
    from pylvs import Director

    made = []

    def make(**host: Any) -> Any:
        made.append(Director(**host))
        return made[-1]

    yield make
    for director in made:
        accounted(director)
