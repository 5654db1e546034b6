"""Sets in a bucket of a live S3 server: the bytes of a folder, whoever is killed and wherever a connection is cut."""

import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
import torch
from conftest import World, tree_bytes
from labelling import pack_shards, write_labels
from stores import Relay, Store, use
from test_remote import content, kept, opened, reader, sealed

from distill import remote
from distill.data.building import build, claim, finished
from distill.data.frames import FrameSet
from distill.data.labelset import LabelSet
from distill.data.shards import open_sealed_shards
from distill.errors import ArtefactError, ExpectedError
from distill.manifest import open_sealed
from distill.remote import locate

SIZE = 400_000  # bytes of a sample: a shard takes many packets


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Short waits here, and nobody's real cache there."""
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.02, 0.04))
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)  # its own tries come before ours, seconds apart
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "default"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(tmp_path_factory.mktemp("store") / "log")
    yield store
    store.kill()


@pytest.fixture
def relay(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """The way to a server with one empty bucket, "bucket"."""
    with Relay(store.port) as relay:
        use(relay.url, monkeypatch)
        empty_bucket()
        yield relay
        relay.shutdown()


def empty_bucket() -> None:
    system = s3fs.S3FileSystem(use_listings_cache=False)
    if system.exists("bucket"):
        system.rm("bucket", recursive=True)
    system.mkdir("bucket")


def copy(folder: Path, url: str) -> None:
    s3fs.S3FileSystem(use_listings_cache=False).put(f"{folder}/", f"{url}/", recursive=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed") / "set"
    sealed(folder, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, bytes]:
    return content(open_sealed_shards(folder, "frames", 1)[1])


def test_a_set_is_written_into_a_bucket_and_read_from_it(
    relay: Relay, folder: Path, expected: dict[str, bytes], tmp_path: Path
):
    there = locate("s3://bucket/set")
    assert not there.is_dir() and not there.is_file()
    assert sealed(there, size=SIZE).id == open_sealed(folder, "frames", 1).id
    assert there.is_dir() and sorted(entry.name for entry in there.iterdir()) == sorted(os.listdir(folder))
    s3fs.S3FileSystem().get("s3://bucket/set/", f"{tmp_path}/copy/", recursive=True)
    assert tree_bytes(tmp_path / "copy") == tree_bytes(folder)
    relay.seen.clear()
    shards = opened("s3://bucket/set", tmp_path / "cache")
    assert not any(name.endswith(".tar") for name in relay.seen)  # opening fetches no shard
    assert content(shards) == expected
    assert finished(there, "00001") == finished(folder, "00001")
    build(there, "00001", lambda: pytest.fail("made again"))
    with pytest.raises(ArtefactError, match="a differ"):
        claim(there, {"a": 2}, command="a test")


@pytest.mark.parametrize("bytes_", [0, 40, 5_000, 300_000])
def test_a_connection_that_is_cut_in_an_answer_is_tried_again(
    relay: Relay, folder: Path, expected: dict[str, bytes], tmp_path: Path, bytes_: int
):
    """Before the answer, in its header, early and late in its body; of the manifest and an index too."""
    copy(folder, "s3://bucket/set")
    relay.cut = {"00001.tar": [bytes_, bytes_], "00002.index.json": [min(bytes_, 300)], "manifest.json": [40]}
    relay.seen.clear()
    assert content(opened("s3://bucket/set", tmp_path / "cache")) == expected
    assert not any(relay.cut.values()) and relay.seen["00001.tar"] >= 3  # every cut has happened
    assert {path.name for path in kept(tmp_path / "cache")} == {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name.startswith("0")
    }


def test_a_shard_that_is_always_cut_ends_with_one_line_and_leaves_nothing(relay: Relay, folder: Path, tmp_path: Path):
    copy(folder, "s3://bucket/set")
    shards = opened("s3://bucket/set", tmp_path / "cache")
    before = kept(tmp_path / "cache")
    relay.cut = {"00001.tar": [300_000] * 1000}
    with pytest.raises(
        ArtefactError, match=r"^s3://bucket/set/00001.tar: not fetched in 4 tries .*check it and start"
    ) as found:
        shards.read("000010", "bin")
    assert "\n" not in str(found.value)
    assert kept(tmp_path / "cache") == before
    relay.cut.clear()
    assert len(shards.read("000010", "bin")) == SIZE


def test_a_large_file_in_ranges_is_whole_though_ranges_are_cut(
    relay: Relay, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Files over 50 MB come as ranges, several at a time; here every file over 64 KiB does."""
    copy(folder, "s3://bucket/set")
    monkeypatch.setattr(s3fs.S3FileSystem, "default_block_size", 65_536)
    s3fs.S3FileSystem.clear_instance_cache()
    file = open_sealed(folder, "frames", 1).files["00000.tar"]
    relay.cut = {"00000.tar": [20_000, 70_000, 100]}
    relay.seen.clear()
    locate("s3://bucket/set/00000.tar").download(tmp_path / "tar", file.sha256, file.bytes)
    assert (tmp_path / "tar").read_bytes() == (folder / "00000.tar").read_bytes()
    assert relay.seen["00000.tar"] > file.bytes / 65_536 and not relay.cut["00000.tar"]


def test_a_killed_reader_leaves_no_half_file_under_a_name(
    relay: Relay, folder: Path, expected: dict[str, bytes], tmp_path: Path
):
    copy(folder, "s3://bucket/set")
    cache = tmp_path / "cache"
    opened("s3://bucket/set", cache)
    relay.slow = 0.05
    for _ in range(3):
        process: subprocess.Popen = reader("s3://bucket/set", cache, 1.0, 1)
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in cache.glob("*.part")):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        (part,) = cache.glob("*.part")
        whole = [path for path in kept(cache) if path != part]
        assert all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in whole)
    relay.slow = 0.0
    assert content(opened("s3://bucket/set", cache)) == expected
    assert not list(cache.glob("*.part"))


def test_a_killed_server_is_named_and_a_new_one_is_continued_with(
    relay: Relay, folder: Path, expected: dict[str, bytes], store: Store, tmp_path: Path
):
    copy(folder, "s3://bucket/set")
    shards = opened("s3://bucket/set", tmp_path / "cache")
    first = shards.read("000000", "bin")
    store.kill()
    try:
        with pytest.raises(ArtefactError, match=r"00001.tar: not fetched in 4 tries") as found:
            shards.read("000010", "bin")
        assert "\n" not in str(found.value)
        with pytest.raises(ArtefactError, match=r"config.json: not \w+ in 4 tries"):
            claim(locate("s3://bucket/other"), {"a": 1}, command="a test")
        assert not list((tmp_path / "cache").glob("*.part"))
    finally:
        store.start()
    empty_bucket()
    copy(folder, "s3://bucket/set")
    assert shards.read("000000", "bin") == first and content(shards) == expected


def test_what_a_bucket_forbids_or_lacks_is_not_asked_for_again(relay: Relay, tmp_path: Path, monkeypatch):
    with pytest.raises(ArtefactError, match=r"s3://bucket/none: no manifest.json, so not finished"):
        opened("s3://bucket/none", tmp_path / "cache")
    with pytest.raises(
        ExpectedError, match=r"s3://nobucket/set/.*: not written .*bucket does not exist.*; make the bucket"
    ):
        claim(locate("s3://nobucket/set"), {"a": 1}, command="a test")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ExpectedError, match=r"may not be \w+ .*check your credentials"):
        opened("s3://bucket/set", tmp_path / "cache")


def test_labels_are_made_and_read_in_a_bucket(world: World, relay: Relay, tmp_path: Path):
    frames = pack_shards(world, tmp_path / "frames", 16)
    local = write_labels(world, "xclip", tmp_path / "local", frames=frames)
    copy(frames, "s3://bucket/frames")
    relay.cut = {"00000.tar": [20_000], "manifest.json": [50]}
    write_labels(world, "xclip", locate("s3://bucket/labels"), frames="s3://bucket/frames")
    s3fs.S3FileSystem().get("s3://bucket/labels/", f"{tmp_path}/copy/", recursive=True)
    assert tree_bytes(tmp_path / "copy") == tree_bytes(local)
    near, far = LabelSet(local, FrameSet(frames)), LabelSet("s3://bucket/labels", FrameSet("s3://bucket/frames"))
    pairs = [(0, 0), (5, 1), (20, 0), (31, 0)]
    expected = near.batch(pairs)
    assert all(torch.equal(value, expected[name]) for name, value in far.batch(pairs).items())
