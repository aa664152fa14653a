"""Masks that change while training goes on: schedules, gradual and movement pruning, SET and RigL, and balance.

The callbacks of :func:`ganprune.train` in this room do at each step what follows from the step, the masks in force and
what is saved with the state, so a run that is resumed from a checkpoint does what it would have done uninterrupted.
"""

from __future__ import annotations

from ganprune.dynamic.balance import BalanceController, balance_ratio
from ganprune.dynamic.gradual import GradualPruning
from ganprune.dynamic.movement import MovementPruning
from ganprune.dynamic.movement_scores import MovementScores
from ganprune.dynamic.regrowth import METHODS, DynamicSparseTraining, rigl_update, set_update
from ganprune.dynamic.schedules import (
    SCHEDULES,
    Cubic,
    Geometric,
    OneShot,
    Piecewise,
    Schedule,
    get_schedule,
)

__all__ = [
    "METHODS",
    "SCHEDULES",
    "BalanceController",
    "Cubic",
    "DynamicSparseTraining",
    "Geometric",
    "GradualPruning",
    "MovementPruning",
    "MovementScores",
    "OneShot",
    "Piecewise",
    "Schedule",
    "balance_ratio",
    "get_schedule",
    "rigl_update",
    "set_update",
]
