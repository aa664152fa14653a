"""What may happen between two training steps: evaluate, save a checkpoint, or any function of the state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ganprune.core.checks import check_choice, check_integer
from ganprune.metrics.fidelity import evaluate
from ganprune.metrics.report import NETWORKS
from ganprune.training.state import TrainState

PRUNE, EVALUATE, LOG, CHECKPOINT = range(4)
"""The order of callbacks within one step: a checkpoint holds what the others did at its step."""


class Callback:
    """What :func:`ganprune.train` calls between its steps: derive from it, and write the methods that you need.

    Plain functions of the state are callbacks as well; they are called where ``order`` is :data:`LOG`.

    Attributes:
        name: the key of its rows in ``state.rows``; the name of the class unless it is set. No two callbacks of one
            training may have the same.
        order: callbacks are called in ascending order: PRUNE, EVALUATE, LOG, CHECKPOINT.
        rows: what it found, as dictionaries of plain values. From ``begin`` on they lie in ``state.rows``: they are
            saved with the state and are there again when it is loaded.
    """

    name: str = ""
    order: int = LOG
    rows: list[dict[str, Any]]

    def __init__(self) -> None:
        self.rows = []

    def begin(self, state: TrainState) -> None:
        """Called before the first step of each call of ``train``, of a new run or of one that goes on."""

    def __call__(self, state: TrainState) -> None:
        """Called after each step; ``state.stop = True`` makes this step the last one."""

    def end(self, state: TrainState) -> None:
        """Called when ``train`` ends, after an error or an interruption too."""


class every(Callback):
    """Calls another callback after each so many steps, and after the last step of the run.

    Args:
        interval: in steps, at least 1.
        function: a callback, or any function of the state.
        at_end: also call it after the last step.
    """

    def __init__(self, interval: int, function: Callable[[TrainState], Any], at_end: bool = True) -> None:
        self.interval = check_integer("interval", interval, 1)
        self.function, self.at_end = function, at_end
        self.order = getattr(function, "order", LOG)

    def begin(self, state: TrainState) -> None:
        """Begins the other callback."""
        _begin(self.function, state)

    def __call__(self, state: TrainState) -> None:
        """Calls the other callback if it is time."""
        if state.step % self.interval == 0 or (self.at_end and state.step == state.config.steps):
            self.function(state)

    def end(self, state: TrainState) -> None:
        """Ends the other callback."""
        _end(self.function, state)


class Evaluate(Callback):
    """Measures the quality of a network and keeps one row per call in ``rows``; the state is left as it was.

    Args:
        split: the reference, usually ``data.validation``.
        network: "generator_ema" or "generator".
        name: the key of its rows; None for "evaluate" and the network. Two of one network need two names.
        **options: passed on to :func:`ganprune.metrics.evaluate`.

    Raises:
        ValueError: if there is no such network.
    """

    order = EVALUATE

    def __init__(
        self, split: Any, network: str = "generator_ema", name: str | None = None, **options: Any
    ) -> None:
        super().__init__()
        check_choice("network", network, NETWORKS)
        self.split, self.network, self.options = split, network, options
        self.name = name or f"evaluate {network}"

    def __call__(self, state: TrainState) -> None:
        """Measures, and adds a row."""
        report = evaluate(state.gan, self.split, network=self.network, **self.options)
        self.rows.append({"step": state.step, "network": self.network, **report.as_dict()})


class Checkpoint(Callback):
    """Saves the whole training state to one file, atomically, so that a killed run can go on from it.

    Args:
        path: the file; each call replaces it.
    """

    order = CHECKPOINT

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)

    def __call__(self, state: TrainState) -> None:
        """Saves."""
        state.save(self.path)


def in_order(callbacks: Iterable[Callable[[TrainState], None]]) -> Sequence[Callable[[TrainState], None]]:
    """The callbacks as they are called within one step; those of one order stay as they were given.

    Raises:
        TypeError: if one cannot be called.
        ValueError: if two that keep rows have one name.
    """
    ordered = sorted(callbacks, key=lambda callback: getattr(callback, "order", LOG))
    names: set[str] = set()
    for callback in ordered:
        if not callable(callback):
            raise TypeError(f"callbacks must be functions of the state, got {callback!r}")
        inner = _innermost(callback)
        if isinstance(inner, Callback) and not isinstance(inner, Checkpoint):
            name = inner.name or type(inner).__name__
            if name in names:
                raise ValueError(f"callbacks must have different names, got two that are called {name!r}")
            names.add(name)
    return ordered


@contextmanager
def callbacks_of(callbacks: Sequence[Callable], state: TrainState) -> Iterator[None]:
    """Begins the callbacks, and ends those that were begun when the block ends, in whatever way."""
    begun: list[Callable] = []
    try:
        for callback in callbacks:
            _begin(callback, state)
            begun.append(callback)
        yield
    finally:
        for callback in reversed(begun):
            _end(callback, state)


def _innermost(callback: Any) -> Any:
    while isinstance(callback, every):
        callback = callback.function
    return callback


def _begin(callback: Any, state: TrainState) -> None:
    if isinstance(callback, Callback) and not isinstance(callback, (every, Checkpoint)):
        name = callback.name or type(callback).__name__
        callback.rows = state.rows.setdefault(name, [])
    if hasattr(callback, "begin"):
        callback.begin(state)


def _end(callback: Any, state: TrainState) -> None:
    if hasattr(callback, "end"):
        callback.end(state)
