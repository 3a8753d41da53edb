"""Classic pcap files, read and written record by record: memory for one frame, whatever the size of the file.

Microseconds and nanoseconds, both byte orders, Ethernet only. A 24-byte header (magic, version 2.4, two unused
words, snaplen, link type), then records of 16 bytes (seconds, fraction, bytes kept, bytes on the wire) and a frame.
draft-ietf-opsawg-pcap; the link types are those of tcpdump.org/linktypes.html.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

MICRO, NANO, NEXT_GENERATION = 0xA1B2C3D4, 0xA1B23C4D, 0x0A0D0D0A
ETHERNET = 1
#: link types that are met in practice and cannot be read, with what makes them
OTHER_LINKS = {
    0: "null: a BSD loopback", 101: "raw IP: a tun device", 105: "802.11: a wireless card in monitor mode",
    113: "Linux cooked: `tcpdump -i any`", 228: "raw IPv4", 229: "raw IPv6", 276: "Linux cooked v2: `tcpdump -i any`",
}  # fmt: skip
LONGEST = 1 << 18  # tcpdump's own limit for a record
SECOND = 1_000_000_000


class CaptureError(Exception):
    """A file that is no capture that can be read; says what is wrong and what to do, in one line."""


@dataclass(frozen=True, slots=True)
class Record:
    """A frame of a capture: when it was seen (ns since the epoch), the bytes kept, how many it had on the wire."""

    time: int
    data: bytes
    length: int

    @property
    def cut(self) -> bool:
        """Did the capture keep only the beginning of the frame (its snaplen)?"""
        return len(self.data) < self.length


class Reader:
    """The records of a pcap file, in order; a context manager. Raises `CaptureError` and `OSError`."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._file: BinaryIO = open(path, "rb")  # noqa: SIM115 - the reader is the context manager
        try:
            self._begin(self._file.read(24))
        except BaseException:
            self._file.close()
            raise

    def _begin(self, header: bytes) -> None:
        """Understand the file's header."""
        if not header:
            raise self._error("the file is empty; a capture has at least a header of 24 bytes")
        magics = {struct.pack(order + "I", magic): (order, magic) for order in "<>" for magic in (MICRO, NANO)}
        if header[:4] == struct.pack(">I", NEXT_GENERATION):
            raise self._error("this is a pcapng file; convert it by `editcap -F pcap IN OUT` or `tcpdump -r IN -w OUT`")
        if header[:2] == b"\x1f\x8b" or header[:4] in {b"\x28\xb5\x2f\xfd", b"\xfd7zX"}:
            raise self._error("the file is compressed; decompress it first")
        if header[:4] not in magics:
            raise self._error("this is no pcap file; record one by `tcpdump -i INTERFACE -w FILE`")
        if len(header) < 24:
            raise self._error(f"the file ends after {len(header)} bytes, within its header; record it again")
        self._order, magic = magics[header[:4]]
        self.nanoseconds = magic == NANO
        major, minor, self.snaplen, link = struct.unpack(self._order + "HH8xII", header[4:])
        if (major, minor) != (2, 4):
            raise self._error(f"pcap version {major}.{minor} is not known; convert it by `editcap -F pcap IN OUT`")
        self.link = link & 0xFFFF  # the upper bits tell of checksums behind the frame
        if self.link != ETHERNET:
            what = f" ({OTHER_LINKS[self.link]})" if self.link in OTHER_LINKS else ""
            raise self._error(
                f"link type {self.link}{what}, but only Ethernet (1) is read; capture on one interface, as in "
                "`tcpdump -i eth0 -w FILE`"
            )

    def __iter__(self) -> Iterator[Record]:
        head = struct.Struct(self._order + "IIII")
        unit = 1 if self.nanoseconds else 1000
        number = 0
        while raw := self._file.read(16):
            number += 1
            if len(raw) < 16:
                raise self._truncated(number)
            seconds, fraction, kept, length = head.unpack(raw)
            if kept > LONGEST:
                raise self._error(
                    f"record {number} claims {kept} bytes, which no frame has; the file is damaged from there on"
                )
            data = self._file.read(kept)
            if len(data) < kept:
                raise self._truncated(number)
            yield Record(seconds * SECOND + fraction * unit, data, max(length, kept))

    def _truncated(self, number: int) -> CaptureError:
        return self._error(
            f"the file ends within record {number}: the recorder was stopped while it wrote, or the copy is incomplete; "
            f"copy it again, or keep the {number - 1} whole records by `editcap -F pcap -r IN OUT 1-{number - 1}`"
        )

    def _error(self, text: str) -> CaptureError:
        return CaptureError(f"{self.path}: {text}")

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Writer:
    """A new pcap file of Ethernet frames in the machine-independent little-endian order; a context manager.

    `nanoseconds` keeps times exact, as newer tools read them; otherwise they are cut to microseconds.
    """

    def __init__(self, path: str | Path, nanoseconds: bool = False, snaplen: int = LONGEST) -> None:
        self._unit = 1 if nanoseconds else 1000
        self._snaplen = snaplen
        self._file: BinaryIO = open(path, "wb")  # noqa: SIM115
        self._file.write(struct.pack("<IHHiIII", NANO if nanoseconds else MICRO, 2, 4, 0, 0, snaplen, ETHERNET))

    def write(self, time: int, frame: bytes) -> None:
        """Append a frame that was seen at `time` (ns since the epoch)."""
        seconds, fraction = divmod(time, SECOND)
        kept = frame[: self._snaplen]
        self._file.write(struct.pack("<IIII", seconds, fraction // self._unit, len(kept), len(frame)) + kept)

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
