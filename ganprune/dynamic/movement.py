"""Movement pruning in the training loop: the mask follows the movement scores and a schedule until it is final."""

from __future__ import annotations

from collections.abc import Iterable

from ganprune.core.checks import check_choice, check_integer
from ganprune.dynamic.common import check_not_diverged
from ganprune.dynamic.movement_scores import MOVEMENT_ALLOCATIONS, MovementScores
from ganprune.dynamic.schedules import Schedule, check_schedule
from ganprune.masks.mask import Mask, MaskError
from ganprune.networks.gan import MASKED_NETWORKS
from ganprune.training.callbacks import PRUNE, Callback
from ganprune.training.state import TrainState


class MovementPruning(Callback):
    """Prunes the weights that move towards zero, more and more of them as a schedule says; a callback.

    From the schedule's start to its end :class:`~ganprune.dynamic.movement_scores.MovementScores` are gathered (Sanh et
    al. 2020, "Movement pruning: adaptive sparsity by fine-tuning"). After every ``every`` steps, and at the end, the
    mask with the sparsity of that step is chosen by the scores so far. Pruned weights can come back until the end, when
    the mask becomes final. In between it stands in ``gan.masks`` like any other mask; what was gathered stands in
    ``state.extras``, so that it is saved with the state.

    Args:
        schedule: such as ``Cubic(0.9, start=100, end=800)``; it must end after it starts, and within the run.
        every: steps between two choices of the mask.
        network: "generator", whose EMA copy is masked with it, or "discriminator".
        allocation: "uniform" as in the paper (the same sparsity in each layer), "global", "erk" or "per-output".
        protect: layers to leave alone.

    Attributes:
        rows: one per choice of the mask: step, network, sparsity.

    Raises:
        TypeError: if the schedule is none.
        ValueError: if an argument is out of range, or the schedule falls.
    """

    order = PRUNE

    def __init__(
        self,
        schedule: Schedule,
        *,
        every: int = 1,
        network: str = "generator",
        allocation: str = "uniform",
        protect: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.every = check_integer("every", every, 1)
        check_schedule(schedule, ())
        if schedule.end <= schedule.start:
            raise ValueError(
                f"schedule must end after it starts, because scores are gathered in between, got {schedule!r}"
            )
        check_schedule(schedule, (*range(schedule.start, schedule.end, self.every), schedule.end))
        self.schedule = schedule
        self.network = check_choice("network", network, MASKED_NETWORKS)
        self.name = f"{type(self).__name__}/{network}"
        self.allocation = check_choice("allocation", allocation, MOVEMENT_ALLOCATIONS, " for movement")
        self.protect = (protect,) if isinstance(protect, str) else tuple(protect)
        self._movement: MovementScores | None = None
        self._mask: Mask | None = None  # the one chosen last

    def begin(self, state: TrainState) -> None:
        """Begins to gather if it is time to, or goes on where a stopped or saved run was.

        Raises:
            ValueError: if training ends before the schedule does, if the schedule is over and nothing was pruned, or
                if a mask is in force before scores are gathered: movement needs every weight.
        """
        masks, prefix = state.gan.masks, f"{self.name}/"
        if self.schedule.end > state.config.steps:
            raise ValueError(
                f"schedule must end by the last step of the run, {state.config.steps}, got {self.schedule!r}"
            )
        self.end(state)
        gathered = {k.removeprefix(prefix): v for k, v in state.extras.items() if k.startswith(prefix)}
        if gathered:
            self._movement = MovementScores(masks.keeper(self.network), gathered)
            self._mask = masks[self.network]
            self._share(state)
        elif state.step >= self.schedule.end:
            if self.network not in masks:
                raise ValueError(
                    f"schedule must end after step {state.step}, where training goes on, got {self.schedule!r}: the "
                    f"{self.network} has no mask yet, and its scores are gathered while it trains"
                )
        else:
            self._refuse_another_mask(state)
            self._start_if_due(state)

    def __call__(self, state: TrainState) -> None:
        """Chooses the mask if it is time to; the last choice is final.

        Raises:
            DivergenceError: if training has diverged, so that the scores mean nothing.
            MaskError: if something else has changed the mask while scores are gathered.
        """
        if self._movement is None:
            self._start_if_due(state)
            return
        self._refuse_another_mask(state)
        last = state.step >= self.schedule.end
        if last or (state.step - self.schedule.start) % self.every == 0:
            check_not_diverged(state, self.network, self._movement.tensors.values())
            sparsity = self.schedule(state.step)
            self._mask = self._movement.choose(sparsity, self.allocation, lambda mask: self._set(state, mask))
            self.rows.append({"step": state.step, "network": self.network, "sparsity": self._mask.sparsity})
        if last:
            self.end(state)
            for key in [key for key in state.extras if key.startswith(f"{self.name}/")]:
                del state.extras[key]

    def end(self, state: TrainState) -> None:
        """Gathers no more; what was gathered stays in ``state.extras``."""
        if self._movement is not None:
            self._movement.remove()
        self._movement = None

    def _start_if_due(self, state: TrainState) -> None:
        if not self.schedule.start <= state.step < self.schedule.end:
            return
        self._refuse_another_mask(state)
        self._mask = Mask.dense(state.gan.networks()[self.network], self.protect)
        self._set(state, self._mask)
        self._movement = MovementScores(state.gan.masks.keeper(self.network))
        self._share(state)

    def _share(self, state: TrainState) -> None:
        """The tensors in the state are those that are gathered into, so they are always as new as the step."""
        assert self._movement is not None
        state.extras |= {f"{self.name}/{key}": tensor for key, tensor in self._movement.tensors.items()}

    def _set(self, state: TrainState, mask: Mask) -> None:
        state.gan.masks[self.network] = mask

    def _refuse_another_mask(self, state: TrainState) -> None:
        mask = state.gan.masks.get(self.network)
        if self._movement is not None and mask is not self._mask:
            raise MaskError(
                f"the mask of the {self.network} was changed by something else while movement scores are gathered"
            )
        if self._movement is None and mask is not None and mask.pruned:
            raise ValueError(
                f"movement needs every weight, but a mask of sparsity {mask.sparsity:g} is in force on the "
                f"{self.network}"
            )

    def __repr__(self) -> str:
        return f"MovementPruning({self.schedule!r}, every={self.every}, network={self.network!r})"
