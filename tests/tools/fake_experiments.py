"""Experiments that cost nothing, keep a journal, and fail or die when told to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ganprune.experiments.base import Experiment


@dataclass(frozen=True)
class Coin(Experiment):
    """Throws a coin with many sides.

    Attributes:
        journal: a folder in which each begin is noted.
        sides: rows of a seed.
        pause: seconds before each row.
        dies_once: seeds whose process is killed when they are measured for the first time.
        dies: seeds whose process is always killed.
        fails: seeds that raise an error.
    """

    name: ClassVar[str] = "coin"

    journal: str
    sides: int = 2
    pause: float = 0.0
    dies_once: tuple[int, ...] = ()
    dies: tuple[int, ...] = ()
    fails: tuple[int, ...] = ()

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row for each side."""
        earlier = self.begins().count(seed)
        (Path(self.journal) / f"{time.time_ns()}-{seed}-{os.getpid()}").touch()
        for side in range(self.sides):
            time.sleep(self.pause)
            if side == self.sides - 1 and (seed in self.dies or (seed in self.dies_once and not earlier)):
                os.kill(os.getpid(), signal.SIGKILL)
            if seed in self.fails:
                raise ValueError(f"the coin of seed {seed} rolled away")
            yield {"stage": "thrown", "side": side, "value": 10 * seed + side}

    def begins(self) -> list[int]:
        """The seeds that were begun, in order."""
        return [int(path.name.split("-")[1]) for path in sorted(Path(self.journal).iterdir())]
