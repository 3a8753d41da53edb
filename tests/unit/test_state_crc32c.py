"""CRC32c against published values and against bit-by-bit arithmetic."""

from __future__ import annotations

import random

import pytest

from pylvs.forward._fastpath import crc32c


def plain(data: bytes) -> int:
    """The definition: a bit at a time."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "value"),
    [  # RFC 3720 B.4, and the usual check value
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_published_values(data: bytes, value: int) -> None:
    """Known answers."""
    assert crc32c(data) == value


def test_any_length() -> None:
    """Whole steps of eight bytes and what is left over."""
    source = random.Random(1)
    for size in (*range(64), 1460, 9000):
        data = source.randbytes(size)
        assert crc32c(data) == plain(data)
