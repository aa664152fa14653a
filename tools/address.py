"""Where this repository lives on the web, if anywhere: `repository` in _config.yml, which alone needs to be filled in.

The environment variables GANPRUNE_REPOSITORY_URL and GANPRUNE_REPOSITORY_BRANCH take precedence. Without an address
the book has no launch buttons, no copies for students to download, and no cell that installs the package.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

CONFIG = Path(__file__).resolve().parents[1] / "_config.yml"


@dataclass(frozen=True)
class Repository:
    """A repository that readers can reach.

    Attributes:
        url: its web address, without a slash or ``.git`` at the end.
        branch: the branch that readers are sent to.
    """

    url: str
    branch: str = "main"

    @property
    def requirement(self) -> str:
        """What pip installs."""
        return f"ganprune[sparse] @ git+{self.url}@{self.branch}"


def repository(config: Path = CONFIG) -> Repository | None:
    """Return the repository that the environment or a configuration names; None if there is no web address.

    Raises:
        ValueError: what is configured is not an address that a browser can open.
    """
    named = (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("repository") or {}
    url = (os.environ.get("GANPRUNE_REPOSITORY_URL") or named.get("url") or "").strip()
    branch = os.environ.get("GANPRUNE_REPOSITORY_BRANCH") or named.get("branch") or "main"
    if not url:
        return None
    if not re.fullmatch(r"https?://[^/@\s]+/[^\s?#]+/[^\s?#]+", url.rstrip("/")):
        raise ValueError(f"repository.url must be an address such as https://HOST/OWNER/NAME; got {url!r}")
    return Repository(url.rstrip("/").removesuffix(".git"), branch)
