"""Batch-norm statistics made anew after pruning."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ganprune.core.checks import check_integer
from ganprune.core.modes import eval_mode
from ganprune.core.random import step_seed
from ganprune.networks.sampling import latent_dim_of, sample_latents


@torch.no_grad()
def recalibrate_batchnorm(
    generator: nn.Module,
    batches: int = 50,
    batch_size: int = 200,
    seed: int = 0,
    inputs: Iterable[Any] | None = None,
) -> None:
    """Replaces the running statistics of all batch-norm layers by those of the network as it is now.

    Running statistics remember the network of before pruning. They are reset, and become the plain average
    over all batches of each batch's mean and unbiased variance (a cumulative average, not an exponential
    one), so the result depends on no momentum. Everything else in the network stays in evaluation mode; a
    network without batch norm is left as it is.

    Args:
        generator: changed in place; modes and momenta are restored.
        batches: number of batches, at least 1.
        batch_size: latents per batch, at least 2.
        seed: determines the latents.
        inputs: batches to use instead of latents, each a tensor or a tuple of arguments; for networks that
            take other inputs.

    Raises:
        ValueError: if a number is too small, or the length of the latents is unknown.
    """
    check_integer("batches", batches, 1)
    check_integer("batch_size", batch_size, 2)
    norms = [
        m
        for m in generator.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats
    ]
    if not norms:
        return
    if inputs is None:
        device, latent_dim = next(generator.parameters()).device, latent_dim_of(generator)
        seeds = [step_seed(seed, number, "recalibrate") for number in range(batches)]
        inputs = (sample_latents(batch_size, latent_dim, one, device) for one in seeds)
    momenta = [norm.momentum for norm in norms]
    with eval_mode(generator):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # torch's word for a cumulative average
                norm.train()
            for batch in inputs:
                generator(*batch) if isinstance(batch, tuple) else generator(batch)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
