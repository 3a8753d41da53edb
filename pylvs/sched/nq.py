"""Never queue: an idle server at once, however slow; if all are busy, the shortest expected delay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import Least, Pick, Server, weights


class NeverQueue:
    """Idle is a server without active connections; the first in list order is taken."""

    name: ClassVar[str] = "nq"
    about: ClassVar[str] = "an idle server, else the one that would serve the connection soonest"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """As sed, but idle servers first."""
        return Least(weights(servers), cost="delay", idle_first=True)
