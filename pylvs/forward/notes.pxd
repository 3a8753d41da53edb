"""What an application helper remembers of a connection: one note for each place of the connection table.

Notes lie beside the table under the same index, so that there is nothing to allocate, to run out of or to leak; pages
that no helper ever writes cost no memory. A connection has a note if it has the flag F_NOTED.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef enum:
    ENGINE_DATA = 255  # bytes at the most, as in the kernel


cdef struct Note:
    uint64_t hash  # of a template: where it hangs in the table, since its engine's data is part of its key
    uint8_t kind
    uint8_t length  # of `data`
    uint8_t mode  # FTP: what the client has asked for
    uint8_t data[ENGINE_DATA]  # SIP: the Call-ID
    uint32_t position  # FTP: the server's sequence number behind which `after` holds
    uint32_t before  # what to add to the server's sequence numbers, up to `position` and behind it
    uint32_t after


cdef enum NoteKind:
    NOTE_NONE = 0
    NOTE_FTP
    NOTE_SIP
