"""Training: what to do, where a run stands, the one loop, and what is called after each step."""

from ganprune.training.callbacks import (
    CHECKPOINT,
    EVALUATE,
    LOG,
    PRUNE,
    Callback,
    Checkpoint,
    Evaluate,
    every,
)
from ganprune.training.config import TrainConfig
from ganprune.training.loop import BatchSource, DivergenceError, train, train_epoch
from ganprune.training.recalibration import recalibrate_batchnorm
from ganprune.training.state import TrainState
from ganprune.training.trackers import TRACKERS, Track, TrackerError

__all__ = [
    "CHECKPOINT",
    "EVALUATE",
    "LOG",
    "PRUNE",
    "TRACKERS",
    "BatchSource",
    "Callback",
    "Checkpoint",
    "DivergenceError",
    "Evaluate",
    "Track",
    "TrackerError",
    "TrainConfig",
    "TrainState",
    "every",
    "recalibrate_batchnorm",
    "train",
    "train_epoch",
]
