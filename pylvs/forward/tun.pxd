"""Room 5, TUN (tunnel): an outer header in front of an unchanged packet.

ipip is an IP header alone (RFC 2003; RFC 2473 for IPv6), GRE puts 4 bytes between (8 with a checksum; RFC 2784), GUE a
UDP header and 4 bytes (draft-ietf-intarea-gue-09, version 0). Inner and outer family may differ.

Outer TTL is the inner one after its decrement; the outer DSCP is the inner one's; ECN is copied except that a CE mark
becomes ECT(0) (as the kernel does it); outer DF is the inner DF if `pmtu_disc` is set; the identification is
fresh when fragments may arise and zero otherwise. The UDP source port of GUE is drawn from the connection's keyed hash,
so that a flow keeps its way through the network; its UDP checksum is there if asked for (GUE's remote checksum offload
has nothing to offload for packets whose checksums are finished, and means just that). The inner packet must be whole:
checksums finished, segments cut.

A path whose MTU a router has told us of (`learn`) keeps it for ten minutes, as the kernel's routes do.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from pylvs.forward cimport checksum, offload
from pylvs.forward._sys cimport likely, unlikely
from pylvs.forward.conn cimport Conn, client_hash
from pylvs.forward.fib cimport Hop
from pylvs.forward.fragment cimport send_fragments, send_pieces
from pylvs.forward.packet cimport (
    DROP, GRE, GSO_WHOLE, IPIP, IPV6IP, TOO_BIG, UDP, Flow, Frame, be16, put16, put32, same16,
)
from pylvs.forward.plane cimport DestLocal, Plane, transmit
from pylvs.forward.snapshot cimport TUN_CSUM, TUN_GRE, TUN_GUE, TUN_IPIP, TUN_REMCSUM, TUNNEL, DestSlot, Snapshot


cdef enum:
    LEAST_PMTU = 552  # what is learnt is never lower: the kernel's min_pmtu
    PMTU_NS = 600000000000
    GUE_PORT_LOW = 32768  # the usual range of ephemeral ports
    GUE_PORT_HIGH = 60999


cdef struct Wrap:
    # what goes between the link-layer header and the inner packet
    uint8_t family  # of the outer header
    uint8_t inner  # family of the inner packet
    uint8_t kind  # TunnelType
    uint8_t flags
    uint16_t sport  # GUE
    uint16_t dport
    bint df
    const uint8_t* target


cdef inline uint32_t shim(uint8_t kind, uint8_t flags) noexcept nogil:
    """Bytes between the outer IP header and the inner packet."""
    if kind == TUN_GUE:
        return 12
    if kind == TUN_GRE:
        return 8 if flags & TUN_CSUM else 4
    return 0


cdef inline uint32_t overhead(DestSlot* slot, uint8_t outer_family) noexcept nogil:
    """Bytes that a tunnel to this server takes from the path's MTU."""
    return (20 if outer_family == 4 else 40) + shim(slot.tun_type, slot.tun_flags)


cdef inline uint32_t path_mtu(Plane* plane, uint32_t dest, Hop* hop) noexcept nogil:
    """The MTU of the way to a server: the link's, or what a router has told us of it lately."""
    cdef DestLocal* local = &plane.dests[dest]
    if unlikely(local.pmtu != 0):
        if local.pmtu_expires <= plane.now:
            local.pmtu = 0
        elif local.pmtu < hop.mtu:
            return local.pmtu
    return hop.mtu


cdef inline void learn(Plane* plane, const uint8_t* address, uint32_t mtu) noexcept nogil:
    """A router has no room for packets to `address`: remember it for every tunnel that leads there."""
    cdef Snapshot* s = plane.snapshot
    cdef DestLocal* local
    cdef uint32_t i, j
    if mtu < LEAST_PMTU:
        mtu = LEAST_PMTU
    for i in range(s.service_count):
        for j in range(s.services[i].first, s.services[i].first + s.services[i].count):
            if s.entries[j].method != TUNNEL or not same16(s.entries[j].address, address):
                continue
            local = &plane.dests[s.entries[j].dest]
            if local.pmtu == 0 or local.pmtu_expires <= plane.now or mtu < local.pmtu:
                local.pmtu = mtu
                local.pmtu_expires = plane.now + <uint64_t>PMTU_NS


cdef inline uint8_t outer_tos(uint8_t inner) noexcept nogil:
    return (inner & 0xFC) | 2 if inner & 3 == 3 else inner


cdef inline void fill_shim(uint8_t* ip, uint8_t* p, Wrap* wrap, uint32_t size) noexcept nogil:
    """Write the GRE or GUE header at `p` in front of `size` bytes of inner packet; `ip` is the outer header."""
    cdef uint64_t total
    cdef uint16_t value
    if wrap.kind == TUN_GRE:
        put16(p, 0x8000 if wrap.flags & TUN_CSUM else 0)
        put16(p + 2, 0x0800 if wrap.inner == 4 else 0x86DD)
        if wrap.flags & TUN_CSUM:
            memset(p + 4, 0, 4)
            checksum.put_short(p + 4, <uint16_t>~checksum.fold(checksum.add(p, size + 8, 0)))
    elif wrap.kind == TUN_GUE:
        put16(p, wrap.sport)
        put16(p + 2, wrap.dport)
        put16(p + 4, size + 12)
        put16(p + 6, 0)
        put32(p + 8, <uint32_t>(IPIP if wrap.inner == 4 else IPV6IP) << 16)
        if wrap.flags & (TUN_CSUM | TUN_REMCSUM):
            total = checksum.pseudo(
                ip + (12 if wrap.family == 4 else 8), 8 if wrap.family == 4 else 32, UDP, size + 12
            )
            value = <uint16_t>~checksum.fold(checksum.add(p, size + 12, total))
            checksum.put_short(p + 6, value if value else 0xFFFF)


cdef inline uint8_t* encapsulate(
    uint8_t* frame, uint32_t l3, uint32_t* length, Wrap* wrap, const uint8_t* source, uint16_t ident,
) noexcept nogil:
    """Put the outer headers in; return the new start of the frame, which lies in the headroom of the old one.

    `length` is the Ethernet frame's, before and after. `source` and the wrap's target are 16-byte addresses. The
    link-layer header (and a VLAN tag) moves to the front.
    """
    cdef uint32_t between = shim(wrap.kind, wrap.flags)
    cdef uint32_t grow = between + (20 if wrap.family == 4 else 40)
    cdef uint8_t* start = frame - grow
    cdef uint8_t* inner = frame + l3
    cdef uint8_t* outer = start + l3
    cdef uint32_t size = length[0] - l3
    cdef uint8_t tos, ttl
    cdef uint8_t proto = IPIP if wrap.inner == 4 else IPV6IP
    if wrap.kind == TUN_GRE:
        proto = GRE
    elif wrap.kind == TUN_GUE:
        proto = UDP
    if wrap.inner == 4:
        tos = inner[1]
        ttl = inner[8]
    else:
        tos = <uint8_t>((inner[0] << 4) | (inner[1] >> 4))
        ttl = inner[7]
    tos = outer_tos(tos)
    memmove(start, frame, l3)
    put16(start + l3 - 2, 0x0800 if wrap.family == 4 else 0x86DD)
    if wrap.family == 4:
        outer[0] = 0x45
        outer[1] = tos
        put16(outer + 2, size + grow)
        put16(outer + 4, ident)
        put16(outer + 6, 0x4000 if wrap.df else 0)
        outer[8] = ttl
        outer[9] = proto
        memset(outer + 10, 0, 2)
        memcpy(outer + 12, source + 12, 4)
        memcpy(outer + 16, wrap.target + 12, 4)
        checksum.put_short(outer + 10, <uint16_t>~checksum.fold(checksum.add(outer, 20, 0)))
    else:
        put32(outer, 0x60000000 | (<uint32_t>tos << 20))
        put16(outer + 4, size + between)
        outer[6] = proto
        outer[7] = ttl
        memcpy(outer + 8, source, 16)
        memcpy(outer + 24, wrap.target, 16)
    if unlikely(between != 0):
        fill_shim(outer, inner - between, wrap, size)
    length[0] += grow
    return start


cdef inline int send_one(
    Plane* plane, Frame* frame, uint32_t l3, Wrap* wrap, Hop* hop, uint32_t mtu, uint8_t* reason,
) noexcept nogil:
    """Encapsulate one whole packet (frame.length ends with it) and send it, in fragments if the outer DF allows."""
    cdef uint16_t ident = 0
    cdef bint pieces = frame.offload.gso_type == GSO_WHOLE
    cdef uint32_t before = frame.length
    if not wrap.df:
        plane.ip_id += 1
        ident = plane.ip_id
    frame.data = encapsulate(frame.data, l3, &frame.length, wrap, hop.source, ident)
    if unlikely(pieces):
        memset(&frame.offload, 0, sizeof(frame.offload))
        return send_pieces(plane, frame, l3, frame.length - before, hop, mtu, reason)
    if likely(frame.length - l3 <= mtu):
        return transmit(plane, frame, hop, wrap.family == 6, reason)
    if wrap.df:
        reason[0] = TOO_BIG
        return DROP
    return send_fragments(plane, frame, l3, frame.length, hop, mtu, reason)


cdef inline int send(
    Plane* plane, Frame* frame, Flow* flow, Conn* c, uint8_t outer_family, Hop* hop, uint32_t mtu, uint8_t* reason
) noexcept nogil:
    """Make the packet whole (checksum, segments), then encapsulate; the caller has checked the path's `mtu`."""
    cdef uint32_t i, count
    cdef uint64_t h
    cdef uint8_t kind = frame.offload.gso_type
    cdef DestSlot* slot = &plane.slots[c.dest]
    cdef Wrap wrap
    cdef Frame piece
    cdef int verdict = DROP
    cdef int first = DROP
    wrap.family = outer_family
    wrap.inner = flow.family
    wrap.kind = slot.tun_type
    wrap.flags = slot.tun_flags
    wrap.target = c.daddr
    wrap.df = False
    if flow.family == 4 and outer_family == 4 and plane.settings.pmtu_disc:
        wrap.df = frame.data[flow.l3 + 6] & 0x40 != 0
    if wrap.kind == TUN_GUE:
        h = <uint32_t>client_hash(&plane.table, c)
        wrap.sport = <uint16_t>(GUE_PORT_LOW + <uint16_t>((h * <uint64_t>(GUE_PORT_HIGH - GUE_PORT_LOW)) >> 32))
        wrap.dport = slot.tun_port
    if likely(kind == 0):
        if offload.is_partial(frame, flow):
            offload.finish_checksum(frame.data + flow.l3, flow, flow.end - flow.l4)
        memset(&frame.offload, 0, sizeof(frame.offload))
        return send_one(plane, frame, flow.l3, &wrap, hop, mtu, reason)
    if kind == GSO_WHOLE:
        return send_one(plane, frame, flow.l3, &wrap, hop, mtu, reason)
    count = offload.segment_count(frame, flow)
    for i in range(count):
        memset(&piece, 0, sizeof(Frame))
        piece.own = i != 0
        piece.data = offload.cut_segment(plane, frame, flow, i, &piece.length)
        verdict = send_one(plane, &piece, flow.l3, &wrap, hop, mtu, reason)
        if i == 0:
            first = verdict
        if verdict == DROP:
            break
    return first
