"""Movement pruning: a score that is gathered while the weights move."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from ganprune.allocation.choose import allocate
from ganprune.allocation.shares import ALLOCATION_NAMES, PATTERNS
from ganprune.core.checks import check_choice, check_integer
from ganprune.masks.apply import apply_mask, check_mask
from ganprune.masks.keep import MaskKeeper
from ganprune.masks.mask import Mask, MaskError, check_sparsity
from ganprune.masks.weights import prunable_slots
from ganprune.scores.registry import Scores

ALLOCATIONS = tuple(name for name in ALLOCATION_NAMES if name not in PATTERNS and name != "lamp")
"""Those that take a sparsity and scores of either sign."""


class MovementPhase:
    """Movement pruning: a phase of training in which each weight's score is ``−Σ lr · g · w``.

    Sanh et al. 2020, "Movement pruning: adaptive sparsity by fine-tuning", equations 3 to 5. Weights that
    move away from zero gain, those that shrink lose. The score of a pruned weight still moves
    (straight-through), so it can come back; therefore this phase keeps *shadow weights* that are not zero.
    Between steps the network holds shadow ⊙ mask, so forward and backward passes see the masked network;
    inside the optimiser's step the shadow weights are put back, moved by the masked gradient, stored, and
    masked by the new largest scores. What is done to a kept weight between two steps (clipping, say) counts.

    ::

        with MovementPhase(generator, optimizer, sparsity=0.9) as phase:
            ...  # train as ever; phase.sparsity = schedule(step) for a gradual one
        keeper = keep_mask(generator, phase.mask, optimizer)

    At the end of the block the mask is final, the network is masked, and the shadow weights are dropped. If
    the block raises, the shadow weights are put back. Gradients are taken as they are when the optimiser
    steps (after clipping), and those of the raw parameter under a norm, where g · w does not depend on the
    scale. Without a block, :meth:`open` begins the phase and :meth:`close` ends it.

    Args:
        model: changed in place.
        optimizer: moves the model's parameters; its hooks do the work.
        sparsity: in [0, 1); may be set anew at any time, for example by a schedule of the loop's step.
        allocation: "uniform" as in the paper (the same sparsity in each layer), "global", "erk" or
            "per-output".
        protect: layers to leave out.
        every: choose the mask anew after so many optimiser steps, at least 1; None: only when :meth:`choose`
            is called.

    Attributes:
        mask: in force now; dense before the first choice.
        steps: optimiser steps made in this phase.

    Raises:
        TypeError: if the optimiser is none of torch's, or LBFGS.
        ValueError: if an argument is out of range, or the optimiser does not hold the model's weights.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sparsity: float,
        allocation: str = "uniform",
        protect: Iterable[str] = (),
        every: int | None = 1,
    ) -> None:
        if not isinstance(optimizer, Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
            raise TypeError(
                f"optimizer must be a torch optimiser other than LBFGS, got {type(optimizer).__name__}"
            )
        check_choice("allocation", allocation, ALLOCATIONS, " for movement")
        every = None if every is None else check_integer("every", every, 1)
        self.model, self.optimizer, self.allocation, self.every = model, optimizer, allocation, every
        self.sparsity = sparsity
        self._slots = prunable_slots(model, protect)
        rates = _rates(optimizer)
        missing = [key for key, slot in self._slots.items() if id(slot.raw) not in rates]
        if missing:
            raise ValueError(f"optimizer does not hold {', '.join(missing)}")
        self._sums = {
            key: torch.zeros_like(slot.raw, requires_grad=False) for key, slot in self._slots.items()
        }
        self._shadow: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self.steps = 0
        self.mask = Mask.dense(model, protect)

    @property
    def sparsity(self) -> float:
        """What the next choice of the mask aims at."""
        return self._sparsity

    @sparsity.setter
    def sparsity(self, value: float) -> None:
        self._sparsity = check_sparsity(value)

    @property
    def scores(self) -> Scores:
        """−Σ lr · g · w so far; large means keep."""
        dims = {key: slot.output_dim for key, slot in self._slots.items()}
        return Scores({key: total.clone() for key, total in self._sums.items()}, dims)

    @property
    def is_open(self) -> bool:
        """Whether the optimiser's steps are those of this phase."""
        return bool(self._handles)

    def open(self) -> None:
        """Begins the phase, or goes on with the one that :meth:`load_state_dict` has loaded.

        Raises:
            ValueError: if this phase or another one is open on the model, or a mask is kept on it: scores
                need weights that are not zero.
        """
        if running_phase(self.model, self.optimizer) is not None:
            raise ValueError("a movement phase is open on this model already; close it first")
        for hook in _hooks(self.optimizer, "post"):
            keeper = getattr(hook, "__self__", None)
            if isinstance(keeper, MaskKeeper) and keeper.model is self.model:
                raise ValueError(
                    f"movement needs every weight, but a mask of sparsity {keeper.mask.sparsity:g} is in force "
                    "on this model"
                )
        if not self._shadow:
            self._shadow = {key: slot.raw.detach().clone() for key, slot in self._slots.items()}
        self._handles = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]

    @torch.no_grad()
    def choose(self) -> Mask:
        """Chooses the mask anew by the scores so far and puts it in force; weights that come back have their
        shadow's value.

        Raises:
            MaskError: if no step was made, so that there is no score.
            ValueError: if the mask empties what a norm divides by; the mask of before stays then.
        """
        if not self.steps:
            raise MaskError(
                "no optimiser step was made in the movement phase, so there is no score and no mask"
            )
        self._gather()
        dims = {key: slot.output_dim for key, slot in self._slots.items()}
        mask = allocate(Scores(self._sums, dims), self.sparsity, self.allocation)
        for key, slot in self._slots.items():
            slot.raw.copy_(self._shadow[key])
        try:
            apply_mask(self.model, mask)
        except ValueError:
            self._hide()
            raise
        self.mask = mask
        return mask

    def close(self) -> Mask:
        """Ends the phase with a last choice of the mask; the network is masked, the shadow weights are gone.

        Raises:
            MaskError: as :meth:`choose` does; the phase is still open then.
            ValueError: likewise.
        """
        mask = self.choose()
        self.detach()
        self._shadow = {}
        return mask

    def detach(self) -> None:
        """Takes the hooks away and leaves the network as it is, masked; for another phase to go on from
        :meth:`state_dict`."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def state_dict(self) -> dict[str, Tensor]:
        """All that the phase has gathered: tensors to be saved beside the network and its optimiser.

        They are the phase's own, not copies.

        Raises:
            MaskError: if the phase is not open.
        """
        if not self.is_open:
            raise MaskError("the movement phase is not open, so it has nothing to save")
        values = {"steps": torch.tensor(self.steps)}
        for name, tensors in (("sum", self._sums), ("shadow", self._shadow), ("mask", self.mask)):
            values |= {f"{name}/{key}": tensor for key, tensor in tensors.items()}
        return values

    @torch.no_grad()
    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """Goes on from what :meth:`state_dict` gave; the network is as it was then, that is masked.

        Raises:
            ValueError: if the layers or shapes are not those of this phase.
            MaskError: if the network is not masked as it was: it was trained on without the phase.
        """
        shapes: dict[str, torch.Size] = {"steps": torch.Size()}
        for name in ("sum", "shadow", "mask"):
            shapes |= {f"{name}/{key}": slot.raw.shape for key, slot in self._slots.items()}
        wrong = [
            key for key in {**shapes, **values} if shapes.get(key) != getattr(values.get(key), "shape", 0)
        ]
        if wrong:
            raise ValueError(
                f"values must be those of a phase with the same layers; not so {', '.join(wrong)}"
            )
        mask = Mask({key: values[f"mask/{key}"] for key in self._slots})
        check_mask(self.model, mask)
        self.steps = int(values["steps"])
        self.mask = mask
        self._shadow = {key: torch.empty_like(total) for key, total in self._sums.items()}
        for key in self._slots:
            self._sums[key].copy_(values[f"sum/{key}"])
            self._shadow[key].copy_(values[f"shadow/{key}"])

    def _gather(self) -> None:
        """Brings the shadow weights up to date: where a weight is kept, the network has the latest value."""
        for key, slot in self._slots.items():
            kept = self.mask[key].to(slot.raw.device)
            self._shadow[key].copy_(torch.where(kept, slot.raw, self._shadow[key]))

    def _hide(self) -> None:
        for key, slot in self._slots.items():
            slot.raw.masked_fill_(~self.mask[key].to(slot.raw.device), 0.0)

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._gather()
        rates = _rates(optimizer)
        for key, slot in self._slots.items():
            weight, shadow = slot.raw, self._shadow[key]
            if weight.grad is not None:
                self._sums[key].addcmul_(weight.grad, shadow, value=-rates[id(weight)])
                weight.grad.masked_fill_(~self.mask[key].to(weight.device), 0.0)
            weight.copy_(shadow)

    @torch.no_grad()
    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.steps += 1
        for key, slot in self._slots.items():
            self._shadow[key].copy_(slot.raw)
        self._hide()
        if self.every is not None and self.steps % self.every == 0:
            self.choose()

    def __enter__(self) -> MovementPhase:
        self.open()
        return self

    @torch.no_grad()
    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            if self.is_open:  # the block or the last choice has failed
                self._gather()
                self.detach()
                for key, slot in self._slots.items():
                    slot.raw.copy_(self._shadow[key])
                self._shadow = {}

    def __repr__(self) -> str:
        return f"MovementPhase(sparsity={self.sparsity}, steps={self.steps}, {self.mask!r})"


def running_phase(model: nn.Module, optimizer: Optimizer) -> MovementPhase | None:
    """The movement phase that is open on a model, if there is one."""
    for hook in _hooks(optimizer, "pre"):
        phase = getattr(hook, "__self__", None)
        if isinstance(phase, MovementPhase) and phase.model is model:
            return phase
    return None


def _rates(optimizer: Optimizer) -> dict[int, float]:
    """The learning rate of each parameter now, by its id."""
    return {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}


def _hooks(optimizer: Optimizer, moment: str) -> list[Any]:
    return list(getattr(optimizer, f"_optimizer_step_{moment}_hooks").values())
