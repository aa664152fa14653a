"""Compaction: what unstructured pruning has left without effect is taken out of the network, exactly.

A channel goes if in evaluation mode its output is zero whatever the input, if nobody reads it, or if its output is
constant and every layer that reads it sees the same sum in every place, so that a bias can stand for it.

A constant behind a layer with borders is the trap. A channel whose weights are all zero still emits its bias, and
behind batch norm and ReLU the number max(0, β − γ μ / √(v + ε)). To a linear layer, a 1 × 1 convolution or one
without padding such a plane adds one number per output: a bias. A padded convolution adds less at the borders. A
transposed convolution with kernel k and stride s gives output position p the weights with index ≡ p modulo s:
with k > s or padding fewer of them at the borders, with k = s a different one for each p modulo s; it adds one
number only for k = s = 1 (or weights that happen to be equal). So the sum is computed here, position by position,
from weights and constants in float64, and it counts as a bias where all positions agree.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.channels.dataflow import OUTPUT, Dataflow, Read, rows_of, shift
from ganprune.channels.folding import unwrapped
from ganprune.channels.graph import ChannelError, arguments_for, mapped
from ganprune.channels.shadows import Untraceable, trace
from ganprune.channels.surgery import analyse, difference, finish, outputs_of
from ganprune.core.errors import GanpruneError
from ganprune.core.random import seeded
from ganprune.masks.apply import check_mask
from ganprune.masks.mask import Mask
from ganprune.masks.weights import prunable_slots, weight_slots
from ganprune.scores.activation import per_input, per_output

TOLERANCE = 1e-5


KINDS = ("zero", "unread", "folded")


class CompactionError(GanpruneError, RuntimeError):
    """The compacted network does not give the outputs of the original; the message says by how much."""


@dataclass(frozen=True)
class CompactionResult:
    """What :func:`compact` gives back.

    Attributes:
        network: the smaller network; an unchanged copy if nothing could be removed.
        mask: the mask cut to the smaller weights; None if none was given.
        report: one row per layer: name, outputs (before), outputs_left, how many output channels went because
            they were zero, unread or folded, how many are kept although nothing varies in them or nobody
            reads them, and the reasons for these and for channels that could not be followed.
        removed: layer name → (indices of the output channels that went).
        difference: largest absolute difference of outputs over the largest output, on the inputs that were tried.
    """

    network: nn.Module
    mask: Mask | None
    report: list[dict[str, Any]]
    removed: dict[str, tuple[int, ...]]
    difference: float


@dataclass
class _Plan:
    """Classes of channels, by root, that can go together without any change of the output."""

    flow: Dataflow
    refused: dict[str, str]
    can_add_bias: bool
    gone: dict[int, str] = field(default_factory=dict)  # class → kind
    pinned: set[int] = field(default_factory=set)  # would go, but is the last of a layer
    notes: dict[int, str] = field(default_factory=dict)  # class that is kept → why

    def __post_init__(self) -> None:
        channels = self.flow.channels
        self.classes = channels.classes()
        self.bound = {root: channels.reasons[root] for root in self.classes if root in channels.reasons}
        for root, labels in self.classes.items():
            for label in labels:
                key = channels.owners[label][0]
                if key in self.refused:
                    self.bound.setdefault(root, self.refused[key])
        self.places: dict[int, list[tuple[int, list[int]]]] = {}  # class → (read, its input channels)
        self.roots = []
        for number, read in enumerate(self.flow.reads):
            self.roots.append([channels.root(label) for label in read.outputs])
            found: dict[int, list[int]] = {}
            for index, label in enumerate(read.inputs):
                if label:
                    found.setdefault(channels.root(label), []).append(index)
            for root, indices in found.items():
                self.places.setdefault(root, []).append((number, indices))
        self.nonzero = [read.nonzero for read in self.flow.reads]
        self.zero = [read.constant & (rows_of(read.value, read.axis) == 0).all(1) for read in self.flow.reads]
        self.shifts: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._settle()

    def _settle(self) -> None:
        """Takes classes out until nothing changes; then leaves each layer at least one channel."""
        live: set[int] = set()  # last channels of a layer that must go on giving the right numbers
        idle: set[int] = set()  # last channels of a layer that nobody reads
        while True:
            dead: dict[int, str] = {}
            while True:
                used = self._used(set(dead) - live)
                found = {
                    root: kind
                    for root in self.classes
                    if root not in dead and root not in live and (kind := self._verdict(root, used)[0])
                }
                if not found:
                    break
                dead |= found
            dead = {root: self._verdict(root, used)[0] for root in dead}
            wrong = {root for root in idle if dead.get(root) != "unread"}
            if wrong:
                live, idle = live | wrong, idle - wrong
                continue
            root = self._last_channel(dead, idle)
            if root is None:
                break
            (idle if dead[root] == "unread" else live).add(root)
        self.pinned = live | idle
        self.gone = {root: kind for root, kind in dead.items() if root not in idle}
        for root in self.classes:
            if root not in self.gone:
                note = (
                    "the last channel of its layer" if root in self.pinned else self._verdict(root, used)[1]
                )
                if note:
                    self.notes[root] = note

    def _last_channel(self, dead: dict[int, str], idle: set[int]) -> int | None:
        """A class that must stay so that some layer keeps a channel."""
        layers: dict[str, list[int]] = {}
        for root, labels in self.classes.items():
            for label in labels:
                layers.setdefault(self.flow.channels.owners[label][0], []).append(root)
        for roots in layers.values():
            if all(root in dead and root not in idle for root in roots):
                order = {"unread": 0, "zero": 1, "folded": 2}
                return min(roots, key=lambda root: order[dead[root]])
        return None

    def _used(self, dead: set[int]) -> list[Tensor]:
        """Per read, which input channels matter to an output channel that is not dead, as (outputs, inputs)."""
        used = []
        for roots, nonzero in zip(self.roots, self.nonzero, strict=True):
            alive = torch.tensor([root not in dead for root in roots])
            used.append(nonzero & alive[:, None])
        return used

    def _verdict(self, root: int, used: list[Tensor]) -> tuple[str, str]:
        """How a class can go ("" if it cannot), and what is in the way if nothing varies in it."""
        kind, why = self._unbound_verdict(root, used)
        if root not in self.bound:
            return kind, why
        constant = all(self._constant(label) for label in self.classes[root])
        silent = bool(self.places.get(root)) and (kind or why)
        return "", self.bound[root] if constant or silent else ""

    def _constant(self, label: int) -> bool:
        key, index = self.flow.channels.owners[label]
        return bool(self.flow.constant[key][index])

    def _unbound_verdict(self, root: int, used: list[Tensor]) -> tuple[str, str]:
        folds, zero = [], bool(self.places.get(root))
        for number, indices in self.places.get(root, []):
            read, matters = self.flow.reads[number], used[number][:, indices].any(0)
            if bool((matters & ~read.constant[indices]).any()):
                return "", ""
            zero = zero and bool(self.zero[number][indices].all())
            if bool((matters & ~self.zero[number][indices]).any()):
                folds.append((number, indices))
        for number, indices in folds:
            why = self._obstacle(root, number, indices, used[number])
            if why:
                return "", why
        return ("folded" if folds else "zero" if zero else "unread"), ""

    def shift_of(self, root: int, number: int) -> tuple[Tensor, Tensor]:
        """What the class adds to a read's outputs, and where that is the same in every place."""
        if (root, number) not in self.shifts:
            read = self.flow.reads[number]
            (indices,) = (i for n, i in self.places[root] if n == number)
            chosen = [i for i in indices if read.constant[i] and not self.zero[number][i]]
            self.shifts[root, number] = shift(read, chosen)
        return self.shifts[root, number]

    def _obstacle(self, root: int, number: int, indices: list[int], used: Tensor) -> str:
        read = self.flow.reads[number]
        rows = used[:, indices].any(1)
        if not bool(self.shift_of(root, number)[1][rows].all()):
            return (
                f"it is constant, but what {read.key} makes of it is not the same in every place "
                f"({type(read.slot.layer).__name__}: borders or stride)"
            )
        if read.slot.layer._parameters.get("bias") is None and read.norm is None and not self.can_add_bias:
            return (
                f"it is constant, but {read.key} has no bias to take it up, nor a batch norm behind it alone"
            )
        return ""

    # --- in terms of layers ---

    def removed(self) -> dict[str, list[int]]:
        """Layer → output channels that go."""
        found: dict[str, list[int]] = {}
        for root in self.gone:
            for label in self.classes[root]:
                key, index = self.flow.channels.owners[label]
                found.setdefault(key, []).append(index)
        return {key: sorted(indices) for key, indices in found.items()}

    def kept_inputs(self, read: Read) -> Tensor:
        """Which input channels of a layer stay, bool."""
        root = self.flow.channels.root
        return torch.tensor([not label or root(label) not in self.gone for label in read.inputs])

    def amounts(self) -> list[tuple[Read, Tensor]]:
        """What the folded classes add to each layer's outputs, all of them."""
        found = []
        for number, read in enumerate(self.flow.reads):
            shifts = [
                self.shift_of(root, number)[0]
                for root, kind in self.gone.items()
                if kind == "folded" and any(n == number for n, _ in self.places[root])
                if self._contributes(root, number)
            ]
            if shifts:
                found.append((read, torch.stack(shifts).sum(0)))
        return found

    def _contributes(self, root: int, number: int) -> bool:
        read = self.flow.reads[number]
        indices = next(i for n, i in self.places[root] if n == number)
        return any(bool(read.constant[i] and not self.zero[number][i]) for i in indices)

    def units(self) -> list[dict[str, list[int]]]:
        """The removal in parts that do not depend on each other's layers."""
        groups: list[set[str]] = []
        for root in self.gone:
            keys = {self.flow.channels.owners[label][0] for label in self.classes[root]}
            apart = [group for group in groups if not group & keys]
            groups = [*apart, keys.union(*(group for group in groups if group & keys))]
        removed = self.removed()
        return [{key: removed[key] for key in group} for group in groups]

    def report(self, outputs: dict[str, int]) -> list[dict[str, Any]]:
        """The rows of a :class:`CompactionResult`."""
        rows = {
            key: {"name": key, "outputs": count, "outputs_left": count}
            | dict.fromkeys((*KINDS, "kept"), 0)
            | {"reasons": []}
            for key, count in outputs.items()
        }
        for root, labels in self.classes.items():
            for label in labels:
                row: Any = rows[self.flow.channels.owners[label][0]]
                if root in self.gone:
                    row[self.gone[root]] += 1
                    row["outputs_left"] -= 1
                    continue
                row["kept"] += root in self.notes
                reason = self.notes.get(root) or self.bound.get(root, OUTPUT)
                if reason not in row["reasons"] and (root in self.notes or reason != OUTPUT):
                    row["reasons"].append(reason)
        return list(rows.values())


@torch.no_grad()
def compact(network: nn.Module, inputs: Any = None, mask: Mask | None = None) -> CompactionResult:
    """A smaller network that computes the same in evaluation mode, without channels that have no effect.

    What is constant is derived from the weights in float64, for every input of the given shape. A channel goes
    if what it emits is zero in front of every layer that reads it, if all weights that read it are zero or
    feed channels that go themselves, or if it is constant and can be folded into biases (else into the
    running mean of a batch norm, else, in networks without a spec, into a new bias). This is repeated until
    nothing changes. One channel stays in each layer, and so does a channel that is read at all, even if stride
    and sparse kernels happen to lead it nowhere. Where the network does what cannot be followed, as
    attention, conditional normalisation, or weights that layers share, channels are kept and the report says
    why. In training mode the two networks differ: batch norm then uses the statistics of the batch.

    Args:
        network: any module, left as it was; a pruned generator or discriminator.
        inputs: one batch: a tensor or a tuple of arguments (of an iterable of batches the first is used). None
            for a network that has a spec or a ``latent_dim``.
        mask: the network's mask, to be cut to the new shapes.

    Returns:
        The network, in the modes of the old one, with the mask, a report and the difference that is left. If
        anything was removed, norms on weights are folded in and a spec of this package is smaller, as by
        :func:`~ganprune.channels.surgery.remove_channels`.

    Raises:
        MaskError: if a weight is not zero under the mask.
        TypeError: if ``mask`` is not a :class:`~ganprune.masks.mask.Mask`.
        ValueError: if the mask does not fit, no weight is prunable, or inputs are needed and missing.
        ChannelError: inside ``torch.inference_mode``.
        CompactionError: if outputs differ by more than 1e-5 of the largest on the inputs or on random ones
            of their kind.
    """
    network = unwrapped(network)
    prunable_slots(network)  # says so if there is nothing to prune
    if mask is not None:
        check_mask(network, mask)
    slots = weight_slots(network)
    outputs = {slot.name: slot.outputs for slot in slots.values()}
    arguments = arguments_for(network, inputs)
    try:
        flow = trace(network, arguments)
    except Untraceable as error:
        flow = Dataflow()
        rows = [row | {"reasons": [str(error)]} for row in _plan(flow, network, {}).report(outputs)]
        return CompactionResult(copy.deepcopy(network), mask, rows, {}, 0.0)
    plan, small = _taken_out(network, flow, arguments)
    _fold(small, plan)
    left = _difference(network, small, arguments)
    removed = {key: tuple(indices) for key, indices in plan.removed().items()}
    return CompactionResult(small, _cut_mask(network, small, plan, mask), plan.report(outputs), removed, left)


def _plan(flow: Dataflow, network: nn.Module, refused: dict[str, str]) -> _Plan:
    return _Plan(flow, refused, can_add_bias=getattr(network, "spec", None) is None)


def _taken_out(network: nn.Module, flow: Dataflow, arguments: tuple[Any, ...]) -> tuple[_Plan, nn.Module]:
    """The plan and the network without its channels; layers from which none can be taken are left alone."""
    refused: dict[str, str] = {}
    analysis = functools.cache(lambda: analyse(network, arguments))  # once, and only if anything goes

    def without(channels: dict[str, list[int]]) -> nn.Module:
        return finish(analysis(), analysis().cut(channels))

    while True:
        plan = _plan(flow, network, refused)
        removed = plan.removed()
        if not removed:
            return plan, copy.deepcopy(network)
        try:
            return plan, without(removed)
        except ChannelError as error:
            before = len(refused)
            for unit in plan.units():
                try:
                    without(unit)
                except ChannelError as problem:
                    refused |= dict.fromkeys(unit, str(problem))
            if len(refused) == before:  # each part can go alone, but not all of them together
                refused |= dict.fromkeys(removed, str(error))


def _fold(small: nn.Module, plan: _Plan) -> None:
    """Adds to biases, or takes from running means, what the folded channels gave."""
    removed = plan.removed()
    layers = {slot.name: slot.layer for slot in weight_slots(small).values()}
    for read, amount in plan.amounts():
        gone = set(removed.get(read.key, ()))
        kept = amount[[i for i in range(len(amount)) if i not in gone]]
        layer: Any = layers[read.key]
        if layer.bias is not None:
            _add(layer.bias, kept)
        elif read.norm is not None:
            norm: Any = small.get_submodule(read.norm)
            _add(norm.running_mean, -kept)
        else:
            bias = kept.to(layer.weight.dtype).to(layer.weight.device)
            layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)


def _add(tensor: Tensor, amount: Tensor) -> None:
    tensor.copy_(
        (tensor.cpu().double() + amount).to(tensor.dtype)
    )  # on the CPU: not every device has float64


def _cut_mask(network: nn.Module, small: nn.Module, plan: _Plan, mask: Mask | None) -> Mask | None:
    """The mask without the rows and columns that went."""
    if mask is None:
        return None
    slots, removed = weight_slots(network), plan.removed()
    inputs = {read.key: plan.kept_inputs(read) for read in plan.flow.reads}
    found = {}
    for key, kept in mask.items():
        slot, name = slots[key], slots[key].name
        rows = torch.ones(slot.outputs, dtype=torch.bool)
        rows[removed.get(name, [])] = False
        stay = per_output(slot, rows.to(slot.raw.device))
        if name in inputs:
            stay = stay & per_input(slot, inputs[name].to(slot.raw.device))
        shape = weight_slots(small)[key].raw.shape
        found[key] = kept.to(stay.device)[stay].reshape(shape)
    cut = Mask(found)
    check_mask(small, cut)
    return cut


def _difference(network: nn.Module, small: nn.Module, arguments: tuple[Any, ...]) -> float:
    """Largest relative difference of outputs, on the inputs and on random ones.

    Raises:
        CompactionError: if it is too large.
    """
    generator = seeded(0)

    def random(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        spread = value.float().std(correction=0).nan_to_num(1.0).cpu() + 1e-3
        return (torch.randn(value.shape, generator=generator) * 2 * spread).to(value.device, value.dtype)

    worst = 0.0
    for batch in (arguments, mapped(arguments, random)):
        for one, other in zip(_outputs(network, batch), _outputs(small, batch), strict=True):
            if one.shape != other.shape:
                raise CompactionError(
                    f"outputs have shape {tuple(other.shape)} instead of {tuple(one.shape)}"
                )
            apart, largest = difference(one, other)
            relative = apart / (largest + torch.finfo(torch.float32).tiny)
            limit = max(TOLERANCE, 16 * torch.finfo(one.dtype).eps)
            if not relative <= limit:
                raise CompactionError(
                    f"outputs of the compacted network differ by {relative:.3g} of the largest output, "
                    f"more than {limit:.3g}"
                )
            worst = max(worst, relative)
    return worst


def _outputs(network: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor]:
    return [tensor for tensor in outputs_of(network, arguments) if tensor.is_floating_point()]
