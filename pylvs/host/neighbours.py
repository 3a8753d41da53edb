"""The kernel's neighbour table (ARP and ND), and asking the kernel to fill it.

The kernel does the resolving: our frames pass it by, so it neither learns that a next hop is needed nor confirms one
that is in use. `solicit` tells it (NTF_USE, what ``ip neigh … use`` does), and the answer arrives as an event.
"""

from __future__ import annotations

import ipaddress
from typing import Any, NamedTuple

from pyroute2.netlink.rtnl.ndmsg import ndmsg

from pylvs.host.links import AF_INET, AF_INET6
from pylvs.host.netlink import NLM_F_CREATE, NLM_F_REPLACE, RouteSocket
from pylvs.model import Neighbour

RTM_NEWNEIGH = 28
RTM_DELNEIGH = 29
RTM_GETNEIGH = 30
NTF_USE = 0x1
NTF_PROXY = 0x8

NUD_INCOMPLETE = 0x01
NUD_REACHABLE = 0x02
NUD_STALE = 0x04
NUD_DELAY = 0x08
NUD_PROBE = 0x10
NUD_FAILED = 0x20
NUD_NOARP = 0x40
NUD_PERMANENT = 0x80
USABLE = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | NUD_NOARP | NUD_PERMANENT
NO_MAC = "00:00:00:00:00:00"


class Entry(NamedTuple):
    """A line of the kernel's table: interface index, address, MAC ("" if none) and NUD state."""

    link: int
    address: str
    mac: str
    state: int

    @property
    def neighbour(self) -> Neighbour | None:
        """What the data plane may use of it; None if it is unresolved, failed, multicast or of a link without MACs."""
        if not self.state & USABLE or self.mac in ("", NO_MAC) or int(self.mac[:2], 16) & 1:
            return None
        return Neighbour(address=self.address, mac=self.mac, link=self.link)


def read_neighbours(netlink: RouteSocket) -> list[Entry]:
    """The whole table, both families, unresolved entries included."""
    found = []
    for family in (AF_INET, AF_INET6):
        for message in netlink.dump(ndmsg, RTM_GETNEIGH, family=family):
            entry = parse_neighbour(message)
            if entry is not None:
                found.append(entry)
    return found


def parse_neighbour(message: Any) -> Entry | None:
    """An entry from an RTM_NEWNEIGH or RTM_DELNEIGH message; None for bridge ports and proxied addresses."""
    address = message.get_attr("NDA_DST")
    if message["family"] not in (AF_INET, AF_INET6) or message["flags"] & NTF_PROXY or address is None:
        return None
    mac = str(message.get_attr("NDA_LLADDR") or "")
    return Entry(
        link=int(message["ifindex"]),
        address=str(address),
        mac=mac if len(mac) == len(NO_MAC) else "",
        state=int(message["state"]),
    )


def solicit(netlink: RouteSocket, address: str, link: int) -> int:
    """Have the kernel resolve or confirm `address` on interface `link`; return its errno (ENETDOWN, ENODEV …), or 0.

    Absent, stale and failed entries are all asked for anew. Never call it for a permanent entry: NTF_USE takes the
    permanence away.
    """
    family = AF_INET6 if ipaddress.ip_address(address).version == 6 else AF_INET
    return netlink.request(
        ndmsg,
        RTM_NEWNEIGH,
        NLM_F_CREATE | NLM_F_REPLACE,
        [("NDA_DST", address)],
        family=family,
        ifindex=link,
        state=0,
        flags=NTF_USE,
    )
