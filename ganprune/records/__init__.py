"""Records: experiments over several seeds, kept as JSON lines, and the statistics on them."""

from ganprune.records.statistics import Interval, interval, paired_ratio, verdict
from ganprune.records.store import Experiment, append, config_hash, provenance, read, run

__all__ = [
    "Experiment",
    "Interval",
    "append",
    "config_hash",
    "interval",
    "paired_ratio",
    "provenance",
    "read",
    "run",
    "verdict",
]
