"""Room 5, TUN (tunnel): an outer IP header in front of an unchanged packet (RFC 2003; RFC 2473 for IPv6).

Outer TTL is the inner one after its decrement; the outer DSCP is the inner one's; ECN is copied except that a CE mark
becomes ECT(0) (as the kernel does it); outer DF is the inner DF if `pmtu_disc` is set; the identification is
fresh when fragments may arise and zero otherwise. The inner packet must be whole: checksums finished, segments cut.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memmove, memset

from pylvs.forward cimport checksum, offload
from pylvs.forward._sys cimport likely
from pylvs.forward.fib cimport Hop
from pylvs.forward.fragment cimport send_fragments
from pylvs.forward.packet cimport DROP, IPIP, IPV6IP, TOO_BIG, Flow, Frame, put16, put32
from pylvs.forward.plane cimport Plane, transmit


cdef inline uint32_t overhead(uint8_t outer_family) noexcept nogil:
    """Bytes that the outer header takes from the path's MTU."""
    return 20 if outer_family == 4 else 40


cdef inline uint8_t outer_tos(uint8_t inner) noexcept nogil:
    return (inner & 0xFC) | 2 if inner & 3 == 3 else inner


cdef inline uint8_t* encapsulate(
    uint8_t* frame, uint32_t l3, uint32_t* length, uint8_t inner_family, uint8_t outer_family,
    const uint8_t* source, const uint8_t* target, bint df, uint16_t ident,
) noexcept nogil:
    """Put the outer header in; return the new start of the frame, which lies in the headroom of the old one.

    `length` is the Ethernet frame's, before and after. `source` and `target` are 16-byte addresses. The link-layer
    header (and a VLAN tag) moves to the front.
    """
    cdef uint32_t grow = overhead(outer_family)
    cdef uint8_t* start = frame - grow
    cdef uint8_t* inner = frame + l3
    cdef uint8_t* outer = start + l3
    cdef uint32_t size = length[0] - l3
    cdef uint8_t tos, ttl
    if inner_family == 4:
        tos = inner[1]
        ttl = inner[8]
    else:
        tos = <uint8_t>((inner[0] << 4) | (inner[1] >> 4))
        ttl = inner[7]
    tos = outer_tos(tos)
    memmove(start, frame, l3)
    put16(start + l3 - 2, 0x0800 if outer_family == 4 else 0x86DD)
    if outer_family == 4:
        outer[0] = 0x45
        outer[1] = tos
        put16(outer + 2, size + 20)
        put16(outer + 4, ident)
        put16(outer + 6, 0x4000 if df else 0)
        outer[8] = ttl
        outer[9] = IPIP if inner_family == 4 else IPV6IP
        memset(outer + 10, 0, 2)
        memcpy(outer + 12, source + 12, 4)
        memcpy(outer + 16, target + 12, 4)
        checksum.put_short(outer + 10, <uint16_t>~checksum.fold(checksum.add(outer, 20, 0)))
    else:
        put32(outer, 0x60000000 | (<uint32_t>tos << 20))
        put16(outer + 4, size)
        outer[6] = IPIP if inner_family == 4 else IPV6IP
        outer[7] = ttl
        memcpy(outer + 8, source, 16)
        memcpy(outer + 24, target, 16)
    length[0] += grow
    return start


cdef inline int send_one(
    Plane* plane, Frame* frame, uint32_t l3, uint8_t family, uint8_t outer_family, const uint8_t* target, bint df,
    Hop* hop, uint8_t* reason,
) noexcept nogil:
    """Encapsulate one whole packet (frame.length ends with it) and send it, in fragments if the outer DF allows."""
    cdef uint16_t ident = 0
    if not df:
        plane.ip_id += 1
        ident = plane.ip_id
    frame.data = encapsulate(
        frame.data, l3, &frame.length, family, outer_family, hop.source, target, df, ident
    )
    if likely(frame.length - l3 <= hop.mtu):
        return transmit(plane, frame, hop, outer_family == 6, reason)
    if df or outer_family == 6:
        reason[0] = TOO_BIG
        return DROP
    return send_fragments(plane, frame, l3, frame.length, hop, reason)


cdef inline int send(
    Plane* plane, Frame* frame, Flow* flow, uint8_t outer_family, const uint8_t* target, Hop* hop, uint8_t* reason
) noexcept nogil:
    """Make the packet whole (checksum, segments), then encapsulate; the caller has checked the path's MTU."""
    cdef uint32_t i
    cdef uint32_t count = offload.segment_count(frame, flow)
    cdef uint8_t kind = frame.offload.gso_type
    cdef Frame piece
    cdef int verdict = DROP
    cdef int first = DROP
    cdef bint df = False
    if flow.family == 4 and outer_family == 4 and plane.settings.pmtu_disc:
        df = frame.data[flow.l3 + 6] & 0x40 != 0
    if kind == 0:
        if offload.is_partial(frame, flow):
            offload.finish_checksum(frame.data + flow.l3, flow, flow.end - flow.l4)
        memset(&frame.offload, 0, sizeof(frame.offload))
        return send_one(plane, frame, flow.l3, flow.family, outer_family, target, df, hop, reason)
    for i in range(count):
        memset(&piece, 0, sizeof(Frame))
        piece.own = i != 0
        piece.data = offload.cut_segment(plane, frame, flow, i, &piece.length)
        verdict = send_one(plane, &piece, flow.l3, flow.family, outer_family, target, df, hop, reason)
        if i == 0:
            first = verdict
        if verdict == DROP:
            break
    return first
