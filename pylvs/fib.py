"""From what the host knows (`model.Host`) to what the data plane looks up (`Fib`).

Prefixes are nested or disjoint, so one sorted walk with a stack flattens them into disjoint ranges. IPv4 lives at
``::ffff:0:0/96`` of the same space (RFC 4291 §2.5.5.2).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from pylvs import model
from pylvs.forward import _fastpath

NONE, UNICAST, LOCAL, BLACKHOLE, UNREACHABLE = range(5)
KINDS = {"unicast": UNICAST, "blackhole": BLACKHOLE, "unreachable": UNREACHABLE, "prohibit": UNREACHABLE}
NOWHERE = 0xFFFF
MAPPED = 0xFFFF << 32
ZERO = bytes(16)

#: kind, onlink, link id, mtu, gateway, source
Entry = tuple[int, bool, int, int, bytes, bytes]


def packed(address: str) -> bytes:
    """An address as 16 bytes, IPv4 mapped."""
    ip = ipaddress.ip_address(address)
    return ip.packed if ip.version == 6 else bytes(10) + b"\xff\xff" + ip.packed


def unpacked(address: bytes) -> str:
    """The text of a 16-byte address."""
    if address[:12] == bytes(10) + b"\xff\xff":
        return str(ipaddress.IPv4Address(address[12:]))
    return str(ipaddress.IPv6Address(address))


def _span(prefix: str) -> tuple[int, int, int]:
    """First and last number of a prefix in the 128-bit space, and its length there."""
    network = ipaddress.ip_network(prefix, strict=False)
    first, last, length = int(network.network_address), int(network.broadcast_address), network.prefixlen
    if network.version == 4:
        return first | MAPPED, last | MAPPED, length + 96
    return first, last, length


class _Builder:
    """Collects prefixes, the best route for each, and flattens them."""

    def __init__(self) -> None:
        nothing = (NONE, False, NOWHERE, 0, ZERO, ZERO)
        self.routes: list[Entry] = [nothing]
        self.best: dict[tuple[int, int, int], tuple[tuple[int, int], int]] = {
            (0, 2**128 - 1, 0): ((9, 0), 0),
            # an IPv6 default route must not catch IPv4
            (MAPPED, MAPPED | 0xFFFFFFFF, 96): ((9, 0), 0),
        }

    def add(self, prefix: str, rank: tuple[int, int], entry: Entry) -> None:
        """Enter a route; of several for one prefix the smallest rank stays."""
        span = _span(prefix)
        if span in self.best and self.best[span][0] <= rank:
            return
        self.best[span] = (rank, len(self.routes))
        self.routes.append(entry)

    def ranges(self) -> list[tuple[bytes, int]]:
        """Disjoint ranges as (first address, route index), sorted, starting at zero."""
        out: list[tuple[int, int]] = []
        stack: list[tuple[int, int]] = []  # (last, route) of the prefixes that are open

        def start(at: int, route: int) -> None:
            if out and out[-1][0] == at:
                out.pop()
            if not out or out[-1][1] != route:
                out.append((at, route))

        for (first, last, _), (_, route) in sorted(self.best.items(), key=lambda item: (item[0][0], item[0][2])):
            while stack and stack[-1][0] < first:
                end, _ = stack.pop()
                if stack:
                    start(end + 1, stack[-1][1])
            start(first, route)
            stack.append((last, route))
        while stack:
            end, _ = stack.pop()
            if stack and end < stack[-1][0]:
                start(end + 1, stack[-1][1])
        return [(at.to_bytes(16, "big"), route) for at, route in out]


def _connected(host: model.Host) -> list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, model.Link, str]]:
    """The prefixes that are on the host's links, longest first."""
    found = []
    for link in host.links:
        if not link.loopback:
            for address in link.addresses:
                interface = ipaddress.ip_interface(address)
                found.append((interface.network, link, str(interface.ip)))
    return sorted(found, key=lambda item: -item[0].prefixlen)


def compile_fib(host: model.Host, link_ids: Mapping[int, int], generation: int) -> _fastpath.Fib:
    """Compile the host's view; `link_ids` maps interface indices to the data plane's link ids."""
    connected = _connected(host)
    builder = _Builder()
    for link in host.links:
        if link.index not in link_ids:
            continue
        for address in link.addresses:
            interface = ipaddress.ip_interface(address)
            prefix = str(interface.network) if link.loopback else str(interface.ip)
            builder.add(prefix, (0, 0), (LOCAL, True, link_ids[link.index], 0, ZERO, ZERO))
    for network, link, source in connected:
        if link.index in link_ids:
            rank = (1, link.index)
            builder.add(str(network), rank, (UNICAST, True, link_ids[link.index], 0, ZERO, packed(source)))
    for route in host.routes:
        index = route.link or _link_of(connected, route.gateway)
        if route.kind == "unicast" and index not in link_ids:
            continue
        builder.add(
            route.prefix,
            (2, route.metric),
            (
                KINDS[route.kind],
                not route.gateway,
                link_ids.get(index, NOWHERE),
                route.mtu,
                packed(route.gateway) if route.gateway else ZERO,
                packed(route.source) if route.source else ZERO,
            ),
        )
    return _fastpath.Fib(
        [
            (
                link_ids[link.index],
                bytes.fromhex(link.mac.replace(":", "")),
                link.mtu,
                link.up,
                link.loopback,
                _first(link.addresses, 4),
                _first(link.addresses, 6),
            )
            for link in host.links
            if link.index in link_ids
        ],
        builder.routes,
        builder.ranges(),
        list(_neighbours(host, connected, link_ids)),
        generation,
        host.forwarding4,
        host.forwarding6,
    )


def _link_of(
    connected: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, model.Link, str]], address: str
) -> int:
    """Index of the link that an address is on; 0 if on none."""
    if not address:
        return 0
    ip = ipaddress.ip_address(address)
    return next((link.index for network, link, _ in connected if ip.version == network.version and ip in network), 0)


def _first(addresses: Iterable[str], version: int) -> bytes:
    """The address that a link sends from: its first one of a family, a global one before a link-local one."""
    found = [ipaddress.ip_interface(address).ip for address in addresses]
    candidates = sorted((ip for ip in found if ip.version == version), key=lambda ip: ip.is_link_local)
    return packed(str(candidates[0])) if candidates else ZERO


def _neighbours(
    host: model.Host,
    connected: list[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, model.Link, str]],
    link_ids: Mapping[int, int],
) -> Iterable[tuple[bytes, bytes, int]]:
    """Neighbours with their link; one whose link is not said and not to be found is entered on every link."""
    seen: dict[tuple[bytes, int], bytes] = {}
    for neighbour in host.neighbours:
        index = neighbour.link or _link_of(connected, neighbour.address)
        indices = [index] if index else [link.index for link in host.links if not link.loopback]
        mac = bytes.fromhex(neighbour.mac.replace(":", ""))
        for each in indices:
            if each in link_ids:
                seen[packed(neighbour.address), link_ids[each]] = mac
    return ((address, mac, link) for (address, link), mac in seen.items())


def is_unicast(host: model.Host, address: str) -> bool:
    """Does the kernel take this address for a single host's? Zero, broadcast and multicast addresses are not, nor are
    IPv4 addresses written as IPv6 and IPv6 link-local ones, unless the latter are the host's own."""
    ip = ipaddress.ip_address(address)
    own = [ipaddress.ip_interface(each) for link in host.links for each in link.addresses]
    if isinstance(ip, ipaddress.IPv4Address):
        if ip.is_multicast or ip in ipaddress.ip_network("0.0.0.0/8") or address == "255.255.255.255":
            return False
        return all(
            ip != each.network.broadcast_address for each in own if each.version == 4 and each.network.prefixlen < 31
        )
    if ip.is_multicast or ip.is_unspecified or ip.ipv4_mapped is not None:
        return False
    return not ip.is_link_local or any(ip == each.ip for each in own)
