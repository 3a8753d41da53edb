"""Frames as a student reads them: Ethernet, ARP, IPv4, TCP, UDP and ICMP headers decoded, and one line for each frame.

Only what the proofs of a lab need; a field that is not there decodes to `None` or to an empty value, never to an error.
Header layouts: RFC 791 (IPv4), RFC 793 (TCP), RFC 792 (ICMP), RFC 826 (ARP), RFC 2003 (IP in IP).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

ETH_IPV4 = 0x0800
ETH_ARP = 0x0806
ICMP, IPIP, TCP, UDP, IPV6 = 1, 4, 6, 17, 41

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


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of `data`, not inverted: 0xffff over a header that carries a right one."""
    if len(data) & 1:
        data += b"\0"
    total = int.from_bytes(data, "big")
    # the one's-complement sum of 16-bit words is the number modulo 0xffff, and 0xffff for its non-zero multiples
    return total % 0xFFFF or (0xFFFF if total else 0)


@dataclass(frozen=True)
class Arp:
    """An ARP packet for IPv4: `operation` 1 asks for `target`, 2 tells that `sender` is at `mac`."""

    operation: int
    mac: str
    sender: str
    target: str

    def __str__(self) -> str:
        if self.operation == 1:
            return f"ARP who has {self.target}? tell {self.sender}"
        return f"ARP {self.sender} is at {self.mac}"


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
    """An ICMP message; `mtu` is the next hop's where the message carries it, else 0."""

    kind: int
    code: int
    mtu: int

    def __str__(self) -> str:
        name = ICMP_NAMES.get((self.kind, self.code), f"type {self.kind} code {self.code}")
        return f"ICMP {name}" + (f", MTU {self.mtu}" if self.mtu else "")


@dataclass(frozen=True)
class Ipv4:
    """An IPv4 packet; `raw` is all of it, header included, cut to its total length."""

    source: str
    target: str
    protocol: int
    ttl: int
    identification: int
    header: int  # bytes
    raw: bytes

    @property
    def payload(self) -> bytes:
        """What follows the IP header."""
        return self.raw[self.header :]

    @property
    def sound(self) -> bool:
        """True if the header checksum is right."""
        return checksum(self.raw[: self.header]) == 0xFFFF

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
        """The ICMP message inside."""
        data = self.payload
        if self.protocol != ICMP or len(data) < 8:
            return None
        kind, code, _, _, mtu = struct.unpack_from("!BBHHH", data)
        return Message(kind, code, mtu if (kind, code) == (3, 4) else 0)

    @property
    def inner(self) -> Ipv4 | None:
        """The packet inside an IPIP tunnel."""
        return ipv4(self.payload) if self.protocol == IPIP else None

    @property
    def segment_sound(self) -> bool:
        """True if the TCP checksum, pseudo header included, is right."""
        pseudo = self.raw[12:20] + struct.pack("!HH", self.protocol, len(self.payload))
        return checksum(pseudo + self.payload) == 0xFFFF

    def __str__(self) -> str:
        text = f"IP {self.source} > {self.target} ttl {self.ttl}"
        inside = self.tcp or self.icmp
        if self.inner:
            return f"{text} proto 4 {{{self.inner}}}"
        return f"{text} {inside}" if inside else f"{text} proto {self.protocol}"


def ipv4(data: bytes) -> Ipv4 | None:
    """Decode `data`, or `None` if that is no whole IPv4 header."""
    if len(data) < 20 or data[0] >> 4 != 4:
        return None
    header = (data[0] & 15) * 4
    total, identification = struct.unpack_from("!HH", data, 2)
    if header < 20 or total < header or len(data) < header:
        return None
    source, target = (str(ipaddress.IPv4Address(data[at : at + 4])) for at in (12, 16))
    return Ipv4(source, target, data[9], data[8], identification, header, bytes(data[:total]))


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
    def ip(self) -> Ipv4 | None:
        """The IPv4 packet in the frame."""
        return ipv4(self.data[14:]) if self.kind == ETH_IPV4 else None

    @property
    def arp(self) -> Arp | None:
        """The ARP packet in the frame."""
        data = self.data[14:]
        if self.kind != ETH_ARP or len(data) < 28:
            return None
        sender, target = (str(ipaddress.IPv4Address(data[at : at + 4])) for at in (14, 24))
        return Arp(int.from_bytes(data[6:8], "big"), mac(data[8:14]), sender, target)

    def line(self, names: Mapping[str, str] | None = None) -> str:
        """The frame in one line: where, which MAC addresses (by the owner's name if `names` has it), which packet."""
        names = names or {}
        ends = " > ".join(names.get(address, address) for address in (self.source_mac, self.target_mac))
        what = self.ip or self.arp or f"type 0x{self.kind:04x}"
        return f"{self.node} {self.interface} {self.direction:<3} [{ends}] {what}"


def complete(data: bytearray, start: int, offset: int) -> None:
    """Finish a checksum that the sender left to the network card: the field at `start + offset` holds the pseudo header's
    sum, everything from `start` belongs to it (the kernel's ``CHECKSUM_PARTIAL``). Out of bounds: nothing is done."""
    at = start + offset
    if at + 2 <= len(data):
        total = checksum(bytes(data[start:])) ^ 0xFFFF
        data[at : at + 2] = struct.pack("!H", total or 0xFFFF)
