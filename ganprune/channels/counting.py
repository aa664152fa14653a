"""Parameters and multiply-accumulates of a network, as it is and as it would be without some of its channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from ganprune.channels.groups import Cut
from ganprune.channels.parts import copy_arguments, named_parts, named_slots, sizes_of, tensors_in
from ganprune.core.modes import eval_mode
from ganprune.core.random import keep_random_state


def count_uses(network: nn.Module, arguments: tuple[Any, ...]) -> dict[str, int]:
    """How often each weight of a layer is used on the whole batch."""
    uses: dict[str, int] = {}
    handles = []
    for key, slot in named_slots(network).items():

        def after(layer: Any, args: Any, kwargs: Any, output: Tensor, key: str = key) -> None:
            if isinstance(layer, _ConvTransposeNd):
                count = tensors_in([args, kwargs])[0].numel() // layer.in_channels
            else:
                count = output.numel() // (getattr(layer, "out_channels", 0) or layer.out_features)
            uses[key] = uses.get(key, 0) + count

        handles.append(slot.layer.register_forward_hook(after, with_kwargs=True))
    device = next(network.parameters()).device
    try:
        with torch.no_grad(), eval_mode(network), keep_random_state(device):
            network(*copy_arguments(arguments))
    finally:
        for handle in handles:
            handle.remove()
    return uses


def batch_size_of(arguments: tuple[Any, ...]) -> int:
    """The length of the first tensor among the arguments."""
    return next((len(one) for one in tensors_in(arguments) if one.ndim), 1)


@dataclass(frozen=True)
class Sizes:
    """Parameters and multiply-accumulates of a network as functions of what is cut out of it."""

    network: nn.Module
    uses: Mapping[str, int]
    batch: int

    @classmethod
    def of(cls, network: nn.Module, arguments: tuple[Any, ...]) -> Sizes:
        """Measures a plain network on one batch."""
        return cls(network, count_uses(network, arguments), batch_size_of(arguments))

    def count(self, cut: Cut) -> tuple[int, int]:
        """Parameters, and multiply-accumulates for one input, without what is cut out."""
        parts = named_parts(self.network)
        left = {key: sizes_of(parts[key[0]])[key[1]] - len(indices) for key, indices in cut.items()}

        def scaled(name: str, number: int, roles: Iterable[str]) -> int:
            for role in roles:
                if (name, role) in left:
                    number = number * left[name, role] // sizes_of(parts[name])[role]
            return number

        parameters = 0
        for name, parameter in self.network.named_parameters():
            layer, _, attribute = name.rpartition(".")
            roles = ("output", "both", "input") if attribute == "weight" else ("output", "both")
            own = scaled(name, parameter.numel(), ("both",))
            parameters += scaled(layer, own, roles) if layer in parts else own
        macs = sum(
            self.uses.get(key, 0) * scaled(key, slot.raw.numel(), ("output", "both", "input"))
            for key, slot in named_slots(self.network).items()
        )
        return parameters, macs // self.batch
