"""What pruning before training keeps: the weights left in each layer of an untrained generator.

``python -m ganprune.experiments.initial_masks`` records it among the package's assets. At high sparsity some scores
leave a layer fewer weights than it has outputs, so that outputs are constant, or none at all (layer collapse).
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganprune.allocation.choose import allocate
from ganprune.losses import generator_loss
from ganprune.masks.weights import prunable_slots
from ganprune.networks.build import dcgan
from ganprune.records.store import SHIPPED, run
from ganprune.scores import registry


@dataclass(frozen=True)
class InitialMasks:
    """Global masks of an untrained DCGAN generator, scored in several ways; a seed determines weights and latents.

    Attributes:
        name: of the experiment, in the records.
        width: of generator and discriminator.
        sparsity: share of the generator's prunable weights that is pruned.
        scores: names of scores. SNIP and GraSP go through the untrained discriminator, with the loss below.
        loss: of the generator.
        batches: of 64 latents, for SNIP and GraSP.
        rounds: of SynFlow.
    """

    name: str = "initial masks"
    width: int = 32
    sparsity: float = 0.99
    scores: tuple[str, ...] = ("random", "magnitude", "snip", "grasp", "synflow")
    loss: str = "hinge"
    batches: int = 8
    rounds: int = 100

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row per score and layer: total, kept, outputs, and whether fewer weights than outputs are kept."""
        gan = dcgan(width=self.width, seed=seed, device="cpu")
        outputs = {key: slot.outputs for key, slot in prunable_slots(gan.generator).items()}
        for score in self.scores:
            options: dict[str, Any] = {"rounds": self.rounds} if score == "synflow" else {}
            scores = registry.score(
                gan.generator,
                score,
                loss_fn=generator_loss(gan, self.batches, loss=self.loss, seed=seed),
                seed=seed,
                sparsity=self.sparsity,
                **options,
            )
            for layer in allocate(scores, self.sparsity).layers():
                wanted = outputs[layer["name"]]
                yield {
                    "score": score,
                    "layer": layer["name"],
                    "total": layer["total"],
                    "kept": layer["kept"],
                    "outputs": wanted,
                    "starved": layer["kept"] < wanted,
                }


def main() -> None:
    """The command line of this module."""
    default = InitialMasks()
    parser = argparse.ArgumentParser(description="Record which weights pruning before training keeps.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--store", type=Path, default=SHIPPED / "initial_masks.jsonl")
    parser.add_argument("--sparsity", type=float, default=default.sparsity)
    parser.add_argument("--width", type=int, default=default.width)
    options = vars(parser.parse_args())
    seeds, store = options.pop("seeds"), options.pop("store")
    run(dataclasses.replace(default, **options), seeds, store)


if __name__ == "__main__":
    main()
