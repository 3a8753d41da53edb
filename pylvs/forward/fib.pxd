"""Where the host would send a packet: links, routes and neighbours, compiled from netlink's view of them.

Immutable once built. Prefixes are flattened into sorted, disjoint ranges over the 16-byte address space, so that the
longest match is one binary search; local addresses are ranges like any other. Neighbours are an open-addressing table.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from pylvs.forward._sys cimport half, word
from pylvs.forward.packet cimport be32, is_mapped4, same16


cdef enum:
    MAX_LINKS = 256
    NO_LINK = 0xFFFF


cdef enum RouteKind:
    ROUTE_NONE = 0
    ROUTE_UNICAST
    ROUTE_LOCAL
    ROUTE_BLACKHOLE
    ROUTE_UNREACHABLE


cdef enum HopStatus:
    HOP_NONE = 0  # no route
    HOP_READY  # MAC known
    HOP_LOCAL  # the address is the host's own
    HOP_UNRESOLVED  # route known, MAC not yet


cdef struct FibLink:
    uint8_t mac[6]
    bint up
    bint loopback
    uint32_t mtu
    uint8_t source4[16]  # the link's first address of each family; zero if it has none
    uint8_t source6[16]


cdef struct FibRoute:
    uint8_t kind
    bint onlink  # no gateway: the destination itself is the next hop
    uint16_t link
    uint32_t mtu
    uint8_t gateway[16]
    uint8_t source[16]


cdef struct FibRange:
    uint8_t first[16]  # up to the next range's first
    uint32_t route


cdef struct FibNeighbour:
    uint8_t address[16]
    uint8_t mac[6]
    uint16_t link  # NO_LINK: empty slot


cdef struct Fib:
    FibLink links[MAX_LINKS]
    FibRoute* routes
    FibRange* ranges
    uint32_t range_count
    FibNeighbour* neighbours
    uint32_t neighbour_mask
    uint32_t generation
    uint16_t loopback  # the link of what is handed to the host itself
    bint forwarding4
    bint forwarding6


cdef struct Hop:
    uint8_t status
    uint8_t mac[6]
    uint16_t link
    uint32_t mtu
    uint32_t generation  # of the fib that it was resolved with
    uint8_t next[16]  # whose MAC it is
    uint8_t source[16]  # the address the host would send from


cdef inline FibRoute* route_to(Fib* fib, const uint8_t* address) noexcept nogil:
    """The longest match for a 16-byte address; never NULL (the range from zero always exists)."""
    cdef uint32_t low = 0
    cdef uint32_t high = fib.range_count
    cdef uint32_t middle
    while high - low > 1:
        middle = (low + high) >> 1
        if memcmp(fib.ranges[middle].first, address, 16) <= 0:
            low = middle
        else:
            high = middle
    return &fib.routes[fib.ranges[low].route]


cdef inline bint is_local(Fib* fib, const uint8_t* address) noexcept nogil:
    """Is this an address of the host itself?"""
    return route_to(fib, address).kind == ROUTE_LOCAL


cdef inline bint is_martian(Fib* fib, const uint8_t* source) noexcept nogil:
    """Can no packet from outside have this source (RFC 1812 §5.3.7)? Own addresses count, as in the kernel's check."""
    if is_mapped4(source):
        if source[12] == 0 or source[12] == 127 or source[12] >= 224:
            return True
    elif source[0] == 0xFF or (word(source) == 0 and half(source + 8) == 0 and be32(source + 12) <= 1):
        return True
    return is_local(fib, source)


cdef inline bint is_loopback(const uint8_t* address) noexcept nogil:
    """127.0.0.0/8 or ::1: addresses that mean nothing outside the host."""
    if is_mapped4(address):
        return address[12] == 127
    return word(address) == 0 and half(address + 8) == 0 and be32(address + 12) == 1


cdef inline uint32_t neighbour_slot(const uint8_t* address, uint16_t link) noexcept nogil:
    """Where a neighbour's probe sequence starts; neighbours are the host's own business, so no keyed hash."""
    cdef uint64_t h = (word(address) * <uint64_t>0x9E3779B97F4A7C15) ^ (word(address + 8) + link)
    h *= <uint64_t>0xD6E8FEB86659FD93
    return <uint32_t>(h >> 32)


cdef inline FibNeighbour* neighbour(Fib* fib, const uint8_t* address, uint16_t link) noexcept nogil:
    """The resolved neighbour, or NULL."""
    cdef uint32_t i = neighbour_slot(address, link) & fib.neighbour_mask
    while fib.neighbours[i].link != NO_LINK:
        if fib.neighbours[i].link == link and same16(fib.neighbours[i].address, address):
            return &fib.neighbours[i]
        i = (i + 1) & fib.neighbour_mask
    return NULL


cdef inline void resolve(Fib* fib, const uint8_t* address, bint v6, bint direct, Hop* hop) noexcept nogil:
    """Fill `hop` with the way to `address`; `direct` makes the address itself the next hop, whatever the gateway."""
    cdef FibRoute* route = route_to(fib, address)
    cdef FibLink* link
    cdef FibNeighbour* found
    hop.generation = fib.generation
    hop.link = route.link
    if route.kind == ROUTE_LOCAL:
        hop.status = HOP_LOCAL
        hop.mtu = fib.links[route.link].mtu if route.link < MAX_LINKS else 65536
        memcpy(hop.source, address, 16)
        return
    if route.kind != ROUTE_UNICAST or route.link >= MAX_LINKS:
        hop.status = HOP_NONE
        return
    link = &fib.links[route.link]
    hop.mtu = link.mtu
    if route.mtu and route.mtu < hop.mtu:
        hop.mtu = route.mtu
    memcpy(hop.next, address if route.onlink or direct else &route.gateway[0], 16)
    if word(route.source) or word(route.source + 8):
        memcpy(hop.source, route.source, 16)
    else:
        memcpy(hop.source, &link.source6[0] if v6 else &link.source4[0], 16)
    found = neighbour(fib, hop.next, route.link)
    if found is NULL:
        hop.status = HOP_UNRESOLVED
        return
    hop.status = HOP_READY
    memcpy(hop.mac, found.mac, 6)
