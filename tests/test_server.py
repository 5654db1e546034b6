"""The server as a process: right answers, right bytes, and nothing that a client sends upsets it."""

import asyncio
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from load import load as put_load_on
from serving import ODD, make_gallery, serving

from distill.errors import ExpectedError
from distill.release.release import load
from distill.retrieval import Gallery, upkeep
from distill.retrieval.indexing import build_gallery
from distill.serving import limits
from distill.serving.application import application
from distill.serving.guard import Guard
from distill.serving.limits import MAX_BODY, MAX_CHARACTERS, MAX_QUERIES
from distill.serving.messages import Found
from tools import serve

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def gallery(world, tmp_path_factory):
    return make_gallery(world, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def server(gallery, tmp_path_factory):
    with serving(gallery, tmp_path_factory.mktemp("log") / "log") as server:
        yield server
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0


def raw(server, request: bytes) -> bytes:
    """Sends bytes as they are and returns all that comes back until the server closes."""
    host, port = server.url.removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        answer = b""
        with suppress(ConnectionError):  # a server that has heard enough hangs up
            connection.sendall(request)
            while chunk := connection.recv(65536):
                answer += chunk
    return answer


def refused(answer: httpx.Response, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    for word in words:
        assert word in answer.json()["error"], answer.text
    assert not re.search(r"/(tmp|root|home|usr)/|Traceback|\.py", answer.text), "nothing of this machine"


def test_it_answers_as_the_gallery_does(server, gallery):
    here = Gallery.open(gallery, load(gallery.parent / "release"))
    queries = ["a red square moves", "the green star falls slowly", "a blue circle"]
    answer = httpx.post(f"{server.url}search", json={"queries": queries, "k": 7}).json()
    assert [result["query"] for result in answer["results"]] == queries
    for result, hits in zip(answer["results"], here.search(queries, 7), strict=True):
        assert [hit["video"] for hit in result["hits"]] == [hit.video for hit in hits]
        for found, hit in zip(result["hits"], hits, strict=True):
            assert found["score"] == pytest.approx(hit.score, abs=1e-5)
            assert tuple(found["seconds"]) == hit.seconds
            assert tuple(found["timestamps"]) == hit.timestamps
            assert found["weights"] == pytest.approx(hit.weights, abs=1e-5)
            assert (found["duration"], found["span"]) == (hit.duration, None)
            assert found["file"] == Path(hit.source).name
    alone = httpx.post(f"{server.url}search", json={"query": queries[1], "k": 7}).json()["results"][0]
    assert [hit["video"] for hit in alone["hits"]] == [hit["video"] for hit in answer["results"][1]["hits"]]
    assert str(gallery.parent) not in json.dumps(answer)
    about = httpx.get(f"{server.url}about").json()
    assert (about["videos"], len(about["examples"])) == (20, 3)
    assert httpx.get(f"{server.url}healthz").json() == {"status": "ok", "waiting": 0}


def test_every_video_is_sent_whole_even_one_with_an_odd_name(server, gallery):
    hits = server.search("anything", 50)
    assert len(hits) == 20
    assert ODD in {hit["file"] for hit in hits}
    for hit in hits:
        answer = httpx.get(server.url + hit["url"])
        assert answer.status_code == 200
        assert answer.content == (gallery.parent / "videos" / hit["file"]).read_bytes()
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["accept-ranges"] == "bytes"


def test_a_name_of_two_lines_has_an_address(gallery):
    here = Gallery.open(gallery, load(gallery.parent / "release"))
    picture, file = here.poster(here.search(["x"], 1)[0][0].video), next((gallery.parent / "videos").iterdir())
    asked: list[str] = []
    here.refreshed = lambda: here
    here.poster = lambda video: asked.append(video) or picture
    here.file = lambda video: asked.append(video) or file
    with TestClient(application(here)) as client:
        for address in ("posters/two%0Alines", "videos/two%0Alines", "posters/end%0A"):
            assert client.get(address, headers={"Host": "localhost"}).status_code == 200
    assert asked == ["two\nlines", "two\nlines", "end\n"]


def expected(asked: str, data: bytes) -> tuple[int, bytes]:
    """Status and body that RFC 9110 wants for a Range header; several ranges at once are not served."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked)
    if match is None or match.groups() == ("", ""):
        return 200, data
    first, last = match.groups()
    if first == "":
        return (206, data[-int(last) :]) if int(last) else (416, b"")
    if last != "" and int(last) < int(first):
        return 200, data
    end = len(data) if last == "" else int(last) + 1
    return (206, data[int(first) : end]) if int(first) < len(data) else (416, b"")


def test_ranges_are_as_the_rfc_has_them(server, gallery):
    hit = server.search("anything", 1)[0]
    url, data = server.url + hit["url"], (gallery.parent / "videos" / hit["file"]).read_bytes()
    size, draw = len(data), random.Random(7)
    some = [sorted((draw.randrange(size), draw.randrange(size))) for _ in range(20)]
    headers = [f"bytes={first}-{last}" for first, last in some]
    headers += ["bytes=0-0", "bytes=0-", "bytes=-1", "bytes=-0", f"bytes=-{size}", f"bytes=-{9 * size}", "bytes=5-2"]
    headers += [
        f"bytes={size - 1}-",
        f"bytes={size}-",
        f"bytes={size}-{size}",
        f"bytes=3-{9 * size}",
        "bytes=-",
        "bytes",
    ]
    headers += [
        "items=0-5",
        "bytes=0-1,4-5",
        "bytes=a-b",
        "bytes=--5",
        "bytes=+1-2",
        "bytes=1_0-",
        f"bytes=1-{'9' * 400}",
    ]
    with httpx.Client() as client:
        for asked in headers:
            answer = client.get(url, headers={"Range": asked})
            status, body = expected(asked, data) if len(asked) < 400 else (200, data)
            assert answer.status_code == status, asked
            if status == 416:
                assert answer.headers["content-range"] == f"bytes */{size}"
                refused(answer, 416)
                continue
            assert answer.content == body, asked
            assert int(answer.headers["content-length"]) == len(body)
            if status == 206:
                start = int(re.fullmatch(rf"bytes (\d+)-\d+/{size}", answer.headers["content-range"])[1])
                assert answer.headers["content-range"] == f"bytes {start}-{start + len(body) - 1}/{size}"
                assert data[start : start + len(body)] == body


def test_conditions_on_the_file_and_heads(server, gallery):
    url = server.url + server.search("anything", 1)[0]["url"]
    with httpx.Client() as client:
        whole = client.get(url)
        etag, changed, some = whole.headers["etag"], whole.headers["last-modified"], {"Range": "bytes=0-9"}
        assert client.get(url, headers=some | {"If-Range": etag}).status_code == 206
        assert client.get(url, headers=some | {"If-Range": changed}).status_code == 206
        for other in ('"other"', f"W/{etag}", "Thu, 01 Jan 1970 00:00:00 GMT", "nonsense"):
            assert client.get(url, headers=some | {"If-Range": other}).content == whole.content
        past = {"Range": "bytes=99999999-", "If-Range": '"other"'}
        assert client.get(url, headers=past).status_code == 200, "the range is of another file, so it does not count"
        for tags in (etag, "*", f'"other", W/{etag}'):
            answer = client.get(url, headers={"If-None-Match": tags})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
        assert client.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
        head = client.head(url, headers=some)
        assert (head.status_code, head.content) == (200, b""), "ranges are for GET"
        for name in ("content-length", "content-type", "etag", "last-modified", "accept-ranges"):
            assert head.headers[name] == whole.headers[name]
        for path in ("", "about", "healthz"):
            assert client.head(server.url + path).status_code == 200
        assert client.head(f"{server.url}videos/none").status_code == 404


def test_every_hit_has_a_poster_even_one_with_an_odd_name(server, gallery):
    opened = Gallery.open(gallery, load(gallery.parent / "release"))
    with httpx.Client() as client:
        for hit in server.search("anything", 50):
            url = server.url + hit["poster"]
            answer = client.get(url)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
            assert answer.content == opened.poster(hit["video"]) and len(answer.content) < 10_000
            etag = answer.headers["etag"]
            assert client.get(url, headers={"If-None-Match": etag}).status_code == 304
            assert client.get(url, headers={"If-None-Match": '"other"'}).content == answer.content
            assert (client.head(url).status_code, client.head(url).content) == (200, b"")
        refused(client.get(f"{server.url}posters/none"), 404, "no such video, or keeps no picture of it")


def test_a_gallery_without_posters_says_so(world, tmp_path):
    path = make_gallery(world, tmp_path, 1)
    encoder = load(tmp_path / "release")
    build_gallery(encoder, tmp_path / "videos", tmp_path / "plain", posters=False, workers=1)
    for gallery, kept in ((path, True), (tmp_path / "plain", False)):
        current = Gallery.open(gallery, encoder)
        (hit,) = current.search(["anything"], 1)[0]
        assert (Found.of_hit(hit, current).poster is not None) == kept


def test_only_files_of_the_gallery_are_served(server, gallery, tmp_path):
    videos = gallery.parent / "videos"
    (videos / "secret.mp4").write_bytes(b"secret")  # beside the others, but not indexed
    paths = ["secret", "secret.mp4", "../release/config.json", "..%2frelease%2fconfig.json", "%2e%2e/manifest.json"]
    paths += [
        "..\\..\\x",
        "%2e%2e%5cx",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "....//....//etc/passwd",
        "%00",
        "",
        ".",
        "..",
    ]
    paths += ["%ff%fe", "a" * 5000, str(videos / "secret.mp4"), "..%252f..%252fetc%252fpasswd"]
    for path in paths:  # as they stand: clients would tidy them up
        answer = raw(server, f"GET /videos/{path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        head, body = answer.split(b"\r\n\r\n", 1)
        assert head.startswith(b"HTTP/1.1 404"), (path, head)
        assert list(json.loads(body)) == ["error"]
    assert raw(server, b"GET /../../../etc/passwd HTTP/1.0\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 404")

    hits = server.search("anything", 3)
    for hit, make in zip(
        hits, (Path.unlink, lambda path: path.symlink_to(tmp_path / "outside"), Path.mkdir), strict=True
    ):
        file, kept = videos / hit["file"], tmp_path / hit["file"]
        (tmp_path / "outside").write_bytes(b"outside")
        shutil.move(file, kept)
        if make is not Path.unlink:
            make(file)
        refused(httpx.get(server.url + hit["url"]), 404)
        if make is not Path.unlink:
            file.rmdir() if file.is_dir() else file.unlink()
        shutil.move(kept, file)
        assert httpx.get(server.url + hit["url"]).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "JSON"),
        (b'{"query": "a"', 400, "JSON"),
        (b"[" * 50_000, 400, ""),
        (b'{"query": "a", "k": ' + b"9" * 5000 + b"}", 400, ""),
        (b"\xff\xfe", 400, ""),
        (b"", 422, "missing"),
        (b"[1]", 422, "object"),
        (b"{}", 422, "either"),
        (b'{"query": "a", "queries": ["b"]}', 422, "either"),
        (b'{"query": ""}', 422, "query"),
        (b'{"query": " \\u001c\\u0085\\n"}', 422, "in a few words"),
        (b'{"query": 5}', 422, "query"),
        (b'{"query": null}', 422, "query"),
        (b'{"query": "\\ud800"}', 422, "query"),
        (b'{"queries": []}', 422, "queries"),
        (b'{"queries": ["a", " "]}', 422, "queries.1"),
        (b'{"query": "a", "k": 0}', 422, "k: "),
        (b'{"query": "a", "k": 101}', 422, "k: "),
        (b'{"query": "a", "k": "3"}', 422, "k: "),
        (b'{"query": "a", "k": NaN}', 422, "k: "),
        (b'{"query": "a", "recall": 5}', 409, "candidates"),
        (b'{"query": "a", "candidates": 5}', 409, "candidates"),
        (b'{"query": "a", "candidates": 5, "recall": 5}', 422, "recall"),
        (b'{"query": "a", "recall": 0}', 422, "recall"),
        (b'{"query": "a", "what": 1}', 422, "what"),
        (json.dumps({"query": "a" * (MAX_CHARACTERS + 1)}).encode(), 422, str(MAX_CHARACTERS)),
        (json.dumps({"queries": ["a"] * (MAX_QUERIES + 1)}).encode(), 422, str(MAX_QUERIES)),
        (b'{"query": "' + b"a" * MAX_BODY + b'"}', 413, str(MAX_BODY)),
    ],
    ids=lambda value: str(value)[:30] if isinstance(value, bytes) else "",
)
def test_a_bad_search_is_refused_in_plain_words(server, body, status, words):
    refused(httpx.post(f"{server.url}search", content=body, headers=JSON), status, words)


def test_a_damaged_gallery_is_not_mistaken_for_one_that_has_nothing_to_rerank(tmp_path):
    artefacts = Path(__file__).parent / "artefacts" / "5368ee6"
    shutil.copytree(artefacts / "tokens", tmp_path / "gallery")
    question = {"query": "a red square", "candidates": 3}
    for folder, student, status in ((artefacts / "gallery", "teachclip", 409), (tmp_path / "gallery", "eercf", 200)):
        app = application(Gallery.open(folder, load(artefacts / student)))
        with TestClient(app, raise_server_exceptions=False) as client:
            assert client.post("/search", json=question).status_code == status
            if status == 200:
                tokens = folder / "segments" / "00001" / "tokens.safetensors"
                with tokens.open("r+b") as file:  # the open gallery has it mapped
                    file.seek(-512, 2)
                    file.write(b"\xff" * 512)
                refused(client.post("/search", json=question), 500, "its log has the reason")


def test_other_bad_requests_are_refused_in_plain_words(server):
    refused(httpx.post(f"{server.url}search", content=b'{"query": "a"}', headers={"Content-Type": "text/plain"}), 422)
    refused(httpx.post(f"{server.url}search", content=iter([b"x" * 65536] * 5), headers=JSON), 413, str(MAX_BODY))
    refused(httpx.get(f"{server.url}search"), 405)
    refused(httpx.put(server.url), 405)
    for path in ("nope", "docs", "redoc", "search/", "openapi.json/", "page.html"):
        refused(httpx.get(server.url + path), 404)
    refused(httpx.get(server.url, headers={"Host": "evil.example"}), 421, "localhost")
    assert httpx.get(server.url, headers={"Host": "LOCALHOST:1"}).status_code == 200
    large = b"GET / HTTP/1.0\r\nHost: localhost\r\nA: " + b"a" * 20_000
    for junk, status in ((b"\x16\x03\x01\x02", b"400"), (b"GET / HTTP/1.1\r\nA", b"400"), (large, b"431")):
        answer = raw(server, junk + b"\r\n\r\n")
        assert answer.startswith((b"HTTP/1.1 " + status, b"HTTP/1.1 400")), answer  # 400 if it comes in pieces
        assert list(json.loads(answer.split(b"\r\n\r\n", 1)[1])) == ["error"]
    endless = raw(server, b"GET / HTTP/1.0\r\nA: " + b"a" * 400_000)
    assert endless.startswith(b"HTTP/1.1 400") or endless == b""
    assert server.search("still here", 1)


def test_every_answer_is_guarded_and_the_page_needs_nothing_from_elsewhere(server):
    page = httpx.get(server.url)
    for path in ("", "about", "nope", "videos/none", "openapi.json"):
        headers = httpx.get(server.url + path).headers
        assert headers["content-security-policy"] == page.headers["content-security-policy"]
        assert headers["content-security-policy"].startswith("default-src 'none'; ")
        assert headers["x-content-type-options"] == "nosniff"
        assert "server" not in headers
    assert "unsafe" not in page.headers["content-security-policy"]
    addresses = set(re.findall(r"https?://[^\s'\"]+", page.text))
    assert addresses == {"http://www.w3.org/2000/svg"}, "a namespace, which nobody fetches"
    assert not re.search(r"@import|url\(|<link[^>]+stylesheet|\son\w+=|\sstyle=|innerHTML", page.text)


def test_a_request_leaves_one_line_of_log_without_its_query(server):
    httpx.get(f"{server.url}?q=private+words")
    server.search("private words", 1)
    httpx.get(f"{server.url}videos/%0a%1b[31mred")
    time.sleep(0.2)
    log = server.log.read_bytes()
    assert b"private" not in log
    assert b"\x1b" not in log
    last = log.decode().splitlines()[-3:]
    for line, words in zip(last, ("GET / 200", "POST /search 200", "GET /videos/%0a%1b[31mred 404"), strict=True):
        assert re.fullmatch(rf"\d\d:\d\d:\d\d {re.escape(words)} \d+ ms", line)
    assert "Traceback" not in log.decode()


def test_fifty_clients_at_once_are_served_without_an_error(server, capsys):
    report = asyncio.run(put_load_on(server.url, clients=50, seconds=3))
    with capsys.disabled():
        print(f"\n50 clients for 3 s: {report}")
    assert not report.wrong
    assert len(report.searches) >= 50
    assert httpx.get(f"{server.url}healthz").json()["waiting"] == 0


@pytest.mark.slow
def test_schemathesis_finds_no_fault_with_the_description(server, tmp_path):
    """Hundreds of requests made from openapi.json, good and bad; all checks, so no 5xx, and 503 would be one too."""
    settings = ("--config-file", Path(__file__).with_name("schemathesis.toml"))
    command = [Path(sys.executable).with_name("schemathesis"), *settings, "run", f"{server.url}openapi.json"]
    options = ["--checks", "all", "--max-examples", "100", "--seed", "1", "--no-color", "--generation-database", "none"]
    result = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout
    assert int(re.search(r"(\d+) generated", result.stdout)[1]) > 150


@pytest.mark.slow
def test_it_has_limits_and_leaves_in_order(gallery, tmp_path):
    with serving(gallery, tmp_path / "log", CAPACITY=4, GATHER=1.0, SLOWEST=1.5, MAX_REQUESTS=30, PIECE=1000) as server:
        address = server.url.removeprefix("http://").rstrip("/").split(":")
        with httpx.Client(timeout=60) as client, ThreadPoolExecutor(24) as pool:

            def ask(number: int) -> httpx.Response:
                return client.post(f"{server.url}search", json={"query": f"query {number}"})

            list(pool.map(ask, range(100)))
            before = server.memory()
            answers = list(pool.map(ask, range(1000)))
            assert {answer.status_code for answer in answers} == {200, 503}
            for answer in answers:
                if answer.status_code == 503:
                    refused(answer, 503, "too many searches are waiting; try again")
                    assert answer.headers["retry-after"] == "1"
            assert server.memory() - before < 20 << 20

            hit, pieces = server.search("anything", 1)[0], b""
            whole = (gallery.parent / "videos" / hit["file"]).read_bytes()
            while len(pieces) < len(whole):
                asked = {"Range": f"bytes={len(pieces)}-"}
                assert client.get(server.url + hit["url"], headers=asked).content == whole[len(pieces) :]
                piece = client.get(f"{server.url}{hit['url']}?pieces=true", headers=asked)
                assert (piece.status_code, len(piece.content)) == (206, min(1000, len(whole) - len(pieces)))
                pieces += piece.content
            assert pieces == whole

            slow = raw(server, b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
            assert slow.startswith(b"HTTP/1.1 408")
            with socket.create_connection(address, timeout=30) as dripping, pytest.raises(OSError):
                for _ in range(200):
                    dripping.sendall(b"G")
                    time.sleep(0.05)

            searches = [pool.submit(ask, number) for number in range(4)]
            while client.get(f"{server.url}healthz").json()["waiting"] < 4:
                assert not any(search.done() for search in searches)
            server.process.send_signal(signal.SIGINT)
            assert [search.result().status_code for search in searches] == [200] * 4, "what has arrived is answered"
        assert server.process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.url)
        assert "Traceback" not in server.log.read_text()


def test_a_crowd_of_requests_of_any_kind_is_thinned(monkeypatch):
    """At the guard itself, because a server would answer too quickly to be crowded."""

    async def crowd() -> list[int]:
        async def app(scope, receive, send):
            await together.wait()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async def ask():
            said, messages = [], [{"type": "http.request", "body": b"", "more_body": False}]
            scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "headers": []}

            async def receive():
                return messages.pop() if messages else await asyncio.sleep(60)

            async def send(message):
                said.append(message)

            await guard(scope, receive, send)
            return said[0]["status"]

        together = asyncio.Event()
        guard = Guard(app, headers={}, hosts=None)
        asked = [asyncio.create_task(ask()) for _ in range(5)]
        await asyncio.sleep(0.05)
        together.set()
        return [*await asyncio.gather(*asked), await ask()]

    monkeypatch.setattr(limits, "MAX_REQUESTS", 3)
    assert asyncio.run(crowd()) == [200, 200, 200, 503, 503, 200]


@pytest.mark.slow
def test_it_follows_the_gallery_and_a_kill_loses_nothing(world, tmp_path):
    path = make_gallery(world, tmp_path, 4)
    release = load(tmp_path / "release")
    clips = sorted((world.corpus / "videos").iterdir())
    for name, some in (("more", clips[10:16]), ("late", clips[16:18])):
        (tmp_path / name).mkdir()
        for clip in some:
            shutil.copy(clip, tmp_path / name / clip.name)
    more, late = ({file.stem for file in (tmp_path / name).iterdir()} for name in ("more", "late"))

    def videos(server) -> set[str]:
        return {hit["video"] for hit in server.search("anything", 50)}

    with serving(path, tmp_path / "log") as server, ThreadPoolExecutor(1) as pool:
        old = videos(server)
        assert len(old) == 4
        appended = pool.submit(build_gallery, release, tmp_path / "more", path, append=True, workers=1)
        while not appended.done():
            assert videos(server) in (old, old | more), "one state or the other"
        assert appended.result().counts["videos"] == 10
        hits = server.search("anything", 50)
        assert {hit["video"] for hit in hits} == old | more, "acknowledged, so found"
        assert all(httpx.get(server.url + hit["url"]).status_code == 200 for hit in hits)

        manifest = (path / "manifest.json").read_bytes()
        (path / "manifest.json").write_bytes(manifest[:100])
        for _ in range(3):
            assert videos(server) == old | more, "the last state that was sound"
        assert server.log.read_text().count("cannot be read") == 1
        (path / "manifest.json").write_bytes(manifest)

        upkeep.delete(path, sorted(old))
        assert videos(server) == more
        refused(httpx.get(server.url + next(hit["url"] for hit in hits if hit["video"] in old)), 404)

        appended = pool.submit(build_gallery, release, tmp_path / "late", path, append=True, workers=1)
        server.process.kill()
        assert appended.result().counts["videos"] == 8
    with serving(path, tmp_path / "log") as server:
        assert videos(server) == more | late
        server.process.terminate()
        assert server.process.wait(60) == 0


def test_what_keeps_it_from_starting_is_said_in_one_line(gallery, server, tmp_path):
    port = server.url.rstrip("/").rsplit(":", 1)[1]
    for arguments, words in (
        ([gallery, "--port", port], f"127.0.0.1 port {port}: .*in use.* --port"),
        ([gallery, "--port", "99999"], "--port 99999: "),
        ([gallery, "--host", "no such host"], "no such host port 8000: "),
        ([gallery, "--release", tmp_path / "none"], "its release is not at .*--release"),
        ([tmp_path], "gallery"),
    ):
        with pytest.raises(ExpectedError, match=words):
            serve.main([str(argument) for argument in arguments])
