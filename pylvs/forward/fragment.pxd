"""IPv4 fragmentation of what leaves the director (RFC 791 §3.2), where DF allows it.

A packet that fits its path is sent as it is; one that does not is cut into fragments of whole 8-byte units. All options
are repeated in every fragment, not only those whose copied flag asks for it.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from pylvs.forward cimport checksum, offload
from pylvs.forward._sys cimport likely
from pylvs.forward.fib cimport HOP_READY, Hop
from pylvs.forward.packet cimport DROP, FORWARD, HELD, TOO_BIG, Flow, Frame, be16, put16
from pylvs.forward.plane cimport Plane, scratch, transmit


cdef inline int send_fragments(
    Plane* plane, Frame* frame, uint32_t l3, uint32_t end, Hop* hop, uint8_t* reason
) noexcept nogil:
    """Send the IPv4 packet at `l3` in fragments that fit `hop`; the first one's verdict is the frame's."""
    cdef uint8_t* ip = frame.data + l3
    cdef uint32_t header = (ip[0] & 15) * 4
    cdef uint32_t offset = be16(ip + 6) & 0x1FFF
    cdef uint32_t more = be16(ip + 6) & 0x2000
    cdef uint32_t left = end - l3 - header
    cdef uint32_t unit, size
    cdef uint32_t at = l3 + header
    cdef int verdict = DROP
    cdef int first = DROP
    cdef Frame piece
    if hop.mtu < header + 8:
        reason[0] = TOO_BIG
        return DROP
    unit = (hop.mtu - header) & <uint32_t>~7
    while left:
        size = unit if left > unit else left
        memset(&piece, 0, sizeof(Frame))
        piece.own = frame.own or at != l3 + header
        piece.length = l3 + header + size
        piece.data = scratch(plane, piece.length)
        memcpy(piece.data, frame.data, l3 + header)
        memcpy(piece.data + l3 + header, frame.data + at, size)
        ip = piece.data + l3
        put16(ip + 2, header + size)
        put16(ip + 6, offset | (0x2000 if left > size or more else 0))
        memset(ip + 10, 0, 2)
        checksum.put_short(ip + 10, <uint16_t>~checksum.fold(checksum.add(ip, header, 0)))
        verdict = transmit(plane, &piece, hop, False, reason)
        if at == l3 + header:
            first = verdict
        if verdict == DROP:
            return first
        at += size
        offset += size >> 3
        left -= size
    return first


cdef inline int send_fitting(Plane* plane, Frame* frame, Flow* flow, Hop* hop, uint8_t* reason) noexcept nogil:
    """Send a packet as it is if it fits (a super-frame by its segments), else in fragments.

    The caller has answered what must not be fragmented. A partial checksum is finished first, since it covers the
    whole datagram.
    """
    if likely(frame.offload.gso_type != 0 or flow.end - flow.l3 <= hop.mtu):
        return transmit(plane, frame, hop, flow.family == 6, reason)
    if flow.family == 6:
        reason[0] = TOO_BIG
        return DROP
    if offload.is_partial(frame, flow):
        offload.finish_checksum(frame.data + flow.l3, flow, flow.end - flow.l4)
    return send_fragments(plane, frame, flow.l3, flow.end, hop, reason)
