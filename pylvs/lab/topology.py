"""The labs: who is there, which wire joins whom, and what an administrator would have set on each machine.

A `Plan` is plain data; `build` makes it out of network namespaces and veth pairs, whose offloads stay as they are.
Addresses are those of the source documents where they give any: the NAT lab of the RedHat example (VIP 10.0.0.2, gateway
of the servers 192.168.10.254, servers from 192.168.10.100), the DR and tunnel labs of the lecture notes (director
192.168.56.118 and 192.168.56.100, servers from .101); the tunnel's servers stand in another network, behind a router. The IPv6 labs are the same networks with
the same last numbers in 2001:db8::/32. The labs of many clients (`persist`, `hash`, `mark`, `sctp`) are the NAT lab, and the
client stands for a whole network besides.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from pyroute2.netlink.exceptions import NetlinkError

from pylvs.lab import namespace

PREFIX = "pylvs"
QUIET = {  # a lab speaks one family; nothing of the machine's own settings reaches into it
    "net.ipv6.conf.all.disable_ipv6": 1,
    "net.ipv6.conf.default.disable_ipv6": 1,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
    "net.ipv4.ip_forward": 0,
}
QUIET6 = {
    f"net.ipv6.conf.{scope}.{key}": value
    for key, value in {
        "disable_ipv6": 0,
        "accept_ra": 0,
        "autoconf": 0,
        "accept_dad": 0,
        "router_solicitations": 0,
    }.items()
    for scope in ("all", "default")
}
NODAD = 2  # IFA_F_NODAD: usable at once
FORWARD = {"net.ipv4.ip_forward": 1}
FORWARD6 = {"net.ipv6.conf.all.forwarding": 1}
CLIENTS = "10.1.0.0/16"  # whom the client stands for in the labs of many clients
#: real servers of DR and tunnels: have the VIP, but neither answer ARP for it nor ask in its name
HUSH = {
    "net.ipv4.conf.all.arp_ignore": 1,
    "net.ipv4.conf.all.arp_announce": 2,
    "net.ipv4.conf.lo.arp_ignore": 1,
    "net.ipv4.conf.lo.arp_announce": 2,
}


@dataclass(frozen=True)
class Interface:
    """One end of a wire. `addresses` carry their prefix length."""

    name: str
    wire: str
    mac: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """A machine of the lab. `routes` are prefix -> gateway; `local` are addresses of its loopback."""

    name: str
    interfaces: tuple[Interface, ...]
    routes: Mapping[str, str] = field(default_factory=dict)
    sysctls: Mapping[str, int] = field(default_factory=dict)
    local: tuple[str, ...] = ()


@dataclass(frozen=True)
class Server:
    """A real server: node, RIP and the port that it listens on."""

    name: str
    address: str
    port: int


@dataclass(frozen=True)
class Plan:
    """A lab: its machines and what the director is to do.

    `dip` is the director's address towards the servers; `asks` names the node that resolves the VIP by ARP (the client, or
    its router); `hops` is how often TTL is taken off between client and server, the director's one included. `kind` is the
    lab's name among `PLANS`, `method` the way of forwarding; `scheduler` and what follows it are words of ``ipvsadm -A``,
    `ports` those that the servers listen on, `daemon` further words of ``pylvs daemon``, `clients` the network that the client
    stands for.
    """

    method: str
    title: str
    flag: str  # of ipvsadm
    vip: str
    client: str
    dip: str
    servers: tuple[Server, ...]
    nodes: tuple[Node, ...]
    asks: str
    hops: int
    notes: tuple[str, ...] = ()
    port: int = 80
    kind: str = ""
    scheduler: tuple[str, ...] = ("rr",)
    ports: tuple[int, ...] = ()
    daemon: tuple[str, ...] = ()
    clients: str = ""
    fwmark: int = 0
    protocol: str = "-t"

    @property
    def service(self) -> str:
        """``VIP:port``, an IPv6 address in brackets."""
        return endpoint(self.vip, self.port)

    @property
    def selector(self) -> list[str]:
        """The service as ipvsadm's options name it."""
        return ["-f", str(self.fwmark)] if self.fwmark else [self.protocol, self.service]

    @property
    def version(self) -> int:
        """4 or 6, of IP."""
        return 6 if ":" in self.vip else 4

    @property
    def life(self) -> str:
        """What counts the hops."""
        return "TTL" if self.version == 4 else "hop limit"

    @property
    def alters(self) -> str:
        """What every hop changes in a packet."""
        return "TTL and header checksum" if self.version == 4 else "the hop limit"

    @property
    def resolution(self) -> str:
        """How a neighbour is asked for its MAC address."""
        return "ARP" if self.version == 4 else "ND"

    @property
    def tunnel_mtu(self) -> int:
        """What goes through a tunnel over Ethernet, in bytes: 1500 less the outer header."""
        return 1480 if self.version == 4 else 1460

    def node(self, name: str) -> Node:
        """The node `name`; `KeyError` if the lab has none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    @property
    def owners(self) -> dict[str, str]:
        """MAC address -> whose it is, for readable packet lines."""
        found = {end.mac: f"{node.name}:{end.name}" for node in self.nodes for end in node.interfaces}
        found["ff:ff:ff:ff:ff:ff"] = "everybody"
        return found

    def rules(self) -> list[list[str]]:
        """The ipvsadm commands that set up the service, one after the other."""
        return [["-A", *self.selector, "-s", *self.scheduler], *(self.joins(server) for server in self.servers)]

    def joins(self, server: Server) -> list[str]:
        """The ipvsadm command that adds `server`."""
        return ["-a", *self.selector, "-r", place_of(server), self.flag]


def endpoint(address: str, port: int) -> str:
    """``address:port``, an IPv6 address in brackets; without a port if that is 0."""
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}" if port else host


def place_of(server: Server) -> str:
    """RIP and port of a server."""
    return endpoint(server.address, server.port)


def network(lab: str, node: str) -> str:
    """Name of the namespace that is `node` in the lab `lab`."""
    return f"{PREFIX}-{lab}-{node}"


def _server(number: int, last: int, subnet: str, **rest: object) -> Node:
    end = Interface("eth0", "servers", f"02:00:00:00:01:{number:02x}", (f"{subnet}.{last}/24",))
    return Node(f"rs{number}", (end,), **rest)  # type: ignore[arg-type]


def nat() -> Plan:
    """Client and servers in two networks, the director between them as the servers' only way out."""
    numbers = {1: 100, 2: 101, 3: 102}
    return Plan(
        method="nat",
        kind="nat",
        title="NAT: the director rewrites the addresses of every packet, both ways",
        flag="-m",
        vip="10.0.0.2",
        client="10.0.0.10",
        dip="192.168.10.254",
        servers=tuple(Server(f"rs{n}", f"192.168.10.{last}", 8080) for n, last in numbers.items()),
        asks="client",
        hops=1,
        notes=(
            "the servers' default gateway is the director; its ip_forward is 1",
            "the service's port 80 is mapped to the servers' port 8080",
        ),
        nodes=(
            Node("client", (Interface("eth0", "outside", "02:00:00:00:00:01", ("10.0.0.10/24",)),)),
            Node(
                "director",
                (
                    Interface("eth0", "outside", "02:00:00:00:00:d0", ("10.0.0.1/24",)),
                    Interface("eth1", "servers", "02:00:00:00:00:d1", ("192.168.10.1/24", "192.168.10.254/24")),
                ),
                sysctls=FORWARD,
            ),
            *(_server(n, last, "192.168.10", routes={"default": "192.168.10.254"}) for n, last in numbers.items()),
        ),
    )


def dr() -> Plan:
    """Everybody on one switch; the servers have the VIP on their loopback and answer the client themselves."""
    vip = "192.168.56.200"
    return Plan(
        method="dr",
        kind="dr",
        title="DR: the director changes MAC addresses only; the servers answer the client directly",
        flag="-g",
        vip=vip,
        client="192.168.56.1",
        dip="192.168.56.118",
        servers=tuple(Server(f"rs{n}", f"192.168.56.{100 + n}", 80) for n in (1, 2, 3)),
        asks="client",
        hops=1,
        notes=(
            "the VIP is on every server's lo, with arp_ignore=1 and arp_announce=2",
            "the director has one interface, no address of the VIP, and ip_forward=1",
        ),
        nodes=(
            Node("client", (Interface("eth0", "servers", "02:00:00:00:00:01", ("192.168.56.1/24",)),)),
            Node(
                "director",
                (Interface("eth0", "servers", "02:00:00:00:00:d0", ("192.168.56.118/24",)),),
                sysctls=FORWARD,
            ),
            *(_server(n, 100 + n, "192.168.56", sysctls=HUSH, local=(f"{vip}/32",)) for n in (1, 2, 3)),
        ),
    )


def tun() -> Plan:
    """Client, director and servers in three networks round a router; the director tunnels, the servers answer directly."""
    return Plan(
        method="tun",
        kind="tun",
        title="TUN: the director wraps each packet for its server; the servers answer the client directly",
        flag="-i",
        vip="192.168.56.200",
        client="10.0.0.10",
        dip="192.168.56.100",
        servers=tuple(Server(f"rs{n}", f"192.168.57.{100 + n}", 80) for n in (1, 2, 3)),
        asks="router",
        hops=2,
        notes=(
            "the servers are in another network; `pylvs rs tun` unwraps there, the VIP is on its TUN device",
            "rp_filter is 0 on servers and router: answers leave from where no request came in",
        ),
        nodes=(
            Node(
                "client",
                (Interface("eth0", "client", "02:00:00:00:00:01", ("10.0.0.10/24",)),),
                routes={"default": "10.0.0.254"},
            ),
            Node(
                "router",
                (
                    Interface("eth0", "client", "02:00:00:00:00:f0", ("10.0.0.254/24",)),
                    Interface("eth1", "director", "02:00:00:00:00:f1", ("192.168.56.254/24",)),
                    Interface("eth2", "servers", "02:00:00:00:00:f2", ("192.168.57.254/24",)),
                ),
                sysctls=FORWARD,
            ),
            Node(
                "director",
                (Interface("eth0", "director", "02:00:00:00:00:d0", ("192.168.56.100/24",)),),
                routes={"default": "192.168.56.254"},
            ),
            *(_server(n, 100 + n, "192.168.57", routes={"default": "192.168.57.254"}, sysctls=HUSH) for n in (1, 2, 3)),
        ),
    )


def six(address: str) -> str:
    """The IPv6 address of the same place: 192.168.56.118/24 is 2001:db8:56::118/64, a /32 a /128; 10.0.0.x is 2001:db8::x."""
    host, _, length = address.partition("/")
    first, _, subnet, last = host.split(".")
    text = f"2001:db8:{'' if first == '10' else subnet + ':'}:{last}"
    return text + {"": "", "24": "/64", "32": "/128"}[length]


def _six(plan: Plan, notes: tuple[str, ...]) -> Plan:
    """The same lab in IPv6."""
    nodes = tuple(
        replace(
            node,
            interfaces=tuple(replace(end, addresses=tuple(map(six, end.addresses))) for end in node.interfaces),
            routes={"::/0" if prefix == "default" else six(prefix): six(via) for prefix, via in node.routes.items()},
            sysctls={**QUIET6, **(FORWARD6 if "net.ipv4.ip_forward" in node.sysctls else {})},
            local=tuple(map(six, node.local)),
        )
        for node in plan.nodes
    )
    return replace(
        plan,
        kind=f"{plan.method}6",
        title=plan.title.replace(":", " over IPv6:", 1),
        vip=six(plan.vip),
        client=six(plan.client),
        dip=six(plan.dip),
        servers=tuple(replace(server, address=six(server.address)) for server in plan.servers),
        nodes=nodes,
        notes=notes,
    )


def nat6() -> Plan:
    """`nat` over IPv6."""
    notes = (
        "the servers' default gateway is the director; its forwarding is 1",
        "the service's port 80 is mapped to the servers' port 8080",
    )
    return _six(nat(), notes)


def dr6() -> Plan:
    """`dr` over IPv6."""
    notes = (
        "the VIP is on every server's lo, where no neighbour solicitation reaches it: IPv6 has no ARP problem",
        "the director has one interface, no address of the VIP, and forwarding=1",
    )
    return _six(dr(), notes)


def tun6() -> Plan:
    """`tun` over IPv6."""
    notes = ("the servers are in another network; `pylvs rs tun` unwraps there, the VIP is on its TUN device",)
    return _six(tun(), notes)


def _many(kind: str, title: str, notes: tuple[str, ...], **rest: object) -> Plan:
    """The NAT lab, with a client that stands for all of `CLIENTS`."""
    plan = nat()
    client, director, *servers = plan.nodes
    # the kernel takes every address of loopback's prefixes for its own
    client = replace(client, local=(CLIENTS.replace(".0.0/", ".0.1/"),))
    director = replace(director, routes={CLIENTS: plan.client})
    note = f"the client stands for all of {CLIENTS}; the director reaches them through it"
    return replace(
        plan,
        kind=kind,
        title=title,
        notes=(note, *notes),
        nodes=(client, director, *servers),
        clients=CLIENTS,
        **rest,  # type: ignore[arg-type]
    )


def persist() -> Plan:
    """A persistent service: networks of clients stay with their server."""
    return _many(
        "persist",
        "Persistence: the connections of a client, or of a whole network, stay with one server",
        ("forwarding is NAT, scheduling is rr: without persistence every connection would meet the next server",),
        scheduler=("rr", "-p", "300", "-M", "255.255.255.0"),
    )


def hashing() -> Plan:
    """Schedulers that need no memory: the client's address alone says which server it is."""
    return _many(
        "hash",
        "Hashing: sh and mh send a client to the same server each time; who moves when a server goes?",
        ("forwarding is NAT; every request is a connection of its own",),
        scheduler=("sh",),
    )


def mark() -> Plan:
    """One service of two ports by firewall mark."""
    plan = _many(
        "mark",
        "Firewall mark: ports 80 and 443 are one service, so a client meets one server on both",
        (
            "marks are given by the director itself: packet sockets see frames before netfilter does",
            "the VIP is an address of the director, as with any firewall-mark service: a mark says which packets, not where",
            "the servers speak plain HTTP on both ports: this is about ports, not about TLS",
        ),
        scheduler=("rr", "-p", "300"),
        fwmark=1,
        ports=(80, 443, 81),
        daemon=("--mark", "1:tcp:10.0.0.2:80,443"),
    )
    client, director, *servers = plan.nodes
    outside = replace(director.interfaces[0], addresses=(*director.interfaces[0].addresses, f"{plan.vip}/24"))
    director = replace(director, interfaces=(outside, *director.interfaces[1:]))
    return replace(
        plan,
        nodes=(client, director, *servers),
        servers=tuple(replace(server, port=0) for server in plan.servers),
    )


def sctp() -> Plan:
    """SCTP associations instead of TCP connections."""
    return _many(
        "sctp",
        "SCTP: associations are balanced as connections are; their checksum is a CRC of the whole packet",
        ("forwarding is NAT, port 80 to 8080; one-to-one sockets of the kernel's own SCTP on both ends",),
        protocol="--sctp-service",
    )


PLANS: dict[str, Callable[[], Plan]] = {
    "nat": nat,
    "dr": dr,
    "tun": tun,
    "nat6": nat6,
    "dr6": dr6,
    "tun6": tun6,
    "persist": persist,
    "hash": hashing,
    "mark": mark,
    "sctp": sctp,
}


def wires(plan: Plan) -> dict[str, list[tuple[Node, Interface]]]:
    """Wire -> the interfaces that it joins."""
    found: defaultdict[str, list[tuple[Node, Interface]]] = defaultdict(list)
    for node in plan.nodes:
        for end in node.interfaces:
            found[end.wire].append((node, end))
    return dict(found)


def networks(plan: Plan, lab: str) -> list[str]:
    """The namespaces that the lab needs: one for each node, and one for each wire with more than two ends (its switch)."""
    switches = [f"switch-{wire}" for wire, ends in wires(plan).items() if len(ends) > 2]
    return [network(lab, name) for name in (*(node.name for node in plan.nodes), *switches)]


def build(plan: Plan, lab: str, check: Callable[[], None] = lambda: None) -> None:
    """Make namespaces, wires, addresses, routes and settings of the lab. `check` is called between steps and may raise;
    whoever calls removes what is there, by the names that `networks` gives."""
    try:
        _build(plan, lab, check)
    except NetlinkError as error:
        code, reason = error.args[0], os.strerror(error.args[0])
        raise OSError(
            code, f"the kernel refused a link, address or route: {reason}; has it veth and bridge?"
        ) from error


def _build(plan: Plan, lab: str, check: Callable[[], None]) -> None:
    for name in networks(plan, lab):
        check()
        namespace.create(name)
        namespace.set_sysctl(name, QUIET)
    for wire, ends in wires(plan).items():
        check()
        if len(ends) == 2:
            (one, here), (other, there) = ends
            _pair(network(lab, one.name), here.name, here.mac, network(lab, other.name), there.name, there.mac)
        else:
            _switch(network(lab, f"switch-{wire}"), [(network(lab, node.name), node.name, end) for node, end in ends])
    for node in plan.nodes:
        check()
        _configure(network(lab, node.name), node)
    for node in plan.nodes:
        _await_links(network(lab, node.name), node, check)


def _pair(one: str, here: str, mac: str, other: str, there: str, peer_mac: str = "") -> None:
    with namespace.path(other).open() as handle, namespace.routes(one) as route:
        peer = {"ifname": there, "net_ns_fd": handle.fileno()}
        if peer_mac:
            peer["address"] = peer_mac
        route.link("add", ifname=here, kind="veth", address=mac, peer=peer)


def _switch(name: str, ends: list[tuple[str, str, Interface]]) -> None:
    """A bridge in a namespace of its own; its ports carry the names of the nodes behind them."""
    with namespace.routes(name) as route:
        route.link("add", ifname="switch", kind="bridge")
        bridge = route.link_lookup(ifname="switch")[0]
        route.link("set", index=bridge, state="up")
        for target, node, end in ends:
            _pair(target, end.name, end.mac, name, node)
            port = route.link_lookup(ifname=node)[0]
            route.link("set", index=port, master=bridge)
            route.link("set", index=port, state="up")


def _configure(name: str, node: Node) -> None:
    # before the links come up: a server must not answer ARP for the VIP even once
    namespace.set_sysctl(name, node.sysctls)
    with namespace.routes(name) as route:
        for address in node.local:
            route.addr("add", index=1, address=address, **_at_once(address))
        for end in node.interfaces:
            index = route.link_lookup(ifname=end.name)[0]
            for address in end.addresses:
                route.addr("add", index=index, address=address, **_at_once(address))
            route.link("set", index=index, state="up")
        for prefix, gateway in node.routes.items():
            family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
            route.route("add", family=family, dst=prefix, gateway=gateway)


def _at_once(address: str) -> dict[str, int]:
    """No waiting for duplicate address detection: nobody else is there."""
    return {"flags": NODAD} if ipaddress.ip_interface(address).version == 6 else {}


def _await_links(name: str, node: Node, check: Callable[[], None]) -> None:
    """The kernel reports a veth pair as up a moment after both ends are; before that, packets are lost."""
    deadline = time.monotonic() + 5.0
    with namespace.routes(name) as route:
        for end in node.interfaces:
            while route.get_links(ifname=end.name)[0].get_attr("IFLA_OPERSTATE") != "UP":
                check()
                if time.monotonic() > deadline:
                    raise OSError(f"interface {end.name} of {node.name} did not come up")
                time.sleep(0.01)


def counters(name: str, interface: str) -> dict[str, int]:
    """Packets and bytes that `interface` of the namespace `name` has received and sent so far."""
    with namespace.routes(name) as route:
        stats = route.get_links(ifname=interface)[0].get_attr("IFLA_STATS64")
    return {key: stats[key] for key in ("rx_packets", "rx_bytes", "tx_packets", "tx_bytes")}
