"""The doctor's findings from a made-up /proc."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pylvs.host import doctor
from pylvs.host.doctor import Check
from pylvs.model import Link

LO = Link(name="lo", index=1, loopback=True)
ETH0 = Link(name="eth0", index=2)
ETH1 = Link(name="eth1", index=3, up=False)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    files = {
        "self/status": "Name:\tx\nCapEff:\t000001ffffffffff\n",
        "sys/net/ipv4/ip_forward": "0\n",
        "sys/net/ipv4/conf/all/send_redirects": "0\n",
        "sys/net/ipv4/conf/eth0/send_redirects": "1\n",
        "sys/net/ipv4/conf/eth1/send_redirects": "1\n",
        "sys/net/ipv4/conf/all/rp_filter": "0\n",
        "sys/net/ipv4/conf/eth0/rp_filter": "0\n",
    }
    for name, content in files.items():
        write(tmp_path, name, content)
    return tmp_path


def write(proc: Path, name: str, content: str) -> None:
    path = proc / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def test_capabilities(proc: Path) -> None:
    assert doctor.capabilities(proc).level == "ok"
    write(proc, "self/status", "CapEff:\t0000000000002000\n")  # CAP_NET_RAW alone
    found = doctor.capabilities(proc)
    assert found.level == "blocker" and found.found == "missing CAP_NET_ADMIN"
    write(proc, "self/status", "CapEff:\t0000000000000000\n")
    assert "CAP_NET_ADMIN and CAP_NET_RAW" in doctor.capabilities(proc).found
    (proc / "self/status").unlink()
    assert doctor.capabilities(proc).level == "warn"


def test_interfaces() -> None:
    assert doctor.interfaces([LO, ETH0, ETH1]).found == "up: eth0; down: eth1"
    assert doctor.interfaces([LO, ETH1]).level == "blocker"
    assert doctor.interfaces([LO]).found == "there are none but lo"


def test_forwarding_is_harmless_only_with_a_guard(proc: Path) -> None:
    assert doctor.forwarding(proc, "no nftables").level == "ok"
    write(proc, "sys/net/ipv4/ip_forward", "1")
    assert doctor.forwarding(proc, None).level == "ok"
    assert doctor.forwarding(proc, "no nftables").level == "warn"


def test_redirects_matter_where_the_host_forwards(proc: Path) -> None:
    assert doctor.redirects(proc, [LO, ETH0, ETH1]).level == "ok"
    write(proc, "sys/net/ipv4/ip_forward", "1")
    found = doctor.redirects(proc, [LO, ETH0, ETH1])
    assert found.level == "warn" and "eth0" in found.found and "eth1" not in found.found
    write(proc, "sys/net/ipv4/conf/eth0/send_redirects", "0")
    assert doctor.redirects(proc, [LO, ETH0]).level == "ok"
    write(proc, "sys/net/ipv4/conf/all/send_redirects", "1")
    assert doctor.redirects(proc, [LO, ETH0]).level == "warn"


def test_reverse_path_is_told(proc: Path) -> None:
    assert doctor.reverse_path(proc, [ETH0]).found == "not strict"
    write(proc, "sys/net/ipv4/conf/eth0/rp_filter", "1")
    assert "eth0" in doctor.reverse_path(proc, [ETH0]).found
    write(proc, "sys/net/ipv4/conf/all/rp_filter", "2")  # loose wins
    assert doctor.reverse_path(proc, [ETH0]).found == "not strict"


def test_large_receive_offload() -> None:
    assert doctor.offloads([LO, ETH0], lambda name: False).level == "ok"
    assert doctor.offloads([LO, ETH0], lambda name: True).remedy == "ethtool -K eth0 lro off"
    assert not doctor.lro("lo")
    assert not doctor.lro("no-such-link")


def test_kernel_ipvs(proc: Path) -> None:
    assert doctor.kernel_ipvs(proc).level == "ok"
    head = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n"
    write(proc, "net/ip_vs", head)
    assert doctor.kernel_ipvs(proc).level == "ok"
    write(proc, "net/ip_vs", head + "TCP  0A000064:0050 rr  \n  -> 0A01000B:0050 Route 1 0 0\n")
    assert "1 virtual service " in doctor.kernel_ipvs(proc).found


def test_guard_and_netifaces(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.nftables(None).level == "ok"
    assert doctor.nftables("load nf_tables").remedy == "load nf_tables"
    monkeypatch.setattr("pylvs.host.addresses.VERSION", None)
    assert "netlink answers alone" in doctor.netifaces().found


def test_every_finding_that_is_not_well_has_a_remedy() -> None:
    found = doctor.checks()
    assert len({check.name for check in found}) == len(found)
    assert all(check.remedy for check in found if check.level != "ok")
    assert all(re.search(r"\S", check.found) for check in found)


def test_blocked() -> None:
    assert doctor.blocked([Check("a", "ok", ""), Check("b", "blocker", "", "c")])
    assert not doctor.blocked([Check("a", "warn", "", "c")])
