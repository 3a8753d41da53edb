"""The FTP helper: data connections that are expected, texts that are rewritten, sequence numbers (semantics §11)."""

from __future__ import annotations

import pytest
from cases.craft import V4, V6, Plan, endpoint, from_router, from_server, host, ip, segment, to_router, to_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from pylvs import Director

C, S = 1000, 5000  # initial sequence numbers
PLANS = pytest.mark.parametrize("plan", [V4, V6], ids=["v4", "v6"])
ENTERING = b"227 Entering Passive Mode (%s).\r\n"


class Control:
    """A control connection that has just been established, and its two ends."""

    def __init__(self, plan: Plan = V4, helper: int = 1, flag: str = "-m", rport: int = 21) -> None:
        self.plan = plan
        self.director = Director(**host(), connections=4096)
        self.director.settings["ip_vs_ftp"] = helper
        service = endpoint(plan.vip, 21)
        assert self.director.ipvsadm(f"-A -t {service} -s rr").returncode == 0
        assert self.director.ipvsadm(f"-a -t {service} -r {endpoint(plan.servers[0], rport)} {flag}").returncode == 0
        self.rport = rport
        self.now = 1.0
        self.client("S", C, 0)
        self.server("SA", S, C + 1)
        self.client("A", C + 1, S + 1)

    def send(self, side: str, frame: bytes) -> list[tuple[str, bytes]]:
        self.now += 0.01
        (outcome,) = self.director.process([(side, frame)], now=self.now)
        return outcome.frames

    def client(
        self, flags: str, seq: int, ack: int, text: bytes = b"", sport: int = 7777, vport: int = 21, **more: object
    ) -> list[tuple[str, bytes]]:
        tcp = segment("tcp", sport, vport, flags, text, seq=seq, ack=ack, **more)
        return self.send("c", from_router(ip(self.plan.client, self.plan.vip) / tcp))

    def server(self, flags: str, seq: int, ack: int, text: bytes = b"", **ports: int) -> list[tuple[str, bytes]]:
        tcp = segment("tcp", ports.get("sport", self.rport), ports.get("dport", 7777), flags, text, seq=seq, ack=ack)
        return self.send("s", from_server(ip(self.plan.servers[0], self.plan.client) / tcp))

    def delivered(
        self, flags: str, seq: int, ack: int, text: bytes = b"", sport: int = 7777, dport: int = 0, **more: object
    ) -> list[tuple[str, bytes]]:
        """What the real server gets of it, built from scratch."""
        tcp = segment("tcp", sport, dport or self.rport, flags, text, seq=seq, ack=ack, **more)
        return [("s", to_server(ip(self.plan.client, self.plan.servers[0], ttl=63) / tcp))]

    def returned(self, flags: str, seq: int, ack: int, text: bytes = b"", **ports: int) -> list[tuple[str, bytes]]:
        """What the client gets of it."""
        tcp = segment("tcp", ports.get("sport", 21), ports.get("dport", 7777), flags, text, seq=seq, ack=ack)
        return [("c", to_router(ip(self.plan.vip, self.plan.client, ttl=63) / tcp))]

    def entries(self) -> set[tuple[int, int, int, str]]:
        """(client's port, VIP's port, server's port, state) of all but the control connection."""
        return {
            (c.client_port, c.virtual_port, c.dest_port, c.state)
            for c in self.director.connections()
            if c.virtual_port != 21
        }


def passive(c: Control, numbers: bytes = b"10,1,0,11,200,1") -> tuple[bytes, bytes]:
    """PASV and its answer; the answer as sent and as it must arrive."""
    old, new = ENTERING % numbers, ENTERING % (b"10,0,0,100,200,1" if numbers.count(b",") == 5 else numbers)
    assert c.client("PA", C + 1, S + 1, b"PASV\r\n") == c.delivered("PA", C + 1, S + 1, b"PASV\r\n")
    assert c.server("PA", S + 1, C + 7, old) == c.returned("PA", S + 1, C + 7, new)
    return old, new


def test_passive_answers_name_the_vip_and_both_sides_keep_their_sequence_numbers() -> None:
    c = Control()
    old, new = passive(c)
    grown = len(new) - len(old)
    assert grown == 1
    behind = S + 1 + len(old)
    assert c.entries() == {(0, 51201, 51201, "LISTEN")}
    assert c.client("A", C + 7, behind + 1) == c.delivered("A", C + 7, behind)
    assert c.client("A", C + 7, S + 1) == c.delivered("A", C + 7, S + 1)  # a late one of before
    assert c.server("PA", behind, C + 7, b"150 ok\r\n") == c.returned("PA", behind + 1, C + 7, b"150 ok\r\n")
    assert c.server("A", S + 1, C + 7, b"2") == c.returned("A", S + 1, C + 7, b"2")


@pytest.mark.parametrize("numbers", [b"1,1,1,1,1,1", b"010,001,000,0011,0200,0001", b"10,1,0,111,200,1"])
def test_texts_grow_and_shrink(numbers: bytes) -> None:
    c = Control()
    port = 257 if numbers[0:1] == b"1" and numbers[1:2] == b"," else 51201
    old = ENTERING % numbers
    new = ENTERING % (b"10,0,0,100,%d,%d" % divmod(port, 256))
    c.client("PA", C + 1, S + 1, b"PASV\r\n")
    assert c.server("PA", S + 1, C + 7, old) == c.returned("PA", S + 1, C + 7, new)
    behind, moved = S + 1 + len(old), S + 1 + len(new)
    assert c.server("PA", behind, C + 7, b"next") == c.returned("PA", moved, C + 7, b"next")
    assert c.client("A", C + 7, moved + 4) == c.delivered("A", C + 7, behind + 4)


def test_two_passive_answers_add_up() -> None:
    c = Control()
    old, _ = passive(c)
    second = S + 1 + len(old)
    c.client("PA", C + 7, second + 1, b"pasv\r\n")
    text, became = ENTERING % b"10,1,0,11,9,9", ENTERING % b"10,0,0,100,9,9"
    assert c.server("PA", second, C + 13, text) == c.returned("PA", second + 1, C + 13, became)
    behind = second + len(text)
    assert c.server("PA", behind, C + 13, b"150") == c.returned("PA", behind + 2, C + 13, b"150")
    assert c.client("A", C + 13, behind + 2) == c.delivered("A", C + 13, behind)
    assert c.entries() == {(0, 51201, 51201, "LISTEN"), (0, 2313, 2313, "LISTEN")}


@pytest.mark.parametrize("front", [[], [("NOP", None)], [("NOP", None), ("NOP", None)]])
def test_selective_acknowledgements_are_moved_back(front: list[tuple[str, None]]) -> None:
    c = Control()
    old, _ = passive(c)
    behind = S + 1 + len(old)

    def options(shift: int) -> list[tuple[str, object]]:
        return [*front, ("SAck", (behind + 5 + shift, behind + 9 + shift, behind + 12 + shift, behind + 20 + shift))]

    assert c.client("A", C + 7, behind + 1, options=options(1)) == c.delivered("A", C + 7, behind, options=options(0))


def test_the_data_connection_finds_its_entry_and_ends_with_its_own_timer() -> None:
    c = Control()
    passive(c)
    data = {"sport": 7778, "dport": 51201}
    assert c.client("S", 70, 0, sport=7778, vport=51201) == c.delivered("S", 70, 0, **data)
    answer = c.server("SA", 80, 71, sport=51201, dport=7778)
    assert answer == c.returned("SA", 80, 71, sport=51201, dport=7778)
    c.client("A", 71, 81, sport=7778, vport=51201)
    assert c.entries() == {(7778, 51201, 51201, "ESTABLISHED")}
    assert c.client("S", 70, 0, sport=7779, vport=51201) != c.delivered("S", 70, 0, sport=7779, dport=51201)
    c.director.advance(now=c.now + 10000)
    assert c.director.connections() == []


def test_an_entry_that_nobody_comes_for_lives_two_minutes() -> None:
    c = Control()
    passive(c)
    c.director.advance(now=c.now + 119)
    assert c.entries() == {(0, 51201, 51201, "LISTEN")}
    c.director.advance(now=c.now + 122)
    assert c.entries() == set()
    assert c.client("S", 70, 0, sport=7778, vport=51201) == []


@PLANS
def test_extended_passive(plan: Plan) -> None:
    c = Control(plan)
    c.client("PA", C + 1, S + 1, b"EPSV\r\n")
    text = b"229 Entering Extended Passive Mode (|||51201|)\r\n"
    assert c.server("PA", S + 1, C + 7, text) == c.returned("PA", S + 1, C + 7, text)
    assert c.entries() == {(0, 51201, 51201, "LISTEN")}
    assert c.client("S", 70, 0, sport=7778, vport=51201) == c.delivered("S", 70, 0, sport=7778, dport=51201)


@PLANS
@pytest.mark.parametrize("rport", [21, 2121])
def test_the_server_opens_the_data_connection(plan: Plan, rport: int) -> None:
    c = Control(plan, rport=rport)
    text = f"EPRT |{1 if plan.family == 4 else 2}|{plan.client}|6804|\r\n".encode()
    assert c.client("PA", C + 1, S + 1, text) == c.delivered("PA", C + 1, S + 1, text)
    assert c.entries() == {(6804, 20, rport - 1, "LISTEN")}
    seen = c.server("S", 99, 0, sport=rport - 1, dport=6804)
    assert seen == c.returned("S", 99, 0, sport=20, dport=6804)
    answer = c.client("SA", 55, 100, sport=6804, vport=20)
    assert answer == c.delivered("SA", 55, 100, sport=6804, dport=rport - 1)
    c.server("A", 100, 56, sport=rport - 1, dport=6804)
    assert c.entries() == {(6804, 20, rport - 1, "ESTABLISHED")}


@pytest.mark.parametrize(
    ("text", "port"),
    [
        (b"PORT 198,18,1,7,26,148\r\n", 6804),
        (b"port  198,18,1,7,26,148\r\n", 6804),
        (b"EPRT !1!198.18.1.7!6804!\r\n", 6804),
        (b"PORT 198,18,1,7,26,148", 0),  # the last number may go on in the next segment
        (b"PORT 198,18,1,7,26\r\n", 0),
        (b"PORT 198,18,1,7,26,404\r\n", 0),
        (b"PORT 198,18,1,7,0,0\r\n", 0),
        (b"EPRT |2|::1|6804|\r\n", 0),
        (b"EPRT |1|198.18.1|6804|\r\n", 0),
        (b"EPRT |1|198.18.1.7|0|\r\n", 0),
        (b"EPRT |1|198.18.1.7|6804\r\n", 0),
        (b"XPORT 198,18,1,7,26,148\r\n", 0),
    ],
)
def test_reading_port_and_eprt(text: bytes, port: int) -> None:
    c = Control()
    assert c.client("PA", C + 1, S + 1, text) == c.delivered("PA", C + 1, S + 1, text)
    assert c.entries() == ({(port, 20, 20, "LISTEN")} if port else set())


@pytest.mark.parametrize(
    ("address", "good"),
    [("2001:db8:1::7", True), ("2001:DB8:1:0:0:0:0:7", True), ("::ffff:1.2.3.4", True), ("::", True), ("2001:db8::", True),
     ("2001:db8::1::7", False), (":1", False), ("1:2:3:4:5:6:7", False), ("1:2:3:4:5:6:7:8:9", False),
     ("12345::", False), ("::1.2.3", False), ("", False), ("g::", False)],
)  # fmt: skip
def test_reading_ipv6_addresses(address: str, good: bool) -> None:
    c = Control(V6)
    c.client("PA", C + 1, S + 1, f"EPRT |2|{address}|6804|\r\n".encode())
    assert bool(c.entries()) == good


def test_an_answer_that_was_not_asked_for_is_only_text() -> None:
    c = Control()
    text = ENTERING % b"10,1,0,11,200,1"
    assert c.server("PA", S + 1, C + 1, text) == c.returned("PA", S + 1, C + 1, text)
    assert c.entries() == set()


@pytest.mark.parametrize(("helper", "flag"), [(0, "-m"), (1, "-g"), (1, "-i")])
def test_only_nat_with_the_setting_has_the_helper(helper: int, flag: str) -> None:
    c = Control(helper=helper, flag=flag)
    c.client("PA", C + 1, S + 1, b"PORT 198,18,1,7,26,148\r\n")
    assert c.entries() == set()


def test_a_bad_checksum_is_dropped_where_the_text_would_be_read() -> None:
    c = Control()
    assert c.client("PA", C + 1, S + 1, b"PASV\r\n", chksum=0x1234) == []
    assert c.director.counters()["drops"] == {"bad_checksum": 1}


def test_data_connections_die_before_what_controls_them() -> None:
    c = Control()
    c.client("PA", C + 1, S + 1, b"PORT 198,18,1,7,26,148\r\n")
    c.client("R", C + 25, S + 1)  # CLOSE: ten seconds
    c.director.advance(now=c.now + 60)
    assert len(c.director.connections()) == 2
    c.director.advance(now=c.now + 200)
    assert c.director.connections() == []


@pytest.mark.parametrize("flag", ["-g", "-i"])
def test_active_ftp_past_the_director_needs_persistence(flag: str) -> None:
    """By DR and TUN the server's SYN does not come by; the client's SYN+ACK schedules, to the control's server."""
    d = Director(**host(), connections=4096)
    assert d.ipvsadm(f"-A -t {V4.vip}:21 -s rr -p 60").returncode == 0
    for server in V4.servers:
        d.ipvsadm(f"-a -t {V4.vip}:21 -r {server}:21 {flag}")
    for n in range(3):
        client = f"198.18.1.{n + 1}"
        control = from_router(ip(client, V4.vip) / TCP(sport=7777, dport=21, flags="S"))
        data = from_router(ip(client, V4.vip) / TCP(sport=6804, dport=20, flags="SA"))
        one, two = d.process([("c", control), ("c", data)], now=1.0 + n)
        assert one.verdict == two.verdict == "forward"
        assert one.connection is not None and two.connection is not None
        assert one.connection.dest == two.connection.dest
    templates = [c for c in d.connections() if c.template]
    assert {(c.virtual_port, c.dest_port) for c in templates} == {(0, 0)}
    assert len(templates) == 3


words = st.lists(
    st.one_of(
        st.sampled_from(
            [b"PORT ", b"EPRT ", b"PASV\r\n", b"EPSV\r\n", b"EPSV 1\r\n", b"227 ", b"229 ", b"(", b"|||", b"|1|", b",",
             b"10,1,0,11,200,1", b"198,18,1,7,26,148", b"198.18.1.7", b"|", b"51201", b"|)", b")\r\n", b" ", b"0" * 99]
        ),
        st.binary(max_size=8),
    ),
    max_size=8,
).map(b"".join)  # fmt: skip


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.booleans(), words, st.integers(0, 2**32 - 1)), max_size=8), st.sampled_from([V4, V6]))
def test_no_text_harms_an_established_connection(texts: list[tuple[bool, bytes, int]], plan: Plan) -> None:
    """Another client's connection stays as it is, lengths and checksums stay true, and the books balance."""
    c = Control(plan)
    settled = segment("tcp", 4444, 21, "S", b"", seq=1, ack=0)
    mine = from_router(ip("198.18.9.9" if plan.family == 4 else "2001:db8:9::9", plan.vip) / settled)
    before = c.send("c", mine)
    for by_client, text, number in texts:
        side = c.client if by_client else c.server
        for _, frame in side("PA", number, number ^ 0x5555, text):
            layers = Ether(frame)
            tcp = layers[TCP]
            assert len(frame) == 14 + (layers.payload.len if plan.family == 4 else 40 + layers.payload.plen)
            given_sum = tcp.chksum
            del tcp.chksum
            assert Ether(bytes(layers))[TCP].chksum == given_sum
    assert c.send("c", mine) == before
    counts = c.director.counters()
    known = ("forwarded", "passed", "replied")
    assert counts["received"] == sum(counts[k] for k in known) + sum(counts["drops"].values())
    c.director.advance(now=c.now + 10000)
    assert c.director.connections() == []
