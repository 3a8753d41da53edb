"""The way to the director of this network namespace: HTTP over its abstract unix socket."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

CONTROL = "\0pylvs"


class NoDirector(Exception):
    """No director answers in this network namespace."""

    def __init__(self) -> None:
        super().__init__("no director runs in this network namespace; start one with `pylvs daemon`")


class ApiError(Exception):
    """The director refused; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Connection(http.client.HTTPConnection):
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(CONTROL)
        except (ConnectionRefusedError, FileNotFoundError):
            raise NoDirector from None


def request(method: str, path: str, body: Any = None, *, timeout: float = 60.0) -> Any:
    """Ask the director; return the decoded JSON. Raises `NoDirector` or `ApiError`."""
    connection = _Connection("pylvs", timeout=timeout)
    try:
        payload = None if body is None else json.dumps(body)
        connection.request(method, path, payload, {"Content-Type": "application/json"} if payload else {})
        response = connection.getresponse()
        text = response.read().decode()
    except (ConnectionResetError, http.client.HTTPException, TimeoutError) as error:
        raise ApiError(0, f"the director did not answer: {error}") from None
    finally:
        connection.close()
    try:
        answer = json.loads(text)
    except ValueError:
        raise ApiError(response.status, f"the director's answer is not JSON: {text[:80]!r}") from None
    if response.status >= 400:
        raise ApiError(response.status, answer.get("problem", text))
    return answer
