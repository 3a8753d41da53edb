"""Replays recordings of the real ipvsadm 1.31 on a real kernel, byte for byte, on a director of tables.

Not compared: the order of services where the kernel's hash decides it (``--nosort``, and sorted lists in which no order
holds because they go round the 32-bit circle), and the cases that need packets.
"""

from __future__ import annotations

import json
import lzma
import re
from pathlib import Path
from typing import Any

import pytest
from golden.tables import PortNames, TablesDirector

from pylvs.ipvsadm import run

DATA = Path(__file__).parent / "data"
BLOCK = re.compile(r"^(?=TCP |UDP |SCTP |FWM |-A )", re.MULTILINE)


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
    director = TablesDirector(hosts(recording["hosts"]) if case["names"] else {})
    director.service_names = PortNames(recording["services"])
    for number, command in enumerate(case["commands"]):
        result = run(director, command["argv"], command.get("stdin"))
        got = [result.returncode, result.stderr, comparable(command["argv"], result.stdout)]
        want = [command["rc"], command["stderr"], comparable(command["argv"], command["stdout"])]
        assert got == want, f"command {number}: ipvsadm {' '.join(command['argv'])}"


def hosts(text: str) -> dict[str, str]:
    """Names and addresses of a hosts file, in its order."""
    return {name: words[0] for words in map(str.split, text.splitlines()) for name in words[1:]}


def comparable(argv: list[str], text: str) -> str | list[str]:
    """The text; as blocks in alphabetical order where the recorded order of services means nothing."""
    blocks = BLOCK.split(text)
    return sorted(blocks) if "--nosort" in argv or circular(blocks) else text


def circular(blocks: list[str]) -> bool:
    """Whether the services' first 32 bits, or their marks, lie so far apart that the tool's comparison is no order."""
    families: dict[str, list[int]] = {"v4": [], "v6": [], "fwm": [0]}
    for block in blocks:
        if found := re.match(r"(?:\w+ +|-A -\S+ )(\d+)\.(\d+)\.\d+\.\d+:", block):
            families["v4"].append(int(found[1]) << 24 | int(found[2]) << 16)
        elif found := re.match(r"(?:\w+ +|-A -\S+ )\[([0-9a-f]*):([0-9a-f]*)", block):
            families["v6"].append(int(found[1] or "0", 16) << 16 | int(found[2] or "0", 16))
        elif found := re.match(r"(?:FWM  |-A -f )(-?\d+)", block):
            families["fwm"].append(int(found[1]) % 2**32)
    return any(values and max(values) - min(values) >= 2**31 for values in families.values())


def test_every_recorded_command_is_there() -> None:
    recording = json.loads(lzma.decompress((DATA / "ipvsadm.json.xz").read_bytes()))
    assert len(recording["cases"]) == 27
    assert sum(len(case["commands"]) for case in recording["cases"]) == 977
