"""Layers of one's own whose weight can be pruned: which classes, where their weight is, what they make of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from ganprune.core.checks import check_integer


@dataclass(frozen=True)
class RegisteredLayer:
    """A class of layers of one's own, as :func:`register_layer` was told.

    Attributes:
        kind: the class.
        weight: the parameter's name in the layer, such as "weight", or "module.weight" in a part of it.
        effective: layer → the weight that its forward pass uses, in the parameter's shape; None for the parameter.
        output_dim: the dimension of the weight that counts outputs.
    """

    kind: type[nn.Module]
    weight: str = "weight"
    effective: Callable[[Any], Tensor] | None = None
    output_dim: int = 0

    def remove(self) -> None:
        """Forgets the class again; nothing happens if another registration has taken its place."""
        if _registered.get(self.kind) is self:
            del _registered[self.kind]

    def __enter__(self) -> RegisteredLayer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


_registered: dict[type[nn.Module], RegisteredLayer] = {}


def register_layer(
    cls: type[nn.Module],
    weight: str = "weight",
    effective: Callable[[Any], Tensor] | None = None,
    output_dim: int = 0,
) -> RegisteredLayer:
    """Makes the weight of a layer of one's own prunable: equalised, modulated, or with a spectral norm of its own.

    From then on such layers are counted, scored, masked and kept like convolutions and linear layers. Magnitude and
    Wanda score what ``effective`` gives; scores by gradients take the gradient of the parameter times the parameter,
    which under a constant multiplier is the same product. Channels are removed where the layer computes one
    convolution or product with its effective weight and adds a bias; others are refused with that reason.

    ::

        gp.register_layer(EqualConv2d, effective=lambda layer: layer.weight * layer.scale)

        with gp.register_layer(ModulatedConv2d, output_dim=1):
            ...  # and inside of this block alone

    Args:
        cls: the class; it holds for its subclasses too, unless they are registered themselves.
        weight: the parameter's name in the layer; "module.weight" for one in a part of it.
        effective: layer → the weight that the forward pass uses, in the parameter's shape, zero where that is zero;
            called in evaluation mode. None where it is the parameter itself.
        output_dim: the dimension of the weight that counts outputs: 1 for (in, out, …) or (1, out, in, …).

    Returns:
        The registration: ``remove()`` takes it back, and so does the end of a ``with`` block. Registering a class
        again replaces what was said before.

    Raises:
        TypeError: if ``cls`` is no class of modules, or ``effective`` no function.
        ValueError: if a name is empty, or ``output_dim`` negative.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise TypeError(f"cls must be a class of torch.nn.Module, got {cls!r}")
    if not isinstance(weight, str) or not all(map(str.isidentifier, weight.split("."))):
        raise ValueError(f"weight must be the name of a parameter, such as 'weight', got {weight!r}")
    if effective is not None and not callable(effective):
        raise TypeError(f"effective must be a function of the layer, got {type(effective).__name__}")
    found = RegisteredLayer(cls, weight, effective, check_integer("output_dim", output_dim, 0))
    _registered[cls] = found
    return found


def registration_of(layer: nn.Module) -> RegisteredLayer | None:
    """The registration of a layer's class, or of the nearest class that it is derived from; None if there is none."""
    kinds = (kind for kind in type(layer).__mro__ if kind in _registered)
    found = next(kinds, None)
    return None if found is None else _registered[found]
