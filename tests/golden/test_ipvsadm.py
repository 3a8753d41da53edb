"""Replays recordings of the real ipvsadm 1.31 on a real kernel, byte for byte, on a director of tables.

``ipvsadm.json.xz`` goes through everything the tool does; ``grammar.json.xz`` has every option with every command, odd
values and random command lines. The cases with packets are not for here.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from golden.tables import PortNames, TablesDirector

from pylvs.ipvsadm import run
from pylvs.ipvsadm.grammar import IRREGULAR_MASKS

DATA = Path(__file__).parent / "data"


def load() -> list[Any]:
    """One parameter per case of each recording."""
    parameters = []
    for path in sorted(DATA.glob("*.json.xz")):
        recording = json.loads(lzma.decompress(path.read_bytes()))
        for case in recording["cases"]:
            name = f"{path.name.removesuffix('.json.xz')}-{case['name']}"
            parameters.append(pytest.param(recording, case, id=name))
    return parameters


@pytest.mark.parametrize(("recording", "case"), load())
def test_recorded_commands(recording: dict[str, Any], case: dict[str, Any]) -> None:
    if case["traffic"]:
        pytest.skip("needs packets")
    if case["masks"] and not IRREGULAR_MASKS:
        pytest.xfail("the model has no place for netmasks that are no prefix")
    director = TablesDirector(hosts(recording["hosts"]) if case["names"] else {})
    director.service_names = PortNames(recording["services"])
    for number, command in enumerate(case["commands"]):
        result = run(director, command["argv"], command.get("stdin"))
        got = [result.returncode, result.stderr, result.stdout]
        want = [command["rc"], command["stderr"], command["stdout"]]
        assert got == want, f"command {number}: ipvsadm {' '.join(command['argv'])}"


def hosts(text: str) -> dict[str, str]:
    """Names and addresses of a hosts file, in its order."""
    return {name: words[0] for words in map(str.split, text.splitlines()) for name in words[1:]}


def test_every_recorded_command_is_there() -> None:
    recording = json.loads(lzma.decompress((DATA / "ipvsadm.json.xz").read_bytes()))
    assert len(recording["cases"]) == 27
    assert sum(len(case["commands"]) for case in recording["cases"]) == 977
