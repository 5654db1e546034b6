"""A server of a gallery in this process, and words about a page in a headless Chromium: shared by tests of the page."""

import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from distill.release.release import load
from distill.retrieval import Gallery
from distill.serving.application import application

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed (apt-get install chromium)")


@contextmanager
def site(gallery: Path) -> Iterator[str]:
    """Serves a gallery from a thread of this process; gives its address."""
    app = application(Gallery.open(gallery, load(gallery.parent / "release")), examples=["a red square"])
    server = uvicorn.Server(uvicorn.Config(app, port=0, ws="none", log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join(30)


def wait(page, condition: str) -> None:
    """Wait until a JavaScript expression is true."""
    page.wait_for_function(f"() => {condition}")


def focus(page) -> str:
    """Return the id of the focused element, or its label."""
    return page.evaluate("document.activeElement.id || document.activeElement.getAttribute('aria-label')")


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "rgb(r, g, b)"."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: float, other: float) -> float:
    """WCAG's contrast ratio, 1 to 21."""
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
