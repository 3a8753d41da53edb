"""How the watch gathers, applies and retries; the kernel is only read, never changed."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ndmsg import ndmsg

from pylvs.host import watch as room
from pylvs.host.neighbours import NUD_PERMANENT, NUD_REACHABLE, NUD_STALE, RTM_DELNEIGH, RTM_NEWNEIGH, Entry
from pylvs.host.watch import HostWatch
from pylvs.model import Host, Link

MAC = "02:00:00:00:00:01"


class Announcements:
    """Stands for the event socket: hands out what the test puts in."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.lost = False
        self.pair = socket.socketpair()

    def fileno(self) -> int:
        return self.pair[0].fileno()

    def read(self) -> tuple[list[Any], bool]:
        found, self.messages = self.messages, []
        lost, self.lost = self.lost, False
        return found, lost

    def close(self) -> None:
        for end in self.pair:
            end.close()


def neighbour(kind: int, address: str, mac: str = MAC, state: int = NUD_REACHABLE) -> Any:
    message = ndmsg()
    message["header"] = {"type": kind, "flags": 0, "sequence_number": 0, "pid": 0}
    message["family"], message["ifindex"], message["state"] = socket.AF_INET, 4, state
    message["attrs"] = [("NDA_DST", address), ("NDA_LLADDR", mac)]
    message.encode()
    read = ndmsg(message.data)
    read.decode()
    return read


class Watched:
    """A watch whose readings and announcements the test decides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.links: list[Any] = [(Link(name="eth0", index=4),)]
        self.entries: list[Entry] = []
        self.readings = 0
        self.reports: list[Host] = []
        self.solicited: list[tuple[str, int]] = []
        monkeypatch.setattr(room, "read_links", self._links)
        monkeypatch.setattr(room, "read_routes", lambda netlink: ())
        monkeypatch.setattr(room, "read_neighbours", lambda netlink: list(self.entries))
        monkeypatch.setattr(room, "solicit", self._solicit)
        monkeypatch.setattr(room, "RETRY", 0.0)
        monkeypatch.setattr(room, "SHARE", 0)
        self.watch = HostWatch(self.reports.append, delay=0.0)
        self.watch._events.close()
        self.events = Announcements()
        self.watch._events = self.events  # type: ignore[assignment]

    def _links(self, netlink: object) -> Any:
        self.readings += 1
        found = self.links[min(self.readings, len(self.links)) - 1]
        if isinstance(found, Exception):
            raise found
        return found

    def _solicit(self, netlink: object, address: str, link: int) -> int:
        self.solicited.append((address, link))
        return 0

    async def settle(self) -> None:
        """Let everything run that is due."""
        self.watch._heard()
        while self.watch._timer is not None:
            await asyncio.sleep(0)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def run(watched: Watched, body: Any) -> None:
    async def main() -> None:
        try:
            watched.watch.snapshot()
            watched.watch.start()
            await watched.settle()
            await body()
        finally:
            watched.watch.close()

    asyncio.run(main())


def test_neighbours_are_applied_one_by_one_without_a_reading(watched: Watched) -> None:
    async def body() -> None:
        watched.events.messages = [neighbour(RTM_NEWNEIGH, "10.0.0.2"), neighbour(RTM_NEWNEIGH, "10.0.0.3")]
        await watched.settle()
        assert [n.address for n in watched.reports[-1].neighbours] == ["10.0.0.2", "10.0.0.3"]
        watched.events.messages = [neighbour(RTM_NEWNEIGH, "10.0.0.2", state=NUD_STALE)]
        await watched.settle()
        assert len(watched.reports) == 1, "still usable at the same MAC: nothing to report"
        watched.events.messages = [
            neighbour(RTM_DELNEIGH, "10.0.0.3"),
            neighbour(RTM_NEWNEIGH, "10.0.0.2", MAC[:-1] + "2"),
        ]
        await watched.settle()
        assert [(n.address, n.mac) for n in watched.reports[-1].neighbours] == [("10.0.0.2", MAC[:-1] + "2")]
        assert watched.readings == 1 and len(watched.reports) == 2

    run(watched, body)


def test_a_lost_announcement_means_reading_all_again(watched: Watched) -> None:
    async def body() -> None:
        watched.entries = [Entry(4, "10.0.0.9", MAC, NUD_REACHABLE)]
        watched.events.lost = True
        await watched.settle()
        assert watched.readings == 2 and watched.watch.overflows == 1
        assert watched.reports[-1].neighbours[0].address == "10.0.0.9"

    run(watched, body)


def test_a_reading_that_fails_is_tried_again(watched: Watched) -> None:
    links = (Link(name="eth0", index=5),)
    watched.links = [watched.links[0], OSError(16, "busy"), room.Changed("busy"), links]

    async def body() -> None:
        watched.events.lost = True
        await watched.settle()
        assert watched.readings == 4
        assert [host.links for host in watched.reports] == [links]

    run(watched, body)


def test_full_readings_keep_their_distance(watched: Watched) -> None:
    async def body() -> None:
        watched.watch._earliest = asyncio.get_running_loop().time() + 3600
        watched.events.lost = True
        watched.watch._heard()
        assert watched.watch._timer is not None
        assert watched.watch._timer.when() == watched.watch._earliest
        watched.watch._report()
        assert watched.readings == 1, "not before its time"

    run(watched, body)


def test_only_stale_hops_in_use_are_confirmed_and_permanent_ones_never(watched: Watched) -> None:
    watched.entries = [
        Entry(4, "10.0.0.2", MAC, NUD_STALE),
        Entry(4, "10.0.0.3", MAC, NUD_STALE),
        Entry(4, "10.0.0.4", MAC, NUD_REACHABLE),
        Entry(4, "10.0.0.5", MAC, NUD_PERMANENT),
    ]

    async def body() -> None:
        watched.watch.refresh(["10.0.0.2", "10.0.0.4", "10.0.0.5", "192.0.2.1"])
        assert watched.solicited == [("10.0.0.2", 4)]
        watched.watch.resolve("10.0.0.5", 4)
        watched.watch.resolve("10.0.0.7", 4)
        assert watched.solicited == [("10.0.0.2", 4), ("10.0.0.7", 4)]

    run(watched, body)


def test_nothing_happens_after_close(watched: Watched) -> None:
    async def body() -> None:
        watched.events.lost = True
        watched.watch._heard()
        watched.watch.close()
        watched.watch._report()
        assert watched.readings == 1 and watched.reports == []

    run(watched, body)
