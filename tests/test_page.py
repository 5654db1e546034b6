"""The page, driven in a headless Chromium as a person would: typing, looking, playing, and what goes wrong."""

import re

import pytest
from pages import contrast, focus, luminance, needs_chromium, wait
from serving import ODD, make_gallery, serving

from distill.retrieval import upkeep

pytest_plugins = ("browsing",)
pytestmark = needs_chromium


@pytest.fixture(scope="module")
def gallery(world, tmp_path_factory):
    """A browser reads no more of a large file than it shows, and may not wait for it with the next search."""
    return make_gallery(world, tmp_path_factory.mktemp("shown"), padding=30 << 20)


@pytest.fixture(scope="module")
def server(gallery, tmp_path_factory):
    with serving(gallery, tmp_path_factory.mktemp("log") / "log") as server:
        yield server


@pytest.fixture
def visit(visiting, server):
    """Opens the page, or its answer to a query."""

    def opened(query: str = "", url: str = server.url, **options):
        return visiting(url, {"q": query} if query else None, **options)

    return opened


def test_a_query_that_the_model_does_not_read_to_its_end_is_said_to_be_cut(visit):
    page = visit("a red apple and " * 6)
    page.wait_for_selector(".hit")
    assert page.get_by_role("status").inner_text().endswith("longer than the model reads, and its end was left out")


def best_second(hit: dict) -> float:
    """The second of the heaviest frame."""
    return hit["timestamps"][max(range(len(hit["timestamps"])), key=lambda frame: hit["weights"][frame])]


def test_a_person_searches_and_watches(visit, server):
    page = visit()
    page.get_by_role("button", name="someone laughs").wait_for()
    assert focus(page) == "query", "ready to type"
    assert "20 videos" in page.inner_text("#welcome")
    page.keyboard.type("a red apple")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    assert page.locator(".hit").count() == 12
    assert page.url.endswith("?q=a+red+apple")
    assert "a red apple" in page.title()
    assert page.get_by_role("status").inner_text() == "The 12 nearest of 20 videos to “a red apple”"

    hits = server.search("a red apple", 12)
    assert page.locator(".file").all_inner_texts() == [hit["file"] for hit in hits]
    first, best = page.locator(".hit").first, hits[0]
    assert f"score {best['score']:.3f}" in first.inner_text()
    wait(page, "document.querySelector('.hit video').readyState >= 3 && !document.querySelector('.hit video').paused")
    times = []
    for _ in range(20):
        times.append(page.evaluate("document.querySelector('.hit video').currentTime"))
        page.wait_for_timeout(100)
    end = max(best["seconds"][1], best["seconds"][0] + 2)
    assert all(best["seconds"][0] - 0.1 <= time <= end + 1.5 for time in times), "plays its best moment"
    assert len(set(times)) > 3, "and moves"
    assert page.evaluate("document.querySelector('.hit video').muted")

    strip = first.get_by_role("slider")
    assert strip.locator("rect").count() == len(set(best["timestamps"]))
    heights = [
        float(height) for height in strip.locator("rect").evaluate_all("a => a.map(r => r.getAttribute('height'))")
    ]
    order = sorted(range(len(heights)), key=lambda bar: best["timestamps"][bar])
    assert heights.index(max(heights)) == max(order, key=lambda bar: best["weights"][bar]), (
        "the heaviest is the highest"
    )
    box = strip.bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    wait(page, f"document.querySelector('.hit video').currentTime > {0.8 * best['duration']}")
    strip.focus()
    page.keyboard.press("Home")
    wait(page, f"document.querySelector('.hit video').currentTime < {0.3 * best['duration']}")
    assert re.fullmatch(r"[\d.]+ s, \d+ % of the (weight|answer)", strip.get_attribute("aria-valuetext"))

    page.get_by_role("button", name="Show more").click()
    wait(page, "document.querySelectorAll('.hit').length === 20")
    assert ODD in page.locator(".file").all_inner_texts(), "shown as it is, and never run"
    assert page.locator("#more").is_hidden()


def test_keys_are_enough(visit):
    page = visit("a red apple")
    page.wait_for_selector(".hit")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert focus(page) == "query"
    chosen = page.evaluate("[query.selectionStart, query.selectionEnd]")
    assert chosen == [0, len("a red apple")]
    for key, rank in (
        ("ArrowDown", 1),
        ("ArrowRight", 2),
        ("ArrowDown", 6),
        ("ArrowLeft", 5),
        ("End", 12),
        ("Home", 1),
    ):
        page.keyboard.press(key)
        assert focus(page).startswith(f"{rank}: "), key
    page.keyboard.press("ArrowUp")
    assert focus(page) == "query"
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.is_visible()
    wait(page, "!document.querySelector('dialog video').paused")
    assert dialog.get_by_role("heading").inner_text() == page.locator(".file").first.inner_text()
    page.keyboard.press("Escape")
    assert dialog.is_hidden()
    assert focus(page).startswith("1: ")
    page.keyboard.press("Escape")
    assert focus(page) == "query"
    page.keyboard.press("Escape")
    assert page.input_value("#query") == ""


def test_a_key_that_follows_at_once_is_not_undone_by_the_closing_of_the_player(visit):
    page = visit("a red apple")
    page.wait_for_selector(".hit")
    page.locator(".play").first.click()
    wait(page, "document.querySelector('dialog').open")
    page.evaluate("""() => {
        const dialog = document.querySelector("dialog")
        dialog.addEventListener("close", () => { window.closed_ = true })
        dialog.close()
        document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }))
    }""")
    wait(page, "window.closed_ && !location.search.includes('v=')")
    assert focus(page) == "query"
    assert page.locator("dialog video").count() == 0


def test_searches_can_be_shared_and_gone_back_to(visit):
    page = visit("a blue circle & more")
    page.wait_for_selector(".hit")
    assert page.input_value("#query") == "a blue circle & more"
    page.fill("#query", "a red square")
    page.keyboard.press("Enter")
    wait(page, "document.querySelector('#status').textContent.includes('a red square')")
    page.go_back()
    wait(page, "document.querySelector('#status').textContent.includes('a blue circle & more')")
    page.get_by_role("link", name="Find a moment").click()
    page.get_by_role("button", name="someone laughs").click()
    wait(page, "document.querySelector('#status').textContent.includes('someone laughs')")


def test_what_goes_wrong_is_said(visit, server):
    page = visit()
    page.get_by_role("button", name="someone laughs").wait_for()
    page.keyboard.press("Enter")
    assert page.url == server.url, "nothing asked, nothing done"
    page.fill("#query", "x" * 600)
    page.keyboard.press("Enter")
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "At most 500 characters" in alert.inner_text()
    assert page.locator(".hit").count() == 0

    answers = [
        {"status": 422, "json": {"error": "query: <b>no</b>"}},
        {"status": 503, "json": {"error": "busy"}, "headers": {"Retry-After": "1"}},
        {"status": 503, "json": {"error": "still busy; try again in a moment"}},
        {"status": 500, "body": "not json"},
    ]
    page.route("**/search", lambda route: route.fulfill(**answers.pop(0)) if answers else route.continue_())
    for words, retry in (("query: <b>no</b>", False), ("still busy", True)):
        page.fill("#query", words)
        page.keyboard.press("Enter")
        wait(page, f"document.querySelector('#notice p').textContent.includes('{words}')")
        assert page.get_by_role("button", name="Try again").is_visible() == retry
    page.get_by_role("button", name="Try again").click()
    wait(page, "document.querySelector('#notice p').textContent.includes('500')")
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(".hit")
    assert alert.is_hidden()

    page.route("**/search", lambda route: route.abort())
    page.fill("#query", "nobody is there")
    page.keyboard.press("Enter")
    wait(page, "document.querySelector('#notice h2').textContent === 'No connection'")
    page.unroute("**/search")
    page.route("**/videos/*", lambda route: route.fulfill(status=404, json={"error": "gone"}))
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("Its file is missing, or this browser cannot play it.").first.wait_for()
    wait(page, "document.querySelector('.hit .play img')?.naturalWidth > 0")
    page.locator(".hit .play").first.click()
    wait(page, "document.querySelector('dialog img')?.naturalWidth > 0")


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (390, "dark"), (430, "light"), (1280, "dark")])
def test_it_fits_and_is_readable(width, scheme, visit):
    page = visit("a red apple", viewport={"width": width, "height": 844}, color_scheme=scheme, has_touch=width < 500)
    page.wait_for_selector(".hit video.shown")
    assert page.evaluate("document.documentElement.scrollWidth") == width, "nothing sticks out"
    buttons = page.locator("button:visible")
    sizes = [buttons.nth(number).bounding_box() for number in range(buttons.count())]
    assert all(min(size["width"], size["height"]) >= 40 for size in sizes), "fingers find every button"
    colours = page.evaluate(
        "['.score', '.file', '#status', 'h1 a'].map(s => getComputedStyle(document.querySelector(s)).color)"
        ".concat(getComputedStyle(document.body).backgroundColor)"
    )
    *inks, paper = [luminance(colour) for colour in colours]
    assert (paper < 0.1) == (scheme == "dark")
    assert all(contrast(ink, paper) >= 4.5 for ink in inks)


def test_nothing_moves_for_those_who_ask_for_stillness(visit, server):
    page = visit("a red apple", reduced_motion="reduce")
    wait(page, "document.querySelector('.hit video')?.readyState >= 2")
    page.wait_for_timeout(500)
    assert page.evaluate("[...document.querySelectorAll('#hits video')].every(video => video.paused)")
    (hit,) = server.search("a red apple", 1)
    stands = page.evaluate("document.querySelector('.hit video').currentTime")
    assert stands == pytest.approx(best_second(hit), abs=0.1), "at the best second"


def test_only_what_is_in_sight_plays(visit):
    page = visit("a red apple", viewport={"width": 390, "height": 844})
    wait(page, "document.querySelector('.hit video')?.readyState >= 3 && !document.querySelector('.hit video').paused")
    assert page.evaluate("[...document.querySelectorAll('#hits video')].at(-1).paused")
    page.evaluate("document.querySelector('.hit:last-child').scrollIntoView()")
    wait(
        page,
        "![...document.querySelectorAll('#hits video')].at(-1).paused && document.querySelector('.hit video').paused",
    )


def test_an_empty_gallery_says_so(visit, world, tmp_path):
    gallery = make_gallery(world, tmp_path, 1)
    with serving(gallery, tmp_path / "log") as server:
        upkeep.delete(gallery, [hit["video"] for hit in server.search("anything")])
        page = visit(url=server.url)
        page.get_by_text("There are no videos in this gallery yet").wait_for()
        assert page.locator("#examples .chip").count() == 0
        page.fill("#query", "anything")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Nothing to search").wait_for()
