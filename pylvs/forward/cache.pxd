"""What lblc and lblcr remember: which real servers a destination address had.

One table for all services of a worker, allocated at start: at most CACHE_ENTRIES addresses, each with a set of real
servers, newest first. When it is full, the address that was looked up longest ago makes room (the kernel lets the
table grow and trims it once a minute). A remembered server is referred to, so that its slot is not given to another
one while it lies in the trash; added again, it has its addresses back, as in the kernel.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from pylvs.forward._sys cimport add32, word
from pylvs.forward.flowhash cimport sip13
from pylvs.forward.packet cimport same16
from pylvs.forward.snapshot cimport DestSlot


cdef enum:
    CACHE_ENTRIES = 16384
    CACHE_HEADS = 16384  # a power of two
    CACHE_MEMBERS = 65536
    FULL_CHECK = 1800  # seconds; every 30th of the kernel's checks, one a minute, removes what has expired


cdef struct Member:
    uint32_t dest  # slot
    uint32_t next


cdef struct CacheEntry:
    uint8_t address[16]
    uint64_t used  # ns
    uint64_t changed  # ns; when a server joined or left
    uint32_t service  # slot
    uint32_t members  # list, newest first
    uint32_t count
    uint32_t next  # hash chain, or list of free entries
    uint32_t newer  # order of use
    uint32_t older
    uint32_t* cached  # its service's number of entries


cdef struct Cache:
    CacheEntry* entries  # by index; 0 is none
    uint32_t* heads
    Member* members  # by index; 0 is none
    uint32_t fresh  # indices from here on were never used
    uint32_t free
    uint32_t fresh_member
    uint32_t free_member
    uint32_t newest
    uint32_t oldest


cdef inline uint32_t* head_of(Cache* cache, uint64_t key, uint32_t service, const uint8_t* address) noexcept nogil:
    """Clients choose destination addresses, so the hash is keyed."""
    cdef uint64_t words[2]
    words[0] = word(address)
    words[1] = word(address + 8)
    return &cache.heads[sip13(key, key, words, 2, (<uint64_t>20 << 56) | service) & (CACHE_HEADS - 1)]


cdef inline uint32_t recall(Cache* cache, uint64_t key, uint32_t service, const uint8_t* address) noexcept nogil:
    """The entry of a service's destination address; 0 if there is none."""
    cdef uint32_t index = head_of(cache, key, service, address)[0]
    while index:
        if cache.entries[index].service == service and same16(cache.entries[index].address, address):
            return index
        index = cache.entries[index].next
    return 0


cdef inline void unlink_use(Cache* cache, CacheEntry* e) noexcept nogil:
    if e.newer:
        cache.entries[e.newer].older = e.older
    else:
        cache.newest = e.older
    if e.older:
        cache.entries[e.older].newer = e.newer
    else:
        cache.oldest = e.newer


cdef inline void link_use(Cache* cache, uint32_t index) noexcept nogil:
    cdef CacheEntry* e = &cache.entries[index]
    e.newer = 0
    e.older = cache.newest
    if e.older:
        cache.entries[e.older].newer = index
    else:
        cache.oldest = index
    cache.newest = index


cdef inline void use(Cache* cache, uint32_t index, uint64_t now) noexcept nogil:
    """An address was looked up: it is the last to make room for another."""
    cache.entries[index].used = now
    if cache.newest != index:
        unlink_use(cache, &cache.entries[index])
        link_use(cache, index)


cdef inline void leave(Cache* cache, DestSlot* slots, uint32_t index, uint32_t dest, uint64_t now) noexcept nogil:
    """Take a server out of an address's set."""
    cdef uint32_t* at = &cache.entries[index].members
    cdef uint32_t member
    while at[0] and cache.members[at[0]].dest != dest:
        at = &cache.members[at[0]].next
    member = at[0]
    if member:
        at[0] = cache.members[member].next
        cache.members[member].next = cache.free_member
        cache.free_member = member
        add32(&slots[dest].references, <uint32_t>-1)
        cache.entries[index].count -= 1
        cache.entries[index].changed = now


cdef inline void empty(Cache* cache, DestSlot* slots, uint32_t index) noexcept nogil:
    """Take all servers out of an address's set."""
    while cache.entries[index].members:
        leave(cache, slots, index, cache.members[cache.entries[index].members].dest, 0)


cdef inline void forget(Cache* cache, DestSlot* slots, uint64_t key, uint32_t index) noexcept nogil:
    """Remove an address."""
    cdef CacheEntry* e = &cache.entries[index]
    cdef uint32_t* at = head_of(cache, key, e.service, e.address)
    while at[0] != index:
        at = &cache.entries[at[0]].next
    at[0] = e.next
    empty(cache, slots, index)
    unlink_use(cache, e)
    e.cached[0] -= 1
    e.next = cache.free
    cache.free = index


cdef inline uint32_t remember(
    Cache* cache, DestSlot* slots, uint64_t key, uint32_t service, uint32_t* cached, const uint8_t* address,
    uint64_t now,
) noexcept nogil:
    """A new entry, with an empty set, for an address that has none."""
    cdef uint32_t index
    cdef uint32_t* head = head_of(cache, key, service, address)
    if not cache.free and cache.fresh > CACHE_ENTRIES:
        forget(cache, slots, key, cache.oldest)
    index = cache.free
    if index:
        cache.free = cache.entries[index].next
    else:
        index = cache.fresh
        cache.fresh += 1
    memcpy(cache.entries[index].address, address, 16)
    cache.entries[index].service = service
    cache.entries[index].members = 0
    cache.entries[index].count = 0
    cache.entries[index].used = now
    cache.entries[index].next = head[0]
    cache.entries[index].cached = cached
    head[0] = index
    cached[0] += 1
    link_use(cache, index)
    return index


cdef inline void join(
    Cache* cache, DestSlot* slots, uint64_t key, uint32_t index, uint32_t dest, uint64_t now
) noexcept nogil:
    """Put a server at the head of an address's set, unless it is in it; with no place left the oldest address goes."""
    cdef uint32_t member = cache.entries[index].members
    while member:
        if cache.members[member].dest == dest:
            return
        member = cache.members[member].next
    while not cache.free_member and cache.fresh_member > CACHE_MEMBERS:
        if cache.oldest == index:
            return
        forget(cache, slots, key, cache.oldest)
    member = cache.free_member
    if member:
        cache.free_member = cache.members[member].next
    else:
        member = cache.fresh_member
        cache.fresh_member += 1
    cache.members[member].dest = dest
    cache.members[member].next = cache.entries[index].members
    cache.entries[index].members = member
    cache.entries[index].count += 1
    cache.entries[index].changed = now
    add32(&slots[dest].references, 1)


cdef inline bint outlived(CacheEntry* e, uint64_t bound, uint64_t expiration, uint64_t now) noexcept nogil:
    """Has one of the full checks, counted from when the scheduler was bound, found the entry expired?"""
    cdef uint64_t checks = (now - bound) // (<uint64_t>FULL_CHECK * 1000000000)
    return checks > 0 and e.used + expiration <= bound + checks * FULL_CHECK * 1000000000


cdef inline void flush_service(Cache* cache, DestSlot* slots, uint64_t key, uint32_t service) noexcept nogil:
    """Forget all addresses of a service."""
    cdef uint32_t index = cache.newest
    cdef uint32_t older
    while index:
        older = cache.entries[index].older
        if cache.entries[index].service == service:
            forget(cache, slots, key, index)
        index = older
