"""Masks that change while training goes on: gradual and movement pruning, SET and RigL, a discriminator's density.

The four classes are callbacks of :func:`ganprune.training.loop.train`. What they do at a step follows from the step,
the masks in force and what is saved with the state, so a run that is resumed from a checkpoint does what it would
have done uninterrupted.
"""

from __future__ import annotations

from ganprune.dynamic.balance import BalanceController, balance_ratio
from ganprune.dynamic.gradual import GradualPruning
from ganprune.dynamic.movement import MovementPruning
from ganprune.dynamic.regrowth import METHODS, DynamicSparseTraining, rigl_update, set_update

__all__ = [
    "METHODS",
    "BalanceController",
    "DynamicSparseTraining",
    "GradualPruning",
    "MovementPruning",
    "balance_ratio",
    "rigl_update",
    "set_update",
]
