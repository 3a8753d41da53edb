"""The little network of the cases, and packets for it, built by scapy from scratch.

    client 198.18.1.7 ── router .254 ── c [director] s ── real servers 10.1.0.11 .12 .13

Nothing here calls pylvs: what the director must send is built the same way as what it is sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

C_MAC, S_MAC = "02:00:00:00:00:01", "02:00:00:00:00:02"
ROUTER_MAC, NEAR_MAC = "02:00:00:00:00:99", "02:00:00:00:00:33"
SERVER_MACS = ("02:00:00:00:01:11", "02:00:00:00:01:12", "02:00:00:00:01:13")
METHODS = ("nat", "dr", "tun")
FAMILIES = (4, 6)
PROTOCOLS = ("tcp", "udp")
FLAG = {"nat": "-m", "dr": "-g", "tun": "-i"}
PAYLOAD = b"an odd number of bytes."

Frame = tuple[str, bytes]


@dataclass(frozen=True)
class Plan:
    """Addresses of one family."""

    family: int
    vip: str
    client: str
    near: str  # a client on the director's own link
    router: str
    director_c: str
    director_s: str
    servers: tuple[str, ...]
    far: str  # a router somewhere on the way, which is no party to the flow
    room: int  # bytes that the IPIP header of this family takes


V4 = Plan(
    4, "10.0.0.100", "198.18.1.7", "10.0.0.33", "10.0.0.254", "10.0.0.1", "10.1.0.1",
    ("10.1.0.11", "10.1.0.12", "10.1.0.13"), "203.0.113.9", 20,
)  # fmt: skip
V6 = Plan(
    6, "fd00:c::100", "2001:db8:1::7", "fd00:c::33", "fd00:c::fe", "fd00:c::1", "fd00:5::1",
    ("fd00:5::11", "fd00:5::12", "fd00:5::13"), "2001:db8:ff::9", 40,
)  # fmt: skip
PLANS = {4: V4, 6: V6}

NEIGHBOURS = {
    **{server: mac for plan in (V4, V6) for server, mac in zip(plan.servers, SERVER_MACS, strict=True)},
    V4.router: ROUTER_MAC, V6.router: ROUTER_MAC, V4.near: NEAR_MAC, V6.near: NEAR_MAC,
}  # fmt: skip
ROUTES = {"0.0.0.0/0": V4.router, "::/0": V6.router}


def interfaces(c_mtu: int = 1500, s_mtu: int = 1500, vips: tuple[str, ...] = (V4.vip, V6.vip)) -> dict[str, Any]:
    """The director's links; `vips` are those that stand on lo."""
    return {
        "lo": {"addresses": ["127.0.0.1/8", "::1/128", *(f"{vip}/{128 if ':' in vip else 32}" for vip in vips)]},
        "c": {"mac": C_MAC, "addresses": [f"{V4.director_c}/24", f"{V6.director_c}/64"], "mtu": c_mtu},
        "s": {"mac": S_MAC, "addresses": [f"{V4.director_s}/24", f"{V6.director_s}/64"], "mtu": s_mtu},
    }


def host(c_mtu: int = 1500, s_mtu: int = 1500, vips: tuple[str, ...] = (V4.vip, V6.vip), **more: Any) -> dict[str, Any]:
    """Arguments of a `Director` in this network."""
    return {
        "interfaces": interfaces(c_mtu, s_mtu, vips), "neighbours": dict(NEIGHBOURS), "routes": dict(ROUTES),
        "now": 0.0, "seed": 0, **more,
    }  # fmt: skip


def ip(source: str, target: str, ttl: int = 64, **fields: Any) -> Packet:
    """An IP header; `tos` and `ident` mean the same in both families as far as there is such a field."""
    if ":" in source:
        if "tos" in fields:
            fields["tc"] = fields.pop("tos")
        fields.pop("ident", None)
        fields.pop("flags", None)  # IPv6 never fragments on the way: as if DF were always set
        return IPv6(src=source, dst=target, hlim=ttl, **fields)
    return IP(src=source, dst=target, ttl=ttl, id=fields.pop("ident", 0x1234), **fields)


def segment(protocol: str, sport: int, dport: int, flags: str = "S", payload: bytes = PAYLOAD, **fields: Any) -> Packet:
    """A TCP or UDP header with payload."""
    if protocol == "udp":
        return UDP(sport=sport, dport=dport, **fields) / Raw(payload)
    fields = {"seq": 0x01020304, "ack": 0x0A0B0C0D if "A" in flags else 0, "window": 0x7000, **fields}
    return TCP(sport=sport, dport=dport, flags=flags, **fields) / Raw(payload)


def ethernet(source: str, target: str, packet: Packet | bytes, vlan: int | None = None, priority: int = 0) -> bytes:
    """A whole frame, without padding."""
    head = Ether(src=source, dst=target)
    if vlan is not None:
        head = head / Dot1Q(vlan=vlan, prio=priority)
    if isinstance(packet, bytes):
        kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
        (head.lastlayer()).type = kind
        return bytes(head) + packet
    return bytes(head / packet)


from_router = partial(ethernet, ROUTER_MAC, C_MAC)
to_router = partial(ethernet, C_MAC, ROUTER_MAC)


def from_server(packet: Packet | bytes, number: int = 0, **tag: Any) -> bytes:
    """A frame from a real server to the director."""
    return ethernet(SERVER_MACS[number], S_MAC, packet, **tag)


def to_server(packet: Packet | bytes, number: int = 0, **tag: Any) -> bytes:
    """A frame from the director to a real server."""
    return ethernet(S_MAC, SERVER_MACS[number], packet, **tag)


def outer(plan: Plan, inner: Packet | bytes, number: int = 0, ttl: int = 63, df: bool = False, tos: int = 0) -> Packet:
    """The IPIP header towards a real server. The identification is the director's own choice, but 0 with DF."""
    data = bytes(inner)
    if plan.family == 4:
        return IP(
            src=plan.director_s, dst=plan.servers[number], ttl=ttl, proto=4, id=0, tos=tos, flags="DF" if df else 0
        ) / Raw(data)
    return IPv6(src=plan.director_s, dst=plan.servers[number], hlim=ttl, nh=41, tc=tos) / Raw(data)


def unreachable(source: str, target: str, quoted: Packet | bytes, **fields: Any) -> Packet:
    """Port unreachable."""
    body = bytes(quoted)
    if ":" in source:
        return ip(source, target, **fields) / ICMPv6DestUnreach(code=4) / Raw(body)
    return ip(source, target, **fields) / ICMP(type=3, code=3) / Raw(body)


def exceeded(source: str, target: str, quoted: Packet | bytes, **fields: Any) -> Packet:
    """Time exceeded in transit."""
    body = bytes(quoted)
    if ":" in source:
        return ip(source, target, **fields) / ICMPv6TimeExceeded(code=0) / Raw(body)
    return ip(source, target, **fields) / ICMP(type=11, code=0) / Raw(body)


def too_big(source: str, target: str, quoted: Packet | bytes, mtu: int, **fields: Any) -> Packet:
    """Fragmentation needed, or packet too big."""
    body = bytes(quoted)
    if ":" in source:
        return ip(source, target, **fields) / ICMPv6PacketTooBig(mtu=mtu) / Raw(body)
    return ip(source, target, **fields) / ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(body)


def own(make: Any, source: str, target: str, quoted: Packet | bytes, *more: Any) -> Packet:
    """An ICMP error of the director's own: internetwork control (IPv4), TTL 64, at most 576 or 1280 bytes."""
    if ":" in source:
        return make(source, target, bytes(quoted)[: 1280 - 48], *more, ttl=64)
    return make(source, target, bytes(quoted)[: 576 - 28], *more, ttl=64, tos=0xC0, ident=0)


@dataclass(frozen=True)
class Kind:
    """One combination of method, family and protocol, with a service that has one or more real servers.

    NAT maps the port (80 to 8080, 53 to 5353); DR and TUN cannot.
    """

    method: str
    family: int
    protocol: str
    sport: int = 40007

    def __str__(self) -> str:
        return f"{self.method}-v{self.family}-{self.protocol}"

    @property
    def plan(self) -> Plan:
        return PLANS[self.family]

    @property
    def vport(self) -> int:
        return 80 if self.protocol == "tcp" else 53

    @property
    def rport(self) -> int:
        if self.method != "nat":
            return self.vport
        return 8080 if self.protocol == "tcp" else 5353

    @property
    def service(self) -> str:
        """``-t VIP:port``, as commands take it."""
        return f"-{self.protocol[0]} {endpoint(self.plan.vip, self.vport)}"

    def server(self, number: int = 0) -> str:
        """``-r RIP:port``, as commands take it."""
        return f"-r {endpoint(self.plan.servers[number], self.rport)}"

    def commands(self, *weights: int, scheduler: str = "rr") -> list[str]:
        """Commands that set the service up, with a server for each weight (one of weight 1 if none is given)."""
        return [
            f"-A {self.service} -s {scheduler}",
            *(f"-a {self.service} {self.server(n)} {FLAG[self.method]} -w {w}" for n, w in enumerate(weights or (1,))),
        ]

    def request(self, ttl: int = 64, sport: int = 0, source: str = "", head: Any = None, **fields: Any) -> Packet:
        """A client's packet; `head` are fields of the IP header."""
        header = ip(source or self.plan.client, self.plan.vip, ttl, **(head or {}))
        return header / segment(self.protocol, sport or self.sport, self.vport, **fields)

    def delivered(
        self, number: int = 0, ttl: int = 63, head: Any = None, sport: int = 0, source: str = "", **fields: Any
    ) -> Packet:
        """What the real server gets for `request` with the same fields (its `ttl` less one), by this method."""
        head = dict(head or {})
        target = self.plan.servers[number] if self.method == "nat" else self.plan.vip
        port = self.rport if self.method == "nat" else self.vport
        inner = ip(source or self.plan.client, target, ttl, **head) / segment(
            self.protocol, sport or self.sport, port, **fields
        )
        if self.method != "tun":
            return inner
        return outer(self.plan, inner, number, ttl, head.get("flags") == "DF", head.get("tos", 0))

    def reply(self, number: int = 0, ttl: int = 64, head: Any = None, flags: str = "SA", **fields: Any) -> Packet:
        """A NAT real server's answer."""
        header = ip(self.plan.servers[number], self.plan.client, ttl, **(head or {}))
        return header / segment(self.protocol, self.rport, self.sport, flags, **fields)

    def returned(self, ttl: int = 63, head: Any = None, flags: str = "SA", **fields: Any) -> Packet:
        """What the client gets for `reply` with the same fields."""
        header = ip(self.plan.vip, self.plan.client, ttl, **(head or {}))
        return header / segment(self.protocol, self.vport, self.sport, flags, **fields)


def endpoint(address: str, port: int) -> str:
    """address:port, an IPv6 address in brackets."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


KINDS = [Kind(method, family, protocol) for method in METHODS for family in FAMILIES for protocol in PROTOCOLS]
NAT_KINDS = [kind for kind in KINDS if kind.method == "nat"]
