"""Fragmentation of what leaves the director (RFC 791 §3.2, RFC 8200 §4.5).

A packet that fits its path is sent as it is; one that does not is cut into fragments of whole 8-byte units. A datagram
that came in fragments leaves in fragments, of the same sizes: where its layout has grown (a tunnel's header, or a path
that takes less) no fragment is larger than the largest that came in, as the kernel's ip_fragment has it. IPv6 is
fragmented for these and for the director's own tunnel headers only. IPv4 options whose copied flag is clear become
no-operations behind the first fragment.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from pylvs.forward cimport checksum, offload
from pylvs.forward._sys cimport likely
from pylvs.forward.fib cimport HOP_LOCAL, Hop
from pylvs.forward.packet cimport DROP, GSO_WHOLE, TOO_BIG, TX_FULL, Flow, Frame, be16, put16, put32
from pylvs.forward.plane cimport ARENA_SIZE, HEADROOM, OUT_CAPACITY, Plane, scratch, transmit


cdef enum:
    LEAST_MTU6 = 1280


cdef inline void blank_options(uint8_t* ip, uint32_t header) noexcept nogil:
    """Replace the options that only the first fragment carries."""
    cdef uint32_t at = 20
    cdef uint32_t size
    while at < header and ip[at] != 0:
        size = 1 if ip[at] == 1 or at + 1 >= header else ip[at + 1]
        if size == 0 or at + size > header:
            return
        if not ip[at] & 0x80:
            memset(ip + at, 1, size)
        at += size


cdef inline int send_piece(
    Plane* plane, Frame* frame, uint32_t l3, uint32_t header, uint32_t offset, uint32_t size, bint more, uint16_t flags,
    uint32_t ident, Hop* hop, uint8_t* reason,
) noexcept nogil:
    """Send `size` bytes from `offset` behind the `header` bytes of the packet at `l3` as one fragment of it.

    IPv4: `flags` (DF) and the fragment offset that the packet has itself go into the header. IPv6: a fragment header
    with `ident` goes behind the first `header` bytes, which are the unfragmentable part.
    """
    cdef bint v6 = frame.data[l3] >> 4 == 6
    cdef uint32_t extra = 8 if v6 else 0
    cdef uint8_t* ip
    cdef uint8_t* last
    cdef Frame piece
    memset(&piece, 0, sizeof(Frame))
    piece.own = frame.own or offset != 0
    piece.length = l3 + header + extra + size
    if plane.out_count + 1 > OUT_CAPACITY or plane.arena_used + piece.length + HEADROOM + 64 > ARENA_SIZE:
        reason[0] = TX_FULL
        return DROP
    piece.data = scratch(plane, piece.length)
    memcpy(piece.data, frame.data, l3 + header)
    memcpy(piece.data + l3 + header + extra, frame.data + l3 + header + offset, size)
    ip = piece.data + l3
    if v6:
        put16(ip + 4, header - 40 + 8 + size)
        last = ip + 6
        if header > 40:
            last = ip + last_extension(ip, header)
        ip[header] = last[0]
        ip[header + 1] = 0
        last[0] = 44
        put16(ip + header + 2, offset | (1 if more else 0))
        put32(ip + header + 4, ident)
    else:
        if offset:
            blank_options(ip, header)
        put16(ip + 2, header + size)
        put16(ip + 6, (offset >> 3) + (be16(frame.data + l3 + 6) & 0x1FFF) | flags | (0x2000 if more else 0))
        memset(ip + 10, 0, 2)
        checksum.put_short(ip + 10, <uint16_t>~checksum.fold(checksum.add(ip, header, 0)))
    return transmit(plane, &piece, hop, v6, reason)


cdef inline uint32_t last_extension(const uint8_t* ip, uint32_t header) noexcept nogil:
    """Where the next-header byte of the last of the extension headers in `header` bytes lies."""
    cdef uint32_t at = 40
    cdef uint32_t field = 6
    cdef uint32_t size
    while at < header:
        field = at
        size = 8 + <uint32_t>ip[at + 1] * 8
        at += size
    return field


cdef inline uint32_t header_size(const uint8_t* ip) noexcept nogil:
    """What is repeated in every fragment of a packet without extension headers."""
    return 40 if ip[0] >> 4 == 6 else <uint32_t>(ip[0] & 15) * 4


cdef inline uint32_t next_ident(Plane* plane) noexcept nogil:
    """An identification for a fragmented IPv6 packet of our own; where it starts cannot be guessed."""
    plane.frag_id += 1
    return plane.frag_id ^ <uint32_t>plane.table.key0


cdef inline int cut(
    Plane* plane, Frame* frame, uint32_t l3, uint32_t end, uint32_t header, uint32_t room, uint16_t flags,
    uint32_t ident, Hop* hop, uint8_t* reason,
) noexcept nogil:
    """Send the packet at `l3` in fragments of at most `room` bytes behind their headers."""
    cdef uint32_t more = 0
    cdef uint32_t at = 0
    cdef uint32_t left = end - l3 - header
    cdef uint32_t size
    cdef int verdict
    cdef int first = DROP
    if room < 8:
        reason[0] = TOO_BIG
        return DROP
    if frame.data[l3] >> 4 == 4:
        more = be16(frame.data + l3 + 6) & 0x2000
    while left:
        size = left if left <= room else room & <uint32_t>~7
        verdict = send_piece(
            plane, frame, l3, header, at, size, left > size or more != 0, flags, ident, hop, reason
        )
        if at == 0:
            first = verdict
        if verdict == DROP:
            return first
        at += size
        left -= size
    return first


cdef inline int send_fragments(
    Plane* plane, Frame* frame, uint32_t l3, uint32_t end, Hop* hop, uint32_t mtu, uint8_t* reason
) noexcept nogil:
    """Send the packet at `l3` in fragments that fit `mtu`; the first one's verdict is the frame's."""
    cdef uint32_t header = header_size(frame.data + l3)
    cdef uint32_t extra = 8 if frame.data[l3] >> 4 == 6 else 0
    cdef uint32_t ident = next_ident(plane) if extra else 0
    return cut(
        plane, frame, l3, end, header, mtu - header - extra if mtu > header + extra else 0, 0, ident, hop, reason
    )


cdef inline bint same_layout(Plane* plane, uint32_t grown, uint32_t room) noexcept nogil:
    """Can the pieces go out as they came in, the first one longer by `grown` bytes?"""
    cdef uint32_t i, size
    for i in range(plane.whole.count):
        size = plane.whole.sizes[i] + (grown if i == 0 else 0)
        if size > room or (size & 7 and i + 1 < plane.whole.count):
            return False
    return True


cdef inline int send_pieces(
    Plane* plane, Frame* frame, uint32_t l3, uint32_t grown, Hop* hop, uint32_t mtu, uint8_t* reason
) noexcept nogil:
    """Send a datagram that came in pieces: in the same ones if they fit, else none larger than the largest was.

    `grown` is how much longer than then it is in front (a tunnel's headers).
    """
    cdef bint v6 = frame.data[l3] >> 4 == 6
    cdef uint32_t header = header_size(frame.data + l3)
    cdef uint32_t ident = 0
    cdef uint32_t limit = plane.whole.largest
    cdef uint16_t flags = 0x4000 if plane.whole.df and not v6 and not grown else 0
    cdef uint32_t at = 0
    cdef uint32_t i, size
    cdef int verdict
    cdef int first = DROP
    if hop.status == HOP_LOCAL:
        return transmit(plane, frame, hop, v6, reason)
    if v6:
        if not grown:
            header = plane.whole.unfragmentable
        ident = next_ident(plane) if grown else plane.whole.ident
        limit = limit if limit > LEAST_MTU6 else LEAST_MTU6
    elif grown:
        flags = be16(frame.data + l3 + 6) & 0x4000
    if limit > mtu:
        limit = mtu
    if limit <= header + (8 if v6 else 0):
        reason[0] = TOO_BIG
        return DROP
    limit -= header + (8 if v6 else 0)
    if not same_layout(plane, grown, limit):
        return cut(plane, frame, l3, frame.length, header, limit, flags, ident, hop, reason)
    for i in range(plane.whole.count):
        size = plane.whole.sizes[i] + (grown if i == 0 else 0)
        verdict = send_piece(
            plane, frame, l3, header, at, size, i + 1 < plane.whole.count, flags, ident, hop, reason
        )
        if i == 0:
            first = verdict
        if verdict == DROP:
            return first
        at += size
    return first


cdef inline int send_fitting(Plane* plane, Frame* frame, Flow* flow, Hop* hop, uint8_t* reason) noexcept nogil:
    """Send a packet as it is if it fits (a super-frame by its segments), else in fragments.

    The caller has answered what must not be fragmented. A partial checksum is finished first, since it covers the
    whole datagram.
    """
    if likely(frame.offload.gso_type == 0):
        if likely(flow.end - flow.l3 <= hop.mtu):
            return transmit(plane, frame, hop, flow.family == 6, reason)
    elif frame.offload.gso_type == GSO_WHOLE:
        memset(&frame.offload, 0, sizeof(frame.offload))
        return send_pieces(plane, frame, flow.l3, 0, hop, hop.mtu, reason)
    else:
        return transmit(plane, frame, hop, flow.family == 6, reason)
    if flow.family == 6:
        reason[0] = TOO_BIG
        return DROP
    if offload.is_partial(frame, flow):
        offload.finish_checksum(frame.data + flow.l3, flow, flow.end - flow.l4)
    return send_fragments(plane, frame, flow.l3, flow.end, hop, hop.mtu, reason)
