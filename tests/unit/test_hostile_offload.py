"""Offload metadata that lies, where a tunnel would have to cut frames by it; and what else once led out of bounds."""

from __future__ import annotations

import signal
import time

import pytest
from cases.craft import Kind, from_router
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from unit.test_worker import TUN, at_work, opened

from pylvs import Director
from pylvs.model import Host, Link, Service, Timeouts
from pylvs.ports.memory import Offload
from pylvs.worker import Worker

NEEDS_CSUM, TCP4, TCP6 = 1, 1, 4


@pytest.mark.parametrize("size", [0, 1, 1400])
def test_an_error_is_no_super_frame(size: int) -> None:
    """An ICMP error about a tunnel's flow that says it were a TCP super-frame is dropped by name, whatever its size."""
    quoted = bytes(IP(src=TUN.plan.vip, dst=TUN.plan.client) / TCP(sport=TUN.vport, dport=TUN.sport, flags="SA"))
    error = IP(src=TUN.plan.client, dst=TUN.plan.vip) / ICMP(type=3, code=3) / Raw(quoted + bytes(60000))
    with at_work(*TUN.commands()) as setting:
        opened(setting, TUN)
        lie = Offload(flags=NEEDS_CSUM, gso_type=TCP4, hdr_len=54, gso_size=size, csum_start=34, csum_offset=16)
        for _ in range(20):
            setting.ports["c"].put([from_router(error)], lie)
        assert setting.settle(21)["drops"] == {"bad_offload": 20}


def test_headers_larger_than_their_segments() -> None:
    """Segments of 50 bytes behind 1.3 KB of extension headers would fill the arena many times over."""
    kind = Kind("tun", 6, "tcp")
    head = bytes([6, 159]) + b"\x01\x04\x00\x00\x00\x00" * 213  # destination options, all padding
    tcp = bytes(TCP(sport=kind.sport, dport=kind.vport, flags="S")) + bytes(25000)
    whole = IPv6(src=kind.plan.client, dst=kind.plan.vip, nh=60) / Raw(head + tcp)
    frame = from_router(whole)
    start = 14 + 40 + 1280
    lie = Offload(
        flags=NEEDS_CSUM, gso_type=TCP6, hdr_len=start + 20, gso_size=50, csum_start=start, csum_offset=16
    )
    with at_work(*kind.commands()) as setting:
        setting.ports["c"].put([frame] * 64, lie)
        assert setting.settle(64)["drops"] == {"bad_offload": 64}


def test_a_signal_does_not_hurry_a_command() -> None:
    """Signals interrupt the wait for the worker's answer; the answer is still waited for."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    director = Director(clock=time.monotonic, seed=1)
    worker = Worker(director.cores[0])
    worker.start()
    try:
        for n in range(1000):
            director.settings["sloppy_tcp"] = n % 2
            assert director.connections() == []
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        worker.stop()


def test_numbers_of_interfaces_are_used_again() -> None:
    """Interfaces that come and go by the hundred, as containers' do, leave room for the next."""
    director = Director(seed=1)
    for n in range(600):
        director.configure_host(Host(links=(Link(name="eth0", index=1), Link(name=f"veth{n}", index=n + 2))))
        assert director.link_id("eth0") == 0
        assert director.link_id(f"veth{n}") == 1


def test_more_interfaces_than_numbers() -> None:
    """The surplus is left alone; the view of the host is taken all the same."""
    director = Director(seed=1)
    director.configure_host(Host(links=tuple(Link(name=f"veth{n}", index=n + 1) for n in range(300))))
    assert director.link_id("veth0") == 0
    with pytest.raises(ValueError, match="no interface 'veth299'"):
        director.link_id("veth299")


def test_a_restore_is_one_snapshot() -> None:
    """Many rules do not cost a compilation each; what they say is the same as one by one."""
    rules = []
    for n in range(400):
        vip = f"10.9.{n // 200}.{n % 200 + 1}:80"
        rules += [f"-A -t {vip} -s wrr", f"-a -t {vip} -r 10.1.0.11:80 -m -w 3", f"-a -t {vip} -r 10.1.0.12:80 -m -w 1"]
    director = Director(seed=1)
    generation = director._generation
    assert director.ipvsadm("-R", stdin="\n".join(rules) + "\n").returncode == 0
    assert director._generation == generation + 1
    one_by_one = Director(seed=1)
    for rule in rules[:30]:
        one_by_one.ipvsadm(rule)
    assert one_by_one.ipvsadm("-S -n").stdout in director.ipvsadm("-S -n").stdout


def test_an_unclosed_quote_is_a_usage_error() -> None:
    """`ipvsadm` never raises for what the user wrote."""
    answer = Director(seed=1).ipvsadm("-A -t '10.0.0.100:80")
    assert answer.returncode == 2
    assert "quotation" in answer.stderr


def test_timeouts_and_persistence_have_limits() -> None:
    """Values that the data plane cannot hold are refused before anything is changed."""
    director = Director(seed=1)
    with pytest.raises(ValueError, match="out of range"):
        director.set_timeouts(Timeouts(tcp=5_000_000))
    with pytest.raises(ValueError, match="out of range"):
        Service(protocol="tcp", address="10.0.0.100", port=80, persistent=5_000_000)


def test_martians_are_not_answered() -> None:
    """Nobody can have sent a ping or a stray segment from these addresses."""
    director = Director(
        interfaces={"c": {"mac": "02:00:00:00:00:01", "addresses": ["10.0.0.1/24"]}},
        neighbours={"10.0.0.254": "02:00:00:00:00:99"},
        routes={"0.0.0.0/0": "10.0.0.254"},
        seed=1,
    )
    director.ipvsadm("-A -t 10.0.0.100:80 -s rr")
    for source in ("224.0.0.1", "127.0.0.1", "0.0.0.0", "255.255.255.255", "10.0.0.1"):
        for layer in (ICMP(), TCP(sport=1, dport=80, flags="A"), TCP(sport=1, dport=81, flags="S")):
            packet = IP(src=source, dst="10.0.0.100") / layer
            frame = bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:99") / packet)
            (outcome,) = director.process([("c", frame)], now=1.0)
            assert outcome.verdict in ("pass", "drop"), (source, layer.summary())
            assert not outcome.frames
