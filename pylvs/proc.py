"""The texts of /proc/net/ip_vs, ip_vs_app, ip_vs_conn, ip_vs_conn_sync, ip_vs_stats and ip_vs_stats_percpu, as the
kernel prints them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

from pylvs.ipvsadm.order import as_found
from pylvs.model import Connection, ServiceStatus, Stats

NAMES = ("ip_vs", "ip_vs_app", "ip_vs_conn", "ip_vs_conn_sync", "ip_vs_stats", "ip_vs_stats_percpu")
FORWARD = {"masq": "Masq", "route": "Route", "tunnel": "Tunnel", "local": "Local"}
HERTZ = 250  # persistence is shown in the kernel's ticks

Counts = tuple[int, int, int, int, int]


def _hex(address: str) -> str:
    ip = ipaddress.ip_address(address)
    if ip.version == 4:
        return f"{int(ip):08X}"
    return ip.exploded


def _endpoint(address: str, port: int) -> str:
    return f"[{_hex(address)}]:{port:04X}" if ":" in address else f"{_hex(address)}:{port:04X}"


def ip_vs(services: Sequence[ServiceStatus], size: int) -> str:
    """Services in the order of the kernel's tables, servers in list order, addresses in hex; blanks at the ends of lines
    are the kernel's (IPv6 services do not show ``ops``). `services` come in the order of adding."""
    lines = [
        f"IP Virtual Server version 1.2.1 (size={size})",
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn",
    ]
    for status in as_found(services):
        service = status.service
        once = "ops " if service.one_packet else ""
        if service.protocol == "fwm":
            head = f"FWM  {service.fwmark:08X} {service.scheduler} {once}"
        elif service.family == 4:
            head = f"{service.protocol.upper()}  {_endpoint(service.address, service.port)} {service.scheduler} {once} "
        else:
            head = f"{service.protocol.upper()}  {_endpoint(service.address, service.port)} {service.scheduler} "
        if service.persistent:
            head += f"persistent {service.persistent * HERTZ} {_mask(service.family, service.netmask)}"
        lines.append(head)
        for each in status.servers:
            name = _endpoint(each.server.address, each.server.port)
            lines.append(
                f"  -> {name}      {FORWARD[each.server.method]:<7} {each.server.weight:<6} "
                f"{each.active:<10} {each.inactive:<10}"
            )
    return "\n".join(lines) + "\n"


def _mask(family: int, length: int) -> str:
    if family == 4:
        return f"{(0xFFFFFFFF << (32 - length)) & 0xFFFFFFFF:08X}"
    return length.to_bytes(4, "little").hex().upper()


def ip_vs_app(ftp: bool) -> str:
    """The application helpers."""
    lines = ["prot port    usecnt name"]
    if ftp:
        lines.append(f"TCP  {21:<7} {0:<6} {'ftp':<17}")
    return "\n".join(lines) + "\n"


def ip_vs_conn(connections: Iterable[Connection]) -> str:
    """The connection table, addresses in hex, times in whole seconds."""
    lines = ["Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData"]
    for c in connections:
        engine = f" {c.engine} {c.engine_data}" if c.engine else ""
        lines.append(f"{_flow(c)} {c.state:<11} {int(c.expires):7}{engine}")
    return "\n".join(lines) + "\n"


def ip_vs_conn_sync(connections: Iterable[Connection]) -> str:
    """The connection table, and whether an entry came from another director."""
    lines = ["Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Origin Expires"]
    for c in connections:
        lines.append(f"{_flow(c)} {c.state:<11} {c.origin.upper():<6} {int(c.expires):7}")
    return "\n".join(lines) + "\n"


def _flow(c: Connection) -> str:
    return (
        f"{c.protocol:<3} {_hex(c.client)} {c.client_port:04X} {_hex(c.virtual)} {c.virtual_port:04X} "
        f"{_hex(c.dest)} {c.dest_port:04X}"
    )


def ip_vs_stats(stats: Stats) -> str:
    """The totals of all services, in hex."""
    return (
        "   Total Incoming Outgoing         Incoming         Outgoing\n"
        "   Conns  Packets  Packets            Bytes            Bytes\n"
        f"{_counts(stats)}\n\n"
        " Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n"
        f"{_rates(stats)}\n"
    )


def ip_vs_stats_percpu(stats: Stats, workers: Iterable[Counts]) -> str:
    """The same, with a row for each worker in the place of the kernel's CPUs: all that it has counted, never zeroed."""
    rows = "".join(f"{n:3X} {_row(counts)}\n" for n, counts in enumerate(workers))
    return (
        "       Total Incoming Outgoing         Incoming         Outgoing\n"
        "CPU    Conns  Packets  Packets            Bytes            Bytes\n"
        f"{rows}  ~ {_counts(stats)}\n\n"
        "     Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n"
        f"    {_rates(stats)}\n"
    )


def _counts(stats: Stats) -> str:
    return _row((stats.conns, stats.inpkts, stats.outpkts, stats.inbytes, stats.outbytes))


def _rates(stats: Stats) -> str:
    return _row((stats.cps, stats.inpps, stats.outpps, stats.inbps, stats.outbps))


def _row(counts: Counts) -> str:
    return f"{counts[0]:8X} {counts[1]:8X} {counts[2]:8X} {counts[3]:16X} {counts[4]:16X}"
