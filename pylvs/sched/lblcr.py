"""Locality-based least connections with replication: a much asked destination address gets several caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import Cache, Pick, Server, weights


class LocalityBasedLeastConnectionsReplicated:
    """The set of an address grows when its servers are crowded, and shrinks when it has not changed for long."""

    name: ClassVar[str] = "lblcr"
    about: ClassVar[str] = "one of the servers that the destination address had before, else as wlc"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """A remembered set of servers for each destination address."""
        return Cache(weights(servers), sets=True)
