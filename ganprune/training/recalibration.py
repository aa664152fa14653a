"""Batch-norm statistics made anew after pruning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ganprune.core.checks import check_integer
from ganprune.core.modes import eval_mode
from ganprune.core.random import keep_random_state, step_seed
from ganprune.networks.sampling import draw_inputs


@torch.no_grad()
def recalibrate_batchnorm(
    network: nn.Module,
    batches: int = 50,
    batch_size: int = 200,
    seed: int = 0,
    inputs: Iterable[Any] | None = None,
) -> None:
    """Replaces the running statistics of batch-norm layers by those of the network as it is now.

    Running statistics remember the network of before pruning. They become the plain average over all batches of each
    batch's mean and unbiased variance (a cumulative average, not an exponential one), so the result depends on no
    momentum. Everything else in the network stays in evaluation mode; a network without batch norm is left as it is.
    A layer that did not run, such as the norm of a class that is not among the inputs, keeps its statistics. So do all
    layers if an error ends the call.

    Args:
        network: changed in place; modes and momenta are restored.
        batches: number of batches, at least 1.
        batch_size: latents per batch, at least 2.
        seed: determines the latents, and what layers draw that are random.
        inputs: batches to use instead of latents, each a tensor or a tuple of arguments; for networks that take other
            inputs.

    Raises:
        ValueError: if a number is too small, ``inputs`` holds no batch, or the length of the latents is unknown.
    """
    check_integer("batches", batches, 1)
    check_integer("batch_size", batch_size, 2)
    norms: list[Any] = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.running_mean is not None]
    if not norms:
        return
    if inputs is None:
        seeds = (step_seed(seed, number, "recalibrate") for number in range(batches))
        inputs = (draw_inputs(network, batch_size, one) for one in seeds)
    before = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    momenta = [norm.momentum for norm in norms]
    finished = False
    try:
        with eval_mode(network), keep_random_state(norms[0].running_mean.device):
            torch.manual_seed(step_seed(seed, 0, "recalibrate noise"))
            _average(network, norms, inputs)
        finished = True
    finally:
        for norm, momentum, old in zip(norms, momenta, before, strict=True):
            norm.momentum = momentum
            if not (finished and int(norm.num_batches_tracked)):
                norm.load_state_dict(old, strict=False)


def _average(network: nn.Module, norms: list[Any], inputs: Iterable[Any]) -> None:
    """Starts the statistics anew and passes all batches through the network."""
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for a cumulative average
        norm.train()
    count = 0
    for batch in inputs:
        network(*batch) if isinstance(batch, tuple) else network(batch)
        count += 1
    if count == 0:
        raise ValueError("inputs must hold at least one batch, got none")
