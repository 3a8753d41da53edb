"""Addresses, ports and numbers as ipvsadm reads and prints them; names of hosts and ports."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from pylvs.model import canonical

NUMBER = re.compile(r"[ \t\n\v\f\r]*[+-]?[0-9]+")


class ServiceNames(Protocol):
    """Names of ports, as /etc/services has them. `protocol` is ``tcp``, ``udp`` or ``sctp``."""

    def port(self, name: str, protocol: str) -> int | None:
        """The port called `name`, or None."""

    def name(self, port: int, protocol: str) -> str | None:
        """The name of `port`, or None."""


class SystemServices:
    """What this machine's /etc/services says."""

    def port(self, name: str, protocol: str) -> int | None:
        try:
            return socket.getservbyname(name, protocol)
        except (OSError, ValueError):
            return None

    def name(self, port: int, protocol: str) -> str | None:
        try:
            return socket.getservbyport(port, protocol)
        except OSError:
            return None


@dataclass(frozen=True)
class Names:
    """How one command translates between names and numbers. `hosts` maps names to addresses; the first name of an
    address is the one that is shown."""

    hosts: Mapping[str, str] = field(default_factory=dict)
    services: ServiceNames = field(default_factory=SystemServices)

    def address(self, host: str) -> str | None:
        """The IPv4 address of `host` (ipvsadm never looks up IPv6 names), or None."""
        found = self.hosts.get(host)
        if found == "::1":  # the C library's reading of /etc/hosts for IPv4
            return "127.0.0.1"
        return found if found is not None and ":" not in found else None

    def host(self, address: str) -> str:
        """The name of `address`, or the address itself."""
        return self._names.get(address, address)

    @cached_property
    def _names(self) -> dict[str, str]:
        return {address: name for name, address in reversed(list(self.hosts.items()))}

    def port(self, port: int, protocol: str) -> str:
        """The name of `port`, or its number. Only TCP, UDP and SCTP have names."""
        name = self.services.name(port, protocol) if protocol in {"tcp", "udp", "sctp"} else None
        return name or str(port)

    def endpoint(self, address: str, port: int, protocol: str) -> str:
        """``host:port`` in names, the host of an IPv6 address in brackets."""
        host = self.host(address)
        return f"[{host}]:{self.port(port, protocol)}" if ":" in address else f"{host}:{self.port(port, protocol)}"


def number(text: str, low: int, high: int) -> int | None:
    """A decimal number as C's strtol reads it (leading blanks and a sign may be there), None if it is none or not in
    `low` to `high`."""
    if not NUMBER.fullmatch(text):
        return None
    try:
        value = int(text)
    except ValueError:  # thousands of digits
        return None
    return value if low <= value <= high else None


def leading_number(text: str) -> int:
    """The number that `text` begins with as C's atoi reads it into 32 bits, 0 if there is none."""
    match = NUMBER.match(text)
    value = int(match.group()[:30]) & 0xFFFFFFFF if match else 0
    return value - 2**32 if value >= 2**31 else value


def ipv4(text: str) -> str | None:
    """An IPv4 address in any of the forms of C's inet_aton (``10.1``, ``0x7f.1``, ``010.1.1.1``), None if it is none."""
    return _converted(text, socket.inet_aton, socket.AF_INET)


def ipv6(text: str) -> str | None:
    """An IPv6 address without zone, None if it is none."""
    return _converted(text, lambda text: socket.inet_pton(socket.AF_INET6, text), socket.AF_INET6)


def _converted(text: str, convert: Callable[[str], bytes], family: socket.AddressFamily) -> str | None:
    try:
        return canonical(socket.inet_ntop(family, convert(text)))
    except (OSError, ValueError):
        return None


def endpoint(text: str, protocol: str, names: Names) -> tuple[str, int | None] | None:
    """Read ``host``, ``host:port``, ``v6`` or ``[v6]:port``; the port may be a name of `protocol`.

    Return the address and the port (None if none is given), or None if it is nothing of these. As ipvsadm does,
    ``[v6]`` without a port is refused and the port behind a bracketed IPv4 address is overlooked.
    """
    bracketed = text.startswith("[")
    if bracketed:
        host, closing, rest = text[1:].partition("]")
        if not closing or not rest.startswith(":"):
            return None
        port: str | None = rest[1:]
    else:
        host, port = text, None
    address = ipv6(host)
    if address is None:
        host, colon, rest = host.rpartition(":")
        if not colon:
            host = rest
        port = rest if colon else None
        address = ipv4(host) or names.address(host)
        if address is None:
            return None
    if port is None:
        return address, None
    value = number(port, 0, 65535)
    if value is None:
        value = names.services.port(port, protocol)
    return None if value is None else (address, value)
