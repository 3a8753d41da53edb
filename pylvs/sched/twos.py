"""Power of two choices: two servers drawn by weight, the less loaded of them (Mitzenmacher, 2001)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pylvs.sched.base import Choice, Pick, Server, weights


class PowerOfTwoChoices:
    """Nearly as even as asking all servers, without everybody running to the same one."""

    name: ClassVar[str] = "twos"
    about: ClassVar[str] = "the less loaded of two servers drawn by weight"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """Two draws and a comparison."""
        return Choice(weights(servers))
