"""Shards are what WebDataset reads, byte-stable, published whole, and refused when anything about them has changed."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import webdataset
from described import Said, said
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data.building import ShardContent, build, claim, finished, sealed_files
from distill.data.frames import FrameSet
from distill.data.shards import MOST_OPEN, Shards, open_sealed_shards
from distill.errors import ArtefactError
from distill.manifest import Manifest, SealedFile, open_sealed, seal, sealed_file
from distill.publishing import published

SAMPLES = {"000000000": {"json": b"{}", "000.jpg": b"first"}, "000000001": {"json": b"[]", "000.jpg": b""}}


def make() -> ShardContent:
    return ShardContent(SAMPLES, {"captions": 3})


def sealed(folder: Path) -> Manifest:
    claim(folder, {"a": 1}, command="a test")
    record = build(folder, "00000", make)
    manifest = Manifest(kind="frames", version=1, config={"a": 1}, counts={}, parents={}, files=sealed_files([record]))
    return seal(folder, manifest)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the tar open
def test_webdataset_reads_what_was_written(tmp_path: Path):
    sealed(tmp_path)
    read = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False))
    assert [sample["__key__"] for sample in read] == list(SAMPLES)
    assert [sample["000.jpg"] for sample in read] == [b"first", b""]


def test_every_member_is_read_at_random(tmp_path: Path):
    shards = Shards(tmp_path, sealed(tmp_path).files)
    assert shards.keys == list(SAMPLES)
    for key, sample in reversed(SAMPLES.items()):
        assert shards.extensions(key) == sorted(sample)
        for extension, content in sample.items():
            assert shards.read(key, extension) == content
    with pytest.raises(ArtefactError, match="no member"):
        shards.read("000000000", "mp4")
    with pytest.raises(ArtefactError, match="no sample"):
        shards.read("nobody", "json")


def test_the_same_content_gives_the_same_bytes(tmp_path: Path):
    assert sealed(tmp_path / "a").id == sealed(tmp_path / "b").id


def test_a_finished_shard_is_not_made_again_and_a_torn_one_is(tmp_path: Path):
    sealed(tmp_path)
    assert build(tmp_path, "00000", lambda: pytest.fail("made again")).report == {"captions": 3}
    tar = tmp_path / "00000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-512])
    assert finished(tmp_path, "00000") is None
    build(tmp_path, "00000", make)
    assert tar.read_bytes() == whole
    (tmp_path / ".work" / "00000.json").write_text('{"tar":')
    assert finished(tmp_path, "00000") is None


def test_a_folder_begun_with_other_settings_is_refused(tmp_path: Path):
    claim(tmp_path / "job", {"size": 64}, command="pack")
    claim(tmp_path / "job", {"size": 64}, command="pack")
    with pytest.raises(ArtefactError, match="size differ"):
        claim(tmp_path / "job", {"size": 224}, command="pack")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(ArtefactError, match="not begun by pack"):
        claim(tmp_path / "mine", {"size": 64}, command="pack")


@given(place=st.integers(min_value=0), value=st.integers(1, 255))
@settings(max_examples=25)
def test_any_flipped_byte_is_noticed(tmp_path_factory: pytest.TempPathFactory, place: int, value: int):
    folder = tmp_path_factory.mktemp("flip")
    sealed(folder)
    data = bytearray((folder / "00000.tar").read_bytes())
    data[place % len(data)] ^= value
    (folder / "00000.tar").write_bytes(data)
    with pytest.raises(ArtefactError, match="sha256"):
        open_sealed(folder, "frames", 1)


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path):
    manifest = sealed(tmp_path / "inside")
    outside = manifest.model_copy(update={"files": {"../secret": SealedFile(sha256="0", bytes=1)}})
    seal(tmp_path / "inside", outside)
    with pytest.raises(ArtefactError, match="outside its folder"):
        open_sealed(tmp_path / "inside", "frames", 1)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda tree: tree.update(version=99), "format 99"),
        (lambda tree: tree.update(kind="gallery"), "holds a gallery"),
        (lambda tree: tree.update(surprise=1), "surprise"),
        (lambda tree: tree.pop("files"), "files"),
    ],
)
def test_a_wrong_manifest_says_what_is_wrong(tmp_path: Path, change, word: str):
    sealed(tmp_path)
    tree = json.loads((tmp_path / "manifest.json").read_text())
    change(tree)
    (tmp_path / "manifest.json").write_text(json.dumps(tree))
    with pytest.raises(ArtefactError, match=word):
        open_sealed(tmp_path, "frames", 1)


def test_a_file_appears_only_when_it_is_whole(tmp_path: Path):
    with pytest.raises(RuntimeError), published(tmp_path / "f") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_packed_frames_are_the_videos_frames(world):
    """The frame set against the mp4 files themselves, decoded by another reader (Pillow cannot: PyAV in order)."""
    import av

    frames = FrameSet(world.frames["val"])
    video = frames.videos[3]
    with av.open(str(world.corpus / "videos" / video.source)) as container:
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert video.timestamps == tuple(float(second) for second in range(12))
    for second, packed in enumerate(frames.pixels(3)):
        source = pictures[4 * second].astype(float)  # four frames a second
        error = np.abs(packed.transpose(1, 2, 0) - source).mean()
        assert error < 4, f"second {second} differs by {error:.1f} grey levels"  # JPEG at quality 95


def test_only_jpeg_is_decoded_as_a_frame():
    from distill.data.frames import decode_jpeg

    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    with pytest.raises(OSError, match="cannot identify"):
        decode_jpeg(file.getvalue())


def reopened(folder: Path, *, verify: bool) -> dict[str, dict[str, bytes]]:
    """Everything that a sealed folder holds, read through its indexes."""
    _, shards = open_sealed_shards(folder, "frames", 1, verify=verify, describe=Said)
    assert said(shards) == {key: repr(json.loads(sample["json"])) for key, sample in SAMPLES.items()}
    return {key: {ext: shards.read(key, ext) for ext in shards.extensions(key)} for key in shards.keys}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"512", b"999")),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_text('{"000000000":{"json":[0,1099511627776,{}]}}'),
    ],
)
def test_a_lost_or_damaged_index_is_made_again(tmp_path: Path, damage, verify: bool, caplog: pytest.LogCaptureFixture):
    sealed(tmp_path)
    index = tmp_path / "00000.index.json"
    whole = index.read_bytes()
    damage(index)
    assert reopened(tmp_path, verify=verify) == SAMPLES
    assert index.read_bytes() == whole
    assert len(caplog.records) == 1 and "made again from the tar" in caplog.text
    assert reopened(tmp_path, verify=verify) == SAMPLES and len(caplog.records) == 1


def test_an_index_that_cannot_be_written_is_kept_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    sealed(tmp_path)
    (tmp_path / "00000.index.json").unlink()
    (tmp_path / "00000.index.json").mkdir()  # as good as a folder that may not be written, also for root
    assert reopened(tmp_path, verify=True) == SAMPLES
    assert "for this run (it cannot be written" in caplog.text


@pytest.mark.parametrize("verify", [True, False])
def test_an_index_is_never_made_from_a_damaged_tar(tmp_path: Path, verify: bool):
    sealed(tmp_path)
    (tmp_path / "00000.index.json").unlink()
    data = bytearray((tmp_path / "00000.tar").read_bytes())
    data[600] ^= 1
    (tmp_path / "00000.tar").write_bytes(data)
    with pytest.raises(ArtefactError, match=r"00000.tar: sha256"):
        open_sealed_shards(tmp_path, "frames", 1, verify=verify)


@pytest.mark.parametrize(
    ("index", "word"),
    [
        ({"a": {"json": [0, 99_999_999, {}]}}, "points outside"),
        ({"a": {"json": [-1, 5, {}]}}, "points outside"),
        ({"a": {"json": [0, -5, {}]}}, "points outside"),
        ({"a": {"json": [1 << 70, 1, {}]}}, "points outside"),
        ({"a": {"json": [0.5, 1, {}]}}, "wrong"),
        ({"a": {"json": [0, 1]}}, "wrong"),
        ({"a": {"json": "text"}}, "wrong"),
        ({"a": [1]}, "wrong"),
        ([1], "wrong"),
    ],
)
def test_an_index_that_was_sealed_wrong_is_refused(tmp_path: Path, index, word: str):
    """A manifest vouches for the bytes, not for the sense of what somebody else's program wrote."""
    manifest = sealed(tmp_path)
    path = tmp_path / "00000.index.json"
    path.write_text(json.dumps(index))
    seal(tmp_path, manifest.model_copy(update={"files": {**manifest.files, path.name: sealed_file(path)}}))
    with pytest.raises(ArtefactError, match=rf"00000.index.json: .*{word}"):
        open_sealed_shards(tmp_path, "frames", 1)


def test_a_key_in_two_shards_is_refused(tmp_path: Path):
    claim(tmp_path, {}, command="a test")
    records = [build(tmp_path, name, make) for name in ("00000", "00001")]
    with pytest.raises(ArtefactError, match="stands in two shards"):
        Shards(tmp_path, sealed_files(records))


def test_reads_stay_inside_the_shard(tmp_path: Path):
    shards = Shards(tmp_path, sealed(tmp_path).files)
    end = (tmp_path / "00000.tar").stat().st_size
    for offset, size in ((end, 1), (-1, 1), (0, end + 1), (0, -1), (1 << 62, 1 << 40)):
        with pytest.raises(ArtefactError, match="points outside"):
            shards.read_at("000000000", offset, size)
    (tmp_path / "00000.tar").unlink()
    with pytest.raises(ArtefactError, match=r"00000.tar: cannot be read \(No such file"):
        shards.read("000000000", "json")


def test_only_so_many_shards_are_held_open(tmp_path: Path):
    claim(tmp_path, {}, command="a test")
    records = [
        build(tmp_path, f"{number:05d}", lambda number=number: ShardContent({f"{number}": {"a": b"%d" % number}}, {}))
        for number in range(MOST_OPEN + 20)
    ]
    shards, before = Shards(tmp_path, sealed_files(records)), len(os.listdir("/proc/self/fd"))
    for turn in range(2):
        assert [shards.read(key, "a") for key in shards.keys] == [key.encode() for key in shards.keys], turn
    assert len(os.listdir("/proc/self/fd")) <= before + MOST_OPEN


def test_a_frame_set_of_the_first_format_is_refused(world, tmp_path: Path):
    shutil.copytree(world.frames["val"], tmp_path / "old")
    tree = json.loads((tmp_path / "old" / "manifest.json").read_text())
    (tmp_path / "old" / "manifest.json").write_text(json.dumps({**tree, "version": 1}))
    with pytest.raises(ArtefactError, match="frames format 1, this version reads 2; make it again"):
        FrameSet(tmp_path / "old")


def test_a_frame_that_is_no_jpeg_is_refused_by_name(world, tmp_path: Path):
    shutil.copytree(world.frames["val"], tmp_path / "f")
    tar = tmp_path / "f" / "00000.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    with pytest.raises(ArtefactError, match=r"00000.tar: frames of 0000000000 cannot be decoded"):
        FrameSet(tmp_path / "f", verify=False).pixels(0)


def test_opening_a_frame_set_reads_no_shard(world, tmp_path: Path):
    """The index holds what is known of the videos: sets of terabytes open at once."""
    shutil.copytree(world.frames["train"], tmp_path / "f")
    tar = tmp_path / "f" / "00000.tar"
    tar.write_bytes(bytes(tar.stat().st_size))
    assert FrameSet(tmp_path / "f", verify=False).videos == FrameSet(world.frames["train"]).videos
