"""Ctrl-C and SIGTERM end a run at once, except where that would leave something behind: there they wait a moment."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

_depth = 0
_arrived = False


def install() -> None:
    """From now on SIGINT and SIGTERM raise `KeyboardInterrupt` in the main thread, once, outside of `held`."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Let what is in here (setting up, tidying up) come to its end first."""
    global _depth  # noqa: PLW0603
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
    if _arrived and not _depth:
        _raise()


def _handle(number: int, frame: FrameType | None) -> None:
    global _arrived  # noqa: PLW0603
    _arrived = True
    if not _depth:
        _raise()


def _raise() -> None:
    global _arrived  # noqa: PLW0603
    _arrived = False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # once is enough
    raise KeyboardInterrupt
