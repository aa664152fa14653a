"""Writes the verdicts of the shipped records beside them: run it when records, claims or statistics have changed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ganprune.cli.ledger import FILE, digest
from ganprune.cli.output import as_json
from ganprune.experiments.arms import arms_of
from ganprune.experiments.claims import ledger
from ganprune.records.store import read_store


def main() -> None:
    verdicts = ledger(read_store(), arms_of("laptop"))
    lines = ",\n".join(as_json(verdict.as_dict()).strip() for verdict in verdicts)
    FILE.write_text(f'{{"of": {json.dumps(digest())}, "verdicts": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
