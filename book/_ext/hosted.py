"""Buttons and a cell for readers on hosted services, and copies for students: all need the repository's address."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import address
import students
from docutils import nodes
from sphinx.application import Sphinx

CHAPTERS, COPIES = "notebooks/", "_student"
LAUNCHED_BY = {"binderhub_url": "https://mybinder.org", "colab_url": "https://colab.research.google.com"}


def set_repository(app: Sphinx, config: Any) -> None:
    """Let repository and launch buttons follow the repository's address; without one there are none."""
    options = dict(config.html_theme_options)
    options["launch_buttons"] = {"notebook_interface": "jupyterlab"}
    found = address.repository()
    if found is None:
        options.pop("repository_url", None)
    else:
        on_github = found.url.startswith("https://github.com/")
        options |= {"use_repository_button": True, "use_issues_button": True}
        options |= {"repository_url": found.url, "repository_branch": found.branch}
        options["repository_provider"] = "github" if on_github else "gitlab"
        options["launch_buttons"] |= {
            name: url for name, url in LAUNCHED_BY.items() if on_github or name != "colab_url"
        }
    config.html_theme_options = options


def is_chapter(page: str) -> bool:
    """Whether a page is a chapter, a notebook with a number."""
    return page.startswith(CHAPTERS) and page.removeprefix(CHAPTERS)[:2].isdigit()


def add_student_button(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Offer a chapter's copy without solutions among the downloads."""
    if not is_chapter(page) or address.repository() is None:
        return
    copy = {
        "type": "link",
        "url": context["pathto"](f"{COPIES}/{page.removeprefix(CHAPTERS)}.ipynb", 1),
        "text": "student copy",
        "tooltip": "Download the notebook without solutions",
        "icon": "fas fa-file",
        "label": "download-student-button",
    }
    for button in context.get("header_buttons", []):
        if button.get("label") == "download-buttons":
            button["buttons"].append(copy)


def write_student_copies(app: Sphinx, error: Exception | None) -> None:
    """Put the copies that the buttons lead to beside the pages."""
    if error is None and app.builder.format == "html" and address.repository() is not None:
        students.write_copies(Path(app.outdir) / COPIES, pattern=students.CHAPTERS)


def add_installation(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Show under a chapter's title the cell to run first on a hosted service."""
    found = address.repository()
    title = next(iter(doctree.findall(nodes.title)), None)
    if found is None or title is None or not is_chapter(page):
        return
    line = f'%pip install --quiet "{found.requirement}"'
    words = "On Colab, run this cell first. It installs the course's package; Binder has it already."
    box = nodes.container("", nodes.paragraph("", words), classes=["hosted-cell"])
    box += nodes.literal_block(line, line, language="ipython3")
    title.parent.insert(title.parent.index(title) + 1, box)


def address_role(name: str, raw: str, text: str, line: int, inliner: Any, **_: Any) -> tuple[list, list]:
    """Role: the repository's address in a command; the text itself where no address is known."""
    found = address.repository()
    return [nodes.literal("", text.replace("ADDRESS", found.url) if found else text)], []


def connect(app: Sphinx) -> None:
    """Register everything."""
    app.add_role("with-address", address_role)
    app.connect("config-inited", set_repository)
    app.connect("doctree-resolved", add_installation)
    app.connect("html-page-context", add_student_button, priority=502)  # the theme adds its buttons at 501
    app.connect("build-finished", write_student_copies)
