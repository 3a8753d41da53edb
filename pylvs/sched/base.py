"""What a scheduler is: a plain class that turns a list of real servers into a *pick*, which the data plane executes.

A pick is a small declarative record. The data plane knows a few kinds of them and nothing of schedulers, so that a new
policy needs no compiler. Servers come in the kernel's list order: the one added last comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol


@dataclass(frozen=True)
class Server:
    """What a scheduler sees of a real server. `weight` 0 means that it takes no new connections."""

    address: str
    port: int
    weight: int


@dataclass(frozen=True)
class Cursor:
    """Take the next server whose level reaches the present one; each pass over the list lowers it by `step`.

    `levels` are given per server; passes run from `top` down to the last positive level. `restart` sends the cursor
    back to the head of the list when the servers change; otherwise it stays where it is.
    """

    levels: tuple[int, ...]
    step: int = 1
    top: int = 1
    restart: bool = False


@dataclass(frozen=True)
class Least:
    """Take the server with the smallest cost, the first one in list order on ties.

    ``connections``: 256 times the active connections plus the inactive ones; ``weighted``: that, per weight.
    """

    weights: tuple[int, ...]
    cost: Literal["connections", "weighted"]


@dataclass(frozen=True)
class Nobody:
    """No server is ever chosen."""


Pick = Cursor | Least | Nobody


class Scheduler(Protocol):
    """A named policy. `about` is one line for people."""

    name: ClassVar[str]
    about: ClassVar[str]

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """Turn the servers into a pick; pure, so that it can be called at any time."""
