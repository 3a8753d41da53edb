"""What a configuration compiles to.

A `Snapshot` is immutable and lives in one arena: services found by (protocol, VIP, port), each with its pick and its
real servers in the kernel's list order. What changes with traffic lives outside, in *slots* that outlast a snapshot:
a real server's counts survive until its last connection is gone, as in the kernel's destination trash.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memset

from pylvs.forward._sys cimport word
from pylvs.forward.packet cimport TCP, same16


cdef enum:
    MAX_SERVICES = 16384
    MAX_DESTS = 65536
    NO_SLOT = 0xFFFFFFFF


cdef enum Method:
    MASQ = 0
    LOCAL = 1
    TUNNEL = 2
    ROUTE = 3
    BYPASS = 4


cdef enum TunnelType:
    TUN_IPIP = 0
    TUN_GUE = 1
    TUN_GRE = 2


cdef enum TunnelFlag:
    TUN_CSUM = 1
    TUN_REMCSUM = 2


cdef enum PickKind:
    PICK_NONE = 0
    PICK_CURSOR  # the next entry of a weighted round
    PICK_LEAST  # the smallest cost
    PICK_FIRST  # the highest weight
    PICK_CHOICE  # the better of two drawn by weight
    PICK_TABLE  # a slot of a hash table
    PICK_CACHE  # the server that this destination address had before


cdef enum Cost:
    COST_CONNECTIONS = 0  # 256 * active + inactive
    COST_WEIGHTED = 1  # the same, divided by the weight
    COST_DELAY = 2  # active + 1, divided by the weight


cdef enum PickOption:
    IDLE_FIRST = 1  # least: a server without active connections is taken at once
    SPILL = 2  # first: a server with more active connections than its weight is passed over
    SETS = 4  # cache: several servers for one address
    BY_DESTINATION = 8  # table: hash the destination address, not the source
    WITH_PORT = 16  # table: hash the source port too
    SIPHASH = 32  # table: SipHash modulo any size, not a multiplication and a power of two
    FALLBACK = 64  # table: look on if the slot's server cannot be used


cdef enum CursorRule:
    CURSOR_STAY = 0  # a change of servers leaves the cursor where it is (rr)
    CURSOR_RESTART = 1  # a change of servers sends it back to the start (wrr)


cdef struct DestSlot:
    # shared by all workers; relaxed atomics
    uint32_t active
    uint32_t inactive
    uint32_t persistent
    uint32_t references  # connections that point here
    uint32_t available  # in a service now
    uint32_t overloaded
    uint32_t upper
    uint32_t lower
    uint32_t weight
    uint32_t method
    uint32_t port
    uint8_t tun_type  # how a tunnel to it is wrapped; an edit holds for living connections too
    uint8_t tun_flags
    uint16_t tun_port  # GUE


cdef struct ServiceSlot:
    # one per worker: where its cursor stands
    uint32_t cursor  # a dest slot; NO_SLOT is the head of the list
    int32_t level  # the weight that the present pass serves (wrr's "current weight")
    uint32_t epoch  # of the pick that the cursor was last moved for
    uint32_t cached  # entries of the cache that are this service's
    uint32_t generation  # of the last snapshot that had this service with a cache
    uint64_t bound  # ns; when the cache began


cdef struct Entry:
    uint32_t dest  # slot
    int32_t weight
    uint8_t method
    uint8_t family
    uint16_t port
    uint8_t address[16]


cdef struct Pick:
    uint8_t kind
    uint8_t cost
    uint8_t rule
    uint8_t options
    int32_t step  # cursor: gcd of the weights
    int32_t top  # cursor: the highest level
    uint32_t epoch  # changes whenever the servers or the scheduler change
    bint fresh  # the scheduler has just been bound to the service
    int32_t level  # cursor: where a fresh one starts
    uint32_t* slots  # table: positions in the list of servers, NO_SLOT for none
    uint32_t size  # table: of `slots`


cdef struct Svc:
    uint8_t proto
    uint8_t family
    uint16_t port
    uint32_t slot
    uint8_t address[16]
    Pick pick
    uint32_t first  # entries[first : first + count], in list order
    uint32_t count
    uint32_t mark  # a firewall-mark service; 0: by address
    uint32_t persistent  # ms that a template lives, 0: none
    uint8_t mask[16]  # the granularity of templates
    bint one_packet
    bint engine  # templates by SIP Call-ID


cdef struct MarkRule:
    uint32_t mark
    uint8_t family  # 0: any
    uint8_t proto  # 0: any
    uint16_t low  # destination ports; 0 to 65535 is any
    uint16_t high
    uint8_t source[16]
    uint8_t source_mask[16]
    uint8_t destination[16]
    uint8_t destination_mask[16]


cdef struct Snapshot:
    Svc* services
    uint32_t service_count
    Entry* entries
    uint32_t* index  # open addressing over services; NO_SLOT is empty
    uint32_t index_mask
    uint32_t* vips  # open addressing over addresses: any service with this VIP
    uint32_t vip_mask
    uint32_t* replies  # open addressing over entries: NAT real servers by (protocol, address, port)
    uint8_t* reply_proto
    uint32_t* masked  # open addressing over entries: NAT real servers by address alone
    uint32_t reply_mask
    uint32_t* tables  # of all picks, one after the other
    uint32_t generation
    MarkRule* marks
    uint32_t mark_count
    uint8_t serves[8]  # by address family (4, 6): is there any service?
    bint any_port_zero
    bint any_ftp
    bint any_engine
    bint guarded  # the host does not see packets for services and replies of NAT real servers


cdef inline uint32_t address_slot(uint8_t proto, const uint8_t* address, uint16_t port) noexcept nogil:
    """Start of the probe sequence; the operator chooses services, so no keyed hash."""
    cdef uint64_t h = word(address) * <uint64_t>0x9E3779B97F4A7C15
    h = (h ^ word(address + 8)) * <uint64_t>0xC2B2AE3D27D4EB4F
    h = (h ^ ((<uint64_t>proto << 16) | port)) * <uint64_t>0xD6E8FEB86659FD93
    return <uint32_t>(h >> 32)


cdef inline Svc* find_exact(Snapshot* s, uint8_t proto, const uint8_t* address, uint16_t port) noexcept nogil:
    cdef uint32_t i = address_slot(proto, address, port) & s.index_mask
    cdef Svc* svc
    while s.index[i] != NO_SLOT:
        svc = &s.services[s.index[i]]
        if svc.port == port and svc.proto == proto and same16(svc.address, address):
            return svc
        i = (i + 1) & s.index_mask
    return NULL


cdef inline Svc* find_service(Snapshot* s, uint8_t proto, const uint8_t* address, uint16_t port) noexcept nogil:
    """The service of an address: its own port first, then FTP's for data ports, then the one of port zero (all)."""
    cdef Svc* svc = find_exact(s, proto, address, port)
    if svc is NULL and s.any_ftp and proto == TCP and (port == 20 or port >= 1024):
        svc = find_exact(s, proto, address, 21)
    if svc is NULL and s.any_port_zero:
        svc = find_exact(s, proto, address, 0)
    return svc


cdef inline void mark_address(uint8_t* to, uint8_t family, uint32_t mark) noexcept nogil:
    """A mark in the place of an address, as the kernel's templates have it: its first 32 bits."""
    memset(to, 0, 16)
    if family == 4:
        to[10] = 0xFF
        to[11] = 0xFF
        to += 12
    to[0] = <uint8_t>(mark >> 24)
    to[1] = <uint8_t>(mark >> 16)
    to[2] = <uint8_t>(mark >> 8)
    to[3] = <uint8_t>mark


cdef inline bint within(const uint8_t* address, const uint8_t* prefix, const uint8_t* mask) noexcept nogil:
    """Is an address in a prefix (which has no bits outside its mask)?"""
    return word(address) & word(mask) == word(prefix) and word(address + 8) & word(mask + 8) == word(prefix + 8)


cdef inline Svc* find_marked(
    Snapshot* s, uint8_t family, uint8_t proto, const uint8_t* source, const uint8_t* address, uint16_t port
) noexcept nogil:
    """The firewall-mark service for a packet, by our own rules: the last one that matches gives the mark."""
    cdef uint32_t i = s.mark_count
    cdef MarkRule* rule
    cdef uint8_t key[16]
    while i > 0:
        i -= 1
        rule = &s.marks[i]
        if (
            (rule.family == 0 or rule.family == family) and (rule.proto == 0 or rule.proto == proto)
            and rule.low <= port <= rule.high and within(address, rule.destination, rule.destination_mask)
            and within(source, rule.source, rule.source_mask)
        ):
            mark_address(key, family, rule.mark)
            return find_exact(s, 0, key, 0)
    return NULL


cdef inline bint is_vip(Snapshot* s, const uint8_t* address) noexcept nogil:
    """Does any service have this address?"""
    cdef uint32_t i = address_slot(0, address, 0) & s.vip_mask
    while s.vips[i] != NO_SLOT:  # firewall-mark services have no address and are not entered
        if same16(s.services[s.vips[i]].address, address):
            return True
        i = (i + 1) & s.vip_mask
    return False


cdef inline bint is_nat_address(Snapshot* s, const uint8_t* address) noexcept nogil:
    """Is any real server at this address reached by NAT?"""
    cdef uint32_t i = address_slot(0, address, 0) & s.reply_mask
    while s.masked[i] != NO_SLOT:
        if same16(s.entries[s.masked[i]].address, address):
            return True
        i = (i + 1) & s.reply_mask
    return False


cdef inline bint is_nat_server(Snapshot* s, uint8_t proto, const uint8_t* address, uint16_t port) noexcept nogil:
    """Is this the address and port of a real server that is reached by NAT?"""
    cdef uint32_t i = address_slot(proto, address, port) & s.reply_mask
    cdef Entry* entry
    while s.replies[i] != NO_SLOT:
        entry = &s.entries[s.replies[i]]
        if entry.port == port and s.reply_proto[i] == proto and same16(entry.address, address):
            return True
        i = (i + 1) & s.reply_mask
    return False
