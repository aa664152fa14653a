"""Movement pruning in the training loop: scores are gathered while the schedule runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ganprune.core.checks import check_choice
from ganprune.dynamic.common import set_mask
from ganprune.dynamic.movement_phase import ALLOCATIONS, MovementPhase, running_phase
from ganprune.dynamic.scheduled import ScheduledPruning
from ganprune.dynamic.schedules import Schedule
from ganprune.masks.weights import prunable_weights
from ganprune.training.loop import DivergenceError
from ganprune.training.state import TrainState


class MovementPruning(ScheduledPruning):
    """Prunes the weights that move towards zero, more and more of them after a schedule; a callback.

    From step ``start`` to ``end`` a :class:`~ganprune.dynamic.movement_phase.MovementPhase` gathers −Σ lr · g · w (Sanh
    et al. 2020, "Movement pruning: adaptive sparsity by fine-tuning"). At the steps ``start + every``, … and ``end`` it
    chooses the mask with the sparsity that the schedule has for that step; until then the network is dense. Pruned
    weights can come back until ``end``, when the mask becomes final and is kept from then on like any other.

    In between the network holds zeros, but ``state.masks`` has no mask of it, and the EMA copy is the average of
    networks with different masks; at ``end`` it is masked too. What the phase has gathered is in ``state.extras``,
    so it is saved with the state.

    Args:
        network: "generator", whose EMA copy is masked at the end, or "discriminator".
        sparsity: final share of zeros among the prunable weights, in [0, 1). May be left out where the schedule says
            it: "piecewise" and functions.
        schedule: as for :class:`~ganprune.dynamic.gradual.GradualPruning`; "one-shot" has the full sparsity
            from the first choice on.
        start: the step after which scores are gathered.
        end: when the mask becomes final, after ``start``. Must be given for "cubic", "one-shot" and functions.
        every: steps between two choices of the mask; "piecewise" chooses at every step.
        allocation: "uniform" as in the paper, "global", "erk" or "per-output".
        protect: layers to leave alone.
        schedule_options: further options of the schedule: ``initial`` of "cubic", ``keep`` of "geometric", ``points``
            of "piecewise".

    Attributes:
        rows: one per choice of the mask: step, network, sparsity.

    Raises:
        ValueError: if an argument is out of range, the schedule falls, or does not end at ``sparsity``.
        TypeError: if an option of the schedule is missing or unknown.
    """

    def __init__(
        self,
        network: str = "generator",
        sparsity: float | None = None,
        schedule: str | Schedule = "cubic",
        *,
        start: int = 0,
        end: int | None = None,
        every: int = 1,
        allocation: str = "uniform",
        protect: Iterable[str] = (),
        schedule_options: Mapping[str, Any] | None = None,
    ) -> None:
        if end is None and schedule == "one-shot":
            raise ValueError("end must be given for the schedule 'one-shot', got None")
        super().__init__(network, sparsity, schedule, start, end, every, protect, schedule_options)
        if self.end == self.start:
            raise ValueError(f"end must be after start, {self.start}, got {self.end}")
        self.allocation = check_choice("allocation", allocation, ALLOCATIONS)
        self._phase: MovementPhase | None = None

    def sparsity_at(self, step: int) -> float:
        """The sparsity that belongs to a step: that of the last choice at or before it; 0 before the first."""
        first = min(self.start + self.every, self.end)
        return super().sparsity_at(step) if step >= first else 0.0

    def begin(self, state: TrainState) -> None:
        """Begins the phase if it is time to, or goes on with the one that a killed or stopped run has left.

        Raises:
            ValueError: if training ends before the schedule does, the schedule is over and there is no mask, or a mask
                is in force while scores have to be gathered: movement needs every weight.
        """
        if self._running(state) is not None:
            return
        saved = {
            key.removeprefix(self._prefix): value
            for key, value in state.extras.items()
            if key.startswith(self._prefix)
        }
        if not saved and state.step >= self.end:
            if self.network not in state.keepers:
                raise ValueError(
                    f"end must be after the step at which training goes on, {state.step}, got {self.end}: the "
                    f"{self.network} has no mask yet, and its scores are gathered while it trains"
                )
            return
        self._refuse_mask(state)
        if self.end > state.config.steps:
            raise ValueError(
                f"end must be at most {state.config.steps}, the last step of the run, got {self.end}"
            )
        if state.step < self.start:
            return
        model, optimizer = state.gan.networks()[self.network], state.optimizers[self.network]
        phase = MovementPhase(model, optimizer, 0.0, self.allocation, self.protect, every=None)
        if saved:
            phase.load_state_dict(saved)
        left = running_phase(model, optimizer)
        if left is not None:  # of a callback that was interrupted
            left.detach()
        phase.open()
        self._phase = phase
        self._store(state, phase)

    def __call__(self, state: TrainState) -> None:
        """Chooses the mask if it is time to; the last time it is put in force.

        Raises:
            DivergenceError: if scores or weights are NaN or infinite.
            ValueError: as :meth:`begin` does, and if another callback has put a mask in force on the way.
        """
        phase = self._running(state)
        if phase is None:
            self.begin(state)
            return
        self._refuse_mask(state)
        last, due = state.step >= self.end, (state.step - self.start) % self.every == 0
        if phase.steps and (last or due):
            self._check_finite(state, phase)
            phase.sparsity = self.sparsity_at(state.step)
            mask = phase.close() if last else phase.choose()
            self._record(state, mask)
        self._store(state, phase)
        if not phase.is_open:
            self._phase = None
            set_mask(state, self.network, phase.mask)

    @property
    def _prefix(self) -> str:
        return f"movement/{self.network}/"

    def _running(self, state: TrainState) -> MovementPhase | None:
        found = running_phase(state.gan.networks()[self.network], state.optimizers[self.network])
        return found if found is self._phase else None

    def _store(self, state: TrainState, phase: MovementPhase) -> None:
        """What has to be saved with the state; nothing after the end."""
        for key in [key for key in state.extras if key.startswith(self._prefix)]:
            del state.extras[key]
        if phase.is_open:
            state.extras |= {f"{self._prefix}{key}": value for key, value in phase.state_dict().items()}

    def _refuse_mask(self, state: TrainState) -> None:
        if self.network in state.keepers:
            raise ValueError(
                f"movement needs every weight, but a mask of sparsity {state.masks[self.network].sparsity:g} is in "
                f"force on the {self.network}"
            )

    def _check_finite(self, state: TrainState, phase: MovementPhase) -> None:
        tensors = [*phase.scores.values(), *prunable_weights(phase.model, self.protect).values()]
        if not bool(torch.stack([torch.isfinite(tensor).all() for tensor in tensors]).all()):
            raise DivergenceError(
                f"training diverged by step {state.step}: movement scores or weights of the {self.network} are NaN "
                "or infinite; lower learning_rate, or use spectral norm or a penalty"
            )

    def __repr__(self) -> str:
        span = f"steps {self.start} to {self.end} every {self.every}"
        return f"MovementPruning({self.network}, {self.allocation}, {span})"
