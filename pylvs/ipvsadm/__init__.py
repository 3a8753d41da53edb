"""ipvsadm 1.31 on a pylvs director, byte for byte: its grammar, its listings, its messages."""

from pylvs.ipvsadm.command import Director, Result, run
from pylvs.ipvsadm.grammar import Daemon

__all__ = ["Daemon", "Director", "Result", "run"]
