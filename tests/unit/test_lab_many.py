"""Verdicts on the labs of many clients: they hold, and each fails for the one thing that it is about."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import pytest

from pylvs.lab import many, sctp
from pylvs.lab.topology import persist
from pylvs.lab.verdict import Verdict

SERVERS = ["rs1", "rs2", "rs3"]


def broken(verdict: Verdict) -> str:
    return "" if verdict.ok else "\n".join(verdict.faults)


def test_addresses_are_different_and_in_turn() -> None:
    found = many.addresses(48, 12)
    assert len(set(found)) == 48 and found[:2] == ["10.1.0.10", "10.1.1.10"] and found[12] == "10.1.0.11"
    assert len({many.network_of(address) for address in found}) == 12
    assert len(set(many.addresses(10_000, 16))) == 10_000


def test_who_is_not_answered_is_counted() -> None:
    assert not broken(many.answered([("a", "rs1")], {}))
    assert "1 of 2 were answered" in broken(many.answered([("a", "rs1"), ("b", "")], {}))
    assert "2 x timed out" in broken(many.answered([("a", "rs1")], {"timed out": 2}))
    assert not many.answered([], {}).ok


def test_a_client_that_meets_two_servers_is_found() -> None:
    assert not broken(many.faithful("x", many.met([("a", "rs1"), ("a", "rs1")])))
    assert "a met rs1 1, rs2 1" in broken(many.faithful("x", many.met([("a", "rs1"), ("a", "rs2")])))
    assert "says nothing" in broken(many.faithful("x", many.met([("a", "rs1")])))
    assert not many.faithful("x", {}).ok


def test_shares_of_groups() -> None:
    fair = many.met((f"{n}", SERVERS[n % 3]) for n in range(12))
    assert not broken(many.even("x", fair, SERVERS))
    assert "rs1 has 12, due were 4" in broken(many.even("x", many.met((f"{n}", "rs1") for n in range(12)), SERVERS))


def listing(client: str = "10.1.0.0", server: str = "192.168.10.100") -> str:
    return f"""IPVS connection entries
pro expire state       source             virtual            destination
TCP 00:59  TIME_WAIT   10.1.0.10:10000    10.0.0.2:80        192.168.10.100:8080
TCP 04:59  ASSURED     {client}:0         10.0.0.2:80        {server}:8080
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (listing(), ""),
        (listing(server="192.168.10.101"), "is for rs2, but rs1 answered"),
        (listing(client="10.1.7.0"), "10.1.0.0 has no template\na template for 10.1.7.0"),
        ("", "has no template"),
    ],
)
def test_templates(text: str, says: str) -> None:
    faults = broken(many.templates(persist(), text, many.met([("10.1.0.0", "rs1")])))
    assert says in faults if says else not faults


def test_granularity() -> None:
    assert not broken(many.scattered("", many.met([("n", "rs1"), ("n", "rs2")])))
    assert "no network" in broken(many.scattered("", many.met([("n", "rs1"), ("n", "rs1")])))


BEFORE = {"a": "rs3", "b": "rs1", "c": "rs2", "d": "rs1"}


@pytest.mark.parametrize(
    ("now", "bound", "says"),
    [
        (BEFORE | {"a": "rs1"}, 0.0, ""),
        (BEFORE | {"a": "rs1", "b": "rs2"}, 0.1, "1 of 3 other clients moved (33.3%)"),
        (BEFORE | {"a": "rs1", "b": "rs2"}, None, ""),
        (BEFORE, None, "1 of 1 clients of rs3 were not served"),
        (BEFORE | {"a": ""}, None, "1 of 1 clients of rs3 were not served"),
    ],
)
def test_who_moved(now: dict[str, str], bound: float | None, says: str) -> None:
    faults = broken(many.moved(many.figures("mh", "rs3", BEFORE, now), bound))
    assert says in faults if says else not faults


def test_a_server_without_clients_proves_nothing() -> None:
    assert "rs9 had no clients" in broken(many.moved(many.figures("mh", "rs9", BEFORE, BEFORE), 0.1))


def test_the_same_again() -> None:
    assert not broken(many.same("x", BEFORE, BEFORE))
    assert "1 of 4 met another server, b" in broken(many.same("x", BEFORE, BEFORE | {"b": "rs3"}))
    assert "rs3 has 0 of 4" in broken(many.shared("sh", BEFORE | {"a": "rs1"}, SERVERS))


def test_marks() -> None:
    assert not broken(many.together(BEFORE, BEFORE, (80, 443)))
    assert "c met rs2 on 80 and None on 443" in broken(many.together(BEFORE, {"a": "rs3"}, (80, 443)))
    assert not broken(many.unmarked(81, [("a", "")], {"refused": 1}))
    assert "rs1 answered a" in broken(many.unmarked(81, [("a", "rs1")], {}))


def test_both_ends_of_the_sctp_lab_over_tcp() -> None:
    """This kernel may have no SCTP; the two ends are the same over TCP."""
    module: Sequence[str] = (sys.executable, "-m", "pylvs.lab.sctp", "--tcp")
    argv = [*module, "--name", "rs7", "--listen", "127.0.0.9:18080"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None and "ready" in server.stdout.readline()
            clients = "127.0.0.10,127.0.0.11"
            argv = [*module, "--connect", "127.0.0.9:18080", "--from", clients, "--ports", "18100"]
            text = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True).stdout
        finally:
            server.terminate()
    report, done = (json.loads(line) for line in text.splitlines())
    assert report["each"] == [["127.0.0.10", "rs7"], ["127.0.0.11", "rs7"]] and not report["errors"]
    assert done == {"event": "done"}
    assert isinstance(sctp.missing(), str)
