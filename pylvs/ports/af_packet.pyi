from collections.abc import Iterable

from pylvs.ports.port import AnyPort

class PacketPort(AnyPort):
    def __init__(
        self,
        name: str,
        ifindex: int,
        link: int,
        receives: bool = ...,
        ring_mib: int = ...,
        vlans: Iterable[int] = ...,
    ) -> None: ...
    @property
    def bound(self) -> bool: ...
