"""Both ends of the SCTP lab: ``python -m pylvs.lab.sctp --name rs1 --listen 192.168.10.100:80`` and ``… --connect VIP:80``.

One-to-one SCTP sockets (RFC 6458 §4) as far as the kernel has any: the client sends a line, the server answers with its name.
The client reports as `load` does, one JSON object a line. ``--tcp`` takes TCP in SCTP's place, to try these two without it.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from types import FrameType

SCTP = 132
TIMEOUT = 10.0


def missing() -> str:
    """Why there are no SCTP sockets here; "" if there are."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, SCTP).close()
    except OSError as error:
        return f"this kernel has no SCTP sockets ({error.strerror})"
    return ""


def place(text: str) -> tuple[str, int]:
    """``address:port`` in two."""
    address, _, port = text.rpartition(":")
    return address, int(port)


def _serve(connection: socket.socket, name: str) -> None:
    with connection, suppress(OSError):
        connection.settimeout(TIMEOUT)
        if connection.recv(64):
            connection.sendall(name.encode())
            connection.recv(64)  # until the client has gone


def serve(name: str, listen: str, protocol: int) -> int:
    """Answer until SIGTERM or SIGINT."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(place(listen))
    listener.listen(128)

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"{name}: ready on {listen}", flush=True)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=_serve, args=(connection, name), daemon=True).start()


def ask(target: tuple[str, int], source: tuple[str, int], protocol: int) -> str:
    """Who answers at `target`. Raises `OSError`."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol) as client:
        client.settimeout(TIMEOUT)
        client.bind(source)
        client.connect(target)
        client.sendall(b"who?\n")
        return client.recv(64).decode()


def request(connect: str, clients: list[str], ports: int, protocol: int) -> int:
    """One connection from each of `clients`."""
    servers, errors = Counter[str](), Counter[str]()
    each, times = list[list[str]](), list[float]()
    begin = time.perf_counter()
    for number, address in enumerate(clients):
        sent, answer = time.perf_counter(), ""
        try:
            answer = ask(place(connect), (address, ports + number), protocol)
            servers[answer] += 1
            times.append((time.perf_counter() - sent) * 1e3)
        except OSError as error:
            errors[f"{type(error).__name__}: {error}"] += 1
        each.append([address, answer])
    times = sorted(times) or [0.0]
    report = {
        "event": "phase",
        "phase": "clients",
        "requests": len(clients),
        "answered": servers.total(),
        "servers": dict(sorted(servers.items())),
        "errors": dict(errors),
        "seconds": round(time.perf_counter() - begin, 3),
        "latency_ms": {
            name: round(times[min(len(times) - 1, int(part * len(times)))], 2)
            for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
        },
        "each": each,
    }
    print(json.dumps(report), flush=True)
    print(json.dumps({"event": "done"}), flush=True)
    return 0


def main(argv: list[str] | None = None) -> int:
    """One of the two ends."""
    parser = argparse.ArgumentParser(prog="python -m pylvs.lab.sctp", description="both ends of the SCTP lab")
    end = parser.add_mutually_exclusive_group(required=True)
    end.add_argument("--listen", metavar="ADDRESS:PORT")
    end.add_argument("--connect", metavar="ADDRESS:PORT")
    parser.add_argument("--name", default="server")
    parser.add_argument("--from", dest="clients", default="0.0.0.0", metavar="A,B,…")
    parser.add_argument("--ports", type=int, default=10_000, metavar="FIRST")
    parser.add_argument("--tcp", action="store_true", help="TCP in SCTP's place")
    options = parser.parse_args(argv)
    protocol = socket.IPPROTO_TCP if options.tcp else SCTP
    if options.listen:
        return serve(options.name, options.listen, protocol)
    return request(options.connect, options.clients.split(","), options.ports, protocol)


if __name__ == "__main__":
    sys.exit(main())
