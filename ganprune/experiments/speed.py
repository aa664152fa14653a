"""How long pruned generators take: zeros in dense kernels, and channels that are gone."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from ganprune.channels.shrinking import shrink_channels
from ganprune.experiments.base import Experiment
from ganprune.experiments.training import FromScratch
from ganprune.networks.sampling import draw_latents
from ganprune.pruning import prune


@dataclass(frozen=True)
class Latency(Experiment):
    """Three generators take turns: dense, with most weights zero, and with channels taken out.

    Attributes:
        start: makes the generator; a seed determines its weights. Latency does not depend on what they are trained to.
        sparsity: share of zero weights of the second generator, and of the arithmetic that the third one is spared.
        batch_size: images per pass.
        turns: passes of each generator; their median counts.
    """

    name: ClassVar[str] = "latency"

    start: FromScratch = field(default_factory=FromScratch)
    sparsity: float = 0.9
    batch_size: int = 64
    turns: int = 40

    @property
    def label(self) -> str:
        """The arm in a few words."""
        return f"{self.sparsity:.0%} of the weights or of the arithmetic, {self.batch_size} images"

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row for each generator: "dense", "zeros" and "fewer channels"."""
        dense = self.start.initial(seed).generator.eval()
        zeros = copy.deepcopy(dense)
        prune(zeros, self.sparsity)
        arms = {"dense": dense, "zeros": zeros}
        arms["fewer channels"] = shrink_channels(dense, macs_fraction=1 - self.sparsity).eval()
        z = draw_latents(dense, self.batch_size, seed)
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        with torch.inference_mode():
            for _ in range(3 + self.turns):
                for arm, network in arms.items():
                    begin = time.perf_counter()
                    network(z)
                    times[arm].append(time.perf_counter() - begin)
        for arm, seconds in times.items():
            yield {"stage": "measured", "arm": arm, "latency_seconds": statistics.median(seconds[3:])}
