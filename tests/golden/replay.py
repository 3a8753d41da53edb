"""Replays recordings of the real kernel's IPVS through an offline director and lists every difference.

A recording is a list of cases, a case a list of steps with their outcomes: commands, events (one minimal packet each),
whole frames, connection tables, settings, pauses. Time is virtual: steps without a time stamp take what they took in the
recording on the average. Masked is only what two boots of the kernel did not repeat (``varies``), and seconds left on a
timer by one. What the host's own stack answers is played, since a passed packet is the host's to answer.
"""

from __future__ import annotations

import ipaddress
import json
import lzma
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from golden import wire
from packets import TCP, UDP

from pylvs import Director

DATA = Path(__file__).parent / "data"
EVENT, SEND, COMMAND = 0.0022, 0.0042, 0.006  # seconds that they take
OWN = ("10.0.0.1", "10.1.0.1", "fd00:c::1", "fd00:5::1", "127.0.0.1", "::1")
TOTALS: Counter[str] = Counter()  # of all replays of this run, for the report at its end
CONNECTION = re.compile(r"^(\S+) +(\d+):(\d\d) +(\S+) +(\S+) +(.*)$")
MARK_RULE = re.compile(r"ip6?tables -t mangle -A PREROUTING -d (\S+) -j MARK --set-mark (\d+)")
LOCAL_ROUTE = re.compile(r"ip route add local (\S+) dev lo|ip -6 route add local (\S+) dev lo")


def load(area: str) -> list[tuple[str, dict[str, Any]]]:
    """(file, case) for all recordings of an area."""
    found = []
    for path in sorted((DATA / area).glob("*.json.xz")):
        recording = json.loads(lzma.decompress(path.read_bytes()))
        found += [(path.name.removesuffix(".json.xz"), case) for case in recording["cases"]]
    return found


@dataclass
class Flow:
    """What events of one flow remember."""

    client_sequence: int = 1000
    server_sequence: int = 5000
    server: tuple[str, int] | None = None


@dataclass
class Replay:
    """One case on a director of its own. `compared` counts by kind, `differences` are for people."""

    case: dict[str, Any]
    compared: Counter[str] = field(default_factory=Counter)
    differences: list[str] = field(default_factory=list)
    now: float = 0.0

    def __post_init__(self) -> None:
        self.vips = list(self.case.get("vips", []))
        self.marks: list[dict[str, Any]] = []
        self.flows: dict[tuple[str, str, str], Flow] = {}
        self.servers = {
            bytes.fromhex(wire.mac_of(address).replace(":", "")): address for address in self.case.get("servers", [])
        }
        neighbours = [*wire.ROUTERS.values(), *self.case.get("servers", [])]
        self.director = Director(
            interfaces=self.interfaces(),
            neighbours={address: wire.mac_of(address) for address in neighbours},
            routes={"0.0.0.0/0": wire.ROUTERS[4], "::/0": wire.ROUTERS[6]},
            seed=1,
        )

    def interfaces(self) -> dict[str, dict[str, Any]]:
        """The director's: client side, server side, and the VIPs on lo."""
        local = [vip if "/" in vip else f"{vip}/{128 if ':' in vip else 32}" for vip in self.vips]
        return {
            "lo": {"addresses": ["127.0.0.1/8", "::1/128", *local], "mtu": 65536},
            "cl": {"mac": wire.CLIENT_SIDE, "addresses": ["10.0.0.1/24", "fd00:c::1/64"]},
            "sv": {"mac": wire.SERVER_SIDE, "addresses": ["10.1.0.1/16", "fd00:5::1/64"]},
        }

    def run(self) -> Replay:
        """All steps."""
        for number, step in enumerate(self.case["steps"]):
            act: Callable[[dict[str, Any], str], None] | None = getattr(self, f"do_{step['do']}", None)
            if act is None:
                raise NotImplementedError(f"step {number}: {step['do']}")
            act(step, f"step {number} {step['do']}")
        TOTALS.update(self.compared)
        TOTALS["case"] += 1
        return self

    def compare(self, kind: str, where: str, want: object, got: object) -> None:
        """Count a comparison, and keep a difference."""
        self.compared[kind] += 1
        if want != got:
            self.differences.append(f"{where}\n  recorded {want}\n  pylvs    {got}")

    def until(self, time: float | None) -> list[tuple[str, bytes]]:
        """Let time pass; frames that fall due."""
        if time is not None and time > self.now:
            self.now = time
        return self.director.advance(self.now)

    # ------------------------------------------------------------------------------------------------- administration

    def command(self, argv: list[str], stdin: str | None = None) -> tuple[int, str, str]:
        """Exit status as the recordings have it, output, errors."""
        self.until(None)
        result = self.director.ipvsadm(argv, stdin)
        self.now += COMMAND
        return result.returncode, result.stdout, result.stderr

    def do_ipvsadm(self, step: dict[str, Any], where: str) -> None:
        got = self.command(step["argv"], step.get("stdin"))
        where += " " + " ".join(step["argv"])
        self.compare("output", where, (step["rc"], step["stdout"], step["stderr"]), got)

    def do_Ln(self, step: dict[str, Any], where: str) -> None:
        self.compare("output", where, (0, step["stdout"], ""), self.command(["-Ln"]))

    def do_sysctl(self, step: dict[str, Any], where: str) -> None:
        try:
            self.director.settings[step["key"]] = step["value"]
            code = 0
        except ValueError:
            code = 22
        except KeyError:
            code = 2
        self.compare("output", f"{where} {step['key']}={step['value']}", step["rc"], code)

    def do_sh(self, step: dict[str, Any], where: str) -> None:
        """The commands that recordings set up marks and local prefixes with."""
        for command in map(str.strip, step["cmd"].split(";")):
            if mark := MARK_RULE.match(command):
                self.marks.append({"mark": int(mark[2]), "destination": mark[1]})
                self.director.configure(marks=self.marks)
            elif route := LOCAL_ROUTE.match(command):
                self.vips.append(route[1] or route[2])
                self.director.configure(interfaces=self.interfaces())
            elif "-F PREROUTING" in command:
                self.marks = [rule for rule in self.marks if (":" in rule["destination"]) != ("ip6" in command)]
                self.director.configure(marks=self.marks)
            else:
                raise NotImplementedError(f"{where}: {command}")

    def do_sleep(self, step: dict[str, Any], where: str) -> None:
        frames = self.until(self.now + step["s"])
        self.frames(step.get("out", []), frames, where, passed=False)

    # --------------------------------------------------------------------------------------------------------- packets

    def local(self, address: str) -> bool:
        """Is it the director's own?"""
        number = ipaddress.ip_address(address)
        return address in OWN or any(number in ipaddress.ip_network(vip) for vip in self.vips)

    def inject(self, side: str, data: bytes) -> tuple[list[tuple[str, bytes]], bool]:
        """-> (side and bytes of what came out, whether the frame was left to the host)"""
        early = self.until(None)
        (outcome,) = self.director.process([("cl" if side == "client" else "sv", data)], self.now)
        out = [("client" if name == "cl" else "server", raw) for name, raw in [*early, *outcome.frames] if name != "lo"]
        return out, outcome.verdict == "pass"

    def do_ev(self, step: dict[str, Any], where: str) -> None:
        for number, (event, want) in enumerate(zip(step["l"], step["r"], strict=True)):
            self.one(event, want, f"{where} event {number}")

    def one(self, event: list[Any], want: Any, where: str) -> None:
        """One event against its recorded result."""
        kind = {"n": "state", "ipvsadm": "output"}.get(event[0], "decision")
        got = self.event(event)
        if not got == want == "no-server":  # nothing was sent, nothing is to compare
            self.compare(kind, f"{where}: {' '.join(map(str, event))}", want, got)

    def event(self, event: list[Any]) -> Any:
        """Play an event; what a recording would say of it."""
        if event[0] == "z":
            late = self.until(self.now + event[1])
            return self.summary([("client" if name == "cl" else "server", raw) for name, raw in late])
        if event[0] == "ipvsadm":
            code, _, errors = self.command(event[1:])
            return "ok" if code == 0 and not errors else f"rc={code} {errors.strip()}"
        if event[0] == "n":
            return self.table()
        flow = self.flows.setdefault((event[1][:3], event[2], event[3]), Flow())
        data = self.packet(flow, *event[:4])
        if data is None:
            return "no-server"
        side = "client" if event[0] == "c" else "server"
        out, passed = self.inject(side, data)
        self.now += EVENT
        for to, raw in out if side == "client" else ():
            packet = wire.seen(raw)
            if to == "server" and packet and packet.target in self.servers.values():
                flow.server = packet.target, packet.dport
        if passed and not out:
            return self.host_answer(side, data)
        return self.summary(out)

    def host_answer(self, side: str, data: bytes) -> str:
        packet = wire.seen(data)
        local = {each for each in (packet.source, packet.target) if self.local(each)} if packet else set()
        return wire.host_answer(data, side, local)

    def summary(self, out: Iterable[tuple[str, bytes]]) -> str:
        """One line for all frames that came out."""
        return " + ".join(wire.told(side, raw, self.servers) for side, raw in out) or "-"

    def packet(self, flow: Flow, side: str, kind: str, client: str, virtual: str) -> bytes | None:
        """The frame that an event stands for; None if its flow has no server to send it."""
        if side == "c":
            (source, sport), (target, dport) = wire.split(client), wire.split(virtual)
            macs = wire.CLIENT_SIDE, wire.mac_of(wire.ROUTERS[wire.version(source)])
        elif flow.server:
            (source, sport), (target, dport) = flow.server, wire.split(client)
            macs = wire.SERVER_SIDE, wire.mac_of(source)
        else:
            return None
        if kind == "udp":
            return wire.frame(*macs, source, target, UDP, wire.udp(source, sport, target, dport, b"ping"))
        if kind.startswith("sctp:"):
            return wire.frame(*macs, source, target, wire.SCTP, wire.sctp(sport, dport, kind[5:]))
        flags = kind.removeprefix("tcp:")
        own, other = flow.client_sequence, flow.server_sequence
        if side == "s":
            own, other = other, own
        segment = wire.tcp(source, sport, target, dport, flags, own, other if "A" in flags else 0)
        if set(flags) & set("SF"):
            if side == "c":
                flow.client_sequence += 1
            else:
                flow.server_sequence += 1
        return wire.frame(*macs, source, target, TCP, segment)

    def do_send(self, step: dict[str, Any], where: str) -> None:
        self.until(step.get("t"))
        out, passed = self.inject(step["at"], bytes.fromhex(step["frame"]))
        self.now += SEND
        self.frames(step["out"], out, f"{where} {step.get('note', '')}", passed)

    def frames(self, want: list[dict[str, Any]], got: list[tuple[str, bytes]], where: str, passed: bool) -> None:
        """Frames byte by byte; what the host sends for a passed frame is not ours to compare."""
        if passed and not got:
            self.compared["frame"] += max(1, len(want))
            return
        recorded = [(each["at"], masked(each["frame"], each.get("varies", ""))) for each in want]
        mine = [
            (side, masked(raw.hex(), want[n].get("varies", "") if n < len(want) else ""))
            for n, (side, raw) in enumerate(got)
        ]
        for n in range(max(len(recorded), len(mine))):
            self.compare("frame", where, recorded[n : n + 1], mine[n : n + 1])

    # ---------------------------------------------------------------------------------------------------------- tables

    def table(self) -> list[Any]:
        """What a recording writes of /proc/net/ip_vs: services sorted, servers in list order."""
        services: list[list[Any]] = []
        for line in self.director.proc("ip_vs").splitlines()[3:]:
            words = line.split()
            if words[0] == "->":
                services[-1].append([_server(words[1]), *map(int, words[3:6])])
            else:
                services.append([line.rstrip()])
        services.sort(key=lambda service: str(service[0]))
        return [part for service in services for part in service]

    def listed(self) -> list[str]:
        """The lines of ``ipvsadm -Lnc``, sorted."""
        return sorted(self.director.ipvsadm(["-Lnc"]).stdout.splitlines()[2:])

    def do_conns(self, step: dict[str, Any], where: str) -> None:
        self.until(step.get("t"))
        self.connections(step["Lnc"], where)

    def connections(self, want: list[str], where: str) -> None:
        """Connection lines, their timers to the second; one that is about to end may be gone."""
        mine = self.listed()
        for line in want:
            twin = next((each for each in mine if same_connection(line, each)), None)
            if twin is not None:
                mine.remove(twin)
            elif not ending(line):
                self.compare("state", where, line, mine)
                continue
            self.compared["state"] += 1
        for line in mine:
            if not ending(line):
                self.compare("state", where, "no such entry", line)

    def do_track(self, step: dict[str, Any], where: str) -> None:
        for number, (event, (time, want, lines)) in enumerate(zip(step["l"], step["r"], strict=True)):
            took = event[1] if event[0] == "z" else COMMAND if event[0] == "ipvsadm" else EVENT
            self.now = max(self.now, time - took)
            self.one(event, want, f"{where} event {number}")
            self.until(time)
            self.connections(lines, f"{where} after event {number}")

    def do_states(self, step: dict[str, Any], where: str) -> None:
        for number, (sequence, row) in enumerate(zip(step["seqs"], step["r"], strict=True)):
            port = step["port0"] + number
            events = [*step["prefix"], *sequence]
            for count, ((side, kind), want) in enumerate(zip(events, row, strict=True), start=1):
                out = self.event([side, kind, wire.joined(step["client"], port), step["vip"]])
                got = self.cell(port) + (" " + out.split(" ")[0] if out[:1] in "<-n" else "")
                story = " ".join(f"{a}.{b}" for a, b in events[:count])
                self.compare("state", f"{where} {story}", want, want if same_cell(want, got) else got)

    def cell(self, port: int) -> str:
        """State and seconds left of the connection of a client's port."""
        for line in self.director.proc("ip_vs_conn").splitlines()[1:]:
            words = line.split()
            if words[2] == f"{port:04X}" and words[7] != "NONE":
                return f"{words[7]}/{words[8]}"
        return "-"


def _server(text: str) -> str:
    """``0A01000B:0050`` as address and port; IPv6 is written as such."""
    address, _, port = text.rpartition(":")
    if not address.startswith("["):
        address = ".".join(str(byte) for byte in bytes.fromhex(address))
        return f"{address}:{int(port, 16)}"
    return wire.joined(str(ipaddress.ip_address(address.strip("[]"))), int(port, 16))


def masked(frame: str, varies: str) -> bytes:
    """A frame with the bytes that vary, and the checksums that follow from them, set to zero."""
    raw = bytearray.fromhex(frame)
    for part in filter(None, varies.split(",")):
        low, _, high = part.partition("-")
        span = range(int(low), int(high or low) + 1)
        also = {18: (24, 25), 34: (40, 41), 54: (60, 61)}.get(span[0], ())
        for at in (*span, *also):
            if at < len(raw):
                raw[at] = 0
    return bytes(raw)


def same_connection(want: str, got: str) -> bool:
    """Equal but for a second of the timer."""
    a, b = CONNECTION.match(want), CONNECTION.match(got)
    if not a or not b:
        return want == got
    left = [int(m[2]) * 60 + int(m[3]) for m in (a, b)]
    key = [(m[1], m[4], m[5], m[6].split()) for m in (a, b)]
    return key[0] == key[1] and abs(left[0] - left[1]) <= 1


def ending(line: str) -> bool:
    """Has a connection a second left at the most?"""
    found = CONNECTION.match(line)
    return bool(found) and int(found[2]) == 0 and int(found[3]) <= 1


def same_cell(want: str, got: str) -> bool:
    """Equal but for a second of the timer; with a second left an entry may be gone."""
    a, b = want.split(" "), got.split(" ")
    if a[1:] != b[1:]:
        return False
    x, y = a[0].split("/"), b[0].split("/")
    if len(x) == len(y) == 2:
        return x[0] == y[0] and abs(int(x[1]) - int(y[1])) <= 1
    rest = x if len(x) == 2 else y
    return x == y or (len(rest) == 2 and int(rest[1]) <= 1)
