"""What is asked of a run, and what came of it: plain data that `page` draws and ``--json`` prints."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pylvs.lab.verdict import Verdict


@dataclass(frozen=True)
class Options:
    """What a run does: requests in each of its two phases, bytes of each transfer, and whether the lab stays."""

    requests: int = 300
    size: int = 50_000_000
    keep: bool = False


@dataclass
class Result:
    """What came of one lab."""

    name: str
    method: str
    title: str
    vip: str
    port: int
    client: str
    director: str
    servers: list[dict[str, Any]]
    kind: str = ""  # the lab's name among the plans
    notes: list[str] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)
    transfers: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)  # of `hash`: who moved, see `many.figures`
    table: str = ""  # what the director listed at the end
    error: str = ""
    skipped: str = ""  # why this lab cannot be run on this machine
    seconds: float = 0.0
    kept: bool = False

    @property
    def ok(self) -> bool:
        """True if the run went through and every verdict holds."""
        return not self.error and bool(self.verdicts) and all(verdict.ok for verdict in self.verdicts)
