"""ESP and AH (RFC 4303, RFC 4302) follow the ISAKMP connection (UDP, port 500 on both sides) of the same two addresses.

They have no ports to choose by, so they are never scheduled themselves. NAT exchanges addresses and nothing else, which
AH will not survive; the connection keeps its state, and lives on.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset

from pylvs.forward cimport checksum
from pylvs.forward.conn cimport Conn
from pylvs.forward.packet cimport UDP, Flow, Frame


cdef enum:
    ISAKMP = 500


cdef inline void key(Flow* flow, Flow* isakmp) noexcept nogil:
    """The flow that `flow` follows."""
    memset(isakmp, 0, sizeof(Flow))
    isakmp.family = flow.family
    isakmp.proto = UDP
    isakmp.sport = ISAKMP
    isakmp.dport = ISAKMP
    memcpy(isakmp.src, flow.src, 16)
    memcpy(isakmp.dst, flow.dst, 16)


cdef inline void rewrite_in(Frame* frame, Flow* flow, Conn* c) noexcept nogil:
    """VIP -> RIP."""
    cdef uint8_t* ip = frame.data + flow.l3
    if flow.family == 4:
        memcpy(ip + 16, c.daddr + 12, 4)
        checksum.update(ip + 10, c.address_delta)
    else:
        memcpy(ip + 24, c.daddr, 16)


cdef inline void rewrite_out(Frame* frame, Flow* flow, Conn* c) noexcept nogil:
    """RIP -> VIP."""
    cdef uint8_t* ip = frame.data + flow.l3
    if flow.family == 4:
        memcpy(ip + 12, c.vaddr + 12, 4)
        checksum.update(ip + 10, <uint16_t>~c.address_delta)
    else:
        memcpy(ip + 8, c.vaddr, 16)
