"""Groups of channels that have been tried out, and removals that are compared with the masked network."""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ganprune.channels.cutting import remove_cut, zero_channels
from ganprune.channels.graph import trace_groups
from ganprune.channels.groups import ChannelGroup, Cut, merge_cuts
from ganprune.channels.parts import (
    ChannelError,
    add_picker,
    arguments_for,
    named_slots,
    outputs_of,
    reshapes_of,
)
from ganprune.channels.plain_layers import make_plain
from ganprune.core.random import seeded
from ganprune.masks.names import find_adapter, unwrap
from ganprune.masks.weights import canonical_name, prunable_slots
from ganprune.networks.folding import fold_norms
from ganprune.networks.reshapes import fit_reshapes

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
"""Largest relative difference of outputs that counts as none, by dtype."""


class OtherOutputError(ChannelError):
    """A smaller network runs, but its output is not that of the masked one.

    Attributes:
        small: the smaller network.
        difference: of the outputs, as a share: the root of their mean squared difference over that of the masked ones.
    """

    def __init__(self, message: str, small: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> None:
        super().__init__(message)
        self.small = small
        apart = sum(float((one - other).double().square().sum()) for one, other in pairs)
        size = sum(float(one.double().square().sum()) for one, _ in pairs)
        self.difference = (apart / size) ** 0.5 if size else math.inf


@dataclass(frozen=True)
class Analysis:
    """What is known of a network's channels.

    Attributes:
        plain: a copy of the network with norms on its weights folded in.
        randomised: a copy with random weights, on which no mistake can hide.
        arguments: one batch.
        groups: the groups of channels, each tried out.
        source: the network that was given, with its adapter if it has one.
        approximate: whether the smaller network may give something else than the masked one.
    """

    plain: nn.Module
    randomised: nn.Module
    arguments: tuple[Any, ...]
    groups: tuple[ChannelGroup, ...]
    source: nn.Module
    approximate: bool = False

    def cut(self, channels: Mapping[str, Iterable[int]]) -> Cut:
        """What goes with output channels of layers; see :func:`~ganprune.channels.surgery.remove_channels`."""
        return self.cut_units(choose_units(self.groups, channels))

    def cut_units(self, units: Mapping[str, Iterable[int]]) -> Cut:
        """What goes with coupled channels, given by group."""
        groups = {group.name: group for group in self.groups}
        return merge_cuts(groups[name].cut(some) for name, some in units.items())

    def outputs_in(self, cut: Cut) -> dict[str, tuple[int, ...]]:
        """The output channels of each layer that a cut takes."""
        layers = named_slots(self.plain)
        return {
            name: tuple(sorted(gone))
            for (name, role), gone in cut.items()
            if role != "input" and gone and name in layers
        }


def analyse(network: nn.Module, inputs: Any, approximate: bool = False) -> Analysis:
    """Finds and tries out the groups of a network; with ``approximate`` the outputs may differ, and only that.

    Raises:
        ChannelError: if the network cannot be followed on the inputs.
        ValueError: if no weight is prunable, or inputs are needed and missing.
    """
    prunable_slots(network)  # says so if there is nothing to prune
    adapter = find_adapter(network)
    arguments = arguments_for(unwrap(network) if adapter is None else adapter, inputs)
    plain = fold_norms(network)
    add_picker(plain, network)
    reasons = make_plain(plain, arguments)
    fit_reshapes(plain, reshapes_of(plain, arguments))
    randomised = randomise(plain)
    found = trace_groups(plain, arguments, reasons)
    groups = tuple(try_group(randomised, arguments, group, approximate) for group in found)
    return Analysis(plain, randomised, arguments, groups, network, approximate)


@torch.no_grad()
def randomise(network: nn.Module) -> nn.Module:
    """A copy with random weights of a size at which signals neither vanish nor saturate."""
    network = copy.deepcopy(network)
    generator = seeded(0)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)

    for tensor in [*network.parameters(), *network.buffers()]:
        if tensor.is_floating_point():
            noise = draw(tensor)
            tensor.copy_(noise.sign() * (0.5 + 0.5 * noise.abs()))
    for slot in named_slots(network).values():
        fan_in = slot.raw.numel() / slot.outputs
        if isinstance(slot.layer, _ConvTransposeNd):
            fan_in = fan_in / math.prod(slot.layer.stride)
        slot.raw.copy_(draw(slot.raw) * (2 / max(fan_in, 1)) ** 0.5)
    for layer in network.modules():
        if isinstance(layer, (_BatchNorm, _InstanceNorm)) and layer.running_var is not None:
            layer.running_var.abs_()
    return network


def try_group(
    randomised: nn.Module, arguments: tuple[Any, ...], group: ChannelGroup, approximate: bool = False
) -> ChannelGroup:
    """The group, with a reason if some of its channels cannot be removed from the network."""
    if group.reason:
        return group
    stay = group.channels // 2 | 1  # an odd number, so that code that halves channels shows
    gone = torch.randperm(group.channels, generator=seeded(0))[stay:].tolist()
    try:
        try_removal(randomised, group.cut(gone), arguments, absolute=False)
    except OtherOutputError as error:
        return group if approximate else dataclasses.replace(group, reason=str(error))
    except ChannelError as error:
        return dataclasses.replace(group, reason=str(error))
    return group


def difference(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Largest absolute difference of two outputs of one shape, and the largest finite number in the first.

    What is the same in both is no difference, be it infinite or NaN.
    """
    one, other = (t if t.is_floating_point() or t.is_complex() else t.double() for t in (one, other))
    same = (one == other) | (one.isnan() & other.isnan())
    apart = (one - other).abs()[~same]
    sizes = one.abs()[one.isfinite()]
    largest, size = (float(t.max()) if t.numel() else 0.0 for t in (apart, sizes))
    return largest, size


def try_removal(network: nn.Module, cut: Cut, arguments: tuple[Any, ...], absolute: bool = True) -> nn.Module:
    """A copy of a plain network without these channels, compared with the masked network.

    Args:
        network: left as it was.
        cut: what goes.
        arguments: one batch, on which the outputs are compared.
        absolute: allow a difference of the tolerance where outputs are below one; else it is relative.

    Raises:
        ChannelError: if it does not run, or its output is not that of the masked network.
    """
    masked, small = copy.deepcopy(network), copy.deepcopy(network)
    zero_channels(masked, cut, consumers=True)
    remove_cut(small, cut)
    expected = outputs_of(masked, arguments)
    producers = ", ".join(dict.fromkeys(name for name, role in cut if role != "input"))
    try:
        found = outputs_of(small, arguments)
    except Exception as error:
        raise ChannelError(
            f"without some channels of {producers} the network does not run ({error}); does its code fix their "
            "number, as in view(-1, 8, 4, 4)?"
        ) from error
    problem = (
        f"without some channels of {producers} the network's output is not that of the masked network; "
        "something between the layers depends on how many channels there are"
    )
    if [one.shape for one in expected] != [one.shape for one in found]:
        raise ChannelError(problem)
    pairs = list(zip(expected, found, strict=True))
    if not all(_are_close(one, other, absolute) for one, other in pairs):
        raise OtherOutputError(
            f"{problem}, as a norm over channels does (shrink_channels(..., approximate=True) measures it)",
            small,
            pairs,
        )
    return small


def _are_close(one: Tensor, other: Tensor, absolute: bool) -> bool:
    apart, largest = difference(one, other)
    limit = max(1.0, largest) if absolute else 10 * largest
    return apart <= limit * TOLERANCE.get(one.dtype, 2e-2) * (1 if one.device.type == "cpu" else 10)


def choose_units(
    groups: Iterable[ChannelGroup], channels: Mapping[str, Iterable[int]]
) -> dict[str, set[int]]:
    """The coupled channels of each group that are meant by output channels of layers.

    Raises:
        ChannelError: if a group is not prunable, only a part of a coupled channel is named, or none is left.
        TypeError: if ``channels`` is no mapping, or an index no integer.
        ValueError: if there is no such layer or channel.
    """
    groups = tuple(groups)
    places, reasons = _find_places(groups)
    if not isinstance(channels, Mapping):
        raise TypeError(f"channels must map layers to indices of channels, got {type(channels).__name__}")
    chosen: dict[str, set[int]] = {}
    for key, indices in channels.items():
        name = _find_layer(key, places)
        wanted, known = {_check_index(name, index) for index in indices}, places[name]
        unknown = sorted(wanted - set(known))
        refused = [
            reasons[known[i].group] for i in sorted(wanted) if i in known and known[i].group in reasons
        ]
        if refused or (unknown and not known and name in reasons):
            raise ChannelError(f"channels of {name} cannot be removed: {(refused or [reasons[name]])[0]}")
        if unknown:
            raise ValueError(f"channels of {name} must be in [0, {len(known)}), got {unknown}")
        missing = sorted({other for i in wanted for other in known[i].together} - wanted)
        if missing:
            raise ChannelError(
                f"channels {sorted(wanted)} of {name} cannot be removed without {missing}, which are coupled to them"
            )
        for i in wanted:
            chosen.setdefault(known[i].group, set()).add(known[i].unit)
    for group in groups:
        if len(chosen.get(group.name, ())) == group.channels:
            raise ChannelError(
                f"all {group.channels} channels of {group.name} would go; one at least must stay"
            )
    return chosen


class _Place(NamedTuple):
    """Where an output channel of a layer belongs, and the channels of that layer that go with it."""

    group: str
    unit: int
    together: tuple[int, ...]


def _find_places(groups: Iterable[ChannelGroup]) -> tuple[dict[str, dict[int, _Place]], dict[str, str]]:
    """Layer → channel → its place, and the reasons against groups by name."""
    places: dict[str, dict[int, _Place]] = {}
    reasons: dict[str, str] = {}
    for group in groups:
        places.setdefault(group.name.partition("#")[0], {})
        for member in group.members:
            if member.role != "input":
                known = places.setdefault(member.name, {})
                for number, together in enumerate(member.indices):
                    known |= dict.fromkeys(together, _Place(group.name, number, together))
                if group.reason and not member.indices:
                    reasons.setdefault(member.name, group.reason)
        if group.reason:
            reasons[group.name] = group.reason
    return places, reasons


def _find_layer(key: str, places: Mapping[str, Any]) -> str:
    """The layer that a name of a layer or of its weight means."""
    for name in (key, canonical_name(key)):
        for candidate in (name, name.removesuffix("weight").removesuffix(".")):
            if candidate in places:
                return candidate
    raise ValueError(f"channels names {key!r}, which is no layer; layers: {', '.join(places)}")


def _check_index(name: str, value: Any) -> int:
    """A channel's number; a flag per channel is none, though Python would take it for 0 or 1."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if not hasattr(value, "__index__") or isinstance(value, bool):
        raise TypeError(f"channels of {name} must be integers, got {value!r}")
    return operator.index(value)
