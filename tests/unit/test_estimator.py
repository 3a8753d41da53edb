"""Smoothed rates: known sequences, zeroing, and how far they lag."""

from __future__ import annotations

from typing import Any

from cases.craft import Kind, from_router, from_server, host

from pylvs.estimator import LONGEST_DECAY, Estimate
from pylvs.model import Stats

PACKETS = [25, 44, 58, 68, 76, 82, 87, 90]
BYTES = [250000, 437500, 578125, 683594, 762695, 822021, 866516, 899887]


def test_constant_load() -> None:
    """200 packets and 2 000 000 bytes in every two seconds."""
    estimate, shown = Estimate(), []
    for tick in range(1, 9):
        estimate.look((200 * tick, 200 * tick, 200 * tick, 2_000_000 * tick, 2_000_000 * tick))
        shown.append(estimate.stats())
    assert [each.cps for each in shown] == [each.inpps for each in shown] == [each.outpps for each in shown] == PACKETS
    assert [each.inbps for each in shown] == [each.outbps for each in shown] == BYTES
    assert (shown[-1].conns, shown[-1].inbytes) == (1600, 16_000_000)


def test_every_rate_ends() -> None:
    """However high, it is zero after the longest decay, so that missed ticks beyond it change nothing."""
    estimate = Estimate()
    estimate.look((2**40, 2**40, 2**40, 2**63, 2**63))
    for _ in range(LONGEST_DECAY - 1):
        estimate.look((2**40, 2**40, 2**40, 2**63, 2**63))
    stats = estimate.stats()
    assert (stats.cps, stats.inpps, stats.outpps, stats.inbps, stats.outbps) == (0, 0, 0, 0, 0)
    assert stats.inbytes == 2**63


def test_zero_counts_from_the_last_look() -> None:
    """What came after it is still counted, as in the kernel."""
    estimate = Estimate()
    estimate.look((10, 20, 30, 40, 50))
    estimate.zero()
    assert estimate.stats() == Stats()
    estimate.look((11, 22, 33, 44, 55))
    stats = estimate.stats()
    assert (stats.conns, stats.inpkts, stats.outpkts, stats.inbytes, stats.outbytes) == (1, 2, 3, 4, 5)


def busy(directors: Any) -> tuple[Any, Kind]:
    """A director at 0.1 s whose NAT service has seen a request and a reply."""
    kind = Kind("nat", 4, "udp")
    director = directors(**host())
    for line in kind.commands():
        assert director.ipvsadm(line).returncode == 0
    director.process([("c", from_router(kind.request())), ("s", from_server(kind.reply()))], now=0.1)
    return director, kind


def stats(director: Any) -> list[tuple[int, ...]]:
    """Counters of the service, of its server and of everything."""
    (service,) = director.status()
    every = (service.stats, service.servers[0].stats, director.totals())
    return [(each.conns, each.inpkts, each.outpkts, each.inbytes, each.outbytes, each.inbps) for each in every]


def test_snapshots_lag_up_to_two_seconds(directors: Any) -> None:
    """Nothing is shown before the tick; connection counts are live."""
    director, _ = busy(directors)
    assert stats(director) == [(0, 0, 0, 0, 0, 0)] * 3
    assert director.status()[0].servers[0].inactive == 1
    director.advance(now=1.99)
    assert stats(director) == [(0, 0, 0, 0, 0, 0)] * 3
    director.advance(now=2.0)
    assert stats(director) == [(1, 1, 1, 51, 51, 6)] * 3
    assert "       0        0        0        6        6" in director.ipvsadm("-Ln --rate").stdout
    director.advance(now=60.0)
    assert stats(director) == [(1, 1, 1, 51, 51, 0)] * 3


def test_zero_clears_counters_and_rates(directors: Any) -> None:
    """Of one service: not the totals; of all: those too."""
    director, kind = busy(directors)
    director.advance(now=2.0)
    assert director.ipvsadm(f"-Z {kind.service}").returncode == 0
    assert stats(director) == [(0, 0, 0, 0, 0, 0)] * 2 + [(1, 1, 1, 51, 51, 6)]
    assert director.ipvsadm("-Z").returncode == 0
    assert stats(director) == [(0, 0, 0, 0, 0, 0)] * 3
    director.advance(now=4.0)
    assert stats(director) == [(0, 0, 0, 0, 0, 0)] * 3


def test_run_estimation_stands_still(directors: Any) -> None:
    """0 keeps what was shown."""
    director, _ = busy(directors)
    director.settings["run_estimation"] = 0
    director.advance(now=9.0)
    assert stats(director) == [(0, 0, 0, 0, 0, 0)] * 3
    director.settings["run_estimation"] = 1
    director.advance(now=10.0)
    assert stats(director) == [(1, 1, 1, 51, 51, 6)] * 3


def test_a_revived_server_keeps_its_counters(directors: Any) -> None:
    """Deleted and added again in the same service: they go on. In a service that is new: they begin at zero."""
    director, kind = busy(directors)
    director.advance(now=2.0)
    assert director.ipvsadm(f"-d {kind.service} {kind.server()}").returncode == 0
    assert director.ipvsadm(f"-a {kind.service} {kind.server()} -m").returncode == 0
    assert stats(director)[1][:5] == (1, 1, 1, 51, 51)
    assert director.ipvsadm(f"-D {kind.service}").returncode == 0
    for line in kind.commands():
        assert director.ipvsadm(line).returncode == 0
    assert [each[:5] for each in stats(director)] == [(0, 0, 0, 0, 0)] * 2 + [(1, 1, 1, 51, 51)]


def test_proc_stats(directors: Any) -> None:
    """Totals, and a row for each worker that nothing zeroes."""
    director, _ = busy(directors)
    director.advance(now=2.0)
    director.ipvsadm("-Z")
    lines = director.proc("ip_vs_stats_percpu").split("\n")
    assert lines[2] == "  0        1        1        1               33               33"
    assert lines[3] == "  ~        0        0        0                0                0"
    assert director.proc("ip_vs_stats").split("\n")[2] == lines[3][4:]
