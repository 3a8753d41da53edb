"""What a port is: rooms 1 and 6 as a few functions that a backend fills in, and a descriptor to wait on.

`receive` fills frames that point into the port's own memory, with HEADROOM in front; they stay valid, and may be
rewritten in place, until `release`. `transmit` sends what fits of up to TX_BATCH frames and says how many; if none,
`error` is the errno of the first. Nobody ever waits. All of it is called once per batch, never per frame.
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t

from pylvs.forward.packet cimport Frame
from pylvs.forward.plane cimport TxFrame


cdef enum:
    TX_BATCH = 64


cdef struct Port:
    int (*receive)(Port* port, Frame* frames, int limit) noexcept nogil
    void (*release)(Port* port) noexcept nogil
    int (*transmit)(Port* port, TxFrame** frames, int count, int* error) noexcept nogil
    bint (*clear_error)(Port* port) noexcept nogil  # fetch and clear the pending error; was there one?
    void* data  # the backend's own
    int fd  # readable when there is something to receive
    uint32_t taken  # frames, of ours or not, that wait for `release`
    uint16_t link
    bint receives  # a port may be there for sending only


cdef class AnyPort:
    cdef Port port
    cdef readonly str name
    cdef readonly int ifindex  # the kernel's number of the interface, 0 if it is none of the kernel's
    cdef uint64_t lost  # frames that found the receive queue full
