"""What the exact earth mover's distance and a critic say of one grey blur, the mean of all digits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ganprune.core.modes import eval_mode
from ganprune.core.random import seeded, step_seed
from ganprune.experiments.base import Experiment, Seconds, course_data, trackers
from ganprune.experiments.ring_training import WGAN_GP, earth_mover
from ganprune.networks.build import mlp_gan
from ganprune.networks.sampling import sample
from ganprune.training.config import TrainConfig
from ganprune.training.loop import train
from ganprune.training.state import TrainState

CRITIC_TRAINING = TrainConfig(steps=2_000, precision="float32", **WGAN_GP)
"""Gulrajani et al.'s training, on fully connected networks."""


@dataclass(frozen=True)
class CriticAndBlur(Experiment):
    """Digits beside other digits, copies of one blur, and generated digits, by two measures of distance.

    The exact distance of two clouds of images is that of the cheapest one-to-one plan. The critic is one function,
    fitted to the train split while a generator learned from it; its distance is the difference of its means. Both
    look at the same images of the test split, which the critic has not seen.

    Attributes:
        training: everything but the seed.
        hidden: widths of the generator's hidden layers; the discriminator has them the other way round.
        sizes: numbers of images that are set beside each other.
    """

    name: ClassVar[str] = "critic and blur"

    training: TrainConfig = CRITIC_TRAINING
    hidden: tuple[int, ...] = (128, 256)
    sizes: tuple[int, ...] = (16, 64, 256)

    @property
    def steps(self) -> int:
        """Generator updates of one seed."""
        return self.training.steps

    @property
    def label(self) -> str:
        """The arm in a few words."""
        return f"WGAN-GP on digits, fully connected, {self.steps:,} steps"

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """A row for each number of images and each kind of cloud: its exact distance to digits, and the critic's."""
        data = course_data()
        gan = mlp_gan(hidden=self.hidden, seed=seed, device=data.train.device)
        state = TrainState(gan, dataclasses.replace(self.training, seed=seed))
        train(state, data.train, [Seconds(), *trackers(self, seed, self.steps)], show_progress=False)
        blur = data.train.float_images().mean(0, keepdim=True)
        order = torch.randperm(len(data.test), generator=seeded(step_seed(seed, 0, "clouds")))
        digits = data.test.float_images()[order.to(blur.device)]
        for n in self.sizes:
            clouds = {
                "digits": digits[n : 2 * n],
                "blur": blur.expand(n, *blur.shape[1:]),
                "generated": sample(gan.generator, n, seed=seed).to(blur.device),
            }
            for kind, cloud in clouds.items():
                row = {"stage": "measured", "images": n, "cloud": kind}
                row["exact"] = earth_mover(digits[:n].flatten(1).cpu(), cloud.flatten(1).cpu())
                row["critic"] = critic_distance(gan.discriminator, digits[:n], cloud)
                yield row | state.rows[Seconds.name][0]


@torch.no_grad()
def critic_distance(critic: nn.Module, real: Tensor, other: Tensor) -> float:
    """The difference of a critic's means: its estimate of the earth mover's distance, up to its slope.

    Args:
        critic: images to heights (N,).
        real: (N, C, H, W).
        other: (M, C, H, W).
    """
    with eval_mode(critic):
        return float(critic(real).mean() - critic(other).mean())
