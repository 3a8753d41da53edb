"""Verdicts, and what several of them look for in frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pylvs.lab.packet import Frame, Segment
from pylvs.lab.topology import Plan

SYN, RST, ACK = 0x02, 0x04, 0x10


@dataclass(frozen=True)
class Verdict:
    """A claim, whether it held, what was seen, and what was wrong with it."""

    claim: str
    ok: bool
    evidence: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass
class Case:
    """Collects what speaks for and against one claim."""

    claim: str
    evidence: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def need(self, holds: bool, fault: str) -> bool:
        """Note `fault` unless `holds`; returns `holds`."""
        if not holds and fault not in self.faults:
            self.faults.append(fault)
        return holds

    def verdict(self) -> Verdict:
        """The verdict: it holds if nothing speaks against it."""
        return Verdict(self.claim, not self.faults, tuple(self.evidence), tuple(self.faults))


def macs(plan: Plan, node: str) -> set[str]:
    """The MAC addresses of `node`."""
    return {end.mac for end in plan.node(node).interfaces}


def segment_of(frame: Frame) -> Segment | None:
    """The TCP segment in the frame, out of its tunnel if it is in one."""
    packet = frame.ip
    return (packet.inner or packet).tcp if packet else None


def resets(plan: Plan, frames: Sequence[Frame]) -> tuple[list[Frame], int]:
    """Resets that nobody in a conversation had reason to send; and how many its own two ends sent.

    On a machine so busy that answers come late, an end repeats what did arrive, and the other one, which has closed by
    then, refuses it: harmless. Not so if a reset arrives that neither end sent, or if it comes from a server that was
    never given that connection (it got somebody else's packet).
    """
    servers = {server.name for server in plan.servers}
    found: list[tuple[Frame, Segment]] = []
    given = set()  # (server, client's port) of every connection that a server accepted
    for frame in frames:
        segment = segment_of(frame)
        if not segment or frame.direction == "by":
            continue
        if segment.flags & RST:
            found.append((frame, segment))
        elif segment.flags & SYN and segment.flags & ACK and frame.node in servers and frame.direction == "out":
            given.add((frame.node, segment.target))
    refused = {s.source for f, s in found if (f.node, f.direction) == ("client", "out")}
    answered = {s.target for f, s in found if f.direction == "out" and (f.node, s.target) in given}
    faults, own = [], 0
    for frame, segment in found:
        at_client, out = frame.node == "client", frame.direction == "out"
        if frame.node in servers and out:
            fault = (frame.node, segment.target) not in given
            own += not fault
        elif at_client:
            fault = not out and segment.target not in answered
            own += out
        else:
            fault = frame.node in servers and segment.source not in refused
        if fault:
            faults.append(frame)
    return faults, own
