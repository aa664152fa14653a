"""What a network's forward pass does, as PyTorch's own basic operations, whatever its code looks like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ganprune.channels.parts import tensors_in
from ganprune.masks.names import canonical_name


@dataclass(frozen=True)
class Reference:
    """A value that depends on the input, in the place of its tensor.

    Attributes:
        value: its number; inputs count from 0, and calls count on from there.
        shape: with the batch in front.
    """

    value: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One basic operation on something that depends on the input.

    Attributes:
        layer: the name of the module in whose forward pass it ran; "" is the network itself.
        operation: such as "convolution"; operations in place have the names of those that are not.
        arguments: positional and named ones; values that depend on the input are references, weights are tensors.
        output: the value that it makes.
    """

    layer: str
    operation: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    output: Reference


@dataclass
class Recording:
    """A forward pass.

    Attributes:
        calls: in order.
        output: the value that came out; None if none did.
        draws: the layers that drew random numbers, "" for the network itself.
    """

    calls: list[Call] = field(default_factory=list)
    output: Reference | None = None
    draws: list[str] = field(default_factory=list)

    def uses(self) -> dict[int, int]:
        """How often each value is read; coming out of the network counts as once."""
        counts: dict[int, int] = {} if self.output is None else {self.output.value: 1}
        for call in self.calls:
            for one in (*call.arguments, *call.options.values()):
                for reference in one if isinstance(one, (list, tuple)) else [one]:
                    if isinstance(reference, Reference):
                        counts[reference.value] = counts.get(reference.value, 0) + 1
        return counts


@torch.no_grad()
def record(network: nn.Module, *inputs: Tensor) -> Recording:
    """The basic operations of one forward pass.

    Args:
        network: in evaluation mode; it gets hooks while it runs.
        inputs: what it is called with.

    Returns:
        The operations on what depends on the inputs. What depends on weights alone is computed, and not recorded.
    """
    recorder = _Recorder(inputs)
    with recorder.naming_layers(network), recorder:
        output = network(*inputs)
    if isinstance(output, Tensor):
        recorder.recording.output = recorder.reference_of(output)
    return recorder.recording


class _Recorder(TorchDispatchMode):
    """Sees every basic operation below autograd, in which functional forms and methods look like modules."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.recording = Recording()
        self._layers: list[str] = []
        self._known: dict[int, Reference] = {}
        self._alive: list[Tensor] = []  # an id may be given anew once its tensor is gone
        for one in inputs:
            self._remember(one)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and the compiler takes seconds to import

    @contextmanager
    def naming_layers(self, network: nn.Module) -> Iterator[None]:
        """Inside the block it is known whose forward pass runs."""
        handles: list[Any] = []

        def leave(*_: Any) -> None:  # what a hook returns would replace the output
            self._layers.pop()

        for name, part in network.named_modules():
            name = canonical_name(name, network)
            handles.append(part.register_forward_pre_hook(lambda *_, n=name: self._layers.append(n)))
            handles.append(part.register_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def reference_of(self, tensor: Tensor) -> Reference | None:
        """The value that a tensor is; None if it does not depend on the input."""
        return self._known.get(id(tensor))

    def _remember(self, tensor: Tensor) -> Reference:
        reference = Reference(len(self._alive), tuple(tensor.shape))
        self._known[id(tensor)] = reference
        self._alive.append(tensor)
        return reference

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known = [self._replace(one) for one in args]
        options = {key: self._replace(one) for key, one in kwargs.items()}
        result = func(*args, **kwargs)
        depends = any(self.reference_of(one) for one in tensors_in([list(args), list(kwargs.values())]))
        found = tensors_in(result)
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.recording.draws.append(self._layers[-1] if self._layers else "")
        if depends and found:
            name = func._schema.name.removeprefix("aten::")
            name = name if name.startswith("_") else name.rstrip("_")
            layer = self._layers[-1] if self._layers else ""
            output = self._remember(found[0])
            self.recording.calls.append(Call(layer, name, tuple(known), options, output))
            for other in found[1:]:
                self._remember(other)
        return result

    def _replace(self, one: Any) -> Any:
        if isinstance(one, Tensor):
            return self.reference_of(one) or one
        if isinstance(one, (list, tuple)):
            return type(one)(self._replace(inner) for inner in one)
        return one
