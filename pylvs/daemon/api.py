"""The control API: HTTP and JSON on the abstract unix socket ``@pylvs``, which exists once per network namespace.

Peer credentials decide (SO_PEERCRED): root and the daemon's own user may ask; everybody else is refused. Errors have one
shape, ``{"problem": …}``.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

if TYPE_CHECKING:
    from pylvs.daemon.main import Daemon

log = logging.getLogger(__name__)

CONTROL = "\0pylvs"
MAX_BODY = 16 << 20

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class AlreadyRunning(Exception):
    """Another director has this namespace's control socket."""


def listen() -> socket.socket:
    """Take the namespace's control socket. Raises `AlreadyRunning`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.bind(CONTROL)
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AlreadyRunning(
                "a director already runs in this network namespace; stop it first, or use another namespace"
            ) from None
        raise
    sock.setblocking(False)
    return sock


class IpvsadmRequest(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /v1/ipvsadm."""

    argv: list[str]
    stdin: str | None = None


def application(daemon: Daemon) -> web.Application:
    """The routes."""

    async def ipvsadm(request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=IpvsadmRequest)
        result = await daemon.change(lambda director: director.ipvsadm(body.argv, body.stdin))
        return _json({"stdout": result.stdout, "stderr": result.stderr, "returncode": result.returncode})

    async def services(request: web.Request) -> web.Response:
        return _json(await daemon.ask(lambda director: director.status()))

    async def connections(request: web.Request) -> web.Response:
        return _json(await daemon.ask(lambda director: director.connections()))

    async def counters(request: web.Request) -> web.Response:
        return _json(await daemon.ask(lambda director: director.counters()))

    async def status(request: web.Request) -> web.Response:
        return _json(await daemon.ask(lambda director: daemon.describe()))

    app = web.Application(middlewares=[_guard_errors], client_max_size=MAX_BODY)
    app.add_routes(
        [
            web.post("/v1/ipvsadm", ipvsadm),
            web.get("/v1/services", services),
            web.get("/v1/connections", connections),
            web.get("/v1/counters", counters),
            web.get("/v1/status", status),
        ]
    )
    return app


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


def _peer(request: web.Request) -> int:
    """User id of the process at the other end; -1 if the kernel does not say."""
    sock = request.transport.get_extra_info("socket") if request.transport else None
    if sock is None:
        return -1
    _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


@web.middleware
async def _guard_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    if _peer(request) not in (0, os.geteuid()):
        return _json({"problem": "only root and the daemon's user may do this; try sudo"}, 403)
    try:
        return await handler(request)
    except (msgspec.DecodeError, msgspec.EncodeError, ValueError) as error:
        return _json({"problem": str(error)}, 400)
    except web.HTTPException as error:
        return _json({"problem": f"{request.method} {request.path}: {error.reason}"}, error.status)
    except Exception as error:
        log.error("%s %s failed: %r", request.method, request.path, error)
        return _json({"problem": f"{request.method} {request.path} failed in the director: {error!r}"}, 500)
