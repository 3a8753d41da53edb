"""CRC32c, SCTP's checksum (RFC 9260 §6.8 and appendix A): eight bytes a step, by tables that are filled at load time.

It covers the SCTP packet alone, not the addresses, so that a translation of addresses leaves it as it is. The value
goes onto the wire with its low byte first.
"""

from libc.stdint cimport uint8_t, uint32_t

cdef extern from *:
    """
    static uint32_t pylvs_crc32c_table[8][256];
    __attribute__((constructor)) static void pylvs_crc32c_fill(void)
    {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t crc = i;
            for (int bit = 0; bit < 8; bit++)
                crc = crc & 1 ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
            pylvs_crc32c_table[0][i] = crc;
        }
        for (uint32_t i = 0; i < 256; i++)
            for (int n = 1; n < 8; n++)
                pylvs_crc32c_table[n][i] = (pylvs_crc32c_table[n - 1][i] >> 8)
                    ^ pylvs_crc32c_table[0][pylvs_crc32c_table[n - 1][i] & 0xFF];
    }
    """
    const uint32_t table "pylvs_crc32c_table"[8][256]


cdef inline uint32_t crc32c(const uint8_t* p, uint32_t length, uint32_t crc) noexcept nogil:
    """Go on with `crc` (0xffffffff at the start; the result is its complement) over `length` bytes at `p`."""
    cdef uint32_t low
    while length >= 8:
        low = crc ^ (p[0] | (<uint32_t>p[1] << 8) | (<uint32_t>p[2] << 16) | (<uint32_t>p[3] << 24))
        crc = (
            table[7][low & 0xFF] ^ table[6][(low >> 8) & 0xFF] ^ table[5][(low >> 16) & 0xFF] ^ table[4][low >> 24]
            ^ table[3][p[4]] ^ table[2][p[5]] ^ table[1][p[6]] ^ table[0][p[7]]
        )
        p += 8
        length -= 8
    while length:
        crc = (crc >> 8) ^ table[0][(crc ^ p[0]) & 0xFF]
        p += 1
        length -= 1
    return crc


cdef inline void seal(uint8_t* packet, uint32_t length) noexcept nogil:
    """Write the checksum of the SCTP packet of `length` bytes (12 at least), counting its own field as zero."""
    cdef uint8_t* field = packet + 8
    cdef uint32_t value
    field[0] = field[1] = field[2] = field[3] = 0
    value = ~crc32c(packet, length, 0xFFFFFFFF)
    field[0] = <uint8_t>value
    field[1] = <uint8_t>(value >> 8)
    field[2] = <uint8_t>(value >> 16)
    field[3] = <uint8_t>(value >> 24)
