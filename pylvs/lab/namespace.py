"""Network namespaces by name: make, enter, remove; and commands that start inside them.

Names live in ``/run/netns``, so that ``ip netns exec NAME …`` reaches every node of a lab.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

DIRECTORY = Path("/run/netns")
CLONE_NEWNS = 0x00020000
CLONE_NEWNET = 0x40000000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def path(name: str) -> Path:
    """The file that stands for the namespace `name`."""
    return DIRECTORY / name


def names(prefix: str) -> list[str]:
    """The named namespaces that begin with `prefix`."""
    try:
        return sorted(entry.name for entry in DIRECTORY.iterdir() if entry.name.startswith(prefix))
    except FileNotFoundError:
        return []


def create(name: str) -> None:
    """Make the namespace `name`, its loopback up. `OSError` says what the kernel refused."""
    _share()
    file = path(name)
    file.touch(mode=0, exist_ok=False)
    try:
        with _away():
            if _libc.unshare(CLONE_NEWNET) != 0:
                code = ctypes.get_errno()
                why = "this kernel has none" if code in {errno.EINVAL, errno.ENOSYS} else os.strerror(code)
                raise OSError(code, f"a network namespace cannot be made: {why}")
            source = b"/proc/thread-self/ns/net"
            _checked(_libc.mount(source, bytes(file), b"none", MS_BIND, None), f"name the network namespace {name}")
            with IPRoute() as route:
                route.link("set", index=1, state="up")
    except BaseException:
        remove(name)
        raise


def _share() -> None:
    """``/run/netns`` as a shared mount, as `ip netns` makes it: a namespace removed here is removed for every process that
    has mounts of its own."""
    DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    directory = bytes(DIRECTORY)
    handle = os.open(DIRECTORY, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # as `ip netns` does: two mounts on top of each other would hide names
        if _libc.mount(b"", directory, b"none", MS_SHARED | MS_REC, None) != 0:
            _checked(_libc.mount(directory, directory, b"none", MS_BIND | MS_REC, None), f"mount {DIRECTORY}")
            _checked(_libc.mount(b"", directory, b"none", MS_SHARED | MS_REC, None), f"share {DIRECTORY}")
    finally:
        os.close(handle)


def remove(name: str) -> None:
    """Remove the namespace `name` and the links in it. Whoever still runs inside keeps an empty one."""
    if named(name):
        with suppress(OSError), routes(name) as route:
            for link in route.get_links():
                if link["index"] != 1:
                    with suppress(NetlinkError):  # the other end of a veth pair went with the first
                        route.link("del", index=link["index"])
        _libc.umount2(bytes(path(name)), MNT_DETACH)
    path(name).unlink(missing_ok=True)


def named(name: str) -> bool:
    """True if a namespace is mounted on its name, and the file is not a mere leftover."""
    try:
        return path(name).stat().st_dev != DIRECTORY.stat().st_dev
    except FileNotFoundError:
        return False


@contextmanager
def _away() -> Iterator[None]:
    """Whatever network the calling thread enters in the block, afterwards it is back in its own."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            if os.stat("/proc/thread-self/ns/net").st_ino != os.fstat(home).st_ino:
                _checked(_libc.setns(home, CLONE_NEWNET), "return to this network")
        finally:
            os.close(home)


@contextmanager
def inside(name: str) -> Iterator[None]:
    """The calling thread's network is that of the namespace `name` until the block ends: sockets opened and processes
    started in the block belong to it for good."""
    with _away():
        _enter(name)
        yield


def _enter(name: str) -> None:
    target = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    try:
        _checked(_libc.setns(target, CLONE_NEWNET), f"enter {name}")
    finally:
        os.close(target)


@contextmanager
def routes(name: str) -> Iterator[IPRoute]:
    """Netlink of the namespace `name`: links, addresses, routes and neighbours.

    (`IPRoute(netns=…)` would fork, and the child would share signal handlers and terminal with whoever builds a lab.)
    """
    with inside(name), IPRoute() as route:
        yield route


def set_sysctl(name: str, values: Mapping[str, int]) -> None:
    """Write kernel settings of the namespace `name`, such as ``net.ipv4.ip_forward``."""
    with inside(name):
        for key, value in values.items():
            Path("/proc/sys", *key.split(".")).write_text(f"{value}\n")


def become(name: str, argv: Sequence[str]) -> None:
    """Replace this process by `argv` inside the namespace `name`, with a ``/sys`` that shows its interfaces.

    Raises `OSError` if the command cannot be started; does not return otherwise.
    """
    _enter(name)
    _checked(_libc.unshare(CLONE_NEWNS), "a mount namespace of its own")
    _checked(_libc.mount(b"none", b"/", None, MS_REC | MS_SLAVE, None), "mounts of its own")
    _libc.umount2(b"/sys", MNT_DETACH)
    _libc.mount(b"sysfs", b"/sys", b"sysfs", 0, None)
    os.execvp(argv[0], list(argv))
