"""Frames as a student reads them: Ethernet, ARP, IPv4, IPv6, TCP, UDP and ICMP headers decoded, one line for each frame.

Only what the proofs of a lab need; a field that is not there decodes to `None` or to an empty value, never to an error.
Header layouts: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 793 (TCP), RFC 792 (ICMP), RFC 4443 (ICMPv6), RFC 826 (ARP), RFC 4861
(neighbour discovery), RFC 2003 (IP in IP), RFC 2473 (IPv6 tunnels).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

ETH_IPV4 = 0x0800
ETH_ARP = 0x0806
ETH_IPV6 = 0x86DD
ICMP, IPIP, TCP, UDP, IPV6, ICMPV6 = 1, 4, 6, 17, 41, 58

FLAGS = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x10, "."), (0x20, "U"))
ICMP_NAMES = {
    (0, 0): "echo reply",
    (3, 0): "network unreachable",
    (3, 1): "host unreachable",
    (3, 2): "protocol unreachable",
    (3, 3): "port unreachable",
    (3, 4): "fragmentation needed",
    (5, 0): "redirect",
    (5, 1): "redirect",
    (8, 0): "echo request",
    (11, 0): "time exceeded",
}
ICMPV6_NAMES = {
    (1, 0): "no route",
    (1, 1): "prohibited",
    (1, 3): "address unreachable",
    (1, 4): "port unreachable",
    (2, 0): "packet too big",
    (3, 0): "time exceeded",
    (128, 0): "echo request",
    (129, 0): "echo reply",
    (137, 0): "redirect",
}
SOLICITATION, ADVERTISEMENT = 135, 136
#: what IPv6 hosts say all day: multicast listeners (130 to 132, 143), routers and neighbours (133 to 136)
HOUSEKEEPING = frozenset({*range(130, 137), 143})


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`, not inverted: 0xffff over a header that carries a right one."""
    if len(data) & 1:
        data += b"\0"
    total = int.from_bytes(data, "big")
    # the one's-complement sum of 16-bit words is the number modulo 0xffff, and 0xffff for its non-zero multiples
    return total % 0xFFFF or (0xFFFF if total else 0)


@dataclass(frozen=True)
class Arp:
    """An ARP packet, or its like in IPv6 (`word` "ND": neighbour solicitation and advertisement): `operation` 1 asks for
    `target`, 2 tells that `sender` is at `mac`."""

    operation: int
    mac: str
    sender: str
    target: str
    word: str = "ARP"

    def __str__(self) -> str:
        if self.operation == 1:
            return f"{self.word} who has {self.target}? tell {self.sender}"
        return f"{self.word} {self.sender} is at {self.mac}"


@dataclass(frozen=True)
class Segment:
    """A TCP segment; `raw` is header and payload."""

    source: int
    target: int
    sequence: int
    acknowledged: int
    flags: int
    payload: bytes
    raw: bytes

    @property
    def marks(self) -> str:
        """The flags as tcpdump writes them, such as ``S.``."""
        return "".join(letter for bit, letter in FLAGS if self.flags & bit)

    def __str__(self) -> str:
        text = f"TCP {self.source} > {self.target} [{self.marks}] seq {self.sequence}"
        if self.payload:
            text += f" length {len(self.payload)}"
        return text


@dataclass(frozen=True)
class Message:
    """An ICMP or ICMPv6 message; `mtu` is the next hop's where the message carries it, else 0."""

    kind: int
    code: int
    mtu: int
    version: int = 4

    @property
    def too_big(self) -> bool:
        """True for "fragmentation needed" and "packet too big"."""
        return (self.kind, self.code) == ((3, 4) if self.version == 4 else (2, 0))

    def __str__(self) -> str:
        names = ICMP_NAMES if self.version == 4 else ICMPV6_NAMES
        name = names.get((self.kind, self.code), f"type {self.kind} code {self.code}")
        return f"{'ICMP' if self.version == 4 else 'ICMPv6'} {name}" + (f", MTU {self.mtu}" if self.mtu else "")


@dataclass(frozen=True)
class Packet:
    """An IPv4 or IPv6 packet; `raw` is all of it, header included, cut to its total length.

    `ttl` is the hop limit of IPv6, which has neither `identification` (0) nor header checksum. Extension headers are not
    followed: `protocol` is the first next header.
    """

    source: str
    target: str
    protocol: int
    ttl: int
    identification: int
    header: int  # bytes
    raw: bytes
    version: int = 4

    @property
    def payload(self) -> bytes:
        """What follows the IP header."""
        return self.raw[self.header :]

    @property
    def sound(self) -> bool:
        """True if the header checksum is right, or there is none."""
        return self.version == 6 or checksum(self.raw[: self.header]) == 0xFFFF

    @property
    def tcp(self) -> Segment | None:
        """The TCP segment inside, if there is a whole TCP header."""
        data = self.payload
        if self.protocol != TCP or len(data) < 20:
            return None
        source, target, sequence, acknowledged, offset, flags = struct.unpack_from("!HHIIBB", data)
        return Segment(source, target, sequence, acknowledged, flags, data[(offset >> 4) * 4 :], data)

    @property
    def icmp(self) -> Message | None:
        """The ICMP message inside; of ICMPv6 none that is mere `HOUSEKEEPING`."""
        data = self.payload
        if self.protocol != (ICMP if self.version == 4 else ICMPV6) or len(data) < 8:
            return None
        kind, code, _, high, low = struct.unpack_from("!BBHHH", data)
        if self.version == 4:
            return Message(kind, code, low if (kind, code) == (3, 4) else 0)
        return None if kind in HOUSEKEEPING else Message(kind, code, (high << 16 | low) if kind == 2 else 0, 6)

    @property
    def housekeeping(self) -> bool:
        """True for what IPv6 needs in place of ARP, and for multicast listeners (behind a hop-by-hop header)."""
        data = self.payload
        return self.version == 6 and (
            self.protocol == 0 or (self.protocol == ICMPV6 and data[:1] != b"" and data[0] in HOUSEKEEPING)
        )

    @property
    def inner(self) -> Packet | None:
        """The packet inside a tunnel of IP in IP."""
        return {IPIP: ipv4, IPV6: ipv6}[self.protocol](self.payload) if self.protocol in {IPIP, IPV6} else None

    @property
    def neighbour(self) -> Arp | None:
        """The neighbour solicitation or advertisement inside, as what ARP would say."""
        data = self.payload
        if (
            self.version != 6
            or self.protocol != ICMPV6
            or len(data) < 24
            or data[0] not in {SOLICITATION, ADVERTISEMENT}
        ):
            return None
        asks = data[0] == SOLICITATION
        about = str(ipaddress.IPv6Address(data[8:24]))
        link = mac(data[26:32]) if len(data) >= 32 and data[24] == (1 if asks else 2) and data[25] == 1 else ""
        return Arp(1, link, self.source, about, "ND") if asks else Arp(2, link, about, self.target, "ND")

    @property
    def segment_sound(self) -> bool:
        """True if the TCP checksum, pseudo header included, is right."""
        addresses = self.raw[12:20] if self.version == 4 else self.raw[8:40]
        pseudo = addresses + struct.pack("!HH", self.protocol, len(self.payload))
        return checksum(pseudo + self.payload) == 0xFFFF

    def __str__(self) -> str:
        four = self.version == 4
        text = f"{'IP' if four else 'IP6'} {self.source} > {self.target} {'ttl' if four else 'hlim'} {self.ttl}"
        inside = self.tcp or self.icmp
        if self.inner:
            return f"{text} proto {self.protocol} {{{self.inner}}}"
        return f"{text} {inside}" if inside else f"{text} proto {self.protocol}"


def ipv4(data: bytes) -> Packet | None:
    """Decode `data`, or `None` if that is no whole IPv4 header."""
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    header = (data[0] & 15) * 4
    total, identification = struct.unpack_from("!HH", data, 2)
    if header < 20 or total < header or len(data) < header:
        return None
    source, target = (str(ipaddress.IPv4Address(data[at : at + 4])) for at in (12, 16))
    return Packet(source, target, data[9], data[8], identification, header, bytes(data[:total]))


def ipv6(data: bytes) -> Packet | None:
    """Decode `data`, or `None` if that is no whole IPv6 header."""
    if len(data) < 40 or data[0] >> 4 != 6:
        return None
    source, target = (str(ipaddress.IPv6Address(data[at : at + 16])) for at in (8, 24))
    total = 40 + int.from_bytes(data[4:6], "big")
    return Packet(source, target, data[6], data[7], 0, 40, bytes(data[:total]), 6)


def mac(data: bytes) -> str:
    """Six bytes as ``02:00:00:00:00:01``."""
    return ":".join(f"{byte:02x}" for byte in data)


@dataclass(frozen=True)
class Frame:
    """One captured frame: where (`node`, `interface`), whether it came `in`, went `out` or passed `by` (addressed to another
    host), when (seconds), and its bytes."""

    node: str
    interface: str
    direction: str
    time: float
    data: bytes = field(repr=False)

    @property
    def target_mac(self) -> str:
        """Destination MAC address."""
        return mac(self.data[:6])

    @property
    def source_mac(self) -> str:
        """Source MAC address."""
        return mac(self.data[6:12])

    @property
    def kind(self) -> int:
        """EtherType."""
        return int.from_bytes(self.data[12:14], "big")

    @property
    def ip(self) -> Packet | None:
        """The IPv4 or IPv6 packet in the frame."""
        if self.kind == ETH_IPV6:
            return ipv6(self.data[14:])
        return ipv4(self.data[14:]) if self.kind == ETH_IPV4 else None

    @property
    def arp(self) -> Arp | None:
        """The ARP packet in the frame, or what stands for one in IPv6."""
        data = self.data[14:]
        if self.kind == ETH_IPV6:
            packet = self.ip
            return packet.neighbour if packet else None
        if self.kind != ETH_ARP or len(data) < 28:
            return None
        sender, target = (str(ipaddress.IPv4Address(data[at : at + 4])) for at in (14, 24))
        return Arp(int.from_bytes(data[6:8], "big"), mac(data[8:14]), sender, target)

    def line(self, names: Mapping[str, str] | None = None) -> str:
        """The frame in one line: where, which MAC addresses (by the owner's name if `names` has it), which packet."""
        names = names or {}
        ends = " > ".join(names.get(address, address) for address in (self.source_mac, self.target_mac))
        what = self.arp or self.ip or f"type 0x{self.kind:04x}"
        return f"{self.node} {self.interface} {self.direction:<3} [{ends}] {what}"


def complete(data: bytearray, start: int, offset: int) -> None:
    """Finish a checksum that the sender left to the network card: the field at `start + offset` holds the pseudo header's
    sum, everything from `start` belongs to it (the kernel's ``CHECKSUM_PARTIAL``). Out of bounds: nothing is done."""
    at = start + offset
    if at + 2 <= len(data):
        total = checksum(bytes(data[start:])) ^ 0xFFFF
        data[at : at + 2] = struct.pack("!H", total or 0xFFFF)
