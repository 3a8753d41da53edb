"""From words to a `Command`: ipvsadm's grammar, with its messages in its order.

The real tool reads options from left to right and stops at the first that it dislikes; then it looks for stray words,
then for options that do not fit the command, then for values that do not fit each other. So does this.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pylvs.ipvsadm import names
from pylvs.ipvsadm.names import Names
from pylvs.ipvsadm.options import (
    COMMANDS,
    LEGAL,
    OPTIONS,
    PLAIN_FLAGS,
    SCHEDULER_FLAGS,
    SHARED,
    TUNNEL_LEGAL,
)
from pylvs.ipvsadm.popt import BadOption, Scanner
from pylvs.model import Method, Protocol, RealServer, Service, ServiceKey, Tunnel

TunnelType = Literal["ipip", "gue", "gre"]
TunnelChecksum = Literal["", "csum", "remcsum"]

#: whether the model has a place for masks that are no prefix
IRREGULAR_MASKS = "mask" in Service.__struct_fields__

TRY_HELP = "Try `ipvsadm -h' or 'ipvsadm --help' for more information."
LONG_MAX = 2**31 - 1
DEFAULT_SCHEDULER = "wlc"
DEFAULT_PERSISTENCE = 360  # seconds
MAX_TIMEOUT = 31 * 24 * 3600  # seconds


class UsageError(Exception):
    """A command line that is not carried out. `code` is the exit status: 2, or 255 where popt gave up. `final` tells
    whether the whole program ends, or goes on with the next line of ``-R``."""

    def __init__(self, message: str, code: int = 2, final: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.final = final


@dataclass(slots=True)
class Daemon:
    """What --start-daemon says of a synchronisation daemon; 0 and "" leave the value to the kernel."""

    state: str = ""  # master, backup
    interface: str = ""
    syncid: int = 0
    maxlen: int = 0
    group: str = ""
    port: int = 0
    ttl: int = 0


@dataclass(slots=True)
class Command:
    """A command line, understood. Which fields mean something depends on `name`, one of `options.COMMANDS`."""

    name: str = ""
    tag: str = ""
    given: set[str] = field(default_factory=set)  # options, by their names in messages
    # the virtual service
    protocol: Protocol = "tcp"
    family: Literal[4, 6] = 4
    address: str = ""
    port: int = 0
    fwmark: int = 0
    scheduler: str = ""
    flags: tuple[str, ...] = ()
    persistent: int = 0
    netmask: str = ""  # IPv4: dotted; IPv6: prefix length; "" the whole address
    engine: str = ""
    # the real server
    server_address: str = ""
    server_port: int | None = None
    method: Method = "route"
    weight: int = 1
    upper: int = 0
    lower: int = 0
    tunnel: Tunnel = field(default_factory=Tunnel)
    # others
    timeouts: tuple[int, ...] = ()
    daemon: Daemon = field(default_factory=Daemon)

    @property
    def key(self) -> ServiceKey:
        """Identity of the virtual service."""
        if self.protocol == "fwm":
            return self.family, "fwm", "", self.fwmark
        return self.family, self.protocol, self.address, self.port

    def service(self) -> Service:
        """The virtual service as the director takes it."""
        return Service(
            protocol=self.protocol,
            address=self.address,
            port=self.port,
            fwmark=self.fwmark,
            family=self.family,
            scheduler=self.scheduler,
            flags=self.flags,
            persistent=self.persistent,
            **granularity(self.netmask),
            engine=self.engine,
            one_packet="ops" in self.given,
        )

    def server(self) -> RealServer:
        """The real server as the director takes it."""
        return RealServer(
            address=self.server_address,
            port=self.server_port or 0,
            method=self.method,
            weight=self.weight,
            upper=self.upper,
            lower=self.lower,
            tunnel=self.tunnel,
        )


def granularity(mask: str) -> dict[str, Any]:
    """The fields of a `Service` that say `mask`: "" for the whole address, a prefix length, or a dotted mask, which need
    not be a prefix."""
    if "." not in mask:
        return {"netmask": int(mask)} if mask else {}
    bits = "".join(f"{int(octet):08b}" for octet in mask.split("."))
    if "01" in bits:
        if not IRREGULAR_MASKS:
            raise UsageError("illegal virtual server persistent mask specified")
        return {"mask": mask}
    return {"netmask": bits.count("1")}


def parse(words: Sequence[str], known: Names) -> Command:
    """Understand a command line (without the program's name); raise `UsageError` with the real tool's message."""
    if not words:
        return Command("list", "L")
    scanner = Scanner(OPTIONS, words)
    options = iter(scanner)
    try:
        option, value = next(options)
        command = Command(COMMANDS[option.tag], option.tag)
    except (BadOption, StopIteration, KeyError):
        raise UsageError(TRY_HELP, 255) from None
    if command.name in {"help", "version"}:
        return command
    if value is not None:
        if value not in {"master", "backup"}:
            parameter = "start-daemon parameter" if command.name == "start-daemon" else "start_daemon"
            raise UsageError(f"illegal {parameter} specified")
        command.daemon.state = value
    reader = Reader(command, known)
    try:
        for option, value in options:
            if option.tag in COMMANDS:
                raise UsageError(f"invalid option `{scanner.word}'")
            reader.option(option.tag, value)
    except BadOption as bad:
        raise UsageError(str(bad), 255, final=False) from None
    reader.finish(scanner.leftover)
    return command


class Reader:
    """Fills a `Command` from the options behind it."""

    def __init__(self, command: Command, known: Names) -> None:
        self._command = command
        self._known = known
        self._flags: list[str] = []
        self._tunnel_type: TunnelType = "ipip"
        self._tunnel_port = 0

    # ------------------------------------------------------------------------------------- option by option

    def option(self, tag: str, value: str | None) -> None:
        """Take one option in."""
        command = self._command
        name = SHARED.get(tag, tag)
        if tag == "ipv6":
            if not command.fwmark:
                raise UsageError("-6 used before -f\n")
            self._ipv6()
            return
        if tag == "sort":
            return
        if name in command.given:
            raise UsageError(f"multiple '{name}' options specified")
        command.given.add(name)
        if tag in METHODS:
            command.method = METHODS[tag]
        elif tag in PROTOCOLS:
            self._service(value or "", PROTOCOLS[tag])
        elif tag == "persistent" and value is None:
            command.persistent = DEFAULT_PERSISTENCE
        elif value is not None:
            self.VALUES[tag](self, value)

    def _service(self, text: str, protocol: Protocol) -> None:
        command = self._command
        command.protocol = protocol
        found = names.endpoint(text, protocol, self._known)
        if found is None:
            raise UsageError("illegal virtual server address[:port] specified")
        command.address, command.port = found[0], found[1] or 0
        if ":" in command.address:
            self._ipv6()

    def _ipv6(self) -> None:
        self._command.family = 6
        self._command.netmask = ""  # a mask that came before is forgotten

    def _fwmark_service(self, text: str) -> None:
        mark = names.number(text, 1, 2**32 - 1)
        if mark is None:
            raise UsageError(f"invalid fwmark value `{text}' specified")
        self._command.protocol, self._command.fwmark = "fwm", mark

    def _scheduler(self, text: str) -> None:
        self._command.scheduler = text

    def _pe(self, text: str) -> None:
        self._command.engine = text

    def _sched_flags(self, text: str) -> None:
        self._flags = text.split(",")

    def _persistent(self, text: str) -> None:
        self._command.persistent = _timeout(text, 1)

    def _netmask(self, text: str) -> None:
        if self._command.family == 6:
            length = names.leading_number(text)
            if not 1 <= length <= 128:
                raise UsageError("illegal ipv6 netmask specified")
            self._command.netmask = str(length)
            return
        mask = names.ipv4(text)
        if mask is None:
            raise UsageError("illegal virtual server persistent mask specified")
        self._command.netmask = mask

    def _real_server(self, text: str) -> None:
        protocol = self._command.protocol
        found = names.endpoint(text, "tcp" if protocol == "fwm" else protocol, self._known)
        if found is None:
            raise UsageError("illegal real server address[:port] specified")
        self._command.server_address, self._command.server_port = found

    def _weight(self, text: str) -> None:
        self._command.weight = _number(text, 0, LONG_MAX, "illegal weight specified")

    def _u_threshold(self, text: str) -> None:
        self._command.upper = _number(text, 0, LONG_MAX, "illegal u_threshold specified")

    def _l_threshold(self, text: str) -> None:
        self._command.lower = _number(text, 0, LONG_MAX, "illegal l_threshold specified")

    def _tun_type(self, text: str) -> None:
        types: dict[str, TunnelType] = {"ipip": "ipip", "gue": "gue", "gre": "gre"}
        if text not in types:
            raise UsageError("illegal tunnel type specified")
        self._tunnel_type = types[text]

    def _tun_port(self, text: str) -> None:
        self._tunnel_port = _number(text, 1, 65535, "illegal tunnel port specified")

    def _mcast_interface(self, text: str) -> None:
        self._command.daemon.interface = text

    def _syncid(self, text: str) -> None:
        self._command.daemon.syncid = _number(text, 0, 255, "illegal syncid specified")

    def _sync_maxlen(self, text: str) -> None:
        self._command.daemon.maxlen = _number(text, 1, 65507, "illegal sync-maxlen specified")

    def _mcast_port(self, text: str) -> None:
        self._command.daemon.port = _number(text, 1, 65535, "illegal mcast-port specified")

    def _mcast_ttl(self, text: str) -> None:
        self._command.daemon.ttl = _number(text, 1, 255, "illegal mcast-ttl specified")

    def _mcast_group(self, text: str) -> None:
        family = 6 if ":" in text else 4
        try:
            group = ipaddress.ip_address(text)
        except ValueError:
            group = None
        if group is None or not group.is_multicast or "%" in text:
            raise UsageError(f"invalid IPv{family} mcast-group `{text}'")
        self._command.daemon.group = str(group)

    VALUES: ClassVar[dict[str, Callable[[Reader, str], None]]] = {
        "fwmark-service": _fwmark_service,
        "scheduler": _scheduler,
        "persistent": _persistent,
        "netmask": _netmask,
        "pe": _pe,
        "sched-flags": _sched_flags,
        "real-server": _real_server,
        "weight": _weight,
        "u-threshold": _u_threshold,
        "l-threshold": _l_threshold,
        "tun-type": _tun_type,
        "tun-port": _tun_port,
        "mcast-interface": _mcast_interface,
        "syncid": _syncid,
        "sync-maxlen": _sync_maxlen,
        "mcast-group": _mcast_group,
        "mcast-port": _mcast_port,
        "mcast-ttl": _mcast_ttl,
    }

    # ------------------------------------------------------------------------------------------ as a whole

    def finish(self, leftover: list[str]) -> None:
        """Check what can only be checked when all options are known, and draw the conclusions."""
        command = self._command
        if command.name == "set":
            if len(leftover) < 3:
                raise UsageError("--set option requires 3 timeout values")
            command.timeouts = tuple(_timeout(text, 0) for text in leftover[:3])
            leftover = leftover[3:]
        if leftover:
            raise UsageError(f"unexpected argument {leftover[0]}")
        command.scheduler = command.scheduler or DEFAULT_SCHEDULER
        command.flags = scheduler_flags(command.scheduler, self._flags)
        check_legal(LEGAL[command.tag], command.given, f"the '{command.name}' command")
        if command.name in {"add-service", "edit-service"}:
            self._finish_service()
        elif command.name in {"add-server", "edit-server", "delete-server"}:
            self._finish_server()
        elif command.name == "list":
            self._finish_list()

    def _finish_service(self) -> None:
        command = self._command
        granularity(command.netmask)
        if command.protocol != "fwm" and command.port == 0 and not command.persistent:
            raise UsageError("Zero port specified for non-persistent service")
        if "ops" in command.given and command.protocol not in {"udp", "fwm"}:
            raise UsageError("One-Packet Scheduling is only for UDP virtual services")

    def _finish_server(self) -> None:
        command = self._command
        other_family = (":" in command.server_address) != (command.family == 6)
        if other_family and command.method != "tunnel" and command.name != "delete-server":
            raise UsageError("Different address family is allowed only for tunneling servers")
        tunnelled = command.given & {"tun-type", "tun-port", "tun-nocsum", "tun-csum", "tun-remcsum"}
        if command.method == "tunnel":
            check_legal(TUNNEL_LEGAL[self._tunnel_type], command.given, f"the '{self._tunnel_type}' tunnel type")
            command.tunnel = Tunnel(type=self._tunnel_type, port=self._tunnel_port, checksum=self._checksum())
        elif tunnelled:
            raise UsageError("Tunnel options conflict with forward method")
        # direct routing and tunnelling cannot change the port
        moved = command.method == "masq" or command.name == "delete-server"
        if command.protocol != "fwm" and (command.server_port is None or not moved):
            command.server_port = command.port

    def _checksum(self) -> TunnelChecksum:
        given = self._command.given
        return "remcsum" if "tun-remcsum" in given else "csum" if "tun-csum" in given else ""

    def _finish_list(self) -> None:
        given = self._command.given
        tables = given & {"stats", "rate", "thresholds"}
        if (given & {"connection", "timeout", "daemon"} and tables) or (
            given & {"timeout", "daemon"} and "persistent-conn" in given
        ):
            raise UsageError("options conflicts in the list command")


METHODS: dict[str, Method] = {"masquerading": "masq", "ipip": "tunnel", "gatewaying": "route"}
PROTOCOLS: dict[str, Protocol] = {"tcp-service": "tcp", "udp-service": "udp", "sctp-service": "sctp"}


def check_legal(row: dict[str, str], given: set[str], where: str) -> None:
    """Hold the options that were given against a column of `LEGAL` or `TUNNEL_LEGAL`, from top to bottom."""
    chosen = ""
    for name, mark in row.items():
        if name not in given:
            if mark == "+":
                raise UsageError(f"You need to supply the '{name}' option for {where}")
        elif mark == "x":
            raise UsageError(f"Illegal '{name}' option with {where}")
        elif mark.isdigit():
            if chosen:
                raise UsageError(f"The option '{name}' conflicts with the '{chosen}' option in {where}")
            chosen = name


def scheduler_flags(scheduler: str, words: list[str]) -> tuple[str, ...]:
    """Read the words of -b: names of this scheduler's own flags or ``flag-1`` to ``flag-3``, in any order; return them
    by name in the order of their bits."""
    own = SCHEDULER_FLAGS.get(scheduler, ())
    bits = set()
    for word in filter(None, words):
        if word in own:
            bits.add(own.index(word))
        elif word in PLAIN_FLAGS:
            bits.add(PLAIN_FLAGS.index(word))
        elif any(word in flags for flags in SCHEDULER_FLAGS.values()):
            raise UsageError(f"incompatible scheduler flag `{word}'")
        else:
            raise UsageError(f"invalid scheduler flag `{word}'")
    return tuple((own + PLAIN_FLAGS[len(own) :])[bit] for bit in sorted(bits))


def _number(text: str, low: int, high: int, complaint: str) -> int:
    value = names.number(text, low, high)
    if value is None:
        raise UsageError(complaint)
    return value


def _timeout(text: str, low: int) -> int:
    return _number(text, low, MAX_TIMEOUT, f"invalid timeout value `{text}' specified")
