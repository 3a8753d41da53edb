"""``pylvs show``: what the director has, as the kernel's files under /proc/net tell it."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from pylvs.cli.client import ApiError, NoDirector, request

NAMES = ("ip_vs", "ip_vs_app", "ip_vs_conn", "ip_vs_conn_sync", "ip_vs_stats", "ip_vs_stats_percpu")


def add(subparsers: Any) -> None:
    """Add the command to the parser of `pylvs`."""
    parser = subparsers.add_parser("show", help="print the director's tables in the shape of the kernel's /proc files")
    parser.add_argument("--proc", metavar="NAME", required=True, choices=NAMES, help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--json", action="store_true", help="as JSON: name and text")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the text; 3 if there is no director, 4 if not permitted."""
    try:
        answer = request("GET", f"/v1/proc/{args.proc}")
    except NoDirector as error:
        print(f"pylvs: {error}", file=sys.stderr)
        return 3
    except ApiError as error:
        print(f"pylvs: {error}", file=sys.stderr)
        return 4 if error.status == 403 else 1
    if args.json:
        json.dump(answer, sys.stdout, indent=2)
        print()
    else:
        sys.stdout.write(answer["text"])
    return 0
