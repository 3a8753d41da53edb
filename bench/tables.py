"""The two tables of `wire.py`, from its records. Ratios compare figures of the same round only."""

from __future__ import annotations

from typing import Any

from bench import report
from bench.forwarders import Bare, Kernel

Records = list[dict[str, Any]]


def packets_table(records: Records) -> str:
    """Medians (min–max) per forwarder and phase."""
    names = list(dict.fromkeys(record["row"] for record in records))
    lines = []
    for label in ("fast", "between", "slow"):
        for name in names:
            mine = {r["round"]: r for r in records if r["row"] == name and r["phase"] == label and "ns" in r}
            if mine:
                lines.append(packets_line(name, label, mine, records))
    for name in names:
        failures = sum(record["row"] == name and "problem" in record for record in records)
        if failures:
            lines.append([name, "failed", str(failures), *["–"] * 6])
    headings = ["forwarder", "phase", "rounds", "CPU ns/packet", "above drop", "× kernel", "× bare"]
    return report.table([*headings, "lossless kpps", "overload kpps (loss)"], lines)


def packets_line(name: str, label: str, mine: dict[int, dict[str, Any]], records: Records) -> list[str]:
    """One line of the packet table: the rounds of one forwarder in one phase."""
    cost = {number: record["ns"] for number, record in mine.items()}
    kernel = {r["round"]: r["ns"] for r in records if r["row"] == Kernel.name and "ns" in r}
    bare = {r["round"]: r["ns"] for r in records if r["row"] == Bare.name and "ns" in r}
    bare |= {number: record["bare_ns"] for number, record in mine.items() if "bare_ns" in record}
    lossless = report.summarise(record["lossless"] for record in mine.values() if "lossless" in record)
    bounded = sum(bool(record.get("lossless_bounded")) for record in mine.values()) > len(mine) / 2
    over = report.summarise(record["overload"]["delivered"] for record in mine.values())
    lost = report.summarise(record["overload"]["loss"] * 100 for record in mine.values())
    return [
        name,
        label,
        str(len(mine)),
        report.shown(report.summarise(cost.values())),
        report.shown(report.summarise(record["ns"] - record["drop_ns"] for record in mine.values())),
        "1" if name == Kernel.name else report.shown(report.ratios(cost, kernel), 2),
        "1" if name == Bare.name else report.shown(report.ratios(cost, bare), 2),
        ("≥ " if bounded and lossless else "") + report.shown(lossless, 0, 1e3),
        f"{report.shown(over, 0, 1e3)} ({lost.median:.0f} %)" if lost else "–",
    ]


def streams_table(records: Records) -> str:
    """Medians (min–max) per forwarder, way of the replies and direction; ratios are medians."""
    lines = []
    for replies in dict.fromkeys(record["replies"] for record in records):
        group = [record for record in records if record["replies"] == replies]
        for name in dict.fromkeys(record["row"] for record in group):
            for way in ("upload", "download"):
                if any(record["row"] == name and way in record for record in group):
                    lines.append([name, replies, way, *streams_cells(name, way, group)])
            failures = sum(record["row"] == name and "problem" in record for record in group)
            if failures:
                lines.append([name, replies, "failed", str(failures), *["–"] * 6])
    headings = ["forwarder", "replies", "way", "rounds", "Gbit/s", "× kernel", "CPU ms/Gbit", "× kernel", "× bare"]
    return report.table([*headings, "KiB/frame"], lines)


def streams_cells(name: str, way: str, group: Records) -> list[str]:
    """The figures of one line of the TCP table."""

    def values(row: str, key: str) -> dict[int, float]:
        return {r["round"]: r[way][key] for r in group if r["row"] == row and way in r}

    def beside(reference: str, key: str) -> str:
        found = report.ratios(values(name, key), values(reference, key))
        return "1" if name == reference else f"{found.median:.2f}" if found else "–"

    speed, cost = values(name, "gbit_per_second"), values(name, "ms_per_gbit")
    size = report.summarise(values(name, "frame_bytes").values())
    return [
        str(len(speed)),
        report.shown(report.summarise(speed.values()), 2),
        beside(Kernel.name, "gbit_per_second"),
        report.shown(report.summarise(cost.values()), 1),
        beside(Kernel.name, "ms_per_gbit"),
        beside(Bare.name, "ms_per_gbit"),
        f"{size.median / 1024:.0f}" if size else "–",
    ]
