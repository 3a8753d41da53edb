"""Room 4's persistence engine `sip`: the Call-ID of a SIP message over UDP (RFC 3261 §8.1.1.4).

A template is found by the client *and* the Call-ID. Mirrors the kernel's ip_vs_pe_sip, which reads the header with the
parser of its SIP connection tracking: any line but the first may be the header, names know no case, "i" is the short
form, lines may be continued, and the value is a word, or two joined by "@". A packet without one is dropped.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from pylvs.forward.conn cimport F_NOTED, F_TEMPLATE, NOBODY, Conn, ConnTable
from pylvs.forward.flowhash cimport sip13
from pylvs.forward.notes cimport ENGINE_DATA, NOTE_SIP, Note
from pylvs.forward.packet cimport UDP, Flow, Frame, same16
from pylvs.forward.snapshot cimport MASQ, NO_SLOT, Entry, Snapshot, Svc, address_slot


cdef struct CallId:
    const uint8_t* text
    uint32_t length
    uint64_t hash


cdef inline uint8_t lower(uint8_t c) noexcept nogil:
    return c | 0x20 if c'A' <= c <= c'Z' else c


cdef inline bint is_letter(uint8_t c) noexcept nogil:
    """ASCII and Latin-1 letters, as the kernel's table of characters has them."""
    return c'a' <= lower(c) <= c'z' or (c >= 0xC0 and c != 0xD7 and c != 0xF7)


cdef inline bint is_word(uint8_t c) noexcept nogil:
    """RFC 3261 §25.1, `word`."""
    return (
        is_letter(c) or c'0' <= c <= c'9' or c == c'!' or c == c'"' or c == c'%' or c'\'' <= c <= c'+'
        or c'-' <= c <= c'/' or c == c':' or c == c'<' or c == c'>' or c == c'?' or c'[' <= c <= c']'
        or c == c'_' or c == c'`' or c == c'{' or c == c'}' or c == c'~'
    )


cdef inline bint starts(
    const uint8_t* text, uint32_t at, uint32_t size, const char* name, uint32_t length
) noexcept nogil:
    """Does the text have this (lower-case) name at a position, whatever its case?"""
    cdef uint32_t i
    if size - at < length:
        return False
    for i in range(length):
        if lower(text[at + i]) != <uint8_t>name[i]:
            return False
    return True


cdef inline bint is_blank(uint8_t c) noexcept nogil:
    return c == c' ' or c == c'\t'


cdef inline bint is_end(uint8_t c) noexcept nogil:
    return c == c'\r' or c == c'\n'


cdef inline uint32_t next_line(const uint8_t* text, uint32_t at, uint32_t size) noexcept nogil:
    """Behind the line end (CR, LF or both) at a position; `size` if nothing follows."""
    at += 1
    if at < size and text[at - 1] == c'\r' and text[at] == c'\n':
        at += 1
    return at


cdef inline uint32_t skip_blanks(const uint8_t* text, uint32_t at, uint32_t size) noexcept nogil:
    """Behind blanks, which may go on in one continuation line; `size` if the text or the header ends first."""
    while at < size and is_blank(text[at]):
        at += 1
    if at < size and is_end(text[at]):
        at = next_line(text, at, size)
        if at >= size or not is_blank(text[at]):
            return size
        while at < size and is_blank(text[at]):
            at += 1
    return at


cdef inline uint32_t skip_word(const uint8_t* text, uint32_t at, uint32_t size) noexcept nogil:
    while at < size and is_word(text[at]):
        at += 1
    return at


cdef inline bint find_call_id(const uint8_t* text, uint32_t size, uint32_t* start, uint32_t* length) noexcept nogil:
    """Where the Call-ID lies in a SIP message; False if it has none, or a malformed or too long one."""
    cdef uint32_t at = 0
    cdef uint32_t end, name
    while at < size:
        if not is_end(text[at]):
            at += 1
            continue
        at = next_line(text, at, size)
        if at >= size:
            return False
        name = 0
        if starts(text, at, size, b"call-id", 7):
            name = 7
        elif starts(text, at, size, b"i", 1) and at + 1 < size and not is_letter(text[at + 1]):
            name = 1
        if name == 0:
            at += 1
            continue
        at = skip_blanks(text, at + name, size)
        if at >= size or text[at] != c':':
            return False
        at = skip_blanks(text, at + 1, size)
        end = skip_word(text, at, size)
        if end > at and end < size and text[end] == c'@':
            if skip_word(text, end + 1, size) == end + 1:
                return False
            end = skip_word(text, end + 1, size)
        start[0] = at
        length[0] = end - at
        return end > at and end - at <= ENGINE_DATA and end < size and is_end(text[end])
    return False


cdef inline bint read_call_id(ConnTable* t, Frame* frame, Flow* flow, CallId* call) noexcept nogil:
    """The Call-ID of a packet; False if it has none."""
    cdef uint32_t start, length
    cdef uint64_t words[33]
    cdef uint32_t payload = flow.l4 + 8
    if flow.proto != UDP or payload >= flow.end:
        return False
    if not find_call_id(frame.data + payload, flow.end - payload, &start, &length):
        return False
    call.text = frame.data + payload + start
    call.length = length
    memset(words, 0, sizeof(words))
    memcpy(words, call.text, length)
    call.hash = sip13(t.key0, t.key1, words, (length + 7) // 8, (<uint64_t>length << 56) | NOTE_SIP)
    return True


cdef inline uint32_t find_call(
    ConnTable* t, uint8_t family, uint8_t proto, const uint8_t* client, const uint8_t* address, uint16_t port,
    CallId* call,
) noexcept nogil:
    """The template of a (masked) client and its Call-ID for a service; NOBODY if there is none."""
    cdef uint32_t node = t.heads[call.hash & t.mask]
    cdef Conn* c
    cdef Note* note
    while node:
        c = &t.pool[node >> 1]
        if node & 1:
            node = c.next_out
            continue
        if (
            c.flags & F_TEMPLATE and c.flags & F_NOTED and c.vport == port and c.proto == proto and c.family == family
            and same16(c.caddr, client) and same16(c.vaddr, address)
        ):
            note = &t.notes[node >> 1]
            if note.length == call.length and memcmp(note.data, call.text, call.length) == 0:
                return node >> 1
        node = c.next_in
    return NOBODY


cdef inline void remember(ConnTable* t, uint32_t index, CallId* call) noexcept nogil:
    """Note the Call-ID of a template that is not in the table yet."""
    cdef Note* note = &t.notes[index]
    memset(note, 0, sizeof(Note))
    note.kind = NOTE_SIP
    note.hash = call.hash
    note.length = <uint8_t>call.length
    memcpy(note.data, call.text, call.length)
    t.pool[index].flags |= F_NOTED


cdef inline Svc* service_of(Snapshot* s, uint32_t entry) noexcept nogil:
    """The service that an entry belongs to: services hold theirs one after the other."""
    cdef uint32_t low = 0
    cdef uint32_t high = s.service_count
    cdef uint32_t middle
    while low < high:
        middle = (low + high) // 2
        if s.services[middle].first + s.services[middle].count <= entry:
            low = middle + 1
        else:
            high = middle
    return &s.services[low]


cdef inline Svc* caller_of(Snapshot* s, Flow* flow, Entry** entry) noexcept nogil:
    """The service with this engine whose real server (by NAT) a packet comes from; NULL if there is none."""
    cdef uint32_t i = address_slot(flow.proto, flow.src, flow.sport) & s.reply_mask
    cdef Svc* svc
    while s.replies[i] != NO_SLOT:
        entry[0] = &s.entries[s.replies[i]]
        if (
            entry[0].port == flow.sport and s.reply_proto[i] == flow.proto and entry[0].method == MASQ
            and same16(entry[0].address, flow.src)
        ):
            svc = service_of(s, s.replies[i])
            if svc.engine and not svc.mark:
                return svc
        i = (i + 1) & s.reply_mask
    return NULL
