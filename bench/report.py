"""Numbers into words: medians with their spread, aligned tables, the machine's facts, JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

FAST, SLOW = (
    700.0,
    900.0,
)  # ns of "receive and drop": the two phases of shared hosts that docs/reference/benchmarks.md explains


@dataclass(frozen=True)
class Summary:
    """Median, extremes and count of a series."""

    median: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """(high - low) / median."""
        return (self.high - self.low) / self.median if self.median else 0.0

    def text(self, digits: int = 0, scale: float = 1.0) -> str:
        """``3100 (2950–3400)``, each value divided by `scale`."""
        middle, low, high = (f"{value / scale:.{digits}f}" for value in (self.median, self.low, self.high))
        return middle if self.count == 1 else f"{middle} ({low}–{high})"


def summarise(values: Iterable[float]) -> Summary | None:
    """The summary of a series, None if it is empty."""
    series = sorted(values)
    if not series:
        return None
    return Summary(statistics.median(series), series[0], series[-1], len(series))


def shown(summary: Summary | None, digits: int = 0, scale: float = 1.0) -> str:
    """`Summary.text`, or a dash."""
    return summary.text(digits, scale) if summary else "–"


def ratios(values: dict[int, float], reference: dict[int, float]) -> Summary | None:
    """Summary of value / reference over the rounds (the keys) that have both."""
    return summarise(values[key] / reference[key] for key in values if reference.get(key))


def phase(drop_ns: float) -> str:
    """``fast``, ``slow`` or ``between``, from the cost of receiving and dropping a frame."""
    if drop_ns < FAST:
        return "fast"
    return "slow" if drop_ns > SLOW else "between"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right; a rule under the headings."""
    widths = [max(len(line[i]) for line in [headings, *rows]) for i in range(len(headings))]

    def line(cells: Sequence[str]) -> str:
        first, *rest = (
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *rest]).rstrip()

    return "\n".join([line(headings), "  ".join("─" * width for width in widths), *map(line, rows)])


def facts() -> dict[str, Any]:
    """What the figures depend on: processor, cores, kernel, who else is at work."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": os.cpu_count() or 1,
        "virtual": "hypervisor" in (_field("/proc/cpuinfo", "flags") or "").split(),
        "kernel": platform.release(),
        "spectre_v2": _line("/sys/devices/system/cpu/vulnerabilities/spectre_v2"),
        "memory_mib": int((_field("/proc/meminfo", "MemTotal") or "0 kB").split()[0]) // 1024,
        "backlog": int(_line("/proc/sys/net/core/netdev_max_backlog") or 0),
        "load": os.getloadavg(),
        "python": platform.python_version(),
    }


def head(known: dict[str, Any]) -> str:
    """The facts in three lines."""
    kind = "virtual" if known["virtual"] else "physical"
    return (
        f"{known['date']}  {known['cpu']} ({kind}), {known['cores']} cores, {known['memory_mib']} MiB, "
        f"Linux {known['kernel']}, Python {known['python']}\n"
        f"Spectre v2: {known['spectre_v2'] or 'unknown'}\n"
        f"load average at the start: {' '.join(f'{value:.2f}' for value in known['load'])}"
    )


def steal_ticks() -> int:
    """Clock ticks that the hypervisor took from us since boot."""
    words = (_line("/proc/stat") or "").split()
    return int(words[8]) if len(words) > 8 else 0


def write_json(target: str, data: Any) -> None:
    """Write `data` to a file, or to standard output for ``-``."""
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text, encoding="utf-8")


class Progress:
    """One line per step on `stream`, at once; quiet if told."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.stream, self.quiet = stream or sys.stderr, quiet

    def __call__(self, text: str) -> None:
        if not self.quiet:
            print(text, file=self.stream, flush=True)


def _line(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()[0].strip()
    except (OSError, IndexError):
        return None


def _field(path: str, name: str) -> str | None:
    try:
        for line in Path(path).read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return None
