"""bench/wire.py from end to end: it measures, says so in JSON, and leaves the machine as it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.root, pytest.mark.slow]


def left_behind(pid: int) -> list[str]:
    return [name for name in os.listdir("/run/netns") if name.startswith(f"pylvs-bench-{pid}-")]


def priorities() -> dict[str, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "comm").read_text().startswith("ksoftirqd/"):
                found[entry.name] = os.sched_getscheduler(int(entry.name))
        except OSError:
            continue
    return found


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "bench/wire.py"), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the load and the director need a processor each")
def test_a_quick_run_measures_every_row() -> None:
    before = priorities()
    process = start("--quick", "--json", "-")
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert [record["row"] for record in result["packets"]] == [
        "kernel ip_forward", "bare AF_PACKET", "pylvs DR", "pylvs NAT", "pylvs TUN",
    ]  # fmt: skip
    assert all(record["ns"] > 0 for record in result["packets"])
    assert len(result["streams"]) == 6
    for record in result["streams"]:
        assert record["upload"]["gbit_per_second"] > 0.1
        assert record["upload"]["frame_bytes"] > 20_000  # super-frames: nothing is cut to the MTU
    assert left_behind(process.pid) == []
    assert priorities() == before


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the load and the director need a processor each")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after", [1.5, 6.0])
def test_an_interrupted_run_leaves_nothing(number: signal.Signals, after: float) -> None:
    before = priorities()
    process = start("--quick")
    time.sleep(after)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "stopped" in err
    assert "Traceback" not in err
    assert left_behind(process.pid) == []
    assert priorities() == before
