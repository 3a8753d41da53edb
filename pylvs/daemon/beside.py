"""Keeping the guard in line with services and addresses, so that the host's stack never answers a second time.

What becomes ours is guarded before the data plane takes it, and what ceases to be ours is released after, so that no
packet meets both. What was taken away with connections stays guarded for a moment, so that a reload of the rules does
not have the host reset them.
"""

from __future__ import annotations

import contextlib
import ipaddress
import time
from collections.abc import Callable, Iterable, Sequence

from pylvs.daemon.vips import is_local
from pylvs.director import Director
from pylvs.host.guard import Endpoint, Guard, GuardError
from pylvs.model import Host, Mark, RealServer, Service, ServiceKey, ServiceStatus

#: seconds in which a deleted service or real server with connections stays guarded: time for ``-C``, then ``-R``
GRACE = 5.0
#: ports of one mark rule that the guard holds one by one
WIDEST = 64


class Beside:
    """The guard of a director, once it has one. `say` prints a line to the operator. Not for several threads."""

    def __init__(self, director: Director, say: Callable[[str], None]) -> None:
        self._director = director
        self._say = say
        self._said: set[str] = set()
        self._gone: dict[tuple[str, Endpoint], float] = {}  # what was deleted with connections, and when
        self.guard: Guard | None = None

    def start(self) -> None:
        """Set the guard up, or say why it cannot be."""
        try:
            self.guard = Guard([])
        except GuardError as error:
            self._say(f"no guard: {error}")
            return
        self._director.guarded = True

    def stop(self) -> None:
        """Remove the guard."""
        if self.guard is not None:
            self.guard.close()

    def before_service(self, service: Service) -> None:
        """Guard a service that is about to be added."""
        if self.guard is None:
            return
        if service.protocol == "fwm":
            with contextlib.suppress(GuardError):
                self.guard.widen(marked(self._director.marks, service.fwmark, service.family)[0], set())
            return
        alone = set() if is_local(self._director.host, service.address) else {service.address}
        with contextlib.suppress(GuardError):  # `reconcile` tries again, and says so
            self.guard.widen({(service.protocol, service.address, service.port)}, set(), alone)

    def before_server(self, key: ServiceKey, server: RealServer) -> None:
        """Guard what a NAT real server answers that is about to be added."""
        if self.guard is None or server.method != "masq":
            return
        replies = {(key[1], server.address, server.port)}
        if key[1] == "fwm":
            replies = answers(marked(self._director.marks, key[3], key[0])[0], server)
        with contextlib.suppress(GuardError):
            self.guard.widen(set(), replies)

    def stand_at(self, interfaces: Iterable[str]) -> None:
        """Stand at the ingress of these interfaces, also of one that was made anew."""
        if self.guard is not None:
            guard, names = self.guard, sorted(interfaces)
            self._try("the guard cannot stand at all interfaces", lambda: guard.set_interfaces(names))

    def reconcile(self, host: Host, status: Sequence[ServiceStatus], interfaces: Iterable[str]) -> None:
        """Bring the guard in line; each part is tried even if another fails."""
        guard = self.guard
        if guard is None:
            self._warn(host, status)
            return
        services, replies = guarded(status)
        self._keep_lingering(services, replies)
        vips = {vip for _, vip, _ in services if not is_local(host, vip)}
        self._marked(status, services, replies)
        self._try("the guard cannot be changed", lambda: guard.update(services, replies, vips))
        self._try("the guard cannot be told what is local", lambda: guard.set_local(host.links))
        self.stand_at(interfaces)

    def _marked(self, status: Sequence[ServiceStatus], services: set[Endpoint], replies: set[Endpoint]) -> None:
        """Guard what the rules of firewall-mark services name, as far as a guard can; say of the rest that it cannot."""
        for each in status:
            if each.service.protocol != "fwm":
                continue
            found, wide = marked(self._director.marks, each.service.fwmark, each.service.family)
            services |= found
            for server in each.servers:
                if server.server.method == "masq":
                    replies |= answers(found, server.server)
            for rule in wide:
                self._once(
                    f"the rule for mark {rule.mark} to {rule.destination or 'any destination'} is too wide for the guard: the "
                    f"host's own stack sees these packets too; name one address and at most {WIDEST} ports, or keep them "
                    "from the host by a rule of your own"
                )

    @property
    def lingers(self) -> bool:
        """Is something guarded that is to be released soon?"""
        return any(time.monotonic() - since < GRACE + 1.0 for since in self._gone.values())

    def _keep_lingering(self, services: set[Endpoint], replies: set[Endpoint]) -> None:
        now = time.monotonic()
        gone: dict[tuple[str, Endpoint], float] = {}
        for (_, protocol, vip, port), server in self._director.lingering():
            if protocol == "fwm":
                continue
            wanted = [("services", (protocol, vip, port))]
            if server.method == "masq":
                wanted.append(("replies", (protocol, server.address, server.port)))
            for kind, endpoint in wanted:
                if endpoint not in (services if kind == "services" else replies):
                    gone[kind, endpoint] = self._gone.get((kind, endpoint), now)
        self._gone = gone
        for (kind, endpoint), since in gone.items():
            if now - since < GRACE:
                (services if kind == "services" else replies).add(endpoint)

    def _try(self, what: str, step: Callable[[], None]) -> None:
        """Do one step; say what went wrong the first time it does."""
        try:
            step()
        except GuardError as error:
            self._once(f"{what}: {error}")
        else:
            self._said = {said for said in self._said if not said.startswith(what)}

    def _once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self._say(text)

    def _warn(self, host: Host, status: Sequence[ServiceStatus]) -> None:
        """Without a guard: say of each VIP once that the host sees its packets too."""
        for vip in sorted({each.service.address for each in status if each.service.address}):
            forwards = host.forwarding6 if ":" in vip else host.forwarding4
            sysctl = "net.ipv6.conf.all.forwarding" if ":" in vip else "net.ipv4.ip_forward"
            if is_local(host, vip):
                why = "is an address of this host"
                remedy = "take it off its interface, or make nftables available"
            elif forwards:
                why = f"meets a host that forwards packets ({sysctl} is 1)"
                remedy = f"set {sysctl} to 0, or make nftables available"
            else:
                continue
            self._once(f"{vip} {why} and there is no guard: clients may be answered twice, or reset; {remedy}")


def marked(marks: Sequence[Mark], number: int, family: int) -> tuple[set[Endpoint], list[Mark]]:
    """What the rules that give the mark `number` in `family` name, of what a guard can hold: one destination address and at
    most `WIDEST` ports, or all. And the rules for which it is not enough."""
    found: set[Endpoint] = set()
    wide: list[Mark] = []
    for rule in marks:
        if rule.mark != number:
            continue
        target = ipaddress.ip_network(rule.destination, strict=False) if rule.destination else None
        if target is not None and target.version != family:
            continue
        ports = [port for low, high in rule.ports for port in range(low, high + 1)] or [0]
        if target is None or target.num_addresses > 1 or len(ports) > WIDEST or rule.source:
            wide.append(rule)
            continue
        address = str(target.network_address)
        protocols = (rule.protocol,) if rule.protocol else ("tcp", "udp", "sctp")
        found |= {(protocol, address, port) for protocol in protocols for port in ports}
    return found, wide


def answers(services: set[Endpoint], server: RealServer) -> set[Endpoint]:
    """Where a NAT real server of a firewall-mark service answers from: its port, or the packet's own one."""
    return {(protocol, server.address, server.port or port) for protocol, _, port in services}


def guarded(status: Sequence[ServiceStatus]) -> tuple[set[Endpoint], set[Endpoint]]:
    """What the host must not see: virtual services, and what NAT real servers answer from."""
    services: set[Endpoint] = set()
    replies: set[Endpoint] = set()
    for each in status:
        if each.service.protocol == "fwm":
            continue
        services.add((each.service.protocol, each.service.address, each.service.port))
        for server in each.servers:
            if server.server.method == "masq":
                replies.add((each.service.protocol, server.server.address, server.server.port))
    return services, replies
