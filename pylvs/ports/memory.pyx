"""A port that ends in memory: Python puts frames in and takes out what was sent. No socket, no privilege.

Two queues of fixed size, each with one writer and one reader that meet only in `head` and `tail`: Python's side holds
the GIL, the worker's side does not. An eventfd tells the worker's poll that frames have come. What finds a queue full
is lost and counted: on the way in by `statistics`, on the way out by the data plane as `tx_full`, as with a socket.
"""

import os
from typing import NamedTuple

from libc.errno cimport EMSGSIZE, ENOBUFS
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport read, write

from pylvs.forward._sys cimport acquire, release as publish
from pylvs.forward.packet cimport Frame, Offload as OffloadStruct
from pylvs.forward.plane cimport HEADROOM, TxFrame
from pylvs.ports.port cimport AnyPort, Port


cdef enum:
    ROOM = 66432  # a 64 KB packet with its link-layer header; with HEADROOM a multiple of a cache line


class Offload(NamedTuple):
    """What a frame leaves to the sending interface: struct virtio_net_hdr (virtio 1.1 §5.1.6), `csum_start` from the
    Ethernet header on. The default asks for nothing."""

    flags: int = 0
    gso_type: int = 0
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0


cdef inline Slot* slot_at(Queue* queue, uint32_t i) noexcept nogil:
    return &queue.slots[i % queue.capacity]


cdef int receive(Port* port, Frame* frames, int limit) noexcept nogil:
    """Take up to `limit` frames; they stay in the queue until `release_frames`."""
    cdef Queue* queue = &(<Queues*>port.data).received
    cdef uint32_t at = queue.tail + port.taken
    cdef uint64_t news
    cdef int count = 0
    cdef Slot* slot
    if acquire(&queue.head) == at:
        read(port.fd, &news, 8)  # first unset the sign, then look again: whoever puts does it the other way round
    while count < limit and acquire(&queue.head) != at:
        slot = slot_at(queue, at)
        frames[count].data = slot.bytes + HEADROOM
        frames[count].length = slot.length
        frames[count].headroom = HEADROOM
        frames[count].link = port.link
        frames[count].own = False
        frames[count].offload = slot.offload
        at += 1
        count += 1
    port.taken += count
    return count


cdef void release_frames(Port* port) noexcept nogil:
    cdef Queue* queue = &(<Queues*>port.data).received
    publish(&queue.tail, queue.tail + port.taken)
    port.taken = 0


cdef int transmit(Port* port, TxFrame** frames, int count, int* error) noexcept nogil:
    """Copy what there is room for; `fault` is the error that the interface would give."""
    cdef Queues* queues = <Queues*>port.data
    cdef Queue* queue = &queues.sent
    cdef Slot* slot
    cdef int i
    error[0] = acquire(&queues.fault)
    if error[0]:
        return 0
    for i in range(count):
        if queue.head - acquire(&queue.tail) == queue.capacity:
            error[0] = ENOBUFS
            return i
        if frames[i].length > ROOM:
            error[0] = EMSGSIZE
            return i
        slot = slot_at(queue, queue.head)
        memcpy(slot.bytes, frames[i].data, frames[i].length)
        slot.length = frames[i].length
        slot.offload = frames[i].offload
        publish(&queue.head, queue.head + 1)
    return count


cdef bint clear_error(Port* port) noexcept nogil:
    return False


cdef int reserve(Queue* queue, uint32_t capacity) except -1:
    queue.capacity = capacity
    queue.slots = <Slot*>calloc(capacity, sizeof(Slot))  # costs nothing until frames come
    if queue.slots is NULL:
        raise MemoryError(f"no memory for {capacity} frames")
    return 0


cdef class MemoryPort(AnyPort):
    """A port called `name`, known to the data plane as `link`, with room for `capacity` frames in each direction.

    Capacity is a power of two. One Python thread may put while another takes.
    """

    def __cinit__(self, str name, uint16_t link, uint32_t capacity=256, bint receives=True):
        if not 1 <= capacity <= 1 << 16 or capacity & (capacity - 1):
            raise ValueError(f"a capacity of {capacity} frames is not possible; use a power of two up to {1 << 16}")
        self.name = name
        reserve(&self.queues.received, capacity)
        reserve(&self.queues.sent, capacity)
        self.port.receive = receive
        self.port.release = release_frames
        self.port.transmit = transmit
        self.port.clear_error = clear_error
        self.port.data = &self.queues
        self.port.link = link
        self.port.receives = receives
        self.port.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def put(self, frames, offload=None):
        """Let `frames` arrive, all with the same `offload` (an `Offload`, default none); return how many found room.

        Raises `ValueError` if the port is closed or a frame is longer than any interface's.
        """
        cdef Queue* queue = &self.queues.received
        cdef OffloadStruct meta
        cdef Slot* slot
        cdef bytes data
        cdef uint64_t one = 1
        cdef int count = 0
        if self.port.fd < 0:
            raise ValueError(f"port {self.name} is closed")
        (meta.flags, meta.gso_type, meta.hdr_len, meta.gso_size, meta.csum_start, meta.csum_offset) = (
            offload or Offload()
        )
        for data in frames:
            if len(data) > <Py_ssize_t>ROOM:
                raise ValueError(f"a frame of {len(data)} bytes does not fit; the longest has {<int>ROOM}")
            if queue.head - acquire(&queue.tail) == queue.capacity:
                self.lost += 1
                continue
            slot = slot_at(queue, queue.head)
            memcpy(slot.bytes + HEADROOM, <const uint8_t*>data, len(data))
            slot.length = <uint32_t>len(data)
            slot.offload = meta
            publish(&queue.head, queue.head + 1)
            count += 1
        write(self.port.fd, &one, 8)
        return count

    def take(self):
        """What was sent since the last time, in order."""
        return [data for data, _ in self.take_offloaded()]

    def take_offloaded(self):
        """The same as pairs of the frame and its `Offload`."""
        cdef Queue* queue = &self.queues.sent
        cdef Slot* slot
        cdef list found = []
        while acquire(&queue.head) != queue.tail:
            slot = slot_at(queue, queue.tail)
            meta = slot.offload
            found.append((
                <bytes>slot.bytes[:slot.length],
                Offload(meta.flags, meta.gso_type, meta.hdr_len, meta.gso_size, meta.csum_start, meta.csum_offset),
            ))
            publish(&queue.tail, queue.tail + 1)
        return found

    @property
    def waiting(self):
        """Frames that were sent and not yet taken."""
        return acquire(&self.queues.sent.head) - self.queues.sent.tail

    @property
    def fault(self):
        """The errno with which sending fails, as `errno.ENETDOWN` while an interface is down; 0: it works."""
        return self.queues.fault

    @fault.setter
    def fault(self, uint32_t error):
        publish(&self.queues.fault, error)

    def __dealloc__(self):
        free(self.queues.received.slots)
        free(self.queues.sent.slots)
