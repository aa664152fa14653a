"""Makes the built pages light: what a page does not use it does not load, and its images are sized and lazy.

It runs when the pages are written. It works on files, so that it sees everything in them, whoever put it there: the
theme, another extension, a notebook's own HTML. Every step is a function from text to text.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import tinycss2
from accessible_pages import accessible
from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image
from sphinx.application import Sphinx

NEVER = r"(?!)"
NEEDED = {  # file of a script or a style sheet → what a page that needs it has
    r"scripts/fontawesome\.js": NEVER,  # draws the icons a second time: the theme's style sheet has them as a font
    r"(?:searchtools|language_data|searchindex)\.js": r'id="search-results"',
    r"(?:sphinx-design\.min\.css|design-tabs\.js)": r'class="[^"]*\bsd-',
    r"mystnb\.\w+\.css": r'class="[^"]*\bcell\b',
    r"exercise\.css": r'class="[^"]*\b(?:exercise|solution)\b',
    r"togglebutton\.(?:js|css)": r'class="[^"]*\b(?:toggle|dropdown)\b',
    r"(?:clipboard\.min\.js|copybutton\.(?:js|css))": r'class="[^"]*\bhighlight\b',
    r"mathjax/[\w/.-]+\.js": r'class="[^"]*\bmath\b',
    r"frames\.js": r'class="[^"]*\bgp-frames\b',
    r"in-your-browser/generator\.(?:js|css)": r'class="[^"]*\bgp-generator\b',
}
LOADED = r'<(?:script|link)\b[^>]*(?:src|href)="[^"]*\b%s(?:\?[^"]*)?"[^>]*>(?:</script>)?\n?'
MERMAID = re.compile(r'<script type="module">import mermaid from .*?</script>\n?', flags=re.DOTALL)
MATHJAX_SETTINGS = re.compile(r"<script>window\.MathJax = .*?</script>\n?")
IMAGE = re.compile(r"<img\b[^>]*>")
CLASS = re.compile(r"\.((?:\\.|[\w-])+)")
WORD = re.compile(r"[A-Za-z][\w-]*")
KEPT = ("bs-", "tooltip", "popover")  # classes that the theme's scripts put together out of parts
THEME = Path("_static") / "styles" / "pydata-sphinx-theme.css"
ICONS = Path("_static") / "vendor" / "fontawesome" / "webfonts"


# ---------------------------------------------------------------- one page


def without_unused(page: str) -> str:
    """Return a page without the scripts and style sheets that it does not use."""
    body = page[page.find("<body") :]
    for name, sign in NEEDED.items():
        if not re.search(sign, body):
            page = re.sub(LOADED % name, "", page)
    if not re.search(r'class="[^"]*\bmath\b', body):
        page = MATHJAX_SETTINGS.sub("", page)
    if not re.search(r'class="[^"]*\bmermaid\b', body):
        page = MERMAID.sub("", page)
    return page


@cache
def size_of(path: Path) -> tuple[int, int] | None:
    """Return width and height of an image in pixels; None if there is no such file or it states no size."""
    if not path.is_file():
        return None
    if path.suffix != ".svg":
        with Image.open(path) as image:
            return image.size
    root = ElementTree.parse(path).getroot()
    box = [float(number) for number in (root.get("viewBox") or "").replace(",", " ").split()]
    stated = [re.fullmatch(r"([\d.]+)(px|pt)?", root.get(name) or "") for name in ("width", "height")]
    if all(stated):
        scale = {"pt": 4 / 3}
        width, height = (float(found[1]) * scale.get(found[2], 1) for found in stated)
    elif len(box) == 4:
        width, height = box[2:]
    else:
        return None
    return round(width), round(height)


def sized(tag: str, folder: Path) -> str:
    """Return the tag of an image with its size and, unless it is a logo, with lazy loading."""
    source = re.search(r'\bsrc="([^"]+)"', tag)
    extra = ""
    if source and not re.search(r"\b(?:width|height)=", tag) and not source[1].startswith("data:"):
        size = size_of((folder / unquote(urlsplit(source[1]).path)).resolve())
        extra += f' width="{size[0]}" height="{size[1]}"' if size else ""
    if "logo" not in tag and "loading=" not in tag:
        extra += ' loading="lazy" decoding="async"'
    return f"<img{extra}{tag[4:]}"


def with_files(page: str, folder: Path, images: Path) -> str:
    """Return a page whose embedded PNG images have become files in ``images``, so that they can be loaded lazily."""

    def filed(found: re.Match) -> str:
        data = base64.b64decode(found[1])
        path = images / f"{hashlib.sha256(data).hexdigest()}.png"
        images.mkdir(exist_ok=True)
        path.write_bytes(data)
        return f'src="{Path(os.path.relpath(path, folder)).as_posix()}"'

    return re.sub(r'src="data:image/png;base64,([A-Za-z0-9+/=\s]+)"', filed, page)


def light(page: str, folder: Path, images: Path) -> str:
    """Return a page that loads what it uses, with sized and lazy images.

    Args:
        page: its HTML.
        folder: where its file lies.
        images: where the site keeps its images.
    """
    page = with_files(page, folder, images)
    return IMAGE.sub(lambda found: sized(found[0], folder), without_unused(page))


# ---------------------------------------------------------------- the theme's style sheet and its icons


def is_used(selector: str, words: set[str]) -> bool:
    """Whether every class that a selector asks for occurs among some words; those in ``:not()`` do not count."""
    asked = CLASS.findall(re.sub(r":not\([^)]*\)", "", selector))
    classes = (name.replace("\\", "") for name in asked)
    return all(name in words or name.startswith(KEPT) for name in classes)


def used_rules(rules: Iterable, words: set[str]) -> str:
    """Return the rules of a style sheet whose classes occur among some words."""
    kept = []
    for rule in rules:
        if rule.type == "qualified-rule":
            selectors = split_selectors(tinycss2.serialize(rule.prelude))
            used = [selector for selector in selectors if is_used(selector, words)]
            if used:
                kept.append(f"{','.join(used)}{{{tinycss2.serialize(rule.content)}}}")
        elif rule.type == "at-rule" and rule.content is not None and rule.at_keyword in ("media", "supports"):
            inner = used_rules(
                tinycss2.parse_rule_list(rule.content, skip_comments=True, skip_whitespace=True), words
            )
            if inner:
                kept.append(f"@{rule.at_keyword}{tinycss2.serialize(rule.prelude)}{{{inner}}}")
        else:
            kept.append(rule.serialize())
    return "".join(kept)


def split_selectors(prelude: str) -> list[str]:
    """Split a list of selectors at its outermost commas."""
    parts, depth = [""], 0
    for sign in prelude.strip():
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and not depth:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


def purged(sheet: str, words: set[str]) -> str:
    """Return a style sheet without rules about classes that nothing uses; its licence comments stay."""
    licences = "".join(re.findall(r"/\*!.*?\*/", sheet, flags=re.DOTALL))
    rules = tinycss2.parse_stylesheet(sheet, skip_comments=True, skip_whitespace=True)
    return licences + used_rules(rules, words)


def icons_of(sheet: str) -> dict[str, list[int]]:
    """Return file name of an icon font → the characters that a style sheet draws with it."""
    written = {int(code, 16) for code in re.findall(r'"\\([0-9a-f]{4})"', sheet)}
    characters = sorted(written | {ord(sign) for sign in sheet if "\ue000" <= sign <= "\uf8ff"})
    return dict.fromkeys(re.findall(r"webfonts/([\w-]+)\.woff2", sheet), characters)


def write_subset(font: Path, characters: list[int], target: Path) -> None:
    """Write a font that has only some characters, as WOFF."""
    small = TTFont(font)
    chooser = subset.Subsetter(subset.Options(layout_features=[]))
    chooser.populate(unicodes=characters)
    chooser.subset(small)
    small.flavor = "woff"
    small.save(target)


def lighten_theme(site: Path, words: set[str]) -> str:
    """Keep of the theme's style sheet and icon fonts what the site uses; return the sheet's new fingerprint."""
    path = site / THEME
    sheet = purged(path.read_text(encoding="utf-8"), words)
    for name, characters in icons_of(sheet).items():
        write_subset(site / ICONS / f"{name}.ttf", characters, site / ICONS / f"{name}.woff")
        (site / ICONS / f"{name}.ttf").unlink()
        (site / ICONS / f"{name}.woff2").unlink()
    sheet = re.sub(
        r'url\(([^)]*/webfonts/[\w-]+)\.woff2\) format\("woff2"\),url\([^)]*\) format\("truetype"\)',
        r'url(\1.woff) format("woff")',
        sheet,
    )
    path.write_text(sheet, encoding="utf-8")
    return hashlib.sha256(sheet.encode()).hexdigest()[:20]


# ---------------------------------------------------------------- the site


def lighten_site(app: Sphinx, error: Exception | None) -> None:
    """Make every page of a finished site light and accessible."""
    if error is not None or app.builder.format != "html":
        return
    site = Path(app.outdir)
    pages = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    pages = {path: accessible(light(page, path.parent, site / "_images")) for path, page in pages.items()}
    words = {word for page in pages.values() for word in WORD.findall(page)}
    for script in (site / "_static").glob("**/*.js"):
        if "mathjax" not in script.parts and "mermaid" not in script.parts:
            words |= set(WORD.findall(script.read_text(encoding="utf-8")))
    name, mark = THEME.name, ""
    if (site / THEME).is_file():
        (site / "_static" / "scripts" / "fontawesome.js").unlink(missing_ok=True)
        mark = lighten_theme(site, words)
    for path, page in pages.items():
        path.write_text(
            re.sub(rf"({re.escape(name)})\?digest=\w+", rf"\1?digest={mark}", page), encoding="utf-8"
        )
