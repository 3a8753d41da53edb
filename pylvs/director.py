"""The director as an object: a configuration, a view of the host, and the data plane between them.

Offline, frames go in through `process` and come back with their verdicts, and time is what the caller says it is; the
daemon drives the very same object with real sockets, workers and the kernel's view of the host.
"""

from __future__ import annotations

import random
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pylvs import conntrack, ipvsadm, proc
from pylvs.estimator import LONGEST_DECAY, TICK_SECONDS, Counts, Estimate
from pylvs.fib import compile_fib
from pylvs.forward import _fastpath
from pylvs.marks import mark_rule
from pylvs.model import (
    Connection,
    Host,
    Link,
    Mark,
    Neighbour,
    RealServer,
    Route,
    ServerStatus,
    Service,
    ServiceKey,
    ServiceStatus,
    Stats,
    Timeouts,
    canonical,
    endpoint,
    service_name,
)
from pylvs.sched.load import Schedulers
from pylvs.services import Dest, Entry, ServiceTable
from pylvs.settings import Settings

#: seconds by TCP state, in the order of `_fastpath.TCP_STATES`
TCP_SECONDS = (2, 900, 120, 60, 120, 120, 10, 60, 30, 120, 120)
SWEEP_SECONDS = 60.0


@dataclass(frozen=True)
class Outcome:
    """What became of a frame: ``forward``, ``pass``, ``reply`` or ``drop``; why; and what was sent because of it."""

    verdict: str
    reason: str | None
    frames: list[tuple[str, bytes]]
    service: str | None = None
    dest: str | None = None
    connection: Connection | None = None


class Director:
    """A director. All arguments are those of `configure`, besides:

    `now` is the time in seconds at which it starts, `seed` makes the hash of the connection table repeatable (None: drawn
    from the system), `connections` is the size of the table, `clock` (seconds, monotonic) takes the place of given times,
    `scheduler_modules` names modules (or files) with schedulers of your own; `ValueError` if one cannot be used.
    """

    def __init__(
        self,
        interfaces: Mapping[str, Mapping[str, Any]] | None = None,
        neighbours: Mapping[str, str] | None = None,
        routes: Mapping[str, str] | None = None,
        marks: Sequence[Mapping[str, Any]] | None = None,
        hosts: Mapping[str, str] | None = None,
        now: float = 0.0,
        seed: int | None = None,
        connections: int = 1 << 16,
        clock: Callable[[], float] | None = None,
        scheduler_modules: Sequence[str] = (),
    ) -> None:
        source = random.Random(seed) if seed is not None else random.SystemRandom()
        self._clock = clock
        self._time = _nanoseconds(now)
        self._next_sweep = self.now + SWEEP_SECONDS
        self._next_look = self.now + TICK_SECONDS
        self._estimates: dict[tuple[str, int], Estimate] = {}
        self._slots = _fastpath.Slots()
        self._table = ServiceTable(self._slots, self._slot_freed, Schedulers(scheduler_modules))
        self._link_ids: dict[str, int] = {}
        self._link_names: dict[int, str] = {}
        self._host = Host()
        self._given: dict[str, Any] = {"interfaces": {}, "neighbours": {}, "routes": {}}
        self._generation = 0
        self._batching = False
        self._guarded = False
        self._timeouts = Timeouts()
        self.marks: tuple[Mark, ...] = ()
        self.hosts: dict[str, str] = {}
        self.table_size = 4096
        #: asked before a service is added; may refuse by raising `Refused`
        self.before_service: Callable[[Service], None] | None = None
        #: told of a real server before it is added or changed
        self.before_server: Callable[[ServiceKey, RealServer], None] | None = None
        self.cores = [
            _fastpath.Core(self._slots, connections, source.randbytes(16), compile_fib(self._host, {}, 1))
        ]
        self.settings = Settings(lambda name: self._tune(), lambda: any(core.short_of_memory for core in self.cores))
        self._tune()
        self.configure(
            interfaces=interfaces or {},
            neighbours=neighbours or {},
            routes=routes or {},
            marks=marks or (),
            hosts=hosts or {},
        )

    # ------------------------------------------------------------------------------------------ the host around it

    def configure(
        self,
        interfaces: Mapping[str, Mapping[str, Any]] | None = None,
        neighbours: Mapping[str, str] | None = None,
        routes: Mapping[str, str] | None = None,
        marks: Sequence[Mapping[str, Any]] | None = None,
        hosts: Mapping[str, str] | None = None,
    ) -> None:
        """Replace the parts of the surroundings that are given; connections live on.

        `interfaces`: name -> {"mac", "addresses" (with prefix length), "mtu", "up"}; `neighbours`: address -> MAC;
        `routes`: prefix -> gateway address, or interface name for a route without gateway; `marks`: our own rules for
        firewall marks; `hosts`: name -> address. Raises `ValueError` and changes nothing if any of it is wrong.
        """
        given = dict(self._given)
        for name, value in (("interfaces", interfaces), ("neighbours", neighbours), ("routes", routes)):
            if value is not None:
                given[name] = value
        new_marks = tuple(mark_rule(each) for each in marks) if marks is not None else self.marks
        new_hosts = {name: canonical(address) for name, address in hosts.items()} if hosts is not None else self.hosts
        host = _host(given["interfaces"], given["neighbours"], given["routes"])
        self.configure_host(host)
        self._given, self.marks, self.hosts = given, new_marks, new_hosts
        if marks is not None:
            self._publish()

    def configure_host(self, host: Host) -> None:
        """Replace the whole view of the host."""
        present = [link.name for link in host.links]
        kept = {name: self._link_ids[name] for name in present if name in self._link_ids}
        free = (number for number in range(_fastpath.LINK_CAPACITY) if number not in set(kept.values()))
        # more interfaces than there are numbers: the surplus is left alone, the others work
        self._link_ids = kept | dict(zip([name for name in present if name not in kept], free, strict=False))
        self._link_names |= {number: name for name, number in self._link_ids.items()}
        self._host = self._table.host = host
        self._generation += 1
        ids = {link.index: self._link_ids[link.name] for link in host.links if link.name in self._link_ids}
        fib = compile_fib(host, ids, self._generation)
        for core in self.cores:
            core.adopt_fib(fib)

    @property
    def host(self) -> Host:
        """The view of the host that it works by."""
        return self._host

    def link_id(self, name: str) -> int:
        """The data plane's number of an interface; `ValueError` if there is no such interface."""
        try:
            return self._link_ids[name]
        except KeyError:
            known = ", ".join(sorted(self._link_ids)) or "none"
            raise ValueError(f"no interface {name!r}; known are: {known}") from None

    @property
    def guarded(self) -> bool:
        """Is the host kept from seeing what is forwarded? Then packets left over are answered in its place."""
        return self._guarded

    @guarded.setter
    def guarded(self, value: bool) -> None:
        self._guarded = value
        self._publish()

    # ---------------------------------------------------------------------------------------------- what it balances

    def add_service(self, service: Service) -> None:
        """Add a virtual service with its servers, if it lists any."""
        if self.before_service is not None and service.key not in self._table.entries:
            self.before_service(service)
        self._table.add_service(service)
        for server in service.servers:
            if self.before_server is not None:
                self.before_server(service.key, server)
            self._table.add_server(service.key, server)
        self._publish()

    def edit_service(self, service: Service) -> None:
        """Change a virtual service; its servers and connections stay."""
        self._table.edit_service(service)
        self._publish()

    def delete_service(self, key: ServiceKey) -> None:
        """Delete a virtual service; connections stay until they expire, or are flushed with expire_nodest_conn."""
        self._table.delete_service(key, self.now)
        self._publish()
        self._flush_orphans()

    def flush(self) -> None:
        """Delete all virtual services."""
        for key in list(self._table.entries):
            self._table.delete_service(key, self.now)
        self._publish()
        self._flush_orphans()

    def add_server(self, key: ServiceKey, server: RealServer) -> None:
        """Add a real server to a service."""
        if self.before_server is not None:
            self.before_server(key, server)
        self._table.add_server(key, server)
        self._publish()

    def edit_server(self, key: ServiceKey, server: RealServer) -> None:
        """Change a real server; weight 0 quiesces it."""
        if self.before_server is not None:
            self.before_server(key, server)
        self._table.edit_server(key, server)
        self._publish()

    def delete_server(self, key: ServiceKey, address: str, port: int) -> None:
        """Take a real server out of a service."""
        self._table.delete_server(key, address, port, self.now)
        self._publish()
        self._flush_orphans()

    def _flush_orphans(self) -> None:
        if self.settings["expire_nodest_conn"]:
            for core in self.cores:
                core.flush_unavailable()

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Several changes as one snapshot."""
        self._batching = True
        try:
            yield
        finally:
            self._batching = False
            self._publish()

    def _publish(self) -> None:
        if self._batching:
            return
        self._generation += 1
        snapshot = self._table.snapshot(self._generation, self._guarded, self.marks)
        for core in self.cores:
            core.adopt(snapshot)
        self._table.published()

    def _slot_freed(self, kind: str, slot: int) -> None:
        self._estimates.pop((kind, slot), None)
        for core in self.cores:
            if kind == "dest":
                core.clear_dest(slot)
            else:
                core.clear_service(slot)

    # ----------------------------------------------------------------------------------------------- how it is tuned

    @property
    def timeouts(self) -> Timeouts:
        """Seconds for established TCP, TCP after a FIN, and UDP."""
        return self._timeouts

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Change the timeouts that are not 0; running timers are not touched."""
        self._timeouts = Timeouts(
            tcp=timeouts.tcp or self._timeouts.tcp,
            tcpfin=timeouts.tcpfin or self._timeouts.tcpfin,
            udp=timeouts.udp or self._timeouts.udp,
        )
        self._tune()

    def _tune(self) -> None:
        seconds = list(TCP_SECONDS)
        seconds[1] = self._timeouts.tcp
        seconds[4] = self._timeouts.tcpfin
        for core in self.cores:
            core.tune([1000 * each for each in seconds], 1000 * self._timeouts.udp, self.settings)

    # ------------------------------------------------------------------------------------------------ what it reports

    @property
    def _now(self) -> int:
        return _nanoseconds(self._clock()) if self._clock else self._time

    @property
    def now(self) -> float:
        """The director's time in seconds."""
        return self._now / 1e9

    def status(self) -> list[ServiceStatus]:
        """Services and, in each, real servers in list order, with counts."""
        return [
            ServiceStatus(
                service=entry.service,
                servers=tuple(self._server_status(entry, dest) for dest in entry.dests),
                stats=self._estimate("service", entry.slot).stats(),
            )
            for entry in self._table
        ]

    def lingering(self) -> list[tuple[ServiceKey, RealServer]]:
        """Real servers taken out of their service (named by its key) that connections still use."""
        return [(key, dest.server) for (key, _, _), dest in self._table.trash.items() if self._slots.get(dest.slot)[3]]

    def _server_status(self, entry: Entry, dest: Dest) -> ServerStatus:
        active, inactive, persistent, _, overloaded = self._slots.get(dest.slot)
        return ServerStatus(
            server=dest.server,
            active=active,
            inactive=inactive,
            persistent=persistent,
            overloaded=overloaded,
            stats=self._estimate("dest", dest.slot, entry.slot).stats(),
        )

    def totals(self) -> Stats:
        """Counters and rates over all services, as of the last look."""
        return self._estimate("total", 0).stats()

    # ------------------------------------------------------------------------------------------------- what it counts

    def _estimate(self, kind: str, slot: int, owner: object = None) -> Estimate:
        """The estimator of a service, a real server or of everything; another service's server starts from zero."""
        found = self._estimates.get((kind, slot))
        if found is None:
            found = self._estimates[kind, slot] = Estimate(owner)
        elif found.owner != owner:
            found.owner = owner
            found.zero()
        return found

    def _watched(self) -> Iterator[tuple[Estimate, Counts]]:
        """All estimators at work, and what their counters say now."""
        cores = self.cores
        yield self._estimate("total", 0), _sum([core.counters() for core in cores])
        for entry in self._table:
            slot = entry.slot
            yield self._estimate("service", slot), _sum([core.service_counters(slot) for core in cores])
            for dest in entry.dests:
                counts = _sum([core.dest_counters(dest.slot) for core in cores])
                yield self._estimate("dest", dest.slot, slot), counts

    def look(self) -> None:
        """Every two seconds, estimate rates (unless `run_estimation` is 0); ticks that were missed are made up for."""
        due = int((self.now - self._next_look) // TICK_SECONDS) + 1
        if due <= 0:
            return
        self._next_look += due * TICK_SECONDS
        if not self.settings["run_estimation"]:
            return
        for estimate, counts in self._watched():
            for _ in range(min(due, LONGEST_DECAY)):
                estimate.look(counts)

    def connections(self) -> list[Connection]:
        """The entries of the connection table."""
        return [each for core in self.cores for each in conntrack.connections(core.connections(), self._now)]

    def counters(self) -> dict[str, Any]:
        """Frames: received = forwarded + passed + replied + the sum of all drops, which are by reason."""
        received = forwarded = passed = replied = 0
        drops: dict[str, int] = {}
        for core in self.cores:
            counts = core.totals()
            received, forwarded = received + counts[0], forwarded + counts[1]
            passed, replied = passed + counts[2], replied + counts[3]
            for reason, number in counts[4].items():
                drops[reason] = drops.get(reason, 0) + number
        return {
            "received": received,
            "forwarded": forwarded,
            "passed": passed,
            "replied": replied,
            "drops": drops,
        }

    def zero(self, key: ServiceKey | None = None) -> None:
        """Set the counters and rates of one service, or of everything, to zero, as of the estimator's last look."""
        entries = [self._table.get(key)] if key is not None else list(self._table)
        for entry in entries:
            self._estimate("service", entry.slot).zero()
            for dest in entry.dests:
                self._estimate("dest", dest.slot, entry.slot).zero()
        if key is None:
            self._estimate("total", 0).zero()

    def proc(self, name: str) -> str:
        """The text of ``/proc/net/NAME``; `KeyError` for a name that is not in `proc.NAMES`."""
        match name:
            case "ip_vs":
                return proc.ip_vs(self.status(), self.table_size)
            case "ip_vs_app":
                return proc.ip_vs_app(bool(self.settings["ip_vs_ftp"]))
            case "ip_vs_conn":
                return proc.ip_vs_conn(self.connections())
            case "ip_vs_conn_sync":
                return proc.ip_vs_conn_sync(self.connections())
            case "ip_vs_stats":
                return proc.ip_vs_stats(self.totals())
            case "ip_vs_stats_percpu":
                return proc.ip_vs_stats_percpu(self.totals(), [core.counters() for core in self.cores])
        raise KeyError(f"{name}: known are {', '.join(proc.NAMES)}")

    def ipvsadm(self, args: str | Sequence[str], stdin: str | None = None) -> ipvsadm.Result:
        """Run an ipvsadm command line; never raises for what the user wrote."""
        try:
            argv = shlex.split(args) if isinstance(args, str) else list(args)
        except ValueError as error:
            return ipvsadm.Result(stderr=f"{error} in {args!r}\n", returncode=2)
        return ipvsadm.run(self, argv, stdin)

    # --------------------------------------------------------------------------------------------- offline operation

    def process(self, frames: Sequence[tuple[str, bytes]], now: float) -> list[Outcome]:
        """Decide frames that arrive on interfaces at time `now`; one outcome each, in order.

        Timers up to `now` run first. Time never goes back: an earlier `now` counts as the present one.
        """
        self._set_time(now)
        numbered = [(self.link_id(name), bytes(frame)) for name, frame in frames]
        early = self.cores[0].advance(self._now)
        outcomes = [self._outcome(raw) for raw in self.cores[0].process(numbered, self._now)]
        if early and outcomes:
            first = outcomes[0]
            outcomes[0] = replace(first, frames=[*self._named(early), *first.frames])
        return outcomes

    def advance(self, now: float) -> list[tuple[str, bytes]]:
        """Let time pass until `now`; return the frames that fall due."""
        self._set_time(now)
        return self._named(self.cores[0].advance(self._now))

    def _set_time(self, now: float) -> None:
        self._time = max(self._time, _nanoseconds(now))
        self.sweep()

    def sweep(self) -> None:
        """What time brings to the control plane, asked once a second or more often: every two seconds a look at the
        counters; schedulers that want to be asked again are; every minute, slots of deleted real servers that no
        connection uses any more are freed."""
        self.look()
        if self._table.refresh(self.now):
            self._publish()
        if self.now >= self._next_sweep:
            self._next_sweep = self.now + SWEEP_SECONDS
            self._table.sweep(self.now)

    def _named(self, frames: Sequence[tuple[int, bytes]]) -> list[tuple[str, bytes]]:
        return [(self._link_names[link], frame) for link, frame in frames]

    def _outcome(self, raw: tuple[str, str | None, conntrack.Raw | None, int | None, int | None, Any]) -> Outcome:
        verdict, reason, connection, service, slot, frames = raw
        found = conntrack.connection(connection, self._now) if connection else None
        return Outcome(
            verdict=verdict,
            reason=reason,
            frames=self._named(frames),
            service=self._service_name(service) if service is not None else None,
            dest=endpoint(found.dest, found.dest_port) if found else self._server_name(slot),
            connection=found,
        )

    def _server_name(self, slot: int | None) -> str | None:
        return next((dest.server.name for entry in self._table for dest in entry.dests if dest.slot == slot), None)

    def _service_name(self, slot: int) -> str | None:
        return next((service_name(entry.service.key) for entry in self._table if entry.slot == slot), None)


def _sum(counts: Sequence[Counts]) -> Counts:
    """Of all workers."""
    if len(counts) == 1:
        return counts[0]
    a, b, c, d, e = (sum(column) for column in zip(*counts, strict=True))
    return a, b, c, d, e


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _host(
    interfaces: Mapping[str, Mapping[str, Any]], neighbours: Mapping[str, str], routes: Mapping[str, str]
) -> Host:
    """The model's view from the contract's dictionaries."""
    links = []
    for index, (name, spec) in enumerate(interfaces.items(), start=1):
        unknown = set(spec) - {"mac", "addresses", "mtu", "up"}
        if unknown:
            raise ValueError(f"interface {name}: unknown {', '.join(sorted(unknown))}; known: mac, addresses, mtu, up")
        loopback = name == "lo"
        links.append(
            Link(
                name=name,
                index=index,
                mac=_mac(spec.get("mac", "00:00:00:00:00:00")),
                mtu=int(spec.get("mtu", 65536 if loopback else 1500)),
                up=bool(spec.get("up", True)),
                loopback=loopback,
                addresses=tuple(spec.get("addresses", ())),
            )
        )
    indices = {link.name: link.index for link in links}
    return Host(
        links=tuple(links),
        neighbours=tuple(Neighbour(address=canonical(ip), mac=_mac(mac)) for ip, mac in neighbours.items()),
        routes=tuple(
            Route(prefix=prefix, link=indices[via]) if via in indices else Route(prefix=prefix, gateway=canonical(via))
            for prefix, via in routes.items()
        ),
        forwarding4=True,
        forwarding6=True,
    )


def _mac(text: str) -> str:
    parts = text.split(":")
    if len(parts) != 6 or not all(len(part) == 2 and int(part, 16) >= 0 for part in parts):
        raise ValueError(f"{text!r} is not a MAC address; write it as 02:00:00:00:00:01")
    return text.lower()
