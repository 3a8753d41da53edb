"""A few nftables messages over netlink: tables, chains, sets and rules, changed in one transaction.

Only what the guard needs, in the order of the kernel's header (include/uapi/linux/netfilter/nf_tables.h). A message is
its attributes; an attribute is length, type and value, padded to four bytes; numbers are big-endian.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterable

from pylvs.host.netlink import (
    NETLINK_NETFILTER,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE,
    open_netlink,
)

NFPROTO_NETDEV = 5
SUBSYSTEM = 10
BATCH_BEGIN, BATCH_END = 16, 17
NEWTABLE, GETTABLE, DELTABLE = 0, 1, 2
NEWCHAIN, GETCHAIN, DELCHAIN = 3, 4, 5
NEWRULE = 6
NEWSET = 9
NEWSETELEM, DELSETELEM = 12, 14

NLA_F_NESTED = 0x8000
NLM_F_EXCL = 0x200
NLM_F_APPEND = 0x800
SO_SNDBUFFORCE = 32
TABLE_F_OWNER = 0x2
REG_VERDICT = 0
REG32 = 8  # the first of sixteen registers of four bytes
META_L4PROTO = 16
LINK, NETWORK, TRANSPORT = 0, 1, 2  # what a payload offset counts from
EQ, NEQ = 0, 1
DROP = 0
GOTO, RETURN = -4 & 0xFFFFFFFF, -5 & 0xFFFFFFFF
SET_INTERVAL = 0x4
INTERVAL_END = 0x1
PER_MESSAGE = 1000  # set elements in one message; a nested attribute holds 64 KiB


class NftablesError(OSError):
    """A transaction that the kernel refused as a whole; `what` names the part that it refused."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(code, f"{what}: {os.strerror(code)}")
        self.what = what


# ---------------------------------------------------------------------------------------------------- attributes


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute with its padding."""
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def nest(kind: int, *inner: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(inner))


def text(kind: int, value: str) -> bytes:
    """A zero-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    """A big-endian number of 32 bits."""
    return attribute(kind, struct.pack(">I", value))


def value_of(kind: int, data: bytes) -> bytes:
    """NFTA_DATA_VALUE inside an attribute."""
    return nest(kind, attribute(1, data))


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data` by type."""
    found: dict[int, bytes] = {}
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


# --------------------------------------------------------------------------------------------------- expressions


def expression(name: str, *inner: bytes) -> bytes:
    """One step of a rule."""
    return nest(1, text(1, name), nest(2, *inner))


def meta(key: int, register: int) -> bytes:
    """Load a property of the packet."""
    return expression("meta", number(1, register), number(2, key))


def payload(base: int, offset: int, length: int, register: int) -> bytes:
    """Load bytes of the packet; the rule does not match if they are not there."""
    return expression("payload", number(1, register), number(2, base), number(3, offset), number(4, length))


def compare(register: int, operator: int, data: bytes) -> bytes:
    """Go on only if the register holds (EQ) or does not hold (NEQ) `data`."""
    return expression("cmp", number(1, register), number(2, operator), value_of(3, data))


def lookup(name: str, register: int, *, absent: bool = False) -> bytes:
    """Go on only if the registers from this one are an element of the set (or, with `absent`, are not)."""
    return expression("lookup", text(1, name), number(2, register), number(5, int(absent)))


def fib_daddr_type(register: int) -> bytes:
    """Load what kind of address the destination is to this host (RTN_LOCAL, RTN_UNICAST …), in host byte order."""
    return expression("fib", number(1, register), number(2, 3), number(3, 1 << 1))


def counter() -> bytes:
    """Count packets and bytes; ``nft list table netdev …`` shows them."""
    return expression("counter")


def verdict(code: int, chain: str = "") -> bytes:
    """DROP, or GOTO a chain."""
    inner = number(1, code) + (text(2, chain) if chain else b"")
    return expression("immediate", number(1, REG_VERDICT), nest(2, nest(2, inner)))


# ------------------------------------------------------------------------------------------------------- changes


class Batch:
    """Changes to one table of family netdev, applied together or not at all."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.changes: list[tuple[int, int, bytes, str]] = []  # message, flags, attributes, what it is

    def _add(self, kind: int, flags: int, what: str, *inner: bytes) -> None:
        self.changes.append((kind, flags, text(1, self.table) + b"".join(inner), what))

    def add_table(self, *, owned: bool) -> None:
        """`owned`: the kernel removes the table when our socket closes, and lets nobody else change it."""
        self._add(NEWTABLE, NLM_F_CREATE | NLM_F_EXCL, "table", number(2, TABLE_F_OWNER if owned else 0))

    def delete_table(self) -> None:
        """With everything in it."""
        self._add(DELTABLE, 0, "table")

    def add_chain(self, name: str) -> None:
        """A chain that rules go to."""
        self._add(NEWCHAIN, NLM_F_CREATE, f"chain {name}", text(3, name))

    def add_ingress(self, name: str, interface: str, priority: int) -> None:
        """A chain that every packet enters that arrives on `interface`; what it does not drop is accepted."""
        hook = nest(4, number(1, 0), number(2, priority & 0xFFFFFFFF), text(3, interface))
        self._add(
            NEWCHAIN,
            NLM_F_CREATE,
            f"hook on interface {interface}",
            text(3, name),
            hook,
            number(5, 1),
            text(7, "filter"),
        )

    def delete_chain(self, name: str) -> None:
        """With its rules."""
        self._add(DELCHAIN, 0, f"chain {name}", text(3, name))

    def add_rule(self, chain: str, *steps: bytes) -> None:
        """A rule at the end of `chain`."""
        self._add(NEWRULE, NLM_F_CREATE | NLM_F_APPEND, f"rule of chain {chain}", text(2, chain), nest(4, *steps))

    def add_set(self, name: str, key_type: int, key_length: int, *, ranges: bool = False) -> None:
        """A set of keys, or of ranges of keys; `key_type` is only for the eyes of ``nft``."""
        identity = sum(change[0] == NEWSET for change in self.changes) + 1
        inner = (
            text(2, name),
            number(3, SET_INTERVAL if ranges else 0),
            number(4, key_type),
            number(5, key_length),
            number(10, identity),
        )
        self._add(NEWSET, NLM_F_CREATE, f"set {name}", *inner)

    def add_elements(self, name: str, keys: Iterable[bytes]) -> None:
        """Add keys to a set."""
        self._elements(NEWSETELEM, NLM_F_CREATE, name, keys)

    def delete_elements(self, name: str, keys: Iterable[bytes]) -> None:
        """Remove keys from a set."""
        self._elements(DELSETELEM, 0, name, keys)

    def replace_ranges(self, name: str, ranges: Iterable[tuple[bytes, bytes]]) -> None:
        """Make `ranges` the whole content of a set: each from its first key to before its second, none overlapping."""
        self._add(DELSETELEM, 0, f"elements of set {name}", text(2, name))
        edges = [(edge, end) for pair in ranges for edge, end in zip(pair, (0, INTERVAL_END), strict=True)]
        for start in range(0, len(edges), PER_MESSAGE):
            elements = (nest(1, value_of(1, key), number(3, end)) for key, end in edges[start : start + PER_MESSAGE])
            self._add(NEWSETELEM, NLM_F_CREATE, f"elements of set {name}", text(2, name), nest(3, *elements))

    def _elements(self, kind: int, flags: int, name: str, keys: Iterable[bytes]) -> None:
        rest = list(keys)
        for start in range(0, len(rest), PER_MESSAGE):
            elements = (nest(1, value_of(1, key)) for key in rest[start : start + PER_MESSAGE])
            self._add(kind, flags, f"elements of set {name}", text(2, name), nest(3, *elements))


class Nftables:
    """A socket to nf_tables. Owned tables live as long as it is open."""

    def __init__(self) -> None:
        self._socket = open_netlink(NETLINK_NETFILTER, buffer=1 << 20)
        self._sequence = itertools.count(1)

    @property
    def port(self) -> int:
        """The netlink port by which the kernel knows the owner."""
        return int(self._socket.getsockname()[0])

    def commit(self, batch: Batch) -> None:
        """Apply `batch`. Raises `NftablesError`; nothing is changed then."""
        self._transact(batch, finish=True)

    def check(self, batch: Batch) -> None:
        """Have the kernel examine `batch` as `commit` would, and forget it."""
        self._transact(batch, finish=False)

    def _transact(self, batch: Batch, *, finish: bool) -> None:
        if not batch.changes:
            return
        whats: dict[int, str] = {}
        parts = [self._message(BATCH_BEGIN, 0, family=0, resource=SUBSYSTEM, whats=whats, what="transaction")]
        for position, (kind, flags, body, what) in enumerate(batch.changes, start=1):
            last = NLM_F_ACK if position == len(batch.changes) else 0
            parts.append(self._message(SUBSYSTEM << 8 | kind, flags | last, body, whats=whats, what=what))
        final = max(whats)
        if finish:
            parts.append(self._message(BATCH_END, 0, family=0, resource=SUBSYSTEM, whats=whats, what="transaction"))
        self._send(b"".join(parts))
        answered = False
        for sequence, code in self._answers():
            if code:
                self._drain()
                raise NftablesError(code, whats.get(sequence, "transaction"))
            answered = answered or sequence == final
        if not answered:
            raise NftablesError(errno.ENOBUFS, "transaction without answer")

    def _message(
        self,
        kind: int,
        flags: int,
        body: bytes = b"",
        *,
        family: int = NFPROTO_NETDEV,
        resource: int = 0,
        whats: dict[int, str] | None = None,
        what: str = "",
    ) -> bytes:
        sequence = next(self._sequence) & 0xFFFFFFFF
        if whats is not None:
            whats[sequence] = what
        header = struct.pack("=IHHII", 20 + len(body), kind, NLM_F_REQUEST | flags, sequence, 0)
        return header + struct.pack(">BBH", family, 0, resource) + body

    def _send(self, data: bytes) -> None:
        if len(data) > 64 << 10:
            # a transaction is one datagram; the queue is counted with the kernel's own overhead
            size = 2 * len(data) + 4096
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, size)
            except OSError:  # inside a user namespace: as much as the system allows, EMSGSIZE beyond
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        self._socket.send(data)

    def _answers(self) -> Iterable[tuple[int, int]]:
        """(sequence, errno) of every answer; the kernel has answered before `send` returns."""
        while True:
            try:
                data = self._socket.recv(RECEIVE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            for kind, sequence, body in _messages(data):
                if kind == NLMSG_ERROR:
                    yield sequence, -struct.unpack_from("=i", body)[0]

    def _drain(self) -> None:
        for _ in self._answers():
            pass

    def tables(self) -> dict[str, int]:
        """Tables of family netdev: name and owner's netlink port, 0 if nobody owns it."""
        found: dict[str, int] = {}
        for body in self._dump(GETTABLE):
            table = attributes(body)
            found[_string(table[1])] = struct.unpack(">I", table[7])[0] if 7 in table else 0
        return found

    def chains(self, table: str) -> set[str]:
        """Names of the chains of one table."""
        found = (attributes(body) for body in self._dump(GETCHAIN))
        return {_string(chain[3]) for chain in found if _string(chain[1]) == table}

    def _dump(self, kind: int) -> Iterable[bytes]:
        self._socket.send(self._message(SUBSYSTEM << 8 | kind, NLM_F_DUMP))
        while True:
            for answer, _, body in _messages(self._socket.recv(RECEIVE)):
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    raise NftablesError(-struct.unpack_from("=i", body)[0], "reading")
                yield body[4:]

    def close(self) -> None:
        """Close the socket, and with it remove the owned tables."""
        self._socket.close()


def _messages(data: bytes) -> Iterable[tuple[int, int, bytes]]:
    while len(data) >= 16:
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
        if length < 16:
            return
        yield kind, sequence, data[16:length]
        data = data[(length + 3) & ~3 :]


def _string(value: bytes) -> str:
    return value.rstrip(b"\0").decode()
