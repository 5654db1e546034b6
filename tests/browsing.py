"""Fixtures of the tests that drive the page in a headless Chromium; a test file names this as a plugin of pytest."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
from pages import CHROMIUM, site
from serving import make_films


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> Path:
    """A gallery of files in folders, of which one is a film."""
    return make_films(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def cinema(films) -> Iterator[str]:
    """The address of that gallery."""
    with site(films) as url:
        yield url


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def visiting(chromium) -> Iterator[Callable]:
    """Opens pages; at the end, nothing may have gone wrong in any, and nothing been asked of another server."""
    contexts, complaints = [], []

    def opened(url: str, asked: dict | None = None, **options):
        context = chromium.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        contexts.append(context)
        context.set_default_timeout(30_000)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda said: complaints.append(said.text) if "Content Security" in said.text else None)
        page.on("request", lambda sent: sent.url.startswith((url, "data:")) or complaints.append(sent.url))
        page.goto(f"{url}?{urlencode(asked)}" if asked else url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []
