"""What stands in for a network while its channels are followed: a copy in operations that the graph understands."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from ganprune.channels.parts import ChannelError, is_depthwise, tensors_in


class _InHalves(TorchFunctionMode):
    """Gated linear units as what they are: the product of one half of the channels with the other."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not nn.functional.glu:
            return func(*args, **kwargs)
        given = dict(zip(("input", "dim"), args, strict=False)) | kwargs
        first, second = given["input"].chunk(2, given.get("dim", -1))
        return first * torch.sigmoid(second)


def call_followed(network: nn.Module, batch: tuple[Any, ...]) -> Any:
    """One pass of a network for the graph."""
    with _InHalves():
        return network(*batch)


def traceable_copy(plain: nn.Module) -> nn.Module:
    """A copy whose channels are coupled as those of the network, in operations that the graph understands.

    Nothing works in place, grouped convolutions have one group (the balance between groups comes later), and
    instance norms, which fold samples into channels inside, are batch norms.
    """
    network = copy.deepcopy(plain).eval().requires_grad_(True)
    for name, layer in list(network.named_modules(remove_duplicate=False)):
        if getattr(layer, "inplace", False) is True:
            layer.inplace = False  # type: ignore[assignment]
        if isinstance(layer, _ConvNd) and layer.groups > 1 and not is_depthwise(layer):
            inputs, outputs = layer.in_channels, layer.out_channels
            shape = (inputs, outputs) if isinstance(layer, _ConvTransposeNd) else (outputs, inputs)
            layer.groups = 1
            layer.weight = nn.Parameter(layer.weight.new_ones(*shape, *layer.weight.shape[2:]))
        if isinstance(layer, _InstanceNorm):
            dims = next(n for n in (1, 2, 3) if isinstance(layer, getattr(nn, f"InstanceNorm{n}d")))
            norm = getattr(nn, f"BatchNorm{dims}d")(layer.num_features)
            first = next(network.parameters())
            path, _, attribute = name.rpartition(".")
            setattr(network.get_submodule(path), attribute, norm.to(first.device, first.dtype).eval())
    return network


def mark_outputs(outputs: Any) -> list[Tensor]:
    """The outputs behind one more operation, by which the graph knows that they are outputs.

    Raises:
        ChannelError: if there is none.
    """
    found = tensors_in(outputs)
    if not found:
        raise ChannelError(f"the network returns a {type(outputs).__name__}, in which no tensor is found")
    return [output * 1 for output in found]
