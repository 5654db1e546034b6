"""The pages of the documentation: links lead somewhere, named files are there, and the site needs no other."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from conftest import ROOT
from playwright.sync_api import sync_playwright

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "tests/README.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
FENCED = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NAMED = re.compile(r"(?<![\w/.-])(?:distill|docs|examples|recipes|students|teachers|tests|tools)/[\w./*-]*[\w/]")
CHROMIUM = Path("/usr/bin/chromium")


def prose(page: Path) -> str:
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by the rule of GitHub and of the site; a repeated one is numbered."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
    return {slug if not number else f"{slug}-{number}" for slug, most in found.items() for number in range(most + 1)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path):
    for link in LINK.findall(re.sub(r"`[^`]*`", "", prose(page))):
        if link.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"{link}: not there"
        assert target.is_relative_to(ROOT), f"{link}: outside the project"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_is_named_is_there(page: Path):
    named = {name for code in re.findall(r"`([^`\n]+)`", prose(page)) for name in NAMED.findall(code)}
    written = {name for name in named if not re.search(r"[A-Z]{3}", name)}  # not docs/NAME.md
    assert not [name for name in written if not any(ROOT.glob(name))]


def test_a_dead_link_and_a_dead_anchor_would_be_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `Title`, twice\n\n# A title, twice\n\n```\n# no heading [x](nowhere.md)\n```\n[y](other.md#z)\n"
    )
    assert anchors(page) == {"a-title-twice", "a-title-twice-1"}
    assert LINK.findall(prose(page)) == ["other.md#z"]


def test_every_page_of_the_docs_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_elsewhere():
    folder = Path(sys.executable).parent
    made = subprocess.run(["make", "-o", "install", "docs", f"BIN={folder}"], cwd=ROOT, capture_output=True, text=True)
    assert made.returncode == 0 and "No issues found" in made.stdout + made.stderr, made.stdout + made.stderr
    site = ROOT / "build/site"
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    assert len(pages) == len(PAGES)
    if not CHROMIUM.exists():
        pytest.skip("no Chromium")
    asked, errors = [], []
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: errors.append(str(error)))
        for path in pages:
            tab.goto(path.as_uri())
            assert tab.locator("h1").first.is_visible(), path
            for link in tab.locator("article a[href]").evaluate_all("links => links.map(link => link.href)"):
                if link.startswith("file://"):
                    name, _, anchor = unquote(link.removeprefix("file://")).partition("#")
                    assert Path(name).is_file(), f"{path}: {link}"
                    assert not anchor or f'id="{anchor}"' in Path(name).read_text(), f"{path}: {link}"
        browser.close()
    assert asked and all(url.startswith(("file://", "data:", "blob:")) for url in asked), asked
    assert not errors
