"""Room 5, NAT (masq): addresses and ports exchanged, checksums corrected by a delta computed once per connection.

Client to server: destination VIP:vport becomes RIP:rport. Server to client: source RIP:rport becomes VIP:vport. A UDP
checksum of zero ("none") is replaced by a computed one in both directions, and a computed zero is written as 0xffff
(RFC 768), as the kernel does. Offloaded frames carry only the pseudo-header sum, which ports are no part of. SCTP's
checksum covers no addresses: it is computed anew where the port changes, and only there.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from pylvs.forward cimport checksum, crc32c, offload
from pylvs.forward._sys cimport unlikely
from pylvs.forward.conn cimport Conn
from pylvs.forward.fib cimport Hop
from pylvs.forward.fragment cimport send_fitting
from pylvs.forward.packet cimport SCTP, TCP, UDP, Flow, Frame, address_size, be16, put16, wire_address
from pylvs.forward.plane cimport Plane


cdef inline void prepare(Conn* c) noexcept nogil:
    """Compute the connection's deltas; done once, when it is created."""
    cdef uint32_t size = address_size(c.family)
    cdef uint64_t delta
    delta = checksum.delta_bytes(wire_address(c.family, c.vaddr), wire_address(c.family, c.daddr), size)
    c.address_delta = checksum.fold(delta)
    c.port_delta = checksum.fold(
        <uint64_t>c.address_delta + checksum.delta16(checksum.swapped(c.vport), checksum.swapped(c.dport))
    )


cdef inline void fix_l4(Frame* frame, Flow* flow, uint16_t address_delta, uint16_t port_delta) noexcept nogil:
    """Correct the layer-4 checksum after addresses and ports have been exchanged."""
    cdef uint8_t* field
    if flow.proto != TCP and flow.proto != UDP:
        return
    field = frame.data + flow.l4 + offload.check_offset(flow.proto)
    if offload.is_partial(frame, flow):
        checksum.update_partial(field, address_delta)
        return
    if flow.proto == UDP and field[0] == 0 and field[1] == 0:
        offload.finish_checksum(frame.data + flow.l3, flow, flow.end - flow.l4)
        return
    checksum.update(field, port_delta)
    if flow.proto == UDP and field[0] == 0 and field[1] == 0:
        checksum.put_short(field, 0xFFFF)


cdef inline void renumber_sctp(Frame* frame, Flow* flow, uint32_t at, uint16_t port) noexcept nogil:
    """Write the port at offset `at` of an SCTP packet."""
    cdef uint8_t* p = frame.data + flow.l4
    if be16(p + at) != port:
        put16(p + at, port)
        crc32c.seal(p, flow.end - flow.l4)


cdef inline void rewrite_in(Frame* frame, Flow* flow, Conn* c) noexcept nogil:
    """Client to server: VIP:vport -> RIP:rport."""
    cdef uint8_t* ip = frame.data + flow.l3
    if flow.family == 4:
        memcpy(ip + 16, c.daddr + 12, 4)
        checksum.update(ip + 10, c.address_delta)
    else:
        memcpy(ip + 24, c.daddr, 16)
    if unlikely(flow.proto == SCTP):
        renumber_sctp(frame, flow, 2, c.dport)
        return
    put16(frame.data + flow.l4 + 2, c.dport)
    fix_l4(frame, flow, c.address_delta, c.port_delta)


cdef inline void rewrite_out(Frame* frame, Flow* flow, Conn* c) noexcept nogil:
    """Server to client: RIP:rport -> VIP:vport; the deltas of the other way, negated."""
    cdef uint8_t* ip = frame.data + flow.l3
    if flow.family == 4:
        memcpy(ip + 12, c.vaddr + 12, 4)
        checksum.update(ip + 10, <uint16_t>~c.address_delta)
    else:
        memcpy(ip + 8, c.vaddr, 16)
    if unlikely(flow.proto == SCTP):
        renumber_sctp(frame, flow, 0, c.vport)
        return
    put16(frame.data + flow.l4, c.vport)
    fix_l4(frame, flow, <uint16_t>~c.address_delta, <uint16_t>~c.port_delta)


cdef inline int send_in(Plane* plane, Frame* frame, Flow* flow, Conn* c, Hop* hop, uint8_t* reason) noexcept nogil:
    """To the real server."""
    rewrite_in(frame, flow, c)
    return send_fitting(plane, frame, flow, hop, reason)


cdef inline int send_out(Plane* plane, Frame* frame, Flow* flow, Conn* c, Hop* hop, uint8_t* reason) noexcept nogil:
    """To the client."""
    rewrite_out(frame, flow, c)
    return send_fitting(plane, frame, flow, hop, reason)
