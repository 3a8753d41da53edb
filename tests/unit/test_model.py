"""The model: what is accepted, what is refused with which remedy, identities and names."""

from __future__ import annotations

import errno

import msgspec
import pytest

from pylvs.model import (
    MAX_WEIGHT,
    Config,
    Connection,
    Link,
    Mark,
    RealServer,
    Refused,
    Service,
    ServiceStatus,
    Timeouts,
    Tunnel,
    canonical,
    endpoint,
    family_of,
    service_name,
)


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("10.0.0.100", "10.0.0.100"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("fd00:c:0:0:0:0:0:100", "fd00:c::100"),
    ],
)
def test_addresses_are_canonical(written: str, kept: str) -> None:
    """Equal addresses compare equal however they were written."""
    assert canonical(written) == kept
    assert RealServer(address=written).address == canonical(written)
    assert Service(protocol="tcp", address=written, port=80).address == canonical(written)


@pytest.mark.parametrize(
    "written", ["", "10.0.0", "10.0.0.256", "10.0.0.1/24", "host.example", "fe80::1::2", "[::1]", "010.0.0.1"]
)
def test_no_addresses(written: str) -> None:
    """The message names the value and how to write it."""
    with pytest.raises(ValueError, match="is not an IPv4 or IPv6 address; write it as"):
        canonical(written)
    with pytest.raises(ValueError, match="address"):
        RealServer(address=written)
    with pytest.raises(ValueError, match="address"):
        Service(protocol="tcp", address=written, port=80)


def test_families() -> None:
    """The family follows from the address, whatever was said."""
    assert (family_of("10.0.0.1"), family_of("::1")) == (4, 6)
    assert Service(protocol="udp", address="::1", port=53).family == 6
    assert Service(protocol="udp", address="10.0.0.1", port=53, family=6).family == 4
    assert Service(protocol="fwm", fwmark=7, family=6).family == 6


def test_keys_and_names() -> None:
    """What identifies a service or a server, and how people see it."""
    four = Service(protocol="tcp", address="10.0.0.100", port=80)
    six = Service(protocol="udp", address="2001:db8::1", port=53)
    mark = Service(protocol="fwm", fwmark=7)
    assert four.key == (4, "tcp", "10.0.0.100", 80)
    assert six.key == (6, "udp", "2001:db8::1", 53)
    assert mark.key == (4, "fwm", "", 7)
    assert (four.name, six.name, mark.name) == ("TCP 10.0.0.100:80", "UDP [2001:db8::1]:53", "FWM 7")
    assert service_name((6, "fwm", "", 7)) == "FWM 7 IPv6"
    assert endpoint("10.1.0.11", 80) == "10.1.0.11:80"
    server = RealServer(address="fd00:5::11", port=8080)
    assert (server.key, server.name) == (("fd00:5::11", 8080), "[fd00:5::11]:8080")


def test_defaults() -> None:
    """ipvsadm's: wlc, weight 1, direct routing, the whole address, no persistence."""
    service = Service(protocol="tcp", address="10.0.0.100", port=80)
    assert (service.scheduler, service.persistent, service.netmask, service.one_packet) == ("wlc", 0, 32, False)
    assert Service(protocol="tcp", address="::1", port=80).netmask == 128
    assert Service(protocol="fwm", fwmark=7, family=6).netmask == 128
    server = RealServer(address="10.1.0.11")
    assert (server.method, server.weight, server.upper, server.lower, server.tunnel) == ("route", 1, 0, 0, Tunnel())
    assert Timeouts() == Timeouts(tcp=900, tcpfin=120, udp=300)


@pytest.mark.parametrize(
    ("field", "wrong", "right"),
    [
        ("port", (-1, 65536), (0, 65535)),
        ("weight", (-1, MAX_WEIGHT + 1), (0, 65536, MAX_WEIGHT)),
        ("upper", (-1, 2**32), (0, 2**32 - 1)),
        ("lower", (-1, 2**32), (0, 2**32 - 1)),
    ],
)
def test_server_ranges(field: str, wrong: tuple[int, ...], right: tuple[int, ...]) -> None:
    """Numbers out of range are refused with the range; weights go beyond what ipvsadm's manual says."""
    for value in right:
        assert getattr(RealServer(address="10.1.0.11", **{field: value}), field) == value  # type: ignore[arg-type]
    for value in wrong:
        with pytest.raises(ValueError, match=rf"{field} {value} is out of range; use \d+ to \d+"):
            RealServer(address="10.1.0.11", **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"protocol": "tcp", "address": "10.0.0.100", "port": 65536},
        {"protocol": "tcp", "address": "10.0.0.100", "port": -1},
        {"protocol": "tcp", "address": "10.0.0.100", "port": 80, "netmask": 33},
        {"protocol": "tcp", "address": "::1", "port": 80, "netmask": 129},
        {"protocol": "tcp", "address": "10.0.0.100", "port": 80, "persistent": -1},
        {"protocol": "tcp", "address": "10.0.0.100", "port": 80, "fwmark": 1},
        {"protocol": "fwm", "fwmark": 0},
        {"protocol": "fwm", "fwmark": 2**32},
        {"protocol": "fwm", "fwmark": 1, "address": "10.0.0.100"},
        {"protocol": "fwm", "fwmark": 1, "port": 80},
    ],
)
def test_services_that_cannot_be(fields: dict[str, object]) -> None:
    """Each with a message."""
    with pytest.raises(ValueError, match=r".+"):
        Service(**fields)  # type: ignore[arg-type]


def test_records_are_values() -> None:
    """Immutable, comparable, hashable, and the same after a trip through JSON."""
    service = Service(
        protocol="tcp", address="10.0.0.100", port=80, scheduler="sh", flags=("sh-port",), persistent=50, netmask=24,
        servers=(RealServer(address="10.1.0.11", port=8080, method="masq", weight=3),),
    )  # fmt: skip
    with pytest.raises(AttributeError):
        service.port = 81  # type: ignore[misc]
    assert hash(service) == hash(msgspec.structs.replace(service))
    config = Config(services=(service,), timeouts=Timeouts(udp=30), marks=(Mark(mark=7, destination="10.0.0.0/8"),))
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config
    link = Link(name="eth0", index=2, addresses=("10.0.0.1/24",))
    assert msgspec.json.decode(msgspec.json.encode(link), type=Link) == link
    status = ServiceStatus(service=service)
    assert msgspec.json.decode(msgspec.json.encode(status), type=ServiceStatus) == status


def test_unknown_fields_are_refused() -> None:
    """A misspelt word in a file or a request must not pass in silence."""
    with pytest.raises(msgspec.ValidationError, match="schedular"):
        msgspec.json.decode(b'{"protocol": "tcp", "address": "10.0.0.1", "schedular": "rr"}', type=Service)
    with pytest.raises(msgspec.ValidationError, match="protocol"):
        msgspec.json.decode(b'{"protocol": "icmp", "address": "10.0.0.1"}', type=Service)
    with pytest.raises(msgspec.ValidationError, match=r"port 70000 is out of range"):
        msgspec.json.decode(b'{"protocol": "tcp", "address": "10.0.0.1", "port": 70000}', type=Service)


def test_refusals_carry_the_kernels_errno() -> None:
    """With the system's words for it, unless better ones are given."""
    refusal = Refused(errno.EEXIST)
    assert (refusal.errno, refusal.name, str(refusal)) == (errno.EEXIST, "EEXIST", "File exists")
    assert str(Refused(errno.ENOENT, "no such scheduler")) == "no such scheduler"
    assert Refused(99999).name == "99999"


def test_connection_defaults() -> None:
    """An ordinary entry."""
    entry = Connection(
        protocol="TCP", state="ESTABLISHED", expires=900.0, client="198.18.1.7", client_port=40007, virtual="10.0.0.100",
        virtual_port=80, dest="10.1.0.11", dest_port=8080,
    )  # fmt: skip
    assert (entry.method, entry.template, entry.origin, entry.packets) == ("masq", False, "local", 0)
