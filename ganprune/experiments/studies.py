"""The studies of the course: which arms are compared, and how large they are in each profile."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ganprune.core.checks import check_choice
from ganprune.experiments.base import Experiment
from ganprune.experiments.images import SpoiltImages
from ganprune.experiments.initial_masks import InitialMasks
from ganprune.experiments.recovery import COURSE_RECOVERY, OUTPUT_LAYER, Recovery
from ganprune.experiments.ring_games import RingGame
from ganprune.experiments.speed import Latency, SparseLatency, TrainingTime
from ganprune.experiments.tickets import Tickets
from ganprune.experiments.training import COURSE_TRAINING, FromScratch
from ganprune.training.config import TrainConfig

SPARSITIES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Where the course looks at a generator that was pruned and not trained on."""
RECOVERED = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Where it trains the generator on."""
SEEDS = (0, 1, 2, 3, 4)
"""Seeds that decide."""
SEARCHED = (100,)
"""Seeds on which recipes are searched, so that no claim is tested by the search that chose its recipe."""
OTHER_SEEDS = {"recipe": SEARCHED, "mode-collapse": tuple(range(10))}
"""Of the studies that have seeds of their own; a game on the ring takes a minute or less."""


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


@dataclass(frozen=True)
class Study:
    """Arms that are compared with each other.

    Attributes:
        name: as on the command line.
        question: what the comparison is to answer.
        chapter: number of the chapter that shows it.
        arms: configurations; an arm that several studies name is run once.
        seeds: those that it is meant to be run with.
    """

    name: str
    question: str
    chapter: int
    arms: tuple[Experiment, ...]
    seeds: tuple[int, ...] = SEEDS

    @property
    def steps(self) -> int:
        """Generator updates of one seed of all arms, the dense pairs that they start from apart."""
        return sum(arm.steps for arm in self.arms)


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
        self.training_time = TrainingTime(self.dense, updates=32 if full else 2, turns=10 if full else 2)
        self.ring = self._ring(sizes.ring_steps)

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

    def protected(self, sparsity: float) -> Recovery:
        """A generator with a dense output layer and as many non-zeros in all as one of this sparsity without it."""
        each = _weights_of(self._shape["channels"])
        return self.recovery(sparsity * sum(each) / sum(each[:-1]), protect=(OUTPUT_LAYER,))

    def spoilt(self, noise: float = 0.0, dropped: int = 0, share: float = 1.0) -> SpoiltImages:
        """Spoilt images, as many as the profile measures, or a share of them."""
        return SpoiltImages(noise, dropped, max(16, round(share * self.sizes.samples)))

    def masks(self, score: str) -> InitialMasks:
        """A mask of the untrained generator at 99%."""
        return InitialMasks(score, 0.99, dataclasses.replace(self.dense, training=COURSE_TRAINING))


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


def _measures(arms: Arms) -> list[Experiment]:
    return [
        *(arms.spoilt(noise=noise) for noise in (0.0, 0.05, 0.1, 0.2, 0.4)),
        *(arms.spoilt(dropped=dropped) for dropped in (1, 2, 5)),
        *(arms.spoilt(share=share) for share in (0.05, 0.1, 0.2, 0.5)),
    ]


def losses_of(arms: Arms) -> dict[str, FromScratch]:
    """Three ways of training a GAN, equal in generator updates."""
    steps = arms.sizes.scratch_steps
    gradient = arms.training(
        steps, loss="wasserstein", penalty="gradient", penalty_weight=10.0, penalty_every=1, critic_steps=5
    )
    hinge = arms.training(steps, loss="hinge", penalty=None, learning_rate=1.5e-3)
    return {
        "non-saturating": arms.scratch(),
        "wasserstein": arms.scratch(training=gradient),
        "hinge": arms.scratch(training=hinge, norm="spectral"),
    }


def _magnitude(arms: Arms) -> list[Experiment]:
    found = [arms.control]
    found += [arms.recovery(sparsity) for sparsity in RECOVERED]
    found += [arms.recovery(0.9, allocation=allocation) for allocation in ("lamp", "erk", "uniform")]
    found += [arms.protected(0.9)]
    found += [arms.recovery(sparsity, score="random") for sparsity in (0.5, 0.7)]
    found += [arms.recovery(0.5, allocation=allocation) for allocation in ("lamp", "erk", "uniform")]
    return list(found)


def _curve(arms: Arms) -> list[Experiment]:
    ways: list[dict[str, Any]] = [{"allocation": name} for name in ("global", "lamp", "erk", "uniform")]
    ways.append({"score": "random"})
    return [arms.pruned(sparsity, **way) for way in ways for sparsity in SPARSITIES]


def _criteria(arms: Arms) -> list[Experiment]:
    scores = ("taylor", "squared-gradient", "wanda")
    before = [
        arms.pruned(sparsity, score=score, allocation=_own_allocation(score))
        for score in (*scores, "snip", "synflow", "grasp")
        for sparsity in (0.8, 0.9, 0.95)
    ]
    after = [arms.recovery(0.8, score=score, allocation=_own_allocation(score)) for score in scores]
    return [*before, arms.pruned(0.8), arms.control, arms.recovery(0.8), *after]


def _own_allocation(score: str) -> str | None:
    return None if score == "wanda" else "global"


def _schedules(arms: Arms) -> list[Experiment]:
    return [
        arms.control,
        arms.recovery(0.9),
        arms.recovery(0.9, schedule="cubic"),
        arms.recovery(0.9, schedule="rounds"),
    ]


def _discriminators(arms: Arms) -> list[Experiment]:
    changed = [arms.recovery(0.9, discriminator=how) for how in ("slower", "pruned", "balanced", "fresh")]
    changed += [arms.recovery(0.9, imitation=10.0)]
    longer = arms.recovery(0.9, steps=4 * arms.sizes.recovery_steps)
    return [arms.control, arms.recovery(0.9), *changed, longer]


def _small_and_dense(arms: Arms) -> list[Experiment]:
    both = [make(sparsity) for sparsity in (0.5, 0.8, 0.9) for make in (arms.recovery, arms.small)]
    return [arms.control, *both]


def _without_adversary(arms: Arms) -> list[Experiment]:
    return [arms.recovery(sparsity, discriminator="none") for sparsity in (0.0, *RECOVERED)]


def _before_training(arms: Arms) -> list[Experiment]:
    pruned = [
        arms.scratch(score=score, sparsity=0.9, shuffled=shuffled)
        for score in ("snip", "synflow")
        for shuffled in (False, True)
    ]
    return [arms.scratch(), *pruned]


def _initial_masks(arms: Arms) -> list[Experiment]:
    return [arms.masks(score) for score in ("random", "magnitude", "snip", "grasp", "synflow")]


def recipe_arms(arms: Arms) -> dict[str, FromScratch]:
    """The recipes that were tried for the dense pair, from the course's first one to the present one and beyond."""
    steps = arms.sizes.dense_steps

    def arm(norm: str = "none", judge: int = 1, share: float = 1.0, **changes: Any) -> FromScratch:
        wide = tuple(judge * channels for channels in arms.dense.judge_channels)
        training = arms.training(max(1, round(share * steps)), **changes)
        return arms.scratch(training=training, norm=norm, judge_channels=wide)

    first: dict[str, Any] = {"loss": "hinge", "penalty": None, "learning_rate": 1.5e-3, "norm": "spectral"}
    return {
        "hinge, spectral norm, β (0.5, 0.999)": arm(**first, betas=(0.5, 0.999)),
        "hinge, spectral norm, β (0, 0.99), later decay": arm(**first, decay_from=0.7),
        "R1 at every update": arm(penalty_every=1, share=0.5),
        "R1 at every 8th update (the course's)": arm(),
        "the same, D twice as wide": arm(judge=2, share=0.5),
        "R1 at every 16th update": arm(penalty_every=16),
        "twice the learning rate": arm(learning_rate=2e-3),
        "decay from half of the steps": arm(decay_from=0.5),
    }


def _recipe(arms: Arms) -> list[Experiment]:
    return list(recipe_arms(arms).values())


STUDIES: dict[str, tuple[str, int, Callable[[Arms], list[Experiment]]]] = {
    "measures": ("Do the measures notice what was spoilt on purpose?", 4, _measures),
    "dense": ("How good is the pair that everything starts from?", 2, lambda arms: [arms.dense]),
    "recipe": ("How should the dense pair be trained?", 2, _recipe),
    "magnitude": ("What does magnitude pruning cost after training on?", 6, _magnitude),
    "curve": ("What does pruning alone cost, at every sparsity and allocation?", 6, _curve),
    "criteria": ("Do criteria that look at gradients or activations choose better?", 7, _criteria),
    "discriminators": (
        "Does the discriminator keep a pruned generator from recovering?",
        10,
        _discriminators,
    ),
    "schedules": ("Is it better to prune gradually?", 10, _schedules),
    "small-and-dense": (
        "Is a large sparse generator better than a small dense one?",
        6,
        _small_and_dense,
    ),
    "no-adversary": ("What is lost when no discriminator takes part?", 6, _without_adversary),
    "initial-masks": ("What does pruning before training leave of each layer?", 7, _initial_masks),
    "before-training": ("What do masks found before training know?", 7, _before_training),
    "tickets": ("Are there winning lottery tickets?", 13, lambda arms: [arms.tickets]),
    "losses": ("Does the loss matter once each is tuned?", 3, lambda arms: list(losses_of(arms).values())),
    "latency": ("Is a pruned generator faster?", 5, lambda arms: [arms.latency]),
    "sparse-latency": (
        "Is it faster where zeros are skipped?",
        5,
        lambda arms: list(arms.sparse_latency.values()),
    ),
    "training-time": ("Does a pruned generator train faster?", 10, lambda arms: [arms.training_time]),
    "mode-collapse": ("What makes a generator lose modes?", 1, lambda arms: list(arms.ring.values())),
}
"""Name → question, chapter, arms; in the order in which they are run."""


@lru_cache
def arms_of(profile: str) -> Arms:
    """The configurations of a profile.

    Raises:
        ValueError: if there is no such profile.
    """
    return Arms(PROFILES[check_choice("profile", profile, PROFILES)])


def study(name: str, profile: str = "laptop") -> Study:
    """A study in the sizes of a profile.

    Raises:
        ValueError: if there is no such study or profile.
    """
    question, chapter, make = STUDIES[check_choice("name", name, STUDIES)]
    return Study(name, question, chapter, tuple(make(arms_of(profile))), OTHER_SEEDS.get(name, SEEDS))
