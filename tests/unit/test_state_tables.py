"""The state tables, cell by cell, against a second writing of the kernel's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pylvs.forward._fastpath import SCTP_STATES, TCP_STATES, next_state

DIRECTIONS = {"IN": 0, "OUT": 1, "IN-ONLY": 2}
FLAGS = {"syn": 0x02, "fin": 0x01, "ack": 0x10, "rst": 0x04}
SHORT = ("NO", "ES", "SS", "SR", "FW", "TW", "CL", "CW", "LA", "LI", "SA")
EVENTS = (
    "data", "init", "init-ack", "cookie-echo", "cookie-ack", "shutdown", "shutdown-ack", "shutdown-complete", "error",
    "abort",
)  # fmt: skip
#: columns are the states in order, cells the next one
TCP = """
    IN syn                    SR ES ES SR SR SR SR SR SR SR SR
    IN fin                    CL CW SS TW TW TW CL CW LA LI TW
    IN ack                    ES ES SS ES FW TW CL CW CL LI ES
    IN rst                    CL CL CL SR CL CL CL CL LA LI SR
    OUT syn                   SS ES SS SR SS SS SS SS SS LI SR
    OUT fin                   TW FW SS TW FW TW CL TW LA LI TW
    OUT ack                   ES ES SS ES FW TW CL CW LA ES ES
    OUT rst                   CL CL SS CL CL TW CL CL CL CL CL
    IN-ONLY syn               SR ES ES SR SR SR SR SR SR SR SR
    IN-ONLY fin               CL FW SS TW FW TW CL CW LA LI TW
    IN-ONLY ack               ES ES SS ES FW TW CL CW CL LI ES
    IN-ONLY rst               CL CL CL SR CL CL CL CL LA LI CL
"""
#: what secure_tcp changes: direction, event, state, next
SECURE = """
    IN syn SA SA, IN fin SA SA, IN ack SR SR, IN ack SA SA, IN rst SA CL, OUT syn SR SA, OUT syn SA SA,
    IN-ONLY syn NO SA, IN-ONLY syn FW SA, IN-ONLY syn TW SA, IN-ONLY syn CL SA, IN-ONLY syn CW SA, IN-ONLY syn LA SA,
    IN-ONLY syn LI SA, IN-ONLY syn SA SA
"""
SCTP = """
    IN data                    8  1  2  3  4  5  6  7  8  9 10 11 12 13
    IN init                    1  2  2  3  4  5  6  7  8  9 10 11  2  2
    IN init-ack                5  5  5  3  4  6  6  7  8  9 10 11 12 13
    IN cookie-echo             4  2  2  4  4  5  6  7  8  9 10 11 12 13
    IN cookie-ack              8  1  2  3  4  5  6  8  8  9 10 11 12 13
    IN shutdown               10  1  2  3  4  5  6  7 10  9 10 11 12 13
    IN shutdown-ack           13  2  2  3  4  5  6  7  8 13 10 13 12 13
    IN shutdown-complete      13 13 13  3  4  5  6  7  8  9 10 13 12 13
    IN error                  13  1  2  3  4  5  6 13  8  9 10 11 12 13
    IN abort                  13 13 13 13 13 12 13 13 13 13 13 13 13 13
    OUT data                   8  1  2  3  4  5  6  7  8  9 10 11 12 13
    OUT init                   5  5  5  5  5  5  5  5  8  5  5  5  5  5
    OUT init-ack               3  3  3  3  4  5  6  7  8  9 10 11 12 13
    OUT cookie-echo            7  7  7  7  7  7  7  7  8  9 10 11 12 13
    OUT cookie-ack             8  8  8  8  8  8  8  8  8  9 10 11 12 13
    OUT shutdown               9  9  9  9  9  9  9  9  9  9 10 11 12 13
    OUT shutdown-ack          11 11 11 11 11  5  6  7  8 11 11 11 12 13
    OUT shutdown-complete     13  1  2  3  4  5  6  7  8  9 10 11 12 13
    OUT error                 13 13 13 13 13  5  6  7  8  9 10 11 12 13
    OUT abort                 13 12 13 13 13 13 13 13 13 13 13 13 13 13
    IN-ONLY data               8  1  2  3  4  8  6  7  8  9 10 11 12 13
    IN-ONLY init               1  2  2  2  2  2  6  7  8  9 10 11  2  2
    IN-ONLY init-ack           7  7  7  7  7  7  6  7  8  9 10 11 12 13
    IN-ONLY cookie-echo        8  8  8  8  8  8  6  7  8  9 10 11 12 13
    IN-ONLY cookie-ack         8  1  2  8  8  5  8  8  8  9 10 11 12 13
    IN-ONLY shutdown          10  1  2  3  4  5  6  7 10  9 10 11 12 13
    IN-ONLY shutdown-ack      13  2  2  3  4  5  6  7 13 13 10 13 12 13
    IN-ONLY shutdown-complete 13 13 13 13 13  5  6  7  8  9 13 13 12 13
    IN-ONLY error             13  1  2  3  4  5  6  7  8  9 10 11 12 13
    IN-ONLY abort             13 13 13 13 13 12 13 13 13 13 13 13 13 13
"""


def rows(table: str) -> Iterator[tuple[str, str, list[str]]]:
    """Direction, event and cells of each line."""
    for line in table.strip().splitlines():
        direction, event, *cells = line.split()
        yield direction, event, cells


def test_tcp() -> None:
    """The normal table."""
    seen = 0
    for direction, event, cells in rows(TCP):
        for state, cell in enumerate(cells):
            assert SHORT[next_state(6, state, DIRECTIONS[direction], FLAGS[event])] == cell, (direction, event, state)
            seen += 1
    assert seen == 3 * 4 * len(TCP_STATES)


def test_secure_tcp() -> None:
    """The table of secure_tcp is the normal one but for these cells."""
    changed = {tuple(each.split()[:3]): each.split()[3] for each in SECURE.split(",")}
    for direction, event, cells in rows(TCP):
        for state, cell in enumerate(cells):
            want = changed.get((direction, event, SHORT[state]), cell)
            found = SHORT[next_state(6, state, DIRECTIONS[direction], FLAGS[event], True)]
            assert found == want, (direction, event, SHORT[state])


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    ("flags", "like"), [(0x06, 0x04), (0x12, 0x02), (0x03, 0x02), (0x11, 0x01), (0x14, 0x04), (0x38, 0x10)]
)
def test_first_of_rst_syn_fin_ack_counts(flags: int, like: int, secure: bool) -> None:
    """Several flags: RST before SYN before FIN before ACK."""
    for direction in range(3):
        for state in range(len(TCP_STATES)):
            assert next_state(6, state, direction, flags, secure) == next_state(6, state, direction, like, secure)


def test_a_segment_without_flags_closes() -> None:
    """Neither of the four."""
    assert {next_state(6, state, d, 0x28) for state in range(len(TCP_STATES)) for d in range(3)} == {6}


def test_sctp() -> None:
    """All of it."""
    seen = 0
    for direction, event, cells in rows(SCTP):
        for state, cell in enumerate(cells):
            found = next_state(132, state, DIRECTIONS[direction], EVENTS.index(event))
            assert found == int(cell), (direction, event, SCTP_STATES[state])
            seen += 1
    assert seen == 3 * 10 * len(SCTP_STATES)
