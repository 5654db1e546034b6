"""Shards are what WebDataset reads, byte-stable, published whole, and refused when anything about them has changed."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill.data.frames import FrameSet
from distill.data.shards import ShardContent, Shards, build, claim, finished, sealed_files
from distill.errors import ArtefactError
from distill.manifest import Manifest, SealedFile, open_sealed, published, seal

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
    sealed(tmp_path)
    shards = Shards(tmp_path, ["00000.tar"])
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
@settings(max_examples=25, deadline=None)
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
    from distill.data.frames import _pixels

    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "PNG")
    with pytest.raises(OSError, match="cannot identify"):
        _pixels(file.getvalue())
