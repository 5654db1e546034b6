"""The page's other ways to search in a headless Chromium: filters, likeness, files of one's own, and browsing."""

import json
import re
from urllib.parse import parse_qs, urlsplit

import httpx
import numpy as np
import pytest
from pages import contrast, luminance, needs_chromium, site, wait
from PIL import Image
from serving import FILMS, ODD

from distill.release.release import load
from distill.retrieval import upkeep
from distill.retrieval.indexing import build_gallery
from distill.serving import limits

pytest_plugins = ("browsing",)
pytestmark = [needs_chromium, pytest.mark.slow]

LOADED = "[...document.querySelectorAll('#hits img')].every(image => image.complete && image.naturalWidth > 0)"


def ask(url: str, **question) -> list[str]:
    """The paths that the server finds."""
    answer = httpx.post(f"{url}search", json={"k": 12} | question, timeout=60).json()
    return [hit["path"] for hit in answer["results"][0]["hits"]]


def paths(page) -> list[str]:
    return page.locator("#hits .path").all_inner_texts()


def asked(page) -> dict:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def said(page, words: str) -> None:
    wait(page, f"document.querySelector('#status').textContent === {json.dumps(words)}")


def test_filters_narrow_a_search_and_stand_in_the_address(visiting, cinema):
    page = visiting(cinema, {"q": "a red square"})
    said(page, "All 11 videos, nearest to “a red square” first")
    assert paths(page) == ask(cinema, query="a red square"), "whole paths"
    page.get_by_label("Folder").select_option("holiday")
    said(page, "All 2 videos in holiday, nearest to “a red square” first")
    assert asked(page) == {"q": "a red square", "folder": "holiday"}
    assert paths(page) == ask(cinema, query="a red square", folder="holiday")
    page.get_by_label("Length").select_option("Up to 10 s")
    wait(page, "location.search.includes('max=10')")
    page.get_by_label("Folder").select_option("All folders")
    said(page, "All 10 videos, up to 10 s, nearest to “a red square” first")
    assert paths(page) == ask(cinema, query="a red square", max_seconds=10)
    page.go_back(), page.go_back()
    said(page, "All 2 videos in holiday, nearest to “a red square” first")
    assert page.get_by_label("Length").input_value() == ""
    page.get_by_role("link", name="holiday/beach/").click()
    said(page, "The only video in holiday/beach")
    assert page.get_by_label("Folder").input_value() == "holiday/beach"
    page.get_by_label("Length").select_option("Over 1 h")
    page.get_by_role("heading", name="No videos").wait_for()
    assert "none in holiday/beach, over 1 h" in page.get_by_role("alert").inner_text()
    page = visiting(cinema, {"q": "x", "min": 5, "max": 7})
    said(page, "The only video, 5-7 s")
    assert paths(page) == ["city/green.mp4"]


def test_before_the_first_query_the_gallery_can_be_browsed(visiting, cinema):
    page = visiting(cinema)
    page.route("**/videos?*", lambda route: route.continue_(url=re.sub(r"k=\d+", "k=4", route.request.url)))
    page.reload()
    said(page, "4 of 11 videos")
    for number in (8, 11):
        page.get_by_role("button", name="Show more").click()
        wait(page, f"document.querySelectorAll('.listed').length === {number}")
    assert not page.locator("#more").is_visible()
    assert sorted(paths(page)) == sorted(FILMS) and len(set(paths(page))) == 11
    page.evaluate("document.querySelectorAll('#hits img').forEach(image => { image.loading = 'eager' })")
    wait(page, LOADED)
    page.get_by_label("Folder").select_option("many")
    said(page, "4 of 6 videos in many")
    page.locator(".play").nth(2).click()
    wait(page, "document.querySelector('dialog video')?.readyState >= 2")
    assert (asked(page)["v"], page.locator("#title").inner_text()) == ("many/2", "many/2.mp4")
    page.keyboard.press("ArrowRight")
    wait(page, "document.querySelector('#title').textContent === 'many/3.mp4'")
    page.keyboard.press("Escape")
    said(page, "4 of 6 videos in many")
    page.get_by_role("button", name="More like many/0.mp4").click()
    wait(page, "document.querySelectorAll('.hit').length === 5")
    assert asked(page) == {"like": "many/0", "folder": "many"}


def test_more_like_a_video_is_a_search_of_its_own(visiting, cinema):
    page = visiting(cinema, {"q": "a red square"})
    page.get_by_role("button", name="More like holiday/blue.mp4").click()
    said(page, "The 10 nearest of 11 videos to holiday/blue.mp4")
    assert paths(page) == ask(cinema, like="holiday/blue")
    assert page.input_value("#query") == "" and asked(page) == {"like": "holiday/blue"}
    region = page.get_by_role("region", name="Asked with")
    assert region.inner_text() == "Videos like holiday/blue.mp4"
    wait(page, "document.querySelector('#asking img')?.naturalWidth > 0")
    page.locator(".play").first.click()
    page.get_by_role("dialog").get_by_role("button", name="More like this").click()
    wait(page, "!document.querySelector('dialog').open && !location.search.includes('holiday')")
    page.go_back(), page.go_back()
    wait(page, "document.querySelector('#status').textContent.endsWith('holiday/blue.mp4')")
    page.get_by_role("button", name="Ask with nothing any more").click()
    said(page, "11 videos")
    assert region.is_hidden()
    page = visiting(cinema, {"like": "none"})
    page.get_by_role("heading", name="The search failed").wait_for()
    assert "no such video" in page.get_by_role("alert").inner_text()


def test_an_answer_that_comes_after_the_user_went_back_is_not_shown(visiting, cinema):
    page = visiting(cinema, {"q": "a red square"})
    page.wait_for_selector(".hit")
    words, before = page.inner_text("#status"), paths(page)
    held = []
    page.route("**/search", lambda route: held.append(route))
    page.fill("#query", "a blue circle")
    page.keyboard.press("Enter")
    wait(page, "document.querySelector('#status').textContent === 'Searching …'")
    page.go_back()
    said(page, words)
    held[0].continue_()
    page.wait_for_timeout(300)
    assert page.inner_text("#status") == words and paths(page) == before
    assert page.evaluate("!hits.ariaBusy && !hits.classList.contains('stale')")


DROP = """([name, type, bytes]) => {
  const carried = new DataTransfer()
  carried.items.add(new File([new Uint8Array(bytes)], name, { type }))
  const drag = kind => document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: carried, bubbles: true }))
  drag("dragenter")
  drag("dragover")
  window.seen = !document.querySelector("#drop").hidden
  drag("drop")
}"""


def test_a_picture_or_a_clip_of_ones_own_is_chosen_or_dropped(visiting, cinema, films, tmp_path):
    clip = films.parent / "videos" / "holiday" / "blue.mp4"
    found = httpx.post(f"{cinema}search/file", content=clip.read_bytes(), timeout=60).json()["hits"]
    pixels = np.random.default_rng(5).integers(0, 256, (3, 4, 3), np.uint8).repeat(16, axis=0).repeat(16, axis=1)
    for name in ("own.png", "own.webp"):
        Image.fromarray(pixels).save(tmp_path / name, lossless=True)
    page = visiting(cinema)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Search by a picture or clip of your own").click()
    chooser.value.set_files(clip)
    said(page, "All 11 videos, nearest to blue.mp4 first")
    assert paths(page) == [hit["path"] for hit in found] and paths(page)[0] == "holiday/blue.mp4"
    assert page.locator(".score").first.inner_text() == "score 1.000"
    content = list((tmp_path / "own.png").read_bytes())
    page.evaluate(DROP, ["own.png", "image/png", content])
    said(page, "All 11 videos, nearest to own.png first")
    assert page.evaluate("window.seen") and page.locator("#drop").is_hidden()
    wait(page, "document.querySelector('#asking canvas')")
    by_picture = paths(page)
    page.set_input_files("#own", tmp_path / "own.webp")
    said(page, "All 11 videos, nearest to own.webp first")
    assert paths(page)[0] == by_picture[0]
    page.get_by_label("Folder").select_option("many")
    said(page, "All 6 videos in many, nearest to own.webp first")
    page.go_back(), page.go_back()
    said(page, "All 11 videos, nearest to own.png first")
    assert paths(page) == by_picture
    page.reload()
    said(page, "11 videos")


def test_a_file_that_cannot_be_searched_by_is_told_why(visiting, cinema, tmp_path):
    (tmp_path / "words.txt").write_text("no video")
    page = visiting(cinema)
    page.wait_for_selector(".listed")
    page.set_input_files("#own", tmp_path / "words.txt")
    page.get_by_role("heading", name="The search failed").wait_for()
    assert "cannot be searched by: not a video" in page.get_by_role("alert").inner_text()
    assert not page.get_by_role("button", name="Try again").is_visible()
    page.evaluate("about.max_file = 4")
    page.set_input_files("#own", tmp_path / "words.txt")
    page.get_by_role("heading", name="The file is too large").wait_for()


def test_a_large_file_that_is_refused_for_a_moment_is_told_so(visiting, cinema, tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "FILES", 0)
    (tmp_path / "large.mp4").write_bytes(b"x" * (40 << 20))
    page = visiting(cinema)
    page.wait_for_selector(".listed")
    page.set_input_files("#own", tmp_path / "large.mp4")
    page.get_by_role("heading", name="The search failed").wait_for()
    assert "too many files" in page.get_by_role("alert").inner_text(), "not that there is no connection"
    assert page.get_by_role("button", name="Try again").is_visible()


def changed(page, change) -> None:
    """Lets the page see another answer than the server's."""

    def answer(route):
        found = route.fetch().json()
        change(found["results"][0])
        route.fulfill(json=found)

    page.route("**/search", answer)


def test_scores_that_do_not_fall_are_explained_and_a_bad_fit_is_said(visiting, cinema):
    page = visiting(cinema, {"q": "a red square"})
    said(page, "All 11 videos, nearest to “a red square” first")
    verdict = page.get_by_role("heading", name="Nothing here fits well. The nearest are:")
    assert verdict.count() == 0
    changed(page, lambda answer: answer["hits"].reverse() or answer.update(fits=False))
    page.reload()
    explained = "Videos that match almost every query are set back, so scores do not fall from each to the next."
    said(page, f"All 11 videos, nearest to “a red square” first. {explained}")
    assert verdict.is_visible()
    page.unroute("**/search")
    changed(page, lambda answer: answer.update(fits=True))
    page.reload()
    said(page, "All 11 videos, nearest to “a red square” first")
    assert verdict.count() == 0


def test_no_hit_is_without_a_picture(visiting, films, tmp_path):
    gallery = tmp_path / "gallery"
    (tmp_path / "release").symlink_to(films.parent / "release")
    build_gallery(load(tmp_path / "release"), films.parent / "videos", gallery, posters=False, workers=1)
    with site(gallery) as url:
        page = visiting(url)
        page.wait_for_selector(".listed video.shown")
        assert page.locator(".listed img").count() == 0, "a frame of the video stands for it"
        page.route("**/videos/*", lambda route: route.fulfill(status=404, json={"error": "gone"}))
        page.goto(f"{url}?q=a+red+square")
        wait(page, "document.querySelectorAll('.hit .drawn').length === 11")
        page.locator(".play").first.click()
        page.wait_for_selector("dialog .drawn")
        page.goto(url)
        wait(page, "document.querySelectorAll('.listed .drawn').length > 0")
        assert page.locator("#hits img").count() == 0
    with site(films) as url:
        page = visiting(url)
        page.route("**/posters/*", lambda route: route.fulfill(status=404, json={"error": "gone"}))
        page.goto(url)
        page.wait_for_selector(".listed video.shown")
        wait(page, LOADED)


def test_a_calibrated_gallery_says_so_only_where_its_order_differs(visiting, films, tmp_path):
    gallery = tmp_path / "gallery"
    encoder = load(films.parent / "release")
    (tmp_path / "release").symlink_to(films.parent / "release")
    build_gallery(encoder, films.parent / "videos", gallery, workers=1)
    words = ["a red square moves", "a blue circle", "the green star falls slowly", "x", "a dog on a beach"]
    upkeep.calibrate(gallery, encoder, words[:3])
    with site(gallery) as url:
        page, differs = visiting(url), set()
        for query in words:
            page.goto(f"{url}?q={query}")
            wait(page, f"document.querySelector('#status').textContent.includes({query!r})")
            answer = httpx.post(f"{url}search", json={"query": query}, timeout=60).json()["results"][0]
            scores = [hit["score"] for hit in answer["hits"]]
            assert ("set back" in page.inner_text("#status")) == (scores != sorted(scores, reverse=True))
            differs.add(scores != sorted(scores, reverse=True))
    assert True in differs


@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (390, "light"), (1280, "dark")])
def test_filters_legend_and_lists_fit_and_are_readable(width, scheme, visiting, cinema):
    page = visiting(cinema, {"q": "x"}, viewport={"width": width, "height": 844}, color_scheme=scheme)
    for selectors in (".score, .folder, .file, #legend, .moment, .like, select", "#size, .folder, .like, select"):
        page.wait_for_selector(".folder")
        assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
        colours = page.evaluate(
            "s => [...document.querySelectorAll(s)].map(e => getComputedStyle(e).color)"
            ".concat(getComputedStyle(document.body).backgroundColor)",
            selectors,
        )
        *inks, paper = [luminance(colour) for colour in colours]
        assert (paper < 0.1) == (scheme == "dark")
        assert all(contrast(ink, paper) >= 4.5 for ink in inks)
        page.goto(cinema)
    page.wait_for_selector(".file")
    assert ODD in page.locator(".file").all_inner_texts()
