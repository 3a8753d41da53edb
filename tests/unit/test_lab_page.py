"""Progress and result pages, as a terminal and as a file sees them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from pylvs.lab import many, page
from pylvs.lab.result import Result
from pylvs.lab.topology import PLANS
from pylvs.lab.verdict import Verdict


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def phase(name: str, counts: tuple[int, ...], errors: dict[str, int] | None = None) -> dict[str, Any]:
    return {
        "event": "phase",
        "phase": name,
        "requests": 300,
        "answered": sum(counts),
        "servers": {f"rs{n}": count for n, count in enumerate(counts, 1)},
        "errors": errors or {},
        "seconds": 1.0,
        "latency_ms": {"p50": 1.5, "p90": 2.0, "p99": 3.0, "max": 12.25},
    }


def transfer(ok: bool) -> dict[str, Any]:
    return {
        "kind": "download",
        "server": "rs2",
        "bytes": 50_000_000,
        "seconds": 0.5,
        "ok": ok,
        "error": "" if ok else "cut",
    }


@pytest.fixture
def result() -> Callable[[str], Result]:
    def make(method: str) -> Result:
        plan = PLANS[method]()
        return Result(
            name=method,
            method=plan.method,
            kind=plan.kind,
            title=plan.title,
            vip=plan.vip,
            port=plan.port,
            client=plan.clients or plan.client,
            director=plan.dip,
            servers=[{"name": s.name, "address": s.address, "port": s.port} for s in plan.servers],
            notes=list(plan.notes),
            phases=[phase("sequential", (100, 100, 100)), phase("keepalive", (20, 0, 0))],
            transfers=[transfer(True)],
            verdicts=[Verdict("one thing holds", True, ("seen so",))],
            seconds=3.2,
        )

    return make


@pytest.mark.parametrize("method", PLANS)
def test_the_picture_is_square_and_has_the_addresses(method: str, result: Callable[[str], Result]) -> None:
    plan = PLANS[method]()
    lines = page.picture(result(method))
    drawn = [line for line in lines if line.startswith(("  +", "  |"))]
    assert len({len(line) for line in drawn[1:-1]}) <= 2 and max(map(len, lines)) <= (110 if plan.version == 4 else 120)
    text = "\n".join(lines)
    for address in (plan.clients or plan.client, plan.vip, plan.dip, *(server.address for server in plan.servers)):
        assert address in text
    assert text.isascii()


def test_a_good_page(result: Callable[[str], Result]) -> None:
    good = result("dr")
    assert good.ok
    text = page.Page().lab(good)
    assert "\x1b" not in text and "✘" not in text
    assert "sequential  rs1        100   100.0  " + "█" * 10 + "░" * 20 + "  33.3%      1.5     3.0    12.2" in text
    assert "keepalive" not in text
    assert "download    rs2         50    0.50    100.0  ✔ identical" in text
    assert "✔ one thing holds\n      seen so" in text
    assert text.endswith("✔ dr: 1 of 1 verdicts hold, 3.2 s")


def test_who_moved(result: Callable[[str], Result]) -> None:
    hashed = result("hash")
    hashed.figures = [many.figures("mh", "rs3", {"a": "rs3", "b": "rs1", "c": "rs2"}, {"a": "rs1", "b": "rs1", "c": "rs1"})]
    text = page.Page().lab(hashed)
    assert "mh                 3      rs3        1      1       2      1  " + "█" * 15 + "░" * 15 + "  50.0%" in text


def test_a_lab_that_this_machine_cannot_run(result: Callable[[str], Result]) -> None:
    skipped = result("sctp")
    skipped.skipped = "this kernel has no SCTP sockets"
    assert page.Page().lab(skipped).endswith("- sctp: not run: this kernel has no SCTP sockets")


def test_a_bad_page(result: Callable[[str], Result]) -> None:
    bad = result("nat")
    bad.verdicts.append(Verdict("another does not", False, (), tuple(f"fault {n}" for n in range(7))))
    bad.phases = [phase("concurrent", (100, 100, 98), {"timed out": 2})]
    bad.transfers = [transfer(False)]
    text = page.Page().lab(bad)
    assert not bad.ok
    assert "✘ another does not\n      but: fault 0" in text and "and 2 more" in text
    assert "errors       2" in text
    assert "✘ cut" in text
    assert text.endswith("✘ nat: 1 of 2 verdicts hold, 3.2 s")


def test_an_error_is_no_success(result: Callable[[str], Result]) -> None:
    failed = result("tun")
    failed.error = "daemon ended with status 1: no interface eth7"
    assert not failed.ok
    assert "✘ daemon ended with status 1" in page.Page().lab(failed)
    empty = result("tun")
    empty.verdicts = []
    assert not empty.ok


def test_colours_and_plain_marks(result: Callable[[str], Result]) -> None:
    assert "\x1b[32m✔\x1b[0m" in page.Page(colour=True).lab(result("dr"))
    plain = page.Page(encoding="ANSI_X3.4-1968").lab(result("dr"))
    assert plain.isascii() and "ok one thing holds" in plain


def test_a_kept_lab_says_how_to_go_on(result: Callable[[str], Result]) -> None:
    kept = result("dr")
    kept.kept = True
    assert "pylvs lab down dr" in page.Page().lab(kept)


def test_the_result_is_json(result: Callable[[str], Result]) -> None:
    document = json.loads(json.dumps(asdict(result("tun"))))
    assert document["verdicts"][0] == {"claim": "one thing holds", "ok": True, "evidence": ["seen so"], "faults": []}


def test_progress_on_a_terminal_is_rewritten_in_place() -> None:
    stream = Terminal()
    progress = page.Progress("dr", stream)
    progress.step("requests")
    progress.count(10, 300)
    progress.step("next")
    progress.close()
    assert stream.getvalue().count("\n") == 2
    assert "\r\x1b[K" in stream.getvalue() and "requests: 10 of 300" in stream.getvalue()


def test_progress_elsewhere_is_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    now = [100.0]
    monkeypatch.setattr(page.time, "monotonic", lambda: now[0])
    progress = page.Progress("dr", stream)
    progress.step("upload")
    for _ in range(20):
        now[0] += 0.3
        progress.count(10.4, 50, "MB")
    progress.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("0.0 s  upload") and lines[1].endswith("upload: 10 of 50 MB")
    assert len(lines) == 6  # once a second
    assert "\x1b" not in stream.getvalue() and "\r" not in stream.getvalue()
