from collections.abc import Iterable

class PacketPort:
    name: str
    def __init__(
        self,
        name: str,
        ifindex: int,
        link: int,
        receives: bool = ...,
        ring_mib: int = ...,
        vlans: Iterable[int] = ...,
    ) -> None: ...
    def statistics(self) -> int: ...
    @property
    def link(self) -> int: ...
    @property
    def ifindex(self) -> int: ...
    @property
    def bound(self) -> bool: ...
    def close(self) -> None: ...
