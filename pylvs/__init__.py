"""pylvs: Linux Virtual Server in user space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pylvs.director import Director
    from pylvs.model import Connection, RealServer, Service

__version__ = "0.1.0"
__all__ = ["Connection", "Director", "RealServer", "Service", "__version__"]


def __getattr__(name: str) -> Any:
    """Load the public names on first use, so that the command line starts without the data plane (PEP 562)."""
    if name == "Director":
        from pylvs.director import Director

        return Director
    if name in __all__:
        from pylvs import model

        return getattr(model, name)
    raise AttributeError(f"module 'pylvs' has no attribute {name!r}")
