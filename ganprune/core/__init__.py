"""What everything else stands on: checks of arguments, devices, random numbers, files, progress bars."""

from ganprune.core.device import Profile, as_device, best_precision, default_device, profile
from ganprune.core.files import cache_dir
from ganprune.core.modes import eval_mode, frozen
from ganprune.core.random import seeded, step_seed
from ganprune.core.tensors import CheckpointError

__all__ = [
    "CheckpointError",
    "Profile",
    "as_device",
    "best_precision",
    "cache_dir",
    "default_device",
    "eval_mode",
    "frozen",
    "profile",
    "seeded",
    "step_seed",
]
