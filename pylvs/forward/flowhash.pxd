"""The seeded hash that spreads flows over the connection table: SipHash-1-3 (Aumasson and Bernstein, 2012).

A key drawn at start keeps a sender of chosen addresses from filling one bucket. IPv4 flows take two words,
IPv6 flows five.
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t

from pylvs.forward._sys cimport half, word


cdef inline uint64_t rotl(uint64_t x, int bits) noexcept nogil:
    return (x << bits) | (x >> (64 - bits))


cdef inline void sip_round(uint64_t* v) noexcept nogil:
    v[0] += v[1]
    v[1] = rotl(v[1], 13) ^ v[0]
    v[0] = rotl(v[0], 32)
    v[2] += v[3]
    v[3] = rotl(v[3], 16) ^ v[2]
    v[0] += v[3]
    v[3] = rotl(v[3], 21) ^ v[0]
    v[2] += v[1]
    v[1] = rotl(v[1], 17) ^ v[2]
    v[2] = rotl(v[2], 32)


cdef inline uint64_t sip13(uint64_t k0, uint64_t k1, const uint64_t* words, int count, uint64_t tail) noexcept nogil:
    """SipHash-1-3 of `count` 64-bit words and a last word `tail` (which carries the length in its top byte)."""
    cdef uint64_t v[4]
    cdef int i
    v[0] = k0 ^ <uint64_t>0x736F6D6570736575
    v[1] = k1 ^ <uint64_t>0x646F72616E646F6D
    v[2] = k0 ^ <uint64_t>0x6C7967656E657261
    v[3] = k1 ^ <uint64_t>0x7465646279746573
    for i in range(count):
        v[3] ^= words[i]
        sip_round(v)
        v[0] ^= words[i]
    v[3] ^= tail
    sip_round(v)
    v[0] ^= tail
    v[2] ^= 0xFF
    sip_round(v)
    sip_round(v)
    sip_round(v)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


cdef inline uint64_t flow_hash(
    uint64_t k0, uint64_t k1, uint8_t family, uint8_t proto,
    const uint8_t* src, uint16_t sport, const uint8_t* dst, uint16_t dport,
) noexcept nogil:
    """Hash of a flow as seen in one direction; addresses are 16 bytes, IPv4 mapped (RFC 4291 §2.5.5.2)."""
    cdef uint64_t words[5]
    cdef uint64_t rest = <uint64_t>sport | (<uint64_t>dport << 16) | (<uint64_t>proto << 32)
    if family == 4:
        words[0] = <uint64_t>half(src + 12) | (<uint64_t>half(dst + 12) << 32)
        return sip13(k0, k1, words, 1, rest | (<uint64_t>13 << 56))
    words[0] = word(src)
    words[1] = word(src + 8)
    words[2] = word(dst)
    words[3] = word(dst + 8)
    return sip13(k0, k1, words, 4, rest | (<uint64_t>37 << 56))
