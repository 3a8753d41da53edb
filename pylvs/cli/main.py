"""The command line: one parser, one module per command, each with `add(subparsers)` and `run(args)`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from pylvs import __version__
from pylvs.cli import daemon, doctor, lab, replay, rs, sched, show
from pylvs.cli import ipvsadm as ipvsadm_command

EPILOGUE = """\
exit status: 0 ok, 1 refused or failed, 2 usage, 3 no director reached, 4 not permitted, 5 doctor found a blocker
(`pylvs ipvsadm` keeps ipvsadm's own)
"""


def parser() -> argparse.ArgumentParser:
    """The whole grammar, except that of ipvsadm."""
    top = argparse.ArgumentParser(
        prog="pylvs",
        description="Linux Virtual Server in user space.",
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"pylvs {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for module in (lab, daemon, ipvsadm_command, show, sched, replay, doctor, rs):
        module.add(commands)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``pylvs``; acts as ipvsadm when called by that name."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and os.path.basename(sys.argv[0]) == "ipvsadm":
        return ipvsadm()
    try:
        if arguments[:1] == ["ipvsadm"]:
            return ipvsadm_command.run(arguments[1:])
        args = parser().parse_args(arguments)
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1


def ipvsadm() -> int:
    """Entry point of ``pylvs-ipvsadm``."""
    return ipvsadm_command.run(sys.argv[1:])
