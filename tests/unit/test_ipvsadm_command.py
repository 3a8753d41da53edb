"""Commands carried out: what changes, what is printed, and the exit status."""

from __future__ import annotations

import errno

import pytest
from golden.tables import TablesDirector
from hypothesis import given
from hypothesis import strategies as st

from pylvs.ipvsadm import Result, run
from pylvs.ipvsadm.options import OPTIONS
from pylvs.model import Connection, Refused, Service, Timeouts


def ran(director: TablesDirector, line: str) -> Result:
    """Run a command line given as one text."""
    return run(director, line.split())


@pytest.fixture
def director() -> TablesDirector:
    """One service with two servers, one firewall mark."""
    director = TablesDirector()
    for line in (
        "-A -t 10.0.0.100:80 -s rr",
        "-a -t 10.0.0.100:80 -r 10.1.0.11 -m",
        "-a -t 10.0.0.100:80 -r 10.1.0.12 -m",
        "-A -f 7 -s wlc -p 300",
    ):
        assert ran(director, line) == Result()
    return director


def saved(director: TablesDirector) -> list[str]:
    return run(director, ["-Sn"]).stdout.splitlines()


def test_add_edit_delete(director: TablesDirector) -> None:
    assert ran(director, "-e -t 10.0.0.100:80 -r 10.1.0.11 -m -w 5") == Result()
    assert ran(director, "-E -t 10.0.0.100:80 -s lc") == Result()
    assert ran(director, "-d -t 10.0.0.100:80 -r 10.1.0.12") == Result()
    assert ran(director, "-D -f 7") == Result()
    assert saved(director) == ["-A -t 10.0.0.100:80 -s lc", "-a -t 10.0.0.100:80 -r 10.1.0.11:80 -m -w 5"]
    assert run(director, ["-C"]) == Result()
    assert saved(director) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-A -t 10.0.0.100:80", "Service already exists"),
        ("-A -t 10.0.0.100:81 -s bogus", "Scheduler or persistence engine not found"),
        ("-E -t 10.0.0.100:81", "No such service"),
        ("-E -t 10.0.0.100:80 -s bogus", "Scheduler or persistence engine not found"),
        ("-D -t 10.0.0.100:81", "No such service"),
        ("-Z -t 10.0.0.100:81", "No such service"),
        ("-a -t 10.0.0.100:81 -r 10.1.0.11", "Service not defined"),
        ("-a -t 10.0.0.100:80 -r 10.1.0.11", "Destination already exists"),
        ("-a -t 10.0.0.100:80 -r 10.1.0.13 -x 3 -y 4", "Numerical result out of range"),
        (
            "-a -t 10.0.0.100:80 -r 224.0.0.5",
            "Invalid operation.  Possibly wrong module version, address not unicast, ...",
        ),
        ("-e -t 10.0.0.100:81 -r 10.1.0.11", "Service not defined"),
        ("-e -t 10.0.0.100:80 -r 10.1.0.13", "No such destination"),
        ("-d -t 10.0.0.100:81 -r 10.1.0.11", "Service not defined"),
        ("-d -t 10.0.0.100:80 -r 10.1.0.11:81", "No such destination"),
        ("--start-daemon master --mcast-interface nosuch", "No such device"),
        ("--stop-daemon master", "No daemon is running"),
    ],
)
def test_refusals(director: TablesDirector, line: str, message: str) -> None:
    assert ran(director, line) == Result("", f"{message}\n", 255)


def test_refusal_with_a_message_of_its_own(director: TablesDirector, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(service: Service) -> None:
        raise Refused(errno.EADDRINUSE, "10.0.0.101 belongs to another host (02:00:00:00:00:09)")

    monkeypatch.setattr(director, "add_service", refuse)
    result = ran(director, "-A -t 10.0.0.101:80")
    assert result == Result("", "10.0.0.101 belongs to another host (02:00:00:00:00:09)\n", 255)


def test_list_all_and_one(director: TablesDirector) -> None:
    head = (
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
    )
    mark = "FWM  7 wlc persistent 300\n"
    everything = run(director, ["-Ln"])
    assert everything.stdout.startswith(f"IP Virtual Server version 1.2.1 (size=4096)\n{head}TCP  10.0.0.100:80 rr\n")
    assert everything.stdout.endswith(mark)
    assert run(director, []).stdout == run(director, ["-L"]).stdout
    assert ran(director, "-Ln -f 7") == Result(head + mark)
    assert ran(director, "-Ln -f 8") == Result("", "No such service\n", 1)


@pytest.mark.parametrize(
    ("options", "column"),
    [
        ("--stats --rate --thresholds", "Conns"),
        ("--rate --persistent-conn", "CPS"),
        ("--thresholds --persistent-conn", "Uthreshold"),
        ("--persistent-conn --tun-info", "PersistConn"),
        ("--tun-info", "TunnelInfo"),
    ],
)
def test_of_several_layouts_one_wins(director: TablesDirector, options: str, column: str) -> None:
    assert column in run(director, ["-Ln", *options.split()]).stdout


def test_other_listings(director: TablesDirector) -> None:
    director.entries.append(
        Connection(
            protocol="TCP",
            state="CLOSE",
            expires=9.5,
            client="192.0.2.1",
            client_port=5,
            virtual="10.0.0.100",
            virtual_port=80,
            dest="10.1.0.11",
            dest_port=80,
        )
    )
    assert run(director, ["-Lnc"]).stdout.splitlines()[2:] == [
        "TCP 00:09  CLOSE       192.0.2.1:5        10.0.0.100:80      10.1.0.11:80"
    ]
    assert "10.0.0.100:http" in run(director, ["-L", "-c"]).stdout
    assert ran(director, "--set 0 50 0") == Result()
    assert director.timeouts == Timeouts(tcp=900, tcpfin=50, udp=300)
    assert ran(director, "-L --timeout").stdout == "Timeout (tcp tcpfin udp): 900 50 300\n"


def test_daemons(director: TablesDirector) -> None:
    start = "--start-daemon master --mcast-interface cl --syncid 7"
    assert ran(director, start) == Result()
    assert ran(director, start) == Result("", "Daemon has already run\n", 255)
    assert ran(director, "-L --daemon").stdout == (
        "master sync daemon (mcast=cl, syncid=7, maxlen=1472, group=224.0.0.81, port=8848, ttl=1)\n"
    )
    assert ran(director, "--stop-daemon master") == Result()
    assert ran(director, "-L --daemon") == Result()


def test_help_and_version(director: TablesDirector) -> None:
    version = run(director, ["-v"])
    assert version == Result("ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n")
    usage = run(director, ["--help"])
    assert usage.stdout.startswith(version.stdout + "Usage:\n  ipvsadm -A|E virtual-service")
    assert (usage.stderr, usage.returncode) == ("", 0)


# ------------------------------------------------------------------------------------------------- restore


def test_restore_what_was_saved(director: TablesDirector) -> None:
    text = run(director, ["-Sn"]).stdout
    other = TablesDirector()
    assert run(other, ["-R"], text) == Result()
    assert run(other, ["-Sn"]).stdout == text


@pytest.mark.parametrize(
    ("text", "code", "errors", "added"),
    [
        ("-A -t 10.0.0.1:1", 0, "", 1),
        ("\n   \n\r\n", 0, "", 0),
        ("ipvsadm -A -t 10.0.0.1:1\n", 0, "", 1),
        ("  -A\t-t  10.0.0.1:1  \r\n", 0, "", 1),
        # what the kernel refuses is passed over; the last line decides
        ("-A -t 10.0.0.1:1\n-A -t 10.0.0.1:1\n-A -t 10.0.0.1:2\n", 0, "Service already exists\n", 2),
        ("-A -t 10.0.0.1:1\n-A -t 10.0.0.1:1\n", 255, "Service already exists\n", 1),
        # so is what popt dislikes
        ("-A -t 10.0.0.1:1 -p -1\n-A -t 10.0.0.1:2\n", 0, "-1: unknown option\n", 1),
        # any other mistake is the end
        ("-A -t bad\n-A -t 10.0.0.1:2\n", 2, "illegal virtual server address[:port] specified\n", 0),
        ("# comment\n", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information.\n", 0),
        ("-A -t 10.0.0.1:1\n-R\n", 255, "Try `ipvsadm -h' or 'ipvsadm --help' for more information.\n", 1),
        ("-Ln -f 9\n-A -t 10.0.0.1:2\n", 1, "No such service\n", 0),
    ],
)
def test_restore_line_by_line(text: str, code: int, errors: str, added: int) -> None:
    director = TablesDirector()
    assert run(director, ["-R"], text) == Result("", errors, code)
    assert len(director.status()) == added


def test_restore_nothing(director: TablesDirector) -> None:
    assert run(director, ["-R"]) == Result()
    assert run(director, ["-R"], "-S -n\n").stdout == run(director, ["-Sn"]).stdout


# ------------------------------------------------------------------------------------------------ any words

VALUES = [
    "10.0.0.100:80",
    "[fd00::1]:80",
    "fd00::1",
    "7",
    "-1",
    "",
    "=",
    "x",
    "rr",
    "sh",
    "64",
    "255.0.255.0",
    "\0",
    "é",
    "9" * 5000,
]
WORDS = [f"-{option.short}" for option in OPTIONS if option.short] + [
    f"--{option.long}" for option in OPTIONS if option.long
]


@given(
    st.lists(st.sampled_from(WORDS) | st.sampled_from(VALUES) | st.text(max_size=8), max_size=9), st.text(max_size=60)
)
def test_no_words_break_it(words: list[str], text: str) -> None:
    director = TablesDirector()
    for argv in (words, ["-R"]):
        result = run(director, argv, f"{text}\n{' '.join(words)}")
        assert result.returncode in {0, 1, 2, 255}
        assert result.stderr.endswith("\n") or result.returncode == 0
    assert run(director, ["-Ln"]).returncode == 0
