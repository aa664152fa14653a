"""Games in the plane that a generator may lose: how many of eight clusters it covers, and whether it is one crowd."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ganprune.core.checks import check_integer
from ganprune.core.random import keep_random_state
from ganprune.data.synthetic import ring_centres
from ganprune.experiments.base import Experiment
from ganprune.losses import get_loss
from ganprune.networks.fully_connected import MLPDiscriminatorSpec, MLPGeneratorSpec
from ganprune.networks.sampling import sample, sample_latents

MODES, RADIUS, STD = 8, 2.0, 0.1
"""The data: equally frequent clusters on a circle, each normal with this standard deviation."""
BATCH, HIDDEN = 128, (64, 64)
POINTS = 2_000
"""Samples at which one looks."""
GOOD = 3 * STD
"""A sample is good if it lies closer than this to the nearest centre."""
COVERED = 0.01
"""A mode is covered if more than this share of all samples are good and belong to it."""
SPREAD = math.sqrt(RADIUS**2 + 2 * STD**2)
"""Root mean square distance of the data from their mean."""

Players = tuple[int, nn.Module, nn.Module]
"""The step, the generator and the discriminator after it."""


def is_collapsed(modes: float, spread: float) -> bool:
    """Whether a game has collapsed: at most half of the modes, and at most half of the spread of the data.

    Few modes alone are not enough, because a generator that scatters its samples covers few as well. An untrained
    generator fulfils both; the rule is for games that another one of equal length has won.

    Args:
        modes: covered, averaged over some moments, because a crowd that travels covers now one and now none.
        spread: root mean square distance of the samples from their mean, averaged likewise.
    """
    return modes <= MODES / 2 and spread <= SPREAD / 2


def is_complete(modes: float) -> bool:
    """Whether a game covers all modes: on average over some moments, less than half of one is missing."""
    return modes > MODES - 0.5


def look_at(points: Tensor) -> dict[str, Any]:
    """What one sees of samples in the plane.

    Args:
        points: (N, 2).

    Returns:
        "modes" that are covered, 0 to 8; "good_share" of the samples, 0 to 1; "spread", the root mean square distance
        from their mean; "mean", its two coordinates.
    """
    nearest = torch.cdist(points, ring_centres(MODES, RADIUS)).min(dim=1)
    good = nearest.values < GOOD
    shares = torch.bincount(nearest.indices[good], minlength=MODES) / len(points)
    mean = points.mean(0)
    return {
        "modes": int((shares > COVERED).sum()),
        "good_share": good.float().mean().item(),
        "spread": (points - mean).square().sum(1).mean().sqrt().item(),
        "mean": tuple(mean.tolist()),
    }


def watch(game: Iterable[Players], every: int, latent_dim: int = 2) -> list[dict[str, Any]]:
    """Plays a game to its end, and looks at the same latents again and again; the game is not touched.

    Args:
        game: hands out the players after each step, as :meth:`RingGame.play` does.
        every: steps from one look to the next, at least 1; the first is at step 0 if the game hands that out.
        latent_dim: of the generator.

    Returns:
        One row for each look: "step", and what :func:`look_at` says.
    """
    check_integer("every", every, 1)
    latents = sample_latents(POINTS, latent_dim, seed=1)
    return [
        {"step": step, **look_at(sample(generator, latents=latents))}
        for step, generator, _ in game
        if step % every == 0
    ]


def sum_up(looks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Looks in one row: the last step, means of "modes", "good_share" and "spread", and what follows from them.

    Args:
        looks: at least two, in their order.

    Returns:
        Also "travelled", the mean distance of the samples' mean from one look to the next, and the verdicts
        "collapsed" and "complete".
    """
    row = {name: sum(look[name] for look in looks) / len(looks) for name in ("modes", "good_share", "spread")}
    ways = [math.dist(a["mean"], b["mean"]) for a, b in zip(looks, looks[1:], strict=False)]
    row |= {"step": looks[-1]["step"], "travelled": sum(ways) / len(ways)}
    verdicts = {"collapsed": is_collapsed(row["modes"], row["spread"]), "complete": is_complete(row["modes"])}
    return row | verdicts


@dataclass(frozen=True)
class RingGame(Experiment):
    """A small GAN on eight clusters, with the non-saturating loss and Adam with β (0.5, 0.999): chapter 1's game.

    Networks have two hidden layers of 64, batches 128 points; a seed determines weights, data and latents.

    Attributes:
        steps: of the game, each with some updates of the discriminator and then some of the generator.
        moment: steps from one row to the next; must divide the steps.
        every: steps from one look to the next; must divide the moment, and be at most a quarter of it.
        learning_rate: of the generator.
        discriminator_learning_rate: of the discriminator.
        discriminator_updates: in each step.
        generator_updates: in each step.
        latent_dim: of the generator.
    """

    name: ClassVar[str] = "ring games"

    steps: int = 1_000
    moment: int = 1_000
    every: int = 50
    learning_rate: float = 1e-3
    discriminator_learning_rate: float = 1e-3
    discriminator_updates: int = 1
    generator_updates: int = 1
    latent_dim: int = 2

    def __post_init__(self) -> None:
        for name in ("steps", "moment", "every", "discriminator_updates", "generator_updates", "latent_dim"):
            check_integer(name, getattr(self, name), 1)
        if self.steps % self.moment:
            raise ValueError(f"moment must divide the {self.steps} steps, got {self.moment}")
        if self.moment % self.every or 4 * self.every > self.moment:
            raise ValueError(f"every must divide moment = {self.moment} into four or more, got {self.every}")

    @property
    def label(self) -> str:
        """The arm in a few words."""
        updates = f"{self.discriminator_updates} D and {self.generator_updates} G updates a step"
        rates = f"rates {self.discriminator_learning_rate:g} and {self.learning_rate:g}"
        return f"{updates}, {rates}, latents of {self.latent_dim}, {self.steps:,} steps"

    def play(self, seed: int) -> Iterator[Players]:
        """The players before the game and after each step; they are trained in place as one goes on."""
        with keep_random_state():
            torch.manual_seed(seed)
            generator = MLPGeneratorSpec(self.latent_dim, HIDDEN, (2,)).build()
            discriminator = MLPDiscriminatorSpec(HIDDEN, (2,)).build()
            random = torch.Generator()
            random.set_state(torch.get_rng_state())
        loss, middle = get_loss("non-saturating"), ring_centres(MODES, RADIUS)
        g_optimizer = _adam(generator, self.learning_rate)
        d_optimizer = _adam(discriminator, self.discriminator_learning_rate)
        yield 0, generator, discriminator
        for step in range(1, self.steps + 1):
            for _ in range(self.discriminator_updates):
                real = middle[torch.randint(MODES, (BATCH,), generator=random)]
                real = real + STD * torch.randn(BATCH, 2, generator=random)
                fake = generator(torch.randn(BATCH, self.latent_dim, generator=random)).detach()
                _update(d_optimizer, loss.discriminator(discriminator(real), discriminator(fake)))
            for _ in range(self.generator_updates):
                fake = generator(torch.randn(BATCH, self.latent_dim, generator=random))
                _update(g_optimizer, loss.generator(discriminator(fake)))
            yield step, generator, discriminator

    def watch(self, seed: int) -> list[dict[str, Any]]:
        """A row for each look at the game of a seed; see :func:`watch`."""
        return watch(self.play(seed), self.every, self.latent_dim)

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row for each moment: :func:`sum_up` of the looks in the quarter of a moment that ends there."""
        yield from self.rows(self.watch(seed))

    def rows(self, looks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows that :meth:`run` yields, from the looks that :meth:`watch` returns."""
        for end in range(self.moment, self.steps + 1, self.moment):
            begin = end - self.moment // 4
            yield {"stage": "played", **sum_up([look for look in looks if begin <= look["step"] <= end])}


def _adam(network: nn.Module, rate: float) -> torch.optim.Adam:
    return torch.optim.Adam(network.parameters(), rate, betas=(0.5, 0.999))


def _update(optimizer: torch.optim.Adam, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
