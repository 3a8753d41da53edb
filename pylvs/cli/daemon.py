"""``pylvs daemon``: run a director in this network namespace."""

from __future__ import annotations

import argparse
import os
import signal
from typing import Any


def add(subparsers: Any) -> None:
    """Add the command to the parser of `pylvs`."""
    parser = subparsers.add_parser(
        "daemon",
        help="run a director in this network namespace",
        description="Run a director in this network namespace, in the foreground, until SIGTERM or SIGINT.",
    )
    parser.set_defaults(run=run)
    parser.add_argument(
        "--interface",
        action="append",
        default=[],
        metavar="NAME",
        help="receive on this interface (repeatable; default: all but loopback, as they come and go)",
    )
    parser.add_argument(
        "--connections", type=_entries, default=1 << 20, metavar="N", help="size of the connection table (%(default)s)"
    )
    parser.add_argument(
        "--ring", type=_mebibytes, default=64, metavar="MIB", help="receive ring of each interface (%(default)s MiB)"
    )
    parser.add_argument(
        "--scheduler-module",
        action="append",
        default=[],
        metavar="MODULE",
        help="load schedulers of your own from a module or a .py file (repeatable)",
    )
    parser.add_argument(
        "--mark",
        action="append",
        type=_mark,
        default=[],
        metavar="MARK:PROTOCOL:DESTINATION[:PORTS]",
        help="give packets a firewall mark, for services of -f MARK (repeatable; the last rule that fits counts). PROTOCOL is "
        "tcp, udp, sctp or any; DESTINATION an address or prefix (IPv6 in brackets) or any; PORTS such as 80,443,8000-8099, "
        "default all. Example: 1:tcp:192.0.2.10:80,443",
    )
    parser.add_argument(
        "--no-guard", action="store_true", help="do not keep forwarded packets from the host's own stack"
    )


def _entries(text: str) -> int:
    return _number(text, 1 << 27)


def _mebibytes(text: str) -> int:
    return _number(text, 1024)


def _number(text: str, high: int) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"{text!r} will not do; use 1 to {high}")
    return int(text)


def _mark(text: str) -> dict[str, Any]:
    """A rule as `Director.configure` takes it; what is wrong with it is said by name."""
    from pylvs import marks

    try:
        return marks.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """Run the daemon; the exit status is its."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: os._exit(0))  # while nothing is set up, there is nothing to undo
    from pylvs.daemon.main import run as run_daemon

    return run_daemon(
        args.interface,
        connections=args.connections,
        ring_mib=args.ring,
        guard=not args.no_guard,
        scheduler_modules=args.scheduler_module,
        marks=args.mark,
    )
