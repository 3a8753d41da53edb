"""A case is a little story: commands, frames in, and for each frame the verdict and the frames out.

A test of this shelf is a generator of steps. `each` plays it twice on fresh directors: frame by frame, and with the
frames that follow each other given in one batch, because the core works room by room over batches.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cases.craft import Frame, host
from packets import settled
from scapy.layers.l2 import Ether


@dataclass(frozen=True)
class Host:
    """The network, where it is not the usual one; the first step or none."""

    arguments: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """An ipvsadm command; it must succeed."""

    command: str


@dataclass(frozen=True)
class Wait:
    """Time passes."""

    seconds: float


@dataclass(frozen=True)
class Configure:
    """The host changes."""

    arguments: dict[str, Any]


@dataclass(frozen=True)
class Check:
    """Anything else that must hold at this point of the story."""

    question: Callable[[Any], None]


@dataclass(frozen=True)
class Send:
    """A frame arrives; what is its verdict, and what leaves?"""

    interface: str
    frame: bytes
    verdict: str
    frames: tuple[Frame, ...]
    note: str = ""
    service: str | None = None
    dest: str | None = None


Step = Host | Run | Wait | Configure | Check | Send
Story = Iterator[Step]


def forward(interface: str, frame: bytes, out: str, *frames: bytes, note: str = "", **told: str) -> Send:
    """`frame` is forwarded as `frames`, all through the interface `out`."""
    return Send(interface, frame, "forward", tuple((out, each) for each in frames), note, **told)


def reply(interface: str, frame: bytes, out: str, *frames: bytes, note: str = "") -> Send:
    """`frame` is answered by the director."""
    return Send(interface, frame, "reply", tuple((out, each) for each in frames), note)


def left(interface: str, frame: bytes, note: str = "") -> Send:
    """`frame` is left to the host's own stack."""
    return Send(interface, frame, "pass", (), note)


def dropped(interface: str, frame: bytes, note: str = "") -> Send:
    """`frame` ends here, without a sound."""
    return Send(interface, frame, "drop", (), note)


def commands(lines: Iterable[str]) -> Iterator[Run]:
    """Several commands."""
    return map(Run, lines)


def judge(step: Send, outcome: Any) -> None:
    """Compare an outcome with what was expected of it."""
    where = f"{step.note or 'frame'}: {Ether(step.frame).summary()}"
    assert outcome.verdict == step.verdict, f"{where}: {outcome.verdict} ({outcome.reason}), expected {step.verdict}"
    if outcome.verdict == "drop":
        assert outcome.reason, f"{where}: dropped without a reason"
    got = list(outcome.frames)
    assert len(got) == len(step.frames), f"{where}: {len(got)} frames out, expected {len(step.frames)}"
    for (out, frame), (expected_out, expected) in zip(got, step.frames, strict=True):
        assert out == expected_out, f"{where}: out through {out}, expected {expected_out}"
        wanted = settled(expected, frame)
        if frame != wanted:
            at = next(
                (n for n, (a, b) in enumerate(zip(frame, wanted, strict=False)) if a != b), min(len(frame), len(wanted))
            )
            pytest.fail(
                f"{where}\n differs at byte {at}\n  got      {frame.hex()}\n  expected {wanted.hex()}\n"
                f"  got      {Ether(frame)!r}\n  expected {Ether(wanted)!r}"
            )
    if step.service is not None:
        assert outcome.service == step.service, where
    if step.dest is not None:
        assert outcome.dest == step.dest, where


def play(directors: Callable[..., Any], steps: Iterable[Step], together: bool) -> None:
    """Tell the story to a fresh director; with `together`, consecutive frames form one batch."""
    steps = list(steps)
    arguments = steps.pop(0).arguments if isinstance(steps[0], Host) else host()
    director, now = directors(**arguments), 1.0
    for frames, group in itertools.groupby(steps, lambda step: isinstance(step, Send)):
        batch = list(group)
        if frames and together:
            outcomes = director.process([(step.interface, step.frame) for step in batch], now=now)
            assert len(outcomes) == len(batch)
            for step, outcome in zip(batch, outcomes, strict=True):
                judge(step, outcome)
            continue
        for step in batch:
            if isinstance(step, Send):
                now += 0.001
                (outcome,) = director.process([(step.interface, step.frame)], now=now)
                judge(step, outcome)
            elif isinstance(step, Run):
                result = director.ipvsadm(step.command)
                assert result.returncode == 0, f"{step.command}: {result.stderr}"
            elif isinstance(step, Wait):
                now += step.seconds
                director.advance(now=now)
            elif isinstance(step, Configure):
                director.configure(**step.arguments)
            elif isinstance(step, Check):
                step.question(director)


def each(kinds: Iterable[Any]) -> Callable[[Callable[[Any], Story]], Callable[..., None]]:
    """Make a test of a story, for each of `kinds`, frame by frame and in batches."""

    def decorate(story: Callable[[Any], Story]) -> Callable[..., None]:
        @pytest.mark.parametrize("together", [False, True], ids=["singly", "batch"])
        @pytest.mark.parametrize("kind", list(kinds), ids=str)
        def test(kind: Any, together: bool, directors: Callable[..., Any]) -> None:
            play(directors, story(kind), together)

        test.__name__, test.__doc__ = story.__name__, story.__doc__
        return test

    return decorate
