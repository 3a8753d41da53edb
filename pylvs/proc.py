"""The texts of /proc/net/ip_vs, ip_vs_conn and ip_vs_stats, as the kernel prints them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from pylvs.model import Connection, ServiceStatus, Stats

FORWARD = {"masq": "Masq", "route": "Route", "tunnel": "Tunnel", "local": "Local"}


def _hex(address: str) -> str:
    ip = ipaddress.ip_address(address)
    if ip.version == 4:
        return f"{int(ip):08X}"
    return ip.exploded


def _endpoint(address: str, port: int) -> str:
    return f"[{_hex(address)}]:{port:04X}" if ":" in address else f"{_hex(address)}:{port:04X}"


def ip_vs(services: Iterable[ServiceStatus], size: int) -> str:
    """Services and servers, addresses in hex, servers in list order."""
    lines = [
        f"IP Virtual Server version 1.2.1 (size={size})",
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port Forward Weight ActiveConn InActConn",
    ]
    for status in services:
        service = status.service
        if service.protocol == "fwm":
            head = f"FWM  {service.fwmark:08X} {service.scheduler} "
        else:
            where = _endpoint(service.address, service.port)
            head = f"{service.protocol.upper():<4} {where} {service.scheduler} "
        if service.one_packet:
            head += "ops "
        if service.persistent:
            head += f"persistent {service.persistent * 250} {_mask(service.family, service.netmask)}"
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
    return int.from_bytes(length.to_bytes(4, "little"), "big").to_bytes(4, "big").hex().upper()


def ip_vs_conn(connections: Iterable[Connection]) -> str:
    """The connection table, addresses in hex, times in whole seconds."""
    lines = ["Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData"]
    for c in connections:
        engine = f" {c.engine} {c.engine_data}" if c.engine else ""
        lines.append(
            f"{c.protocol:<3} {_hex(c.client)} {c.client_port:04X} {_hex(c.virtual)} {c.virtual_port:04X} "
            f"{_hex(c.dest)} {c.dest_port:04X} {c.state:<11} {int(c.expires):7}{engine}"
        )
    return "\n".join(lines) + "\n"


def ip_vs_stats(stats: Stats) -> str:
    """The totals of all services, in hex."""
    return (
        "   Total Incoming Outgoing         Incoming         Outgoing\n"
        "   Conns  Packets  Packets            Bytes            Bytes\n"
        f"{stats.conns:8X} {stats.inpkts:8X} {stats.outpkts:8X} {stats.inbytes:16X} {stats.outbytes:16X}\n\n"
        " Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n"
        f"{stats.cps:8X} {stats.inpps:8X} {stats.outpps:8X} {stats.inbps:16X} {stats.outbps:16X}\n"
    )
