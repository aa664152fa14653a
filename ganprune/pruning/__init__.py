"""Pruning: scores, allocations, schedules, and what is done to a network with them."""

from __future__ import annotations

from ganprune.pruning.allocation import (
    ALLOCATION_NAMES,
    allocate,
    apportion,
    lamp_scores,
    prune,
    prune_generator,
)
from ganprune.pruning.recalibration import recalibrate_batchnorm
from ganprune.pruning.scores import SCORES, Scores, get_score, register_score, score

__all__ = [
    "ALLOCATION_NAMES",
    "SCORES",
    "Scores",
    "allocate",
    "apportion",
    "get_score",
    "lamp_scores",
    "prune",
    "prune_generator",
    "recalibrate_batchnorm",
    "register_score",
    "score",
]
