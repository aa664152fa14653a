"""Reshapes with a fixed number of channels, as in ``view(-1, 256, 4, 4)``, in networks that have fewer by now.

A smaller network runs the same code as the larger one. Its reshapes are numbered in the order in which the code comes
to them. Those that keep the samples apart and say how many channels there are take what the input has instead.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_VIEWS = {Tensor.view, Tensor.reshape, torch.reshape}
_UNFLATTENS = {Tensor.unflatten, torch.unflatten}


class _Reshapes(TorchFunctionMode):
    """Numbers the reshapes of one forward pass, and either notes those that fix channels or makes them fit.

    Attributes:
        fixed: the numbers of those that fix channels.
        noting: whether they are noted.
        changed: the numbers of those that did not fit.
    """

    def __init__(self, fixed: Iterable[int] = (), noting: bool = False) -> None:
        super().__init__()
        self.fixed, self.noting, self.number = set(fixed), noting, 0
        self.changed: set[int] = set()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _VIEWS and func not in _UNFLATTENS:
            return func(*args, **kwargs)
        sizes = _wanted_sizes(func, args, kwargs)
        number, self.number = self.number, self.number + 1
        if self.noting:
            result = func(*args, **kwargs)
            if sizes is not None and len(sizes) > 1 and sizes[1] > 1 and len(result) == len(args[0]):
                self.fixed.add(number)
            return result
        if number in self.fixed and sizes is not None:
            fitting = _fit(args[0], sizes)
            if fitting is not None:
                self.changed.add(number)
                return (Tensor.view if func is Tensor.view else Tensor.reshape)(args[0], fitting)
        return func(*args, **kwargs)


def _wanted_sizes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int] | None:
    """The shape that a call asks for, with −1 where it leaves it open; None if it asks for something else."""
    rest: Any = (*args[1:], *kwargs.values())
    if not args or not isinstance(args[0], Tensor) or not args[0].ndim:
        return None
    try:
        if func in _UNFLATTENS:
            dim, sizes = operator.index(rest[0]) % args[0].ndim, [_size(one) for one in rest[1]]
            return [*args[0].shape[:dim], *sizes, *args[0].shape[dim + 1 :]]
        return [_size(one) for one in (rest[0] if isinstance(rest[0], (tuple, list)) else rest)]
    except (TypeError, IndexError):  # a dtype, or names of dimensions
        return None


def _size(one: Any) -> int:
    """A size as an integer; one that an exporter holds open stays open."""
    return one if isinstance(one, torch.SymInt) else operator.index(one)  # type: ignore[return-value]


def _fit(x: Tensor, sizes: list[int]) -> list[int] | None:
    """The same shape with the channels that there are; None if it fits as it is, or cannot."""
    rest, features = math.prod(sizes[2:]), math.prod(int(size) for size in x.shape[1:])
    kept_apart = sizes[0] == -1 or sizes[0] == x.shape[0]
    if rest < 1 or features == sizes[1] * rest or not kept_apart:
        return None
    channels, over = divmod(features, rest)
    return (
        None if over or not channels else [-1, channels, *sizes[2:]]
    )  # the batch stays open, for exporters too


class _Begin:
    """The hook before a forward pass."""

    def __init__(self, fixed: tuple[int, ...]) -> None:
        self.fixed = fixed
        self.running: list[_Reshapes] = []

    def __call__(self, network: nn.Module, arguments: Any) -> None:
        self.running.append(_Reshapes(self.fixed))
        self.running[-1].__enter__()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Begin:
        return memo.setdefault(id(self), _Begin(self.fixed))


class _End:
    """The hook after it, which is called after an error too."""

    def __init__(self, begin: _Begin) -> None:
        self.begin = begin

    def __call__(self, network: nn.Module, arguments: Any, output: Any) -> None:
        if self.begin.running:
            self.begin.running.pop().__exit__(None, None, None)


def find_reshapes(network: nn.Module, arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """The numbers of the reshapes in one forward pass that keep samples apart and fix a number of channels."""
    with _Reshapes(noting=True) as reshapes:
        network(*arguments)
    return tuple(sorted(reshapes.fixed))


def fit_reshapes(network: nn.Module, fixed: Iterable[int]) -> None:
    """Lets these reshapes of a network take the channels that there are; it is changed in place, by two hooks.

    A pass costs as much more as Python takes to look at each function that the network calls.
    """
    numbers = tuple(int(number) for number in fixed)
    _drop_hooks(network)
    if numbers:
        begin = _Begin(numbers)
        network.register_forward_pre_hook(begin)
        network.register_forward_hook(_End(begin), always_call=True)


def keep_needed(network: nn.Module, arguments: tuple[Any, ...]) -> None:
    """Forgets the reshapes that fit as the code has them, on one batch, and the hooks if there are no others."""
    fixed = fitted_reshapes(network)
    if fixed:
        _drop_hooks(network)
        with _Reshapes(fixed) as reshapes:
            network(*arguments)
        fit_reshapes(network, sorted(reshapes.changed))


def _drop_hooks(network: nn.Module) -> None:
    for hooks in (network._forward_pre_hooks, network._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(hook, (_Begin, _End)):
                del hooks[key]
                network._forward_hooks_always_called.pop(key, None)


def fitted_reshapes(network: nn.Module) -> tuple[int, ...]:
    """The reshapes that :func:`fit_reshapes` was told of."""
    found = (hook for hook in network._forward_pre_hooks.values() if isinstance(hook, _Begin))
    return next((hook.fixed for hook in found), ())
