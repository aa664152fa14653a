"""The parts of a network that channels run through: their names, their sizes, and a batch to follow them with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm

from ganprune.core.errors import GanpruneError
from ganprune.core.modes import eval_mode
from ganprune.core.random import keep_random_state
from ganprune.masks.names import find_adapter
from ganprune.masks.weights import WeightSlot, weight_slots
from ganprune.networks.adapter import pick
from ganprune.networks.reshapes import find_reshapes, keep_needed
from ganprune.networks.sampling import default_inputs
from ganprune.scores.activation import batches_of


class ChannelError(GanpruneError, ValueError):
    """Channels cannot be removed as asked; the message names the layer and says why."""


def part_name(name: str) -> str:
    """The name of a module or parameter without what compilation adds to it.

    A leading ``module.`` stays: wrappers are taken off before, so here it is a part that is called so.
    """
    return ".".join(piece for piece in name.split(".") if piece != "_orig_mod")


def named_parts(network: nn.Module) -> dict[str, nn.Module | nn.Parameter]:
    """All modules and parameters by name; the network itself is ``""``."""
    parts: dict[str, nn.Module | nn.Parameter] = {
        part_name(name): parameter for name, parameter in network.named_parameters(remove_duplicate=False)
    }
    return parts | {part_name(name): module for name, module in network.named_modules()}


def named_slots(network: nn.Module) -> dict[str, WeightSlot]:
    """The prunable weights by the name of their layer, such as "layers.deconv1", in module order."""
    names = {id(module): part_name(name) for name, module in network.named_modules()}
    return {names[id(slot.layer)]: slot for slot in weight_slots(network).values()}


def frozen_parts(network: nn.Module) -> set[str]:
    """Parameters that are not trained, and the layers that hold them."""
    if not any(p.requires_grad for p in network.parameters()):
        return set()  # a copy that is frozen as a whole, as an EMA is
    frozen = {part_name(name) for name, p in network.named_parameters() if not p.requires_grad}
    return frozen | {name.rpartition(".")[0] for name in frozen}


def shared_layers(network: nn.Module) -> set[str]:
    """Modules that have a parameter in common; a module with two names is one."""
    owners: dict[int, list[str]] = {}
    for name, module in network.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(part_name(name))
    return {name for names in owners.values() if len(names) > 1 for name in names}


def is_depthwise(layer: Any) -> bool:
    """Whether a convolution has one group per channel and as many outputs as inputs."""
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


def connection_table(layer: Any, values: Tensor) -> Tensor:
    """Numbers in the shape of a layer's weight as (outputs, inputs), summed over the kernel; zero across groups."""
    blocks = values.flatten(2).sum(2) if values.ndim > 2 else values
    blocks = torch.block_diag(*blocks.chunk(int(getattr(layer, "groups", 1))))
    return blocks.T if isinstance(layer, _ConvTransposeNd) else blocks


def tensors_in(item: Any) -> list[Tensor]:
    """All tensors in lists, tuples, mappings and dataclasses, in order."""
    if isinstance(item, Tensor):
        return [item]
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        item = [getattr(item, field.name) for field in dataclasses.fields(item)]
    if isinstance(item, Mapping):
        item = list(item.values())
    return [tensor for one in item for tensor in tensors_in(one)] if isinstance(item, (list, tuple)) else []


def map_tensors(item: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same lists, tuples and dicts with something else for each tensor."""
    if isinstance(item, Tensor):
        return change(item)
    if type(item) in (list, tuple):
        return type(item)(map_tensors(one, change) for one in item)
    if isinstance(item, dict):
        return {key: map_tensors(one, change) for key, one in item.items()}
    return item


def copy_arguments(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """A copy of arguments that a forward pass may change in place."""
    return map_tensors(arguments, lambda one: one.detach().clone())


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
        return tensors_in(network(*copy_arguments(arguments)))


def reshapes_of(network: nn.Module, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """Which reshapes of a network's code fix a number of channels; none where it does not run."""
    device = next(network.parameters()).device
    try:
        with torch.no_grad(), eval_mode(network), keep_random_state(device):
            return find_reshapes(network, copy_arguments(arguments))
    except Exception:  # whoever runs it next says what is wrong
        return ()


@torch.no_grad()
def settle_reshapes(network: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Leaves a smaller network the reshapes whose number of channels it has to put in, in place."""
    with eval_mode(network), keep_random_state(next(network.parameters()).device):
        keep_needed(network, copy_arguments(arguments))


class Picker:
    """A hook that leaves of a network's output what its adapter picks: only that must stay what it is."""

    def __init__(self, output: Any) -> None:
        self.output = output

    def __call__(self, network: nn.Module, arguments: Any, found: Any) -> Any:
        return pick(found, self.output)


def add_picker(network: nn.Module, source: nn.Module) -> None:
    """Gives a copy of the network inside of an adapter the output that the adapter picks."""
    adapter = find_adapter(source)
    if adapter is not None and adapter.output is not None:
        network.register_forward_hook(Picker(adapter.output))


def drop_picker(network: nn.Module) -> nn.Module:
    """Takes the hook of :func:`add_picker` off again, in place; returns the network."""
    for key, hook in list(network._forward_hooks.items()):
        if isinstance(hook, Picker):
            del network._forward_hooks[key]
    return network


def list_batches(inputs: Any) -> Any:
    """Inputs of which looking at the first batch takes none away, as it does from an iterator."""
    return list(inputs) if isinstance(inputs, Iterator) else inputs


def arguments_for(network: nn.Module, inputs: Any = None) -> tuple[Any, ...]:
    """One batch of arguments on the network's device: the first of ``inputs``, or made from what the network says.

    A network with a ``latent_dim`` gets latents of shape (2, latent_dim), or (2, latent_dim, 1, 1) where it
    does not take these.

    Raises:
        ChannelError: in inference mode, where no operation can be followed.
        ValueError: if ``inputs`` is None and the network does not say what it takes.
    """
    if torch.is_inference_mode_enabled():
        raise ChannelError(
            "a network cannot be followed inside torch.inference_mode; leave it, or use no_grad"
        )
    if inputs is None:
        return default_inputs(network, 2)
    return next(batches_of(inputs, next(network.parameters()).device))
