"""Networks of one's own that have lost channels, as specs: what builds the large one, and how small its layers are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ganprune.masks.names import find_adapter, rewrap, unwrap
from ganprune.networks.folding import fold_norms
from ganprune.networks.registry import register_model_spec, spec_from_dict, spec_to_dict
from ganprune.networks.reshapes import fit_reshapes, fitted_reshapes

SIZES = (
    "in_channels",
    "out_channels",
    "groups",
    "in_features",
    "out_features",
    "num_features",
    "embedding_dim",
    "num_parameters",
)
"""The attributes in which layers of ``torch.nn`` hold how many channels they have."""


KINDS = ("Linear", *(f"Conv{t}{n}d" for t in ("", "Transpose") for n in (1, 2, 3)))
"""The layers of ``torch.nn`` that take the place of registered ones."""


@register_model_spec
@dataclass(frozen=True)
class ShrunkSpec:
    """The spec of a network without some of its channels.

    Attributes:
        network: the spec of the network that it was made from, as plain values.
        sizes: layer → its new numbers of channels, by attribute.
        shapes: parameter or buffer → its new shape.
        plain: registered layer → the plain layer that took its place (kind, options, name inside of it).
        reshapes: which reshapes of the network's code take the channels that there are.
    """

    network: dict[str, Any]
    sizes: dict[str, dict[str, int]] = field(default_factory=dict, hash=False)
    shapes: dict[str, list[int]] = field(default_factory=dict, hash=False)
    plain: dict[str, dict[str, Any]] = field(default_factory=dict, hash=False)
    reshapes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        attributes = {attribute for sizes in self.sizes.values() for attribute in sizes}
        kinds = {found.get("kind") for found in self.plain.values()}
        if attributes - set(SIZES) or kinds - set(KINDS):
            raise ValueError(
                f"a shrunk network has sizes {', '.join(SIZES)} and plain layers {', '.join(KINDS)}, got "
                f"{sorted(map(str, attributes | kinds))}"
            )

    def build(self) -> nn.Module:
        """The smaller network with fresh weights, in the adapter that the larger one has.

        Raises:
            ValueError: if the larger one cannot be built, for instance where its name is not trusted.
        """
        large = spec_from_dict(self.network).build()
        small = fold_norms(large)
        for name, found in self.plain.items():
            _put_plain(small, name, found)
        for name, sizes in self.sizes.items():
            for attribute, size in sizes.items():
                setattr(small.get_submodule(name), attribute, size)
        for name, shape in self.shapes.items():
            _resize(small, name, shape)
        if self.reshapes != fitted_reshapes(small):
            fit_reshapes(small, self.reshapes)
        if find_adapter(large) is None:
            small.spec = self  # type: ignore[assignment]
            return small
        dressed = rewrap(large, small)
        dressed.spec = self  # type: ignore[assignment]
        return dressed


def shrunk_spec(small: nn.Module, plain: nn.Module, spec: Any) -> ShrunkSpec:
    """The spec of a network that has lost channels.

    Args:
        small: the network without an adapter.
        plain: what it was before: norms folded in, registered layers replaced.
        spec: of the network that was given, perhaps that of its adapter.
    """
    small, plain = unwrap(small), unwrap(plain)
    sizes: dict[str, dict[str, int]] = {}
    replaced: dict[str, dict[str, Any]] = {}
    before = dict(plain.named_modules())
    for name, layer in small.named_modules():
        found = {key: getattr(layer, key) for key in SIZES if isinstance(getattr(layer, key, None), int)}
        changed = {key: size for key, size in found.items() if getattr(before.get(name), key, None) != size}
        if changed and type(layer).__module__.startswith("torch."):
            sizes[name] = changed
        elif changed:  # a class of one's own, whose attributes may be others by these names
            sizes[name] = {k: v for k, v in changed.items() if isinstance(layer, _known_layers())}
        if (stands_for := vars(layer).get("stands_for")) is not None:
            replaced[name] = {
                **stands_for,
                "inputs": _inputs(before[name]),
                "outputs": _outputs(before[name]),
            }
    tensors = {**dict(plain.named_parameters()), **dict(plain.named_buffers())}
    shapes = {
        name: list(tensor.shape)
        for name, tensor in (*small.named_parameters(), *small.named_buffers())
        if name not in tensors or tensors[name].shape != tensor.shape
    }
    found_so_far = spec_to_dict(spec), sizes, shapes, replaced
    network, sizes, shapes, replaced = json.loads(json.dumps(found_so_far))  # as a file gives them back
    return ShrunkSpec(network, sizes, shapes, replaced, fitted_reshapes(small))


def _known_layers() -> tuple[type[nn.Module], ...]:
    return (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, nn.Embedding, nn.PReLU)


def _inputs(layer: Any) -> int:
    return int(getattr(layer, "in_channels", 0) or layer.in_features)


def _outputs(layer: Any) -> int:
    return int(getattr(layer, "out_channels", 0) or layer.out_features)


def _put_plain(network: nn.Module, name: str, found: Mapping[str, Any]) -> None:
    """A plain layer in the place of a registered one."""
    with torch.device("cpu"):
        layer = getattr(nn, found["kind"])(found["inputs"], found["outputs"], **found["options"])
    layer.stands_for = {key: found[key] for key in ("kind", "options", "inside")}
    inside = found["inside"].split(".") if found["inside"] else []
    for word in reversed(inside):
        wrapper = nn.Sequential()
        wrapper.add_module(word, layer)
        layer = wrapper
    words = name.split(".")
    path, last = words[: len(words) - len(inside)][:-1], words[: len(words) - len(inside)][-1]
    network.get_submodule(".".join(path))._modules[last] = layer


def _resize(network: nn.Module, name: str, shape: list[int]) -> None:
    """An empty tensor of another shape in the place of a parameter or buffer."""
    path, _, attribute = name.rpartition(".")
    owner = network.get_submodule(path)
    old = owner._parameters.get(attribute)
    like = old if old is not None else owner._buffers.get(attribute)
    first = like if like is not None else next(network.parameters())
    empty = torch.zeros(shape, dtype=first.dtype, device=first.device)
    if attribute in owner._buffers:
        owner._buffers[attribute] = empty
    else:
        owner._parameters[attribute] = nn.Parameter(empty)
