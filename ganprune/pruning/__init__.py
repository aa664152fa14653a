"""Pruning: scores, allocations, schedules, and what is done to a network with them."""

from __future__ import annotations

from ganprune.pruning.activation_scores import channel_scores
from ganprune.pruning.allocation import (
    ALLOCATION_NAMES,
    allocate,
    apportion,
    lamp_scores,
    prune,
    prune_generator,
)
from ganprune.pruning.gradient_scores import MovementPhase, scored_weights
from ganprune.pruning.recalibration import recalibrate_batchnorm
from ganprune.pruning.schedules import SCHEDULES, cubic, geometric, get_schedule, one_shot, piecewise
from ganprune.pruning.scores import SCORES, Scores, get_score, register_score, score

__all__ = [
    "ALLOCATION_NAMES",
    "SCHEDULES",
    "SCORES",
    "MovementPhase",
    "Scores",
    "allocate",
    "apportion",
    "channel_scores",
    "cubic",
    "geometric",
    "get_schedule",
    "get_score",
    "lamp_scores",
    "one_shot",
    "piecewise",
    "prune",
    "prune_generator",
    "recalibrate_batchnorm",
    "register_score",
    "score",
    "scored_weights",
]
