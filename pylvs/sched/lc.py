"""Least connections: the server with the fewest, an active connection counting as much as 256 inactive ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import Least, Pick, Server


class LeastConnections:
    """Weights do not matter, except that 0 takes none."""

    name: ClassVar[str] = "lc"
    about: ClassVar[str] = "the server with the fewest connections"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """The smallest number of connections."""
        return Least(weights=tuple(server.weight for server in servers), cost="connections")
