"""A folder of odd files, as people have them, on its way through all commands: each is right, or has its line."""

import bisect
import csv
import io
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import tree_bytes
from odd_files import ODD, Odd
from PIL import Image
from serving import serving
from test_release import make, release
from videos.drawing import number_of
from videos.writing import regular, write

from distill.data.frames import FrameSet
from distill.data.video import stem
from distill.release.release import load
from distill.retrieval import Gallery
from distill.retrieval.ledger import notes
from tools import gallery, index, pack_frames, search

GOOD, BAD = [odd for odd in ODD if not odd.reason], [odd for odd in ODD if odd.reason]
SAMPLER = {"sampler": {"kind": "clip4clip", "num_frames": 12}, "size": 32, "jpeg_quality": 95}
ROUNDING = 0.0006  # seconds: half of the millisecond in which some containers count


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnished(tmp_path_factory.mktemp("home"))


def furnished(home: Path) -> Path:
    """A folder with the odd files in `videos`, a student in `release`, and its gallery."""
    for odd in ODD:
        path = home / "videos" / odd.name
        path.parent.mkdir(parents=True, exist_ok=True)
        odd.make(path)
    release(home / "release", *make(), frames_config=SAMPLER)
    index.main([str(home / "release"), str(home / "videos"), "--out", str(home / "gallery")])
    return home


def shown(odd: Odd, second: float) -> int:
    """The number of the frame that a player shows at a second."""
    place = bisect.bisect_right([float(time) for time in odd.times], second + ROUNDING) - 1
    return [*(odd.numbers or range(len(odd.times)))][place] % 64


def reasons(notes: list[dict]) -> dict[str, str]:
    return {note["source"]: note["reason"] for note in notes}


def check(odd: Odd, timestamps: list[float], pictures: np.ndarray, duration: float) -> None:
    """The pictures [frame, channel, height, width] are those that a player shows, from the first second to the last."""
    assert [number_of(picture.transpose(1, 2, 0)) for picture in pictures] == [shown(odd, at) for at in timestamps]
    first, last = float(odd.times[0]), float(odd.times[-1])
    assert timestamps[0] == pytest.approx(first, abs=ROUNDING) and timestamps == sorted(timestamps)
    gap = max(np.diff([float(time) for time in odd.times]), default=0.0)
    assert timestamps[-1] >= last - max(1.0, gap) - 0.04 and last <= duration <= last + max(1.0, gap) + ROUNDING


def test_every_file_is_packed_as_a_player_shows_it_or_has_its_line(home: Path, tmp_path: Path):
    with (tmp_path / "all.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["video", "caption"], *([odd.name, f"this is {odd.name}"] for odd in ODD)])
    pack_frames.main([str(tmp_path / "all.csv"), str(home / "videos"), "--size", "32", "--out", str(tmp_path / "f")])
    frames = FrameSet(tmp_path / "f")
    packed = {video.source: number for number, video in enumerate(frames.videos)}
    assert sorted(packed) == sorted(odd.name for odd in GOOD)
    for odd in GOOD:
        video = frames.videos[packed[odd.name]]
        check(odd, [*video.timestamps], frames.pixels(packed[odd.name])[: len(video.timestamps)], video.duration)
    said = {note["video"]: note["reason"] for note in frames.manifest.notes}
    assert said.keys() == {stem(odd.name) for odd in BAD}
    assert all(odd.reason in said[stem(odd.name)] for odd in BAD), said


def test_every_file_is_a_row_and_finds_itself_or_has_its_line(home: Path):
    opened = Gallery.open(home / "gallery", load(home / "release"))
    rows = {opened.about(row)["source"]: row for row in opened.table.rows().tolist()}
    assert sorted(rows) == sorted(odd.name for odd in GOOD)
    for odd in GOOD:
        about = opened.about(rows[odd.name])
        assert about["id"] == stem(odd.name)
        hits = opened.like(home / "videos" / odd.name, k=len(rows))
        own = next(hit for hit in hits if hit.video == about["id"])
        assert own.score == pytest.approx(hits[0].score, abs=1e-5) and own.score == pytest.approx(1, abs=1e-5)
        assert opened.file(about["id"]) == home / "videos" / odd.name
    said = reasons(notes(home / "gallery", opened.manifest))
    assert sorted(said) == sorted(odd.name for odd in BAD)
    assert all(odd.reason in said[odd.name] for odd in BAD), said


def changed(home: Path) -> set[str]:
    """Change the folder as people do; return the files that were good and have no row any more."""
    videos = home / "videos"
    (videos / "codecs/prores.mov").unlink()
    write(videos / "time/varying-1.mp4", regular(30, 5))
    write(videos / "broken/half.mp4", regular(60, 25))
    (videos / "names/LOUD.MP4").write_bytes(b"")
    (videos / "new").mkdir()
    write(videos / "new/late-comer.mkv", regular(20, 10))
    (videos / "names/a.b.c.mp4").rename(videos / "new/a.b.c.mp4")
    return {"codecs/prores.mov", "names/LOUD.MP4", "names/a.b.c.mp4"}


@pytest.mark.slow
def test_what_changes_is_taken_over_and_everything_is_found_and_served_in_another_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    home = furnished(tmp_path / "home")
    gallery.main([str(home / "gallery"), "delete", "codecs/raw"])
    away = changed(home)
    sync = [str(home / "release"), str(home / "videos"), "--out", str(home / "gallery"), "--sync"]
    index.main(sync)
    before = tree_bytes(home / "gallery")
    index.main(sync)
    assert tree_bytes(home / "gallery") == before, "nothing has changed since"

    moved = home.rename(tmp_path / "another place")
    monkeypatch.chdir(moved.parent)
    opened = Gallery.open(moved / "gallery", load(moved / "release"))
    sources = {opened.about(row)["source"] for row in opened.table.rows().tolist()}
    added = {"new/late-comer.mkv", "new/a.b.c.mp4", "broken/half.mp4"}
    assert sources == {odd.name for odd in GOOD} - away - {"codecs/raw.avi"} | added
    said = reasons(notes(moved / "gallery", opened.manifest))
    assert said.keys() == {odd.name for odd in BAD} - added | {"names/LOUD.MP4"} and "empty" in said["names/LOUD.MP4"]
    capsys.readouterr()
    search.main(["another place/gallery", "--like", "another place/videos/time/varying-1.mp4", "--json"])
    assert '"time/varying-1"' in capsys.readouterr().out

    known = {odd.name: odd for odd in GOOD}
    with serving(moved / "gallery", tmp_path / "log") as server:
        hits = httpx.post(f"{server.url}search", json={"query": "a dog", "k": 100}).json()["results"][0]["hits"]
        assert {hit["video"] for hit in hits} == {stem(source) for source in sources}
        for hit in hits:
            about = opened.about(opened.row(hit["video"]))
            played, poster = httpx.get(server.url + hit["url"]), httpx.get(server.url + hit["poster"])
            assert played.content == (moved / "videos" / about["source"]).read_bytes()
            if about["source"] in known.keys() - {"time/varying-1.mp4"}:
                numbers = {shown(known[about["source"]], at) for at in about["timestamps"]}
                assert number_of(np.asarray(Image.open(io.BytesIO(poster.content)))) in numbers
