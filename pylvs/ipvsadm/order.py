"""In which order services and real servers are listed: as the kernel keeps them, or as ipvsadm sorts them."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from operator import xor
from typing import TypeVar

from pylvs.model import ServerStatus, Service, ServiceStatus

PROTOCOL_NUMBERS = {"fwm": 0, "tcp": 6, "udp": 17, "sctp": 132}
#: the kernel's slots depend on where in memory its namespace lies; this is one such order, always the same
SALT = 0xF0

T = TypeVar("T")


def in_order(entries: Sequence[T], compare: Callable[[T, T], int]) -> list[T]:
    """Sort as the C library's merge sort does. What ipvsadm compares by is no order (see `difference`), so the result
    depends on how it is sorted, and on the sequence before."""
    if len(entries) < 2:
        return list(entries)
    middle = len(entries) // 2
    left, right = in_order(entries[:middle], compare), in_order(entries[middle:], compare)
    merged: list[T] = []
    i = j = 0
    while i < len(left) and j < len(right):
        if compare(left[i], right[j]) <= 0:
            merged.append(left[i])
            i += 1
        else:
            merged.append(right[j])
            j += 1
    return merged + left[i:] + right[j:]


def as_found(services: Sequence[ServiceStatus]) -> list[ServiceStatus]:
    """The services in the order in which the kernel tells them: those by address, then those by mark; by slots of its hash
    tables, and in a slot the newest first. `services` come in the order of adding."""
    newest_first = services[::-1]
    return sorted(newest_first, key=lambda status: slot(status.service))


def slot(service: Service) -> tuple[bool, int]:
    """Where the kernel keeps a service: which table, and which of its 256 slots."""
    if service.protocol == "fwm":
        return True, (service.fwmark ^ SALT) & 0xFF
    folded = reduce(xor, _words(service.address))
    return False, (PROTOCOL_NUMBERS[service.protocol] ^ folded ^ service.port >> 8 ^ service.port ^ SALT) & 0xFF


def service_order(one: ServiceStatus, other: ServiceStatus) -> int:
    """By mark, family, protocol, address and port."""
    a, b = one.service, other.service
    return (
        difference(a.fwmark, b.fwmark)
        or a.family - b.family
        or PROTOCOL_NUMBERS[a.protocol] - PROTOCOL_NUMBERS[b.protocol]
        or address_order(a.address, b.address)
        or a.port - b.port
    )


def server_order(one: ServerStatus, other: ServerStatus) -> int:
    """By address and port; families are not told apart."""
    a, b = one.server, other.server
    return address_order(a.address, b.address) or a.port - b.port


def address_order(one: str, other: str) -> int:
    """Compare addresses in words of 32 bits."""
    for a, b in zip(_words(one), _words(other), strict=True):
        if a != b:
            return difference(a, b)
    return 0


def difference(a: int, b: int) -> int:
    """a - b in 32 bits, signed: ipvsadm takes the sign for which is greater, so it goes round in a circle."""
    value = (a - b) & 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value


@lru_cache(maxsize=65536)
def _words(address: str) -> tuple[int, ...]:
    if not address:
        return ()
    packed = ipaddress.ip_address(address).packed.ljust(16, b"\0")
    return tuple(int.from_bytes(packed[i : i + 4]) for i in (0, 4, 8, 12))
