"""Round robin: each server in turn, whatever its weight; weight 0 takes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import Cursor, Pick, Server


class RoundRobin:
    """The cursor keeps its place when servers come and go."""

    name: ClassVar[str] = "rr"
    about: ClassVar[str] = "each server in turn"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """One level that every server in use reaches."""
        return Cursor(levels=tuple(min(server.weight, 1) for server in servers))
