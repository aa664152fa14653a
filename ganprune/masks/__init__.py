"""Masks: which weights can be pruned, which are kept, and how zeros stay zero while training goes on."""

from ganprune.masks.apply import apply_mask, check_mask
from ganprune.masks.keep import MaskKeeper, keep_mask
from ganprune.masks.left_out import left_out
from ganprune.masks.mask import Mask, MaskError, pruned_count
from ganprune.masks.names import canonical_name, unwrap
from ganprune.masks.registered import RegisteredLayer, register_layer, registration_of
from ganprune.masks.torch_prune import from_torch_prune, to_torch_prune
from ganprune.masks.weights import (
    effective_weights,
    prunable_slots,
    prunable_weights,
    weight_slots,
)

__all__ = [
    "Mask",
    "MaskError",
    "MaskKeeper",
    "RegisteredLayer",
    "apply_mask",
    "canonical_name",
    "check_mask",
    "effective_weights",
    "from_torch_prune",
    "keep_mask",
    "left_out",
    "prunable_slots",
    "prunable_weights",
    "pruned_count",
    "register_layer",
    "registration_of",
    "to_torch_prune",
    "unwrap",
    "weight_slots",
]
