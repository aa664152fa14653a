"""Records: experiments over several seeds, kept as JSON lines, and the statistics on them."""

from ganprune.records.statistics import (
    Interval,
    contrast,
    detectable_ratio,
    holm,
    interval,
    paired_ratio,
)
from ganprune.records.store import (
    Recordable,
    append,
    append_once,
    check_record,
    config_hash,
    measure,
    provenance,
    read,
    read_store,
    recorded,
    rows_of,
    run,
)

__all__ = [
    "Interval",
    "Recordable",
    "append",
    "append_once",
    "check_record",
    "config_hash",
    "contrast",
    "detectable_ratio",
    "holm",
    "interval",
    "measure",
    "paired_ratio",
    "provenance",
    "read",
    "read_store",
    "recorded",
    "rows_of",
    "run",
]
