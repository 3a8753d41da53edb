"""The guard keeps from the host's own stack exactly what pylvs forwards.

The kernel sees every frame that we see. Where a VIP is an address of the host, or the host forwards packets, it would
answer or forward a second time. So an nftables table of our own stands at the ingress of each attached interface,
behind the packet sockets (they must be bound to all protocols), and drops

* packets to a virtual service: protocol, VIP and port;
* every packet to a VIP that no interface of the host has, whatever its protocol: the host would route it on;
* replies of a NAT real server to anybody but this host: its health checks and its ssh live;
* ICMP errors about either.

Everything else passes: ARP, pings, other ports. Fragments after the first carry no ports and pass as well, except of
a service of all ports; the host's stack holds them for a moment and drops them, as it never sees a first one. Frames
with a VLAN tag pass too: they are met again, without the tag, at the interface of that VLAN.

The rules never change; services are elements of sets, so thousands cost one look-up each. The kernel removes the table
when the process ends, however it ends (table owner, Linux 5.12); before that, the next start does.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable

from pylvs.host import nftables as nft
from pylvs.host.nftables import Batch, Nftables, NftablesError
from pylvs.model import Link

TABLE = "pylvs"
LOCK = "\0pylvs-guard"  # held by the living owner of an unowned table, one per namespace
PRIORITY = -400  # before others' ingress filters; drops are final, so the order among them is only cost
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
#: what the host itself receives: RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST, RTN_MULTICAST
OURS = (2, 3, 4, 5)

Endpoint = tuple[str, str, int]  # protocol, address, port (0: all ports)

# nft's numbers for the types of a key, six bits each (shown by `nft list`, meaningless to the kernel)
_PROTO, _PORT = 12, 13
_ADDRESS = {4: 7, 6: 8}


class _Family:
    """Where the headers of one IP version keep what the rules compare."""

    def __init__(self, version: int) -> None:
        four = version == 4
        self.version = version
        self.ethertype = b"\x08\x00" if four else b"\x86\xdd"
        self.length = 4 if four else 16
        self.source, self.destination = (12, 16) if four else (8, 24)
        self.protocol = 9 if four else 6
        self.icmp = bytes([1 if four else 58])
        # unreachable, source quench, time exceeded, parameter problem; in IPv6 also packet too big
        self.errors = (3, 4, 11, 12) if four else (1, 2, 3, 4)
        self.header = 20 if four else 40
        self.port_register = nft.REG32 + 1 + self.length // 4


FAMILIES = (_Family(4), _Family(6))


class GuardError(Exception):
    """The guard cannot be set up or changed; the message says what to do."""


class Guard:
    """The guard of the current network namespace, on `interfaces`, with nothing to keep until `update`.

    Raises `GuardError` without permission, without nftables, for an absent interface, and if a living pylvs guards
    the namespace already. A table left behind by a dead one is replaced. Not for several threads.
    """

    def __init__(self, interfaces: list[str], *, fib: bool = True) -> None:
        self._fib = fib  # whether the kernel can say what is local; else `set_local` does
        self._held: dict[str, set[bytes]] = {name: set() for name in _sets()}
        self._hooked: dict[str, int] = {}
        self._lock = _take_lock()
        try:
            self._nftables = Nftables()
        except OSError as error:
            self._lock.close()
            raise _explained(error) from error
        try:
            self._create()
            self.set_interfaces(interfaces)
        except BaseException as error:
            self._close()
            if isinstance(error, OSError):
                raise _explained(error) from error
            raise

    def _create(self) -> None:
        owner = self._nftables.tables().get(TABLE)
        if owner:
            raise GuardError(
                f"another pylvs guards this network namespace (nftables table 'netdev {TABLE}', netlink port {owner}); "
                "stop it first"
            )
        stale, owned = owner is not None, True
        while True:
            try:
                self._nftables.commit(_construction(stale=stale, owned=owned, fib=self._fib))
                return
            except NftablesError as error:
                if owned and error.what == "table" and error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                    owned = False  # before Linux 5.12
                elif self._fib and error.what.startswith("rule") and error.errno == errno.ENOENT:
                    self._fib = False  # a kernel without CONFIG_NFT_FIB_NETDEV
                else:
                    raise

    def update(self, services: set[Endpoint], replies: set[Endpoint], vips: Iterable[str] = ()) -> None:
        """Keep from the host's stack packets to `services`, what real servers send from `replies` to others, and all
        packets to `vips`, which must not be addresses of the host.

        One transaction: a packet meets either the old sets or the new ones. Port 0 stands for all ports.
        Raises `GuardError`; the old sets stay then.
        """
        self._hold(self._wanted(services, replies, vips))

    def widen(self, services: set[Endpoint], replies: set[Endpoint], vips: Iterable[str] = ()) -> None:
        """Keep these from the host's stack too, until the next `update`. Raises `GuardError`."""
        wanted = self._wanted(services, replies, vips)
        self._hold({name: keys | wanted[name] for name, keys in self._held.items()})

    def _wanted(self, services: set[Endpoint], replies: set[Endpoint], vips: Iterable[str]) -> dict[str, set[bytes]]:
        wanted: dict[str, set[bytes]] = {name: set() for name in self._held}
        for kind, endpoints in (("services", services), ("replies", replies)):
            for endpoint in endpoints:
                name, key = _element(kind, endpoint)
                wanted[name].add(key)
        for vip in vips:
            parsed = ipaddress.ip_address(vip)
            wanted[f"vips{parsed.version}"].add(parsed.packed)
        return wanted

    def _hold(self, wanted: dict[str, set[bytes]]) -> None:
        batch = Batch(TABLE)
        for name, keys in wanted.items():
            batch.delete_elements(name, sorted(self._held[name] - keys))
            batch.add_elements(name, sorted(keys - self._held[name]))
        self._commit(batch)
        self._held = wanted

    def set_local(self, links: Iterable[Link]) -> None:
        """Tell which addresses are the host's own; call it whenever they change. Raises `GuardError`.

        Does nothing where the kernel's rules can find out by themselves, as those of all distributions can.
        """
        if self._fib:
            return
        batch = Batch(TABLE)
        ranges = _local_ranges(links)
        for family in FAMILIES:
            batch.replace_ranges(f"local{family.version}", ranges[family.version])
        self._commit(batch)

    def set_interfaces(self, interfaces: list[str]) -> None:
        """Stand at the ingress of exactly these interfaces; call it again when one was deleted and made anew.

        Raises `GuardError` if one does not exist; nothing is changed then.
        """
        wanted = {}
        for name in interfaces:
            try:
                wanted[name] = socket.if_nametoindex(name)
            except OSError:
                raise GuardError(f"interface {name} does not exist; name one that `ip link` shows") from None
        try:
            present = self._nftables.chains(TABLE)
        except OSError as error:
            raise _explained(error) from error
        batch = Batch(TABLE)
        for name in sorted(self._hooked.keys() | wanted.keys()):
            chain = f"from_{name}"
            current = chain in present and self._hooked.get(name) == wanted.get(name)
            if chain in present and not current:
                batch.delete_chain(chain)
            if name in wanted and not current:
                batch.add_ingress(chain, name, PRIORITY)
                for family in FAMILIES:
                    batch.add_rule(chain, *_is(family), nft.verdict(nft.GOTO, f"ip{family.version}"))
        self._commit(batch)
        self._hooked = wanted

    def _commit(self, batch: Batch) -> None:
        try:
            self._nftables.commit(batch)
        except OSError as error:
            raise _explained(error) from error

    def close(self) -> None:
        """Remove the guard; a second call does nothing."""
        if self._lock.fileno() < 0:
            return
        batch = Batch(TABLE)
        batch.delete_table()
        # an administrator may have removed it; an owned table goes with the socket anyway
        with contextlib.suppress(OSError):
            self._nftables.commit(batch)
        self._close()

    def _close(self) -> None:
        self._nftables.close()
        self._lock.close()


def available() -> str | None:
    """Why no guard can stand in this namespace, as a sentence; None if one can. Changes nothing."""
    try:
        nftables = Nftables()
    except OSError as error:
        return str(_explained(error))
    try:
        batch = _construction(table=f"{TABLE}-check", stale=False, owned=False, fib=False)
        batch.add_ingress("from_lo", "lo", PRIORITY)
        nftables.check(batch)
    except OSError as error:
        return str(_explained(error))
    finally:
        nftables.close()
    return None


# -------------------------------------------------------------------------------------------------- what it is made of


def _sets() -> dict[str, tuple[int, int]]:
    """Name -> type (for the eye) and length of the key. The key is what `_element` packs."""
    found = {}
    for family in FAMILIES:
        for kind in ("services", "replies"):
            every = _PROTO << 6 | _ADDRESS[family.version]
            found[f"{kind}{family.version}"] = (every << 6 | _PORT, 8 + family.length)
            found[f"{kind}{family.version}_any"] = (every, 4 + family.length)
        found[f"vips{family.version}"] = (_ADDRESS[family.version], family.length)
    return found


def _element(kind: str, endpoint: Endpoint) -> tuple[str, bytes]:
    """(name of the set, key): protocol, address and port, each padded to a register of four bytes."""
    protocol, address, port = endpoint
    parsed = ipaddress.ip_address(address)
    key = bytes([PROTOCOLS[protocol], 0, 0, 0]) + parsed.packed
    if port == 0:
        return f"{kind}{parsed.version}_any", key
    return f"{kind}{parsed.version}", key + struct.pack(">HH", port, 0)


def _construction(*, stale: bool, owned: bool, fib: bool, table: str = TABLE) -> Batch:
    batch = Batch(table)
    if stale:
        batch.delete_table()
    batch.add_table(owned=owned)
    for name, (key_type, key_length) in _sets().items():
        batch.add_set(name, key_type, key_length)
    for family in FAMILIES:
        if not fib:
            batch.add_set(f"local{family.version}", _ADDRESS[family.version], family.length, ranges=True)
        _add_rules(batch, family, fib)
    return batch


def _local_ranges(links: Iterable[Link]) -> dict[int, list[tuple[bytes, bytes]]]:
    """What the host receives, as ranges by IP version: its addresses, broadcast and multicast.

    The prefix of an address counts as a whole on lo only; elsewhere just its broadcast address.
    """
    four = [ipaddress.IPv4Network("224.0.0.0/4"), ipaddress.IPv4Network("255.255.255.255/32")]
    six = [ipaddress.IPv6Network("ff00::/8")]
    for link in links:
        for address in link.addresses:
            here = ipaddress.ip_interface(address)
            if isinstance(here, ipaddress.IPv6Interface):
                six.append(here.network if link.loopback else ipaddress.IPv6Network(here.ip))
            elif link.loopback:
                four.append(here.network)
            else:
                four.append(ipaddress.IPv4Network(here.ip))
                if here.network.prefixlen < 31:
                    four.append(ipaddress.IPv4Network(here.network.broadcast_address))
    return {
        4: [_range(network) for network in ipaddress.collapse_addresses(four)],
        6: [_range(network) for network in ipaddress.collapse_addresses(six)],
    }


def _range(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> tuple[bytes, bytes]:
    """First address, and the one after the last; the range up to the very last address ends with zeros, as nft's do."""
    length = network.max_prefixlen // 8
    end = (int(network.broadcast_address) + 1) % (1 << network.max_prefixlen)
    return network.network_address.packed, end.to_bytes(length, "big")


def _add_rules(batch: Batch, family: _Family, fib: bool) -> None:
    """Chains ip4/ip6 (packets), icmp4/icmp6 (ICMP by type) and error4/error6 (ICMP errors by what they are about)."""
    version = family.version
    main, icmp, error = f"ip{version}", f"icmp{version}", f"error{version}"
    for chain in (main, icmp, error):
        batch.add_chain(chain)

    whole = nft.payload(nft.NETWORK, family.destination, family.length, nft.REG32)
    batch.add_rule(main, whole, nft.lookup(f"vips{version}", nft.REG32), nft.counter(), nft.verdict(nft.DROP))
    protocol = nft.meta(nft.META_L4PROTO, nft.REG32)
    to = nft.payload(nft.NETWORK, family.destination, family.length, nft.REG32 + 1)
    sender = nft.payload(nft.NETWORK, family.source, family.length, nft.REG32 + 1)
    to_port = nft.payload(nft.TRANSPORT, 2, 2, family.port_register)
    from_port = nft.payload(nft.TRANSPORT, 0, 2, family.port_register)
    _keep(batch, main, f"services{version}", (protocol, to), to_port)
    _keep(batch, main, f"replies{version}", (protocol, sender), from_port, *_to_others(family, fib))
    batch.add_rule(main, protocol, nft.compare(nft.REG32, nft.EQ, family.icmp), nft.verdict(nft.GOTO, icmp))

    kind = nft.payload(nft.TRANSPORT, 0, 1, nft.REG32)
    for number in family.errors:
        batch.add_rule(icmp, kind, nft.compare(nft.REG32, nft.EQ, bytes([number])), nft.verdict(nft.GOTO, error))

    # the packet that the error is about begins after the eight bytes of the ICMP header; its own header without options
    inner = 8
    protocol = nft.payload(nft.TRANSPORT, inner + family.protocol, 1, nft.REG32)
    if version == 4:
        first = nft.payload(nft.TRANSPORT, inner, 1, nft.REG32)
        batch.add_rule(error, first, nft.compare(nft.REG32, nft.NEQ, b"\x45"), nft.verdict(nft.RETURN))
    to = nft.payload(nft.TRANSPORT, inner + family.destination, family.length, nft.REG32 + 1)
    sender = nft.payload(nft.TRANSPORT, inner + family.source, family.length, nft.REG32 + 1)
    to_port = nft.payload(nft.TRANSPORT, inner + family.header + 2, 2, family.port_register)
    from_port = nft.payload(nft.TRANSPORT, inner + family.header, 2, family.port_register)
    _keep(batch, error, f"services{version}", (protocol, sender), from_port)
    _keep(batch, error, f"replies{version}", (protocol, to), to_port, *_to_others(family, fib))


def _keep(batch: Batch, chain: str, name: str, load: tuple[bytes, bytes], port: bytes, *also: bytes) -> None:
    """Drop what is in set `name` with its port, or in `name`_any with any."""
    batch.add_rule(chain, *load, port, nft.lookup(name, nft.REG32), *also, nft.counter(), nft.verdict(nft.DROP))
    batch.add_rule(chain, *load, nft.lookup(f"{name}_any", nft.REG32), *also, nft.counter(), nft.verdict(nft.DROP))


def _is(family: _Family) -> tuple[bytes, bytes]:
    """By the Ethernet header, which still says so if the frame has a VLAN tag."""
    return nft.payload(nft.LINK, 12, 2, nft.REG32), nft.compare(nft.REG32, nft.EQ, family.ethertype)


def _to_others(family: _Family, fib: bool) -> Iterable[bytes]:
    """Go on only if the packet is not addressed to this host."""
    if not fib:
        yield nft.payload(nft.NETWORK, family.destination, family.length, nft.REG32)
        yield nft.lookup(f"local{family.version}", nft.REG32, absent=True)
        return
    yield nft.fib_daddr_type(nft.REG32)
    for kind in OURS:
        yield nft.compare(nft.REG32, nft.NEQ, struct.pack("=I", kind))


# ------------------------------------------------------------------------------------------------------------ errors


def _take_lock() -> socket.socket:
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        lock.bind(LOCK)
    except OSError:
        lock.close()
        raise GuardError("another pylvs guards this network namespace; stop it first") from None
    return lock


def _explained(error: OSError) -> GuardError:
    what = error.what if isinstance(error, NftablesError) else ""
    if error.errno in (errno.EPERM, errno.EACCES):
        return GuardError("no permission to set the nftables guard; run as root or give the process CAP_NET_ADMIN")
    if error.errno in (errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOTSUP):
        return GuardError(
            "this kernel has no nftables for the netdev family; load or build nf_tables with CONFIG_NF_TABLES_NETDEV, "
            "or keep every VIP off the host's interfaces and net.ipv4.ip_forward at 0"
        )
    if error.errno == errno.ENOENT and what.startswith("rule"):
        return GuardError(
            f"this kernel's nftables lacks an expression that the guard needs ({what}); install the kernel modules of "
            "your distribution in full"
        )
    if error.errno in (errno.ENOENT, errno.ENODEV) and what.startswith("hook"):
        return GuardError(f"the interface has gone ({what}); name one that `ip link` shows")
    if error.errno == errno.EMSGSIZE:
        return GuardError(
            "too many services for one transaction; raise net.core.wmem_max, or run outside a user namespace"
        )
    if error.errno == errno.ENOENT:
        return GuardError(
            f"the guard's table 'netdev {TABLE}' was removed by another program ({what}); restart pylvs to set it anew"
        )
    return GuardError(f"nftables refused the guard ({error}); `nft list ruleset` shows what is there")
