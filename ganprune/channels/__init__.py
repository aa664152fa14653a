"""Whole channels: what is coupled, how much it matters, and networks without it.

``graph`` finds the channels that can only go together, ``importance`` ranks them, ``surgery`` masks, holds
and removes them, ``shrinking`` plans a removal and keeps its promise. ``compaction`` takes out what pruning
single weights has left without effect. ``fold_norms`` turns spectral and weight norm into plain weights.
"""

from __future__ import annotations

from ganprune.channels.compaction import CompactionResult, compact
from ganprune.channels.groups import ChannelGroup, Member
from ganprune.channels.importance import IMPORTANCES, channel_importance
from ganprune.channels.parts import ChannelError
from ganprune.channels.shrinking import CHANNEL_ALLOCATIONS, ChannelPlan, plan_channels, shrink_channels
from ganprune.channels.surgery import channel_groups, keep_channels, mask_channels, remove_channels
from ganprune.networks.folding import fold_norms, restore_spectral_norm

__all__ = [
    "CHANNEL_ALLOCATIONS",
    "IMPORTANCES",
    "ChannelError",
    "ChannelGroup",
    "ChannelPlan",
    "CompactionResult",
    "Member",
    "channel_groups",
    "channel_importance",
    "compact",
    "fold_norms",
    "keep_channels",
    "mask_channels",
    "plan_channels",
    "remove_channels",
    "restore_spectral_norm",
    "shrink_channels",
]
