"""Which server each new flow gets, in the kernel's order (the server added last stands first in its list)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from cases.craft import FLAG, SERVER_MACS, Kind, from_router, host

UDP, TCP = Kind("dr", 4, "udp"), Kind("dr", 4, "tcp")

#: name, scheduler, weights of A B C, and the servers of the flows that follow
SEQUENCES = [
    ("rr", "rr", (1, 1, 1), "CBACBACBA"),
    ("rr: weights are only zero or not", "rr", (9, 0, 1), "CACACA"),
    ("rr: one server", "rr", (0, 3, 0), "BBB"),
    ("wrr begins at level 1", "wrr", (3, 2, 1), "CBAABACBAABA"),
    ("wrr", "wrr", (1, 2, 3), "CBACCBCBACCB"),
    ("wrr: common divisor", "wrr", (4, 2, 2), "CBAACBAA"),
    ("wrr: one heavy", "wrr", (5, 1, 1), "CBAAAAACBAAAAA"),
    ("wrr: two servers", "wrr", (10, 5), "BAABAA"),
    ("wrr: great weights", "wrr", (100, 50, 25), "CBAAABACBAAABA"),
    ("wrr: weight zero", "wrr", (2, 0, 1), "CAACAA"),
    ("wrr: the greatest weight", "wrr", (2147483647, 1), "BAAAAAAA"),
    ("wrr: the greatest weight alone", "wrr", (2147483647, 0), "AAAA"),
]
#: flows that are active before the next one comes, and never end
BUSY = [
    ("lc", "lc", (1, 2, 3), "CBACBACBACBA"),
    ("lc: weight zero", "lc", (1, 0, 3), "CACACA"),
    ("wlc", "wlc", (1, 2, 3), "CBACBCCBACBC"),
    ("wlc: other way round", "wlc", (3, 2, 1), "CBAABACBAABA"),
    ("wlc: weight zero", "wlc", (1, 0, 2), "CACCACCAC"),
    ("wlc: the greatest weight", "wlc", (2147483647, 1), "BAAAAAAA"),
    ("wlc: two greatest weights", "wlc", (2147483647, 2147483646), "BAABABAB"),
]
#: a story: flows (letters), commands, flows …
CHANGES = [
    (
        "wrr: weights change", "wrr", (3, 2, 1),
        ["CBAABA", ("-e", "B", 0), "ACAAACAA", ("-e", "B", 4), "BABACBAB", ("-d", "A"), "BBBCBBB"],
    ),
    ("wrr: bound later", "wlc", (3, 2, 1), [("-E", "wrr"), "ABACBAABACBA"]),
    ("wrr: bound later, common divisor", "wlc", (4, 2, 2), [("-E", "wrr"), "ACBAACBA"]),
    ("wrr: bound later, two", "wlc", (10, 5), [("-E", "wrr"), "ABAABA"]),
    ("rr: the cursor's server goes", "rr", (1, 1, 1), ["CB", ("-d", "B"), "ACAC"]),
    ("rr: the first goes", "rr", (1, 1, 1), ["C", ("-d", "C"), "BABA"]),
    ("rr: another one goes", "rr", (1, 1, 1), ["CB", ("-d", "C"), "ABAB"]),
    ("rr: added again at the head", "rr", (1, 1, 1), ["C", ("-d", "A"), ("-a", "A", 1), "BACBA"]),
    ("rr: edited weights keep the cursor", "rr", (1, 1, 1), ["CB", ("-e", "A", 7), "ACB"]),
    ("rr: edited to the same scheduler", "rr", (1, 1, 1), ["CB", ("-E", "rr"), "ACB"]),
    ("rr: bound anew", "rr", (1, 1, 1), ["CB", ("-E", "lc"), ("-E", "rr"), "CBA"]),
]  # fmt: skip


class Watcher:
    """Counts flows up and says which server each of them got."""

    def __init__(self, director: Any, kind: Kind) -> None:
        self.director, self.kind, self.flows, self.now = director, kind, 0, 1.0

    def run(self, command: str) -> None:
        result = self.director.ipvsadm(command)
        assert result.returncode == 0, (command, result.stderr)

    def set_up(self, scheduler: str, weights: tuple[int, ...]) -> None:
        for line in self.kind.commands(*weights, scheduler=scheduler):
            self.run(line)

    def next(self) -> str:
        self.flows += 1
        self.now += 0.001
        frame = from_router(self.kind.request(sport=10000 + self.flows))
        (outcome,) = self.director.process([("c", frame)], now=self.now)
        if outcome.verdict != "forward":
            return "-"
        mac = outcome.frames[0][1][:6].hex(":")
        return "ABC"[SERVER_MACS.index(mac)]

    def flow(self, count: int) -> str:
        return "".join(self.next() for _ in range(count))


@pytest.mark.parametrize(("name", "scheduler", "weights", "order"), SEQUENCES, ids=[row[0] for row in SEQUENCES])
def test_sequence(
    name: str, scheduler: str, weights: tuple[int, ...], order: str, directors: Callable[..., Any]
) -> None:
    """UDP flows, which never count as active."""
    watcher = Watcher(directors(**host()), UDP)
    watcher.set_up(scheduler, weights)
    assert watcher.flow(len(order)) == order


@pytest.mark.parametrize(("name", "scheduler", "weights", "order"), BUSY, ids=[row[0] for row in BUSY])
def test_busy_sequence(
    name: str, scheduler: str, weights: tuple[int, ...], order: str, directors: Callable[..., Any]
) -> None:
    """TCP flows: SYN_RECV counts as active."""
    watcher = Watcher(directors(**host()), TCP)
    watcher.set_up(scheduler, weights)
    assert watcher.flow(len(order)) == order


@pytest.mark.parametrize(("name", "scheduler", "weights", "story"), CHANGES, ids=[row[0] for row in CHANGES])
def test_changes(
    name: str, scheduler: str, weights: tuple[int, ...], story: list[Any], directors: Callable[..., Any]
) -> None:
    """Commands in between."""
    watcher = Watcher(directors(**host()), UDP)
    watcher.set_up(scheduler, weights)
    for step in story:
        if isinstance(step, str):
            assert watcher.flow(len(step)) == step, step
            continue
        command, subject, *weight = step
        if command == "-E":
            watcher.run(f"-E {UDP.service} -s {subject}")
            continue
        flags = f"{FLAG[UDP.method]} -w {weight[0]}" if weight else ""
        watcher.run(f"{command} {UDP.service} {UDP.server('ABC'.index(subject))} {flags}")


def test_sequence_in_one_batch(directors: Callable[..., Any]) -> None:
    """The cursor moves within a batch as between batches."""
    director = directors(**host())
    for line in UDP.commands(3, 2, 1, scheduler="wrr"):
        director.ipvsadm(line)
    batch = [("c", from_router(UDP.request(sport=10000 + n))) for n in range(12)]
    outcomes = director.process(batch, now=1.0)
    got = ["ABC"[SERVER_MACS.index(outcome.frames[0][1][:6].hex(":"))] for outcome in outcomes]
    assert "".join(got) == "CBAABACBAABA"


def test_least_connections_in_one_batch(directors: Callable[..., Any]) -> None:
    """A flow counts for the next packet of its own batch."""
    director = directors(**host())
    for line in TCP.commands(1, 2, 3, scheduler="wlc"):
        director.ipvsadm(line)
    batch = [("c", from_router(TCP.request(sport=10000 + n))) for n in range(12)]
    outcomes = director.process(batch, now=1.0)
    got = ["ABC"[SERVER_MACS.index(outcome.frames[0][1][:6].hex(":"))] for outcome in outcomes]
    assert "".join(got) == "CBACBCCBACBC"


def test_least_connections_after_expiry(directors: Callable[..., Any]) -> None:
    """What expired no longer counts."""
    watcher = Watcher(directors(**host()), UDP)
    watcher.set_up("lc", (1, 1, 1))
    assert watcher.flow(4) == "CBAC"
    watcher.now += 400
    assert watcher.flow(3) == "CBA"
