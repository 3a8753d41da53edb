"""Netlink sockets: one question and its answer, a whole table, or events as they happen.

pyroute2 gives the messages (encoding, decoding); the socket is ours, because the daemon needs one that belongs to no
event loop of its own, reports a lost event (ENOBUFS) as such, and leaves neither thread nor descriptor when closed.
The kernel handles a request inside the caller's `send`, so nothing here waits for anybody else.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import socket
from collections.abc import Iterable, Iterator
from typing import Any

from pyroute2.netlink.rtnl.marshal import MarshalRtnl

NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
SOL_NETLINK = 270
NETLINK_ADD_MEMBERSHIP = 1
NETLINK_GET_STRICT_CHK = 12
SO_RCVBUFFORCE = 33

NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_REPLACE = 0x100
NLM_F_DUMP = 0x300
NLM_F_CREATE = 0x400
NLMSG_ERROR = 2
NLMSG_DONE = 3

RECEIVE = 1 << 17  # a dump comes in parts of up to 32 KiB; an event is far smaller
TURN = 1024  # announcements read in one go
PATIENCE = 8  # dumps that a change interrupted before we take what we have


class Changed(Exception):
    """A table changed while it was being read, again and again."""


def open_netlink(protocol: int, groups: Iterable[int] = (), *, buffer: int = 0) -> socket.socket:
    """A netlink socket of the current network namespace, member of multicast `groups`.

    `buffer` asks for that many bytes of receive queue, beyond the system's limit if we may.
    """
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        if buffer:
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, buffer)
            except OSError:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.bind((0, 0))
        for group in groups:
            sock.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    except OSError:
        sock.close()
        raise
    return sock


class RouteSocket:
    """Requests to the kernel's routing tables: links, addresses, routes, neighbours."""

    def __init__(self) -> None:
        self._socket = open_netlink(NETLINK_ROUTE)
        # older kernels do not filter dumps; every reader filters again
        with contextlib.suppress(OSError):
            self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._parse = MarshalRtnl().parse
        self._sequence = itertools.count(1)

    def dump(self, kind: type, type_: int, attributes: list[Any] | None = None, **fields: int) -> list[Any]:
        """All messages of one table; `kind` is pyroute2's message class, `type_` the RTM_GET… number.

        Raises `Changed` if the table never held still, `OSError` as the kernel answers (an absent table: empty list).
        """
        for _ in range(PATIENCE):
            messages, whole = self._dump(kind, type_, attributes or [], fields)
            if whole:
                return messages
        raise Changed(f"the kernel's table changed during {PATIENCE} readings in a row")

    def _dump(self, kind: type, type_: int, attributes: list[Any], fields: dict[str, int]) -> tuple[list[Any], bool]:
        sequence = self._send(kind, type_, NLM_F_REQUEST | NLM_F_DUMP, attributes, fields)
        found: list[Any] = []
        whole = True
        while True:
            for message in self._receive(sequence):
                header = message["header"]
                whole = whole and not header["flags"] & NLM_F_DUMP_INTR
                if header["type"] == NLMSG_DONE:
                    return found, whole
                if header["type"] == NLMSG_ERROR:
                    code = abs(int(message["error"]))
                    if code in (errno.ENOENT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                        return [], True  # no such routing table, or a kernel without IPv6
                    raise OSError(code, os.strerror(code))
                found.append(message)

    def request(self, kind: type, type_: int, how: int, attributes: list[Any], **fields: int) -> int:
        """Ask for a change; `how` is NLM_F_CREATE, NLM_F_REPLACE …; return the kernel's errno, 0 if it was done."""
        sequence = self._send(kind, type_, NLM_F_REQUEST | NLM_F_ACK | how, attributes, fields)
        while True:
            for message in self._receive(sequence):
                if message["header"]["type"] == NLMSG_ERROR:
                    return abs(int(message["error"]))

    def _send(self, kind: type, type_: int, flags: int, attributes: list[Any], fields: dict[str, int]) -> int:
        sequence = next(self._sequence) & 0xFFFFFFFF
        message = kind()
        message["header"] = {"type": type_, "flags": flags, "sequence_number": sequence, "pid": 0}
        for name, value in fields.items():
            message[name] = value
        message["attrs"] = attributes
        message.encode()
        self._socket.send(message.data)
        return sequence

    def _receive(self, sequence: int) -> Iterator[Any]:
        for message in self._parse(self._socket.recv(RECEIVE)):
            if message["header"]["sequence_number"] == sequence:
                yield message

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._socket.close()


class RouteEvents:
    """The kernel's announcements of changes, in order, on a socket that never blocks."""

    def __init__(self, groups: Iterable[int], *, buffer: int = 4 << 20) -> None:
        self._socket = open_netlink(NETLINK_ROUTE, groups, buffer=buffer)
        self._socket.setblocking(False)
        self._parse = MarshalRtnl().parse

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def read(self) -> tuple[list[Any], bool]:
        """What was announced so far, and whether announcements were lost (the queue overflowed).

        A flood is read in turns: the descriptor stays readable until all is read.
        """
        found: list[Any] = []
        lost = False
        for _ in range(TURN):
            try:
                data = self._socket.recv(RECEIVE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                lost = True
                continue
            found.extend(self._parse(data))
        return found, lost

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._socket.close()
