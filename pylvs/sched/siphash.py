"""SipHash-1-3 of a number (Aumasson and Bernstein, 2012), as the kernel's Maglev hashing uses it on 64-bit machines."""

from __future__ import annotations

from functools import lru_cache

MASK = 2**64 - 1
#: the keys of the kernel's two hashes; each serves as both halves
KEYS = (2654435761, 2654446892)


def _rotate(x: int, bits: int) -> int:
    return (x << bits | x >> (64 - bits)) & MASK


def _round(a: int, b: int, c: int, d: int) -> tuple[int, int, int, int]:
    a = (a + b) & MASK
    b = _rotate(b, 13) ^ a
    a = _rotate(a, 32)
    c = (c + d) & MASK
    d = _rotate(d, 16) ^ c
    a = (a + d) & MASK
    d = _rotate(d, 21) ^ a
    c = (c + b) & MASK
    b = _rotate(b, 17) ^ c
    return a, b, _rotate(c, 32), d


@lru_cache(maxsize=4096)
def siphash(number: int, key: int = KEYS[0]) -> int:
    """The low 32 bits of the hash of a number's four bytes (little endian), by the key (`key`, `key`)."""
    last = 4 << 56 | number & 0xFFFFFFFF
    v = (key ^ 0x736F6D6570736575, key ^ 0x646F72616E646F6D, key ^ 0x6C7967656E657261, key ^ 0x7465646279746573 ^ last)
    a, b, c, d = _round(*v)
    v = (a ^ last, b, c ^ 0xFF, d)
    for _ in range(3):
        v = _round(*v)
    return (v[0] ^ v[1] ^ v[2] ^ v[3]) & 0xFFFFFFFF
