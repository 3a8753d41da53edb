"""Picks carried out in plain Python, step by step and with the arithmetic in words.

It follows the data plane's rules without haste and without its code, so that people can read why a client goes where it
goes, and tests can ask two authorities.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import assert_never

from pylvs.sched.base import Cache, Choice, Cursor, First, Least, Nobody, Pick, Table
from pylvs.sched.mh import fold
from pylvs.sched.siphash import siphash

GOLDEN_RATIO = 0x61C88647


@dataclass(frozen=True)
class Client:
    """The addresses of a new connection that picks look at."""

    address: str
    port: int = 0
    destination: str = "192.0.2.1"


@dataclass(frozen=True)
class Decision:
    """The position of the server chosen, None for none, and why."""

    server: int | None
    why: tuple[str, ...]


@dataclass
class Bench:
    """A service to try a pick on: names of its servers in list order, connection counts, where the cursor stands."""

    pick: Pick
    names: Sequence[str]
    active: list[int] = field(default_factory=list)
    inactive: list[int] = field(default_factory=list)
    overloaded: set[int] = field(default_factory=set)
    cursor: int = -1
    level: int = 1
    seed: int = 0
    remembered: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.active = self.active or [0] * len(self.names)
        self.inactive = self.inactive or [0] * len(self.names)
        self._random = random.Random(self.seed)

    def choose(self, client: Client) -> Decision:
        """What the pick decides now; cursors and memories move on, connection counts are the caller's to change."""
        match self.pick:
            case Cursor():
                return self._cursor(self.pick)
            case Least():
                return self._least(self.pick.weights, self.pick.cost, self.pick.idle_first)
            case First():
                return self._first(self.pick)
            case Choice():
                return self._choice(self.pick)
            case Table():
                return self._table(self.pick, client)
            case Cache():
                return self._cache(self.pick, client)
            case Nobody():
                return Decision(None, ("no server is ever chosen",))
            case _:
                assert_never(self.pick)

    def _idle(self, weights: Sequence[int], position: int) -> str:
        """Why a server may not be used; empty if it may."""
        if weights[position] <= 0:
            return "weight 0"
        return "overloaded" if position in self.overloaded else ""

    def _cursor(self, pick: Cursor) -> Decision:
        if pick.top <= 0 or not any(not self._idle(pick.levels, n) for n in range(len(self.names))):
            return Decision(None, ("every server has weight 0 or is overloaded",))
        why = []
        while True:
            self.cursor += 1
            if self.cursor >= len(self.names):
                self.cursor = -1
                below = self.level - pick.step
                self.level = below if below > 0 else pick.top
                if pick.top > 1:
                    said = f"the pass is over: level {below + pick.step} - {pick.step} = {below}"
                    why.append(said if below > 0 else f"{said}, so back to {pick.top}")
                continue
            level, name = pick.levels[self.cursor], self.names[self.cursor]
            if reason := self._idle(pick.levels, self.cursor):
                why.append(f"{name}: {reason}, passed over")
            elif level < self.level:
                why.append(f"{name}: level {level} < {self.level}, passed over")
            else:
                why.append(f"{name}: level {level} >= {self.level}, taken")
                return Decision(self.cursor, tuple(why))

    def _cost(self, rule: str, position: int) -> tuple[int, str]:
        if rule == "delay":
            return self.active[position] + 1, f"{self.active[position]} + 1"
        cost = 256 * self.active[position] + self.inactive[position]
        return cost, f"256 x {self.active[position]} + {self.inactive[position]}"

    def _least(self, weights: Sequence[int], rule: str, idle_first: bool = False) -> Decision:
        best, best_cost, why = -1, 0, []
        for position, name in enumerate(self.names):
            if reason := self._idle(weights, position):
                why.append(f"{name}: {reason}, passed over")
                continue
            cost, sum_ = self._cost(rule, position)
            divisor = 1 if rule == "connections" else weights[position]
            quotient = f"({sum_}) / {divisor} = {cost / divisor:.4g}" if divisor != 1 else f"{sum_} = {cost}"
            if idle_first and self.active[position] == 0:
                why.append(f"{name}: no active connection, taken at once")
                return Decision(position, tuple(why))
            other = 1 if rule == "connections" or best < 0 else weights[best]
            better = best < 0 or best_cost * divisor > cost * other
            equal = best >= 0 and best_cost * divisor == cost * other
            verdict = "the least so far" if better else f"as {self.names[best]}, which comes first" if equal else "more"
            why.append(f"{name}: {quotient}, {verdict}")
            if better:
                best, best_cost = position, cost
        return Decision(best if best >= 0 else None, tuple(why))

    def _first(self, pick: First) -> Decision:
        best, why = -1, []
        for position, name in enumerate(self.names):
            weight = pick.weights[position]
            if reason := self._idle(pick.weights, position):
                why.append(f"{name}: {reason}, passed over")
            elif pick.spill and self.active[position] > weight:
                why.append(f"{name}: {self.active[position]} active connections > weight {weight}, passed over")
            elif best < 0 or weight > pick.weights[best]:
                why.append(f"{name}: weight {weight}, the highest so far")
                best = position
            else:
                why.append(f"{name}: weight {weight} <= {pick.weights[best]} of {self.names[best]}")
        return Decision(best if best >= 0 else None, tuple(why))

    def _choice(self, pick: Choice) -> Decision:
        usable = [n for n in range(len(self.names)) if not self._idle(pick.weights, n)]
        total = sum(pick.weights[n] for n in usable)
        if not usable:
            return Decision(None, ("every server has weight 0 or is overloaded",))
        why, drawn = [], []
        for _ in range(2):
            number = left = self._random.randint(0, total)
            for position in usable:
                left -= pick.weights[position]
                if left <= 0:
                    break
            drawn.append(position)
            why.append(f"draw {number} of 0 to {total}: {self.names[position]}")
        (one, other), costs = drawn, [self._cost("connections", n)[0] for n in drawn]
        left, right = costs[0] * pick.weights[other], costs[1] * pick.weights[one]
        taken = other if left > right else one
        why.append(f"{costs[0]} x {pick.weights[other]} {'>' if left > right else '<='} {costs[1]} x {pick.weights[one]}: "
                   f"{self.names[taken]}")  # fmt: skip
        return Decision(taken, tuple(why))

    def _slot(self, pick: Table, key: int, offset: int) -> int:
        size = len(pick.slots)
        if pick.hash == "siphash":
            return siphash(key + offset) % size
        bits = size.bit_length() - 1
        return (offset + ((key * GOLDEN_RATIO & 0xFFFFFFFF) >> (32 - bits))) % size

    def _table(self, pick: Table, client: Client) -> Decision:
        if not pick.slots:
            return Decision(None, ("the table is empty",))
        size, address = len(pick.slots), client.destination if pick.key == "destination" else client.address
        folded = fold(address)
        key = (folded + client.port if pick.port else folded) & 0xFFFFFFFF
        why = [f"{pick.key} {address} is 0x{folded:08x}"]
        if pick.port:
            why.append(f"plus port {client.port}: 0x{key:08x}")
        first = self._slot(pick, key, 0)
        if pick.hash == "siphash":
            why.append(f"SipHash-1-3: 0x{siphash(key):08x} mod {size} = slot {first}")
        else:
            product = key * GOLDEN_RATIO & 0xFFFFFFFF
            bits = size.bit_length() - 1
            why.append(f"x 0x{GOLDEN_RATIO:08x} mod 2^32 = 0x{product:08x}, its upper {bits} bits: slot {first}")
        slots = [first]
        if pick.fallback:
            slots += [self._slot(pick, key, (first + n) % size) for n in range(size)]
        for slot in slots:
            position = pick.slots[slot]
            if position < 0:
                return Decision(None, (*why, f"slot {slot}: nobody's"))
            reason = self._idle(pick.weights, position)
            why.append(f"slot {slot}: {self.names[position]}" + (f", {reason}" if reason else ""))
            if not reason:
                return Decision(position, tuple(why))
        return Decision(None, (*why, "no fallback" if not pick.fallback else "nobody in the whole table"))

    def _cache(self, pick: Cache, client: Client) -> Decision:
        known = self.remembered.setdefault(client.destination, [])
        why = []
        if known:
            why.append(f"{client.destination} is remembered: {', '.join(self.names[n] for n in known)}")
            usable = [n for n in known if not self._idle(pick.weights, n) or (not pick.sets and pick.weights[n] > 0)]
            if usable:
                best = min(usable, key=lambda n: self._cost("connections", n)[0] / pick.weights[n])
                others = [n for n in range(len(self.names)) if 2 * self.active[n] < pick.weights[n]]
                if self.active[best] <= pick.weights[best] or not others:
                    why.append(f"{self.names[best]}: {self.active[best]} active connections, weight {pick.weights[best]}")
                    return Decision(best, tuple(why))
                why.append(
                    f"{self.names[best]} is crowded: {self.active[best]} active connections > weight {pick.weights[best]},"
                    f" and {self.names[others[0]]} has fewer than half of its own"
                )
        else:
            why.append(f"{client.destination} is not remembered")
        found = self._least(pick.weights, "weighted")
        if found.server is not None:
            if not pick.sets:
                known.clear()
            if found.server not in known:
                known.insert(0, found.server)
        return Decision(found.server, (*why, *found.why))


def compiled_to(pick: Pick, names: Sequence[str]) -> list[tuple[str, str]]:
    """What a pick is, as (what, value) lines."""
    match pick:
        case Cursor(levels, step, top, restart):
            found = [("pick", "cursor"), ("levels", _each(names, levels))]
            if top > 1:
                passes = [str(level) for level in range(top, 0, -step)]
                shown = passes if len(passes) <= 8 else [*passes[:6], "…", passes[-1]]
                found.append(("passes", f"{' '.join(shown)} (steps of {step}); a service built server by server begins at 1"))
            return [*found, ("on change", "back to the head of the list" if restart else "the cursor stays")]
        case Least(some, cost, idle_first):
            rule = {
                "connections": "256 x active + inactive",
                "weighted": "(256 x active + inactive) / weight",
                "delay": "(active + 1) / weight",
            }[cost]
            first = [("first", "a server without active connections")] if idle_first else []
            return [("pick", "least"), *first, ("cost", rule), ("weights", _each(names, some))]
        case First(some, spill):
            over = [("passes over", "servers with more active connections than their weight")] if spill else []
            return [("pick", "first"), *over, ("weights", _each(names, some))]
        case Choice(some):
            return [("pick", "choice of two"), ("weights", _each(names, some))]
        case Table(slots, some, how, key, port, fallback):
            shares = [f"{name} {slots.count(n)}" for n, name in enumerate(names)]
            head = " ".join("-" if n < 0 else names[n] for n in slots[:16])
            return [
                ("pick", f"table of {len(slots)} slots"),
                ("key", key + (" address plus source port" if port else " address")),
                ("hash", "SipHash-1-3 modulo the size" if how == "siphash" else "upper bits of a product"),
                ("fallback", "looks on for a usable server" if fallback else "none: refused if the owner cannot be used"),
                ("slots", "  ".join(shares)),
                ("begins", head + (" …" if len(slots) > 16 else "")),
                ("weights", _each(names, some)),
            ]
        case Cache(some, sets):
            return [
                ("pick", "cache"),
                ("remembers", f"{'a set of servers' if sets else 'one server'} for each destination address"),
                ("else", "least (256 x active + inactive) / weight"),
                ("weights", _each(names, some)),
            ]
        case _:
            return [("pick", "nobody")]


def _each(names: Sequence[str], numbers: Sequence[int]) -> str:
    return "  ".join(f"{name} {number}" for name, number in zip(names, numbers, strict=True))
