"""The defence against floods: drop_entry, drop_packet and secure_tcp, looked at once a second, as the kernel does it.

Memory is the connection table: what the kernel takes from its count of free pages is here the number of free entries,
so that `amemthresh` says below how many of them memory is short. In the automatic modes (1, which the kernel shows as
2 while it is at work) the defence follows that; mode 3 is always at work. Assumes one owner, the table's.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from pylvs.forward.conn cimport F_ONE_PACKET, F_TEMPLATE, Conn, ConnTable, evict
from pylvs.forward.packet cimport SCTP, TCP
from pylvs.forward.sctp cimport SCTP_ESTABLISHED, SCTP_INIT, SCTP_INIT1
from pylvs.forward.state cimport ESTABLISHED, SECURE, SYN_RECV, SYNACK


cdef enum:
    MODE_OFF = 0
    MODE_AUTOMATIC = 1
    MODE_ALWAYS = 3

    SECOND_NS = 1000000000
    MISSED_TICKS = 64  # of a step in time, so many seconds are made up for
    SCAN_SHARE = 32  # each second looks at this part of the table


cdef struct Defence:
    # what the administrator set
    int32_t amemthresh
    int32_t am_droprate
    uint8_t drop_entry
    uint8_t drop_packet
    uint8_t secure_tcp
    # what follows from it and from the table
    bint short_of_memory
    bint dropping  # entries
    int secure  # SECURE or 0: which of TCP's tables
    int32_t drop_rate  # of packets that ask for a new connection, one in so many; 0: none
    int32_t drop_counter
    # drop_entry at work
    uint64_t next_tick  # ns; 0 before the first
    uint64_t random
    uint32_t unseen  # entries still to be looked at, times SCAN_SHARE
    int32_t counters[9]  # by number of packets


cdef inline bint at_work(uint8_t mode, bint short_of_memory) noexcept nogil:
    return mode == MODE_ALWAYS or (mode != MODE_OFF and short_of_memory)


cdef inline void update(Defence* d, ConnTable* t) noexcept nogil:
    """Decide which defences are at work from now on."""
    cdef int64_t available = <int64_t>t.capacity - t.count
    d.short_of_memory = available < d.amemthresh
    d.dropping = at_work(d.drop_entry, d.short_of_memory)
    d.secure = SECURE if at_work(d.secure_tcp, d.short_of_memory) else 0
    if d.drop_packet == MODE_ALWAYS:
        d.drop_rate = d.am_droprate
    elif at_work(d.drop_packet, d.short_of_memory):
        d.drop_rate = <int32_t>(d.amemthresh // (d.amemthresh - available))
        d.drop_counter = d.drop_rate
    else:
        d.drop_rate = 0


cdef inline bint drops_packet(Defence* d) noexcept nogil:
    """Is this new connection attempt one to be dropped?"""
    if d.drop_rate == 0:
        return False
    d.drop_counter -= 1
    if d.drop_counter > 0:
        return False
    d.drop_counter = d.drop_rate
    return True


cdef inline bint unlucky(Defence* d, Conn* c, uint64_t now) noexcept nogil:
    """The rule for quiet entries: idle for a minute, few packets, and every i-th of those with i packets."""
    if now + <uint64_t>c.timeout * 1000000 < c.expires + 60 * <uint64_t>SECOND_NS:
        return False
    if c.packets == 0 or c.packets > 8:
        return False
    d.counters[c.packets] -= 1
    if d.counters[c.packets] > 0:
        return False
    d.counters[c.packets] = <int32_t>c.packets
    return True


cdef inline bint dispensable(Defence* d, Conn* c, uint64_t now) noexcept nogil:
    """May this entry go? Those that control others stay, half-open ones go, established ones by the rule."""
    if c.controlled:
        return False
    if c.flags & F_TEMPLATE:
        return unlucky(d, c, now) if c.flags & F_ONE_PACKET else not c.state & 1
    if c.proto == TCP:
        return c.state == SYN_RECV or c.state == SYNACK or (c.state == ESTABLISHED and unlucky(d, c, now))
    if c.proto == SCTP:
        return c.state == SCTP_INIT1 or c.state == SCTP_INIT or (c.state == SCTP_ESTABLISHED and unlucky(d, c, now))
    return unlucky(d, c, now)


cdef inline uint32_t draw(Defence* d, uint32_t below) noexcept nogil:
    """A number from 0 to `below` - 1 (xorshift, Marsaglia 2003)."""
    d.random ^= d.random << 13
    d.random ^= d.random >> 7
    d.random ^= d.random << 17
    return <uint32_t>(((d.random >> 32) * below) >> 32)


cdef inline void drop_entries(Defence* d, ConnTable* t, uint64_t now, uint32_t budget) noexcept nogil:
    """Look at up to `budget` entries of this second's share, each at random."""
    cdef uint32_t index
    while d.unseen >= SCAN_SHARE and budget:
        d.unseen -= SCAN_SHARE
        budget -= 1
        index = 1 + draw(d, t.fresh - 1)
        if t.pool[index].family and dispensable(d, &t.pool[index], now):
            evict(t, index, False)


cdef inline void defend(Defence* d, ConnTable* t, uint64_t now, uint32_t budget) noexcept nogil:
    """What a second brings, if one has passed, and a part of what the last one left to do."""
    cdef int missed = 0
    if d.next_tick == 0:
        d.next_tick = now + SECOND_NS
    while d.next_tick <= now and missed < MISSED_TICKS:
        update(d, t)
        if d.dropping:
            d.unseen = d.unseen % SCAN_SHARE + t.fresh - 1
            drop_entries(d, t, d.next_tick, budget)
        d.next_tick += SECOND_NS
        missed += 1
    if d.next_tick <= now:
        d.next_tick = now + SECOND_NS
    if d.unseen >= SCAN_SHARE:
        drop_entries(d, t, now, budget)
