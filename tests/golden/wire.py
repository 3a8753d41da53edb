"""The recordings' packets: what their events stand for, and a line for people about what came out."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from packets import ICMP, ICMP6, IPV6, TCP, UDP, checksum, packed, pseudo

SCTP = 132
CLIENT_SIDE, SERVER_SIDE = "02:00:00:00:00:01", "02:00:00:00:00:02"  # the director's MACs
ROUTERS = {4: "10.0.0.254", 6: "fd00:c::fe"}
FLAGS = "FSRPAU"
CHUNKS = {
    name: number
    for number, name in enumerate(
        [
            *("DATA", "INIT", "INIT-ACK", "SACK", "HEARTBEAT", "HEARTBEAT-ACK", "ABORT", "SHUTDOWN", "SHUTDOWN-ACK"),
            *("ERROR", "COOKIE-ECHO", "COOKIE-ACK", "ECNE", "CWR", "SHUTDOWN-COMPLETE"),
        ]
    )
}


def mac_of(address: str) -> str:
    """The neighbour's MAC of an address, by the recordings' rule."""
    raw = packed(address)
    return ":".join(["02", "06" if len(raw) == 16 else "01", *(f"{byte:02x}" for byte in raw[-4:])])


def version(address: str) -> int:
    """4 or 6."""
    return ipaddress.ip_address(address).version


def split(endpoint: str) -> tuple[str, int]:
    """Address and port of ``10.0.0.1:80`` or ``[fd00::1]:80``."""
    address, _, port = endpoint.rpartition(":")
    return address.strip("[]"), int(port)


def joined(address: str, port: int) -> str:
    """The reverse of `split`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def summed(source: str, target: str, protocol: int, segment: bytes, at: int) -> bytes:
    """A segment with its checksum at offset `at`."""
    raw = checksum(pseudo(packed(source), packed(target), protocol, len(segment)) + segment)
    if protocol == UDP and raw == b"\0\0":
        raw = b"\xff\xff"
    return segment[:at] + raw + segment[at + 2 :]


def tcp(source: str, sport: int, target: str, dport: int, flags: str, seq: int, ack: int) -> bytes:
    """A TCP segment without options and data."""
    bits = sum(1 << FLAGS.index(flag) for flag in flags)
    return summed(source, target, TCP, struct.pack("!HHIIBBHHH", sport, dport, seq, ack, 0x50, bits, 64240, 0, 0), 16)


def udp(source: str, sport: int, target: str, dport: int, data: bytes) -> bytes:
    """A UDP datagram."""
    return summed(source, target, UDP, struct.pack("!HHHH", sport, dport, 8 + len(data), 0) + data, 6)


def crc32c(data: bytes) -> int:
    """The Castagnoli sum that SCTP uses (RFC 4960, appendix B)."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def sctp(sport: int, dport: int, chunk: str) -> bytes:
    """An SCTP packet with one chunk."""
    body = b"\0" * 16 if chunk in ("INIT", "INIT-ACK") else b"\0" * 12 if chunk == "DATA" else b""
    header = struct.pack("!HHI", sport, dport, 0 if chunk == "INIT" else 0x1111)
    chunks = struct.pack("!BBH", CHUNKS[chunk], 0, 4 + len(body)) + body
    return header + struct.pack("<I", crc32c(header + b"\0\0\0\0" + chunks)) + chunks


def frame(to: str, by: str, source: str, target: str, protocol: int, segment: bytes) -> bytes:
    """A whole Ethernet frame."""
    macs = bytes.fromhex((to + by).replace(":", ""))
    if version(source) == 6:
        header = struct.pack("!IHBB", 6 << 28, len(segment), protocol, 64) + packed(source) + packed(target)
        return macs + b"\x86\xdd" + header + segment
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, protocol, 0)
    header += packed(source) + packed(target)
    return macs + b"\x08\x00" + header[:10] + checksum(header) + header[12:] + segment


@dataclass(frozen=True)
class Seen:
    """What of a frame matters for a decision."""

    family: int
    protocol: int
    source: str
    target: str
    segment: bytes

    @property
    def sport(self) -> int:
        return int.from_bytes(self.segment[:2], "big")

    @property
    def dport(self) -> int:
        return int.from_bytes(self.segment[2:4], "big")

    @property
    def flags(self) -> str:
        """TCP flags in the order that the recordings write them."""
        bits = self.segment[13]
        return "".join(flag for flag in "SFRPAU" if bits >> FLAGS.index(flag) & 1)


def seen(data: bytes) -> Seen | None:
    """Read a frame; None if it is not IP. IPv6 fragments are looked through."""
    ip = data[14:]
    if data[12:14] == b"\x08\x00":
        start = (ip[0] & 15) * 4
        return Seen(
            4, ip[9], str(ipaddress.ip_address(ip[12:16])), str(ipaddress.ip_address(ip[16:20])), ip[start:]
        )
    if data[12:14] == b"\x86\xdd":
        start, protocol = 40, ip[6]
        if protocol == 44:
            start, protocol = 48, ip[40]
        return Seen(
            6, protocol, str(ipaddress.ip_address(ip[8:24])), str(ipaddress.ip_address(ip[24:40])), ip[start:]
        )
    return None


def told(side: str, data: bytes, servers: dict[bytes, str]) -> str:
    """What the recordings write of a frame that came out: the server chosen, or what the client got."""
    packet = seen(data)
    assert packet is not None, data.hex()
    if side == "server":
        if packet.protocol in (4, IPV6):
            return f"TUN:{packet.target}"
        if packet.protocol == 47:
            return f"GRE:{packet.target}"
        if packet.target in servers.values():
            return joined(packet.target, packet.dport)
        return f"DR:{servers.get(data[:6], data[:6].hex())}"
    if packet.protocol in (ICMP, ICMP6):
        return f"<icmp {packet.segment[0]}/{packet.segment[1]}"
    flags = packet.flags + " " if packet.protocol == TCP else ""
    return f"<{flags}{joined(packet.source, packet.sport)}"


def host_answer(data: bytes, side: str, local: set[str]) -> str:
    """What the host's own stack, with nothing listening and routing on, does with a frame that is left to it."""
    packet = seen(data)
    if packet is None:
        return "-"
    if packet.target not in local:
        if side == "server" and packet.source not in local:
            return told("client", data, {})
        return "-"
    if packet.protocol == TCP:
        if "R" in packet.flags:
            return "-"
        return f"<{'R' if 'A' in packet.flags else 'RA'} {joined(packet.target, packet.dport)}"
    if packet.protocol == UDP:
        return "<icmp 3/3" if packet.family == 4 else "<icmp 1/4"
    return "<icmp 3/2" if packet.family == 4 else "<icmp 4/1"
