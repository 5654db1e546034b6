"""The server's searches, in this process: filters, films, likeness, files of one's own, second looks and lists."""

import asyncio
import io
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serving import FILMS, make_films

from distill.release.release import load
from distill.retrieval import Gallery, upkeep
from distill.retrieval.indexing import build_gallery
from distill.retrieval.where import Where
from distill.serving import application, limits, uploads

QUERIES = ["a red square", "a blue circle", "the green star falls"]


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    return make_films(tmp_path_factory.mktemp("searched"))


@pytest.fixture(scope="module")
def here(gallery):
    return Gallery.open(gallery, load(gallery.parent / "release"))


@contextmanager
def asking(opened, **options):
    with TestClient(
        application.application(opened, **options), base_url="http://localhost", raise_server_exceptions=False
    ) as client:
        yield client


@pytest.fixture(scope="module")
def client(here):
    with asking(here) as client:
        yield client


def hits(client, **question) -> list[dict]:
    answer = client.post("/search", json={"k": 20} | question)
    assert answer.status_code == 200, answer.text
    return answer.json()["results"][0]["hits"]


def names(found) -> list[str]:
    return [hit["video"] if isinstance(hit, dict) else hit.video for hit in found]


def refused(answer, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"] and "\n" not in answer.json()["error"]
    assert all(word in answer.json()["error"] for word in words), answer.text
    assert not re.search(r"/(tmp|root|home|usr)/|Traceback", answer.text), "nothing of this machine"


@pytest.mark.parametrize(
    "where",
    [Where("holiday"), Where(min_seconds=5.0), Where("many", max_seconds=2.0), Where("films"), Where("none"), Where()],
    ids=str,
)
def test_filters_are_those_of_the_gallery(where, client, here):
    asked = {key: value for key, value in vars(where).items() if value}
    answer = client.post("/search", json={"queries": QUERIES, "k": 5} | asked).json()["results"]
    for result, expected in zip(answer, here.search(QUERIES, 5, by_file=True, where=where), strict=True):
        assert names(result["hits"]) == names(expected)
        assert result["among"] == sum(
            name.startswith(where.folder) and where.lengths[0] <= seconds <= where.lengths[1]
            for name, seconds in FILMS.items()
        )
        assert result["fits"] is None


def test_questions_that_differ_in_anything_are_not_answered_for_one_another(client):
    asked = [{"query": "a red square", "k": k} | more for k in (2, 20) for more in MANNERS]
    alone = [client.post("/search", json=question).json() for question in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        for _ in range(3):
            assert list(pool.map(lambda question: client.post("/search", json=question).json(), asked)) == alone
    assert len({str(answer) for answer in alone}) == len(asked)


MANNERS = [{}, {"folder": "many"}, {"min_seconds": 5}, {"max_seconds": 5}, {"spans": True}, {"second_look": True}]


def test_a_film_is_one_hit_with_its_moments_unless_spans_are_asked_for(client, here):
    (film,) = hits(client, query="a red square", folder="films")
    assert len(film["others"]) == 2 and film["span"] and film["path"] == "films/long.mp4"
    scores = [film["score"], *(other["score"] for other in film["others"])]
    assert scores == sorted(scores, reverse=True)
    spans = hits(client, query="a red square", folder="films", spans=True)
    assert names(spans) == [film["video"], *names(film["others"])]
    assert all(not span["others"] for span in spans)
    answer = client.post("/search", json={"query": "x", "spans": True}).json()["results"][0]
    assert answer["among"] == len(here) == 13


def test_every_hit_has_its_path_and_its_own_poster(gallery, client, here, tmp_path):
    found = hits(client, query="a red square")
    assert {hit["path"] for hit in found} == set(FILMS)
    assert all(hit["file"] == Path(hit["path"]).name for hit in found)
    for hit in found:
        assert client.get(f"/{hit['poster']}").content == here.poster(hit["video"])
    plain = tmp_path / "gallery"
    encoder, videos = here.release, gallery.parent / "videos"
    build_gallery(encoder, videos / "holiday", plain, workers=1, videos=videos)
    build_gallery(encoder, videos / "many", plain, workers=1, videos=videos, append=True, posters=False)
    with asking(Gallery.open(plain, encoder)) as mixed:
        shown = {hit["path"]: hit["poster"] for hit in hits(mixed, query="a red square")}
        listed = {video["path"]: video["poster"] for video in mixed.get("/videos").json()["videos"]}
    assert listed == shown
    assert {path.split("/")[0] for path, poster in shown.items() if poster} == {"holiday"}


def test_like_finds_what_the_gallery_finds_and_an_unknown_id_is_refused_alone(client, here):
    name = "holiday/blue"
    found = hits(client, like=name, k=4)
    assert names(found) == names(here.like(name, 4, by_file=True)) and name not in names(found)
    assert {hit["weighed_by"] for hit in found} == {"video"}
    assert names(hits(client, like=name, folder="many", k=3)) == names(here.like(name, 3, where=Where("many")))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda id: client.post("/search", json={"like": id}), [name, "none"] * 4))
    assert [answer.status_code for answer in answers] == [200, 404] * 4
    refused(answers[1], 404, "like: this gallery has no such video")
    refused(client.post("/search", json={"like": name, "query": "a"}), 422, "either query, queries or like")
    refused(client.post("/search", json={"like": name, "second_look": True}), 409, "second_look: ")
    refused(client.post("/search", json={"like": name, "candidates": 3}), 409, "candidates: ")


def test_a_second_look_is_taken_when_asked_for_or_as_the_server_was_started(client, here, gallery):
    first, second = (here.search(QUERIES[:1], 20, by_file=True, second_look=look)[0] for look in (False, True))
    assert names(first) != names(second)
    assert names(hits(client, query=QUERIES[0])) == names(first)
    assert names(hits(client, query=QUERIES[0], second_look=True)) == names(second)
    with asking(here, second_look=True) as eager:
        assert names(hits(eager, query=QUERIES[0])) == names(second)
        assert names(hits(eager, query=QUERIES[0], second_look=False)) == names(first)
        assert hits(eager, like="holiday/blue", k=2)
        assert len(hits(eager, query=QUERIES[0], candidates=5, k=1)) == 1
    assert client.get("/about").json()["second_look"]


def test_a_gallery_without_frames_says_why_it_cannot_look_again(here, gallery, tmp_path):
    build_gallery(here.release, gallery.parent / "videos", tmp_path / "plain", frames="none", workers=1)
    plain = Gallery.open(tmp_path / "plain", here.release)
    with asking(plain, second_look=True) as client:
        refused(client.post("/search", json={"query": "a", "second_look": True}), 409, "this gallery stores no frames")
        (hit, *_) = hits(client, query="a")
        about = client.get("/about").json()
    assert hit["weighed_by"] == about["weighed_by"] == "video"
    assert not about["second_look"] and about["no_second_look"].startswith("this gallery stores no frames")


def test_about_counts_files_and_the_largest_folders(client, monkeypatch):
    about = client.get("/about").json()
    assert (about["videos"], about["files"], about["weighed_by"]) == (13, 11, "query")
    sizes = {"city": 1, "films": 1, "holiday": 2, "holiday/beach": 1, "many": 6}
    assert {folder["path"]: folder["videos"] for folder in about["folders"]} == sizes
    monkeypatch.setattr(limits, "MAX_FOLDERS", 2)
    assert [folder["path"] for folder in client.get("/about").json()["folders"]] == ["holiday", "many"]


def test_the_list_shows_every_file_once_page_by_page(client, here):
    listed, after = [], -1
    while after is not None:
        page = client.get("/videos", params={"k": 4, "after": after}).json()
        assert page["total"] == 11 and len(page["videos"]) <= 4
        listed += page["videos"]
        after = page["after"]
    sources = [here.about(row)["source"] for row in here.table.rows().tolist()]
    assert [video["path"] for video in listed] == list(dict.fromkeys(sources))
    assert {video["path"]: round(video["duration"]) for video in listed} == FILMS
    for video in listed:
        assert client.get(f"/{video['url']}").status_code == client.get(f"/{video['poster']}").status_code == 200
    few = client.get("/videos", params={"folder": "many", "min_seconds": 2}).json()
    assert [video["path"] for video in few["videos"]] == ["many/1.mp4", "many/2.mp4", "many/4.mp4", "many/5.mp4"]
    assert (few["total"], few["after"]) == (4, None)
    beyond = client.get("/videos", params={"after": 99}).json()
    assert (beyond["videos"], beyond["total"], beyond["after"]) == ([], 11, None)
    refused(client.get("/videos", params={"min_seconds": 9, "max_seconds": 3}), 409, "min_seconds: 9 is above")
    for wrong in (
        {"k": 0},
        {"after": "x"},
        {"min_seconds": -1},
        {"max_seconds": "nan"},
        {"what": 1},
        {"folder": "x" * 5000},
    ):
        refused(client.get("/videos", params=wrong), 422, next(iter(wrong)))
    assert client.head("/videos").status_code == 200


def picture(size=(40, 30), seed=1, **options) -> tuple[bytes, np.ndarray]:
    """A drawn picture as a file, and its pixels."""
    buffer, image = (
        io.BytesIO(),
        Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)),
    )
    image.save(buffer, **options)
    with Image.open(buffer) as read:
        return buffer.getvalue(), np.asarray(read.convert("RGB"))


def test_a_clip_of_ones_own_finds_what_its_path_finds(client, here, gallery):
    for name in ("holiday/blue.mp4", "films/long.mp4"):
        path = gallery.parent / "videos" / name
        answer = client.post("/search/file", params={"k": 5}, content=path.read_bytes()).json()
        expected = here.like(path, 5, by_file=True)
        assert names(answer["hits"]) == names(expected)
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-6)
    assert answer["among"] == 11 and answer["query"] == ""
    some = client.post("/search/file", params={"folder": "many", "k": 2, "spans": True}, content=path.read_bytes())
    assert names(some.json()["hits"]) == names(here.like(path, 2, where=Where("many")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_is_a_video_of_one_frame_and_turned_as_its_camera_says(kind, client, here):
    turned = Image.Exif()
    turned[0x0112] = 6  # it has to be turned right to be seen as it was
    for options in ({}, {"exif": turned}):
        content, pixels = picture(format=kind, **options)
        shown = np.rot90(pixels, -1) if options else pixels
        features = here.release.encode_video(np.ascontiguousarray(shown)[None])
        answer = client.post("/search/file", params={"k": 5}, content=content).json()
        expected = here.like(features, 5, by_file=True)
        assert [hit["score"] for hit in answer["hits"]] == pytest.approx([hit.score for hit in expected], abs=1e-6)
        assert names(answer["hits"]) == names(expected)


def test_a_file_that_cannot_be_read_is_refused_in_one_line(client, gallery, monkeypatch):
    video = (gallery.parent / "videos" / "holiday" / "blue.mp4").read_bytes()
    jpeg, png = (picture(format=kind)[0] for kind in ("JPEG", "PNG"))
    for content, words in (
        (b"", "empty"),
        (b"no video", "not a video"),
        (video[: len(video) // 2], "truncated"),
        (jpeg[:100], "damaged picture"),
        (jpeg[: len(jpeg) // 2], "damaged picture"),
        (png[:60], "damaged picture"),
        (png[: len(png) // 2], "damaged picture"),
        (b"#EXTM3U\nfile:///etc/passwd\n", "not a video"),
        (picture((1, 200), format="PNG")[0], "at most 100 to 1"),
    ):
        refused(client.post("/search/file", content=content), 422, words)
    monkeypatch.setattr(limits, "FRAMES", 31)
    refused(client.post("/search/file", content=video), 422, "32 frames", "at most 31")
    monkeypatch.setattr(limits, "PIXELS", 1199)
    refused(client.post("/search/file", content=png), 422, "40 x 30 pixels", "1,199")
    monkeypatch.setattr(limits, "MAX_FILE", len(video) - 1)
    refused(client.post("/search/file", content=video), 413, str(len(video) - 1))
    refused(client.post("/search/file", content=iter([video[:999], video[999:]])), 413)
    refused(client.post("/search", content=b"x" * (limits.MAX_BODY + 1)), 413, str(limits.MAX_BODY))
    refused(client.post("/search/file", params={"min_seconds": 2, "max_seconds": 1}, content=jpeg), 409)
    refused(client.get("/search/file"), 405)


def test_files_are_decoded_one_at_a_time_and_more_than_a_few_are_refused(client, monkeypatch):
    under_way, most, content = [], [], picture(format="PNG")[0]
    decode = application.decoded

    async def slowly(*given):
        under_way.append(1)
        most.append(len(under_way))
        await asyncio.sleep(0.15)
        under_way.pop()
        return await decode(*given)

    monkeypatch.setattr(application, "decoded", slowly)
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: client.post("/search/file", content=content), range(12)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 503} and codes.count(200) >= limits.FILES
    assert set(most) == {1}
    busy = next(answer for answer in answers if answer.status_code == 503)
    refused(busy, 503, "too many files")
    assert busy.headers["retry-after"] == "1"
    assert client.post("/search/file", content=content).status_code == 200


def children() -> list[str]:
    """The processes that this one has started and that still run."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            found += (task / "children").read_text().split()
    return found


def test_a_clip_that_takes_long_to_decode_is_refused_and_its_process_ends(client, gallery, monkeypatch):
    video, before = (gallery.parent / "videos" / "holiday" / "blue.mp4").read_bytes(), children()
    monkeypatch.setattr(limits, "DECODING", 0.05)
    answer = client.post("/search/file", content=video)
    refused(answer, 422, "decoding it takes more than 0.05 seconds; cut out the part that counts")
    assert set(children()) <= set(before)
    assert limits.TURN + 6.0 < limits.GRACE, "so that what is under way ends before a server that is stopped"


def test_a_decoder_that_crashes_or_wants_too_much_memory_takes_nothing_with_it(client, gallery, monkeypatch, tmp_path):
    video = (gallery.parent / "videos" / "holiday" / "blue.mp4").read_bytes()
    (tmp_path / "crash.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    with monkeypatch.context() as patched:
        patched.setattr(uploads, "DECODER", tmp_path / "crash.py")
        refused(client.post("/search/file", content=video), 422, "its decoder failed")
    monkeypatch.setattr(limits, "DECODER", 1 << 28)  # less than the libraries take
    refused(client.post("/search/file", content=video), 422, "cannot be searched by")
    monkeypatch.undo()
    assert client.post("/search/file", content=video).status_code == 200


def test_what_a_client_that_has_gone_asked_for_is_no_longer_decoded(here, gallery, monkeypatch, tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setattr(uploads, "DECODER", tmp_path / "slow.py")
    monkeypatch.setattr(limits, "DECODING", 600.0)
    video = (gallery.parent / "videos" / "holiday" / "blue.mp4").read_bytes()
    before, sent = children(), []

    async def leaves_after_its_body() -> None:
        messages = [{"type": "http.request", "body": video, "more_body": False}]
        gone = asyncio.get_running_loop().time() + 0.5

        async def receive() -> dict:
            if messages:
                return messages.pop()
            if (left := gone - asyncio.get_running_loop().time()) > 0:
                await asyncio.sleep(left)
            return {"type": "http.disconnect"}

        async def send(message: dict) -> None:
            sent.append(message)

        address = {"path": "/search/file", "raw_path": b"/search/file", "query_string": b"k=1", "root_path": ""}
        server = {"scheme": "http", "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1), "http_version": "1.1"}
        scope = {"type": "http", "method": "POST", "headers": [(b"host", b"localhost")], **address, **server}
        await asyncio.wait_for(application.application(here)(scope, receive, send), 60)
        assert len(set(children()) - set(before)) <= 1

    asyncio.run(leaves_after_its_body())
    assert not sent and not set(children()) - set(before)


def test_a_listed_video_that_was_deleted_is_gone_at_once(here, gallery, tmp_path):
    build_gallery(here.release, gallery.parent / "videos" / "many", tmp_path / "gallery", workers=1)
    with asking(Gallery.open(tmp_path / "gallery", here.release)) as client:
        assert client.get("/about").json()["files"] == 6
        upkeep.delete(tmp_path / "gallery", ["3"])
        assert client.get("/about").json()["files"] == 5
        assert "3.mp4" not in [video["path"] for video in client.get("/videos").json()["videos"]]
        refused(client.post("/search", json={"like": "3"}), 404)
