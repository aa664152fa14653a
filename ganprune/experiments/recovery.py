"""Pruning a trained generator and recovering its quality: every way of pruning that the course compares."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.nn.functional import mse_loss

from ganprune.core.checks import check_choice
from ganprune.core.modes import eval_mode
from ganprune.core.random import step_seed
from ganprune.data.splits import ImageData
from ganprune.dynamic.balance import BalanceController
from ganprune.dynamic.gradual import GradualPruning
from ganprune.dynamic.schedules import Cubic, Geometric, Schedule
from ganprune.experiments.base import (
    Experiment,
    course_data,
    figures,
    gradient_norms,
    layers_of,
    stopwatch,
    trackers,
)
from ganprune.experiments.training import FromScratch
from ganprune.losses import generator_loss
from ganprune.networks.gan import GAN
from ganprune.networks.sampling import draw_latents
from ganprune.pruning import prune
from ganprune.scores.registry import SCORES, get_score
from ganprune.training.callbacks import Callback
from ganprune.training.config import TrainConfig
from ganprune.training.loop import train
from ganprune.training.recalibration import recalibrate_batchnorm
from ganprune.training.state import TrainState

SCHEDULES = ("one-shot", "cubic", "rounds")
DISCRIMINATORS = ("trained", "slower", "fresh", "pruned", "balanced", "none")
ROUNDS = 10
"""Of the schedule "rounds"."""
COUNTS_OF = "counts of "
"""Begins an allocation that gives each layer as many weights as another score leaves it by one global threshold."""
OUTPUT_LAYER = "layers.deconv4"
"""The layer of the course's generator that makes the image; 0.2% of its weights."""
COURSE_RECOVERY = TrainConfig(steps=4_000)
"""How a pruned generator is trained on; the dense control is trained just as long, with the same rates."""


@dataclass(frozen=True)
class Recovery(Experiment):
    """A trained generator is pruned and trained on; sparsity 0 is the control, dense and trained just as long.

    The generator that is pruned has the EMA weights of the dense run, and it goes on against the discriminator of
    that run unless another one is asked for.

    Attributes:
        dense: the pair that is pruned.
        sparsity: share of the generator's prunable weights that is zero in the end.
        score: what the weights are ranked by.
        allocation: how the zeros are shared out among the layers; None for the score's own, "counts of SCORE" for as
            many in each layer as SCORE leaves by one global threshold, in one shot alone.
        protect: layers that stay dense.
        schedule: "one-shot" before the recovery, or during its first half, "cubic" or in ten "rounds" of
            equal shares.
        training: the recovery, everything but the seed; None measures the pruned generator alone.
        discriminator: "trained"; "slower", a quarter of the learning rate; "fresh", from its initialisation; "pruned"
            to the generator's sparsity; "balanced", whose density follows the balance ratio; "none", where the
            generator learns the dense generator's images by their squared error instead.
        imitation: weight of the squared error to the dense generator's images, learned beside the game; 0 for none.
        samples: generated images per measurement.
    """

    name: ClassVar[str] = "recovery"

    sparsity: float = 0.0
    score: str = "magnitude"
    allocation: str | None = "global"
    protect: tuple[str, ...] = ()
    schedule: str = "one-shot"
    training: TrainConfig | None = COURSE_RECOVERY
    discriminator: str = "trained"
    imitation: float = 0.0
    dense: FromScratch = field(default_factory=FromScratch)
    samples: int = 10_000

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("discriminator", self.discriminator, DISCRIMINATORS)
        if self._counts_of is not None:
            check_choice(f"the score in allocation {self.allocation!r}", self._counts_of, sorted(SCORES))
            if self.schedule != "one-shot":
                raise ValueError(
                    f"schedule must be 'one-shot' with allocation {self.allocation!r}, got {self.schedule!r}"
                )

    @property
    def _counts_of(self) -> str | None:
        """The score whose numbers in each layer are taken over, if any."""
        named = self.allocation or ""
        return named.removeprefix(COUNTS_OF) if named.startswith(COUNTS_OF) else None

    @property
    def steps(self) -> int:
        """Generator updates of one seed, the dense pair apart, which all arms share."""
        return self.training.steps if self.training else 0

    @property
    def label(self) -> str:
        """The arm in a few words."""
        if not self.sparsity:
            parts = [f"dense, {'-'.join(map(str, self.dense.channels))} channels, trained on"]
        else:
            parts = [f"{self.score} at {self.sparsity:.0%}", self.allocation or "own allocation"]
            parts += ["output layer protected"] if self.protect else []
            parts += [] if self.schedule == "one-shot" else [self.schedule]
        parts += [] if self.discriminator == "trained" else [f"discriminator {self.discriminator}"]
        parts += [f"imitation {self.imitation:g}"] if self.imitation else []
        parts += [self.training.precision] if self.training and self.training.precision != "auto" else []
        return ", ".join([*parts, f"{self.steps:,} steps"])

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """Rows of the stages "pruned", "recalibrated" (one-shot pruning alone) and "recovered"."""
        data = course_data()
        gan, dense = self.start(seed, data)
        loss = self.dense.training.loss
        if self.sparsity and self.schedule == "one-shot":
            for row in figures(gan, data, self.samples, loss):
                yield {"stage": "pruned", **layers_of(gan), **row}
            recalibrated = copy.deepcopy(gan)
            recalibrate_batchnorm(recalibrated.generator_ema, seed=seed)
            for row in figures(recalibrated, data, self.samples, loss):
                yield {"stage": "recalibrated", **row}
        if self.training is None:
            return
        state, shared = self.recover(gan, dense, data, seed)
        yield from self.measure(state, data, shared)

    def start(self, seed: int, data: ImageData) -> tuple[GAN, GAN]:
        """The pair that the recovery starts from, pruned if that is done in one shot, and the dense pair."""
        dense = self.dense.pair(seed, data)
        dense.generator.load_state_dict(dense.generator_ema.state_dict())
        gan = self.reduced(copy.deepcopy(dense))
        if self.sparsity and self.schedule == "one-shot":
            prune(gan, **self._amounts(gan, seed), **self._choice(gan, seed))
        return gan, dense

    def reduced(self, gan: GAN) -> GAN:
        """The pair before single weights are pruned: as it was trained."""
        return gan

    def _amounts(self, gan: GAN, seed: int) -> dict[str, Any]:
        """How many weights to prune, as arguments of ``prune``: of all, or of each layer."""
        if self._counts_of is None:
            return {"sparsity": self.sparsity}
        other = dataclasses.replace(self, score=self._counts_of, allocation="global")
        mask = prune(copy.deepcopy(gan), self.sparsity, **other._choice(gan, seed))
        return {"layer_sparsity": {row["name"]: row["sparsity"] for row in mask.layers()}}

    def _choice(self, gan: GAN, seed: int) -> dict[str, Any]:
        """How the weights to prune are chosen, as arguments of ``prune`` or of the callback that prunes gradually."""
        chosen: dict[str, Any] = {"score": self.score}
        chosen["allocation"] = "global" if self._counts_of is not None else self.allocation
        chosen |= {"protect": self.protect, "seed": seed}
        if "loss_fn" in get_score(self.score).needs:
            chosen["loss_fn"] = generator_loss(gan, loss=self.dense.training.loss, seed=seed)
        if "inputs" in get_score(self.score).needs:
            chosen["inputs"] = draw_latents(gan.generator, 1_024, step_seed(seed, 0, "activations"))
        return chosen

    def recover(self, gan: GAN, dense: GAN, data: ImageData, seed: int) -> tuple[TrainState, dict[str, Any]]:
        """Trains a pair of :meth:`start` on, in place.

        Returns:
            The state at the end, and what all rows of the recovery share: what it cost, and its gradients.

        Raises:
            ValueError: if this arm has no training.
        """
        if self.training is None:
            raise ValueError("training must be a TrainConfig where a generator is to recover, got None")
        config = dataclasses.replace(self.training, seed=recovery_seed(seed))
        if self.discriminator == "slower":
            config = dataclasses.replace(config, discriminator_learning_rate=config.learning_rate / 4)
        if self.discriminator == "fresh":
            gan.discriminator.load_state_dict(self.dense.initial(seed).discriminator.state_dict())
        if self.discriminator == "pruned" and self.sparsity:
            prune(gan, self.sparsity, which="discriminator", score="magnitude", allocation="global")
        spent: dict[str, Any] = {}
        begun = gradient_norms(gan, config.loss)
        callbacks: list[Callable[[TrainState], None]] = [*trackers(self, seed, config.steps)]
        if self.sparsity and self.schedule != "one-shot":
            callbacks.append(GradualPruning(self._schedule(config.steps), **self._choice(gan, seed)))
        if self.discriminator == "balanced":
            callbacks.append(BalanceController(data.train, every=max(1, config.steps // 20), seed=seed))
        if self.imitation:
            callbacks.append(Imitation(dense, self.imitation))
        state = TrainState(gan, config)
        with stopwatch(spent):
            if self.discriminator == "none":
                imitate(state, dense)
            else:
                train(state, data.train, callbacks)
        shared = {
            "step": state.step,
            "precision_of_training": state.config.precision,
            **layers_of(gan),
            **spent,
        }
        shared |= {"gradients_at_start": begun, "gradients_at_end": gradient_norms(gan, config.loss)}
        return state, shared

    def measure(self, state: TrainState, data: ImageData, shared: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Rows of the stage "recovered": EMA and raw weights, both splits, with what :meth:`recover` gave back."""
        last = state.history[-1] if state.history else {}
        for network in ("generator_ema", "generator"):
            for row in figures(state.gan, data, self.samples, state.config.loss, network):
                yield {"stage": "recovered", **last, **row, **shared}

    def _schedule(self, steps: int) -> Schedule:
        if self.schedule == "cubic":
            return Cubic(self.sparsity, end=max(1, steps // 2))
        rounds = min(ROUNDS, max(1, steps // 2))
        return Geometric(
            self.sparsity, every=max(1, steps // 2 // rounds), keep=(1 - self.sparsity) ** (1 / rounds)
        )


def imitate(state: TrainState, teacher: GAN) -> None:
    """Trains the generator on the teacher's images alone, without a discriminator, to the end of the configuration.

    The masks are held, and the EMA copy gets the last weights.

    Args:
        state: changed in place; its generator and the teacher's take the same latents.
        teacher: its EMA generator makes the images.
    """
    gan, update = state.gan, Imitation(teacher, 1.0)
    gan.generator.train()
    with gan.masks.held(state.optimizers):
        while state.step < state.config.steps:
            for group in state.optimizers["generator"].param_groups:
                group["lr"] = group["initial_lr"] * state.config.learning_rate_factor(state.step)
            update(state)
            state.step += 1
    gan.generator_ema.load_state_dict(gan.generator.state_dict())


class Imitation(Callback):
    """After each step, one more update of the generator: mean squared error to the teacher's images, equal latents.

    Args:
        teacher: its EMA generator makes the images.
        weight: of the error.
    """

    order = 0

    def __init__(self, teacher: GAN, weight: float) -> None:
        super().__init__()
        self.teacher, self.weight = teacher.generator_ema, weight

    def __call__(self, state: TrainState) -> None:
        """Makes the update, with the learning rate that the step has left."""
        config, generator = state.config, state.gan.generator
        z = draw_latents(generator, config.batch_size, step_seed(config.seed, state.step, "imitation"))
        with torch.no_grad(), eval_mode(self.teacher):
            wanted = self.teacher(z)
        optimizer = state.optimizers["generator"]
        optimizer.zero_grad(set_to_none=True)
        (self.weight * mse_loss(generator(z), wanted)).backward()
        optimizer.step()


def recovery_seed(seed: int) -> int:
    """The seed of the training that follows a dense run, so that it does not see the same batches again."""
    return seed + 1_000_000
