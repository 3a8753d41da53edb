"""The host followed live through netlink, in namespaces of the test's own."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from hostnet import HostNet

from pylvs.host.links import read_links
from pylvs.host.neighbours import NUD_PERMANENT, NUD_STALE, read_neighbours
from pylvs.host.netlink import RouteSocket
from pylvs.host.routes import read_routes
from pylvs.host.watch import HostWatch
from pylvs.model import Host, Link, Neighbour, Route

pytestmark = pytest.mark.root


@pytest.fixture
def net() -> Iterator[HostNet]:
    with HostNet("d", "r") as net:
        net.veth("d", "eth0", "r", "up0")
        net.ip(
            "d", "link set eth0 address 02:00:00:00:00:01; addr add 10.0.0.1/24 dev eth0; addr add fd00::1/64 dev eth0"
        )
        net.ip("r", "link set up0 address 02:00:00:00:00:02; addr add 10.0.0.2/24 dev up0; addr add fd00::2/64 dev up0")
        yield net


class Seen:
    """What the watch reported, and waiting for a report that fits."""

    def __init__(self) -> None:
        self.hosts: list[Host] = []
        self._news = asyncio.Event()

    def __call__(self, host: Host) -> None:
        self.hosts.append(host)
        self._news.set()

    async def until(self, fits: Callable[[Host], bool], seconds: float = 20.0) -> Host:
        async with asyncio.timeout(seconds):
            while not self.hosts or not fits(self.hosts[-1]):
                self._news.clear()
                await self._news.wait()
        return self.hosts[-1]


def link(host: Host, name: str) -> Link | None:
    return next((link for link in host.links if link.name == name), None)


def mac_of(host: Host, address: str) -> str:
    return next((n.mac for n in host.neighbours if n.address == address), "")


def watched(net: HostNet, body: Callable[[HostWatch, Seen], object], **options: int) -> None:
    """Run the coroutine function `body` with a started watch of namespace d."""

    async def main() -> None:
        seen = Seen()
        watch = HostWatch(seen, **options)  # type: ignore[arg-type]
        try:
            seen.hosts.append(watch.snapshot())
            watch.start()
            await body(watch, seen)  # type: ignore[misc]
        finally:
            watch.close()

    with net.inside("d"):
        asyncio.run(main())


# ---------------------------------------------------------------------------------------------------- readers


def test_links_with_local_prefixes_and_handmade_local_routes(net: HostNet) -> None:
    net.ip("d", "addr add 10.9.0.0/24 dev lo; addr add fd09::1/64 dev lo; route add local 198.51.100.0/24 dev lo")
    net.ip("d", "-6 route add local 2001:db8:5::/64 dev lo; link set eth0 mtu 1400")
    net.ip("d", "addr add 10.7.0.1 peer 10.7.0.2/32 dev eth0")
    with net.inside("d"):
        netlink = RouteSocket()
        links = {link.name: link for link in read_links(netlink)}
        netlink.close()
    eth0 = links["eth0"]
    assert (eth0.mac, eth0.mtu, eth0.up, eth0.loopback, eth0.vlan) == ("02:00:00:00:00:01", 1400, True, False, 0)
    assert eth0.addresses[:3] == ("10.0.0.1/24", "10.7.0.1/32", "fd00::1/64"), "the fourth is link-local"
    lo = links["lo"]
    assert lo.loopback and lo.index == 1 and lo.mtu == 65536
    assert set(lo.addresses) == {
        "127.0.0.1/8", "::1/128", "10.9.0.0/24", "fd09::1/128", "198.51.100.0/24", "2001:db8:5::/64",
    }  # fmt: skip


def test_vlan_links(net: HostNet) -> None:
    if net.run("d", "ip", "link", "add", "link", "eth0", "name", "eth0.7", "type", "vlan", "id", "7").returncode:
        pytest.skip("this kernel has no VLAN links")
    with net.inside("d"):
        netlink = RouteSocket()
        links = {link.name: link for link in read_links(netlink)}
        netlink.close()
    vlan = links["eth0.7"]
    assert (vlan.parent, vlan.vlan, vlan.up) == (links["eth0"].index, 7, False)


def test_routes_of_both_families_and_their_kinds(net: HostNet) -> None:
    net.ip("d", "route add default via 10.0.0.2 mtu 1300 metric 5; route add blackhole 192.0.2.0/24")
    net.ip("d", "route add 198.51.100.0/24 via inet6 fe80::2 dev eth0; route add prohibit 203.0.113.0/24")
    net.ip("d", "route add 10.20.0.0/16 nexthop via 10.0.0.7 weight 2 nexthop via 10.0.0.8")
    net.ip("d", "-6 route add default via fd00::2; -6 route add unreachable 2001:db8:9::/48")
    net.ip("d", "-6 route add 2001:db8:1::/48 nexthop via fd00::7 nexthop via fd00::8")
    net.ip("d", "route add 172.16.0.0/12 via 10.0.0.9 table default; -6 route add 2001:db8::/32 dev eth0 table 77")
    with net.inside("d"):
        netlink = RouteSocket()
        index = socket.if_nametoindex("eth0")
        routes = {route.prefix: route for route in read_routes(netlink)}
        netlink.close()
    assert routes["0.0.0.0/0"] == Route(prefix="0.0.0.0/0", gateway="10.0.0.2", link=index, mtu=1300, metric=5)
    assert routes["10.0.0.0/24"] == Route(prefix="10.0.0.0/24", link=index, source="10.0.0.1")
    assert routes["192.0.2.0/24"] == Route(prefix="192.0.2.0/24", kind="blackhole")
    assert routes["203.0.113.0/24"].kind == "prohibit"
    assert routes["198.51.100.0/24"].gateway == "fe80::2"
    assert (routes["10.20.0.0/16"].gateway, routes["10.20.0.0/16"].link) == ("10.0.0.7", index)
    assert (routes["::/0"].gateway, routes["::/0"].link) == ("fd00::2", index)
    assert routes["2001:db8:1::/48"].gateway == "fd00::7"
    assert routes["2001:db8:9::/48"].kind == "unreachable"
    assert "172.16.0.0/12" not in routes, "main has a default route, so table default is never asked"
    assert "2001:db8::/32" not in routes
    net.ip("d", "route del default")
    with net.inside("d"):
        netlink = RouteSocket()
        assert any(route.prefix == "172.16.0.0/12" for route in read_routes(netlink))
        netlink.close()


def test_neighbours_that_are_usable(net: HostNet) -> None:
    for number, state in enumerate(("permanent", "noarp", "stale", "reachable", "failed", "incomplete"), start=11):
        net.ip("d", f"neigh add 10.0.0.{number} lladdr 02:00:00:00:01:{number} dev eth0 nud {state}", check=False)
    net.ip("d", "neigh add fd00::11 lladdr 02:00:00:00:01:99 dev eth0 nud stale; neigh add proxy 10.0.0.77 dev eth0")
    with net.inside("d"):
        netlink = RouteSocket()
        index = socket.if_nametoindex("eth0")
        usable = {entry.neighbour for entry in read_neighbours(netlink)} - {None}
        netlink.close()
    expected = {Neighbour(address=f"10.0.0.{n}", mac=f"02:00:00:00:01:{n}", link=index) for n in (11, 12, 13, 14)}
    assert usable == expected | {Neighbour(address="fd00::11", mac="02:00:00:00:01:99", link=index)}


# ------------------------------------------------------------------------------------------------------ watch


def test_changes_are_reported_and_gathered(net: HostNet) -> None:
    async def body(watch: HostWatch, seen: Seen) -> None:
        net.ip("d", "addr add 10.9.9.9/32 dev lo")
        host = await seen.until(lambda host: "10.9.9.9/32" in link(host, "lo").addresses)  # type: ignore[union-attr]
        assert host == watch.host
        net.ip("d", "route add 192.0.2.0/24 via 10.0.0.2")
        await seen.until(lambda host: any(route.prefix == "192.0.2.0/24" for route in host.routes))
        net.ip("d", "neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev eth0")
        await seen.until(lambda host: mac_of(host, "10.0.0.2") == "02:00:00:00:00:02")
        net.ip("d", "neigh replace 10.0.0.2 lladdr 02:00:00:00:00:ff dev eth0")
        await seen.until(lambda host: mac_of(host, "10.0.0.2") == "02:00:00:00:00:ff")
        net.ip("d", "neigh del 10.0.0.2 dev eth0")
        await seen.until(lambda host: not mac_of(host, "10.0.0.2"))
        assert not seen.hosts[0].forwarding4
        net.sysctl("d", "net/ipv4/ip_forward", 1)
        net.sysctl("d", "net/ipv6/conf/all/forwarding", 1)
        await seen.until(lambda host: host.forwarding4 and host.forwarding6)
        reports = len(seen.hosts)
        # fifty changes in one process of ip, faster than the gathering time of a watch
        batch = "\n".join(f"neigh replace 10.0.0.{n} lladdr 02:00:00:00:02:{n:02x} dev eth0" for n in range(100, 150))
        net.run("d", "ip", "-batch", "-", input=batch)
        await seen.until(lambda host: mac_of(host, "10.0.0.149") != "")
        assert len(seen.hosts[-1].neighbours) >= 50
        assert len(seen.hosts) - reports < 10
        assert all(a != b for a, b in zip(seen.hosts, seen.hosts[1:], strict=False)), "only differences are reported"

    watched(net, body)


def test_a_link_goes_down_comes_back_is_deleted_and_made_again(net: HostNet) -> None:
    async def body(watch: HostWatch, seen: Seen) -> None:
        old = link(watch.host, "eth0")
        assert old is not None
        net.ip("d", "route add 192.0.2.0/24 via 10.0.0.2")
        await seen.until(lambda host: any(route.prefix == "192.0.2.0/24" for route in host.routes))
        net.ip("d", "link set eth0 down")
        host = await seen.until(lambda host: not link(host, "eth0").up)  # type: ignore[union-attr]
        assert not any(route.link == old.index and ":" not in route.prefix for route in host.routes), "gone in silence"
        net.ip("d", "link set eth0 up")
        await seen.until(
            lambda host: link(host, "eth0").up and any(r.link == old.index for r in host.routes)  # type: ignore[union-attr]
        )
        net.ip("d", "link del eth0")
        await seen.until(lambda host: link(host, "eth0") is None)
        net.veth("d", "eth0", "r", "up0")
        net.ip("d", "addr add 10.0.0.1/24 dev eth0")
        host = await seen.until(
            lambda host: (new := link(host, "eth0")) is not None and "10.0.0.1/24" in new.addresses and new.up
        )
        new = link(host, "eth0")
        assert new is not None and new.index != old.index

    watched(net, body)


@pytest.mark.parametrize(("address", "other"), [("10.0.0.2", "10.0.0.3"), ("fd00::2", "fd00::3")])
def test_the_kernel_resolves_for_us(net: HostNet, address: str, other: str) -> None:
    async def body(watch: HostWatch, seen: Seen) -> None:
        eth0 = link(watch.host, "eth0")
        assert eth0 is not None
        watch.resolve(address, eth0.index)  # absent
        await seen.until(lambda host: mac_of(host, address) == "02:00:00:00:00:02")
        net.ip("d", f"neigh change {address} dev eth0 nud failed", check=False)
        await seen.until(lambda host: mac_of(host, address) == "")
        watch.resolve(address, eth0.index)  # failed
        await seen.until(lambda host: mac_of(host, address) == "02:00:00:00:00:02")
        # a stale entry with a wrong MAC is put right, because a refresh makes the kernel ask again
        net.sysctl("d", "net/ipv4/neigh/eth0/delay_first_probe_time", 0)
        net.sysctl("d", "net/ipv6/neigh/eth0/delay_first_probe_time", 0)
        net.sysctl("d", "net/ipv4/neigh/eth0/ucast_solicit", 0)
        net.sysctl("d", "net/ipv6/neigh/eth0/ucast_solicit", 0)
        net.ip("d", f"neigh replace {address} lladdr 02:00:00:00:00:77 dev eth0 nud stale")
        await seen.until(lambda host: mac_of(host, address) == "02:00:00:00:00:77")
        watch.refresh([address, "192.0.2.99"])
        await seen.until(lambda host: mac_of(host, address) != "02:00:00:00:00:77")
        watch.resolve(address, eth0.index)
        await seen.until(lambda host: mac_of(host, address) == "02:00:00:00:00:02")
        net.ip("d", f"neigh replace {other} lladdr 02:00:00:00:00:88 dev eth0 nud permanent")
        await seen.until(lambda host: mac_of(host, other) == "02:00:00:00:00:88")
        watch.resolve(other, eth0.index)
        watch.refresh([other])
        assert "PERMANENT" in net.ip("d", f"neigh show {other}")
        net.ip("d", "link set eth0 down")
        watch.resolve(address, eth0.index)
        watch.resolve(address, 9999)

    watched(net, body)


def test_lost_announcements_lead_to_a_new_reading(net: HostNet) -> None:
    async def body(watch: HostWatch, seen: Seen) -> None:
        # the loop does not run meanwhile, so the small queue overflows
        batch = "\n".join(f"neigh replace 10.0.0.{n} lladdr 02:00:00:00:02:{n:02x} dev eth0" for n in range(10, 250))
        net.run("d", "ip", "-batch", "-", input=batch)
        net.run("d", "ip", "-batch", "-", input=batch.replace("02:00:00:00:02", "02:00:00:00:03"))
        host = await seen.until(lambda host: mac_of(host, "10.0.0.249") == "02:00:00:00:03:f9")
        assert watch.overflows
        assert sum(n.mac.startswith("02:00:00:00:03:") for n in host.neighbours) == 240

    watched(net, body, buffer=4096)


def test_nothing_is_missed_between_reading_and_following(net: HostNet) -> None:
    async def main() -> None:
        seen = Seen()
        watch = HostWatch(seen)
        try:
            watch.snapshot()
            net.ip("d", "addr add 10.9.9.9/32 dev lo; neigh add 10.0.0.50 lladdr 02:00:00:00:00:50 dev eth0")
            watch.start()
            await seen.until(lambda host: "10.9.9.9/32" in link(host, "lo").addresses)  # type: ignore[union-attr]
            await seen.until(lambda host: mac_of(host, "10.0.0.50") != "")
        finally:
            watch.close()

    with net.inside("d"):
        asyncio.run(main())


def test_close_leaves_no_thread_and_no_descriptor(net: HostNet) -> None:
    async def main() -> None:
        before, threads = set(os.listdir("/proc/self/fd")), threading.active_count()
        watch = HostWatch(lambda host: None)
        watch.snapshot()
        watch.start()
        net.ip("d", "addr add 10.9.9.9/32 dev lo")
        await asyncio.sleep(0)
        watch.close()
        watch.close()
        assert set(os.listdir("/proc/self/fd")) == before
        assert threading.active_count() == threads
        assert not [handle for handle in asyncio.get_running_loop()._scheduled if not handle.cancelled()]  # type: ignore[attr-defined]

    with net.inside("d"):
        asyncio.run(main())


def test_states_of_the_kernel_table_are_kept(net: HostNet) -> None:
    net.ip("d", "neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent")
    net.ip("d", "neigh add 10.0.0.8 lladdr 02:00:00:00:00:08 dev eth0 nud stale")
    with net.inside("d"):
        netlink = RouteSocket()
        states = {entry.address: entry.state for entry in read_neighbours(netlink)}
        netlink.close()
    assert (states["10.0.0.9"], states["10.0.0.8"]) == (NUD_PERMANENT, NUD_STALE)
