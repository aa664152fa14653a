"""Gradual pruning: more and more weights go while training goes on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from ganprune.allocation.choose import allocate
from ganprune.allocation.shares import ALLOCATION_NAMES, PATTERNS
from ganprune.core.checks import check_choice
from ganprune.dynamic.common import set_mask
from ganprune.dynamic.scheduled import ScheduledPruning
from ganprune.dynamic.schedules import Schedule
from ganprune.masks.mask import Mask, pruned_count
from ganprune.masks.weights import protected_keys, prunable_slots
from ganprune.scores.registry import get_score, score
from ganprune.training.state import TrainState


class GradualPruning(ScheduledPruning):
    """Prunes more and more while training goes on, after a schedule; a callback.

    At the steps ``start``, ``start + every``, … and ``end`` the network is scored and pruned to the sparsity that
    the schedule has for that step. Masks are nested: what was pruned stays pruned. After ``end`` nothing changes.

    The three moments of pruning are: *before* training ``schedule="one-shot", start=0`` (or simply ``prune`` and a
    ``TrainState`` with that mask); *during* training a start and an end in between; *after* training
    ``schedule="one-shot", start=config.steps``, which prunes what the last step has left (or ``prune`` again).

    Args:
        network: "generator", whose EMA copy is pruned with it, or "discriminator".
        sparsity: final share of zeros among the prunable weights, in [0, 1). May be left out where the schedule says
            it: "piecewise" and functions.
        schedule: "cubic" (Zhu & Gupta 2018, "To prune, or not to prune", equation 1), "one-shot" (at ``start``),
            "geometric" (each round of ``every`` steps keeps the same share of what is left), "piecewise", or a
            function from step to sparsity that never falls.
        start: first step at which anything may be pruned (the warm-up lies before).
        end: last step of the schedule. None: of "one-shot" the start, of "geometric" the round that reaches the
            sparsity, of "piecewise" the last point.
        every: steps between two prunings; "piecewise" prunes at its points.
        score: one of ``SCORES``; evaluated anew at each pruning, on the weights of that step.
        allocation: as for ``allocate``, N:M patterns apart; None for the score's own.
        protect: layers to leave alone. Layers that a mask in force does not mention are left alone as well.
        loss_fn: for scores by gradients, such as ``generator_loss(gan)`` of the very GAN that is trained.
        inputs: for scores by activations; a tensor, or batches that can be gone through several times.
        seed: for scores that draw random numbers; the same at each pruning.
        schedule_options: further options of the schedule: ``initial`` of "cubic", ``keep`` of "geometric" (0.8 unless
            given), ``points`` of "piecewise".
        options: further options of the score.

    Attributes:
        rows: one per pruning: step, network, sparsity.

    Raises:
        ValueError: if an argument is out of range, the schedule falls, does not end at ``sparsity``, or the score
            lacks what it needs.
        TypeError: if an option is unknown.
    """

    def __init__(
        self,
        network: str = "generator",
        sparsity: float | None = None,
        schedule: str | Schedule = "cubic",
        *,
        start: int = 0,
        end: int | None = None,
        every: int = 100,
        score: str = "magnitude",
        allocation: str | None = None,
        protect: Iterable[str] = (),
        loss_fn: Any = None,
        inputs: Any = None,
        seed: int = 0,
        schedule_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(network, sparsity, schedule, start, end, every, protect, schedule_options)
        chosen = get_score(score)
        self.score, self.allocation = score, allocation or chosen.allocation
        if self.allocation in PATTERNS:
            raise ValueError(
                f"allocation {self.allocation!r} has one sparsity; prune to it at once, with prune()"
            )
        check_choice("allocation", self.allocation, ALLOCATION_NAMES)
        chosen.check_arguments(loss_fn, inputs, options)
        self._arguments = {"loss_fn": loss_fn, "inputs": inputs, "seed": seed, **options}

    def begin(self, state: TrainState) -> None:
        """Prunes at step 0 if the schedule starts there; in a resumed run the mask is there already."""
        target, mask = self.sparsity_at(state.step), state.masks.get(self.network)
        if target > 0 and (mask is None or mask.pruned < pruned_count(target, mask.total)):
            self._prune(state, target, mask)

    def __call__(self, state: TrainState) -> None:
        """Prunes if the network keeps more than the schedule allows at this step.

        Warns:
            UserWarning: if training ends before the schedule does.
        """
        self.begin(state)
        if state.step == state.config.steps < self.end:
            warnings.warn(
                f"training ends at step {state.step}, before the schedule of the {self.network} at step {self.end}",
                UserWarning,
                stacklevel=2,
            )

    def _prune(self, state: TrainState, target: float, current: Mask | None) -> None:
        model = state.gan.networks()[self.network]
        protect: Iterable[str] = self.protect
        if current is not None:
            keys = list(prunable_slots(model))
            shielded = protected_keys(keys, self.protect) & set(current)
            if shielded:
                raise ValueError(f"protect names layers of the mask in force: {', '.join(sorted(shielded))}")
            protect = [key for key in keys if key not in current]
        scores = score(model, self.score, protect=protect, sparsity=target, **self._arguments)
        mask = allocate(scores, target, self.allocation, within=current)
        set_mask(state, self.network, mask)
        self._record(state, mask)

    def __repr__(self) -> str:
        span = f"steps {self.start} to {self.end} every {self.every}"
        return f"GradualPruning({self.network}, {self.score}, {self.allocation}, {span})"
