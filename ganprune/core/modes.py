"""Evaluation mode and frozen parameters inside a block, and everything as before after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def eval_mode(*modules: nn.Module) -> Iterator[None]:
    """Evaluation mode inside the block; each submodule gets its own former mode back.

    ``module.train()`` afterwards would be wrong: it also switches on what the caller had switched off.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Parameters that require no gradient inside the block; each gets its own flag back."""
    flags = [(p, p.requires_grad) for network in networks for p in network.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast and TF32 convolutions off, so that features do not depend on the caller's settings."""
    with (
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
    ):
        yield
