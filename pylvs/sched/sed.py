"""Shortest expected delay: the server that would have the fewest active connections per weight with this one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import Least, Pick, Server, weights


class ShortestExpectedDelay:
    """Inactive connections, and so all of UDP, do not count."""

    name: ClassVar[str] = "sed"
    about: ClassVar[str] = "the server that would serve the connection soonest"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """The smallest number of active connections plus one, divided by the weight."""
        return Least(weights(servers), cost="delay")
