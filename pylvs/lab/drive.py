"""What a run does between up and down: one request captured everywhere, many requests, transfers, and the verdicts on them."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pylvs.lab import page, proof, topology, watch
from pylvs.lab.capture import SIGNS, Capture, Tap
from pylvs.lab.life import PYTHON, Lab
from pylvs.lab.packet import TCP, Frame
from pylvs.lab.process import Failed, Stop, lines
from pylvs.lab.result import Options, Result
from pylvs.lab.topology import network
from pylvs.lab.verdict import Case, Verdict

ESTIMATOR = 3.2  # seconds: the director looks at its counters every two, and notices a second late

PROBE_PORT = 40080
SETTLE = 0.3  # seconds without a frame after which a conversation is over, late duplicates included
OVER = 5.0  # seconds after which it is taken to be over all the same
FIRST_PORT = 10_000  # below the kernel's own choice, see `load`
KEEPALIVE = 20


class Drive:
    """The steps between up and down."""

    def __init__(self, lab: Lab, options: Options, progress: page.Progress, stop: Stop, result: Result) -> None:
        self._lab, self._plan = lab, lab.plan
        self._options, self._progress, self._stop, self._result = options, progress, stop, result
        self._answers: Counter[str] = Counter()  # connections by server, as the client saw them

    def all(self) -> None:
        """Every step in turn."""
        self.probe()
        watched = ["client", *(server.name for server in self._plan.servers)]
        if self._plan.asks not in watched:
            watched.append(self._plan.asks)
        with self.capture(watched, signs=True) as capture:
            self.requests()
            self.transfers()
            frames = self.settled(capture)
        self._lab.living()
        hosts = ["client", *(server.name for server in self._plan.servers)]
        self._result.verdicts += watch.watch(self._plan, frames)
        self._result.verdicts.append(watch.checksums({node: self._lab.checksum_errors(node) for node in hosts}))
        self.table()

    @contextmanager
    def capture(self, nodes: list[str], signs: bool = False) -> Iterator[Capture]:
        """Capture on all interfaces of `nodes` while the block runs, all frames or only the `SIGNS`."""
        taps: list[Tap] = []
        try:
            for node in nodes:
                for end in self._plan.node(node).interfaces:
                    taps.append(Tap(network(self._lab.name, node), node, end.name, SIGNS if signs else ()))
            yield Capture(taps)
        finally:
            for tap in taps:
                tap.close()

    def settled(self, capture: Capture) -> list[Frame]:
        """What was captured, when nothing more comes."""
        frames = capture.drain()
        deadline = time.monotonic() + OVER
        while time.monotonic() < deadline:
            self._stop.wait(SETTLE)
            more = capture.drain()
            if not more:
                break
            frames += more
        return frames

    def load(self, *arguments: str, each: Callable[[dict[str, Any]], None], url: str = "") -> None:
        """Run the client with `arguments`, and pass on what it reports; `url` is the service's unless given."""
        argv = ["pylvs.lab.load", "--url", url or f"http://{self._plan.service}"]
        if self._plan.kind == "sctp":
            argv = ["pylvs.lab.sctp", "--connect", self._plan.service]
        child = self._lab.open("client", [*PYTHON, *argv, *arguments])
        assert child.stdout is not None
        other: list[str] = []
        with child.stdout:
            for line in lines(child, self._stop, 45.0):
                try:
                    document = json.loads(line)
                except ValueError:
                    other.append(line)
                    continue
                if document["event"] == "done":
                    break
                each(document)
        try:
            status = child.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            raise Failed("the client did not end") from None
        if status:
            raise Failed(f"the client ended with status {status}: {' / '.join(other[-3:])}")

    def probe(self) -> None:
        """One request, captured everywhere, and what it proves."""
        plan = self._plan
        self._progress.step("one request, captured at every node")
        self._lab.forget_neighbour(plan.asks, plan.vip)
        reports: list[dict[str, Any]] = []
        with self.capture([node.name for node in plan.nodes]) as capture:
            self.load("--sequential", "1", "--ports", str(PROBE_PORT), each=reports.append)
            frames = self.settled(capture)
        answered = [name for report in reports if report["event"] == "phase" for name in report["servers"]]
        if not answered:
            errors = [error for report in reports for error in report.get("errors", ())]
            raise Failed(f"no answer from {plan.service}: {'; '.join(errors)}{self._seen(frames)}")
        self._answers.update(answered)
        server = next((server for server in plan.servers if server.name == answered[0]), None)
        if server is None:
            raise Failed(f"{answered[0]} answered, but belongs to nobody here")
        self._result.verdicts += proof.prove(proof.Probe(plan, PROBE_PORT, server, frames))

    def _seen(self, frames: list[Frame]) -> str:
        """What was captured of a request that failed, for whoever looks for the reason."""
        shown = [f.line(self._plan.owners) for f in frames if f.arp or (f.ip and f.ip.protocol in {1, 4, 41, 58, TCP})]
        return "".join(f"\n    {line}" for line in shown[:30])

    def requests(self) -> None:
        """Sequential and concurrent requests, and the shares of the servers; a connection kept alive."""
        plan, count = self._plan, self._options.requests
        due = {server.name: count / len(plan.servers) for server in plan.servers}
        for number, phase in enumerate(("sequential", "concurrent")):
            self._progress.step(f"{count} {phase} requests, a new connection for each")
            report = self._phase(phase, count, "--ports", str(FIRST_PORT + number * count))
            self._answers.update(report["servers"])
            verdict = watch.shares(report["servers"], due, count)
            faults = tuple(f"{number} x {text}" for text, number in report["errors"].items())
            claim = verdict.claim.replace("requests", f"{phase} requests")
            self._result.verdicts.append(Verdict(claim, verdict.ok, verdict.evidence, verdict.faults + faults))
        self._progress.step(f"{KEEPALIVE} requests over one connection")
        report = self._phase("keepalive", KEEPALIVE)
        self._answers.update(dict.fromkeys(report["servers"], 1))
        case = Case("a connection stays with its server: keep-alive requests meet one only")
        case.need(report["answered"] == KEEPALIVE, f"{report['answered']} of {KEEPALIVE} were answered")
        case.need(len(report["servers"]) == 1, f"{len(report['servers'])} servers answered")
        case.evidence = [f"{number} requests, all from {name}" for name, number in report["servers"].items()]
        self._result.verdicts.append(case.verdict())

    def _phase(self, phase: str, count: int, *options: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def each(document: dict[str, Any]) -> None:
            if document["event"] == "progress":
                self._progress.count(document["done"], document["of"])
            else:
                found.append(document)

        self.load(f"--{phase}", str(count), *options, each=each)
        if not found:
            raise Failed(f"the client said nothing of the {phase} requests")
        self._result.phases.append(found[0])
        return found[0]

    def transfers(self) -> None:
        """A download and an upload; and how much of the download the director saw."""
        size = self._options.size
        if not size:
            return
        for kind in ("download", "upload"):
            self._progress.step(f"one {kind} of {size / 1e6:g} MB")
            before = self._director_bytes()

            def each(document: dict[str, Any]) -> None:
                if document["event"] == "progress":
                    self._progress.count(document["done"] / 1e6, document["of"] / 1e6, "MB")
                else:
                    self._result.transfers.append(document)

            self.load(f"--{kind}", str(size), each=each)
            report = self._result.transfers[-1]
            if report["server"]:
                self._answers[report["server"]] += 1
            case = Case(f"the {kind} of {size / 1e6:g} MB arrives as it was sent")
            case.need(
                bool(report["ok"]), report["error"] or f"SHA-256 {report['sha256']}, expected {report['expected']}"
            )
            case.evidence = [
                f"SHA-256 {report['sha256'][:16]}… at both ends, {report['server']}, {report['seconds']:.2f} s"
            ]
            self._result.verdicts.append(case.verdict())
            if kind == "download":
                self._result.verdicts.append(watch.load_on_director(self._plan, size, self._director_bytes() - before))

    def _director_bytes(self) -> int:
        """Bytes that all interfaces of the director have received."""
        name = network(self._lab.name, "director")
        return sum(topology.counters(name, end.name)["rx_bytes"] for end in self._plan.node("director").interfaces)

    def table(self) -> None:
        """The director's own account, and whether it agrees with the client's."""
        self._progress.step("pylvs ipvsadm -L -n --stats")
        time.sleep(ESTIMATOR)  # the listing shows the counters as they were at the last look, as the kernel's does
        self._result.table = self._lab.command("director", [*PYTHON, "pylvs", "ipvsadm", "-L", "-n", "--stats"])
        counted = 0
        for line in self._result.table.splitlines():
            words = line.split()
            if len(words) >= 3 and words[0] == "TCP" and words[1] == self._plan.service and words[2].isdigit():
                counted = int(words[2])
        self._result.verdicts.append(watch.agreed(sum(self._answers.values()), counted))
