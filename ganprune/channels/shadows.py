"""A network's forward pass followed by shadows: what is constant whatever the input, and where channels go.

The network runs once in evaluation mode. Beside every tensor goes a shadow of the same shape: whether each entry
is constant, its value if so, and the channel that it comes from. Each function of the forward pass has a rule
for shadows; a function without a rule makes nothing constant and binds the channels that enter it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ganprune.channels.dataflow import OUTPUT, Dataflow, Read, Shadow, rows_of
from ganprune.channels.graph import copied, mapped, tensors_in
from ganprune.core.modes import eval_mode
from ganprune.masks.weights import WeightSlot, weight_slots
from ganprune.scores.activation import functions_named

_ELEMENTWISE = functions_named(
    "relu relu_ relu6 leaky_relu leaky_relu_ elu elu_ selu selu_ celu celu_ gelu silu mish softplus softsign "
    "hardtanh hardtanh_ hardsigmoid hardswish logsigmoid tanh tanh_ sigmoid sigmoid_ tanhshrink softshrink "
    "hardshrink threshold threshold_ abs neg square exp sin cos clamp clamp_ clip clip_ add add_ sub sub_ rsub "
    "div div_ true_divide maximum minimum __add__ __radd__ __iadd__ __sub__ __rsub__ __isub__ __truediv__ "
    "__itruediv__ __neg__ __abs__"
)


_PRODUCTS = functions_named("mul mul_ multiply __mul__ __rmul__ __imul__")


_COPIES = functions_named(
    "clone contiguous detach float double half bfloat16 to type "
    "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout"
)


_RESHAPES = functions_named("view reshape flatten unflatten ravel squeeze unsqueeze view_as reshape_as")


_MOVES = functions_named("permute transpose movedim swapaxes swapdims t cat concat concatenate __getitem__")


_PARTS = functions_named("chunk split tensor_split narrow select unbind expand expand_as stack repeat")


_FACTORIES = functions_named("zeros ones full arange linspace eye tensor zeros_like ones_like full_like")


_POOLS = functions_named(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"
) | functions_named("adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d")


_WEIGHTED = functions_named("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")


_BATCH_NORM = functions_named("batch_norm")


_INTERPOLATE = functions_named("interpolate")


_PAD = functions_named("pad")


_PRELU = functions_named("prelu")


_SIZES = {
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous", "type"),
    *("is_floating_point", "is_complex", "get_device", "element_size", "__len__", "is_same_size", "__get__"),
}  # what does not depend on the numbers in a tensor


class Untraceable(Exception):
    """The forward pass does something that shadows cannot follow; the message says what."""


def _along(row: Tensor, axis: int, shape: torch.Size) -> Tensor:
    """A number per channel, spread over a shape."""
    return row.view([-1 if d == axis % len(shape) else 1 for d in range(len(shape))]).expand(shape)


class _Tracer(TorchFunctionMode):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.found = Dataflow()
        self.shadows: dict[int, Shadow] = {}
        self.current: list[nn.Module] = []
        slots = weight_slots(network)
        self.slots = {id(slot.layer): slot for slot in slots.values()}
        self.norms = {
            id(module.running_mean): name
            for name, module in network.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
        }
        owners = Counter(id(p) for m in network.modules() for p in m._parameters.values() if p is not None)
        self.shared = {key for key, count in owners.items() if count > 1}
        self.calls: Counter[str] = Counter()
        self.passed: dict[str, list[Tensor]] = {}
        for static in [*network.parameters(), *network.buffers()]:
            self.set(static, torch.ones(static.shape, dtype=torch.bool), static.detach().cpu())

    # --- shadows ---

    def set(self, tensor: Tensor, constant: Tensor, value: Tensor, label: Tensor | None = None) -> Shadow:
        constant = constant.bool()
        if label is None:
            label = torch.zeros(tensor.shape, dtype=torch.long)
        if not constant.shape == value.shape == label.shape == tensor.shape:
            raise Untraceable(f"a rule gave a wrong shape for a tensor of shape {tuple(tensor.shape)}")
        value = torch.where(constant, value.double(), 0.0)
        shadow = Shadow(tensor, tensor._version, constant, value, label)
        self.shadows[id(tensor)] = shadow
        return shadow

    def get(self, tensor: Tensor) -> Shadow:
        shadow = self.shadows.get(id(tensor))
        if shadow is None:
            raise Untraceable(
                f"a tensor of shape {tuple(tensor.shape)} comes from outside the functions that can be followed"
            )
        if tensor._version != shadow.version:
            raise Untraceable("a tensor is changed in place through another view of it")
        return shadow

    def unknown(self, tensor: Tensor) -> Shadow:
        shape = tensor.shape
        return self.set(tensor, torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.double))

    # --- one function of the forward pass ---

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        taken = list({id(t): t for t in tensors_in([args, kwargs])}.values())
        if name in _SIZES and not tensors_in(result := func(*args, **kwargs)):
            return result
        given = [self.get(tensor) for tensor in taken]
        result = func(*args, **kwargs)
        for shadow in given:
            shadow.uses += 1
        made = tensors_in(result)
        changed = [s for s in given if s.tensor._version != s.version and s.tensor is not result]
        if not made and not changed and not all(bool(shadow.constant.all()) for shadow in given):
            raise Untraceable(f"the forward pass reads numbers out of tensors ({name})")
        if changed or kwargs.get("out") is not None or not self.apply_rule(func, args, kwargs, result):
            for shadow in given:
                self.found.channels.bind(shadow.label, f"{name} is not followed")
            for tensor in [*made, *(shadow.tensor for shadow in changed)]:
                self.unknown(tensor)
        return result

    def apply_rule(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        try:
            return func in _RULES and _RULES[func](self, func, args, kwargs, result)
        except Untraceable:
            raise
        except Exception as error:
            raise Untraceable(f"{func.__name__} could not be followed ({error})") from error

    def rerun(self, what: str, func: Any, args: Any, kwargs: Any) -> Any:
        """The function on one attribute of the shadows, or on what "varies"; clones, for it may work in place."""

        def shadow_of(tensor: Tensor) -> Tensor:
            shadow = self.get_before(tensor)
            if what == "varies":
                return shadow.constant.logical_not().double()
            return getattr(shadow, what).clone()

        return func(*mapped(args, shadow_of), **mapped(kwargs, shadow_of))

    def get_before(self, tensor: Tensor) -> Shadow:
        """The shadow from before a change in place."""
        return self.shadows[id(tensor)]

    def given(self, args: Any, kwargs: Any = None) -> list[Shadow]:
        return [self.get_before(tensor) for tensor in tensors_in([args, kwargs])]

    # --- rules: each returns whether it applied ---

    def copy(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        source = self.get_before(args[0])
        training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
        dropped = "dropout" in func.__name__ and training
        if dropped or not isinstance(result, Tensor) or not result.is_floating_point():
            return False
        self.set(result, source.constant, source.value.to(result.dtype), source.label)
        return True

    def factory(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        self.set(result, torch.ones(result.shape, dtype=torch.bool), result.detach().cpu())
        return True

    def elementwise(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        given = self.given(args, kwargs)
        if not isinstance(result, Tensor) or not result.is_floating_point():
            return False
        constant = torch.ones(result.shape, dtype=torch.bool)
        for shadow in given:
            constant = constant & shadow.constant
        if func in _PRODUCTS:
            for shadow in given:
                constant = constant | (shadow.constant & (shadow.value == 0))
        label = self.joined(given, result.shape, func.__name__)
        self.set(result, constant, self.rerun("value", func, args, kwargs), label)
        return True

    def joined(self, given: list[Shadow], shape: torch.Size, name: str) -> Tensor:
        """The labels of an element-wise result; operands with the same channels make these one."""
        channels = self.found.channels
        labels = [channels.roots(shadow.label) for shadow in given]
        varies = [
            [label.size(d) > 1 and bool((label != label.narrow(d, 0, 1)).any()) for d in range(label.ndim)]
            for label in labels
        ]
        total = torch.zeros(shape, dtype=torch.long)
        spread = []  # operands that are the same for all channels of another
        for one, label in enumerate(labels):
            for other, dims in enumerate(varies):
                own = [
                    label.size(d - len(dims)) if len(dims) - d <= label.ndim else 1 for d in range(len(dims))
                ]
                if other != one and any(v and size == 1 for v, size in zip(dims, own, strict=True)):
                    spread.append(one)
        for one, label in enumerate(labels):
            if one in spread:
                channels.bind(label, f"it acts on all channels of another tensor ({name})")
                continue
            for other, theirs in enumerate(labels):
                if other != one and other not in spread and given[other].label.numel() > 1:
                    size = len(channels.parents)
                    for pair in (label * size + theirs).unique().tolist():
                        channels.join(pair // size, pair % size)
            total = torch.maximum(total, label.expand(shape))
        return channels.roots(total)

    def reshape(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        source = self.get_before(args[0])
        if result.dtype != source.tensor.dtype:  # view(dtype) reads the bits as other numbers
            return False
        constant, value, label = (
            t.reshape(result.shape) for t in (source.constant, source.value, source.label)
        )
        self.set(result, constant, value, label)
        return True

    def move(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        if func in functions_named("__getitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, (Tensor, list)) for part in index):
                return False
        constant, value, label = (
            self.rerun(what, func, args, kwargs) for what in ("constant", "value", "label")
        )
        lost = set(torch.cat([s.label.flatten() for s in self.given(args)]).tolist()) - set(
            label.flatten().tolist()
        )
        if lost - {0}:  # a slice by number would take other channels once some are gone
            for shadow in self.given(args):
                self.found.channels.bind(shadow.label, f"{func.__name__} takes a part of the channels")
        self.set(result, constant, value, label)
        return True

    def parts(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        for shadow in self.given(args):
            self.found.channels.bind(shadow.label, f"{func.__name__} counts channels by number")
        constants, values = (self.rerun(what, func, args, kwargs) for what in ("constant", "value"))
        for tensor, constant, value in zip(*map(tensors_in, (result, constants, values)), strict=True):
            self.set(tensor, constant, value)
        return True

    def per_channel(self, source: Shadow, axis: int, shape: torch.Size) -> Tensor:
        """Labels after something that treats a channel as a whole: all labels in a channel become one."""
        return _along(self.channel_labels(source, axis), axis, shape)

    def channel_labels(self, source: Shadow, axis: int) -> Tensor:
        channels = self.found.channels
        rows = rows_of(channels.roots(source.label), axis)
        for row in rows[(rows != rows[:, :1]).any(1)]:
            first, *rest = row.unique().tolist()
            for label in rest:
                channels.join(first, label)
        return channels.roots(rows[:, 0])

    def pool(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        if not isinstance(result, Tensor):
            return False
        source = self.get_before(args[0])
        axis = result.ndim - 1 - int(func.__name__[-2])
        constant = self.rerun("varies", func, args, kwargs) == 0
        value = self.rerun("value", func, args, kwargs)
        self.set(result, constant, value, self.per_channel(source, axis, result.shape))
        return True

    def interpolate(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        if kwargs.get("mode", args[3] if len(args) > 3 else "nearest") == "bicubic":
            return False  # its weights may be negative and cancel
        constant = self.rerun("varies", func, args, kwargs) == 0
        value = self.rerun("value", func, args, kwargs)
        self.set(result, constant, value, self.per_channel(self.get_before(args[0]), 1, result.shape))
        return True

    def pad(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        source = self.get_before(args[0])
        amounts = args[1] if len(args) > 1 else kwargs["pad"]
        axis = min(1, source.tensor.ndim - 1 - len(amounts) // 2)
        mode = kwargs.get("mode", args[2] if len(args) > 2 else "constant")
        if mode == "constant":
            constant = functional.pad(source.constant.logical_not().double(), tuple(amounts)) == 0
        else:
            constant = self.rerun("varies", func, args, kwargs) == 0
        value = self.rerun("value", func, args, kwargs)
        if axis < 0 or result.shape[axis] != source.tensor.shape[axis]:
            return False
        self.set(result, constant, value, self.per_channel(source, axis, result.shape))
        return True

    def prelu(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        source, slope = self.given(args, kwargs)
        if not bool(slope.constant.all()):
            return False
        label = source.label if slope.value.numel() == 1 else self.per_channel(source, 1, result.shape)
        self.set(result, source.constant, self.rerun("value", func, args, kwargs), label)
        return True

    def batch_norm(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        names = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
        asked = {"training": False, "eps": 1e-5} | dict(zip(names, args, strict=False)) | kwargs
        statics = [asked.get(one) for one in names[1:5]]
        known = [self.get_before(s) for s in statics if s is not None]
        if asked["training"] or statics[0] is None or not all(bool(s.constant.all()) for s in known):
            return False
        source, shape = self.get_before(asked["input"]), result.shape
        mean, var, weight, bias = (
            torch.tensor(default).double() if s is None else _along(self.get_before(s).value, 1, shape)
            for s, default in zip(statics, (0.0, 1.0, 1.0, 0.0), strict=True)
        )
        value = (source.value - mean) / (var + asked["eps"]).sqrt() * weight + bias
        label = self.per_channel(source, 1, shape)
        name = self.norms.get(id(statics[0]))
        if name is None or self.shared & {id(s) for s in statics if s is not None}:
            self.found.channels.bind(label, "its batch norm belongs to no module, or shares parameters")
        else:
            self.once(name, label)
            if source.maker is not None:
                source.maker.norm = name
        value = torch.where(weight == 0, bias.expand(shape), value)
        self.set(result, source.constant | (weight == 0), value, label)
        return True

    def once(self, name: str, labels: Tensor) -> None:
        """Binds the channels of a module that is called more than once."""
        self.calls[name] += 1
        self.passed.setdefault(name, []).append(labels)
        if self.calls[name] > 1:
            for earlier in self.passed[name]:
                self.found.channels.bind(earlier, f"{name} is called more than once")

    def weighted(self, func: Any, args: Any, kwargs: Any, result: Any) -> bool:
        layer = self.current[-1] if self.current else None
        names = ("input", "weight", "bias")
        asked = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
        slot = self.slots.get(id(layer))
        source, bias = self.get_before(asked["input"]), asked.get("bias")
        if slot is None or layer is None or bias is not layer._parameters.get("bias"):
            return False
        weight = slot.effective()
        if not torch.equal(weight, asked["weight"]):
            return False
        rest = () if func in functions_named("linear") else args[3:]
        tail = {k: v for k, v in kwargs.items() if k not in names}

        def linear(x: Tensor, kernel: Tensor) -> Tensor:
            return func(x, kernel, None, *rest, **tail)

        weight = weight.cpu().double()
        axis = result.ndim - 1 - (weight.ndim - 2)
        constant = linear(source.constant.logical_not().double(), (weight != 0).double()) < 0.5
        value = linear(source.value, weight)
        if bias is not None:
            value = value + _along(self.get_before(bias).value, axis, result.shape)
        labels = self.connect(slot, source, axis)
        shadow = self.set(result, constant, value, _along(labels, axis, result.shape))
        self.found.constant[slot.name] = rows_of(constant, axis).all(1)
        if int(getattr(layer, "groups", 1)) == 1:
            same = bool((source.value == source.value[:1]).all())
            shadow.maker = Read(
                key=slot.name,
                slot=slot,
                weight=weight,
                constant=rows_of(source.constant, axis).all(1),
                value=source.value[:1] if same and result.ndim == max(weight.ndim, 2) else source.value,
                axis=axis,
                inputs=self.channel_labels(source, axis).tolist(),
                outputs=labels.tolist(),
                linear=linear,
                output=shadow,
            )
            self.found.reads.append(shadow.maker)
        return True

    def connect(self, slot: WeightSlot, source: Shadow, axis: int) -> Tensor:
        """Labels for the outputs of a layer, after noting what binds them to the inputs."""
        channels, key = self.found.channels, slot.name
        inputs, labels = self.channel_labels(source, axis), torch.tensor(channels.new(key, slot.outputs))
        both = torch.cat([inputs, labels])
        groups = int(getattr(slot.layer, "groups", 1))
        if groups > 1 and groups == slot.outputs == len(inputs):
            for one, other in zip(inputs.tolist(), labels.tolist(), strict=True):
                channels.join(one, other)  # depth-wise: one channel, before and behind
        elif groups > 1:
            channels.bind(both, f"{key} is a grouped convolution")
        if self.shared & {id(p) for p in slot.layer.parameters()}:
            channels.bind(both, f"{key} shares a parameter with another layer")
        self.once(key, both)
        return labels


_RULES: dict[Any, Callable[..., bool]] = {}


for _functions, _rule in (
    (_ELEMENTWISE | _PRODUCTS, _Tracer.elementwise),
    (_COPIES, _Tracer.copy),
    (_RESHAPES, _Tracer.reshape),
    (_MOVES, _Tracer.move),
    (_PARTS, _Tracer.parts),
    (_FACTORIES, _Tracer.factory),
    (_POOLS, _Tracer.pool),
    (_INTERPOLATE, _Tracer.interpolate),
    (_PAD, _Tracer.pad),
    (_PRELU, _Tracer.prelu),
    (_BATCH_NORM, _Tracer.batch_norm),
    (_WEIGHTED, _Tracer.weighted),
):
    _RULES |= dict.fromkeys(_functions, _rule)


@torch.no_grad()
def trace(network: nn.Module, inputs: tuple[Any, ...]) -> Dataflow:
    """Follows one forward pass in evaluation mode; the network is left as it was.

    Constants are derived from the weights, not from how the outputs look: an output is constant if all inputs
    that it multiplies by a non-zero weight are. They hold for every input of the given shapes.

    Args:
        network: any module.
        inputs: its arguments.

    Raises:
        Untraceable: if the forward pass depends on numbers inside tensors, or uses tensors of unknown origin.
    """
    tracer = _Tracer(network)
    with ExitStack() as stack:
        stack.enter_context(eval_mode(network))
        for slot in tracer.slots.values():
            layer = slot.layer
            enter = layer.register_forward_pre_hook(lambda module, _: tracer.current.append(module))
            leave = layer.register_forward_hook(lambda *_: tracer.current.pop() and None)
            stack.callback(enter.remove)
            stack.callback(leave.remove)
        arguments = copied(inputs)
        for tensor in tensors_in(arguments):
            tracer.unknown(tensor)
        with tracer:
            output = network(*arguments)
    outputs = tensors_in(output)
    if not outputs:
        raise Untraceable(f"the network returns a {type(output).__name__}, in which no tensor is found")
    for tensor in outputs:
        shadow = tracer.get(tensor)
        shadow.uses += 1
        tracer.found.channels.bind(shadow.label, OUTPUT)
    for read in tracer.found.reads:
        if read.output is None or read.output.uses != 1 or tracer.calls[read.norm or ""] != 1:
            read.norm = None
    return tracer.found
