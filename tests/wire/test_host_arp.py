"""Probing for an address, and the two pictures of a host, in namespaces."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator

import pytest
from hostnet import HostNet

from pylvs.host import addresses, doctor
from pylvs.host.arp import gratuitous, probe

pytestmark = pytest.mark.root

OTHER = "02:00:00:00:00:02"


@pytest.fixture(scope="module")
def net() -> Iterator[HostNet]:
    with HostNet("d", "r") as net:
        net.veth("d", "eth0", "r", "up0")
        net.ip(
            "d", "link set eth0 address 02:00:00:00:00:01; addr add 10.0.0.1/24 dev eth0; addr add fd00::1/64 dev eth0"
        )
        net.ip("r", f"link set up0 address {OTHER}; addr add 10.0.0.2/24 dev up0; addr add fd00::2/64 dev up0")
        yield net


@pytest.mark.parametrize("address", ["10.0.0.2", "fd00::2"])
def test_a_foreign_owner_is_found_at_once(net: HostNet, address: str) -> None:
    descriptors = set(os.listdir("/proc/self/fd"))
    with net.inside("d"):
        began = time.monotonic()
        assert probe(address, "eth0", wait=20.0, probes=10) == OTHER
        assert time.monotonic() - began < 10.0
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert "10.0.0.1 " not in net.ip("r", "neigh show"), "the question taught the other host nothing"


@pytest.mark.parametrize("address", ["10.0.0.77", "fd00::77"])
def test_nobody_answers_for_a_free_address(net: HostNet, address: str) -> None:
    with net.inside("d"):
        began = time.monotonic()
        assert probe(address, "eth0") is None
        assert 0.25 < time.monotonic() - began < 10.0


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::1"])
def test_our_own_other_interface_does_not_count(net: HostNet, address: str) -> None:
    """Both ends of a cable in one namespace: eth2 asks, eth3 answers."""
    net.ip("d", "link add eth2 type veth peer name eth3; link set eth2 up; link set eth3 up")
    try:
        with net.inside("d"):
            assert probe(address, "eth2", wait=0.2) is None
    finally:
        net.ip("d", "link del eth2")


def test_absent_and_downed_links_are_errors(net: HostNet) -> None:
    net.ip("d", "link add eth4 type veth peer name eth5")
    try:
        with net.inside("d"):
            with pytest.raises(OSError):
                probe("10.0.0.2", "eth9")
            with pytest.raises(OSError):
                probe("10.0.0.2", "eth4")
    finally:
        net.ip("d", "link del eth4")


def test_an_announcement_is_believed(net: HostNet) -> None:
    """The neighbour's kernel corrects what it has cached for a VIP that moves to us."""
    for vip in ("10.0.0.100", "fd00::100"):
        net.ip("r", f"neigh replace {vip} lladdr 02:00:00:00:00:99 dev up0 nud stale")
        with net.inside("d"), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            for frame in gratuitous(vip, "02:00:00:00:00:01"):
                raw.send(frame)
        assert "02:00:00:00:00:01" in net.ip("r", f"neigh show {vip}")


def test_netifaces_and_netlink_draw_the_same_picture(net: HostNet) -> None:
    pytest.importorskip("netifaces")
    net.ip("d", "route add default via 10.0.0.2; -6 route add default via fd00::2")
    net.ip(
        "d", "addr add 10.9.0.0/24 dev lo; addr add fd09::1/64 dev lo; addr add 10.0.0.50/24 dev eth0 label eth0:vip"
    )
    net.ip("d", "addr add 10.7.0.1 peer 10.7.0.2/32 dev eth0")
    with net.inside("d"):
        drawn = addresses.from_netifaces()
        assert drawn == addresses.from_netlink() == addresses.snapshot()
    assert drawn.gateway4 == addresses.Gateway("10.0.0.2", "eth0")
    assert drawn.gateway6 == addresses.Gateway("fd00::2", "eth0")
    eth0 = next(interface for interface in drawn.interfaces if interface.name == "eth0")
    assert eth0.mac == "02:00:00:00:00:01"
    assert {"10.0.0.1/24", "10.0.0.50/24", "10.7.0.1/32", "fd00::1/64"} <= set(eth0.addresses)


def test_the_doctor_of_a_working_host_finds_no_blocker(net: HostNet) -> None:
    with net.inside("d"):
        found = {check.name: check for check in doctor.checks()}
    assert not doctor.blocked(list(found.values()))
    assert found["guard"].level == "ok"
    assert "eth0" in found["interfaces"].found


def test_the_doctor_without_root(net: HostNet) -> None:
    code = (
        "import os; from pylvs.host import doctor; os.setuid(65534)\n"
        "print({check.name: check.level for check in doctor.checks()}, flush=True)"
    )
    first = net.python("d", code).first  # type: ignore[attr-defined]
    assert "'capabilities': 'blocker'" in first and "'packet socket': 'blocker'" in first and "'guard': 'warn'" in first
