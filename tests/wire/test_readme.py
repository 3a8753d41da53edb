"""The README's session by hand, typed as it stands there but for the names, which are this test's own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.root


def session() -> tuple[str, str]:
    """The commands, and what the README says that they print."""
    text = (ROOT / "README.md").read_text()
    text = text[text.index("## A session by hand") : text.index("## Without a network")]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    [printed] = [block for language, block in blocks if not language]
    return "\n".join(block for language, block in blocks if language == "sh"), printed


def known(text: str, prefix: str) -> list[str]:
    """Lines without what differs from run to run: the pid, trailing blanks, connections that have just ended or not."""
    text = re.sub(r"pid \d+", "pid N", text.replace(prefix, "lvs-"))
    text = re.sub(r"^(  -> \d\S+ +Masq +\d+) +\d+ +\d+ *$", r"\1", text, flags=re.MULTILINE)
    return [line.rstrip() for line in text.splitlines()]


def namespaces(prefix: str) -> list[str]:
    """Those of this test that there are."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    return [line.split()[0] for line in listed.splitlines() if line.startswith(prefix)]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_session_by_hand() -> None:
    """It prints what the README shows, and leaves nothing behind."""
    prefix = f"r{os.getpid() % 100000}-"
    commands, printed = session()
    shell = subprocess.Popen(
        ["bash", "-c", commands.replace("lvs-", prefix)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = shell.communicate(timeout=60)
        left = namespaces(prefix), list(Path("/tmp").glob(f"{prefix}*"))
    finally:
        if shell.poll() is None:
            os.killpg(shell.pid, signal.SIGKILL)
            shell.communicate()
        for name in namespaces(prefix):
            subprocess.run(["ip", "netns", "del", name], check=False)
        for path in Path("/tmp").glob(f"{prefix}*"):
            shutil.rmtree(path)
    assert known(output, prefix) == known(printed, prefix)
    assert shell.returncode == 0
    assert left == ([], [])
