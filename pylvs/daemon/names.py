"""Names of hosts from ``/etc/hosts``, for listings without ``-n``: no name server is ever asked."""

from __future__ import annotations

from pathlib import Path

from pylvs.model import canonical

HOSTS = Path("/etc/hosts")


def read_hosts(path: Path = HOSTS) -> dict[str, str]:
    """Name -> address (hosts(5)), in the file's order; a name's first address counts. Empty if there is no such file."""
    found: dict[str, str] = {}
    try:
        text = path.read_text(errors="replace")
    except OSError:
        return found
    for line in text.splitlines():
        address, *names = line.partition("#")[0].split() or [""]
        try:
            address = canonical(address)
        except ValueError:
            continue
        for name in names:
            found.setdefault(name, address)
    return found
