"""The benchmark's own arithmetic: statistics, tables, programs and frames; nothing here measures anything."""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # `bench` is not installed

from bench import core, report, tables, wire
from bench.forwarders import Bare, Kernel, Pylvs, internet_sum, unlike
from bench.generator import Assembler, udp_frame
from bench.meter import DRIFT, Usage
from bench.topology import VIP, BenchError, mac_bytes, run, to_address


def test_a_summary_is_median_and_extremes() -> None:
    summary = report.summarise([3.0, 1.0, 2.0, 10.0])
    assert summary == report.Summary(2.5, 1.0, 10.0, 4)
    assert summary.text(1) == "2.5 (1.0–10.0)"
    assert summary.spread == pytest.approx(3.6)
    assert report.summarise([7]).text() == "7"  # type: ignore[union-attr]
    assert report.summarise([]) is None
    assert report.shown(None) == "–"
    assert report.shown(report.summarise([1000, 3000]), 0, 1e3) == "2 (1–3)"


def test_ratios_pair_rounds_and_skip_what_has_no_partner() -> None:
    assert report.ratios({1: 2.0, 2: 9.0, 3: 5.0}, {1: 1.0, 2: 3.0, 4: 1.0}) == report.Summary(2.5, 2.0, 3.0, 2)
    assert report.ratios({1: 2.0}, {1: 0.0}) is None


@pytest.mark.parametrize(("cost", "label"), [(500, "fast"), (700, "between"), (900, "between"), (1045, "slow")])
def test_the_phase_follows_the_cost_of_dropping(cost: float, label: str) -> None:
    assert report.phase(cost) == label


def test_tables_are_aligned() -> None:
    lines = report.table(["name", "n"], [["a", "1"], ["longer", "1234"]]).splitlines()
    assert lines == ["name       n", "──────  ────", "a          1", "longer  1234"]


def test_facts_are_json_and_fit_three_lines() -> None:
    known = report.facts()
    assert json.loads(json.dumps(known))["cores"] >= 1
    assert len(report.head(known).splitlines()) == 3


def test_json_goes_to_a_file_or_to_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.write_json(str(tmp_path / "r.json"), {"a": "×"})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": "×"}
    report.write_json("-", [1])
    assert json.loads(capsys.readouterr().out) == [1]


def record(number: int, row: str, ns: float, phase: str = "fast", **more: Any) -> dict[str, Any]:
    over = {"offered": 1e6, "delivered": 5e5, "loss": 0.5}
    return {"round": number, "row": row, "ns": ns, "drop_ns": 500.0, "phase": phase, "overload": over, **more}


def test_the_packet_table_compares_inside_a_round() -> None:
    records = [
        record(1, Kernel.name, 1000.0, lossless=9e5, lossless_bounded=True),
        record(1, Bare.name, 2000.0),
        record(1, "pylvs DR", 2200.0),
        record(2, Kernel.name, 2000.0, phase="slow"),
        record(2, Bare.name, 3000.0, phase="slow"),
        record(2, "pylvs DR", 3300.0, phase="slow", bare_ns=3300.0),
        {"round": 1, "row": "pylvs NAT", "drop_ns": 500.0, "phase": "fast", "problem": "no daemon"},
    ]
    lines = tables.packets_table(records).splitlines()
    fast = next(line for line in lines if line.startswith("pylvs DR") and "fast" in line).split()
    slow = next(line for line in lines if line.startswith("pylvs DR") and "slow" in line).split()
    assert fast[2:8] == ["fast", "1", "2200", "1700", "2.20", "1.10"]
    assert slow[2:8] == ["slow", "1", "3300", "2800", "1.65", "1.00"]  # against the floor measured directly before
    assert "≥ 900" in next(line for line in lines if line.startswith(Kernel.name))
    assert lines[-1].split()[:4] == ["pylvs", "NAT", "failed", "1"]


def test_the_stream_table_keeps_the_ways_of_replies_apart() -> None:
    def done(speed: float, cost: float) -> dict[str, float]:
        return {"gbit_per_second": speed, "ms_per_gbit": cost, "frame_bytes": 64512.0}

    records: list[dict[str, Any]] = [
        {"round": 1, "row": Kernel.name, "replies": "direct", "upload": done(10, 25)},
        {"round": 1, "row": Bare.name, "replies": "direct", "upload": done(11, 50)},
        {"round": 1, "row": "pylvs DR", "replies": "direct", "upload": done(12, 55)},
        {"round": 1, "row": Kernel.name, "replies": "router", "upload": done(8, 20), "download": done(6, 30)},
        {"round": 1, "row": "pylvs NAT", "replies": "router", "problem": "no TCP connection"},
    ]
    lines = tables.streams_table(records).splitlines()
    assert next(line for line in lines if line.startswith("pylvs DR")).split()[2:] == [
        "direct", "upload", "1", "12.00", "1.20", "55.0", "2.20", "1.10", "63",
    ]  # fmt: skip
    assert sum(line.startswith(Kernel.name) for line in lines) == 3
    assert lines[-1].split()[:5] == ["pylvs", "NAT", "router", "failed", "1"]


@pytest.mark.parametrize(
    "words", [["--rows", "DR,ipvs"], ["--cpus", "1,1"], ["--rounds", "0"], ["--stream-seconds", "2"]]
)
def test_impossible_arguments_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        wire.arguments(words)
    assert end.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_a_quick_run_is_one_round_without_search() -> None:
    options = wire.arguments(["--quick"])
    assert (options.rounds, options.trials, options.search) == (1, 1, False)


def test_a_disturbed_trial_is_noisy() -> None:
    assert not Usage(0.25, 0.1, DRIFT / 2, 0.0).noisy
    assert Usage(0.25, 0.1, 2 * DRIFT, 0.0).noisy
    assert Usage(0.25, 0.1, 0.0, 0.01).noisy
    assert Usage(0.25, 0.1, 0.0).share == pytest.approx(0.4)


def test_a_failing_command_says_what_it_said() -> None:
    with pytest.raises(BenchError, match=r"sh -c .*: nope"):
        run("sh", "-c", "echo nope >&2; exit 3")


def test_the_drop_program_names_the_address() -> None:
    assert to_address("10.9.9.9") == f"4,32 0 0 30,21 0 1 {0x0A090909},6 0 0 2,6 0 0 4294967295"


def at_server(ttl: int = 64, target: str = VIP) -> bytes:
    """A frame of the generator with right checksums, as it should reach the server."""
    frame = bytearray(udp_frame(60, 80, target))
    frame[:12] = mac_bytes("s0") + mac_bytes("ds")
    frame[22] = ttl
    struct.pack_into("!H", frame, 24, ~internet_sum(bytes(frame[14:34])) & 0xFFFF)
    pseudo = bytes(frame[26:34]) + bytes((0, 17)) + bytes(frame[38:40])
    struct.pack_into("!H", frame, 40, ~internet_sum(pseudo + bytes(frame[34:])) & 0xFFFF)
    return bytes(frame)


def test_each_forwarder_knows_its_frames() -> None:
    assert Bare().wrong(at_server()) == ""
    assert Kernel().wrong(at_server(63)) == ""
    assert "TTL" in Kernel().wrong(at_server())
    assert Pylvs("DR").wrong(at_server(63)) == ""
    assert Pylvs("NAT").wrong(at_server(63, "10.2.0.3")) == ""
    assert "destination" in Pylvs("NAT").wrong(at_server(63))
    inner = at_server(63)
    outer = bytes.fromhex("4500004200000000400400000a0200fe0a020002")
    assert Pylvs("TUN").wrong(inner[:14] + outer + inner[14:]) == ""
    assert "IPIP" in Pylvs("TUN").wrong(inner)


def test_damage_is_noticed() -> None:
    good = at_server()
    for offset, word in ((0, "MAC"), (16, "IP checksum"), (50, "UDP checksum")):
        bad = bytearray(good)
        bad[offset] ^= 1
        assert word in unlike(bytes(bad), 64, (VIP,))


def test_the_assembler_resolves_jumps_in_both_directions() -> None:
    code = Assembler().label("top").move_imm(0, 1).jump_imm("==", 0, 1, "end").jump(">", 1, 2, "top")
    code.map(1, 7).label("end").exit()
    slots = [struct.unpack_from("=BBhi", code.code(), at) for at in range(0, len(code.code()), 8)]
    assert slots == [
        (0xB7, 0, 0, 1),
        (0x15, 0, 3, 1),
        (0x2D, 0x21, -3, 0),
        (0x18, 0x11, 0, 7),
        (0,) * 4,
        (0x95, 0, 0, 0),
    ]


def test_the_assembler_encodes_sizes() -> None:
    code = Assembler().load(8, 1, 9, 16).store(4, 7, 22, 1).store_imm(2, 7, 4, -1).code()
    assert [code[at] for at in range(0, 24, 8)] == [0x79, 0x63, 0x6A]


def test_core_frames_have_right_checksums_and_distinct_flows() -> None:
    frames = [core.udp("c", core.endpoint(flow), (bytes((10, 0, 0, 100)), 80)) for flow in (0, 1, 49_999, 50_000)]
    for frame in frames:
        assert len(frame) == core.SIZE
        assert internet_sum(frame[14:34]) == 0xFFFF
        assert internet_sum(frame[26:34] + bytes((0, 17)) + frame[38:40] + frame[34:]) == 0xFFFF
    assert len({frame[26:36] for frame in frames}) == 4


def test_core_rows_measure_what_they_say() -> None:
    for name, once in core.rows(3):
        assert once() > 0, name
    assert core.new_flows("NAT", 100, fresh=False)() > 0
    assert core.not_ours()() > 0
