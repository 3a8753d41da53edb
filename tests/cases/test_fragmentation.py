"""IPv4 packets without DF that do not fit are sent in pieces, as the kernel cuts them."""

from __future__ import annotations

from cases.craft import (
    C_MAC,
    KINDS,
    NAT_KINDS,
    ROUTER_MAC,
    S_MAC,
    SERVER_MACS,
    Kind,
    ethernet,
    from_router,
    from_server,
    host,
    to_server,
)  # fmt: skip
from cases.table import Host, Story, commands, each, forward
from packets import checksum, splice

V4_KINDS = [kind for kind in KINDS if kind.family == 4]


def pieces(packet: bytes, mtu: int) -> list[bytes]:
    """An IPv4 packet without options, cut so that every piece but the last is as large as it can be (RFC 791 §3.2)."""
    body, most = packet[20:], (mtu - 20) // 8 * 8
    cut = []
    for offset in range(0, len(body), most):
        part, more = body[offset : offset + most], offset + most < len(body)
        head = splice(packet[:20], 2, (20 + len(part)).to_bytes(2, "big"))
        head = splice(head, 6, (0x2000 * more | offset // 8).to_bytes(2, "big"))
        head = splice(splice(head, 10, b"\0\0"), 10, checksum(splice(head, 10, b"\0\0")))
        cut.append(head + part)
    return cut


@each([kind for kind in V4_KINDS if kind.method != "tun"])
def test_towards_the_server(kind: Kind) -> Story:
    """NAT and DR: the client's own identification on every piece."""
    yield Host(host(s_mtu=1400))
    yield from commands(kind.commands())
    for size in (1373, 1400, 1460, 1900, 2760, 2770):
        payload = bytes(n % 251 for n in range(size))
        sent = [ethernet(S_MAC, SERVER_MACS[0], part) for part in pieces(bytes(kind.delivered(payload=payload)), 1400)]
        yield forward("c", from_router(kind.request(payload=payload)), "s", *sent, note=f"{size} bytes")


@each([kind for kind in NAT_KINDS if kind.family == 4])
def test_towards_the_client(kind: Kind) -> Story:
    """Replies likewise."""
    yield Host(host(c_mtu=1300))
    yield from commands(kind.commands())
    yield forward("c", from_router(kind.request()), "s", to_server(kind.delivered()))
    payload = bytes(n % 251 for n in range(1472))
    sent = [ethernet(C_MAC, ROUTER_MAC, part) for part in pieces(bytes(kind.returned(payload=payload)), 1300)]
    yield forward("s", from_server(kind.reply(payload=payload)), "c", *sent)
