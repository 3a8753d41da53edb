"""The memory backend's own part of a port: two queues."""

from libc.stdint cimport uint8_t, uint32_t

from pylvs.forward.packet cimport Offload as OffloadStruct
from pylvs.ports.port cimport AnyPort


cdef struct Slot:
    uint32_t length
    OffloadStruct offload
    uint8_t bytes[66560]  # HEADROOM, then a frame


cdef struct Queue:
    Slot* slots
    uint32_t capacity  # a power of two, so that the counters below may wrap
    uint32_t head  # frames ever put in; the writer's
    uint32_t tail  # frames ever taken out; the reader's


cdef struct Queues:
    Queue received
    Queue sent
    uint32_t fault  # errno of sending, 0 if it works


cdef class MemoryPort(AnyPort):
    cdef Queues queues
