"""What everything else stands on: checks of arguments, devices, random numbers, files, progress bars."""

from ganprune.core.device import (
    Profile,
    as_device,
    best_precision,
    default_device,
    placement_of,
    profile,
    standard_defaults,
)
from ganprune.core.files import OutputInUseError, cache_dir, owned, replacing, unfinished
from ganprune.core.modes import call_untouched, eval_mode, frozen
from ganprune.core.random import seeded, step_seed
from ganprune.core.tensors import CheckpointError, hash_weights, read_safetensors, write_safetensors

__all__ = [
    "CheckpointError",
    "OutputInUseError",
    "Profile",
    "as_device",
    "best_precision",
    "cache_dir",
    "call_untouched",
    "default_device",
    "eval_mode",
    "frozen",
    "hash_weights",
    "owned",
    "placement_of",
    "profile",
    "read_safetensors",
    "replacing",
    "seeded",
    "standard_defaults",
    "step_seed",
    "unfinished",
    "write_safetensors",
]
