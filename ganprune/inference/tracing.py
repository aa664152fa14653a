"""From a network to a program, checked against the network's own forward pass."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ganprune.core.device import standard_defaults
from ganprune.core.random import keep_random_state
from ganprune.inference.lowering import lower
from ganprune.inference.program import FoldedNetwork, InferenceError, Program
from ganprune.inference.recording import Recording, record
from ganprune.masks.apply import apply_mask
from ganprune.masks.mask import Mask
from ganprune.masks.names import unwrap
from ganprune.networks.folding import fold_norms
from ganprune.networks.parts import copy_network
from ganprune.networks.sampling import input_shape_of, sample_latents

BATCH = 3
"""Images of the recorded pass; few shapes have a 3 in front by chance."""
TOLERANCE = 1e-4
"""Largest difference between program and network, over the network's largest output."""


@torch.no_grad()
def trace_program(network: nn.Module, mask: Mask | None = None) -> Program:
    """The operations that a network computes in evaluation mode.

    The forward pass is recorded once, norms are folded in, and the program's images are compared with the network's
    own on other latents, in another number.

    Args:
        network: a generator, or any module that takes one tensor and names the shape of it (a ``latent_dim``, a
            ``latent_shape`` or a spec); it is left as it was.
        mask: applied to the copy that is looked at; None for the network as it is.

    Raises:
        TypeError: if ``network`` is no module.
        ValueError: if the network does not say what it takes, or the mask does not fit it.
        InferenceError: if it computes something that a program does not have; the message names the layer.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    network = unwrap(network)
    latent = input_shape_of(network)
    if latent is None:
        raise ValueError(
            f"network must say what it takes: give {type(network).__name__} an attribute latent_dim, the length of its "
            "latents"
        )
    plain = copy_network(network).cpu().float().eval()
    if mask is not None:
        apply_mask(plain, mask.to("cpu") if isinstance(mask, Mask) else mask)
    plain = fold_norms(plain)
    with standard_defaults(), keep_random_state():
        recording = _record(plain, sample_latents(BATCH, latent))
        program = lower(recording, latent, BATCH)
        _check_same(plain, program, sample_latents(BATCH + 1, latent, seed=1))
    return program


def _record(network: nn.Module, latents: Tensor) -> Recording:
    try:
        return record(network, latents)
    except Exception as error:  # whatever a stranger's code raises
        raise InferenceError(
            f"{type(network).__name__} could not be run on latents of shape {tuple(latents.shape)} alone; wrap what "
            f"takes more, such as labels, in a module that takes latents: {' '.join(str(error).split())}"
        ) from error


def _check_same(network: nn.Module, program: Program, latents: Tensor) -> None:
    """InferenceError unless a program computes what the network does."""
    expected, found = network(latents.clone()), FoldedNetwork(program)(latents)
    allowed = TOLERANCE * float(expected.abs().max())
    if found.shape != expected.shape or not bool(((found - expected).abs() <= allowed).all()):
        raise InferenceError(
            f"{type(network).__name__} does something else on other latents than on those that were recorded: its "
            "forward pass depends on values, on the number of images or on chance; export it with gp.export_onnx"
        )
