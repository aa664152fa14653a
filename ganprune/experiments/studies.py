"""The studies of the course: which arms are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ganprune.core.checks import check_choice
from ganprune.experiments.arms import Arms, arms_of
from ganprune.experiments.base import Experiment
from ganprune.experiments.ring_training import RingTraining
from ganprune.experiments.training import FromScratch

SPARSITIES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Where the course looks at a generator that was pruned and not trained on."""
RECOVERED = (0.5, 0.7, 0.8, 0.9, 0.95)
"""Where it trains the generator on."""
CHANNEL_RATIOS = (0.25, 0.5, 0.7)
"""Shares of the channels that are taken out of a generator that is trained on."""
SEEDS = (0, 1, 2, 3, 4)
"""Seeds that decide."""
SEARCHED = (100,)
"""Seeds on which recipes are searched, so that no claim is tested by the search that chose its recipe."""
RING_SEEDS = tuple(range(10))
"""Seeds that decide on the ring, where a training takes little more than a minute at most."""
OTHER_SEEDS = {
    "recipe": SEARCHED,
    "mode-collapse": RING_SEEDS,
    "ring-search": (100, 101, 102),
    "ring-losses": RING_SEEDS,
    "ring-schedules": RING_SEEDS,
    "ring-tickets": RING_SEEDS,
}
"""Of the studies that have seeds of their own."""
RING_CHOSEN = {
    "non-saturating": 3e-3,
    "non-saturating, R1": 3e-3,
    "WGAN, clipping": 1e-3,
    "WGAN-GP": 3e-3,
    "hinge, spectral norm": 1e-2,
    "WGAN-GP, weight 0.1": 3e-3,
    "non-saturating, R1, five updates": 3e-3,
}
"""Loss → the learning rate at which it came nearest to the data in the study "ring-search"."""


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


def ring_losses_of(arms: Arms) -> dict[str, RingTraining]:
    """Ways of training on the ring, each at the learning rate that was found for it."""
    return {name: arms.ring_search[name][rate] for name, rate in RING_CHOSEN.items()}


def _ring_search(arms: Arms) -> list[Experiment]:
    return [arm for rates in arms.ring_search.values() for arm in rates.values()]


def _magnitude(arms: Arms) -> list[Experiment]:
    found = [arms.control]
    found += [arms.recovery(sparsity) for sparsity in RECOVERED]
    found += [arms.recovery(0.9, allocation=allocation) for allocation in ("lamp", "erk", "uniform")]
    found += [arms.protected(0.9), arms.in_float32(0.9)]
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
    after += [arms.recovery(0.8, allocation="counts of taylor"), arms.recovery(0.8)]
    return [*before, arms.pruned(0.8), arms.control, *after]


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
    at_once = [arms.masks(score) for score in ("random", "magnitude", "snip", "grasp", "synflow")]
    return [*at_once, arms.masks("snip", cuts=5)]


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
    "critic-and-blur": (
        "What do an exact distance and a critic say of a blur?",
        3,
        lambda arms: [arms.critic_and_blur],
    ),
    "latency": ("Is a pruned generator faster?", 5, lambda arms: [arms.latency]),
    "fewer-channels": (
        "What does it cost to take out whole channels?",
        5,
        lambda arms: [arms.control, *(arms.fewer_channels(ratio) for ratio in CHANNEL_RATIOS)],
    ),
    "sparse-latency": (
        "Is it faster where zeros are skipped?",
        5,
        lambda arms: list(arms.sparse_latency.values()),
    ),
    "training-time": ("Does a pruned generator train faster?", 10, lambda arms: [arms.training_time]),
    "mode-collapse": ("What makes a generator lose modes?", 1, lambda arms: list(arms.ring.values())),
    "ring-search": ("Which learning rate suits each loss on the ring?", 3, _ring_search),
    "ring-losses": (
        "Does the loss matter on the ring, once each is tuned?",
        3,
        lambda arms: list(ring_losses_of(arms).values()),
    ),
    "ring-schedules": (
        "When is it best to prune, on the ring?",
        10,
        lambda arms: [
            *arms.ring_schedules.values(),
            *arms.ring_slower.values(),
            *arms.ring_schedules_searched.values(),
            *arms.ring_slower_searched.values(),
        ],
    ),
    "ring-tickets": (
        "Are there winning lottery tickets on the ring?",
        13,
        lambda arms: [arms.ring_tickets, arms.ring_tickets_searched],
    ),
}
"""Name → question, chapter, arms; in the order in which they are run."""


def study(name: str, profile: str = "laptop") -> Study:
    """A study in the sizes of a profile.

    Raises:
        ValueError: if there is no such study or profile.
    """
    question, chapter, make = STUDIES[check_choice("name", name, STUDIES)]
    return Study(name, question, chapter, tuple(make(arms_of(profile))), OTHER_SEEDS.get(name, SEEDS))
