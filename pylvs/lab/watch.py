"""Verdicts on a run as a whole: the signs that it left on the wire, the shares, the transfers, the kernels' counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from pylvs.lab.packet import Frame
from pylvs.lab.topology import Plan
from pylvs.lab.verdict import SYN, Case, Verdict, macs, resets


def watch(plan: Plan, frames: Sequence[Frame]) -> list[Verdict]:
    """Verdicts on the signs (SYN, RST, ICMP, ARP) of a whole run, captured at the client and the servers."""
    clean = Case("in the whole run no reset, no redirect, no other ICMP error, and nobody else claims the VIP")
    big = Case(f"the client is told the tunnel's MTU, {plan.tunnel_mtu}, when a packet is too big for it")
    told = 0
    for frame in frames:
        packet, arp = frame.ip, frame.arp
        if arp and frame.direction == "in" and frame.node == plan.asks:
            claims = arp.sender == plan.vip and arp.mac not in macs(plan, "director")
            clean.need(not claims, f"seen: {frame.line(plan.owners)}")
        if packet is None or frame.direction != "in" or not (message := packet.icmp):
            continue
        if plan.method == "tun" and message.too_big:
            if frame.node == "client":  # elsewhere it is on its way
                told += 1
                big.need(message.mtu == plan.tunnel_mtu, f"seen: {frame.line(plan.owners)}")
                big.evidence = big.evidence or [frame.line(plan.owners)]
        else:
            clean.need(False, f"seen: {frame.line(plan.owners)}")
    faults, own = resets(plan, frames)
    for frame in faults:
        clean.need(False, f"seen: {frame.line(plan.owners)}")
    clean.evidence = [f"{len(frames)} frames with SYN, RST, ICMP or {plan.resolution} looked at"]
    if own:
        clean.evidence.append(f"{own} late repeats in ended connections were refused by their own ends: a busy machine")

    answered = Case("every SYN of the client was answered by the VIP, and no answer came twice")
    sent: Counter[tuple[int, int]] = Counter()
    replies: Counter[tuple[int, int]] = Counter()
    copies: Counter[tuple[tuple[int, int], bytes]] = Counter()
    for frame in frames:
        packet = frame.ip if frame.node == "client" else None
        segment = packet and packet.tcp
        if not packet or not segment or not segment.flags & SYN:
            continue
        if frame.direction == "out":
            sent[segment.source, segment.sequence] += 1
        elif frame.direction == "in":
            answered.need(packet.source == plan.vip, f"{packet.source} answered: {frame.line(plan.owners)}")
            key = (segment.target, (segment.acknowledged - 1) & 0xFFFFFFFF)
            replies[key] += 1
            copies[key, packet.payload] += 1
    silent = sum(1 for key in sent if not replies[key])
    # answers that a server repeats differ in their time stamp; those to a repeated SYN may come in the same millisecond
    double = sum(max(0, count - max(1, sent[key])) for (key, _), count in copies.items())
    answered.need(bool(sent), "no SYN was captured")
    answered.need(not silent, f"{silent} were not answered")
    answered.need(not double, f"{double} answers came twice")
    again = sum(sent.values()) - len(sent)
    answered.evidence = [f"{len(sent)} connections opened, {sum(replies.values())} answers, {again} SYNs repeated"]
    cases = [clean, answered]
    if plan.method == "tun":
        big.need(bool(big.evidence), "no such message was seen although packets of 1500 bytes were sent")
        cases.append(big)
    return [case.verdict() for case in cases]


def shares(servers: Mapping[str, int], expected: Mapping[str, float], requests: int) -> Verdict:
    """`servers` counts the answers by server; `expected` is each one's due, met within one request (round robin)."""
    case = Case(f"all {requests} requests answered, each server's share as due (within one)")
    total = sum(servers.values())
    case.need(total == requests, f"{total} of {requests} were answered")
    for name, due in expected.items():
        got = servers.get(name, 0)
        case.need(abs(got - due) <= 1, f"{name} answered {got}, due were {due:g}")
    for name in servers.keys() - expected.keys():
        case.need(False, f"{name} answered, but belongs to nobody here")
    case.evidence = [", ".join(f"{name} {servers.get(name, 0)}" for name in expected)]
    return case.verdict()


def load_on_director(plan: Plan, size: int, received: int) -> Verdict:
    """`received` bytes reached the director while `size` bytes were downloaded."""
    part = received / size if size else 0.0
    text = f"{received / 1e6:.1f} MB reached the director while {size / 1e6:.0f} MB were downloaded"
    if plan.method == "nat":
        case = Case("the whole download passes the director")
        case.need(part >= 1.0, text)
    else:
        case = Case("of the download only the client's acknowledgements pass the director")
        case.need(part < 0.1, text)
    case.evidence = [text]
    return case.verdict()


def agreed(client: int, director: int) -> Verdict:
    """The connections that the client opened beside those that the director counted."""
    case = Case("the director counts the connections that the client opened")
    case.evidence = [f"client {client}, director {director}"]
    case.need(client == director, case.evidence[0])
    return case.verdict()


def checksums(errors: Mapping[str, int]) -> Verdict:
    """`errors` are the kernel's own counts, by node, of segments and headers with a wrong checksum."""
    case = Case("no host received a packet with a wrong checksum")
    for node, count in errors.items():
        case.need(count == 0, f"{node} received {count}")
    case.evidence = ["kernel counters: " + ", ".join(f"{node} {count}" for node, count in errors.items())]
    return case.verdict()
