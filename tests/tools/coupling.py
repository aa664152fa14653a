"""What is coupled in a network, found by brute force: channels are disturbed, weights are asked for their gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.channels.groups import ChannelGroup

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

Place = tuple[str, str, int]
"""A layer, "output", "input" or "both", and a channel in it; without a name, the output of the network."""

Unit = frozenset[Place]
"""All that goes with a channel."""


def channels_of(layer: nn.Module) -> dict[str, int]:
    """Return how many channels a layer has as "output" and "input", or as "both"."""
    if isinstance(layer, nn.Linear):
        return {"output": layer.out_features, "input": layer.in_features}
    if isinstance(layer, CONVOLUTIONS):
        if 1 < layer.groups == layer.in_channels == layer.out_channels:
            return {"both": layer.out_channels}
        return {"output": layer.out_channels, "input": layer.in_channels}
    size = getattr(layer, "num_features", getattr(layer, "num_parameters", 1))
    return {"both": size} if size > 1 else {}


@torch.no_grad()
def coupled(network: nn.Module, batch: Tensor) -> dict[Unit, bool]:
    """Return all that hangs together, and whether it reaches the network's output, by disturbing every channel.

    Each layer repeats what it gave on the first sample, but for one channel of one layer: what then comes in
    differently somewhere belongs to it. Normalisations and depth-wise convolutions let all through.
    """
    network = copy.deepcopy(network).eval()
    layers = {name: layer for name, layer in network.named_modules() if channels_of(layer)}
    given: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(
            lambda _, args, options, name=name: given.update({name: [*args, *options.values()][0].clone()}),
            with_kwargs=True,
        )
        if "output" in channels_of(layer):
            layer.register_forward_hook(lambda _, args, out, name=name: made.setdefault(name, out).clone())
    given[""] = network(batch[:1])
    usual, outputs, leader = dict(given), dict(made), {}

    def find(place: Place) -> Place:
        while leader.setdefault(place, place) != place:
            place = leader[place]
        return place

    for name, output in outputs.items():
        count = 2 * output.shape[1]  # a sample for each channel and sign: one of the signs passes a ReLU
        made.update({key: value.expand(count, *value.shape[1:]).clone() for key, value in outputs.items()})
        for number in range(count):
            noise = 1000 * (1 + torch.rand_like(output[0, 0]))
            made[name][number, number // 2] += noise * (-1) ** number
        given[""] = network(batch[:1].expand(count, *batch.shape[1:]))
        for reader, before in usual.items():
            role = "both" if reader and "both" in channels_of(layers[reader]) else "input"
            change = (given[reader] - before).abs() > 1e-6
            channels = before.shape[1] if before.ndim > 1 else 1
            for number, index in change.reshape(count, channels, -1).any(2).nonzero().tolist():
                leader[find((reader, role, index))] = find((name, "output", number // 2))
    for name, role, index in list(leader):  # groups of a convolution lose the same positions
        groups = getattr(layers.get(name), "groups", 1)
        if groups > 1 and role != "both":
            first = (name, role, index % (channels_of(layers[name])[role] // groups))
            leader[find((name, role, index))] = find(first)
    units: dict[Place, set[Place]] = {}
    for place in list(leader):
        units.setdefault(find(place), set()).add(place)
    return {
        frozenset(place for place in unit if place[0]): any(not name for name, _, _ in unit)
        for unit in units.values()
    }


def units_of(group: ChannelGroup) -> list[Unit]:
    """Return all that goes with each channel of a group, as the package has it."""
    return [
        frozenset((m.name, m.role, index) for m in group.members for index in m.indices[number])
        for number in range(group.channels)
        if all(m.indices for m in group.members)
    ]


@torch.enable_grad()
def touched(layer: Any, role: str, indices: list[int]) -> dict[str, Tensor]:
    """Return which entries of a layer's parameters make or read channels: those with a gradient."""
    sizes = channels_of(layer)
    if not isinstance(layer, (nn.Linear, *CONVOLUTIONS)):
        chosen = torch.zeros(sizes["both"]).index_fill(0, torch.tensor(indices), 1.0)
        return {name: chosen.bool() for name, _ in layer.named_parameters()}
    layer = copy.deepcopy(layer).requires_grad_(True)
    x = layer.weight.new_ones(1, sizes.get("input", sizes.get("both")), *(8,) * (layer.weight.ndim - 2))
    if role == "input":
        x = torch.zeros_like(x)
        x[:, indices] = 1
    out = layer(x) if role == "input" else layer(x)[:, indices]
    named = {name: p for name, p in layer.named_parameters() if role != "input" or name == "weight"}
    gradients = torch.autograd.grad(out.sum(), [*named.values()])
    return {name: gradient != 0 for name, gradient in zip(named, gradients, strict=True)}


def entries(network: nn.Module, places: Iterable[Place], *roles: str) -> dict[str, Tensor]:
    """Return for every parameter which entries belong to places of these roles, or of any."""
    flags = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in network.named_parameters()}
    chosen: dict[tuple[str, str], list[int]] = {}
    for name, role, index in places:
        if (not roles or role in roles) and any(True for _ in network.get_submodule(name).parameters()):
            chosen.setdefault((name, role), []).append(index)
    for (name, role), indices in chosen.items():
        for attribute, some in touched(network.get_submodule(name), role, indices).items():
            flags[f"{name}.{attribute}"] |= some
    return flags
