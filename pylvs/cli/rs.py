"""``pylvs rs``: what a real server needs that its kernel may not have."""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from typing import Any


def add(subparsers: Any) -> None:
    """Add the command to the parser of `pylvs`."""
    parser = subparsers.add_parser("rs", help="helpers for real servers")
    parser.set_defaults(run=run)
    commands = parser.add_subparsers(dest="helper", metavar="HELPER", required=True)
    tun = commands.add_parser(
        "tun",
        help="unwrap the director's IPIP packets where the kernel has no ipip module",
        description="Unwrap IPIP packets in user space: a TUN device with the VIP stands in for tunl0. Needs root. Runs in "
        "the foreground until SIGTERM or Ctrl-C, and removes the device.",
    )
    tun.add_argument(
        "--vip", action="append", required=True, metavar="ADDRESS", help="address of the service; repeatable"
    )
    tun.add_argument("--device", default="pylvs-tun0", metavar="NAME", help="name of the TUN device (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run the helper; the exit status is 0, 1 (refused), 2 (usage) or 4 (not permitted)."""
    try:
        vips = [str(ipaddress.ip_address(vip)) for vip in args.vip]
    except ValueError as error:
        print(f"pylvs rs tun: {error}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("pylvs rs tun: raw sockets and a TUN device need root; run it with sudo", file=sys.stderr)
        return 4
    from pylvs.lab import decap

    try:
        work = decap.Decapsulator(args.device, vips)
    except PermissionError as error:
        print(f"pylvs rs tun: {error.strerror or error}; CAP_NET_RAW and CAP_NET_ADMIN are needed", file=sys.stderr)
        return 4
    except OSError as error:
        print(f"pylvs rs tun: {error}", file=sys.stderr)
        return 1
    if decap.filtered():
        print(
            "pylvs rs tun: net.ipv4.conf.all.rp_filter is 1, the kernel will drop what is unwrapped; "
            "set it to 0 (sysctl -w net.ipv4.conf.all.rp_filter=0)",
            file=sys.stderr,
        )
    try:
        print(f"pylvs rs tun: ready, device {args.device}, VIP {' '.join(vips)}", file=sys.stderr, flush=True)
        work.run()
    finally:
        work.close()
        print(f"pylvs rs tun: {decap.report(work.counts)}", file=sys.stderr)
    return 0
