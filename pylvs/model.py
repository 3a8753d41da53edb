"""The contract: what a virtual service, a real server and the host are, and what is told of their state.

Every front end (the ipvsadm grammar, the control API, configuration files) only translates to these types, and the
data plane is compiled from them. They are immutable, comparable and serialisable to JSON; a wrong value is refused at
construction with a `ValueError` that names the field and the remedy.
"""

from __future__ import annotations

import errno
import ipaddress
import os
from typing import Literal

import msgspec

Protocol = Literal["tcp", "udp", "sctp", "fwm"]
Method = Literal["masq", "route", "tunnel"]
Family = Literal[4, 6]

#: (family, protocol, address, port); for a firewall-mark service (family, "fwm", "", mark)
ServiceKey = tuple[int, str, str, int]

MAX_TIMEOUT = 31 * 86400  # seconds; ipvsadm's limit
MAX_WEIGHT = 2**31 - 1  # the kernel's signed int; ipvsadm documents 65535 but passes more


class Refused(Exception):
    """A change that the director refuses, with the errno that the kernel's IPVS gives for it.

    ``EEXIST`` already there, ``ESRCH`` no such service, ``ENOENT`` no such real server, scheduler or persistence
    engine, ``ERANGE`` number out of range, ``EINVAL`` impossible combination, ``EADDRINUSE`` the VIP belongs to another host.
    """

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message or os.strerror(code))
        self.errno = code

    @property
    def name(self) -> str:
        """The symbolic name of the errno, such as ``EEXIST``."""
        return errno.errorcode.get(self.errno, str(self.errno))


def canonical(address: str) -> str:
    """Return `address` in its canonical text form (RFC 5952 for IPv6); raise `ValueError` with a remedy."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        raise ValueError(f"{address!r} is not an IPv4 or IPv6 address; write it as 10.0.0.100 or 2001:db8::1") from None


def family_of(address: str) -> Family:
    """4 or 6, from a canonical address."""
    return 6 if ":" in address else 4


class Base(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Common shape of the model's records."""


class Tunnel(Base, frozen=True):
    """Encapsulation of a ``tunnel`` real server: type, UDP port (GUE only) and checksum mode."""

    type: Literal["ipip", "gue", "gre"] = "ipip"
    port: int = 0
    checksum: Literal["", "csum", "remcsum"] = ""


class RealServer(Base, frozen=True):
    """A real server (*dest* in code) of one service.

    `port` 0 keeps the packet's own destination port (services of port zero and firewall marks). `weight` 0 quiesces.
    `upper`/`lower` are ipvsadm's ``-x``/``-y`` connection thresholds, 0 for none.
    """

    address: str
    port: int = 0
    method: Method = "route"
    weight: int = 1
    upper: int = 0
    lower: int = 0
    tunnel: Tunnel = Tunnel()

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "address", canonical(self.address))
        _bounded("port", self.port, 0, 65535)
        _bounded("weight", self.weight, 0, MAX_WEIGHT)
        _bounded("upper", self.upper, 0, 2**32 - 1)
        _bounded("lower", self.lower, 0, 2**32 - 1)

    @property
    def key(self) -> tuple[str, int]:
        """(address, port): unique inside a service."""
        return self.address, self.port

    @property
    def name(self) -> str:
        """``10.1.0.11:80`` or ``[fd00::11]:80``."""
        return endpoint(self.address, self.port)


class Service(Base, frozen=True):
    """A virtual service: protocol, VIP and port, or a firewall mark; and how it chooses.

    `flags` are the scheduler flags by name (``sh-fallback``, ``sh-port``, ``mh-fallback``, ``mh-port``, ``flag-1`` …).
    `persistent` is the template timeout in seconds, 0 for none; `netmask` its granularity as a prefix length (-1: the
    whole address), `mask` an IPv4 mask that is no prefix, in its place. `servers` is used where a whole configuration is given at once; order is the order of adding.
    """

    protocol: Protocol
    address: str = ""
    port: int = 0
    fwmark: int = 0
    family: Family = 4
    scheduler: str = "wlc"
    flags: tuple[str, ...] = ()
    persistent: int = 0
    netmask: int = -1
    mask: str = ""
    engine: str = ""
    one_packet: bool = False
    servers: tuple[RealServer, ...] = ()

    def __post_init__(self) -> None:
        if self.protocol == "fwm":
            _bounded("fwmark", self.fwmark, 1, 2**32 - 1)
            if self.address or self.port:
                raise ValueError("a firewall-mark service has neither address nor port; leave them out")
        else:
            address = canonical(self.address)
            msgspec.structs.force_setattr(self, "address", address)
            msgspec.structs.force_setattr(self, "family", family_of(address))
            if self.fwmark:
                raise ValueError("fwmark belongs to protocol 'fwm' only; leave it out")
        _bounded("port", self.port, 0, 65535)
        _bounded("persistent", self.persistent, 0, MAX_TIMEOUT)
        full = 32 if self.family == 4 else 128
        if self.netmask == -1:
            msgspec.structs.force_setattr(self, "netmask", full)
        _bounded("netmask", self.netmask, 0, full)

    @property
    def key(self) -> ServiceKey:
        """Identity of the service; see `ServiceKey`."""
        if self.protocol == "fwm":
            return self.family, "fwm", "", self.fwmark
        return self.family, self.protocol, self.address, self.port

    @property
    def name(self) -> str:
        """``TCP 10.0.0.100:80``, ``UDP [2001:db8::1]:53`` or ``FWM 7``."""
        return service_name(self.key)


def endpoint(address: str, port: int) -> str:
    """``address:port``, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def service_name(key: ServiceKey) -> str:
    """The name of a service as it is shown to people."""
    family, protocol, address, port = key
    if protocol == "fwm":
        return f"FWM {port}" + (" IPv6" if family == 6 else "")
    return f"{protocol.upper()} {endpoint(address, port)}"


def _bounded(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ValueError(f"{field} {value} is out of range; use {low} to {high}")


class Timeouts(Base, frozen=True):
    """Seconds for established TCP, TCP after a FIN, and UDP: what ``ipvsadm --set`` changes."""

    tcp: int = 900
    tcpfin: int = 120
    udp: int = 300

    def __post_init__(self) -> None:
        for field in ("tcp", "tcpfin", "udp"):
            _bounded(field, getattr(self, field), 0, MAX_TIMEOUT)


class Mark(Base, frozen=True):
    """A rule of our own that gives a firewall mark to packets (packet sockets see them before netfilter does)."""

    mark: int
    destination: str = ""  # prefix; "" is any
    source: str = ""
    protocol: Literal["", "tcp", "udp", "sctp"] = ""
    ports: tuple[tuple[int, int], ...] = ()  # destination port ranges, inclusive; () is any

    def __post_init__(self) -> None:
        _bounded("mark", self.mark, 1, 2**32 - 1)
        versions = set()
        for text in (self.destination, self.source):
            if text:
                try:
                    versions.add(ipaddress.ip_network(text, strict=False).version)
                except ValueError:
                    raise ValueError(f"{text!r} is no prefix; write it as 198.51.100.0/24 or 2001:db8::/32") from None
        if len(versions) > 1:
            raise ValueError("source and destination are of different address families; make two rules")


class Config(Base, frozen=True):
    """Everything an administrator sets: services with their servers, timeouts, marks and settings."""

    services: tuple[Service, ...] = ()
    timeouts: Timeouts = Timeouts()
    marks: tuple[Mark, ...] = ()


# ---------------------------------------------------------------------------------------------- what the host knows


class Link(Base, frozen=True):
    """A network interface. `addresses` carry their prefix length (``10.0.0.1/24``)."""

    name: str
    index: int
    mac: str = "00:00:00:00:00:00"
    mtu: int = 1500
    up: bool = True
    loopback: bool = False
    parent: int = 0  # index of the link that carries this VLAN, 0 if this is none
    vlan: int = 0
    addresses: tuple[str, ...] = ()


class Route(Base, frozen=True):
    """A route of the host: `gateway` empty if the prefix is on the link; `link` is an interface index (0: found
    through the gateway); `metric` decides between equal prefixes, smaller first; `mtu` 0 is the link's."""

    prefix: str
    gateway: str = ""
    link: int = 0
    source: str = ""
    mtu: int = 0
    metric: int = 0
    kind: Literal["unicast", "blackhole", "unreachable", "prohibit"] = "unicast"


class Neighbour(Base, frozen=True):
    """A resolved next hop. `link` 0 means whichever link its address is on."""

    address: str
    mac: str
    link: int = 0


class Host(Base, frozen=True):
    """What pylvs needs to know of the host: connected routes follow from the links' addresses if not listed."""

    links: tuple[Link, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    forwarding4: bool = False  # net.ipv4.ip_forward
    forwarding6: bool = False


# ------------------------------------------------------------------------------------------------- what is reported


class Stats(Base, frozen=True):
    """Counters of the kernel's meaning (connections, packets and bytes of the IP layer in each direction) and the
    estimator's smoothed rates per second."""

    conns: int = 0
    inpkts: int = 0
    outpkts: int = 0
    inbytes: int = 0
    outbytes: int = 0
    cps: int = 0
    inpps: int = 0
    outpps: int = 0
    inbps: int = 0
    outbps: int = 0


class ServerStatus(Base, frozen=True):
    """A real server with its live connection counts."""

    server: RealServer
    active: int = 0
    inactive: int = 0
    persistent: int = 0
    overloaded: bool = False
    stats: Stats = Stats()


class ServiceStatus(Base, frozen=True):
    """A service (its `servers` field empty) with its servers in the kernel's list order: newest first."""

    service: Service
    servers: tuple[ServerStatus, ...] = ()
    stats: Stats = Stats()


class Connection(Base, frozen=True):
    """One entry of the connection table. `expires` is seconds from now; `packets` counts client to server."""

    protocol: str  # "TCP", "UDP", "SCTP", "IP"
    state: str
    expires: float
    client: str
    client_port: int
    virtual: str
    virtual_port: int
    dest: str
    dest_port: int
    method: Method | Literal["local", "bypass"] = "masq"
    flags: int = 0
    packets: int = 0
    template: bool = False
    origin: Literal["local", "sync"] = "local"
    engine: str = ""
    engine_data: str = ""
