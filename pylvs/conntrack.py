"""The connection table seen from Python: records for people and programs.

The table itself is the data plane's (`forward/conn.pxd`); here its entries become `model.Connection`, with the
kernel's names of states.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pylvs.fib import unpacked
from pylvs.forward._fastpath import SCTP_STATES, TCP_STATES
from pylvs.model import Connection

PROTOCOL_NAMES = {0: "IP", 6: "TCP", 17: "UDP", 132: "SCTP"}
Method = Literal["masq", "route", "tunnel", "local", "bypass"]
METHOD_NAMES: dict[int, Method] = {0: "masq", 1: "local", 2: "tunnel", 3: "route", 4: "bypass"}
TEMPLATE = 0x1000
SYNC = 0x20

#: protocol, family, state, method, flags, client, port, virtual, port, dest, port, slot, expires ns, timeout ms, packets,
#: engine data
Raw = tuple[int, int, int, int, int, bytes, int, bytes, int, bytes, int, int, int, int, int, bytes]


def connection(raw: Raw, now: int) -> Connection:
    """One entry, `now` in nanoseconds of the data plane's clock."""
    proto, _, state, method, flags, client, cport, virtual, vport, dest, dport, _, expires, _, packets, data = raw
    return Connection(
        protocol=PROTOCOL_NAMES.get(proto, str(proto)),
        state=state_name(proto, state, flags),
        expires=max(0, expires - now) / 1e9,
        client=unpacked(client),
        client_port=cport,
        virtual=unpacked(virtual),
        virtual_port=vport,
        dest=unpacked(dest),
        dest_port=dport,
        method=METHOD_NAMES[method],
        flags=flags,
        packets=packets,
        template=bool(flags & TEMPLATE),
        origin="sync" if flags & SYNC else "local",
        engine="sip" if data else "",
        engine_data=data.decode("latin-1"),
    )


def connections(raw: Iterable[Raw], now: int) -> list[Connection]:
    """All live entries."""
    return [connection(each, now) for each in raw if each[12] > now or each[4] & TEMPLATE]


def state_name(proto: int, state: int, flags: int) -> str:
    """The kernel's spelling."""
    if flags & TEMPLATE:
        return "ASSURED" if state else "NONE"
    if proto == 6:
        return TCP_STATES[state]
    return SCTP_STATES[state] if proto == 132 else PROTOCOL_NAMES.get(proto, "NONE")
