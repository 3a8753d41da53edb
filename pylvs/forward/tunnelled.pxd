"""ICMP errors about the director's own tunnel packets: what a router on the way to a real server complains of.

The error quotes the outer header, the tunnel's own one and the client's packet. The client is told in the VIP's name,
with its own packet quoted; for "fragmentation needed" with what is left of the path's MTU. The kernel knows this for
IPv4 in IPv4 only, and names the MTU that it worked by until now: the new one holds from the next packet on.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from pylvs.forward cimport icmp, tun
from pylvs.forward.conn cimport NOBODY, SIDE_CLIENT, Conn, find, hash_of
from pylvs.forward.fib cimport Hop
from pylvs.forward.packet cimport (
    DROP, FLOW, GRE, IPIP, SCTP, TCP, TOO_BIG, UDP, Flow, Frame, be16, be32, map4, same16,
)
from pylvs.forward.plane cimport Plane
from pylvs.forward.snapshot cimport TUN_GRE, TUN_GUE, TUN_IPIP, TUNNEL, DestSlot


cdef struct Quoted:
    uint8_t kind  # TunnelType
    bint df  # of the outer header
    uint16_t port  # GUE
    uint8_t target[16]  # the real server
    Flow flow  # the client's packet inside


cdef inline bint parse_quoted(Frame* frame, Flow* outer, Quoted* q) noexcept nogil:
    """Read the tunnel packet that an ICMP error quotes; False if it is none, or cut off before the inner ports."""
    cdef uint32_t at = outer.l4 + 8
    cdef uint8_t* p = frame.data + at
    cdef uint32_t header
    cdef uint8_t proto
    if outer.family != 4 or at + 28 > outer.end or p[0] >> 4 != 4:
        return False
    header = (p[0] & 15) * 4
    proto = p[9]
    if header < 20 or be16(p + 6) & 0x1FFF or at + header + 12 > outer.end:
        return False
    q.df = p[6] & 0x40 != 0
    map4(q.target, p + 16)
    at += header
    p = frame.data + at
    if proto == IPIP:
        q.kind = TUN_IPIP
    elif proto == GRE and be16(p) & 0x7FFF == 0 and be16(p + 2) == 0x0800:
        q.kind = TUN_GRE
        at += 8 if p[0] & 0x80 else 4
    elif proto == UDP and p[8] & 0xE0 == 0 and p[9] == IPIP:
        q.kind = TUN_GUE
        q.port = be16(p + 2)
        at += 12 + <uint32_t>(p[8] & 0x1F) * 4
    else:
        return False
    p = frame.data + at
    if at + 24 > outer.end or p[0] >> 4 != 4:
        return False
    header = (p[0] & 15) * 4
    proto = p[9]
    if header < 20 or be16(p + 6) & 0x1FFF or at + header + 4 > outer.end:
        return False
    if proto != TCP and proto != UDP and proto != SCTP:
        return False
    memset(&q.flow, 0, sizeof(Flow))
    q.flow.family = 4
    q.flow.kind = FLOW
    q.flow.proto = proto
    q.flow.l3 = <uint16_t>at
    q.flow.l4 = <uint16_t>(at + header)
    q.flow.end = outer.end
    map4(q.flow.src, p + 12)
    map4(q.flow.dst, p + 16)
    q.flow.sport = be16(frame.data + at + header)
    q.flow.dport = be16(frame.data + at + header + 2)
    return True


cdef inline uint32_t connection(Plane* plane, Quoted* q) noexcept nogil:
    """The connection whose tunnel packet this was, or NOBODY."""
    cdef uint8_t side
    cdef uint32_t index = find(&plane.table, &q.flow, hash_of(&plane.table, &q.flow), &side)
    cdef Conn* c = &plane.table.pool[index]
    cdef DestSlot* slot
    if index == NOBODY or side != SIDE_CLIENT or c.method != TUNNEL or not same16(c.daddr, q.target):
        return NOBODY
    slot = &plane.slots[c.dest]
    if slot.tun_type != q.kind or (q.kind == TUN_GUE and slot.tun_port != q.port):
        return NOBODY
    return index


cdef inline int relay(
    Plane* plane, Frame* frame, Flow* flow, Quoted* q, Conn* c, Hop* hop, uint8_t* reason
) noexcept nogil:
    """Tell the client; `hop` is the way to the real server. REPLY, or DROP if the client need not know."""
    cdef uint32_t info = be32(frame.data + flow.l4 + 4)
    cdef uint16_t message = be16(frame.data + flow.l4)
    cdef uint32_t taken, mtu
    if message == icmp.FRAG_NEEDED:
        taken = tun.overhead(&plane.slots[c.dest], 4)
        mtu = tun.path_mtu(plane, c.dest, hop)
        tun.learn(plane, c.daddr, info & 0xFFFF)
        reason[0] = TOO_BIG
        if not q.df:  # the tunnel's packets are fragmented from now on
            return DROP
        info = mtu - taken if mtu > 68 + taken else mtu
    return icmp.complain(plane, frame, &q.flow, message, info, q.flow.dst, reason)
