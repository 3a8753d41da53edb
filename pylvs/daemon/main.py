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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiohttp import web

from pylvs import __version__
from pylvs.daemon import api
from pylvs.daemon.vips import Vips
from pylvs.director import Director
from pylvs.fib import unpacked
from pylvs.host.guard import Guard, GuardError
from pylvs.host.watch import HostWatch
from pylvs.model import Host, Link, ServiceStatus
from pylvs.ports.af_packet import PacketPort
from pylvs.worker import Worker

log = logging.getLogger("pylvs")
T = TypeVar("T")

TICK = 1.0
REFRESH = 5.0
MAX_FOLLOWED = 1024
NO_MAC = "00:00:00:00:00:00"


class Failure(Exception):
    """The daemon cannot start; `status` is the exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Daemon:
    """One running director. `interfaces` empty: all but loopback, as they come and go."""

    def __init__(self, interfaces: Sequence[str], *, connections: int, ring_mib: int, guard: bool) -> None:
        self._interfaces = list(interfaces)
        self._ring_mib = ring_mib
        self._want_guard = guard
        self._guard: Guard | None = None
        self._guarded_links: list[str] = []
        self._started = time.monotonic()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="pylvs-control")
        self._vips = Vips()
        self._asked: dict[tuple[str, int], float] = {}
        self._last_refresh = 0.0
        self._stop = asyncio.Event()
        self._cleanup = contextlib.AsyncExitStack()
        self.director = Director(clock=time.monotonic, connections=connections)
        self.worker = Worker(self.director.cores[0])
        self._watch: HostWatch

    # ------------------------------------------------------------------------------------------------- life cycle

    async def run(self) -> None:
        """Start, serve until told to stop, stop. Raises `Failure`."""
        loop = asyncio.get_running_loop()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._stop.set)
        async with self._cleanup:
            await self._start(loop)
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), TICK)
                await self._do(self.director.sweep)
                self._refresh()

    async def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._cleanup.callback(self._executor.shutdown)
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
        self.worker.start()
        self._cleanup.callback(self.worker.stop)
        self._cleanup.callback(self._vips.close)
        self._start_guard(host)
        await self._do(lambda: self._adopt(host))
        self.director.before_service = lambda service: self._vips.claim(self.director.host, service)
        loop.add_reader(self.worker.notify, self._needs)
        self._cleanup.callback(loop.remove_reader, self.worker.notify)
        self._watch.start(loop)
        runner = web.AppRunner(api.application(self), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        self._cleanup.push_async_callback(runner.cleanup)
        await web.SockSite(runner, sock).start()
        names = " ".join(sorted(port.name for port in self.worker.ports.values())) or "none yet"
        print(f"pylvs: ready, pid {os.getpid()}, interfaces {names}", file=sys.stderr, flush=True)

    def _start_guard(self, host: Host) -> None:
        if not self._want_guard:
            return
        try:
            self._guard = Guard([])
        except GuardError as error:
            print(f"pylvs: no guard: {error}; the host's stack may answer as well", file=sys.stderr, flush=True)
            return
        self._cleanup.callback(self._guard.close)
        self.director.guarded = True

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
            "guard": self._guard is not None,
            "connections": sum(core.count for core in self.director.cores),
            "turns": self.worker.turns,
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

    def _receives(self, link: Link) -> bool:
        return link.name in self._interfaces if self._interfaces else link.mac != NO_MAC

    def _reconcile_ports(self, host: Host) -> None:
        """Open ports of new interfaces (or of old names with a new index), close those of deleted ones."""
        links = {link.name: link for link in host.links if not link.loopback and link.mac != NO_MAC}
        for port in self.worker.ports.values():
            link = links.get(port.name)
            if link is None or link.index != port.ifindex:
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
                self._say(f"interface {name} cannot be opened: {error.strerror}")
                continue
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
        if self._guard is None:
            return
        try:
            receiving = sorted(port.name for port in self.worker.ports.values())
            if receiving != self._guarded_links:
                self._guard.set_interfaces(receiving)
                self._guarded_links = receiving
            self._guard.update(*guarded(status))
        except GuardError as error:
            self._say(f"the guard could not be changed: {error}")

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

    def _refresh(self) -> None:
        """Every few seconds, have the kernel confirm the next hops in use: it does not see our traffic."""
        if time.monotonic() - self._last_refresh < REFRESH:
            return
        self._last_refresh = time.monotonic()
        host = self._watch.host
        addresses = {address for address, _ in self._asked}
        addresses.update(route.gateway for route in host.routes if route.gateway)
        self._watch.refresh(addresses)


def guarded(
    status: Sequence[ServiceStatus],
) -> tuple[set[tuple[str, str, int]], set[tuple[str, str, int]]]:
    """What the host must not see: virtual services, and what NAT real servers answer from."""
    services: set[tuple[str, str, int]] = set()
    replies: set[tuple[str, str, int]] = set()
    for each in status:
        if each.service.protocol == "fwm":
            continue
        services.add((each.service.protocol, each.service.address, each.service.port))
        for server in each.servers:
            if server.server.method == "masq":
                replies.add((each.service.protocol, server.server.address, server.server.port))
    return services, replies


def run(interfaces: Sequence[str], *, connections: int, ring_mib: int, guard: bool) -> int:
    """Run a daemon until SIGTERM or SIGINT; return the exit status."""
    logging.basicConfig(level=logging.WARNING, format="pylvs: %(message)s")

    async def main() -> None:
        await Daemon(interfaces, connections=connections, ring_mib=ring_mib, guard=guard).run()

    if os.geteuid() != 0 and not _may_open():
        print("pylvs: packet sockets need root, or CAP_NET_RAW and CAP_NET_ADMIN", file=sys.stderr)
        return 4
    try:
        asyncio.run(main())
    except Failure as error:
        print(f"pylvs: {error}", file=sys.stderr)
        return error.status
    except MemoryError as error:
        print(f"pylvs: {error}", file=sys.stderr)
        return 1
    return 0


def _may_open() -> bool:
    import socket

    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except PermissionError:
        return False
    return True
