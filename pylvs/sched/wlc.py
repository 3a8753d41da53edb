"""Weighted least connections, the default: the fewest connections per weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import Least, Pick, Server


class WeightedLeastConnections:
    """A server of weight 2 is offered twice the connections of one of weight 1."""

    name: ClassVar[str] = "wlc"
    about: ClassVar[str] = "the server with the fewest connections for its weight"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """The smallest number of connections divided by the weight."""
        return Least(weights=tuple(server.weight for server in servers), cost="weighted")
