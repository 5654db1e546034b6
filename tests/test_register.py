"""A register says what the indexes say, whatever becomes of its file, and holds little for each video and caption."""

import json
import multiprocessing
import os
import pickle
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from distill.bench.grown import CAPTIONS, Grown, grow
from distill.cache import Cache
from distill.data import growing, indexes
from distill.data.building import ShardContent, build, claim
from distill.data.distinct import distinct
from distill.data.frames import FrameSet
from distill.data.growing import GrowingRegister
from distill.data.indexes import Indexes
from distill.data.labelset import LabelSet
from distill.data.register import Register
from distill.errors import ArtefactError
from distill.packing.packing import seal_frames

WORDS = ["", "a", "é", "𝄞 clef", "two\nlines", "\ud83d", "x" * 300]
SETTINGS = {"sampler": {"num_frames": 9}, "size": 8}


def draw(folder: Path, seed: int = 0, shards: int = 5) -> Path:
    """A frame set with everything that may vary: captions, frames, samples without a video, texts of any kind."""
    rng = random.Random(seed)

    def said(number: int) -> dict:
        source = rng.choice([{}, {}, {"source": ""}, {"source": "human"}, {"source": f"model {number % 3}"}])
        return {"id": f"c{number}", "text": rng.choice(WORDS[:5] + WORDS[6:]) + str(number)} | source

    def content(shard: int) -> ShardContent:
        samples = {}
        for row in range(rng.randrange(8)):
            number = 100 * shard + row
            about = {
                "video": f"v{number}{rng.choice(WORDS[:5])}",
                "source": f"{number}.mp4",
                "captions": [said(10 * number + n) for n in range(rng.randrange(4))],
                "timestamps": [rng.random() * 9 for _ in range(rng.randrange(1, 9))],
                "duration": rng.random() * 9,
                "frames_sha256": rng.choice(["", "0" * 64]),
            }
            members = {f"{n:03d}.jpg": b"x" * rng.randrange(9) for n in range(len(about["timestamps"]))}
            described = {} if rng.random() < 0.2 else {"json": json.dumps(about).encode()}
            samples[f"{number:06d}"] = {"other": b""} | members | described
        return ShardContent(samples, {"skipped": [], "captions": 0, "frames": 0})

    claim(folder, SETTINGS, command="a test")
    records = [build(folder, f"{shard:05d}", lambda shard=shard: content(shard)) for shard in range(shards)]
    seal_frames(folder, SETTINGS, records)
    return folder


def check(frames: FrameSet) -> None:
    """Compare everything that a frame set says with its indexes, read by the standard library alone."""
    videos, shards, samples = [], {}, {}
    for path in sorted(Path(str(frames.path)).glob("*.index.json")):
        tar = f"{path.name.partition('.')[0]}.tar"
        for key, members in json.loads(path.read_text()).items():
            samples[key] = {name: tuple(place[:2]) for name, place in members.items()}
            if "json" in members:
                shards.setdefault(tar, []).append(len(videos))
                videos.append((key, members["json"][2]))
    assert list(frames._shards.keys) == list(samples) and len(frames) == len(videos)
    for key, members in samples.items():
        assert frames._shards.extensions(key) == list(members)
        assert {name: frames._shards.place(key, name) for name in members} == members
    for number, (key, about) in enumerate(videos):
        video = frames.videos[number]
        assert (video.key, video.id, video.source) == (key, about["video"], about["source"])
        assert (video.duration, video.frames_sha256) == (about["duration"], about["frames_sha256"])
        assert video.timestamps == tuple(about["timestamps"])
        expected = [(said["id"], said["text"], said.get("source")) for said in about["captions"]]
        assert [(said.id, said.text, said.source) for said in video.captions] == expected
        assert frames._shards.shard_of(key) in shards and number in shards[frames._shards.shard_of(key)]
    said = [caption for _, about in videos for caption in about["captions"]]
    assert frames.videos.caption_counts().tolist() == [len(about["captions"]) for _, about in videos]
    assert frames.videos.frame_counts().tolist() == [len(about["timestamps"]) for _, about in videos]
    assert list(frames.videos.texts) == frames.videos.texts[:] == [caption["text"] for caption in said]
    assert frames.videos.ids == [about["video"] for _, about in videos]
    assert {tar: list(rows) for tar, rows in frames.shards().items()} == shards
    places = [(number, row) for number, (_, about) in enumerate(videos) for row in range(len(about["captions"]))]
    assert [frames.videos.place(text) for text in range(len(said))] == places
    sources = [caption.get("source") for caption in said]
    assert frames.videos.sources() == {name: sources.count(name) for name in dict.fromkeys(sources)}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch):
    """Registers of sets of any size are kept, and of columns of any length in files."""
    monkeypatch.setattr(indexes, "KEPT", 0)
    monkeypatch.setattr(growing, "HELD", 3)


def registers(cache: Cache) -> list[Path]:
    return [path for path in cache.folder.iterdir() if path.is_file()]


@pytest.mark.parametrize("seed", range(4))
def test_a_register_says_what_the_indexes_say(seed: int, tmp_path: Path, kept: None, monkeypatch: pytest.MonkeyPatch):
    folder, cache = draw(tmp_path / "frames", seed), Cache(tmp_path / "cache")
    check(FrameSet(folder, cache=cache))
    assert len(registers(cache)) == 1
    monkeypatch.setattr(Indexes, "_fill", lambda *_: pytest.fail("read again"))
    check(FrameSet(folder, cache=cache))
    monkeypatch.undo()
    check(FrameSet(folder, cache=Cache(tmp_path / "none")))
    assert not (tmp_path / "none").exists()  # a small set is read again


def test_a_damaged_register_is_made_again(tmp_path: Path, kept: None, caplog: pytest.LogCaptureFixture):
    folder, cache = draw(tmp_path / "frames"), Cache(tmp_path / "cache")
    FrameSet(folder, cache=cache)
    (path,) = registers(cache)
    whole, rng = path.read_bytes(), random.Random(1)
    other = Cache(tmp_path / "other")
    FrameSet(draw(tmp_path / "frames2", 7), cache=other)
    flipped = [bytearray(whole) for _ in range(20)]
    for data in flipped:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    damaged = [*flipped, b"", whole[:-1], whole[:50], whole + b"x", b"{}", os.urandom(999)]
    for data in [*damaged, registers(other)[0].read_bytes()]:
        caplog.clear()
        path.write_bytes(data)
        check(FrameSet(folder, cache=cache))
        assert path.read_bytes() == whole
        assert len(caplog.records) == 1 and "it is made again" in caplog.text


def test_a_register_that_lies_is_not_read_beyond_its_columns(tmp_path: Path, kept: None):
    """Its CRC-32 is right, and its rows are not: what is opened is refused or made again, and never read outside."""
    folder, cache = draw(tmp_path / "frames"), Cache(tmp_path / "cache")
    register = FrameSet(folder, cache=cache)._shards.register
    (path,) = registers(cache)
    for column in register._columns.keys() - {"crc32", "name"}:
        for change in (lambda numbers: numbers[:-1], lambda numbers: numbers[::-1] + numbers.dtype.type(200)):
            columns = {name: numbers.copy() for name, numbers in register._columns.items() if name != "crc32"}
            columns[column] = change(columns[column])
            lying = GrowingRegister({})
            codes = {"u": "q", "i": "q", "f": "d"}
            for name, numbers in columns.items():
                code = "B" if numbers.dtype == np.uint8 else codes[numbers.dtype.kind]
                lying._columns[name] = growing._Column(code, None)
                lying.add_bytes(name, numbers.astype({"q": np.int64, "d": np.float64, "B": np.uint8}[code]).tobytes())
            with path.open("wb") as file:
                lying.write(file)
            try:
                frames = FrameSet(folder, cache=cache)
                for key in frames._shards.keys:
                    for extension in frames._shards.extensions(key):
                        frames._shards.read(key, extension)
                list(frames.videos)
            except ArtefactError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("reason", ["in the way", "full", "too large"])
def test_a_cache_that_takes_nothing_costs_memory_and_a_line(
    reason: str, tmp_path: Path, kept: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    folder, cache = draw(tmp_path / "frames"), Cache(tmp_path / "cache", 1e-9 if reason == "too large" else 1.0)
    if reason == "in the way":
        cache.folder.write_text("a file")
    if reason == "full":
        spill = GrowingRegister.spill

        def full(self: GrowingRegister) -> None:
            if self._columns["key"]._file is not None:
                raise OSError(28, "No space left on device")
            spill(self)

        monkeypatch.setattr(GrowingRegister, "spill", full)
    check(FrameSet(folder, cache=cache))
    assert len(caplog.records) == 1 and "is not kept for the next start" in caplog.text


def _opened(folder: Path, cache: Cache, log: Path) -> int:
    fill = Indexes._fill

    def counted(self: Indexes, register: GrowingRegister) -> bool:
        with log.open("a") as file:
            file.write("filled\n")
        return fill(self, register)

    Indexes._fill = counted
    return len(list(FrameSet(folder, cache=cache).videos))


def test_processes_that_open_a_set_at_once_read_it_once(tmp_path: Path, kept: None):
    folder, cache, log = draw(tmp_path / "frames"), Cache(tmp_path / "cache"), tmp_path / "log"
    with multiprocessing.get_context("fork").Pool(4) as pool:
        found = pool.starmap(_opened, [(folder, cache, log)] * 4)
    assert set(found) == {len(FrameSet(folder).videos)} and log.read_text() == "filled\n"


def test_a_set_is_sent_to_a_process_as_the_name_of_its_register(tmp_path: Path, kept: None):
    grown, cache = grow(tmp_path, 2), Cache(tmp_path / "cache")
    frames = FrameSet(grown.frames, cache=cache)
    labels = LabelSet(grown.labels, frames, coarse=None)
    sent = pickle.dumps((frames, labels, labels.source()))
    assert len(sent) < 20_000
    frames2, labels2, source = pickle.loads(sent)
    assert frames2.videos[1999] == frames.videos[1999] and (frames2.pixels(1500) == frames.pixels(1500)).all()
    assert (labels2.relevance(1234, 1) == labels.relevance(1234, 1)).all() and source.keys[1999] == "s0000100999"
    for path in registers(cache):
        path.unlink()
    with pytest.raises(ArtefactError, match=r"removed from the cache while it was in use .* larger data.cache_gb"):
        pickle.loads(sent)


def opened(grown: Grown, cache: Cache) -> tuple[int, int]:
    """Open both sets; return the bytes that are allocated then, and were at most."""
    tracemalloc.start()
    frames = FrameSet(grown.frames, verify=False, cache=cache)
    labels = LabelSet(grown.labels, frames, verify=False, coarse=None)
    assert len(frames) == grown.videos and (labels.shards.register.path is None) == (indexes.KEPT > 0)
    found = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return found


@pytest.mark.slow
def test_a_video_and_a_caption_take_few_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In memory 200 bytes each at most, and none of a register that is mapped."""
    small, large = grow(tmp_path / "small", 1), grow(tmp_path / "large", 3)
    held, most = opened(small, Cache(tmp_path / "cache"))
    assert 20 < held / (small.videos * (1 + CAPTIONS)) < 200 and most < 6e6, "one shard's index is parsed at a time"
    monkeypatch.setattr(indexes, "KEPT", 0)
    cache = Cache(tmp_path / "cache")
    for grown in (small, large):
        LabelSet(grown.labels, FrameSet(grown.frames, verify=False, cache=cache), verify=False, coarse=None)
    more = (large.videos - small.videos) * (1 + CAPTIONS)
    held, most = (two - one for one, two in zip(opened(small, cache), opened(large, cache), strict=True))
    assert held / more < 1 and most / more < 100, (held, most)
    frames = FrameSet(large.frames, verify=False, cache=cache)
    tracemalloc.start()
    assert frames.videos.place(2 * large.videos - 1) == (large.videos - 1, 1) and len(frames.shards()) == 3
    assert tracemalloc.get_traced_memory()[1] < 6 * large.videos, "no column is copied"
    tracemalloc.stop()


def test_distinct_texts_are_those_of_a_dictionary():
    rng = random.Random(0)
    for size in (0, 1, 50, 3000):
        texts = [f"text {rng.randrange(1 + size // 3)}" for _ in range(size)]
        first, number = distinct(texts)
        expected = list(dict.fromkeys(texts))
        assert [texts[place] for place in first] == expected
        assert [expected[each] for each in number] == texts and sorted(first) == first.tolist()


def test_columns_hold_numbers_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(growing, "HELD", 7)
    for folder in (None, tmp_path):
        made = GrowingRegister({"small": "q", "large": "q", "signed": "q", "real": "d*", "text": "B*"}, folder)
        for row in range(100):
            made.add("small", row)
            made.add("large", row << 32)
            made.add("signed", -row)
            made.add("real", *[row / 3] * (row % 4))
            made.end_row("real")
            made.add_string("text", WORDS[row % 7])
            made.spill()
        path, size = tmp_path / "register", made.nbytes
        with path.open("wb") as file:
            made.write(file)
        found = Register.mapped(path)
        assert path.stat().st_size == size and found["small"].dtype == np.uint32 and found["large"].dtype == np.int64
        assert found["large"].tolist() == [row << 32 for row in range(100)]
        assert found["signed"].tolist() == [-row for row in range(100)]
        assert found.strings("text") == [WORDS[row % 7] for row in range(100)]
        assert [found.row("real", row).tolist() for row in range(9)] == [[row / 3] * (row % 4) for row in range(9)]
