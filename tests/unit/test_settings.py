"""Settings: the kernel's defaults, accepted values and texts."""

from __future__ import annotations

from typing import Any

import pytest

from pylvs.settings import AUTOMATIC, EFFECTIVE, TABLE, Settings

DEFAULTS = {
    "am_droprate": 10, "amemthresh": 1024, "backup_only": 0, "cache_bypass": 0, "conn_reuse_mode": 1, "conntrack": 0,
    "drop_entry": 0, "drop_packet": 0, "expire_nodest_conn": 0, "expire_quiescent_template": 0, "ignore_tunneled": 0,
    "lblc_expiration": 86400, "lblcr_expiration": 86400, "nat_icmp_send": 0, "pmtu_disc": 1, "run_estimation": 1,
    "schedule_icmp": 0, "secure_tcp": 0, "sloppy_sctp": 0, "sloppy_tcp": 0, "snat_reroute": 1, "sync_persist_mode": 0,
    "sync_ports": 1, "sync_refresh_period": 0, "sync_retries": 0, "sync_sock_size": 0, "sync_threshold": "3 50",
    "sync_version": 1, "debug_level": 0, "est_cpulist": "", "est_nice": 0, "ip_vs_ftp": 0,
}  # fmt: skip
TAKEN = [
    ("sync_version", "0", 0), ("conn_reuse_mode", 4, 4), ("conn_reuse_mode", -1, -1), ("drop_entry", "3", 3),
    ("sync_threshold", "5", "5 50"), ("sync_threshold", 7, "7 50"), ("sync_threshold", "5 10", "5 10"),
    ("sync_threshold", (5, 10), "5 10"), ("sync_threshold", "5\t10\n", "5 10"), ("sync_threshold", "0 0", "0 0"),
    ("sync_threshold", "3 50 9", "3 50"), ("sync_refresh_period", -1, -1), ("sync_retries", 3, 3),
    ("sync_ports", 64, 64), ("sync_qlen_max", "0", 0), ("amemthresh", -1, -1), ("am_droprate", 0, 0),
    ("cache_bypass", -1, -1), ("sloppy_tcp", "0x10", 16), ("sloppy_tcp", "010", 8), ("sloppy_tcp", " 5\n", 5),
    ("sloppy_tcp", "5 6", 5), ("amemthresh", -(2**31), -(2**31)), ("expire_nodest_conn", True, 1),
    ("est_cpulist", "0-3,5", "0-3,5"),
]  # fmt: skip
REFUSED = [
    ("sync_version", 2), ("drop_entry", 4), ("drop_entry", -1), ("secure_tcp", "4"), ("drop_packet", -1),
    ("sync_threshold", "-1 3"), ("sync_threshold", "10 5"), ("sync_threshold", "5 5"), ("sync_threshold", 50),
    ("sync_retries", 4), ("sync_retries", -1), ("sync_ports", 3), ("sync_ports", 65), ("sync_ports", 0),
    ("sync_ports", -1), ("sync_qlen_max", -1), ("amemthresh", 2**31), ("sloppy_tcp", "yes"), ("sloppy_tcp", ""),
    ("sloppy_tcp", "5x"), ("sloppy_tcp", "09"), ("sloppy_tcp", 1.5), ("sloppy_tcp", None), ("sloppy_tcp", b"1"),
    ("sync_threshold", "3 x"), ("lblc_expiration", 2**31 // 250 + 1), ("est_nice", 20),
]  # fmt: skip


def fresh() -> Settings:
    """Settings that nobody listens to."""
    return Settings(lambda name: None)


def test_defaults() -> None:
    """Those of the kernel; the length of the synchronisation queue depends on memory."""
    settings = dict(fresh())
    assert settings.pop("sync_qlen_max") > 0
    assert settings == DEFAULTS
    assert set(TABLE) >= EFFECTIVE


@pytest.mark.parametrize(("name", "value", "shown"), TAKEN)
def test_taken(name: str, value: Any, shown: Any) -> None:
    """What reads back."""
    told: list[str] = []
    settings = Settings(told.append)
    settings[name] = value
    assert settings[name] == shown
    assert type(settings[name]) is type(shown)
    assert told == [name]
    del settings[name]
    assert settings[name] == {**DEFAULTS, "sync_qlen_max": TABLE["sync_qlen_max"].default}[name]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_refused(name: str, value: Any) -> None:
    """A refusal names the setting and changes nothing."""
    settings = fresh()
    before = settings[name]
    with pytest.raises(ValueError, match=name):
        settings[name] = value
    assert settings[name] == before


def test_unknown_names() -> None:
    """Neither read nor written nor deleted."""
    settings = fresh()
    for act in (
        lambda: settings["nope"],
        lambda: settings.__setitem__("nope", 1),
        lambda: settings.__delitem__("nope"),
    ):
        with pytest.raises(KeyError):
            act()
    assert "nope" not in settings


@pytest.mark.parametrize("name", sorted(AUTOMATIC))
@pytest.mark.parametrize("written", [1, 2])
def test_automatic_modes_show_what_is_so(name: str, written: int) -> None:
    """1 while memory suffices, 2 while it does not; the others stay as they are."""
    short = False
    settings = Settings(lambda name: None, lambda: short)
    settings[name] = written
    assert settings[name] == 1
    short = True
    assert settings[name] == 2
    settings[name] = 3
    assert settings[name] == 3
    settings[name] = 0
    assert settings[name] == 0
