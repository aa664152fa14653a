"""Parameters and multiply-accumulates of a network, as it is and as it would be without some of its channels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ganprune.channels.groups import Cut
from ganprune.channels.parts import copy_arguments, named_parts, named_slots, sizes_of, tensors_in
from ganprune.metrics.work import Work, measure_work


@dataclass(frozen=True)
class Sizes:
    """Parameters and multiply-accumulates of a network as functions of what is cut out of it."""

    network: nn.Module
    work: Work

    @classmethod
    def of(cls, network: nn.Module, arguments: tuple[Any, ...]) -> Sizes:
        """Measures a plain network on one batch; the length of its first tensor is the number of inputs."""
        samples = next((len(one) for one in tensors_in(arguments) if one.ndim), 1)
        return cls(network, measure_work(network, copy_arguments(arguments), samples))

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
            (self.work.uses_of(slot) or 0) * scaled(key, slot.raw.numel(), ("output", "both", "input"))
            for key, slot in named_slots(self.network).items()
        )
        return parameters, round(macs)
