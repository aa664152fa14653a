"""Why a network cannot be written as ONNX, in one sentence that names the layer and says what could be done."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ganprune.channels.parts import part_name
from ganprune.core.errors import GanpruneError
from ganprune.inference.arguments import name_of, named_inputs
from ganprune.inference.recording import Recording, record
from ganprune.networks.checking import find_nonfinite

GROUPS = 8
"""The place of the number of groups among the arguments of a recorded convolution."""


class ExportError(GanpruneError, RuntimeError):
    """A network cannot be written as ONNX, or the file does not compute what the network does."""


@torch.no_grad()
def check_chance(network: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Does nothing if two forward passes on the same inputs give the same, and finite numbers.

    Raises:
        ExportError: if a layer draws random numbers that reach the images, or images are NaN or infinite; the layer, or
            the weight that is, is named.
    """
    images = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        images.append(make_images(network, inputs))
    if not all(bool(one.isfinite().all()) for one in images):
        bad = find_nonfinite(network)
        raise ExportError(
            f"{name_of(network)} gives images that are NaN or infinite"
            + (f", and so is its {bad}; load a network without such weights" if bad else "")
        )
    if not torch.equal(*images):
        drawing = _recorded(network, 2).draws
        raise ExportError(
            f"{_part(drawing[0]) if drawing else name_of(network)} draws random numbers in its forward pass, also in "
            "evaluation mode, and a file would draw others; let the network take them as an input and say so, "
            "gp.adapt(network, noise=...)"
        )


def make_images(network: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What a network gives; ExportError if it fails or gives anything but one tensor."""
    try:
        images = network(*(one.clone() for one in inputs.values()))
    except Exception as error:  # whatever a stranger's code raises
        shapes = ", ".join(f"{name} {tuple(one.shape)}" for name, one in inputs.items())
        raise ExportError(
            f"{name_of(network)} could not be run on {shapes}: {' '.join(str(error).split())[:200]}; say what it takes "
            "by gp.adapt, and let it take any number of images"
        ) from error
    if not isinstance(images, Tensor):
        raise ExportError(
            f"{name_of(network)} must give its images as one tensor, got {type(images).__name__}; "
            "gp.adapt(network, output=...) picks it"
        )
    return images


def reason_of(error: Exception, network: nn.Module) -> str:
    """What to say of an error that the exporter raised."""
    grouped = _convolution_over_images(network)
    if grouped is not None:
        return (
            f"{_part(grouped)} has a convolution with as many groups as there are images, as modulated convolutions "
            "have, and ONNX fixes the number; multiply the layer's input and output by what depends on the image, "
            "instead of its weight, which gives the same images"
        )
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if "DataDependent" in type(cause).__name__:
        return (
            "its forward pass goes another way for other values, and a file holds one way for all; choose by "
            "torch.where, or give the network without the choice"
        )
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return f"{type(cause).__name__}: {lines[0] if lines else 'no reason given'}"[:300]


def _convolution_over_images(network: nn.Module) -> str | None:
    """The layer whose convolution has groups that are more with more images; None if there is none."""
    try:
        few, more = (_recorded(network, n).calls for n in (2, 3))
    except Exception:  # whoever wrote the network hears what the exporter said
        return None
    for one, other in zip(few, more, strict=False):
        both = one.operation == other.operation == "convolution"
        if both and one.arguments[GROUPS] != other.arguments[GROUPS]:
            return one.layer
    return None


def _recorded(network: nn.Module, n: int) -> Recording:
    return record(network, *named_inputs(network, n).values())


def _part(name: str) -> str:
    return part_name(name) or "the network"
