"""``pylvs replay``: captures made by scapy, rules as ipvsadm saves them; the how-to's example word for word."""

from __future__ import annotations

import json
import os
import re
import shlex
import struct
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap, wrpcap

from pylvs.cli.main import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "replay-a-capture.md"
DIRECTOR, ROUTER = "02:00:00:00:00:01", "02:00:00:00:00:99"
VIP, VIP6 = "10.0.0.100", "fd00::100"
RULES = f"""\
-A -t {VIP}:80 -s wrr
-a -t {VIP}:80 -r 10.0.0.11:80 -g -w 2
-a -t {VIP}:80 -r 10.1.0.12:8080 -m -w 1
"""


def frame(time: float, packet: Packet, source: str = ROUTER, target: str = DIRECTOR) -> Packet:
    """A packet in a frame with a time."""
    made = Ether(src=source, dst=target) / packet
    made.time = time
    return made


def syn(time: float, n: int, client: str = "198.51.100.7") -> Packet:
    """The first packet of a client's connection."""
    return frame(time, IP(src=client, dst=VIP) / TCP(sport=40000 + n, dport=80, flags="S"))


def conversations(count: int = 12) -> list[Packet]:
    """Connections, one a second, each followed by an ACK; then a datagram to a port that nobody serves."""
    packets = []
    for n in range(count):
        packets.append(syn(1000 + n, n))
        packets.append(
            frame(1000.5 + n, IP(src="198.51.100.7", dst=VIP) / TCP(sport=40000 + n, dport=80, flags="A", seq=1))
        )
    packets.append(frame(1020, IP(src="198.51.100.7", dst=VIP) / UDP(sport=5, dport=53) / Raw(b"who?")))
    return packets


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with rules and a capture in it, which is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules").write_text(RULES)
    wrpcap("in.pcap", conversations())
    return tmp_path


def replayed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """The JSON document of a replay that must succeed; the books balance in it."""
    assert main(["replay", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    assert not err
    document: dict[str, Any] = json.loads(out)
    counters, capture = document["counters"], document["capture"]
    assert counters["received"] == capture["frames"] - capture["own"] - capture["cut"]
    assert counters["received"] == sum(counters[end] for end in ("forwarded", "passed", "replied")) + sum(
        counters["drops"].values()
    )
    return document


def failed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a replay which cannot be says; exit status 1."""
    assert main(["replay", *arguments]) == 1
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("pylvs replay: ") and err.count("\n") == 1
    return err


def test_shares(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Verdicts, and who got how much."""
    document = replayed(capsys, "rules", "in.pcap")
    assert document["capture"]["frames"] == 25
    assert document["capture"]["seconds"] == 20
    assert document["interface"] == {"name": "eth0", "mac": DIRECTOR}
    assert {name: document["counters"][name] for name in ("forwarded", "replied")} == {"forwarded": 24, "replied": 1}
    (service,) = document["services"]
    assert (service["service"], service["scheduler"], service["connections"]) == (f"TCP {VIP}:80", "wrr", 12)
    assert [(each["server"], each["connections"], each["share"]) for each in service["servers"]] == [
        ("10.0.0.11:80", 8, 66.7), ("10.1.0.12:8080", 4, 33.3),
    ]  # fmt: skip


def test_what_would_be_sent(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output holds the rewritten frames with the times of those that caused them."""
    document = replayed(capsys, "rules", "in.pcap", "--out", "out.pcap")
    packets = rdpcap("out.pcap")
    assert document["sent"] == {"frames": 25, "bytes": sum(map(len, packets)), "file": "out.pcap"}
    assert [float(packet.time) for packet in packets] == [float(packet.time) for packet in rdpcap("in.pcap")]
    assert {packet.src for packet in packets} == {DIRECTOR}
    nat = [packet for packet in packets if TCP in packet and packet[TCP].dport == 8080]
    assert {(packet.dst, packet[IP].dst) for packet in nat} == {("02:00:0a:01:00:0c", "10.1.0.12")}
    for packet in packets:
        fresh = packet.copy()
        del fresh[IP].chksum
        assert bytes(Ether(bytes(fresh))[IP])[10:12] == bytes(packet[IP])[10:12]
    assert (packets[-1].dst, packets[-1][ICMP].type) == (ROUTER, 3)  # where the request came from


def test_both_directions(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A NAT server's answers in the same capture are translated back; what the director sent itself is left out."""
    Path("rules").write_text(f"-A -t {VIP}:80 -s rr\n-a -t {VIP}:80 -r 10.1.0.12:8080 -m\n")
    answer = IP(src="10.1.0.12", dst="198.51.100.7") / TCP(sport=8080, dport=40000, flags="SA")
    wrpcap("in.pcap", [
        syn(1, 0), frame(1.001, IP(src=VIP, dst="198.51.100.7") / UDP(), source=DIRECTOR, target=ROUTER),
        frame(1.002, answer, source="02:00:00:00:01:12"),
    ])  # fmt: skip
    document = replayed(capsys, "rules", "in.pcap", "--out", "out.pcap")
    assert document["capture"]["own"] == 1
    assert document["services"][0]["packets_out"] == 1
    back = rdpcap("out.pcap")[1]
    assert (back.dst, back[IP].src, back[TCP].sport) == (ROUTER, VIP, 80)


def test_a_host_that_is_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Addresses, routes and neighbours as options say; the rest of the network gets made-up MACs."""
    options = ["--mac", DIRECTOR, "--address", "10.0.0.1/24", "--address", "198.51.100.1/24",
               "--route", "10.1.0.0/16=10.0.0.254", "--neighbour", "10.0.0.254=02:00:00:00:00:fe",
               "--neighbour", "10.0.0.11=02:00:00:00:00:11", "--interface", "lan"]  # fmt: skip
    document = replayed(capsys, "rules", "in.pcap", "--out", "out.pcap", *options)
    assert document["interface"]["name"] == "lan"
    assert {packet.dst for packet in rdpcap("out.pcap")} == {
        "02:00:00:00:00:fe", "02:00:00:00:00:11", "02:00:c6:33:64:07",  # a client on our own link
    }  # fmt: skip


def test_nothing_assumed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without assumptions an unknown next hop is a drop by name, three seconds later."""
    document = replayed(capsys, "rules", "in.pcap", "--no-assume-neighbours")
    assert document["counters"]["drops"] == {"no_neighbour": 24}
    assert document["sent"]["frames"] == 1


def test_both_families(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """IPv6, tunnel, ARP for the VIP."""
    Path("rules").write_text(
        f"-A -t [{VIP6}]:80 -s rr\n-a -t [{VIP6}]:80 -r [fd00:1::11]:80 -i\n-A -t {VIP}:80 -s rr\n"
        f"-a -t {VIP}:80 -r 10.0.0.11 -i\n"
    )
    wrpcap("in.pcap", [
        frame(1, ARP(op="who-has", psrc="192.0.2.2", pdst=VIP), target="ff:ff:ff:ff:ff:ff"),
        frame(2, IPv6(src="fd00:9::7", dst=VIP6) / TCP(sport=1024, dport=80)), syn(3, 0),
    ])  # fmt: skip
    document = replayed(capsys, "rules", "in.pcap", "--out", "out.pcap")
    assert document["counters"]["forwarded"] == 2
    assert document["counters"]["replied"] == 1
    arp, six, four = rdpcap("out.pcap")
    assert arp[ARP].hwsrc == DIRECTOR
    assert (six[IPv6].src, six[IPv6].dst, six[IPv6].nh) == ("2001:db8::1", "fd00:1::11", 41)
    assert (four[IP].src, four[IP].dst, four[IP].proto) == ("192.0.2.1", "10.0.0.11", 4)


def test_cut_frames(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the capture did not keep whole is counted and said, not decided."""
    data = bytearray(Path("in.pcap").read_bytes())
    data[24 + 12 : 24 + 16] = struct.pack("<I", 1514)
    Path("in.pcap").write_bytes(data)
    assert replayed(capsys, "rules", "in.pcap")["capture"]["cut"] == 1
    assert main(["replay", "rules", "in.pcap"]) == 0
    assert "1 left out: cut short by the capture; record with `tcpdump -s 0`" in capsys.readouterr().out


def test_a_damaged_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What came before the damage is shown; then the damage, and exit status 1."""
    Path("in.pcap").write_bytes(Path("in.pcap").read_bytes()[:-5])
    assert main(["replay", "rules", "in.pcap"]) == 1
    out, err = capsys.readouterr()
    assert "received     24" in out
    assert err.startswith("pylvs replay: in.pcap: the file ends within record 25") and err.count("\n") == 1


@pytest.mark.parametrize(
    "rules, says",
    [
        (RULES + "-a -t 10.0.0.100:81 -r 10.0.0.11\n", "rules:4: Service not defined (-a -t 10.0.0.100:81 -r 10.0.0.11)"),
        ("# saved\n\n-A -t 10.0.0.100\n", "rules:3: "),
        (f"-A -t {VIP}:80 -s nosuch\n", "rules:1: Scheduler or persistence engine not found"),
        (f"-A -t {VIP}:80\n-L -n\n", "rules:2: this sets nothing (-L -n)"),
        ("", "no virtual service in it"),
        ("\udcff\udcfe", "this is no text"),
    ],
)
def test_bad_rules(place: Path, capsys: pytest.CaptureFixture[str], rules: str, says: str) -> None:
    """The line that is wrong, and why."""
    Path("rules").write_bytes(rules.encode(errors="surrogateescape"))
    assert says in failed(capsys, "rules", "in.pcap")


def test_bad_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Missing, empty, no capture, not writable, the same file twice."""
    assert "nowhere: No such file" in failed(capsys, "nowhere", "in.pcap")
    assert "nowhere.pcap: No such file" in failed(capsys, "rules", "nowhere.pcap")
    assert "rules: this is no pcap file" in failed(capsys, "rules", "rules")
    assert "nowhere/out.pcap: No such file" in failed(capsys, "rules", "in.pcap", "--out", "nowhere/out.pcap")
    assert "is the capture itself" in failed(capsys, "rules", "in.pcap", "--out", str(place / "in.pcap"))
    Path("empty.pcap").write_bytes(Path("in.pcap").read_bytes()[:24])
    assert "holds no frame" in failed(capsys, "rules", "empty.pcap")
    assert os.path.getsize("in.pcap") > 1000
    assert "no --address" in failed(capsys, "rules", "in.pcap", "--route", "0.0.0.0/0=10.0.0.254")


@pytest.mark.parametrize(
    "options",
    ["--mac 1:2", "--address 10.0.0.999", "--neighbour 10.0.0.1", "--neighbour 10.0.0.1=zz", "--route 10.0.0.0/8",
     "--route ::/0=10.0.0.1", "--route 10.0.0.1/8=10.0.0.2", "--mtu 7", "--interface lo", "--nosuch"],
)  # fmt: skip
def test_bad_options(place: Path, capsys: pytest.CaptureFixture[str], options: str) -> None:
    """Usage: exit status 2."""
    with pytest.raises(SystemExit) as end:
        main(["replay", "rules", "in.pcap", *options.split()])
    assert end.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_the_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The how-to's rules and command give what it prints."""
    text = PAGE.read_text()
    rules = re.search(r"^```\n(-A .*?)^```$", text, re.MULTILINE | re.DOTALL)
    shown = re.search(r"^```console\n\$ (pylvs replay [^\n]*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert rules and shown
    Path("web.rules").write_text(rules[1])
    wrpcap("web.pcap", conversations())
    assert main(shlex.split(shown[1])[1:]) == 0
    assert capsys.readouterr().out == shown[2]
    assert len(rdpcap("sent.pcap")) == 25
