"""Scores from what flows through a network on given inputs: APoZ, mean activation, Wanda.

The first two belong to channels; :func:`channel_scores` gives them per channel, and ``score`` gives every weight
that feeds a channel the channel's score. The network runs in evaluation mode and is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ganprune.core.modes import eval_mode
from ganprune.masks.weights import WeightSlot, prunable_slots
from ganprune.scores.registry import register_score, undisturbed


def functions_named(names: str) -> set[Any]:
    """The functions of torch, of its tensors and of ``torch.nn.functional`` that have these names."""
    owners = (torch, torch.Tensor, functional)
    return {getattr(owner, name) for owner in owners for name in names.split() if hasattr(owner, name)}


_RELU = functions_named("relu relu_")


_OTHER_ACTIVATIONS = functions_named(
    "leaky_relu leaky_relu_ rrelu rrelu_ prelu tanh tanh_ sigmoid sigmoid_ elu elu_ selu selu_ celu celu_ "
    "gelu silu mish softplus softsign hardtanh hardtanh_ hardsigmoid hardswish relu6 logsigmoid softmax "
    "log_softmax glu"
)


# What keeps the order of the entries, so that an output can be followed to its activation.
_TRANSPARENT = functions_named(
    "batch_norm instance_norm group_norm layer_norm rms_norm local_response_norm "
    "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout "
    "view reshape flatten unflatten contiguous squeeze unsqueeze to float double"
)


def batches_of(inputs: Any, device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Each batch as a tuple of arguments on the device.

    Args:
        inputs: a tensor (one batch), a tuple (one batch of several arguments), or an iterable of these.
        device: where the network is.

    Raises:
        ValueError: if there is no batch.
    """
    count = 0
    for batch in [inputs] if isinstance(inputs, (Tensor, tuple)) else inputs:
        arguments = batch if isinstance(batch, tuple) else (batch,)
        yield tuple(one.to(device) if isinstance(one, Tensor) else one for one in arguments)
        count += 1
    if not count:
        raise ValueError("inputs must hold at least one batch, got none")


class _Follower(TorchFunctionMode):
    """Follows the output of each layer through norms and reshapes to the activation function that takes
    it."""

    def __init__(self) -> None:
        super().__init__()
        self.owners: dict[int, tuple[str, Tensor]] = {}  # the tensor is kept so that its id stays its own
        self.last: dict[str, Tensor] = {}
        self.found: list[tuple[str, str, Tensor]] = []  # (layer, activation, its output)

    def own(self, key: str, tensor: Tensor) -> None:
        self.owners[id(tensor)] = (key, tensor)
        self.last[key] = tensor

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        subject: Any = args[0] if args else kwargs.get("input")
        owner = self.owners.get(id(subject))
        result = func(*args, **kwargs)
        if owner is not None and isinstance(result, Tensor):
            if func in _RELU or func in _OTHER_ACTIVATIONS:
                self.found.append((owner[0], "relu" if func in _RELU else func.__name__, result))
                del self.owners[id(subject)]
                self.last.pop(owner[0], None)
            elif func in _TRANSPARENT and result.numel() == subject.numel():
                self.own(owner[0], result)
        return result


class _Channels:
    """Sums over samples and positions of what a layer's activation function gives, per channel."""

    def __init__(self, slot: WeightSlot) -> None:
        self.slot = slot
        self.shape: torch.Size | None = None  # of the layer's own output
        self.activations: set[str] = set()
        self.positive = torch.zeros(slot.outputs, dtype=torch.int64, device=slot.raw.device)
        self.magnitude = torch.zeros(slot.outputs, dtype=torch.float32, device=slot.raw.device)
        self.count = 0

    def add(self, activation: str, output: Tensor) -> None:
        assert self.shape is not None
        shaped = output.reshape(self.shape)
        spatial = self.slot.raw.ndim - 2
        rows = shaped.movedim(shaped.ndim - 1 - spatial, 0).flatten(1)
        self.activations.add(activation)
        self.positive += (rows > 0).sum(1)
        self.magnitude += rows.abs().sum(1, dtype=torch.float32)
        self.count += rows.shape[1]


@torch.no_grad()
def _run(network: nn.Module, inputs: Any, slots: Mapping[str, WeightSlot]) -> dict[str, _Channels]:
    channels = {key: _Channels(slot) for key, slot in slots.items()}
    follower = _Follower()

    def watch(key: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def after(layer: nn.Module, arguments: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"layer {key.removesuffix('.weight')} must return a tensor to be scored by its activations, "
                    f"got {type(output).__name__}; leave it out with protect"
                )
            channels[key].shape = output.shape
            follower.own(key, output)

        return after

    device = next(iter(slots.values())).raw.device
    with ExitStack() as stack:
        stack.enter_context(undisturbed(network))
        stack.enter_context(eval_mode(network))
        for key, slot in slots.items():
            stack.enter_context(slot.layer.register_forward_hook(watch(key)))
        for batch in batches_of(inputs, device):
            with follower:
                network(*batch)
            for key, activation, output in follower.found:
                channels[key].add(activation, output)
            for key, output in follower.last.items():
                channels[key].add("none", output)
            follower.owners, follower.last, follower.found = {}, {}, []
    _check_ran(slots, [key for key, found in channels.items() if found.count])
    return channels


def _check_ran(keys: Iterable[str], ran: Iterable[str]) -> None:
    idle = [key for key in keys if key not in set(ran)]
    if idle:
        raise ValueError(f"these layers did not run on the inputs; protect them: {', '.join(idle)}")


def channel_scores(
    network: nn.Module, name: str, inputs: Any, protect: Iterable[str] = ()
) -> dict[str, Tensor]:
    """Scores per output channel of each prunable layer; the channels with the smallest are to be pruned.

    Args:
        network: run in evaluation mode.
        name: "apoz": the share of positive activations, which is 1 − APoZ (average percentage of zeros; Hu et
            al. 2016, "Network trimming", equation 1). "mean-activation": the mean of ``|a|`` (Molchanov et
            al. 2017). The activation a of a layer is what its activation function gives, after normalisation;
            without an activation function it is the normalised output.
        inputs: a tensor, a tuple of arguments, or an iterable of batches.
        protect: layers to leave out.

    Returns:
        Weight name → float32 tensor of shape (outputs,).

    Raises:
        ValueError: if the name is unknown, a layer does not run, or (APoZ) a layer is followed by something
            else than ReLU, behind which zeros mean nothing.
    """
    if name not in ("apoz", "mean-activation"):
        raise ValueError(f"name must be apoz or mean-activation, got {name!r}")
    channels = _run(network, inputs, prunable_slots(network, protect))
    if name == "mean-activation":
        return {key: found.magnitude / found.count for key, found in channels.items()}
    wrong = {
        key: sorted(found.activations) for key, found in channels.items() if found.activations != {"relu"}
    }
    if wrong:
        listed = ", ".join(f"{key} (followed by {', '.join(kinds)})" for key, kinds in wrong.items())
        names = ", ".join(repr(key.removesuffix(".weight")) for key in wrong)
        raise ValueError(
            f"APoZ counts zeros behind ReLU and means nothing elsewhere: {listed}; use protect=({names},)"
        )
    return {key: found.positive.float() / found.count for key, found in channels.items()}


def per_output(slot: WeightSlot, channels: Tensor) -> Tensor:
    """A number per output channel, (outputs,), spread over the weights that feed it: the weight's shape."""
    return _spread(slot, channels, slot.output_dim)


def per_input(slot: WeightSlot, channels: Tensor) -> Tensor:
    """A number per input channel, (inputs,), spread over the weights that read it: the weight's shape."""
    return _spread(slot, channels, 1 - slot.output_dim)


def _spread(slot: WeightSlot, channels: Tensor, dim: int) -> Tensor:
    """Numbers of the channels that a dimension of the weight counts, in the weight's shape."""
    weight, groups = slot.raw, int(getattr(slot.layer, "groups", 1))
    tail = [1] * (weight.ndim - 2)
    if dim == 0:
        return channels.view(-1, 1, *tail).expand(weight.shape)
    rows, columns = weight.shape[:2]  # (rows, channels / groups, …): each group of rows has its own channels
    spread = channels.view(groups, 1, columns).expand(groups, rows // groups, columns)
    return spread.reshape(rows, columns, *tail).expand(weight.shape)


def _per_weight(network: nn.Module, name: str, inputs: Any, protect: Iterable[str]) -> dict[str, Tensor]:
    """The channel scores of that name, for each weight the one of the channel that it feeds."""
    slots, found = prunable_slots(network, protect), channel_scores(network, name, inputs, protect)
    return {key: per_output(slot, found[key]).clone() for key, slot in slots.items()}


@register_score("apoz", needs=("inputs",))
def apoz(network: nn.Module, inputs: Any, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """1 − APoZ of the channel that a weight feeds (Hu et al. 2016); see :func:`channel_scores`."""
    return _per_weight(network, "apoz", inputs, protect)


@register_score("mean-activation", needs=("inputs",))
def mean_activation(network: nn.Module, inputs: Any, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """Mean ``|a|`` of the channel that a weight feeds (Molchanov et al. 2017); see :func:`channel_scores`."""
    return _per_weight(network, "mean-activation", inputs, protect)


@register_score("wanda", allocation="per-output", needs=("inputs",))
@torch.no_grad()
def wanda(network: nn.Module, inputs: Any, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """``|w| · ‖x‖₂``, where x is the input that w multiplies, over all samples and positions.

    Sun et al. 2024, "A simple and effective pruning approach for large language networks", equation 1. Compared
    within an output, which is what the allocation "per-output" does; ``prune`` uses it for this score unless
    told otherwise. In a convolution x is the whole input channel. A transposed convolution's weight is (in,
    out, …), so its outputs are dimension 1. w is the weight that the forward pass uses under PyTorch's norms, and
    the raw weight under a norm or multiplier of one's own.
    """
    slots = prunable_slots(network, protect)
    squares: dict[str, Tensor] = {}

    def watch(key: str, spatial: int) -> Callable[..., None]:
        def before(layer: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            x = next(one for one in (*arguments, *named.values()) if isinstance(one, Tensor)).detach()
            x = x.double() if x.device.type != "mps" else x.float()
            sums = x.square().movedim(x.ndim - 1 - spatial, 0).flatten(1).sum(1)
            squares[key] = squares[key] + sums if key in squares else sums

        return before

    device = next(iter(slots.values())).raw.device
    with ExitStack() as stack:
        stack.enter_context(eval_mode(network))
        for key, slot in slots.items():
            hook = watch(key, slot.raw.ndim - 2)
            stack.enter_context(slot.layer.register_forward_pre_hook(hook, with_kwargs=True))
        for batch in batches_of(inputs, device):
            network(*batch)
    _check_ran(slots, squares)
    scores = {}
    for key, slot in slots.items():
        if slot.raw.ndim < 2 or squares[key].numel() != slot.inputs:
            raise ValueError(
                f"score 'wanda' cannot tell which of {squares[key].numel()} inputs the weights of {key} "
                f"{tuple(slot.raw.shape)} read; leave it out with protect"
            )
        weight = slot.effective().abs()
        weight = weight.float() if weight.element_size() < 4 else weight  # the norm can exceed a half's range
        scores[key] = weight * per_input(slot, squares[key].sqrt().to(weight.dtype))
    return scores
