"""The plans are what an administrator would draw, and the command line refuses what it cannot do."""

from __future__ import annotations

import argparse
import ipaddress
import os
from collections.abc import Sequence

import pytest

from pylvs.cli import lab, rs
from pylvs.lab import life, topology
from pylvs.lab.topology import PLANS, Plan


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return PLANS[request.param]()


def test_addresses_and_names_are_unique(plan: Plan) -> None:
    ends = [end for node in plan.nodes for end in node.interfaces]
    for values in (
        [end.mac for end in ends],
        [address for end in ends for address in end.addresses],
        [node.name for node in plan.nodes],
    ):
        assert len(values) == len(set(values))


def test_a_wire_is_one_network(plan: Plan) -> None:
    for wire, ends in topology.wires(plan).items():
        assert len(ends) >= 2, wire
        networks = {ipaddress.ip_interface(address).network for _, end in ends for address in end.addresses}
        assert len(networks) == 1, wire


def test_gateways_are_on_the_node_s_own_network(plan: Plan) -> None:
    for node in plan.nodes:
        own = [ipaddress.ip_interface(address).network for end in node.interfaces for address in end.addresses]
        for gateway in node.routes.values():
            assert any(ipaddress.ip_address(gateway) in network for network in own), node.name


def test_the_vip_is_not_the_director_s(plan: Plan) -> None:
    director = plan.node("director")
    if plan.fwmark:  # a mark says which packets are the service's, not whose the address is
        assert plan.vip in {address.split("/")[0] for end in director.interfaces for address in end.addresses}
        return
    assert plan.vip not in {address.split("/")[0] for end in director.interfaces for address in end.addresses}
    assert plan.dip in {address.split("/")[0] for end in director.interfaces for address in end.addresses}


def test_three_servers_that_are_nodes(plan: Plan) -> None:
    assert [server.name for server in plan.servers] == ["rs1", "rs2", "rs3"]
    for server in plan.servers:
        (end,) = plan.node(server.name).interfaces
        assert end.addresses == (f"{server.address}/{24 if plan.version == 4 else 64}",)


def test_names_of_namespaces_and_interfaces_fit(plan: Plan) -> None:
    names = topology.networks(plan, plan.kind)
    assert PLANS[plan.kind]() == plan
    assert f"pylvs-{plan.kind}-client" in names and f"pylvs-{plan.kind}-rs3" in names
    assert len(set(names)) == len(names)
    assert all(len(node.name) <= 15 and len(end.name) <= 15 for node in plan.nodes for end in node.interfaces)


def test_rules() -> None:
    assert [" ".join(rule) for rule in topology.nat().rules()] == [
        "-A -t 10.0.0.2:80 -s rr",
        "-a -t 10.0.0.2:80 -r 192.168.10.100:8080 -m",
        "-a -t 10.0.0.2:80 -r 192.168.10.101:8080 -m",
        "-a -t 10.0.0.2:80 -r 192.168.10.102:8080 -m",
    ]
    assert topology.dr().rules()[1][-1] == "-g"
    assert topology.tun().rules()[1][-1] == "-i"
    assert [" ".join(rule) for rule in topology.nat6().rules()[:2]] == [
        "-A -t [2001:db8::2]:80 -s rr",
        "-a -t [2001:db8::2]:80 -r [2001:db8:10::100]:8080 -m",
    ]
    assert [" ".join(rule) for rule in topology.mark().rules()[:2]] == [
        "-A -f 1 -s rr -p 300",
        "-a -f 1 -r 192.168.10.100 -m",
    ]


@pytest.mark.parametrize(
    ("four", "six"),
    [
        ("192.168.56.118/24", "2001:db8:56::118/64"),
        ("192.168.56.200/32", "2001:db8:56::200/128"),
        ("10.0.0.2", "2001:db8::2"),
    ],
)
def test_the_same_place_in_ipv6(four: str, six: str) -> None:
    assert topology.six(four) == six


def test_every_lab_has_its_name_on_the_command_line() -> None:
    assert tuple(PLANS) == lab.LABS and set(lab.METHODS) <= set(PLANS)


def test_owners_of_mac_addresses() -> None:
    owners = topology.tun().owners
    assert owners["02:00:00:00:00:01"] == "client:eth0"
    assert owners["02:00:00:00:00:f1"] == "router:eth1"


def test_kernel_counters() -> None:
    text = "Ip: Forwarding InHdrErrors\nIp: 1 4\nTcp: InErrs InCsumErrors\nTcp: 5 3\n"
    assert life.snmp(text) == {"Ip.Forwarding": 1, "Ip.InHdrErrors": 4, "Tcp.InErrs": 5, "Tcp.InCsumErrors": 3}


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="pylvs")
    subparsers = parser.add_subparsers()
    lab.add(subparsers)
    rs.add(subparsers)
    return parser.parse_args(argv)


def test_the_command_line() -> None:
    args = parse("lab", "run", "all", "--requests", "400", "--json")
    assert (args.action, args.method, args.requests, args.bytes, args.json) == ("run", ["all"], 400, 50_000_000, True)
    assert parse("lab", "run", "dr6", "hash").method == ["dr6", "hash"]
    args = parse("lab", "exec", "nat", "client", "--", "curl", "-s", "http://10.0.0.2/")
    assert (args.name, args.node, args.command[-3:]) == ("nat", "client", ["curl", "-s", "http://10.0.0.2/"])
    assert parse("lab", "down", "--all").all
    assert parse("rs", "tun", "--vip", "10.0.0.1", "--vip", "10.0.0.2").vip == ["10.0.0.1", "10.0.0.2"]


@pytest.mark.parametrize(
    "argv",
    [
        ["lab"],
        ["lab", "run"],
        ["lab", "run", "vlan"],
        ["lab", "run", "nat", "--requests", "0"],
        ["lab", "run", "nat", "--requests", "many"],
        ["lab", "run", "nat", "--bytes", "-1"],
        ["lab", "down"],
        ["lab", "down", "nat", "--all"],
        ["rs", "tun"],
    ],
)
def test_usage_errors(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*argv)
    assert ended.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [("lab", "run", "nat"), ("lab", "up", "dr"), ("lab", "down", "--all"), ("rs", "tun", "--vip", "10.0.0.1")],
)
def test_not_root_is_one_clear_line(
    argv: Sequence[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    args = parse(*argv)
    assert args.run(args) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "need root" in line


def test_wrong_names_are_one_clear_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for argv, status, says in (
        (("lab", "exec", "nowhere", "client"), 1, "there is no lab nowhere"),
        (("lab", "down", "../etc"), 1, "is no name of a lab"),
        (("lab", "run", "nat", "--name", "A b"), 1, "is no name for a lab"),
        (("lab", "run", "all", "--name", "x"), 1, "leave --name out"),
        (("rs", "tun", "--vip", "10.0.0"), 2, "10.0.0"),
    ):
        args = parse(*argv)
        assert args.run(args) == status, argv
        captured = capsys.readouterr()
        assert says in captured.err + captured.out, argv
