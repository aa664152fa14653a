"""From a recorded forward pass to a program: what stands between layers with weights goes into them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ganprune.channels.parts import part_name
from ganprune.inference.program import InferenceError, Layer, Program, Sum, output_shape
from ganprune.inference.recording import Call, Recording, Reference

SAME_NUMBERS: tuple[str, ...] = (
    *("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten", "unflatten", "unsqueeze", "squeeze"),
    *("clone", "alias", "detach", "contiguous", "_to_copy", "expand", "slice", "lift_fresh"),
)
"""Operations that leave every number where it is in memory, or are refused where they do not."""
NORMS = ("native_batch_norm", "_native_batch_norm_legit_no_training", "_native_batch_norm_legit")
ELEMENTWISE = ("relu", "leaky_relu", "tanh", "sigmoid")
UPSAMPLINGS = ("upsample_nearest2d", "_upsample_nearest_exact2d")
INVERSES = {"sub": ("add", torch.neg), "div": ("mul", torch.reciprocal)}
REMEDIES = {
    "softmax": "a network with attention runs dense: export it with gp.export_onnx",
    "bmm": "a network with attention runs dense: export it with gp.export_onnx",
    "clamp": "leave clamp=True away and clamp the images, or export the network with gp.export_onnx",
    "pad": "use zero padding of the convolution itself, or export the network with gp.export_onnx",
    "interpolat": "upsample by the nearest neighbour, or export the network with gp.export_onnx",
    "upsample": "upsample by the nearest neighbour and a whole factor, or export the network with gp.export_onnx",
}
"""What could be done about an operation whose name contains the word."""


@dataclass(frozen=True)
class Value:
    """Where the numbers of a recorded value come from.

    Attributes:
        source: of the program's values, numbered as in :class:`Layer`.
        shape: without the batch, before the upsampling that still has to be done.
        alone: whether nobody else reads the source, so that what follows may go into its operation.
        upsample: the factor of that upsampling.
    """

    source: int
    shape: tuple[int, ...]
    alone: bool
    upsample: int = 1


def lower(recording: Recording, latent: tuple[int, ...], batch: int) -> Program:
    """The program of a recorded forward pass.

    Batch norm goes into the layer before it where nobody else reads that layer, and so does an activation; nearest
    upsampling goes before the layer after it. What finds no layer becomes one: a 1 × 1 convolution with a diagonal
    weight, of which only the diagonal is ever multiplied; so do channels that are put side by side.

    Args:
        recording: of a network without norms on weights.
        latent: the shape of one input.
        batch: how many inputs there were.

    Raises:
        InferenceError: if an operation is none of those that a program has; it names the layer.
    """
    state = _Lowering(recording.uses(), batch, latent)
    for call in recording.calls:
        state.values[call.output.value] = state.lower(call)
    if recording.output is None or recording.output.value not in state.values:
        raise InferenceError("network must return one tensor that depends on the latents")
    final = state.settle("the output", state.values[recording.output.value])
    if not any(isinstance(one, Layer) for one in state.operations) or final.source != len(state.operations):
        raise InferenceError(
            "network must end with its last layer, and have one; it returns something that it made before"
        )
    return Program(latent, final.shape, tuple(map(_in_single_precision, state.operations)))


def _in_single_precision(one: Layer | Sum) -> Layer | Sum:
    if isinstance(one, Sum):
        return one
    weight, bias = (part.detach().float().cpu().contiguous() for part in (one.weight, one.bias))
    if not (weight.isfinite().all() and bias.isfinite().all()):
        raise InferenceError(f"{one.name} has weights that are NaN or infinite; load a network without them")
    return dataclasses.replace(one, weight=weight, bias=bias)


class _Lowering:
    """The operations so far, and where each recorded value comes from."""

    def __init__(self, uses: dict[int, int], batch: int, latent: tuple[int, ...]) -> None:
        self.uses, self.batch = uses, batch
        self.operations: list[Layer | Sum] = []
        self.values = {0: Value(0, latent, False)}

    def lower(self, call: Call) -> Value:
        """The value that a call makes; adds what it takes to the operations."""
        name, kind = part_name(call.layer) or "the network", call.operation
        if not call.output.shape or call.output.shape[0] != self.batch:
            raise InferenceError(
                f"{name} looks across the images of a batch ({kind}, to shape {call.output.shape}), as instance "
                "norm and modulated convolutions do; export the network with gp.export_onnx"
            )
        how = next((how for names, how in self.WAYS.items() if kind in names), None)
        if how is None:
            raise self._refusal(name, call)
        made = how(self, name, call)
        shape = made.shape if made.upsample > 1 else call.output.shape[1:]
        passed = kind in SAME_NUMBERS or kind in UPSAMPLINGS  # others read the source as well
        alone = self.uses.get(call.output.value, 0) == 1 and (made.alone or not passed)
        return dataclasses.replace(made, shape=shape, alone=alone)

    def _refusal(self, name: str, call: Call, why: str = "") -> InferenceError:
        found = (text for word, text in REMEDIES.items() if word in call.operation)
        remedy = next(found, "export the network with gp.export_onnx instead")
        shown = call.operation.strip("_").removesuffix("_kernel")
        return InferenceError(
            f"{name} computes {shown}{why}, which a list of sparse operations does not have; {remedy}"
        )

    def _read(self, name: str, call: Call) -> Value:
        """The value that a call's first argument is."""
        reference = call.arguments[0]
        if not isinstance(reference, Reference) or reference.value not in self.values:
            raise self._refusal(name, call, " of something else than its input")
        return self.values[reference.value]

    def settle(self, name: str, value: Value) -> Value:
        """The value with its upsampling done."""
        return self._scaled(name, value, None, None) if value.upsample > 1 else value

    def _reshape(self, name: str, call: Call) -> Value:
        value, old = self._read(name, call), call.arguments[0].shape
        if math.prod(call.output.shape) != math.prod(old) or (
            call.operation == "slice" and call.output.shape != old
        ):
            raise self._refusal(name, call, f" from {old[1:]} to {call.output.shape[1:]}")
        same = call.output.shape == old
        return value if same else self.settle(name, value)

    def _convolution(self, name: str, call: Call) -> Value:
        _, weight, bias, stride, padding, dilation, transposed, extra, groups = call.arguments
        value = self._read(name, call)
        if isinstance(weight, Reference) or isinstance(bias, Reference):
            raise self._refusal(name, call, " with a weight that depends on the latents")
        pairs = {"stride": stride, "padding": padding, "output_padding": extra, "dilation": dilation}
        if weight.ndim == 3:  # over sound: a map of one row
            weight, value = weight.unsqueeze(2), _as_row(self.settle(name, value))
            pairs = {key: (key in ("stride", "dilation"), *pair) for key, pair in pairs.items()}
        if weight.ndim != 4:
            raise self._refusal(name, call, f" in {weight.ndim - 2} dimensions")
        kind = "conv_transpose2d" if transposed else "conv2d"
        outputs = weight.shape[1] * groups if transposed else weight.shape[0]
        bias = weight.new_zeros(outputs) if bias is None else bias
        options: dict[str, Any] = {key: (int(pair[0]), int(pair[-1])) for key, pair in pairs.items()}
        return self._add_layer(name, kind, weight, bias, value, groups=int(groups), **options)

    def _linear(self, name: str, call: Call) -> Value:
        bias, *operands = call.arguments if call.operation == "addmm" else (None, *call.arguments)
        value = self._read(name, dataclasses.replace(call, arguments=tuple(operands)))
        weight = operands[1]
        if call.options or isinstance(weight, Reference) or isinstance(bias, Reference):
            raise self._refusal(name, call, " with a factor or a weight that depends on the latents")
        bias = weight.new_zeros(weight.shape[1]) if bias is None else bias.expand(weight.shape[1])
        return self._add_layer(name, "linear", weight.T, bias, self.settle(name, value))

    def _add_layer(
        self, name: str, kind: str, weight: Tensor, bias: Tensor, value: Value, **options: Any
    ) -> Value:
        layer = Layer(
            name,
            kind,
            weight.detach().double(),
            bias.detach().double(),
            value.source,
            value.shape,
            (),
            upsample=value.upsample,
            **options,
        )
        layer = dataclasses.replace(layer, output=output_shape(layer))
        return self._append(layer)

    def _append(self, one: Layer | Sum) -> Value:
        self.operations.append(one)
        return Value(len(self.operations), one.output, True)

    def _batch_norm(self, name: str, call: Call) -> Value:
        _, weight, bias, mean, variance, *rest = call.arguments
        if mean is None or variance is None or (call.operation != NORMS[1] and rest[0]):
            raise self._refusal(name, call, " with the statistics of the batch")
        mean, variance, epsilon = mean.double(), variance.double(), float(rest[-1])
        scale = (variance + epsilon).rsqrt() * (1 if weight is None else weight.double())
        shift = (0 if bias is None else bias.double()) - mean * scale
        return self._scaled(name, self._read(name, call), scale, shift)

    def _inverse(self, name: str, call: Call) -> Value:
        """Minus a constant, or divided by one."""
        if isinstance(call.arguments[1], Reference):
            raise self._refusal(name, call, " of two values that depend on the latents")
        operation, inverse = INVERSES[call.operation]
        constant = inverse(torch.as_tensor(call.arguments[1], dtype=torch.float64))
        arguments = (call.arguments[0], constant)
        return self._arithmetic(name, dataclasses.replace(call, operation=operation, arguments=arguments))

    def _arithmetic(self, name: str, call: Call) -> Value:
        first, second = call.arguments[:2]
        if call.options and call.options != {"alpha": 1}:
            raise self._refusal(name, call, " with a factor")
        if isinstance(first, Reference) and isinstance(second, Reference):
            if call.operation == "mul" or first.shape != second.shape:
                raise self._refusal(name, call, " of two values that depend on the latents")
            pair = [self.settle(name, self.values[one.value]) for one in (first, second)]
            return self._append(Sum(name, (pair[0].source, pair[1].source), first.shape[1:]))
        if isinstance(second, Reference):
            call = dataclasses.replace(call, arguments=(second, first))
            first, second = second, first
        value, number = self._read(name, call), self._per_channel(name, call, second)
        if call.operation == "add":
            return self._scaled(name, value, None, number) if bool((number != 0).any()) else value
        return self._scaled(name, value, number, None) if bool((number != 1).any()) else value

    def _per_channel(self, name: str, call: Call, constant: Any) -> Tensor:
        """A constant as one number for each channel."""
        shape = call.arguments[0].shape[1:] or (1,)
        tensor = torch.as_tensor(constant, dtype=torch.float64)
        if tensor.ndim > len(shape) and bool((tensor == tensor[:1]).all()):  # the same for each image
            tensor = tensor[:1]
        try:
            rows = tensor.expand(1, *shape).reshape(shape[0], -1)
        except RuntimeError:
            raise self._refusal(name, call, " with a number for each image, such as noise") from None
        if bool((rows != rows[:, :1]).any()) or math.prod(call.output.shape[1:]) != math.prod(shape):
            raise self._refusal(name, call, " with a number for each pixel")
        return rows[:, 0]

    def _join(self, name: str, call: Call) -> Value:
        """Channels side by side: a layer copies each part to its place, and the copies are added."""
        parts, shape = call.arguments[0], call.output.shape[1:]
        if (call.arguments[1:] or (0,))[0] % len(call.output.shape) != 1:
            raise self._refusal(name, call, " along another axis than the channels")
        bias, places, begin = torch.zeros(shape[0], dtype=torch.float64), [], 0
        for part in parts:
            end = begin + part.shape[1]
            if isinstance(part, Reference):
                places.append((begin, end, self.settle(name, self.values[part.value])))
            else:
                rows = part.double().reshape(len(part), end - begin, -1)
                if bool((rows != rows[:1, :, :1]).any()):
                    raise self._refusal(name, call, " with a number for each image or pixel")
                bias[begin:end] = rows[0, :, 0]
            begin = end
        joined: Value | None = None
        for begin, end, value in places:
            weight = torch.eye(shape[0], dtype=torch.float64)[:, begin:end, None, None]
            maps = (end - begin, *(shape[1:] if len(shape) == 3 else (math.prod(shape[1:]), 1)))
            here = dataclasses.replace(value, shape=maps)
            made = self._add_layer(name, "conv2d", weight, bias if joined is None else 0 * bias, here)
            joined = (
                made if joined is None else self._append(Sum(name, (joined.source, made.source), made.shape))
            )
        assert joined is not None
        return joined

    def _upsampling(self, name: str, call: Call) -> Value:
        value, old, new = self._read(name, call), call.arguments[0].shape[2:], call.output.shape[2:]
        factors = {after // before for before, after in zip(old, new, strict=True)}
        if len(factors) > 1 or any(after % before for before, after in zip(old, new, strict=True)):
            raise self._refusal(name, call, f" from {old} to {new}")
        return dataclasses.replace(value, upsample=value.upsample * factors.pop())

    def _activation(self, name: str, call: Call) -> Value:
        value, slope = self._read(name, call), 0.0
        if call.operation == "leaky_relu":
            slope = float(call.arguments[1]) if len(call.arguments) > 1 else 0.01
        if not self._ends_plainly(value):
            value = self._scaled(name, value, None, None)
        before = self.operations[value.source - 1]
        self.operations[value.source - 1] = dataclasses.replace(
            before, activation=call.operation, slope=slope
        )
        return value

    def _ends_plainly(self, value: Value) -> bool:
        """Whether the operation that makes a value may take up what follows."""
        return value.alone and value.source > 0 and self.operations[value.source - 1].activation == "none"

    def _scaled(self, name: str, value: Value, scale: Tensor | None, shift: Tensor | None) -> Value:
        """A factor and a shift for each channel: in the layer before, or as a layer of their own."""
        if scale is None and shift is not None:
            scale = torch.ones_like(shift)
        before = self.operations[value.source - 1] if self._ends_plainly(value) else None
        channels, *sides = value.shape or (1,)
        if isinstance(before, Layer) and scale is not None:
            outputs = before.output[0]
            if before.kind == "linear" or outputs == channels:
                each = outputs // channels
                self.operations[value.source - 1] = _scale_layer(
                    before,
                    scale.repeat_interleave(each),
                    0 if shift is None else shift.repeat_interleave(each),
                )
                return value
        factors = torch.ones(channels, dtype=torch.float64) if scale is None else scale
        bias = torch.zeros_like(factors) if shift is None else shift
        maps = value.shape if len(value.shape) == 3 else (channels, math.prod(sides), 1)
        value = dataclasses.replace(value, shape=maps)
        return self._add_layer(name, "conv2d", torch.diag(factors)[:, :, None, None], bias, value)

    WAYS: ClassVar[dict[tuple[str, ...], Callable[..., Value]]] = {
        SAME_NUMBERS: _reshape,
        NORMS: _batch_norm,
        ELEMENTWISE: _activation,
        UPSAMPLINGS: _upsampling,
        ("convolution",): _convolution,
        ("addmm", "mm"): _linear,
        tuple(INVERSES): _inverse,
        ("add", "mul"): _arithmetic,
        ("cat",): _join,
    }


def _as_row(value: Value) -> Value:
    """A value of shape (C, L) as maps (C, 1, L)."""
    return dataclasses.replace(value, shape=(value.shape[0], 1, value.shape[1]))


def _scale_layer(layer: Layer, scale: Tensor, shift: Tensor | int) -> Layer:
    """A layer whose outputs are multiplied and shifted, one number for each."""
    if layer.kind == "conv_transpose2d":  # (in, out of a group, …)
        weight = layer.weight.unflatten(0, (layer.groups, -1))
        by_group = scale.reshape(layer.groups, 1, -1, 1, 1)
        scaled = (weight * by_group).flatten(0, 1)
    else:
        scaled = layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
    return dataclasses.replace(layer, weight=scaled, bias=layer.bias * scale + shift)
