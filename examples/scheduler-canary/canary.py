"""Five in a hundred clients try the new release: the real server that was added last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched import Pick, Server, Table


class Canary:
    """A client stays on its side, and all clients are back with the old release once the new one is deleted."""

    name: ClassVar[str] = "canary"
    about: ClassVar[str] = "5 % of the clients to the server added last, the others to the rest in turn"
    percent: ClassVar[int] = 5

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """A hundred slots for each of the others; in each hundred the canary, which stands first in the list, has five."""
        rest = max(len(servers) - 1, 1)
        slots = [0 if slot % 100 < self.percent else slot // 100 + 1 for slot in range(100 * rest)]
        if len(servers) < 2:
            slots = [0 for _ in servers]
        return Table(tuple(slots), tuple(server.weight for server in servers), fallback=True)
