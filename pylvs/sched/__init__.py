"""The schedulers, by name."""

from __future__ import annotations

from pylvs.sched.base import Cursor, Least, Nobody, Pick, Scheduler, Server
from pylvs.sched.lc import LeastConnections
from pylvs.sched.rr import RoundRobin
from pylvs.sched.wlc import WeightedLeastConnections
from pylvs.sched.wrr import WeightedRoundRobin

__all__ = ["SCHEDULERS", "Cursor", "Least", "Nobody", "Pick", "Scheduler", "Server"]

SCHEDULERS: dict[str, Scheduler] = {
    scheduler.name: scheduler
    for scheduler in (RoundRobin(), WeightedRoundRobin(), LeastConnections(), WeightedLeastConnections())
}
