"""What pruning before training keeps: the weights left in each layer of an untrained generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ganprune.experiments.base import Experiment
from ganprune.experiments.training import FromScratch
from ganprune.masks.weights import prunable_slots


@dataclass(frozen=True)
class InitialMasks(Experiment):
    """A global mask of the untrained generator; a seed determines weights and latents.

    At high sparsity some scores leave a layer fewer weights than it has outputs, so that outputs are constant, or none
    at all (layer collapse).

    Attributes:
        score: SNIP and GraSP go through the untrained discriminator.
        sparsity: share of the generator's prunable weights that is pruned.
        start: the untrained pair.
    """

    name: ClassVar[str] = "initial masks"

    score: str = "magnitude"
    sparsity: float = 0.99
    start: FromScratch = field(default_factory=FromScratch)

    @property
    def label(self) -> str:
        """The arm in a few words."""
        return f"{self.score} at {self.sparsity:.0%} before training"

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row per layer: total, kept, outputs, and whether fewer weights than outputs are kept."""
        gan = dataclasses.replace(self.start, score=self.score, sparsity=self.sparsity).initial(seed)
        outputs = {key: slot.outputs for key, slot in prunable_slots(gan.generator).items()}
        for layer in gan.masks["generator"].layers():
            wanted = outputs[layer["name"]]
            row = {"layer": layer["name"], "total": layer["total"], "kept": layer["kept"], "outputs": wanted}
            yield {"stage": "measured", "score": self.score, **row, "starved": layer["kept"] < wanted}
