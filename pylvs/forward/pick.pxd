"""Room 4's last step, pick: the few ways to choose a real server.

A scheduler is plain Python that compiles to one of these; the rules are the kernel's, in the kernel's list order
(newest server first), so that one worker gives exactly its sequence. Cursors stand on a real server's slot and are
moved by `adopt` when the list changes.
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t

from pylvs.forward.snapshot cimport (
    COST_WEIGHTED, CURSOR_RESTART, NO_SLOT, PICK_CURSOR, PICK_LEAST, DestSlot, Entry, Pick, ServiceSlot, Snapshot, Svc,
)


cdef inline uint64_t overhead(DestSlot* slot) noexcept nogil:
    """What a connection costs: an active one as much as 256 inactive ones."""
    return (<uint64_t>slot.active << 8) + slot.inactive


cdef inline Entry* pick_least(Snapshot* s, Svc* svc, DestSlot* slots) noexcept nogil:
    """The smallest cost; ties go to the first in list order, quiesced and overloaded servers never win."""
    cdef Entry* best = NULL
    cdef Entry* entry
    cdef uint64_t cost
    cdef uint64_t best_cost = 0
    cdef uint32_t i
    cdef bint better
    for i in range(svc.first, svc.first + svc.count):
        entry = &s.entries[i]
        if entry.weight <= 0 or slots[entry.dest].overloaded:
            continue
        cost = overhead(&slots[entry.dest])
        if best is NULL:
            better = True
        elif svc.pick.cost == COST_WEIGHTED:
            better = best_cost * <uint64_t>entry.weight > cost * <uint64_t>best.weight
        else:
            better = cost < best_cost
        if better:
            best = entry
            best_cost = cost
    return best


cdef inline Entry* pick_cursor(Snapshot* s, Svc* svc, DestSlot* slots, ServiceSlot* state) noexcept nogil:
    """The next server whose weight reaches the present level; the level falls by `step` with each pass over the list.

    Gives up after every server was tried against the lowest level since the call began. With all weights and levels 1
    this is plain round robin.
    """
    cdef uint32_t at = 0  # 1-based position of the cursor; 0 is the head of the list
    cdef uint32_t stop = 0
    cdef uint32_t i
    cdef bint restarted = False
    cdef bint last_pass = False
    cdef Entry* entry
    if svc.pick.top <= 0:
        return NULL
    for i in range(svc.count):
        if s.entries[svc.first + i].dest == state.cursor:
            at = i + 1
            break
    i = at
    while True:
        while i < svc.count:
            i += 1
            entry = &s.entries[svc.first + i - 1]
            if entry.weight >= state.level and entry.weight > 0 and not slots[entry.dest].overloaded:
                state.cursor = entry.dest
                return entry
            if i == stop:
                state.cursor = entry.dest
                return NULL
        state.level -= svc.pick.step
        if state.level <= 0:
            state.level = svc.pick.top
            if last_pass or at == 0:
                state.cursor = NO_SLOT
                return NULL
            restarted = True
        last_pass = state.level <= svc.pick.step
        if last_pass and restarted:
            stop = at
        i = 0


cdef inline Entry* choose_server(Snapshot* s, Svc* svc, DestSlot* slots, ServiceSlot* cursors) noexcept nogil:
    """Ask the service's pick; NULL if no real server may take a new connection."""
    if svc.pick.kind == PICK_CURSOR:
        return pick_cursor(s, svc, slots, &cursors[svc.slot])
    if svc.pick.kind == PICK_LEAST:
        return pick_least(s, svc, slots)
    return NULL


cdef inline bint listed(Snapshot* s, Svc* svc, uint32_t dest) noexcept nogil:
    cdef uint32_t i
    for i in range(svc.first, svc.first + svc.count):
        if s.entries[i].dest == dest:
            return True
    return False


cdef inline void move_cursor(Snapshot* old, Svc* before, Snapshot* new, Svc* now, ServiceSlot* state) noexcept nogil:
    """Bring a cursor over to a changed list of servers, by the kernel's rules.

    rr: stays; if its server was deleted it falls back to the one before it that is still there. wrr: restarts at the
    head; its level is kept if still possible, rounded to the grid of the new step.
    """
    cdef uint32_t i
    cdef int32_t step = now.pick.step
    if now.pick.fresh or before is NULL:
        state.cursor = NO_SLOT
        state.level = now.pick.level
        return
    if now.pick.rule == CURSOR_RESTART:
        state.cursor = NO_SLOT
        if state.level > now.pick.top or state.level == 0:
            state.level = now.pick.top
        elif step > 1:
            state.level = (state.level // step) * step + 1
        return
    if state.cursor == NO_SLOT or listed(new, now, state.cursor):
        return
    i = before.first + before.count
    while i > before.first and old.entries[i - 1].dest != state.cursor:
        i -= 1
    while i > before.first and not listed(new, now, state.cursor):
        i -= 1
        state.cursor = old.entries[i - 1].dest if i > before.first else NO_SLOT
    if state.cursor != NO_SLOT and not listed(new, now, state.cursor):
        state.cursor = NO_SLOT
