"""The settings under ``net.ipv4.vs``: the kernel's names, defaults, accepted values and texts.

A value is given as a number or as the text one would write to the file below /proc/sys: numbers as in C (``0x10``),
separated by blanks; numbers beyond those that a setting has are ignored, as the kernel ignores them. It reads back as
an int, or as a text where a setting is more than one number (``sync_threshold`` is ``"3 50"``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

INT = 2**31 - 1
SECONDS = INT // 250  # that the kernel's signed count of 250 Hz ticks can hold
NUMBER = re.compile(r"([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)(?=\s|$)")

Value = int | str


def _numbers(name: str, value: Any, most: int) -> list[int]:
    """The first `most` numbers of a value; `ValueError` if there is none or something else is in the way."""
    if isinstance(value, int):
        return [int(value)]
    if isinstance(value, list | tuple):
        value = " ".join(map(str, value))
    found: list[int] = []
    rest = value.strip() if isinstance(value, str) else ""
    while rest and len(found) < most:
        match = NUMBER.match(rest)
        if match is None:
            found.clear()
            break
        sign, digits = match.groups()
        base = 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10
        try:
            found.append((-1 if sign == "-" else 1) * int(digits, base))
        except ValueError:  # an 8 or a 9 in an octal number
            found.clear()
            break
        rest = rest[match.end() :].lstrip()
    if not found:
        raise ValueError(f"{name}={value!r} is not a whole number")
    return found


class Setting(Protocol):
    """One setting: its default, and what becomes of a value that is written to it."""

    @property
    def default(self) -> Value: ...

    def parse(self, name: str, value: Any, old: Value) -> Value:
        """The value to keep; `ValueError`, with what would be right, if the kernel refuses it."""
        ...


@dataclass(frozen=True)
class Range:
    """A whole number within limits."""

    default: int
    low: int = -INT - 1
    high: int = INT

    def parse(self, name: str, value: Any, old: Value) -> int:
        """The number."""
        number = _numbers(name, value, 1)[0]
        if not self.low <= number <= self.high:
            raise ValueError(f"{name}={number} is out of range; use {self.low} to {self.high}")
        return number


@dataclass(frozen=True)
class PowerOfTwo:
    """A power of two."""

    default: int

    def parse(self, name: str, value: Any, old: Value) -> int:
        """The number."""
        number = _numbers(name, value, 1)[0]
        if not 1 <= number <= INT or number & (number - 1):
            raise ValueError(f"{name}={number} is no power of two; use 1, 2, 4 and so on")
        return number


@dataclass(frozen=True)
class Threshold:
    """Packets before the first message and period of further ones; a single number changes only the first."""

    default: str

    def parse(self, name: str, value: Any, old: Value) -> str:
        """Both numbers, with one blank between."""
        numbers = _numbers(name, value, 2)
        first = numbers[0]
        period = numbers[1] if len(numbers) > 1 else int(str(old).split()[1])
        if not (0 <= first <= INT and 0 <= period <= INT) or (period and first >= period):
            raise ValueError(f"{name}={first} {period}: use two numbers, the first the smaller, or a second that is 0")
        return f"{first} {period}"


@dataclass(frozen=True)
class Text:
    """Any text."""

    default: str

    def parse(self, name: str, value: Any, old: Value) -> str:
        """The text without blanks around it."""
        return str(value).strip()


SWITCH = Range(0)  # off at 0; the kernel takes any other number
DEFENCE = Range(0, 0, 3)
#: how many messages may wait for the wire: a 32nd of the pages of memory
QUEUE = os.sysconf("SC_PHYS_PAGES") // 32
#: name -> what it takes; those in `EFFECTIVE` change what the director does, the others are only kept
TABLE: dict[str, Setting] = {
    "am_droprate": Range(10),
    "amemthresh": Range(1024),
    "backup_only": SWITCH,
    "cache_bypass": SWITCH,
    "conn_reuse_mode": Range(1),
    "conntrack": SWITCH,
    "debug_level": Range(0),
    "drop_entry": DEFENCE,
    "drop_packet": DEFENCE,
    "est_cpulist": Text(""),
    "est_nice": Range(0, -20, 19),
    "expire_nodest_conn": SWITCH,
    "expire_quiescent_template": SWITCH,
    "ignore_tunneled": SWITCH,
    "ip_vs_ftp": Range(0, 0, 1),
    "lblc_expiration": Range(86400, -SECONDS, SECONDS),
    "lblcr_expiration": Range(86400, -SECONDS, SECONDS),
    "nat_icmp_send": SWITCH,
    "pmtu_disc": Range(1),
    "run_estimation": Range(1),
    "schedule_icmp": SWITCH,
    "secure_tcp": DEFENCE,
    "sloppy_sctp": SWITCH,
    "sloppy_tcp": SWITCH,
    "snat_reroute": Range(1),
    "sync_persist_mode": SWITCH,
    "sync_ports": PowerOfTwo(1),
    "sync_qlen_max": Range(QUEUE, 0, 2**63 - 1),
    "sync_refresh_period": Range(0, -SECONDS, SECONDS),
    "sync_retries": Range(0, 0, 3),
    "sync_sock_size": SWITCH,
    "sync_threshold": Threshold("3 50"),
    "sync_version": Range(1, 0, 1),
}
EFFECTIVE = frozenset(
    {
        "am_droprate",
        "amemthresh",
        "conn_reuse_mode",
        "drop_entry",
        "drop_packet",
        "expire_nodest_conn",
        "expire_quiescent_template",
        "ip_vs_ftp",
        "lblc_expiration",
        "lblcr_expiration",
        "nat_icmp_send",
        "pmtu_disc",
        "run_estimation",
        "schedule_icmp",
        "secure_tcp",
        "sloppy_sctp",
        "sloppy_tcp",
    }
)
#: their automatic modes read as 1 while memory suffices and as 2 while it does not, whichever was written
AUTOMATIC = frozenset({"drop_entry", "drop_packet", "secure_tcp"})


class Settings(MutableMapping[str, Any]):
    """A mapping of setting to value that accepts only known names (`KeyError`) and what the kernel accepts (`ValueError`).

    `changed` is told the name of each that was written; `short_of_memory` says which automatic mode is shown.
    """

    def __init__(self, changed: Callable[[str], None], short_of_memory: Callable[[], bool] = lambda: False) -> None:
        self._values = {name: setting.default for name, setting in TABLE.items()}
        self._changed = changed
        self._short_of_memory = short_of_memory

    def __getitem__(self, name: str) -> Any:
        value = self._values[name]
        if name in AUTOMATIC and value in (1, 2):
            return 2 if self._short_of_memory() else 1
        return value

    def __setitem__(self, name: str, value: Any) -> None:
        if name not in TABLE:
            raise KeyError(name)
        self._values[name] = TABLE[name].parse(name, value, self._values[name])
        self._changed(name)

    def __delitem__(self, name: str) -> None:
        self[name] = TABLE[name].default

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
