"""The VIPs that no interface has: pylvs speaks for them, so it must know that nobody else does, and say where they are."""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Iterable

from pylvs.host import arp
from pylvs.model import Host, Link, Refused, Service

log = logging.getLogger(__name__)

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_MR_MULTICAST = 0


def local_addresses(host: Host) -> set[str]:
    """Every single address of the host's interfaces (prefixes of loopback count by their own address)."""
    return {address.split("/")[0] for link in host.links for address in link.addresses}


def is_local(host: Host, address: str) -> bool:
    """Is this an address of the host, or inside a prefix of its loopback?"""
    if address in local_addresses(host):
        return True
    ip = ipaddress.ip_address(address)
    return any(
        ip in ipaddress.ip_interface(each).network
        for link in host.links
        if link.loopback
        for each in link.addresses
        if (":" in each) == (ip.version == 6)
    )


def link_of(host: Host, address: str) -> Link | None:
    """The link whose prefix an address is in, if it is in one."""
    ip = ipaddress.ip_address(address)
    found = [
        (network.prefixlen, link)
        for link in host.links
        if not link.loopback
        for network in (ipaddress.ip_interface(each).network for each in link.addresses)
        if network.version == ip.version and ip in network
    ]
    return max(found, key=lambda item: item[0])[1] if found else None


class Vips:
    """Claims, announces and listens for the VIPs that are ours alone."""

    def __init__(self) -> None:
        self._announced: dict[str, tuple[str, int, str]] = {}  # VIP -> link: name, index, MAC
        self._claimed: set[str] = set()  # asked about since the last reconciliation
        self._members: dict[str, socket.socket] = {}

    def claim(self, host: Host, service: Service) -> None:
        """Refuse a VIP that another host on its link answers for (RFC 5227 §2.1.1). Blocks for up to 0.3 s."""
        vip = service.address
        if not vip or vip in self._announced or vip in self._claimed or is_local(host, vip):
            return
        link = link_of(host, vip)
        if link is None or not link.up:
            return
        try:
            owner = arp.probe(vip, link.name)
        except OSError as error:
            log.warning("cannot ask %s who has %s: %s", link.name, vip, error.strerror)
            return
        if owner:
            raise Refused(
                errno.EADDRINUSE,
                f"{vip} is already in use on {link.name} by {owner}; choose another address, or silence that host "
                "(a real server with the VIP on lo needs arp_ignore=1 and arp_announce=2)",
            )
        self._claimed.add(vip)

    def reconcile(self, host: Host, vips: Iterable[str]) -> None:
        """Announce new VIPs of ours, and those whose link changed; join the groups that solicitations are sent to."""
        wanted: dict[str, tuple[str, int, str]] = {}
        for vip in vips:
            link = None if is_local(host, vip) else link_of(host, vip)
            if link is not None and link.up:
                wanted[vip] = (link.name, link.index, link.mac)
        for vip, (name, index, mac) in wanted.items():
            if self._announced.get(vip) != (name, index, mac):
                self._announce(vip, name, mac)
        for vip in self._members.keys() - wanted.keys():
            self._members.pop(vip).close()
        self._announced = wanted
        self._claimed.clear()

    def _announce(self, vip: str, link: str, mac: str) -> None:
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
                sock.bind((link, 0))
                for frame in arp.gratuitous(vip, mac):
                    sock.send(frame)
            if ":" in vip:
                self._join(vip, link)
        except OSError as error:
            log.warning("cannot announce %s on %s: %s", vip, link, error.strerror)

    def _join(self, vip: str, link: str) -> None:
        """Have the interface accept frames to the VIP's solicited-node group for as long as the socket is open."""
        if vip in self._members:
            self._members.pop(vip).close()
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._members[vip] = sock
        group = bytes.fromhex(arp.multicast_mac(arp.solicited_node(vip)).replace(":", ""))
        request = struct.pack("iHH8s", socket.if_nametoindex(link), PACKET_MR_MULTICAST, 6, group)
        sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)

    def close(self) -> None:
        """Leave all groups."""
        for sock in self._members.values():
            sock.close()
        self._members.clear()
