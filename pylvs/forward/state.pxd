"""Protocol states and their timeouts: what a packet's flags do to a connection.

The tables are those of the kernel's IPVS, kept as C data since Cython has no constant arrays; SCTP has its own in
`sctp.pxd`. Rows are direction and event, columns the current state. INPUT is client to server; INPUT_ONLY takes its
place while no reply has been seen, as in DR and TUN, where replies bypass the director. TCP has a second set of tables
for secure_tcp: what the client alone says does not make a connection ESTABLISHED.
"""

from libc.stdint cimport uint8_t, uint32_t

from pylvs.forward.packet cimport ACK, FIN, RST, SCTP, SYN, TCP
from pylvs.forward.sctp cimport LAST_SCTP_STATE, SCTP_ESTABLISHED, SCTP_INIT1, SCTP_NONE, SCTP_REJECTED


cdef enum:  # TCP states, with the kernel's numbers
    NONE = 0
    ESTABLISHED
    SYN_SENT
    SYN_RECV
    FIN_WAIT
    TIME_WAIT
    CLOSE
    CLOSE_WAIT
    LAST_ACK
    LISTEN
    SYNACK
    LAST_TCP_STATE


cdef enum Direction:
    INPUT = 0
    OUTPUT = 1
    INPUT_ONLY = 2
    SECURE = 3  # added to each: the tables of secure_tcp


cdef extern from *:
    """
    enum { nNO, nES, nSS, nSR, nFW, nTW, nCL, nCW, nLA, nLI, nSA };
    static const unsigned char pylvs_tcp_next[6][4][11] = {
    {   /*          NO   ES   SS   SR   FW   TW   CL   CW   LA   LI   SA     client to server */
        /* syn */ {nSR, nES, nES, nSR, nSR, nSR, nSR, nSR, nSR, nSR, nSR},
        /* fin */ {nCL, nCW, nSS, nTW, nTW, nTW, nCL, nCW, nLA, nLI, nTW},
        /* ack */ {nES, nES, nSS, nES, nFW, nTW, nCL, nCW, nCL, nLI, nES},
        /* rst */ {nCL, nCL, nCL, nSR, nCL, nCL, nCL, nCL, nLA, nLI, nSR},
    }, { /*         NO   ES   SS   SR   FW   TW   CL   CW   LA   LI   SA     server to client */
        /* syn */ {nSS, nES, nSS, nSR, nSS, nSS, nSS, nSS, nSS, nLI, nSR},
        /* fin */ {nTW, nFW, nSS, nTW, nFW, nTW, nCL, nTW, nLA, nLI, nTW},
        /* ack */ {nES, nES, nSS, nES, nFW, nTW, nCL, nCW, nLA, nES, nES},
        /* rst */ {nCL, nCL, nSS, nCL, nCL, nTW, nCL, nCL, nCL, nCL, nCL},
    }, { /*         NO   ES   SS   SR   FW   TW   CL   CW   LA   LI   SA     client to server, replies unseen */
        /* syn */ {nSR, nES, nES, nSR, nSR, nSR, nSR, nSR, nSR, nSR, nSR},
        /* fin */ {nCL, nFW, nSS, nTW, nFW, nTW, nCL, nCW, nLA, nLI, nTW},
        /* ack */ {nES, nES, nSS, nES, nFW, nTW, nCL, nCW, nCL, nLI, nES},
        /* rst */ {nCL, nCL, nCL, nSR, nCL, nCL, nCL, nCL, nLA, nLI, nCL},
    }, { /*         NO   ES   SS   SR   FW   TW   CL   CW   LA   LI   SA     secure, client to server */
        /* syn */ {nSR, nES, nES, nSR, nSR, nSR, nSR, nSR, nSR, nSR, nSA},
        /* fin */ {nCL, nCW, nSS, nTW, nTW, nTW, nCL, nCW, nLA, nLI, nSA},
        /* ack */ {nES, nES, nSS, nSR, nFW, nTW, nCL, nCW, nCL, nLI, nSA},
        /* rst */ {nCL, nCL, nCL, nSR, nCL, nCL, nCL, nCL, nLA, nLI, nCL},
    }, { /*         NO   ES   SS   SR   FW   TW   CL   CW   LA   LI   SA     secure, server to client */
        /* syn */ {nSS, nES, nSS, nSA, nSS, nSS, nSS, nSS, nSS, nLI, nSA},
        /* fin */ {nTW, nFW, nSS, nTW, nFW, nTW, nCL, nTW, nLA, nLI, nTW},
        /* ack */ {nES, nES, nSS, nES, nFW, nTW, nCL, nCW, nLA, nES, nES},
        /* rst */ {nCL, nCL, nSS, nCL, nCL, nTW, nCL, nCL, nCL, nCL, nCL},
    }, { /*         NO   ES   SS   SR   FW   TW   CL   CW   LA   LI   SA     secure, client to server, replies unseen */
        /* syn */ {nSA, nES, nES, nSR, nSA, nSA, nSA, nSA, nSA, nSA, nSA},
        /* fin */ {nCL, nFW, nSS, nTW, nFW, nTW, nCL, nCW, nLA, nLI, nTW},
        /* ack */ {nES, nES, nSS, nES, nFW, nTW, nCL, nCW, nCL, nLI, nES},
        /* rst */ {nCL, nCL, nCL, nSR, nCL, nCL, nCL, nCL, nLA, nLI, nCL},
    } };
    """
    const uint8_t tcp_next "pylvs_tcp_next"[6][4][11]


cdef inline uint8_t next_tcp(uint8_t state, int direction, uint8_t flags) noexcept nogil:
    """State after a segment; the first of RST, SYN, FIN, ACK counts, a segment with none of them closes."""
    if flags & RST:
        return tcp_next[direction][3][state]
    if flags & SYN:
        return tcp_next[direction][0][state]
    if flags & FIN:
        return tcp_next[direction][1][state]
    if flags & ACK:
        return tcp_next[direction][2][state]
    return CLOSE


cdef inline bint is_active(uint8_t proto, uint8_t state) noexcept nogil:
    """Does the connection count as active for its server? UDP never does."""
    if proto == TCP:
        return state == ESTABLISHED or state == SYN_SENT or state == SYN_RECV or state == SYNACK
    return proto == SCTP and state == SCTP_ESTABLISHED


cdef struct Timeouts:
    uint32_t tcp[11]  # milliseconds, by state
    uint32_t udp
    uint32_t sctp[14]


cdef inline void default_timeouts(Timeouts* t) noexcept nogil:
    """The kernel's values; `ipvsadm --set` changes TCP's ESTABLISHED and FIN_WAIT, and UDP."""
    cdef int i
    t.tcp[NONE] = 2000
    t.tcp[ESTABLISHED] = 900000
    t.tcp[SYN_SENT] = 120000
    t.tcp[SYN_RECV] = 60000
    t.tcp[FIN_WAIT] = 120000
    t.tcp[TIME_WAIT] = 120000
    t.tcp[CLOSE] = 10000
    t.tcp[CLOSE_WAIT] = 60000
    t.tcp[LAST_ACK] = 30000
    t.tcp[LISTEN] = 120000
    t.tcp[SYNACK] = 120000
    t.udp = 300000
    for i in range(<int>LAST_SCTP_STATE):
        t.sctp[i] = 61000
    t.sctp[SCTP_NONE] = 2000
    t.sctp[SCTP_INIT1] = 4000
    t.sctp[SCTP_REJECTED] = 4000
    t.sctp[SCTP_ESTABLISHED] = 900000
