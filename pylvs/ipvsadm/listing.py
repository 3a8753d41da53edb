"""The tables that ipvsadm prints, column by column. One function per listing; all return lines.

Names and orders are the real tool's, its limits included: names are cut where its buffers end.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pylvs.ipvsadm.grammar import Daemon
from pylvs.ipvsadm.names import Names
from pylvs.ipvsadm.options import PLAIN_FLAGS, SCHEDULER_FLAGS
from pylvs.ipvsadm.order import as_found, in_order, server_order, service_order
from pylvs.model import (
    Connection,
    RealServer,
    ServerStatus,
    Service,
    ServiceStatus,
    Stats,
    Timeouts,
    endpoint,
    family_of,
)

VERSION = "IP Virtual Server version 1.2.1 (size={size})"
LONGEST_NAME = 59  # characters of host:port that the tool has room for
LONGEST_SHOWN = 28  # of an IPv4 host:port in a table

PROC_LINE = {4: 65, 6: 158}  # characters of a line in /proc/net/ip_vs_conn before the engine's name

METHOD_NAMES = {"masq": "Masq", "route": "Route", "tunnel": "Tunnel", "local": "Local", "bypass": "Bypass"}
METHOD_OPTIONS = {"masq": "-m", "route": "-g", "tunnel": "-i"}
SERVICE_OPTIONS = {"tcp": "-t", "udp": "-u", "sctp": "--sctp-service"}
CHECKSUM_MARKS = {"": "-c", "csum": "+c", "remcsum": "r+c"}
CHECKSUM_OPTIONS = {"": "--tun-nocsum", "csum": "--tun-csum", "remcsum": "--tun-remcsum"}


@dataclass(frozen=True, slots=True)
class Style:
    """How a listing was asked for."""

    names: Names | None = None  # None prints numbers
    exact: bool = False  # all digits of the counters
    sort: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """A table of services and servers: its head, and how a service and a server are printed."""

    head: tuple[str, str]
    service: Callable[[ServiceStatus, Style], str]
    server: Callable[[ServerStatus, str, Style], str]


# ------------------------------------------------------------------------------------------------ the layouts


def table(services: Sequence[ServiceStatus], layout: Layout, style: Style) -> list[str]:
    """The head and one block per service."""
    lines = list(layout.head)
    found = as_found(services)
    for status in in_order(found, service_order) if style.sort else found:
        lines.append(layout.service(status, style))
        lines += server_lines(status, layout, style)
    return lines


def server_lines(status: ServiceStatus, layout: Layout, style: Style) -> list[str]:
    """The lines of the real servers of one service."""
    servers = in_order(status.servers, server_order) if style.sort else status.servers
    protocol = status.service.protocol
    return [layout.server(server, shown_name(server.server, protocol, style), style) for server in servers]


def _service_with_settings(status: ServiceStatus, style: Style) -> str:
    return f"{service_title(status.service, style)} {status.service.scheduler}{settings(status.service)}"


def _service_with_counts(values: Callable[[Stats], Iterable[int]]) -> Callable[[ServiceStatus, Style], str]:
    def line(status: ServiceStatus, style: Style) -> str:
        return f"{service_title(status.service, style):<33}" + counts(values(status.stats), style)

    return line


def _server_with_counts(values: Callable[[Stats], Iterable[int]]) -> Callable[[ServerStatus, str, Style], str]:
    def line(status: ServerStatus, name: str, style: Style) -> str:
        return f"  -> {name:<28}" + counts(values(status.stats), style)

    return line


def _server(status: ServerStatus, name: str, style: Style) -> str:
    server = status.server
    return f"  -> {name:<28} {METHOD_NAMES[server.method]:<7} {server.weight:<6} {_connections(status)}"


def _server_with_tunnel(status: ServerStatus, name: str, style: Style) -> str:
    server = status.server
    method = METHOD_NAMES[server.method]
    return f"  -> {name:<28} {method:<7} {tunnel_text(server):<13} {server.weight:<6} {_connections(status)}"


def _server_with_thresholds(status: ServerStatus, name: str, style: Style) -> str:
    server = status.server
    return f"  -> {name:<28} {server.upper:<10} {server.lower:<10} {_connections(status)}"


def _server_with_persistence(status: ServerStatus, name: str, style: Style) -> str:
    return f"  -> {name:<28} {status.server.weight:<9} {status.persistent:<11} {_connections(status)}"


def _connections(status: ServerStatus) -> str:
    return f"{status.active:<10} {status.inactive:<10}"


def _totals(stats: Stats) -> tuple[int, ...]:
    return stats.conns, stats.inpkts, stats.outpkts, stats.inbytes, stats.outbytes


def _rates(stats: Stats) -> tuple[int, ...]:
    return stats.cps, stats.inpps, stats.outpps, stats.inbps, stats.outbps


PLAIN = Layout(
    (
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
    ),
    _service_with_settings,
    _server,
)
TUNNELS = Layout(
    (
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn",
    ),
    _service_with_settings,
    _server_with_tunnel,
)
THRESHOLDS = Layout(
    (
        "Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn ",
        "  -> RemoteAddress:Port",
    ),
    _service_with_settings,
    _server_with_thresholds,
)
PERSISTENCE = Layout(
    (
        "Prot LocalAddress:Port            Weight    PersistConn ActiveConn InActConn ",
        "  -> RemoteAddress:Port",
    ),
    _service_with_settings,
    _server_with_persistence,
)
STATS = Layout(
    (
        "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes",
        "  -> RemoteAddress:Port",
    ),
    _service_with_counts(_totals),
    _server_with_counts(_totals),
)
RATES = Layout(
    (
        "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS",
        "  -> RemoteAddress:Port",
    ),
    _service_with_counts(_rates),
    _server_with_counts(_rates),
)
#: by the option that asks for it; of several the first here wins
LAYOUTS = {
    "stats": STATS,
    "rate": RATES,
    "thresholds": THRESHOLDS,
    "persistent-conn": PERSISTENCE,
    "tun-info": TUNNELS,
    "": PLAIN,
}


# ---------------------------------------------------------------------------------------------- other listings


def connections(entries: Iterable[Connection], style: Style, engines: bool) -> list[str]:
    """``-L -c``; with `engines` the persistence engine and its data, where an entry has them."""
    lines = ["IPVS connection entries", "pro expire state       source             virtual            destination"]
    if engines:
        lines[1] += "        pe name          pe_data"
    for entry in entries:
        data, rest = _as_read(entry)
        line = _connection(entry, entry.protocol, entry.virtual_port, style)
        lines.append(
            f"{line[0]} {line[1]:<16} {entry.engine:<18} {data}" if engines and entry.engine else " ".join(line)
        )
        lines += [" ".join(_connection(entry, piece[:8], 0, style)) for piece in rest]
    return lines


def _connection(entry: Connection, protocol: str, virtual_port: int, style: Style) -> tuple[str, str]:
    """A line of ``-L -c`` up to the virtual address, and the destination."""
    names = entry.protocol.lower()
    seconds = max(0, int(entry.expires))
    expires = f"{seconds // 60:02}:{seconds % 60:02}"
    client = full_name(entry.client, entry.client_port, names, style)
    virtual = full_name(entry.virtual, virtual_port, names, style)
    dest = full_name(entry.dest, entry.dest_port, names, style)
    return f"{protocol:<3} {expires:<6} {entry.state:<11} {client:<18} {virtual:<18}", dest


def _as_read(entry: Connection) -> tuple[str, list[str]]:
    """The engine's data as the tool reads it from a file of the kernel's, in pieces of 255 characters: what does not fit
    in the first begins lines of their own, which are printed with the address of the entry and no virtual port, cut
    to the 8 characters of the tool's place for a protocol."""
    room = 255 - PROC_LINE[family_of(entry.client)] - len(f" {entry.engine} ")
    data, rest = entry.engine_data[:room], entry.engine_data[room:]
    return data, [rest[i : i + 255] for i in range(0, len(rest), 255)]


def timeouts(values: Timeouts) -> list[str]:
    """``-L --timeout``."""
    return [f"Timeout (tcp tcpfin udp): {values.tcp} {values.tcpfin} {values.udp}"]


def daemons(running: Iterable[Daemon]) -> list[str]:
    """``-L --daemon``."""
    return [
        f"{daemon.state} sync daemon (mcast={daemon.interface}, syncid={daemon.syncid}, maxlen={daemon.maxlen}, "
        f"group={daemon.group}, port={daemon.port}, ttl={daemon.ttl})"
        for daemon in running
    ]


def rules(services: Sequence[ServiceStatus], style: Style) -> list[str]:
    """``-S``: command lines that ``-R`` reads. Thresholds are lost, as the real tool loses them."""
    lines = []
    for status in in_order(as_found(services), service_order):
        service = status.service
        name = service_option(service, style)
        lines.append(f"-A {name} -s {service.scheduler}{settings_options(service)}")
        for entry in in_order(status.servers, server_order):
            server = entry.server
            address = full_name(server.address, server.port, service.protocol, style)
            method = METHOD_OPTIONS[server.method]
            lines.append(f"-a {name} -r {address} {method} -w {server.weight}{tunnel_options(server)}")
    return lines


# ------------------------------------------------------------------------------------------------------- parts


def service_title(service: Service, style: Style) -> str:
    """``TCP  10.0.0.100:80`` or ``FWM  7 IPv6``."""
    if service.protocol == "fwm":
        return f"FWM  {signed(service.fwmark)}" + (" IPv6" if service.family == 6 else "")
    name = full_name(service.address, service.port, service.protocol, style)
    return f"{service.protocol.upper():<4} {name[:LONGEST_SHOWN] if service.family == 4 else name}"


def service_option(service: Service, style: Style) -> str:
    """``-t 10.0.0.100:80`` or ``-f 7 -6``."""
    if service.protocol == "fwm":
        return f"-f {signed(service.fwmark)}" + (" -6" if service.family == 6 else "")
    name = full_name(service.address, service.port, service.protocol, style)
    return f"{SERVICE_OPTIONS[service.protocol]} {name}"


def settings(service: Service) -> str:
    """What follows the scheduler in a table."""
    text = f" ({','.join(shown_flags(service))})" if service.flags else ""
    if service.persistent:
        text += f" persistent {service.persistent}"
        mask = mask_text(service)
        text += f" mask {mask}" if mask else ""
        text += f" pe {service.engine}" if service.engine else ""
    return text + (" ops" if service.one_packet else "")


def settings_options(service: Service) -> str:
    """What follows the scheduler in a rule."""
    text = ""
    if service.persistent:
        text += f" -p {service.persistent}"
        mask = mask_text(service)
        text += f" -M {mask}" if mask else ""
    text += f" --pe {service.engine}" if service.engine else ""
    text += " -o" if service.one_packet else ""
    return text + (f" -b {','.join(shown_flags(service))}" if service.flags else "")


def shown_flags(service: Service) -> tuple[str, ...]:
    """The names of the scheduler's flags; those that sh and mh have no name for are not shown."""
    own = SCHEDULER_FLAGS.get(service.scheduler)
    return service.flags if own is None else tuple(flag for flag in service.flags if flag not in PLAIN_FLAGS)


def mask_text(service: Service) -> str:
    """The netmask as it is printed, "" for the whole address."""
    if service.family == 6:
        return str(service.netmask) if service.netmask != 128 else ""
    if irregular := getattr(service, "mask", ""):
        return str(irregular)
    if service.netmask == 32:
        return ""
    return str(ipaddress.ip_network(f"0.0.0.0/{service.netmask}").netmask)


def tunnel_text(server: RealServer) -> str:
    """The tunnel of a real server in a table: ``gue:6080:+c``."""
    if server.method != "tunnel":
        return "n/a"
    tunnel = server.tunnel
    if tunnel.type == "ipip":
        return "ipip"
    port = f":{tunnel.port}" if tunnel.type == "gue" else ""
    return f"{tunnel.type}{port}:{CHECKSUM_MARKS[tunnel.checksum]}"


def tunnel_options(server: RealServer) -> str:
    """The tunnel of a real server in a rule."""
    if server.method != "tunnel":
        return ""
    tunnel = server.tunnel
    text = f" --tun-type {tunnel.type}"
    if tunnel.type == "gue":
        text += f" --tun-port {tunnel.port}"
    return text if tunnel.type == "ipip" else f"{text} {CHECKSUM_OPTIONS[tunnel.checksum]}"


def full_name(address: str, port: int, protocol: str, style: Style) -> str:
    """``address:port`` in numbers or names, as far as the tool has room."""
    shown = socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, address)) if ":" in address else address
    name = style.names.endpoint(shown, port, protocol) if style.names else endpoint(shown, port)
    return name[:LONGEST_NAME]


def shown_name(server: RealServer, protocol: str, style: Style) -> str:
    """The name of a real server in a table."""
    name = full_name(server.address, server.port, protocol, style)
    return name if ":" in server.address else name[:LONGEST_SHOWN]


def counts(values: Iterable[int], style: Style) -> str:
    """Counters, right-aligned: exact below 100 million (or if asked for), then in thousands, millions …"""
    return "".join(f" {value if style.exact else short(value):>8}" for value in values)


def short(value: int) -> str:
    """A counter in at most eight characters, cut and not rounded."""
    for power, unit in enumerate(("", "K", "M", "G")):
        limit = 100_000_000 * 1000**power
        if value < limit:
            return f"{value // 1000**power}{unit}"
    return f"{value // 1000**4}T"


def signed(mark: int) -> int:
    """A firewall mark as the tool prints it: in 32 bits, signed."""
    return mark - 2**32 if mark >= 2**31 else mark
