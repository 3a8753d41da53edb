"""Locality-based least connections, for caches: a destination address stays with its server while that is not crowded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import Cache, Pick, Server, weights


class LocalityBasedLeastConnections:
    """Meant for firewall-mark services, where many destination addresses come to a cluster of caches."""

    name: ClassVar[str] = "lblc"
    about: ClassVar[str] = "the server that the destination address had before, else as wlc"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """One remembered server for each destination address."""
        return Cache(weights(servers))
