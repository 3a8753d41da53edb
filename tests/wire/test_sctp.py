"""SCTP on the wire: checksums that were left to the card, and what `pylvs show` tells of the association."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hostnet import HostNet
from livedirector import CIP, RIP, ROOT, VIP, Daemon, Tap, mac, three, until
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

pytestmark = pytest.mark.root

SOL_PACKET, PACKET_VNET_HDR = 263, 15
INIT = struct.pack("!BBH", 1, 0, 20) + bytes(range(16))


@pytest.fixture(scope="module")
def net() -> Iterator[HostNet]:
    with three() as net:
        yield net


@pytest.fixture(scope="module")
def daemon(net: HostNet) -> Iterator[Daemon]:
    daemon = Daemon(net, "d")
    yield daemon
    daemon.accounted()
    assert daemon.stop() == 0, daemon.said


def offloaded(net: HostNet, sport: int, vport: int) -> bytes:
    """A client's INIT whose checksum the card is asked for; what is in its place is wrong."""
    packet = (
        Ether(src=mac(net, "c", "c0"), dst=mac(net, "d", "d0"))
        / IP(src=CIP[4], dst=VIP[4])
        / SCTP(sport=sport, dport=vport, chksum=0x01020304)
        / Raw(INIT)
    )
    return struct.pack("<BBHHHH", 1, 0, 0, 0, 34, 8) + bytes(packet)


@pytest.mark.parametrize(("flag", "rport"), [("-m", 2906), ("-m", 2905), ("-g", 2905), ("-i", 2905)])
def test_unfinished_checksums(flag: str, rport: int, net: HostNet, daemon: Daemon) -> None:
    """Whatever the method, what leaves is whole: no card between here and the server finishes it."""
    sport = {"-m": rport, "-g": 4001, "-i": 4002}[flag]
    daemon.admin(
        "-C", f"-A --sctp-service {VIP[4]}:2905 -s rr", f"-a --sctp-service {VIP[4]}:2905 -r {RIP[4]}:{rport} {flag}"
    )
    got: list[SCTP] = []
    with net.inside("c"):
        client = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        client.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        client.bind(("c0", 0))
    with client, Tap(net, "s", "s0") as server:

        def arrived() -> bool:
            client.send(offloaded(net, sport, 2905))
            got.extend(each[SCTP] for each in server.packets() if SCTP in each)
            return bool(got)

        until(arrived, "the INIT reaches the server")
    for each in got:
        assert (each.sport, each.dport) == (sport, rport)
        right = each.copy()
        del right.chksum
        assert SCTP(bytes(right)).chksum == each.chksum


def test_show(net: HostNet, daemon: Daemon) -> None:
    """The kernel's texts from a running director."""
    show = ["ip", "netns", "exec", net.names["d"], sys.executable, "-m", "pylvs", "show", "--proc"]
    text = subprocess.run([*show, "ip_vs"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert text.startswith("IP Virtual Server version 1.2.1 (size=4096)\n")
    assert "\nSCTP  " in text
    text = subprocess.run([*show, "ip_vs_conn"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert text.startswith("Pro FromIP ")
    refused = subprocess.run([*show, "nothing"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert refused.returncode == 2
