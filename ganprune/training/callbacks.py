"""What may happen between two training steps: evaluate, save a checkpoint, or any function of the state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ganprune.core.checks import check_integer
from ganprune.metrics.fidelity import evaluate
from ganprune.training.state import TrainState

PRUNE, EVALUATE, LOG, CHECKPOINT = range(4)
"""The order of callbacks within one step."""


class every:
    """Calls ``function(state)`` after each ``interval``-th step, and after the last one if ``at_end``.

    Args:
        interval: in steps, at least 1.
        function: any function of the state; its attributes ``order`` and ``begin`` are kept.
        at_end: also call it after the last step.
    """

    def __init__(self, interval: int, function: Callable[[TrainState], Any], at_end: bool = True) -> None:
        self.interval = check_integer("interval", interval, 1)
        self.function, self.at_end = function, at_end
        self.order = getattr(function, "order", LOG)
        if hasattr(function, "begin"):
            self.begin = function.begin

    def __call__(self, state: TrainState) -> None:
        if state.step % self.interval == 0 or (self.at_end and state.step == state.config.steps):
            self.function(state)


class Evaluate:
    """Measures the quality of a network and keeps one row per call in ``rows``; the state is left as it was.

    Args:
        split: the reference, usually ``data.validation``.
        network: "generator_ema" or "generator".
        **options: passed on to :func:`ganprune.metrics.evaluate`.
    """

    order = EVALUATE

    def __init__(self, split: Any, network: str = "generator_ema", **options: Any) -> None:
        self.split, self.network, self.options = split, network, options
        self.rows: list[dict[str, Any]] = []

    def __call__(self, state: TrainState) -> None:
        report = evaluate(state.gan.networks()[self.network], self.split, **self.options)
        self.rows.append({"step": state.step, "network": self.network, **report.as_dict()})


class Checkpoint:
    """Saves the whole training state to one file, atomically, so that a killed run can go on from it.

    Args:
        path: the file; each call replaces it.
    """

    order = CHECKPOINT

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __call__(self, state: TrainState) -> None:
        state.save(self.path)
