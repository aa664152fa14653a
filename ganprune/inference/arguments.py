"""What a network is called with outside of training: a plain copy of it, its inputs by name, and one class for all."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ganprune.core.errors import GanpruneError
from ganprune.masks.apply import apply_mask
from ganprune.masks.mask import Mask
from ganprune.masks.names import find_adapter, unwrap
from ganprune.networks.adapter import Adapter
from ganprune.networks.folding import fold_norms
from ganprune.networks.parts import copy_network
from ganprune.networks.sampling import input_shape_of, sample_latents


class OneClass(nn.Module):
    """An adapted generator that makes images of one class, and takes what it takes besides labels.

    Args:
        adapter: the generator; its labels are what it takes last.
        label: an integer in [0, classes).

    Raises:
        ValueError: if the generator takes no labels, or there is no such class.
    """

    wraps = "adapter"

    def __init__(self, adapter: Adapter, label: int) -> None:
        super().__init__()
        drawn = adapter.with_labels(adapter.draw_inputs(1), label)
        assert adapter.inputs is not None
        self.adapter, self.inputs = adapter, dataclasses.replace(adapter.inputs, labels=0)
        self.place = len(drawn) - 1 - len(self.inputs.noise)
        self.register_buffer("row", drawn[self.place])

    def draw_inputs(self, n: int, seed: int = 0) -> tuple[Any, ...]:
        """The arguments of one call."""
        row = self.get_buffer("row")
        return self.inputs.draw(n, seed, row.device, torch.float32)

    def forward(self, *arguments: Any) -> Tensor:
        """Images of the class."""
        row = self.get_buffer("row")
        labels = row.expand(len(arguments[0]), *row.shape[1:])
        return self.adapter(*arguments[: self.place], labels, *arguments[self.place :])


def plain_copy(network: nn.Module, mask: Mask | None = None) -> nn.Module:
    """A copy in evaluation mode, float32 on the CPU, norms on weights folded in; in its adapter if it has one.

    Args:
        network: any generator; it is left as it was.
        mask: applied to the copy before norms are folded in.

    Raises:
        TypeError: if ``network`` is no module.
        ValueError: if it does not say what it takes, or the mask does not fit.
    """
    if not isinstance(network, nn.Module):
        raise TypeError(f"network must be a torch.nn.Module, got {type(network).__name__}")
    adapter, inside = find_adapter(network), unwrap(network)
    drawing = adapter is not None and adapter.draws
    if not drawing and input_shape_of(inside) is None:
        raise ValueError(
            f"network must say what it takes: give {type(inside).__name__} an attribute latent_dim, the length of its "
            "latents, or adapt it, gp.adapt(network, latent=...)"
        )
    copied = copy_network(inside).cpu().float().eval()
    if mask is not None:
        apply_mask(copied, mask.to("cpu") if isinstance(mask, Mask) else mask)
    plain = fold_norms(copied)
    return (plain if adapter is None else adapter.with_network(plain)).eval()


def named_inputs(network: nn.Module, n: int, seed: int = 0) -> dict[str, Tensor]:
    """The arguments of one call of a plain copy, by name, in their order.

    Raises:
        GanpruneError: if one of them is no tensor with ``n`` rows, which only ``inputs`` of an adapter can give.
    """
    adapter = find_adapter(network)
    if adapter is None or adapter.inputs is None:
        shape = input_shape_of(unwrap(network))
        assert shape is not None
        return {"latents": sample_latents(n, shape, seed)}
    drawn = adapter.draw_inputs(n, seed)
    for one in drawn:
        if not isinstance(one, Tensor) or not one.ndim or len(one) != n:
            raise GanpruneError(
                f"inputs of {name_of(network)} must be tensors with one row for each image, got "
                f"{tuple(one.shape) if isinstance(one, Tensor) else type(one).__name__} for {n} images; let a module "
                "of your own give it what is the same for all"
            )
    return dict(zip(adapter.inputs.names(len(drawn)), drawn, strict=True))


def name_of(network: nn.Module) -> str:
    """What a network is called in messages: its class, without adapters and wrappers."""
    return type(unwrap(network)).__name__
