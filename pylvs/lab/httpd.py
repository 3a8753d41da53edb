"""The web server of a lab: ``python -m pylvs.lab.httpd --name rs1 --listen 10.1.0.11:80 …``.

``GET /`` tells who answered; ``GET /blob?bytes=N&seed=S`` sends N reproducible bytes; ``PUT /blob`` takes any body and
answers with its SHA-256. HTTP/1.1 with keep-alive, one thread for each connection; stops cleanly on SIGTERM.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import FrameType
from typing import Any
from urllib.parse import parse_qs, urlsplit

PIECE = 1 << 16
LIMIT = 1 << 32  # bytes of a blob, either way


def blob(size: int, seed: int) -> Iterator[bytes]:
    """`size` bytes that depend on `seed` alone, in pieces of at most `PIECE`."""
    source = random.Random(seed)
    while size > 0:
        piece = source.randbytes(PIECE)[:size]
        size -= len(piece)
        yield piece


def digest(size: int, seed: int) -> str:
    """SHA-256 of ``blob(size, seed)``."""
    total = hashlib.sha256()
    for piece in blob(size, seed):
        total.update(piece)
    return total.hexdigest()


class Server(ThreadingHTTPServer):
    """A threaded server that knows its name; its listen queue takes a burst of a whole lab's connections."""

    request_queue_size = 1024
    daemon_threads = True

    def __init__(self, address: tuple[str, int], name: str) -> None:
        self.name = name
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, Handler)

    def server_bind(self) -> None:
        """Bind without asking a name server who we are."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.server_address = (self.server_name, self.server_port)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """One line for a connection that broke; a traceback would tell a student nothing more."""
        print(f"{client_address[0]}:{client_address[1]}: {sys.exc_info()[1]!r}", file=sys.stderr, flush=True)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = PIECE
    timeout = 60
    server: Server

    def do_GET(self) -> None:
        """``/`` and ``/blob``."""
        target = urlsplit(self.path)
        if target.path == "/":
            local, remote = self.connection.getsockname(), self.client_address
            self._answer({"server": self.server.name, "address": local[0], "port": local[1], "client": remote[0]})
        elif target.path == "/blob":
            try:
                query = parse_qs(target.query)
                size, seed = (int(query.get(key, ["0"])[0]) for key in ("bytes", "seed"))
            except ValueError:
                size, seed = -1, 0
            if not 0 <= size <= LIMIT:
                self.send_error(400, "bytes and seed are numbers")
                return
            self.send_response(200)
            self.send_header("Content-Type", "application/octet-stream")
            self.send_header("Content-Length", str(size))
            self.send_header("X-Server", self.server.name)
            self.end_headers()
            for piece in blob(size, seed):
                self.wfile.write(piece)
        else:
            self.send_error(404)

    def do_PUT(self) -> None:
        """``/blob``."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/blob" or not length.isdigit() or int(length) > LIMIT:
            self.close_connection = True  # the body is still coming
            self.send_error(404 if self.path != "/blob" else 411)
            return
        left = int(length)
        total = hashlib.sha256()
        while left and (piece := self.rfile.read(min(left, PIECE))):
            total.update(piece)
            left -= len(piece)
        if left:
            self.close_connection = True
            return
        self._answer({"server": self.server.name, "bytes": int(length), "sha256": total.hexdigest()})

    def _answer(self, document: dict[str, Any]) -> None:
        body = json.dumps(document).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Server", self.server.name)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are counted by who sends them; errors show in their answers."""


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m pylvs.lab.httpd", description="the web server of a lab")
    parser.add_argument("--name", required=True, help="what it calls itself")
    parser.add_argument("--listen", required=True, metavar="ADDRESS:PORT", help="empty ADDRESS: every address")
    arguments = parser.parse_args(argv)
    address, _, port = arguments.listen.rpartition(":")
    try:
        server = Server((address.strip("[]"), int(port)), arguments.name)
    except (OSError, ValueError) as error:
        print(f"cannot listen on {arguments.listen}: {error}", file=sys.stderr)
        return 1

    def stop(number: int, frame: FrameType | None) -> None:
        # shutdown() waits for the loop that this very thread runs
        threading.Thread(target=server.shutdown, daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    print(f"{arguments.name}: ready on {arguments.listen}", flush=True)
    server.serve_forever(poll_interval=0.1)
    server.socket.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
