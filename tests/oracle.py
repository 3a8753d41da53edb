"""What the director must do, in plain Python: the executable specification that the fast path is compared with.

A `Balancer` knows services, real servers and connections as dictionaries and lists, takes one frame at a time and
answers with a verdict and the frames that leave. It covers TCP and UDP over IPv4 and IPv6, the schedulers rr, wrr, lc
and wlc, NAT, DR and TUN (IPIP), ICMP errors of its own and about its flows. It leaves out what its users do not send:
fragments, packets that would have to be fragmented, persistence, marks and thresholds.

Nothing here imports pylvs, and nothing is fast: every checksum is summed over the whole, every table is searched from
end to end. Where the kernel does something surprising, the comment says so.
"""

from __future__ import annotations

import errno
import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from packets import (
    ICMP,
    ICMP6,
    IPIP,
    IPV6,
    TCP,
    UDP,
    Address,
    Packet,
    checksum,
    packed,
    parse,
    pseudo,
    splice,
    text,
    total,
    translated,
)  # fmt: skip

Verdict = tuple[str, list[tuple[str, bytes]]]
Key = tuple[int, str, str, int]  # family, protocol, VIP, port

NAMES = {"tcp": TCP, "udp": UDP}
ETHERTYPES = {b"\x08\x00": 4, b"\x86\xdd": 6}
PASS: Verdict = ("pass", [])
DROP: Verdict = ("drop", [])

SHORT = {
    "NO": "NONE", "ES": "ESTABLISHED", "SS": "SYN_SENT", "SR": "SYN_RECV", "FW": "FIN_WAIT", "TW": "TIME_WAIT",
    "CL": "CLOSE", "CW": "CLOSE_WAIT", "LA": "LAST_ACK", "LI": "LISTEN", "SA": "SYNACK",
}  # fmt: skip
STATES = list(SHORT.values())
ACTIVE = {"ESTABLISHED", "SYN_SENT", "SYN_RECV", "SYNACK"}
#: the next state, by direction and event; one column for each present state, in the order of STATES
TRANSITIONS = {
    ("in", "syn"): "SR ES ES SR SR SR SR SR SR SR SR",
    ("in", "fin"): "CL CW SS TW TW TW CL CW LA LI TW",
    ("in", "ack"): "ES ES SS ES FW TW CL CW CL LI ES",
    ("in", "rst"): "CL CL CL SR CL CL CL CL LA LI SR",
    ("out", "syn"): "SS ES SS SR SS SS SS SS SS LI SR",
    ("out", "fin"): "TW FW SS TW FW TW CL TW LA LI TW",
    ("out", "ack"): "ES ES SS ES FW TW CL CW LA ES ES",
    ("out", "rst"): "CL CL SS CL CL TW CL CL CL CL CL",
    ("in-only", "syn"): "SR ES ES SR SR SR SR SR SR SR SR",
    ("in-only", "fin"): "CL FW SS TW FW TW CL CW LA LI TW",
    ("in-only", "ack"): "ES ES SS ES FW TW CL CW CL LI ES",
    ("in-only", "rst"): "CL CL CL SR CL CL CL CL LA LI CL",
}
TIMEOUTS = {
    "NONE": 2, "ESTABLISHED": 900, "SYN_SENT": 120, "SYN_RECV": 60, "FIN_WAIT": 120, "TIME_WAIT": 120,
    "CLOSE": 10, "CLOSE_WAIT": 60, "LAST_ACK": 30, "LISTEN": 120, "SYNACK": 120, "UDP": 300,
}  # fmt: skip


# --------------------------------------------------------------------------------- services, servers and connections


@dataclass(eq=False)
class Server:
    """A real server of one service. A deleted one is kept, unavailable, as long as connections may point to it."""

    address: str
    port: int
    method: str
    weight: int
    active: int = 0
    inactive: int = 0
    available: bool = True

    @property
    def overhead(self) -> int:
        """What lc and wlc call busy."""
        return 256 * self.active + self.inactive


@dataclass(eq=False)
class Service:
    """A virtual service; `servers` is the kernel's list: the newest first."""

    key: Key
    scheduler: str
    servers: list[Server] = field(default_factory=list)
    cursor: Server | None = None  # rr and wrr stand on this server; None: before the first
    level: int = 0  # wrr serves weights of at least this much in the present round


@dataclass(eq=False)
class Connection:
    """One flow. It keeps the method and address that its server had when it began."""

    protocol: int
    client: Address
    client_port: int
    virtual: Address
    virtual_port: int
    server: Server
    dest: Address
    dest_port: int
    method: str
    state: str = "NONE"
    active: bool = False
    timeout: float = 3
    deadline: float = 0
    packets: int = 0


class Balancer:
    """The director. `interfaces`, `neighbours` and `routes` are those of the public contract."""

    def __init__(self, interfaces: dict[str, Any], neighbours: dict[str, str], routes: dict[str, str]) -> None:
        self.links = {name: link for name, link in interfaces.items() if name != "lo"}
        self.local = {
            ipaddress.ip_interface(address).ip.packed
            for link in interfaces.values()
            for address in link.get("addresses", [])
        }
        self.neighbours = {packed(address): bytes.fromhex(mac.replace(":", "")) for address, mac in neighbours.items()}
        self.routes = {ipaddress.ip_network(prefix): gateway for prefix, gateway in routes.items()}
        self.services: dict[Key, Service] = {}
        self.deleted: dict[tuple[Key, str, int], Server] = {}
        self.connections: list[Connection] = []  # the newest last
        self.timeouts = dict(TIMEOUTS)

    # ------------------------------------------------------------------------------------------------------ commands
    # Each returns 0 or the errno of the refusal.

    def add_service(self, key: Key, scheduler: str) -> int:
        """ipvsadm -A."""
        if key in self.services:
            return errno.EEXIST
        self.services[key] = Service(key, scheduler)
        self._bind(self.services[key])
        return 0

    def edit_service(self, key: Key, scheduler: str) -> int:
        """ipvsadm -E. Only another scheduler starts afresh."""
        if key not in self.services:
            return errno.ESRCH
        service = self.services[key]
        if service.scheduler != scheduler:
            service.scheduler = scheduler
            self._bind(service)
        return 0

    def delete_service(self, key: Key) -> int:
        """ipvsadm -D. Connections stay; their servers are gone."""
        if key not in self.services:
            return errno.ESRCH
        for server in self.services.pop(key).servers:
            server.available = False
            self.deleted[key, server.address, server.port] = server
        return 0

    def add_server(self, key: Key, address: str, port: int, method: str, weight: int) -> int:
        """ipvsadm -a. A deleted server of the same service comes back with its connections."""
        if key not in self.services:
            return errno.ESRCH
        if self._server(key, address, port):
            return errno.EEXIST
        server = self.deleted.pop((key, address, port), None) or Server(address, port, method, weight)
        server.method, server.weight, server.available = method, weight, True
        self.services[key].servers.insert(0, server)
        self._changed(self.services[key])
        return 0

    def edit_server(self, key: Key, address: str, port: int, method: str, weight: int) -> int:
        """ipvsadm -e."""
        if key not in self.services:
            return errno.ESRCH
        if not (server := self._server(key, address, port)):
            return errno.ENOENT
        server.method, server.weight = method, weight
        self._changed(self.services[key])
        return 0

    def delete_server(self, key: Key, address: str, port: int) -> int:
        """ipvsadm -d."""
        if key not in self.services:
            return errno.ESRCH
        if not (server := self._server(key, address, port)):
            return errno.ENOENT
        service = self.services[key]
        position = service.servers.index(server)
        if service.cursor is server:
            service.cursor = service.servers[position - 1] if position else None
        del service.servers[position]
        server.available = False
        self.deleted[key, address, port] = server
        self._changed(service)
        return 0

    def set_timeouts(self, tcp: int, tcpfin: int, udp: int) -> None:
        """ipvsadm --set; 0 keeps a value. They hold from a connection's next packet on."""
        for state, value in (("ESTABLISHED", tcp), ("FIN_WAIT", tcpfin), ("UDP", udp)):
            self.timeouts[state] = value or self.timeouts[state]

    def _server(self, key: Key, address: str, port: int) -> Server | None:
        return next((s for s in self.services[key].servers if (s.address, s.port) == (address, port)), None)

    # ------------------------------------------------------------------------------------------------------ choosing

    def _bind(self, service: Service) -> None:
        service.cursor = None
        service.level = self._weights(service)[1]

    def _changed(self, service: Service) -> None:
        """wrr looks at its weights again: a service that is built server by server so begins at level 1."""
        if service.scheduler == "wrr":
            step, top = self._weights(service)
            service.cursor = None
            if service.level > top or service.level == 0:
                service.level = top
            elif step > 1:
                service.level = service.level // step * step + 1

    @staticmethod
    def _weights(service: Service) -> tuple[int, int]:
        """wrr's step (the greatest common divisor) and its highest level."""
        weights = [server.weight for server in service.servers if server.weight > 0]
        step = 1
        if weights:
            step = next(n for n in range(min(weights), 0, -1) if all(weight % n == 0 for weight in weights))
        return step, max(weights, default=0) - (step - 1)

    def choose(self, service: Service) -> Server | None:
        """The scheduler's answer to a new flow."""
        usable = [server for server in service.servers if server.weight > 0]
        if not usable:
            return None
        if service.scheduler == "lc":
            return min(usable, key=lambda server: server.overhead)  # min() keeps the first of equals
        if service.scheduler == "wlc":
            best = usable[0]
            for server in usable[1:]:
                if best.overhead * server.weight > server.overhead * best.weight:
                    best = server
            return best
        servers, step, top = service.servers, *self._weights(service)
        while True:
            begin = servers.index(service.cursor) + 1 if service.cursor else 0
            least = service.level if service.scheduler == "wrr" else 1
            for server in servers[begin:]:
                if server.weight >= least:
                    service.cursor = server
                    return server
            service.cursor = None
            service.level -= step
            if service.level <= 0:
                service.level = top

    # --------------------------------------------------------------------------------------------------- connections

    def expire(self, now: float) -> None:
        """Time passes."""
        for connection in [c for c in self.connections if c.deadline <= now]:
            self._forget(connection)

    def near_a_timer(self, now: float) -> bool:
        """Whether `now` falls where a coarse timer (never early, at most an eighth and a second late) may differ."""
        return any(c.deadline - 0.1 <= now <= c.deadline + c.timeout / 8 + 1 for c in self.connections)

    def _forget(self, connection: Connection) -> None:
        self.connections.remove(connection)
        if connection.active:
            connection.server.active -= 1
        else:
            connection.server.inactive -= 1

    def _touch(self, connection: Connection, packet: Packet, direction: str, now: float) -> None:
        """Step the state machine and start the timer again."""
        if packet.protocol == UDP:
            connection.state = "UDP"
        else:
            flags = packet.payload[13]
            event = "rst" if flags & 4 else "syn" if flags & 2 else "fin" if flags & 1 else "ack" if flags & 16 else ""
            if direction == "in" and connection.method != "masq":
                direction = "in-only"  # nobody tells us what the server answers
            column = STATES.index(connection.state)
            connection.state = SHORT[TRANSITIONS[direction, event].split()[column]] if event else "CLOSE"
        active = connection.state in ACTIVE
        if active != connection.active:
            connection.active = active
            connection.server.active += 1 if active else -1
            connection.server.inactive += -1 if active else 1
        connection.timeout = self.timeouts[connection.state]
        connection.deadline = now + connection.timeout

    def _from_client_flow(
        self, protocol: int, source: Address, target: Address, ports: tuple[int, int]
    ) -> Connection | None:
        key = (protocol, source, ports[0], target, ports[1])
        for c in reversed(self.connections):
            if key == (c.protocol, c.client, c.client_port, c.virtual, c.virtual_port):
                return c
        return None

    def _from_server_flow(
        self, protocol: int, source: Address, target: Address, ports: tuple[int, int]
    ) -> Connection | None:
        key = (protocol, source, ports[0], target, ports[1])
        for c in reversed(self.connections):
            if c.method == "masq" and key == (c.protocol, c.dest, c.dest_port, c.client, c.client_port):
                return c
        return None

    # -------------------------------------------------------------------------------------------------------- frames

    def process(self, interface: str, frame: bytes, now: float) -> Verdict:
        """What becomes of one frame."""
        self.expire(now)
        if len(frame) < 14:
            return DROP
        if frame[:6] != self._mac(interface):
            return PASS
        tag, kind, body = b"", frame[12:14], frame[14:]
        if kind == b"\x81\x00":  # a VLAN that is no link of ours: the tag stays on whatever leaves
            tag, kind, body = frame[12:16], frame[16:18], frame[18:]
        if kind not in ETHERTYPES:
            return PASS
        packet = parse(ETHERTYPES[kind], body)
        if not packet:
            return DROP
        if packet.target in self.local:
            if packet.protocol == (ICMP if packet.family == 4 else ICMP6):
                return self._icmp(packet, tag, "in")
            return self._from_client(packet, tag, now)
        if packet.protocol == (ICMP if packet.family == 4 else ICMP6):
            return self._icmp(packet, tag, "out")
        return self._from_server(packet, interface, tag, now)

    def _serves(self, family: int) -> bool:
        """Without any service of an address family IPVS is out of its way altogether, flows or not."""
        return any(key[0] == family for key in self.services)

    def _from_client(self, packet: Packet, tag: bytes, now: float) -> Verdict:
        if packet.protocol not in (TCP, UDP):
            return PASS
        if len(packet.payload) < (20 if packet.protocol == TCP else 8):
            return DROP
        if not self._serves(packet.family):
            return PASS
        flags = packet.payload[13] if packet.protocol == TCP else 0
        syn, rst = flags & 2, flags & 4
        connection = self._from_client_flow(packet.protocol, packet.source, packet.target, packet.ports)
        if connection and syn and connection.state in ("TIME_WAIT", "CLOSE"):
            self._forget(connection)  # the client uses its port again: this is a new flow
            connection = None
        if connection and not connection.server.available:
            return DROP
        if not connection:
            if packet.protocol == TCP and (rst or not syn):
                return PASS
            name = "tcp" if packet.protocol == TCP else "udp"
            service = self.services.get((packet.family, name, text(packet.target), packet.ports[1]))
            if not service or packet.ports[0] == 20:  # FTP data from a server to itself is never balanced
                return PASS
            server = self.choose(service)
            if not server:
                return self._error(packet, packet, "port unreachable", tag)
            connection = Connection(
                packet.protocol, packet.source, packet.ports[0], packet.target, packet.ports[1],
                server, packed(server.address), server.port, server.method,
            )  # fmt: skip
            self.connections.append(connection)
            server.inactive += 1
        self._touch(connection, packet, "in", now)
        connection.packets += 1
        return self._transmit(packet, connection, tag)  # whatever comes of it, the connection is there

    def _transmit(self, packet: Packet, connection: Connection, tag: bytes) -> Verdict:
        """Send a client's packet by the connection's method."""
        if packet.ttl <= 1:
            return self._error(packet, packet, "time exceeded", tag)
        link, _, source = self._route(connection.dest)
        overhead = {4: 20, 16: 40}[len(connection.dest)] if connection.method == "tunnel" else 0
        room = self.links[link].get("mtu", 1500) - overhead
        older = packet.older()
        if len(packet.data) > room:
            return self._error(packet, older, "too big", tag, room)
        if connection.method == "masq":
            older = translated(older, "target", connection.dest, connection.dest_port)
        if connection.method == "tunnel":
            older = self._encapsulated(older, source, connection.dest)
        return "forward", self._frames(older, connection.dest, tag)

    def _from_server(self, packet: Packet, interface: str, tag: bytes, now: float) -> Verdict:
        """A reply of a NAT server is translated back, even when that server has been deleted meanwhile."""
        if packet.protocol not in (TCP, UDP):
            return PASS
        if len(packet.payload) < (20 if packet.protocol == TCP else 8):
            return PASS
        connection = self._from_server_flow(packet.protocol, packet.source, packet.target, packet.ports)
        if not connection or not self._serves(packet.family):
            return PASS
        # here the host's routing sees the packet first: its errors come from the host, and change no connection
        link = self._route(packet.target)[0]
        room = self.links[link].get("mtu", 1500)
        if packet.ttl <= 1:
            return self._error(packet, packet, "time exceeded", tag, own=True)
        if len(packet.data) > room:
            return self._error(packet, packet, "too big", tag, room, own=True)
        self._touch(connection, packet, "out", now)
        answer = translated(packet.older(), "source", connection.virtual, connection.virtual_port)
        return "forward", self._frames(answer, answer.target, tag)

    @staticmethod
    def _encapsulated(packet: Packet, source: Address, target: Address) -> Packet:
        """IPIP in the same family, or any mixture."""
        data, size = packet.data, len(packet.data)
        tos = data[1] if packet.family == 4 else int.from_bytes(data[:2], "big") >> 4 & 0xFF
        tos = tos & 0xFC | (2 if tos & 3 == 3 else tos & 3)  # congestion is not copied outwards
        inner = IPIP if packet.family == 4 else IPV6
        if len(target) == 16:
            head = struct.pack("!IHBB", 6 << 28 | tos << 20, size, inner, packet.ttl) + source + target
            return Packet(6, head + data, source, target, inner, 40)
        df = data[6] & 0x40 if packet.family == 4 else 0
        head = struct.pack("!BBHHHBBH", 0x45, tos, size + 20, 0, df << 8, packet.ttl, inner, 0) + source + target
        return Packet(4, head + data, source, target, inner, 20).rewritten(head + data)

    # ---------------------------------------------------------------------------------------------------------- ICMP

    def _error(
        self, packet: Packet, quoted: Packet, reason: str, tag: bytes, mtu: int = 0, own: bool = False
    ) -> Verdict:
        """Tell the sender, from the VIP or (`own`) from the host's address; nothing is said about ICMP errors."""
        if packet.protocol in (ICMP, ICMP6):
            return DROP
        source, target = self._route(packet.source)[2] if own else packet.target, packet.source
        if packet.family == 4:
            if reason == "too big" and not packet.data[6] & 0x40:
                raise NotImplementedError("fragmentation is not specified here")
            kind, code = {"port unreachable": (3, 3), "time exceeded": (11, 0), "too big": (3, 4)}[reason]
            body = struct.pack("!BBHHH", kind, code, 0, 0, mtu) + quoted.data[: 576 - 28]
            body = splice(body, 2, checksum(body))
            tos = 0xC0 | packet.data[1] & 0x1E  # precedence of our own, the service bits of the packet
            header = struct.pack("!BBHHHBBH", 0x45, tos, 20 + len(body), 0, 0, 64, ICMP, 0)
            data = header + source + target + body
            answer = Packet(4, data, source, target, ICMP, 20).rewritten(data)
        else:
            kind, code = {"port unreachable": (1, 4), "time exceeded": (3, 0), "too big": (2, 0)}[reason]
            body = struct.pack("!BBHI", kind, code, 0, mtu) + quoted.data[: 1280 - 48]
            body = splice(body, 2, checksum(pseudo(source, target, ICMP6, len(body)) + body))
            data = struct.pack("!IHBB", 6 << 28, len(body), ICMP6, 64) + source + target + body
            answer = Packet(6, data, source, target, ICMP6, 40)
        return "reply", self._frames(answer, target, tag)

    def _icmp(self, packet: Packet, tag: bytes, direction: str) -> Verdict:
        """ICMP errors about our flows follow them, NAT's translated; anything else is the host's."""
        body = packet.payload
        if len(body) < 8:
            return PASS
        if body[0] not in (3, 4, 11) if packet.family == 4 else body[0] >= 128:
            return PASS
        inner = parse(packet.family, body[8:], whole=False)
        if not inner or inner.protocol not in (TCP, UDP) or len(inner.payload) < 4:
            return PASS
        find = self._from_client_flow if direction == "in" else self._from_server_flow
        connection = find(inner.protocol, inner.target, inner.source, inner.ports[::-1])
        if not connection or not self._serves(packet.family):
            return PASS
        cover = b"" if packet.family == 4 else pseudo(packet.source, packet.target, ICMP6, len(body))
        if total(cover + body) != 0xFFFF or packet.ttl <= 1:
            return DROP
        older, target = packet.older(), connection.dest if direction == "in" else packet.target
        if connection.method == "masq":
            if direction == "in":
                older = self._icmp_translated(older, inner, "target", connection.dest, connection.dest_port)
            else:
                older = self._icmp_translated(older, inner, "source", connection.virtual, connection.virtual_port)
        elif connection.method == "tunnel":
            older = self._encapsulated(older, self._route(target)[2], target)
        return "forward", self._frames(older, target, tag)

    @staticmethod
    def _icmp_translated(packet: Packet, inner: Packet, side: str, address: Address, port: int) -> Packet:
        """Outer address and, mirrored, the quoted one; the quoted transport checksum is left as it was."""
        base, size = (12 if packet.family == 4 else 8), len(address)
        outside, inside = (base + size, base) if side == "target" else (base, base + size)
        place = inner.start + (0 if side == "target" else 2)
        quote = splice(splice(inner.data, inside, address), place, struct.pack("!H", port))
        quote = inner.rewritten(quote).data
        data = splice(packet.data, outside, address)
        data = splice(splice(data, packet.start + 8, quote), packet.start + 2, b"\0\0")
        packet = packet.rewritten(data)
        body = packet.payload
        cover = b"" if packet.family == 4 else pseudo(packet.source, packet.target, ICMP6, len(body))
        return packet.rewritten(splice(packet.data, packet.start + 2, checksum(cover + body)))

    # ------------------------------------------------------------------------------------------------------- the host

    def _mac(self, link: str) -> bytes:
        return bytes.fromhex(self.links[link]["mac"].replace(":", ""))

    def _connected(self, address: Address) -> Iterator[tuple[str, Address]]:
        for name, link in self.links.items():
            for interface in map(ipaddress.ip_interface, link.get("addresses", [])):
                if ipaddress.ip_address(address) in interface.network:
                    yield name, interface.ip.packed

    def _route(self, target: Address) -> tuple[str, Address, Address]:
        """The link, the next hop and the source address towards `target`."""
        for name, source in self._connected(target):
            return name, target, source
        fitting = [prefix for prefix in self.routes if ipaddress.ip_address(target) in prefix]
        hop = packed(self.routes[max(fitting, key=lambda prefix: prefix.prefixlen)])
        name, source = next(self._connected(hop))
        return name, hop, source

    def _frames(self, packet: Packet, target: Address, tag: bytes) -> list[tuple[str, bytes]]:
        link, hop, _ = self._route(target)
        kind = b"\x08\x00" if packet.family == 4 else b"\x86\xdd"
        return [(link, self.neighbours[hop] + self._mac(link) + tag + kind + packet.data)]
