"""What all ports have in common for Python: a name, the data plane's number of the link, an end."""

from posix.unistd cimport close


cdef class AnyPort:
    """A port of some backend. A worker may hold it; it must outlive that, and is closed by the worker then."""

    def __cinit__(self, *args, **kwargs):
        self.port.fd = -1

    @property
    def link(self):
        """The data plane's number of the interface."""
        return self.port.link

    @property
    def bound(self):
        """Is it still where it was opened? Always, unless the backend can lose its interface."""
        return True

    def statistics(self):
        """Frames lost so far because the receive queue was full."""
        return self.lost

    def close(self):
        """Close the descriptor; the worker must have let go of the port. Safe to call twice."""
        if self.port.fd >= 0:
            close(self.port.fd)
            self.port.fd = -1

    def __dealloc__(self):
        if self.port.fd >= 0:
            close(self.port.fd)
