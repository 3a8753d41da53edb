"""Destination hashing, for caches: each destination address has its server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import Pick, Server, Table, weights

SLOTS = 256


class DestinationHashing:
    """A server that cannot be used keeps its addresses, which then have none."""

    name: ClassVar[str] = "dh"
    about: ClassVar[str] = "by a hash of the destination address"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """The servers in turn, one slot each, whatever their weights."""
        slots = tuple(slot % len(servers) for slot in range(SLOTS)) if servers else ()
        return Table(slots, weights(servers), hash="multiply", key="destination")
