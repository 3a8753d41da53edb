"""The Internet checksum, in full and incrementally (RFC 1071, RFC 1624).

Sums are kept in the machine's byte order: ones' complement addition does not care (RFC 1071 §2 B), as long as what is
read with `short16` is written back with `put_short`. A *delta* is the sum of ``~old + new`` over all changed 16-bit
words; it is computed once per connection and applied to any number of checksums.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from pylvs.forward._sys cimport half, short16, word


cdef inline uint16_t fold(uint64_t total) noexcept nogil:
    """Add the carries of a 64-bit sum back in until 16 bits are left."""
    total = <uint32_t>total + (total >> 32)
    total = <uint32_t>total + (total >> 32)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return <uint16_t>((total & 0xFFFF) + (total >> 16))


cdef inline uint64_t add(const uint8_t* p, uint32_t length, uint64_t total) noexcept nogil:
    """Add `length` bytes at `p` to an unfolded sum; an odd last byte counts as followed by zero.

    At most 64 KB may be added between two foldings, which leaves the 64-bit sum of 32-bit words far from overflow.
    """
    cdef uint8_t last[2]
    while length >= 8:
        total += <uint64_t>half(p) + half(p + 4)
        p += 8
        length -= 8
    if length >= 4:
        total += half(p)
        p += 4
        length -= 4
    if length >= 2:
        total += short16(p)
        p += 2
        length -= 2
    if length:
        last[0] = p[0]
        last[1] = 0
        total += short16(last)
    return total


cdef inline void put_short(uint8_t* p, uint16_t value) noexcept nogil:
    """Write a 16-bit word in the machine's order: the counterpart of `short16`."""
    memcpy(p, &value, 2)


cdef inline uint16_t swapped(uint16_t value) noexcept nogil:
    """A host number as the machine's reading of its big-endian bytes."""
    cdef uint8_t b[2]
    b[0] = <uint8_t>(value >> 8)
    b[1] = <uint8_t>value
    return short16(b)


cdef inline uint64_t delta16(uint16_t old, uint16_t new) noexcept nogil:
    """The delta for one 16-bit word (both as read by `short16`)."""
    return <uint64_t>(<uint16_t>~old) + new


cdef inline uint64_t delta_bytes(const uint8_t* old, const uint8_t* new, uint32_t length) noexcept nogil:
    """The delta for `length` (even) bytes that change from `old` to `new`."""
    cdef uint64_t total = 0
    cdef uint32_t i
    for i in range(0, length, 2):
        total += delta16(short16(old + i), short16(new + i))
    return total


cdef inline void update(uint8_t* check, uint64_t delta) noexcept nogil:
    """Apply a delta to a finished checksum (RFC 1624 equation 3); a wrong checksum stays as wrong as it was."""
    put_short(check, <uint16_t>~fold(<uint64_t>(<uint16_t>~short16(check)) + delta))


cdef inline void update_partial(uint8_t* check, uint64_t delta) noexcept nogil:
    """Apply a delta to the pseudo-header sum that an offloaded frame carries in place of its checksum."""
    put_short(check, fold(<uint64_t>short16(check) + delta))


cdef inline uint64_t pseudo(const uint8_t* addresses, uint32_t length, uint8_t proto, uint32_t size) noexcept nogil:
    """Unfolded pseudo-header sum (RFC 9293 §3.1, RFC 8200 §8.1): both addresses, `length` bytes in all, adjacent."""
    return add(addresses, length, 0) + swapped(<uint16_t>(size >> 16)) + swapped(<uint16_t>size) + swapped(proto)
