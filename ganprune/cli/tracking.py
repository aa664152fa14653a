"""The options that have a training logged by TensorBoard or Weights & Biases, and the callback that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import ganprune as gp


def add_tracker(parser: argparse.ArgumentParser) -> None:
    """What logs a training, and where."""
    add = parser.add_argument_group(
        "logging", "Losses, evaluations and grids of samples; it takes pip install 'ganprune[trackers]'."
    ).add_argument
    add("--tracker", choices=gp.training.TRACKERS, help="what logs the training (default: nothing does)")
    add(
        "--track-to",
        type=Path,
        default=Path("runs"),
        metavar="FOLDER",
        help="where it keeps its files (default: runs)",
    )


def tracking(
    options: argparse.Namespace, steps: int, name: str | Callable[[gp.TrainState], str]
) -> list[gp.training.Callback]:
    """The callback that logs trainings of so many steps, with ten grids of samples each; none if none was asked for.

    Raises:
        TrackerError: if the library is missing.
    """
    if options.tracker is None:
        return []
    return [gp.training.Track(options.tracker, options.track_to, name, max(1, steps // 10))]
