"""What pylvs answers in the host's place: for a VIP that no interface has, and for frames that the guard keeps back.

ARP requests and neighbour solicitations for the VIP, pings to it, and, as the host's stack would, a reset for a TCP
segment that belongs to nothing and a port unreachable for a datagram to a closed port (RFC 826, RFC 4861 §7.2.4,
RFC 9293 §3.10.7.1).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from pylvs.forward cimport checksum, icmp, offload
from pylvs.forward.fib cimport FibLink, Hop, resolve
from pylvs.forward.packet cimport (
    ACK, BAD_CHECKSUM, DROP, FIN, FORWARD, HELD, ICMP6, PASS, REPLY, RST, SYN, TCP, TOO_BIG, Flow, Frame,
    address_size, be32, is_mapped4, map4, put16, put32, same16,
)
from pylvs.forward.plane cimport Plane, emit, scratch, transmit


cdef inline int answer_arp(Plane* plane, Frame* frame, Flow* flow) noexcept nogil:
    """The VIP is at the link's own MAC; a VLAN tag stays."""
    cdef FibLink* link = &plane.fib.links[frame.link]
    cdef uint32_t length = flow.l3 + 28
    cdef uint8_t* p = scratch(plane, length)
    cdef uint8_t* arp = p + flow.l3
    memcpy(p, frame.data, length)
    memcpy(p, frame.data + 6, 6)
    memcpy(p + 6, link.mac, 6)
    put16(arp + 6, 2)
    memcpy(arp + 18, frame.data + flow.l3 + 8, 10)
    memcpy(arp + 8, link.mac, 6)
    memcpy(arp + 14, flow.dst + 12, 4)
    emit(plane, p, length, frame.link, NULL)
    return REPLY


cdef inline const uint8_t* solicited(Frame* frame, Flow* flow) noexcept nogil:
    """The address that a neighbour solicitation asks for."""
    return frame.data + flow.l4 + 8


cdef inline int answer_nd(Plane* plane, Frame* frame, Flow* flow) noexcept nogil:
    """A neighbour advertisement: solicited and override; to all nodes if the asker has no address yet."""
    cdef FibLink* link = &plane.fib.links[frame.link]
    cdef uint32_t length = flow.l3 + 40 + 32
    cdef uint8_t* p
    cdef uint8_t* ip
    cdef uint8_t* nd
    cdef bint probing = flow.src[0] == 0
    cdef uint8_t target[16]
    if frame.data[flow.l3 + 7] != 255 or not icmp.intact(frame, flow):
        return PASS
    memcpy(target, solicited(frame, flow), 16)
    p = scratch(plane, length)
    memcpy(p, frame.data, flow.l3)
    memcpy(p, frame.data + 6, 6)
    memcpy(p + 6, link.mac, 6)
    ip = p + flow.l3
    nd = ip + 40
    icmp.head(plane, ip, 6, 0, 32, 255, target, flow.src)
    if probing:
        memset(ip + 24, 0, 16)
        ip[24] = 0xFF
        ip[25] = 0x02
        ip[39] = 1
        memcpy(p, <const uint8_t*>b"\x33\x33\x00\x00\x00\x01", 6)
    memset(nd, 0, 32)
    nd[0] = 136
    nd[4] = 0x20 if probing else 0x60
    memcpy(nd + 8, target, 16)
    nd[24] = 2
    nd[25] = 1
    memcpy(nd + 26, link.mac, 6)
    icmp.seal(ip, 6, 32)
    emit(plane, p, length, frame.link, NULL)
    return REPLY


cdef inline int answer_echo(Plane* plane, Frame* frame, Flow* flow, uint8_t* reason) noexcept nogil:
    """Echo reply with the request's data, TTL 64, by the host's route to the sender."""
    cdef uint32_t header = 20 if flow.family == 4 else 40
    cdef uint32_t size = flow.end - flow.l4
    cdef Frame echo
    cdef Hop hop
    cdef uint8_t* ip
    cdef int verdict
    cdef uint8_t ignored = 0
    if not icmp.intact(frame, flow):
        reason[0] = BAD_CHECKSUM
        return DROP
    memset(&echo, 0, sizeof(Frame))
    echo.own = True
    echo.length = flow.l3 + header + size
    echo.data = scratch(plane, echo.length)
    memcpy(echo.data + 12, frame.data + 12, flow.l3 - 12)
    ip = echo.data + flow.l3
    icmp.head(
        plane, ip, flow.family, frame.data[flow.l3 + 1] if flow.family == 4 else 0, size, 64, flow.dst, flow.src
    )
    memcpy(ip + header, frame.data + flow.l4, size)
    ip[header] = 0 if flow.family == 4 else 129
    icmp.seal(ip, flow.family, size)
    resolve(plane.fib, flow.src, flow.family == 6, False, &hop)
    verdict = transmit(plane, &echo, &hop, flow.family == 6, &ignored)
    reason[0] = ignored
    return REPLY if verdict == FORWARD or verdict == HELD else DROP


cdef inline int answer_reset(Plane* plane, Frame* frame, Flow* flow, uint8_t* reason) noexcept nogil:
    """A TCP reset as the VIP's host would send it; none in answer to a reset."""
    cdef uint8_t* tcp = frame.data + flow.l4
    cdef uint32_t header = 20 if flow.family == 4 else 40
    cdef uint32_t data = (tcp[12] >> 4) * 4
    cdef Frame rst
    cdef Flow back
    cdef Hop hop
    cdef uint8_t* ip
    cdef uint8_t* out
    cdef int verdict
    cdef uint8_t ignored = 0
    if flow.tcp_flags & RST or data < 20 or flow.l4 + data > flow.end:
        return PASS
    data = flow.end - flow.l4 - data + (1 if flow.tcp_flags & SYN else 0) + (1 if flow.tcp_flags & FIN else 0)
    memset(&rst, 0, sizeof(Frame))
    rst.own = True
    rst.length = flow.l3 + header + 20
    rst.data = scratch(plane, rst.length)
    memcpy(rst.data + 12, frame.data + 12, flow.l3 - 12)
    ip = rst.data + flow.l3
    out = ip + header
    icmp.head(plane, ip, flow.family, 0, 20, 64, flow.dst, flow.src)
    ip[9 if flow.family == 4 else 6] = TCP
    if flow.family == 4:
        put16(ip + 4, 0)
        put16(ip + 6, 0x4000)
        memset(ip + 10, 0, 2)
        checksum.put_short(ip + 10, <uint16_t>~checksum.fold(checksum.add(ip, 20, 0)))
    memset(out, 0, 20)
    put16(out, flow.dport)
    put16(out + 2, flow.sport)
    out[12] = 0x50
    if flow.tcp_flags & ACK:
        memcpy(out + 4, tcp + 8, 4)
        out[13] = RST
    else:
        put32(out + 8, be32(tcp + 4) + data)
        out[13] = RST | ACK
    back.family = flow.family
    back.proto = TCP
    back.l3 = flow.l3
    back.l4 = <uint16_t>(flow.l3 + header)
    offload.finish_checksum(ip, &back, 20)
    resolve(plane.fib, flow.src, flow.family == 6, False, &hop)
    verdict = transmit(plane, &rst, &hop, flow.family == 6, &ignored)
    reason[0] = ignored
    return REPLY if verdict == FORWARD or verdict == HELD else DROP
