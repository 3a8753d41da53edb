"""``pylvs sched``: which schedulers there are, and why they decide as they do."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import json
import string
import sys
from typing import Any

SHOWN_SLOTS = 12


def add(subparsers: Any) -> None:
    """Add the command to the parser of `pylvs`."""
    parser = subparsers.add_parser("sched", help="list the schedulers, explain what one decides and why")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="all schedulers, those of your own included")
    explain = actions.add_parser(
        "explain",
        help="what a scheduler compiles to, and where clients go",
        description="Compile a scheduler for servers A, B, C … of the given weights, added in this order (so that the last "
        "one stands first in the kernel's list), and follow new connections through it with the arithmetic.",
    )
    for each in (listing, explain):
        each.add_argument("--json", action="store_true", help="as JSON")
        each.add_argument(
            "--scheduler-module", action="append", default=[], metavar="MODULE", help="load schedulers of your own"
        )
    listing.set_defaults(run=run_list)
    explain.set_defaults(run=run_explain)
    explain.add_argument("name", metavar="NAME", help="the scheduler")
    explain.add_argument("--weights", type=_weights, required=True, metavar="W,W…", help="of servers A, B, C …")
    explain.add_argument("--flags", type=_words, default=(), metavar="FLAG,…", help="such as sh-port,sh-fallback")
    explain.add_argument(
        "--client", type=_client, action="append", metavar="ADDR[:PORT]", help="who connects (repeatable)"
    )
    explain.add_argument("--destination", type=_address, default="192.0.2.1", metavar="ADDR", help="default: %(default)s")
    explain.add_argument(
        "--servers", type=_addresses, metavar="ADDR[:PORT],…", help="their addresses (default: 10.0.0.11:80 and so on)"
    )
    explain.add_argument("--picks", type=_count, default=0, metavar="N", help="connections in turn (default: one a client)")
    explain.add_argument("--idle", action="store_true", help="connections end at once, or are UDP; otherwise they stay active")


def _weights(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of whole numbers such as 3,2,1") from None
    if len(found) > len(string.ascii_uppercase) or any(not 0 <= weight < 2**31 for weight in found):
        raise argparse.ArgumentTypeError("use up to 26 weights from 0 to 2147483647")
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 10000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 10000")
    return int(text)


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no address") from None


def _client(text: str, port: int = 40000) -> tuple[str, int]:
    head, colon, tail = text.rpartition(":")
    if colon and tail.isdigit() and (head.startswith("[") or ":" not in head):
        if int(tail) > 65535:
            raise argparse.ArgumentTypeError(f"port {tail} is out of range")
        return _address(head), int(tail)
    return _address(text), port


def _addresses(text: str) -> list[tuple[str, int]]:
    return [_client(word, 80) for word in text.split(",")]


def run_list(args: argparse.Namespace) -> int:
    """Print name, origin and purpose of each scheduler."""
    from pylvs.sched.load import Schedulers

    try:
        schedulers = Schedulers(args.scheduler_module)
        rows = []
        for name in schedulers:
            try:
                rows.append((name, schedulers[name].about, schedulers.origins[name]))
            except ValueError as error:
                rows.append((name, f"cannot be loaded: {error}", "entry point"))
    except ValueError as error:
        print(f"pylvs: {error}", file=sys.stderr)
        return 1
    if args.json:
        json.dump([dict(zip(("name", "about", "origin"), row, strict=True)) for row in rows], sys.stdout, indent=2)
        print()
        return 0
    width = max(len(row[0]) for row in rows)
    for name, about, origin in rows:
        print(f"{name:<{width}}  {about}" + (f"  ({origin})" if origin != "pylvs" else ""))
    return 0


def run_explain(args: argparse.Namespace) -> int:
    """Print what the scheduler compiles to and how it decides."""
    from pylvs.sched import Server, check
    from pylvs.sched.explain import Bench, Client, compiled_to
    from pylvs.sched.load import Schedulers

    where = args.servers or [(f"10.0.0.{11 + n}", 80) for n in range(len(args.weights))]
    if len(where) != len(args.weights):
        print(f"pylvs: {len(args.weights)} weights, but {len(where)} servers; give as many", file=sys.stderr)
        return 2
    labels = string.ascii_uppercase[: len(where)]
    added = [Server(address, port, weight) for (address, port), weight in zip(where, args.weights, strict=True)]
    servers, names = added[::-1], labels[::-1]
    try:
        schedulers = Schedulers(args.scheduler_module)
        if args.name not in schedulers:
            print(f"pylvs: no scheduler {args.name!r}; there are {', '.join(schedulers)}", file=sys.stderr)
            return 1
        scheduler = schedulers[args.name]
        pick = check(scheduler.compile(tuple(servers), frozenset(args.flags)), len(servers))
    except Exception as error:  # a user's code may raise anything
        print(f"pylvs: scheduler {args.name!r}: {error}", file=sys.stderr)
        return 1
    bench = Bench(pick, names)
    clients = args.client or [("198.51.100.7", 40000)]
    decisions = []
    for number in range(args.picks or len(clients)):
        client = clients[number % len(clients)]
        decision = bench.choose(Client(client[0], client[1], args.destination))
        if decision.server is not None:
            counts = bench.inactive if args.idle else bench.active
            counts[decision.server] += 1
        decisions.append((client, decision))
    if args.json:
        _json(args, scheduler.about, pick, labels, added, names, decisions)
        return 0
    print(f"{args.name}: {scheduler.about}\n")
    listed = "  ".join(f"{name} {s.address}:{s.port} weight {s.weight}" for name, s in zip(names, servers, strict=True))
    _pairs([("list order", listed), *compiled_to(pick, names)])
    print()
    for number, ((address, port), decision) in enumerate(decisions, start=1):
        said = f"{address}:{port}" if ":" not in address else f"[{address}]:{port}"
        print(f"{number:>3}. {said} -> {'nobody' if decision.server is None else names[decision.server]}")
        why = decision.why
        if len(why) > SHOWN_SLOTS:
            why = (*why[: SHOWN_SLOTS - 2], f"… {len(why) - SHOWN_SLOTS + 1} more …", why[-1])
        for line in why:
            print(f"     {line}")
    if len(decisions) > 1:
        sequence = "".join("-" if d.server is None else names[d.server] for _, d in decisions)
        print(f"\nsequence: {sequence}")
    return 0


def _pairs(rows: list[tuple[str, str]]) -> None:
    width = max(len(what) for what, _ in rows)
    for what, value in rows:
        print(f"  {what:<{width}}  {value}")


def _json(
    args: argparse.Namespace, about: str, pick: Any, labels: str, added: list[Any], names: str, decisions: list[Any]
) -> None:
    json.dump(
        {
            "scheduler": args.name,
            "about": about,
            "flags": list(args.flags),
            "servers": [
                {"name": name, "address": server.address, "port": server.port, "weight": server.weight}
                for name, server in zip(labels, added, strict=True)
            ],
            "order": list(names),
            "pick": {"kind": type(pick).__name__.lower(), **dataclasses.asdict(pick)},
            "decisions": [
                {
                    "client": client[0],
                    "port": client[1],
                    "server": None if decision.server is None else names[decision.server],
                    "why": list(decision.why),
                }
                for client, decision in decisions
            ],
        },
        sys.stdout,
        indent=2,
    )
    print()
