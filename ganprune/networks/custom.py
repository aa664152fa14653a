"""Networks of your own: classes named by ``module:Class``, built only where you trust that name.

A checkpoint of such a network records the name and the arguments, never code. Loading it imports the module only inside
:func:`trust`, so that a file from elsewhere cannot make Python run something by surprise.
"""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.core.device import placement_of
from ganprune.core.modes import call_untouched
from ganprune.networks.parts import copy_network
from ganprune.networks.registry import UntrustedError, register_model_spec
from ganprune.networks.sampling import draw_latents, latent_dim_of

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_trusted: list[str] = []


def check_import_path(path: str) -> str:
    """The path, if it has the form "module:Class" or "package.module:Class".

    Raises:
        ValueError: if it has not.
    """
    if not isinstance(path, str) or not _PATH.fullmatch(path):
        raise ValueError(f"must have the form module:Class, got {path!r}")
    return path


@contextmanager
def trust(*paths: str) -> Iterator[None]:
    """Allows these ``module:Class`` to be imported inside the block, by hand or from a checkpoint.

    ::

        with trust("my_networks:Generator"):
            gan = gp.load("mine.safetensors")

    Raises:
        ValueError: if a path has not that form.
    """
    before = list(_trusted)
    _trusted.extend(check_import_path(path) for path in paths)
    try:
        yield
    finally:
        _trusted[:] = before


@register_model_spec
@dataclass(frozen=True)
class CustomSpec:
    """The spec of a network of your own: where its class is, and the arguments that build it.

    Attributes:
        path: "module:Class"; a function that returns a module will do as well. The current directory is searched
            first, as it is by ``python -m``.
        arguments: keyword arguments, of values that JSON can hold (a tuple becomes a list).

    Raises:
        ValueError: if the path has another form, or an argument is nothing that JSON can hold.
    """

    path: str
    arguments: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        try:
            check_import_path(self.path)
        except ValueError as error:
            raise ValueError(f"path {error}") from None
        if not isinstance(self.arguments, Mapping) or not _has_names_for_keys(self.arguments):
            raise ValueError(f"arguments must be a mapping from names to values, got {self.arguments!r}")
        try:
            plain = json.loads(json.dumps(dict(self.arguments), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"arguments must be values that JSON can hold, got {self.arguments!r}: {error}"
            ) from None
        object.__setattr__(self, "arguments", plain)

    def build(self) -> nn.Module:
        """The freshly initialised network.

        Raises:
            ValueError: if the path is not trusted, cannot be imported, does not make a module from the arguments,
                or makes one that cannot be copied or that has an attribute ``spec`` of its own.
        """
        if self.path not in _trusted:
            raise UntrustedError(
                f"{self.path} is code from outside of this package, imported only where you name it yourself: with "
                f"--generator {self.path} or --discriminator {self.path} on the command line, or inside "
                f"trust({self.path!r})"
            )
        make = _import_class(self.path)
        shown = f"{self.path} with arguments {json.dumps(self.arguments)}"
        try:
            network = make(**copy.deepcopy(self.arguments))
        except Exception as error:
            raise ValueError(f"{shown} could not be built: {_describe(error)}") from error
        if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
            raise ValueError(
                f"{shown} must give a torch.nn.Module with parameters, got {type(network).__name__}"
            )
        if hasattr(network, "spec"):
            raise ValueError(f"{shown} has an attribute spec, which is taken by this package; rename it")
        try:
            copy_network(network)
        except Exception as error:
            raise ValueError(
                f"{shown} cannot be copied, which the EMA generator needs: {_describe(error)}"
            ) from error
        network.spec = self  # type: ignore[assignment]
        return network


def _has_names_for_keys(value: Any) -> bool:
    """Whether every key in it is a string; JSON would silently turn others into strings."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _has_names_for_keys(inner) for key, inner in value.items())
    return all(map(_has_names_for_keys, value)) if isinstance(value, (list, tuple)) else True


def _describe(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _import_class(path: str) -> Callable[..., Any]:
    """The class or function that "module:Class" names; ValueError if there is none."""
    module_name, _, name = path.partition(":")
    here = os.getcwd()
    if not {here, ""} & set(sys.path):
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without a guard may leave
        raise ValueError(f"{path} cannot be imported: {_describe(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise ValueError(f"{path} cannot be imported: module {module_name} has no class {name}")
    return found


def check_generator(network: nn.Module, name: str = "generator") -> tuple[int, int, int]:
    """The shape (C, H, W) of a generator's images, if it is one that this package can train and prune.

    It must name its ``latent_dim`` and map latents (N, latent_dim), or (N, latent_dim, 1, 1), to finite images
    (N, C, H, W) in [-1, 1].

    Args:
        network: the generator; called with four latents in evaluation mode, and left as it was.
        name: of the generator, in messages.

    Raises:
        ValueError: if it is not; the message says what it gave instead.
    """
    try:
        latent_dim_of(network)
    except ValueError as error:
        found = getattr(network, "latent_dim", None)
        raise ValueError(
            f"{name} must have an attribute latent_dim, an integer of at least 1, got {found!r}"
        ) from error
    z = draw_latents(network, 4)
    wanted = "must map latents (N, latent_dim) to images (N, C, H, W)"
    images = _call(network, z, f"{name} {wanted}")
    if images.ndim != 4 or len(images) != len(z):
        raise ValueError(
            f"{name} {wanted}, got shape {tuple(images.shape)} from latents of shape {tuple(z.shape)}"
        )
    low, high = float(images.min()), float(images.max())
    if not (low >= -1.001 and high <= 1.001):
        raise ValueError(
            f"{name} must give images in [-1, 1], got values from {low:.4g} to {high:.4g}; let it end with Tanh"
        )
    channels, height, width = images.shape[1:]
    return channels, height, width


def check_discriminator(
    network: nn.Module, image_shape: tuple[int, ...], name: str = "discriminator"
) -> None:
    """Does nothing if a discriminator maps images of this shape to logits (N,).

    Args:
        network: the discriminator; called with four images in evaluation mode, and left as it was.
        image_shape: (C, H, W).
        name: of the discriminator, in messages.

    Raises:
        ValueError: if it does not; the message says what it gave instead.
    """
    wanted = f"{name} must map images (N, {', '.join(map(str, image_shape))}) to logits (N,)"
    device, dtype = placement_of(network)
    logits = _call(network, torch.zeros(4, *image_shape, device=device, dtype=dtype), wanted)
    if tuple(logits.shape) != (4,):
        raise ValueError(f"{wanted}, got shape {tuple(logits.shape)} for N = 4")
    if not bool(logits.isfinite().all()):
        raise ValueError(f"{wanted}, got NaN or infinity for N = 4")


def _call(network: nn.Module, batch: Tensor, wanted: str) -> Tensor:
    """The output of a network that is left as it was, as float32; ValueError if it fails or gives no tensor."""
    try:
        output = call_untouched(network, batch)
    except Exception as error:  # whatever a stranger's code raises
        raise ValueError(f"{wanted}; it failed with {_describe(error)}") from error
    if not isinstance(output, Tensor):
        raise ValueError(f"{wanted}, got {type(output).__name__}")
    return output.float()
