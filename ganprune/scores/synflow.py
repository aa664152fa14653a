"""SynFlow: scores without data, from a network whose weights are all positive."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ganprune.core.checks import check_integer
from ganprune.masks.mask import check_sparsity, pruned_count
from ganprune.masks.select import keep_largest, kth_smallest, positions, positions_up_to
from ganprune.masks.weights import WeightSlot, prunable_slots, weight_slots
from ganprune.scores.activation import functions_named
from ganprune.scores.gradient import gradients_of
from ganprune.scores.registry import register_score

_NOT_LINEAR = functions_named(
    "relu relu_ leaky_relu leaky_relu_ rrelu rrelu_ prelu relu6 elu elu_ selu selu_ celu celu_ gelu silu mish "
    "tanh tanh_ sigmoid sigmoid_ softplus softsign hardtanh hardtanh_ hardsigmoid hardswish logsigmoid "
    "threshold hardshrink softshrink tanhshrink softmax log_softmax softmin gumbel_softmax "
    "dropout dropout1d dropout2d dropout3d alpha_dropout "
    "normalize layer_norm group_norm instance_norm rms_norm local_response_norm"
)


_COMMON_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid)


_NORM_CLASSES = ("pixelnorm", "pixelwisenorm")


def _first(x: Tensor, *rest: Any, **options: Any) -> Tensor:
    return x


def _batch_norm_scale(variance: Tensor | None, weight: Tensor | None, eps: float) -> Tensor:
    scale = torch.ones((), dtype=torch.float64) if variance is None else (variance + eps).rsqrt()
    return scale if weight is None else scale.to(weight.device) * weight


def _per_channel(scale: Tensor, x: Tensor) -> Tensor:
    return x * scale.view(-1, *[1] * (x.ndim - 2))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Batch norm in evaluation mode with β and running mean zero: x γ / √(σ² + ε)."""
    return _per_channel(_batch_norm_scale(running_var, weight, eps).to(input.device), input)


class _Linear(TorchFunctionMode):
    """Makes activation and normalisation functions linear, wherever in a forward pass they are called.

    Attributes:
        used: whether any was called. If none was, later passes can do without this mode.
    """

    used = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        replacement = (
            _batch_norm if func is nn.functional.batch_norm else _first if func in _NOT_LINEAR else None
        )
        if replacement is None:
            return func(*args, **kwargs)
        self.used = True
        return replacement(*args, **kwargs) if args else replacement(kwargs.pop("input"), **kwargs)


def _linearise_module(module: nn.Module, own: tuple[type[nn.Module], ...]) -> None:
    """Makes one module of a throw-away copy linear if it is a common one; functions are left to the mode
    above."""
    if isinstance(getattr(module, "bias", None), Tensor):
        module.bias.zero_()  # type: ignore[operator, union-attr]
    named = any(name in type(module).__name__.lower() for name in _NORM_CLASSES)
    if isinstance(module, (*_COMMON_ACTIVATIONS, *own)) or named:
        module.forward = _first  # type: ignore[method-assign]
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        scale = _batch_norm_scale(module.running_var, module.weight, module.eps)
        module.forward = partial(_per_channel, scale)  # type: ignore[method-assign]


def _linearised_copy(
    model: nn.Module, linearise: tuple[type[nn.Module], ...] = ()
) -> tuple[nn.Module, dict[str, WeightSlot], dict[str, Tensor]]:
    """A float64 copy of a network that multiplies absolute weights and no more; where these weights were, and
    what they are, by name."""
    while hasattr(model, "_orig_mod"):
        model = model._orig_mod  # type: ignore[assignment]
    for slot in weight_slots(model).values():
        if slot.kind == "hook":  # the older norms leave a tensor with a graph behind, which cannot be copied
            slot.layer.__dict__["weight"] = slot.effective()
    network = copy.deepcopy(model).requires_grad_(False).eval()
    if any(p.device.type == "mps" for p in network.parameters()):
        network.cpu()  # MPS has no float64
    slots = weight_slots(network)
    weights = {  # before the raw parameters change
        key: slot.effective().to(torch.float64, copy=True).abs_() for key, slot in slots.items()
    }
    network.double()
    for parameter in network.parameters():
        parameter.abs_()
    for key, slot in slots.items():
        weights[key] = _replace_weight(slot, weights[key])
    for module in network.modules():
        _linearise_module(module, linearise)
    return network, slots, weights


def _replace_weight(slot: WeightSlot, weight: Tensor) -> Tensor:
    """Makes a throw-away copy of a layer use a tensor as its weight; returns the tensor that it then uses.

    ``remove_parametrizations`` would be wrong here: a copied module shares its class with the original, and
    the property is deleted from the class.
    """
    if slot.kind == "plain":
        slot.raw.data = weight
        return slot.raw
    if slot.kind == "parametrized":
        slot.owner.forward = lambda: weight  # type: ignore[method-assign, assignment]
    else:
        for number, hook in list(slot.layer._forward_pre_hooks.items()):
            if getattr(hook, "name", None) == "weight":
                del slot.layer._forward_pre_hooks[number]
        slot.layer.__dict__["weight"] = weight
    return weight


def _ones(model: nn.Module, inputs: Any, device: torch.device) -> tuple[Any, ...]:
    """One sample of ones in the shape of the inputs; integers (class labels) stay as they are."""
    if inputs is None:
        spec = getattr(model, "spec", model)
        for name in ("latent_dim", "image_shape", "input_shape"):
            shape = getattr(spec, name, None)
            if shape is not None:
                return (
                    torch.ones(
                        1, *([shape] if isinstance(shape, int) else shape), dtype=torch.float64, device=device
                    ),
                )
        raise ValueError(
            "score 'synflow' needs inputs (a batch that shows their shape) for a model without a spec"
        )
    batch = inputs if isinstance(inputs, tuple) else (inputs,)
    return tuple(
        (torch.ones_like(one[:1], dtype=torch.float64) if one.is_floating_point() else one[:1]).to(device)
        if isinstance(one, Tensor)
        else one
        for one in batch
    )


@register_score("synflow")
def synflow(
    model: nn.Module,
    inputs: Any = None,
    sparsity: float | None = None,
    rounds: int = 100,
    linearise: tuple[type[nn.Module], ...] = (),
    protect: Iterable[str] = (),
) -> dict[str, Tensor]:
    """``|∂R/∂w ⊙ w|`` with ``R = 1ᵀ (∏ |W|) 1``, in rounds towards a sparsity; needs no data and no loss.

    Tanaka et al. 2020, "Pruning neural networks without any data by iteratively conserving synaptic flow",
    equations 3 and 4 and algorithm 1. Each round k of n scores the weights that are left and keeps a share
    density^(k/n). The flow through each layer is the same and the largest scores cannot all be in one layer,
    so no layer is emptied early; one round has no such protection.

    R is computed on a float64 copy of the network with absolute weights, no biases, batch norm in evaluation
    mode with β and running mean zero, and every saturating or normalising function (Tanh, softmax, pixel
    norm, spectral norm) replaced by the identity. Left in, the output Tanh saturates and only the border
    pixels would be scored.

    Args:
        model: any network that is made of linear maps, monotone activations and norms.
        inputs: a batch (or a tuple of arguments) that shows the shape; its values are replaced by ones. None
            for networks with a spec.
        sparsity: what the rounds lead to. The result ranks the weights for this sparsity and every lower one.
            None makes a single round.
        rounds: n, at least 1.
        linearise: classes of modules to replace by the identity as well, for normalisations of one's own.
        protect: layers to leave out.

    Returns:
        Scores of at least 0 for what the last round scored; what round k removed has −(n − k) − 1 plus a
        number in [0, 1) that keeps the order within its round.
    """
    rounds = check_integer("rounds", rounds, 1)
    target = 0.0 if sparsity is None else check_sparsity(sparsity)
    original = prunable_slots(model, protect)
    network, slots, copies = _linearised_copy(model, linearise)
    weights = {key: copies[key].requires_grad_(True) for key in original}
    sample = _ones(model, inputs, next(iter(weights.values())).device)
    outer = _OuterProducts(weights, slots)
    ranking = _rank_by_flow(network, weights, outer, sample, target, rounds if target else 0)
    device = next(iter(original.values())).raw.device
    parts = ranking.to(device if device.type != "mps" else "cpu").split([w.numel() for w in weights.values()])
    return {key: part.view(weight.shape) for (key, weight), part in zip(weights.items(), parts, strict=True)}


class _OuterProducts:
    """The gradients of layers that one sample passes as a single row: outer products of input and gradient.

    Autograd would make each of them anew in every pass, and in a generator the layer after the latent has
    most of the weights. The first pass tells which layers they are: there, both ways must agree.
    """

    def __init__(self, weights: Mapping[str, Tensor], slots: Mapping[str, WeightSlot]) -> None:
        self.weights = dict(weights)  # what autograd differentiates by
        self.rows: dict[str, tuple[Tensor, Tensor]] = {}
        self.known = False
        self.transposed = {key for key in weights if slots[key].output_dim == 1}
        self.handles = {
            key: slots[key].layer.register_forward_hook(partial(self._see, key)) for key in weights
        }

    def _see(self, key: str, layer: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
        if not (isinstance(output, Tensor) and len(arguments) == 1 and isinstance(arguments[0], Tensor)):
            return output
        row = arguments[0].detach().flatten()
        if len(row) * output.numel() != layer.weight.numel():  # type: ignore[operator, union-attr]
            return output
        column = output if output.requires_grad else output.requires_grad_()
        self.rows[key] = row, column
        return column.clone() if column.is_leaf else column  # a leaf may not be changed in place

    def gradients(self, total: Tensor, into: Mapping[str, Tensor]) -> None:
        """Writes the gradient of ``total`` by every weight to its place."""
        rows, self.rows = self.rows, {}
        columns = {f"output of {key}": column for key, (_, column) in rows.items()}
        found = dict(zip((*self.weights, *columns), gradients_of(total, self.weights | columns), strict=True))
        for key in self.weights:
            into[key].copy_(found[key])
        for key, (row, _) in rows.items():
            column = found[f"output of {key}"].flatten()
            factors = (row, column) if key in self.transposed else (column, row)
            if self.known:
                torch.outer(*factors, out=into[key].view(len(factors[0]), -1))
            elif torch.allclose(torch.outer(*factors).flatten(), into[key].flatten(), rtol=1e-9, atol=0.0):
                self.weights.pop(key).requires_grad_(False)
        if not self.known:
            self.known = True
            for key in self.weights:
                self.handles.pop(key).remove()


def _rank_by_flow(
    network: nn.Module,
    weights: Mapping[str, Tensor],
    outer: _OuterProducts,
    sample: tuple[Any, ...],
    target: float,
    rounds: int,
) -> Tensor:
    """The scores of :func:`synflow`, flat; what is selected from shrinks with the weights left."""
    sizes = [weight.numel() for weight in weights.values()]
    with torch.no_grad():
        flat = torch.cat([weight.flatten() for weight in weights.values()])
        for weight, part in zip(weights.values(), flat.split(sizes), strict=True):
            weight.data = part.view(weight.shape)  # what is set to zero in `flat` is zero in the network
    total, gradient, buffer, ranks = len(flat), *(torch.empty_like(flat) for _ in range(3))
    places = {
        key: part.view(weights[key].shape) for key, part in zip(weights, gradient.split(sizes), strict=True)
    }
    alive, values, left = torch.arange(total, device=flat.device), flat.clone(), total
    order = torch.empty_like(alive)  # of going, with `ranks` beside it
    mode, threshold, guess = _Linear(), 0.0, math.inf
    for number in range(1, max(rounds, 1) + 1):
        with torch.enable_grad(), mode if number == 1 or mode.used else nullcontext():
            output = network(*sample)
        outer.gradients(output.sum(), into=places)
        if left < 0.75 * len(alive):
            stay = positions(~values.isnan())
            alive, values = alive.index_select(0, stay), values.index_select(0, stay)
        flow = buffer[: len(alive)]
        torch.index_select(gradient, 0, alive, out=flow)
        flow.mul_(values).abs_()
        if number == 1 and not bool(flow.sum().isfinite()):  # with fewer weights it can only fall
            raise ValueError(
                "score 'synflow' overflows on this network: some function in it cannot be linearised"
            )
        share = (
            0.0 if not rounds else target if number == rounds else 1.0 - (1.0 - target) ** (number / rounds)
        )
        count = left - (total - pruned_count(share, total))
        if count > 0:
            before, (leave, threshold) = threshold, _smallest(flow, count, guess)
            # from round to round the threshold changes by nearly the same factor; a wrong guess costs time only
            guess = 1.02 * threshold * (threshold / before if before else 1.2)
            gone, rank = (part[total - left : total - left + count] for part in (order, ranks))
            torch.index_select(alive, 0, leave, out=gone)
            torch.index_select(flow, 0, leave, out=rank)
            rank.mul_(0.5 / max(threshold, torch.finfo(rank.dtype).tiny)).sub_(rounds - number + 1.0)
            flat.index_fill_(0, gone, 0.0)
            values.index_fill_(0, leave, math.nan)  # a mark: it is no candidate any more
            left -= count
    stay = positions(~values.isnan())
    torch.index_select(alive, 0, stay, out=order[total - left :])
    torch.index_select(flow, 0, stay, out=ranks[total - left :])
    return torch.empty_like(ranks).index_copy_(0, order, ranks)


def _smallest(flow: Tensor, count: int, guess: float) -> tuple[Tensor, float]:
    """Where the ``count`` smallest numbers stand, of equal ones the first; and the largest of them. NaN is none.

    If enough are at most ``guess``, the selection looks only at these.
    """
    few = positions_up_to(flow, guess)
    if len(few) < count:
        few = positions_up_to(flow, torch.finfo(flow.dtype).max)
    low = flow.index_select(0, few)
    threshold = kth_smallest(low, count)
    found = positions_up_to(low, threshold)
    if len(found) > count:
        found = positions(~keep_largest(low, len(low) - count))
    return few.index_select(0, found), float(threshold)
