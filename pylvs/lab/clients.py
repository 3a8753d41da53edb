"""The steps of the labs of many clients, between up and down: `persist`, `hash`, `mark` and `sctp`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pylvs.lab import many
from pylvs.lab.drive import FIRST_PORT, Drive
from pylvs.lab.life import PYTHON
from pylvs.lab.many import Meeting
from pylvs.lab.process import Failed
from pylvs.lab.topology import endpoint

NETWORKS = 12  # divides by three servers: each gets as many
MH_BOUND = 0.10  # Maglev's own: a few others move, as the table is filled anew
TIMEOUT = 1.0  # seconds in which a port that nobody serves is to show that


class Clients(Drive):
    """What these labs have in common: requests from many addresses, and who met whom."""

    def all(self) -> None:
        """Every step in turn."""
        {"persist": self.persist, "hash": self.hash, "mark": self.mark, "sctp": self.sctp}[self._plan.kind]()
        self._lab.living()

    def ask(
        self, phase: str, clients: Sequence[str], round_: int, port: int = 0, timeout: float = 0.0
    ) -> tuple[list[Meeting], Mapping[str, int]]:
        """One request from each of `clients`; from a local port of the round's own, so that each is a new connection."""
        found: list[dict[str, Any]] = []

        def each(document: dict[str, Any]) -> None:
            if document["event"] == "progress":
                self._progress.count(document["done"], document["of"])
            else:
                found.append(document)

        more = ["--timeout", str(timeout)] if timeout else []
        first = FIRST_PORT + round_ * len(clients) % 20_000
        url = f"http://{endpoint(self._plan.vip, port)}" if port else ""
        self.load("--from", ",".join(clients), "--ports", str(first), *more, each=each, url=url)
        if not found:
            raise Failed("the client said nothing of its requests")
        report = found[0]
        meetings = [(client, server) for client, server in report.pop("each")]
        self._result.phases.append(report | {"phase": phase, "even": self._plan.kind != "hash"})
        return meetings, report["errors"]

    def ipvsadm(self, *words: str) -> str:
        """A command on the director, shown as it is given."""
        self._progress.step("pylvs ipvsadm " + " ".join(words))
        return self._lab.command("director", [*PYTHON, "pylvs", "ipvsadm", *words])

    def persist(self) -> None:
        """Networks stay with a server, then, at another granularity, addresses do."""
        plan, names = self._plan, [server.name for server in self._plan.servers]
        rounds = max(2, self._options.requests // (4 * NETWORKS))
        clients = many.addresses(4 * NETWORKS, NETWORKS)
        verdicts = self._result.verdicts
        for number, mask in enumerate(("255.255.255.0", "255.255.255.255")):
            if number:
                self.ipvsadm("-E", *plan.selector, "-s", "rr", "-p", "300", "-M", mask)
            bits = 32 if number else 24
            self._progress.step(f"{rounds} requests from each of {len(clients)} addresses, persistent by /{bits}")
            if number:  # one network after the other, or each would meet the same server by chance of the order
                clients.sort(key=many.network_of)
            meetings: list[Meeting] = []
            errors: dict[str, int] = {}
            for turn in range(rounds):
                more, failed = self.ask(f"/{bits} #{turn + 1}", clients, number * rounds + turn)
                meetings += more
                errors |= failed
            self._join(f"by /{bits}", rounds)
            verdicts.append(many.answered(meetings, errors))
            by_client = many.met(meetings)
            by_network = many.met((many.network_of(client), server) for client, server in meetings)
            verdicts.append(many.faithful(f"-M {mask}: every client's connections stay with one server", by_client))
            groups = by_client
            if not number:
                groups = by_network
                claim = f"-M {mask}: all addresses of a /24 network are one client, and meet one server"
                verdicts.append(many.faithful(claim, by_network))
            what = "addresses" if number else "networks"
            verdicts.append(many.even(f"the {what} are shared out in turn", groups, names))
            if number:
                verdicts.append(many.scattered("", by_network))
            else:
                listing = self.ipvsadm("-L", "-n", "-c")
                verdicts.append(many.templates(plan, listing, groups))
                self._result.table = "\n".join(listing.splitlines()[:2])
                shown = [
                    line for line in listing.splitlines() if len(line.split()) == 6 and line.split()[3].endswith(":0")
                ]
                self._result.table += "\n" + "\n".join(shown)

    def _join(self, name: str, rounds: int) -> None:
        """The last `rounds` phases as one."""
        parts = self._result.phases[-rounds:]
        del self._result.phases[-rounds:]
        servers: dict[str, int] = {}
        for part in parts:
            for server, count in part["servers"].items():
                servers[server] = servers.get(server, 0) + count
        total = {key: sum(part[key] for part in parts) for key in ("requests", "answered", "seconds")}
        errors = {text: 1 for part in parts for text in part["errors"]}
        self._result.phases.append(parts[-1] | total | {"phase": name, "servers": servers, "errors": errors})

    def hash(self) -> None:
        """sh, then mh: the same clients again, without the newest server, and with it again."""
        plan = self._plan
        names = [server.name for server in plan.servers]
        last = plan.servers[-1]  # the newest: added again it has the same place in the director's list
        clients = many.addresses(self._options.requests, 16)
        verdicts, turn = self._result.verdicts, 0
        for scheduler, bound in (("sh", None), ("mh", MH_BOUND)):
            if scheduler != plan.scheduler[0]:
                self.ipvsadm("-E", *plan.selector, "-s", scheduler)
            found: list[dict[str, str]] = []
            for phase in ("first", "again", f"no {last.name}", "back"):
                if phase.startswith("no"):
                    self.ipvsadm("-d", *plan.selector, "-r", endpoint(last.address, last.port))
                elif phase == "back":
                    self.ipvsadm(*plan.joins(last))
                self._progress.step(f"{scheduler}: one request from each of {len(clients)} addresses, {phase}")
                meetings, errors = self.ask(f"{scheduler} {phase}", clients, turn)
                turn += 1
                verdicts.append(many.answered(meetings, errors, f"requests ({scheduler}, {phase})"))
                found.append(dict(meetings))
            first, again, without, back = found
            verdicts.append(many.shared(scheduler, first, names))
            verdicts.append(many.same(f"{scheduler}: a client meets the same server again", first, again))
            figure = many.figures(scheduler, last.name, first, without)
            self._result.figures.append(figure)
            verdicts.append(many.moved(figure, bound))
            claim = f"{scheduler}: when {last.name} is back, every client is where it was"
            verdicts.append(many.same(claim, first, back))

    def mark(self) -> None:
        """Port 80, then 443, of the same clients; and a port without mark."""
        names = [server.name for server in self._plan.servers]
        clients = many.addresses(max(6, self._options.requests // 6 * 3), 16)
        verdicts, found = self._result.verdicts, []
        for turn, port in enumerate((80, 443)):
            self._progress.step(f"one request from each of {len(clients)} addresses to port {port}")
            meetings, errors = self.ask(f"port {port}", clients, turn, port)
            verdicts.append(many.answered(meetings, errors, f"requests to port {port}"))
            found.append(dict(meetings))
        verdicts.append(many.together(found[0], found[1], (80, 443)))
        verdicts.append(many.even("the clients are shared out in turn", many.met(found[0].items()), names))
        self._progress.step("port 81, which has no mark")
        phases = len(self._result.phases)
        verdicts.append(many.unmarked(81, *self.ask("port 81", clients[:1], 2, 81, TIMEOUT)))
        del self._result.phases[phases:]  # nobody's share
        self._result.table = self.ipvsadm("-L", "-n")

    def sctp(self) -> None:
        """An association from each client, over and over: round robin shares them out."""
        names = [server.name for server in self._plan.servers]
        clients = many.addresses(max(3, self._options.requests // 3 * 3), 16)
        self._progress.step(f"one association from each of {len(clients)} addresses")
        meetings, errors = self.ask("sctp", clients, 0)
        self._result.verdicts.append(many.answered(meetings, errors, "associations"))
        claim = "the associations are shared out in turn"
        self._result.verdicts.append(many.even(claim, many.met(meetings), names))
        self._result.table = self.ipvsadm("-L", "-n")
