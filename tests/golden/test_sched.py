"""Every decision of every scheduler, as the real kernel took it: which server each new connection gets."""

from __future__ import annotations

from typing import Any

import pytest
from golden.replay import Replay, load

CASES = load("sched")
DECISIONS = 56209
OUTPUTS = 1508
STATES = 1645


@pytest.mark.parametrize("case", [pytest.param(case, id=f"{name}-{case['name']}") for name, case in CASES])
def test_recorded_decisions(case: dict[str, Any], record_property: Any) -> None:
    replay = Replay(case).run()
    record_property("compared", dict(replay.compared))
    assert not replay.differences, "\n".join([f"{len(replay.differences)} differ", *replay.differences[:5]])
    assert sum(replay.compared.values()) > 0


def test_the_recordings_are_complete() -> None:
    """Nobody takes a case or an event away unnoticed."""
    steps = [step for _, case in CASES for step in case["steps"]]
    events = [event for step in steps if step["do"] == "ev" for event in zip(step["l"], step["r"], strict=True)]
    kinds = [event[0][0] for event in events if event[1] != "no-server"]
    assert len(CASES) == 276
    assert sum(kind not in ("n", "ipvsadm") for kind in kinds) == DECISIONS
    assert kinds.count("n") == STATES
    commands = sum(step["do"] in ("ipvsadm", "Ln", "sysctl") for step in steps)
    assert commands + kinds.count("ipvsadm") == OUTPUTS
