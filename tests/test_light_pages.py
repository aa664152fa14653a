"""What makes a page light: nothing loaded in vain, style rules and icons that occur, images with a size."""

from __future__ import annotations

import base64
import io
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import light_pages  # noqa: E402
from accessible_pages import accessible  # noqa: E402

HEAD = """<head>
<link rel="stylesheet" href="_static/sphinx-design.min.css?v=1" />
<script defer="defer" src="../_static/mathjax/startup.js?v=1"></script>
<script>window.MathJax = {"a": "math"}</script>
<script type="module">import mermaid from "./_static/mermaid-module.js";
more()</script>
<script src="searchindex.js"></script>
<script defer src="_static/scripts/fontawesome.js?digest=1"></script>
<script src="_static/doctools.js?v=1"></script>
</head>"""


@pytest.mark.parametrize(
    ("body", "there", "gone"),
    [
        ("<p>plain</p>", ["doctools"], ["MathJax", "mathjax", "sphinx-design", "mermaid", "searchindex"]),
        ('<div class="math notranslate">x</div>', ["mathjax/startup.js", "window.MathJax"], ["mermaid"]),
        ('<pre class="mermaid">graph</pre>', ["mermaid-module", "more()"], ["MathJax"]),
        ('<div class="sd-card">x</div>', ["sphinx-design"], ["mermaid", "mathjax"]),
        ('<div id="search-results"></div>', ["searchindex"], ["mathjax"]),
    ],
)
def test_a_page_loads_what_it_uses(body: str, there: list[str], gone: list[str]) -> None:
    page = light_pages.without_unused(f"{HEAD}<body>{body}</body>")
    assert all(name in page for name in there)
    assert not any(name in page for name in [*gone, "fontawesome"])
    assert page.count("<script") == page.count("</script>")


def test_images_get_their_size_and_are_lazy(tmp_path: Path) -> None:
    Image.new("RGB", (30, 20)).save(tmp_path / "a b.png")
    (tmp_path / "c.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="72pt" height="36pt" viewBox="0 0 72 36"/>'
    )
    (tmp_path / "d.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 10"/>')
    for source, size in (("a%20b.png", (30, 20)), ("c.svg", (96, 48)), ("d.svg?v=1", (40, 10))):
        tag = light_pages.sized(f'<img alt="x" src="{source}"/>', tmp_path)
        assert f'width="{size[0]}" height="{size[1]}"' in tag and 'loading="lazy"' in tag
    assert 'width="9"' in (tag := light_pages.sized('<img src="c.svg" width="9"/>', tmp_path))
    assert tag.count("width=") == 1
    assert "lazy" not in light_pages.sized('<img class="logo__image" src="c.svg"/>', tmp_path)
    assert "width" not in light_pages.sized('<img src="missing.png"/>', tmp_path)


def test_embedded_images_become_files(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    folder = tmp_path / "notebooks"
    page = light_pages.light(f'<body><img src="data:image/png;base64,{data}"></body>', folder, tmp_path / "i")
    (path,) = (tmp_path / "i").iterdir()
    assert path.read_bytes() == file.getvalue()
    assert f'src="../i/{path.name}"' in page and 'width="3" height="2"' in page


def test_rules_about_classes_that_do_not_occur_go() -> None:
    sheet = (
        "/*! a licence */ a{b:c} .used{x:y} .unused{x:y} .used,.unused .used{q:r} .w\\:1{k:l}"
        "@media print{.unused{x:y}.used:not(.unused){x:z}} @media screen{.unused{x:y}} .bs-tooltip-top{s:t}"
        '@font-face{src:url(x)} .fa-a:before{content:"\\f001"}'
    )
    left = light_pages.purged(sheet, {"used", "w:1"})
    assert left.replace(" ", "") == (
        "/*!alicence*/a{b:c}.used{x:y}.used{q:r}.w\\:1{k:l}@mediaprint{.used:not(.unused){x:z}}"
        ".bs-tooltip-top{s:t}@font-face{src:url(x)}"
    )


def test_the_icons_of_a_sheet_are_found() -> None:
    sheet = '.a:before{content:"\\f001"} .b:before{content:"\uf002"} @font-face{src:url(webfonts/fa-x.woff2)}'
    assert light_pages.icons_of(sheet) == {"fa-x": [0xF001, 0xF002]}


def test_what_can_be_pressed_has_one_name() -> None:
    page = accessible(
        '<summary aria-label="Toggle hidden content">\n<p class="x">Show code</p></summary>'
        '<button class="search-button-field" aria-label="Search" data-x="y">\n'
        ' <i class="fa-solid fa-magnifying-glass"></i>\n <span>Search</span></button>'
        '<button class="search-button" aria-label="Search"><i class="fa-solid fa-magnifying-glass"></i></button>'
        '<a class="reference internal" href="api.html">API</a><details><summary><i></i></summary></details>'
        '<div role="list"><div role="doc-biblioentry">A paper</div></div>'
    )
    assert "Toggle" not in page
    assert page.count('aria-label="Search"') == 1
    assert '<button class="search-button-field" data-x="y">' in page
    assert '<summary aria-label="API: list its pages">' in page
    assert '<div role="listitem">A paper' in page
