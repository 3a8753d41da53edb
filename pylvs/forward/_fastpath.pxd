"""What workers and ports may cimport of the compiled data plane."""

from libc.stdint cimport uint32_t, uint64_t

from pylvs.forward.mailbox cimport Command, Mailbox
from pylvs.forward.packet cimport Frame
from pylvs.forward.pipeline cimport Result
from pylvs.forward.plane cimport Plane
from pylvs.forward.snapshot cimport DestSlot

# one crossing per batch, so a call through a function pointer is free
cdef int run_batch(Plane* plane, Frame* frames, int count, uint64_t now, Result* results) noexcept nogil
cdef void begin(Plane* plane) noexcept nogil
cdef void run_timers(Plane* plane, uint64_t now, bint exact, int budget) noexcept nogil
cdef void run_command(Plane* plane, Mailbox* box) noexcept nogil


cdef class Slots:
    cdef DestSlot* slots


cdef class Core:
    cdef Plane* plane
    cdef Mailbox* box
    cdef readonly Slots slots
    cdef object snapshot
    cdef object fib
    cdef uint32_t capacity
    cdef void _post(self, Command* command) noexcept
    cdef list _outbox(self)
