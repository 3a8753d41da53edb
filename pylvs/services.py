"""The table of virtual services and their real servers: the kernel's life cycle and errors, compiled to snapshots.

A real server is known to the data plane by a *slot*. A deleted one goes to the trash with its slot, since connections
may still point at it: added again, it is revived with its counts; unused for two minutes, its slot is freed.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

import msgspec

from pylvs import sched
from pylvs.fib import packed
from pylvs.forward import _fastpath
from pylvs.model import Mark, RealServer, Refused, Service, ServiceKey

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "fwm": 0}
METHODS = {"masq": 0, "tunnel": 2, "route": 3}
TRASH_SECONDS = 120.0

#: (kind, cost, rule, step, top, epoch, fresh, level): see `Snapshot`
CompiledPick = tuple[int, int, int, int, int, int, bool, int]


class Slots(Protocol):
    """The part of `_fastpath.Slots` that is used here."""

    def set(
        self,
        slot: int,
        available: bool,
        weight: int,
        upper: int,
        lower: int,
        method: int,
        port: int,
        clear_overload: bool,
    ) -> None: ...
    def get(self, slot: int) -> tuple[int, int, int, int, bool]: ...
    def clear(self, slot: int) -> None: ...


class SlotNumbers:
    """Hands out the smallest free number below a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._next = 0
        self._free: list[int] = []

    def take(self) -> int:
        """A free number; `Refused` with ENOSPC if there is none."""
        if self._free:
            return self._free.pop()
        if self._next == self._limit:
            raise Refused(errno.ENOSPC, f"more than {self._limit} are not supported; remove some first")
        self._next += 1
        return self._next - 1

    def give(self, number: int) -> None:
        """Return a number."""
        self._free.append(number)


@dataclass
class Dest:
    """A real server in the table or in the trash."""

    server: RealServer
    slot: int
    idle_since: float = -1.0


@dataclass
class Entry:
    """A service in the table; `dests` newest first."""

    service: Service
    slot: int
    dests: list[Dest] = field(default_factory=list)
    pick: CompiledPick = (0, 0, 0, 0, 0, 0, True, 0)
    levels: tuple[int, ...] = ()

    def find(self, address: str, port: int) -> Dest | None:
        """The real server with this address and port."""
        return next((dest for dest in self.dests if dest.server.key == (address, port)), None)


class ServiceTable:
    """Services by key. `freed` is told of slots that may be used again: ("service" | "dest", slot)."""

    def __init__(self, slots: Slots, freed: Callable[[str, int], None]) -> None:
        self._slots = slots
        self._freed = freed
        self.entries: dict[ServiceKey, Entry] = {}
        self.trash: dict[tuple[ServiceKey, str, int], Dest] = {}
        self._service_numbers = SlotNumbers(_fastpath.SERVICE_CAPACITY)
        self._dest_numbers = SlotNumbers(_fastpath.DEST_CAPACITY)
        self._retired: dict[ServiceKey, list[int]] = {}  # slots of deleted services whose dests are in the trash
        self._epochs = count(1)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries.values())

    def get(self, key: ServiceKey) -> Entry:
        """The service, or `Refused` with ESRCH."""
        entry = self.entries.get(key)
        if entry is None:
            raise Refused(errno.ESRCH)
        return entry

    # ------------------------------------------------------------------------------------------------- services

    def add_service(self, service: Service) -> None:
        """Add a service without servers (EEXIST, ENOENT for its scheduler or persistence engine)."""
        if service.key in self.entries:
            raise Refused(errno.EEXIST)
        self._check(service)
        entry = Entry(msgspec.structs.replace(service, servers=()), self._service_numbers.take())
        self.entries[service.key] = entry
        self._bind(entry, fresh=True)

    def edit_service(self, service: Service) -> None:
        """Change a service's scheduler, flags, persistence; its servers and connections stay."""
        entry = self.get(service.key)
        self._check(service)
        rebind = service.scheduler != entry.service.scheduler
        entry.service = msgspec.structs.replace(service, servers=())
        self._bind(entry, fresh=rebind)

    def delete_service(self, key: ServiceKey, now: float) -> None:
        """Delete a service; its servers go to the trash, their connections live on until they expire."""
        entry = self.get(key)
        for dest in list(entry.dests):
            self._discard(entry, dest, now)
        del self.entries[key]
        self._retired.setdefault(key, []).append(entry.slot)

    def _check(self, service: Service) -> None:
        if service.engine and service.engine != "sip":
            raise Refused(errno.ENOENT)
        if service.scheduler not in sched.SCHEDULERS and service.scheduler != "none":
            raise Refused(errno.ENOENT)

    # -------------------------------------------------------------------------------------------------- servers

    def add_server(self, key: ServiceKey, server: RealServer) -> None:
        """Add a real server at the head of the list, or revive it from the trash (EEXIST, ERANGE)."""
        entry = self.get(key)
        self._check_server(server)
        if entry.find(*server.key):
            raise Refused(errno.EEXIST)
        dest = self.trash.pop((key, *server.key), None)
        if dest is None:
            dest = Dest(server, self._dest_numbers.take())
        dest.server = server
        dest.idle_since = -1.0
        self._tell(dest, available=True, relieved=True)
        entry.dests.insert(0, dest)
        self._changed(entry)

    def edit_server(self, key: ServiceKey, server: RealServer) -> None:
        """Change a real server's weight, method or thresholds (ENOENT, ERANGE)."""
        entry = self.get(key)
        self._check_server(server)
        dest = entry.find(*server.key)
        if dest is None:
            raise Refused(errno.ENOENT)
        relieved = server.upper == 0 or server.upper > dest.server.upper
        dest.server = server
        self._tell(dest, available=True, relieved=relieved)
        self._changed(entry)

    def delete_server(self, key: ServiceKey, address: str, port: int, now: float) -> None:
        """Take a real server out of its service; established connections keep pointing at it (ENOENT)."""
        entry = self.get(key)
        dest = entry.find(address, port)
        if dest is None:
            raise Refused(errno.ENOENT)
        self._discard(entry, dest, now)
        self._changed(entry)

    def _check_server(self, server: RealServer) -> None:
        if server.lower > server.upper:
            raise Refused(errno.ERANGE)

    def _discard(self, entry: Entry, dest: Dest, now: float) -> None:
        entry.dests.remove(dest)
        self._tell(dest, available=False, relieved=False)
        dest.idle_since = now
        self.trash[(entry.service.key, *dest.server.key)] = dest

    def _tell(self, dest: Dest, *, available: bool, relieved: bool) -> None:
        """Tell the data plane what a real server is now; `relieved` ends its overload."""
        server = dest.server
        weight = server.weight if available else 0
        self._slots.set(
            dest.slot, available, weight, server.upper, server.lower, METHODS[server.method], server.port, relieved
        )

    def sweep(self, now: float) -> None:
        """Free what has been in the trash for two minutes and is used by no connection."""
        for where, dest in list(self.trash.items()):
            if self._slots.get(dest.slot)[3]:
                dest.idle_since = now
            elif now - dest.idle_since >= TRASH_SECONDS:
                del self.trash[where]
                self._slots.clear(dest.slot)
                self._freed("dest", dest.slot)
                self._dest_numbers.give(dest.slot)
        in_trash = {key for key, _, _ in self.trash}
        for key in [key for key in self._retired if key not in in_trash]:
            for slot in self._retired.pop(key):
                self._freed("service", slot)
                self._service_numbers.give(slot)

    # -------------------------------------------------------------------------------------------------- compile

    def _pick(self, entry: Entry) -> tuple[int, int, int, int, int, tuple[int, ...]]:
        scheduler = sched.SCHEDULERS.get(entry.service.scheduler)
        servers = [sched.Server(dest.server.address, dest.server.port, dest.server.weight) for dest in entry.dests]
        pick = scheduler.compile(servers, frozenset(entry.service.flags)) if scheduler else sched.Nobody()
        match pick:
            case sched.Cursor(levels, step, top, restart):
                return 1, 0, int(restart), step, top, levels
            case sched.Least(weights, cost):
                return 2, int(cost == "weighted"), 0, 0, 0, weights
            case _:
                return 0, 0, 0, 0, 0, (0,) * len(servers)

    def _bind(self, entry: Entry, *, fresh: bool) -> None:
        """Compile the service's pick; `fresh` if its scheduler starts from scratch."""
        kind, cost, rule, step, top, entry.levels = self._pick(entry)
        if fresh:
            entry.pick = (kind, cost, rule, step, top, next(self._epochs), True, top)
        else:
            entry.pick = (kind, cost, rule, step, top, *entry.pick[5:])

    def _changed(self, entry: Entry) -> None:
        """Compile after a change of servers; a pick that the data plane has not seen yet stays fresh, its level moved on
        as the data plane would have moved it."""
        kind, cost, rule, step, top, entry.levels = self._pick(entry)
        fresh, level = entry.pick[6], entry.pick[7]
        if fresh and rule:
            if level > top or level == 0:
                level = top
            elif step > 1:
                level = level // step * step + 1
        elif fresh:
            level = top
        entry.pick = (kind, cost, rule, step, top, next(self._epochs), fresh, level)

    def published(self) -> None:
        """The data plane works by the present state: nothing is fresh any more."""
        for entry in self:
            if entry.pick[6]:
                entry.pick = (*entry.pick[:6], False, 0)

    def snapshot(self, generation: int, guarded: bool, marks: Iterable[Mark] = ()) -> _fastpath.Snapshot:
        """Compile everything for the data plane."""
        return _fastpath.Snapshot(
            [
                (
                    PROTOCOLS[entry.service.protocol],
                    entry.service.family,
                    _where(entry.service),
                    entry.service.port,
                    entry.slot,
                    entry.service.one_packet,
                    entry.service.fwmark,
                    entry.service.persistent * 1000,
                    _mask(entry.service),
                    entry.pick,
                    [
                        (
                            dest.slot,
                            level,
                            METHODS[dest.server.method],
                            6 if ":" in dest.server.address else 4,
                            dest.server.port,
                            packed(dest.server.address),
                        )
                        for dest, level in zip(entry.dests, entry.levels, strict=True)
                    ],
                    entry.service.engine == "sip",
                )
                for entry in self
            ],
            [compiled for mark in marks for compiled in _compile_mark(mark)],
            generation,
            guarded,
        )


def _where(service: Service) -> bytes:
    """The 16 bytes under which the data plane finds a service."""
    if service.protocol == "fwm":
        return _fastpath.mark_key(service.family, service.fwmark)
    return packed(service.address)


def _mask(service: Service) -> bytes:
    """The granularity of a service's templates as a 16-byte mask over mapped addresses."""
    if service.family == 4:
        if service.mask:
            return b"\xff" * 12 + ipaddress.IPv4Address(service.mask).packed
        return _ones(96 + service.netmask)
    return _ones(service.netmask)


def _ones(bits: int) -> bytes:
    return (((1 << bits) - 1) << (128 - bits)).to_bytes(16, "big")


def _compile_mark(mark: Mark) -> Iterator[tuple[int, int, int, int, int, bytes, bytes, bytes, bytes]]:
    """A rule for the data plane, once for each range of ports."""
    family = 0
    sides: list[bytes] = []
    for text in (mark.source, mark.destination):
        if not text:
            sides += [bytes(16), bytes(16)]
            continue
        network = ipaddress.ip_network(text, strict=False)
        family = network.version
        mask = _ones(network.prefixlen + (96 if network.version == 4 else 0))
        sides += [packed(str(network.network_address)), mask]
    proto = PROTOCOLS[mark.protocol] if mark.protocol else 0
    for low, high in mark.ports or ((0, 65535),):
        yield mark.mark, family, proto, low, high, sides[0], sides[1], sides[2], sides[3]
