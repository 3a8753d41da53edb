"""Rules of our own that give packets a firewall mark, as people write them: dictionaries in code, one word in a shell."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from pylvs.model import Mark

#: mark : protocol : destination, IPv6 in brackets [: ports]
_RULE = re.compile(r"([^:]+):([^:]+):(\[[^\]]*\](?:/\d+)?|[^:\[\]]+)(?::([^:]+))?")


def parse(text: str) -> dict[str, Any]:
    """``MARK:PROTOCOL:DESTINATION[:PORTS]`` as the dictionary that `mark_rule` takes. `ValueError` says what is wrong."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text!r} is no rule; write MARK:PROTOCOL:DESTINATION[:PORTS], such as 1:tcp:192.0.2.10:80,443 "
            "or 1:any:[2001:db8::10]"
        )
    mark, protocol, destination, ports = found.groups()
    try:
        number = int(mark, 0)
    except ValueError:
        raise ValueError(f"{mark!r} is no mark; use a number from 1 to 4294967295") from None
    if protocol not in {"tcp", "udp", "sctp", "any"}:
        raise ValueError(f"{protocol!r} is no protocol; use tcp, udp, sctp or any")
    rule: dict[str, Any] = {
        "mark": number,
        "protocol": "" if protocol == "any" else protocol,
        "destination": "" if destination == "any" else destination.replace("[", "").replace("]", ""),
        "ports": ports.split(",") if ports else [],
    }
    try:
        mark_rule(rule)
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None
    return rule


def mark_rule(rule: Mapping[str, Any]) -> Mark:
    """A rule from the contract's dictionary; `ports` may be a number, "80", "8000-8999", or a list of such. `ValueError`
    says what is wrong."""
    given = dict(rule)
    ports = given.get("ports", ())
    each_port = ports if isinstance(ports, list | tuple) else (ports,)
    given["ports"] = [_range(each) for each in each_port]
    try:
        return msgspec.convert(given, Mark)
    except msgspec.ValidationError as error:
        raise ValueError(f"mark rule {dict(rule)!r}: {error}") from None


def _range(ports: Any) -> tuple[int, int]:
    if isinstance(ports, list | tuple):
        low, high = str(ports[0]), str(ports[-1])
    else:
        low, _, high = str(ports).partition("-")
    try:
        found = int(low), int(high or low)
    except ValueError:
        raise ValueError(f"{ports!r} is no port or range of ports; write 80 or 8000-8999") from None
    if not 0 <= found[0] <= found[1] <= 65535:
        raise ValueError(f"ports {ports!r} are out of range; use 0 to 65535, the smaller first")
    return found
