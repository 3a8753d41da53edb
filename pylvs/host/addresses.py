"""A cheap picture of the host: interfaces, their addresses, default gateways. For `doctor` and for guessing the DIP.

netifaces draws it where it is installed; it sees neither neighbours nor changes, so everything else goes by netlink,
which draws the same picture where netifaces is missing (it has no wheels for Python 3.13 and later).
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal

from pylvs.host.links import read_addresses, read_links
from pylvs.host.netlink import RouteSocket
from pylvs.host.routes import read_routes

try:
    import netifaces
except ImportError:
    netifaces = None

#: of netifaces, None where it is not installed
VERSION: str | None = None if netifaces is None else str(getattr(netifaces, "version", "unknown"))


@dataclass(frozen=True)
class Interface:
    """A name, a MAC ("" if it has none) and the addresses with prefix lengths, sorted."""

    name: str
    mac: str
    addresses: tuple[str, ...]


@dataclass(frozen=True)
class Gateway:
    """A router and the interface that leads to it."""

    address: str
    interface: str


@dataclass(frozen=True)
class Snapshot:
    """The host at one moment; which library drew it does not make a difference."""

    interfaces: tuple[Interface, ...]
    gateway4: Gateway | None
    gateway6: Gateway | None
    source: Literal["netifaces", "netlink"] = field(compare=False)


def snapshot() -> Snapshot:
    """The current network namespace, by netifaces if it can be imported."""
    return from_netlink() if netifaces is None else from_netifaces()


def from_netifaces() -> Snapshot:
    """By netifaces; raises `ImportError` without it."""
    if netifaces is None:
        raise ImportError("netifaces is not installed")
    interfaces = []
    # an address label ("eth0:1") looks like an interface of its own there
    labels: dict[str, list[str]] = {}
    for label in netifaces.interfaces():
        labels.setdefault(label.partition(":")[0], []).append(label)
    for name, own in labels.items():
        mac, addresses = "", []
        for label in own:
            found = netifaces.ifaddresses(label)
            for entry in found.get(netifaces.AF_LINK, []):
                mac = entry.get("addr", mac)
            for entry in found.get(netifaces.AF_INET, []) + found.get(netifaces.AF_INET6, []):
                addresses.append(_with_length(entry["addr"].partition("%")[0], entry.get("netmask", "")))
        interfaces.append(Interface(name, _mac(mac), tuple(sorted(addresses))))
    default = netifaces.gateways().get("default", {})
    gateway4, gateway6 = (
        Gateway(*default[family][:2]) if family in default else None
        for family in (netifaces.AF_INET, netifaces.AF_INET6)
    )
    interfaces.sort(key=lambda each: each.name)
    return Snapshot(tuple(interfaces), gateway4, gateway6, source="netifaces")


def from_netlink() -> Snapshot:
    """By netlink: the same picture."""
    netlink = RouteSocket()
    try:
        links, addresses, routes = read_links(netlink), read_addresses(netlink), read_routes(netlink)
    finally:
        netlink.close()
    names = {link.index: link.name for link in links}
    interfaces = [
        Interface(link.name, _mac(link.mac), tuple(sorted(addresses.get(link.index, ()))))
        for link in sorted(links, key=lambda link: link.name)
    ]
    gateways: list[Gateway | None] = []
    for prefix in ("0.0.0.0/0", "::/0"):
        routers = [route for route in routes if route.prefix == prefix and route.gateway and route.link in names]
        best = min(routers, key=lambda route: route.metric, default=None)
        gateways.append(Gateway(best.gateway, names[best.link]) if best is not None else None)
    return Snapshot(tuple(interfaces), gateways[0], gateways[1], source="netlink")


def _mac(text: str) -> str:
    return "" if text == "00:00:00:00:00:00" or len(text) != 17 else text


def _with_length(address: str, netmask: str) -> str:
    """``address/prefix length``; netifaces writes a netmask as 255.255.255.0 or ffff:ffff::/32."""
    if "/" in netmask:
        return f"{address}/{netmask.partition('/')[2]}"
    full = 128 if ":" in address else 32
    length = bin(int(ipaddress.ip_address(netmask))).count("1") if netmask else full
    return f"{address}/{length}"
