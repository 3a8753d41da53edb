"""Weighted failover: always the server with the highest weight; the others only wait for its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import First, Pick, Server, weights


class WeightedFailover:
    """Weights are an order of preference."""

    name: ClassVar[str] = "fo"
    about: ClassVar[str] = "the server with the highest weight"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """The highest weight among those that can be used."""
        return First(weights(servers))
