"""Evaluation mode, frozen parameters, full precision inside a block, and everything as before after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from ganprune.core.device import placement_of
from ganprune.core.random import keep_random_state


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


def call_untouched(network: nn.Module, *inputs: Any) -> Any:
    """The output of a network in evaluation mode, without gradients and without a trace.

    Buffers, training modes and global random states are afterwards what they were before.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.no_grad(), eval_mode(network), keep_random_state(placement_of(network)[0]):
        return functional_call(network, buffers, inputs)
