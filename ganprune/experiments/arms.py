"""The arms of the course's studies: configurations by the words that studies and claims use, in a profile's sizes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ganprune.core.checks import check_choice
from ganprune.experiments.critic_and_blur import CRITIC_TRAINING, CriticAndBlur
from ganprune.experiments.fewer_channels import FewerChannels
from ganprune.experiments.images import SpoiltImages
from ganprune.experiments.initial_masks import InitialMasks
from ganprune.experiments.recovery import COURSE_RECOVERY, OUTPUT_LAYER, Recovery
from ganprune.experiments.ring_games import RingGame
from ganprune.experiments.ring_schedules import MOMENTS, RingSchedule
from ganprune.experiments.ring_tickets import RingTickets
from ganprune.experiments.ring_training import RING_LOSSES, RING_RATES, RingTraining
from ganprune.experiments.speed import Latency, SparseLatency, TrainingTime
from ganprune.experiments.tickets import Tickets
from ganprune.experiments.training import COURSE_TRAINING, FromScratch
from ganprune.training.config import TrainConfig


@dataclass(frozen=True)
class Sizes:
    """How large the experiments of a profile are; a profile changes sizes alone.

    Trainings from scratch have their own dense control, as long as they are. It has to end below six floors of
    digit-FID to decide anything: with 4,000 steps it ended at more than thirteen (a pilot on seed 100).
    """

    dense_steps: int
    recovery_steps: int
    scratch_steps: int
    width: int = 32
    samples: int = 10_000
    ticket_rounds: int = 5
    ring_steps: int = 1_000


PROFILES = {
    "smoke": Sizes(6, 3, 4, width=4, samples=64, ticket_rounds=1, ring_steps=20),
    "laptop": Sizes(COURSE_TRAINING.steps, COURSE_RECOVERY.steps, 12_000),
    "gpu": Sizes(60_000, 20_000, 20_000, ring_steps=2_000),
}


class Arms:
    """The configurations of one profile, by the words that studies and claims use for them."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, width = sizes, sizes.width
        shape: dict[str, Any] = {"channels": (4 * width, 2 * width, width), "samples": sizes.samples}
        shape["judge_channels"] = (width, 2 * width, 4 * width)
        self._shape = shape
        self.dense = FromScratch(self.training(sizes.dense_steps), **shape)
        self.control = self.recovery()
        self.tickets = Tickets(
            self.scratch(),
            rounds=sizes.ticket_rounds,
            controlled=(sizes.ticket_rounds - 1, sizes.ticket_rounds)[-min(2, sizes.ticket_rounds) :],
            samples=sizes.samples,
        )
        full = sizes.samples >= 10_000
        self.latency = Latency(self.dense, turns=40 if full else 2)
        twins = SparseLatency(self.dense, turns=40 if full else 2)
        self.sparse_latency = {n: dataclasses.replace(twins, batch_size=n) for n in (64, 1)}
        short = dataclasses.replace(CRITIC_TRAINING, steps=min(CRITIC_TRAINING.steps, sizes.scratch_steps))
        self.critic_and_blur = CriticAndBlur(short, sizes=(16, 64, 256) if full else (16, 64))
        self.training_time = TrainingTime(self.dense, updates=32 if full else 2, turns=10 if full else 2)
        self.ring = self._ring(sizes.ring_steps)
        steps = 2 * sizes.ring_steps
        self.ring_search = {
            name: {rate: RingTraining.of(name, rate, steps) for rate in RING_RATES} for name in RING_LOSSES
        }
        start = self.ring_search["non-saturating, R1"][1e-3]
        searched = self.ring_search["non-saturating, R1"][3e-3]
        self.ring_schedules, self.ring_slower = self._ring_schedules(start)
        self.ring_schedules_searched, self.ring_slower_searched = self._ring_schedules(searched)
        self.ring_tickets = RingTickets(start) if full else RingTickets(start, rounds=1, controlled=(1,))
        last = self.ring_tickets.controlled[0]
        self.ring_tickets_searched = RingTickets(searched, rounds=last, controlled=(last,))

    @staticmethod
    def training(steps: int, **changes: Any) -> TrainConfig:
        """The course's training, of another length."""
        return dataclasses.replace(COURSE_TRAINING, steps=steps, **changes)

    @staticmethod
    def _ring(moment: int) -> dict[str, RingGame]:
        """Games on the ring: the even one and the one with a slow discriminator are played seven times as long."""
        short = RingGame(moment, moment, moment // 20)
        return {
            "one update each": dataclasses.replace(short, steps=7 * moment),
            "5 G updates per D update": dataclasses.replace(short, generator_updates=5),
            "D learns 10 times slower": dataclasses.replace(
                short, steps=7 * moment, discriminator_learning_rate=1e-4
            ),
            "5 D updates per G update": dataclasses.replace(short, discriminator_updates=5),
            "latent of one number": dataclasses.replace(short, latent_dim=1),
        }

    @staticmethod
    def _ring_schedules(start: RingTraining) -> tuple[dict[str, RingSchedule], dict[str, RingSchedule]]:
        """When to prune on the ring, and two of these moments against a slower discriminator."""
        moments = {moment: RingSchedule(start, moment) for moment in MOMENTS}
        slower = {name: dataclasses.replace(moments[name], judge_rate=0.25) for name in ("dense", "after")}
        return moments, slower

    def scratch(self, **changes: Any) -> FromScratch:
        """A shorter training from scratch."""
        return FromScratch(**{"training": self.training(self.sizes.scratch_steps), **self._shape, **changes})

    def small(self, sparsity: float) -> Recovery:
        """A dense generator with as many weights as one of this sparsity has non-zeros, trained just as that one is.

        Steps, learning-rate cycles and discriminator are those of the sparse generator: a dense run, and then the
        recovery, which here has nothing to recover from.
        """
        channels = _channels_of(self._shape["channels"], 1 - sparsity)
        start = FromScratch(self.training(self.sizes.dense_steps), **{**self._shape, "channels": channels})
        return self.recovery(dense=start)

    def recovery(self, sparsity: float = 0.0, steps: int | None = None, **changes: Any) -> Recovery:
        """A pruned generator that is trained on; by default for the steps of the profile."""
        steps = self.sizes.recovery_steps if steps is None else steps
        training = dataclasses.replace(COURSE_RECOVERY, steps=steps)
        return Recovery(
            sparsity, **{"training": training, "dense": self.dense, "samples": self.sizes.samples, **changes}
        )

    def pruned(self, sparsity: float, **changes: Any) -> Recovery:
        """A pruned generator that is not trained on."""
        return self.recovery(sparsity, training=None, **changes)

    def fewer_channels(self, ratio: float) -> FewerChannels:
        """A generator without a share of its channels, trained on as long as a pruned one."""
        training = dataclasses.replace(COURSE_RECOVERY, steps=self.sizes.recovery_steps)
        return FewerChannels(
            training=training, dense=self.dense, samples=self.sizes.samples, channel_ratio=ratio
        )

    def in_float32(self, sparsity: float) -> Recovery:
        """A pruned generator that is trained on in float32, whatever the processor supports."""
        training = dataclasses.replace(COURSE_RECOVERY, steps=self.sizes.recovery_steps, precision="float32")
        return self.recovery(sparsity, training=training)

    def protected(self, sparsity: float) -> Recovery:
        """A generator with a dense output layer and as many non-zeros in all as one of this sparsity without it."""
        each = _weights_of(self._shape["channels"])
        return self.recovery(sparsity * sum(each) / sum(each[:-1]), protect=(OUTPUT_LAYER,))

    def spoilt(self, noise: float = 0.0, dropped: int = 0, share: float = 1.0) -> SpoiltImages:
        """Spoilt images, as many as the profile measures, or a share of them."""
        return SpoiltImages(noise, dropped, max(16, round(share * self.sizes.samples)))

    def masks(self, score: str, cuts: int = 1) -> InitialMasks:
        """A mask of the untrained generator at 99%."""
        return InitialMasks(score, 0.99, dataclasses.replace(self.dense, training=COURSE_TRAINING), cuts)


@lru_cache
def arms_of(profile: str) -> Arms:
    """The configurations of a profile.

    Raises:
        ValueError: if there is no such profile.
    """
    return Arms(PROFILES[check_choice("profile", profile, PROFILES)])


@lru_cache
def _channels_of(channels: tuple[int, ...], share: float) -> tuple[int, ...]:
    """Channels in the same proportions, of a generator with that share of the weights, as nearly as there is one."""
    wanted = share * sum(_weights_of(channels))
    sizes = [tuple(max(1, round(part * scale / 1_000)) for part in channels) for scale in range(1, 1_001)]
    return min(sizes, key=lambda chosen: abs(sum(_weights_of(chosen)) - wanted))


def _weights_of(channels: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Weights of the four layers of the course's generator, from the latent vector to the image."""
    one, two, three = channels
    return 64 * one * 16, one * two * 9, two * three * 16, three * 16
