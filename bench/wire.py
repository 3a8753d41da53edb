"""Small packets and bulk TCP through pylvs, beside plain kernel forwarding and a bare AF_PACKET forwarder, over veth.

    sudo .venv/bin/python bench/wire.py            # about five minutes; --quick for a look
    sudo .venv/bin/python bench/wire.py --json result.json --flows 100000

Everything runs in network namespaces of its own, in turn, in rounds. What the columns mean and how to read them:
docs/reference/benchmarks.md. Exit codes: 0 measured, 1 something failed (said on standard error), 2 usage.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, instead of this folder

from bench import interrupts, report, streams, tables
from bench.forwarders import (
    TCP_PORT,
    UDP_PORT,
    Bare,
    Bench,
    Drop,
    Forwarder,
    Kernel,
    Pylvs,
    capture,
    missing,
)
from bench.generator import Generator, LiveFrames, SocketFrames, udp_frame
from bench.meter import Meter
from bench.topology import DROP_ALL, BenchError, Topology, require_tools

TRIAL = 0.25  # s of traffic per trial
TOLERANCE = 0.005  # loss that still counts as lossless
PUNCTUAL = 0.95  # a trial whose generator offered less of the rate asked for is repeated
ATTEMPTS = 3
LADDER = (0.6, 0.75, 0.85, 0.95, 1.05, 1.2, 1.4)  # of the capacity that the fixed-rate trial suggests
CHECKED = 32  # frames whose bytes are looked at before measuring

#: rows of the TCP table: forwarder, whether replies take the direct link, whether to measure a download too
STREAM_ROWS: tuple[tuple[Callable[[], Forwarder], bool], ...] = (
    (Kernel, True),
    (Bare, True),
    (lambda: Pylvs("DR"), True),
    (Kernel, False),
    (Bare, False),
    (lambda: Pylvs("NAT"), False),
)


class Packets:
    """The table of small packets: its rows, its trials, their records."""

    def __init__(self, options: argparse.Namespace, bench: Bench, generator: Generator, say: report.Progress) -> None:
        self.options, self.bench, self.generator, self.say = options, bench, generator, say
        self.records: list[dict[str, Any]] = []
        self.repeated = 0

    def round(self, number: int, rows: list[Forwarder]) -> None:
        """Every row once, each behind a fresh probe of the phase."""
        for row in rows:
            with Drop().running(self.bench):
                probe = self.steady(self.options.rate)
                limit = self.trial(0.0)["offered"] if row is rows[0] else None
            record: dict[str, Any] = {"round": number, "row": row.name, "drop_ns": probe["ns"]}
            record["phase"] = report.phase(probe["ns"])
            if limit:
                record["generator_pps"] = limit
            try:
                if isinstance(row, Pylvs) and not self.options.quick:
                    with Bare().running(self.bench):  # the floor directly before, for the ratio
                        record["bare_ns"] = self.cost()
                with row.running(self.bench) as own:
                    self.measure(row, record)
                record["counters"] = own
            except BenchError as error:
                record["problem"] = str(error)
            self.records.append(record)
            self.say(f"  round {number}  {row.name:18} {self.line(record)}")

    def measure(self, row: Forwarder, record: dict[str, Any]) -> None:
        """Check the bytes, warm up, then: fixed rate, lossless search, overload."""
        flows = self.options.flows
        with self.generator.armed():
            frames = capture(self.bench.topology, lambda: self.generator.send(0.05, 2000, min(flows, 50)), CHECKED)
        problem = next(filter(None, map(row.wrong, frames)), "") if frames else "no frame arrived at the server"
        if problem:
            raise BenchError(f"forwards wrongly: {problem}")
        warmed = 0
        while warmed < flows:  # every connection exists before it is measured
            with self.generator.armed():
                warmed += max(1, self.generator.send(0.4, 150e3, flows, flows - warmed).frames)
            time.sleep(0.1)
        record["ns"] = self.cost()
        capacity = 1e9 / record["ns"]
        if self.options.search:
            record.update(self.search(capacity))
        overload = self.trial(2 * capacity)
        record["overload"] = {key: overload[key] for key in ("offered", "delivered", "loss")}

    def cost(self) -> float:
        """CPU ns per packet at the fixed rate: the median of some trials."""
        return float(statistics.median(self.steady(self.options.rate)["ns"] for _ in range(self.options.trials)))

    def search(self, capacity: float) -> dict[str, Any]:
        """The highest rate of the ladder that arrives whole, and whether the generator set the limit."""
        best, failures, bounded = 0.0, 0, False
        for step in LADDER:
            rate = step * capacity
            trial = self.trial(rate)
            if trial["offered"] < PUNCTUAL * rate:
                bounded = True
            if trial["loss"] <= TOLERANCE:
                best, failures = max(best, trial["delivered"]), 0
            else:
                failures += 1
            if failures == 2 or bounded:
                break
        return {"lossless": best, "lossless_bounded": bounded or failures == 0}

    def steady(self, rate: float) -> dict[str, Any]:
        """A trial, repeated if the processor was disturbed or the generator fell behind."""
        for _ in range(ATTEMPTS):
            trial = self.trial(rate)
            if not trial["noisy"] and trial["offered"] >= PUNCTUAL * rate:
                break
            self.repeated += 1
        return trial

    def trial(self, rate: float) -> dict[str, Any]:
        """One burst of traffic; rates in packets per second, `ns` per packet that got through (or arrived, if none)."""
        topology, meter = self.bench.topology, self.bench.meter
        _, before, _ = topology.counters("director", "ds")

        def work(_: object) -> Any:
            with meter.as_generator(self.generator.thread):
                return self.generator.send(TRIAL, rate, self.options.flows)

        with self.generator.armed():
            sent, usage = meter.trial(work)
        _, after, _ = topology.counters("director", "ds")
        through = after - before
        seconds = sent.seconds or TRIAL
        return {
            "offered": sent.rate,
            "delivered": through / seconds,
            "loss": max(0.0, 1 - through / sent.frames) if sent.frames else 1.0,
            "ns": usage.busy / (through or sent.frames or 1) * 1e9,
            "drift": usage.drift,
            "stolen": usage.stolen,
            "noisy": usage.noisy,
        }

    @staticmethod
    def line(record: dict[str, Any]) -> str:
        """A record in one line of progress."""
        if "problem" in record:
            return str(record["problem"])
        over = record["overload"]
        text = f"{record['ns']:6.0f} ns/packet  (drop only {record['drop_ns']:.0f}, {record['phase']})"
        if "lossless" in record:
            text += f"  lossless {record['lossless'] / 1e3:.0f} kpps"
        return f"{text}  overload {over['delivered'] / 1e3:.0f} kpps of {over['offered'] / 1e3:.0f}"


class Streams:
    """The table of bulk TCP."""

    def __init__(self, options: argparse.Namespace, bench: Bench, say: report.Progress) -> None:
        self.options, self.bench, self.say = options, bench, say
        self.records: list[dict[str, Any]] = []
        self.repeated = 0

    def round(self, number: int, with_pylvs: bool) -> None:
        """Every row once."""
        for make, direct in STREAM_ROWS:
            row = make()
            if isinstance(row, Pylvs) and not with_pylvs:
                continue
            streams.replies(self.bench.topology, direct)
            record: dict[str, Any] = {
                "round": number, "row": row.name, "replies": "direct" if direct else "router",
            }  # fmt: skip
            try:
                with row.running(self.bench, both_ways=not direct) as own:
                    record["upload"] = self.transfer(download=False)
                    if not direct:
                        record["download"] = self.transfer(download=True)
                record["counters"] = own
            except BenchError as error:
                record["problem"] = str(error)
            self.records.append(record)
            self.say(f"  round {number}  {row.name:18} replies {record['replies']:6} {self.line(record)}")

    def transfer(self, download: bool) -> dict[str, float]:
        """One measured transfer as plain numbers."""
        for _ in range(ATTEMPTS):
            done = streams.transfer(
                self.bench.topology, self.bench.meter, TCP_PORT, self.options.stream_seconds, download
            )
            if not done.usage.noisy:
                break
            self.repeated += 1
        return {
            "gbit_per_second": done.rate, "ms_per_gbit": done.cost, "cpu_share": done.usage.share,
            "frame_bytes": done.frame_bytes, "drift": done.usage.drift,
        }  # fmt: skip

    @staticmethod
    def line(record: dict[str, Any]) -> str:
        """A record in one line of progress."""
        if "problem" in record:
            return str(record["problem"])
        parts = []
        for way in ("upload", "download"):
            if way in record:
                done = record[way]
                parts.append(f"{way} {done['gbit_per_second']:5.2f} Gbit/s {done['ms_per_gbit']:5.1f} ms/Gbit")
        return "  ".join(parts)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench/wire.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4, help="how often every row is measured (default 4)")
    parser.add_argument("--quick", action="store_true", help="one round, one trial, no search: a look, not a result")
    parser.add_argument("--flows", type=int, default=1, help="different clients in the packet rows (default 1)")
    parser.add_argument("--rate", type=float, default=200e3, help="packets/s of the fixed-rate trials (default 200000)")
    parser.add_argument("--size", type=int, default=60, help="bytes of a small packet's frame, no FCS (default 60)")
    parser.add_argument("--burst", type=int, default=32, help="frames that arrive at once (default 32)")
    parser.add_argument("--trials", type=int, default=3, help="fixed-rate trials per row and round (default 3)")
    parser.add_argument("--no-search", action="store_true", help="CPU and overload only, no lossless search")
    parser.add_argument("--stream-seconds", type=float, default=0.5, help="measured part of a TCP transfer, ≤ 0.6")
    parser.add_argument("--only", choices=("packets", "streams"), help="one of the two tables")
    parser.add_argument("--vip", choices=("host", "own"), default="host",
                        help="pylvs rows: the VIP is on the director's lo (default), or on no interface")  # fmt: skip
    parser.add_argument("--rows", default="kernel,bare,DR,NAT,TUN", help="packet rows, of kernel,bare,DR,NAT,TUN")
    parser.add_argument(
        "--generator", choices=("live", "socket"), help="packet source (default: live if bpf(2) allows)"
    )
    parser.add_argument("--slots", type=int, default=1024, help="ring slots of the bare forwarder")
    parser.add_argument("--slot-bytes", type=int, default=66048, help="bytes of such a slot")
    parser.add_argument("--cpus", default="0,1", help="processors of the load and of the director (default 0,1)")
    parser.add_argument("--json", metavar="FILE", help="write every trial there; - prints JSON instead of tables")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.trials = 1, 1
    options.search = not options.quick and not options.no_search
    options.rows = options.rows.split(",")
    options.cpus = tuple(map(int, options.cpus.split(",")))
    unknown = set(options.rows) - {"kernel", "bare", "DR", "NAT", "TUN"}
    if unknown:
        parser.error(f"unknown row {', '.join(sorted(unknown))}; use kernel, bare, DR, NAT, TUN")
    if len(options.cpus) != 2 or options.cpus[0] == options.cpus[1]:
        parser.error("--cpus takes two different processors, as in 0,1")
    if options.rounds < 1 or options.trials < 1 or options.flows < 1:
        parser.error("--rounds, --trials and --flows start at 1")
    if not 0.1 <= options.stream_seconds <= 0.6:
        parser.error("--stream-seconds is 0.1 to 0.6: real-time work must end before the kernel throttles it")
    return options


def generator_for(options: argparse.Namespace, topology: Topology, say: report.Progress) -> Generator:
    """The generator asked for, or the best that this machine allows."""
    frame = udp_frame(options.size, UDP_PORT)
    if options.generator != "socket":
        try:
            return LiveFrames(topology, frame, options.burst)
        except OSError as error:
            if options.generator == "live":
                raise BenchError(f"live frames are not possible here: {error}; use --generator socket") from None
            say(f"live frames are not possible here ({error}); sending through an AF_PACKET socket")
    return SocketFrames(topology, frame, options.burst)


@contextlib.contextmanager
def alone(say: report.Progress) -> Iterator[None]:
    """Wait until no other run measures on this machine, and keep others waiting: two would count each other's work."""
    with socket.socket(socket.AF_UNIX) as door:
        waiting = False
        while True:
            try:
                door.bind("\0pylvs-bench")
                break
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            if not waiting:
                say("another run is measuring on this machine; waiting for its end")
            waiting = True
            time.sleep(0.5)
        yield


def measure(options: argparse.Namespace, say: report.Progress) -> dict[str, Any]:
    """Run everything; return facts, records and notes."""
    require_tools()
    if (os.cpu_count() or 1) <= max(options.cpus):
        raise BenchError(f"processors {options.cpus[0]} and {options.cpus[1]} are needed; name others with --cpus")
    result: dict[str, Any] = {"facts": report.facts(), "options": vars(options), "notes": []}
    notes: list[str] = result["notes"]
    lacking = missing()
    if lacking:
        notes.append(f"pylvs rows left out: {lacking}")
        say(notes[-1])
    steal = report.steal_ticks()
    repeated = 0
    with Meter(*options.cpus) as meter:
        notes.append(f"CPU of processor {meter.director_cpu}: {meter.method}")
        if options.only != "streams":
            makers = {"kernel": Kernel, "bare": Bare}
            rows = [makers[name]() if name in makers else Pylvs(name, options.vip == "host") for name in options.rows
                    if name in makers or not lacking]  # fmt: skip
            with Topology() as topology:
                topology.steer("director", "dc", meter.director_cpu)
                topology.drop("server", "s0", DROP_ALL)
                generator = generator_for(options, topology, say)
                bench = Bench(topology, meter, options.slots, options.slot_bytes)
                packets = Packets(options, bench, generator, say)
                say(f"small packets: {options.size} bytes, {options.flows} flow(s), generator {generator.name}")
                for number in range(1, options.rounds + 1):
                    packets.round(number, rows)
                repeated += packets.repeated
                result["generator"], result["packets"] = generator.name, packets.records
        if options.only != "packets":
            with Topology() as topology:
                streams.steer(topology, meter)
                tcp = Streams(options, Bench(topology, meter, options.slots, options.slot_bytes), say)
                say("bulk TCP, offloads as they are by default")
                for number in range(1, options.rounds + 1):
                    tcp.round(number, not lacking)
                repeated += tcp.repeated
                result["streams"] = tcp.records
        if repeated:
            notes.append(
                f"noise: {repeated} trial(s) repeated because the processor was disturbed or the generator fell behind"
            )
    stolen = report.steal_ticks() - steal
    if stolen:
        notes.append(f"noise: the hypervisor took {stolen} clock ticks from this machine during the run")
    result["facts"]["load_after"] = report.facts()["load"]
    notes.append("load average at the end: " + " ".join(f"{value:.2f}" for value in result["facts"]["load_after"]))
    return result


def show(result: dict[str, Any]) -> None:
    """The report on standard output."""
    options = result["options"]
    print(report.head(result["facts"]))
    if "packets" in result:
        records = result["packets"]
        limit = report.summarise(r["generator_pps"] for r in records if "generator_pps" in r)
        print(f"\nSmall packets: UDP, {options['size']} bytes, {options['flows']} flow(s), client → server, CPU at "
              f"{options['rate'] / 1e3:.0f} kpps in bursts of {options['burst']}")  # fmt: skip
        print(f"Generator: {result['generator']}, alone {report.shown(limit, 0, 1e3)} kpps; loss in overload at twice the "
              f"capacity\n")  # fmt: skip
        print(tables.packets_table(records))
    if "streams" in result:
        print("\nBulk TCP: one connection, default offloads, payload rate; CPU of the director's processor")
        print("Replies: direct = server → client by their own link, router = back through the director\n")
        print(tables.streams_table(result["streams"]))
    problems = {
        f"{r['row']}: {r['problem']}"
        for r in [*result.get("packets", ()), *result.get("streams", ())]
        if "problem" in r
    }
    print()
    for note in [*sorted(problems), *result["notes"]]:
        print(f"· {note}")


def main() -> int:
    """Measure and report; returns the exit code."""
    options = arguments()
    say = report.Progress()

    interrupts.install()
    began = time.monotonic()
    try:
        with alone(say):
            result = measure(options, say)
    except KeyboardInterrupt:
        print("bench/wire.py: stopped; everything it made is removed", file=sys.stderr)
        return 1
    except (BenchError, OSError) as error:
        print(f"bench/wire.py: {error}", file=sys.stderr)
        return 1
    result["seconds"] = time.monotonic() - began
    if options.json != "-":
        show(result)
    if options.json:
        report.write_json(options.json, result)
    failed = any("problem" in record for record in [*result.get("packets", ()), *result.get("streams", ())])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
