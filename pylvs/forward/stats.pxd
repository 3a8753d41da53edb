"""Per-worker counters: one writer each, summed when read.

Every frame is counted once in `received` and once where it ended, so that
received = forwarded + passed + replied + the sum of all drops.
"""

from libc.stdint cimport uint32_t, uint64_t

from pylvs.forward.packet cimport DROP, FORWARD, LAST_REASON, PASS, REPLY


cdef struct Counters:
    # of a service or a real server: connections, packets and IP bytes in each direction
    uint64_t conns
    uint64_t inpkts
    uint64_t outpkts
    uint64_t inbytes
    uint64_t outbytes


cdef struct Totals:
    uint64_t received
    uint64_t forwarded
    uint64_t passed
    uint64_t replied
    uint64_t drops[LAST_REASON]


cdef inline void count_verdict(Totals* totals, int verdict, int reason) noexcept nogil:
    """Book the end of one frame."""
    totals.received += 1
    if verdict == FORWARD:
        totals.forwarded += 1
    elif verdict == PASS:
        totals.passed += 1
    elif verdict == REPLY:
        totals.replied += 1
    else:
        totals.drops[reason] += 1


cdef inline void count_in(Counters* c, uint32_t size) noexcept nogil:
    c.inpkts += 1
    c.inbytes += size


cdef inline void count_out(Counters* c, uint32_t size) noexcept nogil:
    c.outpkts += 1
    c.outbytes += size
