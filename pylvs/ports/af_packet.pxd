"""Rooms 1 and 6: frames in and out of one interface.

A port is a plain struct that a worker owns. `receive` fills frames that point into the receive ring; they stay valid,
and may be rewritten in place, until `release`. `transmit` sends what fits and says how many: nobody ever waits.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from pylvs.forward.packet cimport Frame
from pylvs.forward.plane cimport TxFrame


cdef enum:
    TX_BATCH = 64


cdef struct Port:
    int fd
    int ifindex
    uint16_t link
    bint receives  # a port may be there for sending only
    bint down
    uint8_t* ring
    size_t ring_size
    uint32_t slots
    uint32_t slot_size
    uint32_t slots_per_block
    uint32_t block_size
    uint32_t next  # slot to look at
    uint32_t taken  # slots handed out since the last release
    uint8_t vlans[512]  # bitmap: tags that belong to interfaces of their own, which see these frames themselves
    uint64_t ring_full  # frames that the kernel could not put into the ring


cdef int receive(Port* port, Frame* frames, int limit) noexcept nogil
cdef void release(Port* port) noexcept nogil
cdef int transmit(Port* port, TxFrame** frames, int count, int* error) noexcept nogil
cdef bint clear_error(Port* port) noexcept nogil


cdef class PacketPort:
    cdef Port* port
    cdef readonly str name
