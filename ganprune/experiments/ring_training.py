"""Small GANs on the ring that the package's own loop trains: losses and tickets at a cost of seconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ganprune.core.checks import check_choice
from ganprune.core.random import step_seed
from ganprune.data.synthetic import gaussian_ring, ring_centres
from ganprune.experiments.base import Experiment, Seconds, trackers
from ganprune.experiments.ring_games import MODES, RADIUS, STD, look_at
from ganprune.networks.fully_connected import MLPDiscriminatorSpec, MLPGeneratorSpec
from ganprune.networks.gan import GAN, GANSpec
from ganprune.networks.sampling import sample
from ganprune.training.config import TrainConfig
from ganprune.training.loop import train
from ganprune.training.state import TrainState

MEASURED = 1_000
"""Samples, and as many points of the data, between which the distance is measured."""
RING_TRAINING = TrainConfig(steps=2_000, batch_size=128, precision="float32")
"""The course's training, as long and in the batches that the ring needs."""
WGAN_GP: dict[str, Any] = {
    "loss": "wasserstein",
    "penalty": "gradient",
    "penalty_weight": 10.0,
    "penalty_every": 1,
    "critic_steps": 5,
    "betas": (0.0, 0.9),
}
"""The loss, the penalty, the five updates of the critic and the optimiser's β of Gulrajani et al. 2017."""
RING_LOSSES: dict[str, dict[str, Any]] = {
    "non-saturating": {"penalty": None},
    "non-saturating, R1": {},
    "WGAN, clipping": {
        "loss": "wasserstein",
        "penalty": None,
        "clip": 0.1,
        "critic_steps": 5,
        "optimizer": "rmsprop",
    },
    "WGAN-GP": WGAN_GP,
    "hinge, spectral norm": {"loss": "hinge", "penalty": None, "norm": "spectral"},
    "WGAN-GP, weight 0.1": {**WGAN_GP, "penalty_weight": 0.1},
    "non-saturating, R1, five updates": {"critic_steps": 5},
}
"""What each way of training changes; the learning rate apart, which is searched for each. Five updates of the critic
and the optimisers are those of the papers, the bound of the clipping is that of chapter 3. The last two change one
thing each: the weight of the penalty, and how often the discriminator moves."""
RING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
"""The learning rates that are tried, the same ones for each loss, of both players."""


class RingPoints:
    """Endless points of the ring; see :class:`~ganprune.training.loop.BatchSource`."""

    device = torch.device("cpu")

    def batch(self, batch_size: int, seed: int, step: int) -> Tensor:
        """Points of the ring, a pure function of (seed, step), (batch_size, 2)."""
        return gaussian_ring(batch_size, step_seed(seed, step, "ring"), MODES, RADIUS, STD)


def even_points(n: int, seed: int) -> Tensor:
    """Points of the ring, equally many of each cluster: data without the luck of the draw.

    Args:
        n: number of points, a multiple of the number of clusters.
        seed: of their places within the clusters.

    Returns:
        float32, shape (n, 2).
    """
    around = gaussian_ring(n, seed, modes=1, radius=0.0, std=STD)
    return ring_centres(MODES, RADIUS).repeat(n // MODES, 1) + around


def earth_mover(one: Tensor, other: Tensor) -> float:
    """The earth mover's distance of two clouds of equally many points, each of the same mass.

    No plan beats the best one-to-one assignment (Peyré & Cuturi 2019, proposition 2.1), which SciPy finds.

    Args:
        one: (N, d).
        other: (N, d).
    """
    from scipy.optimize import (
        linear_sum_assignment,
    )  # takes a second, which a table of records need not wait for

    cost = torch.cdist(one.double(), other.double()).numpy()
    return float(cost[linear_sum_assignment(cost)].mean())


def ring_figures(generator: torch.nn.Module) -> dict[str, Any]:
    """What one measures of a generator of points: "earth_mover", "modes" and "good_share".

    All generators are asked at the same latents, and measured against the same points.
    """
    points = sample(generator, MEASURED, seed=0)
    seen = look_at(points)
    distance = earth_mover(points, even_points(MEASURED, seed=0))
    return {"earth_mover": distance, "modes": seen["modes"], "good_share": seen["good_share"]}


def trained_row(state: TrainState) -> dict[str, Any]:
    """The row of a training on the ring, as it is now: of the averaged generator."""
    row: dict[str, Any] = {"stage": "trained", "precision_of_training": state.config.precision}
    row |= state.rows[Seconds.name][0] if Seconds.name in state.rows else {}
    row |= state.history[-1] if state.history else {}
    return row | {"step": state.step} | ring_figures(state.gan.generator_ema)


@dataclass(frozen=True)
class RingTraining(Experiment):
    """A fully connected pair, trained on the ring.

    Attributes:
        training: everything but the seed.
        hidden: widths of the hidden layers of the generator; the discriminator has two of 64.
        norm: of the discriminator.
    """

    name: ClassVar[str] = "ring training"

    training: TrainConfig = RING_TRAINING
    hidden: tuple[int, ...] = (64, 64)
    norm: str = "none"

    @classmethod
    def of(cls, loss: str, rate: float, steps: int) -> RingTraining:
        """A training by one of :data:`RING_LOSSES`."""
        changes = dict(RING_LOSSES[check_choice("loss", loss, RING_LOSSES)])
        norm = changes.pop("norm", "none")
        return cls(dataclasses.replace(RING_TRAINING, steps=steps, learning_rate=rate, **changes), norm=norm)

    @property
    def steps(self) -> int:
        """Generator updates of one seed."""
        return self.training.steps

    @property
    def label(self) -> str:
        """The arm in a few words."""
        config = self.training
        weight = f"gradient penalty of weight {config.penalty_weight:g}"
        held = {"gradient": weight, "r1": "R1", None: ""}[config.penalty]
        held = held or (f"weights clipped at {config.clip}" if config.clip is not None else "")
        held = held or ("no constraint" if self.norm == "none" else f"{self.norm} norm")
        often = f", {config.critic_steps} updates of D" if config.critic_steps > 1 else ""
        return f"{config.loss}, {held}{often}, rate {config.learning_rate:g}, {self.steps:,} steps"

    def initial(self, seed: int) -> GAN:
        """The pair before training."""
        spec = GANSpec(
            MLPGeneratorSpec(2, self.hidden, (2,)), MLPDiscriminatorSpec((64, 64), (2,), norm=self.norm)
        )
        return GAN.from_spec(spec, seed, "cpu")

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """One row at the end, of the averaged generator."""
        state = TrainState(self.initial(seed), dataclasses.replace(self.training, seed=seed))
        callbacks = [Seconds(), *trackers(self, seed, self.steps)]
        yield trained_row(train(state, RingPoints(), callbacks, show_progress=False))
