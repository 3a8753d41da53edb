"""The data plane of one worker: its tables, its counters, and room 6's door, the outbox.

The outbox collects what is to be sent: frames rewritten in place and frames built in a scratch arena that starts anew
with every batch. A frame whose next hop has no known MAC yet is copied to one of a few *held* places, the next hop is
put on the list of needs for the control plane to resolve, and the frame leaves (or is dropped by name) later.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pylvs.forward._sys cimport acquire, likely, release, unlikely
from pylvs.forward.cache cimport Cache
from pylvs.forward.conn cimport ConnTable
from pylvs.forward.defence cimport Defence
from pylvs.forward.fib cimport HOP_LOCAL, HOP_READY, HOP_UNRESOLVED, NO_LINK, Fib, Hop, resolve
from pylvs.forward.packet cimport (
    DROP, FORWARD, HELD, LINK_DOWN, NO_NEIGHBOUR, NO_ROUTE, TX_FULL, Frame, Offload, same16,
)
from pylvs.forward.reassembly cimport Reassembly, Whole
from pylvs.forward.snapshot cimport DestSlot, ServiceSlot, Snapshot
from pylvs.forward.state cimport Timeouts
from pylvs.forward.stats cimport Counters, Totals, count_verdict


cdef enum:
    ARENA_SIZE = 8 << 20
    OUT_CAPACITY = 8192
    OUT_RESERVE = 700  # frames that one received frame may become at the most
    ARENA_RESERVE = 1 << 19  # bytes likewise
    HELD_FRAMES = 32
    HELD_SIZE = 66560
    HELD_NS = 3000000000
    NEEDS = 64  # a power of two
    SPILL_SIZE = 1 << 18  # larger than any single frame
    HEADROOM = 128  # writable bytes that a port leaves in front of every frame
    ICMP_RATE = 1000  # ICMP errors of our own per second


cdef struct TxFrame:
    uint8_t* data
    uint32_t length
    uint16_t link
    uint16_t cause  # index of the received frame in its batch
    Offload offload


cdef struct Held:
    bint used
    bint v6
    bint own
    uint32_t length
    uint64_t deadline
    Offload offload
    uint8_t next[16]
    uint16_t link
    uint8_t* buffer


cdef struct Need:
    uint8_t address[16]
    uint16_t link


cdef struct DestLocal:
    Counters counters
    Hop hop
    uint32_t service
    uint32_t pmtu  # learnt from routers; 0: nothing learnt
    uint64_t pmtu_expires


cdef struct Settings:
    uint32_t sloppy_tcp
    uint32_t sloppy_sctp
    uint32_t expire_nodest_conn
    uint32_t conn_reuse_mode
    uint32_t nat_icmp_send
    uint32_t pmtu_disc
    uint64_t lblc_expiration  # ns
    uint64_t lblcr_expiration  # ns
    uint32_t expire_quiescent_template
    uint32_t schedule_icmp
    uint32_t ip_vs_ftp


cdef struct Plane:
    ConnTable table
    Timeouts timeouts
    Settings settings
    Defence defence
    uint32_t flush_next  # index at which the search for connections of deleted real servers goes on; 0: no search
    Snapshot* snapshot
    Fib* fib
    DestSlot* slots
    DestLocal* dests
    ServiceSlot* cursors
    Cache cache
    uint64_t random  # state of the generator
    Counters* services
    Counters total
    Totals totals
    uint64_t now
    uint16_t cause  # the received frame at work
    TxFrame* out
    uint32_t out_count
    uint8_t* arena
    uint32_t arena_used
    Held held[HELD_FRAMES]
    uint32_t held_count
    Need needs[NEEDS]
    uint32_t needs_head  # written by the worker
    uint32_t needs_tail  # written by the reader
    uint16_t ip_id
    int64_t icmp_tokens  # in ns worth of refill
    uint64_t icmp_refilled
    Reassembly* reassembly
    Whole whole  # of the frame at work, if at_whole; its gso_type is GSO_WHOLE
    bint at_whole
    uint32_t frag_id
    void* watch_client  # the FTP helper's `Watch` functions: called through here to stay out of the fast path
    void* watch_server


cdef inline uint8_t* scratch(Plane* plane, uint32_t size) noexcept nogil:
    """`size` bytes of the arena with HEADROOM in front.

    Every frame starts with a reserve. What still does not fit goes to a spill at the end, from which nothing is sent.
    """
    cdef uint8_t* p = plane.arena + plane.arena_used + HEADROOM
    if unlikely(plane.arena_used + size + HEADROOM + 64 > ARENA_SIZE):
        return plane.arena + ARENA_SIZE + HEADROOM
    plane.arena_used += (size + HEADROOM + 63) & <uint32_t>~63
    return p


cdef inline bint has_room(Plane* plane) noexcept nogil:
    """Is there room for whatever one more received frame may become?"""
    return plane.out_count + OUT_RESERVE <= OUT_CAPACITY and plane.arena_used + ARENA_RESERVE <= ARENA_SIZE


cdef inline bint overflows(Plane* plane, uint8_t* data) noexcept nogil:
    """Is there no place left for a frame in the outbox, or was there none in the arena?"""
    return plane.out_count >= OUT_CAPACITY or plane.arena + ARENA_SIZE <= data < plane.arena + ARENA_SIZE + SPILL_SIZE


cdef inline void emit(Plane* plane, uint8_t* data, uint32_t length, uint16_t link, Offload* offload) noexcept nogil:
    """Queue a finished frame for transmission; the caller has asked `overflows`, or started with a reserve."""
    cdef TxFrame* tx = &plane.out[plane.out_count]
    if unlikely(overflows(plane, data)):
        return
    tx.data = data
    tx.length = length
    tx.link = link
    tx.cause = plane.cause
    if offload is NULL:
        memset(&tx.offload, 0, sizeof(Offload))
    else:
        tx.offload = offload[0]
    plane.out_count += 1


cdef inline void need(Plane* plane, Hop* hop) noexcept nogil:
    """Ask the control plane for a next hop's MAC, unless it is already being asked for."""
    cdef uint32_t i
    cdef uint32_t head = plane.needs_head
    cdef uint32_t tail = acquire(&plane.needs_tail)
    for i in range(tail, head):
        if plane.needs[i & (NEEDS - 1)].link == hop.link and same16(plane.needs[i & (NEEDS - 1)].address, hop.next):
            return
    if head - tail >= NEEDS:
        return
    memcpy(plane.needs[head & (NEEDS - 1)].address, hop.next, 16)
    plane.needs[head & (NEEDS - 1)].link = hop.link
    release(&plane.needs_head, head + 1)


cdef inline int hold(Plane* plane, Frame* frame, Hop* hop, bint v6, uint8_t* reason) noexcept nogil:
    """Keep a copy of a frame until its next hop is known; with all places taken it is dropped."""
    cdef uint32_t i
    cdef Held* h
    need(plane, hop)
    if frame.length <= HELD_SIZE:
        for i in range(HELD_FRAMES):
            h = &plane.held[i]
            if not h.used:
                h.used = True
                h.v6 = v6
                h.own = frame.own
                h.length = frame.length
                h.deadline = plane.now + <uint64_t>HELD_NS
                h.offload = frame.offload
                h.link = hop.link
                memcpy(h.next, hop.next, 16)
                memcpy(h.buffer, frame.data, frame.length)
                plane.held_count += 1
                return HELD
    reason[0] = NO_NEIGHBOUR
    return DROP


cdef inline int transmit(Plane* plane, Frame* frame, Hop* hop, bint v6, uint8_t* reason) noexcept nogil:
    """Send a rewritten frame to its next hop: both MACs, then the outbox. Returns FORWARD, HELD or DROP."""
    if likely(hop.status == HOP_READY):
        if unlikely(not plane.fib.links[hop.link].up):
            reason[0] = LINK_DOWN
            return DROP
        if unlikely(overflows(plane, frame.data)):
            reason[0] = TX_FULL
            return DROP
        memcpy(frame.data, hop.mac, 6)
        memcpy(frame.data + 6, plane.fib.links[hop.link].mac, 6)
        emit(plane, frame.data, frame.length, hop.link, &frame.offload)
        return FORWARD
    if hop.status == HOP_UNRESOLVED:
        return hold(plane, frame, hop, v6, reason)
    if hop.status == HOP_LOCAL:
        memset(frame.data, 0, 12)
        emit(plane, frame.data, frame.length, plane.fib.loopback, &frame.offload)
        return FORWARD
    reason[0] = NO_ROUTE
    return DROP


cdef inline void retry_held(Plane* plane) noexcept nogil:
    """Send the held frames whose next hop has become known, drop those that waited too long."""
    cdef uint32_t i
    cdef Held* h
    cdef Hop hop
    cdef Frame frame
    cdef uint8_t* copy
    cdef int verdict
    cdef uint8_t reason
    for i in range(HELD_FRAMES):
        h = &plane.held[i]
        if not h.used or not has_room(plane):
            continue
        hop.link = h.link
        reason = NO_NEIGHBOUR
        resolve(plane.fib, h.next, h.v6, True, &hop)
        if hop.status == HOP_READY:
            copy = scratch(plane, h.length)
            memcpy(copy, h.buffer, h.length)
            frame.data = copy
            frame.length = h.length
            frame.offload = h.offload
            verdict = transmit(plane, &frame, &hop, h.v6, &reason)
        elif plane.now >= h.deadline or hop.status != HOP_UNRESOLVED:
            verdict = DROP
        else:
            continue
        h.used = False
        plane.held_count -= 1
        if not h.own:
            count_verdict(&plane.totals, verdict, reason)


cdef inline bint icmp_allowed(Plane* plane) noexcept nogil:
    """A token bucket over all ICMP errors of our own: ICMP_RATE a second, a second's worth at once."""
    cdef int64_t cost = <int64_t>1000000000 // ICMP_RATE
    plane.icmp_tokens += <int64_t>(plane.now - plane.icmp_refilled)
    plane.icmp_refilled = plane.now
    if plane.icmp_tokens > <int64_t>1000000000:
        plane.icmp_tokens = <int64_t>1000000000
    if plane.icmp_tokens < cost:
        return False
    plane.icmp_tokens -= cost
    return True
