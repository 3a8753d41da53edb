"""The kernel's routes as `model.Route`: tables ``main`` and ``default``, both families.

Rules of policy routing (``ip rule``) and VRFs are not followed; table ``local`` is told by the links' addresses. Of a
multipath route the first next hop that is alive is taken.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Literal

from pyroute2.netlink.rtnl.rtmsg import rtmsg

from pylvs.host.links import AF_INET, AF_INET6, RTM_GETROUTE, Network, inside
from pylvs.host.netlink import RouteSocket
from pylvs.model import Route

RT_TABLE_MAIN = 254
RT_TABLE_DEFAULT = 253
RTNH_F_DEAD = 0x1
RTNH_F_LINKDOWN = 0x10
RTM_F_CLONED = 0x200

Kind = Literal["unicast", "blackhole", "unreachable", "prohibit"]
KINDS: dict[int, Kind] = {1: "unicast", 6: "blackhole", 7: "unreachable", 8: "prohibit"}


def read_routes(netlink: RouteSocket) -> tuple[Route, ...]:
    """All routes that decide where a packet goes.

    Table ``default`` is asked last, as the kernel's standing rules do: its routes are left out where ``main`` has any
    route for the prefix.
    """
    found: list[Route] = []
    for family in (AF_INET, AF_INET6):
        first = _read_table(netlink, family, RT_TABLE_MAIN)
        found += first + unshadowed(_read_table(netlink, family, RT_TABLE_DEFAULT), first)
    return tuple(found)


def _read_table(netlink: RouteSocket, family: int, table: int) -> list[Route]:
    routes = []
    for message in netlink.dump(rtmsg, RTM_GETROUTE, family=family, table=table):
        if message["family"] == family and (message.get_attr("RTA_TABLE") or message["table"]) == table:
            route = parse_route(message)
            if route is not None:
                routes.append(route)
    return routes


def parse_route(message: Any) -> Route | None:
    """A route from its RTM_NEWROUTE message; None for what forwards nothing (local, multicast, dead, cached)."""
    kind = KINDS.get(int(message["type"]))
    if kind is None or message["flags"] & (RTM_F_CLONED | RTNH_F_DEAD):
        return None
    any_prefix = "::" if message["family"] == AF_INET6 else "0.0.0.0"
    prefix = f"{message.get_attr('RTA_DST') or any_prefix}/{message['dst_len']}"
    metrics = message.get_attr("RTA_METRICS")
    hop = _first_hop(message) if kind == "unicast" else None
    if kind == "unicast" and hop is None:
        return None
    return Route(
        prefix=prefix,
        gateway=_gateway(hop) if hop is not None else "",
        link=_link(hop) if hop is not None else 0,
        source=str(message.get_attr("RTA_PREFSRC") or ""),
        mtu=int(metrics.get_attr("RTAX_MTU") or 0) if metrics is not None else 0,
        metric=int(message.get_attr("RTA_PRIORITY") or 0),
        kind=kind,
    )


def _first_hop(message: Any) -> Any:
    """The message itself, or the first living next hop of a multipath route; None if all are dead."""
    hops = message.get_attr("RTA_MULTIPATH")
    if not hops:
        return message
    living = [hop for hop in hops if not hop["flags"] & RTNH_F_DEAD]
    return next((hop for hop in living if not hop["flags"] & RTNH_F_LINKDOWN), living[0] if living else None)


def _gateway(hop: Any) -> str:
    """Address of the router, of either family (IPv4 may go by an IPv6 router: RTA_VIA); "" on the link itself."""
    via = hop.get_attr("RTA_VIA")
    if via:
        return str(via["addr"])
    return str(hop.get_attr("RTA_GATEWAY") or "")


def _link(hop: Any) -> int:
    oif = hop.get_attr("RTA_OIF")
    return int(oif if oif is not None else hop["oif"])


def unshadowed(later: Iterable[Route], first: Iterable[Route]) -> list[Route]:
    """The routes of `later` whose prefix no route of `first` covers."""
    later = list(later)
    if not later:
        return []
    covers: list[Network] = [ipaddress.ip_network(route.prefix) for route in first]
    return [route for route in later if not any(inside(ipaddress.ip_network(route.prefix), cover) for cover in covers)]
