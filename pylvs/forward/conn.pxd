"""Room 3, conn: the connection table.

A pool of fixed size, allocated once and addressed by 32-bit indices (0 is nobody), so that there is no malloc after
start and no pointer inside: a table can be copied, dumped or handed over. A hash table of chains finds a connection
by the addresses of a packet in either direction; a NAT connection is entered twice, once for the client's packets and
once for the real server's replies. A timing wheel expires connections: touching one only moves its `expires`, and the
wheel looks again when it comes round, so no packet pays for a timer and no sweep ever stops the worker.

Assumes one owner (the worker); only the counts in `DestSlot` are shared. Mirrors the kernel's ip_vs_conn: lookup keys,
flags and their values, a connection counting as inactive until its state says otherwise.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pylvs.forward._sys cimport add32, likely, unlikely
from pylvs.forward.flowhash cimport flow_hash
from pylvs.forward.notes cimport Note
from pylvs.forward.packet cimport Flow, same16
from pylvs.forward.snapshot cimport NO_SLOT, DestSlot
from pylvs.forward.state cimport is_active


cdef enum:
    WHEEL_SHIFT = 28  # a tick is 2**28 ns, a quarter of a second
    WHEEL_TICKS = 1024  # the wheel's horizon, 275 s; longer timeouts go round again
    WHEEL_DUE = 1024  # the list of connections whose tick has come
    NOBODY = 0


cdef enum ConnFlags:
    # the kernel's values: they travel in synchronisation messages
    F_SYNC = 0x20
    F_HASHED = 0x40
    F_NO_OUTPUT = 0x80
    F_INACTIVE = 0x100
    F_OUT_SEQ = 0x200  # the server's sequence numbers are moved on
    F_NO_CPORT = 0x800  # the client's port is not known yet
    F_TEMPLATE = 0x1000
    F_ONE_PACKET = 0x2000
    # our own
    F_NOTED = 0x40000000  # it has a note: of an application helper or a persistence engine


cdef struct Conn:
    # first cache line: what a lookup compares and a packet changes
    uint8_t caddr[16]
    uint8_t vaddr[16]
    uint16_t cport
    uint16_t vport
    uint8_t proto
    uint8_t family
    uint8_t state
    uint8_t method
    uint32_t flags
    uint32_t dest  # slot, or NO_SLOT
    uint64_t expires  # ns
    uint32_t timeout  # ms
    uint32_t next_in  # hash chain of the client's direction
    # second: what a rewrite needs
    uint8_t daddr[16]
    uint16_t dport
    uint16_t reply_mtu
    uint32_t next_out  # hash chain of the server's direction
    uint32_t wheel_next
    uint32_t wheel_prev
    uint32_t packets  # client to server
    uint32_t control  # the template that this connection hangs on
    uint16_t wheel_slot
    uint16_t spare
    uint16_t address_delta  # checksum delta of VIP -> RIP; its complement undoes it
    uint16_t port_delta
    uint16_t reply_link  # next hop towards the client, valid while reply_generation is the fib's
    uint8_t reply_mac[6]
    uint32_t reply_generation
    uint32_t controlled  # connections that hang on this one


cdef enum Side:
    SIDE_NONE = 0
    SIDE_CLIENT  # the packet comes from the client
    SIDE_SERVER  # the packet is a real server's reply


cdef struct ConnTable:
    Conn* pool
    uint32_t capacity  # highest usable index
    uint32_t fresh  # indices from here on were never used
    uint32_t free  # list of used and freed ones, through wheel_next
    uint32_t count
    uint32_t* heads  # 2 * index + side - 1, plus 2; 0 is empty
    uint32_t mask
    uint64_t key0
    uint64_t key1
    uint32_t wheel[WHEEL_TICKS + 1]
    uint64_t hand  # next tick to look at
    DestSlot* dests
    Note* notes  # by index; those of connections with F_NOTED
    uint32_t unported  # entries with F_NO_CPORT


cdef inline uint64_t hash_of(ConnTable* t, Flow* flow) noexcept nogil:
    """The key of a packet's own direction."""
    return flow_hash(t.key0, t.key1, flow.family, flow.proto, flow.src, flow.sport, flow.dst, flow.dport)


cdef inline uint32_t find(ConnTable* t, Flow* flow, uint64_t h, uint8_t* side) noexcept nogil:
    """The connection that a packet belongs to and the side it comes from; NOBODY if there is none."""
    cdef uint32_t node = t.heads[h & t.mask]
    cdef Conn* c
    while node:
        c = &t.pool[node >> 1]
        if node & 1 == 0:
            if (
                c.cport == flow.sport and c.vport == flow.dport and c.proto == flow.proto and c.family == flow.family
                and not c.flags & F_TEMPLATE and same16(c.caddr, flow.src) and same16(c.vaddr, flow.dst)
            ):
                side[0] = SIDE_CLIENT
                return node >> 1
            node = c.next_in
        else:
            if (
                c.cport == flow.dport and c.dport == flow.sport and c.proto == flow.proto and c.family == flow.family
                and same16(c.caddr, flow.dst) and same16(c.daddr, flow.src)
            ):
                side[0] = SIDE_SERVER
                return node >> 1
            node = c.next_out
    side[0] = SIDE_NONE
    return NOBODY


cdef inline uint32_t find_template(
    ConnTable* t, uint8_t family, uint8_t proto, const uint8_t* client, const uint8_t* address, uint16_t port
) noexcept nogil:
    """The template of a (masked) client for a service; NOBODY if there is none."""
    cdef uint32_t node = t.heads[flow_hash(t.key0, t.key1, family, proto, client, 0, address, port) & t.mask]
    cdef Conn* c
    while node:
        c = &t.pool[node >> 1]
        if node & 1:
            node = c.next_out
            continue
        if (
            c.flags & F_TEMPLATE and c.vport == port and c.cport == 0 and c.proto == proto and c.family == family
            and same16(c.caddr, client) and same16(c.vaddr, address)
        ):
            return node >> 1
        node = c.next_in
    return NOBODY


cdef inline uint64_t client_hash(ConnTable* t, Conn* c) noexcept nogil:
    if unlikely(c.flags & F_TEMPLATE and c.flags & F_NOTED):
        return t.notes[c - t.pool].hash
    return flow_hash(t.key0, t.key1, c.family, c.proto, c.caddr, c.cport, c.vaddr, c.vport)


cdef inline uint64_t server_hash(ConnTable* t, Conn* c) noexcept nogil:
    return flow_hash(t.key0, t.key1, c.family, c.proto, c.daddr, c.dport, c.caddr, c.cport)


cdef inline void link_wheel(ConnTable* t, uint32_t index, uint32_t slot) noexcept nogil:
    cdef Conn* c = &t.pool[index]
    c.wheel_slot = <uint16_t>slot
    c.wheel_prev = NOBODY
    c.wheel_next = t.wheel[slot]
    if c.wheel_next:
        t.pool[c.wheel_next].wheel_prev = index
    t.wheel[slot] = index


cdef inline void unlink_wheel(ConnTable* t, Conn* c) noexcept nogil:
    if c.wheel_prev:
        t.pool[c.wheel_prev].wheel_next = c.wheel_next
    else:
        t.wheel[c.wheel_slot] = c.wheel_next
    if c.wheel_next:
        t.pool[c.wheel_next].wheel_prev = c.wheel_prev


cdef inline uint32_t wheel_slot(ConnTable* t, uint64_t expires) noexcept nogil:
    """The tick to look at a connection again: its expiry, or the horizon if that lies beyond."""
    cdef uint64_t tick = expires >> WHEEL_SHIFT
    if tick < t.hand:
        tick = t.hand
    elif tick >= t.hand + WHEEL_TICKS:
        tick = t.hand + WHEEL_TICKS - 1
    return <uint32_t>(tick & (WHEEL_TICKS - 1))


cdef inline uint32_t allocate(ConnTable* t) noexcept nogil:
    """An empty, unlinked connection; NOBODY if the table is full."""
    cdef uint32_t index = t.free
    if index:
        t.free = t.pool[index].wheel_next
    elif t.fresh <= t.capacity:
        index = t.fresh
        t.fresh += 1
    else:
        return NOBODY
    memset(&t.pool[index], 0, sizeof(Conn))
    t.pool[index].dest = NO_SLOT
    return index


cdef inline void insert(ConnTable* t, uint32_t index, bint both) noexcept nogil:
    """Enter a filled-in connection for the client's direction, and with `both` for the server's."""
    cdef Conn* c = &t.pool[index]
    cdef uint32_t* head = &t.heads[client_hash(t, c) & t.mask]
    c.next_in = head[0]
    head[0] = index << 1
    if both:
        head = &t.heads[server_hash(t, c) & t.mask]
        c.next_out = head[0]
        head[0] = (index << 1) | 1
    c.flags |= F_HASHED
    link_wheel(t, index, wheel_slot(t, c.expires))
    t.count += 1


cdef inline void unchain(ConnTable* t, uint32_t* head, uint32_t wanted) noexcept nogil:
    """Take one node out of a hash chain; nothing happens if it is not in it."""
    cdef uint32_t* at = head
    while at[0]:
        if at[0] == wanted:
            at[0] = t.pool[wanted >> 1].next_out if wanted & 1 else t.pool[wanted >> 1].next_in
            return
        at = &t.pool[at[0] >> 1].next_out if at[0] & 1 else &t.pool[at[0] >> 1].next_in


cdef inline void bind(ConnTable* t, Conn* c, uint32_t dest) noexcept nogil:
    """Point a connection at a real server and count it there; the server may thereby reach its upper threshold."""
    cdef DestSlot* slot = &t.dests[dest]
    c.dest = dest
    add32(&slot.references, 1)
    if c.flags & F_TEMPLATE:
        add32(&slot.persistent, 1)
    elif c.flags & F_INACTIVE:
        add32(&slot.inactive, 1)
    else:
        add32(&slot.active, 1)
    if slot.upper and slot.active + slot.inactive >= slot.upper:
        slot.overloaded = 1


cdef inline void unbind(ConnTable* t, Conn* c) noexcept nogil:
    """Undo `bind`, with the kernel's rule for leaving overload: below lower, or below three quarters of upper."""
    cdef DestSlot* slot
    cdef uint32_t total
    if c.dest == NO_SLOT:
        return
    slot = &t.dests[c.dest]
    if c.flags & F_TEMPLATE:
        add32(&slot.persistent, <uint32_t>-1)
    elif c.flags & F_INACTIVE:
        add32(&slot.inactive, <uint32_t>-1)
    else:
        add32(&slot.active, <uint32_t>-1)
    total = slot.active + slot.inactive
    if slot.lower:
        if total < slot.lower:
            slot.overloaded = 0
    elif slot.upper:
        if <uint64_t>total * 4 < <uint64_t>slot.upper * 3:
            slot.overloaded = 0
    elif slot.overloaded:
        slot.overloaded = 0
    add32(&slot.references, <uint32_t>-1)
    c.dest = NO_SLOT


cdef inline void remove(ConnTable* t, uint32_t index) noexcept nogil:
    """Take a connection out of the table, the wheel and its server's counts, and free it."""
    cdef Conn* c = &t.pool[index]
    if c.flags & F_HASHED:
        unchain(t, &t.heads[client_hash(t, c) & t.mask], index << 1)
        unchain(t, &t.heads[server_hash(t, c) & t.mask], (index << 1) | 1)
        unlink_wheel(t, c)
        t.count -= 1
    unbind(t, c)
    if unlikely(c.flags & F_NO_CPORT):
        t.unported -= 1
    if c.control:
        t.pool[c.control].controlled -= 1
    memset(c, 0, sizeof(Conn))
    c.wheel_next = t.free
    t.free = index


cdef inline void hang(ConnTable* t, Conn* c, uint32_t template) noexcept nogil:
    """Let a template control a connection: it lives at least as long."""
    c.control = template
    t.pool[template].controlled += 1


cdef inline void outdate(ConnTable* t, uint32_t index) noexcept nogil:
    """Make a template unfindable (its ports become 65535, as the kernel shows it); its timer runs on."""
    cdef Conn* c = &t.pool[index]
    cdef uint32_t* head
    if c.vport == 0xFFFF:
        return
    unchain(t, &t.heads[client_hash(t, c) & t.mask], index << 1)
    c.vport = 0xFFFF
    c.dport = 0xFFFF
    head = &t.heads[client_hash(t, c) & t.mask]
    c.next_in = head[0]
    head[0] = index << 1


cdef inline void evict(ConnTable* t, uint32_t index, bint whole) noexcept nogil:
    """Remove a connection before its time, and what controlled it if that controls nobody else: always if `whole`, else
    only what is no assured template."""
    cdef uint32_t control = t.pool[index].control
    remove(t, index)
    if control and not t.pool[control].controlled:
        if whole or not (t.pool[control].flags & F_TEMPLATE and t.pool[control].state & 1):
            remove(t, control)


cdef inline void touch(Conn* c, uint64_t now) noexcept nogil:
    """Start the timer anew; the wheel finds out by itself."""
    c.expires = now + <uint64_t>c.timeout * 1000000


cdef inline void set_state(ConnTable* t, Conn* c, uint8_t state, uint32_t timeout, uint64_t now) noexcept nogil:
    """Enter a state: its timeout, and whether the connection counts as active for its server.

    The wheel looks at a connection when the longest timeout so far would end; a shorter one is entered anew.
    """
    cdef bint active = is_active(c.proto, state)
    c.state = state
    if timeout < c.timeout and c.flags & F_HASHED:
        unlink_wheel(t, c)
        link_wheel(t, <uint32_t>(c - t.pool), wheel_slot(t, now + <uint64_t>timeout * 1000000))
    c.timeout = timeout
    if active == (c.flags & F_INACTIVE == 0):
        return
    if active:
        c.flags &= <uint32_t>~F_INACTIVE
    else:
        c.flags |= F_INACTIVE
    if c.dest != NO_SLOT:
        add32(&t.dests[c.dest].active, 1 if active else <uint32_t>-1)
        add32(&t.dests[c.dest].inactive, <uint32_t>-1 if active else 1)


cdef inline int expire_due(ConnTable* t, uint64_t now, int budget) noexcept nogil:
    """Empty the list of connections whose tick has come, as far as `budget` goes; return how many were looked at."""
    cdef uint32_t index
    cdef Conn* c
    cdef int seen = 0
    while t.wheel[WHEEL_DUE] and seen < budget:
        index = t.wheel[WHEEL_DUE]
        c = &t.pool[index]
        seen += 1
        if c.expires <= now and not c.controlled:
            remove(t, index)
            continue
        unlink_wheel(t, c)
        if c.expires <= now:  # the kernel lets an entry that controls others live on in steps of 60 s
            c.timeout = 60000
            touch(c, c.expires)
        link_wheel(t, index, wheel_slot(t, c.expires))
    return seen


cdef inline void collect(ConnTable* t, uint64_t tick) noexcept nogil:
    """Put the connections of a tick on the (empty) list of due ones."""
    cdef uint32_t index = t.wheel[tick & (WHEEL_TICKS - 1)]
    t.wheel[tick & (WHEEL_TICKS - 1)] = NOBODY
    t.wheel[WHEEL_DUE] = index
    while index:
        t.pool[index].wheel_slot = WHEEL_DUE
        index = t.pool[index].wheel_next


cdef inline int expire(ConnTable* t, uint64_t now, bint exact, int budget) noexcept nogil:
    """Remove connections whose time has come, looking at `budget` of them at the most; return how many it saw.

    A worker walks each tick once, when it is over, so that connections live up to a quarter of a second too long and
    never too short (the kernel's wheel is later still). `exact` looks at the present tick as well, as often as asked.
    """
    cdef uint64_t present = now >> WHEEL_SHIFT
    cdef int seen = expire_due(t, now, budget)
    if t.count == 0 and t.hand < present:
        t.hand = present
    while t.hand < present and seen < budget:
        t.hand += 1
        collect(t, t.hand - 1)
        # as at the end of that tick, so that what a long step in time spans happens in order
        seen += expire_due(t, ((t.hand << WHEEL_SHIFT) - 1) if t.hand < present else now, budget - seen)
    if exact and seen < budget:
        collect(t, present)
        seen += expire_due(t, now, budget - seen)
    return seen
