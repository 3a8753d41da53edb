"""The Python door of the data plane: what Python builds for it, asks of it and reads from it.

`Slots` holds what all workers share; `Snapshot` and `Fib` are immutable and built from Python tuples; `Core` is one
worker's plane. Addresses cross the door as 16 bytes (IPv4 mapped), times as integer nanoseconds, counts as ints.
Everything hot lives in the .pxd files beside this one; see `pipeline.pxd` for a frame's way through them.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from pylvs.forward cimport crc32c as crc
from pylvs.forward cimport ftp
from pylvs.forward._sys cimport acquire, load32, release
from pylvs.forward.cache cimport CACHE_ENTRIES, CACHE_HEADS, CACHE_MEMBERS, CacheEntry, Member
from pylvs.forward.conn cimport F_NOTED, F_TEMPLATE, Conn, expire
from pylvs.forward.defence cimport Defence, defend
from pylvs.forward.fib cimport (
    MAX_LINKS, NO_LINK, Fib as FibStruct, FibLink, FibNeighbour, FibRange, FibRoute, neighbour_slot,
)
from pylvs.forward.mailbox cimport (
    ADOPT_FIB, ADOPT_SNAPSHOT, DUMP, FLUSH, TUNE, ZERO, Command, Mailbox, execute, flush_slice, post,
)
from pylvs.forward.notes cimport Note
from pylvs.forward.packet cimport LAST_REASON, SCTP, TCP, Frame
from pylvs.forward.pipeline cimport BATCH, Result, process_batch
from pylvs.forward.plane cimport (
    ARENA_SIZE, HEADROOM, HELD_FRAMES, HELD_SIZE, NEEDS, OUT_CAPACITY, SPILL_SIZE, DestLocal, Plane, Settings,
    TxFrame, retry_held,
)
from pylvs.forward.reassembly cimport DATAGRAM_SIZE, DATAGRAMS, Reassembly, expire_datagrams
from pylvs.forward.sctp cimport LAST_EVENT, LAST_SCTP_STATE, next_sctp
from pylvs.forward.snapshot cimport (
    MAX_DESTS, MAX_SERVICES, NO_SLOT, DestSlot, Entry, MarkRule, ServiceSlot, Snapshot as SnapshotStruct, Svc,
    address_slot, mark_address,
)
from pylvs.forward.state cimport LAST_TCP_STATE, SECURE, Timeouts, default_timeouts, next_tcp
from pylvs.forward.stats cimport Counters, Totals

VERDICTS = ("", "forward", "pass", "reply", "drop", "held")
REASONS = (
    "", "truncated", "bad_length", "bad_version", "bad_checksum", "bad_offload", "header_chain", "fragment",
    "dest_gone", "ttl_exceeded", "too_big", "no_route", "no_neighbour", "table_full", "no_server", "link_down",
    "tx_full", "icmp_limited", "martian", "drop_packet", "fragment_overlap", "fragment_timeout", "fragment_flood",
    "bad_option", "loopback_server", "no_call_id",
)
assert len(REASONS) == LAST_REASON
TCP_STATES = (
    "NONE", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT", "TIME_WAIT", "CLOSE", "CLOSE_WAIT", "LAST_ACK",
    "LISTEN", "SYNACK",
)
SCTP_STATES = (
    "NONE", "INIT1", "INIT", "C-SENT", "C-REPLIED", "C-WAIT", "COOKIE", "C-ECHOED", "ESTABLISHED", "S-SENT",
    "S-RECEIVED", "S-ACK-SENT", "REJECTED", "CLOSED",
)
DEST_CAPACITY = MAX_DESTS
SERVICE_CAPACITY = MAX_SERVICES
LINK_CAPACITY = MAX_LINKS


cdef enum:
    FLUSH_SLICE = 4096  # entries that a worker looks at between two batches


cdef int run_batch(Plane* plane, Frame* frames, int count, uint64_t now, Result* results) noexcept nogil:
    return process_batch(plane, frames, count, now, results)


cdef void begin(Plane* plane) noexcept nogil:
    """Forget what the outbox held: it has been sent."""
    plane.out_count = 0
    plane.arena_used = 0


cdef void run_timers(Plane* plane, uint64_t now, bint exact, int budget) noexcept nogil:
    """Expire connections, defend the table and see to held frames; what falls due is in the outbox."""
    plane.now = now
    expire(&plane.table, now, exact, budget)
    if now >= plane.defence.next_tick or plane.defence.unseen:
        defend(&plane.defence, &plane.table, now, <uint32_t>budget)
    if plane.flush_next:
        flush_slice(plane, FLUSH_SLICE if not exact else 0xFFFFFFFF)
    expire_datagrams(plane.reassembly, &plane.totals, now)
    if plane.held_count:
        retry_held(plane)


cdef void run_command(Plane* plane, Mailbox* box) noexcept nogil:
    """Execute the waiting command, if there is one; the caller reports it done."""
    execute(plane, box.command)


cdef void* reserve(size_t size) except NULL:
    """Zeroed memory that costs nothing until it is touched."""
    cdef void* p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if p == MAP_FAILED:
        raise MemoryError(f"cannot reserve {size >> 20} MiB; use a smaller connection table")
    return p


cdef uint32_t table_size(Py_ssize_t count):
    """A power of two with room to spare for open addressing."""
    cdef uint32_t size = 8
    while size < 2 * count:
        size *= 2
    return size


def mark_key(uint8_t family, uint32_t mark):
    """The 16 bytes under which the service of a firewall mark is found."""
    cdef uint8_t key[16]
    mark_address(key, family, mark)
    return _address(key)


cdef class Slots:
    """Counts and thresholds of real servers, shared by all workers and outliving snapshots."""

    def __cinit__(self):
        self.slots = <DestSlot*>reserve(MAX_DESTS * sizeof(DestSlot))

    def __dealloc__(self):
        if self.slots is not NULL:
            munmap(self.slots, MAX_DESTS * sizeof(DestSlot))

    def set(
        self, uint32_t slot, bint available, uint32_t weight, uint32_t upper, uint32_t lower, uint32_t method,
        uint32_t port, bint clear_overload,
    ):
        """Set what the administrator decides; the counts stay."""
        cdef DestSlot* s = &self.slots[slot]
        s.available = available
        s.weight = weight
        s.upper = upper
        s.lower = lower
        s.method = method
        s.port = port
        if clear_overload:
            s.overloaded = 0

    def set_tunnel(self, uint32_t slot, uint8_t kind, uint16_t port, uint8_t flags):
        """Set how packets to it are wrapped: `kind` 0 ipip, 1 gue, 2 gre; `flags` 1 checksum, 2 remote checksum."""
        cdef DestSlot* s = &self.slots[slot]
        s.tun_type = kind
        s.tun_flags = flags
        s.tun_port = port

    def clear(self, uint32_t slot):
        """Make a slot fit for another real server."""
        memset(&self.slots[slot], 0, sizeof(DestSlot))

    def get(self, uint32_t slot):
        """-> (active, inactive, persistent, references, overloaded)"""
        cdef DestSlot* s = &self.slots[slot]
        return load32(&s.active), load32(&s.inactive), load32(&s.persistent), load32(&s.references), bool(s.overloaded)


cdef class Snapshot:
    """A compiled configuration. `services` is a list of (protocol number, family, address16, port, slot, one_packet,
    mark, persistent ms, mask16, pick, entries, engine), where `pick` is (kind, cost, rule, step, top, epoch, fresh,
    level, options, table of list positions as 32-bit words), `engine` whether templates are by Call-ID, and `entries` a
    list of (slot, weight, method, family, port, address16) in list order; a firewall-mark service has protocol 0 and
    `mark_key` as its address. `marks` is a list of (mark, family, protocol, low port, high port, source16, mask16,
    destination16, mask16)."""

    cdef SnapshotStruct s
    cdef object keep

    def __cinit__(self, list services, list marks, uint32_t generation=0, bint guarded=False):
        cdef Py_ssize_t count = sum([len(service[10]) for service in services])
        cdef Svc* svc
        cdef Entry* entry
        cdef uint32_t at = 0
        cdef uint32_t filled = 0
        cdef uint32_t i
        cdef bytes address, table
        self.s.service_count = len(services)
        self.s.generation = generation
        self.s.guarded = guarded
        self._take_marks(marks)
        self.s.services = <Svc*>self._new(len(services) * sizeof(Svc))
        self.s.entries = <Entry*>self._new(count * sizeof(Entry))
        self.s.tables = <uint32_t*>self._new(sum([len(service[9][9]) for service in services]))
        self.s.index_mask = table_size(len(services)) - 1
        self.s.vip_mask = self.s.index_mask
        self.s.reply_mask = table_size(count) - 1
        self.s.index = <uint32_t*>self._new((self.s.index_mask + 1) * 4)
        self.s.vips = <uint32_t*>self._new((self.s.vip_mask + 1) * 4)
        self.s.replies = <uint32_t*>self._new((self.s.reply_mask + 1) * 4)
        self.s.masked = <uint32_t*>self._new((self.s.reply_mask + 1) * 4)
        memset(self.s.masked, 0xFF, (self.s.reply_mask + 1) * 4)
        self.s.reply_proto = <uint8_t*>self._new(self.s.reply_mask + 1)
        memset(self.s.index, 0xFF, (self.s.index_mask + 1) * 4)
        memset(self.s.vips, 0xFF, (self.s.vip_mask + 1) * 4)
        memset(self.s.replies, 0xFF, (self.s.reply_mask + 1) * 4)
        for n, service in enumerate(services):
            proto, family, address, port, slot, one_packet, mark, persistent, mask, pick = service[:10]
            entries, engine = service[10:]
            svc = &self.s.services[n]
            svc.proto = proto
            svc.family = family
            self.s.serves[svc.family & 7] = True
            svc.port = port
            svc.slot = slot
            svc.one_packet = one_packet
            svc.engine = engine
            self.s.any_engine |= svc.engine
            svc.mark = mark
            svc.persistent = persistent
            memcpy(svc.mask, <const uint8_t*>(<bytes>mask), 16)
            memcpy(svc.address, <const uint8_t*>address, 16)
            (svc.pick.kind, svc.pick.cost, svc.pick.rule, svc.pick.step, svc.pick.top, svc.pick.epoch,
             svc.pick.fresh, svc.pick.level, svc.pick.options, table) = pick
            svc.pick.slots = self.s.tables + filled
            svc.pick.size = <uint32_t>(len(table) // 4)
            memcpy(svc.pick.slots, <const uint8_t*>table, len(table))
            filled += svc.pick.size
            svc.first = at
            svc.count = len(entries)
            for dest, weight, method, rip_family, rip_port, address in entries:
                entry = &self.s.entries[at]
                entry.dest = dest
                entry.weight = weight
                entry.method = method
                entry.family = rip_family
                entry.port = rip_port
                memcpy(entry.address, <const uint8_t*>address, 16)
                if method == 0:
                    i = address_slot(0, entry.address, 0) & self.s.reply_mask
                    while self.s.masked[i] != NO_SLOT:
                        i = (i + 1) & self.s.reply_mask
                    self.s.masked[i] = at
                    i = address_slot(svc.proto, entry.address, entry.port) & self.s.reply_mask
                    while self.s.replies[i] != NO_SLOT:
                        i = (i + 1) & self.s.reply_mask
                    self.s.replies[i] = at
                    self.s.reply_proto[i] = svc.proto
                at += 1
            if port == 0 and proto:
                self.s.any_port_zero = True
            if port == 21 and proto == TCP:
                self.s.any_ftp = True
            i = address_slot(svc.proto, svc.address, svc.port) & self.s.index_mask
            while self.s.index[i] != NO_SLOT:
                i = (i + 1) & self.s.index_mask
            self.s.index[i] = n
            if not proto:
                continue
            i = address_slot(0, svc.address, 0) & self.s.vip_mask
            while self.s.vips[i] != NO_SLOT:
                i = (i + 1) & self.s.vip_mask
            self.s.vips[i] = n

    cdef void _take_marks(self, list marks) except *:
        cdef MarkRule* rule
        self.s.marks = <MarkRule*>self._new(len(marks) * sizeof(MarkRule))
        self.s.mark_count = len(marks)
        for n, (mark, family, proto, low, high, source, source_mask, destination, destination_mask) in enumerate(marks):
            rule = &self.s.marks[n]
            rule.mark = mark
            rule.family = family
            rule.proto = proto
            rule.low = low
            rule.high = high
            memcpy(rule.source, <const uint8_t*>(<bytes>source), 16)
            memcpy(rule.source_mask, <const uint8_t*>(<bytes>source_mask), 16)
            memcpy(rule.destination, <const uint8_t*>(<bytes>destination), 16)
            memcpy(rule.destination_mask, <const uint8_t*>(<bytes>destination_mask), 16)

    cdef void* _new(self, size_t size) except NULL:
        cdef void* p = calloc(1, size + 64)
        if p is NULL:
            raise MemoryError("no memory for a configuration snapshot")
        return p

    def __dealloc__(self):
        free(self.s.services)
        free(self.s.marks)
        free(self.s.entries)
        free(self.s.tables)
        free(self.s.index)
        free(self.s.vips)
        free(self.s.replies)
        free(self.s.masked)
        free(self.s.reply_proto)


cdef class Fib:
    """The host's links, routes and neighbours. `links` is a list of (id, mac6, mtu, up, loopback, source4, source6),
    `routes` of (kind, onlink, link id, mtu, gateway16, source16), `ranges` of (first16, route index) sorted and
    starting at zero, `neighbours` of (address16, mac6, link id)."""

    cdef FibStruct* f

    def __cinit__(
        self, list links, list routes, list ranges, list neighbours, uint32_t generation, bint forwarding4,
        bint forwarding6,
    ):
        cdef FibLink* link
        cdef FibRoute* route
        cdef bytes b, c
        cdef uint32_t i
        self.f = <FibStruct*>self._new(sizeof(FibStruct))
        self.f.generation = generation
        self.f.forwarding4 = forwarding4
        self.f.forwarding6 = forwarding6
        for number, mac, mtu, up, loopback, source4, source6 in links:
            link = &self.f.links[<int>number]
            b = mac
            memcpy(link.mac, <const uint8_t*>b, 6)
            link.mtu = mtu
            link.up = up
            link.loopback = loopback
            if loopback:
                self.f.loopback = number
            b = source4
            c = source6
            memcpy(link.source4, <const uint8_t*>b, 16)
            memcpy(link.source6, <const uint8_t*>c, 16)
        self.f.routes = <FibRoute*>self._new(len(routes) * sizeof(FibRoute))
        for n, (kind, onlink, number, mtu, gateway, source) in enumerate(routes):
            route = &self.f.routes[n]
            route.kind = kind
            route.onlink = onlink
            route.link = number
            route.mtu = mtu
            b = gateway
            c = source
            memcpy(route.gateway, <const uint8_t*>b, 16)
            memcpy(route.source, <const uint8_t*>c, 16)
        self.f.ranges = <FibRange*>self._new(len(ranges) * sizeof(self.f.ranges[0]))
        self.f.range_count = len(ranges)
        for n, (first, index) in enumerate(ranges):
            b = first
            memcpy(self.f.ranges[n].first, <const uint8_t*>b, 16)
            self.f.ranges[n].route = index
        self.f.neighbour_mask = table_size(len(neighbours)) - 1
        self.f.neighbours = <FibNeighbour*>self._new(
            (self.f.neighbour_mask + 1) * sizeof(self.f.neighbours[0])
        )
        for i in range(self.f.neighbour_mask + 1):
            self.f.neighbours[i].link = NO_LINK
        for address, mac, number in neighbours:
            b = address
            c = mac
            i = neighbour_slot(<const uint8_t*>b, number) & self.f.neighbour_mask
            while self.f.neighbours[i].link != NO_LINK:
                i = (i + 1) & self.f.neighbour_mask
            memcpy(self.f.neighbours[i].address, <const uint8_t*>b, 16)
            memcpy(self.f.neighbours[i].mac, <const uint8_t*>c, 6)
            self.f.neighbours[i].link = number

    cdef void* _new(self, size_t size) except NULL:
        cdef void* p = calloc(1, size + 64)
        if p is NULL:
            raise MemoryError("no memory for the routing view")
        return p

    def __dealloc__(self):
        if self.f is not NULL:
            free(self.f.routes)
            free(self.f.ranges)
            free(self.f.neighbours)
            free(self.f)


cdef class Core:
    """One worker's data plane. `capacity` connections, `key` 16 bytes that seed the flow hash."""

    def __cinit__(self, Slots slots not None, uint32_t capacity, bytes key not None, Fib fib not None):
        cdef uint32_t heads = 16
        cdef Plane* p
        cdef int i
        if len(key) != 16:
            raise ValueError("the hash key is 16 bytes")
        if not 1 <= capacity <= 1 << 27:
            raise ValueError(f"a connection table of {capacity} entries is out of range; use 1 to {1 << 27}")
        while heads < 2 * capacity:
            heads *= 2
        self.slots = slots
        self.capacity = capacity
        self.plane = p = <Plane*>reserve(sizeof(Plane))
        self.box = <Mailbox*>reserve(sizeof(Mailbox))
        p.table.pool = <Conn*>reserve(<size_t>(capacity + 1) * sizeof(Conn))
        p.table.notes = <Note*>reserve(<size_t>(capacity + 1) * sizeof(Note))
        p.table.heads = <uint32_t*>reserve(<size_t>heads * 4)
        p.table.mask = heads - 1
        p.table.capacity = capacity
        p.table.fresh = 1
        memcpy(&p.table.key0, <const uint8_t*>key, 8)
        memcpy(&p.table.key1, <const uint8_t*>key + 8, 8)
        p.table.dests = slots.slots
        p.slots = slots.slots
        p.dests = <DestLocal*>reserve(MAX_DESTS * sizeof(DestLocal))
        p.cursors = <ServiceSlot*>reserve(MAX_SERVICES * sizeof(ServiceSlot))
        p.cache.entries = <CacheEntry*>reserve(<size_t>(CACHE_ENTRIES + 1) * sizeof(CacheEntry))
        p.cache.heads = <uint32_t*>reserve(CACHE_HEADS * 4)
        p.cache.members = <Member*>reserve(<size_t>(CACHE_MEMBERS + 1) * sizeof(Member))
        p.cache.fresh = 1
        p.cache.fresh_member = 1
        p.random = p.table.key0 ^ p.table.key1
        p.services = <Counters*>reserve(MAX_SERVICES * sizeof(Counters))
        p.out = <TxFrame*>reserve(OUT_CAPACITY * sizeof(TxFrame))
        p.arena = <uint8_t*>reserve(ARENA_SIZE + SPILL_SIZE)
        for i in range(HELD_FRAMES):
            p.held[i].buffer = <uint8_t*>reserve(HELD_SIZE)
        p.reassembly = <Reassembly*>reserve(sizeof(Reassembly))
        p.reassembly.key0 = p.table.key0
        p.reassembly.key1 = p.table.key1
        for i in range(DATAGRAMS):
            p.reassembly.places[i].data = <uint8_t*>reserve(DATAGRAM_SIZE)
        default_timeouts(&p.timeouts)
        memcpy(&p.defence.random, <const uint8_t*>key, 8)
        p.defence.random |= 1
        p.settings.conn_reuse_mode = 1
        p.settings.pmtu_disc = 1
        p.settings.lblc_expiration = p.settings.lblcr_expiration = <uint64_t>86400 * 1000000000
        p.watch_client = <void*>ftp.watch_client
        p.watch_server = <void*>ftp.watch_server
        p.icmp_tokens = 1000000000
        self.adopt_fib(fib)
        self.adopt(Snapshot([], []))

    def __dealloc__(self):
        cdef Plane* p = self.plane
        cdef int i
        if p is NULL:
            return
        munmap(p.table.pool, <size_t>(self.capacity + 1) * sizeof(Conn))
        munmap(p.table.notes, <size_t>(self.capacity + 1) * sizeof(Note))
        munmap(p.table.heads, <size_t>(p.table.mask + 1) * 4)
        munmap(p.dests, MAX_DESTS * sizeof(DestLocal))
        munmap(p.cursors, MAX_SERVICES * sizeof(ServiceSlot))
        munmap(p.cache.entries, <size_t>(CACHE_ENTRIES + 1) * sizeof(CacheEntry))
        munmap(p.cache.heads, CACHE_HEADS * 4)
        munmap(p.cache.members, <size_t>(CACHE_MEMBERS + 1) * sizeof(Member))
        munmap(p.services, MAX_SERVICES * sizeof(Counters))
        munmap(p.out, OUT_CAPACITY * sizeof(TxFrame))
        munmap(p.arena, ARENA_SIZE + SPILL_SIZE)
        for i in range(HELD_FRAMES):
            munmap(p.held[i].buffer, HELD_SIZE)
        if p.reassembly is not NULL:
            for i in range(DATAGRAMS):
                munmap(p.reassembly.places[i].data, DATAGRAM_SIZE)
            munmap(p.reassembly, sizeof(Reassembly))
        munmap(p, sizeof(Plane))
        munmap(self.box, sizeof(Mailbox))

    cdef void _post(self, Command* command) noexcept:
        cdef Mailbox* box = self.box
        cdef Plane* plane = self.plane
        with nogil:
            post(box, plane, command)

    # -------------------------------------------------------------------------------------------- what it works by

    def adopt(self, Snapshot snapshot not None):
        """Work by another configuration from the next batch on; connections stay."""
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.kind = ADOPT_SNAPSHOT
        command.pointer = &snapshot.s
        self._post(&command)
        self.snapshot = snapshot  # the old one is freed now that nobody looks at it

    def adopt_fib(self, Fib fib not None):
        """Work by another view of the host from the next batch on."""
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.kind = ADOPT_FIB
        command.pointer = fib.f
        self._post(&command)
        self.fib = fib

    def tune(self, list tcp, uint64_t udp, settings):
        """Set all timeouts (milliseconds, TCP by state) and the settings that the core knows."""
        cdef Command command
        cdef Timeouts timeouts
        cdef Settings s
        cdef Defence defence
        cdef int i
        default_timeouts(&timeouts)
        for i in range(<int>LAST_TCP_STATE):
            timeouts.tcp[i] = tcp[i]
        timeouts.udp = <uint32_t>udp
        memset(&defence, 0, sizeof(defence))
        defence.amemthresh = settings["amemthresh"]
        defence.am_droprate = settings["am_droprate"]
        defence.drop_entry = settings["drop_entry"]
        defence.drop_packet = settings["drop_packet"]
        defence.secure_tcp = settings["secure_tcp"]
        s.sloppy_sctp = settings["sloppy_sctp"] != 0
        s.sloppy_tcp = settings["sloppy_tcp"] != 0
        s.expire_nodest_conn = settings["expire_nodest_conn"] != 0
        s.conn_reuse_mode = <uint32_t>(settings["conn_reuse_mode"] & 0xFFFFFFFF)
        s.nat_icmp_send = settings["nat_icmp_send"] != 0
        s.pmtu_disc = settings["pmtu_disc"] != 0
        s.expire_quiescent_template = settings["expire_quiescent_template"] != 0
        s.schedule_icmp = settings["schedule_icmp"] != 0
        s.lblc_expiration = <uint64_t>max(settings["lblc_expiration"], 0) * 1000000000
        s.lblcr_expiration = <uint64_t>max(settings["lblcr_expiration"], 0) * 1000000000
        s.ip_vs_ftp = settings["ip_vs_ftp"]
        memset(&command, 0, sizeof(command))
        command.kind = TUNE
        command.pointer = &timeouts
        command.other = &s
        command.third = &defence
        self._post(&command)

    @property
    def short_of_memory(self):
        """Are fewer entries of the connection table free than `amemthresh` asks for? Looked at once a second."""
        return bool(self.plane.defence.short_of_memory)

    def flush_unavailable(self):
        """Remove the connections of deleted real servers: a worker in slices between its batches, else it
        is done on return."""
        cdef Command command
        memset(&command, 0, sizeof(command))
        command.kind = FLUSH
        self._post(&command)
        if not acquire(&self.box.attached):
            flush_slice(self.plane, 0xFFFFFFFF)

    def zero(self, slot, list dests):
        """Set counters to zero: those of a service and its real servers; slot None: the totals."""
        cdef Command command
        cdef uint32_t* slots = <uint32_t*>calloc(len(dests) + 1, 4)
        if slots is NULL:
            raise MemoryError()
        for i, dest in enumerate(dests):
            slots[i] = dest
        memset(&command, 0, sizeof(command))
        command.kind = ZERO
        command.pointer = slots
        command.count = len(dests)
        command.first = NO_SLOT if slot is None else slot
        self._post(&command)
        free(slots)

    # ------------------------------------------------------------------------------------------------ what it knows

    def connections(self):
        """All connections, as tuples (index, protocol, family, state, method, flags, caddr16, cport, vaddr16, vport,
        daddr16, dport, dest slot, expires ns, timeout ms, packets, engine data); read in slices, between batches."""
        cdef Command command
        cdef uint32_t slice_size = 1024
        cdef Conn* conns = <Conn*>calloc(slice_size, sizeof(Conn))
        cdef Note* notes = <Note*>reserve(slice_size * sizeof(Note))
        cdef uint32_t i
        cdef list found = []
        if conns is NULL:
            raise MemoryError()
        memset(&command, 0, sizeof(command))
        command.first = 1
        try:
            while command.first:
                command.kind = DUMP
                command.pointer = conns
                command.other = notes
                command.count = slice_size
                self._post(&command)
                for i in range(command.count):
                    found.append(_conn_tuple(&conns[i], &notes[i]))
        finally:
            munmap(notes, slice_size * sizeof(Note))
            free(conns)
        return found

    def connection(self, uint32_t index):
        """One connection by index, as in `connections`; for the offline director."""
        return _conn_tuple(&self.plane.table.pool[index], &self.plane.table.notes[index])

    def totals(self):
        """-> (received, forwarded, passed, replied, {reason: count})"""
        cdef int i
        cdef dict drops = {}
        cdef Totals* t = &self.plane.totals
        for i in range(<int>LAST_REASON):
            if t.drops[i]:
                drops[REASONS[i]] = t.drops[i]
        return t.received, t.forwarded, t.passed, t.replied, drops

    def counters(self):
        """-> (connections, packets in, packets out, bytes in, bytes out) over all services"""
        return _counters(&self.plane.total)

    def service_counters(self, uint32_t slot):
        return _counters(&self.plane.services[slot])

    def dest_counters(self, uint32_t slot):
        return _counters(&self.plane.dests[slot].counters)

    def clear_service(self, uint32_t slot):
        """Make a service slot fit for another service."""
        memset(&self.plane.services[slot], 0, sizeof(Counters))
        memset(&self.plane.cursors[slot], 0, sizeof(ServiceSlot))

    def clear_dest(self, uint32_t slot):
        """Make a real server's slot fit for another one."""
        memset(&self.plane.dests[slot], 0, sizeof(DestLocal))

    @property
    def count(self):
        """Connections in the table."""
        return self.plane.table.count

    def needs(self):
        """Take the next hops that wait to be resolved: [(address16, link id)]."""
        cdef uint32_t head = acquire(&self.plane.needs_head)
        cdef uint32_t tail = self.plane.needs_tail
        cdef list found = []
        while tail != head:
            n = &self.plane.needs[tail & (NEEDS - 1)]
            found.append((_address(n.address), n.link))
            tail += 1
        release(&self.plane.needs_tail, tail)
        return found

    # ---------------------------------------------------------------------------------------- offline: frames by hand

    def process(self, list frames, uint64_t now):
        """Decide `frames`, a list of (link id, bytes): a list of (verdict, reason, connection tuple or None,
        service slot or None, dest slot or None, [(link id, bytes)]).

        The frames go one by one, so that each outcome is seen by the next; a frame that waits for its next hop is
        "forward" without frames, and comes out of `advance`.
        """
        cdef Frame frame
        cdef Result result
        cdef bytes data
        cdef list outcomes = []
        cdef size_t size = max([len(frame_bytes) for _, frame_bytes in frames], default=0)
        cdef uint8_t* buffer = <uint8_t*>calloc(1, size + 2 * HEADROOM)
        if buffer is NULL:
            raise MemoryError()
        try:
            for link, data in frames:
                memset(&frame, 0, sizeof(frame))
                memcpy(buffer + HEADROOM, <const uint8_t*>data, len(data))
                frame.data = buffer + HEADROOM
                frame.length = len(data)
                frame.link = link
                begin(self.plane)
                process_batch(self.plane, &frame, 1, now, &result)
                outcomes.append((
                    VERDICTS[1 if result.verdict == 5 else result.verdict],
                    REASONS[result.reason] or None,
                    self.connection(result.conn) if result.conn else None,
                    result.service if result.service != NO_SLOT else None,
                    result.dest if result.dest != NO_SLOT else None,
                    self._outbox(),
                ))
        finally:
            free(buffer)
        return outcomes

    def advance(self, uint64_t now):
        """Let time pass: expire connections, send or drop held frames; -> [(link id, bytes)]."""
        begin(self.plane)
        run_timers(self.plane, now, True, 0x7FFFFFFF)
        return self._outbox()

    cdef list _outbox(self):
        cdef list out = []
        cdef uint32_t i
        for i in range(self.plane.out_count):
            out.append((self.plane.out[i].link, <bytes>self.plane.out[i].data[:self.plane.out[i].length]))
        return out

    def measure(self, list frames, uint32_t repeat, uint64_t now):
        """Time the core alone: run `frames` [(link id, bytes)] in batches, `repeat` times; -> (nanoseconds, frames).

        Each frame is copied anew into its buffer before its batch, outside the time taken, since rewriting is in place.
        """
        cdef uint32_t total = len(frames)
        cdef uint32_t stride = 2048 + HEADROOM
        cdef uint8_t* originals = <uint8_t*>reserve(<size_t>total * 2048)
        cdef uint8_t* buffers = <uint8_t*>reserve(BATCH * stride)
        cdef uint32_t* lengths = <uint32_t*>calloc(total, 4)
        cdef uint16_t* links = <uint16_t*>calloc(total, 2)
        cdef Frame batch[BATCH]
        cdef Result results[BATCH]
        cdef timespec start, stop
        cdef uint64_t spent = 0
        cdef uint64_t done = 0
        cdef uint32_t i, j, n, _round
        cdef bytes data
        for i in range(total):
            links[i], data = frames[i]
            if len(data) > 2048:
                raise ValueError("measure takes frames of up to 2048 bytes")
            lengths[i] = len(data)
            memcpy(originals + <size_t>i * 2048, <const uint8_t*>data, len(data))
        with nogil:
            for _round in range(repeat):
                i = 0
                while i < total:
                    n = total - i if total - i < BATCH else BATCH
                    memset(batch, 0, sizeof(batch))
                    for j in range(n):
                        batch[j].data = buffers + j * stride + HEADROOM
                        batch[j].length = lengths[i + j]
                        batch[j].headroom = HEADROOM
                        batch[j].link = links[i + j]
                        memcpy(batch[j].data, originals + <size_t>(i + j) * 2048, lengths[i + j])
                    begin(self.plane)
                    clock_gettime(CLOCK_MONOTONIC, &start)
                    process_batch(self.plane, batch, n, now, results)
                    clock_gettime(CLOCK_MONOTONIC, &stop)
                    spent += (stop.tv_sec - start.tv_sec) * 1000000000 + (stop.tv_nsec - start.tv_nsec)
                    done += n
                    i += n
        munmap(originals, <size_t>total * 2048)
        munmap(buffers, BATCH * stride)
        free(lengths)
        free(links)
        return spent, done


def crc32c(bytes data):
    """The CRC32c of `data`, as a number."""
    return ~crc.crc32c(<const uint8_t*>data, <uint32_t>len(data), 0xFFFFFFFF) & 0xFFFFFFFF


def next_state(uint8_t protocol, uint8_t state, uint8_t direction, uint8_t event, bint secure=False):
    """The state tables: `direction` 0 from the client, 1 from the server, 2 from the client with replies unseen;
    `event` is the flags of a TCP segment, or for SCTP a row of its table."""
    if direction > 2 or state >= (LAST_TCP_STATE if protocol == TCP else LAST_SCTP_STATE):
        raise ValueError("no such direction or state")
    if protocol == TCP:
        return next_tcp(state, direction + (SECURE if secure else 0), event)
    if protocol != SCTP or event >= LAST_EVENT:
        raise ValueError("no such protocol or event")
    return next_sctp(state, direction, event)


cdef bytes _address(const uint8_t* address):
    return address[:16]


cdef tuple _counters(Counters* c):
    return c.conns, c.inpkts, c.outpkts, c.inbytes, c.outbytes


cdef tuple _conn_tuple(Conn* c, Note* note):
    return (
        c.proto, c.family, c.state, c.method, c.flags, _address(c.caddr), c.cport, _address(c.vaddr), c.vport,
        _address(c.daddr), c.dport, c.dest, c.expires, c.timeout, c.packets,
        note.data[:note.length] if c.flags & F_NOTED and c.flags & F_TEMPLATE else b"",
    )
