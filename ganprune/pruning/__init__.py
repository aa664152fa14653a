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
from ganprune.pruning.channels import (
    ChannelError,
    CompactionError,
    channel_groups,
    channel_importance,
    compact,
    fold_norms,
    keep_channels,
    mask_channels,
    plan_channels,
    remove_channels,
    restore_spectral_norm,
    shrink_channels,
    slim,
    slimming_penalty,
)
from ganprune.pruning.dynamic import (
    BalanceController,
    DynamicSparseTraining,
    GradualPruning,
    MovementPruning,
    balance_ratio,
    rigl_update,
    set_update,
)
from ganprune.pruning.gradient_scores import scored_weights
from ganprune.pruning.lottery import (
    EarlyBird,
    Ticket,
    find_early_bird,
    find_tickets,
    random_mask,
    reinitialised,
    shuffled,
    transfer,
)
from ganprune.pruning.movement import MovementPhase
from ganprune.pruning.recalibration import recalibrate_batchnorm
from ganprune.pruning.schedules import SCHEDULES, cubic, geometric, get_schedule, one_shot, piecewise
from ganprune.pruning.scores import SCORES, Scores, get_score, register_score, score

__all__ = [
    "ALLOCATION_NAMES",
    "SCHEDULES",
    "SCORES",
    "BalanceController",
    "ChannelError",
    "CompactionError",
    "DynamicSparseTraining",
    "EarlyBird",
    "GradualPruning",
    "MovementPhase",
    "MovementPruning",
    "Scores",
    "Ticket",
    "allocate",
    "apportion",
    "balance_ratio",
    "channel_groups",
    "channel_importance",
    "channel_scores",
    "compact",
    "cubic",
    "find_early_bird",
    "find_tickets",
    "fold_norms",
    "geometric",
    "get_schedule",
    "get_score",
    "keep_channels",
    "lamp_scores",
    "mask_channels",
    "one_shot",
    "piecewise",
    "plan_channels",
    "prune",
    "prune_generator",
    "random_mask",
    "recalibrate_batchnorm",
    "register_score",
    "reinitialised",
    "remove_channels",
    "restore_spectral_norm",
    "rigl_update",
    "score",
    "scored_weights",
    "set_update",
    "shrink_channels",
    "shuffled",
    "slim",
    "slimming_penalty",
    "transfer",
]
