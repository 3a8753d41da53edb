"""What the data plane alone costs: nanoseconds per frame from parsing to the rewritten frame, no sockets, no copies.

    .venv/bin/python bench/core.py [--flows 1,1000,100000] [--json FILE|-]

Batches of 64 frames of 60 bytes are handed to the core as its port would; their bytes are in the cache, the connection
table is where it is (flows come in random order). Needs neither root nor network. See docs/reference/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository, instead of this folder

from bench import report
from pylvs import Director

Frames = list[tuple[int, bytes]]

VIP, PORT, SIZE = "10.0.0.100", 80, 60
SERVERS = ("10.1.0.11", "10.1.0.12", "10.1.0.13")
CLIENTS = "172.16.0.1"  # flow i: this plus i // 50000, port 1024 + i % 50000
MAC = {
    "c": "02:00:00:00:00:01",
    "s": "02:00:00:00:00:02",
    "gateway": "02:00:00:00:00:99",
    "server": "02:00:00:00:01:11",
}
FLAG = {"DR": "-g", "NAT": "-m", "TUN": "-i"}
BATCH = 64
FRAMES = 200_000  # at least so many per measurement
NOW = 1_000_000_000  # ns


def new_director(method: str, flows: int) -> Director:
    """A director with one UDP service over three real servers, and room for `flows` connections."""
    director = Director(
        interfaces={
            "lo": {"addresses": [f"{VIP}/32"]},
            "c": {"mac": MAC["c"], "addresses": ["10.0.0.1/24"]},
            "s": {"mac": MAC["s"], "addresses": ["10.1.0.1/24"]},
        },
        neighbours={"10.0.0.254": MAC["gateway"], **dict.fromkeys(SERVERS, MAC["server"])},
        routes={"0.0.0.0/0": "10.0.0.254"},
        now=NOW / 1e9,
        seed=0,
        connections=max(1 << 16, 2 * flows),
    )
    lines = [
        f"-A -u {VIP}:{PORT} -s rr",
        *(f"-a -u {VIP}:{PORT} -r {server}:{PORT} {FLAG[method]}" for server in SERVERS),
    ]
    for line in lines:
        done = director.ipvsadm(line)
        if done.returncode:
            raise SystemExit(f"bench/core.py: ipvsadm {line}: {done.stderr.strip()}")
    return director


def endpoint(flow: int) -> tuple[bytes, int]:
    """Address and port of the client of a flow."""
    first = int.from_bytes(socket.inet_aton(CLIENTS), "big")
    return struct.pack("!I", first + flow // 50_000), 1024 + flow % 50_000


def udp(macs: str, source: tuple[bytes, int], target: tuple[bytes, int]) -> bytes:
    """A UDP frame of `SIZE` bytes with right checksums; `macs` is the receiving interface."""
    length = SIZE - 34
    payload = bytes(length - 8)
    addresses = source[0] + target[0]
    header = struct.pack("!BBHHHBBH", 0x45, 0, SIZE - 14, 0, 0, 64, 17, 0) + addresses
    header = header[:10] + struct.pack("!H", checksum(header)) + header[12:]
    ports = struct.pack("!HHH", source[1], target[1], length)
    check = checksum(addresses + struct.pack("!HH", 17, length) + ports) or 0xFFFF
    there = bytes.fromhex((MAC[macs] + MAC["gateway"]).replace(":", ""))
    return there + b"\x08\x00" + header + ports + struct.pack("!H", check) + payload


def checksum(data: bytes) -> int:
    """Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def incoming(director: Director, flows: int, vip: str = VIP) -> Frames:
    """One frame of each flow, in random order, as it comes from its client."""
    link, target = director.link_id("c"), (socket.inet_aton(vip), PORT)
    order = random.Random(flows).sample(range(flows), flows)
    return [(link, udp("c", endpoint(flow), target)) for flow in order]


def outgoing(director: Director) -> Frames:
    """A reply of each connection's real server, in random order."""
    link = director.link_id("s")
    frames = []
    for found in director.connections():
        server = socket.inet_aton(found.dest), found.dest_port
        frames.append((link, udp("s", server, (socket.inet_aton(found.client), found.client_port))))
    random.Random(len(frames)).shuffle(frames)
    return frames


def full(frames: Frames) -> Frames:
    """At least one whole batch."""
    return frames * -(-BATCH // len(frames))


def time_hits(director: Director, frames: Frames) -> float:
    """ns per frame of flows that exist."""
    frames = full(frames)
    spent, done = director.cores[0].measure(frames, max(1, FRAMES // len(frames)), NOW)
    return float(spent / done)


def rows(flows: int) -> Iterator[tuple[str, Callable[[], float]]]:
    """(name, one measurement) of each row for a number of flows; directors live as long as their rows."""
    for method in FLAG:
        director = new_director(method, flows)
        frames = incoming(director, flows)
        director.cores[0].measure(frames, 1, NOW)
        if len(director.connections()) != flows:
            raise SystemExit(f"bench/core.py: {len(director.connections())} connections instead of {flows}")
        check(director, frames)
        yield f"{method} in", lambda director=director, frames=frames: time_hits(director, frames)  # type: ignore[misc]
        if method == "NAT":
            replies = outgoing(director)
            check(director, replies)
            yield "NAT out", lambda director=director, frames=replies: time_hits(director, frames)  # type: ignore[misc]


def new_flows(method: str, flows: int, fresh: bool) -> Callable[[], float]:
    """A measurement of the first packets of `flows` flows into an empty table.

    `fresh`: its memory has never been touched, so each page is faulted in on the way; otherwise as many connections
    have been there and have expired.
    """
    frames = incoming(new_director(method, flows), flows)

    def once() -> float:
        director, now = new_director(method, flows), NOW
        core = director.cores[0]
        core.measure(full(incoming(director, 1, "10.0.0.7")), 100, now)  # warms the code, leaves the table empty
        if not fresh:
            core.measure(frames, 1, now)
            now += 3600 * 10**9
            director.advance(now / 1e9)
        if core.count:
            raise SystemExit(f"bench/core.py: {core.count} connections in a table that should be empty")
        spent, done = core.measure(frames, 1, now)
        return float(spent / done)

    return once


def not_ours() -> Callable[[], float]:
    """A measurement of frames for an address that is no service: parse, look up, leave to the host."""
    director = new_director("DR", 1)
    frames = incoming(director, 1000, "10.0.0.7")
    if director.process([("c", frames[0][1])], NOW / 1e9)[0].verdict == "forward":
        raise SystemExit("bench/core.py: a frame for a foreign address was balanced")
    return lambda: time_hits(director, frames)


def check(director: Director, frames: Frames) -> None:
    """The first frames must be forwarded, or the figure means nothing."""
    names = {director.link_id(name): name for name in ("c", "s")}
    for outcome in director.process([(names[link], frame) for link, frame in frames[:8]], NOW / 1e9):
        if outcome.verdict != "forward":
            raise SystemExit(f"bench/core.py: a frame was not forwarded: {outcome.verdict} {outcome.reason}")


@contextlib.contextmanager
def undisturbed(cpu: int) -> Iterator[None]:
    """On one processor and, where allowed, ahead of everything else there; each measurement takes far below a second."""
    affinity, policy = os.sched_getaffinity(0), os.sched_getscheduler(0)
    os.sched_setaffinity(0, {cpu})
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, policy, os.sched_param(0))
        os.sched_setaffinity(0, affinity)


def main() -> int:
    """Measure and report; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bench/core.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flows", default="1,1000,100000", help="numbers of flows (default 1,1000,100000)")
    parser.add_argument("--repeats", type=int, default=9, help="measurements per row (default 9)")
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="processor (default: the last)")
    parser.add_argument("--json", metavar="FILE", help="write the figures there; - prints JSON instead of the table")
    options = parser.parse_args()
    counts = [int(word) for word in options.flows.split(",")]
    if min(counts) < 1 or options.repeats < 1:
        parser.error("--flows and --repeats start at 1")
    say = report.Progress()
    results: list[dict[str, Any]] = []
    result: dict[str, Any] = {"facts": report.facts(), "options": vars(options), "rows": results}

    def measure(name: str, flows: int, once: Callable[[], float]) -> None:
        values = []
        for _ in range(options.repeats):
            with undisturbed(options.cpu):
                values.append(once())
        results.append({"row": name, "flows": flows, "ns": values})
        say(f"  {name:26} {flows:7} flows  {report.shown(report.summarise(values), 1)} ns/frame")

    for flows in counts:
        for name, once in rows(flows):
            measure(name, flows, once)
    for method in ("DR", "NAT"):
        for fresh, name in ((False, "new flow"), (True, "new flow, fresh memory")):
            measure(f"{method} {name}", max(counts), new_flows(method, max(counts), fresh))
    measure("not ours", 1000, not_ours())
    if options.json != "-":
        print(report.head(result["facts"]))
        print(f"\nThe core alone: UDP, {SIZE} bytes, batches of {BATCH}, {options.repeats} measurements per row\n")
        lines = [[each["row"], str(each["flows"]), report.shown(report.summarise(each["ns"]), 1)] for each in results]
        print(report.table(["row", "flows", "ns/frame"], lines))
    if options.json:
        report.write_json(options.json, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
