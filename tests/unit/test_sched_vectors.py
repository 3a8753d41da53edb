"""Numbers that were computed apart from this code and checked on a real kernel: hashes, tables, sequences."""

from __future__ import annotations

from collections import Counter

import pytest

from pylvs.sched import SCHEDULERS, Choice, Server, Table
from pylvs.sched.explain import Bench, Client
from pylvs.sched.mh import fill, fold, permutation, turns
from pylvs.sched.siphash import siphash


def pick_of(name: str, weights: str, flags: str = "", base: str = "10.0.0.1", port: int = 80) -> Bench:
    """A bench for servers A, B, C … of these weights, in list order (the last one first)."""
    numbers = [int(word) for word in weights.split(",")]
    servers = [Server(f"{base}{n + 1}", port, weight) for n, weight in enumerate(numbers)][::-1]
    names = "ABCDEFGH"[: len(numbers)][::-1]
    return Bench(SCHEDULERS[name].compile(servers, frozenset(filter(None, flags.split(",")))), names)


def sequence(bench: Bench, count: int, client: Client | None = None, stay: bool = True) -> str:
    """The servers of so many connections, each active (or gone) before the next."""
    found = ""
    for _ in range(count):
        decision = bench.choose(client or Client("198.51.100.7", 1))
        if decision.server is None:
            found += "-"
            continue
        found += bench.names[decision.server]
        if stay:
            bench.active[decision.server] += 1
    return found


def crowd(bench: Bench) -> str:
    """Seventy-nine clients 198.18.7.i, port 4000 + 13 i."""
    return "".join(sequence(bench, 1, Client(f"198.18.7.{i}", 4000 + 13 * i)) for i in range(1, 80))


def at_rest(name: str, flags: str) -> Bench:
    """Maglev, weights 1,1,1, then B edited to 0."""
    servers = [Server("10.0.0.13", 53, 1), Server("10.0.0.12", 53, 0, 1), Server("10.0.0.11", 53, 1)]
    return Bench(SCHEDULERS[name].compile(servers, frozenset(filter(None, flags.split(",")))), "CBA")


@pytest.mark.parametrize(
    ("address", "source", "with_port"),
    [
        ("10.0.0.1", 39, 134),
        ("192.168.0.1", 192, 31),
        ("192.168.1.10", 248, 87),
        ("172.16.5.9", 115, 209),
        ("2001:db8::1", 63, None),
        ("fe80::1", 247, None),
    ],
)
def test_multiplication(address: str, source: int, with_port: int | None) -> None:
    """The slots of dh and sh, and of sh with port 12345."""
    table = SCHEDULERS["sh"].compile([Server("10.0.0.11", 80, 1)], frozenset())
    assert isinstance(table, Table)
    bench = Bench(table, "A")
    assert bench._slot(table, fold(address), 0) == source
    if with_port is not None:
        assert bench._slot(table, fold(address) + 12345, 0) == with_port


@pytest.mark.parametrize(
    ("address", "plain", "with_port"),
    [("10.0.0.1", 3711, 490), ("192.168.0.1", 1278, 305), ("192.168.1.10", 3323, 1391), ("172.16.5.9", 3538, 4061)],
)
def test_siphash(address: str, plain: int, with_port: int) -> None:
    """The index of a client in Maglev's table, and with port 12345."""
    assert siphash(fold(address)) % 4093 == plain
    assert siphash(fold(address) + 12345) % 4093 == with_port


def test_folding() -> None:
    assert fold("2001:db8::1") == 0x20010DB9
    assert fold("fe80::1") == 0xFE800001
    assert fold("10.0.0.1") == 0x0A000001


def test_maglev_table() -> None:
    """Starts, steps and the first slots for three equal servers; shares for unequal ones."""
    servers = [Server(f"10.0.0.{n}", 80, 1) for n in (13, 12, 11)]
    assert [permutation(server) for server in servers] == [(2586, 2286), (870, 874), (4032, 1541)]
    table = fill(servers)
    assert "".join("CBA"[n] for n in table[:32]) == "BCCABBAACBBAABBBACBCAACBACCBCBAC"
    assert Counter("CBA"[n] for n in table) == {"A": 1364, "B": 1364, "C": 1365}
    servers = [Server(f"10.0.0.{n}", 80, n - 10) for n in (13, 12, 11)]
    assert turns(servers) == [3, 2, 1]
    assert Counter("CBA"[n] for n in fill(servers)) == {"A": 682, "B": 1364, "C": 2047}


def test_maglev_turns() -> None:
    """The common divisor is taken out, great weights are scaled down, nobody falls to none but by weight 0."""
    assert turns([Server("10.0.0.1", 1, weight) for weight in (100, 50, 25)]) == [4, 2, 1]
    assert turns([Server("10.0.0.1", 1, weight) for weight in (2**31 - 1, 1, 0)]) == [63, 1, 0]
    assert turns([Server("10.0.0.1", 1, 0)]) == [0]
    assert set(fill([Server("10.0.0.1", 1, 0)])) == {-1}
    assert set(fill([])) == {-1}


@pytest.mark.parametrize(
    ("name", "weights", "client", "server"),
    [
        ("sh", "1,2,1", "10.0.0.1", "A"),
        ("sh", "1,2,1", "192.168.0.1", "C"),
        ("sh", "1,2,1", "192.168.1.10", "C"),
        ("sh", "1,2,1", "172.16.5.9", "A"),
        ("mh", "1,1,1", "10.0.0.1", "B"),
        ("mh", "1,1,1", "192.168.0.1", "B"),
        ("mh", "1,1,1", "192.168.1.10", "B"),
        ("mh", "1,1,1", "172.16.5.9", "A"),
    ],
)
def test_clients(name: str, weights: str, client: str, server: str) -> None:
    assert sequence(pick_of(name, weights), 1, Client(client, 1)) == server


def test_destinations() -> None:
    """dh looks at where a packet goes."""
    for destination in ("10.0.0.1", "192.168.0.1"):
        assert sequence(pick_of("dh", "1,1,1"), 1, Client("198.51.100.7", 1, destination)) == "C"


@pytest.mark.parametrize(
    ("name", "weights", "expected"),
    [
        ("rr", "1,1,1", "CBACBA"),
        ("rr", "1,0,1", "CACA"),
        ("wrr", "3,2,1", "CBAABACBAABA"),
        ("wrr", "1,2,3", "CBACCBCBACCB"),
        ("wrr", "4,2,2", "CBAACBAA"),
        ("wrr", "5,1,1", "CBAAAAACBAAAAA"),
        ("wrr", "10,5", "BAABAA"),
        ("wrr", "100,50,25", "CBAAABACBAAABA"),
        ("lc", "1,2,3", "CBACBACBACBA"),
        ("wlc", "1,2,3", "CBACBCCBACBC"),
        ("sed", "1,2,3", "CBCCBACBCCBA"),
        ("nq", "1,2,3", "CBACCBCBCCBA"),
        ("lc", "3,2,1", "CBACBACBACBA"),
        ("wlc", "3,2,1", "CBAABACBAABA"),
        ("sed", "3,2,1", "ABACBAABACBA"),
        ("nq", "3,2,1", "CBAABAABACBA"),
        ("fo", "3,5,5", "CCCC"),
        ("ovf", "3,2,1", "AAAABBBCC"),
        ("none", "3,2,1", "----"),
    ],
)
def test_sequences(name: str, weights: str, expected: str) -> None:
    """Long-lived TCP connections, each active before the next comes."""
    assert sequence(pick_of(name, weights), len(expected)) == expected


@pytest.mark.parametrize(("name", "server"), [("sed", "A"), ("nq", "C"), ("ovf", "A")])
def test_udp_is_never_active(name: str, server: str) -> None:
    assert sequence(pick_of(name, "3,2,1"), 8, stay=False) == server * 8


@pytest.mark.parametrize(
    ("bench", "expected"),
    [
        (
            pick_of("sh", "2,0,1", "sh-fallback", port=53),
            "CACAAAACACACAAAACACACAAAAAACACAAAAAACACAAAAAACACAAAAAACACAAAAAACACAAAAAACACAAAA",
        ),
        (
            pick_of("sh", "2,0,1", "sh-fallback,sh-port", port=53),
            "CAAACAAACAAACAAACAAACAAACCAAACAAACAAACAAACAAACAAACAAACCAAACAAACAAACAAACAAACAAAC",
        ),
        (
            pick_of("mh", "1,2,3", port=53),
            "CBCCABBBACCCCAABBBABCBCBCCBCACCBBCBCACCACCCABCCCCCCCCCABCCCCCBBACBBCCBBCCCBCCAA",
        ),
        (
            pick_of("mh", "100,50,25", port=53),
            "ABCBABBBABAAAAABBBABAAABAAACACABBABAACCACAAABAAACABACAABAAAAABBACABBCBAAAABAAAA",
        ),
        (
            at_rest("mh", ""),
            "A-C-A---A-AACAA---A-C-A-AAACACC--C-CACCACACA-ACCCACACAA-ACAAC--AC---C-A-A--CCAA",
        ),
        (
            at_rest("mh", "mh-fallback"),
            "AACCAACCACAACAAACAACCCACAAACACCAACCCACCACACACACCCACACAACACAACCCACACCCCAAAACCCAA",
        ),
        (
            at_rest("mh", "mh-fallback,mh-port"),
            "AAACCCAACAACAAAAAACACACAAACCACCACACCACCCCCAAACCAAACACACACACACACACAACCAAACACCACA",
        ),
    ],
    ids=["sh-fallback", "sh-port", "mh", "mh great weights", "mh at rest", "mh-fallback", "mh-port"],
)
def test_crowds(bench: Bench, expected: str) -> None:
    """Seventy-nine clients of a UDP service."""
    assert crowd(bench) == expected


@pytest.mark.parametrize(
    ("name", "weights", "destinations", "expected"),
    [
        (
            "lblc",
            "1,1,1",
            "11214443114133142112111513131514451211421351121253512245314133125214511532414123",
            "CCBABBBAAABAAAABBAABAAACAAAAACABBCABAABBAACAABABCACABBBCAABAAAABCBABCAACABBABABA",
        ),
        (
            "lblc",
            "4,8,2",
            "11121221113352545211242335151111121155255143522241345142455244254412124225555321",
            "CCCBABBAAABBBBBBBBAABBBBBBABAAAAABAABBBBBABBBBBBBABBBABBBBBBBBBBBBABABBBBBBBBBBA",
        ),
        (
            "lblcr",
            "1,1,1",
            "15124114251145543111531111212433341211141232353253121212511221144121311233111325",
            "CBCABCCBABCCBBBBACCCBACCCCACABAAABCACCCBCAAAABAABACACACABCCAACCBBCACACCAAACCCAAB",
        ),
        (
            "lblcr",
            "4,8,2",
            "12134111135211552211211221122212351114215212251332341122111425542111314212325121",
            "CBCABCBBBAABBBAABBBBBCBBBBCBBBBBAACBBBBCABBBBACAABABBCBBBBCBBAABBCBBABBBCBABABBC",
        ),
        (
            "dh",
            "1,1,1",
            "22514111124135111132131114111111112215111321231121221212224214411212315323141111",
            "CCAACAAAACCAAAAAAAACAAAAACAAAAAAAACCAAAAAACACAAACACCACACCCCCACCAACACAAAACAACAAAA",
        ),
    ],
    ids=["lblc", "lblc-uneven", "lblcr", "lblcr-uneven", "dh"],
)
def test_caches(name: str, weights: str, destinations: str, expected: str) -> None:
    """A cache cluster: destinations 203.0.113.x in this order, each connection active before the next."""
    bench = pick_of(name, weights)
    got = "".join(sequence(bench, 1, Client("198.51.100.7", 1, f"203.0.113.{digit}")) for digit in destinations)
    assert got == expected


def test_choice_is_by_weight() -> None:
    """With equal load a server is drawn about as often as its weight says; the less loaded of the two is taken."""
    bench = pick_of("twos", "3,1")
    assert isinstance(bench.pick, Choice)
    shares = Counter(sequence(bench, 4000, stay=False))
    assert shares["A"] > shares["B"] > 100
    bench.active = [1000, 0]  # B, which comes first, is busy
    assert Counter(sequence(bench, 4000, stay=False))["A"] > 3200
