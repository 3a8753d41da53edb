"""The tables, line by line, as the real tool prints them."""

from __future__ import annotations

import pytest
from golden.tables import PortNames

from pylvs.ipvsadm import Daemon, listing
from pylvs.ipvsadm.listing import Style
from pylvs.ipvsadm.names import Names
from pylvs.model import (
    Connection,
    RealServer,
    ServerStatus,
    Service,
    ServiceStatus,
    Stats,
    Timeouts,
    Tunnel,
)

NUMERIC = Style()
NAMES = Names(
    {
        "vip.example.test": "10.0.0.100",
        "vip": "10.0.0.100",
        "a-very-long-host-name-for-a-real-server.example.test": "10.1.0.13",
        "six-vip-with-a-very-long-name-indeed-yes.example.test": "fd00:c::101",
    },
    PortNames(),
)
NAMED = Style(NAMES)


def service(servers: tuple[ServerStatus, ...] = (), stats: Stats | None = None, **fields: object) -> ServiceStatus:
    wanted = {"protocol": "tcp", "address": "10.0.0.100", "port": 80, "scheduler": "rr", **fields}
    return ServiceStatus(service=Service(**wanted), servers=servers, stats=stats or Stats())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (service(), "TCP  10.0.0.100:80 rr"),
        (service(protocol="udp", one_packet=True), "UDP  10.0.0.100:80 rr ops"),
        (service(protocol="sctp"), "SCTP 10.0.0.100:80 rr"),
        (service(address="fd00::1"), "TCP  [fd00::1]:80 rr"),
        (service(address="::ffff:1.2.3.4"), "TCP  [::ffff:1.2.3.4]:80 rr"),
        (service(persistent=360), "TCP  10.0.0.100:80 rr persistent 360"),
        (service(persistent=9, netmask=24), "TCP  10.0.0.100:80 rr persistent 9 mask 255.255.255.0"),
        (service(address="fd00::1", persistent=9, netmask=64), "TCP  [fd00::1]:80 rr persistent 9 mask 64"),
        (service(persistent=9, engine="sip"), "TCP  10.0.0.100:80 rr persistent 9 pe sip"),
        (service(engine="sip", netmask=24), "TCP  10.0.0.100:80 rr"),
        (service(scheduler="sh", flags=("sh-fallback", "sh-port")), "TCP  10.0.0.100:80 sh (sh-fallback,sh-port)"),
        (service(scheduler="sh", flags=("flag-3",)), "TCP  10.0.0.100:80 sh ()"),
        (service(flags=("flag-3",)), "TCP  10.0.0.100:80 rr (flag-3)"),
        (ServiceStatus(service=Service(protocol="fwm", fwmark=7)), "FWM  7 wlc"),
        (ServiceStatus(service=Service(protocol="fwm", fwmark=7, family=6)), "FWM  7 IPv6 wlc"),
        (ServiceStatus(service=Service(protocol="fwm", fwmark=2**32 - 1)), "FWM  -1 wlc"),
    ],
)
def test_service_line(status: ServiceStatus, line: str) -> None:
    assert listing.PLAIN.service(status, NUMERIC) == line


SERVER = ServerStatus(
    server=RealServer(address="10.1.0.12", port=80, method="masq", weight=3, upper=9, lower=4),
    active=4,
    inactive=3,
    persistent=2,
    stats=Stats(
        conns=7, inpkts=17, outpkts=7, inbytes=680, outbytes=280, cps=1, inpps=2, outpps=1, inbps=85, outbps=35
    ),
)


@pytest.mark.parametrize(
    ("layout", "line"),
    [
        ("", "  -> 10.1.0.12:80                 Masq    3      4          3         "),
        ("tun-info", "  -> 10.1.0.12:80                 Masq    n/a           3      4          3         "),
        ("thresholds", "  -> 10.1.0.12:80                 9          4          4          3         "),
        ("persistent-conn", "  -> 10.1.0.12:80                 3         2           4          3         "),
        ("stats", "  -> 10.1.0.12:80                        7       17        7      680      280"),
        ("rate", "  -> 10.1.0.12:80                        1        2        1       85       35"),
    ],
)
def test_server_line(layout: str, line: str) -> None:
    assert listing.server_lines(service((SERVER,)), listing.LAYOUTS[layout], NUMERIC) == [line]


def test_counts_of_a_service() -> None:
    status = service(stats=Stats(conns=1, inpkts=1700, inbytes=102_000_000))
    assert listing.STATS.service(status, NUMERIC) == (
        "TCP  10.0.0.100:80                       1     1700        0  102000K        0"
    )
    assert listing.STATS.service(status, Style(exact=True)) == (
        "TCP  10.0.0.100:80                       1     1700        0 102000000        0"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (99_999_999, "99999999"),
        (100_000_000, "100000K"),
        (199_999_999, "199999K"),
        (99_999_999_999, "99999999K"),
        (100_000_000_000, "100000M"),
        (100_000_000_000_000, "100000G"),
        (2**64 - 1, "18446744T"),
    ],
)
def test_short_numbers(value: int, text: str) -> None:
    assert listing.short(value) == text


def test_long_names_are_cut() -> None:
    long = ServerStatus(server=RealServer(address="10.1.0.13", port=33333))
    status = service((long,), address="fd00:c::101")
    assert listing.server_lines(status, listing.PLAIN, NAMED) == [
        "  -> a-very-long-host-name-for-a- Route   1      0          0         "
    ]
    assert listing.PLAIN.service(status, NAMED) == (
        "TCP  [six-vip-with-a-very-long-name-indeed-yes.example.test]:htt rr"
    )
    assert listing.rules([status], NAMED)[1].endswith(
        " -r a-very-long-host-name-for-a-real-server.example.test:33333 -g -w 1"
    )


def test_the_first_name_of_an_address_and_port_names() -> None:
    assert listing.PLAIN.service(service(), NAMED) == "TCP  vip.example.test:http rr"
    assert listing.PLAIN.service(service(protocol="udp"), NAMED) == "UDP  vip.example.test:80 rr"


@pytest.mark.parametrize(
    ("server", "options", "text"),
    [
        (RealServer(address="10.1.0.12", method="masq", weight=5), "-m -w 5", "n/a"),
        (RealServer(address="10.1.0.12", upper=9), "-g -w 1", "n/a"),
        (RealServer(address="10.1.0.12", method="tunnel"), "-i -w 1 --tun-type ipip", "ipip"),
        (
            RealServer(address="10.1.0.12", method="tunnel", tunnel=Tunnel(type="gre")),
            "-i -w 1 --tun-type gre --tun-nocsum",
            "gre:-c",
        ),
        (
            RealServer(address="10.1.0.12", method="tunnel", tunnel=Tunnel(type="gue", port=6080, checksum="remcsum")),
            "-i -w 1 --tun-type gue --tun-port 6080 --tun-remcsum",
            "gue:6080:r+c",
        ),
    ],
)
def test_tunnels_and_rules(server: RealServer, options: str, text: str) -> None:
    status = service((ServerStatus(server=server),))
    assert listing.rules([status], NUMERIC) == [
        "-A -t 10.0.0.100:80 -s rr",
        f"-a -t 10.0.0.100:80 -r 10.1.0.12:0 {options}",
    ]
    assert listing.tunnel_text(server) == text


def test_rules_of_services() -> None:
    statuses = [
        service(persistent=9, netmask=16, engine="sip", one_packet=True, protocol="udp", flags=("flag-1",)),
        ServiceStatus(service=Service(protocol="fwm", fwmark=8, family=6)),
    ]
    assert listing.rules(statuses, NUMERIC) == [
        "-A -u 10.0.0.100:80 -s rr -p 9 -M 255.255.0.0 --pe sip -o -b flag-1",
        "-A -f 8 -6 -s wlc",
    ]


def test_order_of_services() -> None:
    statuses = [
        ServiceStatus(service=Service(protocol="fwm", fwmark=7, family=6)),
        ServiceStatus(service=Service(protocol="fwm", fwmark=7)),
        service(address="2001:db8::1"),
        service(address="fd00::1"),
        service(protocol="udp"),
        service(address="10.0.0.101"),
        service(port=443),
        service(),
    ]
    lines = listing.table(statuses, listing.PLAIN, NUMERIC)[2:]
    assert [line.removesuffix(" rr").removesuffix(" wlc") for line in lines] == [
        "TCP  10.0.0.100:80",
        "TCP  10.0.0.100:443",
        "TCP  10.0.0.101:80",
        "UDP  10.0.0.100:80",
        "TCP  [fd00::1]:80",  # 32-bit words are subtracted, the sign decides
        "TCP  [2001:db8::1]:80",
        "FWM  7",
        "FWM  7 IPv6",
    ]


def test_order_of_servers_goes_round_in_a_circle() -> None:
    addresses = ["192.168.0.1", "10.0.0.2", "10.0.0.1", "100.0.0.1"]
    status = service(tuple(ServerStatus(server=RealServer(address=address, port=80)) for address in addresses))
    lines = listing.server_lines(status, listing.PLAIN, NUMERIC)
    assert [line.split()[1] for line in lines] == ["192.168.0.1:80", "10.0.0.1:80", "10.0.0.2:80", "100.0.0.1:80"]
    unsorted = listing.server_lines(status, listing.PLAIN, Style(sort=False))
    assert [line.split()[1].removesuffix(":80") for line in unsorted] == addresses


def connection(**fields: object) -> Connection:
    wanted = {
        "protocol": "TCP",
        "state": "ESTABLISHED",
        "expires": 899.9,
        "client": "192.0.2.1",
        "client_port": 22491,
        "virtual": "10.0.0.100",
        "virtual_port": 80,
        "dest": "10.1.0.13",
        "dest_port": 8080,
        **fields,
    }
    return Connection(**wanted)  # type: ignore[arg-type]


def test_connections() -> None:
    entries = [
        connection(),
        connection(protocol="SCTP", state="INIT1", expires=3.1),
        connection(protocol="IP", state="NONE", client_port=0, virtual="0.0.0.7", virtual_port=0, dest_port=0),
        connection(client="2001:db8::1", virtual="fd00:c::100", dest="fd00:5::d", state="SYN_RECV", expires=-0.2),
    ]
    assert listing.connections(entries, NUMERIC, engines=False) == [
        "IPVS connection entries",
        "pro expire state       source             virtual            destination",
        "TCP 14:59  ESTABLISHED 192.0.2.1:22491    10.0.0.100:80      10.1.0.13:8080",
        "SCTP 00:03  INIT1       192.0.2.1:22491    10.0.0.100:80      10.1.0.13:8080",
        "IP  14:59  NONE        192.0.2.1:0        0.0.0.7:0          10.1.0.13:0",
        "TCP 00:00  SYN_RECV    [2001:db8::1]:22491 [fd00:c::100]:80   [fd00:5::d]:8080",
    ]


def test_connections_with_engine() -> None:
    template = {"protocol": "UDP", "state": "NONE", "expires": 59.5, "client_port": 0, "virtual_port": 5060}
    entries = [
        connection(),
        connection(**template, engine="sip", engine_data="call-1@x"),
        connection(**template, engine="sip", engine_data="x" * 193),
    ]
    lines = listing.connections(entries, NUMERIC, engines=True)[1:]
    assert lines == [
        "pro expire state       source             virtual            destination        pe name          pe_data",
        "TCP 14:59  ESTABLISHED 192.0.2.1:22491    10.0.0.100:80      10.1.0.13:8080",
        "UDP 00:59  NONE        192.0.2.1:0        10.0.0.100:5060    10.1.0.13:8080   sip                call-1@x",
        f"UDP 00:59  NONE        192.0.2.1:0        10.0.0.100:5060    10.1.0.13:8080   sip                {'x' * 185}",
        "xxxxxxxx 00:59  NONE        192.0.2.1:0        10.0.0.100:0       10.1.0.13:8080",
    ]
    assert listing.connections(entries, NUMERIC, engines=False)[3] == lines[2].partition("   sip")[0]


def test_connections_by_name() -> None:
    assert listing.connections([connection()], NAMED, engines=False)[2] == (
        "TCP 14:59  ESTABLISHED 192.0.2.1:22491    vip.example.test:http "
        "a-very-long-host-name-for-a-real-server.example.test:http-a"
    )


def test_timeouts_and_daemons() -> None:
    assert listing.timeouts(Timeouts()) == ["Timeout (tcp tcpfin udp): 900 120 300"]
    daemon = Daemon("master", "eth0", 7, 1472, "224.0.0.81", 8848, 1)
    assert listing.daemons([daemon]) == [
        "master sync daemon (mcast=eth0, syncid=7, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)"
    ]
