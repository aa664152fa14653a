"""Network slimming: an L1 penalty on batch-norm scales while training, so that whole channels become unimportant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from ganprune.core.checks import check_number


def _scales(network: nn.Module) -> list[nn.Parameter]:
    found = [
        layer.weight
        for layer in network.modules()
        if isinstance(layer, _BatchNorm) and layer.affine and layer.weight.requires_grad
    ]
    if not found:
        raise ValueError(f"network {type(network).__name__} has no batch norm with a scale that is trained")
    return found


def slimming_penalty(network: nn.Module) -> Tensor:
    """Σ ``|γ|`` over all batch norms of a network (Liu et al. 2017, equation 1): a scalar to add to a loss.

    Raises:
        ValueError: if the network has no batch norm with a scale that is trained.
    """
    return torch.stack([scale.abs().sum() for scale in _scales(network)]).sum()


@contextmanager
def slim(network: nn.Module, strength: float, optimizer: Optimizer) -> Iterator[None]:
    """Trains with ``strength`` times :func:`slimming_penalty` in the loss, whatever the loop looks like.

    Before each step of the optimiser ``strength · sign(γ)`` is added to the gradients of the scales: the
    subgradient of the penalty, zero at γ = 0 (Liu et al. 2017, "Learning efficient convolutional networks
    through network slimming"). With ``train``::

        state = TrainState(gan, config)
        with slim(gan.generator, 1e-4, state.optimizers["generator"]):
            train(state, data.train)
        small = shrink_channels(gan.generator, 0.5, "bn", allocation="global")

    Gradient clipping comes before it and does not see the penalty. A scale without a gradient gets the
    penalty's alone.

    Args:
        network: its batch norms are penalised; frozen scales are not.
        strength: weight of the penalty, positive.
        optimizer: steps the network's parameters.

    Raises:
        TypeError: if ``strength`` is not a number or the optimiser none of torch's.
        ValueError: if ``strength`` is not positive and finite, no batch norm has a scale that is trained, or
            the optimiser does not hold one of them.
    """
    strength = check_number("strength", strength, "(0, inf)")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    scales = _scales(network)
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(scale) not in held for scale in scales):
        raise ValueError("optimizer does not hold the scales of the network's batch norms")

    @torch.no_grad()
    def add(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        # Under a gradient scaler, optimisers that unscale by themselves carry its factor here.
        factor = getattr(optimizer, "grad_scale", None)
        for scale in scales:
            slope = strength * scale.sign() * (1.0 if factor is None else factor)
            scale.grad = slope if scale.grad is None else scale.grad.add_(slope)

    handle = optimizer.register_step_pre_hook(add)
    try:
        yield
    finally:
        handle.remove()
