"""Movement pruning: scores that are gathered while the weights move."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ganprune.allocation.choose import allocate
from ganprune.allocation.shares import ALLOCATION_NAMES, PATTERNS
from ganprune.core.checks import check_choice
from ganprune.masks.keep import MaskKeeper
from ganprune.masks.mask import Mask
from ganprune.masks.weights import weight_slots
from ganprune.scores.registry import Scores

MOVEMENT_ALLOCATIONS = tuple(
    name for name in ALLOCATION_NAMES if name not in PATTERNS and name != "lamp"
)  # they take a sparsity, and scores of either sign


class MovementScores:
    """Gathers the movement score −Σ lr · g · w of each weight, from one optimiser step to the next.

    Sanh et al. 2020, "Movement pruning: adaptive sparsity by fine-tuning", equations 3 to 5. g is the gradient of the
    loss of the *masked* network, lr the learning rate of the step. Weights that move away from zero gain, those that
    shrink lose. The score of a pruned weight still moves (the mask's derivative is taken to be one: "straight
    through"), so such a weight can come back; therefore its last value is remembered here while the network holds a
    zero, and it comes back with that value. ::

        with gp.keep_mask(generator, gp.Mask.dense(generator), optimizer) as keeper:
            movement = gp.dynamic.MovementScores(keeper)
            for step in range(1_000):
                ...  # zero_grad, backward, step as ever
                movement.choose(schedule(step))
            movement.remove()

    Gradients are taken as they are when the optimiser steps, and under spectral or weight norm those of the raw
    parameter.

    Args:
        keeper: of the mask that is in force; it lets the gradients of pruned weights through from now on.
        gathered: what another one had in :attr:`tensors`, to go on from there.

    Attributes:
        tensors: all that was gathered, to be saved with the network and its mask: "sum/…" and "value/…" by weight.

    Raises:
        ValueError: if the mask in force has pruned anything and nothing was gathered yet, or what was gathered is of
            other layers.
    """

    def __init__(self, keeper: MaskKeeper, gathered: Mapping[str, Tensor] | None = None) -> None:
        slots = weight_slots(keeper.network)
        self._keeper, self._slots = keeper, {key: slots[key] for key in keeper.mask}
        if gathered is None:
            if keeper.mask.pruned:
                raise ValueError(
                    f"movement needs every weight, but a mask of sparsity {keeper.mask.sparsity:g} is in force"
                )
            gathered = {f"sum/{key}": torch.zeros_like(slot.raw) for key, slot in self._slots.items()}
            gathered |= {f"value/{key}": slot.raw for key, slot in self._slots.items()}
        shapes = {f"{kind}/{key}": s.raw.shape for kind in ("sum", "value") for key, s in self._slots.items()}
        if shapes != {key: tensor.shape for key, tensor in gathered.items()}:
            raise ValueError(
                f"gathered must be of the layers of the mask, {', '.join(shapes)}, got {', '.join(gathered)}"
            )
        self.tensors = {
            key: torch.empty_like(self._slots[key.partition("/")[2]].raw.detach()).copy_(tensor.detach())
            for key, tensor in gathered.items()
        }
        keeper.gradients = "dense"
        self._hook = keeper.optimizer.register_step_pre_hook(self._before_step)

    @property
    def scores(self) -> Scores:
        """−Σ lr · g · w so far, by weight; large means keep."""
        sums = {key: self.tensors[f"sum/{key}"].clone() for key in self._slots}
        return Scores(sums, {key: slot.output_dim for key, slot in self._slots.items()})

    @torch.no_grad()
    def choose(
        self,
        sparsity: float,
        allocation: str = "uniform",
        put_in_force: Callable[[Mask], None] | None = None,
    ) -> Mask:
        """Puts the mask of the largest scores in force. Weights that come back have the value they last had.

        Args:
            sparsity: in [0, 1).
            allocation: "uniform" as in the paper (the same sparsity in each layer), "global", "erk" or "per-output".
            put_in_force: is called with the mask; None for the keeper's ``update``. A GAN that owns its masks wants
                to be told.

        Returns:
            The mask.

        Raises:
            ValueError: if an argument is out of range, or the mask empties what a norm divides by; the mask of before
                stays then.
        """
        check_choice("allocation", allocation, MOVEMENT_ALLOCATIONS, " for movement")
        mask = allocate(self.scores, sparsity, allocation)
        self._remember()
        for key, slot in self._slots.items():
            slot.raw.copy_(self.tensors[f"value/{key}"])
        try:
            (put_in_force or self._keeper.update)(mask)
        except ValueError:
            for key, kept in self._keeper.mask.items():
                self._slots[key].raw.masked_fill_(~kept.to(self._slots[key].raw.device), 0.0)
            raise
        return mask

    def remove(self) -> None:
        """Gathers no more; the mask in force stays. May be called again."""
        self._hook.remove()
        self._keeper.gradients = "masked"

    def _remember(self) -> None:
        """Kept weights have their latest value in the network; of pruned ones it stays what it was."""
        for key, slot in self._slots.items():
            value = self.tensors[f"value/{key}"]
            value.copy_(torch.where(self._keeper.mask[key].to(value.device), slot.raw, value))

    @torch.no_grad()
    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._remember()
        rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
        for key, slot in self._slots.items():
            if slot.raw.grad is not None:
                moved = slot.raw.grad * self.tensors[f"value/{key}"]
                self.tensors[f"sum/{key}"].sub_(moved, alpha=rates[id(slot.raw)])
