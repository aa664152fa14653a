"""Masks that change while training goes on: gradual and movement pruning, SET and RigL, a discriminator's density.

The four classes are callbacks of :func:`ganprune.training.loop.train`. What they do at a step follows from the step,
the masks in force and what is saved with the state, so a run that is resumed from a checkpoint does what it would have done
uninterrupted.
:func:`ganprune.training.loop.train` calls their ``begin(state)`` before the first step of a run or of a resumed run,
for what belongs there: pruning at step 0, a first mask, a copy of the generator, dense gradients for the step to come. A
loop of one's own calls it too; any number of times does no harm.

For a loop of one's own there are the functions behind them: :func:`set_update`, :func:`rigl_update` and
:func:`balance_ratio`.
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
