"""A chapter in the tests: its cells by their ids, run in a namespace of their own."""

from __future__ import annotations

import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DRAWINGS = ROOT / "book" / "drawings"


class Chapter:
    """A notebook of the course.

    Args:
        name: of its file, without the ending.
        tools: what every run of its cells finds in its namespace.
    """

    def __init__(self, name: str, **tools: Any) -> None:
        self.path, self.tools = ROOT / "notebooks" / f"{name}.ipynb", tools

    @cached_property
    def notebook(self) -> dict[str, Any]:
        """The file's content."""
        return json.loads(self.path.read_text(encoding="utf-8"))

    @cached_property
    def sources(self) -> dict[str, str]:
        """Id → text of every cell, in order."""
        return {cell["id"]: "".join(cell["source"]) for cell in self.notebook["cells"]}

    @property
    def facts(self) -> dict[str, Any]:
        """What its metadata say of objectives and symbols."""
        return self.notebook["metadata"].get("ganprune", {})

    def cells(self, kind: str) -> dict[str, str]:
        """Id → text of the cells of one kind, "code" or "markdown"."""
        return {
            cell["id"]: self.sources[cell["id"]]
            for cell in self.notebook["cells"]
            if cell["cell_type"] == kind
        }

    @property
    def prose(self) -> str:
        """All Markdown."""
        return "\n\n".join(self.cells("markdown").values())

    @property
    def before_the_exercises(self) -> list[str]:
        """Ids of the cells before the exercises."""
        names = list(self.sources)
        return names[: names.index("exercises")]

    @property
    def words(self) -> int:
        """Words of prose before the exercises; a formula is one, tables and options of directives are none."""
        text = "\n\n".join(self.cells("markdown").get(name, "") for name in self.before_the_exercises)
        text = re.sub(r"^(?:`{3}|:|\|).*$", " ", text, flags=re.MULTILINE)
        text = re.sub(r"\$\$.*?\$\$|\$[^$]*\$", " formula ", text, flags=re.DOTALL)
        return len(re.findall(r"[A-Za-z][\w’'-]*", text))

    def run(self, *names: str, **namespace: Any) -> dict[str, Any]:
        """Runs cells by their ids, and returns the namespace that they leave."""
        namespace = {**self.tools, **namespace}
        for name in names:
            exec(self.sources[name], namespace)
        return namespace
