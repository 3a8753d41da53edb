"""A lab's life: build the network, start its servers and the director, set the rules; and take all of it down again."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

from pylvs.lab import namespace, process, record, topology
from pylvs.lab.process import Failed, Identity, Stop
from pylvs.lab.topology import Plan, network

READY = 30.0  # seconds that a process may take to say that it is ready
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,19}")

PYTHON = (sys.executable, "-m")


class Lab:
    """The lab `name`, built after `plan`. `say` is told each step; `stop` ends any of them.

    Hold the name (`record.held`) while a lab is made or taken down.
    """

    def __init__(self, plan: Plan, name: str, stop: Stop, say: Callable[[str], None]) -> None:
        if not NAME.fullmatch(name):
            raise Failed(f"{name!r} is no name for a lab; use at most 20 lower-case letters, digits and dashes")
        self.plan, self.name = plan, name
        self._stop, self._say = stop, say
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        self.record = record.Record(name, plan.kind, record.owner(), since=time.time())

    def up(self) -> None:
        """Make everything and wait until it is ready. On any exception call `down`."""
        clear(self.name)
        self.record.namespaces = topology.networks(self.plan, self.name)
        self.record.write()
        self._say(f"{len(self.plan.nodes)} namespaces and the wires between them")
        topology.build(self.plan, self.name, self._stop.check)
        self._say(
            f"{'a server' if self.plan.kind == 'sctp' else 'a web server'} on {', '.join(server.name for server in self.plan.servers)}"
        )
        for server in self.plan.servers:
            if self.plan.kind == "sctp":
                listen = f"{server.address}:{server.port}"
                argv = [*PYTHON, "pylvs.lab.sctp", "--name", server.name, "--listen", listen]
                self.start(server.name, f"sctp-{server.name}", argv)
                continue
            for port in self.plan.ports or (server.port,):
                # every address: the VIP is one of them in DR and TUN
                listen = f"{'' if self.plan.version == 4 else '[::]'}:{port}"
                self.start(
                    server.name,
                    f"httpd-{server.name}" + (f"-{port}" if self.plan.ports else ""),
                    [*PYTHON, "pylvs.lab.httpd", "--name", server.name, "--listen", listen],
                )
        if self.plan.method == "tun":
            for server in self.plan.servers:
                self.start(server.name, f"tun-{server.name}", [*PYTHON, "pylvs", "rs", "tun", "--vip", self.plan.vip])
        for item in self.record.processes:
            self.await_ready(item.name)
        self._say(" ".join(["the director: pylvs daemon", *self.plan.daemon]))
        self.start("director", "daemon", [*PYTHON, "pylvs", "daemon", *self.plan.daemon])
        self.await_ready("daemon")
        for rule in self.plan.rules():
            self._say("pylvs ipvsadm " + " ".join(rule))
            self.command("director", [*PYTHON, "pylvs", "ipvsadm", *rule])

    def keep(self) -> None:
        """From now on the lab stays when this process ends."""
        self.record.kept = True
        self.record.write()

    def down(self) -> None:
        """Stop and remove everything, whatever of it there is."""
        clear(self.name, self._children)

    def start(self, node: str, name: str, argv: Sequence[str]) -> None:
        """Start a process of the lab that goes on until the lab is taken down; its output is in the lab's log `name`."""
        self._stop.check()
        with self.record.log(name).open("wb") as log:
            child = process.start(argv, lab=self.name, network=network(self.name, node), output=log)
        self._children[child.pid] = child
        self.record.processes.append(Identity(name, node, child.pid, process.started(child.pid)))
        self.record.write()

    def await_ready(self, name: str) -> None:
        """Wait until the log of the process `name` says that it is ready; `Failed` with its last words otherwise."""
        pid = next(item.pid for item in self.record.processes if item.name == name)
        deadline = time.monotonic() + READY
        log = self.record.log(name)
        while "ready" not in log.read_text(errors="replace"):
            if self._children[pid].poll() is not None:
                raise Failed(f"{name} ended with status {self._children[pid].returncode}: {last_words(log)}")
            if time.monotonic() > deadline:
                raise Failed(f"{name} was not ready within {READY:.0f} s: {last_words(log)}")
            self._stop.wait(0.01)

    def living(self) -> None:
        """`Failed` if a process of the lab has ended although nobody asked it to."""
        for item in self.record.processes:
            if self._children[item.pid].poll() is not None:
                status = self._children[item.pid].returncode
                raise Failed(f"{item.name} ended with status {status}: {last_words(self.record.log(item.name))}")

    def command(self, node: str, argv: Sequence[str], seconds: float = 30.0) -> str:
        """Run a command in `node` and return what it wrote; `Failed` with its words if its status is not 0."""
        self._stop.check()
        child = process.start(
            argv, lab=self.name, network=network(self.name, node), output=subprocess.PIPE, errors=subprocess.STDOUT
        )
        with child:
            try:
                text = "\n".join(process.lines(child, self._stop, seconds))
                status = process.finished(child, self._stop, seconds)
            except BaseException:
                child.terminate()
                raise
        if status:
            raise Failed(f"{' '.join(argv[2:])} in {node} ended with status {status}: {text}")
        return text

    def open(self, node: str, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        """Start a command in `node` whose standard output is read while it runs (`process.lines`)."""
        child = process.start(
            argv, lab=self.name, network=network(self.name, node), output=subprocess.PIPE, errors=subprocess.STDOUT
        )
        self._children[child.pid] = child
        return child

    def forget_neighbour(self, node: str, address: str) -> None:
        """Delete the ARP (ND) entry for `address`, so that the next packet asks anew."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with namespace.routes(network(self.name, node)) as route:
            for entry in route.get_neighbours(family=family):
                if entry.get_attr("NDA_DST") == address:
                    with suppress(NetlinkError):  # it aged out in between
                        route.neigh("del", family=family, dst=address, ifindex=entry["ifindex"])

    def checksum_errors(self, node: str) -> int:
        """Packets that the kernel of `node` refused for a wrong IP, TCP or UDP checksum."""
        with namespace.inside(network(self.name, node)):
            counts = snmp(Path("/proc/thread-self/net/snmp").read_text())
            with suppress(OSError):  # a kernel without IPv6
                rows = (line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines())
                counts |= {row[0]: int(row[1]) for row in rows if len(row) == 2}
        wanted = ("Tcp.InCsumErrors", "Udp.InCsumErrors", "Ip.InHdrErrors", "Udp6InCsumErrors", "Icmp6InCsumErrors")
        return sum(counts.get(key, 0) for key in (*wanted, "Ip6InHdrErrors"))


def snmp(text: str) -> dict[str, int]:
    """``/proc/net/snmp`` as ``Tcp.InCsumErrors`` -> count."""
    found = {}
    rows = [line.split() for line in text.splitlines()]
    for names, values in zip(rows[::2], rows[1::2], strict=False):
        for name, value in zip(names[1:], values[1:], strict=False):
            found[f"{names[0].rstrip(':')}.{name}"] = int(value)
    return found


def last_words(log: Path) -> str:
    """The last lines of a log."""
    try:
        return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:]) or "it said nothing"
    except OSError:
        return "it has no log"


def clear(name: str, children: dict[int, subprocess.Popen[bytes]] | None = None) -> bool:
    """Stop the processes and remove the namespaces and records of the lab `name`, whoever left them; True if there were any.

    Only what is the lab's is touched: processes whose pid *and* start time were written down or that carry the lab's mark in
    one of its namespaces, and namespaces of the lab's names.
    """
    known = record.read(name)
    # by whole names: one that merely begins alike may be another lab's, as `dr-two` beside `dr`
    networks = possible(name).intersection(namespace.names(topology.PREFIX))
    identities = list(known.processes) if known else []
    mine = {identity.pid for identity in identities}
    identities += [identity for identity in process.marked(name, networks) if identity.pid not in mine]
    process.stop_all(identities, children)
    for item in sorted(networks):
        namespace.remove(item)
    record.Record(name, "", record.owner()).erase()
    return bool(known or networks)


def possible(name: str) -> set[str]:
    """Every namespace that a lab called `name` may have."""
    return {item for plan in topology.PLANS.values() for item in topology.networks(plan(), name)}
