"""The AF_PACKET backend's own part of a port: the receive ring."""

from libc.stdint cimport uint8_t, uint32_t

from pylvs.ports.port cimport AnyPort


cdef struct Ring:
    uint8_t* base
    size_t size
    uint32_t slots
    uint32_t slot_size
    uint32_t slots_per_block
    uint32_t block_size
    uint32_t next  # slot to look at
    uint8_t vlans[512]  # bitmap: tags that belong to interfaces of their own, which see these frames themselves


cdef class PacketPort(AnyPort):
    cdef Ring ring
