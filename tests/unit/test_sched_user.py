"""Schedulers of the user's own: the documented examples, and everything that can be wrong with one."""

from __future__ import annotations

import textwrap
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from golden import wire

from pylvs import Director
from pylvs.model import RealServer, Refused, Service
from pylvs.sched import SCHEDULERS
from pylvs.sched.load import Schedulers, from_module

ROOT = Path(__file__).resolve().parents[2]
CANARY = str(ROOT / "examples/scheduler-canary/canary.py")
OFFICE = str(ROOT / "examples/scheduler-time-of-day/time_of_day.py")
VIP, KEY = "10.0.0.100", (4, "udp", "10.0.0.100", 53)


def director(scheduler: str, weights: list[int], modules: list[str]) -> Director:
    """Servers 10.1.0.11 and so on, in the order of adding."""
    neighbours = {"10.0.0.254": wire.mac_of("10.0.0.254")}
    neighbours |= {f"10.1.0.{11 + n}": wire.mac_of(f"10.1.0.{11 + n}") for n in range(len(weights) + 1)}
    made = Director(
        interfaces={
            "lo": {"addresses": [f"{VIP}/32"]},
            "cl": {"mac": wire.CLIENT_SIDE, "addresses": ["10.0.0.1/24"]},
            "sv": {"mac": wire.SERVER_SIDE, "addresses": ["10.1.0.1/16"]},
        },
        neighbours=neighbours,
        routes={"0.0.0.0/0": "10.0.0.254"},
        seed=0,
        scheduler_modules=modules,
    )
    made.add_service(Service(protocol="udp", address=VIP, port=53, scheduler=scheduler))
    for n, weight in enumerate(weights):
        made.add_server(KEY, RealServer(address=f"10.1.0.{11 + n}", port=53, weight=weight))
    return made


def chosen(made: Director, clients: list[str], now: float = 0.0) -> list[str | None]:
    """The server that each client's datagram goes to; a new source port for each call's time."""
    frames = []
    for client in clients:
        datagram = wire.udp(client, 4000 + int(now) % 1000, VIP, 53, b"ping")
        frames.append(("cl", wire.frame(wire.CLIENT_SIDE, wire.mac_of("10.0.0.254"), client, VIP, 17, datagram)))
    return [outcome.dest for outcome in made.process(frames, now)]


def clients(count: int) -> list[str]:
    return [f"198.51.{n // 200}.{n % 200 + 1}" for n in range(count)]


def test_canary_has_its_percentage() -> None:
    """Five in a hundred, near enough; the others share the rest."""
    shares = Counter(chosen(director("canary", [1, 1, 1], [CANARY]), clients(8000)))
    assert shares["10.1.0.13:53"] == pytest.approx(400, rel=0.2)
    assert shares["10.1.0.11:53"] == pytest.approx(3800, rel=0.1)
    assert shares["10.1.0.12:53"] == pytest.approx(3800, rel=0.1)


def test_canary_keeps_its_clients_and_rests() -> None:
    """The same client, the same server; at weight 0 its clients alone move."""
    made = director("canary", [1, 1, 1], [CANARY])
    before = chosen(made, clients(2000), 1.0)
    assert chosen(made, clients(2000), 2.0) == before
    made.edit_server(KEY, RealServer(address="10.1.0.13", port=53, weight=0))
    after = chosen(made, clients(2000), 3.0)
    assert all(a == b for a, b in zip(before, after, strict=True) if a != "10.1.0.13:53")
    assert "10.1.0.13:53" not in after
    assert None not in after


@pytest.mark.parametrize("count", [0, 1, 2])
def test_canary_with_few_servers(count: int) -> None:
    """No server, or only the canary."""
    shares = Counter(chosen(director("canary", [1] * count, [CANARY]), clients(500)))
    assert set(shares) <= {None, "10.1.0.11:53", "10.1.0.12:53"}
    assert (None in shares) == (count == 0)


def test_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """At night the server of weight 50 rests; it comes back within a minute of seven o'clock, by itself."""
    made = director("office", [10, 50], [OFFICE])
    cls: Any = type(made._table._schedulers["office"])
    monkeypatch.setattr(cls, "clock", staticmethod(lambda: datetime(2026, 1, 1, 3)))
    made.advance(100.0)
    assert set(chosen(made, clients(100), 101.0)) == {"10.1.0.11:53"}
    monkeypatch.setattr(cls, "clock", staticmethod(lambda: datetime(2026, 1, 1, 7)))
    assert set(chosen(made, clients(100), 120.0)) == {"10.1.0.11:53"}
    assert "10.1.0.12:53" in chosen(made, clients(100), 162.0)


def module(tmp_path: Path, body: str, name: str = "own") -> str:
    """A module with one scheduler whose `compile` has this body."""
    path = tmp_path / "own.py"
    path.write_text(
        "from pylvs.sched import *\nclass Own:\n"
        f"    name = {name!r}\n    about = 'a test'\n    def compile(self, servers, flags):\n"
        + textwrap.indent(textwrap.dedent(body), " " * 8)
    )
    return str(path)


BAD = [
    ("raise RuntimeError('out of luck')", "out of luck"),
    ("return None", "return one of the picks"),
    ("return Least((1,), 'connections')", "weights"),
    ("return Least([s.weight for s in servers], 'connections')", "weights"),
    ("return Least(tuple('x' for s in servers), 'connections')", "'x'"),
    ("return Least(tuple(-1 for s in servers), 'connections')", "-1"),
    ("return Least(tuple(2**31 for s in servers), 'connections')", "2147483648"),
    ("return Least(tuple(1 for s in servers), 'cheapest')", "cheapest"),
    ("return Cursor(tuple(1 for s in servers), step=0)", "step"),
    ("return Table((len(servers),), tuple(1 for s in servers))", "position"),
    ("return Table((0, 0, 0), tuple(1 for s in servers), hash='multiply')", "power of two"),
    ("return Table((0,), tuple(1 for s in servers), hash='md5')", "md5"),
]


@pytest.mark.parametrize(("body", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_bad_picks_are_refused(tmp_path: Path, body: str, reason: str) -> None:
    """The error names scheduler and reason, the change is not made, packets go on by the old picks."""
    guard = f"if len(servers) < 2:\n    return Least(tuple(s.weight for s in servers), 'weighted')\n{body}\n"
    made = director("own", [1], [module(tmp_path, guard)])
    with pytest.raises(ValueError, match="own") as caught:
        made.add_server(KEY, RealServer(address="10.1.0.12", port=53))
        assert reason in str(caught.value)
        assert isinstance(caught.value, Refused)
    (service,) = made.status()
    assert [each.server.address for each in service.servers] == ["10.1.0.11"]
    assert set(chosen(made, clients(50))) == {"10.1.0.11:53"}
    result = made.ipvsadm("-a -u 10.0.0.100:53 -r 10.1.0.12:53")
    assert result.returncode != 0
    assert "own" in result.stderr
    assert reason in result.stderr


def test_a_switch_to_a_bad_scheduler_is_refused(tmp_path: Path) -> None:
    """`-E -s` keeps the old scheduler."""
    made = director("rr", [1, 1], [module(tmp_path, "return 7\n")])
    with pytest.raises(ValueError, match="own"):
        made.edit_service(Service(protocol="udp", address=VIP, port=53, scheduler="own"))
    assert made.status()[0].service.scheduler == "rr"
    assert len(set(chosen(made, clients(10)))) == 2


MODULES = [
    ("import nothing_of_this_name\n", "nothing_of_this_name"),
    ("x = (\n", "SyntaxError"),
    ("", "no class"),
    ("class A:\n    name = 'rr'\n    about = 'x'\n    def compile(self, s, f): pass\n", "already there"),
    ("class A:\n    name = 'a' * 16\n    about = 'x'\n    def compile(self, s, f): pass\n", "1 to 15"),
    ("class A:\n    name = 'a'\n    def compile(self, s, f): pass\n", "about"),
    ("class A:\n    name = 'a'\n    about = 'x'\n    every = 0\n    def compile(self, s, f): pass\n", "every"),
    ("class A:\n    name = 'a'\n    about = 'x'\n    compile = 1\n", "compile"),
    ("class A:\n    name = 'a'\n    about = 'x'\n    def __init__(self): 1 / 0\n    def compile(self, s, f): pass\n", "zero"),
]


@pytest.mark.parametrize(("text", "reason"), MODULES, ids=[reason for _, reason in MODULES])
def test_bad_modules(tmp_path: Path, text: str, reason: str) -> None:
    """One clear error, at the start."""
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        Director(scheduler_modules=[str(path)])


def test_modules_by_name() -> None:
    with pytest.raises(ValueError, match=r"no\.such\.module"):
        from_module("no.such.module")
    assert "rr" in Schedulers()
    assert "nonesuch" not in Schedulers()
    assert set(SCHEDULERS) <= set(Schedulers())


class Entry:
    """Stands in for an installed package's entry point."""

    name = "fast"
    value = "package:Fast"

    def __init__(self, loaded: Any) -> None:
        self.loaded = loaded

    def load(self) -> Any:
        if isinstance(self.loaded, Exception):
            raise self.loaded
        return self.loaded


def test_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded when first asked for; a broken one refuses its own service only."""
    points: list[Entry] = []

    def entry_points(group: str, name: str = "fast") -> list[Entry]:
        assert group == "pylvs.schedulers"
        return [point for point in points if point.name == name]

    monkeypatch.setattr("pylvs.sched.load.entry_points", entry_points)
    fast = type("Fast", (), {"name": "fast", "about": "x", "compile": lambda self, s, f: SCHEDULERS["rr"].compile(s, f)})
    points.append(Entry(fast))
    made = director("fast", [1, 1], [])
    assert len(set(chosen(made, clients(10)))) == 2
    points[:] = [Entry(ImportError("no luck"))]
    made = director("rr", [1], [])
    result = made.ipvsadm("-A -u 10.0.0.100:54 -s fast")
    assert result.returncode != 0
    assert "no luck" in result.stderr
    assert made.ipvsadm("-A -u 10.0.0.100:55 -s rr").returncode == 0
