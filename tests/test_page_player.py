"""The page's player and strips in a headless Chromium: moments, seconds, next and previous, and links to a second."""

import re
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from pages import focus, needs_chromium, wait

pytest_plugins = ("browsing",)
pytestmark = [needs_chromium, pytest.mark.slow]

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}


def search(url: str, **question) -> list[dict]:
    return httpx.post(f"{url}search", json={"k": 12} | question, timeout=60).json()["results"][0]["hits"]


def best_second(hit: dict) -> float:
    return hit["timestamps"][max(range(len(hit["timestamps"])), key=lambda frame: hit["weights"][frame])]


def asked(page) -> dict:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def dialog_at(page, path: str) -> None:
    wait(page, f"document.querySelector('dialog').open && document.querySelector('#title').textContent === {path!r}")


def at(page, second: float) -> None:
    """The video in the player has played from this second on."""
    played = "(all => [...Array(all.length).keys()].some(i => Math.abs(all.start(i) - {}) < 0.3))({}.played)"
    wait(page, played.format(second, "document.querySelector('dialog video')"))


def test_playing_starts_at_the_best_second_under_an_address_of_its_own(visiting, cinema):
    hits = search(cinema, query="a red square")
    page = visiting(cinema, {"q": "a red square"})
    for place in (0, 3):
        page.locator(".play").nth(place).click()
        dialog_at(page, hits[place]["path"])
        at(page, best_second(hits[place]))
        found = asked(page)
        assert (found["q"], found["v"]) == ("a red square", hits[place]["video"])
        assert float(found["t"]) == pytest.approx(best_second(hits[place]), abs=0.01)
        page.get_by_role("button", name="Close").click()
        wait(page, "!document.querySelector('dialog').open && !location.search.includes('v=')")
        assert focus(page).startswith(f"{place + 1}: ")
    assert page.locator(".hit").count() == len(hits), "the list is as it was"


def test_next_and_previous_go_through_the_list_and_back_returns_to_it(visiting, cinema):
    paths = [hit["path"] for hit in search(cinema, query="a blue circle")]
    page = visiting(cinema, {"q": "a blue circle"})
    page.locator(".play").first.click()
    dialog_at(page, paths[0])
    assert page.get_by_role("button", name="Previous video").is_disabled()
    page.keyboard.press("ArrowRight")
    dialog_at(page, paths[1])
    page.get_by_role("button", name="Next video").click()
    dialog_at(page, paths[2])
    page.keyboard.press("ArrowLeft")
    dialog_at(page, paths[1])
    strip = page.get_by_role("dialog").get_by_role("slider")
    strip.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#title").inner_text() == paths[1], "in the strip, arrow keys choose a second"
    for path in paths[2:]:
        page.get_by_role("button", name="Next video").click()
        dialog_at(page, path)
    assert page.get_by_role("button", name="Next video").is_disabled()
    page.go_back()
    wait(page, "!document.querySelector('dialog').open")
    assert asked(page) == {"q": "a blue circle"}
    page.go_forward()
    dialog_at(page, paths[-1])


def test_a_link_opens_the_hit_at_its_second_in_a_new_window(visiting, cinema):
    hits = search(cinema, query="a red square")
    film = next(hit for hit in hits if hit["others"])
    other = film["others"][0]
    page = visiting(cinema, {"q": "a red square", "v": other["video"], "t": 15.5})
    dialog_at(page, "films/long.mp4")
    at(page, 15.5)
    assert page.locator(".moments [aria-current=true]").count() == 1
    page.keyboard.press("Escape")
    wait(page, "!location.search.includes('v=')")
    assert page.locator(".hit").count() == len(hits)
    page = visiting(cinema, {"q": "a red square", "folder": "many", "v": "holiday/blue", "t": 3})
    dialog_at(page, "holiday/blue"), at(page, 3)
    page = visiting(cinema, {"v": "holiday/blue", "t": 2})
    dialog_at(page, "holiday/blue.mp4"), at(page, 2)


def test_the_second_in_the_address_follows_the_player(visiting, cinema):
    page = visiting(cinema, {"q": "a red square", "folder": "films"})
    page.locator(".play").first.click()
    dialog_at(page, "films/long.mp4")
    wait(page, "document.querySelector('dialog video').readyState >= 2")
    page.evaluate("document.querySelector('dialog video').playbackRate = 0.1")  # a busy machine is slow to press keys
    strip = page.get_by_role("dialog").get_by_role("slider")
    strip.focus()
    (hit,) = search(cinema, query="a red square", folder="films")
    times = sorted(hit["timestamps"])
    for key, second in (("End", times[-1]), ("Home", times[0]), ("ArrowRight", times[1])):
        page.keyboard.press(key)
        wait(page, f"Number(new URLSearchParams(location.search).get('t')) === {second}")
    page.reload()
    dialog_at(page, "films/long.mp4"), at(page, times[1])


def test_a_films_other_moments_are_buttons(visiting, cinema):
    (film,) = search(cinema, query="a red square", folder="films")
    page = visiting(cinema, {"q": "a red square", "folder": "films"})
    others = page.locator(".hit").get_by_role("group", name="Other moments").get_by_role("button")
    others.first.wait_for()
    assert others.count() == 2
    ordered = sorted(film["others"], key=lambda other: other["seconds"][0])
    others.nth(1).click()
    dialog_at(page, "films/long.mp4"), at(page, best_second(ordered[1]))
    assert asked(page)["v"] == ordered[1]["video"]
    moments = page.get_by_role("group", name="Moments", exact=True).get_by_role("button")
    assert moments.count() == 3
    everything = sorted([film, *film["others"]], key=lambda moment: moment["seconds"][0])
    for number, moment in enumerate(everything):
        moments.nth(number).click()
        wait(page, f"new URLSearchParams(location.search).get('v') === {moment['video']!r}")
        at(page, best_second(moment))
        assert moments.nth(number).get_attribute("aria-current") == "true"


def test_the_strip_answers_the_query_and_says_the_second_under_the_pointer(visiting, cinema):
    (hit, *_) = search(cinema, query="a red square")
    page = visiting(cinema, {"q": "a red square"})
    strip = page.locator(".hit").first.get_by_role("slider")
    strip.wait_for()
    assert page.inner_text("#legend") == "The strip under a video shows which seconds answer the query."
    tip, box = strip.locator(".tip"), strip.bounding_box()
    assert not tip.is_visible()
    times = sorted(set(hit["timestamps"]))
    for share in (0.02, 0.5, 0.98):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 10)
        assert tip.is_visible()
        second, weight = re.fullmatch(r"([\d.]+) s, (\d+) % of the answer", tip.inner_text()).groups()
        begin, end = (float(strip.get_attribute(f"aria-value{edge}")) for edge in ("min", "max"))
        assert float(second) == pytest.approx(begin + share * (end - begin), abs=0.1)
        nearest = min(times, key=lambda time: abs(time - float(second)))
        assert int(weight) == pytest.approx(100 * hit["weights"][hit["timestamps"].index(nearest)], abs=0.51)
    page.mouse.move(0, 0)
    assert not tip.is_visible()
    page.locator(".play").first.focus()
    page.keyboard.press("Tab")
    assert tip.is_visible(), "and by the keyboard"
    page.keyboard.press("End")
    wait(page, f"document.activeElement.querySelector('.tip').textContent.startsWith('{times[-1]:.4g} s, ')")

    touched = visiting(cinema, {"q": "a red square"}, **PHONE)
    strip = touched.locator(".hit").first.get_by_role("slider")
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    touched.touchscreen.tap(box["x"] + 0.9 * box["width"], box["y"] + 10)
    wait(touched, f"document.querySelector('.hit video').currentTime > {0.6 * hit['duration']}")


def test_what_weighs_most_in_the_video_is_called_so(visiting, cinema):
    page = visiting(cinema, {"like": "holiday/blue"})
    page.wait_for_selector(".hit")
    assert (
        page.inner_text("#legend") == "The strip under a video shows which seconds weigh most in it, whatever is asked."
    )
    assert page.locator(".strip").first.get_attribute("aria-valuetext").endswith("of the weight")


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_player_fits(width, scheme, visiting, cinema):
    page = visiting(
        cinema, {"q": "x", "folder": "films"}, viewport={"width": width, "height": 844}, color_scheme=scheme
    )
    page.locator(".play").first.click()
    wait(page, "document.querySelector('dialog video')?.readyState >= 2")
    box = page.get_by_role("dialog").bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] >= 0 and box["y"] + box["height"] <= 844
    inside = page.evaluate(
        "[document.querySelector('dialog').scrollWidth, document.querySelector('dialog').clientWidth]"
    )
    assert inside[0] <= inside[1], "nothing sticks out"
    buttons = page.locator("dialog button:visible")
    sizes = [buttons.nth(number).bounding_box() for number in range(buttons.count())]
    assert len(sizes) >= 7 and all(min(size["width"], size["height"]) >= 40 for size in sizes)
