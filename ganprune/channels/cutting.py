"""What a cut does to a network: channels set to zero and the masks that say so, or layers made smaller."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from ganprune.channels.groups import Cut
from ganprune.channels.parts import named_parts, named_slots, parameter_dim, sizes_of
from ganprune.masks.apply import apply_mask
from ganprune.masks.mask import Mask
from ganprune.masks.registered import registration_of
from ganprune.masks.weights import PRUNABLE_LAYERS, WeightSlot, canonical_name
from ganprune.scores.activation import per_input, per_output


def flag_kept(size: int, gone: Iterable[int]) -> Tensor:
    """Which of ``size`` indices stay, bool."""
    kept = torch.ones(size, dtype=torch.bool)
    kept[sorted(gone)] = False
    return kept


def _sizes_in(part: Any, slot: WeightSlot | None) -> dict[str, int]:
    """How many channels a part has in each role; a registered layer of one's own has those of its weight."""
    own = {} if slot is None else {"output": slot.outputs, "input": slot.inputs}
    return sizes_of(part) or own


def masks_of(network: nn.Module, cut: Cut, consumers: bool) -> tuple[Mask, Mask | None]:
    """What stays of the prunable weights, and of the other parameters that channels have something in."""
    parts, slots = named_parts(network), named_slots(network)
    weights: dict[str, Tensor] = {}
    for name, slot in slots.items():
        sizes = _sizes_in(slot.layer, slot)
        weights[slot.key] = torch.ones_like(slot.raw, dtype=torch.bool)
        for role in ("output", "both", "input"):
            if (name, role) in cut and (role != "input" or consumers):
                flags = flag_kept(sizes[role], cut[name, role]).to(slot.raw.device)
                spread = per_input if role == "input" else per_output
                weights[slot.key] &= spread(slot, flags)
    others: dict[str, Tensor] = {}
    for (name, role), indices in cut.items():
        part: Any = parts[name]
        if role == "input":
            continue
        flags = flag_kept(_sizes_in(part, slots.get(name))[role], indices)
        if isinstance(part, nn.Parameter):
            dim = parameter_dim(part.shape) or 0
            shape = [-1 if d == dim else 1 for d in range(part.ndim)]
            others[canonical_name(name)] = flags.view(shape).expand(part.shape)
        elif isinstance(part, nn.Embedding):
            others[canonical_name(f"{name}.weight")] = flags.expand(part.num_embeddings, -1)
        elif not isinstance(part, nn.PReLU):  # whose slopes leave zero at zero
            layer = isinstance(part, PRUNABLE_LAYERS) or registration_of(part) is not None
            for attribute in ("bias",) if layer else ("weight", "bias"):
                if (found := part._parameters.get(attribute)) is not None:
                    others[canonical_name(f"{name}.{attribute}".lstrip("."))] = flags.view(found.shape)
    return Mask(weights), Mask(others) if others else None


@torch.no_grad()
def centre_norms(network: nn.Module, cut: Cut) -> None:
    """Sets running means to zero, so that zero stays zero behind a normalisation without a scale of its own."""
    parts = named_parts(network)
    for (name, _), indices in cut.items():
        mean = getattr(parts[name], "running_mean", None)
        if mean is not None:
            mean[sorted(indices)] = 0.0


def zero_channels(network: nn.Module, cut: Cut, consumers: bool) -> Mask:
    """Sets everything of the channels to zero, in place.

    Args:
        network: any module.
        cut: the channels.
        consumers: also the weights that read them.

    Returns:
        The mask of the weights.
    """
    mask, others = masks_of(network, cut, consumers)
    apply_mask(network, mask, others=others)
    centre_norms(network, cut)
    return mask


def _select(parameter: Any, dim: int, kept: Tensor) -> Any:
    if parameter is None:
        return None
    chosen = parameter.detach().index_select(dim, kept.to(parameter.device))
    return nn.Parameter(chosen, parameter.requires_grad) if isinstance(parameter, nn.Parameter) else chosen


@torch.no_grad()
def remove_cut(network: nn.Module, cut: Cut) -> None:
    """Makes the layers of a plain network smaller, in place."""
    parts = named_parts(network)
    for (name, role), indices in cut.items():
        part: Any = parts[name]
        kept = flag_kept(sizes_of(part)[role], indices).nonzero().flatten()
        if isinstance(part, nn.Parameter):
            path, _, attribute = name.rpartition(".")
            setattr(parts[path], attribute, _select(part, parameter_dim(part.shape) or 0, kept))
        else:
            select_channels(part, role, kept)


@torch.no_grad()
def select_channels(part: Any, role: str, kept: Tensor) -> None:
    """Leaves a layer the channels whose indices are ``kept``, in that role."""
    if isinstance(part, _ConvNd):
        _select_of_convolution(part, role, kept)
    elif isinstance(part, nn.Linear):
        part.weight = _select(part.weight, int(role == "input"), kept)
        if role == "output":
            part.bias = _select(part.bias, 0, kept)
            part.out_features = len(kept)
        else:
            part.in_features = len(kept)
    elif isinstance(part, nn.Embedding):
        part.weight = _select(part.weight, 1, kept)
        part.embedding_dim = len(kept)
    else:
        for attribute in ("weight", "bias", "running_mean", "running_var"):
            if getattr(part, attribute, None) is not None:
                setattr(part, attribute, _select(getattr(part, attribute), 0, kept))
        setattr(part, "num_parameters" if isinstance(part, nn.PReLU) else "num_features", len(kept))


def _select_of_convolution(layer: Any, role: str, kept: Tensor) -> None:
    """``kept`` has the same positions in each group of a grouped convolution."""
    transposed = isinstance(layer, _ConvTransposeNd)
    if role == "both":
        layer.weight = _select(layer.weight, 0, kept)
        layer.groups = layer.in_channels = len(kept)
    elif (role == "input") == transposed:
        layer.weight = _select(layer.weight, 0, kept)
    else:
        layer.weight = _select(layer.weight, 1, kept[: len(kept) // layer.groups])
    if role == "input":
        layer.in_channels = len(kept)
    else:
        layer.bias = _select(layer.bias, 0, kept)
        layer.out_channels = len(kept)
