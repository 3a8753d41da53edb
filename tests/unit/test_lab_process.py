"""Processes of a lab are known beyond doubt, signals end it between two steps, and its record survives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pylvs.lab import process, record
from pylvs.lab.process import Failed, Identity, Interrupted, Stop


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen(["sleep", "60"])
    yield child
    child.kill()
    child.wait()


@pytest.fixture
def stop() -> Iterator[Stop]:
    stop = Stop()
    yield stop
    stop.close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(record, "DIRECTORY", tmp_path / "pylvs" / "lab")
    return tmp_path


def identity(child: subprocess.Popen[bytes]) -> Identity:
    return Identity("sleep", "rs1", child.pid, process.started(child.pid))


def test_identity(sleeper: subprocess.Popen[bytes]) -> None:
    mine = identity(sleeper)
    assert mine.start > 0 and mine.alive
    assert not replace(mine, start=mine.start - 1).alive
    sleeper.kill()
    sleeper.wait()
    assert not mine.alive


def test_a_zombie_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.started(child.pid) == 0
    child.wait()


def test_only_the_very_process_is_stopped(sleeper: subprocess.Popen[bytes]) -> None:
    """A pid that now belongs to somebody else is left alone."""
    process.stop_all([replace(identity(sleeper), start=1)])
    assert sleeper.poll() is None
    process.stop_all([identity(sleeper)], {sleeper.pid: sleeper})
    assert sleeper.returncode == -signal.SIGTERM


def test_who_does_not_listen_is_made_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.2)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        process.stop_all([identity(child)], {child.pid: child})
        assert child.returncode == -signal.SIGKILL


def test_a_process_of_the_past_is_no_error() -> None:
    process.stop_all([Identity("gone", "rs1", 2**22 - 1, 5)])


@pytest.mark.parametrize("number", Stop.SIGNALS)
def test_a_signal_is_raised_at_the_next_check(stop: Stop, number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    os.kill(os.getpid(), signal.SIGTERM)  # whatever follows changes nothing
    with pytest.raises(Interrupted) as raised:
        stop.check()
    assert raised.value.signal == number
    with pytest.raises(Interrupted):
        stop.wait(10.0)


def test_a_signal_ends_a_wait(stop: Stop) -> None:
    begin = time.monotonic()
    with subprocess.Popen(["sh", "-c", f"sleep 0.1; kill -INT {os.getpid()}"]), pytest.raises(Interrupted):
        stop.wait(20.0)
    assert time.monotonic() - begin < 10.0


def test_the_signals_are_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    Stop().close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_lines(stop: Stop) -> None:
    child = process.start(["sh", "-c", "echo one; echo two; printf three"], lab="t", output=subprocess.PIPE)
    with child:
        assert list(process.lines(child, stop, 10.0)) == ["one", "two"]  # a line ends with a newline
        assert process.finished(child, stop, 10.0) == 0


def test_silence_is_a_failure(stop: Stop, sleeper: subprocess.Popen[bytes]) -> None:
    child = process.start(["sleep", "60"], lab="t", output=subprocess.PIPE)
    with pytest.raises(Failed, match="has said nothing"):
        list(process.lines(child, stop, 0.05))
    with pytest.raises(Failed, match="has not ended"):
        process.finished(child, stop, 0.05)
    process.stop_all([identity(child)], {child.pid: child})
    assert child.stdout is not None
    child.stdout.close()


def test_processes_carry_the_labs_name() -> None:
    child = process.start(["sh", "-c", f"echo ${process.MARK}; echo $PYTHONPATH"], lab="mine", output=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        name, path = child.stdout.read().decode().splitlines()
    assert name == "mine"
    assert (Path(path.split(os.pathsep)[0]) / "pylvs" / "lab").is_dir()


# -------------------------------------------------------------------------------------------------------- the record


def some(name: str, owner: Identity | None = None) -> record.Record:
    return record.Record(
        name, "dr", owner or record.owner(), since=1.0, namespaces=["a", "b"], processes=[Identity("x", "rs1", 7, 8)]
    )


def test_a_record_is_read_as_it_was_written() -> None:
    some("one").write()
    some("two").write()
    assert record.read("one") == some("one")
    assert [found.name for found in record.every()] == ["one", "two"]
    some("one").erase()
    assert record.read("one") is None
    assert [found.name for found in record.every()] == ["two"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "x"}', '{"owner": 5, "processes": []}', "null"])
def test_a_broken_record_is_none(text: str, folder: Path) -> None:
    record.DIRECTORY.mkdir(parents=True)
    (record.DIRECTORY / "bad.json").write_text(text)
    assert record.read("bad") is None
    assert record.every() == []


def test_states() -> None:
    assert some("x").state == "running"
    assert some("x", Identity("gone", "", 2**22 - 1, 5)).state == "left over"
    kept = some("x", Identity("gone", "", 2**22 - 1, 5))
    kept.kept = True
    assert kept.state == "up"


def test_a_lab_has_one_holder(folder: Path) -> None:
    with record.held("one"):
        with pytest.raises(Failed, match=rf"in use by process {os.getpid()}"), record.held("one"):
            pass
        with record.held("two"):  # another lab stands beside it
            pass
    with record.held("one"):
        pass
    assert list(folder.iterdir()) == []  # nothing is left, not even a folder


def test_the_folder_stays_while_a_lab_is_up(folder: Path) -> None:
    with record.held("one"):
        some("one").write()
    assert record.read("one") is not None
