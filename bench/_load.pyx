# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The three loops of the benchmark that must run at wire speed: a traffic generator, a bare AF_PACKET forwarder (the
floor that any director of this kind stands on) and a spinner that measures what a processor has left.

Each is a class whose `run`-like method holds no GIL. A socket belongs to the network namespace in which its object was
made; it may be used from any thread afterwards. Errors at the door are `OSError` with the system's errno.
"""

from libc.errno cimport EAGAIN, ENOBUFS, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport close

import os
import socket as _socket


cdef extern from "sys/socket.h" nogil:
    int AF_PACKET, SOCK_RAW, SOL_SOCKET, SO_SNDBUFFORCE, SO_RCVBUFFORCE, MSG_DONTWAIT
    ctypedef unsigned int socklen_t
    struct sockaddr:
        pass
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    int socket(int, int, int)
    int bind(int, const sockaddr *, socklen_t)
    int setsockopt(int, int, int, const void *, socklen_t)
    int getsockopt(int, int, int, void *, socklen_t *)

cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE 1
    #endif
    #include <sys/socket.h>
    """
    struct mmsghdr:
        msghdr msg_hdr
        unsigned int msg_len
    int sendmmsg(int, mmsghdr *, unsigned int, int)

cdef extern from "sys/mman.h" nogil:
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_POPULATE
    void *MAP_FAILED
    void *mmap(void *, size_t, int, int, int, long)
    int munmap(void *, size_t)

cdef extern from "poll.h" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int poll(pollfd *, unsigned long, int)

cdef extern from "arpa/inet.h" nogil:
    uint16_t htons(uint16_t)

cdef extern from "linux/if_ether.h" nogil:
    int ETH_P_ALL

cdef extern from "linux/if_packet.h" nogil:
    int SOL_PACKET "263"
    int PACKET_VERSION, PACKET_RX_RING, PACKET_VNET_HDR, PACKET_QDISC_BYPASS, PACKET_IGNORE_OUTGOING
    int PACKET_STATISTICS
    int TPACKET_V2
    uint32_t TP_STATUS_USER, TP_STATUS_KERNEL
    struct tpacket_req:
        unsigned int tp_block_size
        unsigned int tp_block_nr
        unsigned int tp_frame_size
        unsigned int tp_frame_nr
    struct tpacket2_hdr:
        uint32_t tp_status
        uint32_t tp_len
        uint32_t tp_snaplen
        uint16_t tp_mac
    struct tpacket_stats:
        unsigned int tp_packets
        unsigned int tp_drops
    struct sockaddr_ll:
        unsigned short sll_family
        uint16_t sll_protocol
        int sll_ifindex

cdef extern from * nogil:
    uint32_t load_u32 "__atomic_load_n"(uint32_t *, int)
    void store_u32 "__atomic_store_n"(uint32_t *, uint32_t, int)
    uint64_t load_u64 "__atomic_load_n"(uint64_t *, int)
    void store_u64 "__atomic_store_n"(uint64_t *, uint64_t, int)
    int RELAXED "__ATOMIC_RELAXED"
    int ACQUIRE "__ATOMIC_ACQUIRE"
    int RELEASE "__ATOMIC_RELEASE"

cdef enum:
    BATCH = 64            # frames per sendmmsg call
    MAX_FRAME = 2048      # bytes of a generated frame
    VNET = 10             # sizeof(struct virtio_net_hdr)
    DIRECTIONS = 2
    UNIT = 200            # steps of the spinner's unit of work, about 0.3 us
    FLOWS_PER_ADDRESS = 50_000
    FIRST_PORT = 1024


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <int64_t> t.tv_sec * 1_000_000_000 + t.tv_nsec


cdef inline uint32_t be16(const uint8_t *p) noexcept nogil:
    return (<uint32_t> p[0] << 8) | p[1]


cdef inline void put16(uint8_t *p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t> (value >> 8)
    p[1] = <uint8_t> value


cdef inline uint32_t fold(uint32_t total) noexcept nogil:
    total = (total & 0xFFFF) + (total >> 16)
    return (total & 0xFFFF) + (total >> 16)


cdef uint32_t sum16(const uint8_t *p, Py_ssize_t length) noexcept nogil:
    cdef uint32_t total = 0
    cdef Py_ssize_t i = 0
    while i + 1 < length:
        total += be16(p + i)
        i += 2
    if i < length:
        total += <uint32_t> p[i] << 8
    return total


cdef int packet_socket(str interface, int protocol) except -1:
    """A raw packet socket bound to `interface` of the calling thread's namespace; `protocol` 0 receives nothing."""
    cdef sockaddr_ll address
    cdef int one = 1, size = 64 << 20
    cdef int index = _socket.if_nametoindex(interface)
    cdef int fd = socket(AF_PACKET, SOCK_RAW, 0)
    if fd < 0:
        raise OSError(errno, f"packet socket: {os.strerror(errno)}")
    setsockopt(fd, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof(size))  # else 280 small frames in flight block the sender
    setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one))
    memset(&address, 0, sizeof(address))
    address.sll_family = AF_PACKET
    address.sll_ifindex = index
    if protocol == 0 and bind(fd, <sockaddr *> &address, sizeof(address)) < 0:
        code = errno
        close(fd)
        raise OSError(code, f"bind to {interface}: {os.strerror(code)}")
    return fd


cdef int option(int fd, int name, int value) except -1:
    if setsockopt(fd, SOL_PACKET, name, &value, sizeof(value)) < 0:
        raise OSError(errno, f"packet socket option {name}: {os.strerror(errno)}")
    return 0


cdef class Generator:
    """Sends copies of one IPv4/UDP frame that differ in the address and port of their flow, at a steady rate.

    `frame` is a complete Ethernet frame without VLAN tag, its IPv4 header 20 bytes long. Flow *i* has the address of
    the frame plus ``i // 50000`` and the port ``1024 + i % 50000``: the source's, or the destination's if
    `vary_destination` (replies). Both checksums are kept right.
    """

    cdef int fd
    cdef int length
    cdef int at_address
    cdef int at_port
    cdef uint32_t base
    cdef uint32_t ip_sum
    cdef uint32_t udp_sum
    cdef uint64_t position
    cdef uint8_t *frames
    cdef mmsghdr *messages
    cdef iovec *vectors

    def __cinit__(self, str interface, bytes frame, bint vary_destination=False):
        cdef int i
        cdef uint8_t *first
        if not 42 <= len(frame) <= MAX_FRAME:
            raise ValueError(f"a frame of {len(frame)} bytes; use 42 to {MAX_FRAME}")
        self.fd = -1
        self.length = len(frame)
        self.at_address = 30 if vary_destination else 26
        self.at_port = 36 if vary_destination else 34
        self.frames = <uint8_t *> calloc(BATCH, MAX_FRAME)
        self.messages = <mmsghdr *> calloc(BATCH, sizeof(mmsghdr))
        self.vectors = <iovec *> calloc(BATCH, sizeof(iovec))
        if not self.frames or not self.messages or not self.vectors:
            raise MemoryError
        for i in range(BATCH):
            memcpy(self.frames + i * MAX_FRAME, <const uint8_t *> frame, self.length)
            self.vectors[i].iov_base = self.frames + i * MAX_FRAME
            self.vectors[i].iov_len = self.length
            self.messages[i].msg_hdr.msg_iov = self.vectors + i
            self.messages[i].msg_hdr.msg_iovlen = 1
        first = self.frames
        self.base = (be16(first + self.at_address) << 16) | be16(first + self.at_address + 2)
        # sums of everything that stays: the fields that vary and the checksums themselves count as zero
        memset(first + self.at_address, 0, 4)
        memset(first + self.at_port, 0, 2)
        memset(first + 24, 0, 2)
        memset(first + 40, 0, 2)
        self.ip_sum = fold(sum16(first + 14, 20))
        self.udp_sum = fold(sum16(first + 26, self.length - 26) + 17 + be16(first + 38))
        self.fd = packet_socket(interface, 0)

    def __dealloc__(self):
        if self.fd >= 0:
            close(self.fd)
        free(self.frames)
        free(self.messages)
        free(self.vectors)

    cdef void fill(self, uint8_t *frame, uint64_t flow) noexcept nogil:
        cdef uint32_t address = self.base + <uint32_t> (flow // FLOWS_PER_ADDRESS)
        cdef uint32_t port = FIRST_PORT + <uint32_t> (flow % FLOWS_PER_ADDRESS)
        cdef uint32_t both = (address >> 16) + (address & 0xFFFF)
        cdef uint32_t total
        put16(frame + self.at_address, address >> 16)
        put16(frame + self.at_address + 2, address)
        put16(frame + self.at_port, port)
        put16(frame + 24, ~fold(self.ip_sum + both))
        total = ~fold(self.udp_sum + both + port) & 0xFFFF
        put16(frame + 40, total if total else 0xFFFF)

    cdef int64_t transmit(self, uint64_t flows, double rate, int64_t limit_ns, int64_t packets, int burst,
                          uint64_t *refused, int64_t *spent) noexcept nogil:
        cdef int64_t start = now_ns(), origin = start, t = start, due, sent = 0, paid = 0
        cdef int i, n, done
        refused[0] = 0
        while t - start < limit_ns and (packets == 0 or sent < packets):
            n = burst
            if rate > 0:
                due = <int64_t> ((t - origin) * rate * 1e-9)
                if due < paid:
                    t = now_ns()
                    continue
                if due - paid > 64 * burst:  # hopelessly late: forgive, and let the offered rate show it
                    origin = t
                    paid = 0
                paid += n
            if packets and n > packets - sent:
                n = <int> (packets - sent)
            for i in range(n):
                self.fill(self.frames + i * MAX_FRAME, self.position)
                self.position += 1
                if self.position >= flows:
                    self.position = 0
            done = 0
            while done < n:
                i = sendmmsg(self.fd, self.messages + done, n - done, MSG_DONTWAIT)
                if i <= 0:
                    refused[0] += 1
                    done += 1
                    if errno != EAGAIN and errno != ENOBUFS:
                        limit_ns = 0
                        break
                else:
                    done += i
                    sent += i
            t = now_ns()
        spent[0] = t - start
        return sent

    def table(self, unsigned char[::1] entries not None, uint64_t flows):
        """Write bytes 22 to 41 of each flow's frame (TTL to UDP checksum) into `entries`, 24 bytes apart."""
        cdef uint64_t flow
        if entries.shape[0] < <Py_ssize_t> (24 * flows):
            raise ValueError(f"{entries.shape[0]} bytes do not hold {flows} entries")
        for flow in range(flows):
            self.fill(self.frames, flow)
            memcpy(&entries[24 * flow], self.frames + 22, 20)

    def send(self, double seconds, double rate=0.0, uint64_t flows=1, int64_t packets=0, int burst=32):
        """Send for `seconds` at `rate` packets per second (0: as fast as possible), at most `packets` (0: no limit).

        Frames leave in bursts of `burst` (at most 64), as interrupt moderation delivers them. Returns (sent,
        refused by the socket, seconds spent).
        """
        cdef uint64_t refused = 0
        cdef int64_t sent, spent = 0, limit = <int64_t> (seconds * 1e9)
        if not 1 <= burst <= BATCH:
            raise ValueError(f"burst {burst} is out of range; use 1 to {BATCH}")
        if flows < 1:
            raise ValueError("flows 0 is out of range; use 1 or more")
        with nogil:
            sent = self.transmit(flows, rate, limit, packets, burst, &refused, &spent)
        return sent, refused, spent * 1e-9


cdef struct Lane:
    int rx
    int tx
    uint8_t *ring
    size_t mapped
    uint32_t head
    uint8_t macs[12]          # destination and source of what leaves


cdef class Forwarder:
    """Receives IPv4 frames from one link, writes new MAC addresses over them and sends them on another: nothing else.

    The lanes are those of the director's port: TPACKET_V2 ring with virtio-net headers, all protocols, outgoing frames
    ignored; `sendmmsg` in batches of 64 straight from the ring; `poll` when there is nothing to do. `lanes` are
    (input, output, destination MAC, source MAC), one or two of them.
    """

    cdef Lane lanes[DIRECTIONS]
    cdef int count
    cdef uint32_t slots
    cdef uint32_t slot_bytes
    cdef uint32_t stopping
    cdef mmsghdr *messages
    cdef iovec *vectors
    cdef readonly uint64_t received, forwarded, other, truncated, refused, polls, calls

    def __cinit__(self, list lanes, uint32_t slots=1024, uint32_t slot_bytes=66048):
        cdef int i
        if not 1 <= len(lanes) <= DIRECTIONS:
            raise ValueError(f"{len(lanes)} lanes; use one or two")
        self.slots, self.slot_bytes = slots, slot_bytes
        for i in range(DIRECTIONS):
            self.lanes[i].rx = self.lanes[i].tx = -1
        self.messages = <mmsghdr *> calloc(BATCH, sizeof(mmsghdr))
        self.vectors = <iovec *> calloc(BATCH, sizeof(iovec))
        if not self.messages or not self.vectors:
            raise MemoryError
        for i in range(BATCH):
            self.messages[i].msg_hdr.msg_iov = self.vectors + i
            self.messages[i].msg_hdr.msg_iovlen = 1
        for source, target, destination_mac, source_mac in lanes:
            self.open_lane(&self.lanes[self.count], source, target, bytes(destination_mac) + bytes(source_mac))
            self.count += 1

    cdef int open_lane(self, Lane *lane, str source, str target, bytes macs) except -1:
        cdef tpacket_req request
        cdef sockaddr_ll address
        cdef uint32_t per_block
        cdef void *ring
        memcpy(lane.macs, <const uint8_t *> macs, 12)
        lane.tx = packet_socket(target, 0)
        option(lane.tx, PACKET_VNET_HDR, 1)
        lane.rx = packet_socket(source, ETH_P_ALL)
        option(lane.rx, PACKET_VERSION, TPACKET_V2)
        option(lane.rx, PACKET_VNET_HDR, 1)
        option(lane.rx, PACKET_IGNORE_OUTGOING, 1)
        per_block = 1
        while (per_block * self.slot_bytes) % 4096:
            per_block += 1
        memset(&request, 0, sizeof(request))
        request.tp_frame_size = self.slot_bytes
        request.tp_block_size = per_block * self.slot_bytes
        request.tp_block_nr = (self.slots + per_block - 1) // per_block
        request.tp_frame_nr = request.tp_block_nr * per_block
        self.slots = request.tp_frame_nr
        if setsockopt(lane.rx, SOL_PACKET, PACKET_RX_RING, &request, sizeof(request)) < 0:
            raise OSError(errno, f"ring of {self.slots} slots of {self.slot_bytes} bytes: {os.strerror(errno)}")
        lane.mapped = <size_t> self.slots * self.slot_bytes
        ring = mmap(NULL, lane.mapped, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, lane.rx, 0)
        if ring == MAP_FAILED:
            raise OSError(errno, f"mmap of the ring: {os.strerror(errno)}")
        lane.ring = <uint8_t *> ring
        memset(&address, 0, sizeof(address))
        address.sll_family = AF_PACKET
        address.sll_protocol = htons(ETH_P_ALL)
        address.sll_ifindex = _socket.if_nametoindex(source)
        if bind(lane.rx, <sockaddr *> &address, sizeof(address)) < 0:
            raise OSError(errno, f"bind to {source}: {os.strerror(errno)}")
        return 0

    def __dealloc__(self):
        self.close()
        free(self.messages)
        free(self.vectors)

    def close(self):
        """Close sockets and rings; `run` must have returned."""
        cdef int i
        for i in range(DIRECTIONS):
            if self.lanes[i].ring:
                munmap(self.lanes[i].ring, self.lanes[i].mapped)
                self.lanes[i].ring = NULL
            if self.lanes[i].rx >= 0:
                close(self.lanes[i].rx)
            if self.lanes[i].tx >= 0:
                close(self.lanes[i].tx)
            self.lanes[i].rx = self.lanes[i].tx = -1

    cdef uint32_t drain(self, Lane *lane) noexcept nogil:
        """One batch of one lane; returns how many slots were taken."""
        cdef uint32_t first = lane.head, taken = 0, queued = 0, sent = 0
        cdef tpacket2_hdr *slot
        cdef uint8_t *frame
        cdef int n
        while taken < BATCH:
            slot = <tpacket2_hdr *> (lane.ring + <size_t> lane.head * self.slot_bytes)
            if not load_u32(&slot.tp_status, ACQUIRE) & TP_STATUS_USER:
                break
            frame = <uint8_t *> slot + slot.tp_mac
            if slot.tp_snaplen != slot.tp_len:
                self.truncated += 1
            elif be16(frame + 12) != 0x0800:
                self.other += 1
            else:
                memcpy(frame, lane.macs, 12)
                self.vectors[queued].iov_base = frame - VNET
                self.vectors[queued].iov_len = slot.tp_snaplen + VNET
                queued += 1
            taken += 1
            lane.head += 1
            if lane.head == self.slots:
                lane.head = 0
        while sent < queued:
            n = sendmmsg(lane.tx, self.messages, queued - sent, MSG_DONTWAIT)
            self.calls += 1
            if n <= 0:
                self.refused += 1
                n = 1
            else:
                self.forwarded += n
            sent += n
            if sent < queued:  # rare: move the rest to the front, messages point at fixed vectors
                for n in range(<int> (queued - sent)):
                    self.vectors[n] = self.vectors[sent + n]
                queued -= sent
                sent = 0
        self.received += taken
        n = <int> taken
        while n:
            slot = <tpacket2_hdr *> (lane.ring + <size_t> first * self.slot_bytes)
            store_u32(&slot.tp_status, TP_STATUS_KERNEL, RELEASE)
            first = first + 1 if first + 1 < self.slots else 0
            n -= 1
        return taken

    def run(self):
        """Forward until `stop`; the calling thread's affinity and priority are the caller's business."""
        cdef pollfd wait[DIRECTIONS]
        cdef uint32_t moved
        cdef int i
        for i in range(self.count):
            wait[i].fd = self.lanes[i].rx
            wait[i].events = POLLIN
        with nogil:
            while not load_u32(&self.stopping, RELAXED):
                moved = 0
                for i in range(self.count):
                    moved += self.drain(&self.lanes[i])
                if moved == 0:
                    self.polls += 1
                    poll(wait, self.count, 50)

    def stop(self):
        """Let `run` return within 50 ms."""
        store_u32(&self.stopping, 1, RELAXED)

    @property
    def overruns(self):
        """Frames lost because a ring was full, since the last look."""
        cdef tpacket_stats stats
        cdef socklen_t size
        cdef int i
        total = 0
        for i in range(self.count):
            size = sizeof(stats)
            if getsockopt(self.lanes[i].rx, SOL_PACKET, PACKET_STATISTICS, &stats, &size) == 0:
                total += stats.tp_drops
        return total


cdef class Spinner:
    """Counts units of work: at the lowest priority of its processor, it counts what everything else left over."""

    cdef uint64_t units
    cdef uint64_t state
    cdef uint32_t stopping

    def run(self):
        """Count until `stop`; the calling thread has set its affinity and priority."""
        cdef uint64_t x = 88172645463325252, done
        cdef int _step
        with nogil:
            done = load_u64(&self.units, RELAXED)
            while not load_u32(&self.stopping, RELAXED):
                for _step in range(UNIT):
                    x ^= x << 13
                    x ^= x >> 7
                    x ^= x << 17
                done += 1
                store_u64(&self.units, done, RELAXED)
            self.state = x  # keeps the work from being optimised away

    def stop(self):
        """Let `run` return at once."""
        store_u32(&self.stopping, 1, RELAXED)

    def reset(self):
        """Make ready for another `run`."""
        self.stopping = 0

    def read(self):
        """(units so far, monotonic seconds), taken together to within 20 us."""
        cdef int64_t before, after
        cdef uint64_t units
        while True:
            before = now_ns()
            units = load_u64(&self.units, RELAXED)
            after = now_ns()
            if after - before < 20_000:
                return units, after * 1e-9
