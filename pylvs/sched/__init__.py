"""The schedulers, by name."""

from __future__ import annotations

from pylvs.sched.base import Cache, Choice, Cursor, First, Least, Nobody, Pick, Scheduler, Server, Table, check
from pylvs.sched.dh import DestinationHashing
from pylvs.sched.fo import WeightedFailover
from pylvs.sched.lblc import LocalityBasedLeastConnections
from pylvs.sched.lblcr import LocalityBasedLeastConnectionsReplicated
from pylvs.sched.lc import LeastConnections
from pylvs.sched.mh import MaglevHashing
from pylvs.sched.none import NoScheduler
from pylvs.sched.nq import NeverQueue
from pylvs.sched.ovf import WeightedOverflow
from pylvs.sched.rr import RoundRobin
from pylvs.sched.sed import ShortestExpectedDelay
from pylvs.sched.sh import SourceHashing
from pylvs.sched.twos import PowerOfTwoChoices
from pylvs.sched.wlc import WeightedLeastConnections
from pylvs.sched.wrr import WeightedRoundRobin

__all__ = [
    "SCHEDULERS",
    "Cache",
    "Choice",
    "Cursor",
    "First",
    "Least",
    "Nobody",
    "Pick",
    "Scheduler",
    "Server",
    "Table",
    "check",
]

SCHEDULERS: dict[str, Scheduler] = {
    scheduler.name: scheduler
    for scheduler in (
        RoundRobin(),
        WeightedRoundRobin(),
        LeastConnections(),
        WeightedLeastConnections(),
        LocalityBasedLeastConnections(),
        LocalityBasedLeastConnectionsReplicated(),
        DestinationHashing(),
        SourceHashing(),
        ShortestExpectedDelay(),
        NeverQueue(),
        WeightedFailover(),
        WeightedOverflow(),
        MaglevHashing(),
        PowerOfTwoChoices(),
        NoScheduler(),
    )
}
