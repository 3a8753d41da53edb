"""The links that the benchmark runs on: three network namespaces of its own, joined by veth pairs.

    client                    director                    server
      c0 ───────────────── dc          ds ───────────────── s0        what is measured
      c1 ──────────────────────────────────────────────── s1        replies of direct routing

Nothing else on the machine is touched. Names carry the process id; what a killed run left behind is removed by the next.
iproute2 (`ip`, `tc`) does the set-up. No offload is switched off anywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from bench.interrupts import held

VIP = "10.9.9.9"
CLIENT = "10.1.0.1"
SERVERS = ("10.2.0.1", "10.2.0.2", "10.2.0.3", "10.2.0.4")  # one host, four addresses
FIRST_FLOW = "10.1.16.0"  # addresses of generated clients start here
MAC = {
    "c0": "02:00:00:00:01:01",
    "dc": "02:00:00:00:01:fe",
    "ds": "02:00:00:00:02:fe",
    "s0": "02:00:00:00:02:01",
    "c1": "02:00:00:00:07:01",
    "s1": "02:00:00:00:07:02",
}
PREFIX = "pylvs-bench"
CLONE_NEWNET = 0x40000000

#: classic BPF for `tc … bpf da`: drop everything; drop what goes to one IPv4 address
DROP_ALL = "1,6 0 0 2"
DROP_TO = "4,32 0 0 30,21 0 1 {address},6 0 0 2,6 0 0 4294967295"


class BenchError(Exception):
    """Something that the benchmark needs is missing or failed; the text says what and what to do."""


def run(*command: str, stdin: str | None = None, check: bool = True) -> str:
    """Run a command; return its output; raise `BenchError` with its words if it fails and `check`."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, start_new_session=True)
    if check and done.returncode:
        raise BenchError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def mac_bytes(interface: str) -> bytes:
    """The six bytes of the MAC address of one of our links."""
    return bytes.fromhex(MAC[interface].replace(":", ""))


def require_tools() -> None:
    """Raise `BenchError` unless this is root and iproute2 is there."""
    if os.geteuid() != 0:
        raise BenchError("network namespaces need root; run it with sudo")
    for tool in ("ip", "tc"):
        if shutil.which(tool) is None:
            raise BenchError(f"the command `{tool}` is missing; install iproute2 (apt-get install iproute2)")


class Topology:
    """The three namespaces; `with` makes and removes them."""

    def __init__(self) -> None:
        self.names = {role: f"{PREFIX}-{os.getpid()}-{role}" for role in ("client", "director", "server")}

    def __enter__(self) -> Topology:
        require_tools()
        try:
            with held():
                remove_stale()
                self._build()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _build(self) -> None:
        client, director, server = (self.names[role] for role in ("client", "director", "server"))
        for name in self.names.values():
            run("ip", "netns", "add", name)
        for role in self.names:
            with self.inside(role):
                for path, value in (
                    ("ipv6/conf/all/disable_ipv6", 1),
                    ("ipv6/conf/default/disable_ipv6", 1),
                    ("ipv4/conf/all/rp_filter", 0),
                    ("ipv4/conf/default/rp_filter", 0),
                    ("ipv4/conf/all/send_redirects", 0),
                    ("ipv4/conf/default/send_redirects", 0),
                ):
                    sysctl(path, value)
                if role == "server":  # a real server that owns the VIP stays silent about it
                    sysctl("ipv4/conf/all/arp_ignore", 1)
                    sysctl("ipv4/conf/all/arp_announce", 2)
            self.ip(role, "link set lo up")
        for left, here, right, there in (
            (client, "c0", director, "dc"),
            (director, "ds", server, "s0"),
            (client, "c1", server, "s1"),
        ):
            pair = f"{here} netns {left} address {MAC[here]} type veth peer name {there} netns {right}"
            run("ip", *f"link add {pair} address {MAC[there]}".split())
        self.ip("client", f"address add {CLIENT}/16 dev c0", "address add 10.7.0.1/24 dev c1")
        self.ip("director", "address add 10.1.0.254/16 dev dc", "address add 10.2.0.254/16 dev ds")
        self.ip("server", *(f"address add {server}/16 dev s0" for server in SERVERS), "address add 10.7.0.2/24 dev s1")
        self.ip("server", f"address add {VIP}/32 dev lo")
        for role, links in (("client", ("c0", "c1")), ("director", ("dc", "ds")), ("server", ("s0", "s1"))):
            self.ip(role, *(f"link set {link} up" for link in links))
        self.ip("client", f"neighbour add 10.1.0.254 lladdr {MAC['dc']} dev c0", "route add default via 10.1.0.254")
        self.ip("client", f"neighbour add 10.7.0.2 lladdr {MAC['s1']} dev c1")
        self.ip("director", f"neighbour add {CLIENT} lladdr {MAC['c0']} dev dc")
        self.ip("director", *(f"neighbour add {server} lladdr {MAC['s0']} dev ds" for server in SERVERS))
        self.ip("server", f"neighbour add 10.2.0.254 lladdr {MAC['ds']} dev s0")
        self.ip("server", f"neighbour add 10.7.0.1 lladdr {MAC['c1']} dev s1", "route add default via 10.2.0.254")
        for role, link in (("server", "s0"), ("director", "dc"), ("director", "ds")):
            run("tc", "-n", self.names[role], "qdisc", "add", "dev", link, "clsact")

    def remove(self) -> None:
        """Delete the namespaces, and with them every link."""
        with held():
            for name in self.names.values():
                run("ip", "netns", "del", name, check=False)

    def ip(self, role: str, *commands: str) -> None:
        """Run `ip` commands inside a namespace, one after the other, in one process."""
        run("ip", "-n", self.names[role], "-batch", "-", stdin="\n".join(commands) + "\n")

    @contextlib.contextmanager
    def inside(self, role: str) -> Iterator[None]:
        """Have the calling thread live in a namespace: sockets made here stay there."""
        with namespace(f"/run/netns/{self.names[role]}"):
            yield

    def command(self, role: str, *argv: str) -> list[str]:
        """`argv` to be run inside a namespace."""
        return ["ip", "netns", "exec", self.names[role], *argv]

    def steer(self, role: str, link: str, cpu: int | None) -> None:
        """Receive packet steering: let frames that arrive on `link` be processed by `cpu` (None: by the sender's)."""
        mask = f"{1 << cpu:x}" if cpu is not None else "0"
        run(*self.command(role, "sh", "-c", f"echo {mask} > /sys/class/net/{link}/queues/rx-0/rps_cpus"))

    def drop(self, role: str, link: str, program: str | None) -> None:
        """Drop at ingress, after packet sockets have seen the frame, what a classic BPF program names (None: nothing)."""
        name = self.names[role]
        run("tc", "-n", name, "filter", "del", "dev", link, "ingress", check=False)
        if program is not None:
            words = f"filter add dev {link} ingress protocol ip prio 1 bpf da bytecode".split()
            run("tc", "-n", name, *words, program)

    def forwarding(self, on: bool) -> None:
        """The director host's own `ip_forward`."""
        with self.inside("director"):
            sysctl("ipv4/ip_forward", int(on))

    def counters(self, role: str, link: str) -> tuple[int, int, int]:
        """(frames received, frames sent, frames dropped on sending) of a link."""
        with self.inside(role):
            text = Path("/proc/thread-self/net/dev").read_text(encoding="ascii")
        for line in text.splitlines():
            name, _, rest = line.partition(":")
            if name.strip() == link:
                fields = rest.split()
                return int(fields[1]), int(fields[9]), int(fields[11])
        raise BenchError(f"no link {link} in {self.names[role]}")


def to_address(address: str) -> str:
    """The program that drops what goes to `address`."""
    return DROP_TO.format(address=int.from_bytes(bytes(map(int, address.split("."))), "big"))


def sysctl(path: str, value: int) -> None:
    """Write a setting under /proc/sys/net of the calling thread's namespace."""
    Path("/proc/sys/net", path).write_text(f"{value}\n", encoding="ascii")


@contextlib.contextmanager
def namespace(path: str) -> Iterator[None]:
    """Move the calling thread into the network namespace at `path`, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open(f"/proc/self/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
    try:
        target = os.open(path, os.O_RDONLY)
        try:
            if libc.setns(target, CLONE_NEWNET):
                code = ctypes.get_errno()
                raise OSError(code, f"setns {path}: {os.strerror(code)}")
        finally:
            os.close(target)
        try:
            yield
        finally:
            libc.setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def remove_stale() -> None:
    """Delete namespaces that a killed run of this benchmark left behind."""
    for line in run("ip", "netns", "list", check=False).splitlines():
        name = line.split()[0] if line.split() else ""
        owner = name.removeprefix(f"{PREFIX}-").split("-")[0]
        if name.startswith(f"{PREFIX}-") and owner.isdigit() and not Path(f"/proc/{owner}").exists():
            run("ip", "netns", "del", name, check=False)
