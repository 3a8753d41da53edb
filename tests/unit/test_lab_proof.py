"""The verdicts hold for what each method is meant to do, and fail for each single thing that goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_Redirect,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from pylvs.lab import proof, watch
from pylvs.lab.packet import Frame
from pylvs.lab.proof import Probe
from pylvs.lab.topology import PLANS, Plan
from pylvs.lab.verdict import Verdict

PORT = 40080
Frames = list[Frame]
FORWARDING = ("nat", "dr", "tun", "nat6", "dr6", "tun6")


def ip(plan: Plan, src: str, dst: str, ttl: int = 64, **rest: object) -> IP | IPv6:
    """An IP header of the lab's family."""
    return IP(src=src, dst=dst, ttl=ttl, **rest) if plan.version == 4 else IPv6(src=src, dst=dst, hlim=ttl)


def question(plan: Plan, mac: str, sender: str) -> object:
    """The VIP is asked for."""
    if plan.version == 4:
        return ARP(op=1, hwsrc=mac, psrc=sender, pdst=plan.vip)
    return IPv6(src=sender, dst="ff02::1:ff00:200") / ICMPv6ND_NS(tgt=plan.vip) / ICMPv6NDOptSrcLLAddr(lladdr=mac)


def told(plan: Plan, mac: str, asker: str) -> object:
    """The answer that the VIP is at `mac`."""
    if plan.version == 4:
        return ARP(op=2, hwsrc=mac, psrc=plan.vip, pdst=asker)
    return IPv6(src=plan.vip, dst=asker) / ICMPv6ND_NA(tgt=plan.vip, S=1) / ICMPv6NDOptDstLLAddr(lladdr=mac)


def aged(packet: IP | IPv6, hops: int) -> IP | IPv6:
    """A copy that has come over so many hops."""
    got = packet.copy()
    if IP in got:
        got.ttl -= hops
    else:
        got.hlim -= hops
    return got


def conversation(plan: Plan) -> Frames:
    """One request and its answers as every node of a right lab sees them; rs1 is chosen."""
    rs1 = plan.servers[0]
    first = {node.name: node.interfaces[0].mac for node in plan.nodes}
    inner = {node.name: node.interfaces[-1].mac for node in plan.nodes}
    router = inner.get("router", "")
    frames: Frames = []

    def seen(node: str, interface: str, direction: str, source: str, target: str, packet: object) -> None:
        data = bytes(Ether(src=source, dst=target) / packet)
        frames.append(Frame(node, interface, direction, float(len(frames)), data))

    asks = plan.node(plan.asks)
    wire = asks.interfaces[1] if plan.asks == "router" else asks.interfaces[0]
    asker = wire.addresses[0].split("/")[0]
    seen(plan.asks, wire.name, "out", wire.mac, "ff:ff:ff:ff:ff:ff", question(plan, wire.mac, asker))
    seen(plan.asks, wire.name, "in", first["director"], wire.mac, told(plan, first["director"], asker))

    def request(number: int, flags: str, payload: bytes = b"") -> None:
        body = TCP(sport=PORT, dport=plan.port, seq=number, ack=500, flags=flags) / Raw(payload)
        sent = ip(plan, plan.client, plan.vip, id=number, flags="DF") / body
        towards = "router" if plan.method == "tun" else "director"
        seen("client", "eth0", "out", first["client"], first[towards], sent)
        got = aged(sent, plan.hops)
        if plan.method == "nat":
            got.dst, got[TCP].dport = rs1.address, rs1.port
            seen("director", "eth0", "in", first["client"], first["director"], sent)
            seen("rs1", "eth0", "in", inner["director"], first["rs1"], got)
        elif plan.method == "dr":
            seen("director", "eth0", "in", first["client"], first["director"], sent)
            seen("rs1", "eth0", "in", first["director"], first["rs1"], got)
        else:
            seen("rs1", "eth0", "in", router, first["rs1"], ip(plan, plan.dip, rs1.address, 61) / got)

    def respond(number: int, flags: str, payload: bytes = b"") -> None:
        source, port = (rs1.address, rs1.port) if plan.method == "nat" else (plan.vip, plan.port)
        body = TCP(sport=port, dport=PORT, seq=number, ack=100, flags=flags) / Raw(payload)
        sent = ip(plan, source, plan.client, id=number, flags="DF") / body
        towards = {"nat": inner["director"], "dr": first["client"], "tun": router}[plan.method]
        seen("rs1", "eth0", "out", first["rs1"], towards, sent)
        got = aged(sent, plan.hops - 1 if plan.method != "nat" else 1)
        by = {"nat": first["director"], "dr": first["rs1"], "tun": first.get("router", "")}[plan.method]
        if plan.method == "nat":
            seen("director", "eth1", "in", first["rs1"], inner["director"], sent)
            got.src, got[TCP].sport = plan.vip, plan.port
        seen("client", "eth0", "in", by, first["client"], got)

    request(100, "S")
    respond(500, "SA")
    request(101, "A")
    request(101, "PA", b"GET / HTTP/1.1\r\n\r\n")
    respond(501, "PA", b"HTTP/1.1 200 OK\r\n\r\n")
    request(119, "FA")
    respond(520, "FA")
    return frames


def judge(plan: Plan, frames: Frames) -> list[Verdict]:
    return proof.prove(Probe(plan, PORT, plan.servers[0], frames))


def broken(verdicts: list[Verdict]) -> str:
    return "\n".join(fault for verdict in verdicts if not verdict.ok for fault in (verdict.claim, *verdict.faults))


@pytest.mark.parametrize("method", FORWARDING)
def test_a_right_conversation_holds(method: str) -> None:
    plan = PLANS[method]()
    verdicts = judge(plan, conversation(plan))
    assert not broken(verdicts)
    assert len(verdicts) == {"nat": 6, "dr": 5, "tun": 5}[plan.method]
    assert all(verdict.evidence for verdict in verdicts)


@pytest.mark.parametrize("method", FORWARDING)
def test_nothing_captured_proves_nothing(method: str) -> None:
    assert not any(verdict.ok for verdict in judge(PLANS[method](), []))


Edit = Callable[[Ether], Ether | None]


def edited(frames: Frames, node: str, direction: str, edit: Edit, *, only: str = "") -> Frames:
    """`frames` with each TCP frame at `node` changed; `only` those with these flags. `None` takes it out."""
    found = []
    for frame in frames:
        ether = Ether(frame.data)
        if (frame.node, frame.direction) == (node, direction) and TCP in ether and only in str(ether[TCP].flags):
            changed = edit(ether)
            if changed is None:
                continue
            for layer in (IP, TCP) if IP in changed else (TCP,):  # right checksums for what was changed
                inside: object = changed
                while isinstance(inside := inside.getlayer(layer) if inside else None, layer):  # type: ignore[attr-defined]
                    del inside.chksum  # type: ignore[attr-defined]
                    inside = inside.payload  # type: ignore[attr-defined]
            found.append(replace(frame, data=bytes(changed)))
        else:
            found.append(frame)
    return found


def put(layer: type, **fields: object) -> Edit:
    """Set fields of the innermost `layer`."""

    def edit(ether: Ether) -> Ether:
        place = ether.getlayer(layer, 2) or ether.getlayer(layer)
        for name, value in fields.items():
            setattr(place, name, value)
        return ether

    return edit


def spoil(at: int) -> Callable[[Frames, str], Frames]:
    def edit(frames: Frames, node: str) -> Frames:
        found = []
        for frame in frames:
            data = bytearray(frame.data)
            if (frame.node, frame.direction) == (node, "in") and frame.ip:
                data[at] ^= 0x40
            found.append(replace(frame, data=bytes(data)))
        return found

    return edit


@pytest.mark.parametrize(
    ("method", "node", "edit", "says"),
    [
        ("dr", "rs1", put(IP, ttl=62), "TTL went from 64 to 62"),
        ("dr", "rs1", put(IP, ttl=64), "TTL went from 64 to 64"),
        ("dr", "rs1", put(IP, tos=4), "TOS changed"),
        ("dr", "rs1", put(IP, flags=0), "flags and fragment offset changed"),
        ("dr", "rs1", put(TCP, window=1), "window changed"),
        ("dr", "rs1", put(IP, dst="192.168.56.101"), "not for the VIP"),
        ("dr", "rs1", put(Ether, dst="02:00:00:00:01:02"), "not addressed to rs1"),
        ("dr", "rs1", put(Ether, src="02:00:00:00:00:01"), "does not come from the director"),
        ("dr", "rs1", put(Raw, load=b"POST / HTTP/1.1\r\n\r"), "payload changed"),
        ("dr", "rs1", lambda ether: None, "the client sent 4 packets, 0 arrived"),
        ("nat", "rs1", put(IP, dst="10.0.0.2"), "arrived for 10.0.0.2:8080"),
        ("nat", "rs1", put(TCP, dport=80), "arrived for 192.168.10.100:80"),
        ("nat", "rs1", put(IP, src="192.168.10.254"), "arrived from 192.168.10.254"),
        ("nat", "rs1", put(IP, ttl=64), "TTL went from 64 to 64"),
        ("nat", "client", put(IP, src="192.168.10.100"), "a packet with 192.168.10.100"),
        ("nat", "client", put(Ether, src="02:00:00:00:01:01"), "did not come by the director"),
        ("nat", "director", lambda ether: None, "0 reached the director"),
        ("nat", "client", lambda ether: None, "0 reached the client"),
        ("tun", "rs1", put(IP, ttl=63), "TTL went from 64 to 63"),
        ("tun", "rs1", put(IP, dst="10.9.9.9"), "the packet inside is for 10.9.9.9"),
        ("dr6", "rs1", put(IPv6, hlim=64), "hop limit went from 64 to 64"),
        ("dr6", "rs1", put(IPv6, fl=7), "version, traffic class and flow label changed"),
        ("dr6", "rs1", put(IPv6, dst="2001:db8:56::101"), "not for the VIP"),
        ("nat6", "rs1", put(TCP, dport=80), "arrived for [2001:db8:10::100]:80"),
        ("nat6", "client", put(IPv6, src="2001:db8:10::100"), "a packet with 2001:db8:10::100"),
        ("tun6", "rs1", put(IPv6, hlim=63), "hop limit went from 64 to 63"),
        ("tun6", "rs1", put(IPv6, dst="2001:db8::9"), "the packet inside is for 2001:db8::9"),
        ("tun", "rs1", put(TCP, flags="SEC"), "did not arrive as they were sent"),
    ],
)
def test_what_arrives_wrong_is_found(method: str, node: str, edit: Edit, says: str) -> None:
    plan = PLANS[method]()
    frames = edited(conversation(plan), node, "in", edit, only="P" if "payload" in says else "")
    assert says in broken(judge(plan, frames))


@pytest.mark.parametrize(
    ("method", "fields", "says"),
    [
        ("tun", {"src": "10.0.0.10"}, "the outer header is 10.0.0.10"),
        ("tun", {"dst": "192.168.57.102"}, "> 192.168.57.102"),
        ("tun6", {"src": "2001:db8::10"}, "the outer header is 2001:db8::10"),
    ],
)
def test_a_wrong_outer_header_is_found(method: str, fields: dict[str, str], says: str) -> None:
    plan = PLANS[method]()

    def edit(ether: Ether) -> Ether:
        for name, value in fields.items():
            setattr(ether.payload, name, value)
        return ether

    assert says in broken(judge(plan, edited(conversation(plan), "rs1", "in", edit)))


@pytest.mark.parametrize("method", ["tun", "tun6"])
def test_a_request_that_arrives_unwrapped_is_found(method: str) -> None:
    plan = PLANS[method]()

    def edit(ether: Ether) -> Ether:
        return Ether(src=ether.src, dst=ether.dst) / ether.payload.payload

    assert "not in a tunnel" in broken(judge(plan, edited(conversation(plan), "rs1", "in", edit)))


@pytest.mark.parametrize(
    ("at", "says"),
    [(14 + 10, "the IP header checksum is wrong"), (14 + 20 + 16, "the TCP checksum is wrong")],
    ids=["IP", "TCP"],
)
@pytest.mark.parametrize("method", ["nat", "dr"])
def test_wrong_checksums_are_found(method: str, at: int, says: str) -> None:
    plan = PLANS[method]()
    assert says in broken(judge(plan, spoil(at)(conversation(plan), "rs1")))


@pytest.mark.parametrize("method", ["dr", "tun"])
def test_answers_through_the_director_are_found(method: str) -> None:
    plan = PLANS[method]()
    frames = conversation(plan)
    detour = [replace(f, node="director") for f in frames if (f.node, f.direction) == ("client", "in")]
    assert "answers were seen at the director" in broken(judge(plan, frames + detour))


@pytest.mark.parametrize("method", FORWARDING)
@pytest.mark.parametrize("node", ["client", "rs1"])
def test_duplicates_are_found(method: str, node: str) -> None:
    plan = PLANS[method]()
    frames = conversation(plan)
    twice = next(f for f in frames if (f.node, f.direction) == (node, "in") and f.ip and not f.arp)
    assert f"1 packets were seen twice at {node}" in broken(judge(plan, [*frames, twice]))


def extra(plan: Plan, packet: object, node: str = "client", direction: str = "in") -> Frame:
    data = bytes(Ether(src=plan.node("director").interfaces[0].mac, dst="02:00:00:00:00:01") / packet)
    return Frame(node, "eth0", direction, 99.0, data)


@pytest.mark.parametrize("method", FORWARDING)
@pytest.mark.parametrize("kind", ["reset", "redirect", "unreachable"])
def test_what_the_host_adds_is_found(method: str, kind: str) -> None:
    plan = PLANS[method]()
    four = plan.version == 4
    what = {
        "reset": TCP(sport=80, dport=PORT, flags="R"),
        "redirect": ICMP(type=5, code=1) if four else ICMPv6ND_Redirect(tgt=plan.vip, dst=plan.vip),
        "unreachable": ICMP(type=3, code=3) if four else ICMPv6DestUnreach(code=4),
    }[kind]
    packet = ip(plan, plan.vip if kind == "reset" else plan.dip, plan.client) / what
    frame = extra(plan, packet)
    assert "seen: client eth0 in" in broken(judge(plan, [*conversation(plan), frame]))
    assert "seen: client eth0 in" in broken(watch.watch(plan, [*signs(plan), frame]))


@pytest.mark.parametrize("method", FORWARDING)
def test_another_claim_to_the_vip_is_found(method: str) -> None:
    plan = PLANS[method]()
    claim = told(plan, "02:00:00:00:01:02", plan.client)
    data = bytes(Ether(src="02:00:00:00:01:02", dst="02:00:00:00:00:01") / claim)
    frames = [*conversation(plan), Frame(plan.asks, "eth0", "in", 99.0, data)]
    faults = broken(judge(plan, frames))
    assert "2 answers to 1 questions" in faults and "rs2:eth0 claims the VIP" in faults
    assert plan.resolution in broken(watch.watch(plan, [*signs(plan), frames[-1]]))


# ------------------------------------------------------------------------------------------------- the run as a whole


def signs(plan: Plan, answers: int = 1) -> Frames:
    """One connection opened at the client, answered `answers` times; and the tunnel's MTU told, where there is one."""
    syn = ip(plan, plan.client, plan.vip) / TCP(sport=1000, dport=80, seq=7, flags="S")
    answer = ip(plan, plan.vip, plan.client) / TCP(sport=80, dport=1000, seq=1, ack=8, flags="SA")
    frames = [extra(plan, syn, direction="out"), *(extra(plan, answer) for _ in range(answers))]
    if plan.method == "tun":
        frames.append(extra(plan, too_big(plan, plan.tunnel_mtu)))
    return frames


def too_big(plan: Plan, mtu: int) -> IP | IPv6:
    if plan.version == 6:
        return ip(plan, plan.vip, plan.client) / ICMPv6PacketTooBig(mtu=mtu) / Raw(bytes(48))
    return IP(src=plan.vip, dst=plan.client) / ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(bytes(28))


@pytest.mark.parametrize("method", FORWARDING)
def test_a_quiet_run_holds(method: str) -> None:
    plan = PLANS[method]()
    assert not broken(watch.watch(plan, signs(plan)))
    flooded = extra(
        plan, ip(plan, plan.vip, plan.client) / TCP(sport=80, dport=1000, ack=8, flags="SA"), direction="by"
    )
    assert not broken(watch.watch(plan, [*signs(plan), flooded]))  # what a switch floods was sent to somebody else


def test_answers_to_a_syn_are_counted() -> None:
    plan = PLANS["dr"]()
    assert "1 answers came twice" in broken(watch.watch(plan, signs(plan, 2)))
    assert "1 were not answered" in broken(watch.watch(plan, signs(plan, 0)))
    assert "no SYN was captured" in broken(watch.watch(plan, []))


def test_what_a_busy_machine_repeats_is_no_fault() -> None:
    """Segments that their senders send again, a second late, are other packets; and what comes after the end is refused."""
    plan = PLANS["nat"]()
    syn = extra(
        plan, IP(src=plan.client, dst=plan.vip, id=9) / TCP(sport=1000, dport=80, seq=7, flags="S"), direction="out"
    )
    stamped = TCP(sport=80, dport=1000, seq=1, ack=8, flags="SA", options=[("Timestamp", (5, 0))])
    answer = extra(plan, IP(src=plan.vip, dst=plan.client) / stamped)
    refused = IP(src=plan.client, dst=plan.vip) / TCP(sport=1000, dport=80, seq=8, flags="R")
    late = [extra(plan, refused, direction="out"), extra(plan, refused, "rs1")]
    verdicts = watch.watch(plan, [*signs(plan), syn, answer, *late])
    assert not broken(verdicts)
    assert "refused by their own ends" in str(verdicts) and "1 SYNs repeated" in str(verdicts)
    assert "seen: rs1 eth0 in" in broken(watch.watch(plan, [*signs(plan), *late[1:]]))


@pytest.mark.parametrize("method", FORWARDING)
def test_a_server_may_refuse_only_what_it_was_given(method: str) -> None:
    plan = PLANS[method]()
    source, port = (plan.servers[0].address, 8080) if plan.method == "nat" else (plan.vip, 80)
    accept = ip(plan, source, plan.client) / TCP(sport=port, dport=1000, flags="SA")
    refuse = ip(plan, source, plan.client) / TCP(sport=port, dport=1000, flags="R")
    arrives = ip(plan, plan.vip, plan.client) / TCP(sport=80, dport=1000, flags="R")
    late = [extra(plan, accept, "rs1", "out"), extra(plan, refuse, "rs1", "out"), extra(plan, arrives)]
    assert not broken(watch.watch(plan, [*signs(plan), *late]))
    faults = broken(watch.watch(plan, [*signs(plan), late[0], extra(plan, refuse, "rs2", "out"), late[2]]))
    assert "seen: rs2 eth0 out" in faults and "seen: client eth0 in" in faults


def test_an_answer_that_is_not_rewritten_is_found() -> None:
    plan = PLANS["nat"]()
    answer = IP(src="192.168.10.100", dst=plan.client) / TCP(sport=8080, dport=1000, seq=1, ack=8, flags="SA")
    assert "192.168.10.100 answered" in broken(watch.watch(plan, [*signs(plan), extra(plan, answer)]))


@pytest.mark.parametrize("method", ["tun", "tun6"])
def test_the_tunnels_mtu(method: str) -> None:
    plan = PLANS[method]()
    assert "MTU 1500" in broken(watch.watch(plan, [*signs(plan), extra(plan, too_big(plan, 1500))]))
    assert "no such message" in broken(watch.watch(plan, signs(plan)[:-1]))
    says = "fragmentation needed" if plan.version == 4 else "packet too big"
    assert says in broken(watch.watch(PLANS["dr"](), [extra(plan, too_big(plan, 1480))]))


DUE = {"rs1": 100.0, "rs2": 100.0, "rs3": 100.0}


@pytest.mark.parametrize(
    ("got", "says"),
    [
        ({"rs1": 100, "rs2": 100, "rs3": 100}, ""),
        ({"rs1": 101, "rs2": 99, "rs3": 100}, ""),
        ({"rs1": 102, "rs2": 98, "rs3": 100}, "rs1 answered 102, due were 100"),
        ({"rs1": 100, "rs2": 100, "rs3": 99}, "299 of 300 were answered"),
        ({"rs1": 300}, "rs2 answered 0"),
        ({"rs1": 100, "rs2": 99, "rs3": 100, "rs9": 1}, "rs9 answered, but belongs to nobody here"),
    ],
)
def test_shares(got: dict[str, int], says: str) -> None:
    faults = broken([watch.shares(got, DUE, 300)])
    assert says in faults if says else not faults


@pytest.mark.parametrize(
    ("method", "received", "ok"),
    [("nat", 51_000_000, True), ("nat", 1_000_000, False), ("dr", 1_000_000, True), ("tun", 50_000_000, False)],
)
def test_load_on_the_director(method: str, received: int, ok: bool) -> None:
    assert watch.load_on_director(PLANS[method](), 50_000_000, received).ok is ok


def test_counts() -> None:
    assert watch.agreed(604, 604).ok and not watch.agreed(604, 603).ok
    assert watch.checksums({"rs1": 0}).ok
    assert "rs2 received 3" in broken([watch.checksums({"rs1": 0, "rs2": 3})])
