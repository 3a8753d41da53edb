"""What is written down of a lab that stands: ``/run/pylvs/lab/NAME.json``, with its logs in ``/run/pylvs/lab/NAME/``.

The record is what `lab status` shows and what the clean-up of a killed run works from.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pylvs.lab.process import Failed, Identity, started

DIRECTORY = Path("/run/pylvs/lab")


@dataclass
class Record:
    """A lab: its method, its owner (the process that builds or runs it), whether it is meant to stay, and its parts."""

    name: str
    method: str
    owner: Identity
    kept: bool = False
    since: float = 0.0  # seconds since the epoch
    namespaces: list[str] = field(default_factory=list)
    processes: list[Identity] = field(default_factory=list)

    @property
    def state(self) -> str:
        """``running`` while its owner lives, ``up`` if it is meant to stay, ``left over`` if neither."""
        if self.owner.alive:
            return "running"
        return "up" if self.kept else "left over"

    @property
    def logs(self) -> Path:
        """The folder of its processes' output."""
        return DIRECTORY / self.name

    def log(self, process: str) -> Path:
        """The file that holds the output of `process`."""
        return self.logs / f"{process}.log"

    def write(self) -> None:
        """Write the record, all of it or nothing."""
        self.logs.mkdir(parents=True, exist_ok=True)
        file = DIRECTORY / f"{self.name}.json"
        draft = file.with_suffix(".new")
        draft.write_text(json.dumps(asdict(self), indent=1) + "\n")
        draft.replace(file)

    def erase(self) -> None:
        """Forget the lab, logs included; a folder that is left empty goes too."""
        for suffix in (".new", ".json"):
            with suppress(FileNotFoundError):
                (DIRECTORY / f"{self.name}{suffix}").unlink()
        shutil.rmtree(self.logs, ignore_errors=True)


def owner() -> Identity:
    """The calling process."""
    return Identity("pylvs lab", "", os.getpid(), started(os.getpid()))


def read(name: str) -> Record | None:
    """The record of the lab `name`; `None` if there is none, or none that can be read."""
    try:
        data = json.loads((DIRECTORY / f"{name}.json").read_text())
        data["owner"] = Identity(**data["owner"])
        data["processes"] = [Identity(**item) for item in data["processes"]]
        return Record(**data)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def every() -> list[Record]:
    """The records of all labs, by name."""
    found = (read(file.stem) for file in sorted(DIRECTORY.glob("*.json")))
    return [record for record in found if record]


@contextmanager
def held(name: str) -> Iterator[None]:
    """Hold the lab `name` for this process; `Failed` if another process does."""
    file = DIRECTORY / f"{name}.lock"
    while True:
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # another lab has just ended and tidied up
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.read(handle, 32).decode(errors="replace").strip() or "?"
            os.close(handle)
            raise Failed(f"lab {name} is in use by process {other}; wait for it, or interrupt it with Ctrl-C") from None
        with suppress(FileNotFoundError):
            if os.fstat(handle).st_ino == file.stat().st_ino:
                break
        os.close(handle)  # its last holder removed the file between our open and our lock
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"{os.getpid()}\n".encode())
        yield
    finally:
        with suppress(FileNotFoundError):
            file.unlink()
        os.close(handle)
        for folder in (DIRECTORY, DIRECTORY.parent):
            with suppress(OSError):  # not empty: other labs stand, or the daemon keeps something there
                folder.rmdir()
