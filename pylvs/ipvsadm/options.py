"""The options of ipvsadm 1.31, its commands, and which option may stand with which command."""

from __future__ import annotations

from pylvs.ipvsadm.popt import Option

#: what may begin a command line, by its tag, and the name of the command in messages
COMMANDS = {
    "A": "add-service",
    "E": "edit-service",
    "D": "delete-service",
    "C": "flush",
    "L": "list",
    "a": "add-server",
    "e": "edit-server",
    "d": "delete-server",
    "S": "save",
    "R": "restore",
    "Z": "zero",
    "set": "set",
    "start-daemon": "start-daemon",
    "stop-daemon": "stop-daemon",
    "h": "help",
    "v": "version",
}

#: the tags of the first group are keys of COMMANDS, those of the second rows of LEGAL
OPTIONS = (
    Option("A", "add-service", "A"),
    Option("E", "edit-service", "E"),
    Option("D", "delete-service", "D"),
    Option("C", "clear", "C"),
    Option("L", "list", "L"),
    Option("L", "", "l"),
    Option("Z", "zero", "Z"),
    Option("a", "add-server", "a"),
    Option("e", "edit-server", "e"),
    Option("d", "delete-server", "d"),
    Option("S", "save", "S"),
    Option("R", "restore", "R"),
    Option("set", "set"),
    Option("start-daemon", "start-daemon", takes="value"),
    Option("stop-daemon", "stop-daemon", takes="value"),
    Option("h", "help", "h"),
    Option("v", "version", "v"),
    # options
    Option("tcp-service", "tcp-service", "t", "value"),
    Option("udp-service", "udp-service", "u", "value"),
    Option("sctp-service", "sctp-service", "", "value"),
    Option("fwmark-service", "fwmark-service", "f", "value"),
    Option("ipv6", "ipv6", "6"),
    Option("scheduler", "scheduler", "s", "value"),
    Option("persistent", "persistent", "p", "optional"),
    Option("netmask", "netmask", "M", "value"),
    Option("real-server", "real-server", "r", "value"),
    Option("masquerading", "masquerading", "m"),
    Option("ipip", "ipip", "i"),
    Option("gatewaying", "gatewaying", "g"),
    Option("weight", "weight", "w", "value"),
    Option("u-threshold", "u-threshold", "x", "value"),
    Option("l-threshold", "l-threshold", "y", "value"),
    Option("numeric", "numeric", "n"),
    Option("connection", "connection", "c"),
    Option("mcast-interface", "mcast-interface", "", "value"),
    Option("syncid", "syncid", "", "value"),
    Option("timeout", "timeout"),
    Option("daemon", "daemon"),
    Option("stats", "stats"),
    Option("rate", "rate"),
    Option("thresholds", "thresholds"),
    Option("persistent-conn", "persistent-conn"),
    Option("nosort", "nosort"),
    Option("sort", "sort"),
    Option("exact", "exact"),
    Option("ops", "ops", "o"),
    Option("pe", "pe", "", "value"),
    Option("sched-flags", "sched-flags", "b", "value"),
    Option("mcast-group", "mcast-group", "", "value"),
    Option("mcast-port", "mcast-port", "", "value"),
    Option("mcast-ttl", "mcast-ttl", "", "value"),
    Option("sync-maxlen", "sync-maxlen", "", "value"),
    Option("tun-info", "tun-info"),
    Option("tun-type", "tun-type", "", "value"),
    Option("tun-port", "tun-port", "", "value"),
    Option("tun-nocsum", "tun-nocsum"),
    Option("tun-csum", "tun-csum"),
    Option("tun-remcsum", "tun-remcsum"),
)

#: several options that say one thing share its name in messages
SHARED = {
    "tcp-service": "service-address",
    "udp-service": "service-address",
    "sctp-service": "service-address",
    "fwmark-service": "service-address",
    "masquerading": "forwarding-method",
    "ipip": "forwarding-method",
    "gatewaying": "forwarding-method",
}


def _table(text: str) -> dict[str, dict[str, str]]:
    """Read a table of marks: the first line names the columns. -> column -> row, from top to bottom -> mark."""
    columns, *rows = [line.split() for line in text.strip().splitlines()]
    return {column: {row[0]: row[i + 1] for row in rows} for i, column in enumerate(columns)}


#: + needed, - allowed, x illegal; of those with a number only one may be given. Checked from top to bottom.
LEGAL = _table("""
                   A E D C L a e d set start-daemon stop-daemon R S Z
numeric            x x x x - x x x x   x            x           x - x
connection         x x x x 1 x x x x   x            x           x x x
service-address    + + + x 2 + + + x   x            x           x x -
scheduler          - - x x x x x x x   x            x           x x x
persistent         - - x x x x x x x   x            x           x x x
netmask            - - x x x x x x x   x            x           x x x
real-server        x x x x x + + + x   x            x           x x x
forwarding-method  x x x x x - - x x   x            x           x x x
weight             x x x x x - - x x   x            x           x x x
u-threshold        x x x x x - - x x   x            x           x x x
l-threshold        x x x x x - - x x   x            x           x x x
mcast-interface    x x x x x x x x x   -            x           x x x
timeout            x x x x 3 x x x x   x            x           x x x
daemon             x x x x 4 x x x x   x            x           x x x
stats              x x x x - x x x x   x            x           x x x
rate               x x x x - x x x x   x            x           x x x
thresholds         x x x x - x x x x   x            x           x x x
persistent-conn    x x x x - x x x x   x            x           x x x
nosort             x x x x - x x x x   x            x           x x x
syncid             x x x x - x x x x   -            -           x x x
exact              x x x x - x x x x   x            x           x x x
ops                - - x x x x x x x   x            x           x x x
pe                 - - x x x x x x x   x            x           x x x
sched-flags        - - x x x x x x x   x            x           x x x
mcast-group        x x x x x x x x x   -            x           x x x
mcast-port         x x x x x x x x x   -            x           x x x
mcast-ttl          x x x x x x x x x   -            x           x x x
sync-maxlen        x x x x x x x x x   -            x           x x x
tun-info           x x x x - x x x x   x            x           x x x
tun-type           x x x x x - - x x   x            x           x x x
tun-port           x x x x x - - x x   x            x           x x x
tun-nocsum         x x x x x - - x x   x            x           x x x
tun-csum           x x x x x - - x x   x            x           x x x
tun-remcsum        x x x x x - - x x   x            x           x x x
""")

#: the same for the types of tunnels
TUNNEL_LEGAL = _table("""
              ipip gue gre
tun-type      -    -   -
tun-port      x    +   x
tun-nocsum    x    1   1
tun-csum      x    2   2
tun-remcsum   x    3   x
""")

#: bits of -b: their names with a scheduler of that name, and with any other
SCHEDULER_FLAGS = {"sh": ("sh-fallback", "sh-port"), "mh": ("mh-fallback", "mh-port")}
PLAIN_FLAGS = ("flag-1", "flag-2", "flag-3")
