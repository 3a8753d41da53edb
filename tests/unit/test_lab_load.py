"""The web server and the client of the labs, against each other over the loopback."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from pylvs.lab import httpd, load


@pytest.fixture
def server() -> Iterator[httpd.Server]:
    server = httpd.Server(("127.0.0.1", 0), "rs9")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def said() -> list[dict[str, Any]]:
    return []


def results(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was said, but for progress; each phase and transfer ends its progress with all of it."""
    for one, following in pairwise(said):
        if one["event"] == "progress" and following["event"] != "progress":
            assert one["done"] == one["of"]
    return [document for document in said if document["event"] != "progress"]


@pytest.fixture
def client(server: httpd.Server, said: list[dict[str, Any]]) -> load.Client:
    return load.Client(f"http://127.0.0.1:{server.server_port}", said.append)


def test_a_blob_depends_on_its_seed_alone() -> None:
    one = b"".join(httpd.blob(200_000, 5))
    assert len(one) == 200_000
    assert one == b"".join(httpd.blob(200_000, 5)) != b"".join(httpd.blob(200_000, 6))
    assert b"".join(httpd.blob(100_001, 5)) == one[:100_001]
    assert httpd.digest(200_000, 5) == hashlib.sha256(one).hexdigest()


def test_phases(client: load.Client, said: list[dict[str, Any]]) -> None:
    client.requests("sequential", 10, 1)
    client.requests("concurrent", 40, 8)
    client.keepalive(5)
    assert [(s["phase"], s["requests"], s["servers"], s["errors"]) for s in results(said)] == [
        ("sequential", 10, {"rs9": 10}, {}),
        ("concurrent", 40, {"rs9": 40}, {}),
        ("keepalive", 5, {"rs9": 5}, {}),
    ]
    assert all(0 < s["latency_ms"]["p50"] <= s["latency_ms"]["max"] for s in results(said))


@pytest.mark.parametrize("kind", ["download", "upload"])
def test_transfers(client: load.Client, said: list[dict[str, Any]], kind: str) -> None:
    client.transfer(kind, 1_000_003, 3)
    (report,) = results(said)
    assert report["ok"] and report["server"] == "rs9" and report["bytes"] == 1_000_003
    assert report["sha256"] == report["expected"] == httpd.digest(1_000_003, 3)


def test_a_changed_byte_is_noticed(
    client: load.Client, said: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "blob", lambda size, seed: iter([bytes(size)]))
    client.transfer("upload", 1000, 3)
    (report,) = results(said)
    assert not report["ok"] and report["sha256"] and not report["error"]


def test_nobody_there_is_an_error_in_the_report(said: list[dict[str, Any]]) -> None:
    client = load.Client("http://127.0.0.1:1", said.append)
    client.requests("sequential", 2, 1)
    client.transfer("download", 10, 1)
    phase, transfer = results(said)
    assert phase["answered"] == 0 and sum(phase["errors"].values()) == 2
    assert not transfer["ok"] and "refused" in transfer["error"]


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/nothing", {}, 404),
        ("GET", "/blob?bytes=x", {}, 400),
        ("GET", "/blob?bytes=-1", {}, 400),
        ("GET", "/blob?bytes=99999999999", {}, 400),
        ("PUT", "/blob", {"Content-Length": "many"}, 411),
        ("PUT", "/other", {"Content-Length": "0"}, 404),
    ],
)
def test_wrong_requests_are_refused(
    server: httpd.Server, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.putrequest(method, path)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    assert connection.getresponse().status == status
    connection.close()


@pytest.mark.parametrize(
    ("values", "part", "result"),
    [([], 0.5, 0.0), ([3.0], 0.99, 3.0), ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0), ([4.0, 1.0, 3.0, 2.0], 1.0, 4.0)],
)
def test_percentile(values: list[float], part: float, result: float) -> None:
    assert load.percentile(values, part) == result


def test_the_command_writes_json_lines(server: httpd.Server, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{server.server_port}"
    assert (
        load.main(["--url", url, "--sequential", "3", "--keepalive", "2", "--download", "1000", "--upload", "1000"])
        == 0
    )
    events = [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]
    assert [event for event in events if event != "progress"] == ["phase", "phase", "transfer", "transfer", "done"]
