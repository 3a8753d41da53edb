"""Network namespaces for the tests of `pylvs.host`: made by the test, entered by the test, gone with it."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyroute2 import netns

_number = itertools.count()


class HostNet:
    """A handful of namespaces, called by short names; `close` kills what still runs in them and deletes them."""

    def __init__(self, *names: str) -> None:
        tag = f"plvh{os.getpid():x}n{next(_number)}"
        self.names = {name: f"{tag}{name}" for name in names}
        self.processes: list[subprocess.Popen[str]] = []
        for name in names:
            subprocess.run(["ip", "netns", "add", self.names[name]], check=True)
            self.ip(name, "link set lo up")
            # addresses are usable at once, and no router solicitation disturbs a capture
            self.sysctl(name, "net/ipv6/conf/default/accept_dad", 0)
            self.sysctl(name, "net/ipv6/conf/default/router_solicitations", 0)

    def __enter__(self) -> HostNet:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], check=False)

    def ip(self, name: str, command: str, *, check: bool = True) -> str:
        """``ip -n NAMESPACE COMMAND``; several commands are separated by ``;``."""
        out = ""
        for line in command.split(";"):
            done = subprocess.run(
                ["ip", "-n", self.names[name], *line.split()], capture_output=True, text=True, check=False
            )
            assert not check or done.returncode == 0, f"ip {line}: {done.stderr}"
            out += done.stdout
        return out

    def veth(self, left: str, left_link: str, right: str, right_link: str) -> None:
        """A cable between two namespaces, both ends up."""
        self.ip(left, f"link add {left_link} type veth peer name {right_link} netns {self.names[right]}")
        self.ip(left, f"link set {left_link} up")
        self.ip(right, f"link set {right_link} up")

    def sysctl(self, name: str, key: str, value: int) -> None:
        with self.inside(name):
            Path("/proc/sys", key).write_text(str(value))

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Run the body in the namespace; sockets opened there stay there."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            netns.setns(self.names[name])
            yield
        finally:
            netns.setns(before)
            os.close(before)

    def run(self, name: str, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["ip", "netns", "exec", self.names[name], *argv],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
            **options,
        )

    def python(self, name: str, code: str, *argv: str) -> subprocess.Popen[str]:
        """Start a Python program in the namespace; wait for its first line of output."""
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[name], sys.executable, "-c", code, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        self.processes.append(process)
        assert process.stdout is not None
        process.first = process.stdout.readline().strip()  # type: ignore[attr-defined]
        return process
