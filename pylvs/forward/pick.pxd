"""Room 4's last step, pick: the few ways to choose a real server.

A scheduler is plain Python that compiles to one of these; the rules are the kernel's, in the kernel's list order
(newest server first), so that one worker gives exactly its sequence. Cursors stand on a real server's slot and are
moved by `adopt` when the list changes.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from pylvs.forward.cache cimport (
    CacheEntry, Member, empty, forget, join, leave, outlived, recall, remember, use,
)
from pylvs.forward.flowhash cimport sip13
from pylvs.forward.packet cimport Flow, be32
from pylvs.forward.plane cimport Plane
from pylvs.forward.snapshot cimport (
    BY_DESTINATION, COST_CONNECTIONS, COST_DELAY, CURSOR_RESTART, FALLBACK, IDLE_FIRST, NO_SLOT, PICK_CACHE,
    PICK_CHOICE, PICK_CURSOR, PICK_FIRST, PICK_LEAST, PICK_TABLE, SETS, SIPHASH, SPILL, WITH_PORT,
    DestSlot, Entry, Pick, ServiceSlot, Snapshot, Svc,
)


cdef enum:
    GOLDEN_RATIO = 0x61C88647  # 2**32 less the golden section of it


cdef inline bint usable(Entry* entry, DestSlot* slots) noexcept nogil:
    """May it take new connections? Quiesced and overloaded servers may not."""
    return entry.weight > 0 and not slots[entry.dest].overloaded


cdef inline uint64_t overhead(DestSlot* slot) noexcept nogil:
    """What a connection costs: an active one as much as 256 inactive ones."""
    return (<uint64_t>slot.active << 8) + slot.inactive


cdef inline Entry* pick_least(Snapshot* s, Svc* svc, DestSlot* slots, uint8_t rule, uint8_t options) noexcept nogil:
    """The smallest cost by `rule`; ties go to the first in list order."""
    cdef Entry* best = NULL
    cdef Entry* entry
    cdef uint64_t cost
    cdef uint64_t best_cost = 0
    cdef uint32_t i
    cdef bint better
    for i in range(svc.first, svc.first + svc.count):
        entry = &s.entries[i]
        if not usable(entry, slots):
            continue
        if options & IDLE_FIRST and slots[entry.dest].active == 0:
            return entry
        cost = <uint64_t>slots[entry.dest].active + 1 if rule == COST_DELAY else overhead(&slots[entry.dest])
        if best is NULL:
            better = True
        elif rule == COST_CONNECTIONS:
            better = cost < best_cost
        else:
            better = best_cost * <uint64_t>entry.weight > cost * <uint64_t>best.weight
        if better:
            best = entry
            best_cost = cost
    return best


cdef inline Entry* pick_first(Snapshot* s, Svc* svc, DestSlot* slots, uint8_t options) noexcept nogil:
    """The highest weight, the first in list order on ties; with SPILL not one that is busier than its weight."""
    cdef Entry* best = NULL
    cdef Entry* entry
    cdef uint32_t i
    for i in range(svc.first, svc.first + svc.count):
        entry = &s.entries[i]
        if not usable(entry, slots) or (options & SPILL and slots[entry.dest].active > <uint32_t>entry.weight):
            continue
        if best is NULL or entry.weight > best.weight:
            best = entry
    return best


cdef inline uint64_t draw(uint64_t* state, uint64_t below) noexcept nogil:
    """A number from 0 to below - 1 (splitmix64, Steele, Lea and Flood 2014); far smaller than 2**64, so fair enough."""
    cdef uint64_t z
    state[0] += <uint64_t>0x9E3779B97F4A7C15
    z = state[0]
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return (z ^ (z >> 31)) % below


cdef inline Entry* pick_choice(Snapshot* s, Svc* svc, DestSlot* slots, uint64_t* random) noexcept nogil:
    """Two draws by weight, then the one with fewer connections for its weight; the first draw wins ties."""
    cdef Entry* entry
    cdef Entry* one = NULL
    cdef Entry* other = NULL
    cdef int64_t total = 0
    cdef int64_t r1, r2
    cdef uint32_t i
    for i in range(svc.first, svc.first + svc.count):
        if usable(&s.entries[i], slots):
            total += s.entries[i].weight
    if total == 0:
        return NULL
    r1 = <int64_t>draw(random, <uint64_t>total + 1)  # 0 to total: the first server has a chance more than its weight
    r2 = <int64_t>draw(random, <uint64_t>total + 1)
    for i in range(svc.first, svc.first + svc.count):
        entry = &s.entries[i]
        if not usable(entry, slots):
            continue
        r1 -= entry.weight
        r2 -= entry.weight
        if r1 <= 0 and one is NULL:
            one = entry
        if r2 <= 0 and other is NULL:
            other = entry
        if one is not NULL and other is not NULL:
            break
    if one is NULL or other is NULL:  # another worker has just overloaded or relieved a server
        return one if other is NULL else other
    if overhead(&slots[one.dest]) * <uint64_t>other.weight > overhead(&slots[other.dest]) * <uint64_t>one.weight:
        return other
    return one


# ------------------------------------------------------------------------------------------------- tables and caches


cdef inline uint32_t fold(const uint8_t* address, bint v6) noexcept nogil:
    """An address as one number: IPv4 itself, the exclusive or of an IPv6 address's four words."""
    if not v6:
        return be32(address + 12)
    return be32(address) ^ be32(address + 4) ^ be32(address + 8) ^ be32(address + 12)


cdef inline uint32_t table_slot(Pick* pick, uint32_t key, uint32_t offset) noexcept nogil:
    """The slot of a key, or the slot to look at `offset` steps further on."""
    cdef uint64_t k = <uint64_t>2654435761  # both halves of the key of the kernel's first Maglev hash
    cdef uint32_t size = pick.size
    cdef int bits = 0
    if pick.options & SIPHASH:
        return <uint32_t>sip13(k, k, NULL, 0, (<uint64_t>4 << 56) | <uint32_t>(key + offset)) % size
    while size > 1:
        size >>= 1
        bits += 1
    if bits == 0:
        return 0
    return (offset + (<uint32_t>(key * <uint32_t>GOLDEN_RATIO) >> (32 - bits))) & (pick.size - 1)


cdef inline Entry* slot_entry(Snapshot* s, Svc* svc, uint32_t slot) noexcept nogil:
    """The server that owns a slot of the table; NULL if nobody does."""
    cdef uint32_t position = svc.pick.slots[slot]
    return &s.entries[svc.first + position] if position < svc.count else NULL


cdef inline Entry* pick_table(Snapshot* s, Svc* svc, DestSlot* slots, Flow* flow) noexcept nogil:
    """The owner of the flow's slot; with FALLBACK the first usable one on the kernel's way through the table."""
    cdef uint8_t options = svc.pick.options
    cdef uint32_t key, first, i
    cdef Entry* entry
    if svc.pick.size == 0:
        return NULL
    key = fold(flow.dst, flow.family == 6) if options & BY_DESTINATION else fold(flow.src, flow.family == 6)
    if options & WITH_PORT:
        key += flow.sport
    first = table_slot(&svc.pick, key, 0)
    entry = slot_entry(s, svc, first)
    if entry is NULL or usable(entry, slots):
        return entry
    if options & FALLBACK:
        for i in range(svc.pick.size):
            entry = slot_entry(s, svc, table_slot(&svc.pick, key, (i + first) % svc.pick.size))
            if entry is NULL or usable(entry, slots):
                return entry
    return NULL


cdef inline Entry* entry_of(Snapshot* s, Svc* svc, uint32_t dest) noexcept nogil:
    """A server's entry in the list; NULL if it is not in it now."""
    cdef uint32_t i
    for i in range(svc.first, svc.first + svc.count):
        if s.entries[i].dest == dest:
            return &s.entries[i]
    return NULL


cdef inline bint crowded(Snapshot* s, Svc* svc, DestSlot* slots, Entry* entry) noexcept nogil:
    """Has it more active connections than its weight, while another has fewer than half of its own?"""
    cdef uint32_t i
    if slots[entry.dest].active <= <uint32_t>entry.weight:
        return False
    for i in range(svc.first, svc.first + svc.count):
        if <uint64_t>slots[s.entries[i].dest].active * 2 < <uint64_t>s.entries[i].weight:
            return True
    return False


cdef inline Entry* lightest(Plane* plane, Svc* svc, uint32_t member) noexcept nogil:
    """Of a set: the smallest cost per weight among those that may be used."""
    cdef Member* m
    cdef Entry* entry
    cdef Entry* best = NULL
    while member:
        m = &plane.cache.members[member]
        member = m.next
        entry = entry_of(plane.snapshot, svc, m.dest)
        if entry is NULL or not usable(entry, plane.slots):
            continue
        if best is NULL or (
            overhead(&plane.slots[best.dest]) * <uint64_t>entry.weight
            > overhead(&plane.slots[entry.dest]) * <uint64_t>best.weight
        ):
            best = entry
    return best


cdef inline uint32_t heaviest(Plane* plane, uint32_t member) noexcept nogil:
    """Of a set: the slot with the greatest cost per weight, deleted and overloaded servers included."""
    cdef Member* m
    cdef DestSlot* slot
    cdef DestSlot* worst = NULL
    cdef uint32_t dest = NO_SLOT
    while member:
        m = &plane.cache.members[member]
        member = m.next
        slot = &plane.slots[m.dest]
        if slot.weight == 0:
            continue
        if worst is NULL or overhead(worst) * <uint64_t>slot.weight < overhead(slot) * <uint64_t>worst.weight:
            worst = slot
            dest = m.dest
    return dest


cdef inline Entry* remembered(Plane* plane, Svc* svc, uint32_t index, uint64_t expiration) noexcept nogil:
    """The server that an address is known to have, if it can still be used."""
    cdef CacheEntry* e = &plane.cache.entries[index]
    cdef Entry* entry
    cdef uint32_t dest
    if not svc.pick.options & SETS:
        entry = entry_of(plane.snapshot, svc, plane.cache.members[e.members].dest) if e.members else NULL
        return entry if entry is not NULL and entry.weight > 0 else NULL  # thresholds do not count here
    entry = lightest(plane, svc, e.members)
    if e.count > 1 and plane.now > e.changed + expiration:
        dest = heaviest(plane, e.members)
        if dest != NO_SLOT:
            leave(&plane.cache, plane.slots, index, dest, plane.now)
    return entry


cdef inline Entry* pick_cache(Plane* plane, Svc* svc, Flow* flow) noexcept nogil:
    """The server that the destination address had before, unless it is crowded; else the least loaded, remembered."""
    cdef ServiceSlot* state = &plane.cursors[svc.slot]
    cdef uint64_t key = plane.table.key0
    cdef bint sets = svc.pick.options & SETS
    cdef uint64_t expiration = plane.settings.lblcr_expiration if sets else plane.settings.lblc_expiration
    cdef uint32_t index = recall(&plane.cache, key, svc.slot, flow.dst)
    cdef Entry* entry
    if index and outlived(&plane.cache.entries[index], state.bound, expiration, plane.now):
        forget(&plane.cache, plane.slots, key, index)
        index = 0
    if index:
        use(&plane.cache, index, plane.now)
        entry = remembered(plane, svc, index, expiration)
        if entry is not NULL and not crowded(plane.snapshot, svc, plane.slots, entry):
            return entry
    entry = pick_least(plane.snapshot, svc, plane.slots, svc.pick.cost, 0)
    if entry is NULL:
        return NULL
    if not index:
        index = remember(&plane.cache, plane.slots, key, svc.slot, &state.cached, flow.dst, plane.now)
    elif not sets:
        empty(&plane.cache, plane.slots, index)
    join(&plane.cache, plane.slots, key, index, entry.dest, plane.now)
    return entry


# --------------------------------------------------------------------------------------------------------- cursors


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


cdef inline Entry* choose_server(Plane* plane, Svc* svc, Flow* flow) noexcept nogil:
    """Ask the service's pick for a flow (source, source port, destination); NULL if no real server may take it."""
    cdef Snapshot* s = plane.snapshot
    if svc.pick.kind == PICK_CURSOR:
        return pick_cursor(s, svc, plane.slots, &plane.cursors[svc.slot])
    if svc.pick.kind == PICK_LEAST:
        return pick_least(s, svc, plane.slots, svc.pick.cost, svc.pick.options)
    if svc.pick.kind == PICK_TABLE:
        return pick_table(s, svc, plane.slots, flow)
    if svc.pick.kind == PICK_FIRST:
        return pick_first(s, svc, plane.slots, svc.pick.options)
    if svc.pick.kind == PICK_CHOICE:
        return pick_choice(s, svc, plane.slots, &plane.random)
    if svc.pick.kind == PICK_CACHE:
        return pick_cache(plane, svc, flow)
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
