"""Room 5's FTP helper (setting `ip_vs_ftp`): control connections of NAT services on port 21 (RFC 959, RFC 2428).

It reads along once a connection is ESTABLISHED. A client's PORT or EPRT announces a data connection from the server's
port before the control port: an entry waits for it in LISTEN. A client's PASV or EPSV makes the server's next 227 or
229 announce a port of its own: an entry waits there for a client port not known yet, and the address in the text
becomes the VIP. That may change the text's length; from then on the server's sequence numbers are moved on, and the
client's acknowledgements and selective acknowledgements (RFC 2018) back. Mirrors the kernel's ip_vs_ftp with
nf_conntrack's sequence adjustment.

A text is read only at the beginning of a segment and never across two. A super-frame is treated as one segment: it
grows into the headroom, and its segments are cut from what it became. A packet with a bad checksum is dropped, since
its text cannot be trusted; a text that is not understood changes nothing.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset

from pylvs.forward cimport checksum, nat, offload
from pylvs.forward.conn cimport (
    F_INACTIVE, F_NO_CPORT, F_NOTED, F_OUT_SEQ, NOBODY, Conn, ConnTable, allocate, bind, client_hash, hang, insert,
    server_hash, set_state, touch, unchain,
)
from pylvs.forward.flowhash cimport flow_hash
from pylvs.forward.notes cimport NOTE_FTP, Note
from pylvs.forward.packet cimport (
    BAD_CHECKSUM, TABLE_FULL, TCP, TOO_BIG, Flow, Frame, address_size, be16, be32, map4, put16, put32, same16,
)
from pylvs.forward.plane cimport Plane
from pylvs.forward.sip cimport lower, starts
from pylvs.forward.snapshot cimport MASQ
from pylvs.forward.state cimport ESTABLISHED, LISTEN


cdef enum Mode:
    ACTIVE = 0  # nothing, or a data connection from the server
    PASV
    EPSV


cdef enum:
    CONTROL_PORT = 21
    LONGEST = 24  # "255,255,255,255,255,255" and a bit


ctypedef bint (*Watch)(Plane* plane, Frame* frame, Flow* flow, Conn* c, uint8_t* reason) noexcept nogil


cdef struct Endpoint:
    uint8_t address[16]
    uint16_t port
    uint32_t start  # where its text begins and ends in the payload
    uint32_t end


# ------------------------------------------------------------------------------------------------ reading the texts


cdef inline bint is_digit(uint8_t c) noexcept nogil:
    return c'0' <= c <= c'9'


cdef inline bint parse_ipv4(const uint8_t* s, uint32_t* at, uint32_t size, uint8_t* address) noexcept nogil:
    """A dotted IPv4 address at a position, which moves behind it."""
    cdef uint32_t i, value, digits
    for i in range(4):
        value = 0
        digits = 0
        while at[0] < size and is_digit(s[at[0]]) and digits < 3:
            value = value * 10 + s[at[0]] - c'0'
            digits += 1
            at[0] += 1
        if digits == 0 or value > 255:
            return False
        address[i] = <uint8_t>value
        if i < 3:
            if at[0] >= size or s[at[0]] != c'.':
                return False
            at[0] += 1
    return True


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    if is_digit(c):
        return c - c'0'
    c = lower(c)
    return c - c'a' + 10 if c'a' <= c <= c'f' else -1


cdef inline bint parse_ipv6(const uint8_t* s, uint32_t* at, uint32_t size, uint8_t* address) noexcept nogil:
    """An IPv6 address (RFC 4291 §2.2) at a position, which moves behind it."""
    cdef uint8_t found[16]
    cdef uint32_t filled = 0
    cdef int gap = -1
    cdef uint32_t value, digits, begin
    if at[0] + 1 < size and s[at[0]] == c':':
        if s[at[0] + 1] != c':':
            return False
        at[0] += 2
        gap = 0
    while at[0] < size and filled < 16:
        begin = at[0]
        value = 0
        digits = 0
        while at[0] < size and digits < 4 and hex_digit(s[at[0]]) >= 0:
            value = (value << 4) | <uint32_t>hex_digit(s[at[0]])
            digits += 1
            at[0] += 1
        if digits == 0:
            if gap >= 0 and <uint32_t>gap == filled:
                break  # it ends with "::"
            return False
        if at[0] < size and s[at[0]] == c'.' and filled <= 12:
            at[0] = begin
            if not parse_ipv4(s, at, size, &found[filled]):
                return False
            filled += 4
            break
        found[filled] = <uint8_t>(value >> 8)
        found[filled + 1] = <uint8_t>value
        filled += 2
        if at[0] >= size or s[at[0]] != c':' or filled == 16:
            break
        at[0] += 1
        if at[0] < size and s[at[0]] == c':':
            if gap >= 0:
                return False
            gap = <int>filled
            at[0] += 1
    if gap < 0:
        if filled != 16:
            return False
        memcpy(address, found, 16)
        return True
    if filled > 14:
        return False
    memset(address, 0, 16)
    memcpy(address, found, gap)
    memcpy(address + 16 - (filled - <uint32_t>gap), &found[gap], filled - <uint32_t>gap)
    return True


cdef inline bint read_numbers(const uint8_t* s, uint32_t at, uint32_t size, Endpoint* e) noexcept nogil:
    """Six numbers with commas, as PORT and 227 have them; something must follow, so that the last one is whole."""
    cdef uint8_t numbers[6]
    cdef uint32_t value = 0
    cdef uint32_t i = 0
    memset(numbers, 0, 6)
    e.start = at
    while at < size:
        if is_digit(s[at]):
            value = value * 10 + s[at] - c'0'
            if value > 255:
                return False
            numbers[i] = <uint8_t>value
        elif s[at] == c',' and i < 5:
            i += 1
            value = 0
        else:
            break
        at += 1
    if at >= size or i != 5:
        return False
    e.end = at
    map4(e.address, numbers)
    e.port = be16(&numbers[4])
    return True


cdef inline bint read_extended(
    const uint8_t* s, uint32_t at, uint32_t size, uint8_t family, bint passive, Endpoint* e
) noexcept nogil:
    """`|family|address|port|`, with any printable delimiter; a 229 leaves the first two out: then e.address stays."""
    cdef uint8_t delimiter
    cdef uint8_t four[4]
    e.start = at
    if at + 1 >= size or s[at] < 33 or s[at] > 126:
        return False
    delimiter = s[at]
    at += 1
    if s[at] == delimiter:
        if not passive or at + 1 >= size or s[at + 1] != delimiter:
            return False
        at += 2
    else:
        if s[at] != (c'1' if family == 4 else c'2') or at + 2 >= size or s[at + 1] != delimiter:
            return False
        at += 2
        if family == 4:
            if not parse_ipv4(s, &at, size, four):
                return False
            map4(e.address, four)
        elif not parse_ipv6(s, &at, size, e.address):
            return False
        if at >= size or s[at] != delimiter:
            return False
        at += 1
    e.port = 0
    while at < size and is_digit(s[at]):
        e.port = <uint16_t>(e.port * 10 + s[at] - c'0')
        at += 1
    if at >= size or e.port == 0 or s[at] != delimiter:
        return False
    e.end = at + 1
    return True


cdef inline bint read_endpoint(
    const uint8_t* s, uint32_t size, const char* word, uint8_t skip, bint extended, uint8_t family, Endpoint* e
) noexcept nogil:
    """The endpoint that a text beginning with `word` (4 characters) announces, behind one or more `skip` characters."""
    cdef uint32_t at = 4
    cdef bint found = False
    if not starts(s, 0, size, word, 4):
        return False
    while at < size:
        if not found:
            if not extended and is_digit(s[at]):  # the parenthesis of a 227 may be missing
                break
            found = s[at] == skip
        elif s[at] != skip:
            break
        at += 1
    if at >= size:
        return False
    if extended:
        return read_extended(s, at, size, family, skip == c'(', e)
    return read_numbers(s, at, size, e)


cdef inline int asked_for(const uint8_t* s, uint32_t size, uint8_t family) noexcept nogil:
    """Does the client ask the server for a port, anywhere in its text? PASV, EPSV, or ACTIVE for neither."""
    cdef uint32_t at
    if size < 6:
        return ACTIVE
    for at in range(size - 5):
        if family == 4 and starts(s, at, size, b"pasv\r\n", 6):
            return PASV
        if starts(s, at, size, b"epsv", 4):
            if s[at + 4] == c'\r':
                return EPSV
            if s[at + 4] == c' ':
                if at + 7 > size or s[at + 5] != (c'1' if family == 4 else c'2') or s[at + 6] != c'\r':
                    return ACTIVE
                return EPSV
    return ACTIVE


# --------------------------------------------------------------------------------------------- the data connections


cdef inline void watch(ConnTable* t, uint32_t index) noexcept nogil:
    """Make a new connection a control connection."""
    memset(&t.notes[index], 0, sizeof(Note))
    t.notes[index].kind = NOTE_FTP
    t.pool[index].flags |= F_NOTED


cdef inline bint is_control(Plane* plane, Flow* flow, uint8_t method) noexcept nogil:
    return plane.settings.ip_vs_ftp != 0 and flow.dport == CONTROL_PORT and flow.proto == TCP and method == MASQ


cdef inline uint32_t find_expected(
    ConnTable* t, uint8_t family, const uint8_t* client, uint16_t cport, const uint8_t* address, uint16_t port,
    bint by_server,
) noexcept nogil:
    """A NAT connection by its client and VIP:port, or with `by_server` by its client and RIP:port."""
    cdef uint32_t node
    cdef Conn* c
    if by_server:
        node = t.heads[flow_hash(t.key0, t.key1, family, TCP, address, port, client, cport) & t.mask]
    else:
        node = t.heads[flow_hash(t.key0, t.key1, family, TCP, client, cport, address, port) & t.mask]
    while node:
        c = &t.pool[node >> 1]
        if <bint>(node & 1) == by_server and c.cport == cport and c.proto == TCP and c.family == family:
            if (cport != 0 or c.flags & F_NO_CPORT) and same16(c.caddr, client):
                if by_server and c.dport == port and same16(c.daddr, address):
                    return node >> 1
                if not by_server and c.vport == port and same16(c.vaddr, address):
                    return node >> 1
        node = c.next_out if node & 1 else c.next_in
    return NOBODY


cdef inline uint32_t find_unported(ConnTable* t, Flow* flow) noexcept nogil:
    """An entry that waits for this client without knowing its port."""
    if flow.proto != TCP:
        return NOBODY
    return find_expected(t, flow.family, flow.src, 0, flow.dst, flow.dport, False)


cdef inline void learn_port(ConnTable* t, uint32_t index, uint16_t cport) noexcept nogil:
    """The client's port has become known: enter the connection anew under it."""
    cdef Conn* c = &t.pool[index]
    cdef uint32_t* head
    unchain(t, &t.heads[client_hash(t, c) & t.mask], index << 1)
    unchain(t, &t.heads[server_hash(t, c) & t.mask], (index << 1) | 1)
    c.cport = cport
    c.flags &= <uint32_t>~F_NO_CPORT
    t.unported -= 1
    head = &t.heads[client_hash(t, c) & t.mask]
    c.next_in = head[0]
    head[0] = index << 1
    head = &t.heads[server_hash(t, c) & t.mask]
    c.next_out = head[0]
    head[0] = (index << 1) | 1


cdef inline bint expect(
    Plane* plane, Conn* control, const uint8_t* client, uint16_t cport, uint16_t vport, const uint8_t* server,
    uint16_t dport,
) noexcept nogil:
    """Have an entry wait for a data connection; `cport` 0: whatever port the client takes. False: the table is full."""
    cdef ConnTable* t = &plane.table
    cdef uint32_t index
    cdef Conn* c
    if cport:
        index = find_expected(t, control.family, client, cport, control.vaddr, vport, False)
    else:
        index = find_expected(t, control.family, client, 0, server, dport, True)
    if index == NOBODY:
        index = allocate(t)
        if index == NOBODY:
            return False
        c = &t.pool[index]
        memcpy(c.caddr, client, 16)
        memcpy(c.vaddr, control.vaddr, 16)
        memcpy(c.daddr, server, 16)
        c.cport = cport
        c.vport = vport
        c.dport = dport
        c.proto = TCP
        c.family = control.family
        c.method = MASQ
        c.flags = F_INACTIVE
        if cport == 0:
            c.flags |= F_NO_CPORT
            t.unported += 1
        c.timeout = 3000
        touch(c, plane.now)
        nat.prepare(c)
        bind(t, c, control.dest)
        insert(t, index, True)
        hang(t, c, <uint32_t>(control - t.pool))
    c = &t.pool[index]
    set_state(t, c, LISTEN, plane.timeouts.tcp[<int>LISTEN], plane.now)
    touch(c, plane.now)
    return True


# ------------------------------------------------------------------------------------------------ sequence numbers


cdef inline bint later(uint32_t a, uint32_t b) noexcept nogil:
    """Is a sequence number behind another (RFC 9293 §3.4)?"""
    return 0 < <uint32_t>(a - b) < <uint32_t>0x80000000


cdef inline void resized(Note* note, uint32_t sequence, uint32_t difference) noexcept nogil:
    """The segment at `sequence` has grown (or, as a two's complement, shrunk) by `difference` bytes."""
    if note.before == note.after or later(sequence, note.position):
        note.position = sequence
        note.before = note.after
        note.after += difference


cdef inline uint32_t moved_back(Note* note, uint32_t acknowledged) noexcept nogil:
    """What the client acknowledges, in the server's own numbers."""
    if later(acknowledged - note.before, note.position):
        return acknowledged - note.after
    return acknowledged - note.before


cdef inline void adjust(Frame* frame, Flow* flow, Note* note, uint32_t header, bint from_server) noexcept nogil:
    """Move the sequence number of a server's packet, or the acknowledgements of a client's."""
    cdef uint8_t* p = frame.data + flow.l4
    cdef uint8_t before[60]
    cdef uint32_t at = 20
    cdef uint32_t size, i
    if note.before == 0 and note.after == 0:
        return
    memcpy(before, p, header)
    if from_server:
        put32(p + 4, be32(p + 4) + (note.after if later(be32(p + 4), note.position) else note.before))
    elif p[13] & 0x10:
        put32(p + 8, moved_back(note, be32(p + 8)))
        while at < header and p[at] != 0:
            if p[at] == 1:
                at += 1
                continue
            if at + 2 > header:
                break
            size = p[at + 1]
            if size < 2 or at + size > header:
                break
            if p[at] == 5 and size >= 10 and (size - 2) % 8 == 0:
                for i in range(at + 2, at + size, 4):
                    put32(p + i, moved_back(note, be32(p + i)))
            at += size
    if not offload.is_partial(frame, flow):
        checksum.update(p + 16, checksum.delta_bytes(before, p, header))


# ---------------------------------------------------------------------------------------------------------- packets


cdef inline bint intact(Frame* frame, Flow* flow) noexcept nogil:
    """Is the TCP checksum right, or not computed yet?"""
    cdef uint32_t size = flow.end - flow.l4
    cdef uint8_t* addresses = frame.data + flow.l3 + (12 if flow.family == 4 else 8)
    if offload.is_partial(frame, flow):
        return True
    return checksum.fold(checksum.add(
        frame.data + flow.l4, size, checksum.pseudo(addresses, 2 * address_size(flow.family), TCP, size)
    )) == 0xFFFF


cdef inline uint32_t header_size(Frame* frame, Flow* flow) noexcept nogil:
    """Of TCP; 0 if it lies."""
    cdef uint32_t header = (frame.data[flow.l4 + 12] >> 4) * 4
    return header if header >= 20 and flow.l4 + header <= flow.end else 0


cdef inline bint watch_client(Plane* plane, Frame* frame, Flow* flow, Conn* c, uint8_t* reason) noexcept nogil:
    """A client's packet on a control connection, before it is translated. False: drop it."""
    cdef Note* note = &plane.table.notes[c - plane.table.pool]
    cdef uint32_t header = header_size(frame, flow)
    cdef uint8_t* text = frame.data + flow.l4 + header
    cdef uint32_t size = flow.end - flow.l4 - header
    cdef int mode
    cdef Endpoint e
    if not intact(frame, flow):
        reason[0] = BAD_CHECKSUM
        return False
    if header == 0:
        return True
    if c.state == ESTABLISHED and size:
        mode = asked_for(text, size, c.family)
        if mode != ACTIVE:
            note.mode = <uint8_t>mode
        elif (c.family == 4 and read_endpoint(text, size, b"port", c' ', False, c.family, &e)) or read_endpoint(
            text, size, b"eprt", c' ', True, c.family, &e
        ):
            note.mode = ACTIVE
            if e.port and not expect(
                plane, c, e.address, e.port, <uint16_t>(c.vport - 1), c.daddr, <uint16_t>(c.dport - 1)
            ):
                reason[0] = TABLE_FULL
                return False
    adjust(frame, flow, note, header, False)
    return True


cdef inline bint watch_server(Plane* plane, Frame* frame, Flow* flow, Conn* c, uint8_t* reason) noexcept nogil:
    """A server's packet on a control connection, before it is translated. False: drop it."""
    cdef Note* note = &plane.table.notes[c - plane.table.pool]
    cdef uint32_t header = header_size(frame, flow)
    cdef uint8_t* text = frame.data + flow.l4 + header
    cdef uint32_t size = flow.end - flow.l4 - header
    cdef Endpoint e
    cdef bint found = False
    if not intact(frame, flow):
        reason[0] = BAD_CHECKSUM
        return False
    if header == 0:
        return True
    if note.mode != ACTIVE and c.state == ESTABLISHED and size:
        memcpy(e.address, c.daddr, 16)
        if note.mode == PASV:
            found = read_endpoint(text, size, b"227 ", c'(', False, c.family, &e) and e.port != 0
        else:
            found = read_endpoint(text, size, b"229 ", c'(', True, c.family, &e)
        if found:
            if not expect(plane, c, c.caddr, 0, e.port, e.address, e.port):
                reason[0] = TABLE_FULL
                return False
            if not rewrite(frame, flow, c, note, header, &e):
                reason[0] = TOO_BIG
                return False
            note.mode = ACTIVE
    adjust(frame, flow, note, header, True)
    return True


cdef inline uint32_t write_number(uint8_t* to, uint32_t value) noexcept nogil:
    """Decimal; returns how many digits."""
    cdef uint8_t digits[10]
    cdef uint32_t count = 0
    cdef uint32_t i
    while True:
        digits[count] = <uint8_t>(c'0' + value % 10)
        count += 1
        value //= 10
        if value == 0:
            break
    for i in range(count):
        to[i] = digits[count - 1 - i]
    return count


cdef inline uint32_t describe(Conn* c, uint8_t mode, uint16_t port, uint8_t* to) noexcept nogil:
    """The VIP's endpoint as the server's text has to have it; returns its length."""
    cdef uint32_t used = 0
    cdef uint32_t i
    if mode == EPSV:
        memset(to, c'|', 3)
        used = 3 + write_number(to + 3, port)
        to[used] = c'|'
        return used + 1
    for i in range(6):
        used += write_number(to + used, c.vaddr[12 + i] if i < 4 else (port >> 8 if i == 4 else port & 0xFF))
        if i < 5:
            to[used] = c','
            used += 1
    return used


cdef inline bint rewrite(Frame* frame, Flow* flow, Conn* c, Note* note, uint32_t header, Endpoint* e) noexcept nogil:
    """Replace the endpoint in the server's text, moving what lies before it; False if the packet would be too large."""
    cdef uint8_t text[LONGEST]
    cdef uint32_t length = describe(c, note.mode, e.port, text)
    cdef uint32_t old = e.end - e.start
    cdef uint32_t front = flow.l4 + header + e.start
    cdef uint32_t sequence = be32(frame.data + flow.l4 + 4)
    cdef uint32_t size
    cdef uint8_t* ip
    cdef uint16_t before, after
    if flow.end - flow.l3 + length > 65535 + old:
        return False
    before = checksum.swapped(<uint16_t>(flow.end - flow.l4))
    # the headers move into the headroom, or away from it: what lies behind the text stays where it is
    memmove(frame.data + old - length if old >= length else frame.data - (length - old), frame.data, front)
    if old >= length:
        frame.data += old - length
    else:
        frame.data -= length - old
    frame.headroom += old - length
    frame.length += length - old
    flow.end += length - old
    memcpy(frame.data + front, text, length)
    ip = frame.data + flow.l3
    size = flow.end - flow.l3
    if flow.family == 4:
        after = checksum.short16(ip + 2)
        put16(ip + 2, size)
        checksum.update(ip + 10, checksum.delta16(after, checksum.short16(ip + 2)))
    else:
        put16(ip + 4, size - 40)
    if offload.is_partial(frame, flow):
        after = checksum.swapped(<uint16_t>(flow.end - flow.l4))
        checksum.update_partial(frame.data + flow.l4 + 16, checksum.delta16(before, after))
    else:
        offload.finish_checksum(ip, flow, flow.end - flow.l4)
    if length != old:
        resized(note, sequence, length - old)
        c.flags |= F_OUT_SEQ
    return True
