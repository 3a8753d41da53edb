"""The daemon: a director with real sockets in one network namespace, from start to clean stop.

The event loop follows the host (netlink), serves the control API and watches the worker; everything that touches the
`Director` runs in one thread of its own, one thing after another, so that a slow change never stops the loop, and no
change ever meets another half-way. The worker forwards all the while.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiohttp import web

from pylvs import __version__
from pylvs.daemon import api
from pylvs.daemon.beside import Beside
from pylvs.daemon.names import read_hosts
from pylvs.daemon.vips import Vips, local_addresses
from pylvs.director import Director
from pylvs.fib import unpacked
from pylvs.host.watch import HostWatch
from pylvs.model import Host, Link, Service
from pylvs.ports.af_packet import PacketPort
from pylvs.worker import Worker

log = logging.getLogger("pylvs")
T = TypeVar("T")

TICK = 1.0
REFRESH = 5.0
STALLED = 10.0  # seconds without a turn of the worker (there are ten a second) after which we say so
CAPABILITIES = {12: "CAP_NET_ADMIN", 13: "CAP_NET_RAW"}
MAX_FOLLOWED = 1024
NO_MAC = "00:00:00:00:00:00"


class Failure(Exception):
    """The daemon cannot start; `status` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Daemon:
    """One running director. `interfaces` empty: all but loopback, as they come and go."""

    def __init__(
        self,
        interfaces: Sequence[str],
        *,
        connections: int,
        ring_mib: int,
        guard: bool,
        scheduler_modules: Sequence[str] = (),
        marks: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._interfaces = list(interfaces)
        self._ring_mib = ring_mib
        self._want_guard = guard
        self._started = time.monotonic()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pylvs-control")
        self._vips = Vips()
        self._unopened: set[str] = set()
        self._link_down = 0
        self._asked: dict[tuple[str, int], float] = {}
        self._last_refresh = 0.0
        self._heartbeat = (0, time.monotonic(), False)  # turns of the worker, when they last grew, whether we said so
        self._stop = asyncio.Event()
        self._cleanup = contextlib.AsyncExitStack()
        self.director = Director(
            clock=time.monotonic, connections=connections, scheduler_modules=scheduler_modules, marks=marks
        )
        self.worker = Worker(self.director.cores[0])
        self.beside = Beside(self.director, self._say)
        self._watch: HostWatch

    # ------------------------------------------------------------------------------------------------- life cycle

    async def run(self, stopper: Stopper) -> None:
        """Start, serve until told to stop, stop. Raises `Failure`."""
        stopper.attach(asyncio.get_running_loop(), self._stop)
        async with self._cleanup:
            await self._start(asyncio.get_running_loop())
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), TICK)
                try:
                    self._watch_worker()
                    await self._refresh()
                except Exception:
                    log.exception("the regular round failed")

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set everything up. What is undone in the end: first all that makes jobs, then their thread, then the rest."""
        try:
            sock = api.listen()
        except api.AlreadyRunning as error:
            raise Failure(str(error)) from None
        self._cleanup.callback(sock.close)
        self._watch = HostWatch(self._host_changed)
        self._cleanup.callback(self._watch.close)
        host = self._watch.snapshot()
        known = {link.name for link in host.links}
        for name in self._interfaces:
            if name not in known:
                raise Failure(f"interface {name} does not exist; `ip link` shows: {', '.join(sorted(known))}")
        self.director.hosts = read_hosts()
        self.worker.start()
        self._cleanup.callback(self.worker.stop)
        self._cleanup.callback(self._vips.close)
        self._cleanup.callback(self.beside.stop)
        self._cleanup.callback(self._executor.shutdown)
        if self._want_guard:
            await self._do(self.beside.start)
        await self._do(lambda: self._adopt(host))
        self.director.before_service = self._before_service
        self.director.before_server = self.beside.before_server
        loop.add_reader(self.worker.notify, self._needs)
        self._cleanup.callback(loop.remove_reader, self.worker.notify)
        self._cleanup.callback(self._watch.close)
        self._watch.start(loop)
        runner = web.AppRunner(api.application(self), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._cleanup.push_async_callback(runner.cleanup)
        await web.SockSite(runner, sock).start()
        names = " ".join(sorted(port.name for port in self.worker.ports.values())) or "none yet"
        self._say(f"ready, pid {os.getpid()}, interfaces {names}")

    def _before_service(self, service: Service) -> None:
        self._vips.claim(self.director.host, service)
        self.beside.before_service(service)

    # ------------------------------------------------------------------------------------------- what others may do

    async def _do(self, job: Callable[[], T]) -> T:
        """Run something in the director's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, job)

    async def ask(self, question: Callable[[Director], T]) -> T:
        """Read something of the director."""
        return await self._do(lambda: question(self.director))

    async def change(self, change: Callable[[Director], T]) -> T:
        """Change the director, and its surroundings with it."""

        def job() -> T:
            try:
                return change(self.director)
            finally:
                self._reconcile()

        return await self._do(job)

    def describe(self) -> dict[str, Any]:
        """What ``GET /v1/status`` tells."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "uptime": round(time.monotonic() - self._started, 3),
            "guard": self.beside.guard is not None,
            "connections": sum(core.count for core in self.director.cores),
            "turns": self.worker.turns,
            "forwarding": {"4": self.director.host.forwarding4, "6": self.director.host.forwarding6},
            "local": sorted(local_addresses(self.director.host)),
            "interfaces": {
                port.name: {"index": port.ifindex, "lost": port.statistics()} for port in self.worker.ports.values()
            },
        }

    # ------------------------------------------------------------------------------------------------ the host moves

    def _host_changed(self, host: Host) -> None:
        self._executor.submit(self._adopt_logged, host)

    def _adopt_logged(self, host: Host) -> None:
        try:
            self._adopt(host)
        except Exception:
            log.exception("the host's change could not be followed")

    def _adopt(self, host: Host) -> None:
        """Work by a new view of the host: its routes and neighbours, its interfaces, its own addresses."""
        self.director.configure_host(host)
        self._reconcile_ports(host)
        self._reconcile()

    def _receiving(self) -> set[str]:
        present = {port.name for port in self.worker.ports.values()}
        return present & set(self._interfaces) if self._interfaces else present

    def _receives(self, link: Link) -> bool:
        return link.name in self._interfaces if self._interfaces else link.mac != NO_MAC

    def _reconcile_ports(self, host: Host) -> None:
        """Open ports of new interfaces (or of old names with a new index), close those of deleted ones."""
        links = {link.name: link for link in host.links if not link.loopback and link.mac != NO_MAC}
        for port in self.worker.ports.values():
            link = links.get(port.name)
            if link is None or link.index != port.ifindex or not port.bound:
                self.worker.remove_port(port)
                self._say(f"interface {port.name} is gone")
        present = {port.name for port in self.worker.ports.values()}
        for name in links.keys() - present:
            link = links[name]
            vlans = [each.vlan for each in host.links if each.vlan and each.parent == link.index]
            try:
                port = PacketPort(
                    name, link.index, self.director.link_id(name), self._receives(link), self._ring_mib, vlans
                )
            except OSError as error:
                if not self._watch_started:
                    raise Failure(error.strerror or str(error), 4 if error.errno == errno.EPERM else 1) from None
                if name not in self._unopened:
                    self._unopened.add(name)
                    self._say(f"interface {name} cannot be opened, trying again: {error.strerror}")
                continue
            self._unopened.discard(name)
            if self._receives(link):
                self.beside.stand_at({name, *self._receiving()})
            self.worker.add_port(port)
            if self._watch_started:
                self._say(f"interface {name} is here")

    @property
    def _watch_started(self) -> bool:
        return self.director.before_service is not None

    def _say(self, text: str) -> None:
        print(f"pylvs: {text}", file=sys.stderr, flush=True)

    def _reconcile(self) -> None:
        """Bring guard and announcements in line with services and addresses."""
        host = self.director.host
        status = self.director.status()
        vips = {each.service.address for each in status if each.service.address}
        self._vips.reconcile(host, vips)
        self.beside.reconcile(host, status, self._receiving())

    # ------------------------------------------------------------------------------------------------ next hops

    def _needs(self) -> None:
        """The worker waits for next hops: have the kernel resolve them, each at most once a second."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.worker.notify)
        now = time.monotonic()
        indices = {self.director.link_id(link.name): link.index for link in self.director.host.links}
        for address, number in self.director.cores[0].needs():
            index = indices.get(number)
            where = (unpacked(address), index or 0)
            if index is None or now - self._asked.get(where, -1e9) < 1.0:
                continue
            while len(self._asked) >= MAX_FOLLOWED:
                del self._asked[next(iter(self._asked))]
            self._asked[where] = now
            self._watch.resolve(*where)

    async def _refresh(self) -> None:
        """Every few seconds, have the kernel confirm the next hops in use: it does not see our traffic."""
        await self._do(self.director.sweep)
        link_down = self.director.counters()["drops"].get("link_down", 0)
        if link_down != self._link_down:  # an interface may have gone and come back unseen
            self._link_down = link_down
            await self._do(lambda: self._reconcile_ports(self.director.host))
        if self.beside.lingers:
            await self._do(self._reconcile)
        if time.monotonic() - self._last_refresh < REFRESH:
            return
        self._last_refresh = time.monotonic()
        addresses = await self._do(self._round)
        addresses.update(address for address, _ in self._asked)
        self._watch.refresh(addresses)

    def _round(self) -> set[str]:
        """Bring the surroundings in line once more; return the gateways and real servers."""
        self._reconcile_ports(self.director.host)
        self._reconcile()
        addresses = {server.server.address for each in self.director.status() for server in each.servers}
        addresses.update(route.gateway for route in self.director.host.routes if route.gateway)
        return addresses

    def _watch_worker(self) -> None:
        """Say it when the worker stops turning, and when it turns again."""
        turns, since, said = self._heartbeat
        now = time.monotonic()
        if self.worker.turns != turns:
            if said:
                self._say("the worker goes on")
            self._heartbeat = (self.worker.turns, now, False)
        elif now - since > STALLED and not said:
            self._say(f"the worker has not moved for {now - since:.0f} s: nothing is forwarded; restart pylvs")
            self._heartbeat = (turns, since, True)


class Stopper:
    """SIGTERM and SIGINT from the first moment to the last: an early one is kept, a late one changes nothing."""

    def __init__(self) -> None:
        self._asked = False
        self._wake: Callable[[], object] = lambda: None
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, self._ask)

    def _ask(self, *_: object) -> None:
        self._asked = True
        self._wake()

    def attach(self, loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
        """From now on, set `stop`."""

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                loop.call_soon_threadsafe(stop.set)

        self._wake = wake
        if self._asked:
            stop.set()


def run(
    interfaces: Sequence[str],
    *,
    connections: int,
    ring_mib: int,
    guard: bool,
    scheduler_modules: Sequence[str] = (),
    marks: Sequence[Mapping[str, Any]] = (),
) -> int:
    """Run a daemon until SIGTERM or SIGINT; return the exit status."""
    stopper = Stopper()
    logging.basicConfig(level=logging.WARNING, format="pylvs: %(message)s")
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # a request that is no HTTP is its sender's affair

    async def main() -> None:
        await Daemon(
            interfaces,
            connections=connections,
            ring_mib=ring_mib,
            guard=guard,
            scheduler_modules=scheduler_modules,
            marks=marks,
        ).run(stopper)

    missing = _missing()
    if missing:
        print(f"pylvs: a director needs root, or {missing}", file=sys.stderr)
        return 4
    try:
        asyncio.run(main())
    except Failure as error:
        print(f"pylvs: {error}", file=sys.stderr)
        return error.status
    except (MemoryError, OSError, ValueError) as error:
        print(f"pylvs: {error}", file=sys.stderr)
        return 4 if isinstance(error, PermissionError) else 1
    return 0


def _missing() -> str:
    """The capabilities that this process lacks; "" if it has all."""
    with open("/proc/thread-self/status") as status:
        held = next(int(line.split()[1], 16) for line in status if line.startswith("CapEff:"))
    return " and ".join(name for bit, name in sorted(CAPABILITIES.items()) if not held >> bit & 1)
