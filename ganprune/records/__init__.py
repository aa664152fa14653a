"""Records: experiments over several seeds, kept as JSON lines, and the statistics on them."""

from ganprune.records.statistics import Interval, interval, paired_ratio, verdict
from ganprune.records.store import append_record, config_hash, provenance, read_records, run

__all__ = [
    "Interval",
    "append_record",
    "config_hash",
    "interval",
    "paired_ratio",
    "provenance",
    "read_records",
    "run",
    "verdict",
]
