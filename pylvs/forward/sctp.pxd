"""SCTP's states: what the chunks of a packet do to a connection (RFC 9260 §4).

The tables are those of the kernel's IPVS, kept as C data since Cython has no constant arrays; rows are direction and
event, columns the current state. A packet's event is its first chunk, or ABORT if that follows a COOKIE-ECHO or
COOKIE-ACK; every chunk is checked against the packet's end before it is read, and a packet without a whole chunk header
changes nothing.
"""

from libc.stdint cimport uint8_t, uint32_t

from pylvs.forward.packet cimport Flow, Frame, be16


cdef enum:  # states, with the kernel's numbers
    SCTP_NONE = 0
    SCTP_INIT1
    SCTP_INIT
    SCTP_COOKIE_SENT
    SCTP_COOKIE_REPLIED
    SCTP_COOKIE_WAIT
    SCTP_COOKIE
    SCTP_COOKIE_ECHOED
    SCTP_ESTABLISHED
    SCTP_SHUTDOWN_SENT
    SCTP_SHUTDOWN_RECEIVED
    SCTP_SHUTDOWN_ACK_SENT
    SCTP_REJECTED
    SCTP_CLOSED
    LAST_SCTP_STATE


cdef enum:
    CHUNK_INIT = 1
    CHUNK_ABORT = 6
    CHUNK_COOKIE_ECHO = 10
    CHUNK_COOKIE_ACK = 11
    NO_CHUNK = 256  # the packet ends before its first chunk does

    LAST_EVENT = 10
    NO_EVENT = 255


cdef extern from *:
    """
    /* events: 0 data, 1 init, 2 init-ack, 3 cookie-echo, 4 cookie-ack, 5 shutdown, 6 shutdown-ack, 7 shutdown-complete,
       8 error, 9 abort; of chunks by type, those that are not here count as data */
    static const unsigned char pylvs_sctp_event[15] = {0, 1, 2, 0, 0, 0, 9, 5, 6, 8, 3, 4, 0, 0, 7};
    static const unsigned char pylvs_sctp_next[3][10][14] = {
    {   /* client to server */
        /* data              */ { 8,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13},
        /* init              */ { 1,  2,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11,  2,  2},
        /* init-ack          */ { 5,  5,  5,  3,  4,  6,  6,  7,  8,  9, 10, 11, 12, 13},
        /* cookie-echo       */ { 4,  2,  2,  4,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13},
        /* cookie-ack        */ { 8,  1,  2,  3,  4,  5,  6,  8,  8,  9, 10, 11, 12, 13},
        /* shutdown          */ {10,  1,  2,  3,  4,  5,  6,  7, 10,  9, 10, 11, 12, 13},
        /* shutdown-ack      */ {13,  2,  2,  3,  4,  5,  6,  7,  8, 13, 10, 13, 12, 13},
        /* shutdown-complete */ {13, 13, 13,  3,  4,  5,  6,  7,  8,  9, 10, 13, 12, 13},
        /* error             */ {13,  1,  2,  3,  4,  5,  6, 13,  8,  9, 10, 11, 12, 13},
        /* abort             */ {13, 13, 13, 13, 13, 12, 13, 13, 13, 13, 13, 13, 13, 13},
    }, {   /* server to client */
        /* data              */ { 8,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13},
        /* init              */ { 5,  5,  5,  5,  5,  5,  5,  5,  8,  5,  5,  5,  5,  5},
        /* init-ack          */ { 3,  3,  3,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13},
        /* cookie-echo       */ { 7,  7,  7,  7,  7,  7,  7,  7,  8,  9, 10, 11, 12, 13},
        /* cookie-ack        */ { 8,  8,  8,  8,  8,  8,  8,  8,  8,  9, 10, 11, 12, 13},
        /* shutdown          */ { 9,  9,  9,  9,  9,  9,  9,  9,  9,  9, 10, 11, 12, 13},
        /* shutdown-ack      */ {11, 11, 11, 11, 11,  5,  6,  7,  8, 11, 11, 11, 12, 13},
        /* shutdown-complete */ {13,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13},
        /* error             */ {13, 13, 13, 13, 13,  5,  6,  7,  8,  9, 10, 11, 12, 13},
        /* abort             */ {13, 12, 13, 13, 13, 13, 13, 13, 13, 13, 13, 13, 13, 13},
    }, {   /* client to server, replies unseen */
        /* data              */ { 8,  1,  2,  3,  4,  8,  6,  7,  8,  9, 10, 11, 12, 13},
        /* init              */ { 1,  2,  2,  2,  2,  2,  6,  7,  8,  9, 10, 11,  2,  2},
        /* init-ack          */ { 7,  7,  7,  7,  7,  7,  6,  7,  8,  9, 10, 11, 12, 13},
        /* cookie-echo       */ { 8,  8,  8,  8,  8,  8,  6,  7,  8,  9, 10, 11, 12, 13},
        /* cookie-ack        */ { 8,  1,  2,  8,  8,  5,  8,  8,  8,  9, 10, 11, 12, 13},
        /* shutdown          */ {10,  1,  2,  3,  4,  5,  6,  7, 10,  9, 10, 11, 12, 13},
        /* shutdown-ack      */ {13,  2,  2,  3,  4,  5,  6,  7, 13, 13, 10, 13, 12, 13},
        /* shutdown-complete */ {13, 13, 13, 13, 13,  5,  6,  7,  8,  9, 13, 13, 12, 13},
        /* error             */ {13,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13},
        /* abort             */ {13, 13, 13, 13, 13, 12, 13, 13, 13, 13, 13, 13, 13, 13},
    } };
    """
    const uint8_t sctp_event "pylvs_sctp_event"[15]
    const uint8_t sctp_next "pylvs_sctp_next"[3][10][14]


cdef inline uint32_t first_chunk(Frame* frame, Flow* flow) noexcept nogil:
    """Type of the packet's first chunk, or NO_CHUNK."""
    if <uint32_t>flow.l4 + 16 > flow.end:
        return NO_CHUNK
    return frame.data[flow.l4 + 12]


cdef inline uint8_t event_of(Frame* frame, Flow* flow) noexcept nogil:
    """What the packet means for its connection, or NO_EVENT."""
    cdef uint32_t chunk = first_chunk(frame, flow)
    cdef uint32_t size, second
    if chunk == NO_CHUNK:
        return NO_EVENT
    if chunk == CHUNK_COOKIE_ECHO or chunk == CHUNK_COOKIE_ACK:
        size = be16(frame.data + flow.l4 + 14)
        second = flow.l4 + 12 + ((size + 3) & <uint32_t>~3)
        if size >= 4 and second + 4 <= flow.end and frame.data[second] == CHUNK_ABORT:
            chunk = CHUNK_ABORT
    return sctp_event[chunk] if chunk < 15 else 0


cdef inline uint8_t next_sctp(uint8_t state, int direction, uint8_t event) noexcept nogil:
    """State after an event."""
    return sctp_next[direction][event][state]
