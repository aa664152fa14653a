"""Mends what the theme and other extensions leave for those who do not see a page: names and roles."""

from __future__ import annotations

import re

# What it hides says its name in the visible text; another name would contradict it (WCAG 2.5.3).
SECOND_NAME = re.compile(
    r'(<(?:summary|button)\b[^>]*?) aria-label="(?:Toggle hidden content|Search)"'
    r'(?=[^>]*>\s*(?:<p|<i class="fa-solid fa-magnifying-glass"></i>\s*<span))'
)
WITHOUT_NAME = re.compile(
    r'(<a class="[^"]*\breference internal\b[^"]*" href="[^"]*">(?P<title>[^<]*)</a><details[^>]*>)<summary>'
)


def accessible(page: str) -> str:
    """Return a page on which everything that can be pressed has one name, and lists hold items."""
    page = SECOND_NAME.sub(r"\1", page)
    page = page.replace(
        'role="doc-biblioentry"', 'role="listitem"'
    )  # deprecated, and not what a list may hold
    return WITHOUT_NAME.sub(r'\1<summary aria-label="\g<title>: list its pages">', page)
