"""Registered layers of one's own as plain ones, where they are: a convolution or product of one weight, and a bias."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ganprune.channels.parts import copy_arguments, part_name
from ganprune.core.modes import eval_mode
from ganprune.core.random import keep_random_state
from ganprune.masks.weights import WeightSlot, weight_slots

_KINDS = {
    functional.linear: nn.Linear,
    functional.conv1d: nn.Conv1d,
    functional.conv2d: nn.Conv2d,
    functional.conv3d: nn.Conv3d,
    functional.conv_transpose1d: nn.ConvTranspose1d,
    functional.conv_transpose2d: nn.ConvTranspose2d,
    functional.conv_transpose3d: nn.ConvTranspose3d,
}
_NAMES = {
    False: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    True: ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
}
TOLERANCE = 1e-4


@dataclass
class _Run:
    """What a layer did in one pass: its input, the products inside of it, and its output."""

    given: tuple[Any, ...] = ()
    products: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    output: Any = None
    times: int = 0


class _Products(TorchFunctionMode):
    """Notes each convolution and matrix product for the innermost registered layer that runs."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[_Run] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _KINDS and self.running:
            names = _NAMES["Transpose" in _KINDS[func].__name__]
            self.running[-1].products.append((func, dict(zip(names, args, strict=False)) | (kwargs or {})))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def make_plain(network: nn.Module, arguments: tuple[Any, ...]) -> dict[str, str]:
    """Puts plain layers of ``torch.nn`` in the place of registered ones that compute the same, in place.

    A registered layer may be replaced if, on this batch, it takes one tensor, gives one convolution or product of it
    with its effective weight, and adds at most a bias.

    Args:
        network: a copy, changed in place.
        arguments: one batch.

    Returns:
        The layers that stay, by name, with the reason; their channels cannot be removed.
    """
    slots = [slot for slot in weight_slots(network).values() if slot.own is not None]
    if not slots:
        return {}
    runs = {id(_layer(slot)): _Run() for slot in slots}
    products = _Products()
    with ExitStack() as stack:
        stack.enter_context(eval_mode(network))
        stack.enter_context(keep_random_state(next(network.parameters()).device))
        for slot in slots:
            run = runs[id(_layer(slot))]
            stack.enter_context(_layer(slot).register_forward_pre_hook(_begin(products, run)))
            stack.enter_context(_layer(slot).register_forward_hook(_end(products, run)))
        stack.enter_context(products)
        network(*copy_arguments(arguments))
    names = {id(module): part_name(name) for name, module in network.named_modules()}
    reasons = {}
    for slot in slots:
        plain = _plain_twin(slot, runs[id(_layer(slot))])
        if plain is None:
            reasons[names[id(slot.layer)]] = (
                f"{names[id(_layer(slot))] or 'it'} ({type(_layer(slot)).__name__}) is a layer of your own that is not "
                "one convolution or product of its effective weight, and a bias; prune its weights one by one instead"
            )
        else:
            put_in_place(network, _layer(slot), plain)
    return reasons


def put_in_place(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Another module in the place of one, under all its names."""
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if module is old and name:
            path, _, attribute = name.rpartition(".")
            network.get_submodule(path)._modules[attribute] = new


def _layer(slot: WeightSlot) -> nn.Module:
    assert slot.own is not None
    return slot.own[0]


def _begin(products: _Products, run: _Run) -> Callable[..., None]:
    def before(layer: nn.Module, given: tuple[Any, ...]) -> None:
        run.given, run.times = (
            tuple(one.clone() if isinstance(one, Tensor) else one for one in given),
            run.times + 1,
        )
        run.products.clear()
        products.running.append(run)

    return before


def _end(products: _Products, run: _Run) -> Callable[..., None]:
    def after(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        run.output = output.clone() if isinstance(output, Tensor) else output
        products.running.pop()

    return after


def _plain_twin(slot: WeightSlot, run: _Run) -> nn.Module | None:
    """The plain layer that computes the same; None if there is none."""
    named_so = slot.key.rpartition(".")[2] == "weight"
    if len(run.products) != 1 or len(run.given) != 1 or not isinstance(run.output, Tensor) or not named_so:
        return None
    func, call = run.products[0]
    x, used = run.given[0], call["weight"]
    if not isinstance(x, Tensor) or used.shape != slot.raw.shape or call["input"].shape != x.shape:
        return None
    for weight in (used, slot.effective()):
        layer = _build(_KINDS[func], call, weight.detach())
        left = run.output - layer(x) if layer(x).shape == run.output.shape else None
        if left is None:
            continue
        channel = -1 if isinstance(layer, nn.Linear) else 1
        rows = left.movedim(channel, 0).flatten(1)
        layer.bias.copy_(rows.mean(1))
        if (rows - layer.bias[:, None]).abs().max() <= TOLERANCE * (1e-6 + run.output.abs().max()):
            layer.train(_layer(slot).training).requires_grad_(slot.raw.requires_grad)
            return _nested(layer, slot)
    return None


def _build(kind: Any, call: dict[str, Any], weight: Tensor) -> Any:
    """A plain layer with this weight, a bias of zero, and the options of a call."""
    place: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    if kind is nn.Linear:
        layer = nn.Linear(weight.shape[1], weight.shape[0], **place)
        kwargs: dict[str, Any] = {}
    else:
        groups, transposed = call.get("groups", 1), "Transpose" in kind.__name__
        outputs, inputs = (weight.shape[0], weight.shape[1] * groups)
        if transposed:
            outputs, inputs = weight.shape[1] * groups, weight.shape[0]
        known = inspect.signature(kind).parameters
        kwargs = {
            key: tuple(value) if isinstance(value, (tuple, list)) else value
            for key, value in call.items()
            if key not in ("input", "weight", "bias") and key in known
        }
        layer = kind(inputs, outputs, tuple(weight.shape[2:]), **kwargs, **place)
        kwargs["kernel_size"] = tuple(weight.shape[2:])
    layer.weight.copy_(weight)
    layer.bias.zero_()
    vars(layer)["stands_for"] = {"kind": kind.__name__, "options": kwargs, "inside": ""}
    return layer


def _nested(layer: Any, slot: WeightSlot) -> nn.Module:
    """The layer under the name that its weight had inside of a wrapper, such as "module"."""
    assert slot.own is not None
    inside = slot.own[1].weight.rpartition(".")[0]
    layer.stands_for["inside"] = inside
    nested: nn.Module = layer
    for word in reversed(inside.split(".") if inside else []):
        nested = nn.Sequential(OrderedDict({word: nested}))
    return nested
