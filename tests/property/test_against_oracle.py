"""The fast path does, byte for byte, what the oracle does, whatever commands and packets come in whatever order."""

from __future__ import annotations

import os
from typing import Any

import pytest
from cases.craft import V4, V6, host
from conftest import accounted
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Balancer, Connection
from packets import TCP, settled, text
from property.build import C_MAC, ROUTER_MAC, S_MAC, SERVER_MAC, ethernet, icmp_error, ip, transport

from pylvs import Director
from pylvs.model import RealServer, Refused, Service, Timeouts

MTU = 1400
EXAMPLES = int(os.environ.get("PYLVS_EXAMPLES", "100"))  # more, for a long search
PLANS = {4: V4, 6: V6}
CLIENTS = {4: ("198.18.1.1", "198.18.1.2", V4.near), 6: ("2001:db8:1::1", "2001:db8:1::2", V6.near)}
METHODS = ("masq", "route", "tunnel")
SCHEDULERS = ("rr", "wrr", "lc", "wlc")

keys = st.tuples(st.sampled_from((4, 6)), st.sampled_from(("tcp", "udp")), st.sampled_from((80, 81))).map(
    lambda choice: (choice[0], choice[1], PLANS[choice[0]].vip, choice[2])
)
numbers = st.integers(0, 2)
weights = st.sampled_from((0, 1, 1, 2, 3, 4, 6, 100))
rports = st.sampled_from((80, 8080))
looks = st.fixed_dictionaries(
    {
        "ttl": st.sampled_from((64, 64, 64, 1, 2, 255)),
        "tos": st.sampled_from((0, 0, 0xB8, 1, 2)),
        "ident": st.sampled_from((1, 0x8000, 0xFFFF)),
        "size": st.sampled_from((0, 1, 2, 23, 512, 1310, *range(1330, 1375, 4), 1400)),
        "error": st.sampled_from((0, 0, 0, 0, -1, 0x1234)),
        "tag": st.sampled_from((None, None, None, 5, 0x6FFF)),
        "flags": st.sampled_from(("S", "S", "S", "A", "A", "PA", "FA", "R", "SA", "SF", "", "RA", "SU")),
    }
)
operations = st.one_of(
    st.tuples(st.just("add service"), keys, st.sampled_from(SCHEDULERS)),
    st.tuples(st.just("edit service"), keys, st.sampled_from(SCHEDULERS)),
    st.tuples(st.just("delete service"), keys),
    *(
        st.tuples(st.just(f"{verb} server"), keys, numbers, rports, st.sampled_from(METHODS), weights)
        for verb in ("add", "add", "edit", "delete")
    ),
    *(st.tuples(st.just("client"), keys, numbers, numbers, looks) for _ in range(6)),
    *(st.tuples(st.just("follow"), st.integers(0, 1000), looks) for _ in range(3)),
    *(st.tuples(st.just("answer"), st.integers(0, 1000), looks) for _ in range(4)),
    st.tuples(st.just("stray"), keys, numbers, numbers, rports, looks),
    st.tuples(
        st.just("error"), st.integers(0, 1000), st.sampled_from(("unreachable", "exceeded", "too big")), st.booleans(),
        st.booleans(), st.booleans(), looks,
    ),
    st.tuples(st.just("wait"), st.sampled_from((0.02, 1.5, 15.0, 70.0, 150.0, 400.0, 1200.0))),
    st.tuples(st.just("timeouts"), st.sampled_from((0, 50, 900)), st.sampled_from((0, 20)), st.sampled_from((0, 40, 300))),
)  # fmt: skip


class Race:
    """The director and the oracle side by side."""

    def __init__(self, batch: int) -> None:
        arguments = host(c_mtu=MTU, s_mtu=MTU)
        self.director = Director(**arguments)
        self.oracle = Balancer(arguments["interfaces"], arguments["neighbours"], arguments["routes"])
        self.now, self.batch = 1.0, batch
        self.waiting: list[tuple[str, bytes, tuple[str, list[tuple[str, bytes]]]]] = []

    # ------------------------------------------------------------------------------------------------------ commands

    def command(self, verb: str, *subject: Any) -> None:
        """The same command to both; they must agree on its outcome and on everything that is listed."""
        self.flush()
        expected = getattr(self.oracle, verb.replace(" ", "_"))(*subject)
        try:
            self._command(verb, *subject)
            code = 0
        except Refused as refusal:
            code = refusal.errno
        assert code == expected, (verb, subject)
        self.compare()

    def _command(self, verb: str, key: tuple[int, str, str, int], *subject: Any) -> None:
        if verb == "delete service":
            self.director.delete_service(key)
        elif verb.endswith("service"):
            service = Service(protocol=key[1], address=key[2], port=key[3], scheduler=subject[0])  # type: ignore[arg-type]
            (self.director.add_service if verb.startswith("add") else self.director.edit_service)(service)
        elif verb == "delete server":
            self.director.delete_server(key, *subject)
        else:
            address, port, method, weight = subject
            server = RealServer(address=address, port=port, method=method, weight=weight)
            (self.director.add_server if verb.startswith("add") else self.director.edit_server)(key, server)

    # -------------------------------------------------------------------------------------------------------- frames

    def send(self, interface: str, frame: bytes) -> None:
        """A frame to both; the director sees it with its batch."""
        self.waiting.append((interface, frame, self.oracle.process(interface, frame, self.now)))
        if len(self.waiting) >= self.batch:
            self.flush()

    def flush(self) -> None:
        """Let the director catch up, and compare."""
        frames = [(interface, frame) for interface, frame, _ in self.waiting]
        outcomes = self.director.process(frames, now=self.now)
        for (interface, frame, (verdict, expected)), outcome in zip(self.waiting, outcomes, strict=True):
            told = f"{interface} {frame.hex()}"
            assert outcome.verdict == verdict, f"{told}: {outcome.verdict} ({outcome.reason}), expected {verdict}"
            assert len(outcome.frames) == len(expected), told
            for (out, got), (expected_out, wanted) in zip(outcome.frames, expected, strict=True):
                assert (out, got.hex()) == (expected_out, settled(wanted, got).hex()), told
        self.waiting = []

    def pass_time(self, seconds: float) -> None:
        """Timers of the two may differ a little: never look while one of them is due."""
        self.flush()
        self.now += seconds
        while self.oracle.near_a_timer(self.now):
            self.now += 3.0
        self.oracle.expire(self.now)
        self.director.advance(now=self.now)
        self.compare()

    def compare(self) -> None:
        """Everything that can be listed."""
        accounted(self.director)
        services = {
            status.service.key: (
                status.service.scheduler,
                [
                    (s.server.address, s.server.port, s.server.method, s.server.weight, s.active, s.inactive)
                    for s in status.servers
                ],
            )
            for status in self.director.status()
        }
        assert services == {
            key: (
                service.scheduler,
                [(s.address, s.port, s.method, s.weight, s.active, s.inactive) for s in service.servers],
            )
            for key, service in self.oracle.services.items()
        }
        listed = self.director.connections()
        known = {self.flow(c): c for c in self.oracle.connections}
        assert sorted(
            (
                c.protocol,
                c.client,
                c.client_port,
                c.virtual,
                c.virtual_port,
                c.dest,
                c.dest_port,
                c.state,
                c.packets,
                c.method,
            )
            for c in listed
        ) == sorted(self.line(c) for c in self.oracle.connections)
        for c in listed:
            theirs = known[c.protocol, c.client, c.client_port, c.virtual, c.virtual_port]
            left = theirs.deadline - self.now
            assert left - 0.01 <= c.expires <= left + theirs.timeout / 8 + 1

    @staticmethod
    def flow(c: Connection) -> tuple[str, str, int, str, int]:
        """The identity of a connection."""
        return "TCP" if c.protocol == TCP else "UDP", text(c.client), c.client_port, text(c.virtual), c.virtual_port

    @classmethod
    def line(cls, c: Connection) -> tuple[Any, ...]:
        """A connection as it is listed."""
        return *cls.flow(c), text(c.dest), c.dest_port, c.state, c.packets, c.method

    # ------------------------------------------------------------------------------------------------- what may happen

    def packet(self, source: str, target: str, protocol: str, ports: tuple[int, int], look: dict[str, Any]) -> bytes:
        """A TCP or UDP packet that looks so."""
        payload = bytes(n * 31 % 256 for n in range(look["size"]))
        number, body = transport(source, target, protocol, *ports, look["flags"], payload, look["error"])
        return ip(source, target, number, body, look["ttl"], look["tos"], look["ident"])

    def client(self, key: Any, client: int, port: int, look: dict[str, Any]) -> None:
        """A client's packet to a VIP."""
        source = CLIENTS[key[0]][client]
        packet = self.packet(source, key[2], key[1], (1024 + port, key[3]), look)
        self.send("c", ethernet(ROUTER_MAC, C_MAC, packet, look["tag"]))

    def stray(self, key: Any, server: int, client: int, rport: int, look: dict[str, Any]) -> None:
        """A packet from a real server to a client, which may or may not belong to a flow."""
        source, target = PLANS[key[0]].servers[server], CLIENTS[key[0]][client]
        packet = self.packet(source, target, key[1], (rport, 1024), look)
        self.send("s", ethernet(SERVER_MAC, S_MAC, packet, look["tag"]))

    def chosen(self, number: int) -> Connection | None:
        """Some connection."""
        connections = self.oracle.connections
        return connections[number % len(connections)] if connections else None

    def follow(self, number: int, look: dict[str, Any]) -> None:
        """One more packet of a client's flow."""
        if c := self.chosen(number):
            protocol = "tcp" if c.protocol == TCP else "udp"
            packet = self.packet(text(c.client), text(c.virtual), protocol, (c.client_port, c.virtual_port), look)
            self.send("c", ethernet(ROUTER_MAC, C_MAC, packet, look["tag"]))

    def answer(self, number: int, look: dict[str, Any]) -> None:
        """A NAT server's answer."""
        if (c := self.chosen(number)) and c.method == "masq":
            protocol = "tcp" if c.protocol == TCP else "udp"
            packet = self.packet(text(c.dest), text(c.client), protocol, (c.dest_port, c.client_port), look)
            self.send("s", ethernet(SERVER_MAC, S_MAC, packet, look["tag"]))

    def error(self, number: int, kind: str, inward: bool, minimal: bool, broken: bool, look: dict[str, Any]) -> None:
        """An ICMP error about a flow, from a router on either side."""
        c = self.chosen(number)
        if not c or not c.server.available:
            return
        plan, protocol = PLANS[4 if len(c.client) == 4 else 6], "tcp" if c.protocol == TCP else "udp"
        size = min(look["size"], 512)
        if inward:
            source, target, ports = text(c.virtual), text(c.client), (c.virtual_port, c.client_port)
            reporter, addressee, link = plan.far, text(c.virtual), "c"
        else:
            source, target, ports = text(c.client), text(c.dest), (c.client_port, c.dest_port)
            reporter, addressee, link = text(c.dest), text(c.client), "s"
            if c.method != "masq":
                return
        quoted = self.packet(source, target, protocol, ports, look | {"size": size, "error": 0})
        if minimal:
            quoted = quoted[: (20 if plan.family == 4 else 40) + 8]
        number, body = icmp_error(reporter, addressee, kind, quoted, broken)
        packet = ip(reporter, addressee, number, body, look["ttl"])
        macs = (ROUTER_MAC, C_MAC) if link == "c" else (SERVER_MAC, S_MAC)
        self.send(link, ethernet(*macs, packet, look["tag"]))

    def timeouts(self, tcp: int, tcpfin: int, udp: int) -> None:
        """ipvsadm --set."""
        self.flush()
        self.oracle.set_timeouts(tcp, tcpfin, udp)
        self.director.set_timeouts(Timeouts(tcp=tcp, tcpfin=tcpfin, udp=udp))

    def run(self, operation: tuple[Any, ...]) -> None:
        """One operation."""
        verb, *rest = operation
        if verb in ("add service", "edit service", "delete service"):
            self.command(verb, *rest)
        elif verb.endswith("server"):
            key, number, rport, method, weight = rest
            address, port = PLANS[key[0]].servers[number], rport if method == "masq" else key[3]
            self.command(verb, key, address, port, *(() if verb == "delete server" else (method, weight)))
        elif verb == "wait":
            self.pass_time(*rest)
        else:
            getattr(self, verb)(*rest)


def equipped(race: Race, scheduler: str, method: str, some: list[int]) -> None:
    """Every service exists at the start, with as many servers as there are weights."""
    for family in (4, 6):
        for protocol in ("tcp", "udp"):
            key = (family, protocol, PLANS[family].vip, 80)
            race.command("add service", key, scheduler)
            for number, weight in enumerate(some):
                port = 8080 if method == "masq" else 80
                race.command("add server", key, PLANS[family].servers[number], port, method, weight)


@pytest.mark.parametrize("method", METHODS)
@settings(max_examples=EXAMPLES, deadline=None, report_multiple_bugs=False)
@given(
    scheduler=st.sampled_from(SCHEDULERS),
    some=st.lists(weights, min_size=1, max_size=3),
    batch=st.sampled_from((1, 1, 2, 8, 64)),
    story=st.lists(operations, min_size=10, max_size=60),
)
def test_director_and_oracle_agree(method: str, scheduler: str, some: list[int], batch: int, story: list[Any]) -> None:
    """Verdicts, frames, lists of servers, connections with their states, counts and timers."""
    race = Race(batch)
    equipped(race, scheduler, method, some)
    for operation in story:
        race.run(operation)
    race.flush()
    race.compare()


@settings(max_examples=EXAMPLES, deadline=None, report_multiple_bugs=False)
@given(
    scheduler=st.sampled_from(SCHEDULERS),
    method=st.sampled_from(METHODS),
    story=st.lists(
        st.one_of(
            st.tuples(st.just("new"), st.integers(1, 12)),
            st.tuples(st.sampled_from(("add server", "edit server", "delete server")), numbers, weights),
            st.tuples(st.just("edit service"), st.sampled_from(SCHEDULERS)),
            st.tuples(st.just("close"), st.integers(0, 1000)),
            st.tuples(st.just("wait"), st.sampled_from((15.0, 70.0, 200.0))),
        ),
        min_size=5,
        max_size=40,
    ),
)
def test_choices_agree(scheduler: str, method: str, story: list[Any]) -> None:
    """Long rows of new flows, with servers that come, go and change weight in between."""
    race, port = Race(8), 0
    key = (4, "tcp", V4.vip, 80)
    race.command("add service", key, scheduler)
    plain = {"ttl": 64, "tos": 0, "ident": 1, "size": 0, "error": 0, "tag": None, "flags": "S"}
    for verb, *rest in story:
        if verb == "new":
            for _ in range(rest[0]):
                port += 1
                race.client(key, 0, port, plain)
        elif verb == "close":
            race.follow(rest[0], plain | {"flags": "FA"})
        elif verb == "wait":
            race.pass_time(*rest)
        elif verb == "edit service":
            race.command(verb, key, *rest)
        else:
            number, weight = rest
            more = () if verb == "delete server" else (method, weight)
            race.command(verb, key, V4.servers[number], 80, *more)
    race.flush()
    race.compare()
