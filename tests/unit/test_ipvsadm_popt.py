"""The scanner takes words apart as popt does."""

from __future__ import annotations

import pytest

from pylvs.ipvsadm.popt import BadOption, Option, Scanner

OPTIONS = (
    Option("numeric", "numeric", "n"),
    Option("stats", "stats"),
    Option("tcp", "tcp-service", "t", "value"),
    Option("persistent", "persistent", "p", "optional"),
)


@pytest.mark.parametrize(
    ("words", "options", "leftover"),
    [
        ("-n --stats", [("numeric", None), ("stats", None)], []),
        ("-t a:1", [("tcp", "a:1")], []),
        ("-ta:1", [("tcp", "a:1")], []),
        ("-t=a:1", [("tcp", "a:1")], []),
        ("-nt a:1", [("numeric", None), ("tcp", "a:1")], []),
        ("--tcp-service a:1", [("tcp", "a:1")], []),
        ("--tcp-service=a:1", [("tcp", "a:1")], []),
        ("--tcp-service=", [("tcp", "")], []),
        ("-t -n", [("tcp", "-n")], []),
        ("-p 60 -n", [("persistent", "60"), ("numeric", None)], []),
        ("-p -n", [("persistent", None), ("numeric", None)], []),
        ("-p", [("persistent", None)], []),
        ("-p60", [("persistent", "60")], []),
        ("-p= -n", [("persistent", ""), ("numeric", None)], []),
        ("one -n two", [("numeric", None)], ["one", "two"]),
        ("-n -- -n --stats", [("numeric", None)], ["-n", "--stats"]),
        ("- -n", [("numeric", None)], ["-"]),
    ],
)
def test_words(words: str, options: list[tuple[str, str | None]], leftover: list[str]) -> None:
    scanner = Scanner(OPTIONS, words.split())
    assert [(option.tag, value) for option, value in scanner] == options
    assert scanner.leftover == leftover


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("-x", "-x: unknown option"),
        ("-nx", "-nx: unknown option"),
        ("--stat", "--stat: unknown option"),  # no abbreviations
        ("--bogus=1", "--bogus=1: unknown option"),
        ("-n -t", "-t: missing argument"),
        ("--tcp-service", "--tcp-service: missing argument"),
        ("--stats=1", "--stats=1: option does not take an argument"),
        ("-n=1", "-n=1: option does not take an argument"),
    ],
)
def test_bad_words(words: str, message: str) -> None:
    with pytest.raises(BadOption) as caught:
        list(Scanner(OPTIONS, words.split()))
    assert str(caught.value) == message


def test_the_word_at_hand_is_the_value_where_one_was_taken() -> None:
    scanner = Scanner(OPTIONS, ["-n", "-t", "a:1"])
    assert [scanner.word for _ in scanner] == ["-n", "a:1"]
