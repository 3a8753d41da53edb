"""Packet capture on the interfaces of a lab: AF_PACKET sockets in its namespaces, read when the moment is over.

Frames are returned as a cable would carry them: checksums that a veth pair leaves unfinished are finished here, from
what the virtio-net header says of them. A filter in the kernel (classic BPF) keeps bulk transfers out of the way.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress

from pylvs.lab import namespace
from pylvs.lab.packet import Frame, complete

ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR = 263, 15
SO_ATTACH_FILTER, SO_RCVBUFFORCE, SO_TIMESTAMPNS = 26, 33, 35
DIRECTIONS = {3: "by", 4: "out"}  # PACKET_OTHERHOST: a switch floods what it has not learned; PACKET_OUTGOING
NEEDS_CSUM = 1
VNET = struct.Struct("=BBHHHH")
BUFFER = 8 << 20

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand

LDH, LDB, LDB_X, LDX_IHL = 0x28, 0x30, 0x50, 0xB1
JA, JEQ, JSET, RET = 0x05, 0x15, 0x45, 0x06

#: ARP, ICMP, and TCP segments that open or break a connection (SYN, RST): what a bulk transfer should hardly have.
#: The same of IPv6 (where ICMPv6 is also ARP), without extension headers.
SIGNS: tuple[Instruction, ...] = (
    (LDH, 0, 0, 12),
    (JEQ, 14, 0, 0x0806),  # ARP: keep
    (JEQ, 6, 0, 0x0800),  # IPv4
    (JEQ, 0, 13, 0x86DD),  # not IPv6 either: leave
    (LDB, 0, 0, 20),
    (JEQ, 10, 0, 58),  # ICMPv6: keep
    (JEQ, 0, 10, 6),  # not TCP: leave
    (LDB, 0, 0, 14 + 40 + 13),
    (JA, 0, 0, 5),  # to the flags
    (LDB, 0, 0, 23),
    (JEQ, 5, 0, 1),  # ICMP: keep
    (JEQ, 0, 5, 6),  # not TCP: leave
    (LDX_IHL, 0, 0, 14),
    (LDB_X, 0, 0, 14 + 13),
    (JSET, 1, 0, 0x04),  # RST: keep
    (JSET, 0, 1, 0x02),  # SYN: keep
    (RET, 0, 0, 0xFFFF),
    (RET, 0, 0, 0),
)


class _Program(ctypes.Structure):
    _fields_ = (("count", ctypes.c_ushort), ("code", ctypes.c_void_p))


def attach(tap: socket.socket, program: Sequence[Instruction]) -> None:
    """Let only frames for which `program` returns more than 0 into the socket."""
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    tap.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(_Program(len(program), ctypes.addressof(code))))


class Tap:
    """A capture on `interface` of the node `node`, whose namespace is `network`."""

    def __init__(self, network: str, node: str, interface: str, program: Sequence[Instruction] = ()) -> None:
        self.node, self.interface = node, interface
        with namespace.inside(network):
            # protocol 0: nothing arrives before the filter is in place
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            with suppress(PermissionError):
                self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            if program:
                attach(self._socket, program)
            self._socket.bind((interface, ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise

    def drain(self) -> list[Frame]:
        """The frames since the last call, in the order in which they passed."""
        found: list[Frame] = []
        while True:
            try:
                data, ancillary, _, origin = self._socket.recvmsg(1 << 17, 256)
            except BlockingIOError:
                return found
            except OSError:  # the interface is gone, or a frame that has no virtio-net header
                continue
            seconds = 0.0
            for _, kind, value in ancillary:
                if kind == SO_TIMESTAMPNS:
                    whole, nanoseconds = struct.unpack_from("qq", value)
                    seconds = whole + nanoseconds / 1e9
            direction = DIRECTIONS.get(origin[2], "in")
            found.append(Frame(self.node, self.interface, direction, seconds, cable(data)))

    def close(self) -> None:
        """End the capture."""
        self._socket.close()


def cable(data: bytes) -> bytes:
    """The frame behind a virtio-net header, its checksum finished if the header says that it is not."""
    flags, _, _, _, start, offset = VNET.unpack_from(data)
    frame = bytearray(data[VNET.size :])
    if flags & NEEDS_CSUM:
        complete(frame, start, offset)
    return bytes(frame)


class Capture:
    """Several taps read together; a context manager."""

    def __init__(self, taps: Iterable[Tap]) -> None:
        self._taps = list(taps)

    def __enter__(self) -> Capture:
        return self

    def __exit__(self, *_: object) -> None:
        for tap in self._taps:
            tap.close()

    def drain(self) -> list[Frame]:
        """All frames since the last call, by time."""
        return sorted((frame for tap in self._taps for frame in tap.drain()), key=lambda frame: frame.time)
