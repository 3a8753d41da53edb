"""What the control thread asks of a plane: commands executed by the plane's owner between two batches.

One place, one command at a time. With a worker running, the control thread posts a command, wakes the worker and waits
for the answer without the GIL; without one (the offline director) it executes the command itself. Either way only the
owner of a table ever touches it, so nothing in a plane needs a lock. Commands are bounded: a dump asks for a slice.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pylvs.forward._sys cimport acquire, release
from pylvs.forward.cache cimport flush_service
from pylvs.forward.conn cimport F_NOTED, Conn, evict
from pylvs.forward.defence cimport Defence, update
from pylvs.forward.fib cimport Fib
from pylvs.forward.notes cimport Note
from pylvs.forward.pick cimport move_cursor
from pylvs.forward.plane cimport Plane, Settings, retry_held
from pylvs.forward.snapshot cimport NO_SLOT, PICK_CACHE, ServiceSlot, Snapshot, Svc, find_exact
from pylvs.forward.state cimport Timeouts
from pylvs.forward.stats cimport Counters


cdef extern from "unistd.h" nogil:
    ssize_t write(int fd, const void* buffer, size_t count)
    ssize_t read(int fd, void* buffer, size_t count)


cdef enum CommandKind:
    ADOPT_SNAPSHOT  # pointer: Snapshot
    ADOPT_FIB  # pointer: Fib
    DUMP  # pointer: array of Conn, other: of Note; first: index; count: places. -> first: next (0: end), count: filled
    FLUSH  # start to remove the connections of deleted real servers; `flush_slice` does it
    ZERO  # first: service slot, or NO_SLOT for everything; pointer: array of dest slots, count of them
    TUNE  # pointer: Timeouts; other: Settings; third: Defence, of which the administrator's part counts
    STOP  # for the worker
    ADD_PORT  # for the worker: pointer
    REMOVE_PORT  # for the worker: pointer


cdef struct Command:
    int kind
    void* pointer
    void* other
    void* third
    uint32_t first
    uint32_t count


cdef struct Mailbox:
    Command* command
    uint32_t posted  # 1 while a command waits
    uint32_t attached  # a worker is there to execute it
    int wake  # eventfd that the worker polls
    int done  # eventfd that the sender waits on


cdef inline void adopt(Plane* plane, Snapshot* new) noexcept nogil:
    """Take over a snapshot: cursors of services whose servers changed move by the kernel's rules."""
    cdef Snapshot* old = plane.snapshot
    cdef Svc* svc
    cdef Svc* before
    cdef ServiceSlot* state
    cdef uint32_t i
    for i in range(new.service_count):
        svc = &new.services[i]
        if svc.pick.kind == PICK_CACHE:
            state = &plane.cursors[svc.slot]
            if svc.pick.fresh and state.epoch != svc.pick.epoch:
                flush_service(&plane.cache, plane.slots, plane.table.key0, svc.slot)
                state.bound = plane.now
            state.generation = new.generation
        if plane.cursors[svc.slot].epoch == svc.pick.epoch:
            continue
        before = NULL
        if old is not NULL:
            before = find_exact(old, svc.proto, svc.address, svc.port)
            if before is not NULL and before.slot != svc.slot:
                before = NULL
        move_cursor(old, before, new, svc, &plane.cursors[svc.slot])
        plane.cursors[svc.slot].epoch = svc.pick.epoch
    if old is not NULL:
        for i in range(old.service_count):
            state = &plane.cursors[old.services[i].slot]
            if state.cached and state.generation != new.generation:  # deleted, or scheduled in another way now
                flush_service(&plane.cache, plane.slots, plane.table.key0, old.services[i].slot)
    plane.snapshot = new


cdef inline void dump(Plane* plane, Command* command) noexcept nogil:
    cdef Conn* to = <Conn*>command.pointer
    cdef Note* notes = <Note*>command.other
    cdef uint32_t index = command.first
    cdef uint32_t filled = 0
    cdef uint32_t looked = 0
    while index < plane.table.fresh and filled < command.count and looked < 65536:
        if plane.table.pool[index].family:
            memcpy(&to[filled], &plane.table.pool[index], sizeof(Conn))
            if to[filled].flags & F_NOTED:
                memcpy(&notes[filled], &plane.table.notes[index], sizeof(Note))
            filled += 1
        index += 1
        looked += 1
    command.first = index if index < plane.table.fresh else 0
    command.count = filled


cdef inline void flush_slice(Plane* plane, uint32_t budget) noexcept nogil:
    """Look at `budget` more entries for those whose real server was deleted; they go, with what controls them alone."""
    cdef uint32_t index = plane.flush_next
    cdef Conn* c
    while index < plane.table.fresh and budget:
        c = &plane.table.pool[index]
        if c.family and c.dest != NO_SLOT and not c.controlled and not plane.slots[c.dest].available:
            evict(&plane.table, index, True)
        index += 1
        budget -= 1
    plane.flush_next = index if index < plane.table.fresh else 0


cdef inline void tune_defence(Plane* plane, Defence* new) noexcept nogil:
    """Take over the administrator's part."""
    plane.defence.amemthresh = new.amemthresh
    plane.defence.am_droprate = new.am_droprate
    plane.defence.drop_entry = new.drop_entry
    plane.defence.drop_packet = new.drop_packet
    plane.defence.secure_tcp = new.secure_tcp
    update(&plane.defence, &plane.table)


cdef inline void zero(Plane* plane, Command* command) noexcept nogil:
    cdef uint32_t* dests = <uint32_t*>command.pointer
    cdef uint32_t i
    for i in range(command.count):
        memset(&plane.dests[dests[i]].counters, 0, sizeof(Counters))
    if command.first != NO_SLOT:
        memset(&plane.services[command.first], 0, sizeof(Counters))
    else:
        memset(&plane.total, 0, sizeof(Counters))


cdef inline void execute(Plane* plane, Command* command) noexcept nogil:
    """Carry out a command; called by the plane's owner only."""
    if command.kind == ADOPT_SNAPSHOT:
        adopt(plane, <Snapshot*>command.pointer)
    elif command.kind == ADOPT_FIB:
        plane.fib = <Fib*>command.pointer
    elif command.kind == DUMP:
        dump(plane, command)
    elif command.kind == FLUSH:
        plane.flush_next = 1
    elif command.kind == ZERO:
        zero(plane, command)
    elif command.kind == TUNE:
        plane.timeouts = (<Timeouts*>command.pointer)[0]
        plane.settings = (<Settings*>command.other)[0]
        tune_defence(plane, <Defence*>command.third)


cdef inline void post(Mailbox* box, Plane* plane, Command* command) noexcept nogil:
    """Have a command executed and wait until it is."""
    cdef uint64_t one = 1
    if not acquire(&box.attached):
        execute(plane, command)
        return
    box.command = command
    release(&box.posted, 1)
    write(box.wake, &one, 8)
    while read(box.done, &one, 8) != 8:  # a signal may interrupt it; the command is on our stack until it is done
        pass
