"""What each forwarding method claims, held against the frames of one request that were captured at every node.

`prove` takes the frames of a probe (one HTTP request from a known client port, after the VIP's ARP entry was deleted) and
returns verdicts. Nothing here opens a socket: fabricated frames do as well.
Frames are looked at where they *arrive*: what the director sends is taken from its neighbours' interfaces.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pylvs.lab.packet import IPIP, IPV6, Frame, Packet
from pylvs.lab.topology import Plan, Server, endpoint, place_of
from pylvs.lab.verdict import ACK, SYN, Case, Verdict, macs, resets


@dataclass(frozen=True)
class Probe:
    """One request: the lab, the client's port, the server that answered, and every frame that was seen."""

    plan: Plan
    port: int
    server: Server
    frames: Sequence[Frame]

    def line(self, frame: Frame) -> str:
        """The frame in one line, MAC addresses by their owners' names."""
        return frame.line(self.plan.owners)

    def packet(self, frame: Frame) -> Packet | None:
        """The probe's packet in `frame`, out of its tunnel if it is in one; `None` if it is none of the probe's."""
        outer = frame.ip
        packet = outer and (outer.inner or outer)
        segment = packet and packet.tcp
        return packet if segment and self.port in {segment.source, segment.target} else None

    def pick(self, node: str, direction: str, *, request: bool) -> list[tuple[Frame, Packet]]:
        """Frames of the probe at `node`, with the packet in them: those of the client (`request`) or the answers."""
        found = []
        for frame in self.frames:
            packet = self.packet(frame) if (frame.node, frame.direction) == (node, direction) else None
            if packet and packet.tcp and (packet.tcp.source == self.port) == request:
                found.append((frame, packet))
        return found

    def pairs(self, case: Case) -> list[tuple[tuple[Frame, Packet], tuple[Frame, Packet]]]:
        """The client's packets as they left and as they arrived at the server, in order."""
        sent = self.pick("client", "out", request=True)
        got = self.pick(self.server.name, "in", request=True)
        case.need(bool(sent), "no packet of the client was captured")
        case.need(
            len(sent) == len(got), f"the client sent {len(sent)} packets, {len(got)} arrived at {self.server.name}"
        )
        # what is repeated is another packet in time stamp, identification or flow label: the second copy is the second's
        arrived = dict(_numbered(got))
        left = _numbered(sent)
        missing = [key for key, _ in left if key not in arrived]
        case.need(not missing, f"{len(missing)} of the client's packets did not arrive as they were sent")
        return [(item, arrived[key]) for key, item in left if key in arrived]

    def show(self, pairs: list[tuple[tuple[Frame, Packet], tuple[Frame, Packet]]]) -> list[str]:
        """Before and after of the packet that carries the request (the first one if none does)."""
        if not pairs:
            return []
        (before, _), (after, _) = max(pairs, key=lambda pair: len(pair[0][1].payload))
        return [f"before  {self.line(before)}", f"after   {self.line(after)}"]


def order(packet: Packet) -> tuple[int, ...]:
    """A place in the conversation that no rewriting changes: frames of one millisecond may be captured in another order."""
    segment = packet.tcp
    assert segment is not None
    return segment.sequence, len(segment.payload), segment.acknowledged, segment.flags


def _numbered(items: list[tuple[Frame, Packet]]) -> list[tuple[tuple[int, ...], tuple[Frame, Packet]]]:
    """Each with its place in the conversation, and which of those at this place it is."""
    seen: Counter[tuple[int, ...]] = Counter()
    found = []
    for item in items:
        place = order(item[1])
        found.append(((*place, seen[place]), item))
        seen[place] += 1
    return found


FIELDS = (
    ("version and header length", 0, 1),
    ("TOS", 1, 2),
    ("length", 2, 4),
    ("identification", 4, 6),
    ("flags and fragment offset", 6, 8),
    ("TTL", 8, 9),
    ("protocol", 9, 10),
    ("header checksum", 10, 12),
    ("source address", 12, 16),
    ("destination address", 16, 20),
)
FIELDS6 = (
    ("version, traffic class and flow label", 0, 4),
    ("length", 4, 6),
    ("next header", 6, 7),
    ("hop limit", 7, 8),
    ("source address", 8, 24),
    ("destination address", 24, 40),
)
SEGMENT_FIELDS = (
    ("source port", 0, 2),
    ("destination port", 2, 4),
    ("sequence number", 4, 8),
    ("acknowledgement", 8, 12),
    ("TCP flags", 12, 14),
    ("window", 14, 16),
    ("TCP checksum", 16, 18),
    ("urgent pointer", 18, 20),
)


def changed(before: Packet, after: Packet) -> list[str]:
    """Names of the fields that differ between two TCP packets."""
    fields = FIELDS if before.version == 4 else FIELDS6
    names = [name for name, begin, end in fields if before.raw[begin:end] != after.raw[begin:end]]
    if before.version == 4 and before.raw[20 : before.header] != after.raw[20 : after.header]:
        names.append("IP options")
    old, new = before.payload, after.payload
    names += [name for name, begin, end in SEGMENT_FIELDS if old[begin:end] != new[begin:end]]
    if old[20:] != new[20:]:
        names.append("TCP options or payload")
    return names


def untouched(case: Case, before: Packet, after: Packet, may: Iterable[str], hops: int) -> None:
    """Nothing but `may`, TTL or hop limit (by exactly `hops`) and the header checksum differs; the checksums are right."""
    life = "TTL" if before.version == 4 else "hop limit"
    for name in changed(before, after):
        case.need(name in {life, "header checksum", *may}, f"{name} changed")
    wanted = before.ttl - hops
    case.need(after.ttl == wanted, f"{life} went from {before.ttl} to {after.ttl}, not to {wanted}")
    case.need(after.sound, "the IP header checksum is wrong on arrival")
    case.need(after.segment_sound, "the TCP checksum is wrong on arrival")


def prove(probe: Probe) -> list[Verdict]:
    """All verdicts about one request, those of the lab's method first."""
    methods = {"nat": _nat, "dr": _dr, "tun": _tun}
    return [*methods[probe.plan.method](probe), _arp(probe), _once(probe)]


def _nat(probe: Probe) -> list[Verdict]:
    plan, server = probe.plan, probe.server
    only = Case("the client sees nobody but the VIP")
    seen: Counter[str] = Counter()
    for frame in probe.frames:
        if frame.node == "client" and (packet := frame.ip) and not packet.housekeeping:
            peer = packet.source if frame.direction == "in" else packet.target
            seen[peer] += 1
            only.need(peer == plan.vip, f"a packet with {peer}: {probe.line(frame)}")
    only.need(bool(seen), "no packet was captured at the client")
    only.evidence = [f"{count} packets, all with {peer}" for peer, count in seen.items()]

    mapped = Case(f"the request reaches the server at RIP and port {place_of(server)}, from the client's own address")
    alike = Case(f"nothing but destination, {plan.life} and checksums changed on the way")
    pairs = probe.pairs(mapped)
    for (_, before), (_, after) in pairs:
        assert before.tcp and after.tcp
        place = endpoint(after.target, after.tcp.target)
        mapped.need(place == place_of(server), f"a packet arrived for {place}")
        mapped.need(after.source == plan.client, f"a packet arrived from {after.source}, not from {plan.client}")
        mapped.need(after.tcp.source == before.tcp.source, "the client's port changed")
        untouched(alike, before, after, ("destination address", "destination port", "TCP checksum"), plan.hops)
    mapped.evidence = probe.show(pairs)
    alike.need(bool(pairs), "no packet was captured on both sides")
    alike.evidence = [f"{len(pairs)} packets of the request compared, field by field"]

    back = Case("answers go back through the director, which puts the VIP in")
    answers = probe.pick(server.name, "out", request=False)
    through = probe.pick("director", "in", request=False)
    arrived = probe.pick("client", "in", request=False)
    back.need(bool(answers), "the server sent no answer")
    back.need(
        len(through) == len(answers), f"{server.name} sent {len(answers)} answers, {len(through)} reached the director"
    )
    back.need(
        len(arrived) == len(answers), f"{server.name} sent {len(answers)} answers, {len(arrived)} reached the client"
    )
    for frame, packet in arrived:
        back.need(packet.source == plan.vip, f"an answer came from {packet.source}")
        back.need(frame.source_mac in macs(plan, "director"), "an answer did not come by the director")
        back.need(packet.sound and packet.segment_sound, "an answer arrived with a wrong checksum")
    if through and arrived:
        back.evidence = [f"before  {probe.line(through[0][0])}", f"after   {probe.line(arrived[0][0])}"]
    return [case.verdict() for case in (only, mapped, alike, back)]


def _dr(probe: Probe) -> list[Verdict]:
    plan, server = probe.plan, probe.server
    moved = Case("the director readdresses the frame to the server: its MAC addresses change")
    alike = Case(f"above layer 2 the request arrives as it was sent, but for {plan.alters}")
    pairs = probe.pairs(moved)
    for (sent, before), (got, after) in pairs:
        moved.need(sent.target_mac in macs(plan, "director"), "the client did not send to the director's MAC address")
        moved.need(got.source_mac in macs(plan, "director"), "the server's frame does not come from the director")
        moved.need(got.target_mac in macs(plan, server.name), f"the frame is not addressed to {server.name}")
        moved.need(after.target == plan.vip, f"a packet arrived for {after.target}, not for the VIP")
        untouched(alike, before, after, (), plan.hops)
    moved.evidence = probe.show(pairs)
    alike.need(bool(pairs), "no packet was captured on both sides")
    alike.evidence = _compared(pairs)
    return [case.verdict() for case in (moved, alike, _bypass(probe))]


def _tun(probe: Probe) -> list[Verdict]:
    plan, server = probe.plan, probe.server
    protocol = IPIP if plan.version == 4 else IPV6
    wrapped = Case(f"the request travels in a tunnel: outer header {plan.dip} > {server.address}, protocol {protocol}")
    alike = Case(f"the packet inside arrives as it was sent, but for {plan.alters}")
    pairs = probe.pairs(wrapped)
    for (_, before), (frame, after) in pairs:
        outer = frame.ip
        assert outer is not None
        ends = f"{outer.source} > {outer.target}"
        wrapped.need(outer.protocol == protocol, f"a packet arrived in protocol {outer.protocol}, not in a tunnel")
        wrapped.need(ends == f"{plan.dip} > {server.address}", f"the outer header is {ends}")
        wrapped.need(outer.sound, "the outer header checksum is wrong")
        wrapped.need(after.target == plan.vip, f"the packet inside is for {after.target}, not for the VIP")
        untouched(alike, before, after, (), plan.hops)
    wrapped.evidence = probe.show(pairs)
    alike.need(bool(pairs), "no packet was captured on both sides")
    alike.evidence = _compared(pairs)
    return [case.verdict() for case in (wrapped, alike, _bypass(probe))]


def _compared(pairs: list[tuple[tuple[Frame, Packet], tuple[Frame, Packet]]]) -> list[str]:
    if not pairs:
        return []
    (_, before), (_, after) = max(pairs, key=lambda pair: len(pair[0][1].payload))
    text = f"{len(pairs)} packets compared byte by byte; of {len(before.raw)} bytes of the request only "
    if before.version == 6:
        return [f"{text}hop limit {before.ttl} > {after.ttl} differs"]
    sums = " > ".join(f"0x{packet.raw[10:12].hex()}" for packet in (before, after))
    return [f"{text}TTL {before.ttl} > {after.ttl} and header checksum {sums} differ"]


def _bypass(probe: Probe) -> Case:
    """Answers leave the server from the VIP and never pass the director."""
    plan, server = probe.plan, probe.server
    case = Case("answers go from the server to the client without passing the director")
    answers = probe.pick(server.name, "out", request=False)
    arrived = probe.pick("client", "in", request=False)
    case.need(bool(answers), "the server sent no answer")
    case.need(
        len(arrived) == len(answers), f"{server.name} sent {len(answers)} answers, {len(arrived)} reached the client"
    )
    for frame, packet in answers:
        case.need(packet.source == plan.vip, f"an answer left from {packet.source}, not from the VIP")
        case.need(frame.target_mac not in macs(plan, "director"), "an answer was sent to the director's MAC address")
    passed = [item for direction in ("in", "out") for item in probe.pick("director", direction, request=False)]
    case.need(not passed, f"{len(passed)} answers were seen at the director")
    if answers and arrived:
        case.evidence = [f"leaves   {probe.line(answers[0][0])}", f"arrives  {probe.line(arrived[0][0])}"]
    case.evidence.append(f"{len(answers)} answers, {len(passed)} of them seen at the director")
    return case


def _arp(probe: Probe) -> Verdict:
    """The ARP problem: all servers of DR have the VIP, and only the director may say where it is."""
    plan = probe.plan
    case = Case(f"only the director answers {plan.resolution} for the VIP, once")
    asked = [
        f for f in probe.frames if (f.node, f.direction) == (plan.asks, "out") and f.arp and f.arp.target == plan.vip
    ]
    told = [
        frame
        for frame in probe.frames
        if (frame.node, frame.direction) == (plan.asks, "in")
        and (arp := frame.arp)
        and arp.operation == 2
        and arp.sender == plan.vip
    ]
    case.need(bool(asked), f"{plan.asks} did not ask for the VIP")
    case.need(len(told) == 1, f"{len(told)} answers to {len(asked)} questions")
    for frame in told:
        where = frame.arp.mac if frame.arp else ""
        case.need(where in macs(plan, "director"), f"{plan.owners.get(where, where)} claims the VIP")
    case.evidence = [probe.line(frame) for frame in (*asked[:1], *told)]
    return case.verdict()


def _told(packet: Packet) -> tuple[int, ...]:
    """What a segment says, whatever addresses and ports it travels under."""
    tcp = packet.tcp
    return (tcp.flags, tcp.sequence, tcp.acknowledged, len(tcp.payload)) if tcp else ()


def _once(probe: Probe) -> Verdict:
    """Neither the director's kernel nor a server's adds anything to the conversation."""
    case = Case("one answer to the SYN; no duplicate, no reset, no ICMP")
    answers = [packet for _, packet in probe.pick("client", "in", request=False)]
    # What its sender repeats, on a machine too busy to deliver it in a second, is another packet: its id differs. Only the
    # answers to two SYNs that arrive together may be alike.
    sent = [packet for _, packet in probe.pick("client", "out", request=True)]
    asked = max(1, sum(1 for packet in sent if packet.tcp and packet.tcp.flags & SYN))
    opened = {packet.payload for packet in answers if packet.tcp and packet.tcp.flags & (SYN | ACK) == SYN | ACK}
    case.need(bool(opened), "no answer to the SYN")
    # each answer to a SYN is acknowledged, and IPv6 packets have no id by which two such would differ
    opened |= {
        p.payload for p in (*answers, *sent) if p.version == 6 and p.tcp and p.tcp.flags == ACK and not p.tcp.payload
    }
    # what a host sends twice it repeats itself; IPv6 has no id that tells, so what arrives is held against what was sent
    nodes = ("client", *(server.name for server in probe.plan.servers))
    repeated = Counter(
        _told(packet)
        for node in nodes
        for request in (True, False)
        for _, packet in probe.pick(node, "out", request=request)
        if packet.version == 6 and packet.tcp
    )
    for node in nodes:
        copies = Counter(
            (direction, packet.identification, packet.payload, _told(packet))
            for direction in ("in", "out")
            for request in (True, False)
            for _, packet in probe.pick(node, direction, request=request)
        )
        double = sum(
            max(0, count - max(asked if key[2] in opened else 1, repeated[key[3]])) for key, count in copies.items()
        )
        case.need(not double, f"{double} packets were seen twice at {node}")
    for frame in (*resets(probe.plan, probe.frames)[0], *(f for f in probe.frames if f.ip and f.ip.icmp)):
        case.need(False, f"seen: {probe.line(frame)}")
    strangers = {
        server.name
        for server in probe.plan.servers
        if server != probe.server and probe.pick(server.name, "in", request=True)
    }
    case.need(not strangers, f"the request also reached {', '.join(sorted(strangers))}")
    seen = Counter(packet.tcp.marks for packet in answers if packet.tcp)
    case.evidence = [
        f"at the client: {len(answers)} answers, " + ", ".join(f"{count} [{m}]" for m, count in seen.items())
    ]
    return case.verdict()
