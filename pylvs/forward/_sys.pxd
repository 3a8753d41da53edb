"""What the core needs of the compiler: atomics, hints and size assertions.

This holds the core's verbatim C; `state.pxd` keeps its tables as C data. System headers with Cython declarations of
their own (libc) are cimported where they are used.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    #define pylvs_likely(x) __builtin_expect(!!(x), 1)
    #define pylvs_unlikely(x) __builtin_expect(!!(x), 0)
    #define pylvs_prefetch(p) __builtin_prefetch((p), 1)
    #define pylvs_load32(p) __atomic_load_n((p), __ATOMIC_RELAXED)
    #define pylvs_add32(p, v) ((void)__atomic_fetch_add((p), (v), __ATOMIC_RELAXED))
    #define pylvs_acquire(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define pylvs_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    static inline uint64_t pylvs_word(const uint8_t *p) { uint64_t w; memcpy(&w, p, 8); return w; }
    static inline uint32_t pylvs_half(const uint8_t *p) { uint32_t w; memcpy(&w, p, 4); return w; }
    static inline uint16_t pylvs_short(const uint8_t *p) { uint16_t w; memcpy(&w, p, 2); return w; }
    """
    bint likely "pylvs_likely"(bint condition) noexcept nogil
    bint unlikely "pylvs_unlikely"(bint condition) noexcept nogil
    void prefetch "pylvs_prefetch"(void* address) noexcept nogil
    # relaxed: counters that several workers change and nobody orders anything by
    uint32_t load32 "pylvs_load32"(uint32_t* address) noexcept nogil
    void add32 "pylvs_add32"(uint32_t* address, uint32_t value) noexcept nogil
    # a value and everything written before it
    uint32_t acquire "pylvs_acquire"(uint32_t* address) noexcept nogil
    void release "pylvs_release"(uint32_t* address, uint32_t value) noexcept nogil
    # unaligned reads in the machine's order; for sums, comparisons and hashes, which do not care for it
    uint64_t word "pylvs_word"(const uint8_t* p) noexcept nogil
    uint32_t half "pylvs_half"(const uint8_t* p) noexcept nogil
    uint16_t short16 "pylvs_short"(const uint8_t* p) noexcept nogil
