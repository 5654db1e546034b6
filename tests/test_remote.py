"""Sets behind URLs: the same samples as from a folder, whatever the server does; a cache that never outgrows its limit.

Servers are real ones on 127.0.0.1, processes are real processes, and what is counted is what the server saw.
"""

import http.server
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, World, tree_bytes
from described import Said, said
from labelling import pack_shards, write_labels

from distill import remote
from distill.cache import Cache
from distill.data.building import ShardContent, build, claim, finished, sealed_files
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.shards import Shards, open_sealed_shards
from distill.errors import ArtefactError, ExpectedError
from distill.manifest import Manifest, open_sealed, seal
from distill.remote import Place, RemotePath, locate


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; `cut` and `fail` say of how many requests of a file only half the body, or an error, comes."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.seen: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self.fail: Counter[str] = Counter()
        self.slow = 0.0  # seconds before a body
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        server, name = self.server, self.path.rpartition("/")[2]
        assert isinstance(server, Server)
        server.seen[name] += 1
        if server.fail[name] > 0:
            server.fail[name] -= 1
            self.send_error(503, "try again later")
            return
        time.sleep(server.slow)
        if server.cut[name] > 0:
            server.cut[name] -= 1
            content = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short waits here, and nobody's real cache there."""
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.02, 0.04))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "default"))


def sealed(folder: Place, shards: int = 3, size: int = 50_000) -> Manifest:
    """A set of shards with two samples each, all different."""
    claim(folder, {"a": 1}, command="a test")
    records = []
    for number in range(shards):
        name = f"{number:05d}"
        bodies = [np.random.default_rng([number, i]).bytes(size) for i in range(2)]
        samples = {f"{name}{i}": {"json": b'{"i":%d}' % i, "bin": body} for i, body in enumerate(bodies)}
        records.append(build(folder, name, lambda samples=samples: ShardContent(samples, {})))
    return seal(
        folder,
        Manifest(kind="frames", version=1, config={}, counts={}, parents={}, files=sealed_files(records)),
    )


def content(shards: Shards) -> dict[str, bytes]:
    return {key: shards.read(key, "bin") for key in shards.keys}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sealed(tmp_path / "set")
    return tmp_path / "set"


@pytest.fixture
def expected(folder: Path) -> dict[str, bytes]:
    return content(open_sealed_shards(folder, "frames", 1)[1])


def opened(url: str, cache: Path, gigabytes: float = 1.0, **options) -> Shards:
    return open_sealed_shards(locate(url), "frames", 1, cache=Cache(cache, gigabytes), **options)[1]


def kept(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_file()]


def test_a_set_behind_a_url_holds_what_its_folder_holds(folder: Path, expected: dict, tmp_path: Path):
    with serving(folder) as server:
        shards = opened(server.url, tmp_path / "cache", describe=Said)
        assert said(shards) == {key: repr({"i": int(key[-1])}) for key in expected}
        assert not any(name.endswith(".tar") for name in server.seen)  # opening fetches no shard
        assert content(shards) == expected
        assert all(server.seen[f"{number:05d}.tar"] == 1 for number in range(3))
        before = server.seen.copy()
        assert content(opened(server.url, tmp_path / "cache")) == expected
        assert server.seen - before == Counter({"manifest.json": 1})  # everything else came from the cache
    assert content(opened(f"file://{folder}", tmp_path / "other")) == expected


def test_half_a_body_and_an_error_are_tried_again(folder: Path, expected: dict, tmp_path: Path):
    with serving(folder) as server:
        server.cut.update({"00001.tar": 1, "00002.index.json": 2})
        server.fail.update({"00000.tar": 3, "manifest.json": 1})
        assert content(opened(server.url, tmp_path / "cache")) == expected
        assert (server.seen["00001.tar"], server.seen["00000.tar"], server.seen["00002.index.json"]) == (2, 4, 3)
    assert not list((tmp_path / "cache").glob("*.part"))


def test_a_shard_that_never_comes_is_named(folder: Path, tmp_path: Path):
    with serving(folder) as server:
        server.fail["00001.tar"] = 1000
        shards = opened(server.url, tmp_path / "cache")
        with pytest.raises(ArtefactError, match=rf"{server.url}/00001.tar: not fetched in 4 tries .*503") as found:
            content(shards)
        assert "\n" not in str(found.value) and server.seen["00001.tar"] == 4
        (folder / "00002.tar").unlink()
        with pytest.raises(ArtefactError, match=r"00002.tar: missing, though the manifest lists it"):
            shards.read("000020", "bin")
        assert server.seen["00002.tar"] == 1  # what is not there is not asked for again


@pytest.mark.parametrize("change", ["flip", "cut"])
def test_a_shard_that_is_not_the_sealed_one_is_refused(folder: Path, tmp_path: Path, change: str):
    tar = folder / "00001.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data if change == "flip" else data[:-512])
    with serving(folder) as server:
        shards = opened(server.url, tmp_path / "cache")
        with pytest.raises(ArtefactError, match=r"00001.tar: not fetched .*the manifest says"):
            content(shards)
    words = "sha256" if change == "flip" else "bytes, expected"
    if change == "cut":  # what can be listed is refused at once
        with pytest.raises(ArtefactError, match=words):
            opened(f"file://{folder}", tmp_path / "other")


def test_a_lost_index_is_made_again_from_the_fetched_shard(folder: Path, expected: dict, tmp_path: Path):
    (folder / "00001.index.json").unlink()
    (folder / "00002.index.json").write_bytes(b"{}")
    with serving(folder) as server:
        assert content(opened(server.url, tmp_path / "cache")) == expected
        assert server.seen["00001.tar"] == server.seen["00002.tar"] == 1
    assert (folder / "00002.index.json").read_bytes() == b"{}"  # a server's files are left alone


def test_the_cache_keeps_its_limit_and_what_was_used_last(folder: Path, expected: dict, tmp_path: Path):
    size, cache = (folder / "00000.tar").stat().st_size, tmp_path / "cache"
    index = sum(path.stat().st_size for path in folder.glob("*.index.json"))
    with serving(folder) as server:
        shards = opened(server.url, cache, (2.5 * size + index) / 1e9)
        for key in ("000000", "000010", "000000", "000020"):  # the second is used least when the third comes
            shards.read(key, "bin")
            assert sum(path.stat().st_size for path in kept(cache)) <= 2.5 * size + index
            time.sleep(0.02)
        sha256 = {tar: file.sha256 for tar, file in open_sealed(folder, "frames", 1).files.items()}
        names = {path.name for path in kept(cache)}
        assert sha256["00000.tar"] in names and sha256["00002.tar"] in names and sha256["00001.tar"] not in names
        assert content(shards) == expected  # a removed shard stays readable to who has it open
        with pytest.raises(ExpectedError, match=r"do not fit into the cache .* raise data.cache_gb"):
            opened(server.url, tmp_path / "tiny", 10_000 / 1e9).read("000000", "bin")


def test_the_cache_leaves_other_peoples_files_alone(folder: Path, expected: dict, tmp_path: Path):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "thesis.txt").write_text("mine")
    (cache / "photo.part").write_bytes(bytes(300_000))
    size = (folder / "00000.tar").stat().st_size
    with serving(folder) as server:
        assert content(opened(server.url, cache, 1.1 * size / 1e9)) == expected
    assert (cache / "thesis.txt").read_text() == "mine" and (cache / "photo.part").exists()


def test_a_damaged_file_in_the_cache_is_fetched_again(folder: Path, expected: dict, tmp_path: Path):
    with serving(folder) as server:
        content(opened(server.url, tmp_path / "cache"))
        for path in kept(tmp_path / "cache"):
            path.write_bytes(path.read_bytes()[:-7])  # as a power cut leaves it
        assert content(opened(server.url, tmp_path / "cache")) == expected
        assert server.seen["00000.tar"] == 2


READER = """
import hashlib, json, os, sys
from pathlib import Path
from distill.cache import Cache
from distill.remote import locate
folder, cache = locate(sys.argv[1]), Cache(Path(sys.argv[2]), float(sys.argv[3]))
files = json.loads((folder / "manifest.json").read_bytes())["files"]
digest = hashlib.sha256()
for turn in range(int(sys.argv[4])):
    for name, file in files.items():
        descriptor = cache.open(folder / name, file["sha256"], file["bytes"])
        digest.update(os.pread(descriptor, file["bytes"], 0))
        os.close(descriptor)
print(digest.hexdigest())
"""


def reader(url: str, cache: Path, gigabytes: float, turns: int) -> subprocess.Popen:
    """A process that reads a whole set several times through a cache, and prints what it was."""
    command = [sys.executable, "-c", READER, url, str(cache), str(gigabytes), str(turns)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_processes_share_one_download_and_a_small_cache_without_harm(folder: Path, tmp_path: Path):
    total = sum(path.stat().st_size for path in folder.glob("*.tar"))
    with serving(folder) as server:
        server.slow = 0.1
        together = [reader(server.url, tmp_path / "large", 1.0, 1) for _ in range(3)]
        answers = {process.communicate(timeout=120)[0] for process in together}
        assert len(answers) == 1 and "" not in answers
        assert all(server.seen[f"{number:05d}.tar"] == 1 for number in range(3))
        server.slow = 0.0
        cache, most = tmp_path / "small", 0.7 * total
        together = [reader(server.url, cache, most / 1e9, 20) for _ in range(3)]
        while any(process.poll() is None for process in together):
            with_parts = 0
            for path in cache.iterdir() if cache.is_dir() else ():
                try:
                    with_parts += path.stat().st_size if path.is_file() else 0
                except FileNotFoundError:
                    continue
            assert with_parts <= most
            time.sleep(0.005)
        answers = {process.communicate(timeout=120)[0] for process in together}
        assert len(answers) == 1 and "" not in answers


def test_what_a_killed_download_leaves_does_not_stay(folder: Path, expected: dict, tmp_path: Path):
    cache = tmp_path / "cache"
    with serving(folder) as server:
        opened(server.url, cache)
        server.slow = 1.5
        process = reader(server.url, cache, 1.0, 1)
        deadline = time.monotonic() + 60
        while not list(cache.glob("*.part")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        server.slow = 0.0
        assert list(cache.glob("*.part"))
        assert content(opened(server.url, cache)) == expected
    assert not list(cache.glob("*.part"))


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("ftp://host/set", "expected a folder or a URL of file, http"),
        ("s3://", "names no folder"),
        ("https:///", "names no folder"),
    ],
)
def test_a_url_that_cannot_be_is_refused(where: str, words: str):
    with pytest.raises(ExpectedError, match=words):
        locate(where)


def test_a_missing_package_is_named():
    for protocol, needed in remote.PROTOCOLS.items():
        if needed and not shutil.which(needed) and needed != "aiohttp":
            try:
                __import__(needed)
            except ImportError:
                with pytest.raises(ExpectedError, match=rf"{protocol}:// needs the package {needed}; pip install"):
                    locate(f"{protocol}://bucket/set")


def test_a_server_without_the_set_or_without_anybody_is_named(tmp_path: Path):
    with serving(tmp_path) as server, pytest.raises(ArtefactError, match=r"no manifest.json, so not finished"):
        opened(server.url, tmp_path / "cache")
    with pytest.raises(ArtefactError, match=r"manifest.json: not read in 4 tries"):
        opened(server.url, tmp_path / "cache")  # it has stopped


def test_shards_are_written_behind_a_url_with_the_same_bytes(folder: Path, tmp_path: Path):
    there = locate(f"file://{tmp_path / 'bucket' / 'set'}")
    assert isinstance(there, RemotePath)
    manifest = sealed(there)
    assert manifest.id == open_sealed(folder, "frames", 1).id
    assert tree_bytes(tmp_path / "bucket" / "set") == tree_bytes(folder)
    assert finished(there, "00001") == finished(folder, "00001")
    build(there, "00001", lambda: pytest.fail("made again"))
    (tmp_path / "bucket" / "set" / "00001.tar").write_bytes(b"short")
    assert finished(there, "00001") is None
    with pytest.raises(ArtefactError, match="a differ"):
        claim(there, {"a": 2}, command="a test")
    (tmp_path / "bucket" / "mine").mkdir()
    (tmp_path / "bucket" / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ArtefactError, match="not begun by a test"):
        claim(locate(f"file://{tmp_path}/bucket/mine"), {"a": 1}, command="a test")


def test_a_web_server_is_not_written_to(tmp_path: Path):
    with serving(tmp_path) as server, pytest.raises(ExpectedError, match="web servers are only read"):
        seal(locate(server.url), Manifest(kind="frames", version=1, config={}, counts={}, parents={}, files={}))


def test_labels_are_made_and_read_behind_urls(world: World, tmp_path: Path):
    """Frames from a web server, labels into a bucket: the bytes of a job on local folders, and what they say."""
    frames = pack_shards(world, tmp_path / "frames", 16)
    local = write_labels(world, "xclip", tmp_path / "local", frames=frames)
    with serving(tmp_path) as server:
        write_labels(world, "xclip", locate(f"file://{tmp_path}/bucket"), frames=f"{server.url}/frames")
        assert tree_bytes(tmp_path / "bucket") == tree_bytes(local)
        near = LabelSet(local, FrameSet(frames))
        far = LabelSet(f"{server.url}/bucket", FrameSet(f"{server.url}/frames"))
        pairs = [(0, 0), (5, 1), (20, 0), (31, 0)]
        expected = near.batch(pairs)
        assert all(torch.equal(value, expected[name]) for name, value in far.batch(pairs).items())
        assert near.interaction_weights().keys() == far.interaction_weights().keys()
