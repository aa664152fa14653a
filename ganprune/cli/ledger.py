"""The verdicts of the shipped records, as they were last computed: an answer that needs neither PyTorch nor SciPy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ganprune.cli.output import as_json, columns

PACKAGE = Path(__file__).resolve().parents[1]
FILE = PACKAGE / "assets" / "records" / "ledger.json"
"""Written by ``tools/ledger.py`` when records or claims change."""
COLUMNS = ("claim", "verdict", "effect", "low", "high", "detectable", "n", "text")


def digest() -> str:
    """The SHA-256 of all that the verdicts follow from: the shipped records, experiments, claims and statistics."""
    files = [
        *(PACKAGE / "assets" / "records").glob("*.jsonl"),
        *(PACKAGE / "experiments").glob("*.py"),
        *(PACKAGE / "records").glob("*.py"),
    ]
    found = hashlib.sha256()
    for path in sorted(files):
        text = path.read_bytes().replace(b"\r\n", b"\n")  # as git may write them on Windows
        found.update(f"{path.name} {len(text)}\n".encode() + text)
    return found.hexdigest()


def known_verdicts() -> list[dict[str, Any]] | None:
    """The verdicts of all claims, in the order of the ledger; None if something that they follow from has changed."""
    try:
        kept = json.loads(FILE.read_text(encoding="utf-8"))
        return kept["verdicts"] if kept["of"] == digest() else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def quick_answer(words: Sequence[str]) -> str | None:
    """What ``ganprune experiment table [--json]`` prints, where it is known; None for everything else."""
    if list(words[:2]) != ["experiment", "table"] or list(words[2:]) not in ([], ["--json"]):
        return None
    verdicts = known_verdicts()
    if verdicts is None:
        return None
    return as_json(verdicts) if words[2:] else columns(verdicts, COLUMNS)
