"""Packets from numbers, without scapy: property tests build tens of thousands of them."""

from __future__ import annotations

import struct

from packets import ICMP, ICMP6, TCP, UDP, Packet, checksum, packed, pseudo, splice

C_MAC, S_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
ROUTER_MAC, SERVER_MAC = bytes.fromhex("020000000099"), bytes.fromhex("020000000111")
FLAGS = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16, "U": 32, "E": 64, "C": 128}


def ip(
    source: str, target: str, protocol: int, body: bytes, ttl: int = 64, tos: int = 0, ident: int = 1, df: bool = True
) -> bytes:
    """An IP packet of the addresses' family."""
    if ":" in source:
        return (
            struct.pack("!IHBB", 6 << 28 | tos << 20, len(body), protocol, ttl) + packed(source) + packed(target) + body
        )
    head = struct.pack("!BBHHHBBH", 0x45, tos, 20 + len(body), ident, 0x4000 if df else 0, ttl, protocol, 0)
    head += packed(source) + packed(target)
    return splice(head, 10, checksum(head)) + body


def transport(
    source: str,
    target: str,
    protocol: str,
    sport: int,
    dport: int,
    flags: str = "S",
    payload: bytes = b"",
    error: int = 0,
) -> tuple[int, bytes]:
    """A TCP or UDP header and payload with a right checksum, or one that is wrong by `error`; -1: no UDP checksum."""
    if protocol == "tcp":
        bits = sum(FLAGS[flag] for flag in flags)
        number, at = TCP, 16
        body = struct.pack("!HHIIBBHHH", sport, dport, 1000, 2000, 0x50, bits, 4096, 0, 0) + payload
    else:
        number, at = UDP, 6
        body = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    right = checksum(pseudo(packed(source), packed(target), number, len(body)) + body)
    if number == UDP and right == b"\0\0":
        right = b"\xff\xff"
    if error == -1 and number == UDP:
        return number, body
    value = int.from_bytes(right, "big") ^ max(error, 0)
    return number, splice(body, at, (value or 0xFFFF).to_bytes(2, "big") if number == UDP else value.to_bytes(2, "big"))


def icmp_error(source: str, target: str, kind: str, quoted: bytes, broken: bool = False) -> tuple[int, bytes]:
    """An ICMP error of either family: unreachable, exceeded or too big."""
    if ":" in source:
        number, code = {"unreachable": (1, 4), "exceeded": (3, 0), "too big": (2, 0)}[kind]
        body = struct.pack("!BBHI", number, code, 0, 1300 if kind == "too big" else 0) + quoted
        body = splice(body, 2, checksum(pseudo(packed(source), packed(target), ICMP6, len(body)) + body))
    else:
        number, code = {"unreachable": (3, 3), "exceeded": (11, 0), "too big": (3, 4)}[kind]
        body = struct.pack("!BBHI", number, code, 0, 1300 if kind == "too big" else 0) + quoted
        body = splice(body, 2, checksum(body))
    if broken:
        body = splice(body, 2, bytes([body[2] ^ 0x55]))
    return ICMP6 if ":" in source else ICMP, body


def ethernet(source: bytes, target: bytes, packet: bytes, tag: int | None = None) -> bytes:
    """A frame, with a VLAN tag if `tag` is given."""
    kind = b"\x86\xdd" if packet[:1] and packet[0] >> 4 == 6 else b"\x08\x00"
    return target + source + (b"" if tag is None else struct.pack("!HH", 0x8100, tag)) + kind + packet


def right(packet: Packet) -> bool:
    """Whether the packet's transport checksum is right, summed over the whole; a missing UDP checksum is not."""
    body = packet.payload
    at = 16 if packet.protocol == TCP else 6
    if packet.protocol == UDP and body[at : at + 2] == b"\0\0":
        return False
    rest = splice(body, at, b"\0\0")
    wanted = checksum(pseudo(packet.source, packet.target, packet.protocol, len(body)) + rest)
    if packet.protocol == UDP and wanted == b"\0\0":
        wanted = b"\xff\xff"
    return body[at : at + 2] == wanted
