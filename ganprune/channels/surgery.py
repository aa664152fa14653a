"""Masking and removing channels of a network together with all that is coupled to them.

Channels that are coupled (by a skip connection, a normalisation, a grouped convolution) go together; see
``graph``. Removing is checked each time: the smaller network must give the output of the masked one,
or :class:`ChannelError` says which layer stands in the way.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.optim import Optimizer

from ganprune.channels.folding import fold_norms, unwrapped
from ganprune.channels.graph import (
    ChannelError,
    ChannelGroup,
    Cut,
    Member,
    arguments_for,
    copied,
    merged,
    named_parts,
    parameter_dim,
    sizes_of,
    tensors_in,
    trace_groups,
)
from ganprune.core.modes import eval_mode
from ganprune.core.random import keep_random_state, seeded
from ganprune.masks.apply import apply_mask
from ganprune.masks.keep import MaskKeeper, keep_mask
from ganprune.masks.mask import Mask
from ganprune.masks.weights import PRUNABLE_LAYERS, canonical_name, prunable_slots, weight_slots
from ganprune.networks.convolutional import DCGANDiscriminatorSpec, DCGANGeneratorSpec
from ganprune.networks.fully_connected import MLPDiscriminatorSpec, MLPGeneratorSpec
from ganprune.scores.activation import per_input, per_output

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@dataclass(frozen=True)
class Analysis:
    """A plain copy of a network, one batch, and the groups of channels."""

    folded: nn.Module
    arguments: tuple[Any, ...]
    groups: tuple[ChannelGroup, ...]

    randomised: nn.Module
    """A copy with random weights, on which no mistake can hide."""

    def cut(self, channels: Mapping[str, Iterable[int]]) -> Cut:
        """What goes with output channels of layers; see :func:`remove_channels`."""
        return cut_of(self, _chosen(self, channels))


def analyse(network: nn.Module, inputs: Any) -> Analysis:
    prunable_slots(network)  # says so if there is nothing to prune
    arguments = arguments_for(unwrapped(network), inputs)
    folded = fold_norms(network)
    groups = trace_groups(folded, arguments)
    randomised = _randomised(folded)
    tried = tuple(_tried(randomised, arguments, group) for group in groups)
    return Analysis(folded, arguments, tried, randomised)


def channel_groups(network: nn.Module, inputs: Any = None) -> tuple[ChannelGroup, ...]:
    """The coupled channels of a network, in module order, and for each group whether it can be pruned.

    Every convolution and linear layer is in one group as a producer. A group is prunable if its channels do
    not reach the output, no layer in it is frozen, shared or run twice, and a trial removal from a copy with
    random weights gives the output of the masked copy; otherwise its ``reason`` says what stands in the way.

    Args:
        network: any module, left as it was; norms on its weights are folded in a copy.
        inputs: what the network takes: a tensor, a tuple of arguments, or an iterable of these (of which the
            first is used). None for a network that has a spec or a ``latent_dim``.

    Returns:
        The groups.

    Raises:
        ChannelError: if the network cannot be followed on the inputs at all.
        ValueError: if no weight is prunable, or ``inputs`` is None and the network does not say what it takes.
    """
    return analyse(network, inputs).groups


@torch.no_grad()
def _randomised(network: nn.Module) -> nn.Module:
    """A copy with random weights of a size at which signals neither vanish nor saturate."""
    network = copy.deepcopy(network)
    generator = seeded(0)

    def draw(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like.device, like.dtype)

    for tensor in [*network.parameters(), *network.buffers()]:
        if tensor.is_floating_point():
            noise = draw(tensor)
            tensor.copy_(noise.sign() * (0.5 + 0.5 * noise.abs()))
    for slot in weight_slots(network).values():
        fan_in = slot.raw.numel() / slot.outputs
        if isinstance(slot.layer, _ConvTransposeNd):
            fan_in = fan_in / math.prod(slot.layer.stride)
        slot.raw.copy_(draw(slot.raw) * (2 / max(fan_in, 1)) ** 0.5)
    for layer in network.modules():
        if isinstance(layer, (_BatchNorm, _InstanceNorm)) and layer.running_var is not None:
            layer.running_var.abs_()
    return network


def _tried(network: nn.Module, arguments: tuple[Any, ...], group: ChannelGroup) -> ChannelGroup:
    if group.reason:
        return group
    stay = group.channels // 2 | 1  # an odd number, so that code that halves channels shows
    gone = torch.randperm(group.channels, generator=seeded(0))[stay:].tolist()
    try:
        _removed(network, group.cut(gone), arguments, absolute=False)
    except ChannelError as error:
        return dataclasses.replace(group, reason=str(error))
    return group


def _flags(size: int, indices: Iterable[int]) -> Tensor:
    kept = torch.ones(size, dtype=torch.bool)
    kept[sorted(indices)] = False
    return kept


def _kept(network: nn.Module, cut: Cut, consumers: bool) -> tuple[Mask, Mask | None]:
    """What stays of the prunable weights, and of the other parameters that channels have something in."""
    parts = named_parts(network)
    weights: dict[str, Tensor] = {}
    for key, slot in weight_slots(network).items():
        name, sizes = slot.name, sizes_of(slot.layer)
        weights[key] = torch.ones_like(slot.raw, dtype=torch.bool)
        for role in ("output", "both", "input"):
            if (name, role) in cut and (role != "input" or consumers):
                flags = _flags(sizes[role], cut[name, role]).to(slot.raw.device)
                weights[key] &= per_input(slot, flags) if role == "input" else per_output(slot, flags)
    others: dict[str, Tensor] = {}
    for (name, role), indices in cut.items():
        part: Any = parts[name]
        if role == "input":
            continue
        flags = _flags(sizes_of(part)[role], indices)
        if isinstance(part, nn.Parameter):
            dim = parameter_dim(part.shape) or 0
            others[name] = flags.view([-1 if d == dim else 1 for d in range(part.ndim)]).expand(part.shape)
        elif isinstance(part, nn.Embedding):
            others[f"{name}.weight"] = flags.expand(part.num_embeddings, -1)
        elif not isinstance(part, nn.PReLU):  # whose slopes leave zero at zero
            for attribute in ("bias",) if isinstance(part, PRUNABLE_LAYERS) else ("weight", "bias"):
                if getattr(part, attribute) is not None:
                    others[f"{name}.{attribute}".lstrip(".")] = flags
    return Mask(weights), Mask(others) if others else None


@torch.no_grad()
def _centre(network: nn.Module, cut: Cut) -> None:
    """Sets running means to zero, so that zero stays zero behind a normalisation without a scale of its own."""
    parts = named_parts(network)
    for (name, _), indices in cut.items():
        mean = getattr(parts[name], "running_mean", None)
        if mean is not None:
            mean[sorted(indices)] = 0.0


def _zero(network: nn.Module, cut: Cut, consumers: bool) -> Mask:
    """Sets everything of the channels to zero, in place; the mask of the weights among it."""
    mask, others = _kept(network, cut, consumers)
    apply_mask(network, mask, others=others)
    _centre(network, cut)
    return mask


def _select(parameter: Any, dim: int, kept: Tensor) -> Any:
    if parameter is None:
        return None
    chosen = parameter.detach().index_select(dim, kept.to(parameter.device))
    return nn.Parameter(chosen, parameter.requires_grad) if isinstance(parameter, nn.Parameter) else chosen


@torch.no_grad()
def _cut_out(network: nn.Module, cut: Cut) -> None:
    """Removes channels from the layers of a plain network, in place."""
    parts = named_parts(network)
    for (name, role), indices in cut.items():
        part: Any = parts[name]
        kept = _flags(sizes_of(part)[role], indices).nonzero().flatten()
        if isinstance(part, nn.Parameter):
            path, _, attribute = name.rpartition(".")
            owner: Any = parts[path]
            setattr(owner, attribute, _select(part, parameter_dim(part.shape) or 0, kept))
        elif isinstance(part, _ConvNd):
            _cut_convolution(part, role, kept)
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


def _cut_convolution(layer: Any, role: str, kept: Tensor) -> None:
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


@torch.no_grad()
def outputs_of(network: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    """All tensors that a network gives in evaluation mode, in exact arithmetic and with fixed random numbers."""
    device = next(network.parameters()).device
    with (
        eval_mode(network),
        keep_random_state(device),
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
    ):
        torch.manual_seed(0)
        return tensors_in(network(*copied(arguments)))


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


def _removed(network: nn.Module, cut: Cut, arguments: tuple[Any, ...], absolute: bool = True) -> nn.Module:
    """A copy of a plain network without these channels.

    Args:
        network: left as it was.
        cut: what goes.
        arguments: one batch, on which the outputs are compared.
        absolute: allow a difference of the tolerance where outputs are below one; else it is relative.

    Raises:
        ChannelError: if it does not run, or its output is not that of the masked network.
    """
    masked, small = copy.deepcopy(network), copy.deepcopy(network)
    _zero(masked, cut, consumers=True)
    _cut_out(small, cut)
    expected = outputs_of(masked, arguments)
    producers = ", ".join(dict.fromkeys(name for name, role in cut if role != "input"))
    try:
        found = outputs_of(small, arguments)
    except Exception as error:
        raise ChannelError(
            f"without some channels of {producers} the network does not run ({error}); does its code fix their "
            "number, as in view(-1, 8, 4, 4)?"
        ) from error
    if [one.shape for one in expected] != [one.shape for one in found] or not all(
        _close(one, other, absolute) for one, other in zip(expected, found, strict=True)
    ):
        raise ChannelError(
            f"without some channels of {producers} the network's output is not that of the masked network; "
            "something between the layers depends on how many channels there are"
        )
    return small


def _close(one: Tensor, other: Tensor, absolute: bool) -> bool:
    apart, largest = difference(one, other)
    limit = max(1.0, largest) if absolute else 10 * largest
    return apart <= limit * TOLERANCE.get(one.dtype, 2e-2) * (1 if one.device.type == "cpu" else 10)


def _chosen(analysis: Analysis, channels: Mapping[str, Iterable[int]]) -> dict[str, set[int]]:
    """The coupled channels of each group that are meant by output channels of layers.

    Raises:
        ChannelError: if a group is not prunable, only a part of a coupled channel is named, or none is left.
        TypeError: if ``channels`` is no mapping, or an index no integer.
        ValueError: if there is no such layer or channel.
    """
    producers: dict[str, tuple[ChannelGroup, Member]] = {}
    for group in analysis.groups:
        for member in group.members:
            if member.role != "input":
                producers[member.name] = (group, member)
        producers.setdefault(group.name, (group, Member(group.name, "output", ())))
    if not isinstance(channels, Mapping):
        raise TypeError(f"channels must map layers to indices of channels, got {type(channels).__name__}")
    chosen: dict[str, set[int]] = {}
    for key, indices in channels.items():
        name = canonical_name(key)
        name = name if name in producers else name.removesuffix("weight").removesuffix(".")
        if name not in producers:
            raise ValueError(f"channels names {key!r}, which is no layer; layers: {', '.join(producers)}")
        group, member = producers[name]
        wanted = {_index(name, index) for index in indices}
        if not wanted:
            continue
        if group.reason:
            raise ChannelError(f"channels of {name} cannot be removed: {group.reason}")
        known = {i: number for number, unit in enumerate(member.indices) for i in unit}
        unknown = sorted(wanted - set(known))
        if unknown:
            raise ValueError(f"channels of {name} must be in [0, {len(known)}), got {unknown}")
        units = {known[i] for i in wanted}
        missing = sorted({i for unit in units for i in member.indices[unit]} - wanted)
        if missing:
            raise ChannelError(
                f"channels {sorted(wanted)} of {name} cannot be removed without {missing}, which are coupled to them"
            )
        chosen.setdefault(group.name, set()).update(units)
    for group in analysis.groups:
        if len(chosen.get(group.name, ())) == group.channels:
            raise ChannelError(
                f"all {group.channels} channels of {group.name} would go; one at least must stay"
            )
    return chosen


def _index(name: str, value: Any) -> int:
    """A channel's number; a flag per channel is none, though Python would take it for 0 or 1."""
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if not hasattr(value, "__index__") or isinstance(value, bool):
        raise TypeError(f"channels of {name} must be integers, got {value!r}")
    return operator.index(value)


def cut_of(analysis: Analysis, chosen: Mapping[str, Iterable[int]]) -> Cut:
    groups = {group.name: group for group in analysis.groups}
    return merged(groups[name].cut(units) for name, units in chosen.items())


def remove_channels(
    network: nn.Module, channels: Mapping[str, Iterable[int]], inputs: Any = None
) -> nn.Module:
    """A smaller network without the given channels and all that is coupled to them.

    Args:
        network: any module, left as it was.
        channels: layer name → indices of its output channels. Naming one of several coupled layers is enough;
            within that layer all that belong together must be named.
        inputs: as for :func:`channel_groups`.

    Returns:
        A new network, in the modes of the old one, whose output in evaluation mode is that of the masked
        network. Norms on weights are folded in. Networks of this package have a smaller ``spec``, so that
        ``save`` and ``load`` work; other networks come back as a pruned copy.

    Raises:
        ChannelError: if a layer's channels cannot be removed, with the reason.
        TypeError: if ``channels`` is no mapping, or an index no integer (as a flag per channel).
        ValueError: if a layer or channel does not exist, or as in :func:`channel_groups`.
    """
    analysis = analyse(network, inputs)
    return finish(analysis, analysis.cut(channels))


def finish(analysis: Analysis, cut: Cut) -> nn.Module:
    """The network without what is cut out, and with its spec.

    Raises:
        ChannelError: if the result is not the masked network, with its own weights or with random ones.
    """
    _removed(analysis.randomised, cut, analysis.arguments, absolute=False)
    small = _removed(analysis.folded, cut, analysis.arguments)
    spec = getattr(small, "spec", None)
    if spec is not None:
        small.spec = _smaller_spec(small, spec)  # type: ignore[assignment]
    return small


def _smaller_spec(network: nn.Module, spec: Any) -> Any:
    """The spec of a network after layers have become smaller.

    Raises:
        ChannelError: if that is not known for this kind of spec, or does not give this network.
    """
    widths = [slot.outputs for slot in weight_slots(network).values()][:-1]
    if isinstance(spec, (DCGANGeneratorSpec, DCGANDiscriminatorSpec)):
        changes: dict[str, Any] = {"channels": tuple(widths)}
    elif isinstance(spec, (MLPGeneratorSpec, MLPDiscriminatorSpec)):
        changes = {"hidden": tuple(widths)}
    else:
        raise ChannelError(
            f"it is not known how the spec {type(spec).__name__} looks for a smaller network; take the attribute "
            "spec off the network, or call it something else, to get a network without one"
        )
    if getattr(spec, "norm", None) == "spectral":
        changes["norm"] = "none"
    smaller = dataclasses.replace(spec, **changes)
    with torch.device("meta"):
        wanted = smaller.build().state_dict()
    if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in network.state_dict().items()}:
        raise ChannelError(f"the smaller network is not what the spec {smaller!r} describes")
    return smaller


def mask_channels(
    network: nn.Module,
    channels: Mapping[str, Iterable[int]],
    inputs: Any = None,
    consumers: bool = False,
) -> Mask:
    """Sets channels to zero in place: weights and bias of all coupled layers, γ and β of their normalisation.

    In evaluation mode such a channel's output is exactly zero. Under spectral norm the other weights of a layer
    change with its norm; mask :func:`fold_norms` of the network to compare with a shrunk one. To train on, use
    :func:`keep_channels`: ``keep_mask`` with the mask that comes back holds the weights alone.

    Args:
        network: any module.
        channels: as for :func:`remove_channels`.
        inputs: as for :func:`channel_groups`.
        consumers: also set the weights to zero that read these channels, which matters where an activation
            function makes something else of a zero.

    Returns:
        The mask of the weights.

    Raises:
        ChannelError: as in :func:`remove_channels`.
        TypeError: as in :func:`remove_channels`.
        ValueError: as in :func:`remove_channels`.
    """
    analysis = analyse(network, inputs)
    return _zero(unwrapped(network), analysis.cut(channels), consumers)


def keep_channels(
    network: nn.Module,
    channels: Mapping[str, Iterable[int]],
    optimizer: Optimizer,
    inputs: Any = None,
    ema: nn.Module | None = None,
    consumers: bool = False,
) -> MaskKeeper:
    """Sets channels to zero, as :func:`mask_channels` does, and holds all of them there while an optimiser steps.

    Held are weights, biases, γ and β, and also the rows of embeddings and single parameters that belong to the
    channels, with whatever optimiser, weight decay and momentum. So after training :func:`remove_channels` of
    the same channels gives a network with the outputs of this one, in evaluation mode::

        with keep_channels(generator, channels, optimizer):
            ...  # zero_grad, backward, step as ever
        small = remove_channels(generator, channels)

    Batch norm sees zeros in such a channel, so its running mean stays zero and its running variance falls to
    zero; what comes out is zero. Where an activation function makes something else of a zero, as a
    sigmoid does, the layers behind it would read that: set ``consumers``. A run that is resumed calls this
    again, with the same channels; where all is zero already nothing changes.

    Args:
        network: any module.
        channels: as for :func:`remove_channels`.
        optimizer: moves the network's parameters.
        inputs: as for :func:`channel_groups`.
        ema: an exponential moving average of the network; the channels become zero in it too.
        consumers: also hold the weights at zero that read these channels.

    Returns:
        The keeper of :func:`~ganprune.masks.keep.keep_mask`, also a context manager. Its mask, and so its sparsity, is
        that of the weights; the rest is in ``others``, which stays as it is when ``update`` changes the mask.

    Raises:
        ChannelError: as in :func:`remove_channels`.
        TypeError: as in :func:`remove_channels` and :func:`~ganprune.masks.keep.keep_mask`.
        ValueError: as in :func:`remove_channels` and :func:`~ganprune.masks.keep.keep_mask`; then nothing is changed.
    """
    cut = analyse(network, inputs).cut(channels)
    network = unwrapped(network)
    mask, others = _kept(network, cut, consumers)
    keeper = keep_mask(network, mask, optimizer, ema, others=others)
    for one in (network, ema):
        if one is not None:
            _centre(one, cut)
    return keeper
