"""Names of weights without what wrappers add to them, so that one mask fits a network however it is wrapped."""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)


def _attribute_of(wrapper: nn.Module) -> str | None:
    """The attribute that holds the network inside; None if this is no wrapper."""
    if isinstance(wrapper, _WRAPPERS):
        return "module"
    if (named := getattr(type(wrapper), "wraps", None)) is not None:  # an adapter, which says what it holds
        return named
    return "_orig_mod" if "_orig_mod" in wrapper._modules else None  # torch.compile


def unwrap(network: nn.Module) -> nn.Module:
    """The network inside of data parallelism, averaged models, compilation and adapters; without one, itself."""
    while (name := _attribute_of(network)) is not None:
        network = network._modules[name]  # type: ignore[assignment]
    return network


def find_adapter(network: nn.Module) -> Any:
    """The adapter that a network is, or that lies inside of its wrappers; None if there is none."""
    while (name := _attribute_of(network)) is not None:
        if hasattr(type(network), "wraps"):
            return network
        network = network._modules[name]  # type: ignore[assignment]
    return None


def rewrap(network: nn.Module, inside: nn.Module) -> nn.Module:
    """Another network in the adapter of ``network``; without an adapter, itself."""
    adapter = find_adapter(network)
    return inside if adapter is None or inside is adapter else adapter.with_network(inside)


def canonical_name(name: str, network: nn.Module | None = None) -> str:
    """The name of a weight or module without what wrappers and parametrisations add to it.

    Gone are ``_orig_mod`` (compilation) and what parametrisations call the raw tensor:
    ``parametrizations.weight.original`` (spectral norm), ``…original1`` (weight norm), ``weight_orig`` and
    ``weight_v`` (the older hooks). ``module`` goes only where ``network`` says that it is the inside of
    ``DataParallel``, ``DistributedDataParallel`` or ``AveragedModel``, because a network may have a part of
    its own that is called so; and what an adapter calls its network goes in the same way.

    Args:
        name: as ``network.named_parameters()`` or ``network.named_modules()`` gives it.
        network: whose name it is. Without it every ``module`` counts as a part of the network's own.
    """
    kept, part = [], network
    for word in name.split("."):
        added = part is not None and word == _attribute_of(part)
        part = part._modules.get(word) if part is not None else None
        if not added and word != "_orig_mod":
            kept.append(word)
    name = ".".join(kept)
    name = re.sub(r"(^|\.)parametrizations\.(\w+)\.original[01]?$", r"\1\2", name)
    return re.sub(r"(^|\.)weight_(?:orig|v)$", r"\1weight", name)
