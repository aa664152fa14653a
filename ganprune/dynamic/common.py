"""What the callbacks of this folder share: checks of arguments, masks in force, dense gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ganprune.allocation.choose import allocate
from ganprune.core.checks import check_number
from ganprune.masks.keep import MaskKeeper
from ganprune.masks.mask import Mask, MaskError
from ganprune.masks.weights import weight_slots
from ganprune.scores.registry import score
from ganprune.training.state import TrainState

NETWORKS = ("generator", "discriminator")


def pair(name: str, values: Any, interval: str) -> tuple[float, float]:
    if not isinstance(values, Sequence) or len(values) != 2 or isinstance(values, str):
        raise TypeError(f"{name} must be (lower, upper), got {values!r}")
    lower, upper = (check_number(name, value, interval) for value in values)
    if not lower < upper:
        raise ValueError(f"{name} must be (lower, upper) with lower < upper, got {values!r}")
    return lower, upper


_dense_steps: WeakKeyDictionary[MaskKeeper, set[int]] = WeakKeyDictionary()
"""The steps at which a keeper lets the dense gradients through, because a callback asked for them."""


def ask_for_gradients(state: TrainState, network: str) -> None:
    """The next step leaves dense gradients."""
    keeper = state.keepers[network]
    keeper.gradients = "dense"
    _dense_steps.setdefault(keeper, set()).add(state.step + 1)


def release_gradients(state: TrainState, network: str) -> None:
    """Gradients are masked from the next step on, unless somebody has asked for those of the next step."""
    keeper = state.keepers[network]
    asked = {step for step in _dense_steps.get(keeper, ()) if step >= state.step}
    if keeper in _dense_steps:
        _dense_steps[keeper] = asked
        if state.step + 1 not in asked:
            keeper.gradients = "masked"


def dense_gradients(state: TrainState, network: str) -> dict[str, Tensor]:
    """The gradients of the step that was just made, unmasked, by weight.

    Raises:
        MaskError: if nobody asked for them before the step, or a layer has none.
    """
    keeper = state.keepers[network]
    if state.step not in _dense_steps.get(keeper, ()):
        raise MaskError(
            f"the gradients of step {state.step} were masked, so nothing can be grown by them: call begin(state) "
            "before training, also when a run is resumed, and call the callback after every step"
        )
    slots = weight_slots(keeper.model)
    gradients = {key: slots[key].raw.grad for key in keeper.mask}
    missing = [key for key, gradient in gradients.items() if gradient is None]
    if missing:
        raise MaskError(f"the {network} has no gradient to grow by in {', '.join(missing)}")
    return {key: gradient for key, gradient in gradients.items() if gradient is not None}


def set_mask(state: TrainState, network: str, mask: Mask) -> None:
    """Puts a mask in force and leaves the gradients alone: another callback may want them at the same step."""
    keeper = state.keepers.get(network)
    if keeper is None:
        state.set_mask(network, mask)
        return
    mode, keeper.gradients = keeper.gradients, "dense"
    try:
        state.set_mask(network, mask)
    finally:
        keeper.gradients = mode


def mask_in_force(state: TrainState, network: str) -> Mask:
    if network not in state.keepers:
        raise MaskError(f"no mask is in force for the {network}; call begin(state) before training")
    return state.keepers[network].mask


def random_mask(
    model: nn.Module, sparsity: float, allocation: str, protect: Iterable[str], seed: int
) -> Mask:
    return allocate(score(model, "random", protect=protect, seed=seed), sparsity, allocation)


def effective(model: nn.Module, mask: Mask) -> dict[str, Tensor]:
    slots = weight_slots(model)
    return {key: slots[key].effective() for key in mask}


def check_layers(name: str, tensors: Mapping[str, Tensor], mask: Mask) -> None:
    wrong = [key for key, kept in mask.items() if key not in tensors or tensors[key].shape != kept.shape]
    if wrong:
        raise ValueError(f"{name} must have the layers and shapes of the mask; not so in {', '.join(wrong)}")
    bad = [key for key in mask if not bool(torch.isfinite(tensors[key]).all())]
    if bad:
        raise ValueError(f"{name} must be finite, got NaN or infinity in {', '.join(bad)}")
