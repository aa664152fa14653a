"""Which channels of a network must go together: coupled channels by the dependency graph, each group tried out.

The graph is that of torch-pruning (Fang et al. 2023, "DepGraph: towards any structural pruning"). It guesses
what a network's code does to the channels between layers, so nothing here relies on it: a group counts as
prunable only if a trial removal from a copy with random weights gives the output of the masked copy.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ganprune.core.errors import GanpruneError
from ganprune.core.random import keep_random_state, seeded
from ganprune.masks.weights import PRUNABLE_LAYERS, canonical_name, weight_slots
from ganprune.networks.sampling import latent_dim_of, sample_latents
from ganprune.scores.activation import batches_of

MIXING = (nn.GroupNorm, nn.LayerNorm, nn.MultiheadAttention, nn.LSTM)
"""Layers that the dependency graph knows, but whose channels cannot be taken one by one."""


Cut = dict[tuple[str, str], set[int]]
"""(member, role) → the indices that go."""


class ChannelError(GanpruneError, ValueError):
    """Channels cannot be removed as asked; the message names the layer and says why."""


@dataclass(frozen=True)
class Member:
    """What a group of coupled channels is in one layer.

    Attributes:
        name: canonical name of the layer, or of a parameter that lies in no layer.
        role: "output" (rows of a layer's weight, with bias), "input" (the slices that read the channels) or
            "both" (normalisation, embeddings, depth-wise convolutions, single parameters).
        indices: for each coupled channel the indices in this layer; several where a reshape follows.
    """

    name: str
    role: str
    indices: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can only be removed together.

    Attributes:
        name: the first layer that makes these channels.
        channels: number of coupled channels.
        members: every layer that must change when one of them goes.
        reason: why the group cannot be pruned; empty if it can.
    """

    name: str
    channels: int
    members: tuple[Member, ...]
    reason: str = ""

    @property
    def prunable(self) -> bool:
        """Whether channels of this group can be removed."""
        return not self.reason

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers whose output channels these are."""
        return tuple(member.name for member in self.members if member.role != "input")

    def cut(self, chosen: Iterable[int]) -> Cut:
        """The indices that go, by member and role, when the coupled channels ``chosen`` go."""
        chosen = list(chosen)
        return {
            (member.name, member.role): {i for channel in chosen for i in member.indices[channel]}
            for member in self.members
        }


def merged(cuts: Iterable[Cut]) -> Cut:
    """Several cuts as one."""
    total: Cut = {}
    for cut in cuts:
        for key, indices in cut.items():
            total.setdefault(key, set()).update(indices)
    return total


def tensors_in(item: Any) -> list[Tensor]:
    """All tensors in lists, tuples, mappings and dataclasses, in order."""
    if isinstance(item, Tensor):
        return [item]
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        item = [getattr(item, field.name) for field in dataclasses.fields(item)]
    if isinstance(item, Mapping):
        item = list(item.values())
    return [tensor for one in item for tensor in tensors_in(one)] if isinstance(item, (list, tuple)) else []


def mapped(item: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same lists, tuples and dicts with something else for each tensor."""
    if isinstance(item, Tensor):
        return change(item)
    if type(item) in (list, tuple):
        return type(item)(mapped(one, change) for one in item)
    if isinstance(item, dict):
        return {key: mapped(one, change) for key, one in item.items()}
    return item


def copied(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arguments that a forward pass may change in place."""
    return mapped(arguments, lambda one: one.detach().clone())


def arguments_for(network: nn.Module, inputs: Any = None) -> tuple[Any, ...]:
    """One batch of arguments on the network's device: the first of ``inputs``, or made from what the network says.

    Raises:
        ChannelError: in inference mode, where no operation can be followed.
        ValueError: if ``inputs`` is None and the network has neither a spec nor a ``latent_dim``.
    """
    if torch.is_inference_mode_enabled():
        raise ChannelError(
            "a network cannot be followed inside torch.inference_mode; leave it, or use no_grad"
        )
    first = next(network.parameters())
    if inputs is not None:
        return next(batches_of(inputs, first.device))
    spec = getattr(network, "spec", None)
    shape = getattr(spec, "input_shape", None)
    if shape is None and not hasattr(spec, "latent_dim"):
        shape = getattr(spec, "image_shape", None)
    if shape is not None:
        batch = torch.randn(2, *shape, generator=seeded(0))
    else:
        try:
            batch = sample_latents(2, latent_dim_of(network))
        except ValueError as error:
            raise ValueError(
                f"inputs must be given for a {type(network).__name__}, which has no spec and no latent_dim"
            ) from error
    return (batch.to(first.device, first.dtype),)


def named_parts(network: nn.Module) -> dict[str, nn.Module | nn.Parameter]:
    """Modules and parameters by canonical name."""
    parts: dict[str, nn.Module | nn.Parameter] = {
        canonical_name(name, network): parameter
        for name, parameter in network.named_parameters(remove_duplicate=False)
    }
    return parts | {canonical_name(name, network): module for name, module in network.named_modules()}


def is_depthwise(layer: Any) -> bool:
    """Whether a convolution has one group per channel, as many outputs as inputs."""
    return isinstance(layer, _ConvNd) and 1 < layer.groups == layer.in_channels == layer.out_channels


def parameter_dim(shape: Iterable[int]) -> int | None:
    """The dimension of a single parameter that can only be its channels: 1 for (1, C, …), 0 for (C,) and (C, 1, …).

    None for parameters that are broadcast over channels.
    """
    shape = tuple(shape)
    if len(shape) > 1 and shape[0] == 1 and shape[1] > 1:
        return 1
    return 0 if shape and shape[0] > 1 else None


def sizes_of(part: Any) -> dict[str, int]:
    """How many indices a part has in each of its roles; empty if nothing can be removed from it."""
    if is_depthwise(part):
        return {"both": part.out_channels}
    if isinstance(part, _ConvNd):
        return {"output": part.out_channels, "input": part.in_channels}
    if isinstance(part, nn.Linear):
        return {"output": part.out_features, "input": part.in_features}
    if isinstance(part, (_BatchNorm, _InstanceNorm)):
        return {"both": part.num_features}
    if isinstance(part, nn.PReLU):
        return {"both": part.num_parameters} if part.num_parameters > 1 else {}
    if isinstance(part, nn.Embedding):
        return {"both": part.embedding_dim}
    if isinstance(part, nn.Parameter):
        dim = parameter_dim(part.shape)
        return {} if dim is None else {"both": part.shape[dim]}
    return {}


def trace_groups(folded: nn.Module, arguments: tuple[Any, ...]) -> list[ChannelGroup]:
    """The groups of a plain network as the dependency graph has them, not yet tried out.

    Args:
        folded: a network without norms on its weights; it is left as it was.
        arguments: one batch.
    """
    graph, names, runs = _dependency_graph(folded, arguments)
    parts = named_parts(folded)
    frozen = _frozen_layers(folded)
    shared = _shared_layers(folded)
    groups: list[ChannelGroup] = []
    seen: set[str] = set()
    for slot in weight_slots(folded).values():
        name = slot.name
        if name in seen:
            continue
        if name not in names:
            groups.append(ChannelGroup(name, slot.outputs, (), f"{name or 'it'} does not run on the inputs"))
            continue
        units, reason = _units(graph, names, name, slot.outputs)
        members, width, broken = _members(units, parts)
        for member in members:
            if member.role != "input":
                seen.add(member.name)
        touched = {member.name for member in members} or {name}
        reasons = [
            *(f"{n} is frozen" for n in sorted(touched & frozen)),
            *(f"{n} shares its weight with another layer" for n in sorted(touched & shared)),
            *(f"{n} runs {runs[n]} times in one pass" for n in sorted(touched) if runs.get(n, 1) > 1),
            *([reason] if reason else []),
            *([broken] if broken else []),
            *(["there is only one such channel"] if width == 1 else []),
        ]
        groups.append(ChannelGroup(name, width, members, reasons[0] if reasons else ""))
    return groups


def _frozen_layers(network: nn.Module) -> set[str]:
    if not any(p.requires_grad for p in network.parameters()):
        return set()  # a copy that is frozen as a whole, as an EMA is
    frozen = {canonical_name(name, network) for name, p in network.named_parameters() if not p.requires_grad}
    return frozen | {name.rpartition(".")[0] for name in frozen}


def _shared_layers(network: nn.Module) -> set[str]:
    """Modules that have a parameter in common; a module with two names is one."""
    owners: dict[int, list[str]] = {}
    for name, module in network.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(canonical_name(name, network))
    return {name for names in owners.values() if len(names) > 1 for name in names}


def _dependency_graph(
    folded: nn.Module, arguments: tuple[Any, ...]
) -> tuple[Any, dict[str, nn.Module], dict[str, int]]:
    """torch-pruning's graph, the layers in it by canonical name, and how often each ran."""
    import torch_pruning

    for name, layer in folded.named_modules():  # each step in time would be a loop of its own in the graph
        if isinstance(layer, (nn.RNNBase, nn.RNNCellBase)) and not isinstance(layer, nn.LSTM):
            raise ChannelError(f"{canonical_name(name)} is a {_kind(layer)}, which cannot be followed")
    network = copy.deepcopy(folded).eval().requires_grad_(True)
    runs: dict[str, int] = {}
    for name, layer in network.named_modules():
        name = canonical_name(name)
        if isinstance(layer, _ConvNd) and layer.groups > 1 and not is_depthwise(layer):
            _ungroup(layer)  # inputs and outputs are free of each other; balance between groups comes later
        if any(True for _ in layer.parameters(recurse=False)) or sizes_of(layer):
            layer.register_forward_hook(lambda *_, n=name: runs.update({n: runs.get(n, 0) + 1}))
    loose = []
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
                copied(arguments),
                forward_fn=lambda model, batch: model(*batch),
                output_transform=_marked,
                unwrapped_parameters=loose,
                verbose=False,
            )
        except ChannelError:
            raise
        except Exception as error:
            raise ChannelError(
                f"{type(folded).__name__} could not be followed on the inputs: {error}"
            ) from error
    _correct_shapes(graph)
    _separate_products(graph)
    kinds = torch_pruning.ops.OPTYPE
    graph.kinds = kinds
    names = {
        canonical_name(n): module for n, module in network.named_modules() if module in graph.module2node
    }
    return graph, names, runs


def _kind(layer: nn.Module) -> str:
    """The name of torch's own class behind a layer."""
    return next(kind.__name__ for kind in type(layer).__mro__ if kind.__module__.startswith("torch."))


def _marked(outputs: Any) -> list[Tensor]:
    """The outputs behind one more operation, by which the graph knows that they are outputs.

    Raises:
        ChannelError: if there is none.
    """
    found = tensors_in(outputs)
    if not found:
        raise ChannelError(f"the network returns a {type(outputs).__name__}, in which no tensor is found")
    return [output * 1 for output in found]


def _ungroup(layer: Any) -> None:
    inputs, outputs = layer.in_channels, layer.out_channels
    shape = (inputs, outputs) if isinstance(layer, _ConvTransposeNd) else (outputs, inputs)
    layer.groups = 1
    layer.weight = nn.Parameter(layer.weight.new_ones(*shape, *layer.weight.shape[2:]))


def _correct_shapes(graph: Any) -> None:
    """A reshape that leaves samples and channels alone, or folds samples into channels as instance norm does
    inside, does nothing to channels; torch-pruning, which looks at neighbouring layers alone, thinks it may."""
    for node in graph.module2node.values():
        kind, after = type(node.module).__name__, _shape(node)
        before = tuple(getattr(node.grad_fn, "_saved_self_sym_sizes", ()))
        if kind != "_ReshapeOp" or len(before) < 2 or len(after) < 2:
            continue
        instance_norm = after[0] == 1 and after[1] == before[0] * before[1] and after[2:] == before[2:]
        if before[:2] == after[:2] or instance_norm:
            node.type = -1  # of no kind whose indices are mapped again later
            for neighbour in (node, *node.inputs, *node.outputs):
                for edge in neighbour.dependencies:
                    if node in (edge.source, edge.target):
                        edge.index_mapping[:] = [None, None]


def _shape(node: Any) -> tuple[int, ...]:
    metadata = getattr(node.grad_fn, "_input_metadata", None)
    return tuple(metadata[0].shape) if metadata else ()


def _separate_products(graph: Any) -> None:
    """Takes apart what a matrix product of activations does not couple, as in attention.

    torch-pruning treats products as element-wise. But (N, n, C) @ (N, C, m) couples the channels of its two
    factors and none of its result, and in (N, C, n) @ (N, n, m) the second factor has none.
    """
    known: dict[Any, int | None] = {}
    for node in list(graph.module2node.values()):
        if not _is_product(node):
            continue
        left, right = (_channel_dim(factor, known) for factor in node.inputs)
        if (left, right) == (2, 1):
            apart = list(node.outputs)
        elif left == 1 and right is None:
            apart = [node.inputs[1]]
        elif left is None and right == 2:
            apart = [node.inputs[0]]
        else:
            apart = []
        for other in apart:
            node.dependencies = [edge for edge in node.dependencies if edge.target is not other]
            other.dependencies = [edge for edge in other.dependencies if edge.target is not node]


def _is_product(node: Any) -> bool:
    return type(node.grad_fn).__name__.startswith("BmmBackward") and len(node.inputs) == 2


def _channel_dim(node: Any, known: dict[Any, int | None]) -> int | None:
    """Which dimension of a node's output counts channels; None if none does or it cannot be told."""
    path: list[Any] = []
    while node.inputs and not _is_product(node) and not isinstance(node.module, PRUNABLE_LAYERS):
        path.append(node)
        node = node.inputs[0]
    dim: int | None
    if _is_product(node):
        if node not in known:
            left, right = (_channel_dim(factor, known) for factor in node.inputs)
            known[node] = 1 if left == 1 else 2 if right == 2 else None
        dim = known[node]
    elif isinstance(node.module, PRUNABLE_LAYERS):
        dim = len(_shape(node)) - 1 if isinstance(node.module, nn.Linear) else 1
    else:
        return None
    for step in reversed(path):
        before, after, name = _shape(step.inputs[0]), _shape(step), type(step.grad_fn).__name__
        if dim is None:
            return None
        if name.startswith("TransposeBackward"):
            swapped = [
                d % len(after) for d in (_signed(step.grad_fn._saved_dim0), _signed(step.grad_fn._saved_dim1))
            ]
            dim = swapped[1 - swapped.index(dim)] if dim in swapped else dim
        elif name.startswith("PermuteBackward"):
            dim = [_signed(d) % len(after) for d in step.grad_fn._saved_dims].index(dim)
        elif before[: dim + 1] != after[: dim + 1]:
            return None
    return dim


def _signed(number: int) -> int:
    """A dimension as autograd saves it: unsigned, so that −1 is 2⁶⁴ − 1."""
    return number - 2**64 if number >= 2**63 else number


def _units(
    graph: Any, names: dict[str, nn.Module], root: str, outputs: int
) -> tuple[list[dict[tuple[str, str], set[int]]], str]:
    """What goes with each output channel of the root, and a reason against the whole group, if there is one."""
    kinds = graph.kinds
    name_of: dict[Any, str] = {module: name for name, module in names.items()}
    module = names[root]
    prune = graph.get_pruner_of_module(module).prune_out_channels
    units: list[dict[tuple[str, str], set[int]]] = []
    covered: set[int] = set()
    reason = ""
    for index in range(outputs):
        if index in covered:
            continue
        unit: dict[tuple[str, str], set[int]] = {}
        for dependency, indices in graph.get_pruning_group(module, prune, [index]):
            target, kind = dependency.target.module, dependency.target.type
            if kind == kinds.OUTPUT:
                reason = reason or "these channels reach the network's output"
            elif isinstance(target, nn.Parameter):
                unit.setdefault((canonical_name(graph._param_to_name[target]), "both"), set()).update(indices)
            elif target in name_of:
                sizes = sizes_of(target)
                if not sizes:
                    if isinstance(target, nn.PReLU):
                        continue  # one slope for all
                    if any(True for _ in target.parameters()) or isinstance(target, MIXING):
                        reason = reason or (
                            f"{name_of[target]} ({type(target).__name__}) mixes its channels or is not supported"
                        )
                    continue
                role = "both"
                if "both" not in sizes:
                    role = "input" if graph.is_in_channel_pruning_fn(dependency.handler) else "output"
                unit.setdefault((name_of[target], role), set()).update(indices)
        covered |= unit.get((root, "output"), set()) | unit.get((root, "both"), set()) | {index}
        units.append(unit)
    return units, reason


def _members(
    units: list[dict[tuple[str, str], set[int]]], parts: dict[str, Any]
) -> tuple[tuple[Member, ...], int, str]:
    """Members of a group, number of coupled channels, and what is wrong with them, if anything is."""
    keys = list(dict.fromkeys(key for unit in units for key in unit))
    for name, role in keys:
        size = sizes_of(parts[name]).get(role, 0)
        per_unit = [unit.get((name, role), set()) for unit in units]
        found = [index for indices in per_unit for index in indices]
        if not all(per_unit) or len(set(found)) != len(found) or any(index >= size for index in found):
            members = tuple(Member(n, r, ()) for n, r in keys)
            return (
                members,
                len(units),
                f"the dependency graph does not match these channels to those of {name}",
            )
    bundles, broken = _balanced(units, keys, parts)
    members = tuple(
        Member(*key, tuple(tuple(sorted(i for u in bundle for i in units[u][key])) for bundle in bundles))
        for key in keys
    )
    return members, len(bundles), broken


def _balanced(
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
            return [
                [u] for u in range(len(units))
            ], f"only some of the channels of the grouped {name} are in it"
        first: dict[int, int] = {}
        for number, unit in enumerate(units):
            for index in unit[name, role]:
                other = first.setdefault(index % (size // layer.groups), number)
                leader[find(number)] = find(other)
    bundles: dict[int, list[int]] = {}
    for number in range(len(units)):
        bundles.setdefault(find(number), []).append(number)
    return list(bundles.values()), ""
