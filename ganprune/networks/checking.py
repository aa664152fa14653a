"""What goes into a generator and what comes out of it, looked at: latents, declared inputs, finite samples, ranges."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ganprune.core.checks import ArgumentTypeError
from ganprune.core.device import placement_of
from ganprune.core.errors import GanpruneError
from ganprune.core.modes import call_untouched
from ganprune.masks.names import canonical_name, find_adapter, unwrap

WIDE = 20.0
"""A declared range from this width on, ten times that of [-1, 1], is too wide for images that lie in [-1, 1]."""
_TOLERANCE = 1e-3


class NotFiniteError(GanpruneError, ValueError):
    """A network gives NaN or infinity; the message names a parameter or buffer of it that is not finite either."""


def check_latents(latents: Any, shape: tuple[int, ...] | None = None) -> None:
    """Does nothing if these are real latents.

    Args:
        latents: a tensor or an array.
        shape: of one latent; None if any will do.

    Raises:
        TypeError: if they are complex, or neither a tensor nor an array.
        ValueError: if their shape is not ``(N, *shape)``.
    """
    if not isinstance(latents, (Tensor, np.ndarray)):
        raise ArgumentTypeError(f"latents must be a tensor or an array, got {type(latents).__name__}")
    if latents.is_complex() if isinstance(latents, Tensor) else np.iscomplexobj(latents):
        raise ArgumentTypeError(f"latents must be real numbers, got {latents.dtype}")
    if shape is not None and tuple(latents.shape[1:]) != shape:
        raise ValueError(
            f"latents must have shape (N, {', '.join(map(str, shape))}), got {tuple(latents.shape)}"
        )


def check_inputs(network: nn.Module, inputs: Any) -> None:
    """Does nothing if a generator takes what an adapter would draw for it; it is called with two samples.

    Args:
        network: the generator inside of the adapter; it is left as it was.
        inputs: what :func:`ganprune.adapt` made of its options; the lowest and the highest class are tried.

    Raises:
        ValueError: if the call fails. The message names the options and the shapes of what they gave, and another
            value of an option with which the call does not fail, where one is found.
    """
    error, shown = _try_call(network, inputs, inputs.labels - 1)
    if error is None:
        return
    name, said = (
        type(unwrap(network)).__name__,
        f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
    )
    if inputs.labels and _try_call(network, inputs, 0)[0] is None:
        raise ValueError(
            f"labels must be at most the number of classes that {name} has, got {inputs.labels}: class 0 is taken, "
            f"and class {inputs.labels - 1} fails with {said}"
        ) from error
    options = {"inputs": inputs.source is not None, "latent": inputs.latent, "labels": inputs.labels}
    given = [option for option, there in {**options, "noise": inputs.noise}.items() if there]
    raise ValueError(
        f"{' and '.join(given)} must be what {name} takes, got {shown}, with which it fails: {said}"
        f"{_find_remedy(network, inputs)}"
    ) from error


def _try_call(network: nn.Module, inputs: Any, highest: int) -> tuple[Exception | None, str]:
    """What a call with two samples, of classes 0 and ``highest``, raises; and its arguments, in words."""
    drawn = list(inputs.draw(2, 0, *placement_of(network)))
    names = inputs.names(len(drawn))
    if inputs.labels:
        place = names.index("labels")
        labels = inputs.encode(torch.tensor([0, highest], device="cpu"))
        drawn[place] = labels.to(drawn[place].device, drawn[place].dtype)
    shapes = [tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__ for one in drawn]
    shown = ", ".join(f"{name} {shape}" for name, shape in zip(names, shapes, strict=True))
    try:
        call_untouched(network, *drawn)
    except Exception as error:  # whatever a stranger's code raises
        return error, shown
    return None, shown


def _find_remedy(network: nn.Module, inputs: Any) -> str:
    """An option with which a call does not fail, in words; empty if none is found."""
    others: list[tuple[str, Any]] = []
    if inputs.latent is not None:
        length = math.prod(inputs.latent)
        others += [("latent", (length, 1, 1)), ("latent", (length,))]
    if inputs.labels:
        others.append(("one_hot", not inputs.one_hot))
    for option, value in others:
        changed = dataclasses.replace(inputs, **{option: value})
        if _try_call(network, changed, inputs.labels - 1)[0] is None:
            return f"; {option}={value} is taken"
    return ""


def find_nonfinite(network: nn.Module) -> str | None:
    """A parameter or buffer with NaN or infinity, such as "parameter layers.deconv1.weight"; None if all are finite."""
    for kind, tensors in (("parameter", network.named_parameters()), ("buffer", network.named_buffers())):
        for name, tensor in tensors:
            if not bool(tensor.isfinite().all()):
                return f"{kind} {canonical_name(name, network)}"
    return None


def check_finite(network: nn.Module, samples: Tensor, name: str = "") -> None:
    """Does nothing if all samples are finite.

    Args:
        network: what made them.
        samples: shape (N, ...).
        name: of the network, in the message; its class by default.

    Raises:
        NotFiniteError: if a sample has NaN or infinity; a parameter or buffer that has it as well is named.
    """
    if bool(samples.isfinite().all()):
        return
    broken = int((~samples.isfinite()).reshape(len(samples), -1).any(1).sum())
    bad = find_nonfinite(network)
    reason = (
        f"its {bad} has them too"
        if bad
        else "its parameters and buffers are finite, so its inputs or its forward pass bring them"
    )
    raise NotFiniteError(
        f"samples of {name or type(unwrap(network)).__name__} must be finite, got {broken} of {len(samples)} with NaN "
        f"or infinity; {reason}"
    )


def warn_of_wide_range(network: nn.Module, samples: Tensor) -> None:
    """Warns if the images of an adapted generator use next to nothing of the range that it declares.

    The rule is careful, because untrained generators use little of any range: the declared one is at least
    :data:`WIDE` wide, and all values lie in [-1, 1], where the usual last layers, tanh and sigmoid, end.

    Args:
        network: any network; without an adapter, nothing is declared.
        samples: what it made, as the adapter gives it: the declared range has become [-1, 1].
    """
    adapter = find_adapter(network)
    if adapter is None or not adapter.draws or adapter.image_range[1] - adapter.image_range[0] < WIDE:
        return
    least, most = (undo_range(adapter.image_range, float(end)) for end in torch.aminmax(samples))
    if least < -1 - _TOLERANCE or most > 1 + _TOLERANCE:
        return
    warnings.warn(
        f"all values of {len(samples):,} samples lie between {least:.3g} and {most:.3g}, next to nothing of the "
        f"declared image_range={adapter.image_range}, so that the images have hardly any contrast; declare (-1, 1) "
        "for a generator that ends in tanh, or (0, 1) for one that ends in a sigmoid",
        UserWarning,
        stacklevel=4,
    )


def undo_range(image_range: tuple[float, float], value: float) -> float:
    """A value of an image in [-1, 1] as it was in a declared range."""
    low, high = image_range
    return (value + 1) * (high - low) / 2 + low
