"""Maglev hashing: each client address has its server, and few clients move when a server comes or goes.

After Eisenbud et al., *Maglev: A Fast and Reliable Software Network Load Balancer* (2016), with the kernel's table size,
hashes and weights.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from math import gcd
from typing import ClassVar

from pylvs.sched.base import Pick, Server, Table, weights
from pylvs.sched.siphash import KEYS, siphash

SLOTS = 4093
TURN_BITS = 6  # a server's turns are at most so many bits long


def fold(address: str) -> int:
    """An address as one number: IPv4 itself, the exclusive or of an IPv6 address's four words."""
    number = int(ipaddress.ip_address(address))
    folded = 0
    while number:
        folded ^= number & 0xFFFFFFFF
        number >>= 32
    return folded


class MaglevHashing:
    """Flags: ``mh-fallback`` (flag-1) looks on if the server cannot be used, ``mh-port`` (flag-2) hashes the port too."""

    name: ClassVar[str] = "mh"
    about: ClassVar[str] = "by a consistent hash of the client's address"

    def compile(self, servers: Sequence[Server], flags: frozenset[str]) -> Pick:
        """The table is built by the last weights that were not 0, so that a resting server's clients alone move."""
        return Table(
            tuple(fill(servers)),
            weights(servers),
            hash="siphash",
            port=bool(flags & {"mh-port", "flag-2"}),
            fallback=bool(flags & {"mh-fallback", "flag-1"}),
        )


def permutation(server: Server) -> tuple[int, int]:
    """Where a server's way through the table starts, and by how many slots it goes on."""
    number = fold(server.address) + server.port
    return siphash(number, KEYS[0]) % SLOTS, siphash(number, KEYS[1]) % (SLOTS - 1) + 1


def turns(servers: Sequence[Server]) -> list[int]:
    """How many slots each server takes whenever it is its turn."""
    divisor = gcd(*(server.last_weight for server in servers))
    if divisor == 0:
        return [0] * len(servers)
    greatest = max(server.last_weight for server in servers) // divisor
    shift = max(0, greatest.bit_length() - TURN_BITS)
    return [(server.last_weight // divisor >> shift) or int(server.last_weight > 0) for server in servers]


def fill(servers: Sequence[Server]) -> list[int]:
    """The table: servers take turns in list order, each the next free slots on its own way."""
    table = [-1] * SLOTS
    takers = [
        (position, taken, *permutation(server))
        for position, (server, taken) in enumerate(zip(servers, turns(servers), strict=True))
        if taken
    ]
    at = [start for _, _, start, _ in takers]
    left = SLOTS if takers else 0
    while left:
        for number, (position, taken, _, skip) in enumerate(takers):
            slot = at[number]
            for _ in range(min(taken, left)):
                while table[slot] >= 0:
                    slot = (slot + skip) % SLOTS
                table[slot] = position
            at[number] = slot
            left -= min(taken, left)
    return table
