"""Which addresses a real server may have: the kernel's rule and the order of its refusals."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from cases.craft import host

from pylvs.model import RealServer, Refused, Service

SERVICE = Service(protocol="tcp", address="10.0.0.100", port=80)
SERVICE6 = Service(protocol="tcp", address="fd00:c::100", port=80)
GOOD = ("10.1.0.11", "127.0.0.1", "10.0.0.1", "10.0.0.0", "240.0.0.1", "fd00:5::11", "::1", "2001:db8::1", "fe80::1")
BAD = (
    "0.0.0.0", "0.1.2.3", "255.255.255.255", "224.0.0.5", "239.255.255.255", "10.0.0.255", "10.1.0.255", "::",
    "ff02::5", "fe80::5", "::ffff:10.1.0.11",
)  # fmt: skip


def fresh(directors: Any) -> Any:
    """A director with two services, on a host that has fe80::1."""
    director = directors(**host())
    links = dict(director._given["interfaces"])
    links["s"] = {**links["s"], "addresses": [*links["s"]["addresses"], "fe80::1/64"]}
    director.configure(interfaces=links)
    for service in (SERVICE, SERVICE6):
        director.add_service(service)
    return director


def server(address: str, **more: Any) -> tuple[Any, RealServer]:
    """A server and the key of the service for its family."""
    return (SERVICE6 if ":" in address else SERVICE).key, RealServer(address=address, port=80, **more)


@pytest.mark.parametrize("address", GOOD)
def test_taken(address: str, directors: Any) -> None:
    """Single hosts, also our own."""
    fresh(directors).add_server(*server(address))


@pytest.mark.parametrize("address", BAD)
def test_refused(address: str, directors: Any) -> None:
    """EINVAL, after what is wrong with the numbers."""
    director = fresh(directors)
    for more, error in (({}, errno.EINVAL), ({"lower": 2, "upper": 1}, errno.ERANGE)):
        with pytest.raises(Refused) as refused:
            director.add_server(*server(address, **more))
        assert refused.value.errno == error
    assert all(not each.servers for each in director.status())


def test_order_of_refusals(directors: Any) -> None:
    """No service before wrong numbers, those before an existing server."""
    director = fresh(directors)
    key, good = server("10.1.0.11")
    director.add_server(key, good)
    bad_numbers = server("10.1.0.11", lower=2, upper=1)[1]
    for where, what, error in (
        ((4, "tcp", "10.0.0.101", 80), bad_numbers, errno.ESRCH),
        (key, bad_numbers, errno.ERANGE),
        (key, good, errno.EEXIST),
    ):
        with pytest.raises(Refused) as refused:
            director.add_server(where, what)
        assert refused.value.errno == error


def test_ipvsadm_says_it_in_its_words(directors: Any) -> None:
    """One line, exit status 255."""
    result = fresh(directors).ipvsadm("-a -t 10.0.0.100:80 -r 224.0.0.5 -m")
    assert result.returncode == 255
    assert result.stderr == "Invalid operation.  Possibly wrong module version, address not unicast, ...\n"
