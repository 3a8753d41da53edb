"""The table of virtual services and their real servers: the kernel's life cycle and errors, compiled to snapshots.

A real server is known to the data plane by a *slot*. A deleted one goes to the trash with its slot, since connections
may still point at it: added again, it is revived with its counts; unused for two minutes, its slot is freed.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import msgspec

from pylvs import sched
from pylvs.fib import is_unicast, packed
from pylvs.forward import _fastpath
from pylvs.model import Host, Mark, RealServer, Refused, Service, ServiceKey

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132, "fwm": 0}
METHODS = {"masq": 0, "tunnel": 2, "route": 3}
TUNNELS = {"ipip": 0, "gue": 1, "gre": 2}
TUNNEL_CHECKSUMS = {"": 0, "csum": 1, "remcsum": 2}
TRASH_SECONDS = 120.0

log = logging.getLogger("pylvs")

COSTS = {"connections": 0, "weighted": 1, "delay": 2}

#: (kind, cost, rule, step, top, epoch, fresh, level, options, table): see `Snapshot`
CompiledPick = tuple[int, int, int, int, int, int, bool, int, int, bytes]


class BadPick(Refused, ValueError):
    """A user's scheduler failed, or compiled to what the data plane cannot execute; the message names it."""

    def __init__(self, scheduler: str, reason: object) -> None:
        super().__init__(errno.ENOTSUP, f"scheduler {scheduler!r}: {reason}")


@dataclass(frozen=True)
class Compiled:
    """A pick as the data plane knows it; `levels` are the weights (or levels) of the servers."""

    kind: int
    levels: tuple[int, ...]
    cost: int = 0
    rule: int = 0
    step: int = 0
    top: int = 0
    options: int = 0
    table: bytes = b""

    def tuple(self, epoch: int, fresh: bool, level: int) -> CompiledPick:
        """For the snapshot."""
        return self.kind, self.cost, self.rule, self.step, self.top, epoch, fresh, level, self.options, self.table


def compiled(pick: sched.Pick, count: int) -> Compiled:
    """Translate a checked pick for `count` servers."""
    match pick:
        case sched.Cursor(levels, step, top, restart):
            return Compiled(1, levels, rule=int(restart), step=step, top=top)
        case sched.Least(weights, cost, idle_first):
            return Compiled(2, weights, cost=COSTS[cost], options=1 if idle_first else 0)
        case sched.First(weights, spill):
            return Compiled(3, weights, options=2 if spill else 0)
        case sched.Choice(weights):
            return Compiled(4, weights)
        case sched.Table(slots, weights, how, key, port, fallback):
            options = (8 if key == "destination" else 0) | (16 if port else 0)
            options |= (32 if how == "siphash" else 0) | (64 if fallback else 0)
            table = array("I", [slot & 0xFFFFFFFF for slot in slots]).tobytes()
            return Compiled(5, weights, options=options, table=table)
        case sched.Cache(weights, sets):
            return Compiled(6, weights, cost=COSTS["weighted"], options=4 if sets else 0)
        case _:
            return Compiled(0, (0,) * count)


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
    last_weight: int
    idle_since: float = -1.0

    @property
    def seen(self) -> sched.Server:
        """What a scheduler sees of it."""
        return sched.Server(self.server.address, self.server.port, self.server.weight, self.last_weight)


@dataclass
class Entry:
    """A service in the table; `dests` newest first."""

    service: Service
    slot: int
    dests: list[Dest] = field(default_factory=list)
    pick: CompiledPick = (0, 0, 0, 0, 0, 0, True, 0, 0, b"")
    levels: tuple[int, ...] = ()
    ask_again: float = float("inf")  # when its scheduler wants to be asked again

    def find(self, address: str, port: int) -> Dest | None:
        """The real server with this address and port."""
        return next((dest for dest in self.dests if dest.server.key == (address, port)), None)


class ServiceTable:
    """Services by key. `freed` is told of slots that may be used again: ("service" | "dest", slot).

    A change that its scheduler cannot cope with is refused with `BadPick` before anything is changed.
    """

    def __init__(
        self,
        slots: _fastpath.Slots,
        freed: Callable[[str, int], None],
        schedulers: Mapping[str, sched.Scheduler] = sched.SCHEDULERS,
    ) -> None:
        self._schedulers = schedulers
        self._slots = slots
        self._freed = freed
        self.host = Host()  # which addresses can be a real server's
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
        pick = self._compile(service, ())
        entry = Entry(msgspec.structs.replace(service, servers=()), self._service_numbers.take())
        self.entries[service.key] = entry
        self._bind(entry, pick, fresh=True)

    def edit_service(self, service: Service) -> None:
        """Change a service's scheduler, flags, persistence; its servers and connections stay."""
        entry = self.get(service.key)
        self._check(service)
        pick = self._compile(service, [dest.seen for dest in entry.dests])
        rebind = service.scheduler != entry.service.scheduler
        entry.service = msgspec.structs.replace(service, servers=())
        self._bind(entry, pick, fresh=rebind)

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
        try:
            known = service.scheduler in self._schedulers
        except ValueError as error:
            raise BadPick(service.scheduler, error) from error
        if not known:
            raise Refused(errno.ENOENT)

    # -------------------------------------------------------------------------------------------------- servers

    def add_server(self, key: ServiceKey, server: RealServer) -> None:
        """Add a real server at the head of the list, or revive it from the trash (EEXIST, EINVAL, ERANGE)."""
        entry = self.get(key)
        self._check_server(server)
        if entry.find(*server.key):
            raise Refused(errno.EEXIST)
        if (key, *server.key) not in self.trash and not is_unicast(self.host, server.address):
            raise Refused(errno.EINVAL)
        added = sched.Server(server.address, server.port, server.weight)
        pick = self._compile(entry.service, [added, *(dest.seen for dest in entry.dests)])
        dest = self.trash.pop((key, *server.key), None)
        if dest is None:
            dest = Dest(server, self._dest_numbers.take(), server.weight)
        relieved = server.upper == 0 or server.upper > dest.server.upper
        dest.server = server
        dest.last_weight = server.weight
        dest.idle_since = -1.0
        self._tell(dest, available=True, relieved=relieved)
        entry.dests.insert(0, dest)
        self._changed(entry, pick)

    def edit_server(self, key: ServiceKey, server: RealServer) -> None:
        """Change a real server's weight, method or thresholds (ENOENT, ERANGE)."""
        entry = self.get(key)
        self._check_server(server)
        dest = entry.find(*server.key)
        if dest is None:
            raise Refused(errno.ENOENT)
        last_weight = server.weight or dest.last_weight
        edited = sched.Server(server.address, server.port, server.weight, last_weight)
        pick = self._compile(entry.service, [edited if each is dest else each.seen for each in entry.dests])
        relieved = server.upper == 0 or server.upper > dest.server.upper
        dest.server = server
        dest.last_weight = last_weight
        self._tell(dest, available=True, relieved=relieved)
        self._changed(entry, pick)

    def delete_server(self, key: ServiceKey, address: str, port: int, now: float) -> None:
        """Take a real server out of its service; established connections keep pointing at it (ENOENT)."""
        entry = self.get(key)
        dest = entry.find(address, port)
        if dest is None:
            raise Refused(errno.ENOENT)
        pick = self._compile(entry.service, [each.seen for each in entry.dests if each is not dest])
        self._discard(entry, dest, now)
        self._changed(entry, pick)

    def _set_tunnel(self, dest: Dest) -> None:
        tunnel = dest.server.tunnel
        self._slots.set_tunnel(dest.slot, TUNNELS[tunnel.type], tunnel.port, TUNNEL_CHECKSUMS[tunnel.checksum])

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
        self._slots.set(
            dest.slot, available, server.weight, server.upper, server.lower, METHODS[server.method], server.port, relieved
        )
        self._set_tunnel(dest)

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

    def _compile(self, service: Service, servers: Sequence[sched.Server]) -> Compiled:
        """Ask the service's scheduler; `BadPick` whatever goes wrong in it."""
        try:
            pick = self._schedulers[service.scheduler].compile(tuple(servers), frozenset(service.flags))
        except Exception as error:
            raise BadPick(service.scheduler, f"{type(error).__name__}: {error}") from error
        try:
            return compiled(sched.check(pick, len(servers)), len(servers))
        except ValueError as error:
            raise BadPick(service.scheduler, error) from error

    def _bind(self, entry: Entry, pick: Compiled, *, fresh: bool) -> None:
        """Take over a service's pick; `fresh` if its scheduler starts from scratch."""
        entry.levels = pick.levels
        entry.ask_again = 0.0 if hasattr(self._schedulers[entry.service.scheduler], "every") else float("inf")
        if fresh:
            entry.pick = pick.tuple(next(self._epochs), True, pick.top)
        else:
            entry.pick = pick.tuple(*entry.pick[5:8])

    def _changed(self, entry: Entry, pick: Compiled) -> None:
        """Take over a pick after a change of servers; one that the data plane has not seen yet stays fresh, its level
        moved on as the data plane would have moved it."""
        entry.levels = pick.levels
        fresh, level = entry.pick[6:8]
        if fresh and pick.rule:
            if level > pick.top or level == 0:
                level = pick.top
            elif pick.step > 1:
                level = level // pick.step * pick.step + 1
        elif fresh:
            level = pick.top
        entry.pick = pick.tuple(next(self._epochs), fresh, level)

    def refresh(self, now: float) -> bool:
        """Ask those schedulers again whose time has come; True if one of them decides otherwise now.

        One that fails then is reported in the log, and what it decided before stays.
        """
        changed = False
        for entry in self:
            if now < entry.ask_again:
                continue
            entry.ask_again = now + float(getattr(self._schedulers[entry.service.scheduler], "every", "inf"))
            try:
                pick = self._compile(entry.service, [dest.seen for dest in entry.dests])
            except BadPick as error:
                log.warning("%s: %s; it goes on as before", entry.service.name, error)
                continue
            if (pick.levels, pick.tuple(*entry.pick[5:8])) != (entry.levels, entry.pick):
                self._changed(entry, pick)
                changed = True
        return changed

    def published(self) -> None:
        """The data plane works by the present state: nothing is fresh any more."""
        for entry in self:
            if entry.pick[6]:
                entry.pick = (*entry.pick[:6], False, 0, *entry.pick[8:])

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
            [rule for mark in marks for rule in _compile_mark(mark)],
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
