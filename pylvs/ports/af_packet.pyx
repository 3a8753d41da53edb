"""AF_PACKET sockets with a memory-mapped receive ring and offload metadata in both directions.

The socket is bound to all protocols, so that it sees frames before any filter at ingress does; what this host sends it
does not see. The ring is TPACKET_V2: a frame is there as soon as it has arrived. Its slots hold the 64 KB super-frames
of virtual links and leave headroom for an outer header. Sending is sendmmsg, a virtio-net header before each frame.
packet(7), Documentation/networking/packet_mmap; virtio 1.1 §5.1.6.
"""

import errno
import os
import socket
import struct

from libc.errno cimport errno as c_errno
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memmove, memset
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from pylvs.forward._sys cimport acquire
from pylvs.forward._sys cimport release as store
from pylvs.forward.packet cimport NEEDS_CSUM, Frame, put16
from pylvs.forward.plane cimport HEADROOM, TxFrame
from pylvs.ports.port cimport TX_BATCH, AnyPort, Port


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int sendmmsg(int fd, mmsghdr* messages, unsigned int count, int flags)
    int getsockopt(int fd, int level, int option, void* value, unsigned int* length)
    enum: MSG_DONTWAIT, SOL_SOCKET, SO_ERROR

cdef extern from "<linux/if_packet.h>" nogil:
    struct tpacket2_hdr:
        uint32_t tp_status
        uint32_t tp_len
        uint32_t tp_snaplen
        uint16_t tp_mac
        uint16_t tp_vlan_tci
        uint16_t tp_vlan_tpid
    enum:
        TP_STATUS_USER, TP_STATUS_KERNEL, TP_STATUS_VLAN_VALID, TP_STATUS_VLAN_TPID_VALID
        PACKET_RX_RING, PACKET_VERSION, PACKET_VNET_HDR, PACKET_RESERVE, PACKET_QDISC_BYPASS, PACKET_STATISTICS
        PACKET_IGNORE_OUTGOING, TPACKET_V2

cdef enum:
    SLOT = 66560  # a 64 KB packet, link-layer header, ring header, headroom
    BLOCK = 4 << 20
    VNET = 10  # sizeof(struct virtio_net_hdr)

SOL_PACKET = 263
ETH_P_ALL = 3
SO_SNDBUFFORCE = 32


cdef inline tpacket2_hdr* slot_at(Ring* ring, uint32_t i) noexcept nogil:
    return <tpacket2_hdr*>(
        ring.base + <size_t>(i // ring.slots_per_block) * ring.block_size
        + <size_t>(i % ring.slots_per_block) * ring.slot_size
    )


cdef int receive(Port* port, Frame* frames, int limit) noexcept nogil:
    """Take up to `limit` frames out of the ring; return how many."""
    cdef Ring* ring = <Ring*>port.data
    cdef int count = 0
    cdef uint32_t status
    cdef uint16_t vid
    cdef tpacket2_hdr* slot
    cdef uint8_t* base
    cdef Frame* frame
    while count < limit and port.taken < ring.slots:
        slot = slot_at(ring, ring.next)
        status = acquire(&slot.tp_status)
        if not status & TP_STATUS_USER:
            break
        ring.next = ring.next + 1 if ring.next + 1 < ring.slots else 0
        port.taken += 1
        base = <uint8_t*>slot
        frame = &frames[count]
        frame.data = base + slot.tp_mac
        frame.length = slot.tp_snaplen
        frame.headroom = HEADROOM
        frame.link = port.link
        frame.own = False
        memcpy(&frame.offload, frame.data - VNET, VNET)
        if status & TP_STATUS_VLAN_VALID:
            vid = slot.tp_vlan_tci & 0xFFF
            if ring.vlans[vid >> 3] & (1 << (vid & 7)):
                continue
            frame.data -= 4
            frame.length += 4
            memmove(frame.data, frame.data + 4, 12)
            put16(frame.data + 12, slot.tp_vlan_tpid if status & TP_STATUS_VLAN_TPID_VALID else 0x8100)
            put16(frame.data + 14, slot.tp_vlan_tci)
            if frame.offload.flags & NEEDS_CSUM:
                frame.offload.csum_start += 4
        count += 1
    return count


cdef void release(Port* port) noexcept nogil:
    """Give the slots of all received frames back to the kernel."""
    cdef Ring* ring = <Ring*>port.data
    cdef uint32_t i = ring.next + ring.slots - port.taken
    while port.taken:
        if i >= ring.slots:
            i -= ring.slots
        store(&slot_at(ring, i).tp_status, TP_STATUS_KERNEL)
        i += 1
        port.taken -= 1


cdef int transmit(Port* port, TxFrame** frames, int count, int* error) noexcept nogil:
    """Send up to TX_BATCH frames; return how many went out. If none, `error` says why not."""
    cdef mmsghdr messages[TX_BATCH]
    cdef iovec parts[2 * TX_BATCH]
    cdef int i
    cdef int sent
    memset(messages, 0, sizeof(mmsghdr) * count)
    for i in range(count):
        parts[2 * i].iov_base = &frames[i].offload
        parts[2 * i].iov_len = VNET
        parts[2 * i + 1].iov_base = frames[i].data
        parts[2 * i + 1].iov_len = frames[i].length
        messages[i].msg_hdr.msg_iov = &parts[2 * i]
        messages[i].msg_hdr.msg_iovlen = 2
    sent = sendmmsg(port.fd, messages, count, MSG_DONTWAIT)
    if sent < 0:
        error[0] = c_errno
        return 0
    error[0] = 0
    return sent


cdef bint clear_error(Port* port) noexcept nogil:
    """Fetch and clear the socket's error (an interface that went down); return whether there was one."""
    cdef int value = 0
    cdef unsigned int size = sizeof(value)
    getsockopt(port.fd, SOL_SOCKET, SO_ERROR, &value, &size)
    return value != 0


cdef class PacketPort(AnyPort):
    """An open port on interface `name` (index `ifindex`), known to the data plane as `link`.

    With `receives` false it only sends. `ring_mib` is the size of the receive ring, in which a frame takes 65 KiB.
    `vlans` are tags whose frames are left to interfaces of their own. Raises `OSError`, with the interface's name.
    """

    def __cinit__(self, str name, int ifindex, uint16_t link, bint receives=True, int ring_mib=64, vlans=()):
        cdef uint32_t blocks = max(1, ring_mib // (BLOCK >> 20))
        self.name = name
        self.ifindex = ifindex
        self.port.receive = receive
        self.port.release = release
        self.port.transmit = transmit
        self.port.clear_error = clear_error
        self.port.data = &self.ring
        self.port.link = link
        self.port.receives = receives
        for vid in vlans:
            self.ring.vlans[<int>vid >> 3] |= 1 << (<int>vid & 7)
        try:
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            try:
                sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
                sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
                sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
                sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
                try:
                    sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 32 << 20)
                except PermissionError:
                    pass
                if receives:
                    sock.setsockopt(SOL_PACKET, PACKET_RESERVE, HEADROOM)
                    self._map_ring(sock, blocks)
                sock.bind((name, ETH_P_ALL if receives else 0))
            except BaseException:
                sock.close()
                raise
            self.port.fd = sock.detach()
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ENXIO):
                raise OSError(error.errno, f"interface {name} does not exist; see `ip link`") from None
            if error.errno == errno.EPERM:
                raise OSError(error.errno, "packet sockets need root or CAP_NET_RAW") from None
            raise OSError(error.errno, f"interface {name}: {os.strerror(error.errno)}") from None

    def _map_ring(self, sock, uint32_t blocks):
        cdef Ring* ring = &self.ring
        cdef void* base
        ring.block_size = BLOCK
        ring.slot_size = SLOT
        ring.slots_per_block = BLOCK // SLOT
        ring.slots = blocks * ring.slots_per_block
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("IIII", BLOCK, blocks, SLOT, ring.slots))
        ring.size = <size_t>blocks * BLOCK
        base = mmap(NULL, ring.size, PROT_READ | PROT_WRITE, MAP_SHARED, sock.fileno(), 0)
        if base == MAP_FAILED:
            raise OSError(c_errno, "receive ring")
        ring.base = <uint8_t*>base

    def statistics(self):
        """Frames lost so far because the ring was full."""
        cdef uint32_t values[2]
        cdef unsigned int size = sizeof(values)
        if getsockopt(self.port.fd, SOL_PACKET, PACKET_STATISTICS, values, &size) == 0:
            self.lost += values[1]
        return self.lost

    @property
    def bound(self):
        """Is the socket at its interface? Not if that was deleted or moved away, even if it has come back since."""
        with socket.socket(fileno=os.dup(self.port.fd)) as sock:
            return sock.getsockname()[0] == self.name

    def close(self):
        """Close the socket; the worker must have let go of the port."""
        if self.ring.base is not NULL:
            munmap(self.ring.base, self.ring.size)
            self.ring.base = NULL
        AnyPort.close(self)

    def __dealloc__(self):
        if self.ring.base is not NULL:
            munmap(self.ring.base, self.ring.size)
