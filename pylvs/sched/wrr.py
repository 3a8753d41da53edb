"""Weighted round robin: interleaved rounds, a server of weight 3 in three of them and one of weight 1 in the last."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from typing import ClassVar

from pylvs.sched.base import Cursor, Pick, Server


class WeightedRoundRobin:
    """The kernel's rounds: levels fall from the highest weight to the lowest in steps of the weights' common divisor."""

    name: ClassVar[str] = "wrr"
    about: ClassVar[str] = "each server in turn, as often as its weight says"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """The cursor restarts at the head of the list whenever a server is added, removed or edited."""
        weights = tuple(server.weight for server in servers)
        step = gcd(*weights) or 1
        return Cursor(levels=weights, step=step, top=max(weights, default=0) - (step - 1), restart=True)
