"""A director without packets: the tables that ipvsadm changes, with the kernel's rules for refusing a change."""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import replace

import msgspec

from pylvs.ipvsadm import Daemon
from pylvs.model import (
    Connection,
    RealServer,
    Refused,
    ServerStatus,
    Service,
    ServiceKey,
    ServiceStatus,
    Timeouts,
)

SCHEDULERS = {"rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh"}
#: as in Debian's netbase, those that the recordings show
SERVICES = {
    "tcp": {"http": 80, "https": 443, "http-alt": 8080, "domain": 53, "sip": 5060},
    "udp": {"domain": 53, "mdns": 5353, "sip": 5060},
    "sctp": {},
}
MTU = 1500


class PortNames:
    """Names of ports from a dictionary, protocol by protocol."""

    def __init__(self, known: Mapping[str, Mapping[str, int]] = SERVICES) -> None:
        self._known = known

    def port(self, name: str, protocol: str) -> int | None:
        return self._known.get(protocol, {}).get(name)

    def name(self, port: int, protocol: str) -> str | None:
        return next((name for name, other in self._known.get(protocol, {}).items() if other == port), None)


class TablesDirector:
    """Holds services, servers and daemons; answers as the kernel's IPVS does, but forwards nothing."""

    table_size = 4096

    def __init__(self, hosts: Mapping[str, str] | None = None, interfaces: Iterable[str] = ("lo", "cl", "sv")) -> None:
        self.hosts = {"localhost": "127.0.0.1", **(hosts or {})}
        self.service_names = PortNames()
        self.timeouts = Timeouts()
        self.entries: list[Connection] = []
        self._interfaces = set(interfaces)
        self._services: dict[ServiceKey, ServiceStatus] = {}
        self._daemons: dict[str, Daemon] = {}

    def status(self) -> list[ServiceStatus]:
        return list(self._services.values())

    def connections(self) -> list[Connection]:
        return self.entries

    def set_timeouts(self, timeouts: Timeouts) -> None:
        old = self.timeouts
        self.timeouts = Timeouts(
            tcp=timeouts.tcp or old.tcp, tcpfin=timeouts.tcpfin or old.tcpfin, udp=timeouts.udp or old.udp
        )

    # ------------------------------------------------------------------------------------------------ services

    def add_service(self, service: Service) -> None:
        if service.key in self._services:
            raise Refused(errno.EEXIST)
        self._check(service)
        self._services[service.key] = ServiceStatus(service=service)

    def edit_service(self, service: Service) -> None:
        old = self._find(service.key)
        self._check(service)
        self._services[service.key] = msgspec.structs.replace(old, service=service)

    def delete_service(self, key: ServiceKey) -> None:
        self._find(key)
        del self._services[key]

    def flush(self) -> None:
        self._services.clear()

    def zero(self, key: ServiceKey | None) -> None:
        if key is not None:
            self._find(key)

    def _find(self, key: ServiceKey) -> ServiceStatus:
        if key not in self._services:
            raise Refused(errno.ESRCH)
        return self._services[key]

    def _check(self, service: Service) -> None:
        if service.scheduler not in SCHEDULERS or service.engine not in {"", "sip"}:
            raise Refused(errno.ENOENT)

    # ------------------------------------------------------------------------------------------------- servers

    def add_server(self, key: ServiceKey, server: RealServer) -> None:
        status = self._find(key)
        if _mixed(key, server) and self._daemons:
            raise Refused(errno.EINVAL)
        self._check_numbers(server)
        if any(entry.server.key == server.key for entry in status.servers):
            raise Refused(errno.EEXIST)
        if not _usable(server.address):
            raise Refused(errno.EINVAL)
        servers = (ServerStatus(server=server), *status.servers)
        self._services[key] = msgspec.structs.replace(status, servers=servers)

    def edit_server(self, key: ServiceKey, server: RealServer) -> None:
        status = self._find(key)
        self._check_numbers(server)
        if all(entry.server.key != server.key for entry in status.servers):
            raise Refused(errno.ENOENT)
        servers = tuple(
            ServerStatus(server=server) if entry.server.key == server.key else entry for entry in status.servers
        )
        self._services[key] = msgspec.structs.replace(status, servers=servers)

    def delete_server(self, key: ServiceKey, address: str, port: int) -> None:
        status = self._find(key)
        servers = tuple(entry for entry in status.servers if entry.server.key != (address, port))
        if len(servers) == len(status.servers):
            raise Refused(errno.ENOENT)
        self._services[key] = msgspec.structs.replace(status, servers=servers)

    def _check_numbers(self, server: RealServer) -> None:
        if server.lower > server.upper:
            raise Refused(errno.ERANGE)

    # ------------------------------------------------------------------------------------------------- daemons

    def daemons(self) -> list[Daemon]:
        return [self._daemons[state] for state in ("master", "backup") if state in self._daemons]

    def start_daemon(self, daemon: Daemon) -> None:
        if any(_mixed(key, entry.server) for key, status in self._services.items() for entry in status.servers):
            raise Refused(errno.EINVAL)
        if daemon.interface not in self._interfaces:
            raise Refused(errno.ENODEV)
        if daemon.state in self._daemons:
            raise Refused(errno.EEXIST)
        group = daemon.group or "224.0.0.81"
        maxlen = daemon.maxlen or MTU - (48 if ":" in group else 28)
        self._daemons[daemon.state] = replace(
            daemon,
            maxlen=maxlen if daemon.state == "master" else max(maxlen, 1024),
            group=group,
            port=daemon.port or 8848,
            ttl=daemon.ttl or 1,
        )

    def stop_daemon(self, state: str) -> None:
        if self._daemons.pop(state, None) is None:
            raise Refused(errno.ESRCH)


def _mixed(key: ServiceKey, server: RealServer) -> bool:
    """Whether the real server is of another address family than its service; synchronisation cannot express that."""
    return (key[0] == 6) != (":" in server.address)


def _usable(address: str) -> bool:
    """Whether the kernel takes it for a real server's address: unicast, no IPv6 link-local or IPv4-mapped address."""
    parsed = ipaddress.ip_address(address)
    bad = parsed.is_multicast or parsed.is_unspecified or address == "255.255.255.255"
    return not bad and not (parsed.version == 6 and (parsed.is_link_local or parsed.ipv4_mapped is not None))
