"""Source hashing: each client address has its server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import ClassVar

from pylvs.sched.base import Pick, Server, Table, weights

SLOTS = 256


class SourceHashing:
    """Flags: ``sh-fallback`` (flag-1) looks on if the server cannot be used, ``sh-port`` (flag-2) hashes the port too."""

    name: ClassVar[str] = "sh"
    about: ClassVar[str] = "by a hash of the client's address"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """The servers in turn, as many slots in a row as their weight, but one at least."""
        return Table(
            tuple(islice(self._turns(servers), SLOTS)),
            weights(servers),
            hash="multiply",
            port=bool(flags & {"sh-port", "flag-2"}),
            fallback=bool(flags & {"sh-fallback", "flag-1"}),
        )

    def _turns(self, servers: Sequence[Server]) -> Iterator[int]:
        for position, server in cycle(enumerate(servers)):
            yield from (position for _ in range(min(max(server.weight, 1), SLOTS)))
