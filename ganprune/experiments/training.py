"""Training from scratch: the course's dense pair, other losses, small dense networks, masks found before training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ganprune.core.files import cache_dir, owned_in_turn
from ganprune.core.random import step_seed
from ganprune.data.splits import ImageData
from ganprune.experiments.base import (
    Experiment,
    Seconds,
    course_data,
    figures,
    layers_of,
    stopwatch,
    trackers,
)
from ganprune.losses import generator_loss
from ganprune.networks.build import SPECTRAL_GAIN
from ganprune.networks.checkpoints import load, pretrained_path
from ganprune.networks.convolutional import DCGANDiscriminatorSpec, DCGANGeneratorSpec
from ganprune.networks.gan import GAN, GANSpec
from ganprune.pruning import prune
from ganprune.records.store import config_hash
from ganprune.training.callbacks import Callback, Checkpoint, every
from ganprune.training.config import TrainConfig
from ganprune.training.loop import train
from ganprune.training.state import TrainState

COURSE_TRAINING = TrainConfig(steps=16_000)
"""How the course trains its dense pair; how it was found stands in "How we train"."""
SAVE_EVERY = 2_000
"""Steps between two saves of a training that may be stopped."""


@dataclass(frozen=True)
class FromScratch(Experiment):
    """A freshly initialised pair, trained; sparse from the start if it names a score.

    Attributes:
        training: everything but the seed.
        channels: of the generator, from the latent to the image.
        judge_channels: of the discriminator, from the image to the logit.
        norm: of the discriminator.
        score: what the untrained generator is pruned by; None to leave it dense.
        sparsity: to which it is pruned, globally.
        shuffled: whether the mask is shuffled within its layers.
        rounds: of SynFlow.
        marks: where the run is measured on the way, as shares of the steps.
        samples: generated images per measurement.
    """

    name: ClassVar[str] = "from scratch"

    training: TrainConfig = COURSE_TRAINING
    channels: tuple[int, ...] = (128, 64, 32)
    judge_channels: tuple[int, ...] = (32, 64, 128)
    norm: str = "none"
    score: str | None = None
    sparsity: float = 0.0
    shuffled: bool = False
    rounds: int = 100
    marks: tuple[float, ...] = field(default=(0.125, 0.25, 0.5, 0.75))
    samples: int = 10_000

    @property
    def steps(self) -> int:
        """Generator updates of one seed."""
        return self.training.steps

    @property
    def label(self) -> str:
        """The arm in a few words."""
        if self.score is not None:
            return f"{self.score} at {self.sparsity:.0%}{', shuffled' if self.shuffled else ''}, then trained"
        parts = [f"dense, {'-'.join(map(str, self.channels))} channels", self.training.loss]
        if self.judge_channels != self.channels[::-1]:
            parts.append(f"D {'-'.join(map(str, self.judge_channels))}")
        parts += [] if self.norm == "none" else [f"{self.norm} norm"]
        usual = dataclasses.asdict(COURSE_TRAINING) | {"steps": self.steps, "loss": self.training.loss}
        for name, value in dataclasses.asdict(self.training).items():
            if value != usual[name]:
                parts.append(f"{name.replace('_', ' ')} {value}")
        return ", ".join([*parts, f"{self.steps:,} steps"])

    def initial(self, seed: int) -> GAN:
        """The pair before training, with its mask if it has one."""
        gain = SPECTRAL_GAIN if self.norm == "spectral" else 1.0
        spec = GANSpec(
            DCGANGeneratorSpec(channels=self.channels),
            DCGANDiscriminatorSpec(channels=self.judge_channels, norm=self.norm, logit_gain=gain),
        )
        gan = GAN.from_spec(spec, seed)
        if self.score is None:
            return gan
        options: dict[str, Any] = {"rounds": self.rounds} if self.score == "synflow" else {}
        loss = generator_loss(gan, loss=self.training.loss, seed=seed)
        mask = prune(
            gan, self.sparsity, score=self.score, allocation="global", loss_fn=loss, seed=seed, **options
        )
        if self.shuffled:
            fresh = dataclasses.replace(self, score=None).initial(seed)
            fresh.masks["generator"] = mask.shuffled(step_seed(seed, 0, "shuffled"))
            return fresh
        return gan

    def trained(self, seed: int, data: ImageData, until: int | None = None) -> TrainState:
        """The trained pair, with the rows of its marks; kept in the cache folder, and resumed there after a stop.

        Of several processes that want the same pair, one trains it, and the others wait.
        """
        path = cache_dir() / f"{config_hash(self)}-{seed}.safetensors"
        config = dataclasses.replace(self.training, seed=seed)

        def start() -> TrainState:
            spent: dict[str, Any] = {}
            with stopwatch(spent):
                state = TrainState(self.initial(seed), config)
            state.rows[Seconds.name] = [spent]
            return state

        marks = [round(mark * self.steps) for mark in self.marks]
        callbacks: list[Callback] = [
            _Marks(marks, data, self.samples),
            Seconds(),
            every(SAVE_EVERY, Checkpoint(path)),
        ]
        callbacks += trackers(self, seed, self.steps)
        with owned_in_turn(path):
            return train(TrainState.resume(path, start, data.train.device), data.train, callbacks, until)

    def pair(self, seed: int, data: ImageData) -> GAN:
        """The trained pair alone: the one that ships with the package if it is of this configuration, else trained."""
        path = pretrained_path("dcgan-mnist", seed)
        if path.is_file():
            gan = load(path, data.train.device)
            if gan.metadata.get("key") == config_hash(self):
                return gan
        return self.trained(seed, data).gan

    def run(self, seed: int) -> Iterator[dict[str, Any]]:
        """Rows at each mark (EMA weights, validation) and at the end (EMA and raw weights, both splits)."""
        data = course_data()
        state = self.trained(seed, data)
        gan = state.gan
        shared = {"precision_of_training": state.config.precision, **state.rows[Seconds.name][0]}
        shared |= layers_of(gan)
        for row in state.rows[_Marks.name]:
            yield {**row, "stage": "on the way", **shared}
        last = state.history[-1]
        for network in ("generator_ema", "generator"):
            for row in figures(gan, data, self.samples, self.training.loss, network):
                yield {"step": state.step, "stage": "trained", **last, **row, **shared}


class _Marks(Callback):
    """Measures the EMA generator at some steps of a run."""

    name = "marks"
    order = 1

    def __init__(self, steps: list[int], data: ImageData, samples: int) -> None:
        super().__init__()
        self.steps, self.data, self.samples = steps, data, samples

    def __call__(self, state: TrainState) -> None:
        """Measures if it is time."""
        if state.step in self.steps:
            row = next(figures(state.gan, self.data, self.samples, state.config.loss))
            losses = state.history[-1] if state.history else {}
            self.rows.append({**losses, **row, "step": state.step})
