"""The host as the data plane needs it, followed live.

One socket hears the kernel's announcements, another asks for tables. It is subscribed before the first table is read,
so nothing falls between the two; an announcement older than the table it follows is repeated by a newer one. Changed
neighbours are applied one by one. A changed link, address or route makes us read everything again, because the kernel
does not announce every consequence (IPv4 routes that a downed link takes with it go in silence). So does a lost
announcement.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from pylvs.host.links import forwarding, read_links
from pylvs.host.neighbours import (
    NUD_PERMANENT,
    NUD_STALE,
    RTM_DELNEIGH,
    RTM_NEWNEIGH,
    Entry,
    parse_neighbour,
    read_neighbours,
    solicit,
)
from pylvs.host.netlink import Changed, RouteEvents, RouteSocket
from pylvs.host.routes import read_routes
from pylvs.model import Host

RTNLGRP_LINK = 1
RTNLGRP_NEIGH = 3
RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV4_NETCONF = 5, 7, 24
RTNLGRP_IPV6_IFADDR, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV6_NETCONF = 9, 11, 25
GROUPS = (
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV4_NETCONF,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_IPV6_NETCONF,
)

DELAY = 0.02  # seconds in which changes are gathered
SHARE = 4  # pause at least this many times as long as the last full reading took
RETRY = 0.25  # seconds until a reading that failed is tried again

log = logging.getLogger(__name__)


class HostWatch:
    """The links, routes and neighbours of the current network namespace, and every change of them.

    `changed(host)` is called on the asyncio loop that called `start`, about `delay` seconds after a change, and only
    if the host really looks different. `close` leaves neither thread, descriptor nor timer. Not for several threads.
    """

    def __init__(self, changed: Callable[[Host], None], *, delay: float = DELAY, buffer: int = 4 << 20) -> None:
        self._changed = changed
        self._delay = delay
        self._events = RouteEvents(GROUPS, buffer=buffer)
        try:
            self._netlink = RouteSocket()
        except OSError:
            self._events.close()
            raise
        self._entries: dict[tuple[int, str], Entry] = {}
        self._host = Host()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._earliest = 0.0  # loop time before which nothing is read in full again
        self._stale = True  # what we hold must be read again
        self._lost = 0

    @property
    def host(self) -> Host:
        """The host as last read or reported."""
        return self._host

    @property
    def overflows(self) -> int:
        """How often the kernel dropped announcements because we were slow; each led to a full reading."""
        return self._lost

    def snapshot(self) -> Host:
        """Read everything now. Raises `OSError` if the kernel refuses, `Changed` if its tables never hold still."""
        entries = {(entry.link, entry.address): entry for entry in read_neighbours(self._netlink)}
        links = read_links(self._netlink)
        routes = read_routes(self._netlink)
        self._entries = entries
        self._host = Host(
            links=links, routes=routes, forwarding4=forwarding(4), forwarding6=forwarding(6), neighbours=self._usable()
        )
        self._stale = False
        return self._host

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        """Follow the host from now on; changes since the last `snapshot` are reported too."""
        self._loop = loop or asyncio.get_running_loop()
        self._loop.add_reader(self._events.fileno(), self._heard)
        self._heard()

    def resolve(self, address: str, link: int) -> None:
        """Have the kernel resolve next hop `address` on interface index `link`; the answer arrives as a change.

        Cheap to repeat, and harmless if the link is down or gone: there will be no answer then.
        """
        entry = self._entries.get((link, address))
        if entry is not None and entry.state & NUD_PERMANENT:
            return
        error = solicit(self._netlink, address, link)
        if error:
            log.debug("%s on interface %d cannot be resolved now: errno %d", address, link, error)

    def refresh(self, addresses: Iterable[str]) -> None:
        """Have the kernel confirm those of `addresses` that have gone stale; call it for the next hops in use.

        The kernel does not see our traffic, so nothing else tells it to notice a next hop that has died or moved.
        """
        wanted = set(addresses)
        for entry in list(self._entries.values()):
            if entry.state & NUD_STALE and entry.address in wanted:
                self.resolve(entry.address, entry.link)

    def close(self) -> None:
        """Stop following and close the sockets; a second call does nothing."""
        if self._loop is not None:
            if self._events.fileno() >= 0:
                self._loop.remove_reader(self._events.fileno())
            self._loop = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._events.close()
        self._netlink.close()

    # ------------------------------------------------------------------------------------------------ on the loop

    def _heard(self) -> None:
        messages, lost = self._events.read()
        if lost:
            self._lost += 1
            self._stale = True
        for message in messages:
            self._apply(message)
        self._schedule(self._delay)

    def _apply(self, message: Any) -> None:
        kind = message["header"]["type"]
        if kind not in (RTM_NEWNEIGH, RTM_DELNEIGH):
            self._stale = True
            return
        entry = parse_neighbour(message)
        if entry is None:
            return
        if kind == RTM_DELNEIGH:
            self._entries.pop((entry.link, entry.address), None)
        else:
            self._entries[entry.link, entry.address] = entry

    def _schedule(self, delay: float) -> None:
        if self._timer is None and self._loop is not None:
            when = self._loop.time() + delay
            self._timer = self._loop.call_at(max(when, self._earliest) if self._stale else when, self._report)

    def _report(self) -> None:
        self._timer = None
        if self._loop is None:
            return
        if self._stale and self._loop.time() < self._earliest:
            self._schedule(0)
            return
        before = self._host
        if self._stale:
            began = time.monotonic()
            try:
                self.snapshot()
            except (OSError, Changed) as error:
                log.warning("the host's tables cannot be read, trying again: %s", error)
                self._schedule(RETRY)
                return
            self._earliest = self._loop.time() + SHARE * (time.monotonic() - began)
        else:
            self._host = Host(
                links=before.links,
                routes=before.routes,
                neighbours=self._usable(),
                forwarding4=before.forwarding4,
                forwarding6=before.forwarding6,
            )
        if self._host != before:
            self._changed(self._host)

    def _usable(self) -> tuple[Any, ...]:
        usable = (entry.neighbour for _, entry in sorted(self._entries.items()))
        return tuple(neighbour for neighbour in usable if neighbour is not None)
