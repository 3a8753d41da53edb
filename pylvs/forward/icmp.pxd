"""ICMP: errors that the director sends, and errors about its flows that it translates (RFC 792, RFC 4443).

Our own errors come from the VIP that the client spoke to, as if the VIP's host had sent them, and quote as much of the
packet as the kernel does: at most 576 bytes in all for IPv4, 1280 for IPv6. None is ever sent about an ICMP error, a
later fragment, or to a source that is no single host (RFC 1812 §4.3.2.7).

Errors about a balanced flow arrive with the packet they complain of embedded. From the server's side the embedded
packet went to the real server; from the client's side it came from the VIP. Both are rewritten so that the receiver
recognises its own packet.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from pylvs.forward cimport checksum
from pylvs.forward.conn cimport Conn
from pylvs.forward.fib cimport Hop, resolve
from pylvs.forward.packet cimport (
    DROP, FORWARD, FRAGMENT, HELD, ICMP, ICMP6, ICMP_ERROR, ICMP_LIMITED, LATER_FRAGMENT, REPLY, SCTP, TCP, UDP,
    Flow, Frame, be16, is_mapped4, link_size, map4, put16, put32,
)
from pylvs.forward.plane cimport Plane, icmp_allowed, scratch, transmit


cdef enum:
    # (type << 8) | code
    UNREACHABLE_PORT4 = 0x0303
    UNREACHABLE_PROTOCOL4 = 0x0302
    FRAG_NEEDED = 0x0304
    TIME_EXCEEDED4 = 0x0B00
    UNREACHABLE_PORT6 = 0x0104
    PACKET_TOO_BIG = 0x0200
    TIME_EXCEEDED6 = 0x0300
    UNKNOWN_HEADER6 = 0x0401
    PARAMETER_PROBLEM4 = 0x0C00


cdef inline bint may_complain(Frame* frame, Flow* flow) noexcept nogil:
    """May an ICMP error be sent about this packet?"""
    cdef uint8_t* s = flow.src
    if flow.kind == ICMP_ERROR or frame.data[0] & 1:
        return False
    if flow.kind == LATER_FRAGMENT and (flow.family == 6 or be16(frame.data + flow.l3 + 6) & 0x1FFF):
        return False
    if flow.family == 4:
        return s[12] != 0 and s[12] != 127 and s[12] < 224
    return s[0] != 0xFF and not (s[0] == 0 and memcmp(s, s + 1, 14) == 0)


cdef inline void seal(uint8_t* ip, uint8_t family, uint32_t size) noexcept nogil:
    """Fill in the checksums of an ICMP message of `size` bytes behind the 20- or 40-byte header at `ip`."""
    cdef uint8_t* icmp = ip + (20 if family == 4 else 40)
    cdef uint64_t total = 0
    memset(icmp + 2, 0, 2)
    if family == 4:
        memset(ip + 10, 0, 2)
        checksum.put_short(ip + 10, <uint16_t>~checksum.fold(checksum.add(ip, 20, 0)))
    else:
        total = checksum.pseudo(ip + 8, 32, ICMP6, size)
    checksum.put_short(icmp + 2, <uint16_t>~checksum.fold(checksum.add(icmp, size, total)))


cdef inline void head(
    Plane* plane, uint8_t* ip, uint8_t family, uint8_t tos, uint32_t size, uint8_t hops,
    const uint8_t* src, const uint8_t* dst,
) noexcept nogil:
    """Write an IP header for an ICMP message of `size` bytes from `src` to `dst` (16-byte addresses)."""
    if family == 4:
        plane.ip_id += 1
        ip[0] = 0x45
        ip[1] = tos
        put16(ip + 2, 20 + size)
        put16(ip + 4, plane.ip_id)
        put16(ip + 6, 0)
        ip[8] = hops
        ip[9] = ICMP
        memcpy(ip + 12, src + 12, 4)
        memcpy(ip + 16, dst + 12, 4)
    else:
        put32(ip, 0x60000000)
        put16(ip + 4, size)
        ip[6] = ICMP6
        ip[7] = hops
        memcpy(ip + 8, src, 16)
        memcpy(ip + 24, dst, 16)


cdef inline int complain(
    Plane* plane, Frame* frame, Flow* flow, uint16_t message, uint32_t info, const uint8_t* source, uint8_t* reason
) noexcept nogil:
    """Send an ICMP error about `frame` to its source: REPLY, or DROP if none may be sent.

    `message` is (type << 8) | code, `info` the second word (the MTU), `source` our address; NULL takes the address
    that the host would send from. `reason` names what happened and stays the frame's reason.
    """
    cdef Hop hop
    cdef Frame error
    cdef uint8_t ignored
    cdef uint8_t* ip
    cdef uint32_t header = 20 if flow.family == 4 else 40
    cdef uint32_t start
    cdef uint32_t quote = flow.end - flow.l3
    cdef uint32_t limit = 576 - 28 if flow.family == 4 else 1280 - 48
    cdef int verdict
    if not may_complain(frame, flow):
        return DROP
    if not icmp_allowed(plane):
        reason[0] = ICMP_LIMITED
        return DROP
    resolve(plane.fib, flow.src, flow.family == 6, False, &hop)
    if quote > limit:
        quote = limit
    memset(&error, 0, sizeof(Frame))
    error.own = True
    # the packet complained of may be one that the frame quotes, so its own offset says nothing of the link layer
    start = link_size(frame)
    error.length = start + header + 8 + quote
    error.data = scratch(plane, error.length)
    memcpy(error.data + 12, frame.data + 12, start - 12)  # a VLAN tag stays
    put16(error.data + start - 2, 0x0800 if flow.family == 4 else 0x86DD)
    ip = error.data + start
    head(
        plane, ip, flow.family, frame.data[flow.l3 + 1] & 0x1E | 0xC0, 8 + quote, 64,
        &hop.source[0] if source is NULL else source, flow.src,
    )
    put16(ip + header, message)
    put32(ip + header + 4, info)
    memcpy(ip + header + 8, frame.data + flow.l3, quote)
    seal(ip, flow.family, 8 + quote)
    verdict = transmit(plane, &error, &hop, flow.family == 6, &ignored)
    return REPLY if verdict == FORWARD or verdict == HELD else DROP


cdef inline int complain_ttl(
    Plane* plane, Frame* frame, Flow* flow, const uint8_t* source, uint8_t* reason
) noexcept nogil:
    """Time exceeded."""
    return complain(plane, frame, flow, TIME_EXCEEDED4 if flow.family == 4 else TIME_EXCEEDED6, 0, source, reason)


cdef inline int complain_size(
    Plane* plane, Frame* frame, Flow* flow, uint32_t mtu, const uint8_t* source, uint8_t* reason
) noexcept nogil:
    """Fragmentation needed, or packet too big."""
    return complain(plane, frame, flow, FRAG_NEEDED if flow.family == 4 else PACKET_TOO_BIG, mtu, source, reason)


cdef inline int complain_port(
    Plane* plane, Frame* frame, Flow* flow, const uint8_t* source, uint8_t* reason
) noexcept nogil:
    """Port unreachable: what the kernel says when no real server is available."""
    return complain(plane, frame, flow, UNREACHABLE_PORT4 if flow.family == 4 else UNREACHABLE_PORT6, 0, source, reason)


cdef inline int complain_protocol(
    Plane* plane, Frame* frame, Flow* flow, const uint8_t* source, uint8_t* reason
) noexcept nogil:
    """Protocol unreachable, as a host says that does not speak it; IPv6 points at the field that names the protocol."""
    if flow.family == 4:
        return complain(plane, frame, flow, UNREACHABLE_PROTOCOL4, 0, source, reason)
    if flow.l4 != flow.l3 + 40:
        return DROP
    return complain(plane, frame, flow, UNKNOWN_HEADER6, 6, source, reason)


cdef struct Embedded:
    uint32_t l3  # offsets of the embedded packet in the frame
    uint32_t l4
    uint32_t end
    Flow flow  # the packet that would answer the embedded one, so that `find` knows it


cdef inline bint parse_embedded(Frame* frame, Flow* outer, Embedded* inner) noexcept nogil:
    """Read the packet that an ICMP error quotes; False if it is cut off before its ports or is none of ours."""
    cdef uint32_t at = outer.l4 + 8
    cdef uint8_t* p = frame.data + at
    cdef uint32_t header
    cdef uint8_t proto
    cdef int extensions = 0
    inner.l3 = at
    inner.end = outer.end
    inner.flow.family = outer.family
    if outer.family == 4:
        if at + 20 > outer.end or p[0] >> 4 != 4:
            return False
        header = (p[0] & 15) * 4
        if header < 20 or be16(p + 6) & 0x1FFF:
            return False
        proto = p[9]
        map4(inner.flow.dst, p + 12)
        map4(inner.flow.src, p + 16)
        inner.l4 = at + header
    else:
        if at + 40 > outer.end or p[0] >> 4 != 6:
            return False
        proto = p[6]
        memcpy(inner.flow.dst, p + 8, 16)
        memcpy(inner.flow.src, p + 24, 16)
        inner.l4 = at + 40
        while proto == 0 or proto == 43 or proto == 44 or proto == 60:
            p = frame.data + inner.l4
            if inner.l4 + 8 > outer.end or extensions == 8 or (proto == 44 and be16(p + 2) & 0xFFF8):
                return False
            inner.l4 += 8 if proto == 44 else 8 + <uint32_t>p[1] * 8
            proto = p[0]
            extensions += 1
    if (proto != TCP and proto != UDP and proto != SCTP) or inner.l4 + 4 > outer.end:
        return False
    p = frame.data + inner.l4
    inner.flow.proto = proto
    inner.flow.dport = be16(p)
    inner.flow.sport = be16(p + 2)
    return True


cdef inline bint intact(Frame* frame, Flow* flow) noexcept nogil:
    """Is the ICMP message's checksum right?"""
    cdef uint64_t total = 0
    if flow.family == 6:
        total = checksum.pseudo(frame.data + flow.l3 + 8, 32, ICMP6, flow.end - flow.l4)
    return checksum.fold(checksum.add(frame.data + flow.l4, flow.end - flow.l4, total)) == 0xFFFF


cdef inline void reseal(Frame* frame, Flow* flow, Embedded* inner) noexcept nogil:
    """Recompute the checksums of the translated message: outer header, embedded header, ICMP."""
    cdef uint8_t* p
    if flow.family == 4:
        p = frame.data + inner.l3
        memset(p + 10, 0, 2)
        checksum.put_short(p + 10, <uint16_t>~checksum.fold(checksum.add(p, inner.l4 - inner.l3, 0)))
        p = frame.data + flow.l3
        memset(p + 10, 0, 2)
        checksum.put_short(p + 10, <uint16_t>~checksum.fold(checksum.add(p, flow.l4 - flow.l3, 0)))
    p = frame.data + flow.l4
    memset(p + 2, 0, 2)
    checksum.put_short(
        p + 2,
        <uint16_t>~checksum.fold(checksum.add(
            p, flow.end - flow.l4,
            0 if flow.family == 4 else checksum.pseudo(frame.data + flow.l3 + 8, 32, ICMP6, flow.end - flow.l4),
        )),
    )


cdef inline void translate_out(Frame* frame, Flow* flow, Embedded* inner, Conn* c) noexcept nogil:
    """Error from the server's side: it comes from the VIP and speaks of a packet to VIP:vport."""
    if flow.family == 4:
        memcpy(frame.data + flow.l3 + 12, c.vaddr + 12, 4)
        memcpy(frame.data + inner.l3 + 16, c.vaddr + 12, 4)
    else:
        memcpy(frame.data + flow.l3 + 8, c.vaddr, 16)
        memcpy(frame.data + inner.l3 + 24, c.vaddr, 16)
    put16(frame.data + inner.l4 + 2, c.vport)
    reseal(frame, flow, inner)


cdef inline void translate_in(Frame* frame, Flow* flow, Embedded* inner, Conn* c) noexcept nogil:
    """Error from the client's side: it goes to the real server and speaks of a packet from RIP:rport."""
    if flow.family == 4:
        memcpy(frame.data + flow.l3 + 16, c.daddr + 12, 4)
        memcpy(frame.data + inner.l3 + 12, c.daddr + 12, 4)
    else:
        memcpy(frame.data + flow.l3 + 24, c.daddr, 16)
        memcpy(frame.data + inner.l3 + 8, c.daddr, 16)
    put16(frame.data + inner.l4, c.dport)
    reseal(frame, flow, inner)
