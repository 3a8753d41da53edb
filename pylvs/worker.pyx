"""The worker: one thread without the GIL that carries frames from ports through the data plane to ports.

A turn: receive up to a batch from each port, decide, transmit grouped by port, give the ring slots back; then the
mailbox and the timers. With nothing to do it waits in poll, which an arriving frame, a command or 100 ms end.
"""

import os
import threading

from libc.errno cimport EMSGSIZE, EINVAL, ENETDOWN, ENXIO
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from pylvs.forward._fastpath cimport Core, begin, run_batch, run_command, run_timers
from pylvs.forward._sys cimport acquire, release
from pylvs.forward.fib cimport MAX_LINKS
from pylvs.forward.mailbox cimport ADD_PORT, REMOVE_PORT, STOP, Command, Mailbox, post, read, write
from pylvs.forward.packet cimport (
    BAD_OFFLOAD, DROP, FORWARD, LINK_DOWN, REPLY, TOO_BIG, TX_FULL, Frame,
)
from pylvs.forward.pipeline cimport BATCH, Result
from pylvs.forward.plane cimport Plane, TxFrame
from pylvs.ports.port cimport TX_BATCH, AnyPort, Port


cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long count, int timeout)
    enum: POLLIN, POLLERR

cdef enum:
    IDLE_MS = 100
    HELD_MS = 10  # while frames wait for their next hop
    EXPIRE_BUDGET = 256


cdef struct Loop:
    Plane* plane
    Mailbox* box
    Port* ports[MAX_LINKS]  # by link
    Port* receiving[MAX_LINKS]
    int receiving_count
    int notify  # eventfd: a next hop wants to be resolved
    uint32_t noticed
    uint64_t turns


cdef inline uint64_t monotonic() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + t.tv_nsec


cdef void lose(Plane* plane, Result* results, TxFrame* tx, int error) noexcept nogil:
    """Book a frame that did not go out as a drop; a received frame at the most once, whatever it had become."""
    cdef int reason = TX_FULL
    if error == ENETDOWN or error == ENXIO:
        reason = LINK_DOWN
    elif error == EMSGSIZE:
        reason = TOO_BIG
    elif error == EINVAL:
        reason = BAD_OFFLOAD
    if results is not NULL:
        if results[tx.cause].verdict == FORWARD:
            plane.totals.forwarded -= 1
        elif results[tx.cause].verdict == REPLY:
            plane.totals.replied -= 1
        else:
            return
        results[tx.cause].verdict = DROP
        plane.totals.drops[reason] += 1


cdef void flush(Loop* loop, Result* results) noexcept nogil:
    """Send the outbox, each run of frames for the same port in one go, in order."""
    cdef Plane* plane = loop.plane
    cdef TxFrame* batch[TX_BATCH]
    cdef uint32_t i = 0
    cdef int count, sent, at, error
    cdef uint16_t link
    cdef Port* port
    while i < plane.out_count:
        link = plane.out[i].link
        count = 0
        while i < plane.out_count and count < TX_BATCH and plane.out[i].link == link:
            batch[count] = &plane.out[i]
            count += 1
            i += 1
        port = loop.ports[link]
        at = 0
        while at < count:
            if port is NULL:
                lose(plane, results, batch[at], ENETDOWN)
                at += 1
                continue
            sent = port.transmit(port, &batch[at], count - at, &error)
            at += sent
            if at < count and sent == 0:
                lose(plane, results, batch[at], error)
                at += 1


cdef int turn(Loop* loop, Port* port) noexcept nogil:
    """One batch of one port; return how many frames there were."""
    cdef Frame frames[BATCH]
    cdef Result results[BATCH]
    cdef int count = port.receive(port, frames, BATCH)
    cdef int first = 0
    cdef int decided
    while first < count:
        begin(loop.plane)
        decided = run_batch(loop.plane, &frames[first], count - first, monotonic(), &results[first])
        flush(loop, &results[first])
        first += decided
    if port.taken:
        port.release(port)
    return count


cdef bint mail(Loop* loop) noexcept nogil:
    """Execute a posted command; False if it was the one to stop."""
    cdef Command* command = loop.box.command
    cdef Port* port
    cdef uint64_t one = 1
    cdef int i
    cdef bint go_on = True
    if command.kind == ADD_PORT:
        port = <Port*>command.pointer
        loop.ports[port.link] = port
        if port.receives:
            loop.receiving[loop.receiving_count] = port
            loop.receiving_count += 1
    elif command.kind == REMOVE_PORT:
        port = <Port*>command.pointer
        if loop.ports[port.link] == port:
            loop.ports[port.link] = NULL
        for i in range(loop.receiving_count):
            if loop.receiving[i] == port:
                loop.receiving_count -= 1
                loop.receiving[i] = loop.receiving[loop.receiving_count]
                break
    elif command.kind == STOP:
        release(&loop.box.attached, 0)
        go_on = False
    else:
        run_command(loop.plane, loop.box)
    release(&loop.box.posted, 0)
    write(loop.box.done, &one, 8)
    return go_on


cdef void idle(Loop* loop) noexcept nogil:
    """Wait for a frame, a command, or a while."""
    cdef pollfd fds[MAX_LINKS + 1]
    cdef uint64_t value
    cdef int i
    cdef int count = loop.receiving_count
    for i in range(count):
        fds[i].fd = loop.receiving[i].fd
        fds[i].events = POLLIN
        fds[i].revents = 0
    fds[count].fd = loop.box.wake
    fds[count].events = POLLIN
    fds[count].revents = 0
    if poll(fds, count + 1, HELD_MS if loop.plane.held_count else IDLE_MS) <= 0:
        return
    if fds[count].revents:
        read(loop.box.wake, &value, 8)
    for i in range(count):
        if fds[i].revents & POLLERR:
            loop.receiving[i].clear_error(loop.receiving[i])


cdef void run(Loop* loop) noexcept nogil:
    cdef int busy, i
    cdef uint64_t one = 1
    while True:
        if acquire(&loop.box.posted) and not mail(loop):
            return
        busy = 0
        for i in range(loop.receiving_count):
            busy += turn(loop, loop.receiving[i])
        begin(loop.plane)
        run_timers(loop.plane, monotonic(), False, EXPIRE_BUDGET)
        if loop.plane.out_count:
            flush(loop, NULL)
        if loop.plane.needs_head != loop.noticed:
            loop.noticed = loop.plane.needs_head
            write(loop.notify, &one, 8)
        loop.turns += 1
        if not busy and not loop.plane.flush_next:
            idle(loop)


cdef class Worker:
    """Drives `core` in a thread of its own. `notify` is an eventfd, readable when `core.needs()` has news."""

    cdef Loop loop
    cdef Core core
    cdef object thread
    cdef dict held  # ports by link, kept alive while the loop has them
    cdef readonly int notify

    def __init__(self, Core core not None):
        self.core = core
        self.held = {}
        memset(&self.loop, 0, sizeof(Loop))
        self.loop.plane = core.plane
        self.loop.box = core.box
        self.notify = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.loop.notify = self.notify
        core.box.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        core.box.done = os.eventfd(0, os.EFD_CLOEXEC)
        self.thread = threading.Thread(target=self._run, name="pylvs-worker", daemon=True)

    def start(self):
        """Begin to work."""
        release(&self.core.box.attached, 1)
        try:
            self.thread.start()
        except BaseException:
            release(&self.core.box.attached, 0)
            raise

    def _run(self):
        with nogil:
            run(&self.loop)

    cdef void _command(self, int kind, void* pointer) noexcept:
        cdef Command command
        cdef Mailbox* box = self.core.box
        cdef Plane* plane = self.core.plane
        memset(&command, 0, sizeof(command))
        command.kind = kind
        command.pointer = pointer
        with nogil:
            post(box, plane, &command)

    def add_port(self, AnyPort port not None):
        """Send through a port, and receive from it if it receives; one that was there for the same link is replaced.

        The worker must have been started, and must not have been stopped: `RuntimeError`.
        """
        if self.thread is None or not self.thread.is_alive():
            raise RuntimeError(f"port {port.name}: the worker does not run; start it first")
        old = self.held.get(port.link)
        if old is not None:
            self.remove_port(old)
        self.held[port.link] = port
        self._command(ADD_PORT, &port.port)

    def remove_port(self, AnyPort port not None):
        """Let go of a port, then close it."""
        if self.thread is not None:
            self._command(REMOVE_PORT, &port.port)
        self.held.pop(port.link, None)
        port.close()

    @property
    def ports(self):
        """The ports it works with, by link."""
        return dict(self.held)

    @property
    def turns(self):
        """How often the loop has gone round: a heartbeat, at least ten a second."""
        return self.loop.turns

    def stop(self):
        """Stop the thread, close the ports. Safe to call twice."""
        if self.thread is None:
            return
        if self.thread.is_alive():
            self._command(STOP, NULL)
            self.thread.join()
        self.thread = None
        for port in self.held.values():
            port.close()
        self.held.clear()
        for fd in (self.notify, self.core.box.wake, self.core.box.done):
            os.close(fd)
