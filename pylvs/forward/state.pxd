"""Protocol states and their timeouts: what a packet's flags do to a connection.

The tables are those of the kernel's IPVS (TCP without defence, UDP), kept as C data since Cython has no constant
arrays. Rows are direction and event, columns the current state. INPUT is client to server; INPUT_ONLY takes its place
while no reply has been seen, as in DR and TUN, where replies bypass the director.
"""

from libc.stdint cimport uint8_t, uint32_t

from pylvs.forward.packet cimport ACK, FIN, RST, SYN, TCP, UDP


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


cdef extern from *:
    """
    enum { nNO, nES, nSS, nSR, nFW, nTW, nCL, nCW, nLA, nLI, nSA };
    static const unsigned char pylvs_tcp_next[3][4][11] = {
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
    } };
    """
    const uint8_t tcp_next "pylvs_tcp_next"[3][4][11]


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
    return proto == TCP and (state == ESTABLISHED or state == SYN_SENT or state == SYN_RECV or state == SYNACK)


cdef struct Timeouts:
    uint32_t tcp[11]  # milliseconds, by state
    uint32_t udp


cdef inline void default_timeouts(Timeouts* t) noexcept nogil:
    """The kernel's values; `ipvsadm --set` changes ESTABLISHED, FIN_WAIT and UDP."""
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
