"""Keeping a mask while an optimiser steps.

A pruned weight *is* zero. Nothing is recomputed in the forward pass, so a masked network is an ordinary
network: it can be copied, compiled, normalised spectrally and saved. What keeps the zeros is a hook on the
optimiser (:func:`keep_mask`). For element-wise optimisers (SGD, RMSprop, Adam, AdamW) that is projected
descent: a step of the dense method followed by the projection onto the networks with this mask.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ganprune.core.checks import check_choice
from ganprune.masks.apply import apply_mask, check_pairs, match_slots
from ganprune.masks.mask import Mask, MaskError
from ganprune.masks.weights import slots_of_parameters, weight_slots

GRADIENT_MODES = ("masked", "dense")


_INTEGER_OF_WIDTH = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _bits(kept: Tensor, weight: Tensor) -> Tensor:
    """The mask as integers of the weight's width and memory layout: all bits where kept, none where pruned.

    ``weight & bits`` is one fast pass and gives +0.0, where a product would give −0.0 and keep a NaN.
    """
    bits = torch.zeros_like(weight.detach().view(_INTEGER_OF_WIDTH[weight.element_size()]))
    return bits.masked_fill_(kept.to(weight.device), -1)


def _and_(tensor: Tensor, bits: Tensor) -> None:
    if tensor.element_size() == bits.element_size():
        tensor.detach().view(bits.dtype).bitwise_and_(bits)
    else:  # a gradient in another precision than its weight
        tensor.detach().masked_fill_(bits == 0, 0.0)


_keeper_of: weakref.WeakValueDictionary[int, MaskKeeper] = weakref.WeakValueDictionary()
"""The keeper of a parameter, by the parameter's id; a keeper holds its parameters, so an id is not used twice."""


class MaskKeeper:
    """Keeps a mask while an optimiser steps; made by :func:`keep_mask`.

    As a context manager it checks and then removes itself at the end of the block. The optimiser holds its keeper:
    whoever drops both drops the mask's protection with them, and no hook stays on a parameter.

    Attributes:
        mask: the mask in force.
        others: what is held beside the mask: entries of parameters that are no prunable weights, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        mask: Mask,
        optimizer: Optimizer,
        ema: nn.Module | None,
        gradients: str,
        others: Mask | None = None,
    ) -> None:
        self.network, self.optimizer, self.ema = network, optimizer, ema
        self.gradients = gradients
        apply_mask(network, mask, ema, others)
        self.mask, self.others = mask, others
        pairs = match_slots(network, mask, others=others)  # those of the mask come first
        self._slots = [slot for slot, _ in pairs]
        self._weights = [slot.raw for slot in self._slots]
        self._working = [_bits(kept, slot.raw) for slot, kept in pairs]
        self._handles = [optimizer.register_step_post_hook(self._after_step)]
        for index, weight in enumerate(self._weights):
            self._handles.append(_watch_gradient(weakref.ref(self), index, weight))
            _keeper_of[id(weight)] = self
        self._finalizer = weakref.finalize(self, _remove_all, self._handles)
        self._mask_gradients()

    @property
    def active(self) -> bool:
        """Whether this keeper still keeps its mask: false once it was removed."""
        return self._finalizer.alive

    @property
    def gradients(self) -> str:
        """Whether gradients are zero under the mask ("masked") or as autograd made them ("dense").

        May be set at any time: RigL wants "dense" at its update steps.
        """
        return self._gradients

    @gradients.setter
    def gradients(self, mode: str) -> None:
        check_choice("gradients", mode, GRADIENT_MODES)
        self._gradients = mode

    def _mask_gradient(self, index: int, parameter: Tensor) -> None:
        if self._gradients == "masked" and parameter.grad is not None:
            _and_(parameter.grad, self._current_bits(index))

    def _current_bits(self, index: int) -> Tensor:
        """The working copy of a mask; made anew if the network has changed device, precision or layout."""
        bits, weight = self._working[index], self._weights[index]
        if (
            bits.device != weight.device
            or bits.element_size() != weight.element_size()
            or bits.stride() != weight.stride()
        ):
            kept = {**self.mask, **(self.others or {})}[self._slots[index].key]
            bits = self._working[index] = _bits(kept, weight)
        return bits

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for index, (slot, weight) in enumerate(zip(self._slots, self._weights, strict=True)):
            if slot.owner._parameters.get(slot.attribute) is not weight:
                raise MaskError(self._replaced(slot.key))
            _and_(weight, self._current_bits(index))

    def _mask_gradients(self) -> None:
        for index, weight in enumerate(self._weights):
            self._mask_gradient(index, weight)

    @torch.no_grad()
    def update(self, mask: Mask) -> None:
        """Puts another mask in force, in place: network, EMA copy, working copies, gradients and moments.

        Weights that come back start at zero with moments of zero.

        Raises:
            ValueError: if the layers or shapes differ from those of the mask in force, or as
                :func:`apply_mask` does.
        """
        changes = self.mask._paired(mask)
        apply_mask(self.network, mask, self.ema)
        for index, (_, old, new) in enumerate(changes):
            weight = self._weights[index]
            regrown = (new & ~old).to(weight.device)
            for entry in self.optimizer.state.get(weight, {}).values():
                if isinstance(entry, Tensor) and entry.shape == weight.shape:
                    entry.masked_fill_(regrown, 0.0)
            self._current_bits(index).copy_(_bits(new, weight))
        self.mask = mask
        self._mask_gradients()

    def check(self, optimizer: Optimizer | None = None) -> None:
        """Does nothing if the mask holds and will hold after the next step.

        Args:
            optimizer: the optimiser that is really used, if that may be another than the one given at first.

        Raises:
            MaskError: if the keeper was removed, the hook is gone from the optimiser (as from every copied or
                unpickled one), the network's parameters were replaced (``load_state_dict(assign=True)``,
                shrinking), or a pruned weight is not zero.
        """
        optimizer = optimizer or self.optimizer
        if not self.active:
            raise MaskError("this keeper was removed; call keep_mask again")
        if self._after_step not in getattr(optimizer, "_optimizer_step_post_hooks", {}).values():
            raise MaskError(
                "the optimiser has lost the hook that keeps the mask (a copied or unpickled one has none); "
                "call keep_mask again with the optimiser in use"
            )
        current = weight_slots(self.network) | slots_of_parameters(self.network, self.others or ())
        for slot, weight in zip(self._slots, self._weights, strict=True):
            if slot.key not in current or current[slot.key].raw is not weight:
                raise MaskError(self._replaced(slot.key))
        for network in (self.network, self.ema):
            if network is not None:
                check_pairs(match_slots(network, self.mask, others=self.others))

    @staticmethod
    def _replaced(key: str) -> str:
        return (
            f"the parameter {key} was replaced after keep_mask (load_state_dict(assign=True), shrinking and "
            "new parametrisations do that); make the optimiser and the keeper again"
        )

    def remove(self) -> None:
        """Takes the hooks away; the zeros stay until the next optimiser step. May be called again."""
        self._finalizer()
        for weight in self._weights:
            _keeper_of.pop(id(weight), None)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a mask keeper belongs to its optimiser and cannot be copied; call keep_mask for the copy"
        )

    def __enter__(self) -> MaskKeeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None and self.active:
                self.check()
        finally:
            self.remove()

    def __repr__(self) -> str:
        return f"MaskKeeper({self.mask!r}, {type(self.optimizer).__name__}, gradients={self.gradients!r})"


def is_kept(parameter: nn.Parameter) -> bool:
    """Whether a keeper holds the zeros of this parameter now."""
    return id(parameter) in _keeper_of


def _watch_gradient(keeper: weakref.ref[MaskKeeper], index: int, weight: nn.Parameter) -> Any:
    """A hook that masks the gradient of one weight; it does not keep the keeper alive."""

    def after_accumulation(parameter: Tensor) -> None:
        alive = keeper()
        if alive is not None:
            alive._mask_gradient(index, parameter)

    frozen = not weight.requires_grad
    weight.requires_grad_(True)  # a frozen weight takes no hook, and it may be thawed later
    handle = weight.register_post_accumulate_grad_hook(after_accumulation)
    weight.requires_grad_(not frozen)
    return handle


def _remove_all(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()


def keep_mask(
    network: nn.Module,
    mask: Mask,
    optimizer: Optimizer,
    ema: nn.Module | None = None,
    gradients: str = "masked",
    others: Mask | None = None,
) -> MaskKeeper:
    """Applies a mask and keeps it: after every step of the optimiser the pruned weights are zero again.

    One line in a training loop of one's own::

        with keep_mask(generator, mask, optimizer):
            ...  # zero_grad, backward, step as ever

    For element-wise optimisers this is exact projected descent. Optimisers that mix the entries of a weight
    (LAMB, Muon, Adafactor) keep the mask too, but their step depends on the zeros: LAMB's trust ratio and
    Adafactor's row and column means see them, and Muon's orthogonalisation is not undone for the entries that
    are kept. Weight clipping and other changes outside the optimiser must keep zeros by themselves (clamping
    around zero does).

    Args:
        network: the network; its weights change at once as in :func:`apply_mask`.
        mask: what to keep.
        optimizer: moves the network's parameters.
        ema: an exponential moving average of the network; masked now and at each :meth:`MaskKeeper.update`.
        gradients: "masked" sets gradients to zero under the mask as they are accumulated, so that clipping by
            norm counts kept weights alone; "dense" leaves them, for methods that regrow weights by gradient.
        others: held in the same way, by parameter name, but no part of the mask and of its sparsity: biases,
            scales and whatever else is no prunable weight; see
            :func:`~ganprune.channels.surgery.keep_channels`.

    Returns:
        A handle, which is also a context manager: ``update``, ``check``, ``remove``.

    Raises:
        TypeError: if the optimiser is none of torch's, or ``mask`` or ``others`` is no :class:`Mask`.
        ValueError: if the optimiser is LBFGS or does not hold the masked weights, ``gradients`` is unknown,
            the mask does not fit, or ``others`` names a weight of the mask.
        MaskError: if a weight has a keeper already.
    """
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer must not be LBFGS: it evaluates the loss between its own steps, where no mask holds"
        )
    check_choice("gradients", gradients, GRADIENT_MODES)
    both = sorted(set(others or ()) & set(mask))
    if both:
        raise ValueError(f"others must name what the mask does not, got {', '.join(both)}")
    slots = [slot for slot, _ in match_slots(network, mask, others=others)]
    kept = [slot.key for slot in slots if is_kept(slot.raw)]
    if kept:
        raise MaskError(
            f"{', '.join(kept)} already kept by another keep_mask (gp.train keeps the masks of its GAN by itself); "
            "change that mask with update, or remove that keeper first"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [slot.key for slot in slots if slot.raw.requires_grad and id(slot.raw) not in held]
    if missing:
        raise ValueError(
            f"optimizer does not hold {', '.join(missing)}; make it from the network's present parameters"
        )
    return MaskKeeper(network, mask, optimizer, ema, gradients, others)
