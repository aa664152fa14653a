"""What pruning before training keeps: the weights left in each layer of an untrained generator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ganprune.experiments.base import Experiment
from ganprune.experiments.training import FromScratch
from ganprune.masks.weights import prunable_slots
from ganprune.pruning import prune


@dataclass(frozen=True)
class InitialMasks(Experiment):
    """A global mask of the untrained generator; a seed determines weights and latents.

    At high sparsity some scores leave a layer fewer weights than it has outputs, so that outputs are constant, or none
    at all (layer collapse).

    Attributes:
        score: SNIP and GraSP go through the untrained discriminator.
        sparsity: share of the generator's prunable weights that is pruned.
        start: the untrained pair.
        cuts: in how many geometric steps the sparsity is reached; before each the weights that are left are scored anew
            (iterative SNIP, de Jorge et al. 2021).
    """

    name: ClassVar[str] = "initial masks"

    score: str = "magnitude"
    sparsity: float = 0.99
    start: FromScratch = field(default_factory=FromScratch)
    cuts: int = 1

    @property
    def label(self) -> str:
        """The arm in a few words."""
        anew = f", in {self.cuts} cuts" if self.cuts > 1 else ""
        return f"{self.score} at {self.sparsity:.0%} before training{anew}"

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row per layer: total, kept, outputs, and whether fewer weights than outputs are kept."""
        first = 1 - (1 - self.sparsity) ** (1 / self.cuts)
        gan = dataclasses.replace(self.start, score=self.score, sparsity=first).initial(seed)
        for cut in range(2, self.cuts + 1):
            share = 1 - (1 - self.sparsity) ** (cut / self.cuts)
            prune(gan, share, score=self.score, within=gan.masks["generator"], seed=seed)
        outputs = {key: slot.outputs for key, slot in prunable_slots(gan.generator).items()}
        for layer in gan.masks["generator"].layers():
            wanted = outputs[layer["name"]]
            row = {"layer": layer["name"], "total": layer["total"], "kept": layer["kept"], "outputs": wanted}
            yield {"stage": "measured", "score": self.score, **row, "starved": layer["kept"] < wanted}
