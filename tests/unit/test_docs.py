"""The documents say what is: files exist, examples print what they claim, every drop reason is explained."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

from pylvs.forward._fastpath import REASONS
from pylvs.model import Service

ROOT = Path(__file__).resolve().parents[2]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
PAGES = [*READMES, *(page for room in ("how-to", "internals", "reference") for page in sorted((ROOT / "docs" / room).glob("*.md")))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
#: a path in backticks that starts at the repository's root
PATH = re.compile(r"`((?:pylvs|bench|tests|docs|examples|\.ci)/[\w./-]*|Makefile|LICENSE|setup\.py|pyproject\.toml)`")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Fenced blocks as (language, text)."""
    return FENCE.findall(page.read_text())


def anchor(title: str) -> str:
    """How a heading is linked to."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def stripped(text: str) -> list[str]:
    """Lines without trailing blanks, which editors and readers do not see."""
    return [line.rstrip() for line in text.splitlines()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_links(page: Path) -> None:
    """Every path and every link leads somewhere."""
    prose = FENCE.sub("", page.read_text())
    for path in PATH.findall(prose):
        assert (ROOT / path).exists(), f"{page.name} names {path}"
    for link in LINK.findall(prose):
        if "://" in link:
            continue
        file, _, fragment = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name} links to {link}"
        if fragment and target.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", FENCE.sub("", target.read_text()), re.MULTILINE)
            assert fragment in map(anchor, titles), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", [*READMES, ROOT / "docs/reference/director.md"], ids=lambda page: page.name)
def test_python_examples(page: Path) -> None:
    """Python blocks run in order; the plain block behind one is what it prints."""
    pytest.importorskip("scapy.all")
    found = blocks(page)
    namespace: dict[str, Any] = {}
    compared = 0
    for (language, code), (next_language, expected) in zip(found, [*found[1:], ("", "")], strict=True):
        if language != "python":
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, page.name, "exec"), namespace)
        if not next_language and expected:
            assert stripped(printed.getvalue()) == stripped(expected)
            compared += 1
        else:
            assert not printed.getvalue()
    assert compared


def test_every_reason_is_explained() -> None:
    """The table in packet-life.md has one line for each drop reason, and none that does not exist."""
    text = (ROOT / "docs/internals/packet-life.md").read_text()
    table = text[text.index("## Reasons") : text.index("## The books balance")]
    rows = re.findall(r"^\| `(\w+)` \|(.+)\|(.+)\|$", table, re.MULTILINE)
    assert len(rows) == len({name for name, *_ in rows})
    assert {name for name, *_ in rows} == set(REASONS) - {""}
    assert all(meaning.strip() and remedy.strip() for _, meaning, remedy in rows)


def test_both_readmes_agree() -> None:
    """The same commands, the same examples, the same number of limits, the same files."""
    english, chinese = (page.read_text() for page in READMES)
    runnable = [[block for block in blocks(page) if block[0]] for page in READMES]
    assert runnable[0] == runnable[1]
    limits = [
        len(re.findall(r"^1\. ", text[text.index(head) :], re.MULTILINE))
        for text, head in ((english, "## Limits"), (chinese, "## 限制"))
    ]
    assert limits[0] == limits[1] > 0
    commands = [set(re.findall(r"`((?:pylvs|make) [^`]+)`", text)) for text in (english, chinese)]
    assert commands[0] == commands[1]
    files = [{link for link in LINK.findall(text) if not link.startswith(("#", "README"))} for text in (english, chinese)]
    assert files[0] == files[1]


def test_limits_name_true_facts() -> None:
    """Capacities and settings in the list of limits are those of the code."""
    from pylvs.forward._fastpath import DEST_CAPACITY, LINK_CAPACITY, SERVICE_CAPACITY
    from pylvs.sched import SCHEDULERS
    from pylvs.settings import EFFECTIVE, TABLE

    for page, head in zip(READMES, ("## Limits", "## 限制"), strict=True):
        text = page.read_text()
        limits = [line for line in text[text.index(head) :].splitlines() if line.startswith("1. ")]
        for line in limits:
            if str(SERVICE_CAPACITY) in line or str(DEST_CAPACITY) in line:
                assert all(str(number) in line for number in (SERVICE_CAPACITY, DEST_CAPACITY, LINK_CAPACITY))
                break
        else:
            pytest.fail(f"{page.name} does not tell the capacities")
        for line in limits:
            if "net.ipv4.vs" in line:
                assert set(re.findall(r"`(\w+)`", line)) & set(TABLE) == EFFECTIVE
            if "rr" in line and "wlc" in line:
                assert set(re.findall(r"\b(?:rr|wrr|lc|wlc)\b", line)) == set(SCHEDULERS) - {"none"}


def test_the_example_key_is_a_service_key() -> None:
    """The key that director.md writes out by hand."""
    assert Service(protocol="tcp", address="10.0.0.100", port=80).key == (4, "tcp", "10.0.0.100", 80)
