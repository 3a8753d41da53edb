"""``pylvs doctor``: is this host fit for a director?"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

SIGNS = {"ok": "✔", "warn": "!", "blocker": "✘"}


def add(subparsers: Any) -> None:
    """Add the command to the parser of `pylvs`."""
    parser = subparsers.add_parser("doctor", help="say what this host lacks, and the remedy")
    parser.add_argument("--json", action="store_true", help="as JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the checks; 5 if one of them is a blocker."""
    from pylvs.host.doctor import checks

    found = checks()
    if args.json:
        json.dump([dataclasses.asdict(check) for check in found], sys.stdout, indent=2)
        print()
    else:
        width = max(len(check.name) for check in found)
        for check in found:
            print(f"{SIGNS[check.level]} {check.name:<{width}}  {check.found}")
            if check.level != "ok" and check.remedy:
                print(f"  {'':<{width}}  -> {check.remedy}")
    return 5 if any(check.level == "blocker" for check in found) else 0
