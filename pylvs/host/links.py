"""Network interfaces and what is local to the host, read from the kernel into `model.Link`.

"Local" is what the kernel's routing table `local` says. On an ordinary interface that is each address by itself; on
``lo`` an IPv4 address makes its whole prefix local (10.9.0.0/24 on lo: 256 addresses), an IPv6 address only itself.
Prefixes made local by hand (``ip route add local 10.9.0.0/24 dev lo``) are listed as addresses of ``lo``.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from pathlib import Path
from typing import Any

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from pylvs.host.netlink import RouteSocket
from pylvs.model import Link

RTM_GETLINK = 18
RTM_GETADDR = 22
RTM_GETROUTE = 26
RT_TABLE_LOCAL = 255
RTN_LOCAL = 2
RTEXT_FILTER_SKIP_STATS = 1 << 3
IFF_UP = 0x1
IFF_LOOPBACK = 0x8
IFA_F_DADFAILED = 0x8
AF_INET, AF_INET6 = 2, 10
NO_MAC = "00:00:00:00:00:00"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def read_links(netlink: RouteSocket) -> tuple[Link, ...]:
    """All interfaces of the namespace by index, with their addresses as ``address/prefix length``.

    `Link.up` is the administrator's setting (IFF_UP): a link without carrier is up, and its queue drops what it is given.
    """
    addresses = read_addresses(netlink)
    messages = [
        message
        for message in netlink.dump(ifinfmsg, RTM_GETLINK, [("IFLA_EXT_MASK", RTEXT_FILTER_SKIP_STATS)])
        if message["family"] == 0
    ]
    messages.sort(key=lambda message: int(message["index"]))
    loopback = next((int(message["index"]) for message in messages if message["flags"] & IFF_LOOPBACK), 0)
    # on lo, an IPv6 address makes only itself local
    addresses[loopback] = [a.partition("/")[0] + "/128" if ":" in a else a for a in addresses[loopback]]
    addresses[loopback] += uncovered(read_local(netlink), addresses, loopback)
    return tuple(parse_link(message, addresses) for message in messages)


def parse_link(message: Any, addresses: dict[int, list[str]]) -> Link:
    """One interface from its RTM_NEWLINK message and the addresses by index."""
    index, flags = int(message["index"]), int(message["flags"])
    parent, vlan = _vlan(message)
    mac = str(message.get_attr("IFLA_ADDRESS") or "")
    return Link(
        name=str(message.get_attr("IFLA_IFNAME")),
        index=index,
        mac=mac if len(mac) == len(NO_MAC) else NO_MAC,  # tunnels have addresses of other lengths
        mtu=int(message.get_attr("IFLA_MTU") or 1500),
        up=bool(flags & IFF_UP),
        loopback=bool(flags & IFF_LOOPBACK),
        parent=parent,
        vlan=vlan,
        addresses=tuple(addresses.get(index, ())),
    )


def _vlan(message: Any) -> tuple[int, int]:
    """(index of the parent, VLAN id), or zeros; a parent in another namespace is of no use to us."""
    info = message.get_attr("IFLA_LINKINFO")
    if info is None or info.get_attr("IFLA_INFO_KIND") != "vlan":
        return 0, 0
    if message.get_attr("IFLA_LINK_NETNSID") is not None:
        return 0, 0
    data = info.get_attr("IFLA_INFO_DATA")
    vlan = data.get_attr("IFLA_VLAN_ID") if data is not None else 0
    return int(message.get_attr("IFLA_LINK") or 0), int(vlan or 0)


def read_addresses(netlink: RouteSocket) -> dict[int, list[str]]:
    """Addresses by interface index, in the kernel's order."""
    found: dict[int, list[str]] = defaultdict(list)
    for message in netlink.dump(ifaddrmsg, RTM_GETADDR):
        text = parse_address(message)
        if text:
            found[int(message["index"])].append(text)
    return found


def parse_address(message: Any) -> str:
    """``address/prefix length`` of an RTM_NEWADDR message; "" if another host has it (duplicate address detected).

    A tentative address counts: it is the host's already, and answering for it ourselves would make it a duplicate.
    """
    flags = int(message.get_attr("IFA_FLAGS") or message["flags"])
    if message["family"] not in (AF_INET, AF_INET6) or flags & IFA_F_DADFAILED:
        return ""
    peer = message.get_attr("IFA_ADDRESS")
    own = message.get_attr("IFA_LOCAL") or peer
    if own is None:
        return ""
    length = int(message["prefixlen"])
    if peer is not None and peer != own:
        length = 32 if message["family"] == AF_INET else 128  # the prefix is the far end's
    return f"{own}/{length}"


def read_local(netlink: RouteSocket) -> list[Network]:
    """The prefixes of routing table `local` that are the host's own, both families."""
    found: list[Network] = []
    for family, full in ((AF_INET, 32), (AF_INET6, 128)):
        for message in netlink.dump(rtmsg, RTM_GETROUTE, family=family, table=RT_TABLE_LOCAL):
            table = message.get_attr("RTA_TABLE") or message["table"]
            destination = message.get_attr("RTA_DST")
            if table == RT_TABLE_LOCAL and message["type"] == RTN_LOCAL and message["family"] == family and destination:
                found.append(ipaddress.ip_network(f"{destination}/{message['dst_len'] or full}", strict=False))
    return found


def uncovered(local: list[Network], addresses: dict[int, list[str]], loopback: int) -> list[str]:
    """What of `local` follows from no interface's address: prefixes made local by hand. `loopback` is lo's index."""
    hosts = {ipaddress.ip_network(a.partition("/")[0]) for own in addresses.values() for a in own}
    prefixes: list[Network] = [ipaddress.ip_network(a, strict=False) for a in addresses.get(loopback, ())]
    extra = []
    for network in sorted(local, key=lambda network: (network.version, network.prefixlen)):
        if network in hosts or any(inside(network, prefix) for prefix in prefixes):
            continue
        prefixes.append(network)
        extra.append(str(network))
    return extra


def inside(network: Network, prefix: Network) -> bool:
    """Whether `prefix` covers `network`; never across families."""
    return network.version == prefix.version and network.subnet_of(prefix)  # type: ignore[arg-type]


def forwarding(family: int) -> bool:
    """Whether the namespace forwards packets of `family` 4 or 6 (net.ipv4.ip_forward, net.ipv6.conf.all.forwarding)."""
    path = "/proc/sys/net/ipv4/ip_forward" if family == 4 else "/proc/sys/net/ipv6/conf/all/forwarding"
    try:
        return Path(path).read_text().strip() not in ("", "0")
    except OSError:
        return False  # a kernel without that family
