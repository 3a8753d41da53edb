"""What network cards usually do: finish checksums, cut super-frames into segments, fragment.

Virtual links deliver TCP super-frames of up to 64 KB whose layer-4 checksum is only the pseudo-header sum. NAT and DR
pass both on with their metadata (virtio 1.1 §5.1.6); a tunnel cannot, so its inner packets are made whole here.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pylvs.forward cimport checksum, crc32c
from pylvs.forward.packet cimport (
    FIN, FLOW, NEEDS_CSUM, OPTIONED, SCTP, TCP, UDP, Flow, Frame, address_size, be16, be32, put16, put32,
)
from pylvs.forward.plane cimport ARENA_RESERVE, HEADROOM, Plane, scratch


cdef enum:
    GSO_NONE = 0
    GSO_TCP4 = 1
    GSO_TCP6 = 4
    GSO_UDP = 5
    GSO_ECN = 0x80
    MAX_SEGMENTS = 512


cdef inline uint32_t check_offset(uint8_t proto) noexcept nogil:
    """Where the checksum lies in a TCP or UDP header."""
    return 16 if proto == TCP else 6


cdef inline bint is_partial(Frame* frame, Flow* flow) noexcept nogil:
    """Does the layer-4 checksum field hold only the pseudo-header sum?"""
    return frame.offload.flags & NEEDS_CSUM and frame.offload.csum_start == flow.l4


cdef inline uint32_t segment_count(Frame* frame, Flow* flow) noexcept nogil:
    """Into how many packets a super-frame is to be cut; 1 for an ordinary frame."""
    cdef uint32_t header, payload
    if frame.offload.gso_type == GSO_NONE:
        return 1
    header = (frame.data[flow.l4 + 12] >> 4) * 4 if flow.proto == TCP else 8
    payload = flow.end - flow.l4 - header
    return (payload + frame.offload.gso_size - 1) // frame.offload.gso_size if payload else 1


cdef inline bint sane(Frame* frame, Flow* flow) noexcept nogil:
    """Does the offload metadata fit the frame? Without metadata there is nothing to contradict."""
    cdef uint8_t kind = frame.offload.gso_type & <uint8_t>~GSO_ECN
    cdef uint32_t header
    if frame.offload.flags & NEEDS_CSUM:
        if <uint32_t>frame.offload.csum_start + frame.offload.csum_offset + 2 > flow.end:
            return False
    if kind == GSO_NONE:
        return True
    # only a whole TCP or UDP packet is ever cut, and only into segments whose headers are small beside them
    if frame.offload.gso_size == 0 or (flow.kind != FLOW and flow.kind != OPTIONED):
        return False
    if flow.proto == TCP and (kind == GSO_TCP4 or kind == GSO_TCP6):
        header = (frame.data[flow.l4 + 12] >> 4) * 4
        if header < 20:
            return False
    elif flow.proto == UDP and kind == GSO_UDP:
        header = 8
    else:
        return False
    if flow.l4 + header > flow.end:
        return False
    if (flow.end - flow.l4 - header) // frame.offload.gso_size >= MAX_SEGMENTS:
        return False
    return segment_count(frame, flow) * (flow.l4 + header + HEADROOM + 64) <= ARENA_RESERVE - 2 * 65536


cdef inline void finish_checksum(uint8_t* packet, Flow* flow, uint32_t size) noexcept nogil:
    """Compute the layer-4 checksum of the IP packet at `packet` (its layer 4 is `size` bytes long) in full."""
    cdef uint8_t* l4 = packet + (flow.l4 - flow.l3)
    cdef uint8_t* field = l4 + check_offset(flow.proto)
    cdef uint64_t total
    cdef uint16_t value
    memset(field, 0, 2)
    total = checksum.pseudo(
        packet + (12 if flow.family == 4 else 8), 2 * address_size(flow.family), flow.proto, size
    )
    value = <uint16_t>~checksum.fold(checksum.add(l4, size, total))
    if value == 0 and flow.proto == UDP:
        value = 0xFFFF
    checksum.put_short(field, value)


cdef inline void finish_sctp(Frame* frame, Flow* flow) noexcept nogil:
    """Compute an SCTP checksum that was left to the card; offload metadata can ask for Internet checksums only."""
    if not is_partial(frame, flow):
        return
    crc32c.seal(frame.data + flow.l4, flow.end - flow.l4)
    frame.offload.flags &= <uint8_t>~NEEDS_CSUM
    frame.offload.csum_start = 0
    frame.offload.csum_offset = 0


cdef inline uint8_t* cut_segment(Plane* plane, Frame* frame, Flow* flow, uint32_t i, uint32_t* length) noexcept nogil:
    """Segment `i` of a super-frame as a whole Ethernet frame of its own in the arena (with headroom in front).

    TCP: sequence number moved on, FIN and PSH only on the last segment, CWR only on the first (RFC 3168 §6.1.2);
    IPv4 identification counts up; both checksums computed.
    """
    cdef uint32_t header = (frame.data[flow.l4 + 12] >> 4) * 4 if flow.proto == TCP else 8
    cdef uint32_t front = flow.l4 + header
    cdef uint32_t start = i * frame.offload.gso_size
    cdef uint32_t payload = flow.end - front - start
    cdef bint last = payload <= frame.offload.gso_size
    cdef uint8_t* p
    cdef uint8_t* ip
    cdef uint8_t* l4
    if not last:
        payload = frame.offload.gso_size
    length[0] = front + payload
    p = scratch(plane, length[0])
    memcpy(p, frame.data, front)
    memcpy(p + front, frame.data + front + start, payload)
    ip = p + flow.l3
    l4 = p + flow.l4
    if flow.family == 4:
        put16(ip + 2, front - flow.l3 + payload)
        put16(ip + 4, <uint32_t>be16(ip + 4) + i)
        memset(ip + 10, 0, 2)
        checksum.put_short(ip + 10, <uint16_t>~checksum.fold(checksum.add(ip, flow.l4 - flow.l3, 0)))
    else:
        put16(ip + 4, front - flow.l3 - 40 + payload)
    if flow.proto == TCP:
        put32(l4 + 4, be32(l4 + 4) + start)
        if not last:
            l4[13] &= <uint8_t>~(FIN | 0x08)
        if i:
            l4[13] &= 0x7F
    else:
        put16(l4 + 4, header + payload)
    finish_checksum(ip, flow, header + payload)
    return p
