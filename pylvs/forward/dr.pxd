"""Room 5, DR (route): the frame goes to the real server's MAC, and nothing above layer 2 changes but the TTL.

The real server has the VIP on a loopback interface and answers the client itself. TTL and MTU are the business of every
method and are done before.
"""

from libc.stdint cimport uint8_t

from pylvs.forward.fib cimport Hop
from pylvs.forward.packet cimport Flow, Frame
from pylvs.forward.plane cimport Plane, transmit
from pylvs.forward.fragment cimport send_fitting


cdef inline int send(Plane* plane, Frame* frame, Flow* flow, Hop* hop, uint8_t* reason) noexcept nogil:
    """New MACs, nothing else."""
    return send_fitting(plane, frame, flow, hop, reason)
