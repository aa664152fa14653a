"""Compaction: channels that pruning has left without effect are taken out of a network, and it computes the same.

A coupled channel is *unread* if all weights that read it are zero, and *dead* if all weights that make it are
zero. A dead channel is not always zero: it still emits its bias, and behind batch norm and ReLU the number
max(0, β − γ μ / √(v + ε)). Such a constant can go only where every layer that reads it makes one number per
output of it, which its bias takes up. A convolution with zero padding does not (fewer taps at the borders), nor
does a transposed convolution with kernel 4 and stride 2. So what a layer makes of it is computed, in float64.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.channels.analysis import TOLERANCE, Analysis, analyse, difference, try_removal
from ganprune.channels.cutting import remove_cut, select_channels, zero_channels
from ganprune.channels.groups import ChannelGroup, Cut, merge_cuts
from ganprune.channels.parts import (
    ChannelError,
    connection_table,
    map_tensors,
    named_parts,
    named_slots,
    outputs_of,
    settle_reshapes,
)
from ganprune.channels.surgery import dress, fit_spec
from ganprune.core.random import seeded
from ganprune.masks.apply import check_mask
from ganprune.masks.mask import Mask
from ganprune.masks.names import find_adapter, unwrap
from ganprune.masks.weights import weight_slots

SAME = 1e-10
"""Relative difference below which two float64 numbers count as one."""


@dataclass(frozen=True)
class CompactionResult:
    """What :func:`compact` gives back.

    Attributes:
        network: the smaller network; an unchanged copy if nothing could be removed.
        mask: the mask cut to the smaller weights; None if none was given.
        removed: layer → indices of its output channels that went.
        kept: layer → reason → indices of its output channels that have no effect, but could not go.
        difference: of the outputs over the largest, in float64, on the inputs and random ones.
    """

    network: nn.Module
    mask: Mask | None
    removed: dict[str, tuple[int, ...]]
    kept: dict[str, dict[str, tuple[int, ...]]]
    difference: float


@torch.no_grad()
def compact(network: nn.Module, inputs: Any = None, mask: Mask | None = None) -> CompactionResult:
    """A smaller network that computes the same in evaluation mode, without channels that have no effect.

    Dead and unread channels go, and then those that are dead or unread without them, until nothing changes.
    Their weights say which they are, and the outputs without them are compared with the original ones in
    float64, on the inputs and on random ones; groups of channels that make a difference stay. Each group keeps
    one channel. In training mode the networks differ: batch norm then uses the statistics of the batch.

    Args:
        network: any module, left as it was; a pruned generator or discriminator.
        inputs: one batch: a tensor or a tuple of arguments (of an iterable of batches the first is used). None
            for a network that has a spec or a ``latent_dim``.
        mask: the network's mask, to be cut to the new shapes.

    Returns:
        The network, in the modes of the old one, with the mask, what went, and what stayed with the reason. If
        anything was removed, norms on weights are folded in and a spec of this package is smaller, as by
        :func:`~ganprune.channels.surgery.remove_channels`.

    Raises:
        MaskError: if a weight is not zero under the mask.
        TypeError: if ``mask`` is not a :class:`~ganprune.masks.mask.Mask`.
        ValueError: if the mask does not fit, no weight is prunable, or inputs are needed and missing.
        ChannelError: if the network cannot be followed on the inputs, or inside ``torch.inference_mode``.
    """
    if mask is not None:
        check_mask(network, mask)
    analysis = analyse(network, inputs)
    removal, refused = _remove_groups(analysis, _Work.of(analysis))
    kept = _report_kept(analysis, removal, refused)
    if not any(removal.units.values()):
        adapter = find_adapter(network)
        same = copy.deepcopy(unwrap(network) if adapter is None else adapter)
        return CompactionResult(same, mask, {}, kept, 0.0)
    small, cut = removal.network, removal.cut
    _restore_dtypes(small, analysis.plain)
    smaller = _cut_mask(analysis.plain, small, cut, mask)
    return CompactionResult(
        dress(analysis, small), smaller, analysis.outputs_in(cut), kept, removal.difference
    )


class _Work:
    """A network in float64 on the CPU, of which channels without effect become zero one after the other."""

    def __init__(self, network: nn.Module, batches: list[tuple[Any, ...]]) -> None:
        self.network, self.batches = network, batches
        self.parts, self.slots = named_parts(network), named_slots(network)
        self.may_add_bias = getattr(network, "spec", None) is None
        self.notes: dict[tuple[str, int], str] = {}  # (group, unit) that is without effect, but stays → why

    @classmethod
    def of(cls, analysis: Analysis) -> _Work:
        """The plain network of an analysis, with its batch and two random ones of the same kind."""
        generator = seeded(0)

        def draw(like: Tensor, scale: float) -> Tensor:
            if not like.is_floating_point():
                return like
            noise = torch.randn(like.shape, generator=generator, dtype=like.dtype)
            return noise * scale * (like.std(correction=0).nan_to_num(1.0) + 1e-3)

        batch = map_tensors(analysis.arguments, lambda t: t.detach().cpu())
        batch = map_tensors(batch, lambda t: t.double() if t.is_floating_point() else t)
        random = [map_tensors(batch, functools.partial(draw, scale=scale)) for scale in (1.0, 10.0)]
        network = copy.deepcopy(analysis.plain).cpu().double()
        try:
            outputs_of(network, batch)
        except Exception as error:
            raise ChannelError(
                f"{type(network).__name__} cannot be compared exactly: it does not run in float64 ({error})"
            ) from error
        return cls(network, [batch, *random])

    def table(self, name: str) -> Tensor:
        """Which input matters to which output of a layer, bool."""
        slot = self.slots[name]
        return connection_table(slot.layer, slot.raw.abs()) != 0

    def is_unread(self, group: ChannelGroup, unit: int) -> bool:
        """Whether layers read the channel, all of them with weights of zero."""
        readers = [member for member in group.members if member.role == "input"]
        read = (self.table(member.name)[:, list(member.indices[unit])] for member in readers)
        return bool(readers) and not any(table.any() for table in read)

    def is_dead(self, group: ChannelGroup, unit: int) -> bool:
        """Whether all weights that make the channel are zero, and no embedding makes it depend on a label."""
        rows, columns = [], []
        for member in group.members:
            part, chosen = self.parts[member.name], list(member.indices[unit])
            if member.role == "output":
                rows.append(self.table(member.name)[chosen])
            elif isinstance(part, nn.Embedding):
                columns.append(part.weight[:, chosen])
        silent = bool(rows) and not any(row.any() for row in rows)
        return silent and all(bool((column == column[:1]).all()) for column in columns)

    def watch_inputs(self, groups: Iterable[ChannelGroup]) -> dict[str, list[Tensor]]:
        """What the layers that read these groups get, batch by batch."""
        names = {member.name for group in groups for member in group.members if member.role == "input"}
        seen: dict[str, list[Tensor]] = {name: [] for name in names}
        with ExitStack() as hooks:
            for name in names:
                keep = functools.partial(_keep_input, seen[name])
                layer = self.slots[name].layer
                hooks.enter_context(layer.register_forward_pre_hook(keep, with_kwargs=True))
            for batch in self.batches:
                outputs_of(self.network, batch)
        return seen

    def find_shifts(
        self, group: ChannelGroup, unit: int, inputs: Mapping[str, list[Tensor]]
    ) -> dict[str, Tensor] | str:
        """What a dead channel adds to the outputs of each layer that reads it, or why that is no bias."""
        shifts: dict[str, Tensor] = {}
        for member in group.members:
            if member.role != "input":
                continue
            layer: Any = self.slots[member.name].layer
            chosen = torch.tensor(member.indices[unit])
            dim = -1 if isinstance(layer, nn.Linear) else 1
            given = [one.index_select(dim, chosen) for one in inputs[member.name]]
            if not any(bool(one.any()) for one in given):
                continue
            first = given[0][:1]
            if any(not _are_same(one, first) for one in given):
                return (
                    f"no weight makes it, but what {member.name} reads of it is not the same for every input"
                )
            if getattr(layer, "groups", 1) > 1:
                return f"it is constant, and {member.name}, which reads it, is a grouped convolution"
            part = copy.deepcopy(layer)
            select_channels(part, "input", chosen)
            part.bias = None
            sums = part(first).movedim(dim, 0).flatten(1)
            if not _are_same(sums, sums[:, :1]):
                kind = type(layer).__name__
                return f"it is constant, but {member.name} ({kind}) makes different numbers of it at borders or strides"
            if layer.bias is None and not self.may_add_bias:
                return f"it is constant, but {member.name} has no bias to take it up"
            shifts[member.name] = sums[:, 0]
        return shifts

    def settle(self, groups: list[ChannelGroup]) -> dict[str, set[int]]:
        """Removes channels without effect until nothing changes; group → the coupled channels that went."""
        gone: dict[str, set[int]] = {group.name: set() for group in groups}
        changed = True
        while changed:
            self.notes, inputs, cuts = {}, self.watch_inputs(groups), []
            for group in groups:
                for unit in sorted(set(range(group.channels)) - gone[group.name]):
                    unread = self.is_unread(group, unit)
                    if not unread and not self.is_dead(group, unit):
                        continue
                    shifts = {} if unread else self.find_shifts(group, unit, inputs)
                    if isinstance(shifts, dict) and len(gone[group.name]) == group.channels - 1:
                        shifts = "it is the last channel of its layer"
                    if isinstance(shifts, str):
                        self.notes[group.name, unit] = shifts
                        continue
                    for name, shift in shifts.items():
                        layer: Any = self.slots[name].layer
                        bias = shift if layer.bias is None else layer.bias + shift
                        layer.bias = nn.Parameter(bias, layer.weight.requires_grad)
                    gone[group.name].add(unit)
                    cuts.append(group.cut([unit]))
            changed = bool(cuts)
            if changed:
                zero_channels(self.network, merge_cuts(cuts), consumers=True)
        return gone


def _keep_input(seen: list[Tensor], _: nn.Module, args: Any, kwargs: Any) -> None:
    seen.append(args[0] if args else kwargs["input"])


def _are_same(one: Tensor, other: Tensor) -> bool:
    return bool(((one - other).abs() <= SAME * max(float(other.abs().max()), 1e-30)).all())


@dataclass(frozen=True)
class _Removal:
    """A network in float64 without channels that have no effect, which computes what the original does."""

    network: nn.Module
    units: dict[str, set[int]]
    cut: Cut
    notes: dict[tuple[str, int], str]
    difference: float


def _remove_groups(analysis: Analysis, start: _Work) -> tuple[_Removal, dict[str, str]]:
    """Removes what has no effect; also group → why nothing could be removed from it, as the outputs changed."""
    groups = [group for group in analysis.groups if group.prunable]
    expected = [outputs_of(start.network, batch) for batch in start.batches]
    try:
        return _try_groups(analysis, start, groups, expected), {}
    except ChannelError:
        pass
    good: list[ChannelGroup] = []
    refused: dict[str, str] = {}
    best = _try_groups(analysis, start, good, expected)
    for group in groups:
        try:
            best = _try_groups(analysis, start, [*good, group], expected)
            good.append(group)
        except ChannelError as error:
            refused[group.name] = str(error)
    return best, refused


def _try_groups(
    analysis: Analysis, start: _Work, groups: list[ChannelGroup], expected: list[list[Tensor]]
) -> _Removal:
    """Removes what has no effect.

    Raises:
        ChannelError: if the outputs are not the expected ones, or the smaller network does not run.
    """
    work = _Work(copy.deepcopy(start.network), start.batches)
    units = work.settle(groups)
    cut = analysis.cut_units(units)
    if not any(units.values()):
        return _Removal(work.network, units, cut, work.notes, 0.0)
    try_removal(analysis.randomised, cut, analysis.arguments, absolute=False)
    small, worst = work.network, 0.0
    remove_cut(small, cut)
    for batch, wanted in zip(work.batches, expected, strict=True):
        for one, other in zip(wanted, outputs_of(small, batch), strict=True):
            apart, largest = difference(one, other)
            worst = max(worst, apart / (largest or 1.0))
    if not worst <= TOLERANCE[torch.float64]:
        names = ", ".join(name for name, some in units.items() if some)
        raise ChannelError(f"without channels of {names} the outputs differ by {worst:.3g} of the largest")
    settle_reshapes(small, start.batches[0])
    fit_spec(small, analysis.plain)
    return _Removal(small, units, cut, work.notes, worst)


def _restore_dtypes(small: nn.Module, plain: nn.Module) -> None:
    """Gives a smaller network the dtypes and the devices of the original, in place."""
    usual = dict(plain.named_parameters()) | dict(plain.named_buffers())
    for name, tensor in [*small.named_parameters(), *small.named_buffers()]:
        like = usual[name] if name in usual else usual[f"{name.removesuffix('bias')}weight"]  # a new bias
        tensor.data = tensor.data.to(like.device, like.dtype)


def _report_kept(
    analysis: Analysis, removal: _Removal, refused: Mapping[str, str]
) -> dict[str, dict[str, tuple[int, ...]]]:
    """Layer → reason → the output channels that have no effect and stay."""
    found: dict[str, dict[str, set[int]]] = {}
    layers, work = named_slots(analysis.plain), _Work(analysis.plain, [])
    for group in analysis.groups:
        reason = group.reason or refused.get(group.name, "")
        for member in group.members:
            if member.role == "input" or member.name not in layers:
                continue
            rows = () if member.indices else (~work.table(member.name).any(1)).nonzero().flatten().tolist()
            silent: dict[str, set[int]] = {reason: set(rows)} if rows else {}
            for unit, indices in enumerate(member.indices):
                why = removal.notes.get((group.name, unit), "")
                if reason and (work.is_dead(group, unit) or work.is_unread(group, unit)):
                    why = reason
                if why:
                    silent.setdefault(why, set()).update(indices)
            for why, some in silent.items():
                found.setdefault(member.name, {}).setdefault(why, set()).update(some)
    return {name: {why: tuple(sorted(s)) for why, s in reasons.items()} for name, reasons in found.items()}


def _cut_mask(plain: nn.Module, small: nn.Module, cut: Cut, mask: Mask | None) -> Mask | None:
    """The mask without the rows and columns that went."""
    if mask is None:
        return None
    flags = copy.deepcopy(plain)
    slots = weight_slots(flags)
    for key, kept in mask.items():
        slots[key].raw.copy_(kept)
    remove_cut(flags, cut)
    slots = weight_slots(flags)
    smaller = Mask({key: slots[key].raw != 0 for key in mask})
    check_mask(small, smaller)
    return smaller
