"""Datagrams that come in fragments are collected until they are whole (RFC 791 §3.2, RFC 8200 §4.5, RFC 5722).

A pool of fixed size, found by a keyed hash of source, destination, protocol and identification. A datagram waits 30 s
(IPv4) or 60 s (IPv6) from its first fragment on; when all places are taken, the oldest one goes. As in the kernel, a
fragment that overlaps others ends the whole datagram, one that is there already is dropped alone, and the fragments'
ECN fields combine by RFC 3168 §5.3.

Every fragment is booked once, when it comes: as forwarded while it waits. The one that completes a datagram is booked
as what becomes of it, and those that waited are booked anew as the same; or as drops if it is never complete.

The caller owns the pool and says what time it is; nothing here knows of services or connections.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from pylvs.forward cimport checksum
from pylvs.forward.flowhash cimport flow_hash
from pylvs.forward.packet cimport (
    CONTINUE, DROP, FORWARD, FRAGMENT, FRAGMENT_FLOOD, FRAGMENT_OVERLAP, FRAGMENT_TIMEOUT, HEADER_CHAIN, ICMP6,
    TCP, TRUNCATED, UDP, Flow, Frame, be16, be32, put16, same16,
)
from pylvs.forward.stats cimport Totals, count_verdict


cdef enum:
    DATAGRAMS = 256
    DATAGRAM_HEADS = 1024  # a power of two
    MAX_PIECES = 128  # fragments of one datagram
    HEAD_ROOM = 512  # for the headers of the first fragment
    DATAGRAM_SIZE = 66560  # HEAD_ROOM and 64 KB
    NO_TOTAL = 0xFFFFFFFF
    WAIT4_NS = 30000000000
    WAIT6_NS = 60000000000


cdef struct Piece:
    uint32_t offset
    uint32_t size


cdef struct Datagram:
    uint8_t src[16]
    uint8_t dst[16]
    uint32_t ident
    uint8_t family  # 0: a free place
    uint8_t proto
    uint8_t ecn  # bit n: a fragment had ECN field n
    bint first  # the fragment with the headers is there
    uint64_t born
    uint64_t deadline
    uint32_t next  # in its hash chain: place plus 1
    uint32_t count
    uint32_t have  # payload bytes
    uint32_t end  # the highest offset seen
    uint32_t total  # NO_TOTAL until the last fragment is there
    uint32_t l3
    uint32_t head  # length of the headers, link layer included, without the fragment header
    uint32_t largest  # fragment, with its headers
    uint32_t largest_df
    Piece pieces[MAX_PIECES]
    uint8_t* data


cdef struct Whole:
    # how a reassembled datagram came in
    uint32_t count
    uint16_t sizes[MAX_PIECES]  # payload bytes of its fragments, in order
    uint32_t largest  # fragment, with its headers
    uint32_t unfragmentable  # IPv6: the headers in front of the fragment header
    uint32_t ident
    bint df  # IPv4: the largest fragment had DF


cdef struct Reassembly:
    Datagram places[DATAGRAMS]
    uint32_t heads[DATAGRAM_HEADS]  # place plus 1
    uint32_t count
    uint64_t due  # no deadline is earlier
    uint64_t key0
    uint64_t key1


cdef inline uint32_t* chain(Reassembly* pool, uint8_t family, uint8_t proto, Datagram* d) noexcept nogil:
    """The head of the hash chain that a datagram belongs to."""
    return &pool.heads[flow_hash(
        pool.key0, pool.key1, family, proto, d.src, <uint16_t>d.ident, d.dst, <uint16_t>(d.ident >> 16)
    ) & (DATAGRAM_HEADS - 1)]


cdef inline void release(Reassembly* pool, Datagram* d) noexcept nogil:
    """Free a datagram's place."""
    cdef uint32_t* at = chain(pool, d.family, d.proto, d)
    while at[0]:
        if &pool.places[at[0] - 1] == d:
            at[0] = d.next
            break
        at = &pool.places[at[0] - 1].next
    d.family = 0
    pool.count -= 1


cdef inline void unbook(Totals* totals, uint32_t count) noexcept nogil:
    """Take back what `count` waiting fragments were booked as."""
    totals.received -= count
    totals.forwarded -= count


cdef inline void book(Totals* totals, uint32_t count, int verdict, uint8_t reason) noexcept nogil:
    """Book `count` fragments that waited as what has become of them."""
    cdef uint32_t _
    unbook(totals, count)
    for _ in range(count):
        count_verdict(totals, verdict, reason)


cdef inline int end_all(Reassembly* pool, Totals* totals, Datagram* d, uint8_t reason) noexcept nogil:
    """Drop all that has come of a datagram."""
    book(totals, d.count, DROP, reason)
    release(pool, d)
    return DROP


cdef inline void expire_datagrams(Reassembly* pool, Totals* totals, uint64_t now) noexcept nogil:
    """Drop what has waited too long."""
    cdef uint32_t i
    cdef uint64_t due = <uint64_t>-1
    if pool.count == 0 or now < pool.due:
        return
    for i in range(DATAGRAMS):
        if pool.places[i].family == 0:
            continue
        if pool.places[i].deadline <= now:
            end_all(pool, totals, &pool.places[i], FRAGMENT_TIMEOUT)
        elif pool.places[i].deadline < due:
            due = pool.places[i].deadline
    pool.due = due


cdef inline Datagram* place(Reassembly* pool, Totals* totals, Flow* flow, uint32_t ident, uint64_t now) noexcept nogil:
    """The datagram that a fragment belongs to; a new one takes a free place, or that of the oldest."""
    cdef Datagram wanted
    cdef Datagram* d = NULL
    cdef uint32_t* head
    cdef uint32_t at, i
    memcpy(wanted.src, flow.src, 16)
    memcpy(wanted.dst, flow.dst, 16)
    wanted.ident = ident
    head = chain(pool, flow.family, flow.proto, &wanted)
    at = head[0]
    while at:
        d = &pool.places[at - 1]
        if (
            d.ident == ident and d.family == flow.family and d.proto == flow.proto
            and same16(d.src, flow.src) and same16(d.dst, flow.dst)
        ):
            if d.deadline > now:
                return d
            end_all(pool, totals, d, FRAGMENT_TIMEOUT)
            break
        at = d.next
    d = NULL
    for i in range(DATAGRAMS):
        if pool.places[i].family == 0:
            d = &pool.places[i]
            break
        if d is NULL or pool.places[i].born < d.born:
            d = &pool.places[i]
    if d.family:
        end_all(pool, totals, d, FRAGMENT_FLOOD)
    i = <uint32_t>(d - &pool.places[0]) + 1
    memcpy(d.src, flow.src, 16)
    memcpy(d.dst, flow.dst, 16)
    d.ident = ident
    d.family = flow.family
    d.proto = flow.proto
    d.ecn = 0
    d.first = False
    d.born = now
    d.deadline = now + (<uint64_t>WAIT4_NS if flow.family == 4 else <uint64_t>WAIT6_NS)
    d.count = d.have = d.end = d.largest = d.largest_df = 0
    d.total = NO_TOTAL
    d.next = head[0]
    head[0] = i
    if pool.count == 0 or d.deadline < pool.due:
        pool.due = d.deadline
    pool.count += 1
    return d


cdef inline uint32_t least_first(uint8_t proto) noexcept nogil:
    """Bytes of the next header that the first fragment of an IPv6 datagram must hold (RFC 8200 §4.5, RFC 7112)."""
    if proto == TCP:
        return 20
    return 8 if proto == UDP or proto == ICMP6 else 1


cdef inline bint insert_piece(Datagram* d, uint32_t offset, uint32_t size, uint8_t* reason) noexcept nogil:
    """Enter a fragment in order; False with the reason if its bytes are there already, wholly (FRAGMENT) or in part."""
    cdef uint32_t at = 0
    cdef uint32_t i
    while at < d.count and d.pieces[at].offset + d.pieces[at].size <= offset:
        at += 1
    if at < d.count and d.pieces[at].offset < offset + size:
        reason[0] = FRAGMENT_OVERLAP
        if d.pieces[at].offset > offset:
            return False
        i = d.pieces[at].offset + d.pieces[at].size
        while i < offset + size:
            at += 1
            if at == d.count or d.pieces[at].offset != i:
                return False
            i += d.pieces[at].size
        reason[0] = FRAGMENT
        return False
    memmove(&d.pieces[at + 1], &d.pieces[at], (d.count - at) * sizeof(Piece))
    d.pieces[at].offset = offset
    d.pieces[at].size = size
    d.count += 1
    d.have += size
    return True


cdef inline void keep_headers(Frame* frame, Flow* flow, Datagram* d) noexcept nogil:
    """Keep the headers of the first fragment, without the fragment header, in front of the payload."""
    cdef uint32_t header = flow.l4 - (8 if flow.family == 6 else 0)
    cdef uint8_t* start = d.data + HEAD_ROOM - header
    cdef uint8_t* ip = start + flow.l3
    cdef uint32_t at = flow.l3 + 40
    cdef uint8_t* last = ip + 6
    d.first = True
    d.l3 = flow.l3
    d.head = header
    memcpy(start, frame.data, header)
    if flow.family == 6:
        while at < header:
            last = start + at
            at += 8 + <uint32_t>last[1] * 8
        last[0] = flow.proto


cdef inline bint mixed_ecn(uint8_t seen) noexcept nogil:
    """Not-ECT beside any other mark: no sender makes such a datagram."""
    return seen & 1 and seen & 0x0E


cdef inline int take(
    Reassembly* pool, Totals* totals, Frame* frame, Flow* flow, uint64_t now, Datagram** whole, uint8_t* reason
) noexcept nogil:
    """Add a fragment: FORWARD if it waits, CONTINUE if it completes `whole`, or DROP."""
    cdef uint8_t* ip = frame.data + flow.l3
    cdef uint8_t* p
    cdef uint32_t size = flow.end - flow.l4
    cdef uint32_t header = flow.l4 - flow.l3
    cdef uint32_t offset, ident, end
    cdef bint more
    cdef bint df = False
    cdef Datagram* d = NULL
    reason[0] = FRAGMENT
    if flow.family == 4:
        offset = <uint32_t>(be16(ip + 6) & 0x1FFF) * 8
        more = ip[6] & 0x20 != 0
        df = ip[6] & 0x40 != 0
        ident = be16(ip + 4)
        if more:
            size &= <uint32_t>~7
    else:
        p = frame.data + flow.l4 - 8
        offset = be16(p + 2) & 0xFFF8
        more = p[3] & 1
        ident = be32(p + 4)
        if offset == 0 and size < least_first(flow.proto):
            reason[0] = TRUNCATED
            return DROP
        if more and size & 7:
            return DROP
    end = offset + size
    if end + header - (8 if flow.family == 6 else 0) > 65535:
        return DROP
    if flow.l4 > HEAD_ROOM:
        reason[0] = HEADER_CHAIN
        return DROP
    if size == 0:
        return DROP
    d = place(pool, totals, flow, ident, now)
    if d.count == MAX_PIECES:
        reason[0] = FRAGMENT_FLOOD
        return end_all(pool, totals, d, FRAGMENT_FLOOD)
    if (not more and (end < d.end or (d.total != NO_TOTAL and d.total != end))) or (more and end > d.total):
        return end_all(pool, totals, d, FRAGMENT)
    if not insert_piece(d, offset, size, reason):
        return end_all(pool, totals, d, FRAGMENT_OVERLAP) if reason[0] == FRAGMENT_OVERLAP else DROP
    reason[0] = 0
    memcpy(d.data + HEAD_ROOM + offset, frame.data + flow.l4, size)
    if offset == 0:
        keep_headers(frame, flow, d)
    if end > d.end:
        d.end = end
    if not more:
        d.total = end
    d.ecn |= <uint8_t>(1 << ((ip[1] if flow.family == 4 else ip[1] >> 4) & 3))
    if header + size > d.largest:
        d.largest = header + size
    if df and header + size > d.largest_df:
        d.largest_df = header + size
    if not d.first or d.have != d.total:
        return FORWARD
    d.count -= 1  # the one at hand is booked by its caller
    if mixed_ecn(d.ecn):
        reason[0] = FRAGMENT
        return end_all(pool, totals, d, FRAGMENT)
    d.count += 1
    whole[0] = d
    return CONTINUE


cdef inline void assemble(Datagram* d, uint8_t* to, uint32_t* length, Whole* whole) noexcept nogil:
    """Write the whole datagram as one Ethernet frame to `to`, and how it came in to `whole`."""
    cdef uint8_t* ip = to + d.l3
    cdef uint32_t header = d.head - d.l3
    cdef uint32_t i
    length[0] = d.head + d.total
    memcpy(to, d.data + HEAD_ROOM - d.head, length[0])
    whole.count = d.count
    for i in range(d.count):
        whole.sizes[i] = <uint16_t>d.pieces[i].size
    whole.largest = d.largest
    whole.ident = d.ident
    whole.df = d.largest_df == d.largest
    whole.unfragmentable = header
    if d.family == 4:
        put16(ip + 2, header + d.total)
        put16(ip + 6, 0x4000 if whole.df else 0)
        if d.ecn & 8:
            ip[1] |= 3
        memset(ip + 10, 0, 2)
        checksum.put_short(ip + 10, <uint16_t>~checksum.fold(checksum.add(ip, header, 0)))
    else:
        put16(ip + 4, header - 40 + d.total)
        if d.ecn & 8:
            ip[1] |= 0x30
