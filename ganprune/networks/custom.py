"""Networks of your own: classes named by ``module:Class``, built only where you trust that name.

A checkpoint of such a network records the name and the arguments, never code. Loading it imports the module only inside
:func:`trust`, so that a file from elsewhere cannot make Python run something by surprise.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ganprune.core.device import placement_of
from ganprune.core.modes import call_untouched
from ganprune.masks.names import find_adapter
from ganprune.networks.checking import check_finite, undo_range
from ganprune.networks.importing import check_import_path, describe, file_key, import_object, is_file
from ganprune.networks.parts import copy_network
from ganprune.networks.registry import MODEL_SPECS, UntrustedError, register_model_spec, spec_from_dict
from ganprune.networks.sampling import draw_inputs, latent_dim_of

_trusted: list[str] = []


@contextmanager
def trust(*paths: str) -> Iterator[None]:
    """Allows these ``module:Class`` to be imported inside the block, by hand or from a checkpoint.

    A checkpoint knows a file ``path/to/file.py:Class`` by its name, so that it may lie elsewhere than it did.

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
        path: "module:Class" or "path/to/file.py:Class"; a function that returns a module, or one in its adapter
            (:func:`ganprune.adapt`), will do as well. The current directory is searched first, as it is by
            ``python -m``.
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
        path = _trusted_form(self.path)
        if path is None:
            raise UntrustedError(
                f"{self.path} is code from outside of this package, imported only where you name it yourself: with "
                f"--generator {self.path} or --discriminator {self.path} on the command line, or inside "
                f"trust({self.path!r})"
            )
        make = import_object(path)
        shown = f"{self.path} with arguments {json.dumps(self.arguments)}"
        try:
            network = make(**copy.deepcopy(self.arguments))
        except Exception as error:
            raise ValueError(f"{shown} could not be built: {describe(error)}") from error
        if not isinstance(network, nn.Module) or next(network.parameters(), None) is None:
            raise ValueError(
                f"{shown} must give a torch.nn.Module with parameters, got {type(network).__name__}"
            )
        spec = getattr(network, "spec", None)
        if hasattr(network, "spec") and not (find_adapter(network) and type(spec).__name__ in MODEL_SPECS):
            raise ValueError(f"{shown} has an attribute spec, which is taken by this package; rename it")
        try:
            copy_network(network)
        except Exception as error:
            raise ValueError(
                f"{shown} cannot be copied, which the EMA generator needs: {describe(error)}"
            ) from error
        network.spec = self  # type: ignore[assignment]
        return network


def _trusted_form(path: str) -> str | None:
    """The trusted path that means this one: itself, or that of a file of this name which lies elsewhere by now."""
    if path in _trusted:
        return path
    same = (one for one in reversed(_trusted) if is_file(path) and file_key(one) == file_key(path))
    return next(same, None)


def own_spec_of(spec: Any) -> CustomSpec | None:
    """The spec of the network of your own that a spec is, or builds upon, as that of an adapted network does."""
    while not isinstance(spec, CustomSpec):
        inside = getattr(spec, "network", None)
        if not isinstance(inside, Mapping):
            return None
        spec = spec_from_dict(dict(inside))
    return spec


def _has_names_for_keys(value: Any) -> bool:
    """Whether every key in it is a string; JSON would silently turn others into strings."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _has_names_for_keys(inner) for key, inner in value.items())
    return all(map(_has_names_for_keys, value)) if isinstance(value, (list, tuple)) else True


def check_generator(network: nn.Module, name: str = "generator") -> tuple[int, int, int]:
    """The shape (C, H, W) of a generator's images, if it is one that this package can train and prune.

    It must name its ``latent_dim`` and map latents (N, latent_dim), or (N, latent_dim, 1, 1), to finite images
    (N, C, H, W) in [-1, 1].

    Args:
        network: the generator; called with four latents in evaluation mode, and left as it was.
        name: of the generator, in messages.

    Raises:
        ValueError: if it is not; the message says what it gave instead.
        NotFiniteError: if images have NaN or infinity.
    """
    adapter = find_adapter(network)
    if adapter is None or not adapter.draws:
        try:
            latent_dim_of(network)
        except ValueError as error:
            found = getattr(network, "latent_dim", None)
            raise ValueError(
                f"{name} must have an attribute latent_dim, an integer of at least 1, got {found!r}; {_ADAPT}"
            ) from error
    arguments = draw_inputs(network, 4)
    wanted = "must map latents (N, latent_dim) to images (N, C, H, W)"
    images = _call(network, arguments, f"{name} {wanted}")
    if images.ndim != 4 or len(images) != 4:
        shapes = [tuple(leaf.shape) for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        raise ValueError(f"{name} {wanted}, got shape {tuple(images.shape)} from inputs of shape {shapes[0]}")
    check_finite(network, images, name)
    low, high = float(images.min()), float(images.max())
    if not (low >= -1.001 and high <= 1.001):
        declared = (-1.0, 1.0) if adapter is None or not adapter.draws else adapter.image_range
        low, high = undo_range(declared, low), undo_range(declared, high)
        raise ValueError(
            f"{name} must give images in [{declared[0]:g}, {declared[1]:g}], got values from {low:.4g} to {high:.4g}; "
            "let it end with Tanh, or declare what it gives: gp.adapt(network, image_range=(0, 1)), or (0, 255), or "
            "clamp=True"
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
    logits = _call(network, (torch.zeros(4, *image_shape, device=device, dtype=dtype),), wanted)
    if tuple(logits.shape) != (4,):
        raise ValueError(f"{wanted}, got shape {tuple(logits.shape)} for N = 4; {_ADAPT}")
    if not bool(logits.isfinite().all()):
        raise ValueError(f"{wanted}, got NaN or infinity for N = 4")


_ADAPT = "a function that returns gp.adapt(network, ...) says what a network of another form takes and gives"


def _call(network: nn.Module, arguments: tuple[Any, ...], wanted: str) -> Tensor:
    """The output of a network that is left as it was, as float32; ValueError if it fails or gives no tensor."""
    try:
        output = call_untouched(network, *arguments)
    except Exception as error:  # whatever a stranger's code raises
        raise ValueError(f"{wanted}; it failed with {describe(error)}; {_ADAPT}") from error
    if not isinstance(output, Tensor):
        raise ValueError(f"{wanted}, got {type(output).__name__}; {_ADAPT}")
    return output.float()
