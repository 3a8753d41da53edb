"""Labs for real: networks built and removed, the decapsulator, whole runs, and interruptions at every step."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from scapy.layers.inet import IP, TCP, UDP, fragment
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.packet import Raw

from pylvs.lab import life, namespace, process, record, sctp, topology
from pylvs.lab.capture import SIGNS, Capture, Tap
from pylvs.lab.packet import Frame
from pylvs.lab.process import Failed, Stop
from pylvs.lab.topology import PLANS, network

pytestmark = pytest.mark.root

PYLVS = (sys.executable, "-m", "pylvs")


def remains(name: str) -> list[str]:
    """Whatever of the lab `name` is still there: namespaces, processes, records."""
    found = [item for item in namespace.names(topology.PREFIX) if item in life.possible(name)]
    mark = f"{process.MARK}={name}".encode()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                if process.started(int(entry.name)):
                    found.append(f"process {entry.name}: {(entry / 'cmdline').read_bytes()!r}")
        except OSError:
            continue
    return found + [str(file) for file in record.DIRECTORY.glob(f"{name}*")]


@pytest.fixture
def stop() -> Iterator[Stop]:
    stop = Stop()
    yield stop
    stop.close()


@pytest.fixture
def name() -> Iterator[str]:
    """A name for a lab of the test's own; it is an error to leave any of it behind."""
    name = f"t{os.getpid()}-{random.randrange(1000)}"
    yield name
    left = remains(name)
    life.clear(name)
    assert not left


def pylvs(*argv: str, seconds: float = 240.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PYLVS, *argv], capture_output=True, text=True, timeout=seconds, check=False)


@pytest.mark.parametrize("method", PLANS)
def test_networks_are_built_and_removed(method: str, name: str) -> None:
    plan = PLANS[method]()
    links = sorted(os.listdir("/sys/class/net"))
    topology.build(plan, name)
    try:
        here = os.stat("/proc/self/ns/net").st_ino
        for node in plan.nodes:
            with namespace.inside(network(name, node.name)):
                assert os.stat("/proc/thread-self/ns/net").st_ino != here
                interfaces = {found for _, found in socket.if_nameindex()}
            assert interfaces == {"lo", *(end.name for end in node.interfaces)}
        # every server reaches the client by the way that its answers are to take; in NAT only the director knows both
        node, address = ("client", plan.client)
        if plan.method == "nat":
            node, address = "director", "10.0.0.1" if plan.version == 4 else "2001:db8::1"
        with namespace.inside(network(name, node)):
            family = socket.AF_INET if plan.version == 4 else socket.AF_INET6
            listener = socket.create_server((address, 5001), family=family)
        with listener:
            for server in plan.servers:
                with namespace.inside(network(name, server.name)):
                    socket.create_connection((address, 5001), timeout=5).close()
    finally:
        for item in topology.networks(plan, name):
            namespace.remove(item)
    assert not remains(name)
    assert sorted(os.listdir("/sys/class/net")) == links
    assert os.stat("/proc/self/ns/net").st_ino == here


def test_what_the_kernel_refuses_is_one_line(name: str) -> None:
    plan = PLANS["nat"]()
    astray = replace(
        plan, nodes=(*plan.nodes[:1], replace(plan.nodes[1], routes={"default": "203.0.113.1"}), *plan.nodes[2:])
    )
    with pytest.raises(OSError, match="the kernel refused a link, address or route: Network is unreachable"):
        topology.build(astray, name)
    life.clear(name)


def test_a_name_that_is_taken_is_refused(name: str) -> None:
    target = network(name, "client")
    namespace.create(target)
    with pytest.raises(FileExistsError):
        namespace.create(target)
    assert namespace.named(target)
    namespace.remove(target)
    namespace.path(target).touch()  # as a process leaves it that is killed before the namespace is mounted
    assert not namespace.named(target)
    namespace.remove(target)
    assert not namespace.path(target).exists()


def test_the_filter_lets_only_signs_through(name: str) -> None:
    plan = PLANS["dr"]()
    topology.build(plan, name)
    try:
        with Capture([Tap(network(name, "client"), "client", "eth0", SIGNS)]) as capture:
            with namespace.inside(network(name, "client")):
                sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
                sender.bind(("eth0", 0))
            with sender:
                packets = [
                    IP(dst=plan.vip) / TCP(flags=flags) / Raw(b"x") for flags in ("S", "A", "PA", "R", "RA", "FA", "SA")
                ]
                packets += [IP(dst=plan.vip, options=b"\x01\x01\x01\x00") / TCP(flags="R"), IP(dst=plan.vip) / UDP()]
                for packet in packets:
                    sender.send(bytes.fromhex("0200000000d00200000000010800") + bytes(packet))
                six = [
                    IPv6(dst="2001:db8::1") / TCP(flags=flags) / Raw(b"x") for flags in ("S", "A", "PA", "R", "FA", "SA")
                ]
                for packet in [*six, IPv6(src="::1") / ICMPv6ND_NS(tgt="2001:db8::1"), IPv6() / UDP()]:
                    sender.send(bytes.fromhex("0200000000d002000000000186dd") + bytes(packet))
            seen = [str(frame.arp) if frame.arp else frame.ip.tcp.marks for frame in capture.drain() if frame.ip]
        assert seen == ["S", "R", "R.", "S.", "R", "S", "R", "S.", "ND who has 2001:db8::1? tell ::1"]
    finally:
        for item in topology.networks(plan, name):
            namespace.remove(item)


# ---------------------------------------------------------------------------------------------------- decapsulation


@pytest.fixture
def tunnel(name: str, stop: Stop) -> Iterator[life.Lab]:
    """The tunnel lab's network, with a web server and the decapsulator on rs1 alone, and no director."""
    lab = life.Lab(PLANS["tun"](), name, stop, lambda text: None)
    try:
        with record.held(name):
            lab.record.namespaces = topology.networks(lab.plan, name)
            lab.record.write()
            topology.build(lab.plan, name)
            lab.start("rs1", "httpd", [sys.executable, "-m", "pylvs.lab.httpd", "--name", "rs1", "--listen", ":80"])
            lab.start("rs1", "tun", [*PYLVS, "rs", "tun", "--vip", lab.plan.vip])
            for item in ("httpd", "tun"):
                lab.await_ready(item)
            yield lab
    finally:
        lab.down()


def answers(lab: life.Lab, packets: list[bytes], wait: float = 0.3) -> list[Frame]:
    """What the client hears after the director has sent `packets`, each with its outer header."""
    with Capture([Tap(network(lab.name, "client"), "client", "eth0", SIGNS)]) as capture:
        with namespace.inside(network(lab.name, "director")):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with raw:
            for packet in packets:
                raw.sendto(packet, (lab.plan.servers[0].address, 0))
        time.sleep(wait)
        return [f for f in capture.drain() if f.direction == "in" and f.ip and f.ip.source == lab.plan.vip]


def stop_tun(lab: life.Lab) -> str:
    (item,) = (item for item in lab.record.processes if item.name == "tun")
    process.stop_all([item], {})
    return lab.record.log("tun").read_text().splitlines()[-1]


def wrap(lab: life.Lab, inside: object, proto: int = 4) -> IP:
    return IP(src=lab.plan.dip, dst=lab.plan.servers[0].address, proto=proto) / inside


def syn(lab: life.Lab, port: int, target: str = "", payload: bytes = b"") -> IP:
    return (
        IP(src=lab.plan.client, dst=target or lab.plan.vip) / TCP(sport=port, dport=80, seq=1, flags="S") / Raw(payload)
    )


def test_the_decapsulator_s_answers_go_to_the_client(tunnel: life.Lab) -> None:
    whole = [bytes(wrap(tunnel, syn(tunnel, 1001)))]
    pieces = [bytes(piece) for piece in fragment(wrap(tunnel, syn(tunnel, 1002, payload=bytes(2000))), 600)]
    unfinished = bytearray(bytes(wrap(tunnel, syn(tunnel, 1003))))
    pseudo = sum(int.from_bytes(unfinished[at : at + 2], "big") for at in range(32, 40, 2)) + 6 + 20
    unfinished[56:58] = ((pseudo & 0xFFFF) + (pseudo >> 16)).to_bytes(2, "big")
    heard = answers(tunnel, [*whole, *pieces, bytes(unfinished)])
    found = {(segment.target, segment.marks) for frame in heard if frame.ip and (segment := frame.ip.tcp)}
    assert found == {(1001, "S."), (1002, "S."), (1003, "S.")}
    assert "unwrapped" in (last := stop_tun(tunnel)) and "checksum finished in 1" in last and "dropped" not in last


def test_the_decapsulator_drops_what_is_not_for_it(tunnel: life.Lab) -> None:
    good = bytes(wrap(tunnel, syn(tunnel, 1001)))
    cuts = [bytes(wrap(tunnel, Raw(good[20 : 20 + length]))) for length in range(40)]
    junk = [bytes(wrap(tunnel, Raw(random.Random(n).randbytes(n)))) for n in range(0, 200, 7)]
    elsewhere = [bytes(wrap(tunnel, syn(tunnel, 1002, "192.168.57.101")))]
    six = [bytes(wrap(tunnel, IPv6(dst="2001:db8::1") / TCP(), proto=41))]
    assert answers(tunnel, [*cuts, *junk, *elsewhere, *six]) == []
    last = stop_tun(tunnel)
    assert last.startswith("pylvs rs tun: unwrapped 0, dropped inner header: ") and "not for a VIP: 2" in last


def test_the_decapsulator_says_what_is_wrong(tunnel: life.Lab) -> None:
    again = [*PYLVS, "rs", "tun", "--vip", tunnel.plan.vip]
    with pytest.raises(Failed, match="another `pylvs rs tun` has it"):
        tunnel.command("rs1", again)
    with pytest.raises(Failed, match="longer than 15 bytes"):
        tunnel.command("rs1", [*again, "--device", "a-name-that-is-too-long"])
    namespace.set_sysctl(network(tunnel.name, "rs2"), {"net.ipv4.conf.all.rp_filter": 1})
    tunnel.start("rs2", "filtered", again)
    tunnel.await_ready("filtered")
    assert "rp_filter is 1" in tunnel.record.log("filtered").read_text()


def test_the_device_goes_with_its_process(tunnel: life.Lab) -> None:
    def devices() -> set[str]:
        with namespace.inside(network(tunnel.name, "rs1")):
            return {found for _, found in socket.if_nameindex()}

    assert "pylvs-tun0" in devices()
    stop_tun(tunnel)
    assert "pylvs-tun0" not in devices()


# ------------------------------------------------------------------------------------------------------- whole labs


@pytest.mark.slow
@pytest.mark.parametrize("method", ("nat", "dr", "tun", "nat6", "dr6", "tun6"))
def test_a_run_holds_every_verdict(method: str, name: str) -> None:
    ended = pylvs("lab", "run", method, "--name", name, "--requests", "60", "--bytes", "5000000", "--json")
    assert ended.returncode == 0, ended.stderr + ended.stdout
    document = json.loads(ended.stdout)
    (lab,) = document["labs"]
    assert document["ok"] and lab["ok"] and not lab["error"]
    assert [phase["servers"] for phase in lab["phases"][:2]] == [{"rs1": 20, "rs2": 20, "rs3": 20}] * 2
    assert [(t["kind"], t["ok"]) for t in lab["transfers"]] == [("download", True), ("upload", True)]
    assert len(lab["verdicts"]) >= 15 and all(verdict["ok"] for verdict in lab["verdicts"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ("persist", "hash", "mark", "sctp"))
def test_a_run_with_many_clients_holds_every_verdict(kind: str, name: str) -> None:
    ended = pylvs("lab", "run", kind, "--name", name, "--requests", "96", "--json")
    document = json.loads(ended.stdout)
    (lab,) = document["labs"]
    if kind == "sctp" and (why := sctp.missing()):
        assert ended.returncode == 1 and lab["skipped"] == why and not document["ok"]
        return
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert document["ok"] and lab["ok"] and all(verdict["ok"] for verdict in lab["verdicts"])
    if kind == "hash":
        sh, mh = lab["figures"]
        assert sh["own_moved"] == sh["own"] > 0 and mh["own_moved"] == mh["own"] > 0
        assert mh["others_moved"] < sh["others_moved"]


@pytest.mark.slow
def test_a_mark_without_guard_is_answered_by_the_host_too(name: str, stop: Stop) -> None:
    """What the mark lab proves of the guard: without it the host, whose address the VIP is, resets the clients."""
    from pylvs.lab import page, run

    plan = replace(PLANS["mark"](), daemon=(*PLANS["mark"]().daemon, "--no-guard"))
    with open(os.devnull, "w") as nothing:
        result = run.run(plan, name, run.Options(requests=12, size=0), page.Progress("t", nothing), stop)
    assert not result.ok


@pytest.mark.slow
def test_labs_stand_side_by_side_until_they_are_taken_down(name: str) -> None:
    try:
        ended = pylvs("lab", "up", "dr", "--name", name)
        assert ended.returncode == 0, ended.stderr + ended.stdout
        (row,) = (row for row in json.loads(pylvs("lab", "status", "--json").stdout) if row["name"] == name)
        assert row["state"] == "up" and all(item["alive"] for item in row["processes"])
        get = "import urllib.request as u; print(u.urlopen('http://192.168.56.200/').read().decode())"
        heard = [
            json.loads(pylvs("lab", "exec", name, "client", "--", sys.executable, "-c", get).stdout) for _ in range(3)
        ]
        assert {answer["server"] for answer in heard} == {"rs1", "rs2", "rs3"}
        listed = pylvs("lab", "exec", name, "director", "--", *PYLVS, "ipvsadm", "-L", "-n").stdout
        assert "192.168.56.200:80" in listed and "192.168.56.103:80" in listed
        shown = pylvs("lab", "exec", name, "rs1", "--", "ls", "/sys/class/net").stdout.split()
        assert shown == ["eth0", "lo"]

        second = pylvs("lab", "up", "dr", "--name", name)
        assert second.returncode == 1 and f"lab {name} is up" in second.stderr
        beside = pylvs("lab", "run", "dr", "--name", f"{name}-b", "--requests", "3", "--bytes", "0")
        assert beside.returncode == 0, beside.stderr + beside.stdout
        assert pylvs("lab", "exec", name, "nobody").stderr.startswith(
            f"pylvs lab: lab {name} has no node nobody; it has client"
        )
        assert pylvs("lab", "exec", name, "client", "--", "no-such-command").returncode == 1
    finally:
        assert pylvs("lab", "down", name).returncode == 0
    assert not remains(f"{name}-b")


STEPS = (
    "namespaces",
    "web server",
    "pylvs daemon",
    "ipvsadm -A",
    "one request",
    "sequential",
    "download",
    "upload",
    "taking",
)


def started(method: str, name: str, until: str, *options: str) -> subprocess.Popen[str]:
    """A run that has just said `until`."""
    child = subprocess.Popen(
        [*PYLVS, "lab", "run", method, "--name", name, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert child.stdout is not None
    said = []
    for line in child.stdout:
        said.append(line)
        if until in line:
            return child
    child.wait()
    raise AssertionError("".join(said))


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_run_leaves_nothing(step: str, name: str) -> None:
    number = (signal.SIGINT, signal.SIGTERM)[STEPS.index(step) % 2]
    method = ("nat", "dr", "tun")[STEPS.index(step) % 3]
    with started(method, name, step, "--requests", "30", "--bytes", "20000000") as child:
        time.sleep(random.uniform(0, 0.2))
        os.killpg(child.pid, number)  # as Ctrl-C in a terminal does: to the whole group
        os.killpg(child.pid, number)  # an impatient user
        text, _ = child.communicate(timeout=30)
    assert child.returncode in ({128 + number} if step != "taking" else {128 + number, 0}), text
    assert not remains(name)


@pytest.mark.slow
def test_what_a_killed_run_left_is_cleared_by_the_next(name: str) -> None:
    with started("dr", name, "sequential") as child:
        child.kill()
        child.communicate()
    assert remains(name)
    (row,) = (row for row in json.loads(pylvs("lab", "status", "--json").stdout) if row["name"] == name)
    assert row["state"] == "left over"
    ended = pylvs("lab", "run", "dr", "--name", name, "--requests", "3", "--bytes", "0")
    assert ended.returncode == 0, ended.stderr + ended.stdout
    assert not remains(name)


@pytest.mark.slow
def test_a_reader_that_leaves_ends_nothing_but_the_reading(name: str) -> None:
    with started("nat", name, "web server", "--requests", "3", "--bytes", "0") as child:
        assert child.stdout is not None
        child.stdout.close()
        child.wait(timeout=60)
    assert not remains(name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "says"),
    [
        (lambda lab: process.stop_all([i for i in lab.record.processes if i.name == "daemon"], {}), "no answer from"),
        (lambda lab: namespace.remove(network(lab.name, "rs1")), ""),
    ],
    ids=["director", "server"],
)
def test_a_lab_that_breaks_says_so(
    name: str, stop: Stop, sabotage: Callable[[life.Lab], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pylvs.lab import page, run

    up = life.Lab.up

    def broken(lab: life.Lab) -> None:
        up(lab)
        sabotage(lab)

    monkeypatch.setattr(life.Lab, "up", broken)
    with open(os.devnull, "w") as nothing:
        result = run.run(PLANS["dr"](), name, run.Options(requests=6, size=0), page.Progress("t", nothing), stop)
    assert not result.ok and says in result.error
    assert not remains(name)
