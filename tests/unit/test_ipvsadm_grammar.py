"""Command lines become commands, or the real tool's complaint."""

from __future__ import annotations

from typing import Any

import pytest
from golden.tables import PortNames

from pylvs.ipvsadm.grammar import Command, UsageError, parse, scheduler_flags
from pylvs.ipvsadm.names import Names, endpoint, ipv4, leading_number, number
from pylvs.ipvsadm.options import COMMANDS, LEGAL, OPTIONS, SHARED
from pylvs.model import RealServer, Service, Tunnel

NAMES = Names({"vip": "10.0.0.100", "six": "2001:db8::1"}, PortNames())


def understood(line: str) -> Command:
    return parse(line.split(), NAMES)


def complaint(line: str) -> str:
    with pytest.raises(UsageError) as caught:
        understood(line)
    return caught.value.message


# ------------------------------------------------------------------------------------------------ services


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("-A -t 10.0.0.100:80", {"protocol": "tcp", "address": "10.0.0.100", "port": 80, "scheduler": "wlc"}),
        ("--add-service --tcp-service vip:http", {"protocol": "tcp", "address": "10.0.0.100", "port": 80}),
        ("-A -u 10.0.0.100:domain -o", {"protocol": "udp", "address": "10.0.0.100", "port": 53, "one_packet": True}),
        ("-A --sctp-service 10.0.0.100:5", {"protocol": "sctp", "address": "10.0.0.100", "port": 5}),
        ("-A -t [2001:db8::1]:80", {"protocol": "tcp", "address": "2001:db8::1", "port": 80}),
        ("-A -t 2001:db8::1 -p", {"protocol": "tcp", "address": "2001:db8::1", "persistent": 360}),
        ("-A -f 7", {"protocol": "fwm", "fwmark": 7}),
        ("-A -f 7 -6", {"protocol": "fwm", "fwmark": 7, "family": 6}),
        ("-A -f 7 -s rr", {"protocol": "fwm", "fwmark": 7, "scheduler": "rr"}),
        ("-A -f 7 -p 90 -M 255.255.255.0", {"protocol": "fwm", "fwmark": 7, "persistent": 90, "netmask": 24}),
        ("-A -f 7 -6 -p -M 64", {"protocol": "fwm", "fwmark": 7, "family": 6, "persistent": 360, "netmask": 64}),
        ("-A -f 7 --pe sip", {"protocol": "fwm", "fwmark": 7, "engine": "sip"}),
        (
            "-A -f 7 -b sh-port,flag-1 -s sh",
            {"protocol": "fwm", "fwmark": 7, "scheduler": "sh", "flags": ("sh-fallback", "sh-port")},
        ),
    ],
)
def test_service(line: str, fields: dict[str, Any]) -> None:
    assert understood(line).service() == Service(**fields)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-A -t 10.0.0.100 -s rr", "Zero port specified for non-persistent service"),
        ("-A -t 10.0.0.100:65536", "illegal virtual server address[:port] specified"),
        ("-A -t [2001:db8::1]", "illegal virtual server address[:port] specified"),
        ("-A -t six:80", "illegal virtual server address[:port] specified"),
        ("-A -t 10.0.0.100:80 -o", "One-Packet Scheduling is only for UDP virtual services"),
        ("-A -f 0", "invalid fwmark value `0' specified"),
        ("-A -6 -f 7", "-6 used before -f\n"),
        ("-A -f 7 -p 0", "invalid timeout value `0' specified"),
        ("-A -f 7 -p -M bad", "illegal virtual server persistent mask specified"),
        ("-A -f 7 -6 -p -M 129", "illegal ipv6 netmask specified"),
        ("-A -f 7 -t 10.0.0.100:80", "multiple 'service-address' options specified"),
        ("-A -s rr", "You need to supply the 'service-address' option for the 'add-service' command"),
        ("-A -f 7 -w 3", "Illegal 'weight' option with the 'add-service' command"),
        ("-A -f 7 -b mh-port", "incompatible scheduler flag `mh-port'"),
        ("-A -f 7 -b bogus", "invalid scheduler flag `bogus'"),
        ("-D -f 7 extra", "unexpected argument extra"),
    ],
)
def test_bad_service(line: str, message: str) -> None:
    assert complaint(line) == message


# ------------------------------------------------------------------------------------------------- servers


@pytest.mark.parametrize(
    ("line", "server"),
    [
        ("-r 10.1.0.11", RealServer(address="10.1.0.11", port=80)),
        ("-r 10.1.0.11:8080 -m", RealServer(address="10.1.0.11", port=8080, method="masq")),
        ("-r 10.1.0.11:8080 -g", RealServer(address="10.1.0.11", port=80)),
        ("-r 10.1.0.11:8080 -i", RealServer(address="10.1.0.11", port=80, method="tunnel")),
        ("-r 10.1.0.11 -w 0", RealServer(address="10.1.0.11", port=80, weight=0)),
        ("-r 10.1.0.11 -x 9 -y 4", RealServer(address="10.1.0.11", port=80, upper=9, lower=4)),
        ("-r [fd00::1]:80 -i", RealServer(address="fd00::1", port=80, method="tunnel")),
        (
            "-r 10.1.0.11 -i --tun-type gue --tun-port 6080 --tun-csum",
            RealServer(
                address="10.1.0.11",
                port=80,
                method="tunnel",
                tunnel=Tunnel(type="gue", port=6080, checksum="csum"),
            ),
        ),
    ],
)
@pytest.mark.parametrize("command", ["-a", "--add-server", "-e", "--edit-server"])
def test_server(command: str, line: str, server: RealServer) -> None:
    assert understood(f"{command} -t 10.0.0.100:80 {line}").server() == server


def test_server_of_a_mark_keeps_its_own_port() -> None:
    assert understood("-a -f 7 -r 10.1.0.11:8080 -g").server_port == 8080
    assert understood("-a -f 7 -r 10.1.0.11").server().port == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "You need to supply the 'real-server' option for the 'add-server' command"),
        ("-r bad", "illegal real server address[:port] specified"),
        ("-r 10.1.0.11 -w -1", "illegal weight specified"),
        ("-r 10.1.0.11 -x x", "illegal u_threshold specified"),
        ("-r 10.1.0.11 -y x", "illegal l_threshold specified"),
        ("-r 10.1.0.11 -m -g", "multiple 'forwarding-method' options specified"),
        ("-r [fd00::1]:80 -m", "Different address family is allowed only for tunneling servers"),
        ("-r 10.1.0.11 --tun-csum", "Tunnel options conflict with forward method"),
        ("-r 10.1.0.11 -i --tun-type l2tp", "illegal tunnel type specified"),
        ("-r 10.1.0.11 -i --tun-csum", "Illegal 'tun-csum' option with the 'ipip' tunnel type"),
        ("-r 10.1.0.11 -i --tun-type gue", "You need to supply the 'tun-port' option for the 'gue' tunnel type"),
        (
            "-r 10.1.0.11 -i --tun-type gre --tun-csum --tun-nocsum",
            "The option 'tun-csum' conflicts with the 'tun-nocsum' option in the 'gre' tunnel type",
        ),
    ],
)
def test_bad_server(line: str, message: str) -> None:
    assert complaint(f"-a -t 10.0.0.100:80 {line}") == message


# -------------------------------------------------------------------------------------------------- others


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("", "list"),
        ("-L", "list"),
        ("-l", "list"),
        ("--list -n", "list"),
        ("-C", "flush"),
        ("--clear", "flush"),
        ("-S -n", "save"),
        ("-R", "restore"),
        ("-Z", "zero"),
        ("-h", "help"),
        ("--version", "version"),
        ("--set 1 2 3", "set"),
        ("--start-daemon master --syncid 3", "start-daemon"),
        ("--stop-daemon backup", "stop-daemon"),
    ],
)
def test_other_commands(line: str, name: str) -> None:
    assert understood(line).name == name


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-n", "Try `ipvsadm -h' or 'ipvsadm --help' for more information."),
        ("extra", "Try `ipvsadm -h' or 'ipvsadm --help' for more information."),
        ("-L -A", "invalid option `-A'"),
        ("-L --start-daemon master", "invalid option `master'"),
        ("-L -q", "-q: unknown option"),
        ("--set 1 2", "--set option requires 3 timeout values"),
        ("--set 1 2 x", "invalid timeout value `x' specified"),
        ("--start-daemon boss", "illegal start-daemon parameter specified"),
        ("--stop-daemon boss", "illegal start_daemon specified"),
        ("--start-daemon master --syncid 256", "illegal syncid specified"),
        ("--start-daemon master --mcast-group 10.0.0.1", "invalid IPv4 mcast-group `10.0.0.1'"),
        ("-L --timeout --daemon", "The option 'daemon' conflicts with the 'timeout' option in the 'list' command"),
        ("-L -c --stats", "options conflicts in the list command"),
    ],
)
def test_bad_others(line: str, message: str) -> None:
    assert complaint(line) == message


@pytest.mark.parametrize(
    ("line", "code", "final"),
    [("-n", 255, True), ("-L -q", 255, False), ("-L extra", 2, True), ("-A -f x", 2, True)],
)
def test_exit_status(line: str, code: int, final: bool) -> None:
    with pytest.raises(UsageError) as caught:
        understood(line)
    assert (caught.value.code, caught.value.final) == (code, final)


def test_the_table_of_legal_options_is_complete() -> None:
    named = {SHARED.get(option.tag, option.tag) for option in OPTIONS if option.tag not in COMMANDS}
    assert set(LEGAL) == set(COMMANDS) - {"h", "v"}
    for column in LEGAL.values():
        assert set(column) == named - {"ipv6", "sort"}


# -------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80", 80),
        (" +80", 80),
        ("080", 80),
        ("-0", 0),
        ("", None),
        ("8x", None),
        ("0x50", None),
        ("1 ", None),
        ("101", None),
        ("9" * 5000, None),
    ],
)
def test_number(text: str, value: int | None) -> None:
    assert number(text, 0, 100) == value


@pytest.mark.parametrize(("text", "value"), [("64", 64), ("1e3", 1), ("x", 0), ("4294967297", 1), ("-1", -1)])
def test_leading_number(text: str, value: int) -> None:
    assert leading_number(text) == value


@pytest.mark.parametrize(
    ("text", "address"),
    [("10.1", "10.0.0.1"), ("0x7f.1", "127.0.0.1"), ("010.1.1.1", "8.1.1.1"), ("1.2.3.4.5", None), ("\0", None)],
)
def test_ipv4(text: str, address: str | None) -> None:
    assert ipv4(text) == address


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("10.0.0.1", ("10.0.0.1", None)),
        ("10.0.0.1:0", ("10.0.0.1", 0)),
        ("vip:http", ("10.0.0.100", 80)),
        ("vip:nosuch", None),
        ("nosuch:80", None),
        ("10.0.0.1:80:90", None),
        ("10.0.0.1:", None),
        (":80", None),
        ("fd00::1", ("fd00::1", None)),
        ("[fd00::1]:80", ("fd00::1", 80)),
        ("[fd00::1]", None),
        ("[fd00::1]80", None),
        ("[fd00::1:80", None),
        ("[10.0.0.1]:80", ("10.0.0.1", None)),  # the tool overlooks this port
        ("fe80::1%lo", None),
    ],
)
def test_endpoint(text: str, found: tuple[str, int | None] | None) -> None:
    assert endpoint(text, "tcp", NAMES) == found


@pytest.mark.parametrize(
    ("scheduler", "words", "flags"),
    [
        ("rr", "flag-2,flag-1", ("flag-1", "flag-2")),
        ("sh", "sh-port", ("sh-port",)),
        ("sh", "flag-2,,flag-3", ("sh-port", "flag-3")),
        ("mh", "mh-port,mh-fallback", ("mh-fallback", "mh-port")),
        ("mh", "", ()),
    ],
)
def test_scheduler_flags(scheduler: str, words: str, flags: tuple[str, ...]) -> None:
    assert scheduler_flags(scheduler, words.split(",")) == flags
