"""What may keep pylvs from working on this host, as data; ``pylvs doctor`` prints it.

Every check says what it found and, unless all is well, what to do. A *blocker* means that no packet will be forwarded;
a *warning* means that some set-ups will misbehave.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import re
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pylvs.host import addresses, guard
from pylvs.host.links import read_links
from pylvs.host.netlink import RouteSocket
from pylvs.model import Link

Level = Literal["ok", "warn", "blocker"]
CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}  # bit in CapEff
SIOCETHTOOL = 0x8946
ETHTOOL_GFLAGS = 0x25
ETH_FLAG_LRO = 1 << 15


@dataclass(frozen=True)
class Check:
    """One finding. `remedy` is empty if there is nothing to do."""

    name: str
    level: Level
    found: str
    remedy: str = ""


def checks(proc: Path = Path("/proc")) -> list[Check]:
    """Everything, in the order in which it is worth reading. Changes nothing; sees the current network namespace."""
    links = _links()
    reason = guard.available()
    return [
        capabilities(proc),
        packet_socket(),
        interfaces(links),
        nftables(reason),
        forwarding(proc, reason),
        redirects(proc, links),
        reverse_path(proc, links),
        offloads(links, lro),
        kernel_ipvs(proc),
        netifaces(),
    ]


def blocked(found: Sequence[Check]) -> bool:
    """Whether any check found a blocker."""
    return any(check.level == "blocker" for check in found)


def capabilities(proc: Path) -> Check:
    """CAP_NET_RAW opens packet sockets, CAP_NET_ADMIN sets the guard and resolves next hops."""
    try:
        match = re.search(r"^CapEff:\s*([0-9a-f]+)", (proc / "self/status").read_text(), re.MULTILINE)
    except OSError:
        match = None
    if match is None:
        return Check("capabilities", "warn", f"{proc}/self/status does not tell them", "mount /proc")
    effective = int(match[1], 16)
    missing = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        return Check(
            "capabilities",
            "blocker",
            f"missing {' and '.join(missing)}",
            "run as root, or give the process CAP_NET_RAW and CAP_NET_ADMIN (systemd: AmbientCapabilities=)",
        )
    return Check("capabilities", "ok", "CAP_NET_RAW and CAP_NET_ADMIN")


def packet_socket() -> Check:
    """Containers may hold the capability and still be refused by a system call filter."""
    try:
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()
    except OSError as error:
        return Check(
            "packet socket",
            "blocker",
            f"AF_PACKET cannot be opened: {error.strerror}",
            "run as root; in a container allow AF_PACKET (--cap-add NET_RAW, and a seccomp profile that permits it)",
        )
    return Check("packet socket", "ok", "AF_PACKET opens")


def interfaces(links: Sequence[Link]) -> Check:
    """Which interfaces could carry traffic."""
    up = [link.name for link in links if link.up and not link.loopback]
    down = [link.name for link in links if not link.up and not link.loopback]
    if not up:
        found = f"none is up ({', '.join(down)} down)" if down else "there are none but lo"
        return Check("interfaces", "blocker", found, "bring one up: ip link set NAME up")
    return Check("interfaces", "ok", f"up: {', '.join(up)}" + (f"; down: {', '.join(down)}" if down else ""))


def nftables(reason: str | None) -> Check:
    """`reason` is what `guard.available` said."""
    if reason:
        return Check("guard", "warn", "cannot be set: a VIP on this host would be answered twice", reason)
    return Check("guard", "ok", "nftables at ingress is available")


def forwarding(proc: Path, reason: str | None) -> Check:
    """The host need not forward; if it does, the guard must keep it from forwarding ours once more."""
    on = [
        name
        for name, path in (
            ("net.ipv4.ip_forward", "ipv4/ip_forward"),
            ("net.ipv6 forwarding", "ipv6/conf/all/forwarding"),
        )
        if _number(proc, path)
    ]
    if not on:
        return Check("forwarding", "ok", "the host does not forward; pylvs does not need it to")
    if reason:
        return Check(
            "forwarding",
            "warn",
            f"{' and '.join(on)} on, without a guard: what pylvs forwards is forwarded twice",
            "make nftables available, or set net.ipv4.ip_forward=0 and net.ipv6.conf.all.forwarding=0",
        )
    return Check("forwarding", "ok", f"{' and '.join(on)} on; the guard keeps ours from the host")


def redirects(proc: Path, links: Sequence[Link]) -> Check:
    """A redirect teaches a real server on the clients' link a way around the director: its NAT replies are lost."""
    everywhere = _number(proc, "ipv4/conf/all/send_redirects")
    sending = [
        link.name
        for link in links
        if link.up and not link.loopback
        if everywhere or _number(proc, f"ipv4/conf/{link.name}/send_redirects")
    ]
    if sending and _number(proc, "ipv4/ip_forward"):
        return Check(
            "redirects",
            "warn",
            f"the host may send ICMP redirects on {', '.join(sending)}; with clients and NAT real servers on one link "
            "they lead replies past the director",
            "set net.ipv4.conf.all.send_redirects=0 and the same for each of these interfaces",
        )
    return Check("redirects", "ok", "the host sends no ICMP redirects")


def reverse_path(proc: Path, links: Sequence[Link]) -> Check:
    """Strict reverse path filtering comes after our sockets; it only concerns what the host takes for itself."""
    everywhere = _number(proc, "ipv4/conf/all/rp_filter")
    strict = [
        link.name
        for link in links
        if link.up and not link.loopback
        if max(everywhere, _number(proc, f"ipv4/conf/{link.name}/rp_filter")) == 1
    ]
    if strict:
        return Check("reverse path", "ok", f"strict on {', '.join(strict)}: concerns the host's own traffic, not ours")
    return Check("reverse path", "ok", "not strict")


def offloads(links: Sequence[Link], has_lro: Callable[[str], bool]) -> Check:
    """Segmentation and checksum offloads are handled; frames merged by LRO cannot be taken apart again."""
    merging = [link.name for link in links if link.up and not link.loopback and has_lro(link.name)]
    if merging:
        return Check(
            "offloads",
            "warn",
            f"large receive offload on {', '.join(merging)} merges packets beyond repair",
            "; ".join(f"ethtool -K {name} lro off" for name in merging),
        )
    return Check("offloads", "ok", "GRO, GSO, TSO and checksum offload may all stay on")


def kernel_ipvs(proc: Path) -> Check:
    """The kernel's own IPVS may be there; two balancers of the same VIP may not."""
    try:
        lines = (proc / "net/ip_vs").read_text().splitlines()
    except OSError:
        return Check("kernel IPVS", "ok", "not loaded; pylvs does not need it")
    services = [line for line in lines if line.startswith(("TCP", "UDP", "SCTP", "FWM"))]
    if services:
        return Check(
            "kernel IPVS",
            "warn",
            f"has {len(services)} virtual service{'s' if len(services) > 1 else ''} of its own",
            "clear what pylvs is to take over: ipvsadm -C (real ipvsadm), or delete single services with -D",
        )
    return Check("kernel IPVS", "ok", "loaded, without services")


def netifaces() -> Check:
    """Convenience only."""
    if addresses.VERSION is None:
        return Check("netifaces", "ok", "not installed; netlink answers alone")
    return Check("netifaces", "ok", f"version {addresses.VERSION}")


def lro(name: str) -> bool:
    """Whether the interface merges received packets in hardware."""
    value = array.array("I", [ETHTOOL_GFLAGS, 0])
    request = struct.pack("16sP16x", name.encode(), value.buffer_info()[0])
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCETHTOOL, request)
    return bool(value[1] & ETH_FLAG_LRO)


def _number(proc: Path, path: str) -> int:
    """A value under /proc/sys/net, 0 if it is not there."""
    try:
        return int((proc / "sys/net" / path).read_text())
    except (OSError, ValueError):
        return 0


def _links() -> tuple[Link, ...]:
    netlink = RouteSocket()
    try:
        return read_links(netlink)
    finally:
        netlink.close()
