"""The data plane decides as the picks' plain-Python reading does; shares, and who moves when a server goes."""

from __future__ import annotations

from collections import Counter

import pytest
from golden import wire
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.test_sched_user import KEY, VIP, chosen, clients, director

from pylvs import Director
from pylvs.model import Mark, RealServer, Service
from pylvs.sched import SCHEDULERS, Server
from pylvs.sched.explain import Bench, Client

FLAGS = {
    "sh": [(), ("sh-fallback",), ("sh-port",), ("sh-fallback", "sh-port")],
    "mh": [(), ("mh-fallback",), ("mh-port",), ("flag-1", "flag-2")],
}
CASES = [(name, flags) for name in SCHEDULERS if name != "twos" for flags in FLAGS.get(name, [()])]


def tcp(made: Director, client: str, port: int, now: float) -> str | None:
    """Open a connection that stays."""
    segment = wire.tcp(client, port, VIP, 80, "S", 1, 0)
    data = wire.frame(wire.CLIENT_SIDE, wire.mac_of("10.0.0.254"), client, VIP, 6, segment)
    (outcome,) = made.process([("cl", data)], now)
    return outcome.dest


@pytest.mark.parametrize(("name", "flags"), CASES, ids=["-".join([name, *flags]) for name, flags in CASES])
@given(
    weights=st.lists(st.integers(0, 6), min_size=1, max_size=5),
    who=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=25),
    kind=st.sampled_from(["udp", "tcp"]),
)
@settings(max_examples=12, deadline=None)
def test_core_and_reading_agree(
    name: str, flags: tuple[str, ...], weights: list[int], who: list[int], kind: str
) -> None:
    """Connection by connection, with random weights and clients."""
    made = director("rr", [1] * len(weights), [])
    made.add_service(Service(protocol="tcp", address=VIP, port=80, scheduler=name, flags=flags))
    made.edit_service(Service(protocol="udp", address=VIP, port=53, scheduler=name, flags=flags))
    for n, weight in enumerate(weights):
        made.edit_server(KEY, RealServer(address=f"10.1.0.{11 + n}", port=53, weight=weight))
        made.add_server((4, "tcp", VIP, 80), RealServer(address=f"10.1.0.{11 + n}", port=80, weight=weight))
    port = 53 if kind == "udp" else 80
    if kind == "udp":
        seen = [Server(f"10.1.0.{11 + n}", port, w, w or 1) for n, w in enumerate(weights)]
    else:
        seen = [Server(f"10.1.0.{11 + n}", port, w) for n, w in enumerate(weights)]
    pick = SCHEDULERS[name].compile(seen[::-1], frozenset(flags))
    bench = Bench(pick, [f"{server.address}:{port}" for server in seen[::-1]])
    top = getattr(pick, "top", 1)
    if name == "wrr" and kind == "udp":
        bench.level = level_after_edits(weights)
    elif name == "wrr":
        bench.level = level_after_adds(weights)
    bench.level = min(bench.level, max(top, 1))
    for n, number in enumerate(who):
        client = f"198.{18 + (number >> 16) % 2}.{number >> 8 & 255}.{number & 255}"
        decision = bench.choose(Client(client, 5000 + n, VIP))
        want = None if decision.server is None else bench.names[decision.server]
        if kind == "tcp":
            got = tcp(made, client, 5000 + n, n * 1e-3)
        else:
            datagram = wire.udp(client, 5000 + n, VIP, 53, b"")
            data = wire.frame(wire.CLIENT_SIDE, wire.mac_of("10.0.0.254"), client, VIP, 17, datagram)
            (outcome,) = made.process([("cl", data)], n * 1e-3)
            got = outcome.dest
        assert got == want, decision.why
        if decision.server is not None:
            (bench.active if kind == "tcp" else bench.inactive)[decision.server] += 1


def moved(level: int, some: list[int]) -> int:
    """wrr's level after the weights have become `some`."""
    pick = SCHEDULERS["wrr"].compile([Server("10.0.0.1", 1, weight) for weight in some], frozenset())
    top, step = getattr(pick, "top", 0), getattr(pick, "step", 1)
    if level > top or level == 0:
        return int(top)
    return level // step * step + 1 if step > 1 else level


def level_after_adds(weights: list[int]) -> int:
    """A service built server by server."""
    level = 0
    for n in range(len(weights)):
        level = moved(level, weights[: n + 1])
    return level


def level_after_edits(weights: list[int]) -> int:
    """Bound to servers of weight 1, which then are edited one by one."""
    level = 1
    for n in range(len(weights)):
        level = moved(level, [*weights[: n + 1], *[1] * (len(weights) - n - 1)])
    return level


@pytest.mark.parametrize("name", ["sh", "mh", "dh"])
def test_clients_stay(name: str) -> None:
    """The same client goes to the same server, whatever else goes on."""
    made = director(name, [1, 1, 1], [])
    assert chosen(made, clients(500), 1.0) == chosen(made, clients(500), 2.0)


@pytest.mark.parametrize("flags", [("mh-fallback",), ("sh-fallback",)])
def test_only_its_clients_move_when_a_server_rests(flags: tuple[str, ...]) -> None:
    """Weight 0: the others' clients stay where they are, its own find others."""
    made = director(flags[0][:2], [1, 1, 1, 1], [])
    made.edit_service(Service(protocol="udp", address=VIP, port=53, scheduler=flags[0][:2], flags=flags))
    before = chosen(made, clients(2000), 1.0)
    made.edit_server(KEY, RealServer(address="10.1.0.12", port=53, weight=0))
    after = chosen(made, clients(2000), 2.0)
    assert None not in after
    assert all(a == b for a, b in zip(before, after, strict=True) if a != "10.1.0.12:53")
    assert "10.1.0.12:53" not in after


def test_few_move_when_a_server_is_deleted() -> None:
    """Maglev's promise: nearly all that move are the deleted server's own clients; sh moves most of them."""
    moves = {}
    for name in ("mh", "sh"):
        made = director(name, [1] * 5, [])
        before = chosen(made, clients(3000), 1.0)
        made.delete_server(KEY, "10.1.0.13", 53)
        after = chosen(made, clients(3000), 2.0)
        moves[name] = sum(a != b for a, b in zip(before, after, strict=True) if a != "10.1.0.13:53")
    assert moves["mh"] < 0.15 * 3000
    assert moves["mh"] < moves["sh"] / 3


@pytest.mark.parametrize("name", ["mh", "sh", "twos"])
def test_shares_follow_weights(name: str) -> None:
    """Six, three and one of ten."""
    shares = Counter(chosen(director(name, [6, 3, 1], []), clients(9000)))
    for address, weight in (("10.1.0.11", 6), ("10.1.0.12", 3), ("10.1.0.13", 1)):
        assert shares[f"{address}:53"] == pytest.approx(900 * weight, rel=0.2), name


def test_draws_repeat_by_seed() -> None:
    """twos is random, but an offline director's is the same each time."""
    assert chosen(director("twos", [1, 1, 1], []), clients(200)) == chosen(director("twos", [1, 1, 1], []), clients(200))


# ------------------------------------------------------------------------------------------------------- the cache


def cluster(name: str, weights: list[int]) -> Director:
    """A firewall-mark service over 203.0.113.0/24 and 198.18.0.0/15 besides."""
    made = director("rr", [], [])
    made.configure(
        interfaces={
            "lo": {"addresses": [f"{VIP}/32"]},
            "cl": {"mac": wire.CLIENT_SIDE, "addresses": ["10.0.0.1/24"]},
            "sv": {"mac": wire.SERVER_SIDE, "addresses": ["10.1.0.1/16"]},
        },
        neighbours={f"10.1.0.{11 + n}": wire.mac_of(f"10.1.0.{11 + n}") for n in range(len(weights))},
        marks=[{"mark": 7, "destination": "203.0.0.0/8"}],
    )
    assert made.marks == (Mark(mark=7, destination="203.0.0.0/8"),)
    made.add_service(Service(protocol="fwm", fwmark=7, scheduler=name))
    for n, weight in enumerate(weights):
        made.add_server((4, "fwm", "", 7), RealServer(address=f"10.1.0.{11 + n}", weight=weight))
    return made


def ask(made: Director, destination: str, port: int, now: float) -> str | None:
    """One datagram to a destination."""
    data = wire.frame(
        wire.CLIENT_SIDE, wire.mac_of("10.0.0.254"), "198.51.100.7", destination, 17,
        wire.udp("198.51.100.7", port, destination, 80, b""),
    )  # fmt: skip
    (outcome,) = made.process([("cl", data)], now)
    return outcome.dest and outcome.dest.rpartition(":")[0]


@pytest.mark.parametrize("name", ["lblc", "lblcr"])
def test_addresses_keep_their_server(name: str) -> None:
    """A destination stays with its server, also when others have less to do; a deleted server gives its own up."""
    made = cluster(name, [1, 1, 1])
    where = [f"203.0.113.{n}" for n in range(1, 31)]
    before = [ask(made, each, 1000, 1.0) for each in where]
    assert set(before) == {"10.1.0.11", "10.1.0.12", "10.1.0.13"}
    assert [ask(made, each, 1001, 2.0) for each in where[::-1]] == before[::-1]
    made.delete_server((4, "fwm", "", 7), "10.1.0.12", 0)
    after = [ask(made, each, 1002, 3.0) for each in where]
    assert "10.1.0.12" not in after
    assert all(a == b for a, b in zip(before, after, strict=True) if a != "10.1.0.12")


def test_a_revived_server_has_its_addresses_back() -> None:
    """As long as an address was not asked for meanwhile, however long that was."""
    made = cluster("lblc", [1, 1])
    where = [f"203.0.113.{n}" for n in range(1, 21)]
    before = [ask(made, each, 1000, 1.0) for each in where]
    made.delete_server((4, "fwm", "", 7), "10.1.0.11", 0)
    for minute in range(1, 20):
        made.advance(60.0 * minute)
    made.add_server((4, "fwm", "", 7), RealServer(address="10.1.0.11"))
    assert [ask(made, each, 1001, 1250.0) for each in where] == before


def test_addresses_expire_at_a_full_check() -> None:
    """Unused for the expiration when one of the half-hourly checks comes: forgotten. Between checks: remembered."""
    made = cluster("lblc", [1, 1])
    made.settings["lblc_expiration"] = 60
    first = ask(made, "203.0.113.1", 1000, 1.0)
    other = {"10.1.0.11": "10.1.0.12", "10.1.0.12": "10.1.0.11"}[str(first)]
    busy = [f"203.0.113.{n}" for n in range(2, 100)]
    assert ask(made, "203.0.113.1", 1001, 1700.0) == first
    for n, each in enumerate(busy):
        ask(made, each, 2000 + n, 1790.0)
    assert ask(made, "203.0.113.1", 1002, 1795.0) == first
    made.edit_server((4, "fwm", "", 7), RealServer(address=other, weight=100))
    assert ask(made, "203.0.113.1", 1003, 1801.0) == first  # used 6 s before the check
    for n, each in enumerate(busy):  # so that both servers have something to do
        ask(made, each, 3000 + n, 3590.0)
    assert ask(made, "203.0.113.1", 1004, 3601.0) == other


@pytest.mark.parametrize("name", ["lblc", "lblcr"])
def test_a_full_cache_forgets_the_oldest(name: str) -> None:
    """More addresses than it holds: nothing breaks, and deleting services and servers frees everything."""
    made = cluster(name, [1, 1, 1])
    for n in range(16384 + 500):
        assert ask(made, f"203.{n >> 16}.{n >> 8 & 255}.{n & 255}", 1000, 1.0 + n * 1e-6)
    made.flush()
    made.advance(1000.0)
    made.advance(2000.0)
    made.advance(3000.0)
    assert not made._table.trash


def test_switching_forgets() -> None:
    """-E to another scheduler and back starts with an empty cache, and lets go of deleted servers."""
    made = cluster("lblc", [1, 1])
    for n in range(50):
        ask(made, f"203.0.113.{n}", 1000, 1.0)
    made.delete_server((4, "fwm", "", 7), "10.1.0.11", 0)
    made.edit_service(Service(protocol="fwm", fwmark=7, scheduler="rr"))
    for time in (400.0, 500.0, 700.0):
        made.advance(time)
    assert not made._table.trash
