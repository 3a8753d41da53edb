"""The worker's loop with real threads and frames, but ports that end in memory: no socket, no privilege."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from cases.craft import (
    FAMILIES,
    Kind,
    from_router,
    from_server,
    host,
    ip,
    segment,
    to_router,
    to_server,
)  # fmt: skip
from conftest import accounted
from packets import checksum, parse, pseudo, settled, splice
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from pylvs import Director
from pylvs.ports.memory import MemoryPort, Offload
from pylvs.worker import Worker

PATIENCE = 10.0  # s until something that must happen counts as missing
NAT, DR, TUN = (Kind(method, 4, "tcp") for method in ("nat", "dr", "tun"))
ETHERNET = 14
NEEDS_CSUM, GSO_TCP4, GSO_TCP6 = 1, 1, 4


def until(condition: Callable[[], Any]) -> Any:
    """Wait until `condition` is true."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)
    return found


@dataclass
class Setting:
    """A director at work between two ports."""

    director: Director
    worker: Worker
    ports: dict[str, MemoryPort]

    def settle(self, received: int) -> dict[str, Any]:
        """The counters when so many frames have been received and decided."""
        until(lambda: self.director.counters()["received"] >= received)
        self.director.connections()  # asked between two batches: the one that counted them has been sent
        accounted(self.director)
        return self.director.counters()

    def sent(self, name: str, count: int) -> list[bytes]:
        """The `count` frames that leave through a port."""
        until(lambda: self.ports[name].waiting >= count)
        frames = self.ports[name].take()
        assert len(frames) == count
        return frames


@contextmanager
def at_work(*commands: str, capacity: int = 256, **arguments: Any) -> Iterator[Setting]:
    """A running worker with a port for each link; at the end every frame is accounted for."""
    director = Director(**{**host(), "clock": time.monotonic, **arguments})
    worker = Worker(director.cores[0])
    ports = {name: MemoryPort(name, director.link_id(name), capacity) for name in ("c", "s")}
    for command in commands:
        assert director.ipvsadm(command).returncode == 0, command
    worker.start()
    try:
        for port in ports.values():
            worker.add_port(port)
        yield Setting(director, worker, ports)
    finally:
        worker.stop()
    accounted(director)


def syns(count: int, kind: Kind = NAT, first: int = 20000) -> list[bytes]:
    """First packets of so many connections."""
    return [from_router(kind.request(sport=first + n)) for n in range(count)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["nat", "dr", "tun"])
def test_forwards(method: str, family: int) -> None:
    """What goes in at one port comes out at the other, rewritten; the way back too where there is one."""
    kind = Kind(method, family, "tcp")
    with at_work(*kind.commands()) as setting:
        setting.ports["c"].put([from_router(kind.request())])
        (frame,) = setting.sent("s", 1)
        wanted = to_server(kind.delivered())
        assert frame == settled(wanted, frame)
        if method == "nat":
            setting.ports["s"].put([from_server(kind.reply())])
            assert setting.sent("c", 1) == [to_router(kind.returned())]
        assert not setting.ports["c"].take()


def test_batches_keep_their_order() -> None:
    """Far more frames than a batch, or a queue, has places for: all come out, in order."""
    total = 3000
    with at_work(*NAT.commands(), capacity=1024) as setting:
        waiting, out = syns(total), []
        while waiting or len(out) < total:
            taken = setting.ports["c"].put(waiting[:100]) if waiting else 0
            waiting = waiting[taken:]
            out += setting.ports["s"].take()
            time.sleep(0.0005)
        assert [Ether(frame)[TCP].sport for frame in out] == list(range(20000, 20000 + total))
        counters = setting.settle(total)
        assert counters["received"] == counters["forwarded"] + counters["drops"].get("tx_full", 0) == total
        assert len(setting.director.connections()) == total


def test_received_but_no_room() -> None:
    """A port that nobody empties loses frames, and says how many."""
    port = MemoryPort("c", 0, capacity=4)
    assert port.put(syns(10)) == 4
    assert port.statistics() == 6
    port.close()
    port.close()
    with pytest.raises(ValueError, match="closed"):
        port.put(syns(1))


def test_bad_capacity_and_frames() -> None:
    """What cannot be is said, with a remedy."""
    with pytest.raises(ValueError, match="power of two"):
        MemoryPort("c", 0, capacity=100)
    with pytest.raises(ValueError, match="longest"):
        MemoryPort("c", 0).put([bytes(70000)])


def test_no_room_to_send() -> None:
    """What a full port does not take is booked as ``tx_full``, as with a socket."""
    with at_work(*NAT.commands(), capacity=32) as setting:
        for start in range(0, 96, 32):
            setting.ports["c"].put(syns(32, first=20000 + start))
            counters = setting.settle(start + 32)
        assert counters["forwarded"] == 32
        assert counters["drops"] == {"tx_full": 64}
        assert len(setting.sent("s", 32)) == 32
        setting.ports["c"].put(syns(1, first=30000))  # and it goes on
        setting.sent("s", 1)


@pytest.mark.parametrize(
    "error, reason",
    [(errno.ENETDOWN, "link_down"), (errno.ENXIO, "link_down"), (errno.EMSGSIZE, "too_big"),
     (errno.EINVAL, "bad_offload"), (errno.ENOBUFS, "tx_full"), (errno.EAGAIN, "tx_full")],
)  # fmt: skip
def test_sending_fails(error: int, reason: str) -> None:
    """Each error of sending has its reason; the books balance while it lasts and after."""
    with at_work(*NAT.commands()) as setting:
        setting.ports["s"].fault = error
        setting.ports["c"].put(syns(5))
        counters = setting.settle(5)
        assert counters["forwarded"] == 0
        assert counters["drops"] == {reason: 5}
        setting.ports["s"].fault = 0
        setting.ports["c"].put(syns(5, first=30000))
        setting.sent("s", 5)
        assert setting.settle(10)["forwarded"] == 5


def test_answers_fail_too() -> None:
    """A reply of our own that does not go out is no reply."""
    with at_work(NAT.commands()[0]) as setting:  # no server: port unreachable
        setting.ports["c"].put(syns(1))
        setting.sent("c", 1)
        setting.ports["c"].fault = errno.ENETDOWN
        setting.ports["c"].put(syns(1, first=30000))
        counters = setting.settle(2)
        assert (counters["replied"], counters["drops"]) == (1, {"link_down": 1})


def test_ports_come_and_go() -> None:
    """Without its port a link is down; a new port takes the place of an old one, which is closed."""
    with at_work(*NAT.commands()) as setting:
        old = setting.ports["s"]
        setting.worker.remove_port(old)
        assert setting.worker.ports == {setting.ports["c"].link: setting.ports["c"]}
        setting.ports["c"].put(syns(1))
        assert setting.settle(1)["drops"] == {"link_down": 1}
        for attempt in range(20):
            fresh = MemoryPort("s", old.link)
            setting.worker.add_port(fresh)  # replaces the one before
            setting.ports["s"] = fresh
            setting.ports["c"].put(syns(1, first=30000 + attempt))
            setting.sent("s", 1)
            fresh.put([from_server(NAT.reply())])  # received from too; of no connection: left to the host
            assert setting.settle(3 + 2 * attempt)["passed"] == attempt + 1
        with pytest.raises(ValueError, match="closed"):
            old.put(syns(1))


def test_a_port_for_sending_only() -> None:
    """What arrives at a port that does not receive stays there."""
    with at_work(*NAT.commands()) as setting:
        mute = MemoryPort("s", setting.ports["s"].link, receives=False)
        setting.worker.add_port(mute)
        setting.ports["s"] = mute
        mute.put([from_server(NAT.reply())])
        setting.ports["c"].put(syns(3))
        setting.sent("s", 3)
        assert setting.settle(3)["received"] == 3


def test_ports_need_a_running_worker() -> None:
    """Before the start and after the stop nobody would look at a port."""
    worker = Worker(Director(**host()).cores[0])
    port = MemoryPort("c", 0)
    with pytest.raises(RuntimeError, match="start it first"):
        worker.add_port(port)
    worker.start()
    worker.stop()
    with pytest.raises(RuntimeError, match="start it first"):
        worker.add_port(port)
    port.close()


def test_changes_while_running() -> None:
    """New services, new servers, new weights, new neighbours, settings: each holds for the very next frame."""
    plan = NAT.plan
    with at_work(*NAT.commands(1)) as setting:
        setting.ports["c"].put(syns(1))
        setting.sent("s", 1)
        for first, command, target in (
            (21000, f"-a {NAT.service} {NAT.server(1)} -m", None),
            (22000, f"-e {NAT.service} {NAT.server(0)} -m -w 0", plan.servers[1]),
            (23000, f"-d {NAT.service} {NAT.server(0)}", plan.servers[1]),
        ):
            assert setting.director.ipvsadm(command).returncode == 0
            setting.ports["c"].put(syns(4, first=first))
            targets = {Ether(frame)[IP].dst for frame in setting.sent("s", 4)}
            assert targets == ({target} if target else set(plan.servers[:2]))
        mac = "02:00:00:00:77:77"
        setting.director.configure(neighbours={**host()["neighbours"], plan.servers[1]: mac})
        setting.ports["c"].put(syns(1, first=24000))
        assert Ether(setting.sent("s", 1)[0]).dst == mac
        assert setting.director.ipvsadm("-C").returncode == 0
        setting.ports["c"].put(syns(1, first=25000))
        assert setting.settle(15)["forwarded"] == 14


def test_dump_while_forwarding() -> None:
    """Connections are listed, and counters zeroed, between batches of a busy worker; no entry is torn or lost."""
    total = 4000
    with at_work(*NAT.commands(1, 1), capacity=1024) as setting:
        done = threading.Event()

        def feed() -> None:
            waiting = syns(total)
            while waiting:
                waiting = waiting[setting.ports["c"].put(waiting[:64]) :]
                setting.ports["s"].take()
                time.sleep(0.0002)
            done.set()

        feeder = threading.Thread(target=feed)
        feeder.start()
        seen, dumps = 0, 0
        while not done.is_set():
            found = setting.director.connections()
            assert len(found) >= seen
            assert all(c.virtual == NAT.plan.vip and c.dest in NAT.plan.servers[:2] for c in found)
            assert len({c.client_port for c in found}) == len(found)
            seen, dumps = len(found), dumps + 1
            if dumps % 8 == 0:
                assert setting.director.ipvsadm("-Z").returncode == 0
        feeder.join()
        setting.settle(total)
        assert dumps > 1
        assert sorted(c.client_port for c in setting.director.connections()) == list(range(20000, 20000 + total))


def test_an_unknown_next_hop() -> None:
    """A frame waits for its next hop, the worker says so, and sends it when the hop is known."""
    neighbours = dict(host()["neighbours"])
    mac = neighbours.pop(NAT.plan.servers[0])
    with at_work(*NAT.commands(), neighbours=neighbours) as setting:
        setting.ports["c"].put(syns(2))
        until(lambda: os.eventfd_read(setting.worker.notify) if readable(setting.worker.notify) else 0)
        ((address, link),) = setting.director.cores[0].needs()
        assert (address[12:], link) == (bytes([10, 1, 0, 11]), setting.ports["s"].link)
        assert not setting.ports["s"].take()
        setting.director.configure(neighbours={**neighbours, NAT.plan.servers[0]: mac})
        assert [Ether(frame).dst for frame in setting.sent("s", 2)] == [mac, mac]
        assert setting.settle(2)["forwarded"] == 2


def readable(fd: int) -> bool:
    """Has an eventfd news?"""
    import select

    return bool(select.select([fd], [], [], 0)[0])


def test_waits_without_spinning() -> None:
    """With nothing to do it goes round about ten times a second; a frame wakes it at once."""
    with at_work(*NAT.commands()) as setting:
        time.sleep(0.05)
        before = setting.worker.turns
        time.sleep(0.5)
        assert 1 <= setting.worker.turns - before <= 40
        waits = []
        for n in range(10):
            time.sleep(0.02)
            start = time.monotonic()
            setting.ports["c"].put(syns(1, first=20000 + n))
            while not setting.ports["s"].take():
                assert time.monotonic() < start + PATIENCE
            waits.append(time.monotonic() - start)
        assert min(waits) < 0.05


def test_stops_twice() -> None:
    """Stopping is safe at any time, and the director answers afterwards."""
    with at_work(*NAT.commands()) as setting:
        setting.ports["c"].put(syns(3))
        setting.sent("s", 3)
        setting.worker.stop()
        setting.worker.stop()
        assert setting.worker.ports == {}
        assert len(setting.director.connections()) == 3
        assert setting.director.ipvsadm("-C").returncode == 0
    never = Worker(Director(**host()).cores[0])
    never.stop()
    never.stop()


def test_nothing_is_left_behind() -> None:
    """Fifty workers leave no thread and no descriptor; one core may have one after the other."""
    director = Director(**{**host(), "clock": time.monotonic})
    for command in NAT.commands():
        director.ipvsadm(command)
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    for n in range(50):
        worker = Worker(director.cores[0])
        worker.start()
        ports = [MemoryPort(name, director.link_id(name)) for name in ("c", "s")]
        for port in ports:
            worker.add_port(port)
        ports[0].put(syns(1, first=20000 + n))
        until(ports[1].take)
        worker.stop()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert director.counters()["forwarded"] == 50
    accounted(director)


# ------------------------------------------------------------------------------------------------------ super-frames


def partial(frame: bytes, family: int) -> bytes:
    """The frame with only the pseudo-header sum in the place of its TCP checksum, as a virtual link delivers it."""
    packet = parse(family, frame[ETHERNET:])
    assert packet is not None
    head = pseudo(packet.source, packet.target, packet.protocol, len(packet.payload))
    value = bytes(0xFF - byte for byte in checksum(head))  # the sum itself, not its complement
    return splice(frame, ETHERNET + packet.start + 16, value)


def super_frame(kind: Kind, size: int = 20000, mss: int = 1400) -> tuple[bytes, Offload]:
    """A client's super-frame of the flow, and its metadata."""
    frame = from_router(kind.request(flags="PA", payload=os.urandom(size), head={"flags": "DF"}))
    l4 = ETHERNET + (20 if kind.family == 4 else 40)
    offload = Offload(
        flags=NEEDS_CSUM, gso_type=GSO_TCP4 if kind.family == 4 else GSO_TCP6, hdr_len=l4 + 20, gso_size=mss,
        csum_start=l4, csum_offset=16,
    )  # fmt: skip
    return partial(frame, kind.family), offload


def opened(setting: Setting, kind: Kind) -> None:
    """Let the flow begin."""
    setting.ports["c"].put([from_router(kind.request())])
    setting.sent("s", 1)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["nat", "dr"])
def test_super_frames_pass_whole(method: str, family: int) -> None:
    """NAT and DR send a super-frame as one, with its metadata; the partial sum is that of the new addresses."""
    kind = Kind(method, family, "tcp")
    frame, offload = super_frame(kind)
    payload = frame[-20000:]
    with at_work(*kind.commands()) as setting:
        opened(setting, kind)
        setting.ports["c"].put([frame], offload)
        until(lambda: setting.ports["s"].waiting)
        ((out, meta),) = setting.ports["s"].take_offloaded()
    assert meta == offload
    assert out == partial(to_server(kind.delivered(flags="PA", payload=payload, head={"flags": "DF"})), family)


@pytest.mark.parametrize("family", FAMILIES)
def test_partial_checksum_back(family: int) -> None:
    """A server's answer whose checksum is unfinished leaves so, with the sum of the VIP's addresses."""
    kind = Kind("nat", family, "tcp")
    l4 = ETHERNET + (20 if family == 4 else 40)
    offload = Offload(flags=NEEDS_CSUM, csum_start=l4, csum_offset=16)
    with at_work(*kind.commands()) as setting:
        opened(setting, kind)
        setting.ports["s"].put([partial(from_server(kind.reply()), family)], offload)
        until(lambda: setting.ports["c"].waiting)
        assert setting.ports["c"].take_offloaded() == [(partial(to_router(kind.returned()), family), offload)]


@pytest.mark.parametrize("mss", [536, 1400])
@pytest.mark.parametrize("family", FAMILIES)
def test_tunnel_cuts_super_frames(family: int, mss: int) -> None:
    """A tunnel sends each segment by itself: complete, as TCP would have sent it, in its own outer header."""
    kind = Kind("tun", family, "tcp")
    frame, offload = super_frame(kind, mss=mss)
    payload = frame[-20000:]
    layer = IP if family == 4 else IPv6
    pieces = [payload[at : at + mss] for at in range(0, len(payload), mss)]
    with at_work(*kind.commands()) as setting:
        opened(setting, kind)
        setting.ports["c"].put([frame], offload)
        until(lambda: setting.ports["s"].waiting >= len(pieces))
        out = setting.ports["s"].take_offloaded()
        assert setting.settle(2)["forwarded"] == 2
    assert len(out) == len(pieces)
    assert {meta for _, meta in out} == {Offload()}
    for n, ((got, _), piece) in enumerate(zip(out, pieces, strict=True)):
        head = {"ident": 0x1234 + n, "flags": "DF"}
        wanted = ip(kind.plan.client, kind.plan.vip, 63, **head) / segment(
            "tcp", kind.sport, kind.vport, "PA" if n == len(pieces) - 1 else "A", piece, seq=0x01020304 + n * mss,
            ack=0x0A0B0C0D,
        )  # fmt: skip
        inner = bytes(Ether(got)[layer].payload)
        assert inner == bytes(wanted), f"segment {n}"
        outer = Ether(got)[layer].copy()
        outer.remove_payload()
        assert (outer.src, outer.dst) == (kind.plan.director_s, kind.plan.servers[0])
        assert Ether(got).dst == Ether(to_server(Raw(b"\x45"))).dst


@pytest.mark.parametrize(
    "wrong", [{"gso_size": 0}, {"csum_start": 30000}, {"gso_type": 5}, {"gso_size": 1}], ids=str
)  # fmt: skip
def test_metadata_that_lies(wrong: dict[str, int]) -> None:
    """Metadata that contradicts its frame is a drop by name."""
    frame, offload = super_frame(NAT)
    with at_work(*NAT.commands()) as setting:
        opened(setting, NAT)
        setting.ports["c"].put([frame], offload._replace(**wrong))
        assert setting.settle(2)["drops"] == {"bad_offload": 1}
