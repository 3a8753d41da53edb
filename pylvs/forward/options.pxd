"""IPv4 options of packets that the director forwards (RFC 791 §3.1, RFC 781): routes and times are recorded on the way.

The kernel does this when a packet comes in, so the address recorded for a client's packet is the VIP; a translated
reply records the VIP too, since it is routed as if the VIP's host had sent it. Times are the director's own clock,
which RFC 781 asks to mark by the high bit. Source routes are refused, as a host does by default; a router alert changes
nothing.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pylvs.forward cimport checksum
from pylvs.forward.fib cimport is_local
from pylvs.forward.packet cimport Flow, Frame, map4, put32
from pylvs.forward.plane cimport Plane


cdef enum Option:
    OPTION_END = 0
    OPTION_NOTHING = 1
    OPTION_ROUTE = 7
    OPTION_TIME = 68
    OPTION_LOOSE = 131
    OPTION_STRICT = 137

    SOURCE_ROUTED = 0xFF  # walk: no place is wrong, but the packet is not wanted


cdef inline uint32_t stamp(
    Plane* plane, uint8_t* ip, uint32_t at, uint32_t size, const uint8_t* address
) noexcept nogil:
    """The timestamp option at `at`: check it, and fill in the next place if `address` is given; 0, or what is wrong."""
    cdef uint8_t* p = ip + at
    cdef uint32_t place = p[2]
    cdef uint32_t kind = p[3] & 15
    cdef uint32_t length = 4 if kind == 0 else 8
    cdef uint8_t named[16]
    if place > size:  # full: count those that found no place
        if p[3] >> 4 == 15:
            return at + 3
        if address is not NULL:
            p[3] += 16
        return 0
    if kind != 0 and kind != 1 and kind != 3:
        return at + 3
    if place + length - 1 > size:
        return at + 2
    if address is NULL:
        return 0
    if kind == 3:
        map4(named, p + place - 1)
        if not is_local(plane.fib, named):
            return 0
    elif kind == 1:
        memcpy(p + place - 1, address + 12, 4)
    put32(p + place + length - 5, <uint32_t>(plane.now // <uint64_t>1000000) | <uint32_t>0x80000000)
    p[2] = <uint8_t>(place + length)
    return 0


cdef inline uint32_t walk(Plane* plane, uint8_t* ip, uint32_t header, const uint8_t* address) noexcept nogil:
    """Check the options of `header` bytes at `ip`; with `address` (16 bytes) also fill them in.

    Returns 0 if all is well, the offset of what is wrong, or SOURCE_ROUTED.
    """
    cdef uint32_t at = 20
    cdef uint32_t size, wrong
    cdef bint route = False
    cdef bint time = False
    while at < header:
        if ip[at] == OPTION_END:
            return 0
        if ip[at] == OPTION_NOTHING:
            at += 1
            continue
        if at + 2 > header:
            return at
        size = ip[at + 1]
        if size < 2 or at + size > header:
            return at
        if ip[at] == OPTION_LOOSE or ip[at] == OPTION_STRICT:
            return SOURCE_ROUTED
        if ip[at] == OPTION_ROUTE:
            if route or size < 3:
                return at if route else at + 1
            route = True
            if ip[at + 2] < 4 or (ip[at + 2] <= size and <uint32_t>ip[at + 2] + 3 > size):
                return at + 2
            if address is not NULL and ip[at + 2] <= size:
                memcpy(ip + at + ip[at + 2] - 1, address + 12, 4)
                ip[at + 2] += 4
        elif ip[at] == OPTION_TIME:
            if time or size < 4:
                return at if time else at + 1
            time = True
            if ip[at + 2] < 5:
                return at + 2
            wrong = stamp(plane, ip, at, size, address)
            if wrong:
                return wrong
        at += size
    return 0


cdef inline void update(Plane* plane, Frame* frame, Flow* flow, const uint8_t* address) noexcept nogil:
    """Record `address` and the time in a packet whose options have been checked."""
    cdef uint8_t* ip = frame.data + flow.l3
    cdef uint32_t header = flow.l4 - flow.l3
    walk(plane, ip, header, address)
    memset(ip + 10, 0, 2)
    checksum.put_short(ip + 10, <uint16_t>~checksum.fold(checksum.add(ip, header, 0)))
