"""The built site, read as files: nothing missing, nothing from elsewhere, no markup left unread."""

from __future__ import annotations

import html
import json
import os
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
import yaml

pytestmark = pytest.mark.site

ROOT = Path(__file__).resolve().parents[1]
SITE = ROOT / (os.environ.get("GANPRUNE_SITE") or "_build/smoke/_build/html")
CONTENTS = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text(encoding="utf-8"))
LISTED = [page for part in CONTENTS["parts"] for page in part["chapters"]]
PAGES = [CONTENTS["root"]]
PAGES += [each["file"] for page in LISTED for each in (page, *page.get("sections", []))]
CHAPTERS = [page for page in PAGES if page.startswith("notebooks/")]
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src"}
REMOTE = re.compile(r"^(?:https?:)?//")

every_page = pytest.mark.parametrize("page", PAGES)
every_chapter = pytest.mark.parametrize("page", CHAPTERS)


class Reader(HTMLParser):
    """Collects what a page links to, loads, shows and calls its own places."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.images: list[dict] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.places.add(values["id"])
        if tag == "a" and "name" in values:
            self.places.add(values["name"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in LOADING and LOADING[tag] in values:
            self.loads.append(values[LOADING[tag]])
        if tag == "link" and set(values.get("rel", "").split()) & {
            "stylesheet",
            "icon",
            "preload",
            "modulepreload",
        }:
            self.loads.append(values["href"])
        if tag == "img":
            self.images.append(values)


@cache
def read(path: Path) -> Reader:
    """Parse a page once."""
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader


def file_of(page: str) -> Path:
    """Return a page's file."""
    return SITE / f"{page}.html"


def test_the_site_is_built() -> None:
    assert (SITE / "index.html").is_file(), f"no site in {SITE}: `make test` builds it, or run tools/book.py"


@every_page
def test_the_page_is_there(page: str) -> None:
    assert file_of(page).is_file()
    assert (SITE / "_sources" / f"{page}.{'ipynb' if page in CHAPTERS else 'md'}").is_file(), (
        "nothing to download"
    )


def test_the_template_is_not_a_page() -> None:
    assert not file_of("notebooks/template").exists()


def test_run_times_are_recorded() -> None:
    times = json.loads((SITE.parent / "timings.json").read_text(encoding="utf-8"))
    assert sorted(times) == sorted(CHAPTERS)
    assert all(seconds > 0 for seconds in times.values())


@every_chapter
def test_a_chapter_shows_its_run_time(page: str) -> None:
    assert re.search(
        r'class="chapter-time">Measured run time of this page: .*CPU core', file_of(page).read_text()
    )
    assert f'href="../{page}.html"' in file_of("book/status").read_text()


@every_page
def test_links_and_anchors_resolve(page: str) -> None:
    here = file_of(page)
    for link in read(here).links:
        if urlsplit(link).scheme in ("http", "https", "mailto", "javascript") or REMOTE.match(link):
            continue
        target, place = urldefrag(link)
        path = (here.parent / unquote(target)).resolve() if target else here
        assert path.is_file(), f"{page} links to {link}, which is not there"
        if place and path.suffix == ".html":
            assert unquote(place) in read(path).places, (
                f"{page} links to {link}, and the page has no such place"
            )


@every_page
def test_everything_it_loads_is_part_of_the_site(page: str) -> None:
    here = file_of(page)
    for source in read(here).loads:
        assert not REMOTE.match(source), f"{page} loads {source} from elsewhere"
        if not source.startswith("data:"):
            assert (here.parent / unquote(urlsplit(source).path)).is_file(), (
                f"{page} loads {source}: not there"
            )


@every_page
def test_no_script_in_the_page_reaches_outside(page: str) -> None:
    text = file_of(page).read_text(encoding="utf-8")
    for script in re.findall(r"<script[^>]*>(.*?)</script>", text, flags=re.DOTALL):
        assert not re.search(r"""(?:import|from|src|fetch\()\s*=?\s*["'](?:https?:)?//""", script)
    assert "thebe" not in "".join(read(file_of(page)).loads)


@every_page
def test_images_have_alternative_text(page: str) -> None:
    for image in read(file_of(page)).images:
        alt = image.get("alt", "")
        assert alt.strip(), f"{page}: {image.get('src')} has no alternative text"
        assert not re.search(r"\.(?:png|svg|jpe?g)$", alt), (
            f"{page}: the alternative text of {alt} is its file name"
        )


@every_page
def test_images_have_a_size_and_wait_until_they_are_near(page: str) -> None:
    for image in read(file_of(page)).images:
        assert image.get("width", "").isdigit(), image.get("src")
        assert image.get("height", "").isdigit(), image.get("src")
        assert image.get("loading") == "lazy" or "logo" in image.get("class", ""), image.get("src")
        assert not image["src"].startswith("data:"), "embedded: it cannot wait"


@every_chapter
def test_a_chapter_shows_pictures_with_captions(page: str) -> None:
    text = file_of(page).read_text(encoding="utf-8")
    assert "cell_output" in text
    assert 'class="caption-text"' in text


@every_chapter
def test_exercises_are_numbered_by_chapter_and_solutions_hidden(page: str) -> None:
    text = file_of(page).read_text(encoding="utf-8")
    number = int(page.split("/")[1][:2])
    exercises = re.findall(rf"Exercise {number}\.(\d+)\b", text)
    assert {"1", "2", "3", "4", "5"} <= set(exercises)
    assert len(re.findall(r'class="[^"]*solution[^"]*dropdown[^"]*admonition', text)) >= 5


@every_page
def test_no_markup_is_left_unread(page: str) -> None:
    text = re.sub(r"<(script|style|pre|code)\b.*?</\1>", "", file_of(page).read_text(), flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", "", text)
    for sign in ("```", "{cite", "{term}", "{doc}", "{ref}", "{eq}", "{glue", ":label:", "system-message"):
        assert sign not in text, f"{page} shows {sign}"


def test_the_buttons_tell_nothing_false() -> None:
    text = file_of(PAGES[0]).read_text(encoding="utf-8")
    assert "executablebooks/jupyter-book" not in text
    assert "your-url" not in text


def test_every_module_is_on_the_page_of_its_room() -> None:
    package = ROOT / "ganprune"
    for path in package.rglob("*.py"):
        room, *rest = path.relative_to(package).with_suffix("").parts
        if room.startswith("__") or room == "cli" or rest == ["__init__"]:
            continue  # the command line explains itself
        text = (ROOT / "book" / "api" / f"{room}.md").read_text(encoding="utf-8")
        name = ".".join(["ganprune", room, *rest])
        assert f".. automodule:: {name}\n" in text, f"book/api/{room}.md does not document {name}"


def test_the_pages_of_the_code_have_no_dead_link() -> None:
    pages = sorted((SITE / "_modules").rglob("*.html"))
    assert pages
    for path in pages:
        for link in read(path).links:
            target = urldefrag(link).url
            if target and not urlsplit(target).scheme:
                assert (path.parent / unquote(target)).resolve().is_file(), f"{path.name} links to {link}"


@pytest.mark.parametrize("term", ["sparsity", "mask", "generator", "digit-FID", "稀疏度", "掩码", "生成器"])
def test_the_glossary_has_the_term(term: str) -> None:
    assert term in file_of("book/glossary").read_text(encoding="utf-8")


def test_the_benchmarks_page_shows_every_recorded_row() -> None:
    rows = json.loads((ROOT / "benchmarks" / "latest.json").read_text(encoding="utf-8"))["rows"]
    text = html.unescape(file_of("book/benchmarks").read_text(encoding="utf-8")).replace("’", "'")
    assert rows
    for row in rows:
        assert row["name"] in text


def test_no_assignment_is_given_away() -> None:
    telling = set()
    for source in sorted((ROOT / "assignments").glob("[0-9]*.ipynb")):
        for cell in json.loads(source.read_text(encoding="utf-8"))["cells"]:
            hidden = "".join(cell["source"]).partition("### BEGIN HIDDEN TESTS")[2]
            telling |= {
                line.strip() for line in hidden.splitlines() if "draws(" in line or "at_most(" in line
            }
    assert len(telling) > 20
    for path in SITE.rglob("*"):
        if path.suffix in (".html", ".ipynb", ".js", ".txt", ".md"):
            text = html.unescape(re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8")))
            assert not [line for line in telling if len(line) > 30 and line in text], path
            assert "BEGIN HIDDEN TESTS" not in text, path
