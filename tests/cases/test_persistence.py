"""Persistent services and firewall marks: which server a client meets again, and for how long (ipvs-semantics §5, §8)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from pylvs import Director

VIP = "10.0.0.100"
SERVERS = ("10.1.0.11", "10.1.0.12", "10.1.0.13")


@pytest.fixture
def director() -> Director:
    return Director(
        interfaces={
            "lo": {"addresses": [f"{VIP}/32"]},
            "c": {"mac": "02:00:00:00:00:01", "addresses": ["10.0.0.1/24"]},
            "s": {"mac": "02:00:00:00:00:02", "addresses": ["10.1.0.1/24"]},
        },
        neighbours={rip: f"02:00:00:00:01:{rip[-2:]}" for rip in SERVERS} | {"10.0.0.254": "02:00:00:00:00:99"},
        routes={"0.0.0.0/0": "10.0.0.254"},
        seed=1,
    )


def build(director: Director, service: str, servers: str = "{} -m") -> None:
    """A service (its -A arguments) over all servers (the -a arguments of one, `{}` being its address)."""
    assert director.ipvsadm(f"-A {service}").returncode == 0
    where = " ".join(service.split()[:2])
    for rip in SERVERS:
        answer = director.ipvsadm(f"-a {where} -r {servers.format(rip)}")
        assert answer.returncode == 0, answer.stderr


Ask = Callable[..., str | None]


def ask(director: Director, client: str, now: float, *, to: str = VIP, port: int = 80, udp: bool = False) -> str | None:
    """The server (address:port) that a new flow of `client` meets; None if it is not forwarded."""
    ask.sport += 1  # type: ignore[attr-defined]
    layer = UDP if udp else TCP
    fields = {} if udp else {"flags": "S"}
    packet = IP(src=client, dst=to) / layer(sport=ask.sport, dport=port, **fields)  # type: ignore[attr-defined]
    frame = bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:99") / packet)
    (outcome,) = director.process([("c", frame)], now=now)
    return outcome.dest if outcome.verdict == "forward" else None


ask.sport = 20000  # type: ignore[attr-defined]


def templates(director: Director) -> list[tuple[str, str, str, int]]:
    return sorted((c.protocol, c.client, c.virtual, c.virtual_port) for c in director.connections() if c.template)


def test_a_client_meets_its_server_again(director: Director) -> None:
    build(director, f"-t {VIP}:80 -s rr -p 100", "{}:8080 -m")
    first = ask(director, "198.18.7.1", 1.0)
    assert first == "10.1.0.13:8080"
    assert ask(director, "198.18.7.2", 2.0) == "10.1.0.12:8080"
    assert [ask(director, "198.18.7.1", 3.0 + n) for n in range(5)] == [first] * 5
    assert templates(director) == [("TCP", "198.18.7.1", VIP, 80), ("TCP", "198.18.7.2", VIP, 80)]


def test_granularity_is_the_netmask(director: Director) -> None:
    build(director, f"-t {VIP}:80 -s rr -p 100 -M 255.255.255.0")
    assert ask(director, "198.18.7.1", 1.0) == ask(director, "198.18.7.200", 2.0) == "10.1.0.13:80"
    assert ask(director, "198.18.8.1", 3.0) == "10.1.0.12:80"
    assert [client for _, client, _, _ in templates(director)] == ["198.18.7.0", "198.18.8.0"]


def test_a_mask_that_is_no_prefix(director: Director) -> None:
    build(director, f"-t {VIP}:80 -s rr -p 100 -M 255.0.255.0")
    assert ask(director, "198.18.7.1", 1.0) == ask(director, "198.99.7.9", 2.0)
    assert ask(director, "198.18.8.1", 3.0) == "10.1.0.12:80"
    assert [client for _, client, _, _ in templates(director)] == ["198.0.7.0", "198.0.8.0"]


def test_a_template_ends_when_its_time_is_over_and_its_flows_are_gone(director: Director) -> None:
    build(director, f"-u {VIP}:53 -s rr -p 100")
    director.ipvsadm("--set 0 0 30")
    first = ask(director, "198.18.7.1", 1.0, port=53, udp=True)
    assert ask(director, "198.18.7.1", 90.0, port=53, udp=True) == first
    assert ask(director, "198.18.7.1", 180.0, port=53, udp=True) == first  # each new flow starts the template anew
    director.advance(now=279.0)
    assert templates(director)
    director.advance(now=282.0)
    assert not templates(director)
    assert ask(director, "198.18.7.1", 283.0, port=53, udp=True) != first


def test_a_template_outlives_its_time_while_flows_hang_on_it(director: Director) -> None:
    build(director, f"-u {VIP}:53 -s rr -p 100")
    ask(director, "198.18.7.1", 1.0, port=53, udp=True)  # lives for 300 s
    director.advance(now=290.0)
    assert templates(director)
    director.advance(now=302.0 + 60.0)
    assert not templates(director)


def test_all_ports_of_a_client_go_to_one_server(director: Director) -> None:
    build(director, f"-t {VIP}:0 -s rr -p 100", "{}:0 -m")
    assert ask(director, "198.18.7.1", 1.0, port=80) == "10.1.0.13:80"
    assert ask(director, "198.18.7.1", 2.0, port=443) == "10.1.0.13:443"
    assert ask(director, "198.18.7.2", 3.0, port=443) == "10.1.0.12:443"
    assert templates(director)[0] == ("TCP", "198.18.7.1", VIP, 0)


def test_quiescent_server_keeps_its_clients_unless_told_otherwise(director: Director) -> None:
    build(director, f"-t {VIP}:80 -s rr -p 100")
    first = ask(director, "198.18.7.1", 1.0)
    assert first == "10.1.0.13:80"
    director.ipvsadm(f"-e -t {VIP}:80 -r 10.1.0.13 -m -w 0")
    assert ask(director, "198.18.7.1", 2.0) == first
    director.settings["expire_quiescent_template"] = 1
    assert ask(director, "198.18.7.1", 3.0) == "10.1.0.12:80"
    assert ("TCP", "198.18.7.1", VIP, 65535) in templates(director)


def test_removed_server_loses_its_clients(director: Director) -> None:
    build(director, f"-t {VIP}:80 -s rr -p 100")
    assert ask(director, "198.18.7.1", 1.0) == "10.1.0.13:80"
    director.ipvsadm(f"-d -t {VIP}:80 -r 10.1.0.13")
    moved = ask(director, "198.18.7.1", 2.0)
    assert moved in ("10.1.0.12:80", "10.1.0.11:80")
    assert ask(director, "198.18.7.1", 3.0) == moved


def test_a_mark_gathers_ports_and_addresses(director: Director) -> None:
    director.configure(marks=[{"mark": 7, "protocol": "tcp", "destination": "198.51.100.0/24", "ports": [80, 443]}])
    build(director, "-f 7 -s rr -p 100", "{} -m")
    assert ask(director, "198.18.7.1", 1.0, to="198.51.100.1") == "10.1.0.13:80"
    assert ask(director, "198.18.7.1", 2.0, to="198.51.100.9", port=443) == "10.1.0.13:443"
    assert ask(director, "198.18.7.2", 3.0, to="198.51.100.9", port=443) == "10.1.0.12:443"
    assert ask(director, "198.18.7.1", 4.0, to="198.51.100.1", port=8080) is None
    assert templates(director) == [("IP", "198.18.7.1", "0.0.0.7", 0), ("IP", "198.18.7.2", "0.0.0.7", 0)]


def test_the_last_mark_that_matches_decides(director: Director) -> None:
    director.configure(
        marks=[{"mark": 1, "destination": "198.51.100.0/24"}, {"mark": 2, "source": "198.18.0.0/16", "ports": "80-90"}]
    )
    director.ipvsadm("-A -f 1 -s rr")
    director.ipvsadm("-a -f 1 -r 10.1.0.11 -m")
    director.ipvsadm("-A -f 2 -s rr")
    director.ipvsadm("-a -f 2 -r 10.1.0.12 -m")
    assert ask(director, "198.18.7.1", 1.0, to="198.51.100.1", port=85) == "10.1.0.12:85"
    assert ask(director, "203.0.113.1", 1.0, to="198.51.100.1", port=85) == "10.1.0.11:85"
    assert ask(director, "198.18.7.1", 1.0, to="198.51.100.1", port=91) == "10.1.0.11:91"


@pytest.mark.parametrize(
    "rule",
    [
        {"mark": 0},
        {"mark": 7, "destination": "nowhere"},
        {"mark": 7, "destination": "10.0.0.0/8", "source": "2001:db8::/32"},
        {"mark": 7, "ports": "99999"},
        {"mark": 7, "ports": "b-a"},
        {"mark": 7, "colour": "red"},
    ],
)
def test_wrong_marks_are_refused_and_change_nothing(director: Director, rule: dict[str, object]) -> None:
    director.configure(marks=[{"mark": 7, "destination": "198.51.100.0/24"}])
    with pytest.raises(ValueError):
        director.configure(marks=[rule])
    assert [mark.mark for mark in director.marks] == [7]


def test_one_packet_scheduling_leaves_no_entry(director: Director) -> None:
    build(director, f"-u {VIP}:53 -s rr -o")
    met = [ask(director, "198.18.7.1", 1.0, port=53, udp=True) for _ in range(3)]
    assert met == ["10.1.0.13:53", "10.1.0.12:53", "10.1.0.11:53"]
    assert not director.connections()
    assert all(server.active == server.inactive == 0 for status in director.status() for server in status.servers)
