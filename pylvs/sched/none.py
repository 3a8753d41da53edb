"""No scheduler: new connections are refused, those that exist go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import Nobody, Pick, Server


class NoScheduler:
    """For taking a service out of use without losing its set-up."""

    name: ClassVar[str] = "none"
    about: ClassVar[str] = "no server at all"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """Nobody."""
        return Nobody()
