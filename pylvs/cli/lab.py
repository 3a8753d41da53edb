"""``pylvs lab``: a whole load balancer with client and real servers on one machine, in network namespaces."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from typing import Any

METHODS = ("nat", "dr", "tun")
LABS = (*METHODS, "nat6", "dr6", "tun6", "persist", "hash", "mark", "sctp")


def add(subparsers: Any) -> None:
    """Add the command to the parser of `pylvs`."""
    parser = subparsers.add_parser(
        "lab",
        help="client, director and real servers in network namespaces; real requests; proofs by packets",
        description="Labs on one machine: client, director and three real servers in network namespaces. Needs root.",
    )
    parser.set_defaults(run=run)
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    job = commands.add_parser("run", help="build a lab, drive requests through it, judge, remove it")
    job.add_argument(
        "method",
        nargs="+",
        choices=(*LABS, "all", "every"),
        metavar="LAB",
        help=f"{', '.join(LABS)}; all: {', '.join(METHODS)}; every: all that there are",
    )
    job.add_argument(
        "--requests", type=_count, default=300, metavar="N", help="per phase: N one by one, N at once (%(default)s)"
    )
    job.add_argument(
        "--bytes",
        type=_size,
        default=50_000_000,
        metavar="N",
        help="size of download and upload, 0 for none (%(default)s)",
    )
    job.add_argument("--keep", action="store_true", help="leave the lab up afterwards")
    job.add_argument("--name", help="call the lab so (default: its method)")
    job.add_argument("--json", action="store_true", help="one JSON document instead of the page; progress on stderr")

    up = commands.add_parser("up", help="build a lab and leave it up")
    up.add_argument("method", choices=LABS, metavar="LAB", help=", ".join(LABS))
    up.add_argument("--name", help="call the lab so (default: its method)")

    down = commands.add_parser("down", help="remove a lab, and what a killed run left")
    which = down.add_mutually_exclusive_group(required=True)
    which.add_argument("name", nargs="?", help="the lab")
    which.add_argument("--all", action="store_true", help="every lab")

    status = commands.add_parser("status", help="which labs there are")
    status.add_argument("--json", action="store_true", help="as JSON")

    inside = commands.add_parser(
        "exec", help="run a command inside a node: pylvs lab exec nat client -- curl http://10.0.0.2/"
    )
    inside.add_argument("name", help="the lab")
    inside.add_argument("node", help="client, director, rs1 …")
    inside.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="default: a shell")


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 10_000:
        raise argparse.ArgumentTypeError("use 1 to 10000")
    return number


def _size(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 1 << 32:
        raise argparse.ArgumentTypeError("use 0 to 4294967296")
    return number


def run(args: argparse.Namespace) -> int:
    """Run the action; exit status 0, 1 (failed), 2 (usage), 4 (not permitted), 128 + signal (interrupted)."""
    if os.geteuid() != 0 and args.action != "status":
        print("pylvs lab: network namespaces need root; run it with sudo", file=sys.stderr)
        return 4
    from pylvs.lab.process import Failed, Interrupted

    actions = {"run": _run, "up": _up, "down": _down, "status": _status, "exec": _exec}
    try:
        return actions[args.action](args)
    except KeyboardInterrupt:  # before the first, or after the last step
        return 130
    except Interrupted as signal:
        print(f"pylvs lab: {signal}: everything is removed", file=sys.stderr)
        return 128 + signal.signal
    except PermissionError as error:
        print(
            f"pylvs lab: {error.strerror or error}; network namespaces need CAP_SYS_ADMIN and CAP_NET_ADMIN",
            file=sys.stderr,
        )
        return 4
    except (Failed, OSError) as error:
        print(f"pylvs lab: {error}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    from pylvs.lab import page
    from pylvs.lab.process import Failed, Stop
    from pylvs.lab.run import Options, Result
    from pylvs.lab.run import run as run_lab
    from pylvs.lab.topology import PLANS

    groups = {"all": METHODS, "every": LABS}
    chosen = list(dict.fromkeys(name for each in args.method for name in groups.get(each, (each,))))
    if len(chosen) > 1 and args.name:
        raise Failed(f"these are {len(chosen)} labs, called {', '.join(chosen)}; leave --name out")
    stream = sys.stderr if args.json else sys.stdout
    draw = page.Page(colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ, encoding=sys.stdout.encoding)
    options = Options(requests=args.requests, size=args.bytes, keep=args.keep)
    results: list[Result] = []
    begin = time.monotonic()
    stop = Stop()
    try:
        for method in chosen:
            name = args.name or method
            result = run_lab(PLANS[method](), name, options, page.Progress(f"{name:<4}", stream), stop)
            results.append(result)
            if not args.json:
                print(draw.lab(result) + "\n", flush=True)
    finally:
        stop.close()
    seconds = round(time.monotonic() - begin, 2)
    ran = [result for result in results if not result.skipped]
    ok = bool(ran) and all(result.ok for result in ran)
    if args.json:
        labs = [{"ok": result.ok, **dataclasses.asdict(result)} for result in results]
        print(json.dumps({"ok": ok, "seconds": seconds, "labs": labs}, indent=1))
    elif len(results) > 1:
        for result in results:
            sign = "-" if result.skipped else draw.mark(result.ok)
            print(f"  {sign} {result.name:<8} {result.skipped or result.title}")
        print(
            f"  {draw.mark(ok)} all labs{'' if len(ran) == len(results) else ' that this machine can run'}, {seconds:.1f} s"
        )
    return 0 if ok else 1


def _up(args: argparse.Namespace) -> int:
    from pylvs.lab import page, record
    from pylvs.lab.life import Lab
    from pylvs.lab.process import Stop
    from pylvs.lab.run import refuse_kept
    from pylvs.lab.topology import PLANS

    name = args.name or args.method
    progress = page.Progress(f"{name:<4}")
    stop = Stop()
    try:
        with record.held(name):
            refuse_kept(name)
            lab = Lab(PLANS[args.method](), name, stop, progress.step)
            try:
                lab.up()
                stop.check()
                lab.keep()
            except BaseException:
                lab.down()
                raise
            finally:
                progress.close()
    finally:
        stop.close()
    print(f"\nlab {name} is up: {lab.plan.title}")
    for note in lab.plan.notes:
        print(f"  {note}")
    print(f"try     pylvs lab exec {name} client -- curl http://{lab.plan.service}/")
    print(f"        pylvs lab exec {name} director -- pylvs ipvsadm -L -n")
    print(f"then    pylvs lab down {name}")
    return 0


def _down(args: argparse.Namespace) -> int:
    from pylvs.lab import life, record
    from pylvs.lab.process import Failed, Stop

    names = [found.name for found in record.every()] if args.all else [args.name]
    stop = Stop()  # a Ctrl-C in the middle would leave half a lab
    try:
        for name in names:
            if not life.NAME.fullmatch(name):
                raise Failed(f"{name!r} is no name of a lab")
            with record.held(name):
                if life.clear(name):
                    print(f"lab {name} is removed")
                else:
                    print(f"there is no lab {name}")
    finally:
        stop.close()
    return 0


def _status(args: argparse.Namespace) -> int:
    from pylvs.lab import record
    from pylvs.lab.topology import PLANS

    labs = record.every()
    if args.json:
        rows = [
            {
                "name": lab.name,
                "method": lab.method,
                "state": lab.state,
                "since": lab.since,
                "namespaces": lab.namespaces,
                "processes": [{**dataclasses.asdict(item), "alive": item.alive} for item in lab.processes],
            }
            for lab in labs
        ]
        print(json.dumps(rows, indent=1))
        return 0
    if not labs:
        print("no labs; build one with: pylvs lab up nat")
        return 0
    print(f"{'LAB':<12}{'METHOD':<8}{'STATE':<11}{'SERVICE':<23}{'PROCESSES':<12}{'UP FOR':>8}")
    for lab in labs:
        alive = sum(item.alive for item in lab.processes)
        service = PLANS[lab.method]().service if lab.method in PLANS else "?"
        running = f"{alive} of {len(lab.processes)}"
        print(
            f"{lab.name:<12}{lab.method:<8}{lab.state:<11}{service:<23}{running:<12}{time.time() - lab.since:>6.0f} s"
        )
        for item in lab.processes:
            if not item.alive:
                print(f"  {item.name} on {item.node} has ended; its last words are in {lab.log(item.name)}")
    return 0


def _exec(args: argparse.Namespace) -> int:
    from pylvs.lab import namespace, record
    from pylvs.lab.process import Failed
    from pylvs.lab.topology import PREFIX

    lab = record.read(args.name)
    if lab is None:
        raise Failed(f"there is no lab {args.name}; pylvs lab status lists them")
    start = f"{PREFIX}-{args.name}-"
    nodes = [item.removeprefix(start) for item in lab.namespaces]
    if args.node not in nodes:
        raise Failed(f"lab {args.name} has no node {args.node}; it has {', '.join(nodes)}")
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    argv = command or [os.environ.get("SHELL", "/bin/sh")]
    # the very pylvs that runs now is found by its name too, installed or not
    os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    try:
        namespace.become(f"{start}{args.node}", argv)
    except FileNotFoundError:
        raise Failed(f"{argv[0]}: command not found") from None
    return 0
