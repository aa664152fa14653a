"""Evaluation mode, frozen parameters, full precision inside a block, and everything as before after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    parameters = [parameter for network in networks for parameter in network.parameters()]
    with setting(*((parameter, "requires_grad", False) for parameter in parameters)):
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 computed as float32 inside the block, so that features do not depend on the caller's settings.

    Autocast is off, and so are TF32 and bfloat16 in products and convolutions of float32
    (``torch.set_float32_matmul_precision`` and its like); afterwards all is set as before.
    """
    autocast = torch.amp.is_autocast_available(device.type)
    with (
        _exact_products(),
        setting((torch.backends.cudnn, "benchmark", False), (torch.backends.cudnn, "deterministic", True)),
        torch.autocast(device.type, enabled=False) if autocast else nullcontext(),
    ):
        yield


@contextmanager
def setting(*values: tuple[Any, str, Any]) -> Iterator[None]:
    """Attributes, each given as (object, name, value), that have these values inside the block."""
    before = [getattr(holder, name) for holder, name, _ in values]
    try:
        for holder, name, value in values:
            setattr(holder, name, value)
        yield
    finally:
        for (holder, name, _), value in zip(values, before, strict=True):
            setattr(holder, name, value)


@contextmanager
def _exact_products() -> Iterator[None]:
    """Products and convolutions of float32 without TF32 and bfloat16.

    PyTorch has two ways to allow these, one for all operations and one for each (since 2.9), and refuses to read the
    former where a caller used the latter. Each is set back by the way in which it was read.
    """
    cuda, cudnn, mkldnn = torch.backends.cuda, torch.backends.cudnn, torch.backends.mkldnn
    try:
        before, _ = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    except RuntimeError:
        names = ((cuda, ("matmul",)), (cudnn, ("conv", "rnn")), (mkldnn, ("matmul", "conv", "rnn")))
        parts = [getattr(backend, name) for backend, operations in names for name in operations]
        with setting(*((part, "fp32_precision", "ieee") for part in parts)):
            yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        with setting((cudnn, "allow_tf32", False)):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def call_untouched(network: nn.Module, *inputs: Any) -> Any:
    """The output of a network in evaluation mode, without gradients and without a trace.

    Buffers, training modes and global random states are afterwards what they were before.
    """
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.no_grad(), eval_mode(network), keep_random_state(placement_of(network)[0]):
        return functional_call(network, buffers, inputs)
