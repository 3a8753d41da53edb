"""``pylvs replay``: what a set of rules would have done with the traffic of a capture. No root, no daemon, no network."""

from __future__ import annotations

import argparse
import contextlib
import errno
import ipaddress
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pylvs.ports.pcap import SECOND, CaptureError, Reader, Record, Writer

if TYPE_CHECKING:
    from pylvs.director import Director

ANYWHERE = {4: "0.0.0.0/0", 6: "::/0"}
#: the network of the router that is assumed: for documentation (RFC 5737, RFC 3849), no traffic has it
OUTSIDE = {4: ("192.0.2.1/30", "192.0.2.2"), 6: ("2001:db8::1/126", "2001:db8::2")}
SETTLE = 4.0  # s after the last frame, in which waiting frames go out or are given up
ENDS = ("forwarded", "passed", "replied")
DESCRIPTION = """\
Run the frames of a capture through the director, offline, by the rules of an ipvsadm save file, and say what would
have become of them. Time is the capture's. The host around the director is told by options; what is not told is assumed:
our MAC is the destination of the first unicast frame, real servers are on the link, everybody else is behind the
router that sent that frame.
"""


class ReplayError(Exception):
    """Why there is nothing to show, in one line."""


def add(subparsers: Any) -> None:
    """Add the command to the parser of `pylvs`."""
    parser = subparsers.add_parser(
        "replay",
        help="run a capture through a set of rules, offline",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rules", metavar="RULES", help="what `ipvsadm -S` printed (or any lines for `ipvsadm -R`)")
    parser.add_argument("capture", metavar="IN.pcap", help="a classic pcap file of Ethernet frames")
    parser.add_argument("--out", metavar="OUT.pcap", help="write the frames that would have been sent")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--interface", metavar="NAME", type=_interface, default="eth0", help="what to call the interface (%(default)s)"
    )
    parser.add_argument("--mac", type=_mac, help="the director's MAC")
    parser.add_argument("--mtu", type=_mtu, default=1500, help="of the interface (%(default)s)")
    parser.add_argument(
        "--address", metavar="IP/LEN", type=_address, action="append", default=[],
        help="an address of the director, with its network; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--neighbour", metavar="IP=MAC", type=_neighbour, action="append", default=[], help="may be repeated"
    )
    parser.add_argument(
        "--route", metavar="PREFIX=GW", type=_route, action="append", default=[], help="may be repeated"
    )
    parser.add_argument(
        "--assume-neighbours", action=argparse.BooleanOptionalAction, default=True,
        help="give next hops that no --neighbour names a MAC made from their address (default: yes)",
    )  # fmt: skip
    parser.set_defaults(run=run)


def _mac(text: str) -> str:
    if not re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a MAC address; write it as 02:00:00:00:00:01")
    return text.lower()


def _mtu(text: str) -> int:
    if not text.isdecimal() or not 68 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no MTU; use 68 to 65535")
    return int(text)


def _interface(text: str) -> str:
    if not text or text == "lo":
        raise argparse.ArgumentTypeError(f"{text!r} cannot be where frames come in; name another, such as eth0")
    return text


def _address(text: str) -> str:
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not an address with its network; write 10.0.0.1/24") from None
    return interface.with_prefixlen


def _neighbour(text: str) -> tuple[str, str]:
    address, _, mac = text.partition("=")
    try:
        return str(ipaddress.ip_address(address)), _mac(mac)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not IP=MAC; write 10.0.0.11=02:00:00:00:00:11") from None


def _route(text: str) -> tuple[str, str]:
    prefix, _, gateway = text.partition("=")
    try:
        network, via = ipaddress.ip_network(prefix), ipaddress.ip_address(gateway)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not PREFIX=GW, as in 0.0.0.0/0=10.0.0.254: {error}") from None
    if network.version != via.version:
        raise argparse.ArgumentTypeError(f"{text!r}: prefix and gateway are of different families")
    return str(network), str(via)


def made_up_mac(address: bytes) -> str:
    """A MAC for a next hop of this 4 or 16-byte address: locally administered, the same every time."""
    return "02:00:" + ":".join(f"{byte:02x}" for byte in address[-4:])


def run(args: argparse.Namespace) -> int:
    """Replay and print; 1 if there is nothing to show, or if the capture turns out damaged on the way."""
    try:
        return replay(args)
    except (ReplayError, CaptureError, ValueError) as error:
        return _failed(str(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        return _failed(f"{error.filename or args.capture}: {os.strerror(error.errno or errno.EIO)}")


def _failed(text: str) -> int:
    print(f"pylvs replay: {text}", file=sys.stderr)
    return 1


def replay(args: argparse.Namespace) -> int:
    """The whole job; raises what `run` explains."""
    from pylvs.director import Director

    first = first_unicast(args.capture)
    mac = args.mac or _text(first[:6])
    director = Director(seed=0, connections=1 << 20)
    load(director, args.rules)
    surround(director, args, mac, _text(first[6:12]))
    if args.out and os.path.exists(args.out) and os.path.samefile(args.out, args.capture):
        raise ReplayError(f"{args.out} is the capture itself; name another file")
    tally: dict[str, Any] = {"frames": 0, "bytes": 0, "seconds": 0.0, "own": 0, "cut": 0, "end": 0}
    sent = {"frames": 0, "bytes": 0}
    damage = ""
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(Reader(args.capture))
        writer = stack.enter_context(Writer(args.out, reader.nanoseconds)) if args.out else None

        def send(time: int, frames: list[tuple[str, bytes]]) -> None:
            for _, frame in frames:
                sent["frames"] += 1
                sent["bytes"] += len(frame)
                if writer:
                    writer.write(time, frame)

        try:
            for record, now in ours(reader, mac, tally):
                send(record.time, decide(director, args, record.data, now))
        except CaptureError as error:  # show what came before
            damage = str(error)
        send(tally.pop("end"), director.advance(now=tally["seconds"] + SETTLE))
    document = {
        "capture": {"file": args.capture, **tally},
        "interface": {"name": args.interface, "mac": mac},
        "counters": director.counters(),
        "services": services(director),
        "sent": {**sent, "file": args.out},
    }
    if args.json:
        json.dump(document, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(page(document)))
    return _failed(damage) if damage else 0


# ------------------------------------------------------------------------------------------------ rules and the host


def load(director: Director, path: str) -> None:
    """Carry out the lines of an ipvsadm save file; comments and empty lines are skipped."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except UnicodeDecodeError:
        raise ReplayError(f"{path}: this is no text; RULES is what `ipvsadm -S -n` prints") from None
    with director.batch():
        for number, line in enumerate(lines, 1):
            words = [word for word in line.split() if word != "ipvsadm"]
            if not words or words[0].startswith("#"):
                continue
            result = director.ipvsadm(words)
            complaint = result.stderr.strip().split("\n")[0]
            if result.returncode or result.stdout or complaint:
                raise ReplayError(f"{path}:{number}: {complaint or 'this sets nothing'} ({line.strip()})")
    if not director.status():
        raise ReplayError(f"{path}: no virtual service in it; RULES is what `ipvsadm -S -n` prints")


def first_unicast(path: str) -> bytes:
    """The first frame of a capture that is for one station; the first of all if there is none."""
    with Reader(path) as reader:
        best = b""
        for record in reader:
            if len(record.data) >= 14:
                best = best or record.data
                if not record.data[0] & 1:
                    return record.data
    if not best:
        raise ReplayError(f"{path}: the capture holds no frame; was the filter right, and the interface?")
    return best


def surround(director: Director, args: argparse.Namespace, mac: str, router: str) -> None:
    """Tell the director of the host that options and defaults describe."""
    addresses = list(args.address)
    routes = dict(args.route)
    neighbours = {}
    for prefix, gateway in routes.items():
        if not any(ipaddress.ip_address(gateway) in ipaddress.ip_interface(each).network for each in addresses):
            raise ReplayError(f"--route {prefix}={gateway}: the gateway is in the network of no --address; give one")
    reached = [*map(ipaddress.ip_network, routes), *(ipaddress.ip_interface(each).network for each in addresses)]
    for status in director.status():
        for server in status.servers:
            target = ipaddress.ip_address(server.server.address)
            if args.assume_neighbours:
                neighbours[str(target)] = made_up_mac(target.packed)
            if not any(target in network for network in reached):
                routes[f"{target}/{target.max_prefixlen}"] = args.interface
    for family, (address, gateway) in OUTSIDE.items():
        if ANYWHERE[family] not in routes:
            addresses.append(address)
            routes[ANYWHERE[family]] = gateway
            neighbours[gateway] = router
    neighbours.update(args.neighbour)
    director.configure(
        interfaces={
            "lo": {"addresses": ["127.0.0.1/8", "::1/128"]},
            args.interface: {"mac": mac, "addresses": addresses, "mtu": args.mtu},
        },
        neighbours=neighbours,
        routes=routes,
    )
    args.neighbours = neighbours


# --------------------------------------------------------------------------------------------------------- the frames


def ours(reader: Reader, mac: str, tally: dict[str, Any]) -> Iterator[tuple[Record, float]]:
    """The frames that a director with this MAC would have received whole, with its time in seconds; and the count."""
    start: int | None = None
    own = bytes.fromhex(mac.replace(":", ""))
    for record in reader:
        start = record.time if start is None else start
        tally["end"] = max(tally["end"], record.time)
        tally["frames"] += 1
        tally["bytes"] += record.length
        tally["seconds"] = (tally["end"] - start) / SECOND
        if record.cut:
            tally["cut"] += 1
        elif record.data[6:12] == own:  # a packet socket of ours would not see it either
            tally["own"] += 1
        else:
            yield record, tally["seconds"]


def decide(director: Director, args: argparse.Namespace, data: bytes, now: float) -> list[tuple[str, bytes]]:
    """What is sent because of a frame, at once or when its next hop has been made up."""
    (outcome,) = director.process([(args.interface, data)], now=now)
    if not args.assume_neighbours:
        return outcome.frames
    wanted = [address for core in director.cores for address, _ in core.needs()]
    if not wanted:
        return outcome.frames
    args.neighbours.update((str(_address_of(address)), made_up_mac(address)) for address in wanted)
    director.configure(neighbours=args.neighbours)
    return [*outcome.frames, *director.advance(now=now)]


def _address_of(data: bytes) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    address = ipaddress.IPv6Address(data)
    return address.ipv4_mapped or address


def _text(mac: bytes) -> str:
    return ":".join(f"{byte:02x}" for byte in mac)


# --------------------------------------------------------------------------------------------------------- the result


def services(director: Director) -> list[dict[str, Any]]:
    """Services in the order of their rules, their servers with their share of the connections, in percent."""
    found = []
    for status in reversed(director.status()):
        conns = status.stats.conns
        found.append(
            {
                "service": status.service.name,
                "scheduler": status.service.scheduler,
                **_counts(status),
                "servers": [
                    {
                        "server": each.server.name,
                        "method": each.server.method,
                        "weight": each.server.weight,
                        **_counts(each),
                        "share": round(100 * each.stats.conns / conns, 1) if conns else None,
                    }
                    for each in reversed(status.servers)
                ],
            }
        )
    return found


def _counts(status: Any) -> dict[str, int]:
    names = {
        "connections": "conns", "packets_in": "inpkts", "packets_out": "outpkts", "bytes_in": "inbytes",
        "bytes_out": "outbytes",
    }  # fmt: skip
    return {name: getattr(status.stats, field) for name, field in names.items()}


def page(document: dict[str, Any]) -> list[str]:
    """The document for people."""
    capture, counters, sent = document["capture"], document["counters"], document["sent"]
    lines = [f"{capture['file']}: {capture['frames']} frames, {capture['seconds']:.3f} s"]
    if capture["own"]:
        lines.append(f"  {capture['own']} left out: sent by {document['interface']['mac']}, which is the director")
    if capture["cut"]:
        lines.append(f"  {capture['cut']} left out: cut short by the capture; record with `tcpdump -s 0`")
    rows = [("received", counters["received"]), *((f"  {word}", counters[word]) for word in ENDS)]
    rows += [("  dropped", sum(counters["drops"].values()))]
    rows += [(f"    {reason}", number) for reason, number in sorted(counters["drops"].items())]
    lines += ["", *_table([(name, str(number)) for name, number in rows], "<>")]
    for service in document["services"]:
        lines += ["", f"{service['service']}  {service['scheduler']}"]
        header = ("  server", "method", "weight", "conns", "share", "pkts in", "pkts out", "bytes in", "bytes out")
        body = [
            (
                f"  {each['server']}", each["method"], str(each["weight"]), str(each["connections"]),
                "-" if each["share"] is None else f"{each['share']:.1f} %", str(each["packets_in"]),
                str(each["packets_out"]), str(each["bytes_in"]), str(each["bytes_out"]),
            )
            for each in service["servers"]
        ]  # fmt: skip
        lines += _table([header, *body], "<<>>>>>>>")
    lines += ["", f"sent: {sent['frames']} frames, {sent['bytes']} bytes" + (f" -> {sent['file']}" if sent["file"] else "")]
    return lines


def _table(rows: list[tuple[str, ...]], align: str) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths, strict=True)).rstrip()
        for row in rows
    ]
