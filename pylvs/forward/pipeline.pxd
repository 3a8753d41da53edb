"""A frame's life, room by room: parse, conn, choose, forward; then the outbox of `plane.pxd`.

`process_batch` is the whole data plane as one function: frames and state in, a verdict for each frame and an outbox
out. It opens no socket and reads no clock. The batch goes room by room, so that the table's cache lines are fetched
for all frames before the first one needs them. The order of decisions is that of the kernel's ip_vs_in and ip_vs_out.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from pylvs.forward cimport answer, dr, ftp, icmp, ipsec, nat, offload, options, sip, tun, tunnelled
from pylvs.forward._sys cimport likely, prefetch, unlikely
from pylvs.forward.conn cimport (
    F_INACTIVE, F_NO_OUTPUT, F_NOTED, F_ONE_PACKET, F_TEMPLATE, NOBODY, SIDE_CLIENT, SIDE_NONE, SIDE_SERVER, Conn,
    allocate, bind, find, find_template, hang, hash_of, insert, outdate, remove, set_state, touch,
)
from pylvs.forward.defence cimport drops_packet
from pylvs.forward.fib cimport HOP_LOCAL, HOP_NONE, HOP_READY, Hop, is_local, is_loopback, is_martian, resolve
from pylvs.forward.packet cimport (
    AH, ARP_REQUEST, BAD_CHECKSUM, BAD_OFFLOAD, BAD_OPTION, CONTINUE, DEFENCE, DEST_GONE, DROP, ESP, FLOW, FORWARD,
    GSO_WHOLE, HEADER_CHAIN, HELD, ICMP, ICMP6, ICMP_ECHO, ICMP_ERROR, IPSEC, LATER_FRAGMENT, LOOPBACK_SERVER,
    MARTIAN, ND_SOLICITATION, NO_CALL_ID, NO_REASON, NO_ROUTE, NO_SERVER, OPTIONED, PASS, REPLY, RST, SCTP, SYN,
    TABLE_FULL, TCP, TOO_BIG, TRUNCATED, TTL_EXCEEDED, TX_FULL, UDP, Flow, Frame, decrement_ttl, dont_fragment,
    is_mapped4, parse, same16, ttl_of, wire_length,
)
from pylvs.forward.pick cimport choose_server
from pylvs.forward.plane cimport HEADROOM, Plane, has_room, retry_held, scratch
from pylvs.forward.reassembly cimport Datagram, assemble, book, release, take, unbook
from pylvs.forward.sctp cimport (
    CHUNK_ABORT, CHUNK_INIT, NO_CHUNK, NO_EVENT, SCTP_CLOSED, event_of, first_chunk, next_sctp,
)
from pylvs.forward.snapshot cimport (
    MASQ, NO_SLOT, ROUTE, TUNNEL, DestSlot, Entry, Svc, find_marked, find_service, is_nat_address, is_nat_server,
    is_vip, mark_address,
)
from pylvs.forward.state cimport (
    CLOSE, ESTABLISHED, FIN_WAIT, INPUT, INPUT_ONLY, OUTPUT, TIME_WAIT, next_tcp,
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
            elif unlikely(flows[i].kind != FLOW) and (
                (frames[i].offload.gso_type or frames[i].offload.flags) and not offload.sane(&frames[i], &flows[i])
            ):
                r.reason = BAD_OFFLOAD
                r.verdict = DROP
            elif unlikely(flows[i].kind != FLOW):
                r.verdict = <uint8_t>decide_other(plane, &frames[i], &flows[i], r)
                if r.verdict == CONTINUE:
                    hashes[i] = hash_of(&plane.table, &flows[i])
            if likely(r.verdict == CONTINUE):
                r.verdict = <uint8_t>decide(plane, &frames[i], &flows[i], hashes[i], r)
        if likely(r.verdict != HELD):
            count_verdict(&plane.totals, r.verdict, r.reason)
    return count


# ------------------------------------------------------------------------------------------------- room 3: conn


cdef inline int decide(Plane* plane, Frame* frame, Flow* flow, uint64_t h, Result* r) noexcept nogil:
    """A TCP, UDP or SCTP packet: of a connection, or the first of one."""
    cdef uint8_t side
    cdef uint32_t index = find(&plane.table, flow, h, &side)
    if unlikely(frame.offload.gso_type or frame.offload.flags):
        if not (plane.at_whole and frame.offload.gso_type == GSO_WHOLE) and not offload.sane(frame, flow):
            r.reason = BAD_OFFLOAD
            return DROP
        if flow.proto == SCTP:
            offload.finish_sctp(frame, flow)
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


cdef inline bint opens(Frame* frame, Flow* flow) noexcept nogil:
    """Is this an attempt to open a connection, by its looks?"""
    if flow.proto == TCP:
        return flow.tcp_flags & SYN
    return flow.proto == SCTP and first_chunk(frame, flow) == CHUNK_INIT


cdef inline bint reusable(Plane* plane, Conn* c) noexcept nogil:
    """May an attempt to open a connection start this finished one anew (conn_reuse_mode)?"""
    cdef uint32_t mode = plane.settings.conn_reuse_mode
    if mode == 0 or c.control != NOBODY:
        return False
    if c.proto == SCTP:
        return c.state == SCTP_CLOSED
    return (
        c.state == TIME_WAIT or c.state == CLOSE or (mode & 2 and c.state == FIN_WAIT and c.flags & F_NO_OUTPUT)
    )


cdef inline int inbound(Plane* plane, Frame* frame, Flow* flow, uint32_t index, Result* r) noexcept nogil:
    """From the client, of a known connection."""
    cdef Conn* c = &plane.table.pool[index]
    if unlikely(opens(frame, flow)):
        if reusable(plane, c) or (
            plane.settings.expire_nodest_conn and c.dest != NO_SLOT and plane.slots[c.dest].weight == 0
        ):
            if not c.controlled:  # else the new connection hides the old one
                remove(&plane.table, index)
            return schedule(plane, frame, flow, r)
    r.conn = index
    r.dest = c.dest
    r.service = plane.dests[c.dest].service
    if unlikely(not plane.slots[c.dest].available):
        if plane.settings.expire_nodest_conn and not c.controlled:
            if c.method != MASQ and c.proto == TCP and not (flow.tcp_flags & (SYN | RST) or plane.settings.sloppy_tcp):
                # the kernel's own reset passes this entry on its way out, and closes it
                set_state(&plane.table, c, CLOSE, plane.timeouts.tcp[<int>CLOSE], plane.now)
                touch(c, plane.now)
                return leave(plane, frame, flow, r)
            r.conn = NOBODY
            remove(&plane.table, index)
            return schedule(plane, frame, flow, r)
        r.reason = DEST_GONE
        return DROP
    return forward(plane, frame, flow, c, r)


cdef inline void step(Plane* plane, Frame* frame, Flow* flow, Conn* c, int direction) noexcept nogil:
    """Move the protocol's state; the timeout is that of the state, as it is now."""
    cdef uint8_t state, event
    if c.proto == TCP:
        state = next_tcp(c.state, direction + plane.defence.secure, flow.tcp_flags)
        set_state(&plane.table, c, state, plane.timeouts.tcp[state], plane.now)
        if c.control and state == ESTABLISHED:
            plane.table.pool[c.control].state = 1  # the template is assured
    elif unlikely(c.proto == SCTP):
        event = event_of(frame, flow)
        if event != NO_EVENT:
            state = next_sctp(c.state, direction, event)
            set_state(&plane.table, c, state, plane.timeouts.sctp[state], plane.now)
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


cdef inline bint begins_sctp(Plane* plane, Frame* frame, Flow* flow) noexcept nogil:
    """May this SCTP packet begin a connection? INIT may; with sloppy_sctp all but ABORT and what has no whole chunk."""
    cdef uint32_t chunk = first_chunk(frame, flow)
    return chunk == CHUNK_INIT or (plane.settings.sloppy_sctp and chunk != CHUNK_ABORT and chunk != NO_CHUNK)


cdef inline int schedule(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """The first packet of a flow: find the service, pick a real server, create the connection."""
    cdef Svc* svc
    cdef Conn* c
    cdef uint32_t index
    cdef int verdict
    if flow.proto == TCP and (flow.tcp_flags & RST or (not flow.tcp_flags & SYN and not plane.settings.sloppy_tcp)):
        return leave(plane, frame, flow, r)
    if flow.proto == SCTP and not begins_sctp(plane, frame, flow):
        if first_chunk(frame, flow) == NO_CHUNK and is_vip(plane.snapshot, flow.dst):
            r.reason = TRUNCATED
            return DROP
        return leave(plane, frame, flow, r)
    if unlikely(plane.snapshot.any_engine) and flow.proto == UDP:
        index = call_out(plane, frame, flow)
        if index:
            verdict = outbound(plane, frame, flow, index, r)
            if plane.table.pool[index].flags & F_ONE_PACKET:
                remove(&plane.table, index)
                r.conn = NOBODY
            return verdict
    svc = service_for(plane, flow)
    if svc is NULL:
        return leave(plane, frame, flow, r)
    if unlikely(plane.defence.drop_rate) and drops_packet(&plane.defence):
        r.service = svc.slot
        r.reason = DEFENCE
        return DROP
    if flow.sport == 20:  # FTP data of a real server is never scheduled
        return leave(plane, frame, flow, r)
    r.service = svc.slot
    if is_martian(plane.fib, flow.src):
        r.reason = MARTIAN
        return DROP
    index = connect(plane, frame, flow, svc, &r.reason)
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


cdef inline Svc* service_for(Plane* plane, Flow* flow) noexcept nogil:
    """The service that a new flow asks for: by its mark if it has one, else by its address; NULL if there is none."""
    cdef Svc* svc = NULL
    if plane.snapshot.mark_count:
        svc = find_marked(plane.snapshot, flow.family, flow.proto, flow.src, flow.dst, flow.dport)
    if svc is NULL:
        svc = find_service(plane.snapshot, flow.proto, flow.dst, flow.dport)
    return svc


cdef inline uint32_t connect(Plane* plane, Frame* frame, Flow* flow, Svc* svc, uint8_t* reason) noexcept nogil:
    """A new connection of `flow` to a real server of `svc`; NOBODY with a reason if there can be none."""
    cdef Entry* entry = NULL
    cdef uint32_t index
    if svc.persistent:
        return persist(plane, frame, flow, svc, reason)
    if svc.mark or svc.port == flow.dport:  # a service of all ports serves persistent clients only
        entry = choose_server(plane, svc, flow)
    if entry is NULL:
        reason[0] = NO_SERVER
        return NOBODY
    index = create(plane, flow, svc, entry.dest, entry.method, entry.address, entry.port if entry.port else flow.dport)
    reason[0] = TABLE_FULL if index == NOBODY else NO_REASON
    return index


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
        entry = choose_server(plane, svc, flow)
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
    step(plane, frame, flow, c, INPUT_ONLY if c.flags & F_NO_OUTPUT else INPUT)
    verdict = send(plane, frame, flow, c, NULL, r)
    c.packets += 1
    touch(c, plane.now)
    return verdict


cdef inline int send(Plane* plane, Frame* frame, Flow* flow, Conn* c, icmp.Embedded* inner, Result* r) noexcept nogil:
    """Send a client's packet, or (with `inner`) its ICMP error, to the connection's real server.

    An `inner` that begins nowhere stands for a packet without ports, which is not quoted anywhere either.
    """
    cdef Hop* hop = hop_of(plane, c)
    cdef uint8_t outer_family = 4
    cdef uint32_t mtu = hop.mtu
    cdef uint32_t room, taken
    if unlikely(hop.status != HOP_READY):
        if hop.status == HOP_NONE:
            r.reason = NO_ROUTE
            return DROP
        if hop.status == HOP_LOCAL and c.method != MASQ:
            return PASS  # the host itself is the real server, and has the VIP
        if hop.status == HOP_LOCAL and is_loopback(c.daddr):
            r.reason = LOOPBACK_SERVER
            return DROP
    if hop.status != HOP_LOCAL:
        if unlikely(ttl_of(frame, flow) <= 1):
            r.reason = TTL_EXCEEDED
            return icmp.complain_ttl(plane, frame, flow, flow.dst, &r.reason)
        decrement_ttl(frame, flow)
    if c.method == TUNNEL:
        outer_family = 4 if is_mapped4(c.daddr) else 6
        mtu = tun.path_mtu(plane, c.dest, hop)
        taken = tun.overhead(&plane.slots[c.dest], outer_family)
        room = mtu - taken if mtu > 68 + taken else 68
    else:
        room = mtu
    if unlikely(needed(plane, frame, flow) > room) and dont_fragment(frame, flow):
        if flow.family == 6 or c.method != TUNNEL or plane.settings.pmtu_disc:
            r.reason = TOO_BIG
            return icmp.complain_size(plane, frame, flow, room, flow.dst, &r.reason)
    if c.method == ROUTE:
        return dr.send(plane, frame, flow, hop, &r.reason)
    if c.method == MASQ:
        if inner is not NULL:
            if inner.l3:
                icmp.translate_in(frame, flow, inner, c)
            else:
                ipsec.rewrite_in(frame, flow, c)
            return dr.send(plane, frame, flow, hop, &r.reason)
        if unlikely(c.flags & F_NOTED) and not (<ftp.Watch>plane.watch_client)(plane, frame, flow, c, &r.reason):
            return DROP
        return nat.send_in(plane, frame, flow, c, hop, &r.reason)
    return tun.send(plane, frame, flow, c, outer_family, hop, mtu, &r.reason)


cdef inline uint32_t needed(Plane* plane, Frame* frame, Flow* flow) noexcept nogil:
    """The MTU that a packet needs if it may not be fragmented; an IPv6 datagram in fragments: that of the largest."""
    if likely(frame.offload.gso_type == 0):
        return flow.end - flow.l3
    if frame.offload.gso_type == GSO_WHOLE and flow.family == 6:
        return plane.whole.largest
    return wire_length(frame, flow)


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
    if unlikely(needed(plane, frame, flow) > hop.mtu) and dont_fragment(frame, flow):
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
    step(plane, frame, flow, c, OUTPUT)
    touch(c, plane.now)
    return nat.send_out(plane, frame, flow, c, &hop, &r.reason)


# --------------------------------------------------------------------------------- what is not of any connection


cdef inline bint ends(Frame* frame, Flow* flow) noexcept nogil:
    """Is this a reset, or SCTP's ABORT?"""
    if flow.proto == TCP:
        return flow.tcp_flags & RST
    return flow.proto == SCTP and first_chunk(frame, flow) == CHUNK_ABORT


cdef inline int leave(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """Leave a packet to the host's stack, or stand in for it where it cannot see the packet.

    It cannot if the VIP is on none of its interfaces, or if the guard covers the packet: then a TCP segment gets a
    reset, a datagram a port unreachable, SCTP a protocol unreachable, and what only passes through is routed on.
    """
    if is_vip(plane.snapshot, flow.dst):
        if is_local(plane.fib, flow.dst):
            if not plane.snapshot.guarded or find_service(plane.snapshot, flow.proto, flow.dst, flow.dport) is NULL:
                return PASS
        if is_martian(plane.fib, flow.src):
            r.reason = MARTIAN
            return DROP
        if flow.proto == TCP:
            return answer.answer_reset(plane, frame, flow, &r.reason)
        r.reason = NO_SERVER
        if flow.proto == SCTP:
            return icmp.complain_protocol(plane, frame, flow, flow.dst, &r.reason)
        return icmp.complain_port(plane, frame, flow, flow.dst, &r.reason)
    if (plane.snapshot.guarded or plane.settings.nat_icmp_send) and is_nat_server(
        plane.snapshot, flow.proto, flow.src, flow.sport
    ):
        if plane.settings.nat_icmp_send and not ends(frame, flow):
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
    """Everything but TCP, UDP and SCTP packets with ports; CONTINUE for one that has turned out to be such."""
    cdef uint8_t target[16]
    if flow.kind == ICMP_ERROR:
        return related(plane, frame, flow, r)
    if flow.kind == IPSEC:
        return follow(plane, frame, flow, r)
    if flow.kind == OPTIONED:
        return optioned(plane, frame, flow, r)
    if flow.kind == ARP_REQUEST:
        if ours_alone(plane, flow.dst) and not same16(flow.src, flow.dst):
            return answer.answer_arp(plane, frame, flow)
        return PASS
    if flow.kind == ND_SOLICITATION:
        memcpy(target, answer.solicited(frame, flow), 16)
        return answer.answer_nd(plane, frame, flow) if ours_alone(plane, target) else PASS
    if flow.kind == ICMP_ECHO:
        if is_martian(plane.fib, flow.src):
            return PASS
        return answer.answer_echo(plane, frame, flow, &r.reason) if ours_alone(plane, flow.dst) else PASS
    if flow.kind == LATER_FRAGMENT and concerns(plane, flow):
        return collect(plane, frame, flow, r)
    return PASS


cdef inline int optioned(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """A flow's packet with IPv4 options: what they ask to be recorded is, and then it is like any other (CONTINUE)."""
    cdef uint8_t side
    cdef uint32_t index = find(&plane.table, flow, hash_of(&plane.table, flow), &side)
    cdef uint32_t wrong = options.walk(plane, frame.data + flow.l3, flow.l4 - flow.l3, NULL)
    flow.kind = FLOW
    if wrong:
        if index == NOBODY and not is_vip(plane.snapshot, flow.dst):
            return PASS
        r.reason = BAD_OPTION
        if wrong == options.SOURCE_ROUTED:
            return DROP
        return icmp.complain(plane, frame, flow, icmp.PARAMETER_PROBLEM4, wrong << 24, flow.dst, &r.reason)
    options.update(
        plane, frame, flow, &plane.table.pool[index].vaddr[0] if side == SIDE_SERVER else &flow.dst[0]
    )
    return CONTINUE


# ------------------------------------------------------------------------------------------------------ fragments


cdef inline bint concerns(Plane* plane, Flow* flow) noexcept nogil:
    """May a fragment belong to a balanced datagram? It goes to a VIP, or comes from a real server behind NAT."""
    if flow.proto != TCP and flow.proto != UDP and flow.proto != SCTP and flow.proto != ESP and flow.proto != AH:
        if flow.proto != (ICMP if flow.family == 4 else ICMP6):
            return False
    return is_vip(plane.snapshot, flow.dst) or is_nat_address(plane.snapshot, flow.src)


cdef inline int collect(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """A fragment: it waits for the others, or completes a datagram, which is then decided as any packet is."""
    cdef Frame whole
    cdef Datagram* d = NULL
    cdef uint32_t count
    cdef uint32_t first = plane.out_count
    cdef uint32_t i
    cdef uint16_t cause = plane.cause
    cdef int verdict = take(plane.reassembly, &plane.totals, frame, flow, plane.now, &d, &r.reason)
    if verdict != CONTINUE:
        return verdict
    memset(&whole, 0, sizeof(Frame))
    whole.headroom = HEADROOM
    whole.link = frame.link
    whole.offload.gso_type = GSO_WHOLE
    whole.data = scratch(plane, d.head + d.total)
    assemble(d, whole.data, &whole.length, &plane.whole)
    count = d.count
    release(plane.reassembly, d)
    if plane.at_whole:  # fragments in fragments
        r.reason = HEADER_CHAIN
        book(&plane.totals, count - 1, DROP, HEADER_CHAIN)
        return DROP
    plane.at_whole = True
    i = <uint32_t>process_batch(plane, &whole, 1, plane.now, r)  # books one of the fragments
    plane.at_whole = False
    plane.cause = cause
    if i == 0:
        r.reason = TX_FULL
        book(&plane.totals, count - 1, DROP, TX_FULL)
        return DROP
    for i in range(first, plane.out_count):
        plane.out[i].cause = cause
    unbook(&plane.totals, 1)  # the whole was booked in its place, or will be when its next hop is known
    if r.verdict == HELD:
        return FORWARD
    book(&plane.totals, count - 2, r.verdict, r.reason)
    return r.verdict


cdef inline int related(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """An ICMP error: if it speaks of one of our connections, translate it and send it the connection's way."""
    cdef icmp.Embedded inner
    cdef tunnelled.Quoted quoted
    cdef uint8_t side
    cdef uint32_t index
    cdef Conn* c
    cdef Hop hop
    cdef int verdict
    if tunnelled.parse_quoted(frame, flow, &quoted):
        index = tunnelled.connection(plane, &quoted)
        if index != NOBODY:
            return about_tunnel(plane, frame, flow, &quoted, index, r)
    if not icmp.parse_embedded(frame, flow, &inner):
        return PASS
    index = find(&plane.table, &inner.flow, hash_of(&plane.table, &inner.flow), &side)
    if index == NOBODY:
        if plane.settings.schedule_icmp:
            return schedule_error(plane, frame, flow, &inner, r)
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


cdef inline int about_tunnel(
    Plane* plane, Frame* frame, Flow* flow, tunnelled.Quoted* quoted, uint32_t index, Result* r
) noexcept nogil:
    """An ICMP error about a tunnel packet of ours: the client hears of it."""
    cdef Conn* c = &plane.table.pool[index]
    r.conn = index
    r.dest = c.dest
    r.service = plane.dests[c.dest].service
    if not icmp.intact(frame, flow):
        r.reason = BAD_CHECKSUM
        return DROP
    book_out(plane, c.dest, flow.end - quoted.flow.l3)
    return tunnelled.relay(plane, frame, flow, quoted, c, hop_of(plane, c), &r.reason)


cdef inline int schedule_error(
    Plane* plane, Frame* frame, Flow* flow, icmp.Embedded* inner, Result* r
) noexcept nogil:
    """With schedule_icmp, an error about a flow that nobody knows chooses a server as that flow's client would."""
    cdef Svc* svc = service_for(plane, &inner.flow)
    cdef uint32_t index
    cdef Conn* c
    if svc is NULL:
        return PASS
    r.service = svc.slot
    if not icmp.intact(frame, flow):
        r.reason = BAD_CHECKSUM
        return DROP
    if is_martian(plane.fib, inner.flow.src):
        r.reason = MARTIAN
        return DROP
    index = connect(plane, frame, &inner.flow, svc, &r.reason)
    if index == NOBODY:
        return DROP
    c = &plane.table.pool[index]
    r.conn = index
    r.dest = c.dest
    book_in(plane, c.dest, flow.end - flow.l3)
    return send(plane, frame, flow, c, inner, r)


cdef inline int follow(Plane* plane, Frame* frame, Flow* flow, Result* r) noexcept nogil:
    """ESP or AH: the way of the ISAKMP connection between the same addresses, or the host's own business."""
    cdef Flow isakmp
    cdef icmp.Embedded nothing
    cdef Hop hop
    cdef uint8_t side
    cdef uint32_t index
    cdef Conn* c
    cdef int verdict
    ipsec.key(flow, &isakmp)
    index = find(&plane.table, &isakmp, hash_of(&plane.table, &isakmp), &side)
    if index == NOBODY or plane.table.pool[index].expires <= plane.now:
        return PASS
    c = &plane.table.pool[index]
    r.conn = index
    r.dest = c.dest
    r.service = plane.dests[c.dest].service
    if side == SIDE_CLIENT:
        if not plane.slots[c.dest].available:
            r.reason = DEST_GONE
            return DROP
        book_in(plane, c.dest, flow.end - flow.l3)
        nothing.l3 = 0
        verdict = send(plane, frame, flow, c, &nothing, r)
        c.packets += 1
        touch(c, plane.now)
        return verdict
    resolve(plane.fib, c.caddr, flow.family == 6, False, &hop)
    verdict = routable(plane, frame, flow, &hop, r)
    if verdict != CONTINUE:
        return verdict
    book_out(plane, c.dest, flow.end - flow.l3)
    touch(c, plane.now)
    ipsec.rewrite_out(frame, flow, c)
    return dr.send(plane, frame, flow, &hop, &r.reason)
