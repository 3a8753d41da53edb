"""Weighted overflow: the server with the highest weight until it has more active connections than that; then the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import First, Pick, Server, weights


class WeightedOverflow:
    """A weight is an order of preference and a number of active connections."""

    name: ClassVar[str] = "ovf"
    about: ClassVar[str] = "the server with the highest weight, until it has as many connections"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """The highest weight among those that are not busier than it says."""
        return First(weights(servers), spill=True)
