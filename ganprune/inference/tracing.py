"""From a network to a program, checked against the network's own forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ganprune.core.checks import check_integer
from ganprune.core.device import standard_defaults
from ganprune.core.errors import GanpruneError
from ganprune.core.random import keep_random_state
from ganprune.inference.arguments import OneClass, name_of, named_inputs, plain_copy
from ganprune.inference.lowering import lower
from ganprune.inference.program import FoldedNetwork, InferenceError, Program
from ganprune.inference.recording import Recording, record
from ganprune.masks.mask import Mask
from ganprune.masks.names import find_adapter

BATCH = 3
"""Images of the recorded pass; few shapes have a 3 in front by chance."""
TOLERANCE = 1e-4
"""Largest difference between program and network, over the network's largest output."""


@torch.no_grad()
def trace_program(network: nn.Module, mask: Mask | None = None, labels: int | None = None) -> Program:
    """The operations that a network computes in evaluation mode.

    The forward pass is recorded once, norms are folded in, and the program's images are compared with the network's
    own on other latents, in another number.

    Args:
        network: a generator that takes one tensor: adapted, or one that names the shape of its latents (by a
            ``latent_dim``, a ``latent_shape`` or a spec); it is left as it was.
        mask: applied to the copy that is looked at; None for the network as it is.
        labels: the one class of which an adapted generator with labels makes images; None for one without.

    Raises:
        TypeError: if ``network`` is no module.
        ValueError: if the network does not say what it takes, there is no such class, or the mask does not fit it.
        InferenceError: if it computes something that a program does not have; the message names the layer.
    """
    plain = plain_copy(network, mask)
    if labels is not None:
        plain = _of_one_class(plain, labels)
    with standard_defaults(), keep_random_state():
        latents = _only_input(plain, BATCH)
        program = lower(_record(plain, latents), tuple(latents.shape[1:]), BATCH)
        _check_same(plain, program, _only_input(plain, BATCH + 1, seed=1))
    return program


def _of_one_class(plain: nn.Module, labels: int) -> OneClass:
    label, adapter = check_integer("labels", labels, 0), find_adapter(plain)
    if adapter is None or not adapter.draws:
        raise ValueError(
            "labels must be None: the network takes none; gp.adapt(network, labels=...) says it does"
        )
    return OneClass(adapter, label)


def _only_input(plain: nn.Module, n: int, seed: int = 0) -> Tensor:
    """What a plain copy is called with; InferenceError if that is more than one tensor."""
    try:
        named = named_inputs(plain, n, seed)
    except GanpruneError as error:
        raise InferenceError(str(error)) from error
    if len(named) > 1:
        remedy = (
            "fix the class, labels=0 and so on" if "labels" in named else "wrap it in a module that takes one"
        )
        raise InferenceError(
            f"{name_of(plain)} takes {', '.join(named)}, and a list of sparse operations takes one input; {remedy}, or "
            "export the network with gp.export_onnx"
        )
    return next(iter(named.values()))


def _record(network: nn.Module, latents: Tensor) -> Recording:
    try:
        return record(network, latents)
    except Exception as error:  # whatever a stranger's code raises
        if isinstance(error, TypeError) and "positional argument" in str(error):
            remedy = "say what it takes besides, such as labels, by gp.adapt"
        else:
            remedy = (
                "latent_dim, latent_shape or gp.adapt(network, latent=...) must give the shape that it takes"
            )
        raise InferenceError(
            f"{name_of(network)} could not be run on latents of shape {tuple(latents.shape)}; {remedy}: "
            f"{' '.join(str(error).split())}"
        ) from error


def _check_same(network: nn.Module, program: Program, latents: Tensor) -> None:
    """InferenceError unless a program computes what the network does."""
    expected, found = network(latents.clone()), FoldedNetwork(program)(latents)
    allowed = TOLERANCE * float(expected.abs().max())
    if found.shape != expected.shape or not bool(((found - expected).abs() <= allowed).all()):
        raise InferenceError(
            f"{name_of(network)} does something else on other latents than on those that were recorded: its "
            "forward pass depends on values, on the number of images or on chance; export it with gp.export_onnx"
        )
