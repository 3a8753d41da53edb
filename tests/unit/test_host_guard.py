"""What the guard tells the kernel, byte for byte where it matters."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from pylvs.host import nftables as nft
from pylvs.host.guard import FAMILIES, _construction, _element, _explained, _local_ranges, _sets
from pylvs.host.nftables import Batch, NftablesError, attribute, attributes, nest, number, text
from pylvs.model import Link


def test_attributes_are_padded_and_nested() -> None:
    assert attribute(3, b"abc") == b"\x07\x00\x03\x00abc\x00"
    assert text(1, "pylvs") == attribute(1, b"pylvs\0")
    assert number(2, 5) == struct.pack("=HH", 8, 2) + b"\0\0\0\x05"
    assert nest(4, number(1, 1)) == struct.pack("=HH", 12, 4 | 0x8000) + number(1, 1)
    assert attributes(text(1, "a") + number(2, 5)) == {1: b"a\0", 2: b"\0\0\0\x05"}
    assert attributes(b"\x02\x00\x01\x00") == {}, "a length that would never end"


@pytest.mark.parametrize(
    ("endpoint", "name", "key"),
    [
        (("tcp", "10.9.9.9", 80), "services4", "06000000 0a090909 00500000"),
        (("udp", "10.9.9.9", 0), "services4_any", "11000000 0a090909"),
        (("sctp", "fd00::9", 7), "services6", "84000000 fd000000000000000000000000000009 00070000"),
        (("tcp", "fd00::9", 0), "services6_any", "06000000 fd000000000000000000000000000009"),
    ],
)
def test_keys_are_protocol_address_and_port_in_registers(endpoint: tuple[str, str, int], name: str, key: str) -> None:
    assert _element("services", endpoint) == (name, bytes.fromhex(key))
    assert _sets()[name][1] == len(bytes.fromhex(key))


def test_wrong_endpoints_are_refused() -> None:
    with pytest.raises(KeyError):
        _element("services", ("icmp", "10.0.0.1", 1))
    with pytest.raises(ValueError):
        _element("services", ("tcp", "10.0.0", 1))


def test_many_elements_are_split_because_an_attribute_has_64_kib() -> None:
    batch = Batch("t")
    batch.add_elements("s", [number.to_bytes(24, "big") for number in range(2500)])
    assert len(batch.changes) == 3
    assert all(len(body) < 65536 for _, _, body, _ in batch.changes)
    empty = Batch("t")
    empty.add_elements("s", [])
    empty.delete_elements("s", [])
    assert empty.changes == []


def test_construction_begins_with_the_table_and_names_its_parts() -> None:
    batch = _construction(stale=True, owned=True, fib=True)
    assert [change[0] for change in batch.changes[:2]] == [nft.DELTABLE, nft.NEWTABLE]
    assert sum(change[0] == nft.NEWSET for change in batch.changes) == 10
    assert {change[3] for change in batch.changes if change[0] == nft.NEWCHAIN} == {
        f"chain {name}{family.version}" for name in ("ip", "icmp", "error") for family in FAMILIES
    }
    plain = _construction(stale=False, owned=False, fib=False)
    assert plain.changes[0][0] == nft.NEWTABLE


@pytest.mark.parametrize(
    ("code", "what", "says"),
    [
        (errno.EPERM, "table", "CAP_NET_ADMIN"),
        (errno.EOPNOTSUPP, "transaction", "CONFIG_NF_TABLES_NETDEV"),
        (errno.ENOENT, "rule of chain ip4", "kernel modules"),
        (errno.ENOENT, "hook on interface eth0", "ip link"),
        (errno.ENOENT, "elements of set services4", "restart pylvs"),
        (errno.EMSGSIZE, "", "wmem_max"),
        (errno.EBUSY, "chain ip4", "nft list ruleset"),
    ],
)
def test_errors_say_what_to_do(code: int, what: str, says: str) -> None:
    assert says in str(_explained(NftablesError(code, what)))


def test_what_is_local_where_the_kernel_cannot_tell() -> None:
    links = [
        Link(name="lo", index=1, loopback=True, addresses=("127.0.0.1/8", "10.9.0.0/24", "::1/128")),
        Link(name="eth0", index=2, addresses=("10.0.0.1/24", "10.7.0.1/32", "fd00::1/64")),
    ]
    ranges = _local_ranges(links)
    four = {(socket.inet_ntoa(a), socket.inet_ntoa(b)) for a, b in ranges[4]}
    assert four == {
        ("10.0.0.1", "10.0.0.2"),
        ("10.0.0.255", "10.0.1.0"),
        ("10.7.0.1", "10.7.0.2"),
        ("10.9.0.0", "10.9.1.0"),
        ("127.0.0.0", "128.0.0.0"),
        ("224.0.0.0", "240.0.0.0"),
        ("255.255.255.255", "0.0.0.0"),
    }
    six = {tuple(socket.inet_ntop(socket.AF_INET6, edge) for edge in pair) for pair in ranges[6]}
    assert six == {("::1", "::2"), ("fd00::1", "fd00::2"), ("ff00::", "::")}
