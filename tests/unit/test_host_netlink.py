"""Links, routes and neighbours from netlink messages, without a kernel to ask."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from pylvs.host import links, neighbours, netlink, routes
from pylvs.host.links import inside, parse_address, parse_link, uncovered
from pylvs.host.neighbours import NTF_PROXY, NUD_FAILED, NUD_NOARP, NUD_PERMANENT, NUD_STALE, Entry, parse_neighbour
from pylvs.host.netlink import RouteEvents
from pylvs.host.routes import parse_route, unshadowed
from pylvs.model import Link, Neighbour, Route

MAC = "02:00:00:00:00:01"


def message(kind: type, attrs: list[Any], **fields: Any) -> Any:
    """A message as the kernel would send it: encoded, and decoded again."""
    made = kind()
    made["header"] = {"type": 0, "flags": 0, "sequence_number": 0, "pid": 0}
    for name, value in fields.items():
        made[name] = value
    made["attrs"] = attrs
    made.encode()
    read = kind(made.data)
    read.decode()
    return read


def link_message(attrs: list[Any], **fields: Any) -> Any:
    return message(ifinfmsg, [("IFLA_IFNAME", "eth0"), ("IFLA_MTU", 1400), ("IFLA_ADDRESS", MAC), *attrs], **fields)


# ----------------------------------------------------------------------------------------------------------- links


def test_a_link() -> None:
    found = parse_link(link_message([], index=7, flags=links.IFF_UP), {7: ["10.0.0.1/24"], 8: ["10.0.0.2/24"]})
    assert found == Link(name="eth0", index=7, mac=MAC, mtu=1400, addresses=("10.0.0.1/24",))
    assert not parse_link(link_message([], index=7, flags=0), {}).up
    assert parse_link(link_message([], index=1, flags=links.IFF_UP | links.IFF_LOOPBACK), {}).loopback


def vlan(**extra: Any) -> list[Any]:
    info = {"attrs": [("IFLA_INFO_KIND", "vlan"), ("IFLA_INFO_DATA", {"attrs": [("IFLA_VLAN_ID", 7)]})]}
    return [("IFLA_LINK", 4), ("IFLA_LINKINFO", info), *extra.items()]


def test_a_vlan_link_names_its_parent() -> None:
    found = parse_link(link_message(vlan(), index=9, flags=1), {})
    assert (found.parent, found.vlan) == (4, 7)


def test_a_parent_in_another_namespace_is_none_of_ours() -> None:
    found = parse_link(link_message(vlan(IFLA_LINK_NETNSID=0), index=9, flags=1), {})
    assert (found.parent, found.vlan) == (0, 0)
    plain = [("IFLA_LINK", 4), ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]})]
    assert parse_link(link_message(plain, index=9, flags=1), {}).parent == 0


def test_addresses() -> None:
    def address(attrs: list[Any], family: int = socket.AF_INET, length: int = 24, flags: int = 0) -> str:
        return parse_address(message(ifaddrmsg, attrs, family=family, prefixlen=length, flags=flags, index=1))

    assert address([("IFA_ADDRESS", "10.0.0.1"), ("IFA_LOCAL", "10.0.0.1")]) == "10.0.0.1/24"
    assert address([("IFA_ADDRESS", "10.0.0.2"), ("IFA_LOCAL", "10.0.0.1")]) == "10.0.0.1/32", "point to point"
    six = [("IFA_ADDRESS", "fd00::1")]
    assert address(six, socket.AF_INET6, 64) == "fd00::1/64"
    assert address(six, socket.AF_INET6, 64, links.IFA_F_DADFAILED) == ""
    assert address([*six, ("IFA_FLAGS", 0x40)], socket.AF_INET6, 64) == "fd00::1/64", "tentative is the host's already"


def test_what_is_local_by_hand() -> None:
    import ipaddress

    net = ipaddress.ip_network
    addresses = {1: ["127.0.0.1/8", "10.9.0.5/24", "::1/128"], 2: ["10.0.0.1/24", "fd00::1/64"]}
    follows = ["127.0.0.0/8", "127.0.0.1/32", "10.9.0.0/24", "10.9.0.5/32", "10.0.0.1/32", "fd00::1/128", "::1/128"]
    assert uncovered([net(n) for n in follows], addresses, 1) == []
    by_hand = ["198.51.100.7/32", "198.51.100.0/24", "2001:db8::/64", "10.0.0.9/32"]
    found = uncovered([net(n) for n in [*follows, *by_hand]], addresses, 1)
    assert found == ["198.51.100.0/24", "10.0.0.9/32", "2001:db8::/64"]


def test_prefixes_cover_only_their_own_family() -> None:
    import ipaddress

    net = ipaddress.ip_network
    assert inside(net("10.1.0.0/16"), net("10.0.0.0/8"))
    assert not inside(net("10.0.0.0/8"), net("10.1.0.0/16"))
    assert not inside(net("10.0.0.0/8"), net("::/0"))


# ---------------------------------------------------------------------------------------------------------- routes


def route(
    attrs: list[Any], length: int = 24, family: int = socket.AF_INET, kind: int = 1, flags: int = 0
) -> Route | None:
    return parse_route(message(rtmsg, attrs, family=family, dst_len=length, table=254, type=kind, flags=flags))


def test_routes() -> None:
    attrs = [("RTA_DST", "192.0.2.0"), ("RTA_GATEWAY", "10.0.0.9"), ("RTA_OIF", 4), ("RTA_PRIORITY", 100)]
    attrs += [("RTA_PREFSRC", "10.0.0.1"), ("RTA_METRICS", {"attrs": [("RTAX_MTU", 1300)]})]
    wanted = Route(prefix="192.0.2.0/24", gateway="10.0.0.9", link=4, source="10.0.0.1", mtu=1300, metric=100)
    assert route(attrs) == wanted
    assert route([("RTA_OIF", 4)], length=0) == Route(prefix="0.0.0.0/0", link=4)
    assert route([("RTA_OIF", 4)], length=0, family=socket.AF_INET6) == Route(prefix="::/0", link=4)
    assert route([("RTA_DST", "192.0.2.0")], kind=6) == Route(prefix="192.0.2.0/24", kind="blackhole")
    for kind in (2, 3, 5, 9):  # local, broadcast, multicast, throw
        assert route(attrs, kind=kind) is None
    assert route(attrs, flags=routes.RTNH_F_DEAD) is None
    assert route(attrs, flags=routes.RTM_F_CLONED) is None


def hop(gateway: str, oif: int, flags: int = 0) -> dict[str, Any]:
    return {"oif": oif, "flags": flags, "hops": 0, "attrs": [("RTA_GATEWAY", gateway)]}


def test_the_first_living_hop_of_a_multipath_route() -> None:
    down, dead = routes.RTNH_F_LINKDOWN, routes.RTNH_F_DEAD

    def first(*hops: dict[str, Any]) -> tuple[str, int] | None:
        found = route([("RTA_DST", "192.0.2.0"), ("RTA_MULTIPATH", list(hops))])
        return (found.gateway, found.link) if found else None

    assert first(hop("10.0.0.7", 4), hop("10.1.0.7", 5)) == ("10.0.0.7", 4)
    assert first(hop("10.0.0.7", 4, dead), hop("10.1.0.7", 5)) == ("10.1.0.7", 5)
    assert first(hop("10.0.0.7", 4, down), hop("10.1.0.7", 5)) == ("10.1.0.7", 5)
    assert first(hop("10.0.0.7", 4, down), hop("10.1.0.7", 5, dead)) == ("10.0.0.7", 4)
    assert first(hop("10.0.0.7", 4, dead)) is None


def test_table_default_only_where_main_has_nothing() -> None:
    later = [Route(prefix="10.1.0.0/16", link=1), Route(prefix="192.0.2.0/24", link=1), Route(prefix="::/0", link=1)]
    assert unshadowed(later, [Route(prefix="10.0.0.0/8", link=2)]) == later[1:]
    assert unshadowed(later, [Route(prefix="0.0.0.0/0", link=2)]) == later[2:]
    assert unshadowed(later, []) == later


# ------------------------------------------------------------------------------------------------------ neighbours


def test_neighbours() -> None:
    def entry(attrs: list[Any], **fields: Any) -> Entry | None:
        return parse_neighbour(message(ndmsg, attrs, **({"family": socket.AF_INET, "ifindex": 4, "state": 4} | fields)))

    attrs = [("NDA_DST", "10.0.0.2"), ("NDA_LLADDR", MAC)]
    assert entry(attrs) == Entry(4, "10.0.0.2", MAC, NUD_STALE)
    assert entry([("NDA_DST", "10.0.0.2")], state=NUD_FAILED) == Entry(4, "10.0.0.2", "", NUD_FAILED)
    assert entry(attrs, flags=NTF_PROXY) is None
    assert entry(attrs, family=socket.AF_INET, state=NUD_PERMANENT) is not None
    assert entry([("NDA_LLADDR", MAC)], family=7) is None, "a bridge's forwarding entry"


@pytest.mark.parametrize(
    ("mac", "state", "usable"),
    [
        (MAC, NUD_STALE, True),
        (MAC, NUD_PERMANENT, True),
        (MAC, NUD_NOARP, True),
        (MAC, NUD_FAILED, False),
        (MAC, neighbours.NUD_INCOMPLETE, False),
        ("", NUD_STALE, False),
        ("00:00:00:00:00:00", NUD_NOARP, False),  # lo
        ("33:33:00:00:00:16", NUD_NOARP, False),  # multicast
        ("ff:ff:ff:ff:ff:ff", NUD_NOARP, False),
    ],
)
def test_which_neighbours_are_usable(mac: str, state: int, usable: bool) -> None:
    wanted = Neighbour(address="10.0.0.2", mac=mac, link=4) if usable else None
    assert Entry(4, "10.0.0.2", mac, state).neighbour == wanted


# --------------------------------------------------------------------------------------------------------- sockets


def test_a_lost_announcement_is_reported_as_such() -> None:
    class Overflowing:
        """recv as a socket whose queue has overflowed gives it: the error first, then what is left."""

        def __init__(self) -> None:
            self.answers: list[Any] = [OSError(errno.ENOBUFS, "no buffer space"), BlockingIOError()]

        def recv(self, size: int) -> bytes:
            raise self.answers.pop(0)

    events = RouteEvents([])
    events.close()
    events._socket = Overflowing()  # type: ignore[assignment]
    assert events.read() == ([], True)


def test_a_table_that_never_holds_still_is_an_error() -> None:
    socket_ = netlink.RouteSocket()
    socket_._dump = lambda *args: ([], False)  # type: ignore[method-assign]
    with pytest.raises(netlink.Changed):
        socket_.dump(rtmsg, links.RTM_GETROUTE)
    socket_.close()
    socket_.close()


def test_a_refused_request_gives_its_errno() -> None:
    socket_ = netlink.RouteSocket()
    try:
        # reading needs no permission; a neighbour on interface 2**31 - 1 exists nowhere
        assert neighbours.solicit(socket_, "192.0.2.1", 2**31 - 1) in (errno.ENODEV, errno.EPERM)
        assert any(link.loopback for link in links.read_links(socket_))
    finally:
        socket_.close()
