"""Which channels of a network must go together, found by following them from layer to layer.

The graph is that of torch-pruning (Fang et al. 2023, "DepGraph: towards any structural pruning"). It guesses
what a network's code does to the channels between layers, so nothing relies on it: ``analysis`` removes some
channels of each group from a copy with random weights and compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ganprune.channels.groups import ChannelGroup, Member
from ganprune.channels.parts import (
    ChannelError,
    copy_arguments,
    frozen_parts,
    is_depthwise,
    named_parts,
    named_slots,
    parameter_dim,
    part_name,
    shared_layers,
    sizes_of,
)
from ganprune.channels.tracing import call_followed, mark_outputs, traceable_copy
from ganprune.core.random import keep_random_state

MIXING = (nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention, nn.LSTM)
"""Layers that the dependency graph knows, but whose channels cannot be taken one by one."""

MOST_INDICES = 50_000
"""So many indices may hang on one channel; code that folds samples into channels would go on without an end."""


class Index(NamedTuple):
    """A channel on its way through the graph, as torch-pruning's mappings want it."""

    idx: int
    root_idx: int


@dataclass
class Unit:
    """What goes together with one output channel of a layer, and why it must stay, if it must."""

    indices: dict[tuple[str, str], set[int]]
    reason: str = ""


@dataclass(frozen=True)
class DependencyGraph:
    """torch-pruning's graph of a network.

    Attributes:
        graph: the graph.
        names: the layers and parameters in it, module → name.
        runs: how often each layer ran in one pass.
    """

    graph: Any
    names: dict[Any, str]
    runs: dict[str, int]

    def follow(self, root: nn.Module, index: int) -> Unit:
        """All that goes when one output channel of a layer goes."""
        prune = self.graph.get_pruner_of_module(root).prune_out_channels
        first = self.graph.module2node[root]
        unit, seen, waiting = Unit({}), {(first, prune, index)}, [(first, prune, [Index(index, index)])]
        self._add(unit, first, prune, [Index(index, index)])
        while waiting:
            node, handler, indices = waiting.pop()
            for edge in node.dependencies:
                if not edge.is_triggered_by(handler):
                    continue
                reached = indices
                for change in edge.index_mapping:
                    reached = reached if change is None else change(reached)
                reached = [i for i in reached if (edge.target, edge.handler, i.idx) not in seen]
                if not reached:
                    continue
                seen.update((edge.target, edge.handler, i.idx) for i in reached)
                if len(seen) > MOST_INDICES:
                    unit.reason = (
                        f"more than {MOST_INDICES:,} indices hang on one channel of {self.names[root]}: the "
                        "network's code seems to fold samples or kernels into channels, as modulated "
                        "convolutions do"
                    )
                    return unit
                self._add(unit, edge.target, edge.handler, reached)
                waiting.append((edge.target, edge.handler, reached))
        return unit

    def _add(self, unit: Unit, node: Any, handler: Any, indices: list[Index]) -> None:
        """Puts down what a step through the graph has reached."""
        from torch_pruning.ops import OPTYPE

        target, why = node.module, ""
        name = self.names.get(target, "")
        sizes = sizes_of(target)
        if node.type == OPTYPE.OUTPUT:
            why = "these channels reach the network's output"
        elif sizes and target in self.names:
            reads = "both" not in sizes and self.graph.is_in_channel_pruning_fn(handler)
            role = "both" if "both" in sizes else "input" if reads else "output"
            unit.indices.setdefault((name, role), set()).update(i.idx for i in indices)
        elif isinstance(target, MIXING) or (
            isinstance(target, nn.Module)
            and not isinstance(target, nn.PReLU)  # one slope for all channels
            and target in self.names
            and any(True for _ in target.parameters())
        ):
            why = f"{name} ({type(target).__name__}) mixes its channels or is not supported"
        unit.reason = unit.reason or why


def trace_groups(
    plain: nn.Module, arguments: tuple[Any, ...], refused: Mapping[str, str] | None = None
) -> list[ChannelGroup]:
    """The groups of a network as the dependency graph has them, not yet tried out.

    Args:
        plain: a network without norms on its weights; it is left as it was.
        arguments: one batch.
        refused: layers whose channels are not looked at, and why.

    Raises:
        ChannelError: if the network cannot be followed on the batch.
    """
    graph, refused = build_graph(plain, arguments), refused or {}
    layers = {name: module for module, name in graph.names.items() if isinstance(module, nn.Module)}
    parts, frozen, shared = named_parts(plain), frozen_parts(plain), shared_layers(plain)
    groups: list[ChannelGroup] = []
    covered: dict[str, set[int]] = {}  # layer → its output channels that are in a group already
    for name, slot in named_slots(plain).items():
        if name in refused:
            groups.append(ChannelGroup(name, slot.outputs, (), refused[name]))
            continue
        if name not in layers:
            groups.append(ChannelGroup(name, slot.outputs, (), f"{name or 'it'} does not run on the inputs"))
            continue
        units = _follow_layer(graph, layers[name], slot.outputs, covered.setdefault(name, set()))
        alike: dict[frozenset[tuple[str, str]], list[Unit]] = {}
        for unit in units:
            alike.setdefault(frozenset(unit.indices), []).append(unit)
        for some in alike.values():
            members, width, broken = _match_members([unit.indices for unit in some], parts)
            for unit in some:
                for (member, role), indices in unit.indices.items():
                    if role != "input":
                        covered.setdefault(member, set()).update(indices)
            touched = sorted({member.name for member in members} or {name})
            reasons = [
                *(f"{n} is frozen" for n in touched if n in frozen),
                *(f"{n} shares its weight with another layer" for n in touched if n in shared),
                *(f"{n} runs {graph.runs[n]} times in one pass" for n in touched if graph.runs.get(n, 1) > 1),
                *(unit.reason for unit in some if unit.reason),
                *([broken] if broken else []),
                *(["there is only one such channel"] if width == 1 else []),
            ]
            title = _free_name(name, members, {group.name for group in groups})
            groups.append(ChannelGroup(title, width, members, reasons[0] if reasons else ""))
    return groups


def _follow_layer(graph: DependencyGraph, layer: nn.Module, outputs: int, covered: set[int]) -> list[Unit]:
    """One unit for each output channel of a layer that is in none yet."""
    units: list[Unit] = []
    name, done = graph.names[layer], set(covered)
    for index in range(outputs):
        if index not in done:
            unit = graph.follow(layer, index)
            done |= unit.indices.get((name, "output"), set()) | unit.indices.get((name, "both"), set())
            units.append(unit)
            if len(unit.indices) and unit.reason.startswith("more than"):
                unit.indices = {
                    (name, next(role for n, role in unit.indices if n == name)): set(range(outputs))
                }
                return [unit]
    return units


def _free_name(root: str, members: tuple[Member, ...], taken: set[str]) -> str:
    """The name of the layer, or of another one that makes the same channels, or a number behind it."""
    others = [member.name for member in members if member.role == "output"]
    numbers = (f"{root}#{number}" for number in range(2, len(taken) + 3))
    return next(name for name in (root, *others, *numbers) if name not in taken)


def build_graph(plain: nn.Module, arguments: tuple[Any, ...]) -> DependencyGraph:
    """torch-pruning's graph of a network on one batch.

    Raises:
        ChannelError: if the network cannot be followed.
    """
    import torch_pruning
    from torch_pruning.dependency.index_mapping import update_index_mapping

    for name, layer in plain.named_modules():  # each step in time would be a loop of its own in the graph
        if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)) and not isinstance(layer, nn.LSTM):
            kind = next(k.__name__ for k in type(layer).__mro__ if k.__module__.startswith("torch."))
            raise ChannelError(f"{part_name(name)} is a {kind}, which cannot be followed")
    network = traceable_copy(plain)
    runs: dict[str, int] = {}
    loose = []
    for name, layer in network.named_modules():
        if any(True for _ in layer.parameters(recurse=False)) or sizes_of(layer):
            name = part_name(name)
            layer.register_forward_hook(lambda *_, n=name: runs.update({n: runs.get(n, 0) + 1}))
    for name, parameter in network.named_parameters():
        owner = network.get_submodule(name.rpartition(".")[0])
        dim = parameter_dim(parameter.shape)
        if not sizes_of(owner) and not isinstance(owner, (*MIXING, nn.PReLU)) and dim is not None:
            loose.append((parameter, dim))
    device = next(network.parameters()).device
    with torch.enable_grad(), keep_random_state(device), torch.autocast(device.type, enabled=False):
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(
                network,
                copy_arguments(arguments),
                forward_fn=call_followed,
                output_transform=mark_outputs,
                unwrapped_parameters=loose,
                verbose=False,
            )
        except ChannelError:
            raise
        except Exception as error:
            raise ChannelError(
                f"{type(plain).__name__} could not be followed on the inputs: {error}"
            ) from error
    update_index_mapping(graph)
    _pass_reshapes(graph)
    names: dict[Any, str] = {
        module: part_name(name) for name, module in network.named_modules() if module in graph.module2node
    }
    names |= {parameter: part_name(name) for parameter, name in graph._param_to_name.items()}
    return DependencyGraph(graph, names, runs)


def _pass_reshapes(graph: Any) -> None:
    """A reshape that leaves samples and channels alone does nothing to channels; torch-pruning, which looks at
    neighbouring layers alone, thinks it may."""
    for node in graph.module2node.values():
        metadata = getattr(node.grad_fn, "_input_metadata", None)
        after = tuple(metadata[0].shape) if metadata else ()
        before = tuple(getattr(node.grad_fn, "_saved_self_sym_sizes", ()))
        if type(node.module).__name__ != "_ReshapeOp" or len(before) < 2 or before[:2] != after[:2]:
            continue
        for neighbour in (node, *node.inputs, *node.outputs):
            for edge in neighbour.dependencies:
                if node in (edge.source, edge.target):
                    edge.index_mapping[:] = [None, None]


def _match_members(
    units: list[dict[tuple[str, str], set[int]]], parts: dict[str, Any]
) -> tuple[tuple[Member, ...], int, str]:
    """Members of a group, number of coupled channels, and what is wrong with them, if anything is."""
    keys = list(units[0])
    for name, role in keys:
        size = sizes_of(parts[name]).get(role, 0)
        found = [index for unit in units for index in unit[name, role]]
        if len(set(found)) != len(found) or any(index >= size for index in found):
            why = (
                f"the dependency graph does not match these channels to those of {name}; what lies between "
                "them rearranges channels, or depends on their number"
            )
            return tuple(Member(*key, ()) for key in keys), len(units), why
    bundles, broken = _balance_convolutions(units, keys, parts)
    members = tuple(
        Member(*key, tuple(tuple(sorted(i for u in bundle for i in units[u][key])) for bundle in bundles))
        for key in keys
    )
    return members, len(bundles), broken


def _balance_convolutions(
    units: list[dict[tuple[str, str], set[int]]], keys: list[tuple[str, str]], parts: dict[str, Any]
) -> tuple[list[list[int]], str]:
    """Units that grouped convolutions tie together: each group of a convolution must lose the same positions."""
    leader = list(range(len(units)))

    def find(unit: int) -> int:
        while leader[unit] != unit:
            unit = leader[unit]
        return unit

    for name, role in keys:
        layer = parts[name]
        if not isinstance(layer, _ConvNd) or layer.groups == 1 or is_depthwise(layer):
            continue
        size = sizes_of(layer)[role]
        if sum(len(unit[name, role]) for unit in units) != size:
            apart = [[u] for u in range(len(units))]
            return apart, f"only some of the channels of the grouped {name} are in it"
        first: dict[int, int] = {}
        for number, unit in enumerate(units):
            for index in unit[name, role]:
                other = first.setdefault(index % (size // layer.groups), number)
                leader[find(number)] = find(other)
    bundles: dict[int, list[int]] = {}
    for number in range(len(units)):
        bundles.setdefault(find(number), []).append(number)
    return list(bundles.values()), ""
