"""IP packets in plain Python: read, changed and summed without haste, for the oracle and for comparing frames."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, replace

Address = bytes  # 4 or 16 bytes, as in the packet

ICMP, IPIP, TCP, UDP, IPV6, ICMP6 = 1, 4, 6, 17, 41, 58


def total(data: bytes) -> int:
    """The one's complement sum of 16-bit words."""
    data += b"\0" * (len(data) % 2)
    value = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def checksum(data: bytes) -> bytes:
    """The Internet checksum of `data`, in whose own checksum field there must be zero."""
    return struct.pack("!H", ~total(data) & 0xFFFF)


def pseudo(source: Address, target: Address, protocol: int, length: int) -> bytes:
    """The pseudo header of either family; the sum is the same for its IPv4 and IPv6 layouts."""
    return source + target + struct.pack("!II", length, protocol)


def packed(address: str) -> Address:
    """The bytes of an address in text."""
    return ipaddress.ip_address(address).packed


def text(address: Address) -> str:
    """The canonical text of an address in bytes."""
    return str(ipaddress.ip_address(address))


def splice(data: bytes, offset: int, new: bytes) -> bytes:
    """`data` with the bytes at `offset` replaced."""
    return data[:offset] + new + data[offset + len(new) :]


@dataclass(frozen=True)
class Packet:
    """An IP packet without link header and padding, and where its transport header begins."""

    family: int
    data: bytes
    source: Address
    target: Address
    protocol: int
    start: int

    @property
    def ttl(self) -> int:
        """Time to live or hop limit."""
        return self.data[8 if self.family == 4 else 7]

    @property
    def ports(self) -> tuple[int, int]:
        """Source and destination port."""
        return struct.unpack_from("!HH", self.data, self.start)  # type: ignore[return-value]

    @property
    def payload(self) -> bytes:
        """Everything from the transport header on."""
        return self.data[self.start :]

    def rewritten(self, data: bytes) -> Packet:
        """The packet with other bytes; the IPv4 header checksum is computed anew."""
        if self.family == 4:
            size = (data[0] & 15) * 4
            data = splice(data, 10, b"\0\0")
            data = splice(data, 10, checksum(data[:size]))
            return replace(self, data=data, source=data[12:16], target=data[16:20])
        return replace(self, data=data, source=data[8:24], target=data[24:40])

    def older(self) -> Packet:
        """The packet after one hop."""
        offset = 8 if self.family == 4 else 7
        return self.rewritten(splice(self.data, offset, bytes([self.ttl - 1])))


def parse(family: int, data: bytes, whole: bool = True) -> Packet | None:
    """Read the IP header; None if it is malformed. With `whole` false, `data` may be cut off, as ICMP quotes it."""
    if family == 4:
        if len(data) < 20 or data[0] >> 4 != 4:
            return None
        size, length = (data[0] & 15) * 4, int.from_bytes(data[2:4], "big")
        if (
            size < 20
            or length < size
            or len(data) < size
            or (whole and (length > len(data) or total(data[:size]) != 0xFFFF))
        ):
            return None
        return Packet(4, data[:length], data[12:16], data[16:20], data[9], size)
    if len(data) < 40 or data[0] >> 4 != 6:
        return None
    length = 40 + int.from_bytes(data[4:6], "big")
    if whole and length > len(data):
        return None
    data, kind, start = data[:length], data[6], 40
    while kind in (0, 60):  # hop-by-hop and destination options
        if len(data) < start + 8:
            return None
        kind, start = data[start], start + 8 + data[start + 1] * 8
        if len(data) < start:
            return None
    return Packet(6, data, data[8:24], data[24:40], kind, start)


def translated(packet: Packet, side: str, address: Address, port: int) -> Packet:
    """The packet with the source or target replaced.

    A wrong TCP or UDP checksum stays exactly as wrong, because only the change enters it. A UDP checksum of 0 (none)
    becomes a computed one, in both directions and both families.
    """
    base = (12 if packet.family == 4 else 8) + (len(address) if side == "target" else 0)
    place, sum_at = packet.start + (2 if side == "target" else 0), packet.start + (16 if packet.protocol == TCP else 6)
    old = packet.data[base : base + len(address)] + packet.data[place : place + 2]
    new = address + struct.pack("!H", port)
    before = packet.data[sum_at : sum_at + 2]
    data = splice(splice(packet.data, base, address), place, struct.pack("!H", port))
    changed = packet.rewritten(data)
    if packet.protocol == UDP and before == b"\0\0":
        body = changed.payload
        after = checksum(pseudo(changed.source, changed.target, UDP, len(body)) + body)
    else:
        inverse = bytes(255 - byte for byte in before + old)
        after = checksum(inverse + new)
    if packet.protocol == UDP and after == b"\0\0":
        after = b"\xff\xff"
    return changed.rewritten(splice(changed.data, sum_at, after))


def settled(expected: bytes, actual: bytes) -> bytes:
    """`expected` with the fields that only the director can choose taken from `actual`.

    These are the IPv4 identification of a packet of its own (0 and no DF in `expected`) with the header checksum that
    follows from it, and the flow label of an ICMPv6 message of its own (hop limit 64 or 255, label 0).
    """
    at = 18 if expected[12:14] == b"\x81\x00" else 14
    head = expected[at : at + 40]
    if len(actual) < at + 20 or actual[12:14] != expected[12:14]:
        return expected
    if head[:1] == b"\x45" and head[9] in (ICMP, IPIP, IPV6) and head[4:8] == b"\0\0\0\0":
        head = splice(splice(head[:20], 4, actual[at + 4 : at + 6]), 10, b"\0\0")
        return splice(expected, at, splice(head, 10, checksum(head)))
    if head[:1] == b"\x60" and head[6] == ICMP6 and head[7] in (64, 255) and head[1:4] == b"\0\0\0":
        return splice(expected, at + 1, bytes([actual[at + 1] & 15]) + actual[at + 2 : at + 4])
    return expected
