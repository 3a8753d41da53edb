"""Floods: drop_packet, drop_entry, secure_tcp; and connections whose server was deleted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cases.craft import Kind, from_router, from_server, host

KIND = Kind("nat", 4, "tcp")


def fresh(directors: Callable[..., Any], kind: Kind = KIND, servers: int = 1, **more: Any) -> Any:
    """A director with one service."""
    director = directors(**host(**more))
    for line in kind.commands(*[1] * servers):
        assert director.ipvsadm(line).returncode == 0
    return director


def opens(director: Any, count: int, now: float, kind: Kind = KIND, first: int = 1000, flags: str = "S") -> str:
    """That many clients send a SYN: "f" for each that was forwarded, "d" for each that was dropped."""
    outcomes = director.process(
        [("c", from_router(kind.request(sport=first + n, flags=flags))) for n in range(count)], now=now
    )
    assert {each.reason for each in outcomes if each.verdict == "drop"} <= {"drop_packet"}
    return "".join(each.verdict[0] for each in outcomes)


def test_every_tenth_first_packet(directors: Callable[..., Any]) -> None:
    """drop_packet 3, am_droprate 10: the first, then every tenth; never a packet of a connection."""
    director = fresh(directors)
    director.settings["drop_packet"] = 3
    assert opens(director, 31, 1.0) == ("d" + "f" * 9) * 3 + "d"
    assert opens(director, 9, 1.1, first=1001) == "f" * 9  # they have their connections
    assert director.counters()["drops"] == {"drop_packet": 4}
    director.settings["am_droprate"] = 0
    assert opens(director, 20, 1.2, first=3000) == "f" * 20
    director.settings["am_droprate"] = 10
    director.settings["drop_packet"] = 0
    assert opens(director, 20, 1.3, first=4000) == "f" * 20


def test_automatic_by_free_entries(directors: Callable[..., Any]) -> None:
    """Nothing while enough entries are free; then one in amemthresh / (amemthresh - free), looked at once a second."""
    director = fresh(directors, connections=100)
    director.settings["amemthresh"] = 40
    director.settings["drop_packet"] = 1
    assert opens(director, 80, 1.0) == "f" * 80
    assert director.settings["drop_packet"] == 1
    director.advance(now=2.5)  # 20 are free: 40 / (40 - 20) = 2
    assert director.settings["drop_packet"] == 2
    assert opens(director, 8, 2.6, first=3000) == "fd" * 4
    director.advance(now=90.0)
    director.advance(now=92.0)
    assert director.settings["drop_packet"] == 1
    assert opens(director, 8, 92.1, first=4000) == "f" * 8


def test_half_open_entries_go(directors: Callable[..., Any]) -> None:
    """drop_entry 3: about a 32nd of the table each second; established and finished ones stay."""
    director = fresh(directors)
    opens(director, 640, 1.0)
    opens(director, 100, 1.1, first=1000, flags="A")
    director.settings["drop_entry"] = 3
    left = []
    for second in range(2, 32):
        director.advance(now=second)
        left.append(len(director.connections()))
    assert left == sorted(left, reverse=True)
    assert 230 < left[-1] < 400  # 100 + 540 * (31 / 32) ** 30 = 308
    assert sum(each.state == "ESTABLISHED" for each in director.connections()) == 100
    director.settings["drop_entry"] = 0
    director.advance(now=40.0)
    assert len(director.connections()) == left[-1]


def test_quiet_entries_may_go(directors: Callable[..., Any]) -> None:
    """UDP: idle for a minute after at most eight packets; busy or talkative ones stay."""
    kind = Kind("nat", 4, "udp")
    director = fresh(directors, kind)
    opens(director, 320, 1.0, kind)
    for _ in range(10):
        opens(director, 20, 1.1, kind)
    director.settings["drop_entry"] = 3
    for second in range(2, 60):
        director.advance(now=second)
    assert len(director.connections()) == 320
    for second in range(60, 180):
        director.advance(now=second)
    ports = {each.client_port for each in director.connections()}
    assert set(range(1000, 1020)) <= ports
    assert len(ports) < 120


@pytest.mark.parametrize(
    ("method", "path", "normal", "secure"),
    [
        ("nat", "cS", "SYN_RECV", "SYN_RECV"),
        ("nat", "cS cA", "ESTABLISHED", "SYN_RECV"),
        ("nat", "cS sSA", "SYN_RECV", "SYNACK"),
        ("nat", "cS sSA cA", "ESTABLISHED", "SYNACK"),
        ("nat", "cS sSA cA sA", "ESTABLISHED", "ESTABLISHED"),
        ("nat", "cS sSA cFA", "TIME_WAIT", "SYNACK"),
        ("dr", "cS", "SYN_RECV", "SYNACK"),
        ("dr", "cS cA", "ESTABLISHED", "ESTABLISHED"),
    ],
)
def test_secure_tcp(method: str, path: str, normal: str, secure: str, directors: Callable[..., Any]) -> None:
    """The stricter table, always (3) or while memory is short (1)."""
    kind = Kind(method, 4, "tcp")
    for mode, threshold, state in ((0, 1024, normal), (3, 1024, secure), (1, 0, normal), (1, 1 << 20, secure)):
        director = fresh(directors, kind)
        director.settings["amemthresh"] = threshold
        director.settings["secure_tcp"] = mode
        for n, event in enumerate(path.split()):
            make = kind.request if event[0] == "c" else kind.reply
            frame = from_router(make(flags=event[1:])) if event[0] == "c" else from_server(make(flags=event[1:]))
            (outcome,) = director.process([(event[0], frame)], now=1.0 + n / 1000)
            assert outcome.verdict == "forward"
        (connection,) = director.connections()
        assert connection.state == state, mode


@pytest.mark.parametrize("method", ["nat", "dr", "tun"])
@pytest.mark.parametrize(("mode", "again"), [(0, False), (1, False), (2, True), (3, True)])
def test_syn_in_fin_wait(method: str, mode: int, again: bool, directors: Callable[..., Any]) -> None:
    """Bit 2 of conn_reuse_mode schedules anew, where the server is not seen; never by NAT."""
    kind = Kind(method, 4, "tcp")
    director = fresh(directors, kind, servers=2)
    director.settings["conn_reuse_mode"] = mode
    opens(director, 1, 1.0, kind)
    opens(director, 1, 1.1, kind, flags="A")
    if method == "nat":
        number = 0 if director.connections()[0].dest == kind.plan.servers[0] else 1
        director.process([("s", from_server(kind_reply(kind, number, "FA"), number))], now=1.2)
    else:
        opens(director, 1, 1.2, kind, flags="FA")
    (before,) = director.connections()
    assert before.state == "FIN_WAIT"
    opens(director, 1, 1.3, kind)
    (after,) = director.connections()
    assert (after.dest != before.dest) == (again and method != "nat")
    assert after.state == "SYN_RECV"


def kind_reply(kind: Kind, number: int, flags: str) -> Any:
    """A server's answer to the client of `opens`."""
    packet = kind.reply(number, flags=flags)
    packet.dport = 1000
    return packet


def test_connections_of_a_deleted_server(directors: Callable[..., Any]) -> None:
    """They stay and are dropped; with expire_nodest_conn they are gone at once, and their packets scheduled anew."""
    for setting in (0, 1):
        director = fresh(directors, servers=2)
        director.settings["expire_nodest_conn"] = setting
        opens(director, 40, 1.0)
        assert director.ipvsadm(f"-d {KIND.service} {KIND.server(0)}").returncode == 0
        assert len(director.connections()) == (20 if setting else 40)
        outcomes = director.process([("c", from_router(KIND.request(sport=1000 + n))) for n in range(40)], now=2.0)
        ends = [each.verdict for each in outcomes]
        assert ends.count("forward") == (40 if setting else 20)
        assert ends.count("drop") == (0 if setting else 20)
        if setting:
            assert {each.dest for each in director.connections()} == {KIND.plan.servers[1]}
