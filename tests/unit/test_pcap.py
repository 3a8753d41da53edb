"""pcap files: every flavour that is read, what is written, and what is said of files that are not captures."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.utils import PcapReader, wrpcap

from pylvs.ports.pcap import ETHERNET, MICRO, NANO, CaptureError, Reader, Writer

FRAMES = [bytes(range(60)), b"\xff" * 1514, bytes(14)]
TIME = 1_700_000_000_123_456_789


def header(order: str = "<", magic: int = MICRO, link: int = ETHERNET, version: tuple[int, int] = (2, 4)) -> bytes:
    """A file's header."""
    return struct.pack(order + "IHHiIII", magic, *version, 0, 0, 65535, link)


def record(frame: bytes, order: str = "<", seconds: int = 5, fraction: int = 7, length: int | None = None) -> bytes:
    """A record; `length` is that on the wire."""
    return struct.pack(order + "IIII", seconds, fraction, len(frame), length or len(frame)) + frame


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("magic, unit", [(MICRO, 1000), (NANO, 1)])
def test_flavours(tmp_path: Path, order: str, magic: int, unit: int) -> None:
    """Both byte orders, both units of time."""
    path = tmp_path / "in.pcap"
    path.write_bytes(header(order, magic) + b"".join(record(frame, order) for frame in FRAMES))
    with Reader(path) as reader:
        found = list(reader)
        assert reader.nanoseconds == (unit == 1)
    assert [each.data for each in found] == FRAMES
    assert {each.time for each in found} == {5_000_000_000 + 7 * unit}
    assert not any(each.cut for each in found)


@pytest.mark.parametrize("nanoseconds", [False, True])
def test_round_trip(tmp_path: Path, nanoseconds: bool) -> None:
    """What is written is read back, by us and by scapy."""
    path = tmp_path / "out.pcap"
    with Writer(path, nanoseconds) as writer:
        for frame in FRAMES:
            writer.write(TIME, frame)
    with Reader(path) as reader:
        assert [(each.time, each.data) for each in reader] == [
            (TIME if nanoseconds else TIME // 1000 * 1000, frame) for frame in FRAMES
        ]
    with PcapReader(str(path)) as theirs:
        assert [bytes(packet) for packet in theirs] == FRAMES


def test_of_scapy(tmp_path: Path) -> None:
    """What another program writes."""
    path = tmp_path / "in.pcap"
    packet = Ether() / IP(dst="10.0.0.1")
    wrpcap(str(path), [packet])
    with Reader(path) as reader:
        assert [each.data for each in reader] == [bytes(packet)]


def test_cut_frames(tmp_path: Path) -> None:
    """A record that kept less than the wire had is recognised; the writer makes such too."""
    path = tmp_path / "in.pcap"
    path.write_bytes(header() + record(bytes(60), length=1514) + record(bytes(60)))
    with Reader(path) as reader:
        assert [(each.cut, each.length) for each in reader] == [(True, 1514), (False, 60)]
    with Writer(path, snaplen=20) as writer:
        writer.write(TIME, bytes(60))
    with Reader(path) as reader:
        assert [(len(each.data), each.length) for each in reader] == [(20, 60)]


@pytest.mark.parametrize(
    "content, says",
    [
        (b"", "empty"),
        (b"\x0a\x0d\x0d\x0a" + bytes(40), "pcapng file; convert it by `editcap"),
        (b"\x1f\x8b" + bytes(40), "compressed; decompress"),
        (b"-A -t 10.0.0.100:80 -s rr\n", "no pcap file"),
        (b"\xd4\xc3\xb2\xa1" + bytes(6), "ends after 10 bytes"),
        (header(link=113), "link type 113 .*tcpdump -i any.*only Ethernet"),
        (header(link=147), "link type 147, but only Ethernet"),
        (header(version=(1, 0)), "version 1.0"),
        (header() + record(bytes(60))[:10], "ends within record 1"),
        (header() + record(bytes(60)) + record(bytes(60))[:-1], "ends within record 2.*keep the 1 whole"),
        (header() + struct.pack("<IIII", 0, 0, 1 << 30, 1 << 30), "record 1 claims"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, says: str) -> None:
    """Each is refused with the file's name, what is wrong and what to do."""
    path = tmp_path / "bad.pcap"
    path.write_bytes(content)
    with pytest.raises(CaptureError, match=f"bad.pcap: .*{says}") as caught, Reader(path) as reader:
        list(reader)
    assert "\n" not in str(caught.value)


def test_streams(tmp_path: Path) -> None:
    """A reader takes a record at a time: the first comes although the file is damaged behind it."""
    path = tmp_path / "in.pcap"
    path.write_bytes(header() + record(FRAMES[0]) + b"rubbish")
    with Reader(path) as reader:
        records = iter(reader)
        assert next(records).data == FRAMES[0]
        with pytest.raises(CaptureError):
            next(records)
