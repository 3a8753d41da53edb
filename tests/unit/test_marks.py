"""Mark rules as a shell gives them, and what the guard makes of them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pylvs import marks
from pylvs.daemon.beside import WIDEST, answers, marked
from pylvs.model import Mark, RealServer


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (
            "1:tcp:192.0.2.10:80,443",
            {"mark": 1, "protocol": "tcp", "destination": "192.0.2.10", "ports": ["80", "443"]},
        ),
        ("0x10:any:192.0.2.0/24", {"mark": 16, "protocol": "", "destination": "192.0.2.0/24", "ports": []}),
        ("7:udp:any:53", {"mark": 7, "protocol": "udp", "destination": "", "ports": ["53"]}),
        (
            "7:sctp:[2001:db8::1]:8000-8099",
            {"mark": 7, "protocol": "sctp", "destination": "2001:db8::1", "ports": ["8000-8099"]},
        ),
        ("7:tcp:[2001:db8::]/64", {"mark": 7, "protocol": "tcp", "destination": "2001:db8::/64", "ports": []}),
    ],
)
def test_rules(text: str, rule: dict[str, Any]) -> None:
    assert marks.parse(text) == rule
    assert marks.mark_rule(rule).mark == rule["mark"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no rule; write MARK:PROTOCOL:DESTINATION[:PORTS]"),
        ("1", "is no rule"),
        ("1:tcp", "is no rule"),
        ("1:tcp:2001:db8::1:80", "is no rule"),
        ("one:tcp:192.0.2.10", "'one' is no mark"),
        ("0:tcp:192.0.2.10", "mark 0 is out of range; use 1 to 4294967295"),
        ("4294967296:tcp:192.0.2.10", "out of range"),
        ("1:icmp:192.0.2.10", "'icmp' is no protocol; use tcp, udp, sctp or any"),
        ("1:tcp:192.0.2", "'192.0.2' is no prefix"),
        ("1:tcp:192.0.2.10:http", "'http' is no port or range of ports"),
        ("1:tcp:192.0.2.10:443-80", "out of range"),
        ("1:tcp:192.0.2.10:80,", "is no port"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        marks.parse(text)


def test_what_the_guard_holds_of_marks() -> None:
    web = Mark(mark=1, destination="10.0.0.2", protocol="tcp", ports=((80, 81), (443, 443)))
    every = Mark(mark=1, destination="10.0.0.3/32")
    other = Mark(mark=2, destination="10.0.0.4", protocol="tcp")
    six = Mark(mark=1, destination="2001:db8::2", protocol="udp", ports=((53, 53),))
    found, wide = marked((web, every, other, six), 1, 4)
    assert found == {("tcp", "10.0.0.2", port) for port in (80, 81, 443)} | {
        (protocol, "10.0.0.3", 0) for protocol in ("tcp", "udp", "sctp")
    }
    assert not wide
    assert marked((web, every, other, six), 1, 6)[0] >= {("udp", "2001:db8::2", 53)}


@pytest.mark.parametrize(
    "rule",
    [
        Mark(mark=1),
        Mark(mark=1, destination="10.0.0.0/24", ports=((80, 80),)),
        Mark(mark=1, destination="10.0.0.2", ports=((1, WIDEST + 1),)),
        Mark(mark=1, destination="10.0.0.2", source="10.9.0.0/16", ports=((80, 80),)),
    ],
)
def test_what_is_too_wide_for_the_guard(rule: Mark) -> None:
    assert marked((rule,), 1, 4) == (set(), [rule])


def test_where_servers_of_marks_answer_from() -> None:
    services = {("tcp", "10.0.0.2", 80), ("tcp", "10.0.0.2", 443)}
    same = RealServer(address="10.1.0.11", port=0, method="masq")
    mapped = RealServer(address="10.1.0.11", port=8080, method="masq")
    assert answers(services, same) == {("tcp", "10.1.0.11", 80), ("tcp", "10.1.0.11", 443)}
    assert answers(services, mapped) == {("tcp", "10.1.0.11", 8080)}
