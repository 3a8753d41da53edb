"""``pylvs sched``: what people and programs read of a scheduler."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pylvs.cli.main import main
from pylvs.sched import SCHEDULERS

CANARY = str(Path(__file__).resolve().parents[2] / "examples/scheduler-canary/canary.py")


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    """One line each, aligned; own ones with where they come from."""
    assert main(["sched", "list", "--scheduler-module", CANARY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*SCHEDULERS, "canary"]
    assert len({line.index(line.split()[1]) for line in lines[:4]}) == 1
    assert "canary.py)" in lines[-1]


def test_list_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sched", "list", "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == list(SCHEDULERS)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_explain_each(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every scheduler can be explained, in words and as JSON, IPv6 included."""
    line = ["sched", "explain", name, "--weights", "3,0,1", "--client", "10.0.0.1:7", "--client", "2001:db8::1"]
    assert main([*line, "--picks", "5"]) == 0
    assert "list order" in capsys.readouterr().out
    assert main([*line, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["order"] == ["C", "B", "A"]
    assert [each["client"] for each in found["decisions"]] == ["10.0.0.1", "2001:db8::1"]


def test_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    """Hash value, slot and owner."""
    line = ["sched", "explain", "mh", "--weights", "1,1,1", "--client", "192.168.1.10:12345", "--flags", "mh-port"]
    assert main(line) == 0
    said = capsys.readouterr().out
    for part in ("0xc0a8010a", "plus port 12345", "slot 1391", "4093 slots", "A 1364  ", "C 1365"):
        assert part in said or part.strip() in said


def test_the_sequence(capsys: pytest.CaptureFixture[str]) -> None:
    """Levels, costs, and the sequence at the end."""
    assert main(["sched", "explain", "wrr", "--weights", "3,2,1", "--picks", "12"]) == 0
    said = capsys.readouterr().out
    assert "level 1 < 3, passed over" in said
    assert said.endswith("sequence: CBAABACBAABA\n")
    assert main(["sched", "explain", "sed", "--weights", "3,2,1", "--picks", "12"]) == 0
    said = capsys.readouterr().out
    assert "(0 + 1) / 3 = 0.3333" in said
    assert said.endswith("sequence: ABACBAABACBA\n")


def test_own_scheduler(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["sched", "explain", "canary", "--scheduler-module", CANARY, "--weights", "1,1,1", "--json"]
    assert main(line) == 0
    assert json.loads(capsys.readouterr().out)["pick"]["slots"][:6] == [0, 0, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (["nonesuch", "--weights", "1"], 1, "no scheduler 'nonesuch'"),
        (["rr", "--weights", "1", "--scheduler-module", "no.such"], 1, "no.such"),
        (["rr", "--weights", "1,1", "--servers", "10.0.0.1"], 2, "give as many"),
    ],
)
def test_mistakes(line: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sched", "explain", *line]) == code
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        ["rr"],
        ["rr", "--weights", "x"],
        ["rr", "--weights", "-1"],
        ["rr", "--weights", "1", "--client", "nobody"],
        ["rr", "--weights", "1", "--client", "10.0.0.1:70000"],
        ["rr", "--weights", "1", "--picks", "0"],
    ],
)
def test_usage(line: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["sched", "explain", *line])
    assert stopped.value.code == 2
