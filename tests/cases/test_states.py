"""TCP states and timeouts, and how long an entry lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cases.craft import Kind, from_router, from_server, host

#: events (c: from the client, s: from the server) and the state after them; NAT, both directions seen
NAT_PATHS = {
    "cS": "SYN_RECV",
    "cS sSA": "SYN_RECV",  # a SYN from the server too
    "cS sSA cA": "ESTABLISHED",
    "cS cA": "ESTABLISHED",
    "cS cS": "SYN_RECV",
    "cS cR": "SYN_RECV",
    "cS sR": "CLOSE",
    "cS sRA": "CLOSE",
    "cS cF": "TIME_WAIT",
    "cS sSA cA cFA": "CLOSE_WAIT",
    "cS sSA cA cFA sA": "CLOSE_WAIT",
    "cS sSA cA cFA sFA": "TIME_WAIT",
    "cS sSA cA cFA sFA cA": "TIME_WAIT",
    "cS sSA cA sFA": "FIN_WAIT",
    "cS sSA cA sFA cA": "FIN_WAIT",
    "cS sSA cA sFA cFA": "TIME_WAIT",
    "cS sSA cA cR": "CLOSE",
    "cS sSA cA sR": "CLOSE",
    "cS sSA cA cFA cR": "CLOSE",
    "cS sSA cA cS": "ESTABLISHED",
    "cS sSA cA cP": "CLOSE",  # neither of RST, SYN, FIN and ACK
    "cS sSA cA cSF": "ESTABLISHED",  # SYN comes before FIN
    "cS sSA cA cFR": "CLOSE",  # and RST before all
    "cS sSA cA cR cA": "CLOSE",
    "cS sSA cA sFA sS": "SYN_SENT",
    "cS sSA cA sFA sS cS": "ESTABLISHED",
    "cS sSA cA sFA sS cA": "SYN_SENT",
}
#: DR and TUN: nobody sees the servers
ONE_WAY_PATHS = {
    "cS": "SYN_RECV",
    "cS cA": "ESTABLISHED",
    "cS cA cFA": "FIN_WAIT",
    "cS cA cFA cA": "FIN_WAIT",
    "cS cA cR": "CLOSE",
    "cS cR": "SYN_RECV",
    "cS cF": "TIME_WAIT",
    "cS cA cFA cS": "SYN_RECV",
    "cS cA cP": "CLOSE",
}
SECONDS = {
    "ESTABLISHED": 900, "SYN_SENT": 120, "SYN_RECV": 60, "FIN_WAIT": 120, "TIME_WAIT": 120, "CLOSE": 10,
    "CLOSE_WAIT": 60, "UDP": 300,
}  # fmt: skip
ACTIVE = {"ESTABLISHED", "SYN_SENT", "SYN_RECV"}
PATHS = [(Kind("nat", family, "tcp"), path, state) for family in (4, 6) for path, state in NAT_PATHS.items()] + [
    (Kind(method, 4, "tcp"), path, state) for method in ("dr", "tun") for path, state in ONE_WAY_PATHS.items()
]


def walk(director: Any, kind: Kind, path: str, now: float = 1.0) -> None:
    """Send the segments of `path`; each must be forwarded."""
    for event in path.split():
        now += 0.001
        if event[0] == "c":
            frame = ("c", from_router(kind.request(flags=event[1:])))
        else:
            frame = ("s", from_server(kind.reply(flags=event[1:])))
        (outcome,) = director.process([frame], now=now)
        assert outcome.verdict == "forward", (event, outcome.verdict, outcome.reason)


def fresh(directors: Callable[..., Any], kind: Kind) -> Any:
    """A director with one service and one server."""
    director = directors(**host())
    for line in kind.commands():
        assert director.ipvsadm(line).returncode == 0
    return director


@pytest.mark.parametrize(("kind", "path", "state"), PATHS, ids=[f"{kind}-{path}" for kind, path, _ in PATHS])
def test_state_and_lifetime(kind: Kind, path: str, state: str, directors: Callable[..., Any]) -> None:
    """The state after a path, whether it counts as active, and when the entry is gone: never early, a little late."""
    director = fresh(directors, kind)
    walk(director, kind, path)
    (connection,) = director.connections()
    seconds = SECONDS[state]
    assert connection.state == state
    assert seconds - 1 <= connection.expires <= seconds * 1.125 + 1
    (service,) = director.status()
    (server,) = service.servers
    assert (server.active, server.inactive) == ((1, 0) if state in ACTIVE else (0, 1))
    director.advance(now=1.0 + seconds - 0.5)
    assert len(director.connections()) == 1
    director.advance(now=1.0 + seconds * 1.125 + 2)
    assert director.connections() == []
    (service,) = director.status()
    assert (service.servers[0].active, service.servers[0].inactive) == (0, 0)


def test_every_packet_restarts_the_timer(directors: Callable[..., Any]) -> None:
    """UDP, both directions."""
    kind = Kind("nat", 4, "udp")
    director = fresh(directors, kind)
    for turn in range(6):
        frame = ("s", from_server(kind.reply())) if turn % 2 else ("c", from_router(kind.request()))
        (outcome,) = director.process([frame], now=1.0 + turn * 250)
        assert outcome.verdict == "forward", turn
    (connection,) = director.connections()
    assert connection.packets == 3


def test_set_timeouts(directors: Callable[..., Any]) -> None:
    """``--set`` holds from a flow's next packet on, 0 keeps a value, and only three states have settable timers."""
    tcp, udp = Kind("nat", 4, "tcp"), Kind("nat", 4, "udp")
    director = fresh(directors, tcp)
    for line in udp.commands():
        assert director.ipvsadm(line).returncode == 0
    walk(director, tcp, "cS cA")
    walk(director, udp, "c")
    assert director.ipvsadm("--set 40 0 20").returncode == 0
    walk(director, udp, "c", now=2.0)
    expires = {connection.protocol: connection.expires for connection in director.connections()}
    assert expires["TCP"] > 800
    assert 19 <= expires["UDP"] <= 24
    walk(director, tcp, "cA", now=3.0)
    (connection,) = [entry for entry in director.connections() if entry.protocol == "TCP"]
    assert 39 <= connection.expires <= 46
    walk(director, tcp, "sFA", now=4.0)
    (connection,) = [entry for entry in director.connections() if entry.protocol == "TCP"]
    assert (connection.state, connection.expires > 118) == ("FIN_WAIT", True)
    director.advance(now=30.0)
    assert [entry.protocol for entry in director.connections()] == ["TCP"]


def test_dropped_packets_do_not_restart_the_timer(directors: Callable[..., Any]) -> None:
    """A flow whose server is gone ends in its own time, however loudly the client asks."""
    kind = Kind("nat", 4, "udp")
    director = fresh(directors, kind)
    walk(director, kind, "c")
    assert director.ipvsadm(f"-d {kind.service} {kind.server()}").returncode == 0
    for turn in range(1, 12):
        (outcome,) = director.process([("c", from_router(kind.request()))], now=1.0 + turn * 25)
        assert (outcome.verdict, bool(outcome.reason)) == ("drop", True)
    director.advance(now=1.0 + 300 * 1.125 + 2)
    assert director.connections() == []
