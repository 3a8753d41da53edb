"""Weights by the clock: some real servers help out during the day and rest at night."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import ClassVar

from pylvs.sched import Least, Pick, Server


class TimeOfDay:
    """As wlc; but outside office hours servers of weight 50 and more take no new connections."""

    name: ClassVar[str] = "office"
    about: ClassVar[str] = "wlc, from 7 to 19 o'clock on all servers, else on those of a weight below 50"
    every: ClassVar[float] = 60.0  # seconds after which it is asked again
    clock: Callable[[], datetime] = staticmethod(datetime.now)

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """The weights of the hour."""
        day = 7 <= self.clock().hour < 19
        return Least(tuple(s.weight if day or s.weight < 50 else 0 for s in servers), cost="weighted")
