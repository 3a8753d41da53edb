"""ARP and IPv6 neighbour discovery as frames: announcing an address, and asking whether another host has it.

Frames are plain bytes from the destination MAC on, without padding (drivers pad). Sources: RFC 826 (ARP), RFC 5227
(probes and announcements), RFC 4861 §4 and §7.2.6 (neighbour discovery), RFC 4862 §5.4 (duplicate addresses).
"""

from __future__ import annotations

import ctypes
import ipaddress
import socket
import struct
import time
from collections.abc import Iterable
from typing import NamedTuple

from pylvs.host.links import read_links
from pylvs.host.netlink import RouteSocket

ETH_P_ARP = 0x0806
ETH_P_IPV6 = 0x86DD
REQUEST, REPLY = 1, 2
SOLICITATION, ADVERTISEMENT = 135, 136
SOLICITED, OVERRIDE = 0x40, 0x20  # flags of an advertisement; 0x80 is "router"
SOURCE_MAC, TARGET_MAC = 1, 2  # options
BROADCAST = "ff:ff:ff:ff:ff:ff"
NO_MAC = "00:00:00:00:00:00"
ALL_NODES = "ff02::1"
ICMPV6 = 58
HOP_LIMIT = 255  # any other proves that the message has come over a router

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_MR_MULTICAST = 0
SO_ATTACH_FILTER = 26


class Arp(NamedTuple):
    """An ARP message for IPv4 over Ethernet; `sender` 0.0.0.0 makes it a probe."""

    operation: int
    sender_mac: str
    sender: str
    target_mac: str
    target: str


class Nd(NamedTuple):
    """A neighbour solicitation or advertisement. `mac` is its link-layer option, "" if it has none."""

    type: int
    source: str
    destination: str
    target: str
    mac: str
    flags: int = 0


# -------------------------------------------------------------------------------------------------------- building


def arp(message: Arp, *, source: str = "", destination: str = BROADCAST) -> bytes:
    """The frame of an ARP message; it comes from `source`, by default the sender's MAC."""
    return (
        _ethernet(destination, source or message.sender_mac, ETH_P_ARP)
        + struct.pack(">HHBBH", 1, 0x0800, 6, 4, message.operation)
        + (_mac(message.sender_mac) + socket.inet_aton(message.sender))
        + (_mac(message.target_mac) + socket.inet_aton(message.target))
    )


def nd(message: Nd, *, source: str, destination: str = "") -> bytes:
    """The frame of a neighbour discovery message from MAC `source`; a multicast destination finds its own MAC."""
    solicitation = message.type == SOLICITATION
    body = struct.pack(">BBHI", message.type, 0, 0, 0 if solicitation else message.flags << 24)
    body += _packed(message.target)
    if message.mac:
        body += bytes([SOURCE_MAC if solicitation else TARGET_MAC, 1]) + _mac(message.mac)
    addresses = _packed(message.source) + _packed(message.destination)
    total = checksum(addresses + struct.pack(">II", len(body), ICMPV6) + body)
    body = body[:2] + struct.pack(">H", total) + body[4:]
    header = struct.pack(">IHBB", 6 << 28, len(body), ICMPV6, HOP_LIMIT) + addresses
    return _ethernet(destination or multicast_mac(message.destination), source, ETH_P_IPV6) + header + body


def gratuitous(vip: str, mac: str) -> tuple[bytes, ...]:
    """The frames that tell a link that `vip` is now at `mac`.

    IPv4: the announcement as request (RFC 5227 §2.3) and as reply, since some stacks heed only one of them.
    IPv6: an unsolicited advertisement that overrides what neighbours have cached (RFC 4861 §7.2.6).
    """
    if ":" in vip:
        return (nd(Nd(ADVERTISEMENT, vip, ALL_NODES, vip, mac, OVERRIDE), source=mac),)
    return (
        arp(Arp(REQUEST, mac, vip, NO_MAC, vip)),
        arp(Arp(REPLY, mac, vip, BROADCAST, vip)),
    )


def question(vip: str, mac: str) -> bytes:
    """The frame that asks who has `vip` without claiming it: an ARP probe, or a solicitation from ``::``."""
    if ":" in vip:
        return nd(Nd(SOLICITATION, "::", solicited_node(vip), vip, ""), source=mac)
    return arp(Arp(REQUEST, mac, "0.0.0.0", NO_MAC, vip))


def solicited_node(address: str) -> str:
    """The multicast address on which the owner of an IPv6 address listens."""
    return str(ipaddress.IPv6Address(_packed("ff02::1:ff00:0")[:13] + _packed(address)[13:]))


def multicast_mac(address: str) -> str:
    """The MAC of an IPv6 multicast address (RFC 2464 §7)."""
    return "33:33:" + _packed(address)[12:].hex(":")


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _ethernet(destination: str, source: str, kind: int) -> bytes:
    return _mac(destination) + _mac(source) + struct.pack(">H", kind)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _packed(address: str) -> bytes:
    return ipaddress.IPv6Address(address).packed


# --------------------------------------------------------------------------------------------------------- parsing


def parse_arp(frame: bytes) -> Arp | None:
    """The ARP message in an untagged frame; None for anything else, or a truncated one."""
    if len(frame) < 42 or frame[12:20] != b"\x08\x06\x00\x01\x08\x00\x06\x04":
        return None
    return Arp(
        operation=int.from_bytes(frame[20:22], "big"),
        sender_mac=frame[22:28].hex(":"),
        sender=socket.inet_ntoa(frame[28:32]),
        target_mac=frame[32:38].hex(":"),
        target=socket.inet_ntoa(frame[38:42]),
    )


def parse_nd(frame: bytes) -> Nd | None:
    """The neighbour discovery message in an untagged frame; None for anything else, or one that RFC 4861 §7.1 rejects."""
    if len(frame) < 78 or frame[12:14] != b"\x86\xdd" or frame[14] >> 4 != 6 or frame[20] != ICMPV6:
        return None
    body = frame[54 : 54 + int.from_bytes(frame[18:20], "big")]
    if len(body) < 24 or body[0] not in (SOLICITATION, ADVERTISEMENT) or body[1] or frame[21] != HOP_LIMIT:
        return None
    if checksum(frame[22:54] + struct.pack(">II", len(body), ICMPV6) + body):
        return None
    wanted = SOURCE_MAC if body[0] == SOLICITATION else TARGET_MAC
    mac, options = "", body[24:]
    while len(options) >= 2:
        length = options[1] * 8
        if length == 0 or length > len(options):
            return None
        if options[0] == wanted and length == 8:
            mac = options[2:8].hex(":")
        options = options[length:]
    return Nd(
        type=body[0],
        source=socket.inet_ntop(socket.AF_INET6, frame[22:38]),
        destination=socket.inet_ntop(socket.AF_INET6, frame[38:54]),
        target=socket.inet_ntop(socket.AF_INET6, body[8:24]),
        mac=mac,
        flags=body[4] if body[0] == ADVERTISEMENT else 0,
    )


def owner(frame: bytes, vip: str) -> str:
    """The MAC that claims `vip` in this frame, "" if it says nothing of it."""
    if ":" in vip:
        said = parse_nd(frame)
        if said is None or said.type != ADVERTISEMENT or said.target != vip:
            return ""
        return said.mac or frame[6:12].hex(":")
    heard = parse_arp(frame)
    return heard.sender_mac if heard is not None and heard.sender == vip else ""


# --------------------------------------------------------------------------------------------------------- probing


def probe(vip: str, link: str, *, wait: float = 0.3, probes: int = 2) -> str | None:
    """The MAC of another host on interface `link` that has `vip` (canonical); None if nobody answers within `wait` s.

    Sends `probes` questions, evenly spread, and claims nothing. Answers from MACs of this host's own interfaces do not
    count. Blocks for up to `wait` seconds: an asyncio program calls it in a thread. Raises `OSError`: no permission
    (EPERM), no such interface (ENODEV), interface down (ENETDOWN).
    """
    netlink = RouteSocket()
    try:
        links = read_links(netlink)
    finally:
        netlink.close()
    own = {each.mac for each in links} - {NO_MAC}
    mac = next((each.mac for each in links if each.name == link), NO_MAC)
    with _listen(vip, link) as sock:
        began = time.monotonic()
        for number in range(probes):
            sock.send(question(vip, mac))
            found = _wait(sock, vip, own, began + wait * (number + 1) / probes)
            if found:
                return found
    return None


def _wait(sock: socket.socket, vip: str, own: Iterable[str], deadline: float) -> str:
    while (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            found = owner(sock.recv(2048), vip)
        except TimeoutError:
            break
        if found and found not in own:
            return found
    return ""


def _listen(vip: str, link: str) -> socket.socket:
    """A packet socket for the answers only, so that no traffic crowds them out."""
    index = socket.if_nametoindex(link)
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        if ":" in vip:
            # the answer to a solicitation from :: goes to all nodes, which a host without IPv6 does not listen to
            all_nodes = _mac(multicast_mac(ALL_NODES))
            member = struct.pack("=iHH8s", index, PACKET_MR_MULTICAST, 6, all_nodes)
            sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, member)
            _only(sock, 20, ICMPV6, 54, ADVERTISEMENT)
        sock.bind((link, ETH_P_IPV6 if ":" in vip else ETH_P_ARP))
    except OSError:
        sock.close()
        raise
    return sock


def _only(sock: socket.socket, *pairs: int) -> None:
    """Let the kernel pass only frames in which the byte at each offset has the value that follows it (classic BPF)."""
    load, equal, done = 0x30, 0x15, 0x06
    steps = [(offset, value) for offset, value in zip(pairs[::2], pairs[1::2], strict=True)]
    program = b""
    for number, (offset, value) in enumerate(steps):
        to_reject = 2 * (len(steps) - number) - 1
        program += struct.pack("=HBBI", load, 0, 0, offset) + struct.pack("=HBBI", equal, 0, to_reject, value)
    program += struct.pack("=HBBI", done, 0, 0, 0xFFFFFFFF) + struct.pack("=HBBI", done, 0, 0, 0)
    held = ctypes.create_string_buffer(program)
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(held))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)
