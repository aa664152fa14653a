"""Scores that differentiate: SNIP, GraSP, SynFlow, Taylor and the squared gradient.

Write g for the gradient of the loss with respect to the weight w that the forward pass uses; under spectral
or weight norm that is the effective weight, with its norm held constant. A generator has no loss of its own:
its gradient comes through a discriminator, and ``loss_fn`` says which one and by which loss. A closure
``loss_fn(model)`` yields one scalar loss per batch, the same ones each time it is called.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ganprune.checks import check_integer
from ganprune.masks import WeightSlot, check_sparsity, prunable_slots, pruned_count, weight_slots
from ganprune.pruning.activation_scores import functions_named
from ganprune.pruning.allocation import keep_largest, kth_smallest, positions, positions_up_to
from ganprune.pruning.scores import register_score
from ganprune.runtime import eval_mode

LossFn = Callable[[nn.Module], Iterable[Tensor]]


# --- The weights that the forward pass uses, as leaves of the graph -------------------------------


@contextmanager
def scored_weights(model: nn.Module, protect: Iterable[str] = ()) -> Iterator[dict[str, Tensor]]:
    """The weights that the forward pass uses inside the block, by name, all requiring gradients.

    Plain weights are the parameters themselves. Where a parametrisation or an older norm hook makes the
    weight, a leaf with the same values stands in for it, so that the gradient is that of the effective
    weight. Afterwards flags, hooks and all buffers (batch-norm statistics, spectral vectors) are as before.
    """
    slots = prunable_slots(model, protect)
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with ExitStack() as stack:
        leaves = {key: stack.enter_context(_leaf(slot)) for key, slot in slots.items()}
        try:
            yield leaves
        finally:
            with torch.no_grad():
                for buffer, saved in buffers:
                    buffer.copy_(saved)


@contextmanager
def _leaf(slot: WeightSlot) -> Iterator[Tensor]:
    if slot.kind == "plain":
        flag = slot.raw.requires_grad
        slot.raw.requires_grad_(True)
        try:
            yield slot.raw
        finally:
            slot.raw.requires_grad_(flag)
        return
    leaf = slot.effective().clone().requires_grad_(True)
    if slot.kind == "parametrized":
        handle = slot.owner.register_forward_hook(lambda *_: leaf)
        try:
            yield leaf
        finally:
            handle.remove()
        return
    hooks, usual = dict(slot.layer._forward_pre_hooks), slot.layer.__dict__.get("weight")
    for number, hook in hooks.items():
        if getattr(hook, "name", None) == "weight":
            del slot.layer._forward_pre_hooks[number]
    slot.layer.__dict__["weight"] = leaf
    try:
        yield leaf
    finally:
        slot.layer.__dict__["weight"] = usual
        slot.layer._forward_pre_hooks.clear()
        slot.layer._forward_pre_hooks.update(hooks)


def _losses(model: nn.Module, loss_fn: LossFn) -> Iterator[Tensor]:
    """The losses of a closure, checked.

    Raises:
        TypeError: if ``loss_fn`` is no such closure.
        ValueError: if it yields nothing, or something that is no scalar with a gradient.
    """
    if not callable(loss_fn):
        raise TypeError(
            f"loss_fn must be a function of the model that yields losses, got {type(loss_fn).__name__}"
        )
    yielded = loss_fn(model)
    losses = iter([yielded] if isinstance(yielded, Tensor) else yielded)
    count = 0
    try:
        while (loss := next(losses, None)) is not None:
            count += 1
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise ValueError(f"loss_fn must yield scalar losses that depend on the model, got {got}")
            yield loss.sum()
    finally:
        if isinstance(losses, Generator):
            losses.close()  # it may hold another network frozen
    if not count:
        raise ValueError("loss_fn must yield at least one loss, got none")


def _gradients(
    loss: Tensor, weights: Mapping[str, Tensor], create_graph: bool = False, needed: bool = True
) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, create_graph=create_graph)
    if needed and all(gradient is None for gradient in found):
        raise ValueError("loss_fn must use the model that it is given; no prunable weight has a gradient")
    return [
        torch.zeros_like(weight) if gradient is None else gradient
        for gradient, weight in zip(found, weights.values(), strict=True)
    ]


def _accumulate(
    model: nn.Module, loss_fn: LossFn, protect: Iterable[str], term: Callable[[Tensor, Tensor], Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Σ over batches of term(g, w); the weights; the number of batches."""
    with torch.enable_grad(), scored_weights(model, protect) as weights:
        values = {key: _precise(weight.detach()) for key, weight in weights.items()}
        sums = {key: torch.zeros_like(value) for key, value in values.items()}
        count = 0
        for loss in _losses(model, loss_fn):
            count += 1
            for key, gradient in zip(weights, _gradients(loss, weights), strict=True):
                sums[key] += term(_precise(gradient), values[key])
        return sums, {key: value.clone() for key, value in values.items()}, count


def _precise(tensor: Tensor) -> Tensor:
    """At least float32: squares of half-precision gradients underflow."""
    return tensor.float() if tensor.element_size() < 4 else tensor


@register_score("snip")
def snip(model: nn.Module, loss_fn: LossFn, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """``|Σ g| · |w|``, the sum over batches: the size of the loss's first-order change if w were removed.

    Lee et al. 2019, "SNIP: single-shot network pruning based on connection sensitivity", equation 4 (without
    the normalisation, which changes no order). Meant for initialisation. The network is scored in its present
    mode: batch norm in training mode uses the statistics of the batch, which at initialisation are the only
    ones there are.
    """
    sums, weights, _ = _accumulate(model, loss_fn, protect, lambda g, w: g)
    return {key: (total * weights[key]).abs() for key, total in sums.items()}


@register_score("taylor")
def taylor(model: nn.Module, loss_fn: LossFn, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """``Σ (g w)²`` over batches: the squared first-order change of the loss if w were removed.

    Molchanov et al. 2019, "Importance estimation for neural network pruning", equation 8. The square is
    inside the sum: batches whose gradients cancel still count. Scored in the network's present mode.
    """
    return _accumulate(model, loss_fn, protect, lambda g, w: (g * w).square())[0]


@register_score("squared-gradient")
def squared_gradient(model: nn.Module, loss_fn: LossFn, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """``½ h w²`` with ``h = E g²`` per sample: a proxy to optimal brain damage.

    OBD (LeCun et al. 1990) has the diagonal of the Hessian in the place of h. For a log-likelihood whose
    model is true the two have the same expectation; a generator's loss is no log-likelihood, so here it is a
    proxy and no more.

    Each loss that ``loss_fn`` yields counts as one sample: use ``batch_size=1``. (With larger batches the
    mean gradient is squared, which is smaller.) The network is in evaluation mode, as batch statistics of one
    sample mean nothing.
    """
    with eval_mode(model):
        sums, weights, count = _accumulate(model, loss_fn, protect, lambda g, w: g.square())
    return {key: 0.5 * total / count * weights[key].square() for key, total in sums.items()}


@register_score("grasp")
def grasp(model: nn.Module, loss_fn: LossFn, protect: Iterable[str] = ()) -> dict[str, Tensor]:
    """``w ⊙ H g``; the smallest are pruned, which are the largest of −w ⊙ H g.

    Wang et al. 2020, "Picking winning tickets before training by preserving gradient flow", equation 8.
    Removing w changes ‖g‖² by about −2 w (H g), so what is kept is what gradient flow needs. H and g are
    those of the mean loss over all batches; the product H g comes from differentiating ⟨g, constant⟩, without
    the matrix. The paper's temperature divides logits, so it belongs into ``loss_fn``. Costs two passes; both
    must see the same batches.
    """
    with torch.enable_grad(), scored_weights(model, protect) as weights:
        mean = [torch.zeros_like(weight, requires_grad=False) for weight in weights.values()]
        count = 0
        for loss in _losses(model, loss_fn):
            count += 1
            torch._foreach_add_(mean, _gradients(loss, weights))
        torch._foreach_div_(mean, count)
        product = [torch.zeros_like(total) for total in mean]
        for loss in _losses(model, loss_fn):
            gradients = _gradients(loss, weights, create_graph=True)
            inner = torch.stack([(g * fixed).sum() for g, fixed in zip(gradients, mean, strict=True)]).sum()
            if inner.requires_grad:
                torch._foreach_add_(product, _gradients(inner, weights, needed=False))
        return {
            key: weight.detach() * total / count
            for (key, weight), total in zip(weights.items(), product, strict=True)
        }


# --- SynFlow --------------------------------------------------------------------------------------

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
        found = dict(zip((*self.weights, *columns), _gradients(total, self.weights | columns), strict=True))
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
