"""Carries out an ipvsadm command line on a director: ``run(director, argv, stdin) -> Result``."""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from pylvs.ipvsadm import listing, usage
from pylvs.ipvsadm.grammar import TRY_HELP, Command, Daemon, UsageError, parse
from pylvs.ipvsadm.names import Names, SystemServices
from pylvs.model import Connection, RealServer, Refused, Service, ServiceKey, ServiceStatus, Timeouts


@dataclass(frozen=True, slots=True)
class Result:
    """What the command printed, and its exit status as a shell sees it (0 to 255)."""

    stdout: str = ""
    stderr: str = ""
    returncode: int = 0


class Director(Protocol):
    """What a command needs of a director. Changes raise `Refused` with the errno that the kernel's IPVS gives.

    A director may also have `service_names`, a `names.ServiceNames`; without it /etc/services is asked.
    """

    @property
    def hosts(self) -> Mapping[str, str]:
        """Names of hosts and their addresses; the first name of an address is shown."""

    @property
    def table_size(self) -> int:
        """Buckets of the connection table, for the first line of listings."""

    @property
    def timeouts(self) -> Timeouts:
        """The present timeouts."""

    def set_timeouts(self, timeouts: Timeouts) -> None:
        """Change the timeouts; 0 keeps one."""

    def status(self) -> list[ServiceStatus]:
        """The services, and in each its servers, newest first."""

    def connections(self) -> list[Connection]:
        """The connection table."""

    def add_service(self, service: Service) -> None: ...
    def edit_service(self, service: Service) -> None: ...
    def delete_service(self, key: ServiceKey) -> None: ...
    def flush(self) -> None: ...
    def add_server(self, key: ServiceKey, server: RealServer) -> None: ...
    def edit_server(self, key: ServiceKey, server: RealServer) -> None: ...
    def delete_server(self, key: ServiceKey, address: str, port: int) -> None: ...
    def zero(self, key: ServiceKey | None) -> None: ...


@runtime_checkable
class Synchronising(Protocol):
    """What a director also has if it can synchronise connections with another."""

    def daemons(self) -> list[Daemon]:
        """The running synchronisation daemons, master first, with all their values."""

    def start_daemon(self, daemon: Daemon) -> None:
        """Start one; values that are 0 or "" are the director's to choose."""

    def stop_daemon(self, state: str) -> None:
        """Stop the one in this state, ``master`` or ``backup``."""


#: what the tool says of an errno, whatever the command …
MESSAGES = {
    errno.EPERM: "Permission denied (you must be root)",
    errno.EINVAL: "Invalid operation.  Possibly wrong module version, address not unicast, ...",
    errno.ENOPROTOOPT: "Protocol not available",
    errno.ENOMEM: "Memory allocation problem",
}
NO_SERVICE = "No such service"
NO_SCHEDULER = "Scheduler or persistence engine not found"
NOT_DEFINED = "Service not defined"
NO_DESTINATION = "No such destination"
#: … and with a certain one
COMMAND_MESSAGES = {
    ("add-service", errno.EEXIST): "Service already exists",
    ("add-service", errno.ENOENT): NO_SCHEDULER,
    ("edit-service", errno.ESRCH): NO_SERVICE,
    ("edit-service", errno.ENOENT): NO_SCHEDULER,
    ("delete-service", errno.ESRCH): NO_SERVICE,
    ("zero", errno.ESRCH): NO_SERVICE,
    ("add-server", errno.ESRCH): NOT_DEFINED,
    ("add-server", errno.EEXIST): "Destination already exists",
    ("edit-server", errno.ESRCH): NOT_DEFINED,
    ("edit-server", errno.ENOENT): NO_DESTINATION,
    ("delete-server", errno.ESRCH): NOT_DEFINED,
    ("delete-server", errno.ENOENT): NO_DESTINATION,
    ("start-daemon", errno.EEXIST): "Daemon has already run",
    ("stop-daemon", errno.ESRCH): "No daemon is running",
}
FAILED = 255
NOT_FOUND = 1


def run(director: Director, argv: Sequence[str], stdin: str | None = None) -> Result:
    """Carry out a command line (without the program's name); `stdin` is what ``-R`` reads."""
    session = _Session(director)
    try:
        code = session.execute(list(argv), stdin or "", restoring=False)
    except _Exit as end:
        code = end.code
    return Result("".join(session.out), "".join(session.err), code)


class _Exit(Exception):
    """The process ends here, even in the middle of ``-R``."""

    def __init__(self, code: int) -> None:
        self.code = code


class _Session:
    """One process of the real tool: a command line, or with ``-R`` many."""

    def __init__(self, director: Director) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self._director = director
        self._names = Names(director.hosts, getattr(director, "service_names", None) or SystemServices())

    def execute(self, words: list[str], stdin: str, restoring: bool) -> int:
        """Carry out one command line; return its exit status."""
        try:
            command = parse(words, self._names)
        except UsageError as error:
            self.err.append(f"{error.message}\n")
            if error.final:
                raise _Exit(error.code) from None
            return error.code
        if command.name == "restore":
            if restoring:
                self.err.append(f"{TRY_HELP}\n")
                raise _Exit(FAILED)
            return self._restore(stdin)
        if command.name in {"help", "version"}:
            self.out.append(usage.VERSION + (usage.USAGE if command.name == "help" else ""))
            raise _Exit(0)
        if command.name in {"list", "save"}:
            self._print(self._list(command) if command.name == "list" else self._save(command))
            return 0
        try:
            self._change(command)
        except Refused as refused:
            code = refused.errno
            text = COMMAND_MESSAGES.get((command.name, code)) or MESSAGES.get(code) or str(refused)
            self.err.append(f"{text}\n")
            return FAILED
        return 0

    def _restore(self, text: str) -> int:
        """One command line per line, in which the word ``ipvsadm`` means nothing. What the kernel refuses or popt dislikes
        is reported and passed over; any other mistake ends it. The exit status is the last line's."""
        code = 0
        together = getattr(self._director, "batch", contextlib.nullcontext)  # one snapshot for all lines, if it can
        with together():
            for line in text.split("\n"):
                words = [word for word in re.split(r"[ \t\r]+", line.partition("\0")[0]) if word not in {"", "ipvsadm"}]
                if words:
                    code = self.execute(words, "", restoring=True)
        return code

    def _change(self, command: Command) -> None:
        director = self._director
        match command.name:
            case "add-service":
                director.add_service(command.service())
            case "edit-service":
                director.edit_service(command.service())
            case "delete-service":
                director.delete_service(command.key)
            case "flush":
                director.flush()
            case "add-server":
                director.add_server(command.key, command.server())
            case "edit-server":
                director.edit_server(command.key, command.server())
            case "delete-server":
                director.delete_server(command.key, command.server_address, command.server_port or 0)
            case "zero":
                director.zero(command.key if "service-address" in command.given else None)
            case "set":
                tcp, tcpfin, udp = command.timeouts
                director.set_timeouts(Timeouts(tcp=tcp, tcpfin=tcpfin, udp=udp))
            case "start-daemon" if isinstance(director, Synchronising):
                director.start_daemon(command.daemon)
            case "start-daemon":
                raise Refused(errno.EPROTONOSUPPORT, "This director does not synchronise connections")
            case "stop-daemon" if isinstance(director, Synchronising):
                director.stop_daemon(command.daemon.state)
            case "stop-daemon":
                raise Refused(errno.ESRCH)

    def _list(self, command: Command) -> list[str]:
        given = command.given
        style = self._style(command)
        if "connection" in given:
            return listing.connections(self._director.connections(), style, "persistent-conn" in given)
        if "timeout" in given:
            return listing.timeouts(self._director.timeouts)
        if "daemon" in given:
            running = self._director.daemons() if isinstance(self._director, Synchronising) else []
            return listing.daemons(running)
        layout = next(layout for option, layout in listing.LAYOUTS.items() if not option or option in given)
        services = self._director.status()
        if "service-address" not in given:
            return [
                listing.VERSION.format(size=self._director.table_size),
                *listing.table(services, layout, style),
            ]
        chosen = [status for status in services if status.service.key == command.key]
        if not chosen:
            self.err.append(f"{NO_SERVICE}\n")
            raise _Exit(NOT_FOUND)
        return listing.table(chosen, layout, style)

    def _save(self, command: Command) -> list[str]:
        return listing.rules(self._director.status(), self._style(command))

    def _style(self, command: Command) -> listing.Style:
        given = command.given
        return listing.Style(None if "numeric" in given else self._names, "exact" in given, "nosort" not in given)

    def _print(self, lines: list[str]) -> None:
        self.out.extend(f"{line}\n" for line in lines)
