"""Gradual pruning: more and more weights go while training goes on."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

from ganprune.allocation.shares import ALLOCATION_NAMES, PATTERNS
from ganprune.core.checks import check_choice, check_integer
from ganprune.dynamic.common import check_not_diverged
from ganprune.dynamic.schedules import Schedule, check_schedule
from ganprune.masks.mask import pruned_count
from ganprune.masks.weights import prunable_slots
from ganprune.networks.gan import MASKED_NETWORKS
from ganprune.pruning import prune
from ganprune.scores.registry import get_score
from ganprune.training.callbacks import PRUNE, Callback
from ganprune.training.state import TrainState


class GradualPruning(Callback):
    """Prunes more and more while training goes on, as a schedule says; a callback.

    ::

        gp.train(state, data.train, [gp.GradualPruning(gp.Cubic(0.9, start=0, end=800))])

    At each of its steps the network is scored as it is then, and pruned to the sparsity of that step. Masks are nested:
    what was pruned stays pruned. The three moments of pruning are *before* training, ``OneShot(0.9)`` (the same as
    :func:`ganprune.prune`); *during* training, a schedule with a start and an end; and *after* training,
    ``OneShot(0.9, start=config.steps)``, which prunes what the last step has left.

    Args:
        schedule: :class:`~ganprune.dynamic.schedules.Cubic` or another one; it must end within the run.
        score: one of ``gp.scores.SCORES``.
        every: steps between two prunings of a schedule that changes all the time; None for 100. The others prune where
            they change.
        network: "generator", whose EMA copy is pruned with it, or "discriminator".
        allocation: as for :func:`ganprune.allocate`, N:M patterns apart; None for the score's own.
        protect: layers to leave alone. Layers that a mask in force does not mention are left alone as well.
        loss_fn: for scores by gradients; of the generator, None stands for ``generator_loss`` of the GAN that is
            trained.
        inputs: for scores by activations; a tensor, or batches that can be gone through several times.
        seed: for scores that draw random numbers; the same at each pruning.

    Attributes:
        steps: where it prunes.
        rows: one per pruning: step, network, sparsity.

    Raises:
        TypeError: if the schedule is none.
        ValueError: if an argument is out of range, the schedule falls, or the score lacks what it needs.
    """

    order = PRUNE

    def __init__(
        self,
        schedule: Schedule,
        score: str = "magnitude",
        *,
        every: int | None = None,
        network: str = "generator",
        allocation: str | None = None,
        protect: Iterable[str] = (),
        loss_fn: Any = None,
        inputs: Any = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_schedule(schedule, ())
        if every is not None and schedule.changes is not None:
            raise ValueError(
                f"every is not used by {schedule!r}, which prunes where it changes, got {every!r}"
            )
        interval = check_integer("every", 100 if every is None else every, 1)
        self.steps = schedule.changes or (*range(schedule.start, schedule.end, interval), schedule.end)
        check_schedule(schedule, self.steps)
        self.schedule, self.score, self.seed = schedule, score, check_integer("seed", seed, 0)
        self.network = check_choice("network", network, MASKED_NETWORKS)
        self.name = f"{type(self).__name__}/{network}"
        self.protect = (protect,) if isinstance(protect, str) else tuple(protect)
        self.allocation = allocation or get_score(score).allocation
        if self.allocation in PATTERNS:
            raise ValueError(
                f"allocation {allocation!r} has one sparsity; prune to it at once, with gp.prune"
            )
        check_choice("allocation", self.allocation, ALLOCATION_NAMES)
        self.data = {"loss_fn": loss_fn, "inputs": inputs}
        needed = [
            name for name, value in self.data.items() if value is None and name in get_score(score).needs
        ]
        if network == "generator" and "loss_fn" in needed:
            needed.remove("loss_fn")  # prune makes it from the GAN
        if needed:
            raise ValueError(f"{needed[0]} must be given for the score {score!r} of the {network}")

    def sparsity_at(self, step: int) -> float:
        """The sparsity that belongs to a step: that of the last pruning at or before it; 0 before the first."""
        passed = bisect_right(self.steps, step)
        return self.schedule(self.steps[passed - 1]) if passed else 0.0

    def begin(self, state: TrainState) -> None:
        """Prunes before the first step if the schedule starts there; in a resumed run the mask is there already.

        Raises:
            ValueError: if the schedule ends after the run, or ``protect`` names a layer that is pruned already.
        """
        if self.schedule.end > state.config.steps:
            raise ValueError(
                f"schedule must end by the last step of the run, {state.config.steps}, got {self.schedule!r}"
            )
        self(state)

    def __call__(self, state: TrainState) -> None:
        """Prunes if the network keeps more than the schedule allows at this step.

        Raises:
            DivergenceError: if training has diverged, so that there is nothing to score.
        """
        target, current = self.sparsity_at(state.step), state.gan.masks.get(self.network)
        if target == 0 or (current is not None and current.pruned >= pruned_count(target, current.total)):
            return
        check_not_diverged(state, self.network)
        keys = prunable_slots(state.gan.networks()[self.network])
        candidates = prunable_slots(state.gan.networks()[self.network], self.protect)
        lost = [key for key in current or () if key not in candidates]
        if lost:
            raise ValueError(f"protect names layers that are pruned already: {', '.join(lost)}")
        mask = prune(
            state.gan,
            target,
            which=self.network,
            score=self.score,
            allocation=self.allocation,
            protect=[key for key in keys if key not in (current or candidates)],
            within=current,
            seed=self.seed,
            **self.data,
        )
        self.rows.append({"step": state.step, "network": self.network, "sparsity": mask.sparsity})

    def __repr__(self) -> str:
        return f"GradualPruning({self.schedule!r}, {self.score!r}, network={self.network!r})"
