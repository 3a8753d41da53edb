"""``pylvs ipvsadm``: the command line is sent to the director as it is, and its answer printed as it is."""

from __future__ import annotations

import sys
from typing import Any

from pylvs.cli.client import ApiError, NoDirector, request


def add(subparsers: Any) -> None:
    """Add the command to the parser of `pylvs`; its own grammar is ipvsadm's."""
    subparsers.add_parser("ipvsadm", help="administer virtual services, exactly as ipvsadm does", add_help=False)


def run(argv: list[str]) -> int:
    """Run an ipvsadm command line; the status is ipvsadm's, 3 if there is no director, 4 if not permitted."""
    stdin = sys.stdin.read() if any(each in ("-R", "--restore") for each in argv) else None
    try:
        answer = request("POST", "/v1/ipvsadm", {"argv": argv, "stdin": stdin})
    except NoDirector as error:
        print(f"pylvs: {error}", file=sys.stderr)
        return 3
    except ApiError as error:
        print(f"pylvs: {error}", file=sys.stderr)
        return 4 if error.status == 403 else 1
    sys.stdout.write(answer["stdout"])
    sys.stderr.write(answer["stderr"])
    return int(answer["returncode"])
