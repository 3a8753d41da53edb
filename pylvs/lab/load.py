"""The client of a lab: ``python -m pylvs.lab.load --url http://VIP:80 …``, real HTTP requests and what came of them.

Writes one JSON object a line: ``progress`` while a phase goes on, then ``phase`` or ``transfer`` with its result, and
``done``. Every request of the phases ``sequential`` and ``concurrent`` opens a connection of its own, so that each is
scheduled anew; ``keepalive`` sends all of its requests over one. With ``--ports`` no local port is used twice: a director
that sees only the client's half of a connection remembers it for minutes, and a new one from the same port meets the
same server again (as in the kernel's IPVS with its default ``conn_reuse_mode``).
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import itertools
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pylvs.lab.httpd import blob, digest

TIMEOUT = 10.0  # seconds that a request may take; a lost SYN is repeated after one and after three
WORKERS = 16


@dataclass
class Tally:
    """What came of a phase's requests: answers by server, errors by text, times in seconds."""

    servers: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)

    def report(self, phase: str, requests: int, seconds: float) -> dict[str, Any]:
        """The phase as it is reported."""
        return {
            "event": "phase",
            "phase": phase,
            "requests": requests,
            "answered": sum(self.servers.values()),
            "servers": dict(sorted(self.servers.items())),
            "errors": dict(self.errors),
            "seconds": round(seconds, 3),
            "latency_ms": {
                name: round(percentile(self.times, part) * 1e3, 2)
                for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
            },
        }


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest of `values` that `part` of them do not exceed (nearest rank); 0.0 if there are none."""
    if not values:
        return 0.0
    return sorted(values)[max(0, math.ceil(part * len(values)) - 1)]


def explain(error: BaseException) -> str:
    """One short text for all errors of a kind."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


class Client:
    """Sends requests to one place. `say` receives the JSON objects."""

    def __init__(
        self, url: str, say: Callable[[dict[str, Any]], None], ports: int = 0, timeout: float = TIMEOUT
    ) -> None:
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.say = say
        self.ports = itertools.count(ports) if ports else itertools.repeat(0)  # local ports, 0 for any
        self.timeout = timeout

    def connect(self, timeout: float = TIMEOUT) -> http.client.HTTPConnection:
        """A connection of its own."""
        port = next(self.ports)
        local = ("", port) if port else None
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout, source_address=local)

    def ask(self, connection: http.client.HTTPConnection, **headers: str) -> str:
        """``GET /``: the name of the server that answered."""
        connection.request("GET", "/", headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise http.client.HTTPException(f"status {answer.status}")
        return str(json.loads(body)["server"])

    def one(self, tally: Tally, lock: threading.Lock) -> None:
        """One request over a new connection, into `tally`."""
        begin = time.perf_counter()
        connection = self.connect()
        try:
            server = self.ask(connection, Connection="close")
        except (OSError, http.client.HTTPException, ValueError) as error:
            with lock:
                tally.errors[explain(error)] += 1
        else:
            with lock:
                tally.servers[server] += 1
                tally.times.append(time.perf_counter() - begin)
        finally:
            connection.close()

    def requests(self, phase: str, count: int, workers: int) -> None:
        """`count` requests, `workers` at a time."""
        tally, lock = Tally(), threading.Lock()
        begin = told = time.perf_counter()
        with ThreadPoolExecutor(workers) as pool:
            for done, _ in enumerate(pool.map(lambda _: self.one(tally, lock), range(count)), 1):
                if time.perf_counter() - told > 0.1 or done == count:
                    told = time.perf_counter()
                    self.say({"event": "progress", "phase": phase, "done": done, "of": count})
        self.say(tally.report(phase, count, time.perf_counter() - begin))

    def clients(self, addresses: Sequence[str]) -> None:
        """One request from each of `addresses`, in this order; who answered whom is in the report's ``each``."""
        tally, each = Tally(), list[list[str]]()
        begin = told = time.perf_counter()
        for done, address in enumerate(addresses, 1):
            sent = time.perf_counter()
            connection = http.client.HTTPConnection(
                self.host, self.port, timeout=self.timeout, source_address=(address, next(self.ports))
            )
            try:
                server = self.ask(connection, Connection="close")
                tally.servers[server] += 1
                tally.times.append(time.perf_counter() - sent)
                each.append([address, server])
            except (OSError, http.client.HTTPException, ValueError) as error:
                tally.errors[explain(error)] += 1
                each.append([address, ""])
            finally:
                connection.close()
            if time.perf_counter() - told > 0.1 or done == len(addresses):
                told = time.perf_counter()
                self.say({"event": "progress", "phase": "clients", "done": done, "of": len(addresses)})
        self.say(tally.report("clients", len(addresses), time.perf_counter() - begin) | {"each": each})

    def keepalive(self, count: int) -> None:
        """`count` requests over one connection."""
        tally = Tally()
        begin = time.perf_counter()
        connection = self.connect()
        try:
            for _ in range(count):
                sent = time.perf_counter()
                tally.servers[self.ask(connection)] += 1
                tally.times.append(time.perf_counter() - sent)
        except (OSError, http.client.HTTPException, ValueError) as error:
            tally.errors[explain(error)] += 1
        finally:
            connection.close()
        self.say(tally.report("keepalive", count, time.perf_counter() - begin))

    def transfer(self, kind: str, size: int, seed: int) -> None:
        """One ``download`` or ``upload`` of `size` bytes; the SHA-256 of what arrived beside that of what was meant."""
        result: dict[str, Any] = {
            "event": "transfer",
            "kind": kind,
            "bytes": size,
            "server": "",
            "sha256": "",
            "error": "",
        }
        expected = digest(size, seed)
        connection = self.connect(timeout=30.0)
        begin = time.perf_counter()
        try:
            work = self._download if kind == "download" else self._upload
            result["server"], result["sha256"] = work(connection, size, seed)
        except (OSError, http.client.HTTPException, ValueError) as error:
            result["error"] = explain(error)
        finally:
            connection.close()
        seconds = time.perf_counter() - begin
        result |= {"seconds": round(seconds, 3), "expected": expected, "ok": result["sha256"] == expected}
        self.say(result)

    def _download(self, connection: http.client.HTTPConnection, size: int, seed: int) -> tuple[str, str]:
        connection.request("GET", f"/blob?bytes={size}&seed={seed}", headers={"Connection": "close"})
        answer = connection.getresponse()
        total, done = hashlib.sha256(), 0
        told = time.perf_counter()
        while piece := answer.read(1 << 16):
            total.update(piece)
            done += len(piece)
            told = self._tell(told, "download", done, size)
        if done != size:
            raise http.client.HTTPException(f"{done} bytes of {size} arrived")
        return answer.getheader("X-Server", "?"), total.hexdigest()

    def _upload(self, connection: http.client.HTTPConnection, size: int, seed: int) -> tuple[str, str]:
        def pieces() -> Iterator[bytes]:
            done, told = 0, time.perf_counter()
            for piece in blob(size, seed):
                yield piece
                done += len(piece)
                told = self._tell(told, "upload", done, size)

        headers = {"Content-Length": str(size), "Connection": "close"}
        connection.request("PUT", "/blob", body=pieces(), headers=headers)
        answer = json.loads(connection.getresponse().read())
        return str(answer["server"]), str(answer["sha256"])

    def _tell(self, told: float, phase: str, done: int, of: int) -> float:
        now = time.perf_counter()
        if now - told < 0.1 and done < of:
            return told
        self.say({"event": "progress", "phase": phase, "done": done, "of": of})
        return now


def main(argv: list[str] | None = None) -> int:
    """Run the phases that are asked for, in the order of the options here; 0 even if requests failed: the report says so."""
    parser = argparse.ArgumentParser(prog="python -m pylvs.lab.load", description="the client of a lab")
    parser.add_argument("--url", required=True)
    parser.add_argument(
        "--ports", type=int, default=0, metavar="FIRST", help="local ports from here on, each used once"
    )
    parser.add_argument("--sequential", type=int, default=0, metavar="N", help="requests, one after the other")
    parser.add_argument("--concurrent", type=int, default=0, metavar="N", help=f"requests, {WORKERS} at a time")
    parser.add_argument("--from", dest="clients", default="", metavar="A,B,…", help="one request from each address")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, metavar="SECONDS", help="of a request of --from")
    parser.add_argument("--keepalive", type=int, default=0, metavar="N", help="requests over one connection")
    parser.add_argument("--download", type=int, default=0, metavar="BYTES")
    parser.add_argument("--upload", type=int, default=0, metavar="BYTES")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    lock = threading.Lock()

    def say(document: dict[str, Any]) -> None:
        with lock:
            print(json.dumps(document), flush=True)

    client = Client(options.url, say, options.ports, options.timeout)
    if options.sequential:
        client.requests("sequential", options.sequential, 1)
    if options.concurrent:
        client.requests("concurrent", options.concurrent, WORKERS)
    if options.clients:
        client.clients(options.clients.split(","))
    if options.keepalive:
        client.keepalive(options.keepalive)
    if options.download:
        client.transfer("download", options.download, options.seed)
    if options.upload:
        client.transfer("upload", options.upload, options.seed + 1)
    say({"event": "done"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
