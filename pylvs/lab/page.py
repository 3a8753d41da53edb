"""What a lab shows: its progress while it runs, and at the end a page with the packet's path, the shares and the verdicts."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from pylvs.lab.topology import endpoint

if TYPE_CHECKING:
    from pylvs.lab.result import Result

WIDTH = 30  # of a bar
GREEN, RED, BOLD, DIM, PLAIN = "\x1b[32m", "\x1b[31m", "\x1b[1m", "\x1b[2m", "\x1b[0m"


class Progress:
    """Says each step on a line of its own; a step that counts is rewritten in place on a terminal, and elsewhere said
    again once a second."""

    def __init__(self, label: str, stream: TextIO | None = None) -> None:
        self._label = label
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._text = ""
        self._begin = self._told = time.monotonic()
        self._open = False

    def step(self, text: str) -> None:
        """A new step."""
        self.close()
        self._text, self._told = text, time.monotonic()
        self._write(text)
        self._open = self._terminal
        if not self._terminal:
            self._stream.write("\n")
        self._stream.flush()

    def count(self, done: float, of: float, unit: str = "") -> None:
        """How far the step is."""
        if not self._terminal and time.monotonic() - self._told < 1.0:
            return
        self._told = time.monotonic()
        text = f"{self._text}: {done:.0f} of {of:.0f}{' ' if unit else ''}{unit}"
        if self._terminal:
            self._stream.write("\r\x1b[K")
            self._write(text)
        else:
            self._write(text)
            self._stream.write("\n")
        self._stream.flush()

    def close(self) -> None:
        """End the line that is being rewritten."""
        if self._open:
            self._stream.write("\n")
            self._stream.flush()
            self._open = False

    def _write(self, text: str) -> None:
        self._stream.write(f"{self._label} {time.monotonic() - self._begin:5.1f} s  {text}")


class Page:
    """Draws results. `colour` on terminals only; `marks` are ✔ and ✘ where the output can show them."""

    def __init__(self, colour: bool = False, encoding: str = "utf-8") -> None:
        self._colour = colour
        plain = not encoding.lower().replace("-", "").startswith("utf")
        self._good, self._bad, self._full, self._rest = ("ok", "FAILED", "#", ".") if plain else ("✔", "✘", "█", "░")

    def paint(self, text: str, *codes: str) -> str:
        """`text` in a colour, if there are colours."""
        return "".join(codes) + text + PLAIN if self._colour else text

    def mark(self, ok: bool) -> str:
        """✔ or ✘."""
        return self.paint(self._good, GREEN) if ok else self.paint(self._bad, RED, BOLD)

    def lab(self, result: Result) -> str:
        """The whole page of one lab."""
        if result.skipped:
            return f"\n{self.paint(result.title, BOLD)}\n\n  - {result.name}: not run: {result.skipped}"
        parts = ["", self.paint(result.title, BOLD), "", *picture(result), ""]
        parts += [*(f"  {note}" for note in result.notes), ""]
        if result.phases:
            parts += [*self.shares(result), ""]
        if result.transfers:
            parts += [*self.transfers(result.transfers), ""]
        if result.figures:
            parts += [*self.figures(result.figures), ""]
        if result.table:
            parts += [f"  {line}" for line in result.table.splitlines()] + [""]
        for verdict in result.verdicts:
            parts.append(f"  {self.mark(verdict.ok)} {verdict.claim}")
            parts += [self.paint(f"      {line}", DIM) for line in verdict.evidence]
            parts += [f"      {self.paint('but: ' + fault, RED)}" for fault in verdict.faults[:5]]
            if len(verdict.faults) > 5:
                parts.append(f"      and {len(verdict.faults) - 5} more")
        if result.error:
            parts.append(f"  {self.mark(False)} {result.error}")
        held = sum(verdict.ok for verdict in result.verdicts)
        parts += [
            "",
            f"  {self.mark(result.ok)} {result.name}: {held} of {len(result.verdicts)} verdicts hold, {result.seconds:.1f} s",
        ]
        if result.kept:
            parts += [
                f"    the lab is up; look into it: pylvs lab exec {result.name} director -- pylvs ipvsadm -L -n",
                f"    and take it down:            pylvs lab down {result.name}",
            ]
        return "\n".join(parts)

    def shares(self, result: Result) -> list[str]:
        """One row for each phase and server, with a bar: full is the whole phase."""
        head = f"  {'requests':<12}{'server':<8}{'got':>6}{'due':>8}  {'share':<{WIDTH}}        {'p50 ms':>8}{'p99 ms':>8}{'max ms':>8}"
        rows = [self.paint(head, BOLD)]
        for phase in result.phases:
            if phase["phase"] == "keepalive":
                continue
            latency = phase["latency_ms"]
            tail = "".join(f"{latency[key]:>8.1f}" for key in ("p50", "p99", "max"))
            for server in result.servers:
                got = phase["servers"].get(server["name"], 0)
                part = got / phase["requests"] if phase["requests"] else 0.0
                due = f"{phase['requests'] / len(result.servers):.1f}" if phase.get("even", True) else ""
                bar = self._full * round(part * WIDTH)
                rows.append(
                    f"  {phase['phase']:<12}{server['name']:<8}{got:>6}{due:>8}  {bar:{self._rest}<{WIDTH}} {part:>6.1%} {tail}".rstrip()
                )
                tail = ""
            if phase["errors"]:
                rows.append(self.paint(f"  {'':<12}errors  {sum(phase['errors'].values()):>6}", RED))
        return rows

    def figures(self, figures: Sequence[dict[str, Any]]) -> list[str]:
        """One row for each scheduler: who moved when a server went."""
        head = f"  {'scheduler':<12}{'clients':>8}{'removed':>9}{'its own':>9}{'moved':>7}{'others':>8}{'moved':>7}"
        rows = [self.paint(head, BOLD)]
        for row in figures:
            part = row["others_moved"] / row["others"] if row["others"] else 0.0
            bar = self._full * round(part * WIDTH)
            rows.append(
                f"  {row['scheduler']:<12}{row['clients']:>8}{row['removed']:>9}{row['own']:>9}{row['own_moved']:>7}"
                f"{row['others']:>8}{row['others_moved']:>7}  {bar:{self._rest}<{WIDTH}} {part:>6.1%}"
            )
        return rows

    def transfers(self, transfers: Sequence[dict[str, Any]]) -> list[str]:
        """One row for each transfer."""
        rows = [self.paint(f"  {'transfer':<12}{'server':<8}{'MB':>6}{'s':>8}{'MB/s':>9}  SHA-256", BOLD)]
        for item in transfers:
            size = item["bytes"] / 1e6
            speed = size / item["seconds"] if item["seconds"] else 0.0
            says = "identical" if item["ok"] else item["error"] or "differs"
            rows.append(
                f"  {item['kind']:<12}{item['server']:<8}{size:>6g}{item['seconds']:>8.2f}{speed:>9.1f}  {self.mark(item['ok'])} {says}"
            )
        return rows


def picture(result: Result) -> list[str]:
    """The packet's path in numbered legs, and the addresses that it carries on each."""
    vip, client = endpoint(result.vip, result.port), result.client
    first = result.servers[0]
    servers = [f"{server['name']} {server['address']}" for server in result.servers]
    place = endpoint(first["address"], first["port"] or result.port)
    if result.method == "nat":
        servers = [f"{server['name']} {endpoint(server['address'], server['port'])}" for server in result.servers]
        drawn = _boxes([client], [f"VIP {result.vip}", f"gateway {result.director}"], servers, direct=False)
        legs = [
            (f"{client} > {vip}", "as the client sent it"),
            (f"{client} > {place}", "destination rewritten"),
            (f"{place} > {client}", "to the servers' default gateway"),
            (f"{vip} > {client}", "source rewritten back"),
        ]
    elif result.method == "dr":
        drawn = _boxes([client], [f"VIP {result.vip}", f"DIP {result.director}"], [*servers, "VIP on lo"], direct=True)
        legs = [
            (
                f"{client} > {vip}",
                f"to the director's MAC address: it alone answers {'ND' if ':' in result.vip else 'ARP'}",
            ),
            (f"{client} > {vip}", f"the same packet, to the MAC address of {first['name']}"),
            (f"{vip} > {client}", "directly"),
        ]
    else:
        drawn = _boxes(
            [client], [f"VIP {result.vip}", f"DIP {result.director}"], [*servers, "VIP on tun0"], direct=True
        )
        drawn.append("every leg passes the router that joins the three networks")
        legs = [
            (f"{client} > {vip}", "as the client sent it"),
            (
                f"{result.director} > {first['address']} {{{client} > {vip}}}",
                f"wrapped, protocol {41 if ':' in result.vip else 4}",
            ),
            (f"{vip} > {client}", f"unwrapped on {first['name']}, answered directly"),
        ]
    width = max(len(leg) for leg, _ in legs)
    explained = [f"{number}  {leg:<{width}}  {what}" for number, (leg, what) in enumerate(legs, 1)]
    return [f"  {line}".rstrip() for line in (*drawn, "", *explained)]


def _boxes(client: list[str], director: list[str], servers: list[str], *, direct: bool) -> list[str]:
    """Three boxes and the arrows between them; the answer goes back through the middle or, if `direct`, below it."""
    height = len(servers)
    left = _box(client + [""] * (height - len(client)))
    middle = _box(director)
    right = _box(servers)
    blank = " " * len(middle[0])
    rows = []
    for number in range(height + 2):
        inner = middle[number] if number < len(middle) else blank
        one = two = " " * 9
        if number == 0:
            one, two = "    1    ", "    2    "
        elif number == 1:
            one = two = "-------->"
        elif direct and number == height:
            one, inner, two = "<--------", "-" * len(blank), "-" * 9
        elif direct and number == height + 1:
            inner = f"{'3':^{len(blank)}}"
        elif not direct and number == 2:
            one = two = "<--------"
        elif not direct and number == 3:
            one, two = "    4    ", "    3    "
        rows.append(f"{left[number]}{one}{inner}{two}{right[number]}")
    titles = f"{'client':<{len(left[0]) + 9}}{'director':<{len(blank) + 9}}real servers"
    return [titles, *rows]


def _box(lines: list[str]) -> list[str]:
    width = max(len(line) for line in lines)
    edge = "+" + "-" * (width + 2) + "+"
    return [edge, *(f"| {line:<{width}} |" for line in lines), edge]
