"""What a scheduler is: a plain class that turns a list of real servers into a *pick*, which the data plane executes.

A pick is a small declarative record. The data plane knows a few kinds of them and nothing of schedulers, so that a new
policy needs no compiler. Servers come in the kernel's list order: the one added last comes first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

MAX_WEIGHT = 2**31 - 1
MAX_SLOTS = 1 << 20


@dataclass(frozen=True)
class Server:
    """What a scheduler sees of a real server. `weight` 0 means that it takes no new connections.

    `last_weight` is the weight that it had before it was set to 0 (its weight if it was not): what a table is built by
    that should not move everybody's clients because one server rests.
    """

    address: str
    port: int
    weight: int
    last_weight: int = -1

    def __post_init__(self) -> None:
        if self.last_weight < 0:
            object.__setattr__(self, "last_weight", self.weight)


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

    ``connections``: 256 times the active connections plus the inactive ones; ``weighted``: that, per weight;
    ``delay``: the active connections plus this one, per weight. `idle_first` takes a server without active connections
    at once.
    """

    weights: tuple[int, ...]
    cost: Literal["connections", "weighted", "delay"]
    idle_first: bool = False


@dataclass(frozen=True)
class First:
    """Take the server with the highest weight, the first one in list order on ties.

    `spill` passes over servers that have more active connections than their weight.
    """

    weights: tuple[int, ...]
    spill: bool = False


@dataclass(frozen=True)
class Choice:
    """Draw two servers by weight and take the one that has fewer connections for its weight."""

    weights: tuple[int, ...]


@dataclass(frozen=True)
class Table:
    """Take the server that owns the slot to which a flow's address hashes.

    `slots` holds positions in the list of servers, -1 for none. `hash`: ``multiply`` (the number of slots is a power of
    two) or ``siphash`` (any number). `key` says which address is hashed; with `port` the source port is added to it.
    A server of weight 0 keeps its slots but takes nobody; with `fallback` its flows look on through the table.
    """

    slots: tuple[int, ...]
    weights: tuple[int, ...]
    hash: Literal["multiply", "siphash"] = "siphash"
    key: Literal["source", "destination"] = "source"
    port: bool = False
    fallback: bool = False


@dataclass(frozen=True)
class Cache:
    """Take the server that the same destination address had before, unless it has become crowded; else the least loaded.

    `sets` lets an address have several servers.
    """

    weights: tuple[int, ...]
    sets: bool = False


@dataclass(frozen=True)
class Nobody:
    """No server is ever chosen."""


Pick = Cursor | Least | First | Choice | Table | Cache | Nobody


class Scheduler(Protocol):
    """A named policy. `about` is one line for people.

    A scheduler whose picks depend on more than the servers says with an attribute ``every`` after how many seconds it
    wants to be asked again.
    """

    name: ClassVar[str]
    about: ClassVar[str]

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """Turn the servers into a pick; called whenever they change. `flags` are those of the service."""


def weights(servers: Sequence[Server]) -> tuple[int, ...]:
    """The servers' weights, in their order."""
    return tuple(server.weight for server in servers)


def check(pick: object, count: int) -> Pick:
    """Return a pick that the data plane can execute for `count` servers; raise `ValueError` that says what is wrong."""
    match pick:
        case Nobody():
            return pick
        case Cursor(levels, step, top, _):
            _per_server("levels", levels, count)
            if not _whole(step, 1) or not _whole(top, -MAX_WEIGHT):
                raise ValueError(f"step {step!r} and top {top!r} are to be whole numbers, the step above 0")
        case Least(some, cost, _):
            _per_server("weights", some, count)
            if cost not in ("connections", "weighted", "delay"):
                raise ValueError(f"cost {cost!r} is none of 'connections', 'weighted', 'delay'")
        case Table(slots, some, how, key, _, _):
            _per_server("weights", some, count)
            _table(slots, count)
            if how not in ("multiply", "siphash") or key not in ("source", "destination"):
                raise ValueError(
                    f"hash {how!r} and key {key!r} are to be 'multiply' or 'siphash', and 'source' or 'destination'"
                )
            if how == "multiply" and len(slots) & (len(slots) - 1):
                raise ValueError(f"{len(slots)} slots are no power of two, which hash 'multiply' needs; use 'siphash'")
        case First(some, _) | Choice(some) | Cache(some, _):
            _per_server("weights", some, count)
        case _:
            raise ValueError(f"compile() returned {pick!r}; return one of the picks in pylvs.sched")
    return pick


def _whole(number: object, low: int) -> bool:
    return isinstance(number, int) and low <= number <= MAX_WEIGHT


def _per_server(what: str, numbers: object, count: int) -> None:
    if not isinstance(numbers, tuple) or len(numbers) != count:
        raise ValueError(f"{what} {numbers!r} are not a tuple with one number for each of the {count} servers")
    for number in numbers:
        if not _whole(number, 0):
            raise ValueError(f"{what}: {number!r} is not a whole number from 0 to {MAX_WEIGHT}")


def _table(slots: object, count: int) -> None:
    if not isinstance(slots, tuple) or len(slots) > MAX_SLOTS:
        raise ValueError(f"slots are not a tuple of at most {MAX_SLOTS} numbers")
    for slot in slots:
        if not isinstance(slot, int) or not -1 <= slot < count:
            raise ValueError(f"slots: {slot!r} is not the position of one of the {count} servers, or -1")
