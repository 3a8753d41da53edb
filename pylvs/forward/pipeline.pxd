"""A frame's life, room by room: parse, conn, choose, forward; then the outbox of `plane.pxd`.

`process_batch` is the whole data plane as one function: frames and state in, a verdict for each frame and an outbox
out. It opens no socket and reads no clock. The batch goes room by room, so that the table's cache lines are fetched
for all frames before the first one needs them. The order of decisions is that of the kernel's ip_vs_in and ip_vs_out.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pylvs.forward cimport answer, dr, ftp, icmp, nat, offload, sip, tun
from pylvs.forward._sys cimport likely, prefetch, unlikely
from pylvs.forward.conn cimport (
    F_INACTIVE, F_NO_OUTPUT, F_NOTED, F_ONE_PACKET, F_TEMPLATE, NOBODY, SIDE_CLIENT, SIDE_NONE, SIDE_SERVER, Conn,
    allocate, bind, find, find_template, hang, hash_of, insert, outdate, remove, set_state, touch,
)
from pylvs.forward.fib cimport HOP_LOCAL, HOP_NONE, HOP_READY, Hop, is_local, is_martian, resolve
from pylvs.forward.packet cimport (
    ARP_REQUEST, BAD_CHECKSUM, BAD_OFFLOAD, CONTINUE, DEST_GONE, DROP, FLOW, FORWARD, FRAGMENT, HELD, ICMP_ECHO,
    ICMP_ERROR, LATER_FRAGMENT, MARTIAN, NO_REASON, NO_ROUTE, NO_SERVER, ND_SOLICITATION, PASS, REPLY, RST, SYN,
    NO_CALL_ID, TABLE_FULL, TCP, TOO_BIG, TTL_EXCEEDED, UDP, Flow,
    Frame, decrement_ttl, dont_fragment, is_mapped4, parse, same16,
    ttl_of, wire_length,
)
from pylvs.forward.pick cimport choose_server
from pylvs.forward.plane cimport Plane, has_room, retry_held
from pylvs.forward.snapshot cimport (
    MASQ, NO_SLOT, ROUTE, TUNNEL, DestSlot, Entry, Svc, find_marked, find_service, is_nat_server, is_vip,
    mark_address,
)
from pylvs.forward.state cimport (
    CLOSE, ESTABLISHED, INPUT, INPUT_ONLY, NONE, OUTPUT, TIME_WAIT, next_tcp,
)
from pylvs.forward.stats cimport Counters, count_in, count_out, count_verdict


cdef enum:
    BATCH = 64


cdef struct Result:
    uint8_t verdict
    uint8_t reason
    uint8_t kind
    uint32_t conn  # index in the table, NOBODY if none
    uint32_t dest  # slot
    uint32_t service  # slot


cdef inline int process_batch(Plane* plane, Frame* frames, int count, uint64_t now, Result* results) noexcept nogil:
    """Decide up to BATCH frames; return how many were decided (fewer only if the outbox is full: send it, go on)."""
    cdef Flow flows[BATCH]
    cdef uint64_t hashes[BATCH]
    cdef Result* r
    cdef uint32_t node
    cdef int i
    plane.now = now
    for i in range(count):  # room 2: parse
        r = &results[i]
        r.conn = NOBODY
        r.dest = NO_SLOT
        r.service = NO_SLOT
        r.verdict = <uint8_t>parse(&frames[i], plane.fib.links[frames[i].link].mac, &flows[i], &r.reason)
        r.kind = flows[i].kind
        if likely(r.verdict == CONTINUE and flows[i].kind == FLOW):
            hashes[i] = hash_of(&plane.table, &flows[i])
            prefetch(&plane.table.heads[hashes[i] & plane.table.mask])
    for i in range(count):  # room 3 begins: the connections, fetched for all
        if likely(results[i].verdict == CONTINUE and flows[i].kind == FLOW):
            node = plane.table.heads[hashes[i] & plane.table.mask] >> 1
            prefetch(&plane.table.pool[node])
            prefetch(<uint8_t*>&plane.table.pool[node] + 64)
    for i in range(count):
        if unlikely(not has_room(plane)):
            return i
        r = &results[i]
        plane.cause = <uint16_t>i
        if likely(r.verdict == CONTINUE):
            if unlikely(not plane.snapshot.serves[flows[i].family]):
                r.verdict = PASS  # without any service of its family the kernel's IPVS is out of the way altogether
            elif likely(flows[i].kind == FLOW):
                r.verdict = <uint8_t>decide(plane, &frames[i], &flows[i], hashes[i], r)
            else:
                r.verdict = <uint8_t>decide_other(plane, &frames[i], &flows[i], r)
        if likely(r.verdict != HELD):
            count_verdict(&plane.totals, r.verdict, r.reason)
    return count


# ------------------------------------------------------------------------------------------------- room 3: conn


cdef inline int decide(Plane* plane, Frame* frame, Flow* flow, uint64_t h, Result* r) noexcept nogil:
    """A TCP, UDP or SCTP packet: of a connection, or the first of one."""
    cdef uint8_t side
    cdef uint32_t index = find(&plane.table, flow, h, &side)
    if unlikely(frame.offload.gso_type or frame.offload.flags) and not offload.sane(frame, flow):
        r.reason = BAD_OFFLOAD
        return DROP
    if unlikely(index == NOBODY and plane.table.unported):
        index = ftp.find_unported(&plane.table, flow)
        side = SIDE_CLIENT
        if index:
            ftp.learn_port(&plane.table, index, flow.sport)
    if index and unlikely(plane.table.pool[index].expires <= plane.now) and not plane.table.pool[index].controlled:
        remove(&plane.table, index)  # its time came before the wheel did
        index = NOBODY
    if index == NOBODY:
        return schedule(plane, frame, flow, r)
    if side == SIDE_SERVER:
        return outbound(plane, frame, flow, index, r)
    return inbound(plane, frame, flow, index, r)


cdef inline bint reusable(Plane* plane, Conn* c) noexcept nogil:
    """May a new SYN start this finished connection anew (conn_reuse_mode)?"""
    return (
        plane.settings.conn_reuse_mode != 0 and c.control == NOBODY and c.proto == TCP
        and (c.state == TIME_WAIT or c.state == CLOSE)
    )


cdef inline int inbound(Plane* plane, Frame* frame, Flow* flow, uint32_t index, Result* r) noexcept nogil:
    """From the client, of a known connection."""
    cdef Conn* c = &plane.table.pool[index]
    if unlikely(flow.proto == TCP and flow.tcp_flags & SYN) and not c.controlled:
        if reusable(plane, c) or (
            plane.settings.expire_nodest_conn and c.dest != NO_SLOT and plane.slots[c.dest].weight == 0
        ):
            remove(&plane.table, index)
            return schedule(plane, frame, flow, r)
    r.conn = index
    r.dest = c.dest
    r.service = plane.dests[c.dest].service
    if unlikely(not plane.slots[c.dest].available):
        if plane.settings.expire_nodest_conn and not c.controlled:
            r.conn = NOBODY
            remove(&plane.table, index)
            return schedule(plane, frame, flow, r)
        r.reason = DEST_GONE
        return DROP
    return forward(plane, frame, flow, c, r)


cdef inline void step(Plane* plane, Flow* flow, Conn* c, int direction) noexcept nogil:
    """Move the protocol's state; the timeout is that of the state, as it is now."""
    cdef uint8_t state
    if c.proto == TCP:
        state = next_tcp(c.state, direction, flow.tcp_flags)
        set_state(&plane.table, c, state, plane.timeouts.tcp[state], plane.now)
        if c.control and state == ESTABLISHED:
            plane.table.pool[c.control].state = 1  # the template is assured
    else:
        set_state(&plane.table, c, ESTABLISHED, plane.timeouts.udp, plane.now)
        if c.control and direction == OUTPUT:
            plane.table.pool[c.control].state = 1


cdef inline void book_in(Plane* plane, uint32_t dest, uint32_t size) noexcept nogil:
    count_in(&plane.dests[dest].counters, size)
    count_in(&plane.services[plane.dests[dest].service], size)
    count_in(&plane.total, size)


cdef inline void book_out(Plane* plane, uint32_t dest, uint32_t size) noexcept nogil:
    count_out(&plane.dests[dest].counters, size)
    count_out(&plane.services[plane.dests[dest].service], size)
    count_out(&plane.total, size)


# ------------------------------------------------------------------------------------------------- room 4: choose


cdef inline int schedule(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """The first packet of a flow: find the service, pick a real server, create the connection."""
    cdef Svc* svc
    cdef Entry* entry
    cdef Conn* c
    cdef uint32_t index
    cdef int verdict
    if flow.proto == TCP and (flow.tcp_flags & RST or (not flow.tcp_flags & SYN and not plane.settings.sloppy_tcp)):
        return leave(plane, frame, flow, r)
    if unlikely(plane.snapshot.any_engine) and flow.proto == UDP:
        index = call_out(plane, frame, flow)
        if index:
            verdict = outbound(plane, frame, flow, index, r)
            if plane.table.pool[index].flags & F_ONE_PACKET:
                remove(&plane.table, index)
                r.conn = NOBODY
            return verdict
    svc = NULL
    if plane.snapshot.mark_count:
        svc = find_marked(plane.snapshot, flow.family, flow.proto, flow.src, flow.dst, flow.dport)
    if svc is NULL:
        svc = find_service(plane.snapshot, flow.proto, flow.dst, flow.dport)
    if svc is NULL or (flow.proto != TCP and flow.proto != UDP):
        return leave(plane, frame, flow, r)
    if flow.sport == 20:  # FTP data of a real server is never scheduled
        return leave(plane, frame, flow, r)
    r.service = svc.slot
    if is_martian(plane.fib, flow.src):
        r.reason = MARTIAN
        return DROP
    if svc.persistent:
        index = persist(plane, frame, flow, svc, &r.reason)
    else:
        entry = NULL
        if svc.mark or svc.port == flow.dport:  # a service of all ports serves persistent clients only
            entry = choose_server(plane.snapshot, svc, plane.slots, plane.cursors)
        if entry is NULL:
            index = NOBODY
            r.reason = NO_SERVER
        else:
            index = create(
                plane, flow, svc, entry.dest, entry.method, entry.address, entry.port if entry.port else flow.dport
            )
            r.reason = TABLE_FULL if index == NOBODY else NO_REASON
    if index == NOBODY:
        if r.reason == TABLE_FULL or r.reason == NO_CALL_ID:
            return DROP
        if svc.port == 21 and flow.dport != 21:
            r.reason = NO_REASON
            return leave(plane, frame, flow, r)
        return icmp.complain_port(plane, frame, flow, flow.dst, &r.reason)
    c = &plane.table.pool[index]
    r.conn = index
    r.dest = c.dest
    verdict = forward(plane, frame, flow, c, r)
    if c.flags & F_ONE_PACKET:
        remove(&plane.table, index)
        r.conn = NOBODY
    return verdict


cdef inline bint usable(Plane* plane, Conn* template) noexcept nogil:
    """May a template still decide? Not if its server is gone, or is quiescent and that is to end templates."""
    cdef DestSlot* slot
    if template.dest == NO_SLOT:
        return False
    slot = &plane.slots[template.dest]
    return slot.available and not (plane.settings.expire_quiescent_template and slot.weight == 0)


cdef inline uint32_t persist(Plane* plane, Frame* frame, Flow* flow, Svc* svc, uint8_t* reason) noexcept nogil:
    """A connection of a persistent service: where the client's template says, or where a new template is made to say.

    The template is by client (masked) and service port; by client and address for FTP and services of all ports; by
    client and mark for firewall marks; with the engine sip, by the Call-ID as well.
    """
    cdef uint8_t client[16]
    cdef uint8_t address[16]
    cdef uint16_t vport = 0
    cdef uint8_t proto = flow.proto
    cdef uint16_t dport = flow.dport
    cdef uint32_t index, created
    cdef DestSlot* slot
    cdef Conn* t
    cdef Entry* entry
    cdef sip.CallId call
    cdef int i
    if svc.engine and not sip.read_call_id(&plane.table, frame, flow, &call):
        reason[0] = NO_CALL_ID
        return NOBODY
    for i in range(16):
        client[i] = flow.src[i] & svc.mask[i]
    memcpy(address, flow.dst, 16)
    if svc.mark:
        mark_address(address, flow.family, svc.mark)
        proto = 0
    elif flow.dport == svc.port and svc.port != 21:
        vport = flow.dport
    if svc.engine:
        index = sip.find_call(&plane.table, flow.family, proto, client, address, vport, &call)
    else:
        index = find_template(&plane.table, flow.family, proto, client, address, vport)
    if index and plane.table.pool[index].expires <= plane.now and not plane.table.pool[index].controlled:
        remove(&plane.table, index)
        index = NOBODY
    if index and not usable(plane, &plane.table.pool[index]):
        outdate(&plane.table, index)
        index = NOBODY
    if index == NOBODY:
        entry = choose_server(plane.snapshot, svc, plane.slots, plane.cursors)
        if entry is NULL:
            reason[0] = NO_SERVER
            return NOBODY
        index = allocate(&plane.table)
        if index == NOBODY:
            reason[0] = TABLE_FULL
            return NOBODY
        t = &plane.table.pool[index]
        memcpy(t.caddr, client, 16)
        memcpy(t.vaddr, address, 16)
        memcpy(t.daddr, entry.address, 16)
        t.vport = vport
        t.dport = entry.port if vport else 0
        t.proto = proto
        t.family = flow.family
        t.method = entry.method
        t.flags = F_TEMPLATE
        t.timeout = svc.persistent
        touch(t, plane.now)
        if svc.engine:
            sip.remember(&plane.table, index, &call)
        bind(&plane.table, t, entry.dest)
        insert(&plane.table, index, False)
    t = &plane.table.pool[index]
    slot = &plane.slots[t.dest]
    if dport == svc.port and slot.port:
        dport = <uint16_t>slot.port
    touch(t, plane.now)
    created = create(plane, flow, svc, t.dest, <uint8_t>slot.method, t.daddr, dport)
    if created == NOBODY:
        reason[0] = TABLE_FULL
        return NOBODY
    reason[0] = NO_REASON
    hang(&plane.table, &plane.table.pool[created], index)
    return created


cdef inline uint32_t create(
    Plane* plane, Flow* flow, Svc* svc, uint32_t dest, uint8_t method, const uint8_t* address, uint16_t dport
) noexcept nogil:
    """A connection of `flow` to a real server, in the table unless it is for one packet only."""
    cdef uint32_t index = allocate(&plane.table)
    cdef Conn* c
    if index == NOBODY:
        return NOBODY
    c = &plane.table.pool[index]
    memcpy(c.caddr, flow.src, 16)
    memcpy(c.vaddr, flow.dst, 16)
    memcpy(c.daddr, address, 16)
    c.cport = flow.sport
    c.vport = flow.dport
    c.dport = dport
    c.proto = flow.proto
    c.family = flow.family
    c.method = method
    c.flags = F_INACTIVE | (0 if method == MASQ else F_NO_OUTPUT)
    c.timeout = 3000
    touch(c, plane.now)
    if method == MASQ:
        nat.prepare(c)
    plane.dests[dest].service = svc.slot
    bind(&plane.table, c, dest)
    if svc.one_packet and flow.proto == UDP:
        c.flags |= F_ONE_PACKET
    else:
        if unlikely(ftp.is_control(plane, flow, method)):
            ftp.watch(&plane.table, index)
        insert(&plane.table, index, method == MASQ)
    plane.dests[dest].counters.conns += 1
    plane.services[svc.slot].conns += 1
    plane.total.conns += 1
    return index


cdef inline uint32_t call_out(Plane* plane, Frame* frame, Flow* flow) noexcept nogil:
    """A connection for a packet that a real server of a SIP service sends first; NOBODY if it is none.

    It is as if the packet's receiver had called the service and been sent to this server; its template, too.
    """
    cdef Entry* entry
    cdef Svc* svc = sip.caller_of(plane.snapshot, flow, &entry)
    cdef Flow back
    cdef sip.CallId call
    cdef uint8_t client[16]
    cdef uint32_t index = NOBODY
    cdef uint32_t created
    cdef Conn* t
    cdef int i
    if svc is NULL:
        return NOBODY
    if svc.persistent:
        if not sip.read_call_id(&plane.table, frame, flow, &call):
            return NOBODY
        for i in range(16):
            client[i] = flow.dst[i] & svc.mask[i]
        index = sip.find_call(&plane.table, flow.family, UDP, client, svc.address, svc.port, &call)
        if index and (plane.table.pool[index].dest != entry.dest or not usable(plane, &plane.table.pool[index])):
            outdate(&plane.table, index)
            index = NOBODY
        if index == NOBODY:
            index = allocate(&plane.table)
            if index == NOBODY:
                return NOBODY
            t = &plane.table.pool[index]
            memcpy(t.caddr, client, 16)
            memcpy(t.vaddr, svc.address, 16)
            memcpy(t.daddr, flow.src, 16)
            t.vport = svc.port
            t.dport = flow.sport
            t.proto = UDP
            t.family = flow.family
            t.method = MASQ
            t.flags = F_TEMPLATE
            t.timeout = svc.persistent
            sip.remember(&plane.table, index, &call)
            bind(&plane.table, t, entry.dest)
            insert(&plane.table, index, False)
        touch(&plane.table.pool[index], plane.now)
    memcpy(&back, flow, sizeof(Flow))
    memcpy(back.src, flow.dst, 16)
    memcpy(back.dst, svc.address, 16)
    back.sport = flow.dport
    back.dport = svc.port
    created = create(plane, &back, svc, entry.dest, MASQ, flow.src, flow.sport)
    if created and index:
        hang(&plane.table, &plane.table.pool[created], index)
    return created


# ------------------------------------------------------------------------------------------------- room 5: forward


cdef inline Hop* hop_of(Plane* plane, Conn* c) noexcept nogil:
    """The way to the connection's real server, looked up again when the host's view has changed."""
    cdef Hop* hop = &plane.dests[c.dest].hop
    if unlikely(hop.generation != plane.fib.generation):
        resolve(plane.fib, c.daddr, not is_mapped4(c.daddr), c.method == ROUTE, hop)
    return hop


cdef inline int forward(Plane* plane, Frame* frame, Flow* flow, Conn* c, Result* r) noexcept nogil:
    """Client to server: count, move the state, send by the connection's method, restart the timer."""
    cdef int verdict
    book_in(plane, c.dest, flow.end - flow.l3)
    step(plane, flow, c, INPUT_ONLY if c.flags & F_NO_OUTPUT else INPUT)
    verdict = send(plane, frame, flow, c, NULL, r)
    c.packets += 1
    touch(c, plane.now)
    return verdict


cdef inline int send(Plane* plane, Frame* frame, Flow* flow, Conn* c, icmp.Embedded* inner, Result* r) noexcept nogil:
    """Send a client's packet, or (with `inner`) its ICMP error, to the connection's real server."""
    cdef Hop* hop = hop_of(plane, c)
    cdef uint8_t outer_family = 4
    cdef uint32_t mtu = hop.mtu
    if unlikely(hop.status != HOP_READY):
        if hop.status == HOP_NONE:
            r.reason = NO_ROUTE
            return DROP
        if hop.status == HOP_LOCAL and c.method != MASQ:
            return PASS  # the host itself is the real server, and has the VIP
    if hop.status != HOP_LOCAL:
        if unlikely(ttl_of(frame, flow) <= 1):
            r.reason = TTL_EXCEEDED
            return icmp.complain_ttl(plane, frame, flow, flow.dst, &r.reason)
        decrement_ttl(frame, flow)
    if c.method == TUNNEL:
        outer_family = 4 if is_mapped4(c.daddr) else 6
        mtu = mtu - tun.overhead(outer_family) if mtu > 68 + tun.overhead(outer_family) else 68
    if unlikely(wire_length(frame, flow) > mtu) and dont_fragment(frame, flow):
        if flow.family == 6 or c.method != TUNNEL or plane.settings.pmtu_disc:
            r.reason = TOO_BIG
            return icmp.complain_size(plane, frame, flow, mtu, flow.dst, &r.reason)
    if c.method == ROUTE:
        return dr.send(plane, frame, flow, hop, &r.reason)
    if c.method == MASQ:
        if inner is not NULL:
            icmp.translate_in(frame, flow, inner, c)
            return dr.send(plane, frame, flow, hop, &r.reason)
        if unlikely(c.flags & F_NOTED) and not (<ftp.Watch>plane.watch_client)(plane, frame, flow, c, &r.reason):
            return DROP
        return nat.send_in(plane, frame, flow, c, hop, &r.reason)
    return tun.send(plane, frame, flow, outer_family, c.daddr, hop, &r.reason)


cdef inline void reply_hop(Plane* plane, Flow* flow, Conn* c, Hop* hop) noexcept nogil:
    """The way to the client, remembered in the connection while the host's view stays the same."""
    if likely(c.reply_generation == plane.fib.generation):
        hop.status = HOP_READY
        hop.link = c.reply_link
        hop.mtu = c.reply_mtu
        memcpy(hop.mac, c.reply_mac, 6)
        return
    resolve(plane.fib, c.caddr, flow.family == 6, False, hop)
    if hop.status == HOP_READY:
        c.reply_generation = plane.fib.generation
        c.reply_link = hop.link
        c.reply_mtu = <uint16_t>(hop.mtu if hop.mtu < 65535 else 65535)
        memcpy(c.reply_mac, hop.mac, 6)


cdef inline int routable(Plane* plane, Frame* frame, Flow* flow, Hop* hop, Result* r) noexcept nogil:
    """What a router checks before it forwards: route, TTL, size. CONTINUE, or the verdict.

    Errors about replies come from the host's own address, before any translation, as the kernel's forwarding does it.
    """
    if unlikely(hop.status == HOP_NONE):
        r.reason = NO_ROUTE
        return DROP
    if unlikely(hop.status == HOP_LOCAL):
        return PASS
    if unlikely(ttl_of(frame, flow) <= 1):
        r.reason = TTL_EXCEEDED
        return icmp.complain_ttl(plane, frame, flow, NULL, &r.reason)
    if unlikely(wire_length(frame, flow) > hop.mtu) and dont_fragment(frame, flow):
        r.reason = TOO_BIG
        return icmp.complain_size(plane, frame, flow, hop.mtu, NULL, &r.reason)
    decrement_ttl(frame, flow)
    return CONTINUE


cdef inline int outbound(Plane* plane, Frame* frame, Flow* flow, uint32_t index, Result* r) noexcept nogil:
    """Server to client, of a NAT connection."""
    cdef Conn* c = &plane.table.pool[index]
    cdef Hop hop
    cdef int verdict
    r.conn = index
    r.dest = c.dest
    r.service = plane.dests[c.dest].service
    reply_hop(plane, flow, c, &hop)
    verdict = routable(plane, frame, flow, &hop, r)
    if unlikely(verdict != CONTINUE):
        return verdict
    if unlikely(c.flags & F_NOTED) and not (<ftp.Watch>plane.watch_server)(plane, frame, flow, c, &r.reason):
        return DROP
    book_out(plane, c.dest, flow.end - flow.l3)
    c.flags &= <uint32_t>~F_NO_OUTPUT
    step(plane, flow, c, OUTPUT)
    touch(c, plane.now)
    return nat.send_out(plane, frame, flow, c, &hop, &r.reason)


# --------------------------------------------------------------------------------- what is not of any connection


cdef inline int leave(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """Leave a packet to the host's stack, or stand in for it where it cannot see the packet.

    It cannot if the VIP is on none of its interfaces, or if the guard covers the packet: then a TCP segment gets a
    reset, a datagram a port unreachable, and a packet that only passes through is routed on.
    """
    if flow.proto != TCP and flow.proto != UDP:
        return PASS
    if is_vip(plane.snapshot, flow.dst):
        if is_local(plane.fib, flow.dst):
            if not plane.snapshot.guarded or find_service(plane.snapshot, flow.proto, flow.dst, flow.dport) is NULL:
                return PASS
        if flow.proto == TCP:
            return answer.answer_reset(plane, frame, flow, &r.reason)
        r.reason = NO_SERVER
        return icmp.complain_port(plane, frame, flow, flow.dst, &r.reason)
    if (plane.snapshot.guarded or plane.settings.nat_icmp_send) and is_nat_server(
        plane.snapshot, flow.proto, flow.src, flow.sport
    ):
        if plane.settings.nat_icmp_send and not (flow.proto == TCP and flow.tcp_flags & RST):
            return stray_reply(plane, frame, flow, r)
        if (plane.fib.forwarding4 if flow.family == 4 else plane.fib.forwarding6) and not is_local(plane.fib, flow.dst):
            return route_on(plane, frame, flow, r)
    return PASS


cdef inline int stray_reply(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """A real server's packet without connection, with nat_icmp_send: port unreachable, from the host's own address."""
    cdef Hop hop
    cdef int verdict
    resolve(plane.fib, flow.dst, flow.family == 6, False, &hop)
    verdict = routable(plane, frame, flow, &hop, r)
    if verdict != CONTINUE:
        return verdict
    r.reason = NO_SERVER
    return icmp.complain_port(plane, frame, flow, NULL, &r.reason)


cdef inline int route_on(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """Forward a packet as the host's routing would, unchanged but for the TTL."""
    cdef Hop hop
    cdef int verdict
    resolve(plane.fib, flow.dst, flow.family == 6, False, &hop)
    verdict = routable(plane, frame, flow, &hop, r)
    if verdict != CONTINUE:
        return verdict
    return dr.send(plane, frame, flow, &hop, &r.reason)


cdef inline bint ours_alone(Plane* plane, const uint8_t* address) noexcept nogil:
    """Is this a VIP that no interface of the host has, so that we speak for it?"""
    return is_vip(plane.snapshot, address) and not is_local(plane.fib, address)


cdef inline int decide_other(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """Everything but TCP, UDP and SCTP packets with ports."""
    cdef uint8_t target[16]
    if flow.kind == ICMP_ERROR:
        return related(plane, frame, flow, r)
    if flow.kind == ARP_REQUEST:
        if ours_alone(plane, flow.dst) and not same16(flow.src, flow.dst):
            return answer.answer_arp(plane, frame, flow)
        return PASS
    if flow.kind == ND_SOLICITATION:
        memcpy(target, answer.solicited(frame, flow), 16)
        return answer.answer_nd(plane, frame, flow) if ours_alone(plane, target) else PASS
    if flow.kind == ICMP_ECHO:
        return answer.answer_echo(plane, frame, flow, &r.reason) if ours_alone(plane, flow.dst) else PASS
    if flow.kind == LATER_FRAGMENT and (flow.proto == TCP or flow.proto == UDP) and is_vip(plane.snapshot, flow.dst):
        r.reason = FRAGMENT
        return DROP
    return PASS


cdef inline int related(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """An ICMP error: if it speaks of one of our connections, translate it and send it the connection's way."""
    cdef icmp.Embedded inner
    cdef uint8_t side
    cdef uint32_t index
    cdef Conn* c
    cdef Hop hop
    cdef int verdict
    if not icmp.parse_embedded(frame, flow, &inner):
        return PASS
    index = find(&plane.table, &inner.flow, hash_of(&plane.table, &inner.flow), &side)
    if index == NOBODY:
        return PASS
    c = &plane.table.pool[index]
    r.conn = index
    r.dest = c.dest
    r.service = plane.dests[c.dest].service
    if not icmp.intact(frame, flow):
        r.reason = BAD_CHECKSUM
        return DROP
    if side == SIDE_CLIENT:
        book_in(plane, c.dest, flow.end - flow.l3)
        return send(plane, frame, flow, c, &inner, r)
    resolve(plane.fib, c.caddr, flow.family == 6, False, &hop)
    verdict = routable(plane, frame, flow, &hop, r)
    if verdict != CONTINUE:
        return verdict
    book_out(plane, c.dest, flow.end - flow.l3)
    icmp.translate_out(frame, flow, &inner, c)
    return dr.send(plane, frame, flow, &hop, &r.reason)
