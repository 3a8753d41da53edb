"""The settings under ``net.ipv4.vs``, with the kernel's names, defaults and ranges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """A setting that is a whole number."""

    default: int
    low: int
    high: int

    def parse(self, name: str, value: int | str) -> int:
        """Return the value, or raise `ValueError` with the range."""
        try:
            number = int(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name}={value!r} is not a whole number") from None
        if not self.low <= number <= self.high:
            raise ValueError(f"{name}={number} is out of range; use {self.low} to {self.high}")
        return number


INT = 2**31 - 1
#: name -> range; those marked in `EFFECTIVE` change what the director does, the others are only kept
TABLE: dict[str, Range] = {
    "am_droprate": Range(10, -INT, INT),
    "amemthresh": Range(1024, -INT, INT),
    "backup_only": Range(0, -INT, INT),
    "cache_bypass": Range(0, -INT, INT),
    "conn_reuse_mode": Range(1, -INT, INT),
    "conntrack": Range(0, -INT, INT),
    "drop_entry": Range(0, 0, 3),
    "drop_packet": Range(0, 0, 3),
    "expire_nodest_conn": Range(0, -INT, INT),
    "expire_quiescent_template": Range(0, -INT, INT),
    "ignore_tunneled": Range(0, -INT, INT),
    "ip_vs_ftp": Range(0, 0, 1),
    "nat_icmp_send": Range(0, -INT, INT),
    "pmtu_disc": Range(1, -INT, INT),
    "run_estimation": Range(1, -INT, INT),
    "schedule_icmp": Range(0, -INT, INT),
    "secure_tcp": Range(0, 0, 3),
    "sloppy_sctp": Range(0, -INT, INT),
    "sloppy_tcp": Range(0, -INT, INT),
    "snat_reroute": Range(1, -INT, INT),
}
EFFECTIVE = frozenset(
    {
        "conn_reuse_mode",
        "expire_nodest_conn",
        "expire_quiescent_template",
        "ip_vs_ftp",
        "nat_icmp_send",
        "pmtu_disc",
        "sloppy_tcp",
    }
)


class Settings(MutableMapping[str, int]):
    """A mapping of setting to value that accepts only known names (`KeyError`) and values in range (`ValueError`)."""

    def __init__(self, changed: Callable[[str], None]) -> None:
        self._values = {name: setting.default for name, setting in TABLE.items()}
        self._changed = changed

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def __setitem__(self, name: str, value: int | str) -> None:
        if name not in TABLE:
            raise KeyError(name)
        self._values[name] = TABLE[name].parse(name, value)
        self._changed(name)

    def __delitem__(self, name: str) -> None:
        self[name] = TABLE[name].default

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
