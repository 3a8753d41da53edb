"""Verdicts on the labs of many clients: who met which server, before and after a change. No socket in here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pylvs.lab.topology import Plan
from pylvs.lab.verdict import Case, Verdict

Meeting = tuple[str, str]  # client's address, name of the server that answered it ("" for none)


def addresses(count: int, networks: int) -> list[str]:
    """`count` client addresses over `networks` /24 networks, one network after the other in turn."""
    return [f"10.1.{number % networks}.{10 + number // networks}" for number in range(count)]


def network_of(address: str) -> str:
    """The /24 network of an IPv4 address, as its first address."""
    return f"{address.rpartition('.')[0]}.0"


def met(meetings: Iterable[Meeting]) -> dict[str, Counter[str]]:
    """Client -> how often each server answered it."""
    found: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for client, server in meetings:
        found[client][server] += 1
    return dict(found)


def answered(meetings: Sequence[Meeting], errors: Mapping[str, int], what: str = "requests") -> Verdict:
    """Everybody got an answer."""
    case = Case(f"all {len(meetings)} {what} answered")
    got = sum(1 for _, server in meetings if server)
    case.need(bool(meetings) and got == len(meetings), f"{got} of {len(meetings)} were answered")
    for text, count in errors.items():
        case.need(False, f"{count} x {text}")
    case.evidence = [f"{got} answers to {len(met(meetings))} clients"]
    return case.verdict()


def faithful(claim: str, groups: Mapping[str, Counter[str]]) -> Verdict:
    """Each of `groups` (of one client, or of one network) met one server only, more than once."""
    case = Case(claim)
    case.need(bool(groups), "nobody was answered")
    for name, servers in groups.items():
        text = ", ".join(f"{server or 'nobody'} {count}" for server, count in servers.most_common())
        case.need(len(servers) == 1, f"{name} met {text}")
        case.need(servers.total() > 1, f"{name} came once only: that says nothing")
    case.evidence = [f"{len(groups)} looked at, with {sum(c.total() for c in groups.values())} connections"]
    return case.verdict()


def even(claim: str, groups: Mapping[str, Counter[str]], servers: Sequence[str]) -> Verdict:
    """Round robin shares the groups out: each server's number of them is its due within one."""
    case = Case(claim)
    owners = Counter(counts.most_common(1)[0][0] for counts in groups.values())
    for server in servers:
        due = len(groups) / len(servers)
        case.need(abs(owners[server] - due) <= 1, f"{server} has {owners[server]}, due were {due:g}")
    case.evidence = [", ".join(f"{server} {owners[server]}" for server in servers)]
    return case.verdict()


def templates(plan: Plan, listing: str, groups: Mapping[str, Counter[str]]) -> Verdict:
    """`ipvsadm -L -n -c` lists a template for each of `groups` (client or network), to the server that it met."""
    case = Case(f"the director lists a template for each of the {len(groups)}, with the server that they met")
    names = {server.address: server.name for server in plan.servers}
    lines = [line for line in listing.splitlines() if len(line.split()) == 6 and line.split()[3].endswith(":0")]
    found: dict[str, str] = {}
    for line in lines:
        client, real = line.split()[3], line.split()[5]
        found[client.rpartition(":")[0]] = names.get(real.rpartition(":")[0], real)
    for group, servers in groups.items():
        server = servers.most_common(1)[0][0]
        case.need(group in found, f"{group} has no template")
        if group in found:
            case.need(found[group] == server, f"the template of {group} is for {found[group]}, but {server} answered")
    for group in found.keys() - groups.keys():
        case.need(False, f"a template for {group}, who is nobody here")
    case.evidence = [line.strip() for line in lines[:3]] + ([f"and {len(lines) - 3} more"] if len(lines) > 3 else [])
    return case.verdict()


def scattered(before: str, groups: Mapping[str, Counter[str]]) -> Verdict:
    """With a finer granularity, at least one network meets several servers."""
    case = Case("with -M 255.255.255.255 every address is a client of its own: networks meet several servers")
    several = [name for name, servers in groups.items() if len(servers) > 1]
    case.need(bool(several), f"no network met more than one server{before}")
    case.evidence = [f"{len(several)} of {len(groups)} networks met more than one server"]
    if several:
        counts = ", ".join(f"{server} {count}" for server, count in sorted(groups[several[0]].items()))
        case.evidence.append(f"{several[0]}/24: {counts}")
    return case.verdict()


# ------------------------------------------------------------------------------------------------------------ hashing


def shared(scheduler: str, now: Mapping[str, str], servers: Sequence[str]) -> Verdict:
    """No server is left out, none gets more than twice its due: a hash spreads by chance, not in turn."""
    case = Case(f"{scheduler}: every server has clients, none more than twice its due")
    owners = Counter(now.values())
    due = len(now) / len(servers)
    for server in servers:
        case.need(
            0 < owners[server] <= 2 * due, f"{server} has {owners[server]} of {len(now)} clients, due were {due:.0f}"
        )
    case.evidence = [", ".join(f"{server} {owners[server]}" for server in servers)]
    return case.verdict()


def same(claim: str, before: Mapping[str, str], now: Mapping[str, str]) -> Verdict:
    """Every client meets whom it met before."""
    case = Case(claim)
    changed = [client for client in before if now.get(client) != before[client]]
    case.need(bool(before), "nobody was answered")
    case.need(not changed, f"{len(changed)} of {len(before)} met another server, {', '.join(changed[:3])} for one")
    case.evidence = [f"{len(before) - len(changed)} of {len(before)} clients met the server they knew"]
    return case.verdict()


def figures(scheduler: str, gone: str, before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, object]:
    """How many clients moved when the server `gone` went: its own, who had to, and others, who had not."""
    own = {client for client, server in before.items() if server == gone}
    others = before.keys() - own
    return {
        "scheduler": scheduler,
        "removed": gone,
        "clients": len(before),
        "own": len(own),
        "own_moved": sum(1 for client in own if now.get(client) not in {gone, "", None}),
        "others": len(others),
        "others_moved": sum(1 for client in others if now.get(client) != before[client]),
    }


def moved(figure: Mapping[str, object], bound: float | None) -> Verdict:
    """The removed server's clients have all found another one; of the others at most the part `bound` has moved (`None`: how
    many is only said)."""
    name, gone = figure["scheduler"], figure["removed"]
    own, own_moved, others, others_moved = (int(str(figure[k])) for k in ("own", "own_moved", "others", "others_moved"))
    what = "how many others move is said below" if bound is None else f"of the others at most {bound:.0%} move"
    case = Case(f"{name}: {gone} is removed: its clients are served by others, {what}")
    case.need(own > 0, f"{gone} had no clients")
    case.need(own == own_moved, f"{own - own_moved} of {own} clients of {gone} were not served by another server")
    part = others_moved / others if others else 0.0
    if bound is not None:
        case.need(part <= bound, f"{others_moved} of {others} other clients moved ({part:.1%})")
    case.evidence = [f"of {own} clients of {gone} {own_moved} moved; of {others} others {others_moved} ({part:.1%})"]
    return case.verdict()


# --------------------------------------------------------------------------------------------------------------- marks


def together(first: Mapping[str, str], second: Mapping[str, str], ports: tuple[int, int]) -> Verdict:
    """Each client met the same server on both ports."""
    case = Case(f"each client meets one server on both ports, {ports[0]} and {ports[1]}")
    apart = {client for client in first.keys() | second.keys() if first.get(client) != second.get(client)}
    case.need(bool(first) and bool(second), "nobody was answered")
    for client in sorted(apart):
        case.need(False, f"{client} met {first.get(client)} on {ports[0]} and {second.get(client)} on {ports[1]}")
    case.evidence = [f"{len(first.keys() - apart)} of {len(first)} clients"]
    return case.verdict()


def unmarked(port: int, meetings: Sequence[Meeting], errors: Mapping[str, int]) -> Verdict:
    """A port without mark is none of the service's: no real server answers there, although each listens."""
    case = Case(f"port {port} has no mark: no real server answers there, although each of them listens")
    for client, server in meetings:
        case.need(not server, f"{server} answered {client}")
    case.need(bool(meetings), "nobody asked")
    case.evidence = [f"{count} x {text}" for text, count in errors.items()]
    return case.verdict()
