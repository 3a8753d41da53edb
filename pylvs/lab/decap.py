"""The real server's end of a tunnel in user space, for hosts whose kernel has no ``ipip`` module.

Raw sockets take what arrives in protocol 4 (IPv4 inside) and 41 (IPv6 inside); the packet inside, if it is for one of
the VIPs, is written to a TUN device that has them, and the host's own stack answers it from the VIP, directly to the
client. Having the raw socket also keeps the kernel from sending "protocol unreachable" to the director.

`rp_filter` must be off: requests come in by the TUN device, the way back to the client is another one.
"""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import select
import signal
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from pyroute2 import IPRoute

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
SO_RCVBUFFORCE = 33
BUFFER = 8 << 20  # bytes: a burst waits here while others are written
BATCH = 256  # packets between two looks at the signals
IPIP, IPV6 = 4, 41
CHECKSUM_AT = {socket.IPPROTO_TCP: 16, socket.IPPROTO_UDP: 6}


class Malformed(ValueError):
    """Not a packet: the text is the reason under which it is counted."""


def outer(packet: memoryview) -> memoryview:
    """What an IPv4 packet of protocol 4 or 41 carries. `Malformed` if its lengths lie."""
    if len(packet) < 20 or packet[0] >> 4 != 4:
        raise Malformed("outer header")
    header = (packet[0] & 15) * 4
    total = packet[2] << 8 | packet[3]
    if header < 20 or not header <= total <= len(packet):
        raise Malformed("outer header")
    return packet[header:total]


def inner(packet: memoryview, vips: frozenset[bytes]) -> memoryview:
    """The packet inside, cut to its own length, if it is whole and for one of `vips` (packed addresses).

    `Malformed` if it is not; its reason is ``not for a VIP`` if only the destination is wrong.
    """
    if len(packet) < 20:
        raise Malformed("inner header")
    version = packet[0] >> 4
    if version == 4:
        length = packet[2] << 8 | packet[3]
        if (packet[0] & 15) < 5 or not (packet[0] & 15) * 4 <= length <= len(packet):
            raise Malformed("inner header")
        target = bytes(packet[16:20])
    elif version == 6 and len(packet) >= 40:
        length = 40 + (packet[4] << 8 | packet[5])
        if length > len(packet):
            raise Malformed("inner header")
        target = bytes(packet[24:40])
    else:
        raise Malformed("inner header")
    if target not in vips:
        raise Malformed("not for a VIP")
    return packet[:length]


def finish(packet: memoryview) -> bool:
    """Finish a TCP or UDP checksum that its sender left to the network card, in place; True if it was unfinished.

    Between virtual machines and veth pairs no card ever does: the field then holds the sum of the pseudo header alone.
    A raw socket hands the packet over without saying so, but the field itself tells: it *is* that sum.
    """
    if packet[0] >> 4 == 4:
        start, protocol = (packet[0] & 15) * 4, packet[9]
        if (packet[6] & 0x3F) or packet[7]:  # a fragment: its checksum is over more than this packet
            return False
        addresses = packet[12:20]
    else:
        start, protocol = 40, packet[6]
        addresses = packet[8:40]
    at = CHECKSUM_AT.get(protocol)
    length = len(packet) - start
    if at is None or length < at + 2:
        return False
    pseudo = int.from_bytes(addresses, "big") + protocol + length
    field = packet[start + at] << 8 | packet[start + at + 1]
    if pseudo % 0xFFFF != field % 0xFFFF or (protocol == socket.IPPROTO_UDP and field == 0):
        return False
    whole = bytes(packet[start:]) + b"\0" * (length & 1)
    total = 0xFFFF - int.from_bytes(whole, "big") % 0xFFFF
    struct.pack_into("!H", packet, start + at, total or 0xFFFF)
    return True


def sockets() -> dict[socket.socket, bool]:
    """Raw sockets for both tunnel protocols over both families; True for those that deliver the outer header."""
    found: dict[socket.socket, bool] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for protocol in (IPIP, IPV6):
            try:
                raw = socket.socket(family, socket.SOCK_RAW, protocol)
            except OSError as error:
                if family == socket.AF_INET6 and error.errno in {errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}:
                    continue  # a host without IPv6
                raise
            raw.setblocking(False)
            try:
                raw.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
            except PermissionError:  # not in the first user namespace
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            found[raw] = family == socket.AF_INET
    return found


def device(name: str, vips: Sequence[str]) -> int:
    """Make the TUN device `name` with the addresses `vips`, up, reverse-path filter off; its file descriptor. The device is
    gone when that is closed. `OSError` with a text for people if it cannot be made."""
    if len(name.encode()) > 15:
        raise OSError(f"device name {name} is longer than 15 bytes")
    try:
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise OSError(f"/dev/net/tun: {error.strerror}; is the tun module there?") from error
    try:
        try:
            fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
        except OSError as error:
            hint = "; another `pylvs rs tun` has it" if error.errno == errno.EBUSY else ""
            raise OSError(f"TUN device {name}: {error.strerror}{hint}") from error
        settings = Path("/proc/sys/net/ipv4/conf", name)
        (settings / "rp_filter").write_text("0\n")
        with IPRoute() as route:
            index = route.link_lookup(ifname=name)[0]
            for vip in vips:
                route.addr("add", index=index, address=vip, prefixlen=ipaddress.ip_address(vip).max_prefixlen)
            route.link("set", index=index, state="up")
    except BaseException:
        os.close(handle)
        raise
    return handle


def filtered() -> bool:
    """True if the host filters by reverse path on every device: the larger of ``all`` and the device's value counts."""
    with suppress(OSError):
        return Path("/proc/sys/net/ipv4/conf/all/rp_filter").read_text().strip() == "1"
    return False


class Decapsulator:
    """Moves packets from the raw sockets to the TUN device until a signal comes; `counts` says what became of them:
    ``unwrapped``, of those ``finished`` checksums, and dropped ones by reason."""

    def __init__(self, name: str, vips: Sequence[str]) -> None:
        self.counts: Counter[str] = Counter()
        self._vips = frozenset(ipaddress.ip_address(vip).packed for vip in vips)
        self._buffer = bytearray(1 << 17)
        self._sockets = sockets()
        self._pipe = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self._device = device(name, vips)
        except OSError:
            self.close()
            raise

    def take(self, packet: memoryview, headed: bool) -> None:
        """One packet, `headed` by its outer header or not."""
        try:
            inside = inner(outer(packet) if headed else packet, self._vips)
        except Malformed as reason:
            self.counts[str(reason)] += 1
            return
        if finish(inside):
            self.counts["finished"] += 1
        try:
            os.write(self._device, inside)
            self.counts["unwrapped"] += 1
        except OSError as error:
            self.counts[f"device: {error.strerror}"] += 1

    def run(self) -> None:
        """Work until SIGTERM or SIGINT."""

        def stop(number: int, frame: FrameType | None) -> None:
            with suppress(BlockingIOError):
                os.write(self._pipe[1], b".")

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)
        view = memoryview(self._buffer)
        poll = select.poll()
        waiting = {raw.fileno(): raw for raw in self._sockets}
        for handle in (self._pipe[0], *waiting):
            poll.register(handle, select.POLLIN)
        while True:
            for handle, _ in poll.poll():
                if handle == self._pipe[0]:
                    return
                raw = waiting[handle]
                headed = self._sockets[raw]
                for _ in range(BATCH):
                    try:
                        size = raw.recv_into(self._buffer)
                    except BlockingIOError:
                        break
                    except OSError as error:  # an ICMP error that the kernel reports on the socket
                        self.counts[f"socket: {error.strerror}"] += 1
                        break
                    self.take(view[:size], headed)

    def close(self) -> None:
        """Close the sockets and the device, which disappears with its addresses."""
        for raw in self._sockets:
            raw.close()
        for handle in (*self._pipe, getattr(self, "_device", -1)):
            if handle >= 0:
                os.close(handle)


def report(counts: Counter[str]) -> str:
    """The counts in one line."""
    dropped = {reason: count for reason, count in sorted(counts.items()) if reason not in {"unwrapped", "finished"}}
    text = f"unwrapped {counts['unwrapped']}"
    if counts["finished"]:
        text += f" (checksum finished in {counts['finished']})"
    if dropped:
        text += ", dropped " + ", ".join(f"{reason}: {count}" for reason, count in dropped.items())
    return text
