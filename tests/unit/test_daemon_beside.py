"""What the daemon has the guard keep, when it warns, and the names it knows; the guard is a recorder here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pylvs import Director
from pylvs.daemon import beside as module
from pylvs.daemon.beside import GRACE, Beside, guarded
from pylvs.daemon.names import read_hosts
from pylvs.host.guard import GuardError
from pylvs.model import Host, Link

VIP, RIP = "10.0.0.100", "10.1.0.11"
NOWHERE = Host(links=(Link(name="eth0", index=2, addresses=("10.0.0.1/24",)),))
LOCAL = Host(links=(Link(name="lo", index=1, loopback=True, addresses=(f"{VIP}/32",)),))


class Recorder:
    """Takes the guard's place."""

    def __init__(self) -> None:
        self.held: tuple[set[Any], set[Any], set[str]] = (set(), set(), set())
        self.widened: list[tuple[set[Any], set[Any], set[str]]] = []
        self.interfaces: list[str] = []
        self.broken = False

    def update(self, services: set[Any], replies: set[Any], vips: set[str]) -> None:
        if self.broken:
            raise GuardError("no more room")
        self.held = services, replies, vips

    def widen(self, services: set[Any], replies: set[Any], vips: Any = ()) -> None:
        self.widened.append((services, replies, set(vips)))

    def set_local(self, links: Any) -> None:
        pass

    def set_interfaces(self, names: list[str]) -> None:
        self.interfaces = names


@pytest.fixture
def setting() -> tuple[Director, Beside, Recorder, list[str]]:
    director = Director(
        interfaces={"eth0": {"mac": "02:00:00:00:00:01", "addresses": ["10.0.0.1/24", "10.1.0.1/24"]}},
        neighbours={RIP: "02:00:00:00:01:11"},
    )
    said: list[str] = []
    beside = Beside(director, said.append)
    recorder = Recorder()
    beside.guard = recorder  # type: ignore[assignment]
    director.before_service = beside.before_service
    director.before_server = beside.before_server
    director.ipvsadm(f"-A -t {VIP}:80 -s rr")
    director.ipvsadm(f"-a -t {VIP}:80 -r {RIP}:8080 -m")
    director.ipvsadm(f"-a -t {VIP}:80 -r 10.1.0.12 -g")
    return director, beside, recorder, said


SERVICE, REPLY = ("tcp", VIP, 80), ("tcp", RIP, 8080)


def test_services_and_answers_of_nat_servers_are_the_guards(setting: Any) -> None:
    director, beside, recorder, _ = setting
    assert guarded(director.status()) == ({SERVICE}, {REPLY})
    assert recorder.widened == [({SERVICE}, set(), {VIP}), (set(), {REPLY}, set())], "before they are published"
    beside.reconcile(NOWHERE, director.status(), ["eth0"])
    assert recorder.held == ({SERVICE}, {REPLY}, {VIP}) and recorder.interfaces == ["eth0"]
    beside.reconcile(LOCAL, director.status(), ["eth0"])
    assert recorder.held == ({SERVICE}, {REPLY}, set()), "a VIP of the host is its own but for the service"


def test_what_has_connections_lingers_for_a_moment(setting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from scapy.layers.inet import IP, TCP
    from scapy.layers.l2 import Ether

    director, beside, recorder, _ = setting
    director.ipvsadm(f"-d -t {VIP}:80 -r 10.1.0.12:80")
    syn = Ether(dst="02:00:00:00:00:01") / IP(src="10.0.0.2", dst=VIP) / TCP(sport=1, dport=80, flags="S")
    assert director.process([("eth0", bytes(syn))], now=1.0)[0].connection is not None
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    director.ipvsadm("-C")
    beside.reconcile(NOWHERE, director.status(), [])
    assert recorder.held == ({SERVICE}, {REPLY}, {VIP}) and beside.lingers
    now += GRACE
    assert beside.lingers
    beside.reconcile(NOWHERE, director.status(), [])
    assert recorder.held == (set(), set(), set())
    now += 10
    assert not beside.lingers


def test_a_failure_is_said_once_until_it_is_over(setting: Any) -> None:
    director, beside, recorder, said = setting
    recorder.broken = True
    for _ in range(3):
        beside.reconcile(NOWHERE, director.status(), ["eth0"])
    assert said == ["the guard cannot be changed: no more room"]
    assert recorder.interfaces == ["eth0"], "the other parts are tried"
    recorder.broken = False
    beside.reconcile(NOWHERE, director.status(), [])
    recorder.broken = True
    beside.reconcile(NOWHERE, director.status(), [])
    assert len(said) == 2


@pytest.mark.parametrize(
    ("host", "says"),
    [(LOCAL, "is an address of this host"), (Host(forwarding4=True), "net.ipv4.ip_forward is 1"), (Host(), "")],
)
def test_without_guard_it_warns_once(setting: Any, host: Host, says: str) -> None:
    director, beside, _, said = setting
    beside.guard = None
    for _ in range(2):
        beside.reconcile(host, director.status(), [])
    assert len(said) == bool(says) and all(says in each and VIP in each for each in said)


def test_names_of_hosts(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(
        "127.0.0.1 localhost\n# nothing\n10.0.0.100\tvip.example.test vip # ours\n2001:DB8::1 six\nnonsense here\n"
        "10.0.0.101 vip\n\n::1 localhost\n"
    )
    assert read_hosts(file) == {
        "localhost": "127.0.0.1",
        "vip.example.test": "10.0.0.100",
        "vip": "10.0.0.100",
        "six": "2001:db8::1",
    }
    assert read_hosts(tmp_path / "absent") == {}
