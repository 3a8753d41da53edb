"""At the end of a run: how much of the recordings was compared."""

from __future__ import annotations

from typing import Any

from golden.replay import TOTALS


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line with the counts."""
    if TOTALS:
        counts = ", ".join(f"{number} {kind}s" for kind, number in sorted(TOTALS.items()))
        terminalreporter.write_line(f"recordings of the kernel compared: {counts}")
