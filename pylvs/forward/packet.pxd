"""Room 2, parse: from a frame to a flow.

`parse` walks Ethernet, VLAN tags, IPv4 or IPv6 with its extension headers, and stops at layer 4. It trusts nothing:
every header is checked against the frame's end before it is read, and lengths that lie end as named drops. It may
assume only that `frame.data` points at `frame.length` readable bytes. Numbers are read byte by byte, big endian.

RFC 791 (IPv4), RFC 8200 §4 (IPv6 extension headers), IEEE 802.1Q (tags), virtio 1.1 §5.1.6 (offload metadata).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from pylvs.forward cimport checksum
from pylvs.forward._sys cimport half, unlikely, word


cdef enum Verdict:
    CONTINUE = 0  # not decided yet; never leaves the core
    FORWARD = 1  # sent on, to a real server or back to a client
    PASS = 2  # left to the host's own stack
    REPLY = 3  # answered by us
    DROP = 4  # ended, with a reason
    HELD = 5  # waits for a next hop's address; ends as FORWARD or DROP later


cdef enum DropReason:
    NO_REASON = 0
    TRUNCATED  # a header is cut off by the frame's end
    BAD_LENGTH  # a length field lies
    BAD_VERSION  # the IP version disagrees with the EtherType
    BAD_CHECKSUM  # IPv4 header or ICMP checksum
    BAD_OFFLOAD  # offload metadata that contradicts the frame
    HEADER_CHAIN  # too many IPv6 extension headers
    FRAGMENT  # a fragment that can be no part of a datagram, or is there twice
    DEST_GONE  # the connection's real server was deleted
    TTL_EXCEEDED  # and no ICMP error may be sent about it
    TOO_BIG  # larger than the path allows, and no ICMP error may be sent about it
    NO_ROUTE  # no route to the next hop
    NO_NEIGHBOUR  # the next hop did not resolve in time
    TABLE_FULL  # no room for another connection
    NO_SERVER  # no real server available, and no ICMP error may be sent about it
    LINK_DOWN  # the egress interface is missing or down
    TX_FULL  # the egress socket took no more
    ICMP_LIMITED  # an ICMP error of our own was due, but too many were sent lately
    MARTIAN  # a source address that no client can have: ours, loopback, multicast, unspecified
    DEFENCE  # a new connection that the setting drop_packet sacrificed
    FRAGMENT_OVERLAP  # a datagram whose fragments overlap (RFC 5722)
    FRAGMENT_TIMEOUT  # a datagram whose other fragments did not come in time
    FRAGMENT_FLOOD  # pushed out by later ones, or cut into too many
    BAD_OPTION  # IPv4 options that are malformed, or ask for source routing
    LOOPBACK_SERVER  # NAT of a packet from outside to a loopback address
    NO_CALL_ID  # no Call-ID, where the persistence engine sip needs one
    LAST_REASON


cdef enum Kind:
    OTHER = 0  # not for the balancer
    FLOW  # TCP, UDP or SCTP, with ports
    ICMP_ERROR  # speaks of another packet
    ICMP_ECHO  # a ping
    LATER_FRAGMENT  # any part of a fragmented datagram
    ARP_REQUEST
    ND_SOLICITATION
    IPSEC  # ESP or AH
    OPTIONED  # a FLOW with IPv4 options


cdef struct Offload:
    # struct virtio_net_hdr, host byte order; csum_start counts from the Ethernet header
    uint8_t flags  # 1: the layer-4 checksum is only the pseudo-header sum
    uint8_t gso_type  # 0 none, 1 TCPv4, 3 UDP fragmentation, 4 TCPv6, 5 UDP segmentation; 0x80 ECN
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset


cdef struct Frame:
    uint8_t* data  # the Ethernet header
    uint32_t length  # readable bytes at data
    uint32_t headroom  # writable bytes in front of data
    uint16_t link  # where it came from
    bint own  # of our own making (an answer, a further segment): not booked when it waits for its next hop
    Offload offload


cdef struct Flow:
    uint8_t family  # 4 or 6; 0 if the frame is not IP
    uint8_t proto
    uint8_t kind
    uint8_t tcp_flags
    uint16_t l3  # offsets into the frame
    uint16_t l4
    uint32_t end  # behind the IP packet; the frame may be padded
    uint16_t sport
    uint16_t dport
    uint8_t icmp_type
    uint8_t icmp_code
    uint8_t src[16]  # IPv4 as ::ffff:a.b.c.d
    uint8_t dst[16]


cdef enum:
    TCP = 6
    UDP = 17
    SCTP = 132
    ICMP = 1
    ICMP6 = 58
    IPIP = 4
    IPV6IP = 41
    GRE = 47
    ESP = 50
    AH = 51

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    ACK = 0x10

    NEEDS_CSUM = 1  # Offload.flags
    GSO_WHOLE = 0x60  # Offload.gso_type, of our own making: a datagram that came in fragments

    MAX_EXTENSIONS = 8


cdef inline uint16_t be16(const uint8_t* p) noexcept nogil:
    return <uint16_t>((p[0] << 8) | p[1])


cdef inline uint32_t be32(const uint8_t* p) noexcept nogil:
    return (<uint32_t>p[0] << 24) | (<uint32_t>p[1] << 16) | (<uint32_t>p[2] << 8) | p[3]


cdef inline void put16(uint8_t* p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t>(value >> 8)
    p[1] = <uint8_t>value


cdef inline void put32(uint8_t* p, uint32_t value) noexcept nogil:
    put16(p, value >> 16)
    put16(p + 2, value)


cdef inline void map4(uint8_t* to, const uint8_t* address) noexcept nogil:
    """Write the 4 bytes of an IPv4 address as a mapped IPv6 address."""
    memset(to, 0, 10)
    to[10] = 0xFF
    to[11] = 0xFF
    memcpy(to + 12, address, 4)


cdef inline bint same16(const uint8_t* a, const uint8_t* b) noexcept nogil:
    """Are two 16-byte addresses equal?"""
    return word(a) == word(b) and word(a + 8) == word(b + 8)


cdef inline bint is_mapped4(const uint8_t* address) noexcept nogil:
    return word(address) == 0 and half(address + 8) == half(<const uint8_t*>b"\x00\x00\xff\xff")


cdef inline uint32_t address_size(uint8_t family) noexcept nogil:
    return 4 if family == 4 else 16


cdef inline const uint8_t* wire_address(uint8_t family, const uint8_t* address) noexcept nogil:
    """Where the on-the-wire bytes of a 16-byte address begin."""
    return address + 12 if family == 4 else address


cdef inline int parse(Frame* frame, const uint8_t* mac, Flow* flow, uint8_t* reason) noexcept nogil:
    """Fill `flow` from `frame`; return CONTINUE, PASS or DROP (with `reason`).

    `mac` is the address of the link: a frame for another station is the host's business, except for ARP requests and
    neighbour solicitations, which are broadcast or multicast.
    """
    cdef uint8_t* p = frame.data
    cdef uint32_t offset = 14
    cdef uint16_t ethertype
    cdef bint ours

    flow.family = 0
    flow.kind = OTHER
    flow.proto = 0
    flow.tcp_flags = 0
    flow.sport = 0
    flow.dport = 0
    reason[0] = NO_REASON
    if frame.length < 14:
        reason[0] = TRUNCATED
        return DROP
    ethertype = be16(p + 12)
    while ethertype == 0x8100 or ethertype == 0x88A8:
        if offset + 4 > frame.length:
            reason[0] = TRUNCATED
            return DROP
        ethertype = be16(p + offset + 2)
        offset += 4
        if offset > 22:  # two tags are all that any network carries
            return PASS
    flow.l3 = <uint16_t>offset
    ours = memcmp(p, mac, 6) == 0
    if not ours and not p[0] & 1:
        return PASS
    if ethertype == 0x0800:
        return parse4(frame, flow, reason) if ours else PASS
    if ethertype == 0x86DD:
        return parse6(frame, flow, reason, ours)
    if ethertype == 0x0806:
        return parse_arp(frame, flow)
    return PASS


cdef inline int parse_arp(Frame* frame, Flow* flow) noexcept nogil:
    """RFC 826, Ethernet and IPv4 only: the sender as `src`, the address asked for as `dst`."""
    cdef uint8_t* p = frame.data + flow.l3
    if flow.l3 + 28 > frame.length or be32(p) != 0x00010800 or be16(p + 4) != 0x0604 or be16(p + 6) != 1:
        return PASS
    flow.kind = ARP_REQUEST
    flow.family = 4
    flow.end = flow.l3 + 28
    map4(flow.src, p + 14)
    map4(flow.dst, p + 24)
    return CONTINUE


cdef inline int parse4(Frame* frame, Flow* flow, uint8_t* reason) noexcept nogil:
    cdef uint8_t* p = frame.data + flow.l3
    cdef uint32_t available = frame.length - flow.l3
    cdef uint32_t header, total, fragment
    if available < 20:
        reason[0] = TRUNCATED
        return DROP
    if p[0] >> 4 != 4:
        reason[0] = BAD_VERSION
        return DROP
    header = (p[0] & 15) * 4
    total = be16(p + 2)
    if header < 20 or total < header:
        reason[0] = BAD_LENGTH
        return DROP
    if total > available or header > available:
        reason[0] = TRUNCATED
        return DROP
    if checksum.fold(checksum.add(p, header, 0)) != 0xFFFF:
        reason[0] = BAD_CHECKSUM
        return DROP
    flow.family = 4
    flow.proto = p[9]
    flow.end = flow.l3 + total
    frame.length = flow.end  # padding of short frames is not the packet's
    flow.l4 = <uint16_t>(flow.l3 + header)
    map4(flow.src, p + 12)
    map4(flow.dst, p + 16)
    fragment = be16(p + 6) & 0x3FFF
    if fragment:
        flow.kind = LATER_FRAGMENT
        return CONTINUE
    if unlikely(header != 20):
        total = <uint32_t>parse_l4(frame, flow, reason)
        if flow.kind == FLOW:
            flow.kind = OPTIONED
        return <int>total
    return parse_l4(frame, flow, reason)


cdef inline int parse6(Frame* frame, Flow* flow, uint8_t* reason, bint ours) noexcept nogil:
    cdef uint8_t* p = frame.data + flow.l3
    cdef uint32_t available = frame.length - flow.l3
    cdef uint32_t offset, size
    cdef int extensions = 0
    cdef uint8_t proto
    if available < 40:
        reason[0] = TRUNCATED
        return DROP if ours else PASS
    if p[0] >> 4 != 6:
        reason[0] = BAD_VERSION
        return DROP if ours else PASS
    if 40 + <uint32_t>be16(p + 4) > available:
        reason[0] = TRUNCATED
        return DROP if ours else PASS
    flow.family = 6
    flow.end = flow.l3 + 40 + be16(p + 4)
    frame.length = flow.end
    memcpy(flow.src, p + 8, 16)
    memcpy(flow.dst, p + 24, 16)
    proto = p[6]
    offset = flow.l3 + 40
    while proto == 0 or proto == 43 or proto == 44 or proto == 60:  # hop-by-hop, routing, fragment, destination
        if offset + 8 > flow.end:
            reason[0] = TRUNCATED
            return DROP if ours else PASS
        extensions += 1
        if extensions > MAX_EXTENSIONS:
            reason[0] = HEADER_CHAIN
            return DROP if ours else PASS
        p = frame.data + offset
        size = 8 if proto == 44 else 8 + <uint32_t>p[1] * 8
        if proto == 44 and be16(p + 2) & 0xFFF9:
            flow.kind = LATER_FRAGMENT
        proto = p[0]
        offset += size
        if offset > flow.end:
            reason[0] = TRUNCATED
            return DROP if ours else PASS
        if flow.kind == LATER_FRAGMENT:
            break
    flow.proto = proto
    flow.l4 = <uint16_t>offset
    if not ours:  # multicast: only a neighbour solicitation may concern us
        if proto == ICMP6 and flow.kind == OTHER and offset + 24 <= flow.end and frame.data[offset] == 135:
            flow.kind = ND_SOLICITATION
            return CONTINUE
        return PASS
    if flow.kind == LATER_FRAGMENT:
        return CONTINUE
    return parse_l4(frame, flow, reason)


cdef inline int parse_l4(Frame* frame, Flow* flow, uint8_t* reason) noexcept nogil:
    cdef uint8_t* p = frame.data + flow.l4
    cdef uint32_t available = flow.end - flow.l4
    if flow.proto == TCP:
        if available < 20:
            reason[0] = TRUNCATED
            return DROP
        flow.tcp_flags = p[13]
    elif flow.proto == UDP:
        if available < 8:
            reason[0] = TRUNCATED
            return DROP
    elif flow.proto == SCTP:
        if available < 12:
            reason[0] = TRUNCATED
            return DROP
    elif flow.proto == (ICMP if flow.family == 4 else ICMP6):
        if available < 8:
            reason[0] = TRUNCATED
            return DROP
        flow.icmp_type = p[0]
        flow.icmp_code = p[1]
        if flow.family == 4:
            if p[0] == 3 or p[0] == 4 or p[0] == 11:
                flow.kind = ICMP_ERROR
            elif p[0] == 8:
                flow.kind = ICMP_ECHO
        elif p[0] < 128:
            flow.kind = ICMP_ERROR
        elif p[0] == 128:
            flow.kind = ICMP_ECHO
        elif p[0] == 135 and available >= 24:
            flow.kind = ND_SOLICITATION
        return CONTINUE if flow.kind != OTHER else PASS
    elif flow.proto == ESP or flow.proto == AH:
        flow.kind = IPSEC
        return CONTINUE
    else:
        return PASS
    flow.kind = FLOW
    flow.sport = be16(p)
    flow.dport = be16(p + 2)
    return CONTINUE


cdef inline uint32_t link_size(Frame* frame) noexcept nogil:
    """Bytes of the link-layer header, VLAN tags included; the frame has been parsed."""
    cdef uint32_t size = 14
    while be16(frame.data + size - 2) == 0x8100 or be16(frame.data + size - 2) == 0x88A8:
        size += 4
    return size


cdef inline uint8_t ttl_of(Frame* frame, Flow* flow) noexcept nogil:
    """TTL (IPv4) or hop limit (IPv6)."""
    return frame.data[flow.l3 + (8 if flow.family == 4 else 7)]


cdef inline void decrement_ttl(Frame* frame, Flow* flow) noexcept nogil:
    """One hop less, with the IPv4 header checksum kept right (RFC 1812 §5.3.1)."""
    cdef uint8_t* p = frame.data + flow.l3
    cdef uint16_t before
    if flow.family == 6:
        p[7] -= 1
        return
    before = checksum.short16(p + 8)
    p[8] -= 1
    checksum.update(p + 10, checksum.delta16(before, checksum.short16(p + 8)))


cdef inline bint dont_fragment(Frame* frame, Flow* flow) noexcept nogil:
    """IPv6 routers never fragment; IPv4 ones may unless DF is set."""
    return flow.family == 6 or frame.data[flow.l3 + 6] & 0x40


cdef inline uint32_t wire_length(Frame* frame, Flow* flow) noexcept nogil:
    """Length of the IP packet, or of the largest segment that a super-frame stands for."""
    cdef uint32_t headers
    if frame.offload.gso_type == 0 or frame.offload.gso_type == GSO_WHOLE:
        return flow.end - flow.l3
    headers = flow.l4 - flow.l3 + ((frame.data[flow.l4 + 12] >> 4) * 4 if flow.proto == TCP else 8)
    return headers + frame.offload.gso_size
