"""The server among clients that do not behave: others are served, nothing grows, and it leaves in order.

`make abuse` runs all of tests/abuse.py for longer and prints how long searches take beside undisturbed ones.
"""

import asyncio
import json
import os
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from abuse import ABUSES, Target, request
from conftest import ROOT
from serving import Server, make_gallery, serving

from distill.errors import ExpectedError
from distill.serving import limits
from distill.serving.connection import most_connections

SHORT, LONG = 1.5, 10.0  # seconds of an abuse
WELL_BEHAVED = 4  # clients
ANSWER = 20.0  # seconds in which a well-behaved client must have its answer, whatever others do
LOG = 2_000  # bytes that the log may grow in a second, beside a line for each request

REQUEST = re.compile(r"\d\d:\d\d:\d\d (GET|POST) /\S{1,40} \d{3} \d+ ms")


@pytest.fixture(scope="module")
def server(gallery, tmp_path_factory):
    with serving(gallery, tmp_path_factory.mktemp("log") / "log", LINGER=0.5) as server:
        yield server


@pytest.fixture(scope="module")
def gallery(world, tmp_path_factory):
    """A gallery of files of 64 MiB, which no socket holds."""
    return make_gallery(world, tmp_path_factory.mktemp("abused"), videos=6, padding=64 << 20)


def target(server: Server) -> Target:
    host, port = server.url.removeprefix("http://").rstrip("/").split(":")
    return Target(host, int(port), server.search("anything", 1)[0]["url"])


async def searches(server: Server, seconds: float) -> list[float]:
    """How long searches of well-behaved clients take: they ask again when told to, and connect again when left."""
    taken: list[float] = []

    async def client(number: int) -> None:
        until = time.monotonic() + seconds
        async with httpx.AsyncClient(timeout=ANSWER) as http:
            while (began := time.monotonic()) < until:
                while True:
                    assert time.monotonic() - began < ANSWER, "a well-behaved client waits for its answer"
                    try:
                        asked = {"query": f"a red square {number}", "k": 3}
                        answer = await http.post(f"{server.url}search", json=asked)
                    except httpx.TransportError:
                        continue
                    if answer.status_code == 200:
                        break
                    assert answer.status_code == 503, answer.text
                    await asyncio.sleep(float(answer.headers["retry-after"]) / 4)
                assert len(answer.json()["results"][0]["hits"]) == 3
                taken.append(time.monotonic() - began)

    await asyncio.gather(*(client(number) for number in range(WELL_BEHAVED)))
    return taken


def p95(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1] if len(seconds) > 1 else seconds[0]


@contextmanager
def abused(server: Server, name: str) -> Iterator[None]:
    """While clients of another process abuse the server."""
    at = target(server)
    command = [sys.executable, ROOT / "tests" / "abuse.py", name, at.host, str(at.port), at.video]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)  # until all are there
        assert process.poll() is None
        yield
    finally:
        process.kill()
        process.wait()


def stopped(server: Server) -> float:
    """Send SIGTERM; return the seconds until the server has ended."""
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(limits.GRACE + 10)
    return time.monotonic() - began


def endured(gallery: Path, log: Path, name: str, seconds: float) -> str:
    """An abuse from beginning to end; returns what is to be printed of it."""
    with serving(gallery, log) as server:
        alone = asyncio.run(searches(server, seconds / 2))
        before, logged = server.memory(), len(log.read_text().splitlines())
        with abused(server, name):
            beside = asyncio.run(searches(server, seconds))
        time.sleep(0.5)
        after = asyncio.run(searches(server, 0.5))
        assert server.memory() - before < 64 << 20, "memory does not grow"
        others = [line for line in log.read_text().splitlines()[logged:] if not REQUEST.fullmatch(line)]
        assert sum(len(line) + 1 for line in others) < LOG * (seconds + 2), others[-30:]
        with abused(server, name):
            ended = stopped(server)
        assert server.process.returncode == 0, log.read_text()[-3000:]
        assert ended < 2 * limits.GRACE, "and no machine is so busy that it takes longer"
        assert "Traceback" not in log.read_text(), log.read_text()[-3000:]
    times = f"p95 {1000 * p95(alone):.0f} ms alone, {1000 * p95(beside):.0f} ms beside it"
    return f"{name}: {len(beside)} searches, {times}, {1000 * p95(after):.0f} ms after; left in {ended:.1f} s"


@pytest.mark.slow
def test_others_are_served_beside_clients_that_read_nothing(gallery, tmp_path):
    endured(gallery, tmp_path / "log", "nobody reads", SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ABUSES)
def test_others_are_served_beside_every_abuse_for_longer(gallery, tmp_path, name, capsys):
    said = endured(gallery, tmp_path / "log", name, LONG)
    with capsys.disabled():
        print(f"\n{said}")


def answers(server: Server, sent: bytes, seconds: float) -> bytes:
    """All that comes back until the server hangs up, which it must do in so many seconds."""
    with socket.create_connection((target(server).host, target(server).port), timeout=seconds) as client:
        client.sendall(sent)
        came, began = b"", time.monotonic()
        while chunk := client.recv(65536):
            came += chunk
            assert time.monotonic() - began < seconds
        return came


def test_every_request_of_a_pipeline_leaves_one_line_of_log(server):
    before, count = server.log.read_text().count(" GET /about 200 "), 200
    sent = request("about") * (count - 1) + request("about", more="Connection: close\r\n")
    assert answers(server, sent, ANSWER).count(b"HTTP/1.1 200 ") == count
    time.sleep(0.2)
    assert server.log.read_text().count(" GET /about 200 ") - before == count


@pytest.mark.slow
def test_whatever_is_refused_before_its_body_came_is_closed_and_the_answer_arrives(server):
    refusals = {
        413: request("search", 1 << 30, "POST"),
        421: request("search", 1 << 30, "POST", host="evil.example"),
        431: request("search", 1 << 30, "POST", more="A: " + "a" * 20_000 + "\r\n"),
    }
    for status, sent in refusals.items():
        for body in (b"", b"a" * 500_000):
            answer = answers(server, sent + body, limits.LINGER + 5)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
            head, said = answer.split(b"\r\n\r\n", 1)
            assert b"connection: close" in head.lower()
            assert list(json.loads(said)) == ["error"]
    chunks = request("search", method="POST", more="Transfer-Encoding: chunked\r\n")
    broken = answers(server, chunks + b'5\r\n{"que\r\nzz\r\n', 5)
    assert broken.startswith(b"HTTP/1.1 400 "), broken
    assert list(json.loads(broken.split(b"\r\n\r\n", 1)[1])) == ["error"]


def test_no_more_than_some_of_a_refused_body_is_read(server):
    sent = 0
    with socket.create_connection((target(server).host, target(server).port), timeout=10) as client:
        client.sendall(request("search", 1 << 30, "POST"))
        with pytest.raises(OSError):
            while sent < 1 << 30:
                sent += client.send(b"a" * 65536)
    assert sent < limits.LINGERING + (8 << 20), "what both sides' buffers hold comes to it"


@pytest.mark.slow
def test_a_client_that_takes_nothing_is_left(gallery, tmp_path):
    with serving(gallery, tmp_path / "log", STALLED=1.0, GRACE=3, ABORT=2.0) as server:
        at = target(server)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect((at.host, at.port))
            client.sendall(request(at.video))
            time.sleep(4)
            came = 0
            with suppress(OSError):  # it may be reset, once what the buffers hold has been read
                while chunk := client.recv(65536):
                    came += len(chunk)
        assert came < 16 << 20, "of 64 MiB"
        files = [os.readlink(link) for link in Path(f"/proc/{server.process.pid}/fd").iterdir()]
        assert not [file for file in files if file.endswith(".mp4")], "it has let go of the file"


def test_a_file_is_not_read_on_for_a_client_that_has_gone(server):
    at = target(server)
    with socket.create_connection((at.host, at.port)) as client:
        client.sendall(request(at.video))
        client.recv(1000)
    time.sleep(1)
    read = Path(f"/proc/{server.process.pid}/io").read_text()
    before = int(read.split("rchar:")[1].split()[0])
    for _ in range(5):
        with socket.create_connection((at.host, at.port)) as client:
            client.sendall(request(at.video))
            client.recv(1000)
    time.sleep(2)
    after = int(Path(f"/proc/{server.process.pid}/io").read_text().split("rchar:")[1].split()[0])
    assert after - before < 5 * (32 << 20), "of 64 MiB"


@pytest.mark.parametrize(("may_open", "connections"), [(300, 0), (400, 80), (1024, 512)])
def test_there_are_as_many_connections_as_descriptors_allow(may_open, connections, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (min(may_open, 256), may_open))
    monkeypatch.setattr(resource, "setrlimit", lambda _, to: None)
    if connections:
        assert most_connections() == connections
        return
    with pytest.raises(ExpectedError, match=f"may open {may_open} files, but a server needs 336; .*ulimit -n"):
        most_connections()


@pytest.mark.slow
def test_it_does_not_run_out_of_descriptors(gallery, tmp_path):
    with serving(gallery, tmp_path / "log", may_open=400) as server:
        with abused(server, "silent connections"):
            asyncio.run(searches(server, SHORT))
        held = len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))
        assert held < 400
        assert server.log.stat().st_size < 20_000, server.log.read_text()[-3000:]
